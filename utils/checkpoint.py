"""The one reader and the one writer of checkpoints."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import write_atomically

FORMAT = "vssl-checkpoint-1"

_rebuild_scalar, _rebuild_array = np.float64().__reduce__()[0], np.empty(0).__reduce__()[0]
# Read from files beside tensors and plain values: other programs keep scores as NumPy numbers and arrays,
# pickled under the name of NumPy 1 or 2.
SAFE_GLOBALS: list[Any] = [
    *((_rebuild_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_rebuild_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},  # no Python objects
]


@dataclass(kw_only=True)
class Checkpoint:
    """All that rebuilds the model, goes on with its training, and says where it comes from."""

    method: str
    method_config: dict[str, Any]
    audio_config: dict[str, Any]
    frame_config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    training_clips: list[str] | None = None  # ids of the training set; None: released files do not tell
    training_list: dict[str, Any] = field(default_factory=dict)  # name, sha256, size; how many were missing
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch that was interrupted; 0 between epochs
    selection: dict[str, Any] = field(default_factory=dict)  # last, or best and on which clips
    options: dict[str, Any] = field(default_factory=dict)  # all options of the run
    optimizer: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)  # running sums, best score, history


# Types of a checkpoint's entries that are no dictionaries.
KINDS: dict[str, type] = {"method": str, "training_clips": list, "epoch": int, "step": int}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: a crash leaves the old file or the new one."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
    write_atomically(path, buffer.getbuffer())


def read_checkpoint_file(path: Path) -> dict[str, Any]:
    """Load any checkpoint, its tensors on the CPU, without running code from it.

    Raises:
        FileNotFoundError: there is none; the message says which there are.
        ValueError: it cannot be read, or holds more than tensors, numbers and plain values.
    """
    if not path.is_file():
        folder = path.parent
        existing = sorted(p.name for p in folder.glob("*.pth*")) if folder.is_dir() else []
        raise FileNotFoundError(
            f"No checkpoint at {path}. In {folder}/ there are: {', '.join(existing) or 'none'}. "
            "See ckpts/README.md for the released files, or train one with scripts/train_*.sh."
        )
    with path.open("rb") as file, torch.serialization.safe_globals(SAFE_GLOBALS):
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged and foreign bytes make torch.load raise errors of any type
            foreign = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
            reason = f"it is cut off or no checkpoint ({type(error).__name__}); fetch a broken download anew"
            if foreign:
                reason = f"it holds {foreign[1]}, which could run code; save the file anew without it"
            raise ValueError(
                f"{path} cannot be loaded as weights: {reason}. Expected a file written by main.py or one "
                "of the released files of ckpts/README.md."
            ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def parse_checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """Return the checkpoint in what `read_checkpoint_file` read; refuse other formats, naming the path."""
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of this project (format {content.get('format')!r}, expected "
            f"{FORMAT!r}) nor a release it knows. It holds: {', '.join(map(str, content))}."
        )
    expected, entries = {f.name for f in fields(Checkpoint)}, dict(content)
    del entries["format"]
    if entries.keys() != expected:
        lacking, unknown = sorted(expected - entries.keys()), sorted(map(str, entries.keys() - expected))
        raise ValueError(f"{path} lacks {lacking} and holds unknown {unknown}.")
    for name, value in entries.items():
        kind = KINDS.get(name, dict)
        if not isinstance(value, kind) and (value is not None or name not in ("training_clips", "optimizer")):
            raise ValueError(
                f"{path}: its entry '{name}' is not a {kind.__name__}, but {str(value)[:40]!r}. "
                "The file is damaged or was not written by main.py."
            )
    for name, weight in entries["state_dict"].items():
        if not isinstance(weight, torch.Tensor):
            raise ValueError(f"{path}: '{name}' of its entry 'state_dict' is a {type(weight).__name__}.")
    return Checkpoint(**entries)


def find_non_finite(state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the floating-point tensors that hold NaN or infinity."""
    floating = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
    return [name for name, tensor in floating.items() if not torch.isfinite(tensor.float()).all()]
