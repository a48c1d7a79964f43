"""test.py image: a picture and a sound as a benchmark's clip, whatever their formats."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from command_line import assert_refused, run
from localiser_inputs import AUDIO, small_ssl_tie, spotlight
from PIL import Image

from datasets.audio import SegmentConfig
from datasets.clips import AudioVisualClips, Clip
from datasets.frames import FrameGeometry
from datasets.loaders import build_test_loader
from datasets.views import TestViews
from scripts.localise_picture import localise_picture
from utils.checkpoint import save_checkpoint
from utils.video_options import ImageOptions

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(path, seconds, rate=22_050, **options):
    samples = np.random.default_rng(0).uniform(-0.4, 0.4, (round(seconds * rate), 2))
    soundfile.write(path, samples, rate, **options)
    return path


def lamp(path, size=(80, 120), corner=(40, 90), **options):
    """A dark picture with a light square of 20 pixels."""
    picture = np.full((*size, 3), 30, np.uint8)
    picture[corner[0] : corner[0] + 20, corner[1] : corner[1] + 30] = 240
    Image.fromarray(picture).save(path, **options)
    return path


def localise(image, sound, output, trained=None, **values):
    none = Path("none")
    options = ImageOptions(checkpoint=none, image=image, sound=sound, output=output, **values)
    return localise_picture(trained or spotlight(), options)


@pytest.mark.parametrize("geometry", ["squash", "centre_crop"])
@pytest.mark.parametrize("seconds", [0.4, 3.0])
def test_the_map_is_that_of_the_benchmark_s_loader(tmp_path, geometry, seconds):
    rng = np.random.default_rng(2)
    image, sound = tmp_path / "a.png", noise(tmp_path / "a.flac", seconds)
    Image.fromarray(rng.integers(0, 255, (90, 130, 3), np.uint8)).save(image)
    trained = small_ssl_tie()
    result = localise(image, sound, tmp_path / "out.png", trained, frame_geometry=geometry)
    clips = AudioVisualClips(
        [Clip("a", image, sound)], geometry=FrameGeometry(64, geometry), audio=AUDIO, map_size=1
    )
    (batch,) = build_test_loader(clips, batch_size=1, num_workers=0, pin_memory=False)
    with torch.inference_mode():
        frames, sounds = TestViews(AUDIO, torch.device("cpu"))(batch)
        (expected,) = trained.model.localise(frames, sounds)
    assert result.peak.similarity == pytest.approx(float(expected.max()), abs=1e-5)
    row, column = divmod(int(expected.argmax()), 4)
    left, width = (0, 130) if geometry == "squash" else (20, 90)
    assert result.peak.x == pytest.approx(left + (column + 0.5) / 4 * width, abs=1)
    assert result.peak.y == pytest.approx((row + 0.5) / 4 * 90)


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg", ".flac", ".aiff"])
def test_overlay_and_peak_are_written(tmp_path, suffix):
    image, sound = lamp(tmp_path / "a.jpg"), noise(tmp_path / f"a{suffix}", 1.5)
    result = localise(image, sound, tmp_path / "new" / "out.png", box=True)
    assert (result.peak.x, result.peak.y) == (105, 50)
    drawn = np.asarray(Image.open(result.output))
    assert drawn.shape == (80, 120, 3)
    assert (drawn == (0, 235, 255)).all(axis=2).any()
    with result.peaks.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["x"], row["y"]) == ("105.0", "50.0")
    assert float(row["similarity"]) == pytest.approx(result.peak.similarity, abs=1e-6)


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = lamp(tmp_path / "a.jpg", exif=exif)
    result = localise(image, noise(tmp_path / "a.wav", 1.0), tmp_path / "out.png")
    assert Image.open(result.output).size == (80, 120)
    assert (result.peak.x, result.peak.y) == (30, 105)


def test_silence_is_said_and_not_drawn(tmp_path):
    image, sound = lamp(tmp_path / "a.png"), tmp_path / "a.wav"
    soundfile.write(sound, np.zeros(16_000), 16_000)
    result = localise(image, sound, tmp_path / "out.png")
    assert result.silent
    assert result.peak is None
    before, after = np.asarray(Image.open(image)), np.asarray(Image.open(result.output))
    np.testing.assert_array_equal(before[40:], after[40:])
    assert result.peaks.read_text().split() == ["x,y,similarity", ",,"]


def test_what_cannot_be_read_or_written_is_refused(tmp_path):
    image, sound = lamp(tmp_path / "a.png"), noise(tmp_path / "a.wav", 1.0)
    output, absent = tmp_path / "out.png", tmp_path / "absent"
    folder, heard = tmp_path / "folder.png", tmp_path / "out_peak.csv"
    folder.mkdir()
    heard.write_bytes(sound.read_bytes())
    # A minute of silence in a few kilobytes, and a picture in some hundred bytes.
    long, large = tmp_path / "long.ogg", tmp_path / "large.png"
    with soundfile.SoundFile(long, "w", 8_000, 1) as file:
        for _ in range(601):  # libsndfile's encoder of Vorbis has no stack for all at once
            file.write(np.zeros(8_000))
    Image.new("1", (8_001, 8_000)).save(large)
    assert localise(image, long, tmp_path / "beginning.png").silent  # the rest is not decoded
    middle = spotlight(SegmentConfig(segment_seconds=1.0))
    for arguments, words in (
        ((image, long, output, middle), r"long\.ogg .* longer than 600 s .*--max-seconds"),
        ((large, sound, output), r"large\.png has 8001 x 8000 pixels; at most 64 million"),
        ((absent, sound, output), "--image: there is no file"),
        ((image, absent, output), "--sound: there is no file"),
        ((sound, sound, output), "--image: .*a.wav cannot be read.*Pillow reads"),
        ((image, image, output), "--sound: .*a.png cannot be read.*libsndfile reads"),
        ((image, sound, tmp_path / "out.jpg"), "must end in .png"),
        ((image, sound, image), "is what is read"),
        ((image, heard, output), "out_peak.csv is what is read"),
        ((image, sound, folder), "is a folder; name another"),
        ((image, sound, sound / "out.png"), "a.wav is a file. Name a folder"),
    ):
        with pytest.raises((ValueError, OSError), match=words):
            localise(*arguments)
    assert not output.exists()
    assert not (tmp_path / "folder_peak.csv").exists()
    assert heard.read_bytes() == sound.read_bytes()


def test_the_program_prints_the_peak_and_refuses_with_status_2(tmp_path):
    save_checkpoint(tmp_path / "model.pth", small_ssl_tie().checkpoint)
    image, sound = lamp(tmp_path / "a.png"), noise(tmp_path / "a.wav", 1.0)
    command = ["image", "--checkpoint", tmp_path / "model.pth", "--image", image, "--output"]
    finished = run("test.py", *command, tmp_path / "out.png", "--sound", sound)
    assert finished.returncode == 0, finished.stderr
    assert "Peak: x " in finished.stdout
    assert (tmp_path / "out.png").is_file()
    assert_refused(run("test.py", *command, tmp_path / "no.png", "--sound", image), "a.png cannot be read")
