"""Batched augmentation: torchvision's result for each frame, its distribution over many."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchaudio
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from datasets.clip_draws import uniform_draws
from datasets.frame_augmentation import BLUR_KERNEL, Appearance, apply_appearance, draw_appearance, draw_crops
from datasets.frame_operations import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grey_of,
    resized_crop,
)
from datasets.transforms import AugmentationConfig, SpecAugment

pytestmark = pytest.mark.usefixtures("one_thread")
EVERYTHING = AugmentationConfig()
SWITCHES = ("colour", "grey", "blur", "flip")
REFERENCE_ADJUSTMENTS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def noise(count, height=40, width=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width or height, generator=generator)


def picture(side=48):
    """Smooth, asymmetric in every direction and colour, with an edge and some noise."""
    rows, columns = torch.meshgrid(*[torch.linspace(0, 1, side)] * 2, indexing="ij")
    red = 0.5 + 0.45 * torch.sin(5 * rows + 2 * columns)
    green = columns**2
    blue = 0.2 + 0.7 * ((rows + 0.5 * columns) > 0.8)
    return (torch.stack([red, green, blue]) + 0.08 * noise(1, side)[0]).clamp(0, 1)


# ------------------------------------------------------------------ each operation, given numbers


@pytest.mark.parametrize(
    ("batched", "reference", "factors"),
    [
        (adjust_brightness, TF.adjust_brightness, (0.0, 0.6, 1.0, 1.17, 1.4)),
        (adjust_contrast, TF.adjust_contrast, (0.0, 0.6, 1.0, 1.23, 1.4)),
        (adjust_saturation, TF.adjust_saturation, (0.0, 0.6, 1.0, 1.31, 1.4)),
        (adjust_hue, TF.adjust_hue, (-0.5, -0.1, 0.0, 0.07, 0.1)),
    ],
)
def test_adjustments_equal_torchvision_s(batched, reference, factors):
    frames = noise(len(factors))
    frames[:, :, :5] = frames[:, :1, :5]  # grey rows have no hue
    frames[:, :, 5] = torch.tensor([0.7, 0.7, 0.2])[:, None]  # two channels share the maximum
    frames[:, :, 6:8] = torch.tensor([0.0, 1.0])[:, None]  # black and white
    adjusted = batched(frames, torch.tensor(factors))
    for frame, factor, result in zip(frames, factors, adjusted, strict=True):
        torch.testing.assert_close(result, reference(frame, factor), atol=1e-5, rtol=0)


def test_grey_equals_torchvision_s():
    frames = noise(3)
    expected = TF.rgb_to_grayscale(frames, num_output_channels=1)
    torch.testing.assert_close(grey_of(frames), expected, atol=1e-6, rtol=0)


def test_blur_equals_torchvision_s():
    frames, sigmas = noise(5, 37, 29), (0.1, 0.4, 1.0, 1.7, 2.0)
    blurred = gaussian_blur(frames, torch.tensor(sigmas), BLUR_KERNEL)
    for frame, sigma, result in zip(frames, sigmas, blurred, strict=True):
        expected = TF.gaussian_blur(frame, [BLUR_KERNEL] * 2, [sigma] * 2)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(299, 299), (256, 341), (90, 61)])
def test_crops_equal_torchvision_s(height, width):
    boxes = [
        (0, 0, height, width),
        (0, 0, height // 2, width // 2),
        (height - 33, width - 57, 33, 57),
        (7, 11, height - 20, width - 20),
        (5, 3, 1, 1),
        (20, 1, 64, 48),
    ]
    frames = noise(len(boxes), height, width)
    cropped = resized_crop(frames, torch.tensor(boxes), 64)
    for frame, box, result in zip(frames, boxes, cropped, strict=True):
        expected = TF.resized_crop(frame, *box, [64, 64], antialias=True)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_everything_equals_torchvision_s_in_each_frame_s_own_order():
    orders = np.array(list(itertools.permutations(range(4))))
    count, generator = len(orders), np.random.default_rng(1)
    appearance = Appearance(
        coloured=np.arange(count) % 5 != 0,
        order=orders,
        factors=generator.uniform((0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1), (count, 4)),
        grey=np.arange(count) % 4 == 1,
        blurred=np.arange(count) % 3 != 2,
        sigmas=generator.uniform(0.1, 2, count),
        flipped=np.arange(count) % 2 == 1,
    )
    frames = noise(count, 24)
    before = frames.clone()
    augmented = apply_appearance(frames, appearance)
    assert torch.equal(frames, before)
    for index in range(count):
        torch.testing.assert_close(
            augmented[index], one_by_one(frames[index], appearance, index), atol=1e-5, rtol=0
        )


def one_by_one(frame, appearance, index):
    """The slow way: torchvision's functions, one frame at a time."""
    if appearance.coloured[index]:
        for which in appearance.order[index]:
            frame = REFERENCE_ADJUSTMENTS[which](frame, appearance.factors[index, which])
    if appearance.grey[index]:
        frame = TF.rgb_to_grayscale(frame, num_output_channels=3)
    if appearance.blurred[index]:
        frame = TF.gaussian_blur(frame, [BLUR_KERNEL] * 2, [float(appearance.sigmas[index])] * 2)
    return TF.horizontal_flip(frame) if appearance.flipped[index] else frame


# --------------------------------------------------------------------------------- what is drawn


def test_numbers_of_a_clip_are_its_own():
    seeds = [5, 2**62 - 1, 0, 77]
    draws = uniform_draws(seeds, "crop", 6)
    assert draws.shape == (4, 6)
    np.testing.assert_array_equal(uniform_draws(seeds[2:], "crop", 6), draws[2:])
    np.testing.assert_array_equal(uniform_draws(seeds, "crop", 2), draws[:, :2])
    assert uniform_draws([], "crop", 3).shape == (0, 3)
    # Known values: a resumed or repeated run draws the same on every machine.
    np.testing.assert_allclose(draws[0, :2], [0.5901080310878137, 0.38404114372004583])


def test_numbers_are_uniform_and_independent():
    seeds = list(range(4000))  # the least random there are
    columns = np.hstack([uniform_draws(seeds, purpose, 3) for purpose in ("crop", "blur")])
    assert columns.min() >= 0 and columns.max() < 1
    for column in columns.T:
        counts, _ = np.histogram(column, bins=20, range=(0, 1))
        assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-squared of 19: beyond 50, p < 2e-4
    correlation = np.corrcoef(columns.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.07
    assert abs(np.corrcoef(columns[:-1, 0], columns[1:, 0])[0, 1]) < 0.07


def assert_same_moments(actual, expected):
    """Means and variances of the columns of two samples agree within 4.5 standard errors."""
    assert actual.shape[1] == expected.shape[1]
    for power in (1, 2):
        first, second = (
            sample if power == 1 else (sample - expected.mean(axis=0)) ** 2 for sample in (actual, expected)
        )
        error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
        distance = np.abs(first.mean(axis=0) - second.mean(axis=0))
        assert (distance <= 4.5 * error + 1e-9).all(), (power, distance / (error + 1e-9))


@pytest.mark.parametrize(
    ("height", "width"), [(299, 299), (256, 340), (240, 100), (30, 300), (300, 30), (7, 7)]
)
def test_crops_are_distributed_as_torchvision_s(height, width):
    count = 4000
    reference = v2.RandomResizedCrop(224, scale=(0.3, 1.0))
    torch.manual_seed(0)
    like = [torch.empty(3, height, width)]
    drawn = [reference.make_params(like) for _ in range(count)]
    expected = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn], float)
    actual = draw_crops(range(count), np.tile([height, width], (count, 1)))
    assert actual.min() >= 0 and (actual[:, 2:] > 0).all()
    assert (actual[:, :2] + actual[:, 2:] <= (height, width)).all()
    assert_same_moments(crop_features(actual.astype(float)), crop_features(expected))
    for column in range(4):
        places = np.quantile(expected[:, column], np.linspace(0.05, 0.95, 10))
        shares = [(sample[:, column, None] <= places).mean(axis=0) for sample in (actual, expected)]
        assert np.abs(shares[0] - shares[1]).max() < 0.05


def crop_features(boxes):
    top, left, height, width = boxes.T
    return np.stack([*boxes.T, height * width, np.log(width / height), top * left], axis=1)


def test_each_frame_s_crop_is_drawn_for_its_own_size():
    sizes = np.array([[299, 299], [100, 400], [64, 48]] * 5)
    boxes = draw_crops(range(15), sizes)
    for index, size in enumerate(sizes):
        np.testing.assert_array_equal(draw_crops([index], size[None])[0], boxes[index])
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_appearance_is_distributed_as_torchvision_s():
    count = 6000
    jitter, blur = v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.GaussianBlur(BLUR_KERNEL, (0.1, 2.0))
    torch.manual_seed(0)
    drawn = [jitter.make_params([]) for _ in range(count)]
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    expected = [
        [*(d[name] for name in names), blur.make_params([])["sigma"][0], *d["fn_idx"].tolist()] for d in drawn
    ]
    appearance = draw_appearance(range(count), EVERYTHING)
    actual = np.column_stack([appearance.factors, appearance.sigmas, appearance.order])
    assert_same_moments(actual, np.array(expected))
    _, counts = np.unique(appearance.order, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - count / 24) ** 2 / (count / 24)).sum() < 56  # chi-squared of 23, p < 2e-4
    for chosen, share in (("coloured", 0.8), ("grey", 0.2), ("blurred", 0.5), ("flipped", 0.5)):
        found = getattr(appearance, chosen)
        assert found.mean() == pytest.approx(share, abs=4.5 * math.sqrt(0.25 / count))
    together = np.column_stack([getattr(appearance, name) for name in ("coloured", "grey")])
    everything = np.column_stack([actual, together, appearance.blurred, appearance.flipped])
    correlation = np.corrcoef(everything.T) - np.eye(everything.shape[1])
    correlation[5:9, 5:9] = 0  # the places of one order depend on each other
    assert np.abs(correlation).max() < 0.065


def test_the_output_has_torchvision_s_moments():
    count, side = 3000, 32
    frames = picture().expand(count, -1, -1, -1)
    boxes = torch.from_numpy(draw_crops(range(count), np.full((count, 2), 48)))
    appearance = draw_appearance(range(count), EVERYTHING)
    actual = apply_appearance(resized_crop(frames, boxes, side), appearance)
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(0.3, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(0.5),
        ]
    )
    torch.manual_seed(0)
    expected = torch.stack([reference(frame) for frame in frames])
    assert_same_moments(features(actual), features(expected))


def features(frames):
    """Of each frame: means, spreads, colour, sharpness and slope, which way it faces."""
    frames = frames.double()
    across, down = frames.diff(dim=3), frames.diff(dim=2)
    return torch.cat(
        [
            frames.mean(dim=(2, 3)),
            frames.std(dim=(2, 3)),
            frames.std(dim=1).mean(dim=(1, 2))[:, None],
            across.abs().mean(dim=(2, 3)),
            down.abs().mean(dim=(2, 3)),
            across.mean(dim=(2, 3)),
            down.mean(dim=(2, 3)),
            frames[:, :, 4, 4],
        ],
        dim=1,
    ).numpy()


# ---------------------------------------------------------------------------------- the switches


@pytest.mark.parametrize("name", SWITCHES)
def test_each_frame_augmentation_acts_alone(name):
    frames, count = noise(256, 16), 256
    switches = dict.fromkeys(SWITCHES, False) | {name: True}
    alone = draw_appearance(range(count), AugmentationConfig(**switches))
    augmented = apply_appearance(frames, alone)
    differs = (augmented != frames).flatten(1).any(dim=1)
    share = {"colour": 0.8, "grey": 0.2, "blur": 0.5, "flip": 0.5}[name]
    assert differs.float().mean().item() == pytest.approx(share, abs=0.11)
    if name == "flip":
        assert torch.equal(augmented[differs], frames[differs].flip(-1))
    if name == "grey":
        grey = (augmented[:, 0] == augmented[:, 1]).flatten(1).all(dim=1)
        assert torch.equal(grey, differs)


@pytest.mark.parametrize("name", SWITCHES)
def test_switching_one_off_leaves_the_others_as_they_are(name):
    whole = draw_appearance(range(200), EVERYTHING)
    without = draw_appearance(range(200), AugmentationConfig(**{name: False}))
    field = {"colour": "coloured", "grey": "grey", "blur": "blurred", "flip": "flipped"}[name]
    for each in vars(whole):
        if each == field:
            assert getattr(whole, each).any() and not getattr(without, each).any()
        else:
            np.testing.assert_array_equal(getattr(whole, each), getattr(without, each))


def test_nothing_switched_on_changes_nothing():
    frames = noise(8, 16)
    switches = dict.fromkeys(SWITCHES, False)
    appearance = draw_appearance(range(8), AugmentationConfig(**switches))
    assert torch.equal(apply_appearance(frames, appearance), frames)


# ---------------------------------------------------------------------------------- spectrograms


def masked_parts(masked):
    """First place and length of each clip's masked stretch and band: where 0 goes right through."""
    parts = []
    for axis in (1, 2):
        through = (masked == 0).all(dim=axis).double()
        length = through.sum(dim=1)
        parts += [length, torch.where(length > 0, through.argmax(dim=1).double(), 0.0)]
    return torch.stack(parts, dim=1).numpy()


def test_masks_are_distributed_as_torchaudio_s():
    count, time_mask, frequency_mask = 4000, 30, 10
    power = torch.ones(count, 40, 100)
    config = AugmentationConfig(time_mask=time_mask, frequency_mask=frequency_mask)
    masked = SpecAugment(config)(power, range(count))
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    torch.manual_seed(0)
    expected = power[:, None]
    for axis, longest in ((3, time_mask), (2, frequency_mask)):
        expected = torchaudio.functional.mask_along_axis_iid(expected, longest, 0.0, axis)
    chosen = torch.rand(count) < 0.8
    expected = torch.where(chosen[:, None, None], expected[:, 0], power)
    actual_parts, expected_parts = masked_parts(masked), masked_parts(expected)
    assert_same_moments(actual_parts, expected_parts)
    assert actual_parts[:, 0].max() == time_mask - 1
    assert actual_parts[:, 2].max() == frequency_mask - 1
    # Both masks of a clip or none; among the clips that are masked they are independent.
    both, expected_both = (
        parts[(parts[:, [0, 2]] > 0).all(axis=1)] for parts in (actual_parts, expected_parts)
    )
    assert len(both) == pytest.approx(len(expected_both), rel=0.05)
    assert np.abs(np.corrcoef(both.T)[:2, 2:]).max() < 0.08


def test_a_clip_s_masks_are_its_own():
    power = torch.rand(6, 40, 100, generator=torch.Generator().manual_seed(0))
    augment = SpecAugment(AugmentationConfig(time_mask=30, frequency_mask=10))
    seeds = [3, 14, 15, 92, 65, 35]
    together = augment(power, seeds)
    for index in range(6):
        alone = augment(power[index : index + 1], seeds[index : index + 1])
        assert torch.equal(alone[0], together[index])
    assert not torch.equal(augment(power, seeds[::-1]), together)


def test_masks_longer_than_the_spectrogram_are_refused():
    with pytest.raises(ValueError, match="--time-mask"):
        SpecAugment(AugmentationConfig())(torch.ones(1, 257, 100), [0])


def test_no_spec_augment_changes_nothing():
    power = torch.rand(2, 40, 100)
    assert SpecAugment(AugmentationConfig(spec_augment=False))(power, [0, 1]) is power
