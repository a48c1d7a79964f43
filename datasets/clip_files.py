"""What a data set on disk consists of: for each kind of content, where that of a clip is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.hdf5 import Source


@dataclass(frozen=True)
class ClipFiles:
    """A data set on disk, by clip id."""

    frames: Mapping[str, Source]
    sounds: Mapping[str, Source]
    annotations: dict[str, Path] | None
    """XML files"""
    expected: dict[str, str]
    """kind of content -> pattern of its place, for messages"""
    boxes: dict[str, NDArray[np.float64]] | None = None
    """(N, 4) fractions, where our HDF5 files or a list of frames with their sounds hold them"""
    boxes_json: Path | None = None
    """where it is in its place in the SSPL authors' layout"""
    ids_known: bool = True
    """False: HDF5 files without ids; they are row numbers"""
    masks: dict[str, Path] | None = None
    """pictures of the object"""


def files_by_id(folders: Iterable[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """File name without its suffix -> file; the first folder and then the first suffix win.

    Args:
        folders: looked through in this order.
        suffixes: of the files, in lower case.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        by_suffix: dict[str, list[Path]] = {suffix: [] for suffix in suffixes}
        for path in sorted(folder.iterdir()):
            by_suffix.get(path.suffix.lower(), []).append(path)
        for suffix in suffixes:
            for path in by_suffix[suffix]:
                found.setdefault(path.stem, path)
    return found
