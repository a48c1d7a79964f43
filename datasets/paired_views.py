"""The two views of a frame that SSPL compares: shifted and mirrored cut-outs."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MARGIN = 0.1
"""By how much the frame is larger than a view, fraction of the view's side."""


class CutOut(NamedTuple):
    """A cut-out of an enlarged frame."""

    top: int
    """first row, pixels"""
    left: int
    """first column, pixels"""
    mirrored: bool


def enlarged_size(frame_size: int) -> int:
    """Side of the frame that views of this side are cut from, pixels: 246 for 224."""
    return int(frame_size * (1 + MARGIN))


def draw_pair(seed: int, frame_size: int) -> tuple[CutOut, CutOut]:
    """Two independent views.

    Args:
        seed: the same seed gives the same pair.
        frame_size: side of a view, pixels.
    """
    source = random.Random(seed)
    return _draw(source, frame_size), _draw(source, frame_size)


def cut_views(frames: Tensor, views: Sequence[CutOut], frame_size: int) -> Tensor:
    """Cuts one view out of each frame, all at once.

    Args:
        frames: (B, 3, E, E), any type, E = enlarged_size(frame_size).
        views: B of them.
        frame_size: S, side of a view, pixels.

    Returns:
        (B, 3, S, S).
    """
    offsets = torch.arange(frame_size)
    rows = torch.tensor([view.top for view in views])[:, None] + offsets  # (B, S)
    columns = torch.stack([view.left + (offsets.flip(0) if view.mirrored else offsets) for view in views])
    rows, columns = rows.to(frames.device), columns.to(frames.device)
    clips = torch.arange(len(frames), device=frames.device)
    cut = frames.movedim(1, 3)[clips[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cut.movedim(3, 1)


def _draw(source: random.Random, frame_size: int) -> CutOut:
    margin = enlarged_size(frame_size) - frame_size
    return CutOut(source.randint(0, margin), source.randint(0, margin), source.random() < 0.5)
