"""Intervals and paired tests: against slow loops, hand examples, scipy, and simulations."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from utils.evaluation.metrics import area_under_success, mean_ciou, success_curve, success_rate
from utils.evaluation.statistics import (
    SCORE_KEYS,
    bootstrap_intervals,
    bootstrap_statistics,
    clip_values,
    compare_paired,
    mcnemar,
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


def test_means_of_clip_values_are_the_headline_numbers():
    cious, hits = made_up_cious(500), np.arange(500) % 3 == 0
    success, area, mean, pointing = clip_values(cious, hits).mean(axis=0)
    assert success == success_rate(cious)
    assert area == pytest.approx(area_under_success(success_curve(cious)), abs=1e-12)
    assert mean == pytest.approx(mean_ciou(cious), abs=1e-12)
    assert pointing == hits.mean()
    np.testing.assert_array_equal(clip_values(cious)[:, :3], clip_values(cious, hits)[:, :3])
    assert np.isnan(clip_values(cious)[:, 3]).all()


# ------------------------------------------------------------------------------------- intervals


def slow_intervals(values, resamples, seed):
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = rng.integers(len(values), size=len(values))
        means.append([np.mean([column[place] for place in drawn]) for column in values.T])
    return np.percentile(means, [2.5, 97.5], axis=0).T


@pytest.mark.parametrize("num_clips", [2, 3, 37])
def test_intervals_are_those_of_a_slow_loop(num_clips):
    values = np.random.default_rng(1).random((num_clips, 3))
    found = bootstrap_intervals(values, resamples=50, seed=5)
    np.testing.assert_allclose(found, slow_intervals(values, 50, 5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 37, 8 * 37 * 7, 1 << 30])
def test_chunks_do_not_matter(chunk_bytes):
    values = np.random.default_rng(2).random((37, 2))
    expected = bootstrap_intervals(values, resamples=50)
    found = bootstrap_intervals(values, resamples=50, chunk_bytes=chunk_bytes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_columns_share_their_resamples_and_seeds_matter():
    values = np.random.default_rng(3).random((60, 2))
    both = bootstrap_intervals(np.concatenate([values, values], axis=1))
    np.testing.assert_allclose(both[:2], both[2:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(both[:1], bootstrap_intervals(values[:, :1]), rtol=0, atol=1e-12)
    assert (bootstrap_intervals(values, seed=1) != both[:2]).any()
    assert (both[:, 0] < both[:, 1]).all()


def wilson(share, count):
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


@pytest.mark.parametrize(("num_clips", "num_hits"), [(4911, 1897), (249, 150), (400, 20)])
def test_interval_of_a_share_is_close_to_wilson_s(num_clips, num_hits):
    values = (np.arange(num_clips) < num_hits).astype(float)[:, None]
    (found,) = bootstrap_intervals(values)
    width = np.diff(wilson(num_hits / num_clips, num_clips)).item()
    np.testing.assert_allclose(found, wilson(num_hits / num_clips, num_clips), atol=0.12 * width)


def test_interval_of_a_mean_is_close_to_the_normal_one():
    values = made_up_cious(800)
    values = np.nan_to_num(values)[:, None]
    (found,) = bootstrap_intervals(values)
    error = 1.959964 * values.std() / math.sqrt(800)
    expected = values.mean() - error, values.mean() + error
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 * error)


def test_clips_that_agree_and_unknown_values_have_no_interval():
    values = np.array([[0.3, NAN, 0.0, 1.0], [0.3, 0.5, 1.0, 1.0], [0.3, 0.2, 1.0, 1.0]])
    found = [plain_interval(ends) for ends in bootstrap_intervals(values)]
    assert found[:2] == [None, None] and found[3] is None
    assert found[2] == (0, 1)
    assert np.isnan(bootstrap_intervals(np.ones((1, 2)))).all()
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap_intervals(np.empty((0, 2)))


def test_statistics_share_the_resamples_of_means():
    values = np.random.default_rng(4).random((37, 2))
    found = bootstrap_statistics(lambda repeats: repeats @ values / 37, 37, resamples=60, seed=3)
    expected = bootstrap_intervals(values, resamples=60, seed=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_statistics_that_agree_or_are_unknown_have_no_interval():
    found = bootstrap_statistics(lambda repeats: [2, NAN, repeats[0]], 5, resamples=50)
    assert np.isnan(found[:2]).all() and np.isfinite(found[2]).all()
    with pytest.raises(ValueError, match="at least one clip"):
        bootstrap_statistics(lambda repeats: [0], 0)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "num_clips"), [(0.38, 250), (0.1, 250), (0.38, 1000)])
def test_intervals_cover_the_truth_as_often_as_they_say(share, num_clips):
    rng = np.random.default_rng(7)
    values = (rng.random((num_clips, 600)) < share).astype(float)
    # A seed for each of the made-up benchmarks, as columns of one call share their resamples.
    ends = np.concatenate([bootstrap_intervals(values[:, [k]], resamples=1000, seed=k) for k in range(600)])
    covered = np.mean((ends[:, 0] <= share) & (share <= ends[:, 1]))
    assert 0.92 <= covered <= 0.975  # 0.95, with its own standard error of 0.009


# ---------------------------------------------------------------------------------- paired tests


def hits_of(only_first, only_second, both=3, neither=2):
    pairs = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * both + [(0, 0)] * neither
    first, second = zip(*pairs, strict=True)
    return first, second


@pytest.mark.parametrize("only_first", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("only_second", [0, 1, 3, 7, 23])
def test_mcnemar_is_the_binomial_test_of_the_discordant_clips(only_first, only_second):
    found = mcnemar(*hits_of(only_first, only_second))
    assert (found.only_first, found.only_second) == (only_first, only_second)
    total = only_first + only_second
    expected = stats.binomtest(only_first, total).pvalue if total else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(*hits_of(5, 0)).p_value == 2 / 32
    assert mcnemar(*hits_of(4, 1)).p_value == 12 / 32
    assert mcnemar(*hits_of(3, 3)).p_value == 1
    assert mcnemar([True], [True]).p_value == 1


def test_mcnemar_of_many_clips_neither_overflows_nor_lies():
    assert mcnemar(*hits_of(2600, 2400)).p_value == pytest.approx(
        stats.binomtest(2400, 5000).pvalue, rel=1e-9
    )
    assert mcnemar(*hits_of(5000, 0)).p_value == 0  # 2**-4999 is below the smallest float


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


def test_sign_flips_by_hand():
    assert sign_flip_test([1, 1, 1, 1, 1]) == 2 / 32
    # Sums of .5 or more: .7 with all signs plus, .5 with either .1 minus; and their opposites.
    assert sign_flip_test([0.1, 0.2, 0.3, -0.1]) == 6 / 16
    assert sign_flip_test([0, 0]) == 1


def test_drawn_signs_come_close_to_all_signs():
    differences = np.random.default_rng(9).normal(0.35, 1, 14)
    exact = slow_sign_flips(differences)
    assert 0.01 < exact < 0.5
    error = math.sqrt(exact * (1 - exact) / 9999)
    drawn = sign_flip_test(differences)
    assert drawn == pytest.approx(exact, abs=4 * error)
    assert drawn == sign_flip_test(differences, chunk_bytes=8 * 14 * 5)
    assert drawn != sign_flip_test(differences, seed=1)


def test_a_clear_difference_has_the_smallest_p_value():
    assert sign_flip_test(np.full(400, 0.01), num_flips=999) == 1 / 1000


def test_p_values_are_right_where_there_is_no_difference():
    rng = np.random.default_rng(11)
    found = [sign_flip_test(rng.normal(0, 1, 40), num_flips=199, seed=k) for k in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_two_models_by_hand():
    found = compare_paired([0.9, 0.6, 0.5, 0.1], [0.4, 0.6, 0.3, 0.2])
    assert found.num_clips == 4
    assert found.differences["ciou_at_0.5"] == 50
    assert found.differences["mean_ciou"] == pytest.approx(15)
    assert "pointing_accuracy" not in found.differences
    assert (found.success.only_first, found.success.only_second) == (2, 0)
    assert found.success.p_value == 0.5
    # |.5 + .2 - .1| and larger: .6, .8 and their opposites, of 8 choices of signs.
    assert found.mean_ciou_p_value == 4 / 8


def test_differences_and_their_intervals_turn_with_the_models():
    first, second = made_up_cious(200), made_up_cious(200, seed=1)
    hits = np.arange(200) % 2 == 0
    one, other = (compare_paired(first, second, hits, ~hits), compare_paired(second, first, ~hits, hits))
    assert list(one.differences) == list(SCORE_KEYS)
    for key in SCORE_KEYS:
        assert one.differences[key] == pytest.approx(-other.differences[key])
        lower, upper = one.intervals[key]
        assert lower < one.differences[key] < upper
        assert (-upper, -lower) == pytest.approx(other.intervals[key], abs=1e-9)
    assert one.success.p_value == other.success.p_value
    assert one.mean_ciou_p_value == other.mean_ciou_p_value
    json.dumps(one.as_dict(), allow_nan=False)


def test_pairing_narrows_the_interval_of_a_difference():
    second = np.random.default_rng(4).random(300)
    first = np.clip(second + 0.02, 0, 1)
    lower, upper = compare_paired(first, second).intervals["mean_ciou"]
    alone = bootstrap_intervals(clip_values(first))[2]
    assert upper - lower < 5 < 100 * (alone[1] - alone[0])
    assert 0 < lower < upper


def test_a_model_does_not_differ_from_itself():
    cious = made_up_cious(50)
    found = compare_paired(cious, cious)
    assert set(found.differences.values()) == {0} and set(found.intervals.values()) == {None}
    assert found.success.p_value == found.mean_ciou_p_value == 1


def test_other_clips_are_refused():
    for first, second in (([0.5], [0.5, 0.1]), ([], [])):
        with pytest.raises(ValueError, match="the same clips of both models"):
            compare_paired(first, second)
        with pytest.raises(ValueError, match="the same clips of both models"):
            mcnemar(first, second)
    for differences in ([], [0.1, NAN]):
        with pytest.raises(ValueError, match="a finite difference for each clip"):
            sign_flip_test(differences)
