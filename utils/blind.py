"""What needs no model: predictors that never hear the sound, and the ceiling of a rule."""

import numpy as np
from numpy.typing import NDArray

from utils.protocols import LocalisationProtocol, threshold_ranks

GAUSSIAN_GRID = 14
"""side of the similarity map that holds the centred Gaussian, cells"""
GAUSSIAN_SIGMA = 4.0
"""standard deviation of the centred Gaussian, cells"""


def whole_frame(map_size: int) -> NDArray[np.bool_]:
    """Every pixel (M, M)."""
    return np.ones((map_size, map_size), dtype=np.bool_)


def centre_square(map_size: int) -> NDArray[np.bool_]:
    """A centred square (M, M) of half of the map: 158 x 158 of 224 x 224."""
    side = round(map_size * 0.5**0.5)
    start = (map_size - side) // 2
    square = np.zeros((map_size, map_size), dtype=np.bool_)
    square[start : start + side, start : start + side] = True
    return square


def centre_disc(map_size: int) -> NDArray[np.bool_]:
    """The pixels (M, M) nearest to the centre, as many as half of the map, ties left out."""
    squared = _squared_distance(map_size)
    return squared < np.sort(squared.ravel())[squared.size // 2]


def centre_gaussian() -> NDArray[np.float32]:
    """A similarity map (1, 14, 14) in [0, 1]: a rule up-samples it as it does a model's."""
    squared = _squared_distance(GAUSSIAN_GRID)
    return np.exp(-squared / (2 * GAUSSIAN_SIGMA**2)).astype(np.float32)[None]


def oracle_cious(
    ground_truth_maps: NDArray[np.float32], protocol: LocalisationProtocol
) -> NDArray[np.float64]:
    """The best consensus IoU that a map without ties can reach under a rule.

    The median rule always predicts half of the frame, the adaptive rule as many pixels as the truth
    has (one less when they compare by >), so the best that they can do is to take the pixels with
    the highest truth first. Under a fixed threshold the truth itself can be predicted.

    Args:
        ground_truth_maps: (B, M, M) in [0, 1].
        protocol: the rule.

    Returns:
        (B,) in [0, 1]; 0 where the truth is empty.
    """
    flat = ground_truth_maps.reshape(len(ground_truth_maps), -1)
    total = flat.sum(axis=1, dtype=np.float64)
    if protocol.threshold == "fixed":
        return (total > 0).astype(np.float64)
    num_pixels = flat.shape[1]
    num_annotated = np.count_nonzero(flat, axis=1)
    ranks = threshold_ranks(protocol, num_pixels, num_annotated) + (protocol.comparison == ">")
    ranks = np.broadcast_to(ranks, len(flat))
    false_positive = np.maximum(num_pixels - ranks - num_annotated, 0)
    best = total.copy()
    for clip in np.flatnonzero(num_pixels - ranks < num_annotated):
        best[clip] = np.sort(flat[clip])[ranks[clip] :].sum(dtype=np.float64)
    return best / (total + false_positive)


def _squared_distance(map_size: int) -> NDArray[np.float64]:
    """(M, M), squared distance to the centre, pixels."""
    offsets = np.arange(map_size) - (map_size - 1) / 2
    return offsets[:, None] ** 2 + offsets[None, :] ** 2
