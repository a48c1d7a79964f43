"""torchrun with gloo: several processes train and score as one does."""

import csv
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from command_line import ENVIRONMENT, run, torchrun, training, validation


def losses(output):
    names = ("loss", "contrastive", "contrastive_transformed", "equivariance")
    return [[float(row[name]) for name in names] for row in csv.DictReader((output / "history.csv").open())]


@pytest.mark.slow
def test_two_processes_train_and_score_as_one(tiny_data, tmp_path):
    for processes in (1, 2):
        words = training(tiny_data, tmp_path / str(processes), "--epochs", 1, *validation(tiny_data))
        finished = run("main.py", *words, processes=processes)
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.count("Finished epoch") == 1  # one process talks
    # The second step sees weights after Adam's first, which turns rounding into whole steps of the
    # learning rate where a gradient is all but 0.
    assert losses(tmp_path / "2")[0] == pytest.approx(losses(tmp_path / "1")[0], rel=2e-3)
    one, two = (torch.load(tmp_path / name / "last.pth", weights_only=True) for name in "12")
    assert one["state_dict"].keys() == two["state_dict"].keys()

    # The same checkpoint, scored by one process and by two.
    summaries, tables = [], []
    for processes in (1, 2):
        output = tmp_path / f"results_{processes}"
        finished = run(
            "test.py", "localisation", "--checkpoint", tmp_path / "2" / "last.pth",
            "--benchmark", "vgg_ss", "--data-root", tiny_data.root, "--output", output,
            "--workers", 0, "--device", "cpu", "--save-overlays", "all", processes=processes,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        assert len(list((output / "overlays").glob("*.jpg"))) == 6
        summaries.append(json.loads((output / "summary.json").read_text()))
        tables.append((output / "per_clip.csv").read_text())
    for name in ("cIoU@0.5", "AUC", "mean_cIoU", "num_clips", "scored_clips_sha256", "protocols"):
        assert summaries[0][name] == summaries[1][name]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_resuming_goes_on(tiny_data, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        torchrun(2, "main.py", *training(tiny_data, output, "--epochs", 10**6)),
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        while not (output / "last.pth").exists():
            assert process.poll() is None
            time.sleep(0.1)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[-1]), signal.SIGUSR1)
        _, messages = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Saved" in messages
    epochs = torch.load(output / "last.pth", weights_only=True)["epoch"] + 1
    finished = run("main.py", *training(tiny_data, output, "--epochs", epochs, "--resume"), processes=2)
    assert finished.returncode == 0, finished.stderr
    assert torch.load(output / "last.pth", weights_only=True)["epoch"] == epochs
