"""Localisation metrics: of clips on the device of their maps, of a data set from their scores.

Consensus IoU and what is made of it; then the metrics of single benchmarks (EXTRA_METRICS):
detection for SLAVC's extended sets, pairs for IS3, masks for AVSBench.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Values = NDArray[np.float64]

SUCCESS_THRESHOLDS = tuple(0.05 * i for i in range(21))
"""Consensus-IoU thresholds of the success curve. The products are the field's: 0.05 * 3 is above
0.15 in floating point, so a clip with exactly 0.15 fails its own threshold."""
_STEP_AREAS = np.asarray(np.trapezoid(np.tri(22, 21, -1), SUCCESS_THRESHOLDS))
"""(22,) area under a curve that is 1 at the first 0, 1, ... 21 thresholds, then 0."""


def success_areas(cious: Values) -> Values:
    """Return what clips (...) add to AUC, whose mean is AUC: the area under the success curve of each."""
    return _STEP_AREAS[(cious[..., None] >= np.asarray(SUCCESS_THRESHOLDS)).sum(axis=-1)]


def quiet_areas(areas: Values) -> Values:
    """Return what maps with a pIA of `areas` (...) in [0, 1] add to AUC_N, whose mean is AUC_N."""
    # The curve rises where that of success falls: the same areas, as the thresholds are evenly spaced.
    return _STEP_AREAS[(areas[..., None] <= np.asarray(SUCCESS_THRESHOLDS)).sum(axis=-1)]


@dataclass(frozen=True)
class TruthMaps:
    """Annotation of some clips, and what every score needs of it, computed once."""

    maps: Tensor  # (B, M, M) float32 in [0, 1]
    outlined: bool = False  # the objects are outlined pixel by pixel; otherwise boxes lie around them

    def __len__(self) -> int:
        """B."""
        return len(self.maps)

    @cached_property
    def total_votes(self) -> Tensor:
        """(B,) float64, sum of each map."""
        return _sum(self.maps)

    @cached_property
    def empty(self) -> Tensor:
        """(B, M, M) bool, pixels that nobody annotated."""
        return self.maps == 0

    @cached_property
    def num_annotated(self) -> Tensor:
        """(B,) int64, pixels above 0."""
        return self.maps[0].numel() - self.empty.flatten(1).sum(1)


def consensus_iou(predicted_masks: Tensor, truth: TruthMaps) -> Tensor:
    """Consensus IoU of each clip: sum(P G) / (sum(G) + sum(P where G = 0)).

    Senocak et al., CVPR 2018, Eq. 8. The masks are (B, M, M) bool, or (1, M, M): the same for each clip; the
    result is (B,) float64 in [0, 1], NaN where both are empty.
    """
    shared = _sum(truth.maps * predicted_masks.float())  # where() takes five times as long
    false_positive = (predicted_masks & truth.empty).flatten(1).sum(1, dtype=torch.int32)
    return shared / (truth.total_votes + false_positive)


def _sum(maps: Tensor) -> Tensor:
    """(B, M, M) in [0, 1] -> (B,) float64.

    A row's sum is exact in float32 where votes are whole, halves or other parts by a power of two,
    as all benchmarks' are; float64 adds up the rows. Float64 throughout takes twice the time.
    """
    return maps.sum(2).sum(1, dtype=torch.float64)


def pointing_hits(localisation_maps: Tensor, truth: TruthMaps) -> Tensor:
    """Tell whether the peak of each map, (B, M, M) or (1, M, M), lies on an annotated pixel: (B,) bool.

    Among equals the first pixel in reading order is the peak; a map with NaN has none.
    """
    peaks = localisation_maps.flatten(1).max(1)
    places = peaks.indices.expand(len(truth))[:, None]  # (B, 1)
    # Where there is NaN, max finds that.
    return ~truth.empty.flatten(1).gather(1, places)[:, 0] & ~peaks.values.isnan()


# ------------------------------------------------------------ extended sets: is there a source at all?

PRECISION_STEPS, F1_STEPS = 200, 10  # about so many thresholds lie under SLAVC's AP and its largest F1


def detection_scores(
    confidences: ArrayLike, cious: ArrayLike, has_object: ArrayLike
) -> tuple[float, float, float]:
    """AP, largest F1 and localisation accuracy of sets with frames whose sound has no source.

    At a confidence threshold t a clip with an object is a true positive if it reaches t and its
    consensus IoU reaches 0.5, a false positive if it only reaches t, and a false negative below
    t; a clip without an object is a false positive if it reaches t. A clip that was localised badly
    is thus never a false negative, so recall always ends at 1. After SLAVC (Mo and Morgado, NeurIPS
    2022), whose program takes every (M // 200)-th threshold without the largest for AP, in which
    what recall gains from one to the next is paid at the envelope of the former and the recall of
    the first is not paid, and every (M // 10)-th for F1.

    Args:
        confidences: (M,); NaN stands below every number.
        cious: (M,) consensus IoU in [0, 1], NaN a miss; of clips without an object not read.
        has_object: (M,) whether anything in the frame sounds.

    Returns:
        each in [0, 1]; the accuracy is 1 where no clip has an object, as in a resample.
    """
    known = np.nan_to_num(np.asarray(confidences, np.float64), nan=-np.inf)
    order = np.argsort(known, kind="stable")
    ascending, positive = known[order], np.asarray(has_object, bool)[order]
    hits = positive & (np.asarray(cious, np.float64)[order] >= 0.5)
    num_clips, num_positive = len(order), int(positive.sum())
    # Of the clips at a place or above it, for places 0 to M.
    hits_above = np.append(np.cumsum(hits[::-1])[::-1], 0)
    positive_above = np.append(np.cumsum(positive[::-1])[::-1], 0)

    def rates(positions: NDArray[np.int64]) -> tuple[Values, Values]:
        """Precision and recall where all that reach the confidences at these positions count."""
        places = np.searchsorted(ascending, ascending[positions])
        found, missed = hits_above[places], num_positive - positive_above[places]
        recall = np.where(found + missed == 0, 1.0, found / np.maximum(found + missed, 1))
        return found / (num_clips - places), recall

    last = num_clips - 1
    precision, recall = rates(np.arange(last - 1, -1, -max(1, num_clips // PRECISION_STEPS)))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    average_precision = float(envelope[:-1] @ np.diff(recall))
    precision, recall = rates(np.arange(0, num_clips, max(1, num_clips // F1_STEPS)))
    f1 = harmonic_mean(precision, recall).max()
    return average_precision, float(f1), float(hits_above[0] / num_positive) if num_positive else 1.0


def harmonic_mean(first: Values, second: Values) -> Values:
    """Return 2 a b / (a + b) of numbers from 0; 0 where both are 0."""
    return 2 * first * second / np.maximum(first + second, np.finfo(np.float64).tiny)


# ---------------------------------------------------------------- IS3: several sounds of one frame


def pair_cious(cious: ArrayLike, keys: Sequence[str]) -> Values:
    """Smallest consensus IoU of each pair, the clips of one frame: (N,) of clips -> (P,) of frames.

    A frame is localised only if each of its sounds is. Its success rate at 0.5 is IIoU, the area
    under its success curve IAUC, after SSL-Align (Senocak et al., ICCV 2023; TPAMI 2025). `keys` name the
    frame of each clip; a frame with one clip counts alone, and a clip with NaN makes its pair NaN, a miss.
    """
    import pandas as pd  # noqa: PLC0415 - programs that only score by consensus IoU start sooner

    groups = pd.Series(np.asarray(cious, np.float64)).groupby(np.asarray(keys, str), sort=False)
    return groups.min(skipna=False).to_numpy()


# -------------------------------------------------------------------- AVSBench: the truth is a mask

MASK_THRESHOLD = 0.5  # a pixel belongs to the predicted mask above this value of the normalised map
NUM_THRESHOLDS = 255
BETA_SQUARED = 0.3  # weight of recall against precision in F
MASK_BATCH = 5  # clips of a batch where the published form averages over batches: the frames of one video


def mask_ious(localisation_maps: Tensor, truths: Tensor) -> Tensor:
    """IoU of each clip's predicted mask; of what both leave out where nothing is annotated.

    Maps and truths are (B, M, M) in [0, 1], the result (B,) float64. Any truth above 0 is annotated.
    """
    predicted, annotated = localisation_maps > MASK_THRESHOLD, truths > 0
    nothing = ~annotated.flatten(1).any(dim=1)[:, None, None]
    predicted, annotated = predicted ^ nothing, annotated ^ nothing
    shared = (predicted & annotated).flatten(1).sum(dim=1)
    return shared.double() / (predicted | annotated).flatten(1).sum(dim=1)


def f_thresholds() -> Tensor:
    """(255,) float32, ascending from 0 to 1; a pixel is predicted at or above a threshold."""
    return torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS)


def f_curves(localisation_maps: Tensor, truths: Tensor) -> Tensor:
    """F of each clip at each of the thresholds, from one histogram of each map.

    F = (1 + b) P R / (b P + R) with b = BETA_SQUARED, which is (1 + b) hits / (b annotated +
    predicted) in pixels, without any 0 / 0.

    Maps and truths are as for `mask_ious`, the result (B, 255) float32; NaN where nothing is annotated.
    """
    maps, annotated = localisation_maps.flatten(1).float(), (truths > 0).flatten(1)  # (B, M * M)
    # How many thresholds a pixel reaches, 0 to 255; NaN reaches none.
    thresholds = f_thresholds().to(maps.device)
    reached = torch.bucketize(torch.nan_to_num(maps, nan=-1.0), thresholds, right=True)

    def num_reaching(counted: Tensor) -> Tensor:
        """(B, 255) counted pixels at each threshold."""
        histogram = torch.zeros(len(maps), NUM_THRESHOLDS + 1, dtype=torch.int64, device=maps.device)
        histogram.scatter_add_(1, reached, counted.long())
        return histogram.flip(1).cumsum(1).flip(1)[:, 1:]

    predicted, hits = num_reaching(torch.ones_like(annotated)), num_reaching(annotated)
    total = annotated.sum(dim=1, keepdim=True)
    scores = (1 + BETA_SQUARED) * hits.double() / (BETA_SQUARED * total + predicted)
    return scores.where(total > 0, torch.nan).float()


def mask_scores(ious: Values, curves: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Scores of a data set with masks, each published in two forms that average in another order.

    Args:
        ious: (N,) of `mask_ious`, in the order of the clip list.
        curves: (N, 255) of `f_curves`; clips without truth, NaN, do not count in F.

    Returns:
        mIoU; F at the threshold that is best for the data set (NaN without truth); then both as
        means over batches of MASK_BATCH clips, F at the best threshold of each batch.
    """

    def means(size: int) -> tuple[float, float]:
        """Mean over batches of their mIoU and of their largest F."""
        batches = [slice(start, start + size) for start in range(0, len(ious), size)]
        known = [curves[b][~np.isnan(curves[b, 0])] for b in batches]
        largest = [one.mean(axis=0, dtype=np.float64).max() for one in known if len(one)]
        miou = float(np.mean([ious[b].mean() for b in batches]))
        return miou, float(np.mean(largest)) if largest else np.nan

    return *means(len(ious)), *means(MASK_BATCH)


EXTRA_METRICS: dict[str, dict[str, str]] = {
    "detection": {
        "AP": "average precision of localising what sounds and of not being confident where nothing "
        "in the frame does, as SLAVC's program computes it, from about 200 thresholds",
        "max_F1": "largest F1 over the 10 or 11 confidences that SLAVC's program tries",
        "LocAcc": "share of the clips with an object that are localised, whatever the confidence",
    },
    "pairs": {
        "IIoU": "share of the frames of which each sound is localised: the smallest consensus IoU of "
        "the frame's clips is at least 0.5",
        "IAUC": "area under that share over thresholds 0, 0.05 … 1, by trapezoids",
    },
    "masks": {
        "mIoU": "mean over clips of the IoU of the pixels above 0.5 with the mask; where nothing is "
        "annotated, of the pixels that both leave out",
        "F_dataset": "largest F (β² = 0.3) over 255 thresholds of the mean over clips with anything "
        "annotated",
        f"mIoU_batch{MASK_BATCH}": f"mIoU as the mean of the means of batches of {MASK_BATCH} clips",
        f"F_avsbench_batch{MASK_BATCH}": f"F as the mean of the largest F of batches of {MASK_BATCH} clips: "
        "a threshold for each batch",
    },
}
"""Metrics beside consensus IoU: family -> name -> what it is. A benchmark's row names its family."""
