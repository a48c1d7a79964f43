"""What needs no model: predictors that never hear the sound, and the ceiling of a rule."""

import numpy as np
from numpy.typing import NDArray

from utils.protocols import LocalisationProtocol, binarise, normalise

GAUSSIAN_SIGMA = 4 / 14
"""Standard deviation of the centred Gaussian, fraction of the frame's side."""


def centre_disc(map_size: int) -> NDArray[np.bool_]:
    """The pixels (M, M) nearest to the centre, as many as half of the map, ties left out."""
    squared = _squared_distance(map_size)
    return squared < np.sort(squared.ravel())[squared.size // 2]


def centre_gaussian(
    protocol: LocalisationProtocol,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A centred Gaussian map (M, M) in [0, 1], and what the rule predicts for it (M, M)."""
    squared = _squared_distance(protocol.map_size) / protocol.map_size**2
    gaussian = np.exp(-squared / (2 * GAUSSIAN_SIGMA**2)).astype(np.float32)[None]
    maps = normalise(gaussian, protocol)
    return maps[0], binarise(maps, protocol)[0]


def oracle_cious(
    ground_truth_maps: NDArray[np.float32], protocol: LocalisationProtocol
) -> NDArray[np.float64]:
    """The best consensus IoU that a map without ties can reach under a rule.

    The median rule always predicts half of the frame (one pixel less when it compares by >), so the
    best it can do is to take the pixels with the highest truth first. Under a fixed threshold the
    truth itself can be predicted.

    Args:
        ground_truth_maps: (B, M, M) in [0, 1].
        protocol: the rule.

    Returns:
        (B,) in [0, 1]; 0 where the truth is empty.
    """
    flat = ground_truth_maps.reshape(len(ground_truth_maps), -1).astype(np.float64)
    total = flat.sum(axis=1)
    if protocol.threshold == "fixed":
        return (total > 0).astype(np.float64)
    num_predicted = flat.shape[1] - flat.shape[1] // 2 - (protocol.comparison == ">")
    best_first = -np.partition(-flat, num_predicted - 1, axis=1)[:, :num_predicted]
    false_positive = (best_first == 0).sum(axis=1)
    return best_first.sum(axis=1) / (total + false_positive)


def _squared_distance(map_size: int) -> NDArray[np.float64]:
    """(M, M), squared distance to the centre, pixels."""
    offsets = np.arange(map_size) - (map_size - 1) / 2
    return offsets[:, None] ** 2 + offsets[None, :] ** 2
