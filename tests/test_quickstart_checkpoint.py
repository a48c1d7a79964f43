"""The quickstart's model as a file: what is in it and in its card, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import ROOT

from scripts import make_quickstart_checkpoint as program
from utils.checkpoint import (
    Checkpoint,
    file_sha256,
    parse_checkpoint,
    read_checkpoint_file,
    save_checkpoint,
    weights_sha256,
)

TINY = "--epochs 1 --batch-size 8 --frame-size 64 --device cpu --workers 0".split()
WEIGHTS = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.count": torch.tensor(7)}


def quickstart_environment(folder):
    """Of a quickstart that lives in a folder."""
    return {
        "VSSL_PYTHON": sys.executable,
        "QUICKSTART_SIZE": "small",
        "QUICKSTART_DATA": str(folder / "data"),
        "QUICKSTART_OUTPUT": str(folder / "run"),
        "QUICKSTART_STAMPS": "--source procedural --train 16 --test 12",
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, value in quickstart_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture(scope="module")
def all_options(tmp_path_factory):
    """Options of the quickstart, asked for once; the folders are those of `finished_run`."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quickstart_environment(folder).items():
            patch.setenv(name, value)
        return folder, program.quickstart_options(TINY)


def summary(sha256, audio="own"):
    scores = {"ciou_at_0.5": 47.5, "auc": 46.0, "mean_ciou": 46.0, "pointing_accuracy": 76.0}
    model = {"name": "model", "kind": "model", **scores}
    model["intervals"] = {**dict.fromkeys(scores), "ciou_at_0.5": [40.0, 55.0]}
    blind = {"name": "disc", "kind": "baseline", **scores, "ciou_at_0.5": 18.25}
    rows = [model, blind]
    return {
        "checkpoint": {"sha256": sha256}, "num_clips": 12, "audio": audio,
        "protocols": [{"name": "ssl_tie", "description": "the rule", "rows": rows}],
        "intervals": {"confidence": 0.95, "method": "bootstrap"},
        "environment": {"torch": "2", "device": "CPU"}, "warnings": ["mind the gap"],
    }  # fmt: skip


@pytest.fixture
def finished_run(all_options, monkeypatch):
    """A run as the quickstart leaves it, without the quickstart."""
    folder, options = all_options
    for name, value in quickstart_environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(program, "quickstart_options", lambda _: options)
    data, run = folder / "data", folder / "run"
    data.mkdir(exist_ok=True)
    (data / "train.txt").write_text("a\nb\n")
    manifest = {
        "source": "procedural", "recipe": {"seed": 0, "num_train": 2}, "licence": "Keep it.",
        "packages": [{"name": "stamps", "version": "1.2", "sha256": "99"}],
        "classes": {"dog": {}, "cow": {}}, "clips": {},
    }  # fmt: skip
    (data / "stamps.json").write_text(json.dumps(manifest))
    os.utime(data / "stamps.json", (1, 1))
    leave_run(run, options)
    return run, options


def leave_run(run, options, *, epoch=1, listed=None, results=True):
    listed = file_sha256(Path(options["data"]["clip_list"])) if listed is None else listed
    checkpoint = Checkpoint(
        method="ssl_tie", method_config=options["model"], audio_config=options["audio"],
        frame_config=options["frame"], state_dict=WEIGHTS, training_clips=["a", "b"],
        training_list={"name": "train", "sha256": listed, "num_listed": 2, "num_missing": 0},
        epoch=epoch, selection={"kind": "last"}, options=options,
        optimizer={"state": {0: torch.zeros(1000)}}, progress={"history": []},
    )  # fmt: skip
    save_checkpoint(run / "last.pth", checkpoint)
    (run / "history.csv").write_text("epoch,loss\n1,3.25\n")
    for name, audio in (("test", "own"), ("wrong_sound", "shuffled"), ("test_seen", "own")):
        folder = run / "results" / name
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = file_sha256(run / "last.pth") if results else "other"
        (folder / "summary.json").write_text(json.dumps(summary(sha256, audio)))


def test_a_finished_run_becomes_weights_and_a_card(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)  # neither trained nor scored again
    run, _ = finished_run
    path = tmp_path / "weights.pth"
    assert program.make_quickstart_checkpoint(path, TINY) == 0
    assert str(path) in capsys.readouterr().out

    written = parse_checkpoint(read_checkpoint_file(path), path)
    assert written.optimizer is None and written.progress == {}
    assert written.training_clips == ["a", "b"] and written.epoch == 1
    assert weights_sha256(written.state_dict) == weights_sha256(WEIGHTS)
    assert path.stat().st_size < (run / "last.pth").stat().st_size

    card = path.with_suffix(".md").read_text()
    for words in (
        file_sha256(path), weights_sha256(WEIGHTS), "Keep it.", "stamps 1.2", "dog, cow",
        "| `learning_rate` | 0.0003 | 0.0001 |", "| `crop` | False | True |", "3.250",
        "| test | 12 | 47.5 [40.0, 55.0] | 46.0 | 76.0 | 18.2 |", "mind the gap",
        "wrong_sound (shuffled sounds)", "QUICKSTART_SIZE=small", "--frame-size 64",
    ):  # fmt: skip
        assert words in card, words
    assert "| `mel_bins`" in card and "| `output`" not in card


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run, o: leave_run(run, {**o, "frame": {"frame_size": 32}}), "--frame-size was 32"),
        (lambda run, o: leave_run(run, o, epoch=2), "2 are done, 1 are wanted"),
        (lambda run, o: leave_run(run, o, listed="other"), "the training list"),
        (lambda run, o: os.utime(run.parent / "data" / "stamps.json"), "was made after it"),
        (lambda run, o: (run.parent / "data" / "stamps.json").unlink(), "its data set is not at"),
    ],
)  # fmt: skip
def test_a_run_of_something_else_is_refused(finished_run, tmp_path, monkeypatch, change, words):
    run, options = finished_run
    os.utime(run / "last.pth", (2, 2))
    change(run, options)
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(ValueError, match=words):
        program.make_quickstart_checkpoint(tmp_path / "weights.pth", TINY)
    assert not list(tmp_path.glob("weights*"))


@pytest.mark.parametrize("change", [{"epoch": 0}, {"results": False}])
def test_an_unfinished_or_unscored_run_goes_on(finished_run, tmp_path, monkeypatch, change):
    run, options = finished_run
    leave_run(run, options, **change)
    called = []

    def quickstart(command, **_):
        called.append(command)
        leave_run(run, options)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", quickstart)
    assert program.make_quickstart_checkpoint(tmp_path / "weights.pth", TINY) == 0
    assert called == [["bash", program.QUICKSTART, *TINY]]


def test_a_quickstart_that_is_stopped_leaves_no_file(finished_run, tmp_path, monkeypatch):
    run, options = finished_run
    leave_run(run, options, epoch=0)
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 130))
    assert program.make_quickstart_checkpoint(tmp_path / "weights.pth", TINY) == 130
    assert not list(tmp_path.glob("weights*"))


def test_sspl_is_not_asked_for(tmp_path):
    with pytest.raises(ValueError, match="--method"):
        program.make_quickstart_checkpoint(tmp_path / "weights.pth", ["--method", "sspl"])


@pytest.mark.slow
def test_from_nothing_to_a_file_and_again(place):
    path = place / "quickstart.pth"
    command = ["bash", ROOT / "scripts/make_quickstart_checkpoint.sh", "--file", path, *TINY]
    for time in ("first", "again"):
        finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert ("nothing to train" in finished.stderr) == (time == "again")
    words = f"test.py localisation --checkpoint {path} --benchmark stamps --workers 0 --device cpu"
    folders = f"--data-root {place}/data --output {place}/scored --clip-list {place}/data/test.txt"
    scored = subprocess.run(
        [sys.executable, *f"{ROOT}/{words} {folders}".split()], capture_output=True, text=True, check=False
    )
    assert scored.returncode == 0, scored.stderr
    before = json.loads((place / "run" / "results" / "test" / "summary.json").read_text())
    after = json.loads((place / "scored" / "summary.json").read_text())
    assert before["protocols"] == after["protocols"]
    assert after["leak_check"]["checked"]
