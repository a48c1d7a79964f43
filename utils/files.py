"""Files that are never seen half-written, and folders with one writer."""

import errno
import fcntl
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

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_PARTIAL = re.compile(r"\..+\.(\d+)\.partial")


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file under a temporary name in its own folder, then move it into place.

    The bytes are on the disk before the move: after a crash or a power cut there is the old file
    or the new one, never a part of it.

    Args:
        path: the file to write or to replace; missing parent folders are made.
        content: the whole file.
        durable: wait until the bytes are on the disk; without it, a power cut may leave an empty
            file, which is good enough for pictures that can be drawn again.

    Raises:
        OSError: it cannot be written, e.g. as the disk is full; what was there is unchanged.
    """
    needed = memoryview(content).nbytes
    with moved_when_whole(path, needed) as temporary, temporary.open("wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def moved_when_whole(path: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Gives a name to write to; what is there goes to its place at the end, or is removed.

    Args:
        path: the file to write or to replace; missing parent folders are made.
        num_bytes: length of the file, for the message when there is no room; None: not known.

    Raises:
        OSError: it cannot be written, e.g. as the disk is full; what was there is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        other_file = error.filename is not None and error.filename != str(temporary)
        if error.errno not in _NO_ROOM or other_file:
            raise
        if num_bytes is None:
            needs = f"{_size_of(temporary) / 1e6:.1f} MB and more"
        else:
            needs = f"{num_bytes / 1e6:.1f} MB"
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(
            error.errno,
            f"{error.strerror}: {path.name} needs {needs}, and {free:.1f} MB are free on "
            "its file system. Make room, or raise the limit. What was there before is unchanged",
            str(path),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_place(folder: Path, flag: str) -> None:
    """Refuses at once a folder that could not be written to much later.

    Args:
        folder: that is there or is to be made.
        flag: what the user named, for the message.

    Raises:
        NotADirectoryError: it is a file, or below one.
        PermissionError: nothing can be written there.
    """
    whole = folder.absolute()
    there = next(path for path in (whole, *whole.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{flag}: {there} is a file. Name a folder that is there or can be made.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{flag}: nothing can be written to", str(there))


def remove_leftovers(folder: Path) -> list[str]:
    """Removes what killed processes were writing into a folder; returns the files' names.

    Args:
        folder: locked by this process, which has not written there yet.
    """
    removed = []
    for path in sorted(folder.glob(".*.partial")):
        match = _PARTIAL.fullmatch(path.name)
        # In a container, processes have the same number again and again: that of this one tells
        # of an earlier one.
        if match and (int(match[1]) == os.getpid() or not _is_alive(int(match[1]))):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def lock_folder(folder: Path) -> TextIO:
    """Makes this process the only writer of a folder, until the returned file is closed.

    The system frees the lock when the process ends, however it ends; processes that it has started
    do not keep it.

    Args:
        folder: that is there.

    Raises:
        ValueError: another process writes there.
        OSError: nothing can be written there.
    """
    path = folder / ".lock"
    file = path.open("a+")
    try:
        # Not flock, which the decoding processes would hold for seconds after the end of this one.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.warning("%s cannot be locked: see that only one run writes there.", folder)
            return file
        with file:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            file.seek(0)
            raise ValueError(
                f"Another process writes to {folder}: {file.read().strip()}. Wait for it, stop it, "
                "or name another --output."
            ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
