"""SSL-TIE: sound localisation by transformation invariance and equivariance.

Liu, Ju, Xie, Zhang: "Exploiting Transformation Invariance and Equivariance for Self-supervised
Sound Localisation", ACM MM 2022. A training step on frames x, sounds a and a transform T:

    loss = w1 contrastive(x, a) + w2 contrastive(T(x), a) + w3 mse(map(T(x), a), T(map(x, a)))

with w1 = w2 = 0.5 and w3 = lambda = 1.

Deliberate differences from the authors' program, all without effect on its published behaviour:

1. The sound is encoded once in a step, not twice: loss and gradients are the same, the audio batch
   norms take both updates at once (`audio_encodings = 2` encodes twice).
2. A clip's own sound is masked by -inf among the batch's negatives. The authors multiply it by -99,
   which does the same while the own similarity is positive, and makes the clip its own strongest
   negative when it is not.
3. Region means are a softmax over log-sigmoids, so that a saturated region gives no NaN: the
   authors' float32 hard-negative region becomes 0/0 once a whole map is above 0.899.
4. The head runs in float32 whatever the precision of the encoders.
5. Layers that never reach the loss (the other modality's stems, fc, vision_fc1, conv3, norm3) are
   not built.
6. `equivariance_target = masked` in datasets/geometric_transform.py mends the blurred, mostly blank
   target of the authors' transform; `reference` keeps it.
7. Sounds that no frame shows can be further negatives (models/negative_sounds.py); without them
   nothing changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders import ResNet18Encoder, global_max_pool
from models.losses import contrastive_loss, equivariance_loss, trimap_contrastive_logits
from models.negative_sounds import mean_similarity, running_statistics
from models.pooling import ImagePooling, pool_positions
from models.precision import at_least_float32
from models.similarity import own_maps, similarity_map, similarity_maps
from models.training_output import TrainingOutput
from utils.distributed import gather_rows


@dataclass(frozen=True, kw_only=True)
class SSLTIEConfig:
    """What defines the model and its loss; stored in the checkpoint."""

    positive_threshold: float = 0.65
    """epsilon+: similarity at which a position is half positive"""
    negative_threshold: float = 0.4
    """epsilon-: similarity at which a position is half hard-negative; needs --tri-map"""
    sharpness: float = 0.03
    """tau of the region sigmoids, similarity"""
    temperature: float = 0.07
    """divisor of the contrastive logits"""
    tri_map: bool = True
    """leave uncertain positions out; without it the hard negatives start at epsilon+"""
    hard_negatives: bool = True
    """contrast with the own frame's background"""
    contrastive_weight: float = 0.5
    """weight of the contrastive loss on the plain frames"""
    transformed_contrastive_weight: float = 0.5
    """weight of the contrastive loss on the transformed frames"""
    equivariance_weight: float = 1.0
    """lambda: weight of the equivariance loss"""
    equivariance_gradient: bool = True
    """let the equivariance loss also move the map of the plain frames"""
    audio_encodings: Literal[1, 2] = 1
    """times the sound is encoded in a step: 2 as the authors do, 1 for the same at less cost"""

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        if self.sharpness <= 0 or self.temperature <= 0:
            raise ValueError(
                f"--sharpness and --temperature must be above 0, got {self.sharpness} and {self.temperature}"
            )
        if self.tri_map and self.negative_threshold > self.positive_threshold:
            raise ValueError(
                f"--negative-threshold ({self.negative_threshold}) must not be above "
                f"--positive-threshold ({self.positive_threshold})"
            )
        if self.audio_encodings not in (1, 2):
            raise ValueError(f"--audio-encodings must be 1 or 2, got {self.audio_encodings}")
        weights = (self.contrastive_weight, self.transformed_contrastive_weight, self.equivariance_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                "--contrastive-weight, --transformed-contrastive-weight and --equivariance-weight "
                f"must not be negative and not all 0, got {weights}"
            )

    @property
    def has_contrast(self) -> bool:
        """Whether a contrastive loss has a part in the loss."""
        return self.contrastive_weight > 0 or self.transformed_contrastive_weight > 0

    @property
    def uses_transformed_frames(self) -> bool:
        """Whether any loss looks at the transformed frames."""
        return self.transformed_contrastive_weight > 0 or self.equivariance_weight > 0


class SSLTIE(nn.Module):
    """The localiser and its training loss."""

    def __init__(self, config: SSLTIEConfig) -> None:
        """Builds both encoders, randomly initialised.

        Args:
            config: thresholds, weights and switches.
        """
        super().__init__()
        self.config = config
        passes = 2 if config.uses_transformed_frames and config.audio_encodings == 1 else 1
        self.imgnet = ResNet18Encoder(3)
        self.audnet = ResNet18Encoder(1, batch_norm_passes=passes)

    def networks(self) -> list[nn.Module]:
        """The parts that are worth compiling."""
        return [self.imgnet, self.audnet]

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> visual feature map (B, 512, H/16, W/16), unit norm."""
        return F.normalize(at_least_float32(self.imgnet(frames)), dim=1)

    def encode_audio(self, log_mel_spectrogram: Tensor) -> Tensor:
        """Log-mel spectrograms (B, 1, F, T) in dB -> audio embeddings (B, 512), unit norm.

        Raises:
            ValueError: the spectrogram is not (B, 1, F, T).
        """
        if log_mel_spectrogram.ndim != 4 or log_mel_spectrogram.shape[1] != 1:
            raise ValueError(
                "log_mel_spectrogram must be (B, 1, mel_bins, frames), "
                f"got {tuple(log_mel_spectrogram.shape)}"
            )
        pooled = global_max_pool(self.audnet(log_mel_spectrogram))
        return F.normalize(at_least_float32(pooled), dim=1)

    def encode_negative_sounds(self, log_mel_spectrogram: Tensor) -> Tensor:
        """Sounds that no frame shows (K, 1, F, T) -> (K, 512), unit norm, as at test time.

        They are not normalised among themselves; models/negative_sounds.py has why.
        """
        with running_statistics(self.audnet):
            features = self.audnet(log_mel_spectrogram)
        return F.normalize(at_least_float32(global_max_pool(features)), dim=1)

    def embed_audio(self, log_mel_spectrogram: Tensor) -> Tensor:
        """Audio embeddings (B, 512) for retrieval, unit norm: those that localise."""
        return self.encode_audio(log_mel_spectrogram)

    def embed_frames(self, frames: Tensor, pooling: ImagePooling = "max") -> Tensor:
        """Embeddings of frames (B, 3, H, W) for retrieval: see `pool_positions`."""
        return pool_positions(self.imgnet(frames), pooling)

    def visual_features(self, frames: Tensor) -> Tensor:
        """What `compare` needs of frames: see `encode_frames`."""
        return self.encode_frames(frames)

    def sound_features(self, log_mel_spectrogram: Tensor) -> Tensor:
        """What `compare` needs of sounds: see `encode_audio`."""
        return self.encode_audio(log_mel_spectrogram)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Features of B frames and of as many sounds -> similarity maps (B, h, w) in [0, 1]."""
        return similarity_map(visual, sound)

    def localise(self, frames: Tensor, log_mel_spectrogram: Tensor) -> Tensor:
        """Similarity map (B, h, w) in [0, 1] of each frame with its own sound."""
        visual = self.visual_features(frames)
        return self.compare(visual, self.sound_features(log_mel_spectrogram))

    def contrast(
        self, visual_feature_map: Tensor, audio_embedding: Tensor, first_own: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Contrastive logits and own similarity maps of a batch.

        Args:
            visual_feature_map: (B, D, h, w), unit norm along D.
            audio_embedding: (A, D), unit norm.
            first_own: index of frame 0's own sound, where the sounds are of more clips than the
                frames; frame i's is the i-th after it.

        Returns:
            logits (B, A + 1 or A + 2) and similarity maps (B, h, w).
        """
        config = self.config
        hard_threshold = config.negative_threshold if config.tri_map else config.positive_threshold
        with torch.autocast(visual_feature_map.device.type, enabled=False):
            maps = similarity_maps(visual_feature_map, audio_embedding)
            logits = trimap_contrastive_logits(
                maps,
                positive_threshold=config.positive_threshold,
                negative_threshold=hard_threshold if config.hard_negatives else None,
                sharpness=config.sharpness,
                temperature=config.temperature,
                first_own=first_own,
            )
        return logits, own_maps(maps, first_own)

    def forward(
        self,
        *,
        frames: Tensor,
        log_mel_spectrogram: Tensor,
        transformed_frames: Tensor,
        transform: Callable[[Tensor], tuple[Tensor, Tensor]],
        negative_sounds: Tensor | None = None,
    ) -> TrainingOutput:
        """One training step's loss.

        Among several processes, each contrasts its frames with the sounds of all, and the mean of
        their losses is that of one process with all clips; the batch norms must be synchronised.

        Args:
            frames: (B, 3, H, W), normalised.
            log_mel_spectrogram: (B, 1, F, T), dB.
            transformed_frames: (B, 3, H', W'), the transform of `frames`.
            transform: applies the same transform to maps (B, h, w) and returns the transformed
                maps (B, h', w') with the weight of each cell in the equivariance loss.
            negative_sounds: (K, 1, F, T), dB, spectrograms of sounds that no frame shows, the same
                in all processes; each is one more negative of every frame.

        Returns:
            loss, its terms, and the similarity maps of the plain frames.

        Raises:
            ValueError: the processes have batches of different sizes.
        """
        config = self.config
        sounds, first_own = gather_rows(self.encode_audio(log_mel_spectrogram))
        num_sounds, negatives = len(sounds), sounds.detach()[:0]
        if negative_sounds is not None:
            negatives = self.encode_negative_sounds(negative_sounds)
            sounds = torch.cat([sounds, negatives])
        logits, plain_map = self.contrast(self.encode_frames(frames), sounds, first_own)
        terms = {"contrastive": contrastive_loss(logits)}
        if negative_sounds is not None:
            terms["negative_similarity"] = mean_similarity(
                logits, config.temperature, num_sounds, len(negatives)
            )
        loss = config.contrastive_weight * terms["contrastive"]

        if config.uses_transformed_frames:
            if config.audio_encodings == 2:
                again, first_own = gather_rows(self.encode_audio(log_mel_spectrogram))
                sounds = torch.cat([again, negatives])
            logits, transformed_map = self.contrast(self.encode_frames(transformed_frames), sounds, first_own)
            target, coverage = transform(plain_map if config.equivariance_gradient else plain_map.detach())
            terms["contrastive_transformed"] = contrastive_loss(logits)
            terms["equivariance"] = equivariance_loss(transformed_map, target, coverage)
            loss = (
                loss
                + config.transformed_contrastive_weight * terms["contrastive_transformed"]
                + config.equivariance_weight * terms["equivariance"]
            )
        return TrainingOutput(
            loss=loss,
            terms={name: term.detach() for name, term in terms.items()},
            similarity_map=plain_map.detach(),
        )
