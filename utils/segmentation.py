"""Scores of benchmarks whose truth is a mask: mean IoU, and F over 255 thresholds.

Each is published in two forms, which differ in the order of averaging, so that the second depends
on the batches: both are here, under their own names.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

MASK_THRESHOLD = 0.5
"""a pixel belongs to the predicted mask above this value of the normalised map"""
NUM_THRESHOLDS = 255
BETA_SQUARED = 0.3
"""weight of recall against precision in F"""
BATCH = 5
"""clips of a batch where the published form averages over batches: the frames of one video"""


@dataclass(frozen=True)
class MaskScores:
    """One clip's map against its mask."""

    iou: float
    """of `mask_ious`"""
    f_curve: NDArray[np.float32] = field(compare=False)
    """(255,) of `f_curves`; arrays do not compare as one"""


def compare_masks(localisation_maps: Tensor, truths: Tensor) -> list[MaskScores]:
    """Scores of each clip; maps and truths (B, M, M) as `mask_ious` and `f_curves` take them."""
    ious, curves = mask_ious(localisation_maps, truths), f_curves(localisation_maps, truths)
    return [MaskScores(*pair) for pair in zip(ious.tolist(), curves.cpu().numpy(), strict=True)]


def f_thresholds() -> Tensor:
    """(255,) float32, ascending from 0 to 1; a pixel is predicted at or above a threshold."""
    return torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS)


def mask_ious(localisation_maps: Tensor, truths: Tensor) -> Tensor:
    """IoU of each clip's predicted mask; of what both leave out where nothing is annotated.

    Args:
        localisation_maps: (B, M, M) in [0, 1]; a map with NaN predicts nothing.
        truths: (B, M, M) in [0, 1]; any value above 0 is annotated.

    Returns:
        (B,) float64 in [0, 1].
    """
    predicted, annotated = localisation_maps > MASK_THRESHOLD, truths > 0
    nothing = ~annotated.flatten(1).any(dim=1)[:, None, None]
    predicted, annotated = predicted ^ nothing, annotated ^ nothing
    shared = (predicted & annotated).flatten(1).sum(dim=1)
    return shared.double() / (predicted | annotated).flatten(1).sum(dim=1)


def f_curves(localisation_maps: Tensor, truths: Tensor) -> Tensor:
    """F of each clip at each of the thresholds, from one histogram of each map.

    F = (1 + b) P R / (b P + R) with b = BETA_SQUARED, which is (1 + b) hits / (b annotated +
    predicted) in pixels, without any 0 / 0.

    Args:
        localisation_maps: (B, M, M) in [0, 1]; a pixel with NaN is never predicted.
        truths: (B, M, M) in [0, 1]; any value above 0 is annotated.

    Returns:
        (B, 255) float32 in [0, 1]; NaN where nothing is annotated.
    """
    maps, annotated = localisation_maps.flatten(1).float(), (truths > 0).flatten(1)
    thresholds = f_thresholds().to(maps.device)
    # How many thresholds a pixel reaches, 0 to 255; NaN reaches none.
    reached = torch.bucketize(torch.nan_to_num(maps, nan=-1.0), thresholds, right=True)
    predicted = _num_reaching(reached, torch.ones_like(annotated))
    hits, total = _num_reaching(reached, annotated), annotated.sum(dim=1, keepdim=True)
    scores = (1 + BETA_SQUARED) * hits.double() / (BETA_SQUARED * total + predicted)
    return scores.where(total > 0, torch.nan).float()


def _num_reaching(reached: Tensor, counted: Tensor) -> Tensor:
    """(B, N) thresholds that each pixel reaches -> (B, 255) counted pixels at each of them."""
    histogram = torch.zeros(len(reached), NUM_THRESHOLDS + 1, dtype=torch.int64, device=reached.device)
    histogram.scatter_add_(1, reached, counted.long())
    return histogram.flip(1).cumsum(1).flip(1)[:, 1:]


def mean_iou(ious: ArrayLike) -> float:
    """Plain mean over clips."""
    return float(np.mean(np.asarray(ious, dtype=np.float64)))


def mean_iou_by_batch(ious: ArrayLike, batch: int = BATCH) -> float:
    """Mean over batches of each batch's mean: another number where the last batch is not full.

    Args:
        ious: (N,), in the order of the clip list.
        batch: clips of a batch.
    """
    scores = np.asarray(ious, dtype=np.float64)
    return float(np.mean([part.mean() for part in _batches(scores, batch)]))


def f_dataset(curves: ArrayLike) -> float:
    """The largest F over thresholds of the mean over clips: one threshold for the data set.

    Args:
        curves: (N, 255) of `f_curves`; clips without truth, NaN, do not count.

    Returns:
        in [0, 1]; NaN where no clip has truth.
    """
    known = _annotated(np.asarray(curves, dtype=np.float64))
    return float(known.mean(axis=0).max()) if len(known) else float("nan")


def f_avsbench(curves: ArrayLike, batch: int = BATCH) -> float:
    """The mean over batches of each batch's largest F: a threshold for each batch.

    Args:
        curves: (N, 255) of `f_curves`, in the order of the clip list; clips without truth, NaN, do
            not count, nor do batches of such clips.
        batch: clips of a batch; the smaller, the larger the score.

    Returns:
        in [0, 1]; NaN where no clip has truth.
    """
    parts = [_annotated(part) for part in _batches(np.asarray(curves, dtype=np.float64), batch)]
    largest = [part.mean(axis=0).max() for part in parts if len(part)]
    return float(np.mean(largest)) if largest else float("nan")


def _annotated(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    return curves[~np.isnan(curves).any(axis=1)]


def _batches(values: NDArray[np.float64], batch: int) -> list[NDArray[np.float64]]:
    return [values[start : start + batch] for start in range(0, len(values), batch)]
