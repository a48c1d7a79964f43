"""What goes wrong in the middle of a run: kills, signals, NaN, dead workers, full disks."""

import csv
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, torchrun
from distributed_workers import narrow_encoder
from test_data_parallel import run_parallel
from torch.utils.data import get_worker_info

import main
from datasets.clips import AudioVisualClips
from models.ssl_tie import SSLTIE
from utils.checkpoint import find_non_finite, parse_checkpoint, read_checkpoint_file
from utils.files import lock_folder, write_atomically
from utils.training import Interruption, TrainingRun, run_command

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "--frame-size 64 --window-seconds 1 --mel-bins 32 --hop-length 400 --time-mask 10 "
    "--frequency-mask 8 --batch-size 4 --workers 0 --device cpu"
).split()
DEADLINE = 120
"""Seconds after which something is taken not to come."""


def arguments(tiny_data, output, *more):
    """Of main.py."""
    return list(map(str, [
        "ssl_tie", "--train-set", "vggsound", "--data-root", tiny_data.root, "--output", output,
        *SMALL, *more,
    ]))  # fmt: skip


def validation(tiny_data):
    return ("--validation-benchmark", "vgg_ss", "--validation-root", tiny_data.root)


def read(path):
    return parse_checkpoint(read_checkpoint_file(path), path)


build_wide = SSLTIE.__init__


def build_narrow(model, *given, **named):
    """SSL-TIE with narrow networks, whose checkpoints are small."""
    build_wide(model, *given, **named)
    model.imgnet = narrow_encoder(3)
    model.audnet = narrow_encoder(1, passes=model.audnet.bn1.passes)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(SSLTIE, "__init__", build_narrow)


def with_narrow_networks():
    """For ever, in a process of its own."""
    SSLTIE.__init__ = build_narrow


def leftovers(folder):
    return sorted(path.name for path in folder.glob(".*.partial"))


def assert_same_state(first, second):
    one, two = read(first / "last.pth"), read(second / "last.pth")
    assert one.state_dict.keys() == two.state_dict.keys()
    for name, tensor in one.state_dict.items():
        assert torch.equal(tensor, two.state_dict[name]), name
    for number, entry in one.optimizer["state"].items():
        for name, tensor in entry.items():
            assert torch.equal(tensor, two.optimizer["state"][number][name]), (number, name)
    assert one.progress == two.progress
    assert (first / "history.csv").read_text() == (second / "history.csv").read_text()


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


def nothing():
    """No change."""


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
    """Arguments of main.py -> its process; all of them are ended with the test."""
    started = []

    def begin(words, fault=nothing):
        process = processes.Process(target=run_as_main, args=(words, tmp_path / "messages", fault))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def kill(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def wait_for(condition, process):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.is_alive(), process.exitcode
        assert time.monotonic() < end
        time.sleep(0.002)


def stamp(path):
    status = path.stat() if path.exists() else None
    return status and (status.st_ino, status.st_mtime_ns)


def test_kill_9_at_any_moment_leaves_a_loadable_checkpoint(tiny_data, tmp_path, start):
    output, rng = tmp_path / "run", random.Random(0)
    words = arguments(tiny_data, output, "--epochs", 500)
    last, epoch, torn = output / "last.pth", 0, 0
    for number in range(4):
        before, found = stamp(last), leftovers(output)
        process = start([*words, "--resume"] if before else words)
        wait_for(lambda: stamp(last) != before, process)  # noqa: B023 - called at once
        assert not set(found) & set(leftovers(output))
        if number % 2:  # in the middle of writing
            share = 250e6 * rng.random()
            wait_for(lambda: any(size > share for size in sizes(output)), process)  # noqa: B023
        else:
            time.sleep(1.5 * rng.random())
        kill(process)
        torn += bool(leftovers(output))
        checkpoint = read(last)
        assert checkpoint.epoch > epoch
        epoch = checkpoint.epoch
    assert torn, "the writing was never hit"
    process = start(arguments(tiny_data, output, "--epochs", epoch + 1, "--resume"))
    process.join(DEADLINE)
    assert process.exitcode == 0, (tmp_path / "messages").read_text()
    assert not leftovers(output)
    history = [int(row["epoch"]) for row in csv.DictReader((output / "history.csv").open())]
    assert history == list(range(1, epoch + 2))


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_weights_of_an_undisturbed_one(tiny_data, tmp_path, start):
    killed, whole, rng = tmp_path / "killed", tmp_path / "whole", random.Random(0)
    last, more = killed / "last.pth", ("--batch-size", 2, *validation(tiny_data))
    for _ in range(3):
        before = stamp(last)
        resume = ["--resume"] if before else []
        process = start(arguments(tiny_data, killed, *more, "--epochs", 10**6, *resume), with_narrow_networks)
        wait_for(lambda: stamp(last) != before, process)  # noqa: B023 - called at once
        time.sleep(3 * rng.random())
        kill(process)
    epochs = ("--epochs", read(last).epoch + 1)
    for words in ((killed, *more, *epochs, "--resume"), (whole, *more, *epochs)):
        process = start(arguments(tiny_data, *words), with_narrow_networks)
        process.join(5 * DEADLINE)
        assert process.exitcode == 0, (tmp_path / "messages").read_text()
    assert_same_state(whole, killed)


def sizes(output):
    """Of what is being written; it may be gone by the time it is looked at."""
    for path in output.glob(".last.pth.*.partial"):
        try:
            yield path.stat().st_size
        except FileNotFoundError:
            continue


def test_two_runs_in_one_folder(tiny_data, tmp_path, start, caplog, capsys):
    output = tmp_path / "run"
    words = arguments(tiny_data, output, "--epochs", 500, "--workers", 2)
    first = start(words)
    wait_for((output / "last.pth").exists, first)
    options = (output / "options.json").read_bytes()
    for more in ([], ["--resume"]):
        caplog.clear()
        assert main.main([*words, *more]) == 2
        for part in ("Another process", str(output), f"process {first.pid} on ", "--output"):
            assert part in caplog.text
    assert main.main([*words, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["output"] == str(output)
    assert (output / "options.json").read_bytes() == options
    before = stamp(output / "last.pth")
    wait_for(lambda: stamp(output / "last.pth") != before, first)  # unharmed

    # Decoding processes outlive a killed run for seconds; the lock must not.
    kill(first)
    checkpoint = read(output / "last.pth")
    words = arguments(tiny_data, output, "--epochs", checkpoint.epoch + 1, "--resume")
    assert main.main(words) == 0
    assert read(output / "last.pth").epoch == checkpoint.epoch + 1


def test_a_run_that_began_while_another_started_up_is_noticed(tmp_path):
    late = TrainingRun(tmp_path / "run", resume=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").write_bytes(b"of the other")
    with pytest.raises(FileExistsError, match="a run lives in this folder"):
        late.start({}, missing=(), steps_per_epoch=1, diagnose=lambda _: None)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "last.pth"]


@pytest.mark.usefixtures("narrow")
def test_what_a_killed_run_was_writing_is_removed(tiny_data, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    for name in (".last.pth.12345.partial", ".mine.partial"):
        (output / name).touch()
    assert main.main(arguments(tiny_data, output, "--epochs", 1)) == 0
    assert leftovers(output) == [".mine.partial"]


@pytest.mark.usefixtures("narrow")
def test_a_kill_between_the_two_checkpoints_loses_no_best_epoch(tiny_data, tmp_path, monkeypatch):
    """last.pth knows the best score, so it must not be there before best.pth is."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ("--epochs", 1, *validation(tiny_data))
    assert main.main(arguments(tiny_data, whole, *words)) == 0
    with monkeypatch.context() as patch:
        written = []

        def write_one(path, checkpoint):
            if written:
                raise KeyboardInterrupt
            written.append(path)
            save(path, checkpoint)

        save = sys.modules["utils.training"].save_checkpoint
        patch.setattr("utils.training.save_checkpoint", write_one)
        assert main.main(arguments(tiny_data, killed, *words)) == 130
    resume = ["--resume"] if (killed / "last.pth").exists() else []
    assert main.main(arguments(tiny_data, killed, *words, *resume)) == 0
    assert (killed / "best.pth").exists()
    assert_same_state(whole, killed)


# --------------------------------------------------------------------------------------- signals


@contextmanager
def signal_at(monkeypatch, owner, name, number, sent):
    """Sends this process a signal once, in the middle of the number-th call of a function."""
    calls = []

    def and_signal(*given, **named):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), sent)
        return original(*given, **named)

    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, and_signal)
        yield
    assert len(calls) >= number


@pytest.mark.usefixtures("narrow")
def test_signals_stop_at_the_exact_batch_and_resuming_gives_the_same_bits(tiny_data, tmp_path, monkeypatch):
    words = ("--epochs", 2, "--batch-size", 2, *validation(tiny_data))
    whole = tmp_path / "whole"
    assert main.main(arguments(tiny_data, whole, *words)) == 0
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
            assert main.main(arguments(tiny_data, stopped, *words)) == 128 + sent
        checkpoint = read(stopped / "last.pth")
        assert (checkpoint.epoch, checkpoint.step) == (epoch, step), where
        assert main.main(arguments(tiny_data, stopped, *words, "--resume")) == 0
        assert_same_state(whole, stopped)


@pytest.mark.usefixtures("narrow")
def test_a_signal_while_the_checkpoint_is_written_lets_it_finish(tiny_data, tmp_path, monkeypatch, caplog):
    output = tmp_path / "run"
    assert main.main(arguments(tiny_data, output, "--epochs", 1)) == 0
    before = stamp(output / "last.pth")
    words = arguments(tiny_data, output, "--epochs", 3, "--resume")

    def while_saving(*signals):
        def fsync(descriptor):
            fsync_really(descriptor)
            if "last.pth" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                for sent in signals:
                    os.kill(os.getpid(), sent)

        return fsync

    fsync_really = os.fsync
    monkeypatch.setattr("os.fsync", while_saving(signal.SIGINT, signal.SIGINT))
    assert main.main(words) == 130  # the second Ctrl-C means now
    assert "Stopped." in caplog.text
    assert stamp(output / "last.pth") == before
    assert not leftovers(output)
    monkeypatch.setattr("os.fsync", while_saving(signal.SIGTERM))
    assert main.main(words) == 128 + signal.SIGTERM
    assert (read(output / "last.pth").epoch, stamp(output / "last.pth") == before) == (2, False)


def test_a_signal_in_the_middle_of_a_message_is_no_error(capfd):
    """Python refuses to write to a file from a handler that interrupted writing to it."""
    with Interruption() as stop:

        class Stream:
            def write(self, text):
                os.kill(os.getpid(), signal.SIGTERM)
                raise RuntimeError(f"reentrant call: {text}")

            def flush(self):
                pass

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", Stream())
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() == signal.SIGUSR1
    assert "SIGUSR1: finishing the step" in capfd.readouterr().err


def test_ctrl_c_during_start_up(tiny_data, tmp_path, monkeypatch, caplog):
    with signal_at(monkeypatch, sys.modules["datasets.benchmarks"], "find_files", 1, signal.SIGINT):
        assert main.main(arguments(tiny_data, tmp_path / "run")) == 130
    assert "Stopped." in caplog.text
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- NaN


@pytest.mark.usefixtures("narrow")
def test_a_nan_loss_stops_with_step_and_clips(tiny_data, tmp_path, monkeypatch, caplog):
    seen = []

    def augment(model, batch, seed, **named):
        seen.append(batch.clip_ids)
        if len(seen) == 6:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)
        return augment_really(model, batch, seed, **named)

    augment_really = SSLTIE.augment
    monkeypatch.setattr(SSLTIE, "augment", augment)
    output = tmp_path / "run"
    words = ("--epochs", 3, "--batch-size", 2)
    assert main.main(arguments(tiny_data, output, *words)) == 1
    message = f"epoch 2, step 2, clips {', '.join(seen[5])}"
    assert message in caplog.text
    assert str(output / "diagnosis.json") in caplog.text
    assert message in (output / "log.txt").read_text()
    diagnosis = json.loads((output / "diagnosis.json").read_text())
    assert (diagnosis["epoch"], diagnosis["first_bad_step"]) == (2, 2)
    (steps,) = diagnosis["steps_by_process"]
    assert [(row["step"], tuple(row["clips"])) for row in steps] == [(1, seen[4]), (2, seen[5])]
    assert math.isfinite(float(steps[0]["loss"])) and steps[1]["loss"] == "nan"
    assert list(diagnosis["mean_losses"]) == ["1", "2", "3", "4"]
    checkpoint = read(output / "last.pth")
    assert (checkpoint.epoch, checkpoint.step) == (1, 0)
    assert not find_non_finite(checkpoint.state_dict)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("stopped", [False, True])
def test_weights_that_the_last_step_broke_are_not_saved(tiny_data, tmp_path, monkeypatch, caplog, stopped):
    seen = []

    def augment(model, batch, seed, **named):
        models.append(model)
        return augment_really(model, batch, seed, **named)

    def note_step(run, loss, terms, clip_ids):
        seen.append(clip_ids)
        if len(seen) == 8:
            with torch.no_grad():  # as after a finite loss with a gradient that is none
                next(models[-1].parameters()).fill_(math.nan)
            if stopped:
                os.kill(os.getpid(), signal.SIGTERM)
        note_really(run, loss, terms, clip_ids)

    models = []
    augment_really, note_really = SSLTIE.augment, TrainingRun.note_step
    monkeypatch.setattr(SSLTIE, "augment", augment)
    monkeypatch.setattr(TrainingRun, "note_step", note_step)
    output = tmp_path / "run"
    assert main.main(arguments(tiny_data, output, "--epochs", 2, "--batch-size", 2)) == 1
    assert len(seen) == 8
    assert "The weights are no longer finite numbers" in caplog.text
    checkpoint = read(output / "last.pth")
    assert (checkpoint.epoch, checkpoint.step) == (1, 0)
    assert not find_non_finite(checkpoint.state_dict)
    assert len((output / "history.csv").read_text().splitlines()) == 2  # the second is not finished


@pytest.mark.usefixtures("narrow")
def test_a_signal_after_a_nan_loss_saves_nothing(tiny_data, tmp_path, monkeypatch):
    def augment(model, batch, seed, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        return augment_really(model, batch, seed, **named)

    augment_really = SSLTIE.augment
    monkeypatch.setattr(SSLTIE, "augment", augment)
    output = tmp_path / "run"
    assert main.main(arguments(tiny_data, output)) == 1
    assert not (output / "last.pth").exists()
    assert json.loads((output / "diagnosis.json").read_text())["first_bad_step"] == 1


@pytest.mark.slow
def test_two_processes_stop_together_at_a_nan_loss(tiny_data, tmp_path):
    output = tmp_path / "run"
    words = arguments(tiny_data, output, "--learning-rate", 1e30)
    finished = run_parallel(2, "main.py", *words)
    assert finished.returncode == 1
    assert finished.stderr.count("epoch 1, step 2, clips train_") == 2
    diagnosis = json.loads((output / "diagnosis.json").read_text())
    second = [steps[1] for steps in diagnosis["steps_by_process"]]
    assert {step["loss"] for step in second} == {"nan"}
    assert len({clip for step in second for clip in step["clips"]}) == 4
    assert not (output / "last.pth").exists()


# ------------------------------------------------------------------- unforeseen errors, dead workers


def fail_where(owner, name, act):
    """Makes a method do something else; for ever, in a process of its own."""

    def fail(*given, **named):
        act()
        return original(*given, **named)

    original = getattr(owner, name)
    setattr(owner, name, fail)


def raise_bug():
    raise ZeroDivisionError("a bug")


def in_a_worker():
    fail_where(AudioVisualClips, "__getitem__", raise_bug)


def in_the_step():
    fail_where(SSLTIE, "forward", raise_bug)


def in_validation():
    fail_where(SSLTIE, "localise", raise_bug)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bug", [in_a_worker, in_the_step, in_validation])
def test_a_bug_ends_the_program_at_once(tiny_data, tmp_path, start, bug, workers):
    words = arguments(tiny_data, tmp_path / "run", *validation(tiny_data), "--workers", workers)
    process = start([*words, "--batch-size", "2"], bug)
    process.join(DEADLINE)
    messages = (tmp_path / "messages").read_text()
    assert process.exitcode == 1, messages
    assert "Traceback" in messages and "ZeroDivisionError" in messages and "a bug" in messages
    assert "Ended by ZeroDivisionError" in (tmp_path / "run" / "log.txt").read_text()


FAULTY = """
import os, runpy, sys
import test_faults

place, program = sys.argv[1:3]
sys.argv = sys.argv[2:]
if os.environ.get("RANK", "1") == "1":
    getattr(test_faults, place)()
runpy.run_path(program, run_name="__main__")
"""


def run_faulty(tmp_path, processes, place, program, *words):
    """A program with a bug, in the second of two processes, or in the only one."""
    faulty = tmp_path / "faulty.py"
    faulty.write_text(FAULTY)
    words = (place, ROOT / program, *words)
    command = torchrun(processes, faulty, *words) if processes > 1 else [sys.executable, faulty, *words]
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        check=False,
        text=True,
        env=environment,
        timeout=DEADLINE,
    )


def scoring(tiny_data, checkpoint, tmp_path, *more):
    return (
        "localisation", "--checkpoint", checkpoint, "--benchmark", "vgg_ss", "--data-root", tiny_data.root,
        "--output", tmp_path / "results", "--device", "cpu", "--batch-size", 2, *more,
    )  # fmt: skip


def test_a_bug_ends_scoring_at_once(tiny_data, checkpoint, tmp_path):
    words = scoring(tiny_data, checkpoint, tmp_path, "--workers", 2)
    finished = run_faulty(tmp_path, 1, "in_a_worker", "test.py", *words)
    assert finished.returncode == 1
    assert "ZeroDivisionError" in finished.stderr
    assert not (tmp_path / "results" / "summary.json").exists()


@pytest.mark.parametrize("program", ["main.py", pytest.param("test.py", marks=pytest.mark.slow)])
def test_a_bug_in_one_process_ends_the_others(tiny_data, checkpoint, tmp_path, program):
    if program == "main.py":
        words = arguments(tiny_data, tmp_path / "run", "--workers", 1)
        finished = run_faulty(tmp_path, 2, "in_the_step", program, *words)
    else:
        words = scoring(tiny_data, checkpoint, tmp_path, "--workers", 1)
        finished = run_faulty(tmp_path, 2, "in_validation", program, *words)
    assert finished.returncode == 1
    assert "ZeroDivisionError: a bug" in finished.stderr
    assert not (tmp_path / "run" / "last.pth").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nunable to write to shared memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_names_the_options_that_need_less(error, caplog):
    def command():
        raise error

    assert run_command(command) == 2
    for part in ("Memory ran out", "--batch-size", "--workers", "--precision"):
        assert part in caplog.text
    assert "More lines" not in caplog.text


def test_memory_that_is_not_there_is_no_bug(monkeypatch, tiny_data, tmp_path, caplog):
    monkeypatch.setattr(SSLTIE, "forward", lambda *_, **__: torch.empty(10**15))
    assert main.main(arguments(tiny_data, tmp_path / "run")) == 2
    assert "Memory ran out" in caplog.text


@pytest.fixture
def deadly(monkeypatch):
    """Clip id, what to do -> decoding this clip does it, in workers only."""

    def make_deadly(clip_id, act):
        def getitem(clips, request):
            if get_worker_info() and clips.clips[request].clip_id == clip_id:
                act()
            return getitem_really(clips, request)

        monkeypatch.setattr(AudioVisualClips, "__getitem__", getitem)

    getitem_really = AudioVisualClips.__getitem__
    return make_deadly


def signal_self(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.usefixtures("narrow")
def test_a_dead_worker_in_training_is_reported(tiny_data, tmp_path, deadly, caplog, capfd):
    output = tmp_path / "run"
    words = ("--workers", 2, "--batch-size", 2)
    assert main.main(arguments(tiny_data, output, *words, "--epochs", 1)) == 0
    before = stamp(output / "last.pth")
    deadly("train_3", signal_self(signal.SIGKILL))
    assert main.main(arguments(tiny_data, output, *words, "--epochs", 9, "--resume")) == 2
    for part in ("A decoding process died", "killed by signal: Killed", "--workers"):
        assert part in caplog.text
    assert "DataLoader worker" in (output / "log.txt").read_text()
    assert stamp(output / "last.pth") == before
    assert "Traceback" not in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_a_dead_worker_in_test_is_reported(tiny_data, checkpoint, tmp_path, deadly, caplog, testing_program):
    deadly("test_4", signal_self(signal.SIGSEGV))
    words = scoring(tiny_data, checkpoint, tmp_path, "--workers", 2)
    assert testing_program.main(list(map(str, words))) == 2
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
    assert main.main(arguments(tiny_data, output, "--epochs", 1)) == 0
    before, words = stamp(output / "last.pth"), ("--epochs", 2, "--resume")
    size = (output / "last.pth").stat().st_size
    with largest_file(size // 2):
        assert main.main(arguments(tiny_data, output, *words)) == 2
    for part in ("last.pth does not fit", "MB are free", "unchanged", str(output / "last.pth")):
        assert part in caplog.text
    assert stamp(output / "last.pth") == before
    assert not leftovers(output)
    assert main.main(arguments(tiny_data, output, *words)) == 0
    assert read(output / "last.pth").epoch == 2


def test_a_disk_so_full_that_no_log_can_be_written(tiny_data, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *arguments(tiny_data, output, "--epochs", 500)],
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    try:
        while process.poll() is None and not (output / "last.pth").exists():
            time.sleep(0.01)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
        _, messages = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 2, messages
    assert "File too large" in messages  # found by TensorBoard or by the checkpoint
    assert "Traceback" not in messages, messages
    assert "Logging error" not in messages
    assert read(output / "last.pth").epoch > 0
    assert not leftovers(output)


def test_other_errors_of_the_disk_keep_their_words(tmp_path):
    with pytest.raises(IsADirectoryError):
        (tmp_path / "file").mkdir()
        write_atomically(tmp_path / "file", b"content")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_that_is_a_file_is_refused(tiny_data, tmp_path, caplog, name):
    (tmp_path / "file").write_text("mine")
    assert main.main(arguments(tiny_data, tmp_path / name)) == 2
    assert f"{tmp_path / 'file'} is a file" in caplog.text
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_refused_at_once(tiny_data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _: str(path) != str(tmp_path))  # root may all
    assert main.main(arguments(tiny_data, tmp_path / "no" / "run")) == 2
    assert f"--output {tmp_path / 'no' / 'run'}: nothing can be written" in caplog.text
    assert "checking files" not in caplog.text


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    lock_folder(tmp_path).close()
    assert "only one run" in caplog.text
