"""Files that are never seen half-written, and folders with one writer."""

import fcntl
import os
from pathlib import Path
from typing import TextIO


def write_atomically(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file under a temporary name in its own folder, then move it into place.

    The bytes are on the disk before the move: after a crash or a power cut there is the old file
    or the new one, never a part of it.

    Args:
        path: the file to write or to replace; missing parent folders are made.
        content: the whole file.
        durable: wait until the bytes are on the disk; without it, a power cut may leave an empty
            file, which is good enough for pictures that can be drawn again.
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
    finally:
        temporary.unlink(missing_ok=True)


def lock_folder(folder: Path) -> TextIO:
    """Makes this process the only writer of a folder, until the returned file is closed.

    The system frees the lock when the process ends, however it ends.

    Args:
        folder: that is there.

    Raises:
        ValueError: another process writes there.
    """
    path = folder / ".lock"
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(
            f"Another process writes to {folder} (it holds {path}). Wait for it, stop it, or name "
            "another --output."
        ) from error
    return file
