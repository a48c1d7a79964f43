"""test.py video: every frame at its time with its sound, whatever the file, or a clear refusal."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, ROOT, assert_refused, run
from localiser_inputs import AUDIO, CELLS, small_ssl_tie, spotlight, whole_sound
from PIL import Image
from video_inputs import AUDIO_RATE, make_video, tone

from datasets.frames import FrameGeometry, to_tensor
from datasets.transforms import as_float, normalise
from scripts.localise_video import localise_video
from utils.checkpoint import save_checkpoint
from utils.video_options import VideoOptions

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 20
FLASH = 1.0
"""Second of the clip at which the flash is seen and the click is heard."""


def flash_and_click(seconds=2.0, size=(48, 64)):
    """Dark pictures, white from FLASH on, and silence with noise from FLASH on."""
    pictures = [
        np.full((*size, 3), 230 if index / RATE >= FLASH else 20, np.uint8)
        for index in range(round(seconds * RATE))
    ]
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (2, round(seconds * AUDIO_RATE)))
    sound[:, : round(FLASH * AUDIO_RATE)] = 0
    return pictures, sound.astype(np.float32)


def options_for(source, output, **values):
    values = {"checkpoint": Path("none"), **values}
    return VideoOptions(input=source, output=output, **values)


def localise(source, output, trained=None, **values):
    return localise_video(trained or spotlight(), options_for(source, output, **values))


def streams(path):
    """(start, end) of the pictures and of the sound, seconds, and the times of the pictures."""
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = list(container.decode(audio=0))
    sound_end = sound[-1].time + sound[-1].samples / sound[-1].sample_rate
    return times, (sound[0].time, sound_end)


def flash_time(path):
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            grey = frame.to_ndarray(format="gray")
            if grey[: grey.shape[0] // 4, : grey.shape[1] // 4].mean() > 120:
                return frame.time
    raise AssertionError("no flash")


def click_time(path):
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray().astype(np.float64)
            loud = np.flatnonzero(np.abs(samples).max(axis=0) > 0.05 * np.abs(samples).max())
            scale = 1 if samples.dtype.kind == "f" and np.abs(samples).max() < 2 else 32768
            if np.abs(samples).max() / scale > 0.1:
                step = frame.layout.nb_channels if not frame.format.is_planar else 1
                return frame.time + loud[0] / step / frame.sample_rate
    raise AssertionError("no click")


def read_peaks(result):
    with result.peaks.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("suffix", "codec", "sound_codec", "output", "start"),
    [
        (".mp4", "libx264", "aac", "out.mp4", 0.0),
        (".mp4", "mpeg4", "libmp3lame", "out.mov", 0.0),
        (".mkv", "libx264", "pcm_s16le", "out.mp4", 0.0),
        (".mkv", "libx264", "flac", "out.mkv", 3.0),
        (".webm", "libvpx-vp9", "libopus", "out.mp4", 0.0),
        (".webm", "libvpx-vp9", "libopus", "out.mov", 0.0),
        (".avi", "mpeg4", "libmp3lame", "out.mp4", 0.0),
        (".ts", "mpeg2video", "aac", "out.mp4", 2.0),
        (".mpg", "mpeg2video", "mp2", "out.mp4", 0.0),
    ],
)
def test_flash_and_click_stay_together(tmp_path, suffix, codec, sound_codec, output, start):
    pictures, sound = flash_and_click()
    source = make_video(
        tmp_path / f"clip{suffix}", seconds=2, rate=25 if suffix == ".mpg" else RATE, codec=codec,
        times=[i / RATE for i in range(len(pictures))] if suffix != ".mpg" else None,
        pictures=pictures if suffix != ".mpg" else [p for p in pictures for _ in (0, 1)][:50],
        sounds=[sound], sound_codec=sound_codec, start=start,
    )  # fmt: skip
    result = localise(source, tmp_path / output, max_seconds=None)
    frame = 1 / RATE
    before = streams(source)
    after = streams(result.output)
    assert len(after[0]) == len(before[0]) == result.frames
    origin = min(before[0][0], before[1][0])
    np.testing.assert_allclose(np.array(after[0]), np.array(before[0]) - origin, atol=0.011)
    np.testing.assert_allclose(after[1], np.array(before[1]) - origin, atol=frame)
    apart = flash_time(source) - click_time(source)
    assert abs(flash_time(result.output) - click_time(result.output) - apart) < 0.015
    with av.open(str(result.output)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        copied = sound_codec in ("aac", "libmp3lame", "libopus", "flac")
        copied = copied and (sound_codec, output) != ("libopus", "out.mov")
        expected = {"libmp3lame": "mp3float", "libopus": "opus"}.get(sound_codec, sound_codec)
        assert container.streams.audio[0].codec_context.name == (expected if copied else "aac")


def test_pictures_of_a_variable_rate_keep_their_times(tmp_path):
    times = [0.0, 0.04, 0.3, 0.31, 0.9, 1.7]
    source = make_video(tmp_path / "clip.mp4", times=times, seconds=2)
    result = localise(source, tmp_path / "out.mp4")
    np.testing.assert_allclose(streams(result.output)[0], times, atol=1e-4)
    assert [float(row["time_seconds"]) for row in read_peaks(result)] == pytest.approx(times)


@pytest.mark.parametrize("size", [(33, 47), (34, 47), (33, 48), (1, 1), (700, 18)])
def test_odd_sizes_grow_by_one_line(tmp_path, size):
    pictures = [np.full((*size, 3), 90, np.uint8)] * 3
    path = tmp_path / "clip.mkv"
    source = make_video(path, seconds=0.3, rate=10, codec="libvpx-vp9", pictures=pictures)
    result = localise(source, tmp_path / "out.mp4", box=True)
    with av.open(str(result.output)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert streams(result.output)[0] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_videos_come_out_upright(tmp_path, rotation):
    picture = np.full((48, 64, 3), 30, np.uint8)
    picture[:12, :16] = 240  # a lamp in the upper left corner as it is stored
    source = make_video(
        tmp_path / "clip.mp4", seconds=0.2, rate=10, pictures=[picture] * 2, rotation=rotation
    )
    result = localise(source, tmp_path / "out.mp4")
    upright = np.rot90(picture, rotation // 90)
    with av.open(str(result.output)) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 0
    assert (frame.height, frame.width) == upright.shape[:2]
    y, x = np.argwhere(upright[:, :, 0] > 200).mean(axis=0) + 0.5
    for row in read_peaks(result):
        assert (float(row["x"]), float(row["y"])) == pytest.approx((x, y))


def test_the_peak_follows_the_lamp(tmp_path):
    pictures, cells = [], []
    for index in range(10):
        row, column = divmod(7 * index % 16, CELLS)
        picture = np.full((48, 64, 3), 30, np.uint8)
        picture[row * 12 : row * 12 + 12, column * 16 : column * 16 + 16] = 240
        pictures.append(picture)
        cells.append((column * 16 + 8, row * 12 + 6))
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=10, pictures=pictures)
    rows = read_peaks(localise(source, tmp_path / "out.mp4", batch_size=3))
    assert [(float(row["x"]), float(row["y"])) for row in rows] == cells


@pytest.mark.parametrize("step", [0.0, 0.2])
def test_maps_are_those_of_localise_one_by_one(tmp_path, step):
    trained = small_ssl_tie()
    sound = np.random.default_rng(1).uniform(-0.3, 0.3, (1, 3 * AUDIO_RATE)).astype(np.float32)
    sound *= np.linspace(0.01, 1, sound.shape[1], dtype=np.float32)
    source = make_video(
        tmp_path / "clip.mkv", seconds=3, rate=5, codec="mpeg4", sounds=[sound],
        sound_codec="pcm_s16le", layout="mono",
    )  # fmt: skip
    result = localise(source, tmp_path / "out.mp4", trained, audio_step=step, batch_size=4)
    _, samples = whole_sound(source)
    front_end, rows = AUDIO.build_front_end(), read_peaks(result)
    with av.open(str(source)) as container, torch.inference_mode():
        for frame, row in zip(container.decode(video=0), rows, strict=True):
            moment = step * round(frame.time / step) if step else frame.time
            begin = min(max(0, round(moment * 16_000) - 8_000), len(samples) - 16_000)
            window = torch.from_numpy(samples[begin : begin + 16_000])
            square = to_tensor(FrameGeometry(64).apply_to_frame(frame.to_image()))
            found = trained.model.localise(normalise(as_float(square[None])), front_end(window[None]))[0]
            assert float(row["similarity"]) == pytest.approx(float(found.max()), abs=1e-4)
            y, x = divmod(int(found.argmax()), 4)
            assert (float(row["x"]), float(row["y"])) == (x * 16 + 8, y * 12 + 6)


def test_an_audio_step_encodes_fewer_sounds_and_batches_none_twice(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=2, rate=20)
    counts = {}
    for step in (0.0, 0.2, 1.0):
        trained, seen = spotlight(), []
        encode = trained.model.sound_features
        trained.model.sound_features = lambda s, e=encode, n=seen: n.append(len(s)) or e(s)
        localise(source, tmp_path / "out.mp4", trained, audio_step=step, batch_size=3)
        counts[step] = sum(seen)
    assert counts == {0.0: 40, 0.2: 11, 1.0: 3}


def test_silence_is_said_and_not_drawn(tmp_path, caplog):
    silence = np.zeros((2, 2 * AUDIO_RATE), np.float32)
    source = make_video(tmp_path / "clip.mp4", seconds=2, rate=10, sounds=[silence])
    result = localise(source, tmp_path / "out.mp4")
    assert result.silent_frames == result.frames == 20
    assert all(row["x"] == row["y"] == row["similarity"] == "" for row in read_peaks(result))
    assert "20 of 20 frames is silent" in caplog.text


def test_one_picture_makes_a_video_and_a_sheet(tmp_path):
    source = make_video(tmp_path / "clip.mp4", times=[0.0], seconds=0.3)
    result = localise(source, tmp_path / "new" / "out.mp4")
    assert (result.frames, len(read_peaks(result))) == (1, 1)
    assert Image.open(result.contact_sheet).size == (64, 48)


def test_max_seconds_ends_pictures_and_sound(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=3, rate=20)
    result = localise(source, tmp_path / "out.mp4", max_seconds=1.0)
    times, (start, end) = streams(result.output)
    assert (result.frames, len(times)) == (20, 20)
    assert result.seconds == pytest.approx(1.0)
    assert start == pytest.approx(0, abs=0.05)
    assert end == pytest.approx(1.0, abs=0.05)


def test_sound_that_outlasts_the_pictures_is_kept(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=20, sounds=[tone(3.0)])
    _, (_, end) = streams(localise(source, tmp_path / "out.mp4").output)
    assert end == pytest.approx(3.0, abs=0.05)


def test_progress_tells_what_is_done_and_about_how_much_there_is(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=20)
    told = []
    localise_video(spotlight(), options_for(source, tmp_path / "out.mp4"), lambda *now: told.append(now))
    assert told == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_interrupted_leaves_what_was_there(tmp_path, error):
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=20)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"earlier")

    def stop(done, _):
        if done == 5:
            raise error

    with pytest.raises(error):
        localise_video(spotlight(), options_for(source, folder / "out.mp4"), stop)
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"earlier"


def broken_in_the_middle(path):
    make_video(path, seconds=2, rate=20, codec="mpeg4", container_options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:] = bytes(len(content) - middle)
    path.write_bytes(content)


def test_what_cannot_be_localised_is_refused_in_words(tmp_path):
    silent_film = make_video(tmp_path / "film.mp4", sounds=[])
    music = make_video(tmp_path / "music.mkv", times=[])
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 30)).save(picture)
    text = tmp_path / "text.mp4"
    text.write_text("no video at all")
    cut = make_video(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-2000])
    # Its index is there in part, so that FFmpeg opens it, without a decoder.
    index_cut = tmp_path / "index_cut.mp4"
    content = make_video(index_cut, seconds=2, rate=20).read_bytes()
    index_cut.write_bytes(content[: content.index(b"moov") + 400])
    broken = tmp_path / "broken.mp4"
    broken_in_the_middle(broken)
    # FFmpeg would show the film that these name.
    film = make_video(tmp_path / "hidden.ts", seconds=2, codec="mpeg2video")
    playlist = tmp_path / "playlist.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{film}\n#EXT-X-ENDLIST\n")
    list_of_files = tmp_path / "list.ffconcat"
    list_of_files.write_text("ffconcat version 1.0\nfile hidden.ts\n")
    with av.open(str(playlist)) as container:
        assert container.format.name == "hls" and container.streams.video
    folder = tmp_path / "out"
    for path, words in (
        (playlist, "only names other files"),
        (list_of_files, "only names other files"),
        (silent_film, "has no sound"),
        (music, "no moving picture"),
        (picture, "is a picture.*test.py image"),
        (text, "knows no video of that kind"),
        (cut, "bytes are missing"),
        (index_cut, "bytes are missing"),
        (broken, "break"),
        (tmp_path / "absent.mp4", "No video at"),
        (tmp_path, "No video at"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words) as refusal:
            localise(path, folder / "out.mp4")
        assert path.name in str(refusal.value)
    assert not list(folder.iterdir())


def test_a_film_that_was_cut_off_is_shown_as_far_as_it_goes(tmp_path, caplog):
    source = make_video(tmp_path / "clip.mkv", seconds=4, rate=20)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    result = localise(source, tmp_path / "out.mp4")
    assert 10 < result.frames < 70
    assert "was cut off: 4.0" in caplog.text
    caplog.clear()
    late = make_video(tmp_path / "late.mkv", seconds=2, rate=20, start=3.0)
    localise(late, tmp_path / "out.mp4")
    assert "cut off" not in caplog.text


def test_outputs_that_cannot_be_written_are_refused(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=0.2)
    checkpoint, text = tmp_path / "model.mp4", tmp_path / "text"
    for path in (checkpoint, text):
        path.write_text("mine")
    for folder in ("folder.mp4", "a_contact_sheet.png", "b_peaks.csv"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.rglob("*"))
    for output, words in (
        (tmp_path / "out.gif", "must end in .mp4"),
        (source, "what is read"),
        (checkpoint, "what is read"),
        (tmp_path / "folder.mp4", "is a folder; name another"),
        (tmp_path / "a.mp4", "a_contact_sheet.png is a folder"),
        (tmp_path / "b.mp4", "b_peaks.csv is a folder"),
        (text / "below" / "out.mp4", "text is a file. Name a folder"),
    ):
        with pytest.raises((ValueError, NotADirectoryError), match=words):
            localise(source, output, checkpoint=checkpoint)
    assert sorted(tmp_path.rglob("*")) == before
    assert checkpoint.read_text() == "mine"


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    source = make_video(tmp_path / "clip.mp4", seconds=2, rate=20)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"earlier")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"out.* MB.* are free on its file system\. Make room"):
            localise(source, folder / "out.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"earlier"


def test_memory_does_not_grow_with_the_length(tmp_path):
    """Pictures wait nowhere: when the last is decoded, all but a batch are written."""
    source = make_video(tmp_path / "clip.mp4", seconds=4, rate=20)
    trained, waiting = spotlight(), []
    encode = trained.model.visual_features
    trained.model.visual_features = lambda frames: waiting.append(len(frames)) or encode(frames)
    localise(source, tmp_path / "out.mp4", trained, batch_size=4)
    assert waiting == [4] * 20


def save_tiny_model(path):
    save_checkpoint(path, small_ssl_tie().checkpoint)


def test_the_program_writes_all_three_files_and_refuses_with_status_2(tmp_path):
    save_tiny_model(tmp_path / "model.pth")
    source = make_video(tmp_path / "clip.mp4", seconds=1, rate=10)
    command = ["video", "--checkpoint", tmp_path / "model.pth", "--input", source, "--output"]
    finished = run("test.py", *command, tmp_path / "out.mp4", "--box", "--smoothing", "0.3")
    assert finished.returncode == 0, finished.stderr
    assert "10 frames, 1.00 s" in finished.stdout
    assert "frame/s" in finished.stderr
    for name in ("out.mp4", "out_contact_sheet.png", "out_peaks.csv"):
        assert (tmp_path / name).stat().st_size > 0
        assert name in finished.stdout
    film = make_video(tmp_path / "film.mp4", sounds=[])
    command[4] = film
    assert_refused(run("test.py", *command, tmp_path / "no.mp4"), "film.mp4", "has no sound")


def test_the_program_stopped_leaves_nothing(tmp_path):
    save_tiny_model(tmp_path / "model.pth")
    source = make_video(tmp_path / "clip.mp4", seconds=20, rate=25)
    folder = tmp_path / "out"
    arguments = ["video", "--checkpoint", tmp_path / "model.pth", "--input", source]
    running = subprocess.Popen(
        [sys.executable, ROOT / "test.py", *arguments, "--output", folder / "out.mp4"],
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


def test_colours_of_hd_videos_stay(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :, 0] = 220
    path = tmp_path / "clip.mp4"
    make_video(path, seconds=0.2, rate=10, pictures=[picture] * 2)
    tagged = tmp_path / "tagged.mp4"
    with av.open(str(path)) as old, av.open(str(tagged), "w") as new:
        stream = new.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        sound = new.add_stream_from_template(old.streams.audio[0])
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            new.mux(stream.encode(frame))
        new.mux(stream.encode(None))
        for packet in old.demux(audio=0):
            if packet.size:
                packet.stream = sound
                new.mux(packet)
    for source, colourspace in ((path, 2), (tagged, 1)):
        output = localise(source, tmp_path / "out.mp4", opacity=0.0).output
        with av.open(str(source)) as one, av.open(str(output)) as other:
            before, after = next(one.decode(video=0)), next(other.decode(video=0))
        assert after.colorspace == colourspace
        planes = [frame.to_ndarray()[:16, :16].astype(int) for frame in (before, after)]
        assert abs(planes[0] - planes[1]).max() <= 3
