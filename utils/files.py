"""Files that are never seen half-written."""

import os
from pathlib import Path


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
