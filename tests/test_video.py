"""Frames and sound of a video: the right moment, a full decode's pixels, clear refusals."""

import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image
from video_inputs import AUDIO_RATE, HEIGHT, WIDTH, make_video, number_on, numbered_picture, tone

import datasets.video
from datasets.video import StoredGeometry, read_clip, shown_at
from datasets.video_tracks import SAMPLE_RATE, ClipSound, UnusableVideoError

GEOMETRY = StoredGeometry(48)
LONG_GROUPS = {"g": "250", "sc_threshold": "0"}
SHORT_GROUPS = {"g": "12", "sc_threshold": "0"}
KINDS = {
    "one_key_frame.mp4": {"options": LONG_GROUPS},
    "key_frames.mp4": {"options": SHORT_GROUPS},
    "no_b_frames.mp4": {"options": {**LONG_GROUPS, "bf": "0"}},
    "b_pyramid.mkv": {"options": {**LONG_GROUPS, "bf": "7", "b-pyramid": "normal"}},
    "open_groups.mkv": {"options": {**SHORT_GROUPS, "x264-params": "open-gop=1:bframes=3"}},
    "no_key_frames_but_the_first.mkv": {"options": {"g": "20", "intra-refresh": "1"}},
    "hevc.mp4": {"codec": "libx265"},
    "vp8.webm": {"codec": "libvpx", "sound_codec": "libopus"},
    "vp9.webm": {"codec": "libvpx-vp9", "sound_codec": "libopus"},
    "mpeg4.avi": {"codec": "mpeg4", "sound_codec": "libmp3lame"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4", "sound_codec": "mp2", "options": {"bf": "2"}},
    "h264_b_frames.avi": {"sound_codec": "libmp3lame"},
    "transport.ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video", "sound_codec": "mp2", "options": {"bf": "2"}},
    "flash.flv": {"codec": "flv", "sound_codec": "libmp3lame"},
}


def read(path, frame_number=40, **changes):
    settings = {"geometry": GEOMETRY, "sound_seconds": 1.0, **changes}
    return read_clip(path, frame_number=frame_number, **settings)


def reason_of(path, **changes):
    with pytest.raises(UnusableVideoError) as caught:
        read(path, **changes)
    return caught.value.reason


def decode_everything(path):
    """All pictures in order of showing with their times; AVI's stamps are those of decoding."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        time_base = stream.time_base
        origin = Fraction(container.start_time or 0, av.time_base)
        packets = [packet for packet in container.demux(stream) if packet.size]
        decoding = [packet.dts for packet in packets]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    avi = path.suffix == ".avi"
    stamps = decoding if avi else [frame.pts for frame in frames]
    times = [stamp * time_base - origin for stamp in stamps]
    return list(zip(times, frames, strict=False))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("frame_number", [5, 40])
def test_the_frame_is_pixel_for_pixel_that_of_a_full_decode(tmp_path, name, frame_number):
    path = make_video(tmp_path / name, **KINDS[name])
    shown = [frame for time, frame in decode_everything(path) if time < shown_at(frame_number)]
    expected = GEOMETRY.render(shown[-1], None)
    picture = read(path, frame_number).pictures[frame_number]
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    assert number_on(picture) in {frame_number - 1, frame_number - 2}


@pytest.mark.parametrize(
    "name", ["one_key_frame.mp4", "key_frames.mp4", "b_pyramid.mkv", "hevc.mp4", "vp9.webm"]
)
def test_common_files_need_no_decode_from_the_beginning(tmp_path, monkeypatch, name):
    path = make_video(tmp_path / name, **KINDS[name])
    monkeypatch.setattr(datasets.video, "_decode_all", None)
    for frame_number in range(26, 38):
        assert number_on(read(path, frame_number).pictures[frame_number]) == frame_number - 1


@pytest.mark.parametrize(
    ("times", "frame_number", "expected"),
    [
        ([index / 25 for index in range(50)], 40, 39),
        ([index / 30 for index in range(60)], 40, 47),
        ([index / 10 for index in range(20)], 40, 15),
        ([0, 0.1, 0.9, 1.3, 1.575, 1.579, 1.581, 1.9], 40, 5),
        ([0, 0.1, 0.9, 1.3, 1.9], 40, 3),
    ],
)
def test_the_frame_is_chosen_by_its_time(tmp_path, times, frame_number, expected):
    path = make_video(tmp_path / "video.mkv", times=times)
    assert number_on(read(path, frame_number).pictures[frame_number]) == expected


def test_frame_125_of_25_frames_per_second_is_the_125th(tmp_path):
    path = make_video(tmp_path / "video.mp4", seconds=6)
    assert number_on(read(path, 125).pictures[125]) == 124


def test_a_start_time_is_no_part_of_the_clip(tmp_path):
    path = make_video(tmp_path / "late.mkv", start=2.0, sound_codec="pcm_s16le")
    clip = read(path)
    assert number_on(clip.pictures[40]) == 39
    assert clip.sound.start_seconds == pytest.approx(0, abs=1e-3)


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
    while True:
        try:
            expected.append(number_on(graph.pull().to_image()))
        except av.error.EOFError:
            break
    pictures = read(path, 40, num_frames=250).pictures
    assert list(pictures) == list(range(1, len(pictures) + 1))
    assert [number_on(picture) for picture in pictures.values()] == expected


def test_all_frames_contain_the_used_one(tmp_path):
    path = make_video(tmp_path / "video.mp4", rate=30)
    used = read(path, 40).pictures[40]
    assert read(path, 40, num_frames=250).pictures[40].tobytes() == used.tobytes()


def corner_picture():
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[: HEIGHT // 2, : WIDTH // 2] = (255, 255, 255)
    return picture


@pytest.mark.parametrize(
    ("anticlockwise", "bright"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))]
)
def test_rotation_is_applied(tmp_path, anticlockwise, bright):
    """The top left corner goes down when a player turns the picture anticlockwise."""
    pictures = [corner_picture()] * 50
    path = make_video(tmp_path / "phone.mp4", pictures=pictures, rotation=anticlockwise)
    clip = read(path, geometry=StoredGeometry(48, "short_side"))
    picture = np.asarray(clip.pictures[40].convert("L"))
    height, width = picture.shape
    assert (width > height) == (anticlockwise in {0, 180})
    quarters = picture.reshape(2, height // 2, 2, width // 2).mean(axis=(1, 3))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == bright


@pytest.mark.parametrize(("mode", "size"), [("squash", (299, 299)), ("short_side", (399, 299))])
def test_sizes(tmp_path, mode, size):
    path = make_video(tmp_path / "video.mp4")
    picture = read(path, geometry=StoredGeometry(299, mode)).pictures[40]
    assert picture.size == size
    assert picture.mode == "RGB"


def test_pixels_that_are_not_square_are_stretched():
    frame = av.VideoFrame.from_image(Image.new("RGB", (40, 40)))
    geometry = StoredGeometry(40, "short_side")
    assert geometry.render(frame, Fraction(3, 2)).size == (60, 40)
    assert geometry.render(frame, Fraction(1, 2)).size == (40, 80)
    assert geometry.render(frame, None).size == (40, 40)


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_sound_is_the_mean_of_the_channels_at_16_khz(tmp_path, layout, channels):
    samples = tone(2, channels=channels) * np.linspace(0.2, 1, channels)[:, None]
    samples = samples.astype(np.float32)
    path = make_video(tmp_path / "video.mkv", sounds=[samples], layout=layout, sound_codec="pcm_s16le")
    waveform = read(path).sound.waveform
    mono = torch.from_numpy(samples).mean(dim=0)
    expected = torchaudio.functional.resample(mono, AUDIO_RATE, SAMPLE_RATE).numpy()
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - len(expected)) <= 16
    inside = slice(200, 31_000)  # two filters differ at the ends
    np.testing.assert_allclose(waveform[inside], expected[inside], atol=2e-3)


def test_sound_at_16_khz_is_taken_as_it_is(tmp_path):
    samples = tone(1, channels=1)
    path = tmp_path / "video.mkv"
    make_video(path, sounds=[samples], layout="mono", sound_codec="pcm_f32le", sound_rate=16_000)
    np.testing.assert_array_equal(read(path).sound.waveform, samples[0])


def test_the_first_of_several_sounds_is_used(tmp_path):
    sounds = [tone(2, level=0.1), tone(2, level=0.8)]
    path = make_video(tmp_path / "video.mkv", sounds=sounds, sound_codec="pcm_s16le")
    assert np.abs(read(path).sound.waveform).max() == pytest.approx(0.1, abs=0.01)


def test_late_sound_keeps_its_place(tmp_path):
    samples = np.zeros((2, AUDIO_RATE), np.float32)
    samples[:, AUDIO_RATE // 2 : AUDIO_RATE // 2 + 48] = 0.9
    path = make_video(tmp_path / "video.mkv", sounds=[samples], sound_codec="pcm_s16le", sound_start=0.5)
    sound = read(path).sound
    assert sound.start_seconds == pytest.approx(0.5, abs=2e-3)
    assert len(sound.waveform) == pytest.approx(SAMPLE_RATE, abs=20)
    click = sound.start_seconds + np.abs(sound.waveform).argmax() / SAMPLE_RATE
    assert click == pytest.approx(1.0, abs=3e-3)


@pytest.mark.parametrize(
    ("start", "length", "centre", "seconds", "first", "num"),
    [
        (0, 10, 5.0, 3, 3.5, 3),
        (0, 10, 5.0, 10, 0, 10),
        (0, 12, 5.0, 10, 0, 10),
        (0, 5.8, 5.0, 3, 2.8, 3),
        (0, 2, 5.0, 3, 0, 2),
        (0.5, 9.5, 5.0, 3, 3.5, 3),
        (4.0, 6.0, 5.0, 3, 4.0, 3),
        (0, 10, 0.2, 3, 0, 3),
    ],
)
def test_windows_lie_around_the_moment_and_inside_the_sound(start, length, centre, seconds, first, num):
    waveform = np.arange(round(length * SAMPLE_RATE), dtype=np.float32)
    window = ClipSound(waveform, float(start)).window(centre, seconds)
    assert len(window) == num * SAMPLE_RATE
    assert start + window[0] / SAMPLE_RATE == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("name", ["index_last.mp4", "index_first.mp4", "v.mkv", "v.webm", "v.avi"])
def test_cut_off_files_are_called_truncated(tmp_path, name):
    codecs = {
        ".webm": {"codec": "libvpx", "sound_codec": "libopus"},
        ".avi": {"codec": "mpeg4", "sound_codec": "libmp3lame"},
    }
    options = {"movflags": "faststart"} if name == "index_first.mp4" else {}
    suffix = name[name.index(".") :]
    whole = make_video(tmp_path / name, seconds=3, container_options=options, **codecs.get(suffix, {}))
    read(whole, 20)
    content = whole.read_bytes()
    for share in (0.7, 0.5):
        cut = tmp_path / f"cut_{name}"
        cut.write_bytes(content[: int(share * len(content))])
        assert reason_of(cut, frame_number=20) == "truncated"


def test_other_refusals(tmp_path):
    assert reason_of(make_video(tmp_path / "mute.mp4", sounds=[])) == "no_audio_stream"
    assert reason_of(make_video(tmp_path / "dark.mp4", times=[])) == "no_video_stream"
    assert reason_of(make_video(tmp_path / "short.mp4", seconds=1)) == "too_short"
    for content in (b"", b"no video at all" * 100):
        (tmp_path / "text.mp4").write_bytes(content)
        assert reason_of(tmp_path / "text.mp4") == "unreadable"
    assert reason_of(tmp_path / "absent.mp4") == "unreadable"


def test_a_video_that_ends_with_the_frame_is_long_enough(tmp_path):
    path = make_video(tmp_path / "video.mp4", seconds=40 / 25)
    assert number_on(read(path, 40).pictures[40]) == 39
    assert reason_of(path, frame_number=41) == "too_short"


def costly_video(path, options):
    """10 s of 640 x 360: a noisy view that wanders over a texture."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (60, 160, 3), dtype=np.uint8)
    canvas = np.asarray(Image.fromarray(texture).resize((1280, 480), Image.Resampling.BICUBIC))
    pictures = []
    for index in range(250):
        left, top = 2 * index, round(60 + 50 * np.sin(index / 15))
        view = canvas[top : top + 360, left : left + 640] // 2
        pictures.append(view + rng.integers(0, 12, view.shape, dtype=np.uint8))
    return make_video(path, seconds=10, pictures=pictures, options=options)


def decode_every_frame(path, *, to_rgb):
    """What is compared with: every picture and all sound decoded on one thread, nothing written."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count, video.thread_type = 1, "NONE"
        for frame in container.decode(video, audio):
            if to_rgb and isinstance(frame, av.VideoFrame):
                frame.reformat(format="rgb24", threads=1)


def make_every_frame(path, folder):
    """As the authors prepared videos: each picture of 25 a second is written."""
    clip = read(path, 125, geometry=StoredGeometry(299), sound_seconds=10, num_frames=250)
    for number, picture in clip.pictures.items():
        picture.save(folder / f"{number:03d}.jpg", quality=95)


def fastest(*works):
    """CPU seconds of each: they take turns, so that other work on the computer slows all."""
    times = []
    for _ in range(5):
        for work in works:
            begin = time.process_time()
            work()
            times.append(time.process_time() - begin)
    return [min(times[place :: len(works)]) for place in range(len(works))]


@pytest.mark.slow
@pytest.mark.parametrize(("key_frame_every", "least"), [(25, 3.0), (50, 3.0), (125, 1.3), (250, 1.3)])
def test_speed_beside_decoding_every_frame(tmp_path, key_frame_every, least):
    """One key frame for the whole clip leaves half of it to decode: no 3 times there."""
    options = {"g": str(key_frame_every), "sc_threshold": "0"}
    path = costly_video(tmp_path / "video.mp4", options)
    ours, *others = fastest(
        lambda: read(path, 125, geometry=StoredGeometry(299), sound_seconds=10),
        lambda: decode_every_frame(path, to_rgb=False),
        lambda: decode_every_frame(path, to_rgb=True),
        lambda: make_every_frame(path, tmp_path),
    )
    sys.stdout.write(f"key frame every {key_frame_every}: {1000 * ours:.0f} ms of one core")
    for name, other in zip(("decoded", "decoded to RGB", "written"), others, strict=True):
        sys.stdout.write(f"; every frame {name}: {1000 * other:.0f} ms, {other / ours:.1f} times")
    sys.stdout.write("\n")
    assert others[0] > least * ours


def test_the_numbered_pictures_tell_themselves_apart():
    for number in (0, 1, 37, 124, 255):
        assert number_on(Image.fromarray(numbered_picture(number))) == number
