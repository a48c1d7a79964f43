"""Makes the quickstart's model a file to pass on: weights without the optimiser, and a model card.

    bash scripts/make_quickstart_checkpoint.sh            # ckpts/quickstart_ssl_tie.pth and .md

Trains and scores by `scripts/quickstart.sh`, with its environment variables, unless the run that is
there is finished and scored; goes on where it was stopped. A run that was made with other options
or before the data set that lies there is refused, not passed on.
"""

import argparse
import csv
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import opts
from datasets.clip_lists import read_clip_list
from utils.checkpoint import (
    Checkpoint,
    file_sha256,
    parse_checkpoint,
    read_checkpoint_file,
    save_checkpoint,
    weights_sha256,
)
from utils.files import write_atomically
from utils.model_card import ModelCard, render_model_card
from utils.reporting import configure_logging, run_command

logger = logging.getLogger("make_quickstart_checkpoint")

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "scripts" / "quickstart.sh"
DEFAULT_FILE = ROOT / "ckpts" / "quickstart_ssl_tie.pth"
VARIABLES = ("QUICKSTART_SIZE", "QUICKSTART_DATA", "QUICKSTART_OUTPUT", "QUICKSTART_STAMPS")
"""Of the environment, that quickstart.sh reads."""
HEADLINE, CONTROL = "test", "wrong_sound"
"""Results that every quickstart has."""


def make_quickstart_checkpoint(path: Path, arguments: Sequence[str]) -> int:
    """Trains, scores and exports as far as that is not done; returns 0, or quickstart.sh's status.

    Args:
        path: of the file to write; the card stands beside it, as .md.
        arguments: of main.py ssl_tie, beside the quickstart's.

    Raises:
        ValueError: the run that is there is of other options or other data.
    """
    if "--method" in arguments:
        raise ValueError("The quickstart's checkpoint is SSL-TIE's: leave --method out.")
    options = quickstart_options(arguments)
    run, data = Path(options["run"]["output"]), Path(options["data"]["data_root"])
    last_path, manifest = run / "last.pth", data / "stamps.json"
    before = check_run(last_path, options, manifest)
    if before is not None and is_finished(before, options) and read_results(run):
        logger.info("%s is trained and scored; nothing to train", last_path)
    else:
        status = subprocess.run(["bash", QUICKSTART, *arguments], check=False).returncode
        if status:
            logger.error("scripts/quickstart.sh ended with status %d; call again to go on.", status)
            return status
    trained = check_run(last_path, options, manifest)
    results = read_results(run)
    if trained is None or not is_finished(trained, options) or HEADLINE not in results:
        raise ValueError(f"{run} holds no finished and scored run, though the quickstart ended.")
    export(path, trained, run, data, results, arguments)
    sys.stdout.write(f"{path}\n{path.with_suffix('.md')}\n")
    return 0


def quickstart_options(arguments: Sequence[str]) -> dict[str, Any]:
    """All options of main.py that quickstart.sh would train with, as plain values.

    Raises:
        ValueError: it refuses them; it has said why.
    """
    command = ["bash", str(QUICKSTART), *arguments, "--dry-run"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if finished.returncode:
        raise ValueError("scripts/quickstart.sh refuses these options; its message stands above.")
    return json.loads(finished.stdout)


def check_run(last_path: Path, options: Mapping[str, Any], manifest: Path) -> Checkpoint | None:
    """The run's newest checkpoint, if it is the one that is wanted; None where there is none.

    Args:
        last_path: of the checkpoint.
        options: that are wanted.
        manifest: of the data set.

    Raises:
        ValueError: it was trained otherwise, for longer, on other clips or on an older set.
    """
    if not last_path.exists():
        return None
    checkpoint = parse_checkpoint(read_checkpoint_file(last_path), last_path)
    differences = opts.differences_that_matter(checkpoint.options, options)
    listed, epochs = Path(options["data"]["clip_list"]), options["optimisation"]["epochs"]
    if not manifest.is_file() or not listed.is_file():
        differences.append(f"its data set is not at {manifest.parent}")
    else:
        if read_clip_list(listed).sha256 != checkpoint.training_list.get("sha256"):
            differences.append(f"the training list {listed}")
        # Clips of another set have the same ids.
        if manifest.stat().st_mtime > last_path.stat().st_mtime:
            differences.append(f"{manifest} was made after it")
    if checkpoint.epoch > epochs:
        differences.append(f"--epochs: {checkpoint.epoch} are done, {epochs} are wanted")
    if differences:
        raise ValueError(
            f"{last_path} is not the model that is wanted: {'; '.join(differences)}. Remove "
            f"{last_path.parent}, or have the quickstart train elsewhere: "
            "QUICKSTART_OUTPUT=runs/another bash scripts/make_quickstart_checkpoint.sh"
        )
    return checkpoint


def is_finished(checkpoint: Checkpoint, options: Mapping[str, Any]) -> bool:
    """Whether all epochs are done."""
    return checkpoint.epoch == options["optimisation"]["epochs"]


def read_results(run: Path) -> dict[str, dict[str, Any]]:
    """The evaluations of a run's last.pth by name, the headline first.

    quickstart.sh removes all results before it scores, and scores the whole test list last, so that
    there are all or none.

    Returns:
        summaries; empty where the last one is missing, or any is of another checkpoint.
    """
    paths = sorted(run.glob("results/*/summary.json"))
    found = {path.parent.name: json.loads(path.read_text()) for path in paths}
    sha256 = file_sha256(run / "last.pth")
    if not {HEADLINE, CONTROL} <= found.keys() or any(
        one["checkpoint"]["sha256"] != sha256 for one in found.values()
    ):
        return {}
    return {name: found[name] for name in sorted(found, key=lambda n: (n != HEADLINE, n))}


def export(
    path: Path,
    trained: Checkpoint,
    run: Path,
    data: Path,
    results: Mapping[str, Mapping[str, Any]],
    arguments: Sequence[str],
) -> None:
    """Writes the weights and their card; the card last, so that there is none of another file.

    Args:
        path: of the weights.
        trained: the finished run's checkpoint.
        run: its folder.
        data: folder of the data set.
        results: its evaluations.
        arguments: of main.py, beside the quickstart's.

    Raises:
        ValueError: what was written does not hold the run's weights.
    """
    card_path = path.with_suffix(".md")
    card_path.unlink(missing_ok=True)
    save_checkpoint(path, replace(trained, optimizer=None, progress={}))
    written = parse_checkpoint(read_checkpoint_file(path), path)
    sha256 = weights_sha256(written.state_dict)
    if sha256 != weights_sha256(trained.state_dict):
        raise ValueError(f"{path} does not hold the weights of {run / 'last.pth'}: disk full?")
    with (run / "history.csv").open(newline="") as file:
        losses = list(csv.DictReader(file))
    given = [f"{name}={shlex.quote(os.environ[name])}" for name in VARIABLES if name in os.environ]
    program = "bash scripts/make_quickstart_checkpoint.sh"
    card = ModelCard(
        title="SSL-TIE, trained by the quickstart",
        file_name=path.name,
        num_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        weights_sha256=sha256,
        num_values=sum(
            tensor.numel() for tensor in trained.state_dict.values() if tensor.is_floating_point()
        ),
        method=trained.method,
        epochs=trained.epoch,
        training_list=trained.training_list,
        training_clips=trained.training_clips or [],
        changed_options=changed_options(trained.options),
        options=trained.options,
        command=" ".join([*given, program, shlex.join(arguments)]).strip(),
        data=json.loads((data / "stamps.json").read_text()),
        data_sha256=file_sha256(data / "stamps.json"),
        evaluations=results,
        losses=losses,
        environment=results[HEADLINE]["environment"],
    )
    write_atomically(card_path, render_model_card(card).encode())


def changed_options(options: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options of a run that differ from the published recipe: name -> (here, there)."""
    published = opts.as_plain(
        opts.parse_train_options(["ssl_tie", "--train-set", "vggsound", "--data-root", "-", "--output", "-"])
    )
    changed = {}
    for group, values in options.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            there = (published.get(group) or {}).get(name)
            if value != there and group not in ("data", "run", "validation"):
                changed[name] = (value, there)
    return changed


def build_parser() -> argparse.ArgumentParser:
    """Command line; what it does not know goes to the quickstart."""
    parser = argparse.ArgumentParser(
        prog="make_quickstart_checkpoint.sh",
        usage="%(prog)s [--file ckpts/NAME.pth] [options of main.py ssl_tie]",
        description="Trains the quickstart's SSL-TIE and writes weights with a model card.",
        allow_abbrev=False,
    )
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE, help="weights; the card: .md")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 2 for bad input, else the quickstart's."""
    configure_logging()
    own, rest = build_parser().parse_known_args(arguments)
    return run_command(lambda: make_quickstart_checkpoint(own.file.absolute(), rest))


if __name__ == "__main__":
    sys.exit(main())
