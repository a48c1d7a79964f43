"""Runs the programs as users do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
SMALL = (
    "--frame-size 64 --window-seconds 1 --mel-bins 32 --hop-length 400 --time-mask 10 "
    "--frequency-mask 8 --batch-size 4 --workers 0 --device cpu"
).split()
"""Options of main.py ssl_tie for seconds of work"""


def training(tiny_data, output, *words):
    """Arguments of main.py."""
    return list(map(str, [
        "ssl_tie", "--train-set", "vggsound", "--data-root", tiny_data.root, "--output", output,
        *SMALL, *words,
    ]))  # fmt: skip


def scoring(tiny_data, checkpoint, output, *words, task="localisation"):
    """Arguments of test.py."""
    benchmark = "--dataset" if task == "retrieval" else "--benchmark"
    return list(map(str, [
        task, "--checkpoint", checkpoint, benchmark, "vgg_ss", "--data-root", tiny_data.root,
        "--output", output, "--workers", 0, "--device", "cpu", *words,
    ]))  # fmt: skip


def validation(tiny_data):
    return ("--validation-benchmark", "vgg_ss", "--validation-root", tiny_data.root)


def run(program, *arguments, processes=1, timeout=300):
    """A finished main.py, test.py or script, with its output as text."""
    command = [sys.executable, ROOT / program, *arguments]
    if processes > 1:
        command = torchrun(processes, program, *arguments)
    return subprocess.run(
        list(map(str, command)),
        capture_output=True, check=False, text=True, env=ENVIRONMENT, timeout=timeout,
    )  # fmt: skip


def assert_refused(finished, *words):
    """Status 2, no traceback, and these words."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    for word in words:
        assert word in finished.stderr


def assert_same_weights(first, second):
    """And the same state of the optimiser."""
    one, two = (torch.load(path, weights_only=True) for path in (first, second))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"]["state"], two["optimizer"]["state"], rtol=0, atol=0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(processes, program, *arguments):
    """Command line of a program in several processes."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-port", str(free_port()), str(ROOT / program), *map(str, arguments),
    ]  # fmt: skip
