"""Clips in HDF5 files, in two forms: the arrays of SSPL's authors, and packed files.

The authors' files hold `train_frames` (N, 256, 256, 3), `train_audios` (N, 48000) and `train_spects`
(or `test_…`), one row a clip, without ids.

A packed file (scripts/pack_hdf5.py) has one entry a clip in each of:

    frames          uint8    the bytes of a JPEG or PNG file
    sounds          int16    mono samples at the file's `sample_rate`
    clip_ids        text
    bounding_boxes  float64  x0, y0, x1, y1 of one box after the other, benchmarks only
"""

import math
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from utils.files import BrokenFileError, decoding

FORMAT = "vssl-clips-2"
FRAMES, SOUNDS = "frames", "sounds"  # of packed files; any other name is one of the authors'
PACKED_NAME = "clips.h5"  # which is looked for in a folder

Split = Literal["train", "test"]
AUTHORS_NAME = re.compile(r"h5py_(train|test)_(frames|audios|spects)(.*?)(?:_(\d+))?\.h5")
"""Split, kind, size (_10k, _144k) and number of the shard."""
AUTHORS_SAMPLE_RATE = 16_000  # Hz
NOT_WHOLE = "not a whole HDF5 file; copy or make it again"
LEVEL_MARGIN = 1e-3  # which the authors add to a sound's range before they divide by it


class HDF5Row(NamedTuple):
    """Where one frame or sound is stored."""

    path: Path
    key: str  # data set in the file
    row: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.row} of {self.key}"


Source = Path | HDF5Row
"""Where a clip's frame or sound is: a file of its own, or a row of an HDF5 file."""


class StoredClips(NamedTuple):
    """The clips of a set of HDF5 files."""

    frames: dict[str, HDF5Row]  # by clip id
    sounds: dict[str, HDF5Row]
    boxes: dict[str, NDArray[np.float64]] | None = None  # (N, 4) fractions of the frame, where there are any
    ids_known: bool = True  # False: the ids are row numbers


# --------------------------------------------------------------------------------- reading a row


@lru_cache(maxsize=32)  # the authors' 144k clips are 20 files of frames and sounds
def _open(path: Path) -> tuple[h5py.File, dict[str, h5py.Dataset]]:
    """Open a file and look its data sets up once, as h5py takes long over it."""
    # Without locks: many file servers refuse them, and nobody writes to a finished file.
    file = h5py.File(path, "r", locking=False)
    return file, dict(file.items())


close_files = _open.cache_clear
os.register_at_fork(before=close_files)  # HDF5 handles must not be used on both sides of a fork


def read_row(source: HDF5Row) -> NDArray[Any]:
    """Read the authors' array; or of packed files the bytes of a picture, (n,), or 16-bit samples, (L,).

    It raises whatever h5py does: see `decoding`.
    """
    return _open(source.path)[1][source.key][source.row]


def read_stored_sound(source: HDF5Row) -> tuple[NDArray[np.float32], int]:
    """Read the samples of a sound, (L,), nominally in [-1, 1], and their rate in Hz.

    Of the authors' files, it is the sound before they levelled it, less its mean: see undo_levelling.
    It raises whatever h5py does, and ValueError for what is no sound.
    """
    content = read_row(source)
    if source.key != SOUNDS:
        return undo_levelling(content), AUTHORS_SAMPLE_RATE
    rate = int(_open(source.path)[0].attrs["sample_rate"])
    return content.astype(np.float32) / np.float32(32_768), rate  # from 16-bit PCM


def undo_levelling(levelled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take SSPL's levelling back, up to a constant that is lost: y (L,) -> x (L,) less its mean.

    The authors store y = 2 ((x - min x) / (R + 1e-3) - 1/2) with R = max x - min x. So
    1 - max y = 2e-3 / (R + 1e-3), and (y + 1) * 1e-3 / (1 - max y) = x - min x. Silence is -1 throughout.

    Raises:
        ValueError: y cannot come from that formula.
    """
    samples = np.asarray(levelled, dtype=np.float64)
    smallest, largest = samples.min(initial=math.inf), samples.max(initial=-math.inf)
    if not (abs(smallest + 1) <= LEVEL_MARGIN and largest < 1):  # NaN is neither
        raise ValueError(
            "it is not levelled as the SSPL authors' sounds are: expected samples from -1 to just "
            f"under 1, got {smallest:.6g} to {largest:.6g}"
        )
    shifted = (samples + 1) * (LEVEL_MARGIN / (1 - largest))
    return (shifted - shifted.mean()).astype(np.float32)


# ----------------------------------------------------------------------------------- listing clips


def read_packed(path: Path, dataset: str) -> StoredClips:
    """List the clips of a packed file.

    Raises:
        ValueError: it is damaged, of another data set or of another format.
    """
    close_files()  # what lies there now counts
    with decoding(path, NOT_WHOLE):
        file, arrays = _open(path)
    found = file.attrs.get("format")
    if found != FORMAT:
        raise BrokenFileError(path, f"its format is {found!r}, expected '{FORMAT}'; pack it again")
    if file.attrs.get("dataset") != dataset:
        raise ValueError(f"{path} holds clips of {file.attrs.get('dataset')}, expected {dataset}.")
    with decoding(path):
        clip_ids = arrays["clip_ids"].asstr()[()].tolist()
        boxes = [stored.reshape(-1, 4) for stored in arrays.get("bounding_boxes", ())]
        return StoredClips(
            {clip_id: HDF5Row(path, FRAMES, row) for row, clip_id in enumerate(clip_ids)},
            {clip_id: HDF5Row(path, SOUNDS, row) for row, clip_id in enumerate(clip_ids)},
            dict(zip(clip_ids, boxes, strict=True)) if boxes else None,
            bool(file.attrs["ids_known"]),
        )


def read_authors(paths: Sequence[Path], split: Split, clip_ids: Sequence[str] | None) -> StoredClips:
    """List the clips of the SSPL authors' files, shards in the order of their numbers.

    Args:
        paths: all of one folder, h5py_<split>_….h5.
        split: train or test.
        clip_ids: of the rows, in their order; None: the ids are row_000000 and so on.

    Raises:
        ValueError: files are missing or too many, of another form, or of another number of rows than there
            are ids.
    """
    close_files()  # what lies there now counts
    folder = paths[0].parent
    files: dict[str, dict[tuple[str, int], Path]] = {"frames": {}, "audios": {}, "spects": {}}
    for path in paths:  # kind -> (size, number; 0: the only one) -> file
        if match := AUTHORS_NAME.fullmatch(path.name):
            files[match[2]][match[3], int(match[4] or 0)] = path
    shards = sorted(files["frames"])
    sizes, numbers = {size for size, _ in shards}, [number for _, number in shards]
    is_one_set = len(sizes) == 1 and numbers in ([0], [*range(1, len(shards) + 1)])
    if not is_one_set or files["audios"].keys() != files["frames"].keys():
        raise ValueError(
            f"{folder} must hold one set, h5py_{split}_frames….h5 and h5py_{split}_audios….h5 of the same "
            "names, whose shards are numbered from 1 on without a gap. It holds "
            f"{', '.join(path.name for path in paths)}."
        )
    frames: list[HDF5Row] = []
    sounds: list[HDF5Row] = []
    for shard in shards:
        of_frames, of_sounds = (_rows(files[kind][shard], f"{split}_{kind}") for kind in ("frames", "audios"))
        if len(of_frames) != len(of_sounds):
            words = " and ".join(f"{rows[0].path.name} {len(rows)}" for rows in (of_frames, of_sounds))
            raise ValueError(f"{folder}: {words} clips. Row i of each file must be the same clip.")
        frames += of_frames
        sounds += of_sounds
    ids = clip_ids or [f"row_{row:06d}" for row in range(len(frames))]
    if len(ids) != len(frames):
        raise ValueError(
            f"--clip-list names {len(ids)} clips, but the h5py_{split}_frames files in {folder} "
            f"hold {len(frames)} rows. They hold no ids: line i of the list must be row i."
        )
    frames_by_id, sounds_by_id = (dict(zip(ids, rows, strict=True)) for rows in (frames, sounds))
    return StoredClips(frames_by_id, sounds_by_id, ids_known=clip_ids is not None)


def _rows(path: Path, key: str) -> list[HDF5Row]:
    """List a file's rows, after a look at the data set's form."""
    with decoding(path, NOT_WHOLE):
        file, arrays = _open(path)
    if key not in arrays:
        raise BrokenFileError(path, f"it has no data set '{key}', it has: {', '.join(file)}")
    shape, dtype = arrays[key].shape, arrays[key].dtype
    is_frames = key.endswith("frames")
    form = "(N, 256, 256, 3), float32 or uint8" if is_frames else "(N, 48000), float32"
    fits = len(shape) == 4 and shape[3] == 3 if is_frames else len(shape) == 2
    if not fits or 0 in shape or dtype.name not in form:
        raise BrokenFileError(path, f"'{key}' is {shape} {dtype}, expected {form}")
    return [HDF5Row(path, key, row) for row in range(shape[0])]
