"""Writes a file of our HDF5 layout so that it can be stopped at any moment, and gone on with.

A program that is killed while its HDF5 file grows may lose the whole file. So clips are first
appended to plain files in OUT.partial/, with a journal of what is safely there; the HDF5 file is
made of them in one go, checked, and only then given its name.
"""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from datasets.hdf5 import FORMAT, FRAMES, SOUNDS
from datasets.hdf5_sets import TABLES, index_crc32

CLIPS_PER_COMMIT = 128
"""Clips that a crash can cost; each commit waits for the disk."""

_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class PackedClip:
    """One clip as it is stored."""

    clip_id: str
    frame: bytes
    """a JPEG or PNG file"""
    sound: NDArray[np.int16]
    """(L,) at the file's sample rate"""
    boxes: NDArray[np.float64] | None
    """(N, 4) fractions of the frame"""


class PackedWriter:
    """One growing file; use as a context manager, which leaves the partial files where they are."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Goes on with the partial files of an earlier call, or begins.

        Args:
            path: of the finished file, not there yet.
            settings: all that its content follows from, JSON; becomes its attributes.

        Raises:
            FileExistsError: the finished file is there.
            ValueError: the partial files were begun with other settings, or another process writes
                to them.
        """
        if path.exists():
            raise FileExistsError(f"{path} is there already. Name another file, or remove it.")
        self.path = path
        self.folder = path.with_name(f"{path.name}.partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = self._open("journal.jsonl")
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._journal.close()
            raise ValueError(f"Another process writes to {self.folder}. Wait for it.") from error
        self._entries = self._read_journal(settings)
        self._uncommitted: list[dict[str, Any]] = []
        self._frames = self._open("frames", sum(entry["frame"] for entry in self._entries))
        self._sounds = self._open("sounds", 2 * sum(entry["sound"] for entry in self._entries))
        self.settings = settings

    def __enter__(self) -> "PackedWriter":
        """Ready to append."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Makes safe what was appended, and closes the partial files.

        After an exception the last clips stay uncommitted: a signal may have come in the middle of
        a commit, and a second one would tell the journal of them twice.
        """
        if kind is None:
            self._commit()
        for file in (self._frames, self._sounds, self._journal):
            file.close()

    @property
    def clip_ids(self) -> list[str]:
        """Of what was appended, in this call and earlier ones."""
        return [entry["id"] for entry in (*self._entries, *self._uncommitted)]

    def append(self, clip: PackedClip) -> None:
        """Adds a clip; every CLIPS_PER_COMMIT of them are made safe."""
        sound = clip.sound.astype("<i2", copy=False)
        self._frames.write(clip.frame)
        self._sounds.write(sound.tobytes())
        self._uncommitted.append(
            {
                "id": clip.clip_id,
                "frame": len(clip.frame),
                "sound": len(sound),
                "crc32": [zlib.crc32(clip.frame), zlib.crc32(sound.data)],
                "boxes": None if clip.boxes is None else clip.boxes.tolist(),
            }
        )
        if len(self._uncommitted) >= CLIPS_PER_COMMIT:
            self._commit()

    def write_unchecked(self, progress: Callable[[int], object]) -> Path:
        """Makes the HDF5 file of all clips appended, under a name of its own.

        Args:
            progress: called with the number of bytes written, again and again.

        Returns:
            the file, which is to be checked; publish then gives it its name.
        """
        self._commit()
        unchecked = self.folder / "unchecked.h5"
        _write_hdf5(unchecked, self.folder, self._entries, self.settings, progress)
        return unchecked

    def publish(self, checked: Path) -> None:
        """Gives the file its name, and removes the partial files."""
        checked.replace(self.path)
        shutil.rmtree(self.folder)

    @property
    def num_bytes(self) -> int:
        """Of all frames and sounds that finish will write."""
        entries = (*self._entries, *self._uncommitted)
        return sum(entry["frame"] + 2 * entry["sound"] for entry in entries)

    def _open(self, name: str, length: int | None = None) -> BinaryIO:
        """Opens for appending; what lies behind `length` was never made safe and is cut off."""
        file = (self.folder / name).open("a+b")
        if length is not None:
            if file.tell() < length:
                raise ValueError(
                    f"{self.folder / name} is shorter than its journal says. Remove {self.folder} "
                    "and begin anew."
                )
            file.truncate(length)
        return file

    def _read_journal(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        """The clips that are safely there; a line that was cut off is not among them."""
        self._journal.seek(0)
        lines = self._journal.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._journal.truncate(sum(map(len, whole)))
        if not whole:
            self._write_lines([settings])
            return []
        begun, *entries = map(json.loads, whole)
        if begun != settings:
            names = [name for name in settings if settings[name] != begun.get(name)]
            differences = (f"{name}: {begun.get(name)} then, {settings[name]} now" for name in names)
            raise ValueError(
                f"{self.folder} was begun with other settings ({'; '.join(differences)}). Use the "
                "same ones, name another file, or remove that folder."
            )
        return entries

    def _write_lines(self, lines: Sequence[dict[str, Any]]) -> None:
        self._journal.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _commit(self) -> None:
        """The content reaches the disk before the journal says that it is there."""
        for file in (self._frames, self._sounds):
            file.flush()
            os.fsync(file.fileno())
        self._write_lines(self._uncommitted)
        self._entries += self._uncommitted
        self._uncommitted = []


def _write_hdf5(
    path: Path,
    folder: Path,
    entries: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    progress: Callable[[int], object],
) -> None:
    ids = [entry["id"].encode() for entry in entries]
    tables: dict[str, NDArray[Any]] = {
        "clip_ids": np.frombuffer(b"".join(ids), np.uint8),
        "clip_ids_offsets": _offsets([len(clip_id) for clip_id in ids]),
        "frames_offsets": _offsets([entry["frame"] for entry in entries]),
        "frames_crc32": np.array([entry["crc32"][0] for entry in entries], np.uint32),
        "sounds_offsets": _offsets([entry["sound"] for entry in entries]),
        "sounds_crc32": np.array([entry["crc32"][1] for entry in entries], np.uint32),
    }
    boxes = [entry["boxes"] for entry in entries]
    if boxes and boxes[0] is not None:
        flat = [box for of_clip in boxes for box in of_clip]
        tables["bounding_boxes"] = np.array(flat, np.float64).reshape(-1, 4)
        tables["bounding_boxes_offsets"] = _offsets([len(of_clip) for of_clip in boxes])
    with h5py.File(path, "w", locking=False) as target:
        known = {name: value for name, value in settings.items() if value is not None}
        target.attrs.update({"format": FORMAT, **known})
        target.attrs["index_crc32"] = index_crc32(tables[name] for name in TABLES if name in tables)
        for name, table in tables.items():
            target.create_dataset(name, data=table)
        for key, dtype in ((FRAMES, "u1"), (SOUNDS, "<i2")):
            stored = target.create_dataset(key, (int(tables[f"{key}_offsets"][-1]),), dtype)
            start = 0
            for block in _blocks(folder / key):
                values = np.frombuffer(block, dtype)
                stored[start : start + len(values)] = values
                start += len(values)
                progress(len(block))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
