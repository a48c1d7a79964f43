"""SSPL through the command line: train, test, and what is refused."""

import json
import shutil

import pytest
import torch
from command_line import assert_refused, run, scoring

from models.released import sspl_renames

SMALL = ("--frame-size 96 --batch-size 4 --workers 0 --device cpu --seed 1234").split()


def train(tiny_data, output, *more):
    data = ("--train-set", "vggsound", "--data-root", tiny_data.root, "--output", output)
    return run("main.py", "sspl", *data, *SMALL, *more)


@pytest.fixture
def runs(tmp_path):
    """A folder for runs, emptied at once: each checkpoint is half a gigabyte."""
    folder = tmp_path / "runs"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_run_scores_as_the_same_weights_in_the_authors_files(tiny_data, tmp_path, runs):
    finished = train(tiny_data, runs / "ours", "--random-init", "--no-pcm", "--epochs", 1)
    assert finished.returncode == 0, finished.stderr
    assert "random weights" in finished.stderr
    checkpoint = torch.load(runs / "ours" / "last.pth", weights_only=True)
    checkpoint["frame_config"] = {"frame_size": 224}  # which is what the authors' files imply
    torch.save(checkpoint, runs / "at_224.pth")
    summary = score(tiny_data, runs / "at_224.pth", tmp_path / "results")
    assert summary["checkpoint"]["method"] == "sspl"
    assert summary["protocol"]["name"] == "sspl"
    assert [entry["name"] for entry in summary["protocols"]] == ["sspl", "ssl_tie"]
    assert any("random weights" in warning for warning in summary["warnings"])

    official: dict[str, dict[str, torch.Tensor]] = {}
    for ours, place in sspl_renames(0).items():
        file, _, theirs = place.partition("/")
        for name, tensor in checkpoint["state_dict"].items():
            if name.startswith(ours):
                official.setdefault(file, {})["module." + theirs + name[len(ours) :]] = tensor
    folder = runs / "authors"
    folder.mkdir()
    for file, state_dict in official.items():
        torch.save(state_dict, folder / file)
    (folder / "args.json").write_text("{}")
    released = score(tiny_data, folder, tmp_path / "released")
    for name in ("cIoU@0.5", "AUC", "mean_cIoU", "num_clips"):
        assert released[name] == summary[name]
    (folder / "ssl_head_best.pth").unlink()
    assert_refused(localisation(tiny_data, folder, tmp_path / "incomplete"), "ssl_head_best.pth")


def localisation(tiny_data, checkpoint, output):
    return run("test.py", *scoring(tiny_data, checkpoint, output, "--protocol", "sspl,ssl_tie"))


def score(tiny_data, checkpoint, output):
    finished = localisation(tiny_data, checkpoint, output)
    assert finished.returncode == 0, finished.stderr
    return json.loads((output / "summary.json").read_text())


def test_missing_weights_are_named_with_source_and_sum(tiny_data, runs):
    finished = train(tiny_data, runs / "none", "--vgg16", runs / "nowhere.pth")
    assert_refused(finished, "nowhere.pth", "download.pytorch.org", "397923af", "--random-init")
    assert not (runs / "none").exists()
