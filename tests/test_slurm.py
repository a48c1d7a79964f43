"""The Slurm example, with stand-ins for srun and scontrol: it saves, is requeued and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train_slurm.sbatch"
SMALL = (
    "--frame-size 64 --window-seconds 1 --mel-bins 32 --hop-length 400 --time-mask 10 "
    "--frequency-mask 8 --batch-size 4 --workers 0 --device cpu --pictures 0 --log-every 1 "
    "--precision fp32"
).split()
SRUN = """#!/usr/bin/env bash
shift  # its own option
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then
  [ "$3" = "node[1-2]" ] && printf 'localhost\\nnode2\\n'
else
  echo "$@" >> "$CALLS"
fi
"""


@pytest.fixture
def environment(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "OUTPUT": str(tmp_path / "run"),
        "VSSL_PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "VGGSOUND_ROOT": "unset",
    }


def test_it_parses_and_says_what_slurm_is_to_do():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    text = SCRIPT.read_text()
    for line in ("--signal=USR1@120", "--requeue", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in text
    assert "set -euo pipefail" in text


def test_outside_of_slurm_it_says_how_to_start():
    finished = subprocess.run(
        ["bash", SCRIPT], capture_output=True, text=True, check=False, env={"PATH": "/bin"}
    )
    assert finished.returncode != 0
    assert "sbatch scripts/train_slurm.sbatch" in finished.stderr


def test_a_failure_is_not_requeued(environment, tmp_path):
    """There is no such clip list."""
    finished = subprocess.run(
        ["bash", SCRIPT, *SMALL, "--clip-list", "none.txt"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert finished.returncode not in (0, 138)
    assert "none.txt" in finished.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.slow
def test_a_signal_saves_and_requeues_and_the_next_start_goes_on(environment, tiny_data, tmp_path):
    environment["VGGSOUND_ROOT"] = str(tiny_data.root)
    clip_list = tmp_path / "clips.txt"
    clip_list.write_text("\n".join(tiny_data.train_ids) + "\n")
    last = tmp_path / "run" / "last.pth"

    def command(epochs):
        return ["bash", SCRIPT, "--clip-list", clip_list, *SMALL, "--epochs", str(epochs)]

    process = subprocess.Popen(
        command(500), stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not last.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        # As Slurm: every process of the steps, but not the batch script itself.
        for descendant in descendants(process.pid):
            os.kill(descendant, signal.SIGUSR1)
        _, messages = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 138, messages
    assert "Saved" in messages
    assert (tmp_path / "calls").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    epochs = torch.load(last, weights_only=True)["epoch"] + 1
    finished = subprocess.run(
        command(epochs), capture_output=True, text=True, check=False, env=environment, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    assert torch.load(last, weights_only=True)["epoch"] == epochs


def descendants(pid):
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return [found for child in children for found in (int(child), *descendants(child))]
