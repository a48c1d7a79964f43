"""From a similarity map to predicted pixels: the authors' masks, and each rule as a slow loop."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from golden_inputs import arrays

from utils.evaluation import protocols as engine
from utils.evaluation.protocols import (
    PROTOCOLS,
    LocalisationProtocol,
    ObjectMaps,
    find_protocols,
    values_at_ranks,
)

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


@pytest.mark.parametrize("shape", [(14, 14), (7, 7), (20, 16), (300, 280), (224, 224)])
def test_linear_up_sampling_has_the_bits_of_opencv(shape):
    maps = np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)
    for found, given in zip(upsample(maps, MEDIAN), maps, strict=True):
        expected = cv2.resize(given, (224, 224), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(found, expected)


def test_rules_up_sample_as_their_authors():
    assert {name: protocol.upsampling for name, protocol in PROTOCOLS.items()} == {
        "ssl_tie": "cv2_linear",
        "sspl": "cv2_linear",
        "lvs": "cv2_linear",
        "ez_vsl": "bilinear_align_corners",
        "slavc": "bicubic_align_corners",
        "slavc_fixed": "bicubic_align_corners",
        "fnac": "bilinear_align_corners",
        "fnac_bicubic": "bicubic",
        "ssl_align": "bilinear_align_corners",
        "ssl_align_adaptive": "bilinear_align_corners",
        "ssl_align_vgg_ss": "cv2_linear",
        "ssl_align_vgg_ss_adaptive": "cv2_linear",
        "vssl_eval": "bilinear_align_corners",
        "vssl_eval_adaptive": "bilinear_align_corners",
    }


def test_one_map_is_up_sampled_whatever_its_memory_order():
    maps = smooth_maps(2)
    for name in RESIZING:
        protocol = replace(MEDIAN, upsampling=name)
        turned = upsample(maps.transpose(0, 2, 1), protocol)
        np.testing.assert_allclose(turned, upsample(maps, protocol).transpose(0, 2, 1), atol=1e-6)


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


def test_raw_scores_are_moved_not_stretched():
    maps = np.array([[[-1, -0.5], [0, 0.25]]], dtype=np.float32)
    scores = normalise(maps, PROTOCOLS["slavc_fixed"])
    np.testing.assert_array_equal(scores, [[[0, 0.25], [0.5, 0.625]]])
    mask = predict_pixels(maps[0], small(PROTOCOLS["slavc_fixed"], 2))
    np.testing.assert_array_equal(mask, [[False, False], [True, True]])


def test_given_maps_are_not_changed():
    maps = smooth_maps(2)
    maps[1] = 0.3
    before = maps.copy()
    predictions = predict_by_all(maps, list(PROTOCOLS.values()), np.array([7, 9]))
    np.testing.assert_array_equal(maps, before)
    for protocol, prediction in zip(PROTOCOLS.values(), predictions, strict=True):
        alone = normalise(upsample(maps, protocol), protocol)
        np.testing.assert_array_equal(prediction.localisation_maps, alone)
    large = upsample(maps, MEDIAN)
    before = large.copy()
    for protocol in PROTOCOLS.values():
        normalise(large, protocol)
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


def slow_ssl_align(pixels, num_annotated):
    scaled = slow_scale(pixels)
    threshold = sorted(scaled)[len(scaled) // 2]
    return [pixel > threshold for pixel in scaled]


def slow_ssl_align_adaptive(pixels, num_annotated):
    scaled = slow_scale(pixels)
    wanted = num_annotated or len(scaled) // 2
    threshold = sorted(scaled)[len(scaled) - wanted]
    return [pixel > threshold for pixel in scaled]


SLOW = {
    "ssl_tie": slow_ssl_tie,
    "sspl": slow_sspl,
    "lvs": slow_ssl_tie,
    "ez_vsl": slow_ez_vsl,
    "slavc": slow_ez_vsl,
    "slavc_fixed": slow_slavc_fixed,
    "fnac": slow_ez_vsl,
    "fnac_bicubic": slow_ez_vsl,
    "ssl_align": slow_ssl_align,
    "ssl_align_adaptive": slow_ssl_align_adaptive,
    "ssl_align_vgg_ss": slow_ssl_align,
    "ssl_align_vgg_ss_adaptive": slow_ssl_align_adaptive,
    "vssl_eval": slow_ssl_align,
    "vssl_eval_adaptive": slow_ssl_align_adaptive,
}


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


@pytest.mark.parametrize(
    ("name", "num_predicted"),
    [
        ("ssl_tie", 25_087),
        ("lvs", 25_087),
        ("ez_vsl", 25_088),
        ("slavc", 25_088),
        ("fnac", 25_088),
        ("fnac_bicubic", 25_088),
        ("ssl_align", 25_087),
        ("ssl_align_vgg_ss", 25_087),
        ("ssl_align_vgg_ss_adaptive", 9_999),
        ("vssl_eval", 25_087),
        ("ssl_align_adaptive", 9_999),
        ("vssl_eval_adaptive", 9_999),
    ],
)
def test_pixels_predicted_of_a_map_without_ties(name, num_predicted):
    shuffled = np.random.default_rng(0).permutation(NUM_PIXELS).reshape(224, 224)
    mask = predict_pixels(shuffled / NUM_PIXELS, PROTOCOLS[name], num_annotated=10_000)
    assert mask.sum() == num_predicted
    np.testing.assert_array_equal(mask, shuffled >= NUM_PIXELS - num_predicted)


@pytest.mark.parametrize(
    ("num_annotated", "num_predicted"),
    [(0, 25_087), (1, 0), (2, 1), (25_088, 25_087), (NUM_PIXELS, NUM_PIXELS - 1)],
)
def test_adaptive_rule_predicts_a_pixel_less_than_the_truth_has(num_annotated, num_predicted):
    shuffled = np.random.default_rng(0).permutation(NUM_PIXELS).reshape(224, 224)
    adaptive = PROTOCOLS["ssl_align_adaptive"]
    assert predict_pixels(shuffled, adaptive, num_annotated).sum() == num_predicted
    non_strict = replace(adaptive, comparison=">=")
    assert predict_pixels(shuffled, non_strict, num_annotated).sum() == num_predicted + 1


def test_adaptive_rule_counts_each_clip_s_own_truth():
    maps = smooth_maps(3)
    counts = np.array([100, 30_000, 0])
    masks = predict(maps, PROTOCOLS["ssl_align_adaptive"], counts)
    for clip in range(3):
        alone = predict(maps[clip : clip + 1], PROTOCOLS["ssl_align_adaptive"], counts[clip])
        np.testing.assert_array_equal(masks[clip], alone[0])
    assert masks[0].sum() < 110 and 29_900 < masks[1].sum() < 30_000


def test_adaptive_rule_needs_the_truth():
    with pytest.raises(ValueError, match="ssl_align_adaptive predicts as many pixels as the truth"):
        predict_by_all(smooth_maps(1), [PROTOCOLS["ssl_align_adaptive"]])


def test_median_rule_predicts_half_of_a_network_s_maps():
    assert np.median(predict(smooth_maps(9), MEDIAN).sum(axis=(1, 2))) == 25_087


def test_many_rules_at_once_equal_one_at_a_time():
    maps, counts = smooth_maps(5), np.array([0, 1, 5_000, 25_088, NUM_PIXELS])
    protocols = list(PROTOCOLS.values())[::-1]
    together = predict_by_all(maps, protocols, counts)
    for protocol, prediction in zip(protocols, together, strict=True):
        (alone,) = predict_by_all(maps, [protocol], counts)
        np.testing.assert_array_equal(prediction.masks, alone.masks)
        np.testing.assert_array_equal(prediction.localisation_maps, alone.localisation_maps)


@EVERY
def test_one_map_for_all_clips_equals_the_map_repeated(protocol):
    counts = np.array([0, 1, 5_000, NUM_PIXELS])
    (single,) = predict_by_all(smooth_maps(1), [protocol], counts)
    repeated = predict(smooth_maps(1).repeat(4, axis=0), protocol, counts)
    np.testing.assert_array_equal(np.broadcast_to(single.masks, repeated.shape), repeated)


# ------------------------------------------------------------------------------------ corners


def levels_map(*counts):
    """224 x 224 with so many pixels at each level, from the lowest, 0, to the highest, 1."""
    assert sum(counts) == NUM_PIXELS
    levels = np.repeat(np.linspace(0, 1, len(counts)), counts)
    return np.random.default_rng(0).permutation(levels).reshape(224, 224)


def test_pixels_equal_to_the_median_are_left_out_or_taken():
    values = levels_map(15_000, 25_176, 10_000)
    for name in ("ssl_tie", "ssl_align"):
        np.testing.assert_array_equal(predict_pixels(values, PROTOCOLS[name]), values == 1)
    np.testing.assert_array_equal(predict_pixels(values, PROTOCOLS["ez_vsl"]), values >= 0.5)


@pytest.mark.parametrize("plateau", [1, 25_087, 25_088, 25_089, 30_000, NUM_PIXELS - 1])
def test_plateau_at_the_maximum(plateau):
    values = levels_map(NUM_PIXELS - plateau, plateau)
    np.testing.assert_array_equal(predict_pixels(values, MEDIAN), values == 1)
    # Only SSL-TIE's and LVS's programs keep a maximum that lies at the median.
    kept = values == 1 if plateau <= 25_087 else np.zeros_like(values)
    np.testing.assert_array_equal(predict_pixels(values, PROTOCOLS["ssl_align"]), kept)


@pytest.mark.parametrize(
    ("constant", "share"), [(0.0, 1), (1 / 3, 1), (1.0, 1), (3.0, 1), (-1e-3, 0), (-1.0, 0)]
)
def test_constant_map_under_ssl_tie(constant, share):
    maps = np.full((1, 14, 14), constant, np.float32)
    assert predict(maps, MEDIAN).mean() == share


@pytest.mark.parametrize("constant", [0.0, 1 / 3, 1.0, -1.0])
@pytest.mark.parametrize(
    ("name", "share"), [("sspl", 0), ("ez_vsl", 1), ("ssl_align", 0), ("ssl_align_adaptive", 0)]
)
def test_constant_map_under_other_rules(constant, name, share, recwarn):
    protocol = small(PROTOCOLS[name])
    assert predict_pixels(np.full((16, 16), constant), protocol).mean() == share
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


def test_fixed_rule_counts_what_equals_the_threshold():
    values = np.zeros((4, 4))
    values[0] = [0, 1, 0.5, np.nextafter(np.float32(0.5), np.float32(0))]
    mask = predict_pixels(values, small(FIXED, 4))
    np.testing.assert_array_equal(mask[0], [False, True, True, False])
    assert mask.sum() == 2


@pytest.mark.parametrize("protocol", BY_THE_MAP_S_RANGE, ids=lambda p: p.name)
def test_scale_and_shift_do_not_matter(protocol):
    maps = smooth_maps(12, seed=3)
    masks = predict(maps, protocol)
    for exact_scale in (0.25, 8):
        np.testing.assert_array_equal(predict(maps * np.float32(exact_scale), protocol), masks)
    for scale, shift in ((0.3, 0), (1, 0.7), (1.7, -0.9), (3, 2)):
        moved = np.float32(scale) * maps + np.float32(shift)
        # Rounding moves pixels that all but equal the threshold.
        assert (predict(moved, protocol) != masks).sum(axis=(1, 2)).max() <= 6


# --------------------------------------------------------------------------------- confidences


@pytest.mark.parametrize("alpha", [None, 0.4])
@EVERY
def test_confidence_is_the_mean_of_the_top_quarter_of_the_scores(protocol, alpha):
    maps, others = smooth_maps(3), np.random.default_rng(2).random((3, 7, 7), dtype=np.float32)
    objects = None if alpha is None else ObjectMaps(torch.from_numpy(others), alpha)
    (found,) = predict_by_all(maps, [protocol], np.full(3, 900), objects)
    scores = upsample(maps, protocol).astype(np.float64)
    if protocol.name.startswith("slavc"):
        scores = (scores + 1) / 2
        if alpha is not None:
            scores = alpha * scores + (1 - alpha) * upsample(others, protocol) / 2.5
    expected = [np.sort(one.ravel())[-NUM_PIXELS // 4 :].mean() for one in scores]
    np.testing.assert_allclose(found.confidences, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["smooth", "levels", "saturated", "outlier", "tiny", "huge", "flat"])
def test_values_at_ranks_are_those_of_a_sort(kind):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((4, 5_000)).astype(np.float32)
    changed = {
        "levels": np.round(values),
        "saturated": np.minimum(values, np.float32(0.2)) + 1e-6 * (values > 2),
        "outlier": np.where(np.arange(5_000) == 7, np.float32(1e30), values),
        "tiny": values * np.float32(1e-40),
        "huge": values * np.float32(3e37),
        "flat": np.full_like(values, -0.3),
    }
    values = torch.from_numpy(changed.get(kind, values).astype(np.float32))
    ranks = torch.from_numpy(rng.integers(0, 5_000, (4, 9)))
    ranks[:, :2] = torch.tensor([0, 4_999])
    expected = values.sort(1).values.gather(1, ranks)
    assert torch.equal(values_at_ranks(values, ranks), expected)


# -------------------------------------------------------------------------------------- names


@EVERY
def test_description_names_the_rule(protocol):
    assert "224 x 224" in protocol.description
    assert f"predicted where {protocol.comparison} " in protocol.description
    ends = {"median": "upper median", "fixed": "0.5", "adaptive": "as the truth has"}
    assert protocol.description.endswith(ends[protocol.threshold])


def test_each_rule_is_found_by_its_name():
    assert list(SLOW) == list(PROTOCOLS)
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    assert [p.name for p in find_protocols("sspl, ssl_tie")] == ["sspl", "ssl_tie"]
    assert find_protocols("all") == tuple(PROTOCOLS.values())


@pytest.mark.parametrize("names", ["strict", "ssl_tie,strict", "", "ssl_tie,,sspl", "all,sspl"])
def test_unknown_name_is_refused_with_those_that_there_are(names):
    with pytest.raises(ValueError, match=f"no protocol .*{', '.join(PROTOCOLS)}"):
        find_protocols(names)


def test_name_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="'sspl' is named twice"):
        find_protocols("sspl,ssl_tie,sspl")


def test_authors_whose_rules_are_the_same():
    alike = {}
    for protocol in PROTOCOLS.values():
        alike.setdefault(protocol.rule, []).append(protocol.name)
    assert [names for names in alike.values() if len(names) > 1] == [
        ["ssl_tie", "lvs"],
        ["ez_vsl", "fnac"],
        ["ssl_align", "vssl_eval"],
        ["ssl_align_adaptive", "vssl_eval_adaptive"],
    ]


@pytest.mark.parametrize(("threshold", "value"), [("fixed", None), ("median", 0.5)])
def test_value_belongs_to_a_fixed_threshold(threshold, value):
    with pytest.raises(ValueError, match="fixed threshold"):
        LocalisationProtocol(
            name="odd",
            upsampling="bicubic",
            normalisation="min_max",
            threshold=threshold,
            comparison=">",
            value=value,
        )
