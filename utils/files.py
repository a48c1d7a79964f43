"""Files that are never seen half-written, folders with one writer, and files that cannot be read."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
"""What Macs, network drives and file systems leave in a folder; neither they nor hidden files are data."""
CUT_OFF_SECONDS, CUT_OFF_SHARE = 0.5, 0.05  # what a file lacks before it counts as cut off: the shorter
DAMAGE_SECONDS = 0.05  # what a sound lacks in its middle before it counts as damaged
# An MP3's number of frames. Without it, FFmpeg guesses how long the sound is.
MP3_INDEX = re.compile(rb"(?:(?:Xing|Info)\0\0\0[\1\3\5\7\t\v\r\x0f]|VBRI.{10})(.{4})", re.DOTALL)


class BrokenFileError(ValueError):
    """A file, or a row of one, exists but cannot be decoded."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives pickling between processes
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.reason}"


@contextmanager
def decoding(source: object, advice: str = "") -> Iterator[None]:
    """Turn whatever a decoder raises, MemoryError for an absurd size too, into a BrokenFileError."""
    try:
        yield
    except BrokenFileError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, (OSError, ValueError)) and str(error) else f"{type(error).__name__} "
        reason = f"{advice} ({error!r})" if advice else f"{kind}{error}".strip()
        raise BrokenFileError(source, reason) from error


def is_cut_off(announced: float, end: float) -> bool:
    """Tell whether a sound ends so long before its announced end that it was cut off; seconds.

    Less is rounding, or a slip of whoever wrote the header.
    """
    return end < announced - min(CUT_OFF_SECONDS, CUT_OFF_SHARE * announced)


def is_whole_ogg(content: bytes) -> bool:
    """Tell whether the last page of an Ogg file is complete and marked as the last."""
    tail = content[-65_307:]  # which holds a page of any length
    page = tail[tail.rfind(b"OggS") :]
    return len(page) > 27 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file; after a crash or a power cut there is the old one or the new one, never a part."""
    with moved_when_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def moved_when_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, which is moved there at the end, or removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        no_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not no_room or error.filename not in (None, str(temporary)):  # the latter: of another file
            raise
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        words = f"{error.strerror}: {path.name} does not fit, {free:.1f} MB are free on its file system. "
        words += "Make room, or raise the limit. What was there before is unchanged"
        raise OSError(error.errno, words, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_place(folder: Path, option: str) -> None:
    """Refuse at once a folder, there or to be made, that could not be written to much later."""
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"{option}: {existing} is a file. Name a folder, there or to be made.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{option}: nothing can be written to", str(existing))


def lock_folder(folder: Path) -> TextIO:
    """Make this process a folder's only writer until the returned file is closed, or the process ends."""
    file = (folder / ".lock").open("a+")
    try:
        # Not flock, as of the filelock package: decoding processes would hold it after a run was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            logger.warning("%s cannot be locked: see that only one run writes there.", folder)
            return file
        with file:
            file.seek(0)
            owner = file.read().strip()
        words = f"Another process writes to {folder}: {owner}. Stop it, or name another --output or folder."
        raise ValueError(words) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def file_sha256(path: Path) -> str:
    """Hash a file's bytes, hexadecimal; of a folder, the sums and names of its weight files."""
    if path.is_dir():
        sums = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(path.glob("[!.]*.pth"))]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
