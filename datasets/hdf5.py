"""Clips in HDF5 files, in two forms: the arrays of SSPL's authors, and packed files.

The authors' files hold `train_frames` (N, 256, 256, 3), `train_audios` (N, 48000) and `train_spects`
(or `test_…`), one row a clip, without ids.

A packed file (scripts/pack_hdf5.py) holds all clips of a kind one after the other, N + 1 offsets at
which they begin and end, and a checksum for each:

    frames       uint8    JPEG or PNG files              + frames_offsets, frames_crc32
    sounds       int16    mono samples at sample_rate    + sounds_offsets, sounds_crc32
    clip_ids     uint8    UTF-8                          + clip_ids_offsets
    bounding_boxes float64 (M, 4), benchmarks only       + bounding_boxes_offsets
"""

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from utils.files import BrokenFileError

FORMAT = "vssl-clips-1"
FRAMES, SOUNDS = "frames", "sounds"
"""Contents of packed files; any other name is one of the authors'."""
PACKED_NAME = re.compile(r"clips(_.+)?\.h5")

Split = Literal["train", "test"]
AUTHORS_NAME = re.compile(r"h5py_(train|test)_(frames|audios|spects)(.*?)(?:_(\d+))?\.h5")
"""Split, kind, size (_10k, _144k) and number of the shard."""
AUTHORS_SAMPLE_RATE = 16_000  # Hz
LEVEL_MARGIN = 1e-3
"""What the authors add to a sound's range before they divide by it."""

READ_ERRORS = (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError, AttributeError)
"""What h5py raises for files that are damaged or of another form."""


@dataclass(frozen=True, slots=True)
class HDF5Row:
    """Where one frame or sound is stored."""

    path: Path
    key: str
    """data set in the file"""
    row: int

    def __str__(self) -> str:
        """For messages."""
        return f"{self.path}, row {self.row} of {self.key}"


Source = Path | HDF5Row
"""Where a clip's frame or sound is: a file of its own, or a row of an HDF5 file."""


@dataclass(frozen=True)
class StoredClips:
    """The clips of a set of HDF5 files."""

    frames: dict[str, HDF5Row]
    sounds: dict[str, HDF5Row]
    boxes: dict[str, NDArray[np.float64]] | None = None
    """clip id -> (N, 4) fractions of the frame; None where the files hold none"""
    ids_known: bool = True
    """False: the ids are row numbers"""


# --------------------------------------------------------------------------------- reading a row


class _File(dict[str, Any]):
    """An open file's data sets by name, looked up once, as h5py takes long over it."""

    def __init__(self, path: Path) -> None:
        # Without locks: many file servers refuse them, and nobody writes to a finished file.
        self.file = h5py.File(path, "r", locking=False)

    def __missing__(self, key: str) -> Any:  # noqa: ANN401 - a data set, or the whole array if it is small
        small = key.endswith(("_offsets", "_crc32")) or key in ("clip_ids", "bounding_boxes")
        self[key] = self.file[key][()] if small else self.file[key]
        return self[key]


_open = lru_cache(maxsize=32)(_File)  # the authors' 144k clips are 20 files of frames and sounds
close_files = _open.cache_clear
os.register_at_fork(before=close_files)  # HDF5 handles must not be used on both sides of a fork


def read_row(source: HDF5Row) -> NDArray[Any]:
    """Read what is stored, and check it where the file holds checksums.

    Returns:
        the authors' array; or the bytes of a picture, uint8 (n,), or the samples, int16 (L,).

    Raises:
        BrokenFileError: the file or the row cannot be read, or its checksum is wrong.
    """
    key, row = source.key, source.row
    try:
        file = _open(source.path)
        if key not in (FRAMES, SOUNDS):
            return file[key][row]
        start, end = file[f"{key}_offsets"][row : row + 2].tolist()
        content = file[key][start:end]
        if zlib.crc32(content) != file[f"{key}_crc32"][row]:
            raise ValueError("its checksum is wrong, the file is damaged")
    except READ_ERRORS as error:
        raise BrokenFileError(source, str(error)) from error
    return content


def read_stored_sound(source: HDF5Row) -> tuple[NDArray[np.float32], int]:
    """Read a sound.

    Returns:
        (L,) samples, nominally in [-1, 1], and their rate in Hz. Of the authors' files, the sound
        before they levelled it, less its mean: see undo_levelling.

    Raises:
        BrokenFileError: the row cannot be read or is no sound.
    """
    content = read_row(source)
    try:
        if source.key != SOUNDS:
            return undo_levelling(content), AUTHORS_SAMPLE_RATE
        rate = int(_open(source.path).file.attrs["sample_rate"])
    except READ_ERRORS as error:
        raise BrokenFileError(source, str(error)) from error
    return (content / np.float32(32_768)).astype(np.float32, copy=False), rate  # from 16-bit PCM


def undo_levelling(levelled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take SSPL's levelling back, up to a constant that is lost.

    The authors store y = 2 ((x - min x) / (R + 1e-3) - 1/2) with R = max x - min x. So
    1 - max y = 2e-3 / (R + 1e-3), and (y + 1) * 1e-3 / (1 - max y) = x - min x.

    Args:
        levelled: y, (L,), smallest sample -1, largest below 1; silence is -1 throughout.

    Returns:
        (L,) x less its mean. Levelled again it gives y.

    Raises:
        ValueError: y cannot come from that formula.
    """
    samples = np.asarray(levelled, dtype=np.float64)
    if not samples.size:
        raise ValueError("it holds no audio sample")
    if not np.isfinite(samples).all():
        raise ValueError("it holds samples that are not finite numbers")
    smallest, largest = float(samples.min()), float(samples.max())
    if abs(smallest + 1) > LEVEL_MARGIN or largest >= 1:
        raise ValueError(
            "it is not levelled as the SSPL authors' sounds are: expected samples from -1 to just "
            f"under 1, got {smallest:.6g} to {largest:.6g}"
        )
    shifted = (samples + 1) * (LEVEL_MARGIN / (1 - largest))
    return (shifted - shifted.mean()).astype(np.float32)


# ----------------------------------------------------------------------------------- listing clips


def packed_files(folder: Path) -> list[Path]:
    """List the packed files in a folder, by their names."""
    return sorted(path for path in folder.glob("*.h5") if PACKED_NAME.fullmatch(path.name))


def read_packed(paths: Sequence[Path], dataset: str) -> StoredClips:
    """List the clips of packed files of one data set.

    Raises:
        ValueError: a file is damaged, of another data set or format, or two hold the same clip.
        FileNotFoundError: a part is missing.
    """
    close_files()  # what lies there now counts
    frames: dict[str, HDF5Row] = {}
    sounds: dict[str, HDF5Row] = {}
    boxes: dict[str, NDArray[np.float64]] = {}
    ids_known = True
    for path in paths:
        file = _open_whole(path)
        attributes = file.file.attrs
        if attributes.get("format") != FORMAT:
            raise BrokenFileError(path, f"its format is {attributes.get('format')!r}, expected '{FORMAT}'")
        if attributes.get("dataset") != dataset:
            raise ValueError(
                f"{path} holds clips of {attributes.get('dataset')}, expected {dataset}. Name the folder "
                "of the right file."
            )
        missing = int(attributes.get("num_parts", 1)) - len(paths)  # earlier versions wrote parts
        if missing > 0:
            raise FileNotFoundError(
                f"{path.parent}: of {attributes['num_parts']} parts, {missing} are missing. Copy or pack "
                "them again."
            )
        ids_known &= bool(attributes.get("ids_known", True))
        try:
            for key in (FRAMES, SOUNDS, "clip_ids"):
                offsets = file[f"{key}_offsets"]
                if (np.diff(offsets) <= 0).any() or offsets[-1] != len(file[key]):
                    raise ValueError(f"{key}_offsets does not fit {key}")
            text, ends = file["clip_ids"].tobytes(), file["clip_ids_offsets"].tolist()
            for row, clip_id in enumerate(text[start:end].decode() for start, end in pairwise(ends)):
                if clip_id in frames and frames[clip_id].path != path:
                    raise FileExistsError(f"{frames[clip_id].path} holds the clip {clip_id} too. Keep one")
                frames[clip_id] = HDF5Row(path, FRAMES, row)
                sounds[clip_id] = HDF5Row(path, SOUNDS, row)
                if "bounding_boxes" in file.file:
                    first, last = file["bounding_boxes_offsets"][row : row + 2]
                    boxes[clip_id] = file["bounding_boxes"][first:last]
        except FileExistsError as error:
            raise ValueError(f"{path}: {error} of the files in the folder.") from None
        except READ_ERRORS as error:
            raise BrokenFileError(path, f"it is damaged ({error}); copy or pack it again") from error
    return StoredClips(frames, sounds, boxes or None, ids_known)


def _open_whole(path: Path) -> _File:
    try:
        return _open(path)
    except READ_ERRORS as error:
        raise BrokenFileError(path, f"not a whole HDF5 file ({error}); copy or make it again") from error


def authors_files(folder: Path, split: Split) -> list[Path]:
    """List the files of the SSPL authors' layout in a folder, by their names."""
    matches = ((path, AUTHORS_NAME.fullmatch(path.name)) for path in folder.glob("*.h5"))
    return sorted(path for path, match in matches if match and match[1] == split)


def read_authors(paths: Sequence[Path], split: Split, clip_ids: Sequence[str] | None) -> StoredClips:
    """List the clips of the SSPL authors' files, shards in the order of their numbers.

    Args:
        paths: all of one folder, see authors_files.
        split: train or test.
        clip_ids: of the rows, in their order; None: the ids are row_000000 and so on.

    Raises:
        ValueError: files that do not go together, of another form, or of another number of rows
            than there are ids.
        FileNotFoundError: frames or sounds, or one of several shards, are missing.
    """
    close_files()  # what lies there now counts
    folder = paths[0].parent
    shards: dict[tuple[str, int], dict[str, Path]] = {}  # (size, number; 0: the only one) -> kind -> file
    for path in paths:
        match = AUTHORS_NAME.fullmatch(path.name)
        assert match
        shards.setdefault((match[3], int(match[4] or 0)), {})[match[2]] = path
    numbers = sorted(number for _, number in shards)
    if len({size for size, _ in shards}) > 1 or (len(numbers) > 1 and numbers[0] == 0):
        raise ValueError(
            f"{folder} holds several sets: {', '.join(path.name for path in paths)}. Expected one; "
            "move the others into folders of their own."
        )
    gaps = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if gaps:
        raise FileNotFoundError(
            f"{folder}: of the files {paths[0].name} to {numbers[-1]}, the numbers {gaps} are missing."
        )
    frames: list[HDF5Row] = []
    sounds: list[HDF5Row] = []
    for (size, number), shard in sorted(shards.items()):
        for kind in {"frames", "audios"} - shard.keys():
            name = f"h5py_{split}_{kind}{size}" + (f"_{number}.h5" if number else ".h5")
            raise FileNotFoundError(f"{folder}: no {name} beside {next(iter(shard.values())).name}.")
        num_rows = {path.name: _num_rows(path, f"{split}_{kind}") for kind, path in shard.items()}
        if len(set(num_rows.values())) > 1:
            raise ValueError(
                f"{folder}: the files differ in their number of clips: "
                + ", ".join(f"{name} {count}" for name, count in num_rows.items())
                + ". Row i of each must be the same clip."
            )
        rows = range(min(num_rows.values()))
        frames.extend(HDF5Row(shard["frames"], f"{split}_frames", row) for row in rows)
        sounds.extend(HDF5Row(shard["audios"], f"{split}_audios", row) for row in rows)
    if clip_ids is not None and len(clip_ids) != len(frames):
        raise ValueError(
            f"--clip-list names {len(clip_ids)} clips, but the h5py_{split}_frames files in {folder} "
            f"hold {len(frames)} rows. They hold no ids: line i of the list must be row i."
        )
    ids = clip_ids or [f"row_{row:06d}" for row in range(len(frames))]
    return StoredClips(
        dict(zip(ids, frames, strict=True)),
        dict(zip(ids, sounds, strict=True)),
        ids_known=clip_ids is not None,
    )


def _num_rows(path: Path, key: str) -> int:
    """Return the number of clips, after a look at the data set's form."""
    file = _open_whole(path)
    try:
        shape, dtype = file[key].shape, file[key].dtype
    except READ_ERRORS:
        raise BrokenFileError(path, f"it has no data set '{key}', it has: {', '.join(file.file)}") from None
    fits, expected = {
        "frames": (
            len(shape) == 4 and shape[3] == 3 and dtype in (np.float32, np.uint8),
            "(N, 256, 256, 3), float32 or uint8",
        ),
        "audios": (len(shape) == 2 and dtype == np.float32, "(N, 48000), float32"),
        "spects": (shape[1:] == (3, 96, 64), "(N, 3, 96, 64), float32"),
    }[key.partition("_")[2]]
    if not fits or 0 in shape:
        raise BrokenFileError(path, f"'{key}' is {shape} {dtype}, expected {expected}")
    return int(shape[0])
