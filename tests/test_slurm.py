"""The Slurm example, with stand-ins for srun and scontrol: it saves, is requeued and goes on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from command_line import ROOT, SMALL

SCRIPT = ROOT / "scripts" / "train_slurm.sbatch"
SRUN = """#!/usr/bin/env bash
options=()
while [[ $1 == --* ]]; do
  options+=("$1")
  shift
done
echo "$$" "${options[@]}" > "$STEP"  # exec: its own number becomes that of the task
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
def environment(tmp_path, tiny_data):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "STEP": str(tmp_path / "step"),
        "OUTPUT": str(tmp_path / "run"),
        "VSSL_PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "VGGSOUND_ROOT": str(tiny_data.root),
    }


def start(*words, environment):
    return subprocess.Popen(
        ["bash", SCRIPT, *map(str, words), *SMALL, "--precision", "fp32"],
        stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def descendants(pid):
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return [found for child in children for found in (int(child), *descendants(child))]


def test_it_says_what_slurm_is_to_do_and_requeues_no_failure(environment, tmp_path):
    text = SCRIPT.read_text()
    for line in ("--signal=USR1@120", "--requeue", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in text
    outside = start(environment={"PATH": "/bin"})
    assert "sbatch scripts/train_slurm.sbatch" in outside.communicate()[1]
    assert outside.returncode != 0
    job = start("--clip-list", "none.txt", environment=environment)
    assert "none.txt" in job.communicate()[1]
    assert job.returncode not in (0, 138)
    assert not (tmp_path / "calls").exists()
    assert "--cpus-per-task=3" in (tmp_path / "step").read_text().split()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "reached"), [("SIGUSR1", "task"), ("SIGUSR1", "all"), ("SIGTERM", "task")])
def test_a_signal_saves_and_the_next_start_goes_on(environment, tiny_data, tmp_path, sent, reached):
    """Slurm's signals may reach the step's task alone, or all of the step's processes."""
    clip_list, last = tmp_path / "clips.txt", tmp_path / "run" / "last.pth"
    clip_list.write_text("\n".join(tiny_data.train_ids) + "\n")
    job = start("--clip-list", clip_list, "--epochs", 10**6, environment=environment)
    try:
        while not last.exists():
            assert job.poll() is None
            time.sleep(0.05)
        task = int(Path(environment["STEP"]).read_text().split()[0])
        for pid in (task, *(descendants(task) if reached == "all" else ())):
            os.kill(pid, signal.Signals[sent])
        _, messages = job.communicate()
    finally:
        for pid in (*descendants(job.pid), job.pid) if job.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert "Saved" in messages
    requeued = sent == "SIGUSR1"  # SIGTERM, as from scancel, ends the job
    assert (job.returncode == 138) == requeued, messages
    assert not requeued or (tmp_path / "calls").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    assert requeued or not (tmp_path / "calls").exists()
    epochs = torch.load(last, weights_only=True)["epoch"] + 1
    job = start("--clip-list", clip_list, "--epochs", epochs, environment=environment)
    messages = job.communicate()[1]
    assert job.returncode == 0, messages
    assert torch.load(last, weights_only=True)["epoch"] == epochs
