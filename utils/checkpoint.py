"""The one reader and the one writer of checkpoints."""

import hashlib
import io
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import write_atomically

FORMAT = "vssl-checkpoint-1"

# What torch.load raises for damaged or foreign bytes, found by feeding it thousands of such files.
_UNREADABLE = (
    RuntimeError,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
)

_rebuild_scalar = np.float64().__reduce__()[0]
_SAFE_GLOBALS: list[Any] = [
    # The released files hold their best score as a NumPy scalar, pickled under NumPy 1's name.
    (_rebuild_scalar, "numpy.core.multiarray.scalar"),
    (_rebuild_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
]


@dataclass(kw_only=True)
class Checkpoint:
    """All that rebuilds the model, goes on with its training, and says where it comes from."""

    method: str
    method_config: dict[str, Any]
    audio_config: dict[str, Any]
    frame_config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    training_clips: list[str] | None = None
    """ids of the training set; None where the file does not tell (released files)"""
    training_list: dict[str, str] = field(default_factory=dict)
    """name and sha256 of the training list"""
    epoch: int = 0
    """finished epochs"""
    step: int = 0
    """finished steps of the epoch that was interrupted; 0 between epochs"""
    selection: dict[str, Any] = field(default_factory=dict)
    """how this epoch was chosen: last, or best and on which clips"""
    options: dict[str, Any] = field(default_factory=dict)
    """all options of the run"""
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    """running sums, best score and history, for resuming"""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: a crash leaves the old file or the new one.

    Args:
        path: of the file.
        checkpoint: what to write.
    """
    content = {"format": FORMAT}
    content.update({f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)})
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint_file(path: Path) -> dict[str, Any]:
    """Loads any checkpoint without running code from it.

    Args:
        path: of the file.

    Returns:
        the file's dictionary, tensors on the CPU.

    Raises:
        FileNotFoundError: there is none; the message says which there are.
        ValueError: it cannot be read, or holds more than tensors and plain values.
    """
    if not path.is_file():
        folder = path.parent
        there = sorted(p.name for p in folder.glob("*.pth*")) if folder.is_dir() else []
        raise FileNotFoundError(
            f"No checkpoint at {path}. In {folder}/ there are: {', '.join(there) or 'none'}. "
            "See ckpts/README.md for the released files, or train one with scripts/train_*.sh."
        )
    with path.open("rb") as file, torch.serialization.safe_globals(_SAFE_GLOBALS):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise ValueError(
                f"{path} cannot be loaded as weights: it is cut off, no checkpoint at all, or "
                f"holds more than tensors and plain values ({type(error).__name__}). Expected a "
                "file written by main.py or one of the released files of ckpts/README.md; a "
                "broken download must be fetched anew."
            ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def parse_checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """The checkpoint in a file that this project wrote.

    Args:
        content: as read_checkpoint_file returns it.
        path: of the file, for messages.

    Raises:
        ValueError: another format, or entries are missing or unknown.
    """
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of this project (format {content.get('format')!r}, expected "
            f"{FORMAT!r}) nor a release it knows. It holds: {', '.join(map(str, content))}."
        )
    expected = {f.name for f in fields(Checkpoint)}
    found = set(content) - {"format"}
    if found != expected:
        raise ValueError(
            f"{path} lacks {sorted(expected - found)} and holds unknown "
            f"{sorted(map(str, found - expected))}."
        )
    return Checkpoint(**{name: content[name] for name in expected})


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
