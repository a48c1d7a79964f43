"""From a decoded batch to the keyword arguments of a model, on the batch's device."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.audio import AudioConfig, AudioWindow, SegmentConfig, SpectrogramConfig, tile
from datasets.clips import Batch
from datasets.frame_augmentation import apply_appearance, draw_appearance, draw_crops
from datasets.frame_operations import resized_crop
from datasets.geometric_transform import GeometricConfig, GeometricTransform
from datasets.negative_sounds import NegativeSoundConfig, negative_spectrograms
from datasets.paired_views import CutOut, cut_views, draw_pair
from datasets.transforms import AugmentationConfig, SpecAugment, as_float, normalise


def crop_at_random(batch: Batch) -> Tensor:
    """Float frames (B, 3, S, S) in [0, 1], cut at random where the batch leaves that to do."""
    frames = as_float(batch.frames)
    if batch.crop_size is None:
        return frames
    boxes = torch.from_numpy(draw_crops(batch.crop_seeds, np.array(batch.picture_sizes)))
    return resized_crop(frames, boxes.to(frames.device, non_blocking=True), batch.crop_size)


def tiled_waveforms(batch: Batch, window: AudioWindow) -> Tensor:
    """The batch's sounds, short ones repeated until they fill the window, (B, L)."""
    return tile(batch.waveforms, batch.sound_lengths, window.num_samples)


class SSLTIEViews:
    """Training views of SSL-TIE: augmented frames, their geometric transforms, masked sounds."""

    shown = "frames"
    """the view that the training output's map belongs to"""

    def __init__(
        self,
        audio: AudioConfig,
        augmentation: AugmentationConfig,
        geometric: GeometricConfig,
        device: torch.device,
        negatives: NegativeSoundConfig | None = None,
    ) -> None:
        """Builds the augmentations.

        Args:
            audio: of the log-mel spectrogram.
            augmentation: of frames and spectrograms.
            geometric: of the equivariance branch.
            device: of the batches.
            negatives: sounds that no frame shows; None: none.
        """
        self.audio = audio
        self.log_mel = audio.build_front_end().to(device)
        self.augmentation = augmentation
        self.augment_power = SpecAugment(augmentation)
        self.geometric = geometric
        self.device = device
        self.negatives = negatives or NegativeSoundConfig()

    @torch.no_grad()
    def __call__(
        self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None
    ) -> dict[str, Any]:
        """Makes the keyword arguments of SSLTIE.forward.

        What is drawn for a clip is a function of its own seed, except for the geometric transform:
        that is drawn for the whole batch, in the authors' order, from the seed of the step.

        Args:
            batch: frames and their sounds.
            seed: of the step; the same seeds give the same views.
            first: place of this process's first clip in the batch of all processes.
            global_size: clips in the batch of all processes; None: this batch is all there is.
        """
        frames = crop_at_random(batch)
        appearance = draw_appearance(batch.crop_seeds, self.augmentation)
        frames = normalise(apply_appearance(frames, appearance))
        power = self.log_mel.power(tiled_waveforms(batch, self.audio))
        power = self.augment_power(power, batch.crop_seeds)
        whole = GeometricTransform.sample(
            self.geometric,
            len(batch) if global_size is None else global_size,
            frames.shape[-1],
            random.Random(seed),
        )
        transform = whole.of_frames(first, len(batch))
        views = {
            "frames": frames,
            "log_mel_spectrogram": self.log_mel.to_decibels(power),
            "transformed_frames": transform.warp_frames(frames),
            "transform": transform.warp_maps,
        }
        if self.negatives.kinds:
            views["negative_sounds"] = negative_spectrograms(
                self.negatives, self.audio, self.log_mel, seed, self.device
            )
        return views


class SSPLViews:
    """Training views of SSPL: two cut-outs of each frame, and the middle of its sound."""

    shown = "frames_view_1"
    """the view that the training output's map belongs to"""

    def __init__(self, audio: SegmentConfig, frame_size: int, device: torch.device) -> None:
        """Builds the front end.

        Args:
            audio: of the log-mel segments.
            frame_size: S, side of a view, pixels.
            device: of the batches.
        """
        self.front_end = audio.build_front_end().to(device)
        self.frame_size = frame_size

    @torch.no_grad()
    def __call__(
        self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None
    ) -> dict[str, Any]:
        """Makes the keyword arguments of SSPL.forward.

        Each clip brings its own seed, so that its views do not depend on the other clips.

        Args:
            batch: frames of enlarged_size(S), whole, and their sounds.
            seed: as SSLTIEViews; not used.
            first: as SSLTIEViews; not used.
            global_size: as SSLTIEViews; not used.
        """
        del seed, first, global_size
        ones, others = zip(*[draw_pair(seed, self.frame_size) for seed in batch.crop_seeds], strict=True)
        return {
            "frames_view_1": self.cut(batch.frames, ones),
            "frames_view_2": self.cut(batch.frames, others),
            "log_mel_segments": self.front_end(batch.waveforms),
        }

    def cut(self, frames: Tensor, views: Sequence[CutOut]) -> Tensor:
        """One view of each uint8 frame (B, 3, E, E), normalised: (B, 3, S, S)."""
        return normalise(as_float(cut_views(frames, views, self.frame_size)))


class TestViews:
    """Plain views for localisation: nothing is drawn."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, audio: AudioConfig | SegmentConfig | SpectrogramConfig, device: torch.device) -> None:
        """Builds the audio front end.

        Args:
            audio: what the method hears.
            device: of the batches.
        """
        self.audio = audio
        self.front_end = audio.build_front_end().to(device)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised frames (B, 3, S, S) and the input of the method's audio encoder."""
        waveforms = tiled_waveforms(batch, self.audio)
        return normalise(as_float(batch.frames)), self.front_end(waveforms)


AUDIO_CONFIGS: dict[str, type[AudioConfig] | type[SegmentConfig]] = {
    "ssl_tie": AudioConfig,
    "sspl": SegmentConfig,
}
"""What each method hears."""
