"""The files of a negative-audio evaluation: summary.json, per_clip.csv, table.*, report.html."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.evaluation.statistics import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    bootstrap_statistics,
    plain_interval,
)
from utils.files import write_atomically
from utils.negative_audio import NEGATIVES, OWN
from utils.negative_audio_report import render_negative_audio
from utils.negative_audio_scores import (
    EXTREMES,
    UNIVERSAL_QUANTILE,
    ClipArrays,
    Scoring,
    clip_columns,
    numbers_of,
    numbers_without_ears,
)
from utils.negative_audio_tables import facts_of, render_table
from utils.results import EvaluationContext, warnings_of
from utils.scores import LocalisationResult
from utils.tables import TABLE_FILES

logger = logging.getLogger(__name__)

TASK = "negative audio"
QUARTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""quantiles over maps that describe the lowest, middle and highest similarities"""


@dataclass(frozen=True)
class NegativeSetting:
    """What is scored by which rule: stands beside every number."""

    context: EvaluationContext
    scoring: Scoring
    num_seeds: int
    off_screen: str
    """which sounds are off-screen, see `utils.negative_audio.scenes_of`"""
    given_threshold: float | None = None
    """None: that of these negatives"""
    threshold_from: Mapping[str, Any] | None = None
    """the threshold of another set's summary, and which set; None: not so"""
    peer: str | None = None
    """whose program is repeated with its errors; None: errors are not repeated"""

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
            "threshold_from": None if self.threshold_from is None else dict(self.threshold_from),
            "as_published": self.peer,
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
        found = _read_summary(path).get("identity", {})
        different = [key for key, value in self.identity().items() if found.get(key) != value]
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


def read_threshold(
    path: Path, checkpoint_sha256: str, similarity: str, clip_ids: Collection[str]
) -> dict[str, Any]:
    """The universal threshold that another evaluation has found, for use on these clips.

    Args:
        path: its summary.json; per_clip.csv, which names its clips, lies beside it.
        checkpoint_sha256: of the model that is scored here.
        similarity: the scale of this model's similarities, in words.
        clip_ids: of the clips that are scored here.

    Returns:
        value, num_negatives, num_shared_clips, clip_list_sha256 and path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another task or another model, or its threshold was not computed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No summary at {path}. --threshold-from takes the summary.json that test.py negatives "
            "has left for another set of clips."
        )
    summary = _read_summary(path)
    if summary.get("identity", {}).get("task") != TASK:
        raise ValueError(f"{path} is not of test.py negatives, so it holds no such threshold.")
    threshold, other = summary["threshold"], summary["checkpoint"]["sha256"]
    if other != checkpoint_sha256:
        raise ValueError(
            f"{path} is of another checkpoint (sha256 {other[:12]}, here {checkpoint_sha256[:12]})."
            " A threshold belongs to its model: score this one on the other set first."
        )
    if threshold["source"] != "negatives" or threshold["similarity"] != similarity:
        raise ValueError(
            f"{path}: its threshold ({threshold['source']}, on {threshold['similarity']}) was not "
            f"computed from negatives on {similarity}. Name the result of an evaluation without "
            "--threshold, --threshold-from and --as-published."
        )
    return {
        "value": float(threshold["value"]),
        "num_negatives": threshold["num_negatives"],
        "num_shared_clips": len(_clips_beside(path) & set(clip_ids)),
        "clip_list_sha256": summary["clip_list"]["sha256"],
        "path": str(path),
    }


def _clips_beside(path: Path) -> set[str]:
    """Ids of the clips of a summary."""
    table = path.with_name("per_clip.csv")
    if not table.is_file():
        raise FileNotFoundError(
            f"No per_clip.csv beside {path}: without the ids of its clips nothing says whether its "
            "threshold is held out. Keep the files of a result together."
        )
    with table.open(newline="", encoding="utf-8") as file:
        return {row["clip_id"] for row in csv.DictReader(file)}


@dataclass(frozen=True)
class NegativeResult:
    """What an evaluation found, for N clips and R seeds."""

    clip_ids: tuple[str, ...]
    extremes: ClipArrays
    """see `utils.negative_audio_scores.find_extremes`"""
    scores: ClipArrays
    """see `utils.negative_audio_scores.score_maps`"""
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
    columns = clip_columns(result.scores)
    means = {name: values.mean(axis=0) for name, values in columns.items()}
    clip_ids = "\n".join(sorted(result.clip_ids))
    return {
        "identity": setting.identity(),
        "benchmark": context.benchmark,
        "as_published": setting.peer,
        "threshold": _threshold_record(setting, result),
        "scores": _describe_scores(columns, means),
        "without_ears": {
            name: {key: float(values.mean()) for key, values in numbers.items()}
            for name, numbers in numbers_without_ears(means).items()
        },
        "similarities": _describe_extremes(result.extremes),
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
        "leak_check": context.leak.as_dict(),
        "num_clips_epoch_was_chosen_on": context.num_chosen_on,
        "warnings": _warnings(setting, result),
        "environment": context.environment,
        "command": context.command,
    }


def _threshold_record(setting: NegativeSetting, result: NegativeResult) -> dict[str, Any]:
    source = "negatives"
    if setting.peer is not None:
        source = "published"
    elif setting.given_threshold is not None:
        source = "given"
    elif setting.threshold_from is not None:
        source = "shared clips" if setting.threshold_from["num_shared_clips"] else "held out"
    num_clips = len(result.clip_ids)
    record: dict[str, Any] = {
        "value": result.threshold,
        "source": source,
        "similarity": setting.scoring.similarity,
    }
    if source == "negatives":
        record |= {
            "quantile": UNIVERSAL_QUANTILE,
            "rule": "numpy's linear quantile of the maxima of all negatives' up-sampled maps, each "
            "kind as often as there are seeds",
            "num_negatives": len(NEGATIVES) * setting.num_seeds * num_clips,
            "num_distinct_maps": (1 + 2 * setting.num_seeds) * num_clips,
            "seeds": list(range(setting.num_seeds)),
            "clip_list_sha256": setting.context.clip_list_sha256,
        }
    if setting.threshold_from is not None:
        record["from"] = dict(setting.threshold_from)
    if setting.scoring.published is not None:
        record["of_the_list"] = [setting.scoring.published.maximum, setting.scoring.published.raised]
    return record


def _describe_scores(
    columns: ClipArrays, means: Mapping[str, NDArray[np.float64]]
) -> dict[str, dict[str, Any]]:
    """Mean and spread over seeds, and interval over clips, of each number in percent."""
    matrix = np.concatenate(list(columns.values()), axis=1)
    num_clips = len(matrix)
    ends = np.cumsum([values.shape[1] for values in columns.values()])[:-1]

    def resampled(repeats: NDArray[np.int64]) -> Sequence[float]:
        parts = np.split(repeats.astype(np.float64) @ matrix / num_clips, ends)
        drawn = numbers_of(dict(zip(columns, parts, strict=True)))
        return [float(values.mean()) for values in drawn.values()]

    numbers = numbers_of(means)
    intervals: list[Interval | None] = [
        plain_interval(pair) for pair in bootstrap_statistics(resampled, num_clips)
    ]
    return {
        name: {
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            "interval": interval,
        }
        for (name, values), interval in zip(numbers.items(), intervals, strict=True)
    }


def _describe_extremes(extremes: ClipArrays) -> dict[str, dict[str, list[float]]]:
    """QUARTILES over maps of the lowest, middle and highest similarity, by kind of sound."""
    return {
        kind: {
            name: np.quantile(extremes[kind][..., place], QUARTILES).tolist()
            for place, name in enumerate(EXTREMES)
        }
        for kind in (OWN, *NEGATIVES)
    }


def _warnings(setting: NegativeSetting, result: NegativeResult) -> list[str]:
    found = []
    if setting.peer is not None:
        found.append(
            f"AS PUBLISHED: the errors of the authors' evaluation of {setting.peer} are repeated "
            "(docs/negative_audio.md). Compare with nothing that was made without them."
        )
    if setting.off_screen == "any":
        found.append(
            "Off-screen sounds are those of any other clip: some of them may be of the same class, "
            "and right for the frame."
        )
    shared = 0 if setting.threshold_from is None else setting.threshold_from["num_shared_clips"]
    if shared:
        found.append(
            f"The threshold is not held out: {shared} of the clips scored here are among those on "
            "which it was found."
        )
    num_empty = int(result.scores["empty"].sum())
    # Localisation's other warnings are of clips and checkpoint, not of its scores.
    return found + warnings_of(LocalisationResult((), result.unreadable, num_empty), setting.context)


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
    columns = clip_columns(result.scores)
    kinds = (OWN, *NEGATIVES)
    numbers = {"cIoU_U": columns["ciou:own"]}
    numbers |= {f"pIA_{kind}": columns[f"area:{kind}"] for kind in kinds}
    numbers |= {f"max_{kind}": result.extremes[kind][..., -1] for kind in kinds}
    numbers |= {
        f"{name}_{kind}": columns[f"{column}:{kind}"]
        for name, column in (("success_median", "success"), ("pointing_median", "pointing"))
        for kind in (OWN, "off_screen")
    }
    means = {name: values.mean(axis=1) for name, values in numbers.items()}
    classes = setting.context.classes
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    published = ["as_published"] if setting.peer is not None else []
    heads = ["clip_id", *means, *(["class"] if classes is not None else []), "off_screen_sounds_of"]
    table.writerow(heads + published)
    for place, clip_id in enumerate(result.clip_ids):
        line = [clip_id, *(f"{values[place]:.6f}" for values in means.values())]
        line += [] if classes is None else [classes[clip_id]]
        line.append(" ".join(result.donors[:, place]))
        table.writerow(line + [setting.peer] * len(published))
    return text.getvalue()
