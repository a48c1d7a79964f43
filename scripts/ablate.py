"""Runs an ablation: every variant of a grid with every seed, trained, scored, and in one table.

    bash scripts/ablate.sh ssl_tie --output runs/ablation --seeds 4,5 \
        -- --train-set vggsound --data-root data/VGGSound --clip-list ssl_tie_vggsound_10k \
        -- localisation --benchmark vgg_ss --data-root data/VGGSound_test

After the first `--` stand options of `main.py` for all runs; after each further one a task of test.py with
its options, or `benchmark` with options of scripts/benchmark.py: what a training step costs. Later options
win: the grid's, yours, the variant's. Runs live in --output/VARIANT/seed-SEED.
Called again, it goes on: what has been trained and scored is skipped, what was interrupted is resumed, and a
folder of other commands is refused.
"""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import opts
from scripts.collect import read_result, run_program, score_rows, values_of
from utils.evaluation.protocols import PROTOCOLS
from utils.evaluation.statistics import sign_flip_test
from utils.files import decoding, write_atomically
from utils.options import Parser, run_command

logger = logging.getLogger("ablate")

GRIDS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("grids.json").read_text())


def find_grid(name: str) -> dict[str, Any]:
    """Return a grid by its name in grids.json, or from a file of the form of one there.

    Without a method of its own, its variants are called as the methods that they train. Its `overview` names
    columns of a first table: heading -> [rule, score].
    """
    if name in GRIDS:
        return GRIDS[name]
    form = '{"method": …, "options": "--…", "variants": {name: "--…"}}'
    with decoding(name, f"it must be one of {', '.join(GRIDS)}, or a JSON file with {form}"):
        grid = json.loads(Path(name).read_text())
        words = [grid.get("method", ""), grid.get("options", ""), *grid["variants"].values()]
        shlex.split(" ".join(words))
        if not grid["variants"]:
            raise ValueError("it has no variants")
    return grid


def plan(
    grid: dict[str, Any], seed: str, variant: str, run_dir: Path, sections: list[list[str]]
) -> list[list[str]]:
    """List the commands of a run, main.py and the tasks of test.py, after they have been parsed."""
    common, *tasks = sections
    method = grid.get("method", variant)
    options = [*shlex.split(grid.get("options", "")), *common, *shlex.split(grid["variants"][variant])]
    train = [method, *options, "--seed", seed, "--output", str(run_dir)]
    opts.parse_train_options(train)
    commands = [["main.py", *train]]
    for task, *words in tasks:
        place = ["--output", str(run_dir / task)]
        if task == "benchmark":
            step = ["train", "--method", method, "--variants", "plain", *options]
            commands.append(["scripts/benchmark.py", *step, *words, *place])
            continue
        test = [task, "--checkpoint", str(run_dir / "last.pth"), *words, *place]
        opts.parse_test_options(test)
        commands.append(["test.py", *test])
    return commands


def is_done(test: list[str]) -> bool:
    """Whether a command of `plan`, which ends in its --output, has scored all clips that it shall."""
    path = Path(test[-1]) / "summary.json"
    return path.exists() and ("--allow-missing" in test or json.loads(path.read_text()).get("complete", True))


def make(run_dir: Path, commands: list[list[str]]) -> int:
    """Run the commands of a run that have not been finished; return the exit status of the last."""
    record, text = run_dir / "commands.txt", "".join(shlex.join(command) + "\n" for command in commands)
    if record.exists() and record.read_text() != text:
        raise ValueError(
            f"{run_dir} was made by other commands, see {record.name} there. Give the options that it was "
            "made with, or name another --output."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(record, text.encode())
    train, *tests = commands
    waiting = [test for test in tests if not is_done(test)]
    resume = ["--resume"] if (run_dir / "last.pth").exists() else []
    for command in [[*train, *resume], *waiting] if waiting else []:
        if status := run_program(command):
            return status
    return 0


def read_scores(path: Path, variant: str, seed: str) -> pd.DataFrame:
    """Read the scores of a summary.json; blind baselines are the same for all seeds."""
    summary = json.loads(path.read_text())
    rows = score_rows(summary, variant).rename(columns={"protocol": "rule", "predictor": "variant"})
    rows.insert(2, "seed", rows["kind"].map(lambda kind: seed if kind == "model" else ""))
    rows.insert(3, "clips", summary.get("scored_clips_sha256"))
    return rows.loc[:, ~rows.columns.str.endswith(("kind", "_low", "_high"))]


def write_table(folder: Path, scores: list[pd.DataFrame], notes: list[str], overview: dict[str, Any]) -> None:
    """Write runs.csv, and table.md with mean and sample standard deviation over seeds; print the latter."""
    each = pd.concat(scores).drop_duplicates(["rule", "variant", "seed"])
    each = each.sort_values("seed", key=lambda seeds: seeds == "", kind="stable")  # blind baselines last
    if (each.groupby("rule")["clips"].nunique() > 1).any():
        raise ValueError(f"{folder}: runs were scored on different clips. Remove the older results.")
    each.to_csv(folder / "runs.csv", index=False)
    parts = {rule: part.set_index(["variant", "seed"]) for rule, part in each.groupby("rule", sort=False)}
    columns = {head: parts[rule][key] for head, (rule, key) in overview.items() if rule in parts}
    if columns:
        notes.append(mean_and_deviation(pd.concat(columns, axis=1)).to_markdown(disable_numparse=True))
    for rule, part in parts.items():
        words = mean_and_deviation(part.drop(columns=["rule", "clips"]).dropna(axis=1, how="all"))
        if rule in PROTOCOLS:
            words = words.join(differences(folder, rule, part)).fillna("")
        notes.append(f"## {rule}\n\n{words.to_markdown(disable_numparse=True)}")
    text = "\n\n".join(notes) + "\n"
    write_atomically(folder / "table.md", text.encode())
    sys.stdout.write(text)


def mean_and_deviation(runs: pd.DataFrame) -> pd.DataFrame:
    """Write mean ± sample standard deviation over seeds as words, a row for each variant."""
    grouped = runs.groupby("variant", sort=False)
    deviation = grouped.std().map(" ± {:.2f}".format).replace(" ± nan", "")
    return (grouped.mean().map("{:.2f}".format).replace("nan", "") + deviation).assign(n=grouped.size())


def differences(folder: Path, rule: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Compare hits at 0.5 with those of the first variant, clip by clip, over the seeds that both have.

    p is of a sign-flip test of each clip's mean over seeds: clips are drawn, the trained models are given.
    """
    hits: dict[str, dict[str, Any]] = {}
    for variant, seed in runs.index[runs.index.get_level_values("seed") != ""]:
        _, clips = read_result(folder / variant / f"seed-{seed}" / "localisation")
        hits.setdefault(variant, {})[seed] = values_of(clips, rule)[:, 0]  # (N,) 0 or 1
    first_name, *others = hits
    rows, first = {}, hits[first_name]
    for variant in others:
        gains = [values - first[seed] for seed, values in hits[variant].items() if seed in first]
        if gains:
            gain = np.mean(gains, axis=0)  # (N,)
            points, p = f"{100 * gain.mean():+.2f}", f"{sign_flip_test(gain):.2g}"
            rows[variant] = {f"against {first_name}": points, "p": p}
    return pd.DataFrame.from_dict(rows, orient="index")


def ablate(given: Sequence[str]) -> int:
    """Make all runs and the table; return 0, 1 if a run failed, 128 + signal when stopped."""
    parser = Parser(
        prog="ablate.sh",
        usage="%(prog)s GRID --output DIR [options] -- OPTIONS OF main.py -- TASK OF test.py ...",
        description="Trains and scores every variant of a grid with every seed: one table.",
        epilog="grids: " + "; ".join(f"{name} ({grid['about']})" for name, grid in GRIDS.items()),
    )
    parser.add_argument("grid", metavar="GRID", help="name of a grid, or a JSON file with one")
    parser.add_argument("--output", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument("--seeds", default="4", help="commas between them")
    parser.add_argument("--variants", help="only these, commas between them; default: all")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    first, *sections = [list(words) for end, words in groupby(given, "--".__eq__) if not end] or [[]]
    own = parser.parse_args(first)
    grid = find_grid(own.grid)
    variants: dict[str, str] = grid["variants"]
    chosen = list(variants) if own.variants is None else own.variants.split(",")
    if unknown := set(chosen) - variants.keys():
        raise ValueError(f"--variants: {own.grid} has {', '.join(variants)}; not {', '.join(unknown)}.")
    if len(sections) < 2:
        raise ValueError("Name how runs are scored: -- OPTIONS OF main.py -- localisation --benchmark …")
    if len({words[0] for words in sections[1:]}) < len(sections) - 1:
        raise ValueError("Each task can be named once: its results lie in a folder of its name.")
    runs = {}
    for seed in own.seeds.split(","):
        for variant in chosen:
            run_dir = own.output / variant / f"seed-{seed}"
            runs[variant, seed] = (run_dir, plan(grid, seed, variant, run_dir, sections))
    if own.dry_run:
        lines = [shlex.join(("python", *one)) for _, commands in runs.values() for one in commands]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    about = grid.get("about", own.grid)
    notes, scores = [f"{about}. Made by `bash scripts/ablate.sh {shlex.join(given)}`."], []
    for (variant, seed), (run_dir, commands) in runs.items():
        logger.info("%s, seed %s", variant, seed)
        status = make(run_dir, commands)
        if status > 128:
            logger.warning("Stopped in %s, seed %s; call again to go on.", variant, seed)
            return status
        if status:
            notes.append(f"**Failed: {variant}, seed {seed}.**")
            logger.error("Failed: %s, seed %s; its messages stand above. Call again to retry.", variant, seed)
        else:
            scores += [read_scores(Path(test[-1]) / "summary.json", variant, seed) for test in commands[1:]]
    failed = len(notes) > 1
    if scores:
        write_table(own.output, scores, notes, grid.get("overview", {}))
    return int(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 for failed runs, 2 for bad input."""
    return run_command(lambda: ablate(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
