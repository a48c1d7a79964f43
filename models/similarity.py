"""Cosine similarity between sounds and picture positions, and the soft regions cut from it."""

import torch
from torch import Tensor


def similarity_map(visual_feature_map: Tensor, audio_embedding: Tensor) -> Tensor:
    """Cosine of each clip's sound with each position of its own frame.

    Args:
        visual_feature_map: (B, D, h, w), unit norm along D.
        audio_embedding: (B, D), unit norm.

    Returns:
        (B, h, w) in [-1, 1].
    """
    return torch.einsum("bdhw,bd->bhw", visual_feature_map, audio_embedding)


def similarity_maps(visual_feature_map: Tensor, audio_embedding: Tensor) -> Tensor:
    """Cosine of every sound with every position of every frame.

    Args:
        visual_feature_map: (B, D, h, w), unit norm along D.
        audio_embedding: (A, D), unit norm.

    Returns:
        (B, A, h, w) in [-1, 1]; entry [i, j] is frame i with sound j.
    """
    return torch.einsum("bdhw,ad->bahw", visual_feature_map, audio_embedding)


def own_maps(maps: Tensor, first_own: int = 0) -> Tensor:
    """Of maps (B, A, h, w), those of each frame i with its own sound first_own + i: (B, h, w)."""
    return maps.diagonal(first_own, dim1=0, dim2=1).movedim(-1, 0)


def region_similarity(maps: Tensor, log_region: Tensor) -> Tensor:
    """Mean similarity over a soft region: sum(region * map) / sum(region).

    The quotient is a softmax over log(region), so a region whose weights all underflow still has
    a mean instead of 0/0.

    Args:
        maps: (..., h, w).
        log_region: (..., h, w), logarithm of the region's weights, at most 0.

    Returns:
        (...), between the smallest and the largest value of each map.
    """
    weights = torch.softmax(log_region.flatten(-2), dim=-1)
    return (weights * maps.flatten(-2)).sum(dim=-1)
