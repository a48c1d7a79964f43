"""test.py video: every frame at its time with its sound, whatever the file, or a clear refusal."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
import soundfile
import torch
from command_line import ENVIRONMENT, ROOT
from localiser_inputs import AUDIO, small_ssl_tie, spotlight
from PIL import Image
from video_inputs import AUDIO_RATE, make_video, tone

from datasets.audio import (
    AlignSpectrogramConfig,
    AudioConfig,
    MiddleSpectrogramConfig,
    SegmentConfig,
    load_waveform,
    sound_around,
)
from datasets.frames import FrameGeometry, as_float, normalise, to_tensor
from datasets.video import UnusableVideoError, read_sound
from models.localiser import localise_frames
from utils.checkpoint import save_checkpoint
from utils.reports.visualisation import similarity_range

RATE = 20
FLASH = 1.0
"""Second of the clip at which the flash is seen and the click is heard."""


def localise(source, output, localiser=None, drawing=None, **options):
    return localise_frames(localiser or spotlight(), source, **options).draw(output, **drawing or {})


def read_peaks(result):
    with result.peaks.open(newline="") as file:
        return list(csv.DictReader(file))


def streams(path):
    """Pictures with their times; the sound with its times and the rate."""
    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        resampler, pieces = av.AudioResampler("fltp", "mono"), []
        for frame in container.decode(audio=0):
            start = frame.time
            pieces += [(start, p.to_ndarray()[0], p.sample_rate) for p in resampler.resample(frame)]
    return pictures, pieces


def end_of(pieces):
    start, samples, rate = pieces[-1]
    return start + len(samples) / rate


def lamp(rows=slice(0, 12), columns=slice(0, 16), size=(48, 64)):
    """A dark picture with a lamp; by default in the upper left corner."""
    picture = np.full((*size, 3), 30, np.uint8)
    picture[rows, columns] = 240
    return picture


# ------------------------------------------------------------------------------------ times and pictures


@pytest.mark.parametrize(
    ("suffix", "codec", "sound_codec", "start"),
    [
        (".mp4", "libx264", "aac", 0.0),
        (".mkv", "libx264", "flac", 3.0),
        (".webm", "libvpx-vp9", "libopus", 0.0),
        (".avi", "mpeg4", "libmp3lame", 0.0),
        (".ts", "mpeg2video", "aac", 2.0),
        (".mpg", "mpeg2video", "mp2", 0.0),
    ],
)
def test_flash_and_click_stay_together(tmp_path, suffix, codec, sound_codec, start):
    """Dark pictures, white from FLASH on, and silence with noise from FLASH on."""
    rate = 25 if suffix == ".mpg" else RATE
    levels = [230 if index / rate >= FLASH else 20 for index in range(2 * rate)]
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2 * AUDIO_RATE)).astype(np.float32)
    sound[:, : round(FLASH * AUDIO_RATE)] = 0
    source = make_video(
        tmp_path / f"clip{suffix}", seconds=2, rate=rate, codec=codec, sounds=[sound], start=start,
        pictures=[np.full((48, 64, 3), level, np.uint8) for level in levels], sound_codec=sound_codec,
    )  # fmt: skip
    result = localise(source, tmp_path / "out.mp4")
    seen, apart = [], []
    for path in (source, result.output):
        pictures, pieces = streams(path)
        seen.append(np.array([seconds for seconds, _ in pictures]))
        flash = next(seconds for seconds, picture in pictures if picture[:12, :16].mean() > 120)
        click = next(start + np.flatnonzero(np.abs(samples) > 0.1)[0] / hertz
                     for start, samples, hertz in pieces if np.abs(samples).max() > 0.1)  # fmt: skip
        apart.append(flash - click)
    assert len(seen[0]) == len(seen[1]) == result.frames
    origin = min(seen[0][0], streams(source)[1][0][0])
    np.testing.assert_allclose(seen[1], seen[0] - origin, atol=0.011)
    assert abs(apart[1] - apart[0]) < 0.015
    with av.open(str(result.output)) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]


@pytest.mark.parametrize("times", [[0.0, 0.04, 0.3, 0.31, 0.9, 1.7], [0.0]])
def test_pictures_of_a_variable_rate_keep_their_times(tmp_path, times):
    source = make_video(tmp_path / "clip.mp4", times=times, seconds=2)
    result = localise(source, tmp_path / "new" / "out.mp4")
    np.testing.assert_allclose([seconds for seconds, _ in streams(result.output)[0]], times, atol=1e-4)
    assert [float(row["time_seconds"]) for row in read_peaks(result)] == pytest.approx(times)
    assert Image.open(result.contact_sheet).width == 68 * min(4, len(times)) - 4


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (700, 18)])
def test_odd_sizes_grow_by_one_line(tmp_path, size):
    pictures = [lamp(size=size)] * 3
    source = make_video(tmp_path / "clip.mkv", seconds=0.3, rate=10, codec="libvpx-vp9", pictures=pictures)
    pictures, _ = streams(localise(source, tmp_path / "out.mp4", drawing={"box": True}).output)
    assert pictures[0][1].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert [seconds for seconds, _ in pictures] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotated_videos_come_out_upright_and_the_peak_is_the_lamp(tmp_path, rotation):
    pictures = [lamp(), lamp(slice(24, 36), slice(32, 48))]
    source = make_video(tmp_path / "clip.mp4", seconds=0.2, rate=10, pictures=pictures, rotation=rotation)
    result = localise(source, tmp_path / "out.mp4")
    for picture, (_, drawn), row in zip(pictures, streams(result.output)[0], read_peaks(result), strict=True):
        upright = np.rot90(picture, rotation // 90)
        assert drawn.shape == upright.shape
        y, x = np.argwhere(upright[:, :, 0] > 200).mean(axis=0) + 0.5
        assert (float(row["x"]), float(row["y"])) == pytest.approx((x, y))


def test_colours_stay(tmp_path):
    red = np.full((64, 64, 3), (220, 0, 0), np.uint8)
    source = make_video(tmp_path / "clip.mp4", seconds=0.2, rate=10, pictures=[red] * 2)
    output = localise(source, tmp_path / "out.mp4", drawing={"scale": (5.0, 6.0)}).output
    with av.open(str(output)) as container:
        assert next(container.decode(video=0)).colorspace == 1  # BT.709, as of HD videos
    before, after = (streams(path)[0][0][1][:16, :16].astype(int) for path in (source, output))
    assert abs(before - after).max() <= 6


def test_the_sound_outlasts_the_pictures_and_max_seconds_ends_both(tmp_path, caplog):
    source = make_video(tmp_path / "clip.mp4", seconds=2, rate=20, sounds=[tone(3.0)])
    whole = localise(source, tmp_path / "out.mp4")
    assert end_of(streams(whole.output)[1]) == pytest.approx(3.0, abs=0.05)
    assert "cut off" not in caplog.text
    part = localise(source, tmp_path / "out.mp4", max_seconds=1.0)
    pictures, sound = streams(part.output)
    assert (part.frames, len(pictures), part.seconds) == (20, 20, pytest.approx(1.0))
    assert end_of(sound) == pytest.approx(1.0, abs=0.05)


# --------------------------------------------------------------------------------------- maps and peaks


@pytest.mark.parametrize("step", [0.0, 0.2])
def test_maps_are_those_of_localise_one_by_one(tmp_path, step):
    localiser = small_ssl_tie()
    sound = np.random.default_rng(1).uniform(-0.3, 0.3, (1, 3 * AUDIO_RATE)).astype(np.float32)
    sound *= np.linspace(0.01, 1, sound.shape[1], dtype=np.float32)
    source = tmp_path / "clip.mkv"
    make_video(source, seconds=3, rate=5, codec="mpeg4", sounds=[sound], sound_codec="pcm_s16le")
    rows = read_peaks(localise(source, tmp_path / "out.mp4", localiser, audio_step=step, batch_size=4))
    samples, front_end = torch.from_numpy(read_sound(source, 16_000)), AUDIO.build_front_end()
    with av.open(str(source)) as container, torch.inference_mode():
        for frame, row in zip(container.decode(video=0), rows, strict=True):
            moment = step * round(frame.time / step) if step else frame.time
            window = sound_around(samples, moment, AUDIO)
            square = to_tensor(FrameGeometry(64).apply_to_frame(frame.to_image()))
            (found,) = localiser.model.localise(normalise(as_float(square[None])), front_end(window[None]))
            assert float(row["similarity"]) == pytest.approx(float(found.max()), abs=1e-4)
            y, x = divmod(int(found.argmax()), 4)
            assert (float(row["x"]), float(row["y"])) == (x * 16 + 8, y * 12 + 6)


def test_the_left_channel_alone_is_heard_where_the_method_does_so(tmp_path):
    right_alone = np.stack([0 * tone(2)[0], tone(2)[0]])
    path = make_video(tmp_path / "clip.mp4", sounds=[right_alone])
    for audio, silent in ((AlignSpectrogramConfig(), True), (MiddleSpectrogramConfig(), False)):
        assert {heat is None for _, _, heat in spotlight(audio).video(path)} == {silent}


def test_pictures_are_encoded_once_and_in_batches_and_sounds_as_the_step_says(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=2, rate=20)
    counts = {}
    for step in (0.0, 0.2, 1.0):
        localiser, heard, seen = spotlight(), [], []
        hear, see = localiser.model.sound_features, localiser.model.visual_features
        localiser.model.sound_features = lambda s, e=hear, n=heard: n.append(len(s)) or e(s)
        localiser.model.visual_features = lambda f, e=see, n=seen: n.append(len(f)) or e(f)
        list(localiser.video(source, audio_step=step, batch_size=4))
        counts[step] = sum(heard)
        assert seen == [4] * 10
    assert counts == {0.0: 40, 0.2: 11, 1.0: 3}


def test_smoothing_is_that_of_a_slow_loop(tmp_path):
    times = np.round(np.cumsum(np.random.default_rng(0).uniform(0.02, 0.3, 12)), 3)
    times -= times[0]
    pictures = list(np.random.default_rng(1).integers(0, 255, (12, 48, 64, 3), np.uint8))
    source = make_video(tmp_path / "clip.mp4", times=times.tolist(), seconds=3, pictures=pictures)
    maps = [heat for _, _, heat in spotlight().video(source)]
    weights = []
    for index, (seconds, _, heat) in enumerate(spotlight().video(source, smoothing=0.5)):
        share = 1 - np.exp(-(times[index] - times[max(index - 1, 0)]) / 0.5) if index else 1
        weights = [*(weight * (1 - share) for weight in weights), share]
        expected = sum(weight * one for weight, one in zip(weights, maps, strict=False))
        assert seconds == pytest.approx(times[index], abs=1e-3)
        np.testing.assert_allclose(heat, expected, atol=1e-4)


def test_silence_is_said_and_not_drawn(tmp_path):
    sound = tone(6.0)
    sound[:, 2 * AUDIO_RATE :] = 0
    source = make_video(tmp_path / "clip.mp4", seconds=6, rate=10, sounds=[sound], sound_codec="flac",
                        container_options={"strict": "experimental"})  # fmt: skip
    result = localise(source, tmp_path / "out.mp4", smoothing=9.0)
    silent = [row["x"] == row["y"] == row["similarity"] == "" for row in read_peaks(result)]
    assert result.silent_frames == sum(silent)
    assert not any(silent[:24]) and all(silent[28:])


def test_one_scale_for_the_whole_clip_unless_told_otherwise(tmp_path):
    """A lamp that is bright, then dim, over a dark picture."""
    pictures = [np.where(lamp() > 100, level, 30).astype(np.uint8) for level in (240, 90) for _ in range(5)]
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=10, pictures=pictures)
    maps = localise_frames(spotlight(), source)
    scale = similarity_range(maps.maps)
    assert scale == (min(one.min() for one in maps.maps), max(one.max() for one in maps.maps))

    def heat(**options):
        """Mean change of the lamp's pixels, bright and dim, and the peaks."""
        result = maps.draw(tmp_path / "out.mp4", **options)
        drawn, shown = (np.stack([p for _, p in streams(path)[0]]) for path in (result.output, source))
        change = np.abs(drawn.astype(int) - shown)[:, :12, :16].mean((1, 2, 3))
        return change[:5].mean(), change[5:].mean(), read_peaks(result)

    bright, dim, peaks = heat()
    assert bright > 40 and dim < 10
    assert heat(scale=scale) == (bright, dim, peaks)
    by_itself = heat(scale="frame")
    assert by_itself[1] > 40 and by_itself[2] == peaks
    assert max(heat(scale=(scale[1], scale[1] + 1))[:2]) < 10
    assert all("weak" not in row for row in peaks)
    between = np.mean([float(peaks[0]["similarity"]), float(peaks[-1]["similarity"])])
    result = maps.draw(tmp_path / "out.mp4", scale="frame", threshold=between)
    rows = read_peaks(result)
    assert [row.pop("weak") for row in rows] == 5 * ["0"] + 5 * ["1"]
    assert (result.weak_frames, rows) == (5, peaks)


# ---------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("audio", [AUDIO, SegmentConfig(segment_seconds=1.5)])
def test_windows_lie_around_their_moments_and_inside_the_sound(audio):
    sound, length = torch.rand(4 * 16_000), audio.num_samples
    for seconds in np.arange(0, 6, 0.13):
        begin = max(0, min(round(seconds * 16_000) - length // 2, len(sound) - length))
        assert torch.equal(sound_around(sound, seconds, audio), sound[begin : begin + length])


def test_the_part_that_is_heard_is_centred_and_a_short_sound_is_treated_as_in_test(tmp_path):
    audio = AlignSpectrogramConfig()
    sound = torch.rand(12 * 16_000, generator=torch.Generator().manual_seed(0))
    for seconds, begin in ((0.0, 0), (1.5, 0), (4.0, 40_000), (11.9, len(sound) - 48_000)):
        window = sound_around(sound, seconds, audio)
        assert window.shape == (160_000,)
        assert torch.equal(window[56_000:104_000], sound[begin : begin + 48_000])
        assert window[:56_000].abs().max() == window[104_000:].abs().max() == 0
    soundfile.write(tmp_path / "clip.wav", sound[:9_760].numpy(), 16_000, subtype="FLOAT")
    for seconds in (0.0, 0.6):
        expected = load_waveform(tmp_path / "clip.wav", AudioConfig())
        assert torch.equal(sound_around(sound[:9_760], seconds, AudioConfig()), expected)


# ------------------------------------------------------------------------------- files and refusals


def test_what_is_interrupted_or_does_not_fit_on_the_disk_leaves_what_was_there(tmp_path):
    source, folder = make_video(tmp_path / "clip.mp4", seconds=1, rate=20), tmp_path / "out"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"earlier")
    told = []

    def stop(*progress):
        told.append(progress)
        if len(told) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        localise(source, folder / "out.mp4", drawing={"on_progress": stop})
    assert told == [(done, 20) for done in range(1, 6)]
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"out.* MB.* are free on its file system\. Make room"):
            localise(source, folder / "out.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"earlier"


def test_what_cannot_be_localised_is_refused_in_words(tmp_path):
    picture, text = tmp_path / "picture.png", tmp_path / "text.mp4"
    Image.new("RGB", (40, 30)).save(picture)
    text.write_text("no video at all")
    cut = make_video(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-2000])
    # Its index is there in part, so that FFmpeg opens it, without a decoder.
    index_cut = tmp_path / "index_cut.mp4"
    content = make_video(index_cut, seconds=2, rate=20).read_bytes()
    index_cut.write_bytes(content[: content.index(b"moov") + 400])
    broken = tmp_path / "broken.mp4"
    make_video(broken, seconds=2, rate=20, codec="mpeg4", container_options={"movflags": "faststart"})
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    # FFmpeg would show the film that it names.
    film, playlist = make_video(tmp_path / "hidden.ts", codec="mpeg2video"), tmp_path / "playlist.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{film}\n#EXT-X-ENDLIST\n")
    for path, words in (
        (playlist, "only names other files"),
        (make_video(tmp_path / "film.mp4", sounds=[]), "has no sound.*test.py image"),
        (make_video(tmp_path / "music.mkv", times=[]), "no moving picture"),
        (picture, "for a picture there is test.py image"),
        (text, "is no video"),
        (cut, "was cut off"),
        (index_cut, "cut off|decoder"),
        (broken, "damaged"),
        (tmp_path / "absent.mp4", "there is no such file"),
    ):
        with pytest.raises((UnusableVideoError, FileNotFoundError), match=words):
            localise(path, tmp_path / "out" / "out.mp4")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_film_that_was_cut_off_is_shown_as_far_as_it_goes(tmp_path, caplog):
    source = make_video(tmp_path / "clip.mkv", seconds=4, rate=20)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    assert 10 < localise(source, tmp_path / "out.mp4").frames < 70
    assert "was cut off: 4.0" in caplog.text
    caplog.clear()
    late = make_video(tmp_path / "late.mkv", seconds=2, rate=20, start=3.0)
    localise(late, tmp_path / "out.mp4")
    localise(late, tmp_path / "out.mp4", max_seconds=0.5)
    assert "cut off" not in caplog.text


# ---------------------------------------------------------------------------------------- the program


@pytest.fixture
def command(tmp_path):
    """test.py video with a tiny model, to out.mp4, without --input."""
    save_checkpoint(tmp_path / "model.pth", small_ssl_tie().checkpoint)
    output = tmp_path / "out" / "out.mp4"
    words = ["video", "--checkpoint", tmp_path / "model.pth", "--device", "cpu", "--output", output]
    yield list(map(str, words))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_the_program_writes_all_three_files(tmp_path, command, testing_program, capsys, caplog):
    silence = np.zeros((2, AUDIO_RATE), np.float32)
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=10, sounds=[silence])
    assert testing_program.main([*command, "--input", str(source), "--box", "--smoothing", "0.3"]) == 0
    printed = capsys.readouterr()
    assert "10 frames, 1.00 s" in printed.out
    for doing in ("localising", "drawing"):
        assert f"clip.mp4, {doing}: 100%" in printed.err and printed.err.count("10/10") >= 2
    assert "10 of 10 frames is silent" in caplog.text
    for name in ("out.mp4", "out_contact_sheet.png", "out_peaks.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0
        assert name in printed.out


def test_the_program_names_weak_frames(tmp_path, command, testing_program, caplog):
    source = make_video(tmp_path / "clip.mp4", seconds=0.5, rate=10)
    options = ["--input", str(source), "--scale=-0.5,1", "--threshold", "1"]
    assert testing_program.main([*command, *options]) == 0
    assert "5 of 5 frames are weak: the sound may not be in the picture" in caplog.text
    head, *_ = (tmp_path / "out" / "out_peaks.csv").read_text().splitlines()
    assert head == "time_seconds,x,y,similarity,weak"


def test_the_program_stopped_leaves_nothing(tmp_path, command):
    source = make_video(tmp_path / "clip.mp4", seconds=20, rate=25)
    folder = tmp_path / "out"
    running = subprocess.Popen(
        [sys.executable, ROOT / "test.py", *command, "--input", source],
        env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob(".out.mp4.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, errors.decode()[-2000:]
    assert b"Traceback" not in errors
    assert not list(folder.iterdir())
