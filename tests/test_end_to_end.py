"""From files to a report through the command line: train, stop, resume, test."""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, assert_refused, run, scoring, training, validation
from shell_scripts import run as run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def train(tiny_data, output, *arguments):
    return run("main.py", *training(tiny_data, output, *arguments))


def localisation(tiny_data, checkpoint, output, *arguments):
    return run("test.py", *scoring(tiny_data, checkpoint, output, *arguments))


def assert_same_weights(first, second):
    """And the same state of the optimiser."""
    one, two = (torch.load(path, weights_only=True) for path in (first, second))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"]["state"], two["optimizer"]["state"], rtol=0, atol=0)


def test_train_resume_test_report(tiny_data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished = train(tiny_data, whole, "--epochs", 2)
    assert finished.returncode == 0, finished.stderr
    assert "clip/s, loss=" in finished.stderr
    assert re.search(r"Finished epoch 2.*, in 0:0\d:\d\d", finished.stderr)
    command = shlex.split(finished.stderr.split("Score it: ")[1].splitlines()[0])
    assert train(tiny_data, parts, "--epochs", 1).returncode == 0
    assert_refused(train(tiny_data, parts, "--epochs", 2, "--resume", "--no-blur"), "--blur")
    assert train(tiny_data, parts, "--epochs", 2, "--resume").returncode == 0
    assert_same_weights(whole / "last.pth", parts / "last.pth")

    history = list(csv.DictReader((parts / "history.csv").open()))
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert history == list(csv.DictReader((whole / "history.csv").open()))
    assert not (whole / "best.pth").exists()
    logged = [EventAccumulator(str(folder)).Reload().Scalars("train/loss") for folder in (whole, parts)]
    assert len(logged[0]) == len(logged[1]) == 2, "resuming drops no entry"
    assert json.loads((whole / "options.json").read_text())["run"]["seed"] == 4

    results = whole / "results" / "vgg_ss"
    finished = run_script(*command[1:], "--device", "cpu", "--workers", "0", "--save-overlays", "all")
    assert finished.returncode == 0, finished.stderr
    assert "cIoU@0.5" in finished.stdout
    summary = json.loads((results / "summary.json").read_text())
    assert (summary["model"], summary["num_clips"]) == ("SSL-TIE whole, 2 epochs", 6)
    assert summary["leak_check"]["num_clips"] == 0
    assert [row["kind"] for row in summary["rows"]] == ["model", "baseline", "baseline", "ceiling"]
    rows = list(csv.DictReader((results / "per_clip.csv").open()))
    hits = sum(float(row["ssl_tie:ciou"]) >= 0.5 for row in rows)
    assert summary["cIoU@0.5"] == pytest.approx(100 * hits / 6)
    assert len(list((results / "overlays").glob("*.jpg"))) == 6
    assert "data:image/jpeg" in (results / "report.html").read_text()

    control = tmp_path / "control"
    assert localisation(tiny_data, whole / "last.pth", control, "--audio", "shuffled").returncode == 0
    assert json.loads((control / "summary.json").read_text())["audio"] == "shuffled"
    page = (control / "report.html").read_text()
    assert "CONTROL" in page and "heard:  (test_" in page
    assert (control / "per_clip.csv").read_text() != (results / "per_clip.csv").read_text()

    other = tmp_path / "batch_of_one"
    assert localisation(tiny_data, whole / "last.pth", other, "--batch-size", 1).returncode == 0
    for one, many in zip(csv.DictReader((other / "per_clip.csv").open()), rows, strict=True):
        assert one["clip_id"] == many["clip_id"]
        for name in ("ssl_tie:ciou", "sspl:ciou"):
            assert float(one[name]) == pytest.approx(float(many[name]), abs=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        "--precision bf16 --equivariance-target masked",
        *(
            pytest.param(others, marks=pytest.mark.slow)
            for others in (
                "--no-equivariance-gradient --no-tri-map",
                "--equivariance-weight 0 --transformed-contrastive-weight 0 --no-hard-negatives",
                "--no-crop --no-colour --no-grey --no-blur --no-flip --no-spec-augment --workers 2",
            )
        ),
    ],
)
def test_variants_train(tiny_data, tmp_path, arguments):
    finished = train(tiny_data, tmp_path / "run", "--epochs", 1, *arguments.split())
    assert finished.returncode == 0, finished.stderr
    history = next(csv.DictReader((tmp_path / "run" / "history.csv").open()))
    assert 0 < float(history["loss"]) < 20


def test_validation_keeps_the_best_epoch_and_test_says_so(tiny_data, tmp_path):
    output = tmp_path / "run"
    finished = train(tiny_data, output, "--epochs", 1, *validation(tiny_data))
    assert finished.returncode == 0, finished.stderr
    history = next(csv.DictReader((output / "history.csv").open()))
    assert localisation(tiny_data, output / "best.pth", tmp_path / "results").returncode == 0
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["cIoU@0.5"] == pytest.approx(float(history["validation_ciou_at_0.5"]), abs=1e-3)
    assert summary["checkpoint"]["selection"]["kind"] == "best"
    assert summary["num_clips_epoch_was_chosen_on"] == 6
    assert "CHOSEN ON TEST" in (tmp_path / "results" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_at_the_same_step(tiny_data, tmp_path, sent):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(tiny_data, whole, "--epochs", 3).returncode == 0
    command = [sys.executable, ROOT / "main.py", *training(tiny_data, stopped, "--epochs", 500)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    wait_for((stopped / "history.csv").exists, process)
    process.send_signal(sent)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 128 + sent, messages
    assert "Traceback" not in messages
    content = torch.load(stopped / "last.pth", weights_only=True)
    target = max(3, content["epoch"] + 1)
    assert train(tiny_data, stopped, "--epochs", target, "--resume").returncode == 0
    if target != 3:
        assert train(tiny_data, whole, "--epochs", target, "--resume").returncode == 0
    assert_same_weights(whole / "last.pth", stopped / "last.pth")
    assert (whole / "history.csv").read_text() == (stopped / "history.csv").read_text()


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_broken_clip_in_training_is_skipped_and_listed(tiny_data, tmp_path):
    path = tiny_data.root / "VGGSound" / "total_video_frames" / "train_3" / "125.jpg"
    path.write_bytes(path.read_bytes()[:700])  # the header is whole, the picture is not
    finished = train(tiny_data, tmp_path / "run", "--epochs", 1)
    assert finished.returncode == 0, finished.stderr
    assert "Skipped train_3" in finished.stderr
    content = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert list(content["progress"]["broken"]) == ["train_3"]
    assert next(csv.DictReader((tmp_path / "run" / "history.csv").open()))["broken_clips"] == "1"


def test_broken_clip_at_test_is_left_out_and_said(tiny_data, checkpoint, tmp_path):
    path = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    path.write_bytes(path.read_bytes()[:700])
    assert_refused(localisation(tiny_data, checkpoint, tmp_path / "results"), "test_3")
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert (summary["num_clips"], summary["complete"]) == (5, False)
    assert "test_3" in summary["unreadable"][0]
    allowed = localisation(tiny_data, checkpoint, tmp_path / "results", "--allow-missing")
    assert allowed.returncode == 0


def test_a_leak_is_loud(tiny_data, checkpoint, tmp_path):
    leaking = tmp_path / "leaking.txt"
    leaking.write_text("test_0\ntrain_1\n")
    finished = localisation(tiny_data, checkpoint, tmp_path / "results", "--training-list", leaking)
    assert "LEAK" in finished.stderr
    assert "LEAK" in (tmp_path / "results" / "report.html").read_text()
    leak = json.loads((tmp_path / "results" / "summary.json").read_text())["leak_check"]
    assert (leak["num_clips"], leak["first"]) == (1, ["test_0"])
