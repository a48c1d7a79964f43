"""Consensus IoU, success rate, AUC and pointing, against hand-made numbers and a slow loop."""

import math

import numpy as np
import pytest
import torch
from golden_inputs import arrays, records

from utils.evaluation import metrics
from utils.evaluation.metrics import (
    SUCCESS_THRESHOLDS,
    TruthMaps,
    area_under_success,
    mean_ciou,
    success_curve,
    success_rate,
)

NAN = math.nan


def consensus_iou(masks, truths):
    return metrics.consensus_iou(torch.from_numpy(masks), TruthMaps(torch.from_numpy(truths))).numpy()


def pointing_hits(maps, truths):
    return metrics.pointing_hits(torch.from_numpy(maps), TruthMaps(torch.from_numpy(truths))).numpy()


def one_ciou(predicted, truth):
    masks = np.array(predicted, dtype=bool)[None, None]
    return consensus_iou(masks, np.array(truth, dtype=np.float32)[None, None])[0]


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 0, 0, 0], [1, 1, 0, 0], 1 / 2),
        ([1, 1, 1, 0], [1, 1, 0, 0], 2 / 3),
        ([0, 0, 1, 1], [1, 1, 0, 0], 0.0),
        # Half votes weigh .5 above and below, and a pixel with a half vote is no false positive.
        ([1, 1, 1, 0], [1, 0.5, 0, 0.5], 1.5 / (2 + 1)),
        ([0, 1, 0, 0], [0, 0.5, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0.5, 0, 0], 0.5 / (0.5 + 1)),
        ([0, 0, 0, 0], [1, 0.5, 0, 0], 0.0),
        ([1, 1, 0, 0], [0, 0, 0, 0], 0.0),
    ],
)
def test_ciou_by_hand(predicted, truth, expected):
    assert one_ciou(predicted, truth) == pytest.approx(expected, abs=1e-15)


def test_ciou_of_nothing_against_nothing_is_nan_without_a_warning(recwarn):
    assert math.isnan(one_ciou([0, 0, 0], [0, 0, 0]))
    assert not recwarn.list


def slow_ciou(predicted, truth):
    shared = annotated = false_positives = 0.0
    for is_predicted, vote in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        annotated += vote
        if is_predicted and vote > 0:
            shared += vote
        elif is_predicted:
            false_positives += 1
    return shared / (annotated + false_positives)


@pytest.mark.parametrize(("part", "rtol"), [(0.25, 0), (1 / 3, 1e-7)])
def test_ciou_equals_a_loop_over_pixels(part, rtol):
    rng = np.random.default_rng(0)
    masks = rng.random((40, 13, 13)) < rng.random((40, 1, 1))
    truths = rng.choice([0, part, 0.5, 1], (40, 13, 13)).astype(np.float32)
    truths[:20] *= rng.random((20, 13, 13)) < 0.3
    cious = consensus_iou(masks, truths)
    assert cious.dtype == np.float64
    assert len(set(cious)) > 30
    expected = [slow_ciou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
    np.testing.assert_allclose(cious, expected, rtol=rtol)


def test_ciou_of_a_large_map_keeps_every_pixel():
    truth = np.full((1, 2000, 2000), 0.5, np.float32)
    mask = np.ones_like(truth, dtype=bool)
    truth[0, 0, 0] = 0
    votes = 0.5 * (2000**2 - 1)
    assert consensus_iou(mask, truth)[0] == pytest.approx(votes / (votes + 1), abs=1e-12)


@pytest.mark.parametrize("case", records("evaluation")["auc_cases"], ids=lambda c: str(c["iou"]))
def test_success_and_auc_as_the_authors(case):
    cious = [NAN if value is None else value for value in case["iou"]]
    assert success_rate(cious) == pytest.approx(case["at05"], abs=1e-9)
    assert area_under_success(success_curve(cious)) == pytest.approx(case["auc"], abs=1e-9)


@pytest.mark.parametrize("benchmark", ["vggss", "flickr"])
def test_scores_of_the_golden_cious(benchmark):
    cious = arrays("evaluation")[f"{benchmark}/ciou"]
    golden = records("evaluation")["scores"][benchmark]
    assert success_rate(cious) == pytest.approx(golden["ciou_at_0p5"], abs=1e-9)
    assert area_under_success(success_curve(cious)) == pytest.approx(golden["auc"], abs=1e-9)
    # The authors' mean leaves NaN out of sum and count; ours counts it as 0.
    share_with_number = 1 - np.isnan(cious).mean()
    assert mean_ciou(cious) == pytest.approx(golden["mean_ciou"] * share_with_number, abs=1e-9)


def test_success_is_never_strict():
    just_below = np.nextafter(0.5, 0)
    assert success_rate([0.5, just_below, 0.7, 0.1]) == 0.5
    assert success_rate([0.0], 0.0) == 1
    assert success_rate([1.0], 1.0) == 1
    assert success_rate([0.3, 0.4], 0.4) == 0.5


def test_nan_is_a_miss_at_every_threshold():
    assert success_curve([NAN]) == [0] * 21
    assert success_curve([NAN, 1.0]) == [0.5] * 21
    assert mean_ciou([NAN, 0.5]) == 0.25
    assert area_under_success(success_curve([NAN])) == 0


def test_thresholds_are_the_products_of_the_field():
    assert len(SUCCESS_THRESHOLDS) == 21
    assert SUCCESS_THRESHOLDS[0] == 0 and SUCCESS_THRESHOLDS[-1] == 1
    assert SUCCESS_THRESHOLDS[3] > 0.15
    assert success_curve([0.15])[:5] == [1, 1, 1, 0, 0]
    assert success_curve([0.2])[:6] == [1, 1, 1, 1, 1, 0]


def test_auc_is_the_trapezoid_rule():
    curve = [1 - i / 20 for i in range(21)]
    assert area_under_success(curve) == pytest.approx(0.5, abs=1e-12)
    curve[0] = 0.0  # half a step's weight at the ends, a whole one inside
    assert area_under_success(curve) == pytest.approx(0.475, abs=1e-12)
    curve[0], curve[1] = 1.0, 0.0
    assert area_under_success(curve) == pytest.approx(0.5 - 0.95 * 0.05, abs=1e-12)


def pointing(values, truth):
    maps = np.array(values, dtype=np.float32).reshape(1, 2, -1)
    return bool(pointing_hits(maps, np.array(truth, dtype=np.float32).reshape(maps.shape))[0])


@pytest.mark.parametrize(
    ("values", "truth", "hit"),
    [
        ([0, 1, 0.5, 0], [0, 1, 0, 0], True),
        ([0, 1, 0.5, 0], [0, 0, 1, 0], False),
        ([0, 1, 0.5, 0], [0, 0.5, 0, 0], True),
        ([0, 1, 0.5, 0], [1, 0, 1, 1], False),
        ([-3, -1, -2, -3], [0, 1, 0, 0], True),
        # Among equals the first pixel in reading order is the peak.
        ([0, 1, 1, 0], [0, 1, 0, 0], True),
        ([0, 1, 1, 0], [0, 0, 1, 0], False),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], True),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 1, 1], False),
        ([0, 1, 0, 0], [0, 0, 0, 0], False),
        # A map with NaN has no peak, wherever the NaN is.
        ([NAN, 1, 0, 0], [1, 1, 1, 1], False),
        ([0, 1, 0, NAN], [1, 1, 1, 1], False),
        ([NAN] * 4, [1, 1, 1, 1], False),
    ],
)
def test_pointing(values, truth, hit):
    assert pointing(values, truth) is hit


def test_pointing_of_a_batch_looks_at_each_clips_own_map():
    maps = np.zeros((3, 4, 5), np.float32)
    truths = np.zeros((3, 4, 5), np.float32)
    for clip, (row, column) in enumerate([(0, 4), (3, 0), (2, 2)]):
        maps[clip, row, column] = 1
        truths[clip, row, column] = 1
    np.testing.assert_array_equal(pointing_hits(maps, truths), [True, True, True])
    np.testing.assert_array_equal(pointing_hits(maps, truths[[0, 2, 1]]), [True, False, False])


def test_one_mask_and_one_map_stand_for_each_clip():
    rng = np.random.default_rng(0)
    truths = (rng.random((5, 6, 7)) < 0.5).astype(np.float32)
    mask, values = rng.random((1, 6, 7)) < 0.5, rng.random((1, 6, 7)).astype(np.float32)
    repeated = consensus_iou(mask.repeat(5, axis=0), truths)
    np.testing.assert_array_equal(consensus_iou(mask, truths), repeated)
    hits = pointing_hits(values.repeat(5, axis=0), truths)
    np.testing.assert_array_equal(pointing_hits(values, truths), hits)
    assert 0 < hits.sum() < 5
    values[0, 3, 3] = NAN
    assert not pointing_hits(values, truths).any()
