"""Fetches the published weights of encoders that are never trained here, and verifies them.

    bash scripts/get_weights.sh              # all: SSPL's encoders and the object prior's
    bash scripts/get_weights.sh vgg16        # one of them

A file that is there is verified and not fetched again. See ckpts/README.md.
"""

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from models.pretrained import PRETRAINED, fetch_pretrained
from utils.reporting import configure_logging, run_command

logger = logging.getLogger("get_weights")

TIMEOUT_SECONDS = 30


def get_weights(names: Sequence[str], folder: Path) -> int:
    """Fetches files one after the other, also after one has failed.

    Args:
        names: encoders whose weights are wanted; none: all.
        folder: where the files go.

    Returns:
        exit status: 0, or 2 if a file could not be had.

    Raises:
        ValueError: there is no such encoder.
    """
    unknown = [name for name in names if name not in PRETRAINED]
    if unknown:
        raise ValueError(f"No weights are known of {unknown}; there are: {', '.join(PRETRAINED)}.")
    # PyTorch's downloader sets no limit of its own: a dead connection would hang for ever.
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    status = 0
    for kind in (kind for kind in PRETRAINED if not names or kind in names):
        try:
            path = fetch_pretrained(kind, folder)
        except (OSError, ValueError) as error:
            logger.error("%s", error)
            status = 2
        else:
            sys.stdout.write(f"{kind}: {PRETRAINED[kind].title}, verified: {path}\n")
    return status


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="get_weights.sh",
        description="Fetches the weights of SSPL's frozen encoders and of the object prior.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(PRETRAINED)}; without names: all"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "ckpts",
        help="where the files go (default: ckpts/ in the project)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    configure_logging()
    parsed = build_parser().parse_args(arguments)
    return run_command(lambda: get_weights(parsed.names, parsed.folder))


if __name__ == "__main__":
    sys.exit(main())
