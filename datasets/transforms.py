"""Augmentation of frames and spectrograms, on whichever device the batch is."""

from dataclasses import dataclass

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BLUR_KERNEL = 13
"""Pixels: three standard deviations of the widest blur to each side."""


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """The appearance augmentation; by default moco_v2 for frames and SpecAugment for sounds."""

    crop: bool = True
    """cut 30 to 100 % of each frame at random"""
    colour: bool = True
    """jitter brightness, contrast, saturation (0.4) and hue (0.1) of 80 % of the frames"""
    grey: bool = True
    """drop the colour of 20 % of the frames"""
    blur: bool = True
    """blur 50 % of the frames, sigma 0.1 to 2 pixels"""
    flip: bool = True
    """mirror 50 % of the frames"""
    spec_augment: bool = True
    """mask a stretch of time and a band of frequencies in 80 % of the spectrograms"""
    time_mask: int = 180
    """longest masked stretch, spectrogram frames"""
    frequency_mask: int = 35
    """widest masked band, mel filters"""

    def __post_init__(self) -> None:
        """Refuses masks without extent."""
        if self.time_mask < 1 or self.frequency_mask < 1:
            raise ValueError(
                "--time-mask and --frequency-mask must be at least 1 (--no-spec-augment switches "
                f"them off), got {self.time_mask} and {self.frequency_mask}"
            )


class FrameAugmentation:
    """Colour, grey, blur and flip of moco_v2; each frame draws its own."""

    def __init__(self, config: AugmentationConfig) -> None:
        """Collects the chosen transforms.

        Args:
            config: which ones.
        """
        steps: list[torch.nn.Module] = []
        if config.colour:
            steps.append(v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8))
        if config.grey:
            steps.append(v2.RandomGrayscale(0.2))
        if config.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, (0.1, 2.0))], p=0.5))
        if config.flip:
            steps.append(v2.RandomHorizontalFlip(0.5))
        self._augment = v2.Compose(steps) if steps else None

    def __call__(self, frames: Tensor) -> Tensor:
        """Float frames (B, 3, H, W) in [0, 1] -> the same, augmented; global random state."""
        if self._augment is None:
            return frames
        return torch.stack([self._augment(frame) for frame in frames])


class SpecAugment:
    """Masks time and frequency of power spectrograms; each clip draws its own masks."""

    probability = 0.8

    def __init__(self, config: AugmentationConfig) -> None:
        """Takes the mask sizes.

        Args:
            config: sizes and the switch.
        """
        self.config = config

    def __call__(self, power: Tensor) -> Tensor:
        """Power spectrograms (B, F, T) -> the same with masks of 0; global random state.

        Raises:
            ValueError: a mask can be longer than the spectrogram.
        """
        if not self.config.spec_augment:
            return power
        filters, frames = power.shape[-2:]
        if self.config.time_mask > frames or self.config.frequency_mask > filters:
            raise ValueError(
                f"--time-mask {self.config.time_mask} and --frequency-mask "
                f"{self.config.frequency_mask} do not fit a spectrogram of {frames} frames and "
                f"{filters} filters."
            )
        masked = power[:, None]
        for axis, longest in ((3, self.config.time_mask), (2, self.config.frequency_mask)):
            masked = torchaudio.functional.mask_along_axis_iid(masked, longest, 0.0, axis)
        chosen = torch.rand(len(power), device=power.device) < self.probability
        return torch.where(chosen[:, None, None], masked[:, 0], power)


def normalise(frames: Tensor) -> Tensor:
    """Float frames (B, 3, H, W) in [0, 1] -> ImageNet mean 0 and standard deviation 1."""
    return v2.functional.normalize(frames, list(IMAGENET_MEAN), list(IMAGENET_STD))


def as_float(frames: Tensor) -> Tensor:
    """uint8 frames -> float32 in [0, 1]."""
    return frames.float() / 255


def to_displayable(frames: Tensor) -> NDArray[np.uint8]:
    """Normalised frames (B, 3, H, W) -> pictures (B, H, W, 3), undoing `normalise`."""
    mean, std = (
        torch.tensor(v, device=frames.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    pixels = (frames * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()
