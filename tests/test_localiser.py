"""The Python API: pictures and sounds in any form give the map of test.py, and torch.hub finds it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from command_line import ROOT
from conftest import RATE, draw_frame, tone
from localiser_inputs import AUDIO, checkpoint_of, spotlight
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from datasets.audio import AlignSpectrogramConfig, load_waveform
from datasets.frames import as_float, normalise
from models import load_localiser
from models.released import build_localiser
from scripts.stamps.__main__ import main as make_stamps
from utils.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("localiser") / "last.pth"
    content = checkpoint_of("ssl_tie", build_localiser("ssl_tie", {}).state_dict())
    save_checkpoint(path, replace(content, method_config={"audio_encodings": 1}))  # of earlier versions
    return path


@pytest.fixture(scope="module")
def localiser(checkpoint):
    return load_localiser(str(checkpoint), "cpu")


@pytest.fixture
def clip(tmp_path):
    """Files of a picture that is no square and of a sound shorter than the window."""
    picture, _ = draw_frame(1, np.random.default_rng(3))
    picture.resize((140, 90)).save(tmp_path / "dog.png")
    soundfile.write(tmp_path / "dog.wav", 0.5 * tone(1, 0.7), RATE, subtype="FLOAT")
    return tmp_path / "dog.png", tmp_path / "dog.wav"


def test_the_map_is_the_model_s_and_the_peak_lies_in_the_picture(localiser, clip, tmp_path):
    heat = localiser(*clip)
    square = TF.resize(Image.open(clip[0]), [64, 64], TF.InterpolationMode.BICUBIC)
    frames = normalise(as_float(TF.pil_to_tensor(square)[None]))
    with torch.no_grad():
        sounds = localiser.audio.build_front_end()(load_waveform(clip[1], localiser.audio)[None])
        expected = localiser.model.localise(frames, sounds)[0].numpy()
    np.testing.assert_allclose(heat.map, expected, atol=1e-6)
    assert heat.map.shape == (4, 4) and heat.score == heat.map.max() == heat.peak.similarity
    row, column = np.unravel_index(heat.map.argmax(), heat.map.shape)
    assert (heat.peak.x, heat.peak.y) == pytest.approx(((column + 0.5) * 140 / 4, (row + 0.5) * 90 / 4))
    heat.save(tmp_path / "heat.png")
    drawn = np.asarray(Image.open(tmp_path / "heat.png"))
    assert np.array_equal(drawn, heat.overlay()) and drawn.shape == (90, 140, 3)
    assert np.abs(drawn.astype(int) - heat.picture).mean() > 5


def test_arrays_tensors_and_files_give_the_same_map(localiser, clip):
    expected = localiser(*clip).map
    pixels = np.array(Image.open(clip[0]))
    samples, rate = soundfile.read(clip[1], dtype="float32")
    for picture in (str(clip[0]), Image.open(clip[0]), pixels, torch.from_numpy(pixels)):
        for sound in (str(clip[1]), samples, (torch.from_numpy(samples), rate),
                      (np.stack([samples, samples], axis=1).astype(np.float64), rate)):  # fmt: skip
            np.testing.assert_allclose(localiser(picture, sound).map, expected, atol=1e-6)


def test_a_transparent_picture_is_white_from_a_file_and_from_memory(localiser, clip):
    with Image.open(clip[0]) as picture:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(clip[0])
    heat = localiser(Image.open(clip[0]), clip[1])
    np.testing.assert_array_equal(heat.map, localiser(*clip).map)
    assert heat.picture[0].min() > 250  # transparent in the first row


def test_a_rate_is_heeded_and_the_middle_is_taken_where_a_test_takes_it(localiser, clip, tmp_path):
    samples, _ = soundfile.read(clip[1], dtype="float32")
    soundfile.write(tmp_path / "slow.wav", samples, RATE // 2, subtype="FLOAT")
    slow = localiser(clip[0], (samples, RATE // 2)).map
    np.testing.assert_allclose(slow, localiser(clip[0], tmp_path / "slow.wav").map, atol=1e-6)
    assert np.abs(slow - localiser(clip[0], samples).map).max() > 1e-4


def test_a_threshold_of_negatives_means_the_same_on_maps(localiser):
    half = replace(localiser, model=SimpleNamespace(half_cosine=True))
    assert (localiser.cosine(0.3338), localiser.cosine(None)) == (0.3338, None)
    assert half.cosine(0.6382) == pytest.approx(0.2764)


def test_a_silent_sound_has_no_map(localiser, clip, tmp_path):
    heat = localiser(clip[0], np.zeros(16_000, np.float32))
    assert (heat.map, heat.score, heat.peak) == (None, None, None)
    heat.save(tmp_path / "silent.png")
    assert Image.open(tmp_path / "silent.png").size == (140, 90)


def test_silence_is_that_of_the_seconds_that_a_method_hears(clip):
    early = np.concatenate([tone(1, 1), np.zeros(9 * RATE)]).astype(np.float32)
    for audio, silent in ((AlignSpectrogramConfig(), True), (AUDIO, False)):
        assert (spotlight(audio)(clip[0], (early, RATE)).map is None) == silent


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"picture": "no.jpg"}, "There is no file no.jpg"),
        ({"picture": np.zeros((4, 4), np.uint8)}, r"uint8 \(H, W, 3\), got uint8 \(4, 4\)"),
        ({"picture": np.zeros((4, 4, 3))}, "got float64"),
        ({"sound": "no.wav"}, "There is no file no.wav"),
        ({"sound": np.zeros(9, np.int16)}, "divide by 32768"),
        ({"sound": np.zeros((2, 3, 4))}, r"\(2, 3, 4\)"),
        ({"sound": np.zeros(0)}, r"got torch.float64 \(0,\)"),
        ({"sound": np.full(9, np.nan)}, "not finite"),
        ({"sound": (np.zeros(9, np.float32), 47_999)}, "rate of 47999 Hz cannot be resampled"),
    ],
)
def test_what_cannot_be_localised_is_refused_in_words(localiser, clip, change, words):
    inputs = {"picture": clip[0], "sound": clip[1]} | change
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        localiser(**inputs)


HUB = "import torch; x = torch.hub.load({folder!r}, 'load_localiser', {file!r}, 'cpu', source='local')"


def in_another_process(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_torch_hub_loads_it_from_another_folder(checkpoint, clip, tmp_path):
    code = HUB.format(folder=str(ROOT), file=str(checkpoint))
    code += f"; print(x({str(clip[0])!r}, {str(clip[1])!r}).map.shape)"
    finished = in_another_process(code, tmp_path)
    assert finished.stdout.endswith("(4, 4)\n"), finished.stderr


def test_torch_hub_loads_it_again_through_a_link(checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    places = (str(ROOT), str(tmp_path / "link"))
    code = "; ".join(HUB.format(folder=place, file=str(checkpoint)) for place in places)
    finished = in_another_process(code, tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_torch_hub_refuses_beside_another_package_of_the_same_name(checkpoint, tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    code = "import datasets; " + HUB.format(folder=str(ROOT), file=str(checkpoint))
    finished = in_another_process(code, tmp_path)
    assert finished.returncode == 1
    assert "A package 'datasets' is imported already" in finished.stderr


def test_the_notebook_shows_heat_maps_and_a_table(checkpoint, tmp_path, monkeypatch):
    """Run as Jupyter does: a cell shows the value of its last line."""
    options = "--source procedural --train 1 --test 8 --classes 6 --workers 1"
    assert make_stamps([str(tmp_path / "data" / "stamps-small"), *options.split()]) == 0
    run = tmp_path / "runs" / "quickstart-small"
    run.mkdir(parents=True)
    shutil.copy(checkpoint, run)
    (tmp_path / "hubconf.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names, shown = {}, []
    for cell in json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec("".join(cell["source"]), names)
            shown.append(eval(cell["source"][-1], names))
    found, picture, table, frames = shown
    assert found == (True, True) and picture.height == 256 and frames.height == 480 and frames.width > 960
    assert list(table["clip_id"]) == [f"test_{number:06d}" for number in range(8)]
    assert table["ciou"].between(0, 1).all()
