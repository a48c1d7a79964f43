"""The losses of SSL-TIE as functions of similarity maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.similarity import own_maps, region_similarity
from utils.distributed import average


def trimap_contrastive_logits(
    maps: Tensor,
    *,
    positive_threshold: float,
    negative_threshold: float | None,
    sharpness: float,
    temperature: float,
    first_own: int | None = None,
) -> Tensor:
    """Logits of the tri-map contrast; column 0 is the positive (SSL-TIE Eq. 2-5).

    The frame's positive region is sigmoid((s - positive_threshold) / sharpness), its hard-negative
    region sigmoid((negative_threshold - s) / sharpness); what lies between is ignored.

    Args:
        maps: (B, A, h, w), entry [i, j] is the similarity of frame i with sound j.
        positive_threshold: epsilon+, similarity.
        negative_threshold: epsilon-, similarity; None leaves the hard negatives out.
        sharpness: tau of the sigmoids, similarity.
        temperature: divisor of the logits.
        first_own: index of frame 0's own sound, where the frames are some of more clips; frame i's
            is the i-th after it. None: frames and sounds are of the same clips, A = B.

    Returns:
        (B, 1 + A [+ 1]): own sound in the positive region | every sound in its own positive region,
        the clip's own masked by -inf | own sound in the hard-negative region.

    Raises:
        ValueError: the maps are not those of B frames with their sounds.
    """
    if first_own is None:
        if maps.ndim != 4 or maps.shape[0] != maps.shape[1]:
            raise ValueError(f"similarity maps must be (B, B, h, w), got {tuple(maps.shape)}")
        first_own = 0
    elif maps.ndim != 4 or not 0 <= first_own <= maps.shape[1] - maps.shape[0]:
        raise ValueError(
            "similarity maps must be (B, A, h, w) with the own sounds of all B frames, from "
            f"{first_own} on, among the A sounds; got {tuple(maps.shape)}"
        )
    log_positive = F.logsigmoid((maps - positive_threshold) / sharpness)
    in_positive_region = region_similarity(maps, log_positive)
    sounds = torch.arange(maps.shape[1], device=maps.device)
    own_pair = sounds == first_own + sounds[: len(maps), None]
    columns = [
        in_positive_region.diagonal(first_own)[:, None],
        in_positive_region.masked_fill(own_pair, float("-inf")),
    ]
    if negative_threshold is not None:
        own = own_maps(maps, first_own)
        log_negative = F.logsigmoid((negative_threshold - own) / sharpness)
        columns.append(region_similarity(own, log_negative)[:, None])
    return torch.cat(columns, dim=1) / temperature


def contrastive_loss(logits: Tensor) -> Tensor:
    """Cross-entropy with the positive in column 0 (SSL-TIE Eq. 6).

    Args:
        logits: (B, K).

    Returns:
        scalar, nats.
    """
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def equivariance_loss(similarity_map: Tensor, target: Tensor, coverage: Tensor) -> Tensor:
    """Mean squared difference of two maps over the covered cells (SSL-TIE Eq. 8).

    Among several processes it is divided by their mean coverage, so that the mean of their losses
    is that of all maps together.

    Args:
        similarity_map: (B, h, w), of the transformed frames.
        target: (B, h, w), the transformed map of the plain frames.
        coverage: (B, h, w) in [0, 1], weight of each cell; all ones scores every cell.

    Returns:
        scalar; 0 when no cell is covered.

    Raises:
        ValueError: the shapes differ.
    """
    if not similarity_map.shape == target.shape == coverage.shape:
        raise ValueError(
            "similarity_map, target and coverage must have one shape, got "
            f"{tuple(similarity_map.shape)}, {tuple(target.shape)}, {tuple(coverage.shape)}"
        )
    squared = coverage * (similarity_map - target).square()
    covered = average(coverage.sum())
    return squared.sum() / covered.clamp_min(torch.finfo(coverage.dtype).tiny)
