"""Files that are never seen half-written, folders with one writer, and files that cannot be read."""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

logger = logging.getLogger(__name__)


class BrokenFileError(ValueError):
    """A file, or a row of one, exists but cannot be decoded."""

    def __init__(self, path: object, reason: str) -> None:
        """Name the file, or the row of an HDF5 file, and what the decoder said."""
        super().__init__(path, reason)  # both, so that it survives pickling between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        """One line for the user."""
        return f"{self.path} cannot be read: {self.reason}"


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file under a temporary name in its own folder, then move it into place.

    The bytes are on the disk before the move: after a crash or a power cut there is the old file or the
    new one, never a part of it.

    Args:
        path: the file to write or to replace; missing parent folders are made.
        content: the whole file.
        durable: wait until the bytes are on the disk; without it, a power cut may leave an empty file,
            which is good enough for pictures that can be drawn again.

    Raises:
        OSError: it cannot be written, e.g. as the disk is full; what was there is unchanged.
    """
    with moved_when_whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def moved_when_whole(path: Path) -> Iterator[Path]:
    """Give a name to write to; the file is moved to its place at the end, or removed after an error.

    Args:
        path: the file to write or to replace; missing parent folders are made.

    Raises:
        OSError: it cannot be written, e.g. as the disk is full; what was there is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        no_room = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if not no_room or error.filename not in (None, str(temporary)):
            raise
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(
            error.errno,
            f"{error.strerror}: {path.name} does not fit, {free:.1f} MB are free on its file system. "
            "Make room, or raise the limit. What was there before is unchanged",
            str(path),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_place(folder: Path, option: str) -> None:
    """Refuse at once a folder that could not be written to much later.

    Args:
        folder: that is there or is to be made.
        option: that the user named it with, for the message.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: nothing can be written there.
    """
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{option}: {existing} is a file. Name a folder that is there or can be made."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{option}: nothing can be written to", str(existing))


def lock_folder(folder: Path) -> TextIO:
    """Make this process the only writer of a folder, until the returned file is closed.

    The system frees the lock when the process ends, however it ends. The lock is lockf's, not flock's,
    which the filelock package takes: decoding processes inherit the latter, and hold it for seconds after
    a run was killed.

    Args:
        folder: that is there.

    Raises:
        ValueError: another process writes there.
        OSError: nothing can be written there.
    """
    file = (folder / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            logger.warning("%s cannot be locked: see that only one run writes there.", folder)
            return file
        with file:
            file.seek(0)
            raise ValueError(
                f"Another process writes to {folder}: {file.read().strip()}. Wait for it, stop it, or name "
                "another --output."
            ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def file_sha256(path: Path) -> str:
    """Hash a file's bytes; of a folder, the sums and names of its weight files. Hexadecimal."""
    if path.is_dir():
        sums = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(path.glob("*.pth"))]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
