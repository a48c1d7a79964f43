"""test.py image: a picture and a sound as a benchmark's clip, whatever their formats."""

import csv

import numpy as np
import pytest
import soundfile
import torch
from localiser_inputs import AUDIO, small_ssl_tie
from PIL import Image

from datasets.clips import AudioVisualClips, Clip
from datasets.frames import FrameGeometry
from datasets.loaders import ClipLoader
from utils.checkpoint import save_checkpoint
from utils.reports.visualisation import BOX_COLOUR


@pytest.fixture
def localise(tmp_path, testing_program, capsys):
    """Runs test.py image; returns its status, what it says, and the row of the CSV."""
    save_checkpoint(tmp_path / "model.pth", small_ssl_tie().checkpoint)

    def run(image, sound, output, *options):
        arguments = ["--image", image, "--sound", sound, "--output", output, "--device", "cpu", *options]
        command = ["image", "--checkpoint", tmp_path / "model.pth", *arguments]
        status = testing_program.main([str(word) for word in command])
        peak, row = output.with_name(f"{output.stem}_peak.csv"), None
        if status == 0:
            with peak.open(newline="") as file:
                (row,) = csv.DictReader(file)
        return status, "".join(capsys.readouterr()), row

    return run


def noise(path, seconds, rate=22_050):
    soundfile.write(path, np.random.default_rng(0).uniform(-0.4, 0.4, (round(seconds * rate), 2)), rate)
    return path


def picture(path, size=(130, 90), **options):
    pixels = np.random.default_rng(2).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("geometry", ["squash", "centre_crop"])
@pytest.mark.parametrize(("seconds", "suffix"), [(0.4, ".flac"), (3.0, ".mp3"), (2.0, ".aiff")])
def test_the_map_is_that_of_the_benchmark_s_loader(tmp_path, localise, geometry, seconds, suffix):
    image, sound = picture(tmp_path / "a.png"), noise(tmp_path / f"a{suffix}", seconds)
    output = tmp_path / "new" / "out.png"
    status, words, row = localise(image, sound, output, "--frame-geometry", geometry, "--box")
    clips = AudioVisualClips(
        [Clip("a", image, sound)], geometry=FrameGeometry(64, geometry), audio=AUDIO, map_size=1
    )
    (batch,) = ClipLoader(clips, batch_size=1)
    with torch.inference_mode():
        model = small_ssl_tie().model
        (expected,) = model.localise(*model.prepare(batch.frames, batch.waveforms))
    assert status == 0 and f"Peak: x {row['x']}, y {row['y']}" in words
    assert float(row["similarity"]) == pytest.approx(float(expected.max()), abs=1e-5)
    y, x = divmod(int(expected.argmax()), 4)
    left, width = (0, 130) if geometry == "squash" else (20, 90)
    assert float(row["x"]) == pytest.approx(left + (x + 0.5) / 4 * width, abs=1)
    assert float(row["y"]) == pytest.approx((y + 0.5) / 4 * 90, abs=0.1)
    drawn = np.asarray(Image.open(output))
    assert drawn.shape == (90, 130, 3) and (drawn == BOX_COLOUR).all(axis=2).any()


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path, localise):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = picture(tmp_path / "a.jpg", exif=exif)
    assert localise(image, noise(tmp_path / "a.wav", 1.0), tmp_path / "out.png")[0] == 0
    assert Image.open(tmp_path / "out.png").size == (90, 130)


def test_a_weak_similarity_is_said_and_not_drawn(tmp_path, localise):
    image, sound = picture(tmp_path / "a.png"), noise(tmp_path / "a.wav", 1.0)
    status, words, row = localise(image, sound, tmp_path / "out.png", "--threshold", "1", "--scale=-1,1")
    assert status == 0 and "Peak: x" in words and "weak: the sound may not be in the picture" in words
    assert row["weak"] == "1" and float(row["similarity"]) < 1
    before, after = np.asarray(Image.open(image)), np.asarray(Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(before[40:], after[40:])
    status, words, row = localise(image, sound, tmp_path / "out.png", "--threshold", "-1")
    assert (status, row["weak"], "weak:" in words) == (0, "0", False)
    assert localise(image, sound, tmp_path / "out.png", "--scale", "video")[0] == 2, "a picture is no video"


def test_silence_is_said_and_not_drawn(tmp_path, localise, caplog):
    image, sound = picture(tmp_path / "a.png"), tmp_path / "a.wav"
    soundfile.write(sound, np.zeros(16_000), 16_000)
    status, words, row = localise(image, sound, tmp_path / "out.png")
    assert status == 0 and "No peak" in words and "is silent" in caplog.text
    assert row == {"x": "", "y": "", "similarity": ""}
    before, after = np.asarray(Image.open(image)), np.asarray(Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(before[40:], after[40:])


def test_what_cannot_be_read_or_written_is_refused(tmp_path, localise, caplog):
    image, sound = picture(tmp_path / "a.png"), noise(tmp_path / "a.wav", 1.0)
    output, absent, large = tmp_path / "out.png", tmp_path / "absent", tmp_path / "large.png"
    folder, heard = tmp_path / "folder.png", tmp_path / "out_peak.csv"
    folder.mkdir()
    heard.write_bytes(sound.read_bytes())
    Image.new("1", (14_000, 13_000)).save(large)  # some kilobytes
    for arguments, words in (
        ((large, sound, output), "large.png cannot be read"),
        ((absent, sound, output), "There is no file"),
        ((image, absent, output), "There is no file"),
        ((sound, sound, output), "a.wav cannot be read"),
        ((image, image, output), "a.png cannot be read"),
        ((image, sound, tmp_path / "out.jpg"), "must end in .png"),
        ((image, sound, image), "is what is read"),
        ((image, heard, output), "out_peak.csv is what is read"),
        ((image, sound, folder), "is a folder; name another"),
        ((image, sound, sound / "out.png"), "a.wav is a file. Name a folder"),
        ((image, sound, output, "--threshold", "1.5"), "--threshold"),
    ):
        caplog.clear()
        assert localise(*arguments)[0] == 2
        assert words in caplog.text
    assert not output.exists() and not (tmp_path / "folder_peak.csv").exists()
    assert heard.read_bytes() == sound.read_bytes()
