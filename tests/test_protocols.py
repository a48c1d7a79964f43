"""From a similarity map to predicted pixels: the authors' masks, and the corners of each rule."""

from dataclasses import replace

import numpy as np
import pytest
from golden_inputs import arrays

from utils.protocols import PROTOCOLS, binarise, normalise, upsample

MEDIAN = PROTOCOLS["ssl_tie"]
FIXED = PROTOCOLS["min_max_0.5"]
NUM_PIXELS = 224 * 224


def predict(similarity_maps, protocol):
    return binarise(normalise(upsample(similarity_maps, protocol), protocol), protocol)


def predict_pixels(values, protocol):
    """What is predicted for a map that needs no up-sampling."""
    maps = np.asarray(values, dtype=np.float32)[None]
    assert maps.shape[1:] == (protocol.map_size, protocol.map_size)
    return predict(maps, protocol)[0]


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


def test_up_sampling_is_bilinear_with_half_pixel_centres():
    centres = np.clip((np.arange(224) + 0.5) * 14 / 224 - 0.5, 0, 13)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(14)))
    maps = smooth_maps(3)
    upsampled = upsample(maps, MEDIAN)
    assert upsampled.dtype == np.float32
    np.testing.assert_allclose(upsampled, weights @ maps.astype(np.float64) @ weights.T, atol=1e-6)


def test_normalised_maps_span_0_to_1():
    maps = upsample(smooth_maps(4), MEDIAN)
    for protocol in PROTOCOLS.values():
        normalised = normalise(maps, protocol)
        assert normalised.dtype == np.float32
        np.testing.assert_array_equal(normalised.min(axis=(1, 2)), 0)
        np.testing.assert_array_equal(normalised.max(axis=(1, 2)), 1)
        lowest, highest = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
        for clip in range(4):
            expected = (maps[clip] - lowest[clip]) / (highest[clip] - lowest[clip])
            np.testing.assert_allclose(normalised[clip], expected, atol=1e-6)


def test_given_maps_are_not_changed():
    maps = upsample(smooth_maps(2), MEDIAN)
    before = maps.copy()
    for protocol in PROTOCOLS.values():
        normalised = normalise(maps, protocol)
        kept = normalised.copy()
        binarise(normalised, protocol)
        np.testing.assert_array_equal(maps, before)
        np.testing.assert_array_equal(normalised, kept)


def slow_median_rule(values):
    """The authors' lines, pixel by pixel."""
    pixels = [np.float32(value) for value in np.ravel(values)]
    inverted = [-pixel for pixel in pixels]
    lowest, span = min(inverted), max(inverted) - min(inverted)
    scaled = [(pixel - lowest) / span if span else pixel for pixel in inverted]
    pixels = [np.float32(1) - pixel for pixel in scaled]
    threshold = sorted(pixels)[len(pixels) // 2]
    pixels = [np.float32(1) if pixel > threshold else pixel for pixel in pixels]
    pixels = [np.float32(0) if pixel < 1 else pixel for pixel in pixels]
    return np.reshape([pixel >= 0.5 for pixel in pixels], np.shape(values))


def slow_fixed_rule(values):
    pixels = [np.float32(value) for value in np.ravel(values)]
    lowest, span = min(pixels), max(pixels) - min(pixels)
    predicted = [span > 0 and (pixel - lowest) / span >= 0.5 for pixel in pixels]
    return np.reshape(predicted, np.shape(values))


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5, 9, 1000])
@pytest.mark.parametrize(
    ("protocol", "slow"), [(small(MEDIAN), slow_median_rule), (small(FIXED), slow_fixed_rule)]
)
def test_predictions_equal_a_slow_rule(protocol, slow, num_levels):
    rng = np.random.default_rng(num_levels)
    for _ in range(20):
        levels = rng.random(num_levels) if num_levels == 1000 else np.arange(num_levels) / 8
        shares = rng.dirichlet(np.full(num_levels, 0.5))
        values = rng.choice(levels, (16, 16), p=shares).astype(np.float32) - np.float32(0.25)
        np.testing.assert_array_equal(predict_pixels(values, protocol), slow(values))


def test_median_rule_predicts_half_a_frame_less_one_pixel():
    shuffled = np.random.default_rng(0).permutation(NUM_PIXELS).reshape(224, 224)
    mask = predict_pixels(shuffled / NUM_PIXELS, MEDIAN)
    assert mask.sum() == 25_087
    np.testing.assert_array_equal(mask, shuffled > NUM_PIXELS // 2)
    assert np.median(predict(smooth_maps(9), MEDIAN).sum(axis=(1, 2))) == 25_087


def levels_map(*counts):
    """224 x 224 with so many pixels at each level, from the lowest, 0, to the highest, 1."""
    assert sum(counts) == NUM_PIXELS
    levels = np.repeat(np.linspace(0, 1, len(counts)), counts)
    return np.random.default_rng(0).permutation(levels).reshape(224, 224)


def test_pixels_equal_to_the_median_are_left_out():
    values = levels_map(15_000, 25_176, 10_000)
    np.testing.assert_array_equal(predict_pixels(values, MEDIAN), values == 1)


@pytest.mark.parametrize("plateau", [1, 25_087, 25_088, 25_089, 30_000, NUM_PIXELS - 1])
def test_plateau_at_the_maximum_is_predicted_whatever_its_size(plateau):
    values = levels_map(NUM_PIXELS - plateau, plateau)
    np.testing.assert_array_equal(predict_pixels(values, MEDIAN), values == 1)


@pytest.mark.parametrize(
    ("constant", "share"), [(0.0, 1), (1 / 3, 1), (1.0, 1), (3.0, 1), (-1e-3, 0), (-1.0, 0)]
)
def test_constant_map_under_the_median_rule(constant, share):
    maps = np.full((1, 14, 14), constant, np.float32)
    assert predict(maps, MEDIAN).mean() == share


@pytest.mark.parametrize("constant", [0.0, 1 / 3, 1.0, -1.0])
def test_constant_map_predicts_nothing_under_the_fixed_rule(constant, recwarn):
    assert not predict(np.full((1, 14, 14), constant, np.float32), FIXED).any()
    assert not recwarn.list


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_map_with_nan_predicts_nothing_and_spares_its_neighbours(protocol, recwarn):
    maps = smooth_maps(4)
    alone = predict(maps, protocol)
    maps[1] = np.nan
    maps[2, 3, 4] = np.nan
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


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_scale_and_shift_do_not_matter(protocol):
    maps = smooth_maps(12, seed=3)
    masks = predict(maps, protocol)
    for exact_scale in (0.25, 8):
        np.testing.assert_array_equal(predict(maps * np.float32(exact_scale), protocol), masks)
    for scale, shift in ((0.3, 0), (1, 0.7), (1.7, -0.9), (3, 2)):
        moved = np.float32(scale) * maps + np.float32(shift)
        # Rounding moves pixels that all but equal the threshold.
        assert (predict(moved, protocol) != masks).sum(axis=(1, 2)).max() <= 6


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_description_names_the_rule(protocol):
    assert "224 x 224" in protocol.description
    assert f"predicted where {protocol.comparison} " in protocol.description
    assert protocol.description.endswith("upper median" if protocol is MEDIAN else "0.5")


def test_each_rule_is_found_by_its_name():
    assert set(PROTOCOLS) == {"ssl_tie", "min_max_0.5"}
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
