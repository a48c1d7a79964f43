"""From a decoded batch to the keyword arguments of a model, on the batch's device."""

import random
from typing import TypedDict

import torch
from torch import Tensor

from datasets.audio import AudioConfig, LogMelSpectrogram
from datasets.clips import Batch
from datasets.geometric_transform import GeometricConfig, GeometricTransform
from datasets.transforms import (
    AugmentationConfig,
    FrameAugmentation,
    SpecAugment,
    as_float,
    normalise,
)


class SSLTIEInputs(TypedDict):
    """Keyword arguments of SSLTIE.forward."""

    frames: Tensor
    log_mel_spectrogram: Tensor
    transformed_frames: Tensor
    transform: object


class SSLTIEViews:
    """Training views of SSL-TIE: augmented frames, their geometric transforms, masked sounds."""

    def __init__(
        self,
        audio: AudioConfig,
        augmentation: AugmentationConfig,
        geometric: GeometricConfig,
        device: torch.device,
    ) -> None:
        """Builds the augmentations.

        Args:
            audio: of the log-mel spectrogram.
            augmentation: of frames and spectrograms.
            geometric: of the equivariance branch.
            device: of the batches.
        """
        self.log_mel = LogMelSpectrogram(audio).to(device)
        self.augment_frames = FrameAugmentation(augmentation)
        self.augment_power = SpecAugment(augmentation)
        self.geometric = geometric

    @torch.no_grad()
    def __call__(self, batch: Batch, seed: int) -> SSLTIEInputs:
        """Makes the views of one step.

        Args:
            batch: randomly cropped frames and their sounds.
            seed: of the step; the same seed gives the same views.
        """
        torch.manual_seed(seed)
        frames = normalise(self.augment_frames(as_float(batch.frames)))
        power = self.augment_power(self.log_mel.power(batch.waveforms))
        transform = GeometricTransform.sample(
            self.geometric, len(batch), frames.shape[-1], random.Random(seed)
        )
        return SSLTIEInputs(
            frames=frames,
            log_mel_spectrogram=self.log_mel.to_decibels(power),
            transformed_frames=transform.warp_frames(frames),
            transform=transform.warp_maps,
        )


class TestViews:
    """Plain views for localisation: nothing is drawn."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, audio: AudioConfig, device: torch.device) -> None:
        """Builds the spectrogram.

        Args:
            audio: of the log-mel spectrogram.
            device: of the batches.
        """
        self.log_mel = LogMelSpectrogram(audio).to(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised frames (B, 3, S, S) and log-mel spectrograms (B, 1, F, T)."""
        return normalise(as_float(batch.frames)), self.log_mel(batch.waveforms)
