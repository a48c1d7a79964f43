"""Scores several checkpoints on the same clips: one table, one report.

    bash scripts/compare_models.sh A.pth B.pth C.pth -- --benchmark vgg_ss --data-root data/vgg_ss \
        --output results/comparison

All that follows `--` are options of `test.py localisation`. Each model's results go into a folder
of their own in --output; comparison.json, .csv, .md, .tex and report.html lie beside them. A model
whose results are there, made by the same command from the same file, is not scored again. --table
md, tex, csv or json prints the comparison in that form, and nothing else.
"""

import argparse
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.comparison import write_comparison
from utils.files import file_sha256
from utils.scored_models import distinct_names, read_scored_model
from utils.training import configure_logging, run_command

logger = logging.getLogger("compare_models")

TEST_PROGRAM = Path(__file__).resolve().parents[1] / "test.py"


def is_scored(folder: Path, checkpoint: Path, arguments: Sequence[str]) -> bool:
    """Whether a folder holds the results of this very command, from a file with this content."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same_command = summary["command"] == "python test.py " + shlex.join(arguments)
        sha256 = summary["checkpoint"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # test.py looks closer, and refuses a folder that is not this model's
    return bool(same_command and sha256 == file_sha256(checkpoint))


def score(checkpoint: Path, folder: Path, options: Sequence[str], *, printed: bool) -> None:
    """Scores a checkpoint, in a process of its own, unless that is done.

    Args:
        checkpoint: to score.
        folder: for the results.
        options: of `test.py localisation`, without checkpoint and folder.
        printed: what it prints goes to standard output; else to the messages.

    Raises:
        ValueError: the evaluation failed; it has said why.
    """
    arguments = ["localisation", "--checkpoint", str(checkpoint), "--output", str(folder), *options]
    if is_scored(folder, checkpoint, arguments):
        logger.info("%s has been scored: %s", checkpoint, folder)
        return
    standard_error = 2
    finished = subprocess.run(
        [sys.executable, TEST_PROGRAM, *arguments], check=False, stdout=None if printed else standard_error
    )
    if finished.returncode:
        raise ValueError(
            f"Scoring {checkpoint} ended with status {finished.returncode}; its message stands "
            "above. Models that were scored before it are kept: mend it and call again."
        )


def compare_models(checkpoints: Sequence[Path], options: Sequence[str], command: str) -> int:
    """Scores the checkpoints one after the other and writes the comparison; returns 0.

    Args:
        checkpoints: two or more; the others are compared with the first.
        options: of `test.py localisation`, with --output, without --checkpoint.
        command: for the record.

    Raises:
        ValueError: the options do not fit, an evaluation failed, or the results are not of the same
            clips.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--output", type=Path)
    own.add_argument("--checkpoint")
    own.add_argument("--save-maps")
    own.add_argument("--table", choices=("md", "tex", "csv", "json"))
    try:
        found, rest = own.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if len(checkpoints) < 2:
        raise ValueError(f"A comparison takes two checkpoints or more, got {len(checkpoints)}.")
    if found.checkpoint is not None:
        raise ValueError("Checkpoints stand before `--`, without --checkpoint.")
    if found.save_maps is not None:
        raise ValueError(
            "--save-maps names one file, which each model would write over the one before; save "
            "the maps of each by `test.py localisation`."
        )
    if found.output is None:
        raise ValueError("--output is missing: name a folder for the comparison, after `--`.")
    folders = [found.output / name for name in distinct_names(checkpoints)]
    for place, (checkpoint, folder) in enumerate(zip(checkpoints, folders, strict=True), start=1):
        logger.info("%d of %d: %s", place, len(checkpoints), checkpoint)
        score(checkpoint, folder, rest, printed=found.table is None)
    models = [read_scored_model(folder.name, folder) for folder in folders]
    write_comparison(found.output, models, command)
    sys.stdout.write((found.output / f"comparison.{found.table or 'md'}").read_text())
    report = f"Report: {found.output / 'report.html'}"
    if found.table is None:
        sys.stdout.write(f"{report}\n")
    else:
        logger.info("%s", report)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Command line before `--`."""
    parser = argparse.ArgumentParser(
        prog="compare_models.sh",
        usage="%(prog)s A.pth B.pth ... -- [options of test.py localisation]",
        description="Scores several checkpoints on the same clips: one table, one report.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="the others are compared with the first")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    configure_logging()
    end = given.index("--") if "--" in given else len(given)
    checkpoints = build_parser().parse_args(given[:end]).checkpoints
    command = "bash scripts/compare_models.sh " + shlex.join(given)
    return run_command(lambda: compare_models(checkpoints, given[end + 1 :], command))


if __name__ == "__main__":
    sys.exit(main())
