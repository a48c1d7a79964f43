"""Similarity maps and losses against naive loops, and what they do at the ends of the range."""

import math

import pytest
import torch

from models.contrast import TriMapConfig, contrastive_loss, trimap_logits
from models.ssl_tie import equivariance_loss

PAPER = TriMapConfig()


def random_maps(batch_size, size=3, seed=0, low=-0.2, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(batch_size, batch_size, size, size, generator=generator, dtype=torch.float64)
    return low + (high - low) * uniform


def mean_in_region(similarities, weights):
    above = sum(weight * value for weight, value in zip(weights, similarities, strict=True))
    return above / sum(weights)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def naive_logits(maps, config):
    """One row a frame: own sound, the other sounds in order, own background."""
    rows = []
    hard_threshold = config.negative_threshold if config.tri_map else config.positive_threshold
    for i, row in enumerate(maps.tolist()):
        in_region = []
        for similarity in row:
            values = [value for line in similarity for value in line]
            weights = [sigmoid((value - config.positive_threshold) / config.sharpness) for value in values]
            in_region.append(mean_in_region(values, weights))
        logits = [in_region[i], *(value for j, value in enumerate(in_region) if j != i)]
        if config.hard_negatives:
            values = [value for line in row[i] for value in line]
            weights = [sigmoid((hard_threshold - value) / config.sharpness) for value in values]
            logits.append(mean_in_region(values, weights))
        rows.append([value / config.temperature for value in logits])
    return rows


def naive_loss(rows):
    losses = [-math.log(math.exp(row[0]) / sum(math.exp(value) for value in row)) for row in rows]
    return sum(losses) / len(losses)


def without_own_column(logits):
    return [[x for column, x in enumerate(row) if column != i + 1] for i, row in enumerate(logits.tolist())]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hard_negatives": False},
        {"tri_map": False},
        {"positive_threshold": 0.3, "negative_threshold": 0.3},
        {"sharpness": 0.2, "temperature": 0.5},
    ],
    ids=["paper", "no hard negatives", "no tri-map", "other thresholds", "soft"],
)
def test_logits_and_loss_equal_naive_loops(batch_size, changes):
    config, maps = TriMapConfig(**changes), random_maps(batch_size)
    logits = trimap_logits(maps, config)
    assert logits.shape == (batch_size, batch_size + 1 + config.hard_negatives)
    expected = naive_logits(maps, config)
    torch.testing.assert_close(
        torch.tensor(without_own_column(logits)), torch.tensor(expected), rtol=1e-6, atol=1e-6
    )
    assert contrastive_loss(logits).item() == pytest.approx(naive_loss(expected), abs=1e-9)


@pytest.mark.parametrize("similarity", [-1.0, 0.0, 0.4, 0.65, 0.95, 1.0])
@pytest.mark.parametrize("hard_negatives", [False, True])
@pytest.mark.parametrize("sharpness", [0.03, 0.003])  # the second makes whole regions underflow
def test_constant_maps_are_finite_in_float32(similarity, hard_negatives, sharpness):
    config = TriMapConfig(hard_negatives=hard_negatives, sharpness=sharpness)
    maps = torch.full((3, 3, 14, 14), similarity, requires_grad=True)
    loss = contrastive_loss(trimap_logits(maps, config))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3 + hard_negatives), abs=1e-4)
    assert torch.isfinite(maps.grad).all()
    assert maps.grad.abs().sum() > 0


def test_one_saturated_clip_spoils_neither_itself_nor_the_others():
    maps = random_maps(4, size=14).float()
    maps[2, 2] = 0.9 + 0.1 * maps[2, 2].abs()  # float32 sigmoid((0.4 - s) / 0.03) is exactly 0
    logits = trimap_logits(maps, PAPER)
    expected = torch.tensor(naive_logits(maps.double(), PAPER))
    torch.testing.assert_close(torch.tensor(without_own_column(logits)), expected, rtol=1e-4, atol=1e-4)


def test_equivariance_loss_is_the_mean_square_over_covered_cells():
    generator = torch.Generator().manual_seed(5)
    ours, target = torch.rand(2, 3, 7, 7, generator=generator)
    full = equivariance_loss(ours, target, torch.ones(3, 7, 7))
    assert full.item() == pytest.approx(torch.nn.functional.mse_loss(ours, target).item())

    coverage = (torch.rand(3, 7, 7, generator=generator) > 0.5).float()
    part = equivariance_loss(ours, target, coverage)
    assert part.item() == pytest.approx((ours - target)[coverage == 1].square().mean().item())
    spoilt = torch.where(coverage == 1, target, torch.tensor(100.0))
    assert equivariance_loss(ours, spoilt, coverage) == part

    assert equivariance_loss(ours, target, torch.zeros(3, 7, 7)) == 0

    weights = torch.tensor([[[1.0, 0.25]]])
    weighted = equivariance_loss(torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 1, 2), weights)
    assert weighted.item() == pytest.approx((1 + 0.25 * 4) / 1.25)
