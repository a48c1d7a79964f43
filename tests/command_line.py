"""Runs the programs as users do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(program, *arguments):
    """A finished main.py, test.py or script, with its output as text."""
    return subprocess.run(
        [sys.executable, ROOT / program, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )


def assert_refused(finished, *words):
    """Status 2, no traceback, and these words."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    for word in words:
        assert word in finished.stderr


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
