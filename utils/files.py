"""Files that are never seen half-written, and folders with one writer."""

import errno
import fcntl
import logging
import os
import re
import shutil
import socket
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        temporary.unlink(missing_ok=True)
        needed = memoryview(content).nbytes / 1e6
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(
            error.errno,
            f"{error.strerror}: {path.name} needs {needed:.1f} MB, and {free:.1f} MB are free on "
            "its file system. Make room, or raise the limit. What was there before is unchanged",
            str(path),
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
