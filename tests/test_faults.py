"""What goes wrong in the middle of a run: kills, signals, NaN, dead workers, full disks."""

import csv
import math
import multiprocessing
import os
import random
import resource
import runpy
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import ROOT, assert_same_weights, run, scoring, training, validation
from distributed_workers import narrow_encoder
from test_checkpoint import read
from torch.utils.data import get_worker_info

import main
import test as test_program
from datasets import frames
from datasets.clips import AudioVisualClips
from models import ssl_tie
from models.ssl_tie import SSLTIE
from utils.checkpoint import find_non_finite
from utils.options import run_command
from utils.training import Interruption, TrainingRun

DEADLINE = 120
"""Seconds after which something is taken not to come."""


def train(tiny_data, output, *words):
    """In this process."""
    return main.main(training(tiny_data, output, *words))


def leftovers(folder):
    return sorted(path.name for path in folder.glob(".*.partial"))


def stamp(path):
    status = path.stat() if path.exists() else None
    return status and (status.st_ino, status.st_mtime_ns)


def assert_same_state(first, second):
    assert_same_weights(first / "last.pth", second / "last.pth")
    assert read(first / "last.pth").progress == read(second / "last.pth").progress
    assert (first / "history.csv").read_text() == (second / "history.csv").read_text()


# ---------------------------------------------------------------------------------------- faults


def fail_where(owner, name, act, number=None, *, set_attribute=setattr):
    """Lets a function first do something else, at each call or at the number-th; returns its calls."""
    calls, original = [], getattr(owner, name)

    def fail(*given, **named):
        calls.append(given)
        if number is None or len(calls) == number:
            act()
        return original(*given, **named)

    set_attribute(owner, name, fail)
    return calls


def send_self(number):
    return partial(os.kill, os.getpid(), number)


def raise_bug():
    raise ZeroDivisionError("a bug")


# For ever, in processes of their own.


def with_narrow_networks():
    ssl_tie.ResNet18Encoder = narrow_encoder


def killed_at(place, number):
    with_narrow_networks()
    owner = {"augment": SSLTIE, "fsync": os, "replace": Path}[place]
    fail_where(owner, place, send_self(signal.SIGKILL), number)


def in_a_worker():
    fail_where(AudioVisualClips, "__getitem__", raise_bug)


def in_the_step():
    fail_where(SSLTIE, "forward", raise_bug)


def in_validation():
    fail_where(SSLTIE, "localise", raise_bug)


def with_a_full_disk_in_the_second_epoch():
    with_narrow_networks()
    limits = (100, 100)
    fail_where(TrainingRun, "finish_epoch", partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits), 2)


# ------------------------------------------------------------------------------ killed processes


def run_as_main(words, messages, fault):
    """main.py in a process of its own, after a change; what it says goes to a file."""
    with messages.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of its workers, as for main.py itself
    fault()
    sys.exit(main.main(words))


@pytest.fixture(scope="module")
def processes():
    """Starts processes within a second: they are forked from one that has imported main."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["main", "test_faults"])
        yield context


@pytest.fixture
def start(processes, tmp_path):
    """Arguments of main.py and a fault -> its process; all of them are ended with the test."""
    started = []

    def begin(words, fault):
        process = processes.Process(target=run_as_main, args=(words, tmp_path / "messages", fault))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def wait_for(condition, process):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.is_alive(), process.exitcode
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_one(tiny_data, tmp_path, start):
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    last, words = killed / "last.pth", ("--batch-size", 2, "--epochs", 4, *validation(tiny_data))
    assert train(tiny_data, whole, *words) == 0
    # An epoch writes history.csv, best.pth if it is the best, and last.pth, after options.json at the start.
    moments = [("fsync", 4), ("replace", 4), ("fsync", 3)]
    moments += [(rng.choice(["augment", "fsync", "replace"]), rng.randint(2, 6)) for _ in range(4)]
    torn = 0
    for place, number in moments:
        resume = ["--resume"] if last.exists() else []
        process = start(training(tiny_data, killed, *words, *resume), partial(killed_at, place, number))
        process.join(DEADLINE)
        assert process.exitcode in (-signal.SIGKILL, 0), (tmp_path / "messages").read_text()
        torn += bool(leftovers(killed))
        assert not last.exists() or find_non_finite(read(last).state_dict) == []
    assert torn >= 3
    (killed / ".mine.partial").touch()
    assert train(tiny_data, killed, *words, *(["--resume"] if last.exists() else [])) == 0
    assert leftovers(killed) == [".mine.partial"]
    assert_same_state(whole, killed)
    assert read(whole / "best.pth").epoch == read(killed / "best.pth").epoch
    history = [int(row["epoch"]) for row in csv.DictReader((killed / "history.csv").open())]
    assert history == [1, 2, 3, 4]


@pytest.mark.usefixtures("narrow")
def test_two_runs_in_one_folder(tiny_data, tmp_path, start, caplog):
    output = tmp_path / "run"
    words = training(tiny_data, output, "--epochs", 10**6, "--workers", 2)
    first = start(words, with_narrow_networks)
    wait_for((output / "last.pth").exists, first)
    options = (output / "options.json").read_bytes()
    for more in ([], ["--resume"]):
        caplog.clear()
        assert main.main([*words, *more]) == 2
        for part in ("Another process", str(output), f"process {first.pid} on ", "--output"):
            assert part in caplog.text
    assert main.main([*words, "--dry-run"]) == 0
    assert (output / "options.json").read_bytes() == options
    before = stamp(output / "last.pth")
    wait_for(lambda: stamp(output / "last.pth") != before, first)  # unharmed

    # Decoding processes outlive a killed run for seconds; the lock must not.
    first.kill()
    first.join()
    epochs = read(output / "last.pth").epoch + 1
    assert train(tiny_data, output, "--epochs", epochs, "--resume", "--workers", 2) == 0
    assert read(output / "last.pth").epoch == epochs


def test_a_run_that_began_while_another_started_up_is_noticed(tmp_path):
    late = TrainingRun(tmp_path / "run", resume=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").write_bytes(b"of the other")
    with pytest.raises(FileExistsError, match="a run lives in this folder"):
        late.start({}, missing=(), steps_per_epoch=1, diagnose=lambda _: None, optimizer=None)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "last.pth"]


# --------------------------------------------------------------------------------------- signals


@contextmanager
def signal_at(monkeypatch, owner, name, number, sent):
    """Sends this process a signal once, in the middle of the number-th call of a function."""
    with monkeypatch.context() as patch:
        calls = fail_where(owner, name, send_self(sent), number, set_attribute=patch.setattr)
        yield
    assert len(calls) >= number


@pytest.mark.usefixtures("narrow")
def test_signals_stop_at_the_exact_batch_and_resuming_gives_the_same_bits(tiny_data, tmp_path, monkeypatch):
    words = ("--epochs", 2, "--batch-size", 2, *validation(tiny_data))
    whole = tmp_path / "whole"
    assert train(tiny_data, whole, *words) == 0
    moments = [
        (signal.SIGTERM, (SSLTIE, "augment", 2), (0, 2)),
        (signal.SIGUSR1, (SSLTIE, "augment", 7), (1, 3)),
        (signal.SIGINT, (SSLTIE, "augment", 4), (0, 4)),  # the epoch's last: before validation
        (signal.SIGTERM, (SSLTIE, "prepare", 2), (0, 4)),  # during validation
        (signal.SIGUSR1, (TrainingRun, "finish_epoch", 1), (1, 1)),  # while an epoch is closed
    ]
    for index, (sent, where, (epoch, step)) in enumerate(moments):
        stopped = tmp_path / f"stopped_{index}"
        with signal_at(monkeypatch, *where, sent):
            assert train(tiny_data, stopped, *words) == 128 + sent
        checkpoint = read(stopped / "last.pth")
        assert (checkpoint.epoch, checkpoint.step) == (epoch, step), where
        assert train(tiny_data, stopped, *words, "--resume") == 0
        assert_same_state(whole, stopped)


@pytest.mark.usefixtures("narrow")
def test_a_signal_before_a_validation_clip_could_be_read_keeps_the_epoch(tiny_data, tmp_path, monkeypatch):
    for clip_id in tiny_data.test_ids[:2]:
        path = tiny_data.root / "VGGSound_test" / "frame" / f"{clip_id}.jpg"
        path.write_bytes(path.read_bytes()[:700])
    words = ("--epochs", 1, "--batch-size", 2, *validation(tiny_data))
    with signal_at(monkeypatch, main, "validate", 1, signal.SIGTERM):
        assert train(tiny_data, tmp_path / "run", *words) == 128 + signal.SIGTERM
    assert read(tmp_path / "run" / "last.pth").step == 4


@pytest.mark.usefixtures("narrow")
def test_a_run_is_not_gone_on_with_on_other_validation_clips(tiny_data, tmp_path, caplog):
    output, words = tmp_path / "run", validation(tiny_data)
    assert train(tiny_data, output, "--epochs", 1, *words) == 0
    (tiny_data.root / "VGGSound_test" / "frame" / "test_5.jpg").unlink()
    assert train(tiny_data, output, "--epochs", 2, "--resume", *words) == 2
    assert "was trained with other settings: the validation clips" in caplog.text


def test_a_checkpoint_knows_the_broken_clips_of_all_processes(tmp_path, monkeypatch):
    run = TrainingRun(tmp_path / "run", resume=False)
    run.broken = {"a": "cut off"}
    monkeypatch.setattr("utils.training.gather_objects", lambda own: [*own, {"b": "no JPEG"}])
    assert run.progress()["broken"] == {"a": "cut off", "b": "no JPEG"}


@pytest.mark.usefixtures("narrow")
def test_a_signal_while_the_checkpoint_is_written_lets_it_finish(tiny_data, tmp_path, monkeypatch, caplog):
    output = tmp_path / "run"
    assert train(tiny_data, output, "--epochs", 1) == 0
    before, words = stamp(output / "last.pth"), ("--epochs", 3, "--resume")

    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:  # options.json, history.csv, last.pth
        fail_where(os, "fsync", twice, 3, set_attribute=patch.setattr)
        assert train(tiny_data, output, *words) == 130  # the second Ctrl-C means now
    assert "Stopped." in caplog.text
    assert stamp(output / "last.pth") == before
    assert not leftovers(output)
    with signal_at(monkeypatch, os, "fsync", 3, signal.SIGTERM):
        assert train(tiny_data, output, *words) == 128 + signal.SIGTERM
    assert (read(output / "last.pth").epoch, stamp(output / "last.pth") == before) == (2, False)


def test_a_signal_in_the_middle_of_a_message_is_no_error(capfd, monkeypatch):
    """Python refuses to write to a file from a handler that interrupted writing to it."""
    monkeypatch.setattr(sys, "stderr", None)
    with Interruption() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() == signal.SIGUSR1
    assert "SIGUSR1: finishing the step" in capfd.readouterr().err


def test_ctrl_c_during_start_up(tiny_data, tmp_path, monkeypatch, caplog):
    with signal_at(monkeypatch, main, "build_clips", 1, signal.SIGINT):
        assert train(tiny_data, tmp_path / "run") == 130
    assert "Stopped." in caplog.text
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- NaN


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "number", "message"),
    [
        (SSLTIE, "augment", 6, "The loss is no longer a finite number: epoch 2, step 2, clips "),
        # As after a finite loss with a gradient that is none, in the last step of an epoch.
        (TrainingRun, "note_step", 8, "The weights are no longer finite numbers after 1 epochs and 4 steps"),
    ],
)
def test_what_is_not_finite_is_never_saved(
    tiny_data, tmp_path, monkeypatch, caplog, owner, name, number, message, stopped
):
    def break_weights():
        with torch.no_grad():
            next(models[-1][0].parameters()).fill_(math.nan)
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    models, output = [], tmp_path / "run"
    build = main.build_model
    monkeypatch.setattr(main, "build_model", lambda *given: models.append(build(*given)) or models[-1])
    calls = fail_where(owner, name, break_weights, number, set_attribute=monkeypatch.setattr)
    assert train(tiny_data, output, "--epochs", 3, "--batch-size", 2) == 1
    if owner is SSLTIE:
        message += ", ".join(calls[5][1].clip_ids)
    assert message in caplog.text
    assert message in (output / "log.txt").read_text()
    checkpoint = read(output / "last.pth")
    assert (checkpoint.epoch, checkpoint.step) == (1, 0)
    assert not find_non_finite(checkpoint.state_dict)
    assert len((output / "history.csv").read_text().splitlines()) == 2  # the second is not finished


@pytest.mark.slow
def test_two_processes_stop_together_at_a_nan_loss(tiny_data, tmp_path):
    output = tmp_path / "run"
    finished = run("main.py", *training(tiny_data, output, "--learning-rate", 1e30), processes=2)
    assert finished.returncode == 1
    assert finished.stderr.count("epoch 1, step 2, clips train_") == 2
    assert not (output / "last.pth").exists()


# ------------------------------------------------------------------- unforeseen errors, dead workers


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bug", [in_a_worker, in_the_step, in_validation])
def test_a_bug_ends_the_program_at_once(tiny_data, tmp_path, start, bug, workers):
    words = (*validation(tiny_data), "--workers", workers, "--batch-size", 2)
    process = start(training(tiny_data, tmp_path / "run", *words), bug)
    process.join(DEADLINE)
    messages = (tmp_path / "messages").read_text()
    assert process.exitcode == 1, messages
    assert "Traceback" in messages and "ZeroDivisionError" in messages and "a bug" in messages
    assert "Ended by ZeroDivisionError" in (tmp_path / "run" / "log.txt").read_text()


class DecoderError(Exception):
    """Of a type that nobody has foreseen, and that cannot be sent between processes."""

    def __init__(self, path):
        super().__init__(lambda: path)


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_decoder_raises_is_a_broken_clip(
    tiny_data, checkpoint, tmp_path, workers, monkeypatch, caplog
):
    def strange(path, *given):
        if path.stem == "test_3":
            raise DecoderError(path)
        return opened(path, *given)

    opened = frames.Image.open
    monkeypatch.setattr(frames.Image, "open", strange)
    words = scoring(tiny_data, checkpoint, tmp_path, "--workers", workers, "--allow-missing")
    assert test_program.main(words) == 0
    assert "test_3.jpg cannot be read: DecoderError" in caplog.text and "Traceback" not in caplog.text


def run_faulty(fault, program, *words, processes=1):
    """A program with a fault, in the second of two processes, or in the only one: see the last lines."""
    return run(__file__, fault, ROOT / program, *words, processes=processes, timeout=DEADLINE)


@pytest.mark.parametrize(
    ("program", "bug", "processes"),
    [
        ("test.py", "in_a_worker", 1),
        ("main.py", "in_the_step", 2),
        pytest.param("test.py", "in_validation", 2, marks=pytest.mark.slow),
    ],
)
def test_a_bug_ends_scoring_and_other_processes(tiny_data, checkpoint, tmp_path, program, bug, processes):
    words = training(tiny_data, tmp_path / "run", "--workers", 1)
    if program == "test.py":
        words = scoring(tiny_data, checkpoint, tmp_path / "results", "--batch-size", 2, "--workers", 2)
    finished = run_faulty(bug, program, *words, processes=processes)
    assert finished.returncode == 1
    assert "ZeroDivisionError: a bug" in finished.stderr
    assert not (tmp_path / "run" / "last.pth").exists()
    assert not (tmp_path / "results" / "summary.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nunable to write to shared memory"),
        MemoryError(),
        None,
    ],
)
def test_too_little_memory_names_the_options_that_need_less(error, caplog):
    def command():
        if error is None:
            return torch.empty(10**15)
        raise error

    assert run_command(command) == 2
    for part in ("Memory ran out", "--batch-size", "--workers", "--precision"):
        assert part in caplog.text
    assert "More lines" not in caplog.text


def make_deadly(monkeypatch, clip_id, number):
    """Decoding this clip kills, in workers only."""

    def getitem(clips, request):
        if get_worker_info() and clips.clips[request].clip_id == clip_id:
            os.kill(os.getpid(), number)
        return getitem_really(clips, request)

    getitem_really = AudioVisualClips.__getitem__
    monkeypatch.setattr(AudioVisualClips, "__getitem__", getitem)


@pytest.mark.usefixtures("narrow")
def test_a_dead_worker_in_training_is_reported(tiny_data, tmp_path, monkeypatch, caplog, capfd):
    output = tmp_path / "run"
    words = ("--workers", 2, "--batch-size", 2)
    assert train(tiny_data, output, *words, "--epochs", 1) == 0
    before = stamp(output / "last.pth")
    make_deadly(monkeypatch, "train_3", signal.SIGKILL)
    assert train(tiny_data, output, *words, "--epochs", 9, "--resume") == 2
    for part in ("A decoding process died", "killed by signal: Killed", "--workers"):
        assert part in caplog.text
    assert "DataLoader worker" in (output / "log.txt").read_text()
    assert stamp(output / "last.pth") == before
    assert "Traceback" not in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_a_dead_worker_in_test_is_reported(tiny_data, checkpoint, tmp_path, monkeypatch, caplog):
    make_deadly(monkeypatch, "test_4", signal.SIGSEGV)
    words = ("--batch-size", 2, "--workers", 2)
    assert test_program.main(scoring(tiny_data, checkpoint, tmp_path / "results", *words)) == 2
    assert "A decoding process died" in caplog.text and "Segmentation fault" in caplog.text
    assert not (tmp_path / "results" / "summary.json").exists()


# ------------------------------------------------------------------------------ full disks, folders


@contextmanager
def largest_file(num_bytes):
    """No file may become larger, as if the disk were full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.usefixtures("narrow")
def test_a_full_disk_keeps_the_last_checkpoint(tiny_data, tmp_path, caplog):
    output = tmp_path / "run"
    assert train(tiny_data, output, "--epochs", 1) == 0
    before, words = stamp(output / "last.pth"), ("--epochs", 2, "--resume")
    with largest_file((output / "last.pth").stat().st_size // 2):
        assert train(tiny_data, output, *words) == 2
    for part in ("last.pth does not fit", "MB are free", "unchanged", str(output / "last.pth")):
        assert part in caplog.text
    assert stamp(output / "last.pth") == before
    assert not leftovers(output)
    assert train(tiny_data, output, *words) == 0
    assert read(output / "last.pth").epoch == 2


def test_a_disk_so_full_that_no_log_can_be_written(tiny_data, tmp_path):
    output, fault = tmp_path / "run", "with_a_full_disk_in_the_second_epoch"
    finished = run_faulty(fault, "main.py", *training(tiny_data, output, "--epochs", 500))
    assert finished.returncode == 2, finished.stderr
    assert "File too large" in finished.stderr  # found by TensorBoard or by history.csv
    assert "Traceback" not in finished.stderr and "Logging error" not in finished.stderr, finished.stderr
    assert read(output / "last.pth").epoch == 1
    assert not leftovers(output)


def test_an_output_that_cannot_be_written_is_refused_at_once(tiny_data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _: str(path) != str(tmp_path))  # root may all
    assert train(tiny_data, tmp_path / "no" / "run") == 2
    assert f"--output {tmp_path / 'no' / 'run'}: nothing can be written" in caplog.text
    (tmp_path / "file").write_text("mine")
    assert train(tiny_data, tmp_path / "file" / "below") == 2
    assert f"{tmp_path / 'file'} is a file" in caplog.text
    assert "checking files" not in caplog.text


if __name__ == "__main__":
    fault, program = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    if os.environ.get("RANK", "1") == "1":
        globals()[fault]()
    runpy.run_path(program, run_name="__main__")
