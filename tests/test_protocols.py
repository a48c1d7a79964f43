"""From a similarity map to predicted pixels: the authors' masks, and each rule as a slow loop."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_inputs import arrays

from datasets.annotations import consensus_map
from utils.evaluation import protocols as engine
from utils.evaluation.metrics import TruthMaps, consensus_iou
from utils.evaluation.protocols import PROTOCOLS, ObjectMaps, confidences, find_protocols, values_at_ranks

MEDIAN = PROTOCOLS["ssl_tie"]
NUM_PIXELS = 224 * 224
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
BY_THE_MAP_S_RANGE = [p for p in PROTOCOLS.values() if p.name != "slavc_fixed"]


def upsample(maps, protocol):
    return engine.upsample(torch.as_tensor(maps), protocol).numpy()


def normalise(maps, protocol):
    return engine.normalise(torch.as_tensor(maps), protocol).numpy()


def predict_by_all(similarity_maps, protocols, num_annotated=None, objects=None):
    counts = None if num_annotated is None else torch.as_tensor(num_annotated)
    return engine.predict(torch.as_tensor(similarity_maps), protocols, counts, objects)


def predict(similarity_maps, protocol, num_annotated=12_345):
    counts = np.broadcast_to(num_annotated, len(similarity_maps)).copy()
    return predict_by_all(similarity_maps, [protocol], counts)[0].masks.numpy()


def smooth_maps(count, seed=0):
    """(B, 14, 14), like those of a network: no two positions are equal."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 4, 4)).astype(np.float32)
    return 0.4 + 0.1 * upsample(coarse, replace(MEDIAN, map_size=14))


def test_masks_equal_the_authors_bit_for_bit():
    golden = arrays("evaluation")
    masks = predict(golden["heat"], MEDIAN)
    bits = np.unpackbits(golden["vggss/pred_bits"], axis=1).astype(bool)
    assert masks.shape == (60, 224, 224)
    for name, mask, expected in zip(golden["names"], masks, bits, strict=True):
        np.testing.assert_array_equal(mask.ravel(), expected, err_msg=str(name))
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), golden["vggss/pred_area"])


# ------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("protocol", BY_THE_MAP_S_RANGE, ids=lambda p: p.name)
def test_normalised_maps_span_0_to_1(protocol):
    maps = upsample(smooth_maps(4), protocol)
    normalised = normalise(maps, protocol)
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(normalised.min(axis=(1, 2)), 0)
    np.testing.assert_array_equal(normalised.max(axis=(1, 2)), 1)
    lowest, span = maps.min(axis=(1, 2), keepdims=True), np.ptp(maps, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(normalised, (maps - lowest) / span, atol=1e-6)


def test_given_maps_are_not_changed():
    maps = smooth_maps(2)
    maps[1] = 0.3
    before = maps.copy()
    predictions = predict_by_all(maps, list(PROTOCOLS.values()), np.array([7, 9]))
    np.testing.assert_array_equal(maps, before)
    for protocol, prediction in zip(PROTOCOLS.values(), predictions, strict=True):
        large = upsample(maps, protocol)
        before = large.copy()
        np.testing.assert_array_equal(prediction.localisation_maps, normalise(large, protocol))
        np.testing.assert_array_equal(large, before)


# -------------------------------------------------------------------------------------- rules


def slow_scale(pixels):
    lowest, span = min(pixels), max(pixels) - min(pixels)
    return [(pixel - lowest) / span if span else pixel for pixel in pixels]


def slow_rule(name, pixels, num_annotated):
    """The lines of the authors' programs, pixel by pixel."""
    if name == "slavc_fixed":
        return [(pixel + np.float32(1)) / np.float32(2) >= 0.5 for pixel in pixels]
    if name.startswith("ssl_"):  # they scale what is high to 0, and take that from 1
        scaled = [np.float32(1) - inverted for inverted in slow_scale([-pixel for pixel in pixels])]
    else:
        scaled = slow_scale(pixels)
    if name == "sspl":
        return [max(pixels) > min(pixels) and pixel >= 0.5 for pixel in scaled]
    median = sorted(scaled)[len(scaled) // 2]
    if name == "ssl_tie":
        return [pixel > median or pixel >= 1 for pixel in scaled]
    if name.endswith("adaptive") and num_annotated:
        threshold = sorted(scaled)[len(scaled) - num_annotated]
        return [pixel > threshold for pixel in scaled]
    return [pixel > median if name.startswith("ssl_align") else pixel >= median for pixel in scaled]


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5, 9, 1000])
@EVERY
def test_predictions_equal_a_slow_rule(protocol, num_levels):
    """Of maps with ties, constant ones among them, that begin at several levels."""
    rng = np.random.default_rng(num_levels)
    lowest = itertools.cycle(np.array([-1, -0.25, -1e-3, 0, 1 / 3, 3], np.float32))
    for num_annotated in [0, 1, 2, 72, 143, 144, *rng.integers(1, 144, 6)]:
        levels = rng.random(num_levels) if num_levels == 1000 else np.arange(num_levels) / 8
        shares = rng.dirichlet(np.full(num_levels, 0.5))
        values = rng.choice(levels, (12, 12), p=shares).astype(np.float32) + next(lowest)
        expected = np.reshape(slow_rule(protocol.name, list(values.ravel()), num_annotated), (12, 12))
        found = predict(values[None], replace(protocol, map_size=12), num_annotated)[0]
        np.testing.assert_array_equal(found, expected)


def test_adaptive_rule_predicts_a_pixel_less_than_each_clip_s_truth_has():
    maps = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_PIXELS), (5, 1)), axis=1)
    maps, counts = maps.reshape(5, 224, 224).astype(np.float32), [0, 1, 2, 25_088, NUM_PIXELS]
    adaptive = PROTOCOLS["ssl_align_adaptive"]
    sizes = predict(maps, adaptive, counts).sum(axis=(1, 2))
    assert sizes.tolist() == [25_087, 0, 1, 25_087, NUM_PIXELS - 1]
    assert (predict(maps, replace(adaptive, comparison=">="), counts).sum(axis=(1, 2)) == sizes + 1).all()


@EVERY
def test_one_map_for_all_clips_equals_the_map_repeated(protocol):
    counts = np.array([0, 1, 5_000, NUM_PIXELS])
    (single,) = predict_by_all(smooth_maps(1), [protocol], counts)
    repeated = predict(smooth_maps(1).repeat(4, axis=0), protocol, counts)
    np.testing.assert_array_equal(np.broadcast_to(single.masks, repeated.shape), repeated)


# ------------------------------------------------------------------------------------ corners


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@EVERY
def test_map_that_is_not_finite_predicts_nothing_and_spares_its_neighbours(protocol, wrong, recwarn):
    maps = smooth_maps(4)
    alone = predict(maps, protocol)
    maps[1] = wrong
    maps[2, 3, 4] = wrong
    masks = predict(maps, protocol)
    assert not masks[1].any() and not masks[2].any()
    assert alone[0].any() and alone[3].any()
    np.testing.assert_array_equal(masks[[0, 3]], alone[[0, 3]])
    assert not recwarn.list


# --------------------------------------------------------------------------------- confidences


@pytest.mark.parametrize("alpha", [None, 0.4])
@EVERY
def test_confidence_is_the_mean_of_the_top_quarter_of_the_scores(protocol, alpha):
    maps, others = smooth_maps(3), np.random.default_rng(2).random((3, 7, 7), dtype=np.float32)
    objects = None if alpha is None else ObjectMaps(torch.from_numpy(others), alpha)
    found = confidences(torch.from_numpy(maps), protocol, objects)
    scores = upsample(maps, protocol).astype(np.float64)
    if protocol.name.startswith("slavc"):
        scores = (scores + 1) / 2
        if alpha is not None:
            scores = alpha * scores + (1 - alpha) * upsample(others, protocol) / 2.5
    expected = [np.sort(one.ravel())[-NUM_PIXELS // 4 :].mean() for one in scores]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    maps[1, 2, 3] = np.nan
    found = confidences(torch.from_numpy(maps), protocol, objects)
    assert found.isnan().tolist() == [False, True, False]


def test_values_at_ranks_are_those_of_a_sort():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((5, 5_000)).astype(np.float32)
    values[1], values[2], values[3] = np.round(values[1]), values[2] * 1e-40, -0.3
    values[4, 7] = 1e30
    ranks = torch.from_numpy(rng.integers(0, 5_000, (5, 9)))
    ranks[:, :2] = torch.tensor([0, 4_999])
    values = torch.from_numpy(values)
    assert torch.equal(values_at_ranks(values, ranks), values.sort(1).values.gather(1, ranks))


# -------------------------------------------------------------------------------------- names


def test_each_rule_is_found_by_its_name():
    assert [p.name for p in find_protocols("sspl, ssl_tie")] == ["sspl", "ssl_tie"]
    assert find_protocols("all") == tuple(PROTOCOLS.values())
    for names in ("strict", "ssl_tie,strict", "", "ssl_tie,,sspl", "all,sspl"):
        with pytest.raises(ValueError, match=f"no protocol .*{', '.join(PROTOCOLS)}"):
            find_protocols(names)
    with pytest.raises(ValueError, match="'sspl' is named twice"):
        find_protocols("sspl,ssl_tie,sspl")


def test_no_rule_has_two_names():
    alike = {replace(protocol, name="") for protocol in PROTOCOLS.values()}
    assert len(alike) == len(PROTOCOLS)
    for other, name in {"lvs": "ssl_tie", "fnac": "ez_vsl", "vssl_eval": "ssl_align"}.items():
        with pytest.raises(ValueError, match=f"'{other}' is the same rule as '{name}'"):
            find_protocols(f"sspl,{other}")


# -------------------------------------------------------------------- against the authors' programs

CASES = [key for key in arrays("protocols") if re.search("_(vgg|flickr)_[17]", key)]


@pytest.mark.parametrize("key", CASES)
def test_scores_are_those_of_the_authors_programs(key):
    """Of maps of 16 kinds: smooth, with ties and plateaux, an impulse; none constant, where noise decides."""
    golden = arrays("protocols")
    name, boxes, side, *objects = re.fullmatch(r"(\w+)_(vgg|flickr)_(7|14)(?:_objects(.+))?", key).groups()
    needed = {"vgg": 1, "flickr": 2}[boxes]
    owners, corners = golden[boxes][:, 0], golden[boxes][:, 1:]
    truths = [consensus_map(corners[owners == i], annotators_needed=needed) for i in range(len(golden[key]))]
    truth, maps = TruthMaps(torch.from_numpy(np.stack(truths))), torch.from_numpy(golden[f"m{side}"])
    mixed_in = objects[0] and ObjectMaps(torch.from_numpy(golden["obj7"]), float(objects[0]))
    (found,) = engine.predict(maps, [PROTOCOLS[name]], truth.num_annotated, mixed_in)
    np.testing.assert_allclose(consensus_iou(found.masks, truth), golden[key], atol=2e-4, rtol=0)
