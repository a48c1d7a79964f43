"""Batched augmentation: torchvision's result for each frame, its distribution over many."""

import numpy as np
import pytest
import torch
import torchaudio
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from datasets.augmentation import (
    BLUR_KERNEL,
    CROP_NUMBERS,
    CUT_OUT_NUMBERS,
    LOOK_NUMBERS,
    MASK_NUMBERS,
    AugmentationConfig,
    change_look,
    cut_out,
    draw_crops,
    draw_for_clips,
    resized_crop,
    spec_augment,
)

EVERYTHING = AugmentationConfig()
SWITCHES = ("colour", "grey", "blur", "flip")
ADJUSTMENTS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def noise(count, height=40, width=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width or height, generator=generator)


# ------------------------------------------------------------------ each operation, given numbers


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


def test_looks_equal_torchvision_s_in_each_frame_s_own_order():
    """Each frame by its own numbers: what is done, in which order, how strongly."""
    frames = noise(60, 24)
    frames[:, :, :5] = frames[:, :1, :5]  # grey rows have no hue
    frames[:, :, 5] = torch.tensor([0.7, 0.7, 0.2])[:, None]  # two channels share the maximum
    frames[:, :, 6:8] = torch.tensor([0.0, 1.0])[:, None]  # black and white
    before, numbers = frames.clone(), draw_for_clips(1, 60, LOOK_NUMBERS)
    changed = change_look(frames, EVERYTHING, numbers)
    assert torch.equal(frames, before)
    for frame, row, result in zip(frames, numbers.tolist(), changed, strict=True):
        torch.testing.assert_close(result, one_by_one(frame, row), atol=1e-4, rtol=0)


def one_by_one(frame, row):
    """The slow way: torchvision's functions, one frame at a time."""
    if row[0] < 0.8:
        for which in np.argsort(row[1:5]):
            low, high = (0.6, 1.4) if which < 3 else (-0.1, 0.1)
            frame = ADJUSTMENTS[which](frame, low + (high - low) * row[5 + which])
    if row[9] < 0.2:
        frame = TF.rgb_to_grayscale(frame, num_output_channels=3)
    if row[10] < 0.5:
        frame = TF.gaussian_blur(frame, [BLUR_KERNEL] * 2, [0.1 + 1.9 * row[11]] * 2)
    return TF.horizontal_flip(frame) if row[12] < 0.5 else frame


# --------------------------------------------------------------------------------- what is drawn


def test_processes_take_their_rows_of_one_draw():
    whole = draw_for_clips(7, 6, 3)
    assert whole.shape == (6, 3) and whole.min() >= 0 and whole.max() < 1
    assert torch.equal(draw_for_clips(7, 2, 3, first=2, total=6), whole[2:4])
    assert not torch.equal(draw_for_clips(8, 6, 3), whole)
    # Known values: a resumed or repeated run draws the same on every machine.
    np.testing.assert_allclose(whole[0, :2], [0.279380, 0.273694], atol=1e-6)


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
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    actual = draw_crops(sizes, draw_for_clips(0, count, CROP_NUMBERS)).numpy()
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


# ---------------------------------------------------------------------------------- the switches


@pytest.mark.parametrize("name", SWITCHES)
def test_each_frame_augmentation_acts_alone(name):
    frames, numbers = noise(256, 16), draw_for_clips(0, 256, LOOK_NUMBERS)
    alone = AugmentationConfig(**dict.fromkeys(SWITCHES, False) | {name: True})
    changed = change_look(frames, alone, numbers)
    differs = (changed != frames).flatten(1).any(dim=1)
    share = {"colour": 0.8, "grey": 0.2, "blur": 0.5, "flip": 0.5}[name]
    nothing = AugmentationConfig(**dict.fromkeys(SWITCHES, False))
    assert torch.equal(change_look(frames, nothing, numbers), frames)
    assert differs.float().mean().item() == pytest.approx(share, abs=0.11)
    if name == "flip":
        assert torch.equal(changed[differs], frames[differs].flip(-1))
    if name == "grey":
        grey = (changed[:, 0] == changed[:, 1]).flatten(1).all(dim=1)
        assert torch.equal(grey, differs)


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
    masked = spec_augment(power, config, draw_for_clips(0, count, MASK_NUMBERS))
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
    both, expected_both = (p[(p[:, [0, 2]] > 0).all(axis=1)] for p in (actual_parts, expected_parts))
    assert len(both) == pytest.approx(len(expected_both), rel=0.05)
    assert np.abs(np.corrcoef(both.T)[:2, 2:]).max() < 0.08


def test_masks_may_be_switched_off_and_must_fit():
    power, numbers = torch.rand(2, 40, 100), draw_for_clips(0, 2, MASK_NUMBERS)
    assert spec_augment(power, AugmentationConfig(spec_augment=False), numbers) is power
    for sizes in ((34, 180), (35, 179)):
        with pytest.raises(ValueError, match="--time-mask"):
            EVERYTHING.check_fits(*sizes)
    EVERYTHING.check_fits(35, 180)


# ------------------------------------------------------------------------------- SSPL's cut-outs


def test_cut_outs_are_shifted_and_mirrored_squares():
    frames = torch.randint(0, 256, (40, 3, 35, 35), dtype=torch.uint8)
    numbers = draw_for_clips(3, 40, CUT_OUT_NUMBERS)
    views = cut_out(frames, [(35, 35)] * 40, 32, numbers)
    assert views.shape == (40, 3, 32, 32) and views.dtype == torch.uint8
    for frame, (top, left, mirror), view in zip(frames, numbers.tolist(), views, strict=True):
        expected = TF.crop(frame, int(4 * top), int(4 * left), 32, 32)
        assert torch.equal(view, TF.horizontal_flip(expected) if mirror < 0.5 else expected)
