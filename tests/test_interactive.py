"""Pairs of one frame's sounds, against a loop over frames."""

import math

import numpy as np
import pytest

from utils.evaluation.metrics import area_under_success, success_curve, success_rate
from utils.interactive import num_single, pair_cious


def slow_pairs(cious, keys):
    found = {}
    for ciou, key in zip(cious, keys, strict=True):
        found.setdefault(key, []).append(ciou)
    return [math.nan if any(map(math.isnan, group)) else min(group) for group in found.values()]


def test_a_pair_is_as_good_as_its_worse_clip():
    cious = [0.9, 0.2, 0.6, 0.5, 0.7]
    keys = ["cat_dog", "horse_car", "cat_dog", "horse_car", "alone"]
    np.testing.assert_array_equal(pair_cious(cious, keys), [0.6, 0.2, 0.7])
    assert success_rate(pair_cious(cious, keys)) == 2 / 3
    assert num_single(keys) == 1


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_those_of_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    cious = np.where(rng.random(400) < 0.1, math.nan, 0.05 * rng.integers(21, size=400))
    keys = [f"frame {number}" for number in rng.integers(180, size=400)]
    found, expected = pair_cious(cious, keys), slow_pairs(cious.tolist(), keys)
    np.testing.assert_array_equal(found, expected)
    rates = [
        sum(not math.isnan(ciou) and ciou >= 0.05 * i for ciou in expected) / len(expected) for i in range(21)
    ]
    curve = success_curve(found)
    assert curve == pytest.approx(rates)
    slow_area = sum(0.05 * (rates[i] + rates[i + 1]) / 2 for i in range(20))
    assert area_under_success(curve) == pytest.approx(slow_area)
    assert num_single(keys) == sum(keys.count(key) == 1 for key in set(keys))


def test_clips_without_a_key_are_refused():
    with pytest.raises(ValueError, match="got 2 clips and 1 keys"):
        pair_cious([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="got 0 clips"):
        pair_cious([], [])
