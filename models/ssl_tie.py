"""SSL-TIE: sound localisation by transformation invariance and equivariance.

Liu, Ju, Xie, Zhang: "Exploiting Transformation Invariance and Equivariance for Self-supervised Sound
Localisation", ACM MM 2022. A training step on frames x, sounds a and a transform T:

    loss = w1 contrastive(x, a) + w2 contrastive(T(x), a) + w3 mse(map(T(x), a), T(map(x, a)))

with w1 = w2 = 0.5 and w3 = lambda = 1. B frames, A sounds (of all processes), D = 512, maps of h x w.

Deliberate differences from the authors' program, all without effect on its published behaviour (those of the
contrast: models/contrast.py):

1. The sound is encoded once in a step, not twice: loss and gradients are the same, the audio batch norms take
   both updates at once.
2. The head runs in float32 whatever the precision of the encoders.
3. Layers that never reach the loss (the other modality's stems, fc, vision_fc1, conv3, norm3) are not built.
4. `--equivariance-target masked` mends the blurred, mostly blank target of the authors' transform.
5. Silence and noise can be further negatives (`--negative-sounds`), after an idea of SSL-SaN (BMVC 2025),
   whose formulas are not known to us.
"""

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import augmentation as aug
from datasets.audio import AudioConfig
from datasets.clips import AudioVisualClips, Batch
from datasets.frames import FrameConfig, as_float, normalise
from datasets.geometry import GeometricConfig, GeometricTransform
from datasets.loaders import hash_seed
from datasets.mixing import MixingCurriculum
from models.contrast import TriMapConfig, contrastive_loss, refuse_crossed_thresholds, trimap_contrast
from models.encoders import (
    ImagePooling,
    ResNet18Encoder,
    at_least_float32,
    global_max_pool,
    pool_positions,
    similarity_map,
)
from models.method import Method, TrainingOutput, Views
from utils.distributed import average, gather_rows
from utils.options import option

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SSLTIEConfig(TriMapConfig):
    """What defines the model and its loss; stored in the checkpoint."""

    contrastive_weight: float = option(0.5, at_least=0)  # weight of the contrastive loss on the plain frames
    transformed_contrastive_weight: float = option(0.5, at_least=0)
    """weight of the contrastive loss on the transformed frames"""
    equivariance_weight: float = option(1.0, at_least=0)  # lambda: weight of the equivariance loss
    equivariance_gradient: bool = True  # let the equivariance loss also move the map of the plain frames

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrastive_weight == self.transformed_contrastive_weight == self.equivariance_weight == 0:
            raise ValueError(
                "--contrastive-weight, --transformed-contrastive-weight and --equivariance-weight "
                "must not all be 0"
            )


@dataclass(frozen=True, kw_only=True)
class NegativeSoundConfig:
    """Sounds that no frame shows, as further negatives of the contrast; none by default."""

    negative_sounds: Literal["silence", "noise", "silence,noise"] | None = None
    """contrasted with every frame, one of each in a step; none: neither"""


class SSLTIE(Method):
    """The localiser and its training loss."""

    built_with = ("audio", "frame", "augmentation", "geometric", "negatives")

    def __init__(
        self,
        config: SSLTIEConfig,
        *,
        audio: AudioConfig | None = None,
        frame: FrameConfig | None = None,
        augmentation: aug.AugmentationConfig | None = None,
        geometric: GeometricConfig | None = None,
        negatives: NegativeSoundConfig | None = None,
    ) -> None:
        """Build both encoders, randomly initialised; without a group of options, its defaults hold."""
        super().__init__(audio or AudioConfig(), frame or FrameConfig())
        self.config = config
        self.augmentation = augmentation or aug.AugmentationConfig()
        self.geometric = geometric or GeometricConfig()
        self.negatives = negatives or NegativeSoundConfig()
        self.random_crop = self.augmentation.crop
        self.excerpt_seconds = self.augmentation.audio_excerpt_seconds
        self.uses_transform = config.transformed_contrastive_weight > 0 or config.equivariance_weight > 0
        self.imgnet = ResNet18Encoder(3)
        self.audnet = ResNet18Encoder(1, batch_norm_passes=2 if self.uses_transform else 1)

    # ------------------------------------------------------------------------------------ training views

    @torch.no_grad()
    def augment(self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None) -> Views:
        """Make the arguments of `forward` of a batch: see `Method`."""
        count, total = len(batch), len(batch) if global_size is None else global_size
        parts = [aug.CROP_NUMBERS, aug.LOOK_NUMBERS, aug.MASK_NUMBERS]
        numbers = aug.draw_for_clips(seed, count, sum(parts), first=first, total=total)
        for_crop, for_look, for_masks = numbers.split(parts, dim=1)

        frames = as_float(batch.frames)  # (B, 3, S, S), or of all sizes with random crop
        if self.random_crop:
            boxes = aug.draw_crops(torch.tensor(batch.picture_sizes), for_crop)
            frames = aug.resized_crop(frames, boxes, self.frame.frame_size)
        frames = normalise(aug.change_look(frames, self.augmentation, for_look))  # (B, 3, S, S)

        power = self.front_end.mel(batch.waveforms)  # (B, F, T)
        power = aug.spec_augment(power, self.augmentation, for_masks)

        drawn = GeometricTransform.sample(self.geometric, total, frames.shape[-1], random.Random(seed))
        transform = replace(drawn, angles=drawn.angles[first : first + count])
        return {
            "frames": frames,
            "log_mel_spectrogram": self.front_end.to_decibels(power),  # (B, 1, F, T)
            "transformed_frames": transform.warp_frames(frames),  # (B, 3, S * scale, S * scale)
            "transform": transform.warp_maps,
            "negative_sounds": self.draw_negative_sounds(seed, frames.device),  # (K, 1, F, T)
        }

    def draw_negative_sounds(self, seed: int, device: torch.device) -> Tensor | None:
        """Make the negative sounds of a step, (K, 1, F, T) in dB, the same in all processes, or None.

        Silence is a waveform of zeros. Noise is white and Gaussian, its standard deviation drawn from 0.01 to
        1 of full scale, evenly on a logarithmic scale.
        """
        kinds = self.negatives.negative_sounds
        if kinds is None:
            return None
        waveforms = torch.zeros(1 + kinds.count(","), self.audio.num_samples)  # (K, L)
        if "noise" in kinds:
            generator = torch.Generator().manual_seed(hash_seed(seed, 1))  # apart from the clips' numbers
            level = math.log(0.01) * torch.rand(1, generator=generator)
            waveforms[-1] = level.exp() * torch.randn(self.audio.num_samples, generator=generator)
        return self.front_end(waveforms.to(device, non_blocking=True))

    # ---------------------------------------------------------------------------------- the training step

    def forward(
        self,
        *,
        frames: Tensor,  # (B, 3, H, W), normalised
        log_mel_spectrogram: Tensor,  # (B, 1, F, T), dB
        transformed_frames: Tensor,  # (B, 3, H', W')
        transform: Callable[[Tensor], tuple[Tensor, Tensor]],
        negative_sounds: Tensor | None = None,  # (K, 1, F, T), dB
    ) -> TrainingOutput:
        """Compute a training step's loss.

        `transform` turns maps (B, h, w) as `transformed_frames` were turned, into (B, h', w') and the weight
        of each cell in the equivariance loss. Negative sounds are negatives of every frame.

        Among several processes, each contrasts its frames with the sounds of all, and the mean of their
        losses is that of one process with all clips; the batch norms must be synchronised.
        """
        config = self.config
        sounds, own_offset = gather_rows(self.sound_features(log_mel_spectrogram))  # (A, D)
        num_sounds = len(sounds)
        if negative_sounds is not None:
            sounds = torch.cat([sounds, self.encode_negative_sounds(negative_sounds)])  # (A + K, D)

        visual = self.visual_features(frames)  # (B, D, h, w)
        logits, plain_map = trimap_contrast(visual, sounds, config, own_offset)  # (B, K'), (B, h, w)
        terms = {"contrastive": contrastive_loss(logits)}
        if negative_sounds is not None:  # their mean similarity with the frames, in what is positive for each
            columns = logits.detach()[:, 1 + num_sounds :][:, : len(negative_sounds)]  # (B, K)
            terms["negative_similarity"] = columns.mean() * config.temperature
        loss = config.contrastive_weight * terms["contrastive"]

        if self.uses_transform:
            visual = self.visual_features(transformed_frames)  # (B, D, h', w')
            logits, transformed_map = trimap_contrast(visual, sounds, config, own_offset)
            target, coverage = transform(plain_map if config.equivariance_gradient else plain_map.detach())
            terms["contrastive_transformed"] = contrastive_loss(logits)
            terms["equivariance"] = equivariance_loss(transformed_map, target, coverage)
            loss = (
                loss
                + config.transformed_contrastive_weight * terms["contrastive_transformed"]
                + config.equivariance_weight * terms["equivariance"]
            )
        return TrainingOutput(loss, {name: term.detach() for name, term in terms.items()}, plain_map.detach())

    def encode_negative_sounds(self, log_mel_spectrogram: Tensor) -> Tensor:
        """Encode sounds that no frame shows, (K, 1, F, T) -> (K, 512), unit norm, as at test time.

        Running statistics normalise them, and stay as they are: so the clips' sounds are normalised among
        themselves as ever, and silence is embedded as it will be when it is alone. Gradients reach all
        weights, but do not go through the statistics.
        """
        training = self.audnet.training
        self.audnet.eval()
        try:
            return self.sound_features(log_mel_spectrogram)
        finally:
            self.audnet.train(training)

    # ----------------------------------------------------------------------- localisation and retrieval

    def visual_features(self, frames: Tensor) -> Tensor:
        """Encode normalised frames: (B, 3, H, W) -> (B, 512, H/16, W/16), unit norm."""
        return F.normalize(at_least_float32(self.imgnet(frames)), dim=1)

    def sound_features(self, log_mel_spectrogram: Tensor) -> Tensor:
        """Encode sounds: log-mel spectrograms (B, 1, F, T) in dB -> (B, 512), unit norm."""
        features = self.audnet(log_mel_spectrogram)  # (B, 512, F/16, T/16)
        return F.normalize(at_least_float32(global_max_pool(features)), dim=1)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Compare features of B frames with those of as many sounds: similarity maps (B, h, w) in [0, 1]."""
        return similarity_map(visual, sound)

    def embed_audio(self, log_mel_spectrogram: Tensor) -> Tensor:
        """Embed sounds for retrieval: those embeddings (B, 512) that localise."""
        return self.sound_features(log_mel_spectrogram)

    def embed_frames(self, frames: Tensor, pooling: ImagePooling = "max") -> Tensor:
        """Embed frames (B, 3, H, W) for retrieval: see `pool_positions`."""
        return pool_positions(self.imgnet(frames), pooling)

    # ------------------------------------------------------------------------------- options of main.py

    @classmethod
    def check_options(cls, options: Any) -> None:  # noqa: ANN401
        """Refuse masks that do not fit, and negatives or a curriculum without what they are part of."""
        refuse_crossed_thresholds(options.model)
        options.augmentation.check_fits(options.audio.mel_bins, options.audio.num_frames)
        weights = options.model.contrastive_weight, options.model.transformed_contrastive_weight
        if options.negatives.negative_sounds is not None and max(weights) == 0:
            raise ValueError(
                "--negative-sounds are negatives of the contrast, which has no part in the loss: "
                "--contrastive-weight and --transformed-contrastive-weight are 0."
            )
        if options.mixing.mixing_start_epoch != 2 and not options.mixing.audio_mixing:
            raise ValueError("--mixing-start-epoch needs --audio-mixing.")

    def curriculum(self, options: Any, clips: AudioVisualClips) -> MixingCurriculum | None:  # noqa: ANN401
        """Return the audio-mix curriculum, if it is wanted."""
        mixing = options.mixing
        if not mixing.audio_mixing:
            return None
        if mixing.mixing_start_epoch > options.optimisation.epochs:
            words = "Mixing begins with epoch %d, after the last of --epochs."
            logger.warning(words, mixing.mixing_start_epoch)
        return MixingCurriculum(mixing, clips, options.run.seed)


def equivariance_loss(similarity_map: Tensor, target: Tensor, coverage: Tensor) -> Tensor:
    """Mean squared difference of two maps (B, h, w), weighted by coverage in [0, 1] (SSL-TIE Eq. 8).

    Among several processes it is divided by their mean coverage, so that the mean of their losses is that of
    all maps together; 0 when no cell is covered.
    """
    squared = coverage * (similarity_map - target).square()  # (B, h, w)
    covered = average(coverage.sum())
    return squared.sum() / covered.clamp_min(torch.finfo(coverage.dtype).tiny)
