"""What a newcomer adds: a method is one file and one row, a benchmark is one row; nothing else is touched."""

import csv
import json
import shutil

import pytest
from command_line import ROOT, assert_refused, run

METHOD = '''"""Toy: the map is the cosine of the colours of the frame's cells with the pitch of the sound."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from models.method import Method, TrainingOutput
from utils.options import Options, option


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Options):
    """What defines the model."""

    channels: int = option(8, at_least=1)
    """D, of both embeddings"""


@dataclass(frozen=True, kw_only=True)
class ToyRecipe(Options):
    """How it is optimised: plain gradient descent."""

    epochs: int = option(2, at_least=1)
    """passes over the training set"""
    batch_size: int = option(4, at_least=2)
    """clips a step"""


class Toy(Method):
    """Two linear encoders, trained to tell which sound is whose."""

    def __init__(self, config, *, audio, frame):
        super().__init__(audio, frame)
        self.look = nn.Conv2d(3, config.channels, 16, stride=16)
        self.hear = nn.Linear(audio.mel_bins, config.channels)

    def visual_features(self, frames):
        return F.normalize(self.look(frames), dim=1)  # (B, D, H/16, W/16)

    def sound_features(self, sounds):
        return F.normalize(self.hear(sounds.mean(dim=(1, 3)) / 100), dim=1)  # (B, D)

    def compare(self, visual, sound):
        return torch.einsum("bdhw,bd->bhw", visual, sound)

    def augment(self, batch, seed, *, first=0, global_size=None):
        return dict(zip(("frames", "sounds"), self.prepare(batch.frames, batch.waveforms), strict=True))

    def forward(self, *, frames, sounds):
        visual, heard = self.visual_features(frames), self.sound_features(sounds)
        peaks = torch.einsum("bdhw,ad->bahw", visual, heard).amax(dim=(2, 3))  # (B, A)
        loss = F.cross_entropy(peaks / 0.1, torch.arange(len(peaks), device=peaks.device))
        terms = {"peak": peaks.diagonal().mean().detach()}
        return TrainingOutput(loss, terms, self.compare(visual, heard).detach())

    def build_optimizer(self, recipe):
        return torch.optim.SGD(self.parameters(), lr=0.1)
'''
METHOD_ROW = """
    "toy": MethodRow(Toy, {"model": ToyConfig, "audio": AudioConfig, "optimisation": ToyRecipe}),
"""
BENCHMARK_ROW = """
    "corners": DataSet(
        title="Corners",
        roots=(".",),
        frames=("pictures/<id>.jpg",),
        sounds=("sounds/<id>.wav",),
        annotations={"boxes/<id>.xml": read_vgg_ss_xml},
    ),
"""


@pytest.fixture
def project(tmp_path):
    """The project with the toy method and the toy benchmark, in a folder of its own."""
    root = tmp_path / "project"
    for package in ("models", "datasets", "utils"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for program in ("main.py", "test.py", "opts.py"):
        shutil.copy(ROOT / program, root)
    assert len(METHOD.splitlines()) <= 60
    (root / "models" / "toy.py").write_text(METHOD)
    imported = "from models.toy import Toy, ToyConfig, ToyRecipe\n"
    insert(root / "models" / "__init__.py", "from models.sspl import", imported, before=True)
    insert(root / "models" / "__init__.py", "METHODS: dict[str, MethodRow] = {", METHOD_ROW)
    insert(root / "datasets" / "benchmarks.py", "DATA_SETS: dict[str, DataSet] = {", BENCHMARK_ROW)
    return root


def insert(path, mark, text, *, before=False):
    source = path.read_text()
    assert source.count(mark) == 1, (path, mark)
    path.write_text(source.replace(mark, text + mark if before else mark + text))


def train(project, data, output, *words):
    return run(
        project / "main.py", "toy", "--train-set", "vggsound", "--data-root", data, "--output", output,
        "--frame-size", 64, "--window-seconds", 1, "--mel-bins", 16, "--workers", 0,
        "--device", "cpu", *words,
    )  # fmt: skip


def test_a_new_method_and_a_new_benchmark_are_trained_scored_and_reported(project, tiny_data, tmp_path):
    run_dir, results, data = tmp_path / "run", tmp_path / "results", tmp_path / "corners"
    for theirs, ours in {"frame": "pictures", "audio": "sounds", "anno": "boxes"}.items():
        shutil.copytree(tiny_data.root / "VGGSound_test" / theirs, data / ours)
    validation = ("--validation-benchmark", "corners", "--validation-root", data)
    finished = train(project, tiny_data.root, run_dir, *validation)
    assert finished.returncode == 0, finished.stderr
    (*_, last) = csv.DictReader((run_dir / "history.csv").open())
    assert float(last["loss"]) > 0 and float(last["peak"]) <= 1 and last["validation_clips"] == "6"
    assert json.loads((run_dir / "options.json").read_text())["model"] == {"channels": 8}
    resumed = train(project, tiny_data.root, run_dir, *validation, "--epochs", 3, "--resume")
    assert resumed.returncode == 0, resumed.stderr

    finished = run(
        project / "test.py", "localisation", "--checkpoint", run_dir / "best.pth",
        "--benchmark", "corners", "--data-root", data, "--output", results, "--workers", 0, "--device", "cpu",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((results / "summary.json").read_text())
    assert (summary["checkpoint"]["method"], summary["num_clips"]) == ("toy", 6)
    assert len(list(csv.DictReader((results / "per_clip.csv").open()))) >= 6
    page = (results / "report.html").read_text()
    assert "toy" in page and "corners" in page


def test_what_a_method_lacks_is_said_at_the_start(project, tmp_path):
    half = METHOD.replace("def augment(", "def augmented(").replace("def forward(", "def forwards(")
    (project / "models" / "toy.py").write_text(half)
    rows = project / "models" / "__init__.py"
    rows.write_text(rows.read_text().replace(', "optimisation": ToyRecipe', ""))
    finished = train(project, tmp_path, tmp_path / "run")
    assert_refused(finished, "The method 'toy' lacks the group 'optimisation', Toy.augment(), Toy.forward()")
