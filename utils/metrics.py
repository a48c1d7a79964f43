"""Localisation metrics: arrays in, arrays out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

SUCCESS_THRESHOLDS = tuple(0.05 * i for i in range(21))
"""Consensus-IoU thresholds of the success curve. The products are the field's: 0.05 * 3 is above
0.15 in floating point, so a clip with exactly 0.15 fails its own threshold."""


def consensus_iou(
    predicted_masks: NDArray[np.bool_], ground_truth_maps: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Consensus IoU of each clip: sum(P G) / (sum(G) + sum(P where G = 0)).

    Senocak et al., CVPR 2018, Eq. 8.

    Args:
        predicted_masks: (B, M, M), or (1, M, M): the same for each clip.
        ground_truth_maps: (B, M, M) in [0, 1].

    Returns:
        (B,) in [0, 1]; NaN where both are empty.
    """
    masks = np.broadcast_to(predicted_masks, ground_truth_maps.shape)
    # Clip by clip: one map stays in the processor's cache, a batch does not.
    terms = [
        (
            np.einsum("hw,hw->", mask, truth, dtype=np.float64),
            truth.sum(dtype=np.float64),
            np.count_nonzero(mask & (truth == 0)),
        )
        for mask, truth in zip(masks, ground_truth_maps, strict=True)
    ]
    shared, annotated, false_positive = np.array(terms, dtype=np.float64).reshape(-1, 3).T
    with np.errstate(invalid="ignore"):
        return shared / (annotated + false_positive)


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


def pointing_hits(
    localisation_maps: NDArray[np.float32], ground_truth_maps: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Whether the peak of each map lies on an annotated pixel.

    Args:
        localisation_maps: (B, M, M), or (1, M, M): the same for each clip; the first pixel in
            reading order is the peak among equals, and a map with NaN has none.
        ground_truth_maps: (B, M, M) in [0, 1]; any value above 0 is annotated.

    Returns:
        (B,).
    """
    flat = localisation_maps.reshape(len(localisation_maps), -1)
    peaks = np.argmax(flat, axis=1)
    truth = ground_truth_maps.reshape(len(ground_truth_maps), -1)
    hits = truth[np.arange(len(truth)), peaks] > 0
    # Where there is NaN, argmax points to it.
    return hits & ~np.isnan(flat[np.arange(len(flat)), peaks])
