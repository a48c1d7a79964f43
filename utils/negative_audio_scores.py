"""What a model makes of sounds that nothing in the frame makes: the numbers of negative audio.

With S the up-sampled similarity map and t one threshold for all clips of a data set:

    pIA     = share of pixels with S > t                   on negatives 0 is right
    AUC_N   = trapezoid over x = 0, .05 ... 1 of the share of maps with pIA <= x
    cIoU_U  = mean consensus IoU of S > t over the clips with their own sounds
    AUC_U   = area under the success curve of the same masks
    F_LOC   = harmonic mean of cIoU_U and 100 - pIA, over the kinds of negatives
    F_AUC   = harmonic mean of AUC_U and AUC_N, over the kinds of negatives

Juanola et al., arXiv 2410.01020.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from utils.distributed import gather_objects
from utils.evaluation.baselines import centre_disc
from utils.evaluation.metrics import SUCCESS_THRESHOLDS, TruthMaps, consensus_iou, pointing_hits
from utils.evaluation.protocols import PROTOCOLS, Upsampling, predict, upsample_maps
from utils.evaluation.statistics import clip_values
from utils.negative_audio import NEGATIVES, OWN, SimilarityMaps

UNIVERSAL_QUANTILE = 0.75
CHUNK_CLIPS = 8
"""clips whose up-sampled maps are there at once: 35 MB for 10 seeds and 224 pixels"""
MEDIAN_RULE = PROTOCOLS["vssl_eval"]
"""each map's upper median, by which the right sound is compared with a wrong one"""
EXTREMES = ("minimum", "median", "maximum")
PAIRS = tuple(combinations((OWN, *NEGATIVES), 2))
DISC = "centre disc (blind)"
DEAF = "own map for every sound (deaf)"

ClipArrays = dict[str, NDArray[np.float64]]
"""by name; the first axis is that of the clips, the second that of the draws (1 or R)"""


@dataclass(frozen=True)
class PublishedThresholds:
    """What the authors' program has for a model, in place of what it would compute."""

    maximum: float
    """of their list's middle, which lies below the third quartile of the maxima"""
    raised: float
    """1.1 times that"""
    third_quartile: float


PUBLISHED_THRESHOLDS = {
    "ez_vsl": PublishedThresholds(0.6041, 0.6645, 0.6382),
    "slavc": PublishedThresholds(0.5201, 0.5721, 0.5450),
    "fnac": PublishedThresholds(0.5311, 0.5842, 0.5538),
    "lvs": PublishedThresholds(0.5527, 0.6080, 0.6077),
    "ssl_tie": PublishedThresholds(0.2641, 0.2906, 0.3338),
    "ssl_align": PublishedThresholds(0.2660, 0.2926, 0.3175),
}


@dataclass(frozen=True)
class Scoring:
    """How maps become numbers."""

    half_cosine: bool
    """similarity is (cosine + 1) / 2, else the cosine"""
    published: PublishedThresholds | None = None
    """as the authors' program does it, errors included; None: as it should be"""

    @property
    def similarity(self) -> str:
        """The scale of thresholds, in words."""
        return "(cosine + 1) / 2" if self.half_cosine else "cosine"

    def upsampling(self, kind: str) -> Upsampling:
        """Of the maps with a kind of sound; the authors' program has two ways."""
        if self.published is not None and kind != OWN:
            return "cv2_linear"
        return MEDIAN_RULE.upsampling

    def scores(self, maps: Tensor, kind: str, map_size: int) -> Tensor:
        """Cosines (B, K, h, w) -> similarities (B, K, M, M)."""
        scaled = (maps + 1) / 2 if self.half_cosine else maps
        upsampled = upsample_maps(scaled.flatten(0, 1), self.upsampling(kind), map_size)
        return upsampled.unflatten(0, maps.shape[:2])


def quiet_areas(areas: ArrayLike) -> NDArray[np.float64]:
    """What each map adds to AUC_N, whose mean over maps is AUC_N.

    Args:
        areas: (...) pIA in [0, 1].

    Returns:
        (...) in [0, 1].
    """
    reached = np.asarray(areas, dtype=np.float64)[..., None] <= SUCCESS_THRESHOLDS
    return np.trapezoid(reached.astype(np.float64), SUCCESS_THRESHOLDS, axis=-1)


def harmonic_mean(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """2 a b / (a + b) of numbers from 0; 0 where both are 0."""
    one, other = np.broadcast_arrays(
        np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    )
    total = one + other
    return np.divide(2 * one * other, total, out=np.zeros_like(total), where=total > 0)


def compare_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How large masks are, and how much those of two kinds have in common.

    Args:
        masks: by kind, (B, 1 or R, M, M) bool; one mask is compared with each of R.

    Returns:
        float64 in [0, 1]: `area:<kind>` (B, 1 or R) share of predicted pixels, pIA, and
        `iou:<kind>~<kind>` (B, 1 or R) of each of PAIRS, 1 where both masks are empty.
    """
    flat = torch.cat(list(masks.values()), dim=1).flatten(-2).float()
    shared = (flat @ flat.mT).double()  # numbers of pixels, which float32 adds up exactly
    counts = shared.diagonal(dim1=1, dim2=2)
    sizes = [of_kind.shape[1] for of_kind in masks.values()]
    places = dict(zip(masks, torch.arange(sum(sizes)).split(sizes), strict=True))
    found = {f"area:{kind}": counts[:, at] / flat.shape[-1] for kind, at in places.items()}
    for one, other in PAIRS:
        first, second = torch.broadcast_tensors(places[one], places[other])
        union = counts[:, first] + counts[:, second] - shared[:, first, second]
        iou = shared[:, first, second] / union.clamp_min(1)
        found[f"iou:{one}~{other}"] = torch.where(union == 0, 1.0, iou)
    return found


def universal_threshold(maxima: Mapping[str, NDArray[np.floating]]) -> float:
    """The third quartile of the negatives' highest similarities, a float32 number.

    Each kind counts the same: silence, which no seed changes, as often as there are seeds. The
    quantile is numpy's linear one.

    Args:
        maxima: (N, 1) or (N, R) for each of NEGATIVES.
    """
    num_draws = max(maxima[kind].shape[1] for kind in NEGATIVES)
    same = [np.broadcast_to(maxima[k], (len(maxima[k]), num_draws)).ravel() for k in NEGATIVES]
    pooled = np.concatenate(same).astype(np.float64)
    return float(np.float32(np.quantile(pooled, UNIVERSAL_QUANTILE)))


def _chunks(
    maps: SimilarityMaps, scoring: Scoring, device: torch.device
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Which clips, and their similarities (B, K, M, M) by kind."""
    for start in range(0, len(maps.clip_ids), CHUNK_CLIPS):
        chosen = slice(start, start + CHUNK_CLIPS)
        yield (
            chosen,
            {
                kind: scoring.scores(of_kind[chosen].to(device), kind, maps.map_size)
                for kind, of_kind in maps.maps.items()
            },
        )


def gather_arrays(parts: Sequence[ClipArrays]) -> ClipArrays:
    """Arrays of consecutive clips -> those of all clips of all processes, in order."""
    own = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    there = [part for part in gather_objects([own]) if part]
    return {name: np.concatenate([part[name] for part in there]) for name in there[0]}


def find_extremes(maps: SimilarityMaps, scoring: Scoring, device: torch.device) -> ClipArrays:
    """Lowest, middle and highest similarity of every map of all processes.

    Args:
        maps: of this process's clips.
        scoring: scale and up-sampling.
        device: to compute on.

    Returns:
        (N, 1 or R, 3) by kind, in the order of EXTREMES; of an even number of pixels the middle is
        the lower one.
    """
    parts = []
    for _, scores in _chunks(maps, scoring, device):
        flat = {kind: similarity.flatten(-2) for kind, similarity in scores.items()}
        found = {
            kind: torch.stack([s.amin(-1), s.median(-1).values, s.amax(-1)], dim=-1)
            for kind, s in flat.items()
        }
        parts.append({kind: extremes.double().cpu().numpy() for kind, extremes in found.items()})
    return gather_arrays(parts)


def score_maps(maps: SimilarityMaps, scoring: Scoring, threshold: float, device: torch.device) -> ClipArrays:
    """Scores of every map of all processes under one threshold.

    Args:
        maps: of this process's clips.
        scoring: scale and up-sampling.
        threshold: on the similarity; a map predicts what lies above.
        device: to compute on.

    Returns:
        each (N, 1 or R): `area:<kind>` pIA in [0, 1], `iou:<kind>~<kind>` of two masks,
        `ciou:own` and `ciou:<DISC>` consensus IoU of S > t and of a disc; under the median rule
        `ciou_median:<kind>` and `pointing:<kind>` with the own and the off-screen sound; `empty`
        where nothing is annotated. As published also `ciou_list` (N, 5): what the authors' program
        puts into its list.
    """
    disc = centre_disc(maps.map_size)[None].to(device)
    parts = []
    for chosen, scores in _chunks(maps, scoring, device):
        masks = {kind: similarity > threshold for kind, similarity in scores.items()}
        truth = TruthMaps(torch.from_numpy(maps.truth(chosen)).to(device))
        found = compare_masks(masks)
        found["empty"] = (truth.num_annotated == 0)[:, None]
        found["ciou:own"] = consensus_iou(masks[OWN][:, 0], truth)[:, None]
        found[f"ciou:{DISC}"] = consensus_iou(disc, truth)[:, None]
        for kind in (OWN, "off_screen"):
            cious, hits = _median_scores(maps.maps[kind][chosen].to(device), truth)
            found |= {f"ciou_median:{kind}": cious, f"pointing:{kind}": hits}
        if scoring.published is not None:
            levels = (0.5, scoring.published.maximum, scoring.published.raised, threshold)
            fixed = [consensus_iou(scores[OWN][:, 0] > level, truth) for level in levels]
            listed = [found["ciou_median:own"][:, 0], *fixed]
            found["ciou_list"] = torch.stack(listed, dim=1)
        parts.append({name: values.double().cpu().numpy() for name, values in found.items()})
    return gather_arrays(parts)


def _median_scores(maps: Tensor, truth: TruthMaps) -> tuple[Tensor, Tensor]:
    """Consensus IoU and hits (B, K) of maps (B, K, h, w) under the median rule."""
    predictions = [predict(of_draw, [MEDIAN_RULE])[0] for of_draw in maps.unbind(dim=1)]
    cious = [consensus_iou(prediction.masks, truth) for prediction in predictions]
    hits = [pointing_hits(prediction.localisation_maps, truth) for prediction in predictions]
    return torch.stack(cious, dim=1), torch.stack(hits, dim=1)


def clip_columns(scores: ClipArrays) -> ClipArrays:
    """What each clip adds to the numbers, which are made of means over clips.

    Args:
        scores: as `score_maps` returns them.

    Returns:
        each (N, 1 or R) in [0, 1]: `ciou:`, `auc:`, `area:` and `quiet:` (AUC_N) of a predictor or
        a kind of sound, `iou:`, and `success:` and `pointing:` under the median rule.
    """
    columns = {name: v for name, v in scores.items() if name.startswith(("area:", "iou:"))}
    for name in (OWN, DISC):
        _, areas, cious, _ = clip_values(scores[f"ciou:{name}"][:, 0]).T
        columns |= {f"ciou:{name}": cious[:, None], f"auc:{name}": areas[:, None]}
    for kind in (OWN, *NEGATIVES):
        columns[f"quiet:{kind}"] = quiet_areas(scores[f"area:{kind}"])
    for kind in (OWN, "off_screen"):
        columns[f"success:{kind}"] = (scores[f"ciou_median:{kind}"] >= 0.5).astype(np.float64)
        columns[f"pointing:{kind}"] = scores[f"pointing:{kind}"]
    if "ciou_list" in scores:
        listed = scores["ciou_list"]
        values = clip_values(listed.ravel()).reshape(*listed.shape, -1)
        columns |= {"list_success": values[..., 0], "list_auc": values[..., 1]}
    return columns


Means = Mapping[str, NDArray[np.float64]]
"""means over clips, (1,) or (R,), by the name of a column"""


def numbers_of(means: Means) -> dict[str, NDArray[np.float64]]:
    """The model's numbers in percent, one for each seed, or one where no seed changes it."""
    found = _f_scores(means, OWN, {kind: kind for kind in NEGATIVES})
    found |= {f"iou_{a}~{b}": 100 * means[f"iou:{a}~{b}"] for a, b in PAIRS}
    for name, column in (("ciou_at_0.5", "success"), ("pointing_accuracy", "pointing")):
        own, wrong = (100 * means[f"{column}:{kind}"] for kind in (OWN, "off_screen"))
        found |= {f"{name}_own": own, f"{name}_off_screen": wrong}
        found[f"sensitivity_{name}"] = own - wrong
    if "list_success" in means:
        # The five levels of each clip count as five clips.
        found["published_ciou_at_0.5"] = 100 * means["list_success"].mean(keepdims=True)
        found["published_auc"] = 100 * means["list_auc"].mean(keepdims=True)
    return found


def numbers_without_ears(means: Means) -> dict[str, dict[str, NDArray[np.float64]]]:
    """The same numbers of predictors that do not hear, by name, as far as they have them."""
    share = centre_disc(MEDIAN_RULE.map_size).double().mean().numpy()[None]
    disc = {**means, f"area:{DISC}": share, f"quiet:{DISC}": quiet_areas(share)}
    return {
        DEAF: _f_scores(means, OWN, dict.fromkeys(NEGATIVES, OWN)),
        DISC: _f_scores(disc, DISC, dict.fromkeys(NEGATIVES, DISC)),
    }


def _f_scores(means: Means, predictor: str, negatives: Mapping[str, str]) -> dict[str, NDArray[np.float64]]:
    """cIoU_U to F_AUC of a predictor; what it makes of each kind stands under another name."""
    ciou, auc = 100 * means[f"ciou:{predictor}"], 100 * means[f"auc:{predictor}"]
    active = {kind: 100 * means[f"area:{name}"] for kind, name in negatives.items()}
    quiet = {kind: 100 * means[f"quiet:{name}"] for kind, name in negatives.items()}
    num_kinds = len(negatives)
    found = {
        "ciou_u": ciou,
        "auc_u": auc,
        "f_loc": harmonic_mean(ciou, 100 - sum(active.values()) / num_kinds),
        "f_auc": harmonic_mean(auc, sum(quiet.values()) / num_kinds),
    }
    for kind in negatives:
        found |= {
            f"pia_{kind}": active[kind],
            f"auc_n_{kind}": quiet[kind],
            f"f_loc_{kind}": harmonic_mean(ciou, 100 - active[kind]),
            f"f_auc_{kind}": harmonic_mean(auc, quiet[kind]),
        }
    return found
