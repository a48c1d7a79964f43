"""The one reader and the one writer of checkpoints."""

import hashlib
import io
import pickle
import struct
from collections.abc import Callable, Mapping
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
    training_list: dict[str, Any] = field(default_factory=dict)
    """name, sha256, size of the training list, and how many of its clips were missing"""
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
        ValueError: another format, or entries are missing, unknown or of another type.
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
            f"{path} lacks {sorted(expected - found)} and holds unknown {sorted(map(str, found - expected))}."
        )
    for name in (f.name for f in fields(Checkpoint)):
        kind, fits = _ENTRIES[name]
        if not fits(content[name]):
            raise ValueError(
                f"{path}: its entry '{name}' is not {kind}, but {_shown(content[name])}. The file "
                "is damaged or was not written by main.py."
            )
    return Checkpoint(**{name: content[name] for name in expected})


def weights_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """Hash of the names and values of weights, wherever they lie."""
    total = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def find_non_finite(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the floating tensors that hold NaN or infinity.

    Args:
        state_dict: name -> tensor; integers and the like are passed over.
    """
    return [
        name
        for name, tensor in state_dict.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()
    ]


def _is_dict(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_list_of_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_state_dict(value: Any) -> bool:  # noqa: ANN401
    return _is_dict(value) and all(
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        for tensor in value.values()
    )


def _is_selection(value: Any) -> bool:  # noqa: ANN401
    return _is_dict(value) and _is_list_of_ids(value.get("clips", []))


_PLAIN = ("a dictionary with names as keys", _is_dict)
_COUNT = ("a whole number, 0 or more", _is_count)
_ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "method": ("a name", lambda value: isinstance(value, str)),
    "method_config": _PLAIN,
    "audio_config": _PLAIN,
    "frame_config": _PLAIN,
    "state_dict": ("a dictionary of dense tensors by name", _is_state_dict),
    "training_clips": ("a list of clip ids, or None", lambda value: value is None or _is_list_of_ids(value)),
    "training_list": _PLAIN,
    "epoch": _COUNT,
    "step": _COUNT,
    "selection": ("a dictionary, its 'clips' a list of clip ids", _is_selection),
    "options": _PLAIN,
    "optimizer": ("a dictionary with names as keys, or None", lambda value: value is None or _is_dict(value)),
    "progress": _PLAIN,
}
"""What each entry of a checkpoint must be, in words and as a check."""


def _shown(value: object) -> str:
    """A value in a message: its type, and its beginning where that is short to write."""
    if isinstance(value, (str, int, float)):
        return f"{type(value).__name__} {str(value)[:40]!r}"
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    kinds = sorted({type(entry).__name__ for entry in value.values()})
    return f"a dict of {', '.join(kinds) or 'nothing'}"
