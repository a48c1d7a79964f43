"""Measures what this project's speed is on this computer, and what its options are worth.

    bash scripts/benchmark.sh loader             # decoding of clips, the authors' way and ours
    bash scripts/benchmark.sh train              # a training step: plain, and with each option
    bash scripts/benchmark.sh evaluate           # scoring of clips
    bash scripts/benchmark.sh all                # these three, as they are by default
    bash scripts/benchmark.sh scaling            # predicted, not measured: docs/scaling.md
    bash scripts/benchmark.sh train --help       # all options

Prints a JSON line for each variant. Variants run in one process and take turns, so that other work
on the computer slows all of them. docs/performance.md explains the numbers.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datasets.loading_speed import LoaderSizes, loader_lines, make_clips
from scripts.benchmark_evaluate import EvaluateBenchmark, benchmark_evaluate
from scripts.benchmark_measure import Setting, check_counts, write_line
from scripts.benchmark_steps import Sizes
from scripts.benchmark_train import TrainBenchmark, benchmark_train
from scripts.scaling_model import Machine, ScalingQuestion, TrainingCosts, predict_scaling
from utils.options import add_group, build
from utils.training import configure_logging, pick_device, run_command


@dataclass(frozen=True, kw_only=True)
class LoaderBenchmark:
    """How often loading is measured."""

    repeats: int = 7
    """epochs of each way"""

    def __post_init__(self) -> None:
        """Refuses none."""
        check_counts(repeats=self.repeats)


def benchmark_loader(device: torch.device, sizes: LoaderSizes, options: LoaderBenchmark) -> None:
    """Prints a line per way of loading, their ratio, and the device's share."""
    with tempfile.TemporaryDirectory() as folder:
        clips = make_clips(sizes, Path(folder))
        for line in loader_lines(clips, sizes, device, repeats=options.repeats):
            write_line(case="loader", **line)


@dataclass(frozen=True)
class Case:
    """What is measured, the options that it takes, and a word about it."""

    run: Callable[..., None]
    """called with the device and the options"""
    groups: tuple[type, ...]
    summary: str


CASES = {
    "loader": Case(
        benchmark_loader,
        (LoaderSizes, LoaderBenchmark),
        "decoding of training clips on one core, the authors' way and ours",
    ),
    "train": Case(
        benchmark_train, (Sizes, TrainBenchmark), "a training step of SSL-TIE, plain and with each option"
    ),
    "evaluate": Case(benchmark_evaluate, (EvaluateBenchmark,), "scoring of clips, as test.py does it"),
}
ALL = "all"
SCALING = "scaling"


def run_cases(names: Sequence[str], values: dict[str, Any]) -> int:
    """Runs cases one after the other; returns the exit status."""
    setting = build(Setting, values)
    device = pick_device(setting.device)
    options = {
        name: [build(group, values) if len(names) == 1 else group() for group in CASES[name].groups]
        for name in names
    }
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    for name in names:
        CASES[name].run(device, *options[name])
    return 0


def run_scaling(values: dict[str, Any]) -> int:
    """Runs `scaling`; returns the exit status."""
    predict_scaling(build(ScalingQuestion, values), build(TrainingCosts, values), build(Machine, values))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Command line, with a sub-command for each case."""
    parser = argparse.ArgumentParser(prog="benchmark.sh", description="Measures speed.")
    cases = parser.add_subparsers(title="cases", dest="case", required=True, metavar="case")
    rows = {name: (case.summary, (Setting, *case.groups)) for name, case in CASES.items()}
    rows[ALL] = ("all of these, with the options that they have by default", (Setting,))
    rows[SCALING] = (
        "predicted, not measured: training on many GPUs",
        (ScalingQuestion, TrainingCosts, Machine),
    )
    for name, (summary, groups) in rows.items():
        case = cases.add_parser(
            name, help=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )
        for group in groups:
            add_group(case, group)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    configure_logging()
    values = vars(build_parser().parse_args(arguments))
    chosen = values["case"]
    if chosen == SCALING:
        return run_command(lambda: run_scaling(values))
    return run_command(lambda: run_cases(list(CASES) if chosen == ALL else [chosen], values))


if __name__ == "__main__":
    sys.exit(main())
