"""The runs of an ablation: what is to be run, where it stands, and the programs that do it."""

import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import opts
from datasets.lists import find_list
from scripts.ablation_grids import Grid, Variant
from scripts.compare_models import is_scored
from utils.ablation import READERS, AblationRun, read_last_epoch, read_summary
from utils.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint_file
from utils.files import file_sha256
from utils.training import SIGNALS, Interruption

ROOT = Path(__file__).resolve().parents[1]
OWN_OPTIONS = ("--output", "--seed", "--resume", "--no-resume", "--dry-run")
"""Of main.py, that the ablation itself gives."""
OWN_TEST_OPTIONS = ("--output", "--checkpoint", "--dry-run", "--table")
LOOKS_PER_SECOND = 4
KEPT_LINES = 40
"""of a failed program's last words, of which one is the reason"""


@dataclass(frozen=True)
class Scoring:
    """A task of test.py and its options, the same for all runs."""

    task: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """A variant with a seed."""

    variant: Variant
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    """of main.py, for a run that begins"""
    options: opts.TrainOptions
    scorings: tuple[Scoring, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def last_path(self) -> Path:
        """Its newest checkpoint."""
        return self.folder / "last.pth"

    @property
    def epochs(self) -> int:
        """That it is to be trained for."""
        epochs = self.options.optimisation.epochs
        assert epochs is not None  # recipes are completed when options are parsed
        return epochs

    def test_arguments(self, scoring: Scoring) -> list[str]:
        """Of test.py."""
        files = ["--checkpoint", str(self.last_path), "--output", str(self.folder / scoring.task)]
        return [scoring.task, *files, *scoring.options]

    def commands(self) -> list[str]:
        """All that is run for it, as one would type it."""
        train = shlex.join(("python", "main.py", *self.arguments))
        tests = (shlex.join(("python", "test.py", *self.test_arguments(s))) for s in self.scorings)
        return [train, *tests]


def plan_runs(
    grid: Grid, folder: Path, seeds: Sequence[int], options: Sequence[str], scorings: Sequence[Scoring]
) -> list[PlannedRun]:
    """Every variant with every seed; all variants of a seed before those of the next.

    Args:
        grid: of variants.
        folder: of the ablation.
        seeds: of the runs.
        options: of main.py, the same for all runs; behind the grid's, before the variant's.
        scorings: tasks of test.py.

    Raises:
        ValueError: options contradict each other, or are the ablation's own.
    """
    _refuse_own(options, OWN_OPTIONS, "main.py")
    for variant in grid.variants:
        _refuse_own(variant.options, OWN_OPTIONS, f"main.py (variant {variant.name})")
    runs = []
    for seed in seeds:
        for variant in grid.variants:
            of_run = folder / variant.name / f"seed-{seed}"
            arguments = (
                grid.method, *grid.options, *options, *variant.options,
                "--seed", str(seed), "--output", str(of_run),
            )  # fmt: skip
            try:
                parsed = opts.parse_train_options(arguments)
            except ValueError as error:
                raise ValueError(f"Variant {variant.name}: {error}") from error
            runs.append(PlannedRun(variant, seed, of_run, arguments, parsed, tuple(scorings)))
    for scoring in scorings:
        _refuse_own(scoring.options, OWN_TEST_OPTIONS, f"test.py {scoring.task}")
        opts.parse_test_options(runs[0].test_arguments(scoring))
    return runs


def _refuse_own(options: Sequence[str], own: Sequence[str], program: str) -> None:
    found = [option for option in options if option.split("=")[0] in own]
    if found:
        raise ValueError(
            f"{', '.join(found)} of {program} cannot be given: an ablation sets it for each run "
            "(its own --output, --seeds and --dry-run stand before `--`)."
        )


def read_checkpoint_of(run: PlannedRun) -> Checkpoint | None:
    """The run's newest checkpoint; None where nothing is saved yet.

    Raises:
        ValueError: it is another run's, or trained for longer than is wanted.
    """
    if not run.last_path.exists():
        return None
    checkpoint = parse_checkpoint(read_checkpoint_file(run.last_path), run.last_path)
    differences = opts.differences_that_matter(checkpoint.options, opts.as_plain(run.options))
    data = run.options.data
    listed, before = checkpoint.training_list.get("sha256"), checkpoint.options["data"]["data_root"]
    if data.clip_list is not None and listed != find_list(data.clip_list).sha256:
        differences.append(f"the training list {data.clip_list}")
    if before != str(data.data_root):  # main.py lets data move; here, two sets may have equal ids
        differences.append(f"--data-root was {before}, is {data.data_root}")
    if checkpoint.epoch > run.epochs:
        differences.append(f"--epochs: {checkpoint.epoch} are done, {run.epochs} are wanted")
    if differences:
        raise ValueError(
            f"{run.last_path} is another run: {'; '.join(differences)}. Give the options that it "
            "was started with, or name another --output."
        )
    return checkpoint


def look_at(run: PlannedRun, checkpoint: Checkpoint | None, failure: str = "") -> AblationRun:
    """What a run has left.

    Args:
        run: the run.
        checkpoint: its newest one.
        failure: why its training or its scoring failed in this call.
    """
    sha256, summaries = None, {}
    if checkpoint is not None:
        sha256 = file_sha256(run.last_path)
        for scoring in run.scorings:
            if has_scores(run, scoring):
                summaries[scoring.task] = read_summary(run.folder / scoring.task)
    trained = checkpoint is not None and checkpoint.epoch == run.epochs
    if trained and len(summaries) == len(run.scorings):
        state = "scored"
    elif failure:
        state = "failed"
    elif checkpoint is None:
        state = "not started"
    else:
        state = "trained" if trained else "interrupted"
    return AblationRun(
        variant=run.variant.name,
        seed=run.seed,
        folder=str(run.folder),
        state=state,
        command=run.commands()[0],
        reason=failure if state == "failed" else "",
        epochs=0 if checkpoint is None else checkpoint.epoch,
        checkpoint_sha256=sha256,
        training_list={} if checkpoint is None else checkpoint.training_list,
        last_epoch=read_last_epoch(run.folder),
        summaries=summaries if trained else {},
    )


class ProgramFailedError(Exception):
    """A program ended with an error; the message is its last word."""


class ProgramStoppedError(Exception):
    """A program was told to stop, and has."""

    def __init__(self, status: int) -> None:
        """Takes the exit status to end with."""
        super().__init__(status)
        self.status = status


def run_program(program: str, arguments: Sequence[str], stop: Interruption) -> None:
    """Runs main.py or test.py to its end; what it says on standard error is passed on.

    A signal to this process is handed on once, as SIGTERM: main.py then finishes its step and
    saves. (Ctrl-C reaches both from the terminal; a second one to main.py would end it at once.)

    Args:
        program: its file in the project.
        arguments: of the program.
        stop: watches for signals.

    Raises:
        ProgramFailedError: it failed.
        ProgramStoppedError: it, or this process, was told to stop.
    """
    command = [sys.executable, str(ROOT / program), *arguments]
    words: deque[bytes] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        echo = threading.Thread(target=_pass_on, args=(child.stderr, words), daemon=True)
        echo.start()
        told = False
        try:
            while True:
                if stop.signal_number is not None and not told:
                    child.send_signal(signal.SIGTERM)
                    told = True
                try:
                    status = child.wait(1 / LOOKS_PER_SECOND)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()  # does nothing to one that has ended
        echo.join()
    if stop.signal_number is not None:
        raise ProgramStoppedError(128 + stop.signal_number)
    if status - 128 in SIGNALS:
        raise ProgramStoppedError(status)
    if status:
        raise ProgramFailedError(f"{program} ended with status {status}: {_last_error(words)}")


def _pass_on(source: IO[bytes], words: "deque[bytes]") -> None:
    """Copies a program's standard error to this one's, and keeps its end."""
    while piece := source.read1(4096):  # type: ignore[attr-defined]
        sys.stderr.buffer.write(piece)
        sys.stderr.buffer.flush()
        words.append(piece)


def _last_error(words: "deque[bytes]") -> str:
    """The last line that is an error's, else the last line."""
    text = b"".join(words).decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
    return (errors or lines or ["it said nothing"])[-1]


def train(run: PlannedRun, stop: Interruption, *, resume: bool) -> None:
    """Trains a run to its end, from where it stands."""
    run_program("main.py", [*run.arguments, *(("--resume",) if resume else ())], stop)


def score(run: PlannedRun, scoring: Scoring, stop: Interruption) -> None:
    """Scores a trained run by a task, unless that is done."""
    if not has_scores(run, scoring):
        run_program("test.py", run.test_arguments(scoring), stop)


def has_scores(run: PlannedRun, scoring: Scoring) -> bool:
    """Whether a task's results are there: of this command, this checkpoint and this clip list."""
    arguments, folder = run.test_arguments(scoring), run.folder / scoring.task
    if not is_scored(folder, run.last_path, arguments):
        return False
    name = getattr(opts.parse_test_options(arguments), "clip_list", None)
    listed = read_summary(folder)["clip_list"]["sha256"]
    return name is None or listed == find_list(name).sha256


def parse_scorings(sections: Sequence[Sequence[str]]) -> list[Scoring]:
    """`TASK options of test.py` between `--` -> tasks.

    Raises:
        ValueError: none, a task twice, or one whose results cannot be gathered.
    """
    tasks = [section[0] for section in sections if section]
    wrong = [task for task in tasks if task not in READERS or tasks.count(task) > 1]
    if not tasks or wrong or len(tasks) < len(sections):
        raise ValueError(
            "After the options of main.py, name how runs are scored: `-- localisation --benchmark "
            f"… --data-root …`, each task once; tasks: {', '.join(READERS)}"
            + (f", got {', '.join(wrong)}" if wrong else "")
            + "."
        )
    return [Scoring(section[0], tuple(section[1:])) for section in sections]
