"""Command line: composes a training and a test set, or finds that it is there already.

python -m datasets.stamps data/stamps --train 2000 --test 200 --seed 0
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.stamps.errors import MaterialUnavailableError, StampsError
from datasets.stamps.material import Material, load_real_material
from datasets.stamps.packages import default_cache
from datasets.stamps.procedural import make_procedural_material
from datasets.stamps.writer import Recipe, find_finished_set, write_set

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for what the user can mend."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="stamps: %(message)s")
    try:
        _make(options)
    except (StampsError, OSError) as error:
        sys.stderr.write(f"stamps: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stamps: stopped; nothing was left behind\n")
        return 130
    sys.stdout.write(f"{options.folder}\n")
    return 0


def _make(options: argparse.Namespace) -> None:
    recipe = Recipe(
        source=options.source,
        seed=options.seed,
        num_train=options.train,
        num_test=options.test,
        num_classes=options.classes,
        frame_size=options.frame_size,
    )
    any_source = options.source == "auto"
    finished = find_finished_set(options.folder, recipe, any_source=any_source)
    if finished:
        log.info("%s is complete (source: %s); nothing to do", options.folder, finished)
        return
    material = _load(options)
    recipe = replace(recipe, source=material.source)
    write_set(options.folder, recipe, material, num_workers=options.workers)
    log.info("%d + %d clips, source: %s", recipe.num_train, recipe.num_test, recipe.source)


def _load(options: argparse.Namespace) -> Material:
    if options.source != "procedural":
        try:
            return load_real_material(options.classes, options.frame_size, options.cache)
        except MaterialUnavailableError as error:
            if options.source == "real":
                raise
            log.warning("WARNING: no real material: %s", error)
            log.warning("WARNING: drawings and synthesised sounds are used instead (procedural)")
    return make_procedural_material(options.classes, options.frame_size)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.stamps",
        description="Composes clips of object photos on background photos, one object heard.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to make")
    add = parser.add_argument
    add("--train", type=_at_least(1), default=2000, metavar="N", help="training clips")
    add("--test", type=_at_least(1), default=200, metavar="M", help="test clips")
    add("--seed", type=_at_least(0), default=0, metavar="S", help="seed of all chance")
    add("--classes", type=int, default=12, metavar="K", help="first K classes of the list")
    add("--frame-size", type=_at_least(64), default=256, metavar="PIXELS", help="side of a frame")
    add(
        "--source",
        choices=("auto", "real", "procedural"),
        default="auto",
        help="real: photos and recordings of two Debian packages; procedural: drawings and "
        "synthesised sounds; auto: procedural only where real is not to be had",
    )
    add("--cache", type=Path, default=default_cache(), help="where packages are kept")
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add("--workers", type=_at_least(1), default=num_cores, metavar="W", help="processes")
    return parser.parse_args(arguments)


def _at_least(smallest: int) -> Callable[[str], int]:
    """Makes an argparse type: a whole number with a lower bound."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
