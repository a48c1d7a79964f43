"""From a similarity map to predicted pixels: the authors' masks, and each rule as a slow loop."""

import math
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from golden_inputs import arrays

from datasets.annotations import consensus_map
from utils.evaluation import protocols as engine
from utils.evaluation.metrics import TruthMaps, consensus_iou
from utils.evaluation.protocols import PROTOCOLS, ObjectMaps, confidences, find_protocols, values_at_ranks

MEDIAN = PROTOCOLS["ssl_tie"]
FIXED = PROTOCOLS["sspl"]
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


def predict_pixels(values, protocol, num_annotated=100):
    """What is predicted for a map that needs no up-sampling."""
    maps = np.asarray(values, dtype=np.float32)[None]
    assert maps.shape[1:] == (protocol.map_size, protocol.map_size)
    return predict(maps, protocol, num_annotated)[0]


def small(protocol, size=16):
    return replace(protocol, map_size=size)


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


# -------------------------------------------------------------------------------- up-sampling


def half_pixel(index, small_side, large_side):
    return (index + 0.5) * small_side / large_side - 0.5


def aligned_corners(index, small_side, large_side):
    return index * (small_side - 1) / (large_side - 1)


def linear_weight(distance):
    return max(0.0, 1 - abs(distance))


def cubic_weight(distance, a=-0.75):
    """Keys' kernel, with the slope that PyTorch and OpenCV take."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


RESIZING = {
    "cv2_linear": (half_pixel, linear_weight),
    "bilinear_align_corners": (aligned_corners, linear_weight),
    "bicubic": (half_pixel, cubic_weight),
    "bicubic_align_corners": (aligned_corners, cubic_weight),
}


def slow_resize(values, size, position, weight):
    """Row by row, then column by column; beyond the edge the edge goes on."""

    def along(line):
        last, resized = len(line) - 1, []
        for index in range(size):
            centre = position(index, len(line), size)
            taps = range(math.floor(centre) - 1, math.floor(centre) + 3)
            resized.append(sum(weight(centre - t) * line[min(max(t, 0), last)] for t in taps))
        return resized

    rows = np.array([along(row) for row in np.asarray(values, dtype=np.float64)])
    return np.array([along(column) for column in rows.T]).T


@pytest.mark.parametrize("name", RESIZING)
def test_up_sampling_equals_a_slow_loop(name):
    protocol = replace(PROTOCOLS["ez_vsl"], upsampling=name, map_size=60)
    maps = np.random.default_rng(0).random((2, 14, 14), dtype=np.float32)
    upsampled = upsample(maps, protocol)
    assert upsampled.dtype == np.float32 and upsampled.shape == (2, 60, 60)
    for found, given in zip(upsampled, maps, strict=True):
        np.testing.assert_allclose(found, slow_resize(given, 60, *RESIZING[name]), atol=2e-6)


def test_linear_up_sampling_has_the_bits_of_opencv():
    for shape in ((14, 14), (20, 16), (300, 280), (224, 224)):
        maps = np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)
        for found, given in zip(upsample(maps, MEDIAN), maps, strict=True):
            expected = cv2.resize(given, (224, 224), interpolation=cv2.INTER_LINEAR)
            np.testing.assert_array_equal(found, expected)


def test_rules_up_sample_as_their_authors():
    found = {}
    for protocol in PROTOCOLS.values():
        found.setdefault(protocol.upsampling, []).append(protocol.name)
    assert found == {
        "cv2_linear": ["ssl_tie", "sspl", "ssl_align_vgg_ss", "ssl_align_vgg_ss_adaptive"],
        "bilinear_align_corners": ["ez_vsl", "ssl_align", "ssl_align_adaptive"],
        "bicubic_align_corners": ["slavc", "slavc_fixed"],
        "bicubic": ["fnac_bicubic"],
    }


# ------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("protocol", BY_THE_MAP_S_RANGE, ids=lambda p: p.name)
def test_normalised_maps_span_0_to_1(protocol):
    maps = upsample(smooth_maps(4), protocol)
    normalised = normalise(maps, protocol)
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(normalised.min(axis=(1, 2)), 0)
    np.testing.assert_array_equal(normalised.max(axis=(1, 2)), 1)
    lowest, highest = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
    for clip in range(4):
        expected = (maps[clip] - lowest[clip]) / (highest[clip] - lowest[clip])
        np.testing.assert_allclose(normalised[clip], expected, atol=1e-6)


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


def slow_ssl_tie(pixels, num_annotated):
    """The authors' lines, pixel by pixel."""
    inverted = [-pixel for pixel in pixels]
    lowest, span = min(inverted), max(inverted) - min(inverted)
    scaled = [(pixel - lowest) / span if span else pixel for pixel in inverted]
    pixels = [np.float32(1) - pixel for pixel in scaled]
    threshold = sorted(pixels)[len(pixels) // 2]
    pixels = [np.float32(1) if pixel > threshold else pixel for pixel in pixels]
    pixels = [np.float32(0) if pixel < 1 else pixel for pixel in pixels]
    return [pixel >= 0.5 for pixel in pixels]


def slow_sspl(pixels, num_annotated):
    lowest, span = min(pixels), max(pixels) - min(pixels)
    return [span > 0 and (pixel - lowest) / span >= 0.5 for pixel in pixels]


def slow_scale(pixels):
    lowest, span = min(pixels), max(pixels) - min(pixels)
    return [(pixel - lowest) / span if span else pixel for pixel in pixels]


def slow_ez_vsl(pixels, num_annotated):
    scaled = slow_scale(pixels)
    threshold = sorted(scaled)[int(len(scaled) * 0.5)]
    return [pixel >= threshold for pixel in scaled]


def slow_slavc_fixed(pixels, num_annotated):
    return [(pixel + np.float32(1)) / np.float32(2) >= 0.5 for pixel in pixels]


def slow_inverted(pixels):
    """Their program scales what is high to 0, and takes that from 1."""
    return [np.float32(1) - scaled for scaled in slow_scale([-pixel for pixel in pixels])]


def slow_ssl_align(pixels, num_annotated):
    scaled = slow_inverted(pixels)
    threshold = sorted(scaled)[len(scaled) // 2]
    return [pixel > threshold for pixel in scaled]


def slow_ssl_align_adaptive(pixels, num_annotated):
    scaled = slow_inverted(pixels)
    wanted = num_annotated or len(scaled) // 2
    threshold = sorted(scaled)[len(scaled) - wanted]
    return [pixel > threshold for pixel in scaled]


SLOW = {
    "ssl_tie": slow_ssl_tie, "sspl": slow_sspl, "ez_vsl": slow_ez_vsl,
    "slavc": slow_ez_vsl, "slavc_fixed": slow_slavc_fixed, "fnac_bicubic": slow_ez_vsl,
    "ssl_align": slow_ssl_align, "ssl_align_adaptive": slow_ssl_align_adaptive,
    "ssl_align_vgg_ss": slow_ssl_align, "ssl_align_vgg_ss_adaptive": slow_ssl_align_adaptive,
}  # fmt: skip


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5, 9, 1000])
@pytest.mark.parametrize("name", SLOW)
def test_predictions_equal_a_slow_rule(name, num_levels):
    rng = np.random.default_rng(num_levels)
    protocol = small(PROTOCOLS[name], 12)
    for num_annotated in [0, 1, 2, 72, 143, 144, *rng.integers(1, 144, 6)]:
        levels = rng.random(num_levels) if num_levels == 1000 else np.arange(num_levels) / 8
        shares = rng.dirichlet(np.full(num_levels, 0.5))
        values = rng.choice(levels, (12, 12), p=shares).astype(np.float32) - np.float32(0.25)
        expected = np.reshape(SLOW[name](list(values.ravel()), num_annotated), (12, 12))
        np.testing.assert_array_equal(predict_pixels(values, protocol, num_annotated), expected)


def test_adaptive_rule_predicts_a_pixel_less_than_each_clip_s_truth_has():
    maps = np.random.default_rng(0).permuted(np.tile(np.arange(NUM_PIXELS), (5, 1)), axis=1)
    maps, counts = maps.reshape(5, 224, 224).astype(np.float32), [0, 1, 2, 25_088, NUM_PIXELS]
    adaptive = PROTOCOLS["ssl_align_adaptive"]
    sizes = predict(maps, adaptive, counts).sum(axis=(1, 2))
    assert sizes.tolist() == [25_087, 0, 1, 25_087, NUM_PIXELS - 1]
    assert (predict(maps, replace(adaptive, comparison=">="), counts).sum(axis=(1, 2)) == sizes + 1).all()
    with pytest.raises(ValueError, match="ssl_align_adaptive predicts as many pixels as the truth"):
        predict_by_all(maps, [adaptive])


@EVERY
def test_one_map_for_all_clips_equals_the_map_repeated(protocol):
    counts = np.array([0, 1, 5_000, NUM_PIXELS])
    (single,) = predict_by_all(smooth_maps(1), [protocol], counts)
    repeated = predict(smooth_maps(1).repeat(4, axis=0), protocol, counts)
    np.testing.assert_array_equal(np.broadcast_to(single.masks, repeated.shape), repeated)


# ------------------------------------------------------------------------------------ corners


CONSTANTS = {
    "ssl_tie": {-1.0: 0, -1e-3: 0, 0.0: 1, 1 / 3: 1, 3.0: 1},
    "sspl": dict.fromkeys((-1.0, 0.0, 1 / 3, 1.0), 0),
    "ez_vsl": dict.fromkeys((-1.0, 0.0, 1 / 3, 1.0), 1),
    "ssl_align": dict.fromkeys((-1.0, 0.0, 1 / 3, 1.0), 0),
    "ssl_align_adaptive": dict.fromkeys((-1.0, 0.0, 1 / 3, 1.0), 0),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_share_of_a_constant_map_that_is_predicted(name, recwarn):
    for constant, share in CONSTANTS[name].items():
        assert predict_pixels(np.full((16, 16), constant), small(PROTOCOLS[name])).mean() == share
    assert not recwarn.list


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


@EVERY
def test_description_names_the_rule(protocol):
    assert "224 x 224" in protocol.description
    assert f"predicted where {protocol.comparison} " in protocol.description
    ends = {"median": "upper median", "fixed": "0.5", "adaptive": "as the truth has"}
    assert protocol.description.endswith(ends[protocol.threshold])


def test_each_rule_is_found_by_its_name():
    assert list(SLOW) == list(PROTOCOLS)
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
