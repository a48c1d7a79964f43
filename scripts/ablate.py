"""Runs an ablation: every variant of a grid with every seed, trained, scored, and in one table.

    bash scripts/ablate.sh ssl_tie --output runs/ablation --seeds 4,5 \
        -- --train-set vggsound --data-root data/VGGSound --clip-list ssl_tie_vggsound_10k \
        -- localisation --benchmark vgg_ss --data-root data/VGGSound_test

After the first `--` stand options of `main.py` for all runs; after each further one a task of test.py with
its options. Later options win: the grid's, yours, the variant's. Runs live in --output/VARIANT/seed-SEED.
Called again, it goes on: what has been trained and scored is skipped, what was interrupted is resumed, and a
folder of other commands is refused.
"""

import argparse
import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

import opts
from utils.evaluation.negatives import DISC
from utils.evaluation.statistics import SCORE_KEYS
from utils.files import write_atomically
from utils.training import configure_logging, run_command

logger = logging.getLogger("ablate")

ROOT = Path(__file__).resolve().parents[1]
GRIDS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("grids.json").read_text())


def find_grid(name: str) -> dict[str, Any]:
    """Returns a grid by its name in grids.json, or from a file of the form of one there."""
    if name in GRIDS:
        return GRIDS[name]
    if not Path(name).is_file():
        raise ValueError(
            f"There is no grid {name!r}: it is neither one of {', '.join(GRIDS)} nor a JSON file."
        )
    try:
        grid = json.loads(Path(name).read_text())
        shlex.split(" ".join([grid["method"], grid.setdefault("options", ""), *grid["variants"].values()]))
        if not grid["variants"]:
            raise ValueError("it has no variants")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        form = '{"method": …, "options": "--…", "variants": {name: "--…"}}'
        raise ValueError(f"{name} must hold {form} ({error!r}).") from error
    return grid


def plan(
    grid: dict[str, Any], seed: str, variant: str, run_dir: Path, sections: list[list[str]]
) -> list[list[str]]:
    """Lists the commands of a run, main.py and the tasks of test.py, after they have been parsed."""
    options, *tasks = sections
    words = [grid["method"], *shlex.split(grid["options"]), *options, *shlex.split(grid["variants"][variant])]
    train = [*words, "--seed", seed, "--output", str(run_dir)]
    opts.parse_train_options(train)
    commands = [["main.py", *train]]
    for task, *words in tasks:
        test = [task, "--checkpoint", str(run_dir / "last.pth"), *words, "--output", str(run_dir / task)]
        opts.parse_test_options(test)
        commands.append(["test.py", *test])
    return commands


def make(run_dir: Path, commands: list[list[str]]) -> int:
    """Runs the commands of a run that have not been finished; returns the exit status of the last.

    Raises:
        ValueError: the folder holds a run of other commands.
    """
    record, text = run_dir / "commands.txt", "".join(shlex.join(command) + "\n" for command in commands)
    if record.exists() and record.read_text() != text:
        raise ValueError(
            f"{run_dir} was made by other commands, see {record.name} there. Give the options that it was "
            "made with, or name another --output."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(record, text.encode())
    train, *tests = commands
    waiting = [test for test in tests if not (run_dir / test[1] / "summary.json").exists()]
    resume = ["--resume"] if (run_dir / "last.pth").exists() else []
    for command in [[*train, *resume], *waiting] if waiting else []:
        if status := run_program(command):
            return status
    return 0


def run_program(command: Sequence[str]) -> int:
    """Runs a program of the project to its end, and hands signals on to it; returns its exit status."""
    words = [sys.executable, str(ROOT / command[0]), *command[1:]]
    # In a session of its own a terminal's Ctrl-C does not reach it twice, which would end it at once.
    process = subprocess.Popen(words, stdout=sys.stderr, start_new_session=True)
    handlers = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    status = process.wait()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def write_table(folder: Path, rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Writes runs.csv, and table.md with mean and sample standard deviation over seeds; prints the latter."""
    each = pd.DataFrame(rows).drop_duplicates(["rule", "variant", "seed"])
    each = each.sort_values("seed", key=lambda seeds: seeds == "", kind="stable")  # blind baselines last
    if (each.groupby("rule")["clips"].nunique() > 1).any():
        raise ValueError(
            f"{folder}: runs were scored on different clips. Remove the older results; call again."
        )
    each.to_csv(folder / "runs.csv", index=False)
    parts = notes
    for rule, part in each.drop(columns=["seed", "clips"]).groupby("rule", sort=False):
        grouped = part.drop(columns="rule").dropna(axis=1, how="all").groupby("variant", sort=False)
        deviation = grouped.std().map(" ± {:.2f}".format).replace(" ± nan", "")
        words = (grouped.mean().map("{:.2f}".format) + deviation).assign(n=grouped.size())
        parts.append(f"## {rule}\n\n{words.reset_index().to_markdown(index=False)}")
    text = "\n\n".join(parts) + "\n"
    write_atomically(folder / "table.md", text.encode())
    sys.stdout.write(text)


def scores_of(summary: dict[str, Any], variant: str, seed: str) -> list[dict[str, Any]]:
    """Lists scores, percent: a row for the model and for each blind baseline, which has no seed."""
    if "protocols" not in summary:  # of negatives; the deaf guess is left out, it is another for each model
        scores = {key: one["mean"] for key, one in summary["scores"].items()}
        blind = summary["without_ears"][DISC]
        rows = [("universal threshold", variant, scores), ("universal threshold", DISC, blind)]
    else:
        rows = [
            (
                one["name"],
                variant if row["kind"] == "model" else row["name"],
                {key: row[key] for key in SCORE_KEYS},
            )
            for one in summary["protocols"]
            for row in one["rows"]
        ]
    clips = summary["scored_clips_sha256"]
    return [
        {"rule": rule, "variant": name, "seed": seed if name == variant else "", "clips": clips, **scores}
        for rule, name, scores in rows
    ]


def ablate(own: argparse.Namespace, sections: list[list[str]], command: str) -> int:
    """Makes all runs and the table; returns 0, 1 if a run failed, 128 + signal when stopped."""
    grid = find_grid(own.grid)
    chosen = list(grid["variants"]) if own.variants is None else own.variants.split(",")
    if unknown := set(chosen) - grid["variants"].keys():
        raise ValueError(
            f"--variants: {own.grid} has {', '.join(grid['variants'])}; not {', '.join(unknown)}."
        )
    if len(sections) < 2:
        raise ValueError(
            "Name how runs are scored, as in: -- OPTIONS OF main.py -- localisation --benchmark …"
        )
    runs = {}
    for seed in own.seeds.split(","):
        for variant in chosen:
            run_dir = own.output / variant / f"seed-{seed}"
            runs[variant, seed] = (run_dir, plan(grid, seed, variant, run_dir, sections))
    if own.dry_run:
        lines = [shlex.join(("python", *one)) for _, commands in runs.values() for one in commands]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    failed, rows = [], []
    for (variant, seed), (run_dir, commands) in runs.items():
        logger.info("%s, seed %s", variant, seed)
        status = make(run_dir, commands)
        if status > 128:
            logger.warning("Stopped in %s, seed %s; call again to go on.", variant, seed)
            return status
        if status:
            failed.append(f"{variant}, seed {seed}")
            logger.error("Failed: %s; its messages stand above. Call again to try again.", failed[-1])
        else:
            summaries = [
                json.loads((run_dir / test[1] / "summary.json").read_text()) for test in commands[1:]
            ]
            rows += [row for summary in summaries for row in scores_of(summary, variant, seed)]
    if rows:
        write_table(own.output, rows, [f"Made by `{command}`.", *(f"**Failed: {name}.**" for name in failed)])
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 for failed runs, 2 for bad input."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    configure_logging()
    parser = argparse.ArgumentParser(
        prog="ablate.sh",
        usage="%(prog)s GRID --output DIR [options] -- OPTIONS OF main.py -- TASK OF test.py ...",
        description="Trains and scores every variant of a grid with every seed: one table.",
        epilog="grids: " + "; ".join(f"{name} ({grid['about']})" for name, grid in GRIDS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("grid", metavar="GRID", help="name of a grid, or a JSON file with one")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument("--seeds", default="4", help="commas between them")
    parser.add_argument("--variants", help="only these, commas between them; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    first, *sections = [
        list(words) for end, words in groupby(given, lambda word: word == "--") if not end
    ] or [[]]
    own = parser.parse_args(first)
    return run_command(lambda: ablate(own, sections, "bash scripts/ablate.sh " + shlex.join(given)))


if __name__ == "__main__":
    sys.exit(main())
