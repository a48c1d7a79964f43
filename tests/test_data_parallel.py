"""torchrun with gloo: several processes train as one does."""

import os
import signal
import subprocess
import time

import pandas as pd
import pytest
import torch
from command_line import ENVIRONMENT, run, torchrun, training, validation


@pytest.mark.slow
def test_two_processes_train_and_validate_as_one(tiny_data, tmp_path):
    rows = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        words = training(tiny_data, output, "--epochs", 1, *validation(tiny_data))
        finished = run("main.py", *words, processes=processes)
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.count("Finished epoch") == 1  # one process talks
        rows.append(pd.read_csv(output / "history.csv").iloc[0])
    # The second step sees weights after Adam's first, which turns rounding into whole steps of the
    # learning rate where a gradient is all but 0.
    losses = ["loss", "contrastive", "contrastive_transformed", "equivariance"]
    assert rows[1][losses].tolist() == pytest.approx(rows[0][losses].tolist(), rel=2e-3)
    assert rows[1]["validation_clips"] == rows[0]["validation_clips"] == 6


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
