"""Runs the programs as users do."""

import os
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
