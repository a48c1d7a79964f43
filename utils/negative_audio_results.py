"""The files of a negative-audio evaluation: summary.json, per_clip.csv, table.*, report.html."""

import csv
import hashlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.evaluation.negatives import (
    EXTREMES,
    NEGATIVES,
    OWN,
    QUANTILES,
    UNIVERSAL_QUANTILE,
    ClipArrays,
    describe_scores,
    numbers_without_ears,
)
from utils.evaluation.statistics import CONFIDENCE, RESAMPLES, SEED
from utils.files import write_atomically
from utils.negative_audio_report import render_negative_audio
from utils.negative_audio_tables import facts_of, render_table
from utils.reports.report import EvaluationContext
from utils.tables import TABLE_FILES

logger = logging.getLogger(__name__)

TASK = "negative audio"


@dataclass(frozen=True)
class NegativeSetting:
    """What is scored by which rule: stands beside every number."""

    context: EvaluationContext
    similarity: str
    """the scale of thresholds, in words"""
    num_seeds: int
    off_screen: str
    """which sounds are off-screen, see `utils.evaluation.negatives.scenes_of`"""
    given_threshold: float | None = None
    """None: that of these negatives"""

    def identity(self) -> dict[str, Any]:
        """What two results of one folder must have in common, as plain values."""
        labels = self.context.labels
        return {
            "task": TASK,
            "benchmark": self.context.benchmark,
            "checkpoint_sha256": self.context.checkpoint["sha256"],
            "clip_list_sha256": self.context.clip_list_sha256,
            "frame_geometry": self.context.frame_geometry,
            "num_seeds": self.num_seeds,
            "off_screen": self.off_screen,
            "labels_sha256": None if labels is None else labels["sha256"],
            "threshold": self.given_threshold,
        }

    def check(self, folder: Path) -> None:
        """Refuses before the work a folder that holds another evaluation's results.

        Args:
            folder: for the results.

        Raises:
            FileExistsError: it does.
            ValueError: the summary in the folder cannot be read.
        """
        path = folder / "summary.json"
        if not path.exists():
            return
        found, wanted = _read_summary(path).get("identity", {}), self.identity()
        different = [key for key in wanted | found if found.get(key) != wanted.get(key)]
        if different:
            raise FileExistsError(
                f"{path} holds the results of another evaluation (another "
                f"{', '.join(different)}). Name another --output."
            )


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        found: dict[str, Any] = {**content}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a summary of this program: {error}.") from error
    return found


@dataclass(frozen=True)
class NegativeResult:
    """What an evaluation found, for N clips and R seeds."""

    clip_ids: tuple[str, ...]
    scores: ClipArrays
    """see `utils.evaluation.negatives.score_sounds`"""
    threshold: float
    donors: NDArray[np.str_]
    """(R, N) ids of the clips whose sounds were off-screen"""
    map_bytes: int
    """that the low-resolution maps of all clips took"""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(clip id, reason)"""


def summarise(setting: NegativeSetting, result: NegativeResult) -> dict[str, Any]:
    """Everything about an evaluation but the single clips, as plain values."""
    context = setting.context
    means = {name: values.mean(axis=0) for name, values in result.scores.items()}
    clip_ids = "\n".join(sorted(result.clip_ids))
    return {
        "identity": setting.identity(),
        "benchmark": context.benchmark,
        "threshold": _threshold_record(setting, result),
        "scores": describe_scores(result.scores),
        "without_ears": {
            name: {key: float(values.mean()) for key, values in numbers.items()}
            for name, numbers in numbers_without_ears(means).items()
        },
        "similarities": _describe_extremes(result.scores),
        "off_screen": setting.off_screen,
        "num_seeds": setting.num_seeds,
        "map_bytes": result.map_bytes,
        "intervals": {
            "method": "percentile bootstrap over clips, the threshold as given",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "num_clips": len(result.clip_ids),
        "num_listed": context.num_listed,
        "complete": not context.missing and not result.unreadable,
        "missing": list(context.missing),
        "unreadable": [f"{clip_id}: {reason}" for clip_id, reason in result.unreadable],
        "labels": None if context.labels is None else dict(context.labels),
        "clip_list": {"name": context.clip_list, "sha256": context.clip_list_sha256},
        "cut": context.cut,
        "scored_clips_sha256": hashlib.sha256(clip_ids.encode()).hexdigest(),
        "data_root": context.data_root,
        "frame_geometry": context.frame_geometry,
        "note": context.note,
        "checkpoint": context.checkpoint,
        "leak_check": context.leak,
        "num_clips_epoch_was_chosen_on": context.num_chosen_on,
        "warnings": _warnings(setting, result),
        "environment": context.environment,
        "command": context.command,
    }


def _threshold_record(setting: NegativeSetting, result: NegativeResult) -> dict[str, Any]:
    record: dict[str, Any] = {"value": result.threshold, "similarity": setting.similarity}
    if setting.given_threshold is not None:
        return {**record, "source": "given"}
    num_clips = len(result.clip_ids)
    return {
        **record,
        "source": "negatives",
        "quantile": UNIVERSAL_QUANTILE,
        "rule": "numpy's linear quantile of the maxima of all negatives' up-sampled maps, each "
        "kind as often as there are seeds",
        "num_negatives": len(NEGATIVES) * setting.num_seeds * num_clips,
        "num_distinct_maps": (1 + 2 * setting.num_seeds) * num_clips,
        "seeds": list(range(setting.num_seeds)),
        "clip_list_sha256": setting.context.clip_list_sha256,
    }


def _describe_extremes(scores: ClipArrays) -> dict[str, dict[str, list[float]]]:
    """QUANTILES over maps of the lowest, middle and highest similarity, by kind of sound."""
    return {
        kind: {name: np.quantile(scores[f"{name}:{kind}"], QUANTILES).tolist() for name in EXTREMES}
        for kind in (OWN, *NEGATIVES)
    }


def _warnings(setting: NegativeSetting, result: NegativeResult) -> list[str]:
    found = []
    if setting.off_screen == "any":
        found.append(
            "Off-screen sounds are those of any other clip: some of them may be of the same class, "
            "and right for the frame."
        )
    num_empty = int(result.scores["empty"].sum())
    # Localisation's other warnings are of clips and checkpoint, not of its scores.
    return found + setting.context.warnings(result.unreadable, num_empty)


def write_negative_results(folder: Path, setting: NegativeSetting, result: NegativeResult) -> dict[str, Any]:
    """Writes summary.json, per_clip.csv, table.md, table.tex, table.csv and report.html.

    Args:
        folder: for the files.
        setting: of the evaluation.
        result: of the evaluation.

    Returns:
        the summary.
    """
    summary = summarise(setting, result)
    write_atomically(folder / "per_clip.csv", _per_clip_table(setting, result).encode())
    for form in TABLE_FILES:
        write_atomically(folder / f"table.{form}", render_table(summary, form).encode())
    page = render_negative_audio(summary, facts_of(summary))
    write_atomically(folder / "report.html", page.encode())
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "summary.json", text.encode())
    return summary


def _per_clip_table(setting: NegativeSetting, result: NegativeResult) -> str:
    """A line for each clip; numbers of noise and off-screen sounds are means over the seeds."""
    kinds, scores = (OWN, *NEGATIVES), result.scores
    numbers = {"cIoU_U": scores["ciou:own"]}
    numbers |= {f"pIA_{kind}": scores[f"area:{kind}"] for kind in kinds}
    numbers |= {f"max_{kind}": scores[f"maximum:{kind}"] for kind in kinds}
    numbers |= {
        f"{name}_median_{kind}": scores[f"{name}:{kind}"]
        for name in ("success", "pointing")
        for kind in (OWN, "off_screen")
    }
    means = {name: values.mean(axis=1) for name, values in numbers.items()}
    classes = setting.context.classes
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["clip_id", *means, *(["class"] if classes is not None else []), "off_screen_sounds_of"])
    for place, clip_id in enumerate(result.clip_ids):
        line = [clip_id, *(f"{values[place]:.6f}" for values in means.values())]
        line += [] if classes is None else [classes[clip_id]]
        table.writerow([*line, " ".join(result.donors[:, place])])
    return text.getvalue()
