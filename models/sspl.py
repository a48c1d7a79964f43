"""SSPL: sound localisation without negatives, by self-supervised predictive learning.

Song, Wang, Fan, Tan, Zhang: "Self-Supervised Predictive Learning: A Negative-Free Method for Sound
Source Localization in Visual Scenes", CVPR 2022. A training step on two views of a frame and the
three log-mel segments of its sound, where F is VGG-16's map and e_i VGGish's embeddings:

    u   = mean_i g(e_i)                                audio embedding, g an MLP
    V   = PCM(F, a),  a = mean_i e_i / |mean_i e_i|    aligned map; V = F without the PCM
    S   = cos(V(y, x), u)                              similarity map
    A   = (S - min S) / (max S - min S)                attention map
    f   = sum_{y, x} A(y, x) V(y, x)                   pooled feature
    z   = projection(f),  p = prediction(z)
    loss = (D(p_1, sg z_2) + D(p_2, sg z_1)) / 2,      D = mean negative cosine, sg stop-gradient

VGG-16 and VGGish are frozen; g, the PCM and both heads are trained. What looks accidental but is
kept, since weights depend on it: conv5_3 is taken before its ReLU, f is a sum of unnormalised
vectors, the mean of u comes after g, and each view passes batch norms on its own.

Deliberate differences from the authors' program:

1. This module holds model and loss and is itself what a data-parallel wrapper calls. Theirs calls
   the networks inside the wrapper, so that gradients are never averaged over processes.
2. One class with a switch for the PCM, instead of two copies of the program.
3. VGGish takes all segments of all clips in one call, and no graph is kept for frozen networks.
4. The flags for training VGG-16 are left out: they never reach the optimiser.
5. A batch of one clip can be localised; theirs fails on it. In training it is refused in words.
6. The similarity map of one view is enough to localise; theirs computes two equal ones and a loss.
7. The attention and the loss are computed in float32 whatever the precision of the networks.
8. Terms that show a collapse are reported beside the loss, which does not show it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import (
    PredictionHead,
    ProjectionHead,
    View,
    attention_map,
    attention_pool,
    collapse_terms,
    cosine_map,
    symmetric_loss,
)
from models.pooling import ImagePooling, pool_positions
from models.precision import at_least_float32
from models.predictive_coding import PredictiveCodingModule
from models.training_output import TrainingOutput
from models.vgg16 import VGG16Encoder
from models.vggish import VGGishEncoder


@dataclass(frozen=True, kw_only=True)
class SSPLConfig:
    """What defines the model; stored in the checkpoint."""

    pcm: bool = True
    """align frame and sound by the predictive coding module"""
    pcm_cycles: int = 4
    """T: refinements of the predictive coding module after its initial sweep"""

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        if self.pcm_cycles < 1:
            raise ValueError(f"--pcm-cycles must be at least 1, got {self.pcm_cycles}")

    def check_frame_size(self, frame_size: int) -> None:
        """Refuses frames whose map the PCM cannot halve twice and build up again.

        Args:
            frame_size: side of the frame, pixels.

        Raises:
            ValueError: the side of the map is not 2 more than a multiple of 4.
        """
        if self.pcm and frame_size // 16 % 4 != 2:
            raise ValueError(
                f"--frame-size {frame_size} gives a map of {frame_size // 16} cells, which the "
                "predictive coding module cannot use; its sides must be 6, 10, 14, 18 …: take 96, "
                "160, 224 or 288, or --no-pcm."
            )


class SSPL(nn.Module):
    """The localiser and its training loss."""

    def __init__(self, config: SSPLConfig) -> None:
        """Builds all networks, randomly initialised; the frozen ones need released weights.

        Args:
            config: with or without the PCM.
        """
        super().__init__()
        self.config = config
        self.frame_encoder = VGG16Encoder()
        self.audio_encoder = VGGishEncoder()
        width = VGG16Encoder.embedding_size
        self.audio_projection = nn.Sequential(
            nn.Linear(VGGishEncoder.embedding_size, width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )
        self.predictive_coding = (
            PredictiveCodingModule(config.pcm_cycles, channels=width, audio_size=VGGishEncoder.embedding_size)
            if config.pcm
            else None
        )
        self.projection_head = ProjectionHead(width)
        self.prediction_head = PredictionHead()

    def frozen_encoders(self) -> dict[Literal["vgg16", "vggish"], nn.Module]:
        """The parts that keep their published weights, by name."""
        return {"vgg16": self.frame_encoder, "vggish": self.audio_encoder}

    def networks(self) -> list[nn.Module]:
        """The parts that are worth compiling."""
        parts = (self.frame_encoder, self.audio_encoder, self.predictive_coding)
        return [part for part in parts if part is not None]

    def encode_audio(self, segment_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """What localises, and what the PCM predicts, from VGGish's embeddings.

        Args:
            segment_embeddings: (B, S, 128).

        Returns:
            audio embedding u (B, 512) and audio target a (B, 128), the latter of unit norm and
            without gradient.
        """
        audio_target = F.normalize(at_least_float32(segment_embeddings).mean(dim=1), dim=1)
        projected = self.audio_projection(segment_embeddings)
        return at_least_float32(projected).mean(dim=1), audio_target

    def align(self, visual_feature_map: Tensor, audio_target: Tensor) -> Tensor:
        """VGG-16's map (B, 512, h, w) -> aligned map of the same shape, at least float32."""
        if self.predictive_coding is not None:
            visual_feature_map = self.predictive_coding(visual_feature_map, audio_target)
        return at_least_float32(visual_feature_map)

    def embed_audio(self, log_mel_segments: Tensor) -> Tensor:
        """Audio embeddings u (B, 512) for retrieval, of unit norm; no frame takes part."""
        return F.normalize(self.encode_audio(self.audio_encoder(log_mel_segments))[0], dim=1)

    def embed_frames(self, frames: Tensor, pooling: ImagePooling = "max") -> Tensor:
        """Embeddings of frames for retrieval, without the PCM: see `pool_positions`.

        Args:
            frames: (B, 3, H, W), normalised.
            pooling: of VGG-16's map.

        Raises:
            ValueError: the model has a PCM, which makes a frame's map of the frame and a sound.
        """
        if self.predictive_coding is not None:
            raise ValueError(
                "SSPL with its predictive coding module has no embedding of a frame alone: the "
                "module makes the frame's map of the frame and one sound. Retrieve sounds with "
                "sounds (--directions audio_to_audio), or take a model trained with --no-pcm."
            )
        return pool_positions(self.frame_encoder(frames), pooling)

    def visual_features(self, frames: Tensor) -> Tensor:
        """What `compare` needs of frames (B, 3, H, W): maps that no sound has touched."""
        return self.frame_encoder(frames)

    def sound_features(self, log_mel_segments: Tensor) -> Tensor:
        """What `compare` needs of sounds.

        Args:
            log_mel_segments: (B, S, 1, 96, 64), natural logarithm.

        Returns:
            (B, 640): the audio embedding u, then the PCM's target a.
        """
        return torch.cat(self.encode_audio(self.audio_encoder(log_mel_segments)), dim=1)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Similarity maps of frames with sounds; the PCM, where there is one, runs here.

        Args:
            visual: of B frames, see `visual_features`.
            sound: of B sounds, see `sound_features`.

        Returns:
            (B, h, w) in [-1, 1].
        """
        sizes = VGG16Encoder.embedding_size, VGGishEncoder.embedding_size
        audio_embedding, audio_target = sound.split(sizes, dim=1)
        aligned = self.align(visual, audio_target)
        with torch.autocast(aligned.device.type, enabled=False):
            return cosine_map(aligned, audio_embedding)

    def localise(self, frames: Tensor, log_mel_segments: Tensor) -> Tensor:
        """Similarity map of each frame with its own sound.

        Args:
            frames: (B, 3, H, W), normalised.
            log_mel_segments: (B, S, 1, 96, 64), natural logarithm.

        Returns:
            (B, h, w) in [-1, 1], h = H/16 and w = W/16.

        Raises:
            ValueError: frames and sounds are not of as many clips.
        """
        _check_same_clips(frames, log_mel_segments)
        sound = self.sound_features(log_mel_segments)
        return self.compare(self.visual_features(frames), sound)

    def process_view(self, visual_feature_map: Tensor, audio_embedding: Tensor, audio_target: Tensor) -> View:
        """From VGG-16's map of one view to its projection and prediction.

        Args:
            visual_feature_map: (B, 512, h, w).
            audio_embedding: (B, 512).
            audio_target: (B, 128), unit norm.

        Returns:
            maps, pooled feature, projection and prediction of the view.
        """
        aligned = self.align(visual_feature_map, audio_target)
        with torch.autocast(aligned.device.type, enabled=False):
            similarity = cosine_map(aligned, audio_embedding)
            attention = attention_map(similarity)
            pooled = attention_pool(aligned, attention)
        projection = self.projection_head(pooled)
        prediction = self.prediction_head(projection)
        return View(similarity, attention, pooled, at_least_float32(projection), at_least_float32(prediction))

    def encode_frozen(
        self, frames_view_1: Tensor, frames_view_2: Tensor, log_mel_segments: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All that the frozen encoders contribute to a training step; see `forward`.

        Returns:
            VGG-16's maps of both views (B, 512, h, w) and VGGish's embeddings (B, S, 128).
        """
        _check_same_clips(frames_view_1, log_mel_segments)
        _check_same_clips(frames_view_2, log_mel_segments)
        # One view after the other: together they would take twice the memory and no less time.
        first, second = self.frame_encoder(frames_view_1), self.frame_encoder(frames_view_2)
        return first, second, self.audio_encoder(log_mel_segments)

    def forward(
        self, *, frozen_features: tuple[Tensor, Tensor, Tensor] | None = None, **views: Tensor
    ) -> TrainingOutput:
        """One training step's loss.

        Args:
            frozen_features: as `encode_frozen` returns them, where they are known already.
            **views: otherwise its arguments: frames_view_1 (B, 3, H, W) normalised, frames_view_2
                of the same frames, log_mel_segments (B, S, 1, 96, 64) in natural logarithm.

        Returns:
            loss, terms that show a collapse, and the similarity maps of view 1.

        Raises:
            ValueError: views and sounds are not of as many clips, or of one clip in training.
        """
        if frozen_features is None:
            frozen_features = self.encode_frozen(**views)
        first_map, second_map, segment_embeddings = frozen_features
        if self.training and len(segment_embeddings) < 2:
            raise ValueError(
                "SSPL cannot train on a batch of one clip: its batch norms need at least two. Set "
                "--batch-size to 2 or more and drop a last batch of one."
            )
        audio_embedding, audio_target = self.encode_audio(segment_embeddings)
        first = self.process_view(first_map, audio_embedding, audio_target)
        second = self.process_view(second_map, audio_embedding, audio_target)
        return TrainingOutput(
            loss=symmetric_loss(first, second),
            terms=collapse_terms(first, second, audio_embedding),
            similarity_map=first.similarity_map.detach(),
        )

    def parameter_groups(
        self,
        audio_learning_rate: float | None,
        pcm_learning_rate: float | None,
        head_learning_rate: float | None,
        *,
        weight_decay: float,
    ) -> list[dict[str, Any]]:
        """The trained parameters, for AdamW; the PCM's rates a and b are not decayed.

        Args:
            audio_learning_rate: of the MLP after VGGish.
            pcm_learning_rate: of the predictive coding module, None without one.
            head_learning_rate: of both heads.
            weight_decay: decoupled, of all parameters but the PCM's rates.

        Returns:
            groups with name, params, lr and weight_decay, in the authors' order.
        """
        head = [*self.projection_head.parameters(), *self.prediction_head.parameters()]
        audio = [*self.audio_projection.parameters()]
        parts: list[tuple[str, list[nn.Parameter], float | None, float]] = [
            ("audio_projection", audio, audio_learning_rate, weight_decay)
        ]
        if self.predictive_coding is not None:
            rates = self.predictive_coding.rates
            of_rates = {id(rate) for rate in rates}
            weights = [p for p in self.predictive_coding.parameters() if id(p) not in of_rates]
            parts.append(("predictive_coding", weights, pcm_learning_rate, weight_decay))
            parts.append(("predictive_coding_rates", rates, pcm_learning_rate, 0.0))
        parts.append(("heads", head, head_learning_rate, weight_decay))
        names = ("name", "params", "lr", "weight_decay")
        return [dict(zip(names, part, strict=True)) for part in parts]


def _check_same_clips(frames: Tensor, log_mel_segments: Tensor) -> None:
    if len(frames) != len(log_mel_segments):
        raise ValueError(
            "frames and log_mel_segments must be of the same clips, got "
            f"{len(frames)} frames and the segments of {len(log_mel_segments)} sounds"
        )
