"""Contrasts of the frames and sounds of a batch, of all processes: float32 whatever the networks' precision.

The tri-map contrast of LVS (Chen et al., CVPR 2021), which SSL-TIE took over, has a frame against all sounds.
Two deliberate differences from the authors' programs, without effect where theirs work: a clip's own sound is
masked by -inf among the batch's negatives (theirs multiply its similarity by -99, so that one below 0 becomes
the clip's own strongest negative), and region means are a softmax over log-sigmoids (theirs become 0/0 once a
whole map is above 0.899 in float32).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders import similarity_maps
from utils.distributed import gather_rows
from utils.options import Options, option


@dataclass(frozen=True, kw_only=True)
class TriMapConfig(Options):
    """What is positive, what is negative, and what lies between and is ignored."""

    positive_threshold: float = 0.65  # epsilon+: similarity at which a position is half positive
    negative_threshold: float = 0.4
    """epsilon-: similarity at which a position is half hard-negative; needs --tri-map"""
    sharpness: float = option(0.03, above=0, hidden=True)  # tau of the region sigmoids, similarity
    temperature: float = option(0.07, above=0)  # divisor of the contrastive logits
    tri_map: bool = True  # leave uncertain positions out; without it the hard negatives start at epsilon+
    hard_negatives: bool = True  # contrast with the own frame's background


def refuse_crossed_thresholds(config: TriMapConfig) -> None:
    """Refuse thresholds between which no position is uncertain, with a ValueError."""
    if config.tri_map and config.negative_threshold > config.positive_threshold:
        raise ValueError(
            f"--negative-threshold ({config.negative_threshold}) must not be above "
            f"--positive-threshold ({config.positive_threshold})"
        )


def trimap_contrast(
    visual: Tensor, sounds: Tensor, config: TriMapConfig, own_offset: int = 0
) -> tuple[Tensor, Tensor]:
    """Contrast frames (B, D, h, w) with sounds (A, D), both of unit norm; frame i's own is own_offset + i.

    Returns:
        logits (B, 1 + A [+ 1]) of `trimap_logits`, and each frame's map with its own sound (B, h, w).
    """
    with torch.autocast(visual.device.type, enabled=False):
        maps = similarity_maps(visual, sounds)  # (B, A, h, w)
        return trimap_logits(maps, config, own_offset), own_maps(maps, own_offset)


def trimap_logits(maps: Tensor, config: TriMapConfig, own_offset: int = 0) -> Tensor:
    """Compute the contrast's logits of maps (B, A, h, w); column 0 is the positive (SSL-TIE Eq. 2-5).

    The positive region is sigmoid((s - epsilon+) / tau), the hard-negative one sigmoid((epsilon- - s) / tau).

    Returns:
        (B, 1 + A [+ 1]): own sound in its positive region | every sound in its own positive region, the
        clip's own masked by -inf | own sound in the hard-negative region, with hard negatives.
    """
    log_positive = F.logsigmoid((maps - config.positive_threshold) / config.sharpness)  # (B, A, h, w)
    similarity = region_mean(maps, log_positive)  # (B, A)
    sound = torch.arange(maps.shape[1], device=maps.device)
    is_own = sound == own_offset + sound[: len(maps), None]  # (B, A)
    columns = [similarity.diagonal(own_offset)[:, None], similarity.masked_fill(is_own, -torch.inf)]
    if config.hard_negatives:
        own = own_maps(maps, own_offset)  # (B, h, w)
        threshold = config.negative_threshold if config.tri_map else config.positive_threshold
        log_negative = F.logsigmoid((threshold - own) / config.sharpness)  # (B, h, w)
        columns.append(region_mean(own, log_negative)[:, None])
    return torch.cat(columns, dim=1) / config.temperature


def region_mean(maps: Tensor, log_region: Tensor) -> Tensor:
    """Mean of maps (..., h, w) over a soft region, given as the logarithm of its weights: (...).

    sum(region * map) / sum(region) is a softmax over log(region), which has a value where all weights
    underflow.
    """
    weights = torch.softmax(log_region.flatten(-2), dim=-1)  # (..., h * w)
    return (weights * maps.flatten(-2)).sum(dim=-1)


def own_maps(maps: Tensor, own_offset: int) -> Tensor:
    """Take each frame's map with its own sound: (B, A, h, w) -> (B, h, w)."""
    return maps.diagonal(own_offset, dim1=0, dim2=1).movedim(-1, 0)


def contrastive_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) with the positive in column 0 (SSL-TIE Eq. 6), nats."""
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def own_sound_loss(logits: Tensor, own_offset: int = 0) -> Tensor:
    """Cross-entropy of frames with sounds (B, A), frame i's own in column own_offset + i, nats."""
    return F.cross_entropy(logits, own_offset + torch.arange(len(logits), device=logits.device))


def both_ways_losses(logits: Tensor, own_offset: int = 0) -> tuple[Tensor, Tensor]:
    """Cross-entropies of own frames with all sounds (B, A): of rows, and of the own sounds' columns, nats.

    The rows of all processes are gathered: A numbers a frame, not its maps.
    """
    everything, _ = gather_rows(logits)  # (A, A)
    columns = everything[:, own_offset : own_offset + len(logits)].T  # (B, A)
    return own_sound_loss(logits, own_offset), own_sound_loss(columns, own_offset)


def peak_logits(visual: Tensor, sounds: Tensor, temperature: float) -> Tensor:
    """Score frames (B, D, h, w) with sounds (A, D), both of unit norm, by their maps' maxima: (B, A)."""
    with torch.autocast(visual.device.type, enabled=False):
        return similarity_maps(visual, sounds).amax(dim=(2, 3)) / temperature


def what_and_where_logits(visual: Tensor, sounds: Tensor, temperature: float) -> Tensor:
    """Score frames (B, 2, D, h, w) with sounds (A, 2, D), unit norm, by SLAVC's two maps S1 and S2: (B, A).

    log sum_x softmax_sounds(S1 / tau)(x) softmax_positions(S2 / tau)(x): which sound a position x has, and
    where a sound is.
    """
    with torch.autocast(visual.device.type, enabled=False):
        pairs = zip(visual.unbind(dim=1), sounds.unbind(dim=1), strict=True)
        first, second = (similarity_maps(*pair).flatten(2) / temperature for pair in pairs)  # (B, A, h * w)
        return torch.logsumexp(first.log_softmax(dim=1) + second.log_softmax(dim=2), dim=2)
