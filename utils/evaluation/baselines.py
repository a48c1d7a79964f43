"""What needs no model: predictors that never hear the sound, and the ceiling of a rule."""

import torch
from torch import Tensor

from utils.evaluation.metrics import TruthMaps
from utils.evaluation.protocols import LocalisationProtocol, threshold_ranks, values_at_ranks

GAUSSIAN_GRID, GAUSSIAN_SIGMA = 14, 4.0  # side of the map with the centred Gaussian, its deviation: cells


def whole_frame(map_size: int) -> Tensor:
    """Every pixel (M, M)."""
    return torch.ones(map_size, map_size, dtype=torch.bool)


def centre_square(map_size: int) -> Tensor:
    """A centred square (M, M) of half of the map: 158 x 158 of 224 x 224."""
    side = round(map_size * 0.5**0.5)
    start = (map_size - side) // 2
    square = torch.zeros(map_size, map_size, dtype=torch.bool)
    square[start : start + side, start : start + side] = True
    return square


def centre_disc(map_size: int) -> Tensor:
    """The pixels (M, M) nearest to the centre, as many as half of the map, ties left out."""
    squared = _squared_distance(map_size)
    return squared < squared.flatten().sort().values[squared.numel() // 2]


def centre_gaussian() -> Tensor:
    """A similarity map (1, 14, 14) in [0, 1]: a rule up-samples it as it does a model's."""
    squared = _squared_distance(GAUSSIAN_GRID)
    return torch.exp(-squared / (2 * GAUSSIAN_SIGMA**2)).float()[None]


def oracle_cious(truth: TruthMaps, protocol: LocalisationProtocol) -> Tensor:
    """The best consensus IoU (B,) that a map without ties can reach under a rule; 0 where the truth is empty.

    The median rule always predicts half of the frame, the adaptive rule as many pixels as the truth
    has (one less when they compare by >), so the best that they can do is to take the pixels with
    the highest truth first. Under a fixed threshold the truth itself can be predicted.
    """
    if protocol.threshold == "fixed":
        return (truth.total_votes > 0).double()
    num_pixels = truth.maps[0].numel()
    ranks = threshold_ranks(protocol, num_pixels, truth.num_annotated).to(truth.maps.device)
    num_predicted = num_pixels - ranks - int(protocol.comparison == ">")
    num_found = torch.minimum(num_predicted, truth.num_annotated)
    best = num_found.double()
    # Where there are parts of votes, whole ones are found first.
    divided = truth.total_votes != truth.num_annotated
    best[divided] = _largest_sum(truth.maps.flatten(1)[divided], num_found[divided])
    false_positive = num_predicted - num_found
    return best / (truth.total_votes + false_positive)


def _largest_sum(values: Tensor, counts: Tensor) -> Tensor:
    """(C,) float64, the sum of the `counts` (C,) largest of each row's values (C, N)."""
    num_values = values.shape[1]
    ranks = (num_values - counts).clamp(max=num_values - 1)
    least = values_at_ranks(values, ranks[:, None]).double()
    return (values - least).clamp_(min=0).sum(1) + counts * least[:, 0]


def _squared_distance(map_size: int) -> Tensor:
    """(M, M) float64, squared distance to the centre, pixels."""
    offsets = torch.arange(map_size, dtype=torch.float64) - (map_size - 1) / 2
    return offsets[:, None] ** 2 + offsets[None, :] ** 2
