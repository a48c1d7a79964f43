"""The exported localiser is the model: the same maps, from what the file says goes in."""

import importlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from command_line import ROOT, assert_refused
from conftest import RATE, draw_frame, tone
from shell_scripts import run

from models.localiser import load_localiser
from models.released import build_localiser
from scripts import export_onnx
from utils.checkpoint import Checkpoint, save_checkpoint
from utils.files import file_sha256

for package in export_onnx.PACKAGES:
    pytest.importorskip(package, reason="requirements-export.txt is not installed")
onnxruntime = importlib.import_module("onnxruntime")

slow = pytest.mark.slow
MODELS = [
    pytest.param("ssl_tie", {}, "raw", marks=slow),
    pytest.param("sspl", {"pcm": True}, "prepared", marks=slow),
    pytest.param("sspl", {"pcm": False}, "raw", marks=slow),
    pytest.param("lvs", {}, "raw", marks=slow),
    pytest.param("ssl_align", {}, "prepared", marks=slow),
    pytest.param("ez_vsl_or_fnac", {}, "raw", marks=slow),
    pytest.param("slavc", {}, "prepared"),
]
SMALL_AUDIO = {"window_seconds": 1.0, "fft_size": 256, "hop_length": 200, "mel_bins": 32}


def make_localiser(folder, method, config, **audio):
    torch.manual_seed(7)
    model = build_localiser(method, config)
    for module in model.modules():  # statistics that a batch norm in training mode would not have
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    checkpoint = Checkpoint(
        method=method, method_config=config, audio_config=audio, frame_config={"frame_size": 96},
        state_dict=model.state_dict(), epoch=3,
    )  # fmt: skip
    save_checkpoint(folder / "last.pth", checkpoint)
    return load_localiser(folder / "last.pth", "cpu")


def make_clip(folder, seconds=0.7):
    """A picture that is no square, a sound in stereo that grows louder."""
    picture, _ = draw_frame(1, np.random.default_rng(3))
    picture.resize((140, 90)).save(folder / "picture.jpg")
    both = np.stack([tone(0, seconds), 0.5 * tone(2, seconds)], axis=1)
    both *= np.linspace(0, 1, len(both))[:, None]
    soundfile.write(folder / "sound.wav", both, RATE)
    return folder / "picture.jpg", folder / "sound.wav"


def example_of_the_document(folder):
    """Runs the Python of docs/export.md where model, picture and sound lie."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)
    for name in ("model.onnx", "picture.jpg", "sound.wav"):
        assert f'"{name}"' in example
        example = example.replace(f'"{name}"', repr(str(folder / name)))
    names = {}
    exec(compile(example, "docs/export.md", "exec"), names)
    return names["similarity_map"][0]


@pytest.mark.parametrize(("method", "config", "inputs"), MODELS)
def test_onnx_runtime_gives_the_same_maps(method, config, inputs, tmp_path):
    localiser = make_localiser(tmp_path, method, config)
    network = export_onnx.ExportedLocaliser(localiser, inputs)
    content = export_onnx.to_onnx(network, {"note": "here"})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"note": "here"}
    generator = torch.Generator().manual_seed(11)
    for clips, side, shortened in ((1, 96, 0), (2, 160, 37)):
        frames = torch.randint(256, (clips, 3, side, side), dtype=torch.uint8, generator=generator)
        waveforms = torch.rand((clips, localiser.audio.num_samples), generator=generator) - 0.5
        prepared, heard = localiser.model.prepare(frames, waveforms)
        if inputs == "prepared" and heard.ndim == 4:  # spectrograms of any length
            heard = heard[..., shortened:]
        with torch.no_grad():
            expected = localiser.model.localise(prepared, heard).numpy()
        values = {
            "raw": {"frames": frames, "waveforms": waveforms},
            "prepared": {"frames": prepared, "audio": heard},
        }[inputs]
        (found,) = session.run(["similarity_map"], {name: value.numpy() for name, value in values.items()})
        assert found.shape == expected.shape and expected.std() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda maps: maps + 2e-4, "differ from PyTorch's by 0.0002, more than 0.0001"),
        (lambda maps: maps * np.nan, "by nan"),
        (lambda maps: maps[:, 1:], "by inf"),
    ],
    ids=["another map", "NaN", "another shape"],
)
def test_another_map_is_refused_and_nothing_is_written(change, words, tmp_path, monkeypatch):
    localiser = make_localiser(tmp_path, "ssl_tie", {}, **SMALL_AUDIO)
    reference = export_onnx.ExportedLocaliser(localiser, "prepared")
    runtime = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name=name) for name in ("frames", "audio")],
        run=lambda _, inputs: [change(reference(*map(torch.from_numpy, inputs.values())).numpy())],
    )
    monkeypatch.setattr(export_onnx, "to_onnx", lambda network, metadata: b"onnx")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda content, providers: runtime)
    output = tmp_path / "out" / "model.onnx"
    options = export_onnx.ExportOptions(checkpoint=tmp_path / "last.pth", output=output)
    with pytest.raises(ValueError, match=words + "(?s:.*)Nothing is written"):
        export_onnx.export(options)
    assert not output.parent.exists()


@pytest.mark.slow
def test_the_command_line_writes_the_file_that_the_document_reads(tmp_path):
    localiser = make_localiser(tmp_path, "ssl_tie", {}, **SMALL_AUDIO)
    checkpoint, output = tmp_path / "last.pth", tmp_path / "model.onnx"
    finished = run(
        ROOT / "scripts/export.sh", "--checkpoint", checkpoint, "--output", output, "--inputs", "raw"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"{output}: ")
    notes = onnxruntime.InferenceSession(output).get_modelmeta().custom_metadata_map
    assert (notes["method"], notes["inputs"], notes["opset"]) == ("ssl_tie", "raw", "18")
    source = json.loads(notes["checkpoint"])
    assert (source["sha256"], source["epoch"]) == (file_sha256(checkpoint), 3)
    assert SMALL_AUDIO.items() <= json.loads(notes["audio"]).items()
    assert str(tmp_path) not in str(notes)
    expected = localiser(*make_clip(tmp_path)).map
    np.testing.assert_allclose(example_of_the_document(tmp_path), expected, rtol=0, atol=1e-4)


@slow
def test_the_document_s_example_takes_the_middle_where_the_model_does(tmp_path):
    localiser, output = make_localiser(tmp_path, "slavc", {}), tmp_path / "model.onnx"
    checkpoint = tmp_path / "last.pth"
    export_onnx.export(export_onnx.ExportOptions(checkpoint=checkpoint, output=output, inputs="raw"))
    for seconds in (0.9, 3.7):
        expected = localiser(*make_clip(tmp_path, seconds)).map
        np.testing.assert_allclose(example_of_the_document(tmp_path), expected, rtol=0, atol=1e-4)


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    output = tmp_path / "a.onnx"
    refused = run(ROOT / "scripts/export.sh", "--checkpoint", tmp_path / "no.pth", "--output", output)
    assert_refused(refused, "No checkpoint at")
    with pytest.raises(ValueError, match=r"--output must end in \.onnx"):
        export_onnx.export(export_onnx.ExportOptions(checkpoint=tmp_path, output=tmp_path / "a.pb"))
    monkeypatch.setattr(export_onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package.*requirements-export\.txt"):
        export_onnx.export(export_onnx.ExportOptions(checkpoint=tmp_path / "no.pth", output=output))
