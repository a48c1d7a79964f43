"""The exported localiser is the model: the same maps, from what the file says goes in."""

import importlib
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
from command_line import ENVIRONMENT, ROOT, assert_refused
from conftest import RATE, draw_frame, tone

from datasets.audio import AudioConfig, load_waveform
from datasets.frames import FrameConfig, FrameGeometry, read_frame, to_tensor
from datasets.transforms import as_float, normalise
from datasets.views import AUDIO_CONFIGS
from models import LOCALISERS, build_localiser
from models.localiser import TrainedModel
from scripts import export
from scripts.export_metadata import describe_file
from utils.checkpoint import Checkpoint, file_sha256, save_checkpoint
from utils.command_line import field_docstrings

for package in export.PACKAGES:
    pytest.importorskip(package, reason="requirements-export.txt is not installed")
onnxruntime = importlib.import_module("onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread")

slow = pytest.mark.slow
MODELS = [
    pytest.param("ssl_tie", {}, "raw", marks=slow),
    pytest.param("ssl_tie", {}, "prepared", marks=slow),
    pytest.param("sspl", {"pcm": True}, "prepared", marks=slow),
    pytest.param("sspl", {"pcm": False}, "raw", marks=slow),
    pytest.param("lvs", {}, "raw", marks=slow),
    pytest.param("ssl_align", {}, "prepared", marks=slow),
    pytest.param("ez_vsl_or_fnac", {}, "raw", marks=slow),
    pytest.param("slavc", {}, "prepared"),
]
SMALL_AUDIO = {
    "window_seconds": 1.0, "fft_size": 256, "hop_length": 200, "mel_bins": 32,
}  # fmt: skip


def make_trained(method, config, frame_size=96, **audio):
    torch.manual_seed(7)
    model = build_localiser(method, config).eval()
    for module in model.modules():  # statistics that a batch norm in training mode would not have
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    checkpoint = Checkpoint(
        method=method,
        method_config=config,
        audio_config=audio,
        frame_config={"frame_size": frame_size},
        state_dict=model.state_dict(),
        epoch=3,
    )
    window = AUDIO_CONFIGS[method](**audio)
    return TrainedModel(model, window, FrameConfig(frame_size=frame_size), checkpoint)


def run(*arguments):
    """The script, in the environment of the tests."""
    return subprocess.run(
        ["bash", ROOT / "scripts" / "export.sh", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        env={**ENVIRONMENT, "VSSL_PYTHON": sys.executable},
        timeout=300,
    )


def make_clip(folder, seconds=0.7):
    """A picture that is no square, a sound in stereo that grows louder."""
    picture, _ = draw_frame(1, np.random.default_rng(3))
    picture.resize((140, 90)).save(folder / "picture.jpg")
    both = np.stack([tone(0, seconds), 0.5 * tone(2, seconds)], axis=1)
    both *= np.linspace(0, 1, len(both))[:, None]
    soundfile.write(folder / "sound.wav", both, RATE)
    return folder / "picture.jpg", folder / "sound.wav"


def own_map(trained, picture, sound):
    """The map as test.py makes it."""
    geometry = FrameGeometry(trained.frame.frame_size)
    frames = to_tensor(geometry.apply_to_frame(read_frame(picture)))[None]
    waveform = load_waveform(sound, trained.audio)[None]
    with torch.no_grad():
        heard = trained.audio.build_front_end()(waveform)
        return trained.model.localise(normalise(as_float(frames)), heard).numpy()


def test_every_model_is_tried():
    assert {parameters.values[0] for parameters in MODELS} == set(LOCALISERS)


@pytest.mark.parametrize(("method", "config", "inputs"), MODELS)
def test_onnx_runtime_gives_the_same_maps(method, config, inputs):
    trained = make_trained(method, config)
    content = export.Exporter(trained, inputs).to_onnx({"note": "here"})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"note": "here"}
    generator = torch.Generator().manual_seed(11)
    for clips, side, shortened in ((1, 96, 0), (4, 96, 0), (2, 160, 37)):
        frames = torch.randint(256, (clips, 3, side, side), dtype=torch.uint8, generator=generator)
        waveforms = torch.rand((clips, trained.audio.num_samples), generator=generator) - 0.5
        heard = trained.audio.build_front_end()(waveforms)
        if inputs == "prepared" and heard.ndim == 4:  # spectrograms of any length
            heard = heard[..., shortened:]
        prepared = normalise(as_float(frames)), heard
        with torch.no_grad():
            expected = trained.model.localise(*prepared).numpy()
        names, values = {
            "raw": (("frames", "waveforms"), (frames, waveforms)),
            "prepared": (("frames", "audio"), prepared),
        }[inputs]
        given = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        (found,) = session.run(["similarity_map"], given)
        assert found.shape == expected.shape and expected.std() > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_another_map_is_refused(error):
    exporter = export.Exporter(make_trained("slavc", {}), "prepared")

    def wrong(frames, audio):
        found = exporter.localiser(frames, audio)
        found[-1, 0, 0] += error
        return found

    assert exporter.check(exporter.localiser, "PyTorch's map") == 0
    with pytest.raises(ValueError, match=r"The map of 1 clips of 96 x 96 pixels differs .*more than 0.0001"):
        exporter.check(wrong, "The map")
    with pytest.raises(ValueError, match=r"gives maps of shape"):
        exporter.check(lambda frames, audio: exporter.localiser(frames, audio)[:, 1:], "The map")


@pytest.fixture
def small_checkpoint(tmp_path):
    trained = make_trained("ssl_tie", {}, **SMALL_AUDIO)
    save_checkpoint(tmp_path / "last.pth", trained.checkpoint)
    return trained, tmp_path / "last.pth"


def test_nothing_is_left_of_a_wrong_file(small_checkpoint, tmp_path, monkeypatch):
    _, checkpoint = small_checkpoint
    output = tmp_path / "out" / "model.onnx"
    output.parent.mkdir()
    output.write_bytes(b"what was there")
    monkeypatch.setattr(export.Exporter, "to_onnx", lambda self, metadata: b"onnx")
    monkeypatch.setattr(
        export, "onnx_runtime", lambda content, inputs: lambda frames, audio: torch.zeros(1, 6, 6)
    )
    options = export.ExportOptions(checkpoint=checkpoint, output=output)
    with pytest.raises(ValueError, match=r"Nothing is written"):
        export.export(options)
    assert output.read_bytes() == b"what was there"
    assert list(output.parent.iterdir()) == [output]


def test_the_command_line_writes_both_files_and_measures(small_checkpoint, tmp_path):
    trained, checkpoint = small_checkpoint
    output, script = tmp_path / "model.onnx", tmp_path / "model.pt"
    finished = run(
        "--checkpoint", checkpoint, "--output", output, "--inputs", "raw",
        "--torchscript", script, "--benchmark", 1, "--threads", 1,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    *said, one, eight = finished.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == [str(output), str(script)]
    for line, clips in ((json.loads(one), 1), (json.loads(eight), 8)):
        assert (line["batch_size"], line["threads"], line["method"]) == (clips, 1, "ssl_tie")
        assert min(line["milliseconds_per_clip"][name]["median"] for name in
                   ("torch", "onnx_runtime")) > 0  # fmt: skip

    notes = onnxruntime.InferenceSession(output).get_modelmeta().custom_metadata_map
    assert (notes["method"], notes["inputs"], notes["opset"]) == ("ssl_tie", "raw", "18")
    source = json.loads(notes["checkpoint"])
    assert (source["sha256"], source["epoch"]) == (file_sha256(checkpoint), 3)
    assert str(tmp_path) not in str(notes)

    picture, sound = make_clip(tmp_path)
    expected = own_map(trained, picture, sound)
    found = example_of_the_document(tmp_path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)

    frames = to_tensor(FrameGeometry(96).apply_to_frame(read_frame(picture)))[None]
    waveforms = load_waveform(sound, trained.audio)[None]
    traced = torch.jit.load(script)(frames, waveforms)
    np.testing.assert_allclose(traced, expected, rtol=0, atol=1e-4)


def example_of_the_document(folder):
    """Runs the Python of docs/export.md where model, picture and sound lie."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)
    for name in ("model.onnx", "picture.jpg", "sound.wav"):
        assert f'"{name}"' in example
        example = example.replace(f'"{name}"', repr(str(folder / name)))
    names = {}
    exec(compile(example, "docs/export.md", "exec"), names)
    return names["similarity_map"]


@pytest.mark.slow
def test_the_document_s_example_takes_the_middle_where_the_model_does(tmp_path):
    trained = make_trained("slavc", {})
    exporter = export.Exporter(trained, "raw")
    notes = describe_file(trained, tmp_path / "last.pth", "0", inputs="raw", opset=export.OPSET)
    (tmp_path / "model.onnx").write_bytes(exporter.to_onnx(notes))
    for seconds in (0.9, 3.7):
        expected = own_map(trained, *make_clip(tmp_path, seconds))
        found = example_of_the_document(tmp_path)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", LOCALISERS)
def test_notes_say_what_the_front_end_makes(method, tmp_path):
    audio, frame = AUDIO_CONFIGS[method](), FrameConfig(frame_size=96)
    checkpoint = Checkpoint(method=method, method_config={}, audio_config={}, frame_config={}, state_dict={})
    trained = TrainedModel(torch.nn.Identity(), audio, frame, checkpoint)
    notes = describe_file(trained, tmp_path / "a.pth", "0", inputs="prepared", opset=18)
    noted = json.loads(notes["audio"])
    heard = audio.build_front_end()(torch.zeros(2, noted["num_samples"]))
    shape, size = re.fullmatch(r"\w+ \((.*)\), [ST] = (\d+)", noted["audio"]).groups()
    letters = {"B": 2, "T": int(size), "S": int(size)}
    assert heard.shape == tuple(letters[part] if part in letters else int(part) for part in shape.split(", "))
    assert json.loads(notes["frames"])["frame_size"] == 96


def test_noted_log_mel_is_the_one_that_is_heard():
    """SSL-TIE's notes, read as a recipe in NumPy."""
    audio = AudioConfig(**SMALL_AUDIO)
    trained = types.SimpleNamespace(
        audio=audio,
        frame=FrameConfig(),
        checkpoint=types.SimpleNamespace(epoch=0, method="ssl_tie", method_config={}),
    )
    noted = json.loads(describe_file(trained, ROOT / "a.pth", "0", inputs="prepared", opset=18)["audio"])
    size, rate = noted["window_samples"], noted["sample_rate"]
    waveform = 0.3 * np.random.default_rng(0).standard_normal(noted["num_samples"])
    window = np.hanning(size + 1)[:-1]
    window = window / np.sqrt((window**2).sum())
    padded = np.pad(waveform, size // 2, mode="reflect")
    starts = np.arange(0, len(padded) - size + 1, noted["hop_samples"])
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(size)] * window)) ** 2
    hertz = np.linspace(0, rate / 2, size // 2 + 1)
    low, high = (2595 * np.log10(1 + edge / 700) for edge in noted["mel_range_hz"])
    edges = 700 * (10 ** (np.linspace(low, high, noted["mel_bins"] + 2) / 2595) - 1)
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.minimum(rising, falling).clip(0)
    expected = 10 * np.log10(np.maximum(power @ filters, 1e-10)).T
    heard = audio.build_front_end()(torch.tensor(waveform[None], dtype=torch.float32))
    np.testing.assert_allclose(heard[0, 0].numpy(), expected, atol=0.05)


def test_what_is_wrong_is_said(small_checkpoint, tmp_path, monkeypatch):
    _, checkpoint = small_checkpoint
    finished = run("--checkpoint", tmp_path / "no.pth", "--output", tmp_path / "a.onnx")
    assert_refused(finished, "No checkpoint at", "last.pth")
    options = {"checkpoint": checkpoint, "output": tmp_path / "a.onnx"}
    for name, value, words in (
        ("output", tmp_path / "a.pb", "--output must end in .onnx"),
        ("torchscript", tmp_path / "a.pth", "--torchscript must end in .pt"),
        ("threads", 0, "--threads must be at least 1"),
        ("benchmark", -1, "--benchmark must be 0 or a number of rounds"),
    ):
        with pytest.raises(ValueError, match=words):
            export.ExportOptions(**options | {name: value})
    monkeypatch.setattr(export, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package, .*requirements-export\.txt"):
        export.export(export.ExportOptions(**options))


def test_every_option_is_explained_and_read():
    source = (ROOT / "scripts" / "export.py").read_text().split("class Localiser")[1]
    for name, words in field_docstrings(export.ExportOptions).items():
        assert words and f"options.{name}" in source
