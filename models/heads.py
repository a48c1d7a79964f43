"""From an aligned map to SSPL's loss: attention pooling, SimSiam's two heads and its loss."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.similarity import similarity_map

PROJECTION_SIZE = 2048
"""Length of projection z and prediction p."""


class View(NamedTuple):
    """What one view of a batch yields."""

    similarity_map: Tensor
    """(B, h, w) in [-1, 1]"""
    attention_map: Tensor
    """(B, h, w) in [0, 1]"""
    pooled_feature: Tensor
    """(B, 512)"""
    projection: Tensor
    """(B, 2048)"""
    prediction: Tensor
    """(B, 2048)"""


def _hidden(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        # The batch norm's shift stands in for a bias.
        nn.Linear(in_features, out_features, bias=False),
        nn.BatchNorm1d(out_features),
        nn.ReLU(inplace=True),
    )


class ProjectionHead(nn.Module):
    """Pooled feature (B, D) -> projection z (B, 2048), standardised over the batch in training.

    Chen, He: "Exploring Simple Siamese Representation Learning", CVPR 2021, Sec. 3.
    """

    def __init__(self, in_features: int = 512) -> None:
        """Builds three layers with torch's default initialisation.

        Args:
            in_features: D, length of the pooled feature.
        """
        super().__init__()
        self.layer1 = _hidden(in_features, PROJECTION_SIZE)
        self.layer2 = _hidden(PROJECTION_SIZE, PROJECTION_SIZE)
        self.layer3 = nn.Sequential(
            nn.Linear(PROJECTION_SIZE, PROJECTION_SIZE, bias=False),
            nn.BatchNorm1d(PROJECTION_SIZE, affine=False),
        )

    def forward(self, pooled_feature: Tensor) -> Tensor:
        """(B, D) -> (B, 2048); B must be 2 or more in training mode."""
        return self.layer3(self.layer2(self.layer1(pooled_feature)))


class PredictionHead(nn.Module):
    """Projection z of one view -> prediction p of the other view's, both (B, 2048)."""

    def __init__(self, hidden_features: int = 512) -> None:
        """Builds a bottleneck with torch's default initialisation.

        Args:
            hidden_features: width of the bottleneck.
        """
        super().__init__()
        self.layer1 = _hidden(PROJECTION_SIZE, hidden_features)
        self.layer2 = nn.Linear(hidden_features, PROJECTION_SIZE)

    def forward(self, projection: Tensor) -> Tensor:
        """(B, 2048) -> (B, 2048); B must be 2 or more in training mode."""
        return self.layer2(self.layer1(projection))


def cosine_map(visual_feature_map: Tensor, audio_embedding: Tensor) -> Tensor:
    """Cosine of each sound (B, D) with each position of its map (B, D, h, w): (B, h, w)."""
    return similarity_map(F.normalize(visual_feature_map, dim=1), F.normalize(audio_embedding))


def attention_map(similarity: Tensor) -> Tensor:
    """Similarity maps (B, h, w), each stretched to [0, 1); a constant one becomes 0."""
    lowest = similarity.amin(dim=(1, 2), keepdim=True)
    span = similarity.amax(dim=(1, 2), keepdim=True) - lowest
    return (similarity - lowest) / (span + 1e-10)


def attention_pool(visual_feature_map: Tensor, attention: Tensor) -> Tensor:
    """Sum of (B, D, h, w) over positions, weighted by (B, h, w): (B, D)."""
    return torch.einsum("bdhw,bhw->bd", visual_feature_map, attention)


def negative_cosine_similarity(prediction: Tensor, projection: Tensor) -> Tensor:
    """Mean negative cosine of (B, D) with (B, D): scalar in [-1, 1]."""
    return -F.cosine_similarity(prediction, projection, dim=1).mean()


def symmetric_loss(first: View, second: View) -> Tensor:
    """SimSiam's loss: each view's prediction meets the other's projection, held fixed."""
    forwards = negative_cosine_similarity(first.prediction, second.projection.detach())
    backwards = negative_cosine_similarity(second.prediction, first.projection.detach())
    return (forwards + backwards) / 2


@torch.no_grad()
def collapse_terms(first: View, second: View, audio_embedding: Tensor) -> dict[str, Tensor]:
    """Detached scalars that show whether the model has collapsed.

    The projections themselves do not: they leave a batch norm, which spreads whatever it gets.

    Args:
        first: view 1 of the batch.
        second: view 2 of the batch.
        audio_embedding: u (B, 512) of the batch.

    Returns:
        embedding_std, audio_std, prediction_std: how far pooled features, audio embeddings and
            predictions of unit norm differ between the clips of the batch, see `spread`: 0 when all
            are the same, 1 when they point everywhere;
        projection_rank: number of directions that the projections take, see `effective_rank`, of
            view 1;
        similarity_mean, similarity_std: mean of the similarity maps of view 1, and the mean of
            their standard deviations over positions: 0 when the maps are flat;
        attention_entropy: entropy of view 1's attention over positions, over that of a flat map:
            1 when attention is everywhere, 0 when it is at one position.
    """
    views = (first, second)
    similarity = first.similarity_map
    weights = first.attention_map.flatten(1) + 1e-10  # a constant map has no weight, but is flat
    share = weights / weights.sum(dim=1, keepdim=True)
    entropy = torch.special.entr(share).sum(dim=1).mean() / math.log(share.shape[1])
    return {
        "embedding_std": torch.stack([spread(view.pooled_feature) for view in views]).mean(),
        "audio_std": spread(audio_embedding),
        "prediction_std": torch.stack([spread(view.prediction) for view in views]).mean(),
        "projection_rank": effective_rank(first.projection),
        "similarity_mean": similarity.mean(),
        "similarity_std": similarity.std(dim=(1, 2), correction=0).mean(),
        "attention_entropy": entropy,
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


COLLAPSED_SPREAD = 0.01
"""of pooled features, audio embeddings or predictions, below which a warning is due."""
COLLAPSED_RANK = 1.5
"""of the projections, likewise."""
FLAT_STD = 1e-3
"""similarity_std below which a map shows nothing."""


def collapse_warning(terms: Mapping[str, float]) -> str | None:
    """What the logged terms say about a collapse, in words; None while all is well.

    Args:
        terms: means over some steps, by name; methods that do not report `collapse_terms` have
            nothing to warn of.
    """
    if "projection_rank" not in terms:
        return None
    advice = "Lower the learning rates, or check that the frozen encoders have their weights."
    spreads = {name: terms[name] for name in ("embedding_std", "audio_std", "prediction_std")}
    equal = [f"{name} {value:.2g}" for name, value in spreads.items() if value < COLLAPSED_SPREAD]
    if equal:
        return (
            f"All clips look nearly the same to the model ({', '.join(equal)}; 1 when they differ "
            f"in every way): it is collapsing, whatever the loss says. {advice}"
        )
    if terms["projection_rank"] < COLLAPSED_RANK:
        return (
            f"The projections vary along one line (projection_rank {terms['projection_rank']:.2g}):"
            f" the model is collapsing, whatever the loss says. {advice}"
        )
    if terms["similarity_std"] < FLAT_STD:
        return (
            f"The similarity maps are flat (similarity_std {terms['similarity_std']:.2g}): they "
            f"show no place. {advice}"
        )
    return None
