"""The one evaluation of sound localisation, called by training and by testing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import gather_objects
from utils.evaluation.baselines import centre_disc, centre_square, whole_frame
from utils.evaluation.metrics import TruthMaps
from utils.evaluation.protocols import LocalisationProtocol, ObjectMaps
from utils.score_sheet import MODEL, ScoreSheet
from utils.scores import AREA_SIDE, ClipScore, ClipTruth, LocalisationResult, ProtocolScores


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
    def bounding_boxes(self) -> Sequence[NDArray[np.float64] | None]:
        """(N, 4) of each of the B clips, where its data set has boxes."""
        ...

    @property
    def pair_keys(self) -> Sequence[str | None]:
        """B keys: clips that share one are of the same frame with different sounds."""
        ...

    @property
    def broken(self) -> Sequence[BrokenClipLike]:
        """Clips of this batch that could not be decoded."""
        ...


BatchType = TypeVar("BatchType", bound=EvaluationBatch)


@dataclass(frozen=True)
class ObjectPrior:
    """Maps of objects that never hear the sound, and how much they count."""

    object_maps: Callable[[Tensor], Tensor]
    """normalised frames (B, 3, S, S) -> (B, h, w), at least 0"""
    alpha: float
    """share of the model's map, in [0, 1]; the object map has the rest"""

    def maps_of(self, frames: Tensor) -> ObjectMaps:
        """Normalised frames (B, 3, S, S) -> what is mixed in."""
        return ObjectMaps(self.object_maps(frames).float(), self.alpha)


OnBatch = Callable[[BatchType, Tensor, Sequence[ClipScore]], None]


@dataclass(frozen=True)
class LocalisedBatch(Generic[BatchType]):
    """Decoded clips and what a model found in them."""

    batch: BatchType
    similarity_maps: Tensor | None
    """(B, h, w) float32; None where every clip of the batch is broken"""
    objects: ObjectMaps | None = None
    """of the same clips, to be mixed in; None: the model alone"""


def evaluate_localisation(
    model: SoundLocaliser,
    batches: Iterable[BatchType],
    views: Callable[[BatchType], tuple[Tensor, Tensor]],
    protocols: Sequence[LocalisationProtocol],
    on_batch: OnBatch[BatchType] | None = None,
    *,
    prior: ObjectPrior | None = None,
    shared: bool = False,
) -> LocalisationResult:
    """Scores a model, the blind baselines and the ceiling on the same clips.

    Each clip is decoded and localised once, whatever the number of rules.

    Args:
        model: in evaluation mode.
        batches: decoded clips, each exactly once.
        views: batch -> normalised frames (B, 3, S, S) and log-mel spectrograms (B, 1, F, T).
        protocols: the scoring rules, the headline first.
        on_batch: called with the batch, and its localisation maps (B, M, M) and scores under the
            headline rule; the maps are where the model's are.
        prior: mixed into the model's maps; None: the model alone.
        shared: each process brings its own part of the batches; all of them get the whole result,
            in the order of their ranks.

    Returns:
        scores in the order of the batches.

    Raises:
        ValueError: no clip could be scored, a clip came twice, or a clip has no boxes; the rules
            are none, come twice, or score maps of different sizes.
    """
    localised = localise_batches(model, batches, views, prior)
    alpha = None if prior is None else prior.alpha
    return score_maps(localised, protocols, on_batch, alpha=alpha, shared=shared)


def localise_batches(
    model: SoundLocaliser,
    batches: Iterable[BatchType],
    views: Callable[[BatchType], tuple[Tensor, Tensor]],
    prior: ObjectPrior | None = None,
) -> Iterator[LocalisedBatch[BatchType]]:
    """Finds the maps of each batch as it is asked for, for `score_maps`.

    Args:
        model: as evaluate_localisation takes it.
        batches: likewise.
        views: likewise.
        prior: likewise.

    Raises:
        ValueError: the model does not give a map for each clip.
    """
    for batch in batches:
        if not batch.clip_ids:
            yield LocalisedBatch(batch, None)
            continue
        frames, sounds = views(batch)
        maps = model.localise(frames, sounds).float()
        if len(maps) != len(batch.clip_ids):
            raise ValueError(
                f"localise must give one map per clip: got {len(maps)} for {len(batch.clip_ids)} clips."
            )
        yield LocalisedBatch(batch, maps, None if prior is None else prior.maps_of(frames))


@torch.inference_mode()
def score_maps(
    localised: Iterable[LocalisedBatch[BatchType]],
    protocols: Sequence[LocalisationProtocol],
    on_batch: OnBatch[BatchType] | None = None,
    *,
    alpha: float | None = None,
    shared: bool = False,
) -> LocalisationResult:
    """Scores similarity maps, the blind baselines and the ceiling on the same clips.

    Args:
        localised: clips with their maps, each exactly once.
        protocols: as evaluate_localisation takes them.
        on_batch: likewise.
        alpha: share of the model's map beside the objects'; None: it alone.
        shared: as evaluate_localisation takes it.

    Returns:
        scores in the order of the batches.

    Raises:
        ValueError: as evaluate_localisation raises it.
    """
    model_name = MODEL if alpha is None else f"{MODEL} + object prior (alpha {alpha:g})"
    sheet = ScoreSheet(protocols, {"centre disc (blind)": centre_disc}, model_name)
    unreadable: list[tuple[str, str]] = []
    truths: list[ClipTruth] = []
    num_empty = num_non_finite = 0
    for found in localised:
        batch, maps = found.batch, found.similarity_maps
        unreadable.extend((broken.clip_id, broken.reason) for broken in batch.broken)
        if maps is None:
            continue
        given = batch.ground_truth_maps
        if given is None or len(given) != len(batch.clip_ids):
            raise ValueError(f"Clips without boxes cannot be scored, e.g. {batch.clip_ids[0]}.")
        outlined = all(boxes is None for boxes in batch.bounding_boxes)
        truth = TruthMaps(torch.from_numpy(given).to(maps.device), outlined)
        num_non_finite += int((~maps.isfinite()).any(2).any(1).sum())
        num_empty += int((truth.num_annotated == 0).sum())
        shown, scores = sheet.add_model(batch.clip_ids, maps, truth, found.objects)
        sheet.add_references(batch.clip_ids, truth)
        truths += _truths_of(truth, batch)
        if on_batch is not None:
            on_batch(batch, shown, scores)
    if shared:
        sheet.gather()
        unreadable, truths = gather_objects(unreadable), gather_objects(truths)
        num_empty = sum(gather_objects([num_empty]))
        num_non_finite = sum(gather_objects([num_non_finite]))
    return LocalisationResult(
        sheet.by_protocol(unreadable), tuple(unreadable), num_empty, num_non_finite, tuple(truths)
    )


def evaluate_baselines(
    truths: Iterable[tuple[Sequence[str], NDArray[np.float32]]], protocols: Sequence[LocalisationProtocol]
) -> tuple[ProtocolScores, ...]:
    """Scores what needs no model: blind predictors and the ceiling of each rule.

    Args:
        truths: batches of clip ids and ground-truth maps (B, M, M) in [0, 1].
        protocols: the scoring rules.

    Returns:
        scores by rule, in the order of the batches.

    Raises:
        ValueError: no clip, or a clip came twice; the rules are none, come twice, or score maps of
            different sizes.
    """
    shapes = {
        "whole frame (blind)": whole_frame,
        "centre square (blind)": centre_square,
        "centre disc (blind)": centre_disc,
    }
    sheet = ScoreSheet(protocols, shapes)
    for clip_ids, maps in truths:
        sheet.add_references(clip_ids, TruthMaps(torch.from_numpy(maps)))
    return sheet.by_protocol(unreadable=())


def _truths_of(truth: TruthMaps, batch: EvaluationBatch) -> list[ClipTruth]:
    areas = truth.total_votes * (AREA_SIDE**2 / truth.maps[0].numel())
    counts = [None if boxes is None else len(boxes) for boxes in batch.bounding_boxes]
    facts = zip(areas.tolist(), counts, batch.pair_keys, strict=True)
    return [ClipTruth(*of_clip) for of_clip in facts]
