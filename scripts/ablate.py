"""Runs an ablation: every variant of a grid with every seed, trained, scored, and in one table.

    bash scripts/ablate.sh ssl_tie --output runs/ablation --seeds 4,5 \
        -- --train-set vggsound --data-root data/VGGSound --clip-list ssl_tie_vggsound_10k \
        -- localisation --benchmark vgg_ss --data-root data/VGGSound_test --protocol ssl_tie,sspl

After the first `--` stand options of `main.py` for all runs; after each further one a task of
test.py with its options. Runs live in --output/VARIANT/seed-SEED; the table (.md, .csv, .tex,
.json) and plot.svg beside them are written anew after each run. Stopped, by Ctrl-C or a fault, and
called again, it goes on: finished runs are skipped, interrupted ones resumed, and a run that was
made with other options is refused.
"""

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.ablation_grids import GRIDS, Grid, find_grid
from scripts.ablation_runs import (
    PlannedRun,
    ProgramFailedError,
    ProgramStoppedError,
    look_at,
    parse_scorings,
    plan_runs,
    read_checkpoint_of,
    score,
    train,
)
from utils.ablation import AblationRun, gather
from utils.ablation_tables import render_scores, write_ablation
from utils.files import lock_folder
from utils.training import Interruption, configure_logging, environment_report, pick_device, run_command

logger = logging.getLogger("ablate")


def ablate(grid: Grid, runs: Sequence[PlannedRun], folder: Path, command: str) -> int:
    """Makes all runs that are not there yet, and the table; returns the exit status.

    Args:
        grid: what is compared.
        runs: of `plan_runs`.
        folder: of the ablation.
        command: for the record.

    Returns:
        0; 1 if a run failed; 128 + signal when stopped.

    Raises:
        ValueError: a run that is there was made with other options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder), Interruption() as stop:
        seen = {run.folder: look_at(run, read_checkpoint_of(run)) for run in runs}

        def write() -> dict[str, Any]:
            result = gather(
                list(seen.values()),
                grid=asdict(grid),
                command=command,
                environment=environment_report(pick_device(runs[0].options.run.device)),
            )
            write_ablation(folder, result)
            return result

        write()  # refuses at once what cannot stand in one table
        waiting = [run for run in runs if seen[run.folder].state != "scored"]
        logger.info("%d runs, %d of them to be made", len(runs), len(waiting))
        began = time.monotonic()
        for place, run in enumerate(waiting):
            logger.info(
                "Run %d of %d: %s (%s)%s", place + 1, len(waiting), run.name,
                seen[run.folder].state, _time_left(began, place, len(waiting)),
            )  # fmt: skip
            try:
                seen[run.folder] = make(run, stop)
            except ProgramStoppedError as stopped:
                seen[run.folder] = look_at(run, read_checkpoint_of(run))
                write()
                logger.warning("Stopped in %s; call again to go on.", run.name)
                return stopped.status
            write()
        result = write()
    sys.stdout.write(render_scores(result))
    sys.stdout.write(f"Tables, plot and commands: {folder}\n")
    for name in result["failed"]:
        logger.error("Failed: %s; see the table. Call again to try again.", name)
    return 1 if result["failed"] else 0


def make(run: PlannedRun, stop: Interruption) -> AblationRun:
    """Trains and scores a run as far as that is not done; a failure is noted, not raised.

    Raises:
        ProgramStoppedError: it was told to stop.
    """
    failure = ""
    try:
        before = read_checkpoint_of(run)
        if before is None or before.epoch < run.epochs:
            train(run, stop, resume=before is not None)
        for scoring in run.scorings:
            score(run, scoring, stop)
    except ProgramFailedError as error:
        failure = str(error)
        logger.error("%s: %s", run.name, failure)
    return look_at(run, read_checkpoint_of(run), failure)


def _time_left(began: float, done: int, count: int) -> str:
    if not done:
        return ""
    minutes = (time.monotonic() - began) / done * (count - done) / 60
    return f", about {max(round(minutes), 1)} min left"


def _print_commands(runs: Sequence[PlannedRun]) -> int:
    for run in runs:
        sys.stdout.write("\n".join(["# " + run.name, *run.commands()]) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Command line before the first `--`."""
    parser = argparse.ArgumentParser(
        prog="ablate.sh",
        usage="%(prog)s GRID --output DIR [options] -- OPTIONS OF main.py -- TASK OF test.py ...",
        description="Trains and scores every variant of a grid with every seed: one table.",
        epilog="grids: " + "; ".join(f"{g.name} ({g.words})" for g in GRIDS.values()),
        allow_abbrev=False,
    )
    parser.add_argument("grid", metavar="GRID", help="name of a grid, or a JSON file with one")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument("--seeds", default="4", help="whole numbers, commas between them")
    parser.add_argument("--variants", help="only these, commas between them; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    return parser


def _parse_seeds(text: str) -> list[int]:
    names = text.split(",")
    if not all(name.isascii() and name.isdigit() for name in names) or len(set(names)) < len(names):
        raise ValueError(f"--seeds takes different whole numbers, commas between, got {text!r}.")
    return [int(name) for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 for failed runs, 2 for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    configure_logging()
    sections: list[list[str]] = [[]]
    for word in given:
        if word == "--":
            sections.append([])
        else:
            sections[-1].append(word)
    own = build_parser().parse_args(sections[0])

    def command() -> int:
        grid = find_grid(own.grid)
        grid = grid if own.variants is None else grid.chosen(own.variants.split(","))
        options = sections[1] if len(sections) > 1 else []
        scorings = parse_scorings(sections[2:])
        runs = plan_runs(grid, own.output, _parse_seeds(own.seeds), options, scorings)
        if own.dry_run:
            return _print_commands(runs)
        words = "bash scripts/ablate.sh " + shlex.join(given)
        return ablate(grid, runs, own.output, words)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
