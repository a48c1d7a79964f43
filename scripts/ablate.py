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
GRIDS = Path(__file__).with_name("grids.json")
Runs = dict[tuple[str, str], list[list[str]]]
"""commands by variant and seed"""


def find_grid(name: str) -> dict[str, Any]:
    """Returns a grid by its name in grids.json, or from a file of the form of one there."""
    grids = json.loads(GRIDS.read_text())
    if name in grids:
        return grids[name]
    if not Path(name).is_file():
        raise ValueError(
            f"There is no grid {name!r}: it is neither one of {', '.join(grids)} nor a JSON file."
        )
    try:
        grid = json.loads(Path(name).read_text())
        texts = [grid["method"], grid.setdefault("options", ""), *grid["variants"].values()]
        fits = texts[2:] and all(isinstance(text, str) for text in texts)
    except (ValueError, LookupError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f'{name} must hold {{"method": …, "options": "--…", "variants": {{name: "--…"}}}}.')
    return grid


def plan(grid: dict[str, Any], seeds: Sequence[str], folder: Path, sections: Sequence[Sequence[str]]) -> Runs:
    """Lists the commands of each run, by (variant, seed): main.py, then the tasks of test.py."""
    options, *tasks = sections
    if not tasks:
        raise ValueError(
            "Name how the runs are scored: -- localisation --benchmark … after the options of main.py."
        )
    runs = {}
    for seed in seeds:
        for variant, own in grid["variants"].items():
            run_dir = folder / variant / f"seed-{seed}"
            words = [grid["method"], *shlex.split(grid.get("options", "")), *options, *shlex.split(own)]
            train = [*words, "--seed", seed, "--output", str(run_dir)]
            checkpoint = ["--checkpoint", str(run_dir / "last.pth")]
            tests = [[task[0], *checkpoint, *task[1:], "--output", str(run_dir / task[0])] for task in tasks]
            opts.parse_train_options(train)
            for test in tests:
                opts.parse_test_options(test)
            runs[variant, seed] = [["main.py", *train], *(["test.py", *test] for test in tests)]
    return runs


def make(folder: Path, commands: Sequence[Sequence[str]]) -> int:
    """Runs the commands of one run that have not been finished; returns the exit status of the last.

    Raises:
        ValueError: the folder holds a run of other commands.
    """
    record, text = folder / "commands.txt", "".join(shlex.join(command) + "\n" for command in commands)
    if record.exists() and record.read_text() != text:
        raise ValueError(
            f"{folder} was made by other commands, see {record.name} there. Give the options that it was "
            "made with, or name another --output."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(record, text.encode())
    train, *tests = commands
    if not all((folder / test[1] / "summary.json").exists() for test in tests):
        resume = ["--resume"] if (folder / "last.pth").exists() else []
        status = run_program([*train, *resume])
        if status:
            return status
    for test in tests:
        status = 0 if (folder / test[1] / "summary.json").exists() else run_program(test)
        if status:
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


def ablate(runs: Runs, folder: Path, command: str) -> int:
    """Makes all runs and the table; returns 0, 1 if a run failed, 128 + signal when stopped."""
    failed = []
    for (variant, seed), commands in runs.items():
        logger.info("%s, seed %s", variant, seed)
        status = make(folder / variant / f"seed-{seed}", commands)
        if status > 128:
            logger.warning("Stopped in %s, seed %s; call again to go on.", variant, seed)
            return status
        if status:
            failed.append(f"{variant}, seed {seed}")
    for name in failed:
        logger.error("Failed: %s; its messages stand above. Call again to try again.", name)
    write_table(folder, runs, command, failed)
    return 1 if failed else 0


def write_table(folder: Path, runs: Runs, command: str, failed: Sequence[str]) -> None:
    """Writes runs.csv, and table.md with mean and sample standard deviation over seeds; prints the latter."""
    rows = []
    for (variant, seed), (_, *tests) in runs.items():
        for path in (folder / variant / f"seed-{seed}" / test[1] / "summary.json" for test in tests):
            if path.exists():
                rows += scores_of(json.loads(path.read_text()), variant, seed)
    if not rows:
        return
    each = pd.DataFrame(rows).drop_duplicates(["rule", "variant", "seed"])
    each = each.sort_values("seed", key=lambda seeds: seeds == "", kind="stable")
    if (each.groupby("rule")["clips"].nunique() > 1).any():
        raise ValueError(
            f"{folder}: runs were scored on different clips. Remove the older results; call again."
        )
    each.to_csv(folder / "runs.csv", index=False)
    parts = [f"Made by `{command}`.", *(f"**Failed: {name}.**" for name in failed)]
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
        rows = [
            ("universal threshold", variant, scores),
            ("universal threshold", DISC, summary["without_ears"][DISC]),
        ]
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
    grids = json.loads(GRIDS.read_text()).items()
    parser = argparse.ArgumentParser(
        prog="ablate.sh",
        usage="%(prog)s GRID --output DIR [options] -- OPTIONS OF main.py -- TASK OF test.py ...",
        description="Trains and scores every variant of a grid with every seed: one table.",
        epilog="grids: " + "; ".join(f"{name} ({grid['about']})" for name, grid in grids),
        allow_abbrev=False,
    )
    parser.add_argument("grid", metavar="GRID", help="name of a grid, or a JSON file with one")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument("--seeds", default="4", help="commas between them")
    parser.add_argument("--variants", help="only these, commas between them; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    own = parser.parse_args(sections[0])

    def command() -> int:
        grid = find_grid(own.grid)
        if own.variants is not None:
            chosen = own.variants.split(",")
            if unknown := set(chosen) - grid["variants"].keys():
                raise ValueError(
                    f"--variants: {own.grid} has {', '.join(grid['variants'])}; not {', '.join(unknown)}."
                )
            grid["variants"] = {name: grid["variants"][name] for name in chosen}
        runs = plan(grid, own.seeds.split(","), own.output, sections[1:])
        if own.dry_run:
            for commands in runs.values():
                sys.stdout.write("".join(f"python {shlex.join(one)}\n" for one in commands))
            return 0
        return ablate(runs, own.output, "bash scripts/ablate.sh " + shlex.join(given))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
