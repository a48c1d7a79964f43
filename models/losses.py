"""The losses of SSL-TIE as functions of similarity maps."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.similarity import region_similarity


def trimap_contrastive_logits(
    maps: Tensor,
    *,
    positive_threshold: float,
    negative_threshold: float | None,
    sharpness: float,
    temperature: float,
) -> Tensor:
    """Logits of the tri-map contrast; column 0 is the positive (SSL-TIE Eq. 2-5).

    The frame's positive region is sigmoid((s - positive_threshold) / sharpness), its hard-negative
    region sigmoid((negative_threshold - s) / sharpness); what lies between is ignored.

    Args:
        maps: (B, B, h, w), entry [i, j] is the similarity of frame i with sound j.
        positive_threshold: epsilon+, similarity.
        negative_threshold: epsilon-, similarity; None leaves the hard negatives out.
        sharpness: tau of the sigmoids, similarity.
        temperature: divisor of the logits.

    Returns:
        (B, 1 + B [+ 1]): own sound in the positive region | every sound of the batch in its own
        positive region, the clip's own masked by -inf | own sound in the hard-negative region.

    Raises:
        ValueError: the maps are not those of B frames with B sounds.
    """
    if maps.ndim != 4 or maps.shape[0] != maps.shape[1]:
        raise ValueError(f"similarity maps must be (B, B, h, w), got {tuple(maps.shape)}")
    log_positive = F.logsigmoid((maps - positive_threshold) / sharpness)
    in_positive_region = region_similarity(maps, log_positive)
    own_pair = torch.eye(len(maps), dtype=torch.bool, device=maps.device)
    columns = [
        in_positive_region.diagonal()[:, None],
        in_positive_region.masked_fill(own_pair, float("-inf")),
    ]
    if negative_threshold is not None:
        own = maps.diagonal(dim1=0, dim2=1).movedim(-1, 0)  # (B, h, w)
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
    return squared.sum() / coverage.sum().clamp_min(torch.finfo(coverage.dtype).tiny)
