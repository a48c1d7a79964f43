"""The one evaluation of sound localisation, called by training and by testing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.blind import (
    centre_disc,
    centre_gaussian,
    centre_square,
    oracle_cious,
    whole_frame,
)
from utils.distributed import gather_objects
from utils.metrics import (
    area_under_success,
    consensus_iou,
    mean_ciou,
    pointing_hits,
    success_curve,
    success_rate,
)
from utils.protocols import LocalisationProtocol, ObjectMaps, predict


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
    def broken(self) -> Sequence[BrokenClipLike]:
        """Clips of this batch that could not be decoded."""
        ...


MODEL, GAUSSIAN, CEILING = "model", "centre Gaussian (blind)", "ceiling"

AREA_SIDE = 224
"""side of the frame in whose pixels areas are given, whatever the size of a rule's map"""

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
class ClipTruth:
    """How much is annotated in one clip."""

    area: float
    """sum of its ground-truth map, pixels of AREA_SIDE x AREA_SIDE"""
    num_boxes: int | None
    """of all annotators; None where only the map is known"""


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
class ProtocolScores:
    """What was found under one rule."""

    protocol: LocalisationProtocol
    rows: tuple[Scores, ...]
    """the model, where there is one, then blind baselines and the rule's ceiling, on the same
    clips"""


@dataclass(frozen=True)
class LocalisationResult:
    """What an evaluation found."""

    by_protocol: tuple[ProtocolScores, ...]
    """a rule each, the headline first; the model's scores are its first row"""
    unreadable: tuple[tuple[str, str], ...]
    """(clip id, reason) of clips that broke while being decoded; they are not scored"""
    num_empty: int = 0
    """scored clips whose ground truth is empty: a miss whatever the map"""
    num_non_finite: int = 0
    """scored clips whose map is not a finite number everywhere: a miss"""
    truths: tuple[ClipTruth, ...] = ()
    """of the scored clips, in their order"""

    @property
    def model(self) -> Scores:
        """The model's scores under the headline rule."""
        return self.by_protocol[0].rows[0]


@dataclass(frozen=True)
class ObjectPrior:
    """Maps of objects that never hear the sound, and how much they count."""

    object_maps: Callable[[Tensor], Tensor]
    """normalised frames (B, 3, S, S) -> (B, h, w), at least 0"""
    alpha: float
    """share of the model's map, in [0, 1]; the object map has the rest"""

    @property
    def words(self) -> str:
        """What follows a model's name."""
        return f" + object prior (alpha {self.alpha:g})"

    def maps_of(self, frames: Tensor) -> ObjectMaps:
        """Normalised frames (B, 3, S, S) -> what is mixed in."""
        return ObjectMaps(self.object_maps(frames).float().cpu().numpy(), self.alpha)


OnBatch = Callable[[BatchType, NDArray[np.float32], Sequence[ClipScore]], None]


@torch.inference_mode()
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
            headline rule.
        prior: mixed into the model's maps; None: the model alone.
        shared: each process brings its own part of the batches; all of them get the whole result,
            in the order of their ranks.

    Returns:
        scores in the order of the batches.

    Raises:
        ValueError: no clip could be scored, a clip came twice, or a clip has no boxes; the rules
            are none, come twice, or score maps of different sizes.
    """
    sheet = _ScoreSheet(protocols, {"centre disc (blind)": centre_disc}, prior)
    unreadable: list[tuple[str, str]] = []
    truths: list[ClipTruth] = []
    num_empty = num_non_finite = 0
    for batch in batches:
        unreadable.extend((broken.clip_id, broken.reason) for broken in batch.broken)
        if not batch.clip_ids:
            continue
        truth = batch.ground_truth_maps
        if truth is None or len(truth) != len(batch.clip_ids):
            raise ValueError(f"Clips without boxes cannot be scored, e.g. {batch.clip_ids[0]}.")
        frames, sounds = views(batch)
        similarity = model.localise(frames, sounds).float().cpu().numpy()
        if len(similarity) != len(batch.clip_ids):
            raise ValueError(
                f"localise must give one map per clip: got {len(similarity)} for "
                f"{len(batch.clip_ids)} clips."
            )
        num_non_finite += int((~np.isfinite(similarity)).any(axis=(1, 2)).sum())
        num_empty += int((truth.max(axis=(1, 2)) == 0).sum())
        objects = None if prior is None else prior.maps_of(frames)
        maps, scores = sheet.add_maps(MODEL, batch.clip_ids, similarity, truth, objects)
        sheet.add_references(batch.clip_ids, truth)
        truths += [_truth_of(*pair) for pair in zip(truth, batch.bounding_boxes, strict=True)]
        if on_batch is not None:
            on_batch(batch, maps, scores)
    if shared:
        sheet.gather()
        unreadable, truths = gather_objects(unreadable), gather_objects(truths)
        num_empty = sum(gather_objects([num_empty]))
        num_non_finite = sum(gather_objects([num_non_finite]))
    return LocalisationResult(
        sheet.by_protocol(unreadable), tuple(unreadable), num_empty, num_non_finite, tuple(truths)
    )


def evaluate_baselines(
    truths: Iterable[tuple[Sequence[str], NDArray[np.float32]]],
    protocols: Sequence[LocalisationProtocol],
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
    sheet = _ScoreSheet(protocols, shapes)
    for clip_ids, truth in truths:
        sheet.add_references(clip_ids, truth)
    return sheet.by_protocol(unreadable=())


def _truth_of(truth: NDArray[np.float32], boxes: NDArray[np.float64] | None) -> ClipTruth:
    area = float(truth.sum(dtype=np.float64)) * (AREA_SIDE**2 / truth.size)
    return ClipTruth(area, None if boxes is None else len(boxes))


class _ScoreSheet:
    """Scores of every predictor under every rule, filled batch by batch.

    Rules that differ in name only are scored once.
    """

    def __init__(
        self,
        protocols: Sequence[LocalisationProtocol],
        shapes: Mapping[str, Callable[[int], NDArray[np.bool_]]],
        prior: ObjectPrior | None = None,
    ) -> None:
        names = [protocol.name for protocol in protocols]
        sizes = {protocol.map_size for protocol in protocols}
        if not names or len(set(names)) != len(names) or len(sizes) != 1:
            raise ValueError(
                "Scoring takes one protocol or more, each once and all of one map size, got "
                f"{names} of sizes {sorted(sizes)}."
            )
        self._protocols = tuple(protocols)
        self._rules = list(dict.fromkeys(protocol.rule for protocol in protocols))
        (map_size,) = sizes
        self._masks = {name: shape(map_size) for name, shape in shapes.items()}
        self._model_name = MODEL if prior is None else MODEL + prior.words
        self._clip_ids: list[str] = []
        self._found: dict[tuple[str, LocalisationProtocol], list[ClipScore]] = {}

    def add_maps(
        self,
        name: str,
        clip_ids: Sequence[str],
        similarity_maps: NDArray[np.float32],
        truth: NDArray[np.float32],
        objects: ObjectMaps | None = None,
    ) -> tuple[NDArray[np.float32], list[ClipScore]]:
        """Scores similarity maps; returns the first rule's localisation maps and scores."""
        num_annotated = np.count_nonzero(truth.reshape(len(truth), -1), axis=1)
        predictions = predict(similarity_maps, self._rules, num_annotated, objects)
        for rule, prediction in zip(self._rules, predictions, strict=True):
            hits = pointing_hits(prediction.localisation_maps, truth).tolist()
            self._add(name, rule, clip_ids, consensus_iou(prediction.masks, truth), hits)
        scores = self._found[name, self._rules[0]][-len(clip_ids) :]
        return predictions[0].localisation_maps, scores

    def add_references(self, clip_ids: Sequence[str], truth: NDArray[np.float32]) -> None:
        """Scores the blind predictors and the ceiling."""
        self._clip_ids += clip_ids
        none = [None] * len(clip_ids)
        for name, mask in self._masks.items():
            cious = consensus_iou(mask[None], truth)
            for rule in self._rules:
                self._add(name, rule, clip_ids, cious, none)
        self.add_maps(GAUSSIAN, clip_ids, centre_gaussian(), truth)
        for rule in self._rules:
            self._add(CEILING, rule, clip_ids, oracle_cious(truth, rule), none)

    def gather(self) -> None:
        """Adds up what all processes have found, in the order of their ranks."""
        self._clip_ids = gather_objects(self._clip_ids)
        parts, self._found = gather_objects([self._found]), {}
        for part in parts:
            for key, scores in part.items():
                self._found.setdefault(key, []).extend(scores)

    def by_protocol(self, unreadable: Sequence[tuple[str, str]]) -> tuple[ProtocolScores, ...]:
        """All scores; refuses none at all, and a clip that came twice."""
        if not self._clip_ids:
            first = f", first: {unreadable[0][1]}" if unreadable else ""
            raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
        if len(set(self._clip_ids)) != len(self._clip_ids):
            raise ValueError("A clip came twice in the evaluation; scores would count it twice.")
        names = dict.fromkeys(name for name, _ in self._found)
        return tuple(
            ProtocolScores(protocol, tuple(self._row(name, protocol) for name in names))
            for protocol in self._protocols
        )

    def _row(self, name: str, protocol: LocalisationProtocol) -> Scores:
        clips = tuple(self._found[name, protocol.rule])
        if name == CEILING:
            return Scores(f"ceiling of {protocol.name} (maps without ties)", "ceiling", clips)
        if name == MODEL:
            return Scores(self._model_name, "model", clips)
        return Scores(name, "baseline", clips)

    def _add(
        self,
        name: str,
        rule: LocalisationProtocol,
        clip_ids: Sequence[str],
        cious: NDArray[np.float64],
        hits: Sequence[bool | None],
    ) -> None:
        self._found.setdefault((name, rule), []).extend(
            map(ClipScore, clip_ids, cious.tolist(), hits)
        )
