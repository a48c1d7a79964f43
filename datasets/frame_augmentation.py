"""moco_v2's augmentation of frames, batched on the device; each clip draws its own.

What is drawn has the distribution of torchvision's RandomResizedCrop, ColorJitter,
RandomGrayscale, GaussianBlur and RandomHorizontalFlip in this order, but is a function of the
clip's seed alone: not of its neighbours in the batch, nor of the process that has it. Frames stay
float in between; the authors' program rounds to whole pixel values after each step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.clip_draws import uniform_draws
from datasets.frame_operations import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grey_of,
)
from datasets.transforms import AugmentationConfig

CROP_SCALE = (0.3, 1.0)
"""Share of the frame that the random crop keeps."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Width by height of the crop."""
CROP_ATTEMPTS = 10
"""A crop that does not fit is drawn anew so often; then the largest in the middle is taken."""

ADJUSTMENTS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)
COLOUR_RANGES = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))
"""Of the factors of the adjustments."""
BLUR_KERNEL = 13
"""Pixels: three standard deviations of the widest blur to each side."""
BLUR_RANGE = (0.1, 2.0)
"""Standard deviation, pixels."""
COLOUR_SHARE, GREY_SHARE, BLUR_SHARE, FLIP_SHARE = 0.8, 0.2, 0.5, 0.5
"""Of the frames."""


@dataclass(frozen=True)
class Appearance:
    """What was drawn for each of B frames, apart from the crop."""

    coloured: NDArray[np.bool_]
    """(B,) whether the adjustments are applied"""
    order: NDArray[np.int64]
    """(B, 4) which of ADJUSTMENTS comes first, second …"""
    factors: NDArray[np.float64]
    """(B, 4) one for each of ADJUSTMENTS"""
    grey: NDArray[np.bool_]
    """(B,)"""
    blurred: NDArray[np.bool_]
    """(B,)"""
    sigmas: NDArray[np.float64]
    """(B,) of the blur, pixels"""
    flipped: NDArray[np.bool_]
    """(B,)"""


def draw_crops(seeds: Sequence[int], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draws a rectangle of 30 to 100 % of each frame, aspect 3/4 to 4/3.

    Args:
        seeds: of the B clips.
        sizes: (B, 2) height and width of each frame, pixels.

    Returns:
        (B, 4) top, left, height, width, pixels.
    """
    draws = uniform_draws(seeds, "crop", 4 * CROP_ATTEMPTS).reshape(-1, CROP_ATTEMPTS, 4)
    area, aspect, down, right = np.moveaxis(draws, 2, 0)
    frame_height, frame_width = sizes[:, :1], sizes[:, 1:]
    kept = frame_height * frame_width * _between(area, CROP_SCALE)
    ratio = np.exp(_between(aspect, np.log(CROP_ASPECT)))
    height = np.rint(np.sqrt(kept / ratio)).astype(np.int64)
    width = np.rint(np.sqrt(kept * ratio)).astype(np.int64)
    fits = (height > 0) & (height <= frame_height) & (width > 0) & (width <= frame_width)
    top = (down * (frame_height - height + 1)).astype(np.int64)
    left = (right * (frame_width - width + 1)).astype(np.int64)
    attempts = np.stack([top, left, height, width], axis=-1)  # (B, attempts, 4)
    chosen = attempts[np.arange(len(attempts)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1, keepdims=True), chosen, _middle(sizes))


def _middle(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest rectangle of an allowed aspect in the middle of each frame, (B, 4)."""
    frame_height, frame_width = sizes.T
    height = np.minimum(frame_height, np.rint(frame_width / CROP_ASPECT[0]).astype(np.int64))
    width = np.minimum(frame_width, np.rint(frame_height * CROP_ASPECT[1]).astype(np.int64))
    top, left = (frame_height - height) // 2, (frame_width - width) // 2
    return np.stack([top, left, height, width], axis=-1)


def draw_appearance(seeds: Sequence[int], config: AugmentationConfig) -> Appearance:
    """Draws colour, grey, blur and flip of each frame.

    Args:
        seeds: of the B clips.
        config: what is switched on.
    """
    colour = uniform_draws(seeds, "colour", 1 + 2 * len(ADJUSTMENTS))
    lower, upper = np.transpose(COLOUR_RANGES)
    blur = uniform_draws(seeds, "blur", 2)
    return Appearance(
        coloured=config.colour & (colour[:, 0] < COLOUR_SHARE),
        order=colour[:, 1:5].argsort(axis=1),
        factors=lower + (upper - lower) * colour[:, 5:],
        grey=config.grey & (uniform_draws(seeds, "grey", 1)[:, 0] < GREY_SHARE),
        blurred=config.blur & (blur[:, 0] < BLUR_SHARE),
        sigmas=_between(blur[:, 1], BLUR_RANGE),
        flipped=config.flip & (uniform_draws(seeds, "flip", 1)[:, 0] < FLIP_SHARE),
    )


def apply_appearance(frames: Tensor, appearance: Appearance) -> Tensor:
    """Carries out what was drawn; float frames (B, 3, H, W) in [0, 1] -> the same, on its device.

    Each operation runs once on all the frames that want it; each place in the order of the
    adjustments has its turn.
    """
    frames = frames.clone()
    factors = torch.from_numpy(appearance.factors).to(frames)
    sigmas = torch.from_numpy(appearance.sigmas).to(frames)

    def change(wanted: NDArray[np.bool_], operation: Callable[..., Tensor], *given: Tensor) -> None:
        if wanted.any():
            # Found on the CPU: a mask on the device would make the CPU wait for its count.
            chosen = torch.from_numpy(np.flatnonzero(wanted)).to(frames.device, non_blocking=True)
            frames[chosen] = operation(frames[chosen], *(each[chosen] for each in given))

    for place in range(len(ADJUSTMENTS)):
        for which, adjust in enumerate(ADJUSTMENTS):
            wanted = appearance.coloured & (appearance.order[:, place] == which)
            change(wanted, adjust, factors[:, which])
    change(appearance.grey, lambda chosen: grey_of(chosen).expand_as(chosen))
    change(appearance.blurred, lambda chosen, widths: gaussian_blur(chosen, widths, BLUR_KERNEL), sigmas)
    change(appearance.flipped, lambda chosen: chosen.flip(-1))
    return frames


def _between(
    draws: NDArray[np.float64], limits: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """[0, 1) -> [limits[0], limits[1])."""
    return limits[0] + (limits[1] - limits[0]) * draws
