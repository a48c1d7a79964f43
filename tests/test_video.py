"""Numbered frames and sound of a video: the right moment, a full decode's pixels, clear refusals."""

import contextlib
import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_inputs import AUDIO_RATE, make_video, number_on, tone

from datasets.audio import resample
from datasets.video import (
    UnusableVideoError,
    Video,
    _sound_pieces,
    _upright,
    encode_squares,
    numbered_frames,
    open_video,
    read_frames,
    read_sound,
)

SIZE = 48
LONG_GROUPS = {"g": "250", "sc_threshold": "0"}
SHORT_GROUPS = {"g": "12", "sc_threshold": "0"}
KINDS = {
    "one_key_frame.mp4": {"options": LONG_GROUPS},
    "key_frames.mp4": {"options": SHORT_GROUPS},
    "b_pyramid.mkv": {"options": {**LONG_GROUPS, "bf": "7", "b-pyramid": "normal"}},
    "open_groups.mkv": {"options": {**SHORT_GROUPS, "x264-params": "open-gop=1:bframes=3"}},
    "hevc.mp4": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9", "sound_codec": "libopus"},
    "mpeg4.avi": {"codec": "mpeg4", "sound_codec": "libmp3lame"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "sound_codec": "mp2", "options": {"bf": "2"}},
    "h264_b_frames.avi": {"sound_codec": "libmp3lame"},
    "transport.ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video", "sound_codec": "mp2", "options": {"bf": "2"}},
}


def read_all(path, numbers, needed):
    with open_video(path) as video:
        frames = numbered_frames(video, numbers, needed=needed)
        return {number: _upright(frame, (SIZE, SIZE)) for number, frame in frames}


def read(path, number=40):
    return Image.fromarray(read_all(path, [number], number)[number])


def decode_everything(path):
    """All pictures in order of showing with their times; AVI's stamps are those of decoding."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        time_base = stream.time_base
        origin = Fraction(container.start_time or 0, av.time_base)
        decoding = [packet.dts for packet in container.demux(stream) if packet.size]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    stamps = decoding if path.suffix == ".avi" else [frame.pts for frame in frames]
    return list(zip([stamp * time_base - origin for stamp in stamps], frames, strict=False))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("number", [5, 40])
def test_the_frame_is_pixel_for_pixel_that_of_a_full_decode(tmp_path, name, number):
    path = make_video(tmp_path / name, **KINDS[name])
    moment = Fraction(2 * number - 1, 50)
    shown = [frame for seconds, frame in decode_everything(path) if seconds < moment]
    expected = shown[-1].reformat(SIZE, SIZE, format="rgb24", interpolation="BICUBIC", threads=1)
    picture = read(path, number)
    np.testing.assert_array_equal(np.asarray(picture), expected.to_ndarray())
    assert number_on(picture) in {number - 1, number - 2}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([index / 30 for index in range(60)], 47),
        ([index / 10 for index in range(20)], 15),
        ([0, 0.1, 0.9, 1.3, 1.575, 1.579, 1.581, 1.9], 5),
        ([0, 0.1, 0.9, 1.3, 1.9], 3),
    ],
)
def test_the_frame_is_chosen_by_its_time(tmp_path, times, expected):
    assert number_on(read(make_video(tmp_path / "video.mkv", times=times), 40)) == expected


def test_frame_125_is_the_125th_and_a_start_time_is_no_part_of_the_clip(tmp_path):
    assert number_on(read(make_video(tmp_path / "video.mp4", seconds=6), 125)) == 124
    late = make_video(tmp_path / "late.mkv", start=2.0, sound_codec="pcm_s16le")
    assert number_on(read(late, 40)) == 39
    assert len(read_sound(late, 16_000)) == pytest.approx(32_000, abs=50)


@pytest.mark.parametrize("rate", [24, 25, 30])
def test_all_frames_are_those_of_ffmpeg_s_filter(tmp_path, rate):
    path = make_video(tmp_path / "video.mp4", seconds=2, rate=rate)
    graph = av.filter.Graph()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        source = graph.add_buffer(template=stream)
        fps, sink = graph.add("fps", "25"), graph.add("buffersink")
        source.link_to(fps)
        fps.link_to(sink)
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
        graph.push(None)
    expected = []
    with contextlib.suppress(av.error.EOFError):
        while True:
            expected.append(number_on(graph.pull().to_image()))
    pictures = read_all(path, range(1, 251), 40)
    assert list(pictures) == list(range(1, len(pictures) + 1))
    assert [number_on(Image.fromarray(picture)) for picture in pictures.values()] == expected
    assert pictures[40].tobytes() == read(path, 40).tobytes()


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_is_the_mean_of_the_channels(tmp_path, channels):
    samples = tone(2, channels=channels) * np.linspace(0.2, 1, channels)[:, None]
    samples = samples.astype(np.float32)
    path = make_video(tmp_path / "video.mkv", sounds=[samples], sound_codec="pcm_s16le")
    sound = read_sound(path, 16_000)
    expected = resample(torch.from_numpy(samples).mean(dim=0), AUDIO_RATE, 16_000)
    assert sound.dtype == np.float32 and abs(len(sound) - len(expected)) <= 16
    inside = slice(200, 31_000)  # two filters differ at the ends
    np.testing.assert_allclose(sound[inside], expected[inside], atol=2e-3)


def joined(tmp_path, *parts):
    """Transport streams after each other, as television and recorders leave them."""
    path = tmp_path / "joined.ts"
    content = [make_video(tmp_path / f"{n}.ts", **part).read_bytes() for n, part in enumerate(parts)]
    path.write_bytes(b"".join(content))
    return path


def levels(path):
    """Loudest sample of the middle of each quarter of a second."""
    sound = read_sound(path, 16_000)
    quarters = sound[: len(sound) // 4000 * 4000].reshape(-1, 4000)
    return [round(float(abs(quarter[1000:3000]).max()), 1) for quarter in quarters]


def test_a_hole_in_the_time_stamps_is_silence_and_stereo_may_turn_mono(tmp_path):
    path = joined(tmp_path, {}, {"start": 4.0, "sounds": [tone(2, 0.6, 1)]})
    assert levels(path)[1:7] == [0.3] * 6
    assert levels(path)[9:15] == [0.0] * 6
    assert levels(path)[17:23] == pytest.approx([0.6] * 6, abs=0.15)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True)])
def test_pictures_are_turned_and_mirrored_as_their_matrix_says(tmp_path, rotation, mirrored):
    quadrants = np.zeros((64, 96, 3), np.uint8)
    quadrants[:32, :48], quadrants[:32, 48:], quadrants[32:, :48] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    path = make_video(
        tmp_path / "v.mp4",
        seconds=0.2,
        rate=10,
        pictures=[quadrants] * 2,
        rotation=rotation,
        mirrored=mirrored,
    )
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        matrix = frame.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / 65536 if matrix else (1, 0, 0, 0, 1)
    _, shown = next(iter(read_frames(path)))
    middle = np.array([47.5, 31.5])
    for x, y in ((24, 16), (72, 16), (24, 48), (72, 48)):  # each pixel goes where the matrix sends it
        dx, dy = (x, y) - middle
        column, row = a * dx + c * dy + (shown.shape[1] - 1) / 2, b * dx + d * dy + (shown.shape[0] - 1) / 2
        assert np.abs(shown[round(row), round(column)].astype(int) - quadrants[y, x]).max() < 40
    with open_video(path) as video:
        ((_, jpeg),) = encode_squares(numbered_frames(video, [1], needed=1), 64)
    expected = np.asarray(Image.fromarray(shown).resize((64, 64)), int)
    assert np.abs(np.asarray(Image.open(io.BytesIO(jpeg)), int) - expected).mean() < 8


def test_a_clock_that_jumps_far_ahead_leaves_sound_and_pictures_together(tmp_path):
    path = joined(tmp_path, {}, {"start": 1000.0, "sounds": [tone(2, 0.6)]})
    assert levels(path)[1:7] + levels(path)[9:15] == [0.3] * 6 + [0.6] * 6
    assert [seconds for seconds, _ in read_frames(path)][-1] < 5


def test_pictures_with_exif_data_in_a_video_are_read(tmp_path):
    exif = Image.Exif()
    exif[0x110] = "a camera"
    with av.open(str(tmp_path / "camera.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        heard = container.add_stream("pcm_s16le", AUDIO_RATE, layout="mono")
        for number in range(5):
            jpeg = io.BytesIO()
            Image.new("RGB", (64, 48), (200, 0, 0)).save(jpeg, "JPEG", exif=exif)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        silence.sample_rate = AUDIO_RATE
        container.mux(heard.encode(silence))
    assert len(list(read_frames(tmp_path / "camera.avi"))) == 5


def test_a_long_hole_of_a_file_without_clock_is_silence(tmp_path):
    path = tmp_path / "hole.mkv"
    times = list(range(0, 640, 8))
    make_video(path, times=times, rate=1, sounds=[tone(2)], sound_again=630.0)
    sound = read_sound(path, 16_000)
    assert len(sound) == pytest.approx(632 * 16_000, abs=4000)
    assert abs(sound[3 * 16_000 : 629 * 16_000]).max() < 1e-3 < abs(sound[631 * 16_000 :]).max()
    with open_video(path) as video:  # a file may announce any length: no more is made than is wanted
        pieces = _sound_pieces(video, 16_000, most=4 * 16_000)
        assert max(piece.shape[1] for piece in pieces) <= 4 * 16_000


def test_time_stamps_that_step_back_leave_sound_and_pictures_together(tmp_path):
    anew = joined(tmp_path, {}, {"sounds": [tone(2, 0.6)]})  # the clock begins anew: both are whole
    assert levels(anew)[1:7] + levels(anew)[9:15] == [0.3] * 6 + [0.6] * 6
    assert 98 <= len(list(read_frames(anew))) <= 100
    overlap = joined(tmp_path, {}, {"start": 1.5, "sounds": [tone(2, 0.6)]})  # half a second is there twice
    assert levels(overlap)[1:7] + levels(overlap)[9:13] == [0.3] * 6 + [0.6] * 4
    assert len(read_sound(overlap, 16_000)) == pytest.approx(3.5 * 16_000, abs=2000)
    assert 85 <= len(list(read_frames(overlap))) <= 88


def test_damaged_sound_of_a_video_is_silence_in_words_and_refused_for_a_data_set(tmp_path, caplog):
    path = make_video(tmp_path / "video.mp4")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(audio=0) if packet.size][40:60]
    content = bytearray(path.read_bytes())
    for place in places:
        content[place : place + 40] = bytes([255]) * 40
    path.write_bytes(content)
    assert len(read_sound(path, 16_000)) == pytest.approx(32_000, abs=1000)
    assert "are damaged, and silent" in caplog.text
    with pytest.raises(UnusableVideoError, match="it is damaged"):
        read_sound(path, 16_000, refuse_cut_off=True)


def test_the_default_track_is_heard(tmp_path):
    path = make_video(tmp_path / "video.mkv", sounds=[tone(1, 0.0), tone(1, 0.6)], default_sound=1)
    assert read_sound(path, 16_000).max() == pytest.approx(0.6, abs=0.05)


def test_sound_at_the_wanted_rate_is_taken_as_it_is_and_of_several_the_first(tmp_path):
    sounds = [tone(1, channels=1, level=0.1), tone(1, channels=1, level=0.8)]
    path = make_video(tmp_path / "video.mkv", sounds=sounds, sound_codec="pcm_f32le")
    np.testing.assert_array_equal(read_sound(path, AUDIO_RATE), sounds[0][0])
    np.testing.assert_array_equal(read_sound(path, AUDIO_RATE, 0.5), sounds[0][0, : AUDIO_RATE // 2])


def test_a_video_may_end_with_the_frame(tmp_path):
    short = make_video(tmp_path / "short.mp4", seconds=40 / 25)
    assert number_on(read(short, 40)) == 39
    with pytest.raises(UnusableVideoError, match=r"frame 41 is shown at") as caught:
        read(short, 41)
    assert caught.value.kind == "too_short"


@pytest.mark.parametrize(("key_frame_every", "at_most"), [(25, 15), (250, 60)])
def test_only_pictures_that_others_refer_to_are_decoded(tmp_path, monkeypatch, key_frame_every, at_most):
    """Frame 125 is the 25th or the 125th from a key frame on; no other refers to two of three pictures."""
    options = {"g": str(key_frame_every), "sc_threshold": "0", "bf": "2", "b-adapt": "0", "b-pyramid": "none"}
    path = make_video(tmp_path / "video.mp4", seconds=6, options=options)
    count, shown_frames = 0, Video.shown_frames

    def counting(*arguments):
        nonlocal count
        for shown in shown_frames(*arguments):
            count += 1
            yield shown

    monkeypatch.setattr(Video, "shown_frames", counting)
    picture = read(path, 125)
    assert number_on(picture) == 124
    assert count <= at_most
    monkeypatch.setattr("datasets.video.SKIPPING_CODECS", ())
    assert read(path, 125).tobytes() == picture.tobytes()


@pytest.mark.parametrize("rotation", [0, 90])
def test_pictures_become_jpegs_without_rgb_on_the_way(tmp_path, rotation):
    path = make_video(tmp_path / "video.mp4", rate=10, rotation=rotation)
    with open_video(path) as video:
        content = dict(encode_squares(numbered_frames(video, range(1, 41), needed=40), SIZE))
    for number, picture in read_all(path, range(1, 41), 40).items():
        got = np.asarray(Image.open(io.BytesIO(content[number])).convert("L"), float)
        assert np.abs(got - np.asarray(Image.fromarray(picture).convert("L"))).mean() < 3
    assert len(set(content.values())) == 16  # of 10 pictures a second
