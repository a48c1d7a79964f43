"""Reads Qt's binary resource archives (.rcc): a tree of names over zlib-compressed files."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from datasets.stamps.errors import MaterialRefusedError

_MAGIC = b"qres"
_ZLIB_FLAG, _DIRECTORY_FLAG, _ZSTD_FLAG = 1, 2, 4
# Version 2 appended the time of last change (8 bytes) to each node of the tree.
_NODE_SIZES = {1: 14, 2: 22, 3: 22}


def read_rcc(path: Path) -> dict[str, bytes]:
    """Reads all files of a Qt resource archive.

    Args:
        path: The .rcc file.

    Returns:
        Content by path inside the archive, without a leading slash.

    Raises:
        MaterialRefusedError: Not a .rcc file, damaged, or compressed with zstd.
    """
    archive = path.read_bytes()
    try:
        if archive[:4] != _MAGIC:
            raise MaterialRefusedError(f"{path} is not a Qt resource archive (no 'qres' magic).")
        version, tree, payloads, names = struct.unpack_from(">4I", archive, 4)
        if version not in _NODE_SIZES:
            raise MaterialRefusedError(f"{path} has .rcc version {version}, known are 1, 2 and 3.")
        nodes = _Nodes(archive, tree, names, _NODE_SIZES[version])
        return {name: _payload(archive, payloads, node) for name, node in nodes.walk()}
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise MaterialRefusedError(f"{path} is damaged ({error}). Delete it and retry.") from error
    except _ZstdEntryError as error:
        raise MaterialRefusedError(f"{path} has a zstd-compressed entry; only zlib is supported.") from error


class _ZstdEntryError(Exception):
    """An entry needs a decompressor that the standard library lacks."""


class _Nodes:
    """The archive's tree; a node is (name, flags, then children or offset of the content)."""

    def __init__(self, archive: bytes, tree: int, names: int, node_size: int) -> None:
        self.archive, self.tree, self.names, self.node_size = archive, tree, names, node_size

    def walk(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yields (path, (flags, offset)) of every file."""
        pending = [(0, "")]
        while pending:
            index, path = pending.pop()
            start = self.tree + index * self.node_size
            _, flags = struct.unpack_from(">IH", self.archive, start)
            if flags & _DIRECTORY_FLAG:
                num_children, first_child = struct.unpack_from(">II", self.archive, start + 6)
                for child in range(first_child, first_child + num_children):
                    name = self._name(child)
                    pending.append((child, f"{path}/{name}" if path else name))
            else:
                _, offset = struct.unpack_from(">II", self.archive, start + 6)
                yield path, (flags, offset)

    def _name(self, index: int) -> str:
        (offset,) = struct.unpack_from(">I", self.archive, self.tree + index * self.node_size)
        (length,) = struct.unpack_from(">H", self.archive, self.names + offset)
        start = self.names + offset + 6  # two bytes of length, four of hash
        return self.archive[start : start + 2 * length].decode("utf-16-be")


def _payload(archive: bytes, payloads: int, node: tuple[int, int]) -> bytes:
    flags, offset = node
    (length,) = struct.unpack_from(">I", archive, payloads + offset)
    start = payloads + offset + 4
    content = archive[start : start + length]
    if len(content) != length:
        raise struct.error("content ends too early")
    if flags & _ZSTD_FLAG:
        raise _ZstdEntryError
    # Qt puts the four-byte uncompressed length before the zlib stream.
    return zlib.decompress(content[4:]) if flags & _ZLIB_FLAG else content
