"""Consensus IoU, pointing and the metrics of single benchmarks, against hand-made numbers and slow loops."""

import math

import numpy as np
import pytest
import torch
from golden_inputs import arrays, records

from utils.evaluation import metrics
from utils.evaluation.metrics import TruthMaps
from utils.evaluation.statistics import clip_values

NAN = math.nan


def consensus_iou(masks, truths):
    return metrics.consensus_iou(torch.from_numpy(masks), TruthMaps(torch.from_numpy(truths))).numpy()


def pointing_hits(maps, truths):
    return metrics.pointing_hits(torch.from_numpy(maps), TruthMaps(torch.from_numpy(truths))).numpy()


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
        ([0, 0, 0, 0], [0, 0, 0, 0], NAN),
    ],
)
def test_ciou_by_hand(predicted, truth, expected, recwarn):
    masks, truths = np.array(predicted, bool)[None, None], np.array(truth, np.float32)[None, None]
    assert consensus_iou(masks, truths)[0] == pytest.approx(expected, abs=1e-15, nan_ok=True)
    assert not recwarn.list


def test_ciou_of_a_large_map_keeps_every_pixel():
    truth = np.full((1, 2000, 2000), 0.5, np.float32)
    truth[0, 0, 0] = 0
    votes = 0.5 * (2000**2 - 1)
    found = consensus_iou(np.ones_like(truth, dtype=bool), truth)[0]
    assert found == pytest.approx(votes / (votes + 1), abs=1e-12)


# -------------------------------------------------------------------------- scores of a data set


@pytest.mark.parametrize("case", records("evaluation")["auc_cases"], ids=lambda c: str(c["iou"]))
def test_success_and_auc_as_the_authors(case):
    cious = [NAN if value is None else value for value in case["iou"]]
    found = clip_values(cious)[:, :2].mean(axis=0)
    assert found == pytest.approx([case["at05"], case["auc"]], abs=1e-9)


@pytest.mark.parametrize("benchmark", ["vggss", "flickr"])
def test_scores_of_the_golden_cious(benchmark):
    cious, golden = arrays("evaluation")[f"{benchmark}/ciou"], records("evaluation")["scores"][benchmark]
    # The authors' mean leaves NaN out of sum and count; ours counts it as 0.
    mean = golden["mean_ciou"] * (1 - np.isnan(cious).mean())
    expected = [golden["ciou_at_0p5"], golden["auc"], mean]
    assert clip_values(cious)[:, :3].mean(axis=0) == pytest.approx(expected, abs=1e-9)


def test_values_of_clips_by_hand():
    success, area, mean, pointing = clip_values([0.5, np.nextafter(0.5, 0), NAN, 0.15], [1, 0, 1, NAN]).T
    assert success.tolist() == [1, 0, 0, 0] and mean.tolist() == [0.5, np.nextafter(0.5, 0), 0, 0.15]
    # The field's thresholds are products, 0.05 * 3 is above .15; half a step's weight at the ends.
    assert area == pytest.approx([0.05 * 10.5, 0.05 * 9.5, 0, 0.05 * 2.5])
    np.testing.assert_array_equal(pointing, [1, 0, 1, NAN])
    assert np.isnan(clip_values([0.5])[:, 3]).all()


# --------------------------------------------------------------------------------------- pointing


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
    ],
)
def test_pointing(values, truth, hit):
    maps, truths = (np.array(pixels, np.float32).reshape(1, 2, 2) for pixels in (values, truth))
    assert pointing_hits(maps, truths).tolist() == [hit]


def test_each_clip_has_its_own_map_and_one_stands_for_all():
    rng = np.random.default_rng(0)
    truths = (rng.random((5, 6, 7)) < 0.5).astype(np.float32)
    masks, maps = rng.random((5, 6, 7)) < 0.5, rng.random((5, 6, 7)).astype(np.float32)
    for found, given in ((consensus_iou, masks), (pointing_hits, maps)):
        alone = [found(given[i : i + 1], truths[i : i + 1])[0] for i in range(5)]
        np.testing.assert_array_equal(found(given, truths), alone)
        repeated = found(given[:1].repeat(5, axis=0), truths)
        np.testing.assert_array_equal(found(given[:1], truths), repeated)
        assert len(set(repeated.tolist())) > 1


# ------------------------------------------------------------------------- detection: extended sets


def count(clips, threshold, level=0.5):
    """Precision and recall at a confidence, clip by clip."""
    true_positive = false_positive = false_negative = 0
    for confidence, ciou, has_object in clips:
        if confidence >= threshold:
            if has_object and ciou >= level:
                true_positive += 1
            else:
                false_positive += 1
        elif has_object:
            false_negative += 1
    predicted, wanted = true_positive + false_positive, true_positive + false_negative
    return (true_positive / predicted if predicted else 1.0, true_positive / wanted if wanted else 1.0)


def f1(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_detection(clips):
    """SLAVC's AP, largest F1 and localisation accuracy, by loops over thresholds and clips."""
    confidences = sorted(confidence for confidence, _, _ in clips)
    num_clips = len(clips)
    points = [count(clips, at) for at in confidences[:-1][:: -max(1, num_clips // 200)]]
    area = 0.0
    for k in range(len(points) - 1):
        # What recall gains next is paid at the best precision from here on.
        area += max(precision for precision, _ in points[k:]) * (points[k + 1][1] - points[k][1])
    largest = max(f1(*count(clips, at)) for at in confidences[:: max(1, num_clips // 10)])
    return area, largest, count([clip for clip in clips if clip[2]], -1000)[0]


def detected_clips(num_clips, *, ties, seed):
    """(confidence, consensus IoU, has an object) of clips; confidences of good clips are larger."""
    rng = np.random.default_rng(seed)
    cious = np.where(rng.random(num_clips) < 0.2, 0.5, rng.random(num_clips))
    has_object = rng.random(num_clips) < 0.5
    has_object[0] = True
    confidences = 0.3 + 0.2 * rng.random(num_clips) + 0.2 * has_object * cious
    if ties:
        confidences = np.round(confidences, 2)
    return list(zip(confidences.tolist(), cious.tolist(), has_object.tolist(), strict=True))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_clips", [1, 2, 3, 11, 25, 199, 401, 650])
def test_detection_equals_slow_loops(num_clips, ties):
    clips = detected_clips(num_clips, ties=ties, seed=num_clips)
    found = metrics.detection_scores(*zip(*clips, strict=True))
    assert found == pytest.approx(slow_detection(clips), abs=1e-12)


TOY = [
    (0.9, 0.8, True), (0.8, 0.0, False), (0.7, 0.2, True),
    (0.6, 0.6, True), (0.4, 0.0, False), (0.3, 0.9, True),
]  # fmt: skip
"""Downwards: precision 1, 1/2, 1/3, 2/4, 2/5, 3/6; recall 1/4, 1/4, 1/3, 2/3, 2/3, 1. Without the largest
confidence: the first recall, 1/4, earns nothing."""
# Equal confidences say nothing about who sounds.
EQUAL = [(1.0, 0.9, index % 4 == 0) for index in range(40)]


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        (TOY, (3 / 4 * 1 / 2, 2 / 3, 3 / 4)),
        (EQUAL, (0, 0.4, 1)),
        ([(0.5, 0, False), (0.6, 0, False)], (0, 0, 1)),
    ],
)
def test_detection_by_hand(clips, expected):
    assert metrics.detection_scores(*zip(*clips, strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("confidence", [NAN, -math.inf])
def test_a_clip_without_a_confidence_comes_last_and_without_a_ciou_is_missed(confidence):
    clips = [(0.2, 0.9, True), (0.9, NAN, True), (confidence, 0.9, True), (0.4, 0.1, False)]
    lowest = [(0.2, 0.9, True), (0.9, 0.0, True), (-1.0, 0.9, True), (0.4, 0.1, False)]
    found = [metrics.detection_scores(*zip(*one, strict=True)) for one in (clips, lowest)]
    assert found[0] == found[1]


# ------------------------------------------------------------------- pairs: several sounds of a frame


def test_a_pair_is_as_good_as_its_worse_clip():
    found = metrics.pair_cious([0.6, 0.9, NAN, 0.4, 0.7, 0.5, 0.8], list("baccbda"))
    np.testing.assert_array_equal(found, [0.6, 0.8, NAN, 0.5])  # in the order of the clips


# ------------------------------------------------------------------------ masks: outlined objects


def outlined_clips(num_clips, seed=0):
    """Maps with values exactly at thresholds, and masks, every third of them empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(num_clips, 12, 12, generator=generator)
    at_thresholds = metrics.f_thresholds()[torch.randint(255, maps.shape, generator=generator)]
    maps = torch.where(torch.rand(maps.shape, generator=generator) < 0.5, maps, at_thresholds)
    maps[:, 0, 0], maps[:, 0, 1] = 1, 0
    truths = (torch.rand(maps.shape, generator=generator) < 0.3).float()
    truths[::3] = 0
    return maps, truths


def slow_iou(pixels, truth):
    predicted, annotated = [value > 0.5 for value in pixels], [value > 0 for value in truth]
    if not any(annotated):
        predicted, annotated = [not p for p in predicted], [True for _ in annotated]
    shared = sum(p and a for p, a in zip(predicted, annotated, strict=True))
    return shared / sum(p or a for p, a in zip(predicted, annotated, strict=True))


def slow_curve(pixels, truth):
    found = []
    for threshold in np.linspace(0, 1 - 1e-10, 255).astype(np.float32).tolist():
        hits = sum(p >= threshold and t > 0 for p, t in zip(pixels, truth, strict=True))
        predicted = sum(p >= threshold for p in pixels)
        precision = hits / predicted if predicted else 0
        recall = hits / sum(t > 0 for t in truth)
        bottom = 0.3 * precision + recall
        found.append(1.3 * precision * recall / bottom if bottom else 0)
    return found


def slow_f(curves, batch):
    largest = []
    for start in range(0, len(curves), batch):
        known = [curve for curve in curves[start : start + batch] if not math.isnan(curve[0])]
        if known:
            means = [sum(column) / len(known) for column in zip(*known, strict=True)]
            largest.append(max(means))
    return sum(largest) / len(largest)


def test_masks_and_f_curves_are_those_of_slow_loops():
    maps, truths = outlined_clips(9)
    # Where torch's and numpy's thresholds differ in the last bit, values at them would too.
    maps = torch.where(torch.isin(maps, metrics.f_thresholds()), maps + 1e-6, maps).clamp(0, 1)
    curves = metrics.f_curves(maps, truths)
    ious = metrics.mask_ious(maps, truths).tolist()
    for iou, curve, pixels, truth in zip(ious, curves, maps, truths, strict=True):
        pair = pixels.flatten().tolist(), truth.flatten().tolist()
        assert iou == pytest.approx(slow_iou(*pair), abs=1e-15)
        expected = slow_curve(*pair) if truth.any() else [NAN] * 255
        assert curve.tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    parts = [metrics.f_curves(maps[i : i + 2], truths[i : i + 2]) for i in range(0, 9, 2)]
    torch.testing.assert_close(torch.cat(parts), curves, equal_nan=True)


def test_thresholds_of_f_are_reached_by_what_equals_them():
    thresholds = metrics.f_thresholds()
    assert (thresholds[0], thresholds[-1]) == (0, 1)
    maps = thresholds[torch.tensor([[[0, 10], [254, 10]]])]
    (curve,) = metrics.f_curves(maps, torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])).tolist()
    assert curve == pytest.approx([1.3 / (0.3 + 4)] + 10 * [1.3 / (0.3 + 3)] + 244 * [0.0])


def test_means_over_clips_and_over_batches_are_those_of_slow_loops():
    maps, truths = outlined_clips(17, seed=3)
    curves, ious = metrics.f_curves(maps, truths).numpy(), metrics.mask_ious(maps, truths).numpy()
    means = [np.mean(ious[start : start + 5]) for start in range(0, 17, 5)]
    listed = curves.astype(np.float64).tolist()
    expected = (ious.mean(), slow_f(listed, 17), np.mean(means), slow_f(listed, 5))
    assert metrics.mask_scores(ious, curves) == pytest.approx(expected, abs=1e-12)
    assert expected[1] < expected[3]  # a threshold for each batch flatters


def test_masks_of_maps_without_sense_and_of_perfect_ones():
    maps, truths = torch.full((2, 4, 4), torch.nan), torch.zeros(2, 4, 4)
    truths[0, 0] = 1
    assert metrics.mask_ious(maps, truths).tolist() == [0, 1]
    curve, none = metrics.f_curves(maps, truths)
    assert not curve.any() and none.isnan().all()
    nothing = metrics.f_curves(torch.rand(3, 4, 4), torch.zeros(3, 4, 4)).numpy()
    _, best, _, of_batches = metrics.mask_scores(np.ones(3), nothing)
    assert math.isnan(best) and math.isnan(of_batches)
    _, truths = outlined_clips(6, seed=4)
    perfect = metrics.mask_ious(truths, truths).numpy(), metrics.f_curves(truths, truths).numpy()
    assert metrics.mask_scores(*perfect) == pytest.approx((1, 1, 1, 1))
