"""What training does to frames and spectrograms, on whichever device the batch is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from datasets.clip_draws import uniform_draws

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    audio_excerpt_seconds: float | None = None
    """use only the first seconds of each training sound (the authors: 4 for Flickr)"""

    def __post_init__(self) -> None:
        """Refuses masks without extent."""
        if self.time_mask < 1 or self.frequency_mask < 1:
            raise ValueError(
                "--time-mask and --frequency-mask must be at least 1 (--no-spec-augment switches "
                f"them off), got {self.time_mask} and {self.frequency_mask}"
            )
        if self.audio_excerpt_seconds is not None and not 0 < self.audio_excerpt_seconds < math.inf:
            raise ValueError(
                "--audio-excerpt-seconds must be a number of seconds above 0, got "
                f"{self.audio_excerpt_seconds}"
            )

    def check_fits(self, mel_bins: int, num_frames: int) -> None:
        """Refuses masks that are longer than the spectrogram.

        Args:
            mel_bins: F, filters of the spectrogram.
            num_frames: T, frames of the spectrogram.

        Raises:
            ValueError: a mask can be longer than the spectrogram.
        """
        if self.spec_augment and (self.time_mask > num_frames or self.frequency_mask > mel_bins):
            raise ValueError(
                f"--time-mask {self.time_mask} and --frequency-mask {self.frequency_mask} do not "
                f"fit a spectrogram of {num_frames} frames and {mel_bins} filters "
                "(--window-seconds, --hop-length, --mel-bins)."
            )


class SpecAugment:
    """Masks time and frequency of power spectrograms; each clip draws its own masks."""

    probability = 0.8

    def __init__(self, config: AugmentationConfig) -> None:
        """Takes the mask sizes.

        Args:
            config: sizes and the switch.
        """
        self.config = config

    def __call__(self, power: Tensor, seeds: Sequence[int]) -> Tensor:
        """Masks a stretch of time and a band of frequencies with 0, as torchaudio's masking does.

        Args:
            power: spectrograms (B, F, T).
            seeds: of the B clips; a clip's masks are a function of its seed.

        Raises:
            ValueError: a mask can be longer than the spectrogram.
        """
        if not self.config.spec_augment:
            return power
        self.config.check_fits(*power.shape[-2:])
        chosen, *rest = uniform_draws(seeds, "spectrogram", 5).T
        stretch = self._inside(power, 2, chosen, self.config.time_mask, *rest[:2])
        band = self._inside(power, 1, chosen, self.config.frequency_mask, *rest[2:])
        return power.masked_fill(stretch[:, None, :] | band[:, :, None], 0)

    def _inside(
        self, power: Tensor, axis: int, chosen: NDArray[np.float64], longest: int, *draws: NDArray[np.float64]
    ) -> Tensor:
        """Which places along an axis are masked, (B, size of the axis)."""
        size = power.shape[axis]
        length = longest * draws[0]
        start = (draws[1] * (size - length)).astype(np.int64)
        length = np.where(chosen < self.probability, length, 0).astype(np.int64)
        limits = torch.from_numpy(np.stack([start, start + length])[:, :, None])
        first, end = limits.to(power.device, non_blocking=True)
        places = torch.arange(size, device=power.device)
        return (places >= first) & (places < end)


def normalise(frames: Tensor) -> Tensor:
    """Float frames (B, 3, H, W) in [0, 1] -> ImageNet mean 0 and standard deviation 1."""
    return v2.functional.normalize(frames, list(IMAGENET_MEAN), list(IMAGENET_STD))


def as_float(frames: Tensor) -> Tensor:
    """uint8 frames (B, 3, H, W) in any memory order -> float32 in [0, 1], channel by channel."""
    return frames.to(torch.float32, memory_format=torch.contiguous_format) / 255


def to_displayable(frames: Tensor) -> NDArray[np.uint8]:
    """Normalised frames (B, 3, H, W) -> pictures (B, H, W, 3), undoing `normalise`."""
    mean, std = (torch.tensor(v, device=frames.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (frames * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()
