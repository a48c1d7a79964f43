"""Mean IoU and F over 255 thresholds, against loops over pixels and thresholds."""

import math

import numpy as np
import pytest
import torch

from utils.segmentation import (
    BATCH,
    f_avsbench,
    f_curves,
    f_dataset,
    f_thresholds,
    mask_ious,
    mean_iou,
    mean_iou_by_batch,
)

SIZE = 12


def made_up_clips(num_clips, seed=0):
    """Maps with values exactly at thresholds, and masks, every third of them empty."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(num_clips, SIZE, SIZE, generator=generator)
    at_thresholds = f_thresholds()[torch.randint(255, maps.shape, generator=generator)]
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


def test_the_thresholds_are_the_same_in_float32_as_numpy_s():
    expected = np.linspace(0, 1 - 1e-10, 255).astype(np.float32)
    np.testing.assert_allclose(f_thresholds().numpy(), expected, rtol=0, atol=6e-8)
    assert (f_thresholds()[0], f_thresholds()[-1]) == (0, 1)


def test_masks_are_compared_as_in_a_slow_loop():
    maps, truths = made_up_clips(9)
    expected = [
        slow_iou(pixels.flatten().tolist(), truth.flatten().tolist())
        for pixels, truth in zip(maps, truths, strict=True)
    ]
    assert mask_ious(maps, truths).tolist() == pytest.approx(expected, abs=1e-15)


def test_f_curves_are_those_of_a_slow_loop():
    maps, truths = made_up_clips(7)
    # Where torch's and numpy's thresholds differ in the last bit, values at them would too.
    maps = torch.where(torch.isin(maps, f_thresholds()), maps + 1e-6, maps).clamp(0, 1)
    found = f_curves(maps, truths)
    for curve, pixels, truth in zip(found, maps, truths, strict=True):
        if not truth.any():
            assert curve.isnan().all()
            continue
        expected = slow_curve(pixels.flatten().tolist(), truth.flatten().tolist())
        assert curve.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_pixel_at_a_threshold_reaches_it_and_only_those_below():
    thresholds = f_thresholds()
    maps = thresholds[torch.tensor([[[0, 10], [254, 10]]])]
    truths = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    (curve,) = f_curves(maps, truths).tolist()
    four, three, one = 1.3 / (0.3 + 4), 1.3 / (0.3 + 3), 0.0
    assert curve == pytest.approx([four] + 10 * [three] + 244 * [one])


@pytest.mark.parametrize("batch", [1, 2, BATCH, 100])
def test_both_averages_are_those_of_slow_loops(batch):
    maps, truths = made_up_clips(17, seed=3)
    curves, ious = f_curves(maps, truths).numpy(), mask_ious(maps, truths).tolist()
    assert f_dataset(curves) == pytest.approx(slow_f(curves.tolist(), len(curves)), abs=1e-12)
    assert f_avsbench(curves, batch) == pytest.approx(slow_f(curves.tolist(), batch), abs=1e-12)
    means = [np.mean(ious[start : start + batch]) for start in range(0, 17, batch)]
    assert mean_iou_by_batch(ious, batch) == pytest.approx(np.mean(means), abs=1e-15)
    assert mean_iou(ious) == pytest.approx(sum(ious) / 17, abs=1e-15)


def test_a_threshold_for_each_clip_flatters():
    curves = f_curves(*made_up_clips(17, seed=3)).numpy()
    assert f_avsbench(curves, 1) > f_dataset(curves) + 0.001


def test_only_a_batch_that_is_not_full_tells_the_mean_ious_apart():
    ious = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert (mean_iou(ious), mean_iou_by_batch(ious)) == (1 / 6, 1 / 2)
    assert mean_iou(ious) == pytest.approx(mean_iou_by_batch(ious, 3))


def test_batches_in_parts_give_the_same_rows():
    maps, truths = made_up_clips(8)
    parts = [f_curves(maps[i : i + 3], truths[i : i + 3]) for i in range(0, 8, 3)]
    torch.testing.assert_close(torch.cat(parts), f_curves(maps, truths), equal_nan=True)


def test_a_map_that_is_not_finite_predicts_nothing():
    maps, truths = torch.full((2, 4, 4), torch.nan), torch.zeros(2, 4, 4)
    truths[0, 0] = 1
    assert mask_ious(maps, truths).tolist() == [0, 1]
    curve, none = f_curves(maps, truths)
    assert not curve.any() and none.isnan().all()


def test_nothing_annotated_anywhere_has_no_f():
    maps, truths = torch.rand(3, 4, 4), torch.zeros(3, 4, 4)
    curves = f_curves(maps, truths).numpy()
    assert math.isnan(f_dataset(curves)) and math.isnan(f_avsbench(curves))


def test_a_perfect_map_has_full_marks():
    _, truths = made_up_clips(6, seed=4)
    curves = f_curves(truths, truths).numpy()
    assert mean_iou(mask_ious(truths, truths)) == 1
    assert f_dataset(curves) == f_avsbench(curves) == pytest.approx(1)
