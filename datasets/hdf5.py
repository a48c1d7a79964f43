"""One row of an HDF5 file: a stored frame or sound, in the layout of SSPL's authors or in ours.

The authors' files hold arrays: `train_frames` (N, 256, 256, 3), `train_audios` (N, 48000) and
`train_spects` (or `test_…`), one row a clip, without ids.

Ours ("vssl-clips-1", written by datasets/pack_hdf5.py) holds, for each kind of content, all clips
one after the other and N + 1 offsets at which they begin and end:

    frames       uint8    JPEG or PNG files              + frames_offsets, frames_crc32
    sounds       int16    mono samples at sample_rate    + sounds_offsets, sounds_crc32
    clip_ids     uint8    UTF-8                          + clip_ids_offsets
    bounding_boxes float64 (M, 4), benchmarks only       + bounding_boxes_offsets
"""

import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from datasets.errors import BrokenFileError

FORMAT = "vssl-clips-1"
FRAMES, SOUNDS = "frames", "sounds"
"""Data sets of our files; any other name is one of the authors'."""

AUTHORS_SAMPLE_RATE = 16_000
"""Hz, of every sound in the authors' files."""
FULL_SCALE = 32_768.0
"""What a sample of 1.0 is as 16-bit PCM."""

LEVEL_MARGIN = 1e-3
"""What the authors add to a sound's largest sample before they divide by it."""

MAX_OPEN_FILES = 32
"""The authors' 144k clips are 20 files of frames and sounds."""

READ_ERRORS = (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError)
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


def read_row(source: HDF5Row) -> NDArray[Any]:
    """Reads what is stored, and checks it where the file holds checksums.

    Returns:
        the authors' array; or the bytes of a picture, uint8 (n,), or the samples, int16 (L,).

    Raises:
        BrokenFileError: the file or the row cannot be read, or its checksum is wrong.
    """
    try:
        with _open_files.lock:
            return _open_files.get(source.path).read(source.key, source.row)
    except READ_ERRORS as error:
        raise BrokenFileError(source, str(error)) from error


def read_stored_sound(source: HDF5Row) -> tuple[NDArray[np.float32], int]:
    """Reads a sound.

    Returns:
        (L,) samples, nominally in [-1, 1], and their rate in Hz. Of the authors' files, the sound
        before they levelled it, less its mean: see undo_levelling.

    Raises:
        BrokenFileError: the row cannot be read or is no sound.
    """
    content = read_row(source)
    if source.key != SOUNDS:
        try:
            return undo_levelling(content), AUTHORS_SAMPLE_RATE
        except ValueError as error:
            raise BrokenFileError(source, str(error)) from error
    try:
        with _open_files.lock:
            rate = _open_files.get(source.path).sample_rate
    except READ_ERRORS as error:
        raise BrokenFileError(source, str(error)) from error
    return (content / np.float32(FULL_SCALE)).astype(np.float32, copy=False), rate


def undo_levelling(levelled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Takes SSPL's levelling back, up to a constant that is lost.

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


class OpenFile:
    """An HDF5 file; what every read needs of it is looked up once, as h5py takes long over it."""

    def __init__(self, path: Path) -> None:
        """Opens for reading.

        Args:
            path: any HDF5 file.
        """
        # Without locks: many file servers refuse them, and nobody writes to a finished file.
        self.file = h5py.File(path, "r", locking=False)
        self._data_sets: dict[str, h5py.Dataset] = {}
        self._tables: dict[str, NDArray[Any]] = {}

    def data_set(self, key: str) -> h5py.Dataset:
        """A data set, not read yet."""
        if key not in self._data_sets:
            self._data_sets[key] = self.file[key]
        return self._data_sets[key]

    def table(self, key: str) -> NDArray[Any]:
        """A whole data set, read once."""
        if key not in self._tables:
            self._tables[key] = self.file[key][()]
        return self._tables[key]

    @cached_property
    def sample_rate(self) -> int:
        """Hz, of the sounds in a file of ours."""
        return int(self.file.attrs["sample_rate"])

    def read(self, key: str, row: int) -> NDArray[Any]:
        """One row of the authors' or our layout, see read_row."""
        if key not in (FRAMES, SOUNDS):
            return self.data_set(key)[row]
        start, end = self.table(f"{key}_offsets")[row : row + 2].tolist()
        content = self.data_set(key)[start:end]
        if zlib.crc32(content) != self.table(f"{key}_crc32")[row]:
            raise ValueError("its checksum is wrong, the file is damaged")
        return content


class _OpenFiles:
    """Files open in this process; the one read longest ago is closed first.

    An HDF5 handle must not be used on both sides of a fork, so all are closed before one and
    opened again when they are next needed.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()
        os.register_at_fork(
            before=self._prepare_fork, after_in_parent=self.lock.release, after_in_child=self.lock.release
        )

    def get(self, path: Path) -> OpenFile:
        if path not in self._files:
            while len(self._files) >= MAX_OPEN_FILES:
                self._files.popitem(last=False)[1].file.close()
            self._files[path] = OpenFile(path)
        self._files.move_to_end(path)
        return self._files[path]

    def close(self, path: Path) -> None:
        if path in self._files:
            self._files.pop(path).file.close()

    def _prepare_fork(self) -> None:
        self.lock.acquire()
        for path in list(self._files):
            self.close(path)


_open_files = _OpenFiles()


def open_anew(path: Path) -> OpenFile:
    """Opens a file to look at its structure; what this process had open of it is closed.

    Raises:
        BrokenFileError: it is not a whole HDF5 file.
    """
    try:
        with _open_files.lock:
            _open_files.close(path)
            return _open_files.get(path)
    except READ_ERRORS as error:
        raise BrokenFileError(path, f"not a whole HDF5 file ({error}); copy or make it again") from error


def close_file(path: Path) -> None:
    """Lets go of a file, so that what is read next is what lies on the disk."""
    with _open_files.lock:
        _open_files.close(path)
