"""Localisation metrics: of clips on the device of their maps, of a data set from their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

SUCCESS_THRESHOLDS = tuple(0.05 * i for i in range(21))
"""Consensus-IoU thresholds of the success curve. The products are the field's: 0.05 * 3 is above
0.15 in floating point, so a clip with exactly 0.15 fails its own threshold."""


@dataclass(frozen=True)
class TruthMaps:
    """What is annotated in some clips, and what every score needs of it, computed once."""

    maps: Tensor
    """(B, M, M) float32 in [0, 1]"""
    outlined: bool = False
    """the objects are outlined pixel by pixel; otherwise boxes lie around them"""

    def __len__(self) -> int:
        """B."""
        return len(self.maps)

    @cached_property
    def total_votes(self) -> Tensor:
        """(B,) float64, sum of each map."""
        return _sum(self.maps)

    @cached_property
    def empty(self) -> Tensor:
        """(B, M, M) bool, pixels that nobody annotated."""
        return self.maps == 0

    @cached_property
    def num_annotated(self) -> Tensor:
        """(B,) int64, pixels above 0."""
        return self.maps[0].numel() - self.empty.flatten(1).sum(1)


def consensus_iou(predicted_masks: Tensor, truth: TruthMaps) -> Tensor:
    """Consensus IoU of each clip: sum(P G) / (sum(G) + sum(P where G = 0)).

    Senocak et al., CVPR 2018, Eq. 8.

    Args:
        predicted_masks: (B, M, M) bool, or (1, M, M): the same for each clip.
        truth: of the clips.

    Returns:
        (B,) float64 in [0, 1]; NaN where both are empty.
    """
    shared = _sum(truth.maps * predicted_masks.float())  # where() takes five times as long
    false_positive = (predicted_masks & truth.empty).flatten(1).sum(1, dtype=torch.int32)
    return shared / (truth.total_votes + false_positive)


def _sum(maps: Tensor) -> Tensor:
    """(B, M, M) in [0, 1] -> (B,) float64.

    A row's sum is exact in float32 where votes are whole, halves or other parts by a power of two,
    as all benchmarks' are; float64 adds up the rows. Float64 throughout takes twice the time.
    """
    return maps.sum(2).sum(1, dtype=torch.float64)


def success_rate(cious: ArrayLike, threshold: float = 0.5) -> float:
    """Share of clips whose consensus IoU reaches a threshold: what papers print as cIoU.

    Args:
        cious: (N,); NaN counts as a miss.
        threshold: in [0, 1].

    Returns:
        in [0, 1].
    """
    return float(np.mean(np.asarray(cious, dtype=np.float64) >= threshold))


def success_curve(cious: ArrayLike) -> list[float]:
    """Success rate at each of SUCCESS_THRESHOLDS."""
    return [success_rate(cious, threshold) for threshold in SUCCESS_THRESHOLDS]


def area_under_success(curve: Sequence[float]) -> float:
    """Area under the success curve, by the trapezoid rule: what papers print as AUC.

    Args:
        curve: as success_curve returns it.

    Returns:
        in [0, 1].
    """
    return float(np.trapezoid(curve, SUCCESS_THRESHOLDS))


def mean_ciou(cious: ArrayLike) -> float:
    """Plain mean of the consensus IoU, NaN counted as 0."""
    return float(np.nan_to_num(np.asarray(cious, dtype=np.float64)).mean())


def pointing_hits(localisation_maps: Tensor, truth: TruthMaps) -> Tensor:
    """Whether the peak of each map lies on an annotated pixel.

    Args:
        localisation_maps: (B, M, M), or (1, M, M): the same for each clip; the first pixel in
            reading order is the peak among equals, and a map with NaN has none.
        truth: of the clips.

    Returns:
        (B,) bool.
    """
    peaks = localisation_maps.flatten(1).max(1)
    of_clips = peaks.indices.expand(len(truth))[:, None]
    # Where there is NaN, max finds that.
    return ~truth.empty.flatten(1).gather(1, of_clips)[:, 0] & ~peaks.values.isnan()
