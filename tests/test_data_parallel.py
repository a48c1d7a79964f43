"""torchrun with gloo: several processes train and score as one does."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, assert_refused, run, torchrun

SMALL = (
    "--frame-size 64 --window-seconds 1 --mel-bins 32 --hop-length 400 --time-mask 10 "
    "--frequency-mask 8 --batch-size 4 --workers 0 --device cpu"
).split()


def run_parallel(processes, program, *arguments):
    return subprocess.run(
        torchrun(processes, program, *arguments),
        capture_output=True, check=False, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip


def training(tiny_data, output, *arguments):
    return [
        "ssl_tie", "--train-set", "vggsound", "--data-root", tiny_data.root, "--output", output,
        "--validation-benchmark", "vgg_ss", "--validation-root", tiny_data.root, *SMALL, *arguments,
    ]  # fmt: skip


def losses(output):
    names = ("loss", "contrastive", "contrastive_transformed", "equivariance")
    return [[float(row[name]) for name in names] for row in csv.DictReader((output / "history.csv").open())]


def test_two_processes_train_and_score_as_one(tiny_data, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert run("main.py", *training(tiny_data, alone, "--epochs", 1)).returncode == 0
    finished = run_parallel(2, "main.py", *training(tiny_data, both, "--epochs", 1))
    assert finished.returncode == 0, finished.stderr
    # The second step sees weights after Adam's first, which turns rounding into whole steps of the
    # learning rate where a gradient is all but 0.
    assert losses(both)[0] == pytest.approx(losses(alone)[0], rel=2e-3)
    content = {name: torch.load(name / "last.pth", weights_only=True) for name in (alone, both)}
    assert content[alone]["state_dict"].keys() == content[both]["state_dict"].keys()
    assert finished.stderr.count("Finished epoch") == 1  # one process talks

    # The same checkpoint, scored by one process and by two.
    def score(output, runner, *processes):
        finished = runner(
            *processes, "test.py", "localisation", "--checkpoint", both / "last.pth",
            "--benchmark", "vgg_ss", "--data-root", tiny_data.root, "--output", output,
            "--workers", 0, "--device", "cpu", "--save-overlays", "all",
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        return json.loads((output / "summary.json").read_text())

    first, second = score(tmp_path / "one", run), score(tmp_path / "two", run_parallel, 2)
    for name in ("cIoU@0.5", "AUC", "mean_cIoU", "num_clips", "scored_clips_sha256", "protocols"):
        assert first[name] == second[name]
    one, two = ((tmp_path / name / "per_clip.csv").read_text() for name in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "two" / "overlays").glob("*.jpg"))) == 6


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_resuming_goes_on(tiny_data, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        torchrun(2, "main.py", *training(tiny_data, output, "--epochs", 500)),
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(output / "last.pth")
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[-1]), signal.SIGUSR1)
        _, messages = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Saved" in messages
    done = torch.load(output / "last.pth", weights_only=True)
    epochs = done["epoch"] + 1
    finished = run_parallel(2, "main.py", *training(tiny_data, output, "--epochs", epochs, "--resume"))
    assert finished.returncode == 0, finished.stderr
    assert torch.load(output / "last.pth", weights_only=True)["epoch"] == epochs


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.1)


def test_a_batch_that_cannot_be_shared_is_refused(tiny_data, tmp_path):
    arguments = training(tiny_data, tmp_path / "run", "--batch-size", 5)
    finished = run_parallel(2, "main.py", *arguments)
    assert finished.returncode != 0
    assert "--batch-size 5 is that of all 2 processes" in finished.stderr
    assert not (tmp_path / "run").exists()


def test_half_a_launch_is_refused(tiny_data, tmp_path):
    environment = {**ENVIRONMENT, "RANK": "0"}
    finished = subprocess.run(
        [sys.executable, ROOT / "main.py", *map(str, training(tiny_data, tmp_path / "run"))],
        capture_output=True, check=False, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert_refused(finished, "torchrun", "WORLD_SIZE")
