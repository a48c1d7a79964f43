"""From HDF5 files to the clips in them: which files belong together, and whether they are whole."""

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from datasets.errors import BrokenFileError
from datasets.hdf5 import FORMAT, FRAMES, READ_ERRORS, SOUNDS, HDF5Row, OpenFile, open_anew

PACKED_NAME = re.compile(r"clips(_.+)?\.h5")
"""Our files, when a folder is searched."""

TABLES = (
    "clip_ids", "clip_ids_offsets", "frames_offsets", "frames_crc32", "sounds_offsets",
    "sounds_crc32", "bounding_boxes", "bounding_boxes_offsets",
)  # fmt: skip
"""What index_crc32 covers, in this order; the boxes where the file has them."""

Split = Literal["train", "test"]

AUTHORS_NAME = re.compile(r"h5py_(train|test)_(frames|audios|spects)(.*?)(?:_(\d+))?\.h5")
"""Split, kind, size (_10k, _144k) and number of the shard."""


@dataclass(frozen=True)
class StoredClips:
    """The clips of a set of HDF5 files."""

    frames: dict[str, HDF5Row]
    sounds: dict[str, HDF5Row]
    boxes: dict[str, NDArray[np.float64]] | None
    """clip id -> (N, 4) fractions of the frame; None where the files hold none"""
    ids_known: bool
    """False: the ids are row numbers"""


def packed_files(folder: Path) -> list[Path]:
    """Files of our layout in a folder, by their names."""
    return sorted(path for path in _files(folder) if PACKED_NAME.fullmatch(path.name))


def authors_files(folder: Path, split: Split) -> list[Path]:
    """Files of the SSPL authors' layout in a folder, by their names."""
    matches = ((path, AUTHORS_NAME.fullmatch(path.name)) for path in _files(folder))
    return sorted(path for path, match in matches if match and match[1] == split)


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.h5")) if folder.is_dir() else []


# ----------------------------------------------------------------------------------- our files


def index_crc32(tables: Iterable[NDArray[Any]]) -> int:
    """Checksum over the small tables of a file of ours, in the order of TABLES."""
    checksum = 0
    for table in tables:
        checksum = zlib.crc32(table.tobytes(), checksum)
    return checksum


def read_packed(paths: Sequence[Path], dataset: str) -> StoredClips:
    """Lists the clips of our files.

    Args:
        paths: files of one data set.
        dataset: which one.

    Raises:
        ValueError: a file is damaged, of another data set or format, or a part is missing.
    """
    files = {path: open_anew(path) for path in paths}
    for path, file in files.items():
        check_packed(path, file, dataset)
    _check_parts(files)
    frames: dict[str, HDF5Row] = {}
    sounds: dict[str, HDF5Row] = {}
    boxes: dict[str, NDArray[np.float64]] = {}
    for path, file in files.items():
        for row, clip_id in enumerate(stored_clip_ids(file)):
            if clip_id in frames:
                raise ValueError(
                    f"{path} and {frames[clip_id].path} both hold the clip {clip_id}. Keep one of "
                    "the files in the folder."
                )
            frames[clip_id] = HDF5Row(path, FRAMES, row)
            sounds[clip_id] = HDF5Row(path, SOUNDS, row)
            if "bounding_boxes" in file.file:
                start, end = file.table("bounding_boxes_offsets")[row : row + 2]
                boxes[clip_id] = file.table("bounding_boxes")[start:end]
    if boxes and len(boxes) < len(frames):
        raise ValueError(f"Some of {', '.join(map(str, paths))} hold boxes and some do not.")
    ids_known = all(bool(file.file.attrs["ids_known"]) for file in files.values())
    return StoredClips(frames, sounds, boxes or None, ids_known)


def stored_clip_ids(file: OpenFile) -> list[str]:
    """The clip ids of a file of ours, in the order of its rows."""
    text, offsets = file.table("clip_ids").tobytes(), file.table("clip_ids_offsets").tolist()
    return [text[start:end].decode() for start, end in pairwise(offsets)]


def check_packed(path: Path, file: OpenFile, dataset: str) -> None:
    """Looks whether the tables of a file of ours are whole and fit its content.

    Args:
        path: for messages.
        file: the open file.
        dataset: whose clips it should hold.

    Raises:
        ValueError: it is damaged, or of another data set or format.
    """
    found = file.file.attrs.get("format")
    if found != FORMAT:
        raise BrokenFileError(path, f"its format is {found!r}, expected '{FORMAT}'")
    try:
        if file.file.attrs["dataset"] != dataset:
            raise ValueError(
                f"{path} holds clips of {file.file.attrs['dataset']}, expected {dataset}. "
                "Name the folder of the right file."
            )
        tables = [file.table(name) for name in TABLES if name in file.file]
        is_whole = index_crc32(tables) == file.file.attrs["index_crc32"]
        for key in (FRAMES, SOUNDS):
            offsets = file.table(f"{key}_offsets")
            is_whole &= bool((np.diff(offsets) > 0).all())
            is_whole &= int(offsets[-1]) == len(file.file[key])
    except (KeyError, IndexError, OSError, RuntimeError, TypeError) as error:
        raise BrokenFileError(path, f"it is damaged ({error}); copy or pack it again") from error
    if not is_whole:
        raise BrokenFileError(path, "its list of clips is damaged; copy or pack it again")


def _check_parts(files: dict[Path, OpenFile]) -> None:
    """Refuses a set of which a file is missing."""
    parts: dict[tuple[str, int], set[int]] = {}
    for file in files.values():
        attributes = file.file.attrs
        key = (str(attributes["clips_sha256"]), int(attributes["num_parts"]))
        parts.setdefault(key, set()).add(int(attributes["part"]))
    for (_, num_parts), there in parts.items():
        missing = sorted(set(range(1, num_parts + 1)) - there)
        if missing:
            raise FileNotFoundError(
                f"{next(iter(files)).parent}: of {num_parts} parts, {missing} are missing. Copy or "
                "pack them again."
            )


# ------------------------------------------------------------------------------ the authors' files


def read_authors(paths: Sequence[Path], split: Split, clip_ids: Sequence[str] | None) -> StoredClips:
    """Lists the clips of the SSPL authors' files, shards in the order of their numbers.

    Args:
        paths: all of one folder, see authors_files.
        split: train or test.
        clip_ids: of the rows, in their order; None: the ids are row_000000 and so on.

    Raises:
        ValueError: files that do not go together, of another form, or of another number of rows
            than there are ids.
        FileNotFoundError: frames or sounds, or one of several shards, are missing.
    """
    shards = _group_shards(paths, split)
    frames: list[HDF5Row] = []
    sounds: list[HDF5Row] = []
    for shard in shards:
        num_rows = {kind: _num_rows(path, split, kind) for kind, path in shard.items()}
        if len(set(num_rows.values())) > 1:
            counts = ", ".join(f"{shard[kind].name} {count}" for kind, count in num_rows.items())
            raise ValueError(
                f"{shard['frames'].parent}: the files differ in their number of clips: {counts}. "
                "Row i of each must be the same clip."
            )
        rows = range(num_rows["frames"])
        frames.extend(HDF5Row(shard["frames"], f"{split}_frames", row) for row in rows)
        sounds.extend(HDF5Row(shard["audios"], f"{split}_audios", row) for row in rows)
    if clip_ids is not None and len(clip_ids) != len(frames):
        raise ValueError(
            f"--clip-list names {len(clip_ids)} clips, but the h5py_{split}_frames files in "
            f"{shards[0]['frames'].parent} hold {len(frames)} rows. They hold no ids: line i of "
            "the list must be row i."
        )
    ids = clip_ids or [f"row_{row:06d}" for row in range(len(frames))]
    return StoredClips(
        dict(zip(ids, frames, strict=True)),
        dict(zip(ids, sounds, strict=True)),
        None,
        ids_known=clip_ids is not None,
    )


def _group_shards(paths: Sequence[Path], split: Split) -> list[dict[str, Path]]:
    """One mapping kind -> file a shard, in the order of the shards' numbers."""
    folder = paths[0].parent
    by_shard: dict[tuple[str, int | None], dict[str, Path]] = {}
    for path in paths:
        match = AUTHORS_NAME.fullmatch(path.name)
        assert match
        number = int(match[4]) if match[4] else None
        by_shard.setdefault((match[3], number), {})[match[2]] = path
    sizes = sorted({size for size, _ in by_shard})
    numbers = sorted(number for _, number in by_shard if number is not None)
    if len(sizes) > 1 or (numbers and len(numbers) < len(by_shard)):
        raise ValueError(
            f"{folder} holds several sets: {', '.join(path.name for path in paths)}. Expected one; "
            "move the others into folders of their own."
        )
    for key, shard in by_shard.items():
        for kind in ("frames", "audios"):
            if kind not in shard:
                suffix = key[0] + ("" if key[1] is None else f"_{key[1]}")
                raise FileNotFoundError(
                    f"{folder}: no h5py_{split}_{kind}{suffix}.h5 beside {next(iter(shard.values())).name}."
                )
    gaps = sorted(set(range(1, max(numbers) + 1)) - set(numbers)) if numbers else []
    if gaps:
        raise FileNotFoundError(
            f"{folder}: of the files h5py_{split}_frames{sizes[0]}_1.h5 to _{numbers[-1]}.h5, the "
            f"numbers {gaps} are missing."
        )
    return [by_shard[key] for key in sorted(by_shard, key=lambda key: key[1] or 0)]


def _num_rows(path: Path, split: Split, kind: str) -> int:
    """Number of clips, after a look at the data set's form."""
    file = open_anew(path).file
    key = f"{split}_{kind}"
    try:
        stored = file[key]
        is_array = isinstance(stored, h5py.Dataset)
    except READ_ERRORS:
        is_array = False
    if not is_array:
        raise BrokenFileError(path, f"it has no data set '{key}', it has: {', '.join(file)}")
    shape, dtype = stored.shape, stored.dtype
    fits, expected = {
        "frames": (
            len(shape) == 4 and shape[3] == 3 and dtype in (np.float32, np.uint8),
            "(N, 256, 256, 3), float32 or uint8",
        ),
        "audios": (len(shape) == 2 and dtype == np.float32, "(N, 48000), float32"),
        "spects": (shape[1:] == (3, 96, 64), "(N, 3, 96, 64), float32"),
    }[kind]
    if not fits or 0 in shape:
        raise BrokenFileError(path, f"'{key}' is {shape} {dtype}, expected {expected}")
    return int(shape[0])
