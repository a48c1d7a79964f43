"""Intervals and paired tests: against slow loops, hand examples, scipy, and simulations."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from utils.evaluation import statistics
from utils.evaluation.statistics import (
    SCORE_KEYS,
    bootstrap_intervals,
    bootstrap_statistics,
    clip_values,
    compare_paired,
    plain_interval,
    sign_flip_test,
)

NAN = math.nan


def made_up_cious(count, seed=0):
    """Consensus IoUs, some of them exactly at thresholds, some NaN."""
    rng = np.random.default_rng(seed)
    cious = np.where(rng.random(count) < 0.3, 0.05 * rng.integers(21, size=count), rng.random(count))
    cious[rng.random(count) < 0.05] = NAN
    return cious


# ------------------------------------------------------------------------------------- intervals


def slow_intervals(values):
    rng = np.random.default_rng(statistics.SEED)
    means = []
    for _ in range(statistics.RESAMPLES):
        drawn = rng.integers(len(values), size=len(values))
        means.append([np.mean([column[place] for place in drawn]) for column in values.T])
    return np.percentile(means, [2.5, 97.5], axis=0).T


@pytest.mark.parametrize("num_clips", [2, 3, 17])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 21])
def test_intervals_are_those_of_a_slow_loop(monkeypatch, num_clips, chunk):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    values = np.random.default_rng(1).random((num_clips, 3))
    expected = slow_intervals(values)
    np.testing.assert_allclose(bootstrap_intervals(values), expected, rtol=0, atol=1e-12)
    found = bootstrap_statistics(lambda repeats: repeats @ values / num_clips, num_clips)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_clips_that_agree_and_unknown_values_have_no_interval():
    values = np.array([[0.3, NAN, 0.0, 1.0], [0.3, 0.5, 1.0, 1.0], [0.3, 0.2, 1.0, 1.0]])
    found = [plain_interval(ends) for ends in bootstrap_intervals(values)]
    assert found == [None, None, (0, 1), None]
    of_statistics = bootstrap_statistics(lambda repeats: [2, NAN, repeats[0]], 5)
    assert np.isnan(of_statistics[:2]).all() and np.isfinite(of_statistics[2]).all()


# ---------------------------------------------------------------------------------- paired tests


def compared(first, second, first_hits=None, second_hits=None):
    return compare_paired(clip_values(first, first_hits), clip_values(second, second_hits))


def slow_sign_flips(differences):
    """Every choice of signs, one by one."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return np.mean([found >= observed - 1e-12 for found in sums])


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_few_differences_are_tested_exactly(count):
    differences = np.random.default_rng(count).normal(0.4, 1, count)
    assert sign_flip_test(differences) == pytest.approx(slow_sign_flips(differences), abs=1e-12)
    with_zeros = np.concatenate([differences, np.zeros(20)])
    assert sign_flip_test(with_zeros) == sign_flip_test(differences)


def test_sign_flips_by_hand_and_by_scipy():
    assert sign_flip_test(np.ones(5)) == 2 / 32
    # Sums of .5 or more: .7 with all signs plus, .5 with either .1 minus; and their opposites.
    assert sign_flip_test(np.array([0.1, 0.2, 0.3, -0.1])) == 6 / 16
    assert sign_flip_test(np.zeros(2)) == 1
    differences = np.random.default_rng(9).normal(0.35, 1, 14)
    every = {"permutation_type": "samples", "n_resamples": np.inf}
    exact = stats.permutation_test((differences,), np.sum, **every).pvalue
    assert 0.01 < exact < 0.5
    error = math.sqrt(exact * (1 - exact) / 9999)
    assert sign_flip_test(differences) == pytest.approx(exact, abs=4 * error)
    assert sign_flip_test(np.full(400, 0.01)) == 1 / 10_000


def test_two_models_by_hand():
    found = compared([0.9, 0.6, 0.5, 0.1], [0.4, 0.6, 0.3, 0.2])
    assert found["num_clips"] == 4
    assert found["differences"]["ciou_at_0.5"] == 50
    assert found["differences"]["mean_ciou"] == pytest.approx(15)
    assert "pointing_accuracy" not in found["differences"]
    assert (found["only_first"], found["only_second"], found["p_value"]) == (2, 0, 0.5)  # 2 heads, or 2 tails
    assert compared([0.9] * 6 + [0], [0] * 6 + [0.9])["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)
    # |.5 + .2 - .1| and larger: .6, .8 and their opposites, of 8 choices of signs.
    assert found["mean_ciou_p_value"] == 4 / 8


def test_differences_and_their_intervals_turn_with_the_models():
    first, second = made_up_cious(200), made_up_cious(200, seed=1)
    hits = np.arange(200) % 2 == 0
    one, other = compared(first, second, hits, ~hits), compared(second, first, ~hits, hits)
    for key in SCORE_KEYS:
        assert one["differences"][key] == pytest.approx(-other["differences"][key])
        lower, upper = one["intervals"][key]
        assert lower < one["differences"][key] < upper
        assert (-upper, -lower) == pytest.approx(other["intervals"][key], abs=1e-9)
    assert [one[name] for name in ("p_value", "mean_ciou_p_value")] == [
        other[name] for name in ("p_value", "mean_ciou_p_value")
    ]
    json.dumps(one, allow_nan=False)


def test_pairing_narrows_the_interval_and_a_model_does_not_differ_from_itself():
    second = np.random.default_rng(4).random(300)
    first = np.clip(second + 0.02, 0, 1)
    lower, upper = compared(first, second)["intervals"]["mean_ciou"]
    alone = bootstrap_intervals(clip_values(first))[2]
    assert 0 < lower < upper and upper - lower < 5 < 100 * (alone[1] - alone[0])
    same = compared(first, first)
    assert set(same["differences"].values()) == {0} and set(same["intervals"].values()) == {None}
    assert same["p_value"] == same["mean_ciou_p_value"] == 1
