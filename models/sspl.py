"""SSPL: sound localisation without negatives, by self-supervised predictive learning.

Song, Wang, Fan, Tan, Zhang: "Self-Supervised Predictive Learning: A Negative-Free Method for Sound Source
Localization in Visual Scenes", CVPR 2022. A training step on two views of a frame and the three log-mel
segments of its sound, where F is VGG-16's map and e_i VGGish's embeddings:

    u   = mean_i g(e_i)                                audio embedding, g an MLP
    V   = PCM(F, a),  a = mean_i e_i / |mean_i e_i|    aligned map; V = F without the PCM
    S   = cos(V(y, x), u)                              similarity map
    A   = (S - min S) / (max S - min S)                attention map
    f   = sum_{y, x} A(y, x) V(y, x)                   pooled feature
    z   = projection(f),  p = prediction(z)
    loss = (D(p_1, sg z_2) + D(p_2, sg z_1)) / 2,      D = mean negative cosine, sg stop-gradient

VGG-16 and VGGish are frozen; g, the PCM and both heads are trained. What looks accidental but is kept, since
weights depend on it: conv5_3 is taken before its ReLU, f is a sum of unnormalised vectors, the mean of u
comes after g, and each view passes batch norms on its own.

Deliberate differences from the authors' program:

1. This module holds model and loss and is itself what a data-parallel wrapper calls. Theirs calls the
   networks inside the wrapper, so that gradients are never averaged over processes.
2. VGGish takes all segments of all clips in one call, and no graph is kept for frozen networks.
3. The flags for training VGG-16 are left out: they never reach the optimiser.
4. A batch of one clip can be localised; theirs fails on it.
5. The similarity map of one view is enough to localise; theirs computes two equal ones and a loss.
6. The attention and the loss are computed in float32 whatever the precision of the networks.
7. Terms that show a collapse are reported beside the loss, which does not show it.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.audio import SegmentConfig
from datasets.augmentation import CUT_OUT_MARGIN, CUT_OUT_NUMBERS, cut_out, draw_for_clips
from datasets.clips import Batch
from datasets.frames import FrameConfig, as_float, normalise
from models.encoders import (
    ImagePooling,
    VGG16Encoder,
    VGGishEncoder,
    at_least_float32,
    pool_positions,
    similarity_map,
)
from models.method import Method, TrainingOutput, Views
from models.predictive_coding import PredictiveCodingModule
from utils.options import Options, option

logger = logging.getLogger(__name__)

PROJECTION_SIZE = 2048  # length of projection z and prediction p
COLLAPSE = {
    "embedding_std": (0.01, "all frames look nearly the same"),
    "audio_std": (0.01, "all sounds sound nearly the same"),
    "prediction_std": (0.01, "all predictions are nearly the same"),
    "projection_rank": (1.5, "the projections vary along one line"),
    "similarity_std": (1e-3, "the similarity maps are flat"),
}
"""Terms below which a warning is due, and what they say"""


@dataclass(frozen=True, kw_only=True)
class SSPLConfig(Options):
    """What defines the model; stored in the checkpoint."""

    pcm: bool = True  # align frame and sound by the predictive coding module
    pcm_cycles: int = option(4, at_least=1)
    """T: refinements of the predictive coding module after its initial sweep"""


@dataclass(frozen=True, kw_only=True)
class FrozenOptions:
    """Where the frozen encoders get their weights."""

    vgg16: Path | None = None
    """torchvision's vgg16-397923af.pth; none: looked up by name in ckpts/ and torch hub's folder"""
    vggish: Path | None = None  # torchvggish's vggish-10086976.pth; none: looked up by name likewise
    random_init: bool = False
    """leave the frozen encoders at random weights: for trials only, no published setting"""

    def __post_init__(self) -> None:
        if self.random_init and (self.vgg16 or self.vggish):
            raise ValueError("--random-init and --vgg16 or --vggish exclude each other.")


@dataclass(frozen=True, kw_only=True)
class SSPLRecipe(Options):
    """How SSPL is optimised: AdamW, each trained part at its own constant rate.

    The authors chose these values for 10k Flickr clips and give none for larger sets.
    """

    epochs: int | None = option(None, at_least=1)
    """passes over the training set; none: 20 with the PCM, 100 without"""
    batch_size: int = option(256, at_least=2)
    """clips a step, of all processes; the batch norms of the heads see them together"""
    audio_learning_rate: float | None = option(None, above=0)
    """of the MLP after VGGish; none: 2e-5 with the PCM, 5e-4 without"""
    pcm_learning_rate: float | None = option(None, above=0)  # of the predictive coding module; none: 2e-5
    head_learning_rate: float | None = option(None, above=0)
    """of projection and prediction head; none: 5e-5 with the PCM, 2e-3 without"""
    weight_decay: float = option(1e-4, at_least=0)  # decoupled; the PCM's rates a and b are exempt

    def completed(self, config: SSPLConfig) -> "SSPLRecipe":
        """Fill in the authors' values for the variant where none was given."""
        if self.pcm_learning_rate is not None and not config.pcm:
            raise ValueError("--pcm-learning-rate has nothing to set with --no-pcm.")
        epochs, audio, head = (20, 2e-5, 5e-5) if config.pcm else (100, 5e-4, 2e-3)
        return replace(
            self,
            epochs=self.epochs or epochs,
            audio_learning_rate=self.audio_learning_rate or audio,
            pcm_learning_rate=(self.pcm_learning_rate or 2e-5) if config.pcm else None,
            head_learning_rate=self.head_learning_rate or head,
        )


class View(NamedTuple):
    """What one view of a batch yields."""

    similarity_map: Tensor  # (B, h, w) in [-1, 1]
    attention_map: Tensor  # (B, h, w) in [0, 1]
    pooled_feature: Tensor  # (B, 512)
    projection: Tensor  # (B, 2048)
    prediction: Tensor  # (B, 2048)


class SSPL(Method):
    """The localiser and its training loss."""

    margin = CUT_OUT_MARGIN

    def __init__(
        self, config: SSPLConfig, *, audio: SegmentConfig | None = None, frame: FrameConfig | None = None
    ) -> None:
        """Build all networks, randomly initialised; the frozen ones need published weights."""
        super().__init__(audio or SegmentConfig(), frame or FrameConfig())
        self.config = config
        self.frame_encoder = VGG16Encoder()
        self.audio_encoder = VGGishEncoder()
        width, audio_size = VGG16Encoder.embedding_size, VGGishEncoder.embedding_size
        layers = nn.Linear(audio_size, width), nn.ReLU(inplace=True), nn.Linear(width, width)
        self.audio_projection = nn.Sequential(*layers)
        pcm = partial(PredictiveCodingModule, config.pcm_cycles, channels=width, audio_size=audio_size)
        self.predictive_coding = pcm() if config.pcm else None
        self.projection_head = projection_head(width)
        self.prediction_head = prediction_head()

    # ------------------------------------------------------------------------------------ training views

    @torch.no_grad()
    def augment(self, batch: Batch, seed: int, *, first: int = 0, global_size: int | None = None) -> Views:
        """Make the arguments of `forward` of a batch: see `Method`."""
        numbers = draw_for_clips(seed, len(batch), 2 * CUT_OUT_NUMBERS, first=first, total=global_size)
        cut = partial(cut_out, batch.frames, batch.picture_sizes, self.frame.frame_size)  # of (B, 3, E, E)
        first_view, second_view = (normalise(as_float(cut(part))) for part in numbers.chunk(2, dim=1))
        return {
            "frames": first_view,  # (B, 3, S, S)
            "second_frames": second_view,  # (B, 3, S, S)
            "log_mel_segments": self.front_end(batch.waveforms),  # (B, segments, 1, 96, 64)
        }

    # ---------------------------------------------------------------------------------- the training step

    def forward(
        self,
        *,
        frames: Tensor,  # (B, 3, H, W), normalised
        second_frames: Tensor,  # another view of each
        log_mel_segments: Tensor,  # (B, S, 1, 96, 64), natural logarithm
    ) -> TrainingOutput:
        """Compute a training step's loss, terms that show a collapse, and the similarity maps of `frames`."""
        # One view after the other: together they would take twice the memory and no less time.
        first_map, second_map = self.frame_encoder(frames), self.frame_encoder(second_frames)
        segment_embeddings = self.audio_encoder(log_mel_segments)  # (B, S, 128)
        audio_embedding, audio_target = self.encode_audio(segment_embeddings)  # (B, 512), (B, 128)
        first = self.process_view(first_map, audio_embedding, audio_target)
        second = self.process_view(second_map, audio_embedding, audio_target)
        terms = collapse_terms(first, second, audio_embedding)
        return TrainingOutput(symmetric_loss(first, second), terms, first.similarity_map.detach())

    def encode_audio(self, segment_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Make u (B, 512) and a (B, 128, unit norm, without gradient) of VGGish's embeddings (B, S, 128)."""
        audio_target = F.normalize(at_least_float32(segment_embeddings).mean(dim=1), dim=1)  # (B, 128)
        projected = self.audio_projection(segment_embeddings)  # (B, S, 512)
        return at_least_float32(projected).mean(dim=1), audio_target

    def process_view(self, visual_feature_map: Tensor, audio_embedding: Tensor, audio_target: Tensor) -> View:
        """Go from VGG-16's map of one view (B, 512, h, w) to its projection and prediction."""
        aligned = self.align(visual_feature_map, audio_target)  # (B, 512, h, w)
        with torch.autocast(aligned.device.type, enabled=False):
            similarity = cosine_map(aligned, audio_embedding)  # (B, h, w)
            attention = attention_map(similarity)  # (B, h, w)
            pooled = torch.einsum("bdhw,bhw->bd", aligned, attention)  # (B, 512)
        projection = self.projection_head(pooled)  # (B, 2048)
        prediction = self.prediction_head(projection)  # (B, 2048)
        return View(similarity, attention, pooled, at_least_float32(projection), at_least_float32(prediction))

    def align(self, visual_feature_map: Tensor, audio_target: Tensor) -> Tensor:
        """Align VGG-16's map (B, 512, h, w) with the sound: the same shape, at least float32."""
        if self.predictive_coding is not None:
            visual_feature_map = self.predictive_coding(visual_feature_map, audio_target)
        return at_least_float32(visual_feature_map)

    # ----------------------------------------------------------------------- localisation and retrieval

    def visual_features(self, frames: Tensor) -> Tensor:
        """Encode normalised frames (B, 3, H, W) -> (B, 512, H/16, W/16), maps that no sound has touched."""
        return self.frame_encoder(frames)

    def sound_features(self, log_mel_segments: Tensor) -> Tensor:
        """Encode sounds: (B, S, 1, 96, 64), natural logarithm -> (B, 640), u and then the PCM's target a."""
        return torch.cat(self.encode_audio(self.audio_encoder(log_mel_segments)), dim=1)

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Compare features of B frames with those of as many sounds: similarity maps (B, h, w) in [-1, 1].

        The PCM, where there is one, runs here.
        """
        sizes = [VGG16Encoder.embedding_size, VGGishEncoder.embedding_size]
        audio_embedding, audio_target = sound.split(sizes, dim=1)  # (B, 512), (B, 128)
        aligned = self.align(visual, audio_target)  # (B, 512, h, w)
        with torch.autocast(aligned.device.type, enabled=False):
            return cosine_map(aligned, audio_embedding)

    def embed_audio(self, log_mel_segments: Tensor) -> Tensor:
        """Embed sounds for retrieval: u (B, 512), of unit norm; no frame takes part."""
        return F.normalize(self.encode_audio(self.audio_encoder(log_mel_segments))[0], dim=1)

    def embed_frames(self, frames: Tensor, pooling: ImagePooling = "max") -> Tensor:
        """Embed frames (B, 3, H, W) for retrieval, without the PCM: see `pool_positions`."""
        if self.predictive_coding is not None:
            raise ValueError(
                "SSPL with its predictive coding module has no embedding of a frame alone: the "
                "module makes the frame's map of the frame and one sound. Retrieve sounds with "
                "sounds (--directions audio_to_audio), or take a model trained with --no-pcm."
            )
        return pool_positions(self.frame_encoder(frames), pooling)

    # ------------------------------------------------------------------------------- options of main.py

    @classmethod
    def check_options(cls, options: Any) -> None:  # noqa: ANN401
        """Fill in the authors' recipe for the variant; refuse frames that the PCM cannot use."""
        if options.start.start == "imagenet":
            raise ValueError("SSPL's frozen VGG-16 always is ImageNet's: leave out --start imagenet.")
        if options.start.start != "scratch" and options.frozen != FrozenOptions():
            raise ValueError("--start FILE brings the encoders: leave out --vgg16, --vggish, --random-init.")
        options.optimisation = options.optimisation.completed(options.model)
        cells = options.frame.frame_size // 16
        if options.model.pcm and cells % 4 != 2:  # it halves the map twice and builds it up again
            raise ValueError(
                f"--frame-size {options.frame.frame_size} gives a map of {cells} cells, which the "
                "predictive coding module cannot use; its sides must be 6, 10, 14, 18 …: take 96, "
                "160, 224 or 288, or --no-pcm."
            )

    def pretrained(self, options: Any) -> dict[str, tuple[nn.Module, Path | None]]:  # noqa: ANN401
        """Name the frozen encoders: see `Method`."""
        frozen = options.frozen
        if frozen.random_init:
            logger.warning("The frozen encoders keep random weights (--random-init).")
            return {}
        return {"vgg16": (self.frame_encoder, frozen.vgg16), "vggish": (self.audio_encoder, frozen.vggish)}

    def build_optimizer(self, recipe: SSPLRecipe) -> torch.optim.Optimizer:
        """AdamW over the trained parts, in the authors' order; the PCM's rates a and b are not decayed."""
        audio, pcm = [*self.audio_projection.parameters()], self.predictive_coding
        heads = [*self.projection_head.parameters(), *self.prediction_head.parameters()]
        groups: list[dict[str, Any]] = [
            {"name": "audio_projection", "params": audio, "lr": recipe.audio_learning_rate}
        ]
        if pcm is not None:
            rate, rates = recipe.pcm_learning_rate, [*pcm.correction_rates, *pcm.prediction_rates]
            weights = [weight for name, weight in pcm.named_parameters() if "_rates." not in name]
            groups += [
                {"name": "predictive_coding", "params": weights, "lr": rate},
                {"name": "predictive_coding_rates", "params": rates, "lr": rate, "weight_decay": 0.0},
            ]
        groups.append({"name": "heads", "params": heads, "lr": recipe.head_learning_rate})
        return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)

    def diagnose(self, terms: Mapping[str, float]) -> str | None:
        """Say which of `collapse_terms`, means of some steps, tell of a collapse; None while all is well."""
        low = {name: words for name, (bound, words) in COLLAPSE.items() if terms[name] < bound}
        findings = [f"{words} ({name} {terms[name]:.2g})" for name, words in low.items()]
        if not findings:
            return None
        return (
            f"The model is collapsing, whatever the loss says: {'; '.join(findings)}. Lower the learning "
            "rates, or check that the frozen encoders have their weights."
        )


# ------------------------------------------------------------------------------------------- SimSiam's heads


def _hidden(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, out_features, bias=False),  # the batch norm's shift stands in for a bias
        nn.BatchNorm1d(out_features),
        nn.ReLU(inplace=True),
    )


def projection_head(in_features: int) -> nn.Sequential:
    """Pooled feature (B, D) -> projection z (B, 2048), standardised over the batch in training.

    Chen, He: "Exploring Simple Siamese Representation Learning", CVPR 2021, Sec. 3.
    """
    size = PROJECTION_SIZE
    first, second = _hidden(in_features, size), _hidden(size, size)
    last = nn.Sequential(nn.Linear(size, size, bias=False), nn.BatchNorm1d(size, affine=False))
    return nn.Sequential(OrderedDict(layer1=first, layer2=second, layer3=last))


def prediction_head() -> nn.Sequential:
    """Projection z of one view -> prediction p of the other view's, both (B, 2048)."""
    hidden, last = _hidden(PROJECTION_SIZE, 512), nn.Linear(512, PROJECTION_SIZE)
    return nn.Sequential(OrderedDict(layer1=hidden, layer2=last))


# ---------------------------------------------------------------------------------------- attention and loss


def cosine_map(visual_feature_map: Tensor, audio_embedding: Tensor) -> Tensor:
    """Cosine of each sound (B, D) with each position of its map (B, D, h, w): (B, h, w)."""
    return similarity_map(F.normalize(visual_feature_map, dim=1), F.normalize(audio_embedding))


def attention_map(similarity: Tensor) -> Tensor:
    """Stretch each similarity map (B, h, w) to [0, 1); a constant one becomes 0."""
    lowest = similarity.amin(dim=(1, 2), keepdim=True)
    span = similarity.amax(dim=(1, 2), keepdim=True) - lowest
    return (similarity - lowest) / (span + 1e-10)


def symmetric_loss(first: View, second: View) -> Tensor:
    """SimSiam's loss: each view's prediction meets the other's projection, held fixed; in [-1, 1]."""
    forwards = -F.cosine_similarity(first.prediction, second.projection.detach(), dim=1).mean()
    backwards = -F.cosine_similarity(second.prediction, first.projection.detach(), dim=1).mean()
    return (forwards + backwards) / 2


@torch.no_grad()
def collapse_terms(first: View, second: View, audio_embedding: Tensor) -> dict[str, Tensor]:
    """Compute detached scalars that show whether the model has collapsed.

    The projections themselves do not: they leave a batch norm, which spreads whatever it gets.
    """
    similarity = first.similarity_map
    weights = first.attention_map.flatten(1) + 1e-10  # (B, h * w); a constant map has no weight, but is flat
    share = weights / weights.sum(dim=1, keepdim=True)
    entropy = torch.special.entr(share).sum(dim=1).mean() / math.log(share.shape[1])
    return {
        # How far the clips of the batch differ: 0 when all are equal, at most 1.
        "embedding_std": torch.stack([spread(view.pooled_feature) for view in (first, second)]).mean(),
        "audio_std": spread(audio_embedding),
        "prediction_std": torch.stack([spread(view.prediction) for view in (first, second)]).mean(),
        "projection_rank": effective_rank(first.projection),
        "similarity_mean": similarity.mean(),
        "similarity_std": similarity.std(dim=(1, 2), correction=0).mean(),  # 0 when the maps are flat
        "attention_entropy": entropy,  # 1 when attention is everywhere, 0 when it is at one position
    }


def spread(embeddings: Tensor) -> Tensor:
    """Root mean square distance of unit-norm (B, D) from their mean: 0 for equal ones, at most 1.

    It is the standard deviation over the batch of Chen and He's Fig. 2, times sqrt(D).
    """
    return F.normalize(embeddings.float()).var(dim=0, correction=0).sum().sqrt()


def effective_rank(embeddings: Tensor) -> Tensor:
    """Number of directions in which (B, D) vary: tr(C)^2 / tr(C^2) of their covariance C."""
    centred = embeddings.float() - embeddings.float().mean(dim=0)
    gram = centred @ centred.T  # (B, B): the same traces at less cost
    return gram.trace() ** 2 / gram.square().sum().clamp_min(1e-30)
