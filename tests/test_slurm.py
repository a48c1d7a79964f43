"""The Slurm example, with stand-ins for srun and scontrol: it saves, is requeued and goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
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
TORCHRUN = """#!{python}
# Two workers in sessions of their own, SIGTERM passed on to them, and no part in SIGUSR1.
import os, pathlib, signal, subprocess, sys, time

folder = pathlib.Path(os.environ["RECEIVED"])
if sys.argv[1] == "worker":
    received = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    (folder / sys.argv[2]).touch()
    while not received:
        time.sleep(0.01)
    time.sleep(0.5)  # saving; a second signal does not keep it from that
    (folder / sys.argv[2]).write_text(signal.Signals(received[0]).name)
    sys.exit(128 + received[0])
workers = []
if os.environ["WORKERS"] == "0":
    (folder / "none").touch()
    signal.pause()
signal.signal(signal.SIGTERM, lambda number, _: [worker.terminate() for worker in workers])
for name in range(int(os.environ["WORKERS"])):
    command = [sys.executable, __file__, "worker", str(name)]
    workers.append(subprocess.Popen(command, start_new_session=True))
sys.exit(1 if any([worker.wait() for worker in workers]) else 0)
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
        "STEP": str(tmp_path / "step"),
        "OUTPUT": str(tmp_path / "run"),
        "VSSL_PYTHON": sys.executable,
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "VGGSOUND_ROOT": "unset",
    }


def run(*arguments, environment):
    command = ["bash", SCRIPT, *map(str, arguments), *SMALL, "--precision", "fp32"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)


def test_it_says_what_slurm_is_to_do_and_requeues_no_failure(environment, tmp_path):
    text = SCRIPT.read_text()
    for line in ("--signal=USR1@120", "--requeue", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in text
    outside = run(environment={"PATH": "/bin"})
    assert outside.returncode != 0
    assert "sbatch scripts/train_slurm.sbatch" in outside.stderr
    finished = run("--clip-list", "none.txt", environment=environment)
    assert finished.returncode not in (0, 138)
    assert "none.txt" in finished.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.skipif(shutil.which("pkill") is None, reason="needs pkill")
@pytest.mark.parametrize("reached", ["task", "all"])
@pytest.mark.parametrize(
    ("number", "workers", "status", "received"),
    [
        (signal.SIGUSR1, 2, 138, ["SIGUSR1", "SIGUSR1"]),
        (signal.SIGTERM, 2, 1, ["SIGTERM", "SIGTERM"]),
        (signal.SIGUSR1, 0, 138, [""]),
    ],
)
def test_signals_are_handed_on_to_those_who_save(
    environment, tmp_path, reached, number, workers, status, received
):
    """Slurm's signals may reach the step's task alone, or all of the step's processes."""
    torchrun, folder = tmp_path / "torchrun", tmp_path / "received"
    torchrun.write_text(TORCHRUN.format(python=sys.executable))
    torchrun.chmod(0o755)
    folder.mkdir()
    environment |= {
        "VSSL_PYTHON": str(torchrun), "RECEIVED": str(folder), "WORKERS": str(workers)
    }  # fmt: skip
    with started(["bash", SCRIPT], environment) as process:
        wait_until(lambda: len(list(folder.iterdir())) == len(received), process)
        signal_step(environment, number, reached)
        _, messages = process.communicate(timeout=120)
    assert process.returncode == status, messages
    assert [path.read_text() for path in folder.iterdir()] == received
    assert (tmp_path / "calls").exists() == (status == 138)
    assert "--cpus-per-task=3" in (tmp_path / "step").read_text().split()


@pytest.mark.slow
def test_a_signal_saves_and_requeues_and_the_next_start_goes_on(environment, tiny_data, tmp_path):
    environment["VGGSOUND_ROOT"] = str(tiny_data.root)
    clip_list, last = tmp_path / "clips.txt", tmp_path / "run" / "last.pth"
    clip_list.write_text("\n".join(tiny_data.train_ids) + "\n")
    words = ("--clip-list", str(clip_list), *SMALL, "--precision", "fp32", "--epochs", "1000000")
    with started(["bash", SCRIPT, *words], environment) as process:
        wait_until(last.exists, process)
        signal_step(environment, signal.SIGUSR1, "all")
        _, messages = process.communicate(timeout=120)
    assert process.returncode == 138, messages
    assert "Saved" in messages
    assert (tmp_path / "calls").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    epochs = torch.load(last, weights_only=True)["epoch"] + 1
    finished = run("--clip-list", clip_list, "--epochs", epochs, environment=environment)
    assert finished.returncode == 0, finished.stderr
    assert torch.load(last, weights_only=True)["epoch"] == epochs


@contextmanager
def started(command, environment):
    """A process whose descendants end with the test, also those in sessions of their own."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in (*descendants(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def signal_step(environment, number, reached):
    """As Slurm does: to the task of the step, or to all of its processes; not the batch script."""
    task = int(Path(environment["STEP"]).read_text().split()[0])
    for pid in (task, *(descendants(task) if reached == "all" else ())):
        os.kill(pid, number)


def descendants(pid):
    children = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return [found for child in children for found in (int(child), *descendants(child))]
