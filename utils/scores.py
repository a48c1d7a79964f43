"""Scores of clips and of data sets, as an evaluation returns them."""

from dataclasses import dataclass

import numpy as np

from utils.evaluation.metrics import area_under_success, mean_ciou, success_curve, success_rate
from utils.evaluation.protocols import LocalisationProtocol
from utils.segmentation import MaskScores

AREA_SIDE = 224
"""side of the frame in whose pixels areas are given, whatever the size of a rule's map"""


@dataclass(frozen=True)
class ClipScore:
    """The score of one clip."""

    clip_id: str
    ciou: float
    """consensus IoU in [0, 1]; NaN where prediction and truth are both empty"""
    pointing: bool | None
    """the peak lies on the object; None for predictors without a peak"""
    confidence: float | None = None
    """of the map before it is normalised, see utils.evaluation.protocols.Prediction, for benchmarks with
    clips in which nothing sounds; None for predictors without a map"""
    mask: MaskScores | None = None
    """of the map, or of a blind mask, where the objects are outlined; None where they have boxes"""


@dataclass(frozen=True)
class ClipTruth:
    """How much is annotated in one clip."""

    area: float
    """sum of its ground-truth map, pixels of AREA_SIDE x AREA_SIDE"""
    num_boxes: int | None
    """of all annotators; None where only the map is known"""
    pair_key: str | None = None
    """clips that share it are of the same frame with different sounds; None: of no pair"""


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
