"""The one evaluation of sound localisation, called by training and by testing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.blind import centre_disc, centre_gaussian, oracle_cious
from utils.metrics import (
    area_under_success,
    consensus_iou,
    mean_ciou,
    pointing_hits,
    success_curve,
    success_rate,
)
from utils.protocols import LocalisationProtocol, binarise, normalise, upsample


class SoundLocaliser(Protocol):
    """What a model must offer to be evaluated."""

    def localise(self, frames: Tensor, log_mel_spectrogram: Tensor) -> Tensor:
        """Similarity maps (B, h, w) of each frame with its own sound."""
        ...


class BrokenClipLike(Protocol):
    """A clip that could not be decoded."""

    @property
    def clip_id(self) -> str:
        """Its id."""
        ...

    @property
    def reason(self) -> str:
        """What the decoder said."""
        ...


class EvaluationBatch(Protocol):
    """What evaluation needs of a batch."""

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """B ids."""
        ...

    @property
    def ground_truth_maps(self) -> NDArray[np.float32] | None:
        """(B, M, M) in [0, 1]."""
        ...

    @property
    def broken(self) -> Sequence[BrokenClipLike]:
        """Clips of this batch that could not be decoded."""
        ...


BatchType = TypeVar("BatchType", bound=EvaluationBatch)


@dataclass(frozen=True)
class ClipScore:
    """The score of one clip."""

    clip_id: str
    ciou: float
    """consensus IoU in [0, 1]; NaN where prediction and truth are both empty"""
    pointing: bool | None
    """the peak lies on the object; None for predictors without a peak"""


@dataclass(frozen=True)
class Scores:
    """Scores of one predictor over all clips, in their order."""

    name: str
    kind: str
    """model, baseline or ceiling"""
    clips: tuple[ClipScore, ...]

    @property
    def cious(self) -> list[float]:
        """Consensus IoU of each clip."""
        return [clip.ciou for clip in self.clips]

    @property
    def curve(self) -> list[float]:
        """Success rate at each threshold, in [0, 1]."""
        return success_curve(self.cious)

    def summary(self) -> dict[str, float | str | None]:
        """Headline numbers, in percent."""
        pointing = [clip.pointing for clip in self.clips if clip.pointing is not None]
        return {
            "name": self.name,
            "kind": self.kind,
            "ciou_at_0.5": 100 * success_rate(self.cious),
            "auc": 100 * area_under_success(self.curve),
            "mean_ciou": 100 * mean_ciou(self.cious),
            "pointing_accuracy": 100 * float(np.mean(pointing)) if pointing else None,
        }


@dataclass(frozen=True)
class LocalisationResult:
    """What an evaluation found."""

    protocol: LocalisationProtocol
    model: Scores
    references: tuple[Scores, ...]
    """blind baselines and the ceiling of the rule, on the same clips"""
    unreadable: tuple[tuple[str, str], ...]
    """(clip id, reason) of clips that broke while being decoded; they are not scored"""
    num_empty: int = 0
    """scored clips whose ground truth is empty: a miss whatever the map"""
    num_non_finite: int = 0
    """scored clips whose map is not a finite number everywhere: a miss"""


OnBatch = Callable[[BatchType, NDArray[np.float32], Sequence[ClipScore]], None]


@torch.inference_mode()
def evaluate_localisation(
    model: SoundLocaliser,
    batches: Iterable[BatchType],
    views: Callable[[BatchType], tuple[Tensor, Tensor]],
    protocol: LocalisationProtocol,
    on_batch: OnBatch[BatchType] | None = None,
) -> LocalisationResult:
    """Scores a model, the blind baselines and the ceiling on the same clips.

    Args:
        model: in evaluation mode.
        batches: decoded clips, each exactly once.
        views: batch -> normalised frames (B, 3, S, S) and log-mel spectrograms (B, 1, F, T).
        protocol: the scoring rule.
        on_batch: called with the batch, its localisation maps (B, M, M) and its scores.

    Returns:
        scores in the order of the batches.

    Raises:
        ValueError: no clip could be scored, a clip came twice, or a clip has no boxes.
    """
    disc = centre_disc(protocol.map_size)
    gaussian_map, gaussian_mask = centre_gaussian(protocol)
    found: dict[str, list[ClipScore]] = {"model": [], "disc": [], "gaussian": [], "oracle": []}
    unreadable: list[tuple[str, str]] = []
    num_empty = num_non_finite = 0
    for batch in batches:
        unreadable.extend((broken.clip_id, broken.reason) for broken in batch.broken)
        if not batch.clip_ids:
            continue
        truth = batch.ground_truth_maps
        if truth is None or len(truth) != len(batch.clip_ids):
            raise ValueError(f"Clips without boxes cannot be scored, e.g. {batch.clip_ids[0]}.")
        similarity = model.localise(*views(batch)).float().cpu().numpy()
        if len(similarity) != len(batch.clip_ids):
            raise ValueError(
                f"localise must give one map per clip: got {len(similarity)} for "
                f"{len(batch.clip_ids)} clips."
            )
        num_non_finite += int((~np.isfinite(similarity)).any(axis=(1, 2)).sum())
        num_empty += int((truth.max(axis=(1, 2)) == 0).sum())
        maps = normalise(upsample(similarity, protocol), protocol)
        scores = _score(batch.clip_ids, consensus_iou(binarise(maps, protocol), truth), maps, truth)
        found["model"] += scores
        found["disc"] += _score(batch.clip_ids, consensus_iou(_repeat(disc, truth), truth))
        found["gaussian"] += _score(
            batch.clip_ids,
            consensus_iou(_repeat(gaussian_mask, truth), truth),
            _repeat(gaussian_map, truth),
            truth,
        )
        found["oracle"] += _score(batch.clip_ids, oracle_cious(truth, protocol))
        if on_batch is not None:
            on_batch(batch, maps, scores)
    _check_clips([clip.clip_id for clip in found["model"]], unreadable)
    return LocalisationResult(
        protocol,
        Scores("model", "model", tuple(found["model"])),
        (
            Scores("centre disc (blind)", "baseline", tuple(found["disc"])),
            Scores("centre Gaussian (blind)", "baseline", tuple(found["gaussian"])),
            Scores(
                f"ceiling of {protocol.name} (maps without ties)", "ceiling", tuple(found["oracle"])
            ),
        ),
        tuple(unreadable),
        num_empty,
        num_non_finite,
    )


def _score(
    clip_ids: Sequence[str],
    cious: NDArray[np.float64],
    maps: NDArray[np.float32] | None = None,
    truth: NDArray[np.float32] | None = None,
) -> list[ClipScore]:
    hits: Sequence[bool | None] = [None] * len(clip_ids)
    if maps is not None and truth is not None:
        hits = pointing_hits(maps, truth).tolist()
    return [
        ClipScore(clip_id, float(ciou), hit)
        for clip_id, ciou, hit in zip(clip_ids, cious, hits, strict=True)
    ]


def _repeat(single: NDArray, like: NDArray[np.float32]) -> NDArray:
    return np.broadcast_to(single, like.shape)


def _check_clips(clip_ids: Sequence[str], unreadable: Sequence[tuple[str, str]]) -> None:
    if not clip_ids:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
    if len(set(clip_ids)) != len(clip_ids):
        raise ValueError("A clip came twice in the evaluation; scores would count it twice.")
