"""Blind baselines and the ceiling: published numbers, and the best of all masks on tiny maps."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from datasets.annotations import consensus_map, read_vgg_ss_json
from datasets.clip_lists import read_clip_list
from utils.blind import GAUSSIAN_SIGMA, centre_disc, centre_gaussian, oracle_cious
from utils.metrics import area_under_success, consensus_iou, success_curve, success_rate
from utils.protocols import PROTOCOLS, binarise, normalise

METADATA = Path(__file__).parents[2] / "shared" / "metadata"
MEDIAN = PROTOCOLS["ssl_tie"]
FIXED = PROTOCOLS["min_max_0.5"]


def small(protocol, size=4):
    return replace(protocol, map_size=size)


def union(*boxes):
    return consensus_map(np.array(boxes, dtype=np.float64), annotators_needed=1)


# ---------------------------------------------------------------------------- published numbers


@pytest.fixture(scope="module")
def vgg_ss():
    """Name of the score -> clip id -> consensus IoU, for all 5,158 clips of VGG-SS."""
    path = METADATA / "lvs_vggss.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    boxes = read_vgg_ss_json(path)
    clip_ids = list(boxes)
    disc = centre_disc(224)
    cious = {"disc": [], "oracle": []}
    for start in range(0, len(clip_ids), 64):
        truth = np.stack([union(*boxes[clip_id]) for clip_id in clip_ids[start : start + 64]])
        cious["disc"].extend(consensus_iou(np.broadcast_to(disc, truth.shape), truth))
        cious["oracle"].extend(oracle_cious(truth, MEDIAN))
    return {name: dict(zip(clip_ids, values, strict=True)) for name, values in cious.items()}


def percent(cious):
    auc = area_under_success(success_curve(cious))
    return round(100 * success_rate(cious), 2), round(100 * auc, 2)


def test_scores_on_the_4911_clips_of_ssl_tie(vgg_ss):
    clip_ids = read_clip_list(METADATA / "ssl_tie_test_vggss_4911.txt").clip_ids
    assert len(clip_ids) == 4911
    assert percent([vgg_ss["disc"][clip_id] for clip_id in clip_ids]) == (33.94, 37.40)
    assert percent([vgg_ss["oracle"][clip_id] for clip_id in clip_ids]) == (50.52, 49.45)


def test_scores_on_all_5158_clips(vgg_ss):
    assert len(vgg_ss["disc"]) == 5158
    assert percent(list(vgg_ss["disc"].values())) == (33.95, 37.43)
    assert percent(list(vgg_ss["oracle"].values()))[0] == 50.48


def test_disc_stays_below_the_ceiling(vgg_ss):
    disc, oracle = (np.array(list(vgg_ss[name].values())) for name in ("disc", "oracle"))
    # Its last ring left out, the disc has three pixels less than the rule predicts without ties.
    num_predicted = centre_disc(224).sum()
    assert num_predicted == 25_084
    assert (disc <= oracle * 25_087 / num_predicted + 1e-12).all()
    assert (disc < 0.99 * oracle).mean() > 0.7


# ------------------------------------------------------------------------------------ predictors


def test_disc_holds_the_pixels_nearest_to_the_centre():
    disc = centre_disc(224)
    rows, columns = np.mgrid[:224, :224]
    distance = np.hypot(rows - 111.5, columns - 111.5)
    assert distance[disc].max() < distance[~disc].min()
    # The next ring would go beyond half of the frame.
    ring = np.isclose(distance, distance[~disc].min())
    assert disc.sum() <= 25_087 < disc.sum() + ring.sum()
    for turned in (disc[::-1], disc[:, ::-1], disc.T):
        np.testing.assert_array_equal(turned, disc)


def test_disc_of_a_small_map():
    np.testing.assert_array_equal(
        centre_disc(4), [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    )


def test_gaussian_is_centred_and_a_disc_under_the_median_rule():
    gaussian, mask = centre_gaussian(MEDIAN)
    assert gaussian.shape == (224, 224) and gaussian.dtype == np.float32
    assert gaussian.min() == 0 and gaussian.max() == 1
    peaks = {tuple(map(int, position)) for position in np.argwhere(gaussian == 1)}
    assert peaks == {(111, 111), (111, 112), (112, 111), (112, 112)}
    assert (np.diff(gaussian[112, 112:]) < 0).all()
    np.testing.assert_array_equal(gaussian, gaussian.T)
    np.testing.assert_array_equal(gaussian, gaussian[::-1])
    np.testing.assert_array_equal(mask, centre_disc(224))


def test_gaussian_under_the_fixed_rule():
    _, mask = centre_gaussian(FIXED)
    offsets = (np.arange(224) - 111.5) / 224
    squared = offsets[:, None] ** 2 + offsets**2
    heights = np.exp(-squared / (2 * GAUSSIAN_SIGMA**2))
    middle = (heights.min() + heights.max()) / 2
    certain = np.abs(heights - middle) > 1e-6
    np.testing.assert_array_equal(mask[certain], heights[certain] > middle)
    assert certain.sum() >= 224**2 - 8
    assert 0.3 < mask.mean() < 0.35


# --------------------------------------------------------------------------------------- ceiling


def tiny_truths():
    """4 x 4 maps, from empty to full, with half votes."""
    rng = np.random.default_rng(0)
    shares = [(1, 0, 0), (0, 0, 1), (0, 1, 0), (0.9, 0, 0.1), (0.5, 0.5, 0), (0, 0.5, 0.5)]
    shares += [(0.6, 0, 0.4), (0.3, 0, 0.7)] * 3 + [(0.4, 0.3, 0.3)] * 6
    return np.stack([rng.choice([0, 0.5, 1], (4, 4), p=p) for p in shares]).astype(np.float32)


def masks_of(num_predicted, num_pixels=16):
    chosen = np.array(list(combinations(range(num_pixels), num_predicted)))
    masks = np.zeros((len(chosen), num_pixels), dtype=bool)
    np.put_along_axis(masks, chosen, True, axis=1)
    return masks.reshape(-1, 4, 4)


@pytest.mark.parametrize(("comparison", "num_predicted"), [(">", 7), (">=", 8)])
def test_ceiling_of_the_median_rule_is_the_best_of_all_masks(comparison, num_predicted):
    protocol = replace(small(MEDIAN), comparison=comparison)
    distinct = np.random.default_rng(1).permutation(16).reshape(1, 4, 4).astype(np.float32)
    assert binarise(normalise(distinct, protocol), protocol).sum() == num_predicted
    masks = masks_of(num_predicted)
    truths = tiny_truths()
    best = [consensus_iou(masks, np.broadcast_to(t, masks.shape)).max() for t in truths]
    np.testing.assert_allclose(oracle_cious(truths, protocol), best, atol=1e-12)
    assert len(set(best)) > 5


def test_ceiling_of_the_median_rule_on_a_map_with_an_odd_number_of_pixels():
    protocol = small(MEDIAN, 3)
    distinct = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    mask = binarise(normalise(distinct, protocol), protocol)
    truth = mask.astype(np.float32)
    assert consensus_iou(mask, truth)[0] == 1
    assert oracle_cious(truth, protocol)[0] == 1


def test_ceiling_of_the_fixed_rule_is_reached_by_the_truth():
    truths = tiny_truths()
    truths = truths[(truths > 0).any(axis=(1, 2)) & (truths == 0).any(axis=(1, 2))]
    assert len(truths) > 8
    protocol = small(FIXED)
    masks = binarise(normalise((truths > 0).astype(np.float32), protocol), protocol)
    np.testing.assert_array_equal(consensus_iou(masks, truths), 1)
    np.testing.assert_array_equal(oracle_cious(truths, protocol), 1)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_nothing_can_be_found_where_nothing_is(protocol):
    assert oracle_cious(np.zeros((2, 224, 224), np.float32), protocol).tolist() == [0, 0]


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_no_map_without_ties_beats_the_ceiling(protocol):
    rng = np.random.default_rng(2)
    truths = np.stack(
        [
            consensus_map(rng.random((3, 2)).repeat(2, axis=1) + spread, annotators_needed=needed)
            for needed in (1, 2)
            for spread in (np.array([-w, -w, w, w]) for w in (0.05, 0.2, 0.4, 0.7))
        ]
    )
    # Noise, the truth itself with noise, and what lies beside it.
    for weight in (0, 0.5, 3, -1):
        maps = rng.random(truths.shape, dtype=np.float32) + np.float32(weight) * truths
        cious = consensus_iou(binarise(normalise(maps, protocol), protocol), truths)
        assert (cious <= oracle_cious(truths, protocol)).all()


def test_full_frame_box_just_misses_under_the_median_rule():
    ceiling = oracle_cious(union((0, 0, 1, 1))[None], MEDIAN)
    assert ceiling[0] == pytest.approx(25_087 / 50_176, abs=1e-12)
    assert success_rate(ceiling) == 0


@pytest.mark.parametrize(
    ("box", "reached"),
    [((0.25, 0.25, 0.75, 0.75), True), ((0.25, 0.25, 0.75, 0.745), False), ((0, 0, 1, 0.2), False)],
)
def test_a_quarter_of_the_frame_is_needed(box, reached):
    truth = union(box)[None]
    assert (truth.mean() >= 0.25) == reached
    ceiling = oracle_cious(truth, MEDIAN)
    assert ceiling[0] == pytest.approx(int(truth.sum()) / 25_087, abs=1e-12)
    assert success_rate(ceiling) == reached


def test_made_up_list():
    truths = np.stack(
        [
            union((0, 0, 1, 1)),
            union((0.25, 0.25, 0.75, 0.75)),
            union((0, 0, 0.3, 0.3)),
            union((0, 0, 0.5, 1)),
            union((0, 0, 0.4, 0.8), (0.6, 0.2, 1, 1)),
        ]
    )
    # Full frame: 25087/50176; quarter: 12544/25087; 67 x 67 px; half: all but one pixel;
    # two boxes of 89 x 179 and 90 x 180 px.
    areas = np.array([224**2, 112**2, 67**2, 112 * 224, 89 * 179 + 90 * 180])
    np.testing.assert_array_equal(truths.sum(axis=(1, 2)), areas)
    expected = np.minimum(areas, 25_087) / np.maximum(areas, 25_087)
    np.testing.assert_allclose(oracle_cious(truths, MEDIAN), expected, atol=1e-12)
    assert percent(oracle_cious(truths, MEDIAN))[0] == 60
    disc = np.broadcast_to(centre_disc(224), truths.shape)
    cious = consensus_iou(disc, truths)
    assert cious[1] == pytest.approx(112**2 / disc[0].sum(), abs=1e-12)
    assert cious[3] == pytest.approx(1 / 3, abs=1e-3)
    assert cious[2] < 0.03
