"""The files that an evaluation leaves: summary.json, per_clip.csv, table.*, report.html."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.evaluation import LocalisationResult, ProtocolScores
from utils.files import write_atomically
from utils.groups import FEW_CLIPS, Grouping, detail_scores, groupings_of
from utils.leaks import Leak
from utils.metrics import SUCCESS_THRESHOLDS
from utils.protocols import LocalisationProtocol
from utils.report import Gallery, Report, write_report
from utils.report_tables import ReportGroup, ReportGrouping, ReportRow, ReportTable
from utils.statistics import CONFIDENCE, RESAMPLES, SCORE_KEYS, SEED, Interval
from utils.success_plot import SuccessCurve
from utils.tables import TABLE_FILES, render_table

PER_CLIP_SCORES = ("ciou", "success", "disc", "gaussian", "ceiling")
"""columns of each rule in per_clip.csv"""


@dataclass(frozen=True)
class EvaluationContext:
    """What was scored, with what: stands beside every number."""

    benchmark: str
    data_root: str
    clip_list: str
    clip_list_sha256: str
    num_listed: int
    missing: tuple[str, ...]
    """listed clips without files, with the reason"""
    frame_geometry: str
    audio: str
    """own, or shuffled: each frame with another clip's sound"""
    note: str
    """the user's words"""
    checkpoint: dict[str, Any]
    """path, sha256, method, epoch, selection, training list"""
    leak: Leak
    num_chosen_on: int
    """scored clips on which the checkpoint's epoch was chosen as the best"""
    environment: dict[str, str]
    command: str
    object_prior: float | None = None
    """share of the model's map beside a map of objects; None: the model alone"""
    classes: Mapping[str, str] | None = None
    """class of each scored clip, by its id; None: not known"""
    labels: Mapping[str, str] | None = None
    """where the classes were read: path, sha256 and form of the file"""


def summarise(result: LocalisationResult, context: EvaluationContext) -> dict[str, Any]:
    """Everything about an evaluation but the single clips, as plain values."""
    groupings = _groupings(result, context)
    by_protocol = summarise_protocols(result.by_protocol, groupings)
    first, model = by_protocol[0], result.model.summary()
    clip_ids = "\n".join(sorted(clip.clip_id for clip in result.model.clips))
    return {
        "benchmark": context.benchmark,
        "protocol": {name: first[name] for name in first if name not in ("rows", "groups")},
        "cIoU@0.5": model["ciou_at_0.5"],
        "AUC": model["auc"],
        "mean_cIoU": model["mean_ciou"],
        "pointing_accuracy": model["pointing_accuracy"],
        "num_clips": len(result.model.clips),
        "num_listed": context.num_listed,
        "complete": not context.missing and not result.unreadable,
        "num_missing": len(context.missing),
        "missing": list(context.missing),
        "num_empty_ground_truth": result.num_empty,
        "num_non_finite_maps": result.num_non_finite,
        "num_unreadable": len(result.unreadable),
        "unreadable": [f"{clip_id}: {reason}" for clip_id, reason in result.unreadable],
        "rows": first["rows"],
        "protocols": by_protocol,
        "intervals": {
            "method": "percentile bootstrap over clips",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "groupings": {grouping.name: grouping.words for grouping in groupings},
        "labels": None if context.labels is None else dict(context.labels),
        "clip_list": {"name": context.clip_list, "sha256": context.clip_list_sha256},
        "scored_clips_sha256": hashlib.sha256(clip_ids.encode()).hexdigest(),
        "data_root": context.data_root,
        "frame_geometry": context.frame_geometry,
        "audio": context.audio,
        "object_prior": context.object_prior,
        "note": context.note,
        "checkpoint": context.checkpoint,
        "leak_check": context.leak.as_dict(),
        "num_clips_epoch_was_chosen_on": context.num_chosen_on,
        "warnings": warnings_of(result, context),
        "environment": context.environment,
        "command": context.command,
    }


def summarise_protocols(
    by_protocol: Sequence[ProtocolScores], groupings: Sequence[Grouping] = ()
) -> list[dict[str, Any]]:
    """Each rule with its scores and their intervals in percent, as plain values.

    Args:
        by_protocol: the scores under each rule, on the same clips.
        groupings: of these clips; none: scores of all clips only.
    """
    plain = []
    for one, detail in zip(by_protocol, detail_scores(by_protocol, groupings), strict=True):
        rows = [
            {**scores.summary(), "intervals": intervals}
            for scores, intervals in zip(one.rows, detail.intervals, strict=True)
        ]
        groups = {
            name: [group.as_dict() for group in of_grouping]
            for name, of_grouping in detail.groups.items()
        }
        described = {**asdict(one.protocol), "description": one.protocol.description, "rows": rows}
        plain.append({**described, "groups": groups} if groups else described)
    return plain


def _groupings(result: LocalisationResult, context: EvaluationContext) -> tuple[Grouping, ...]:
    if context.classes is None:
        return groupings_of(result.truths)
    classes = [context.classes[clip.clip_id] for clip in result.model.clips]
    return groupings_of(result.truths, classes)


def warnings_of(result: LocalisationResult, context: EvaluationContext) -> list[str]:
    """What a reader must know before trusting the numbers."""
    found = []
    if context.missing:
        found.append(
            f"{len(context.missing)} of {context.num_listed} listed clips are missing or broken "
            f"and not scored, first: {context.missing[0]}"
        )
    if result.unreadable:
        found.append(
            f"{len(result.unreadable)} clips could not be decoded and are not scored, first: "
            f"{result.unreadable[0][1]}"
        )
    if result.num_empty:
        found.append(
            f"{result.num_empty} clips have no box inside the frame: a miss whatever the map."
        )
    if result.num_non_finite:
        found.append(f"{result.num_non_finite} maps are not finite numbers and count as misses.")
    return found + _warnings_of_context(context)


def _warnings_of_context(context: EvaluationContext) -> list[str]:
    """What the checkpoint and the choice of clips say against a number."""
    found = []
    if context.checkpoint.get("training_list", {}).get("num_missing"):
        trained = context.checkpoint["training_list"]
        found.append(
            f"Trained without {trained['num_missing']} of the {trained['num_listed']} clips of "
            f"{trained['name']}, which were missing."
        )
    if not context.leak.checked or context.leak.num_clips:
        found.append(context.leak.message)
    if context.checkpoint.get("random_encoders"):
        found.append(
            "The frozen encoders have random weights (--random-init): this is not the accuracy of "
            "the published method."
        )
    if context.object_prior is not None:
        found.append(
            f"The maps are {1 - context.object_prior:.0%} those of an object prior, which is blind "
            "to the sound; it alone is scored by --object-prior 0."
        )
    if context.audio != "own":
        found.append("CONTROL: each frame was scored with another clip's sound.")
    if context.num_chosen_on:
        found.append(
            f"CHOSEN ON TEST: this epoch was picked as the best on {context.num_chosen_on} of the "
            "clips that are scored here. An untouched test set would score lower."
        )
    if context.clip_list == "every clip found":
        found.append(
            "No clip list was given: every clip with a frame, a sound and boxes was scored."
        )
    return found


def check_results_folder(
    folder: Path, protocols: Sequence[LocalisationProtocol], context: EvaluationContext
) -> None:
    """Refuses a folder that holds another evaluation's results.

    Args:
        folder: for the results.
        protocols: the rules, in their order.
        context: of the evaluation to come.

    Raises:
        FileExistsError: the summary there is of another checkpoint, benchmark, clip list or other
            rules.
        ValueError: the summary there cannot be read.
    """
    path = folder / "summary.json"
    if not path.exists():
        return
    wanted = {
        "benchmark": context.benchmark,
        "protocol": [protocol.name for protocol in protocols],
        "checkpoint": context.checkpoint["sha256"],
        "clip list": context.clip_list_sha256,
        "frame geometry": context.frame_geometry,
        "audio": context.audio,
        "object prior": context.object_prior,
    }
    try:
        there = json.loads(path.read_text())
        found = {
            "benchmark": there["benchmark"],
            "protocol": [protocol["name"] for protocol in there["protocols"]],
            "checkpoint": there["checkpoint"]["sha256"],
            "clip list": there["clip_list"]["sha256"],
            "frame geometry": there["frame_geometry"],
            "audio": there["audio"],
            "object prior": there["object_prior"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a summary of this version of the program; name another --output."
        ) from error
    different = [name for name in wanted if wanted[name] != found[name]]
    if different:
        raise FileExistsError(
            f"{path} holds the results of another evaluation (another {', '.join(different)}). "
            "Name another --output."
        )


def write_results(
    folder: Path,
    result: LocalisationResult,
    context: EvaluationContext,
    galleries: Sequence[Gallery],
) -> dict[str, Any]:
    """Writes summary.json, per_clip.csv, table.md, table.tex, table.csv and report.html.

    Args:
        folder: for the files.
        result: of the evaluation.
        context: of the evaluation.
        galleries: pictures for the report.

    Returns:
        the summary.
    """
    summary = summarise(result, context)
    summary_text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "per_clip.csv", _per_clip_table(result, context).encode())
    for form in TABLE_FILES:
        write_atomically(folder / f"table.{form}", render_table(summary, form).encode())
    write_report(folder / "report.html", _report(result, context, galleries, summary))
    write_atomically(folder / "summary.json", summary_text.encode())
    return summary


def _per_clip_table(result: LocalisationResult, context: EvaluationContext) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [
        f"{one.protocol.name}:{score}" for one in result.by_protocol for score in PER_CLIP_SCORES
    ]
    properties = _properties_of_clips(result, context)
    table.writerow(["clip_id", "pointing", *names, *properties])
    by_protocol = [
        list(zip(*(row.clips for row in one.rows), strict=True)) for one in result.by_protocol
    ]
    columns = list(properties.values())
    for place, of_clip in enumerate(zip(result.model.clips, *by_protocol, strict=True)):
        line = [of_clip[0].clip_id, int(bool(of_clip[0].pointing))]
        for model, *references in of_clip[1:]:
            others = [f"{clip.ciou:.6f}" for clip in references]
            line += [f"{model.ciou:.6f}", int(model.ciou >= 0.5), *others]
        table.writerow(line + [column[place] for column in columns])
    return text.getvalue()


def _properties_of_clips(
    result: LocalisationResult, context: EvaluationContext
) -> dict[str, list[str]]:
    """Columns of per_clip.csv by which its clips are grouped, where they are known."""
    columns = {}
    if result.truths:
        columns["area"] = [f"{truth.area:g}" for truth in result.truths]
        counts = [truth.num_boxes for truth in result.truths]
        columns["num_boxes"] = ["" if count is None else str(count) for count in counts]
    if context.classes is not None:
        columns["class"] = [context.classes[clip.clip_id] for clip in result.model.clips]
    return columns


def _report(
    result: LocalisationResult,
    context: EvaluationContext,
    galleries: Sequence[Gallery],
    summary: Mapping[str, Any],
) -> Report:
    checkpoint = context.checkpoint
    facts = {
        "clips": f"{len(result.model.clips)} of {context.num_listed} listed",
        "data": context.data_root,
        "protocol": result.by_protocol[0].protocol.name,
        "clip list": f"{context.clip_list} (sha256 {context.clip_list_sha256})",
        "frames": context.frame_geometry,
        "checkpoint": f"{checkpoint['path']} (sha256 {checkpoint['sha256']})",
        "trained": f"{checkpoint['method']}, {checkpoint['epoch']} epochs, "
        f"{checkpoint['selection']}",
        "leak check": context.leak.message,
        "intervals": f"{CONFIDENCE:.0%}, {summary['intervals']['method']}, {RESAMPLES} resamples",
        "environment": ", ".join(f"{name} {value}" for name, value in context.environment.items()),
        "command": context.command,
    }
    if context.labels is not None:
        facts["classes"] = "{form} {path} (sha256 {sha256})".format_map(context.labels)
    return Report(
        title=f"Sound localisation on {context.benchmark}"
        + (f" ({context.note})" if context.note else ""),
        facts=facts,
        warnings=warnings_of(result, context),
        tables=[
            _table(one, plain, summary["groupings"])
            for one, plain in zip(result.by_protocol, summary["protocols"], strict=True)
        ],
        galleries=galleries,
    )


def _table(one: ProtocolScores, plain: Mapping[str, Any], words: Mapping[str, str]) -> ReportTable:
    return ReportTable(
        name=one.protocol.name,
        rule=one.protocol.description,
        rows=[_row(row) for row in plain["rows"]],
        curves=[
            SuccessCurve(
                scores.name, SUCCESS_THRESHOLDS, [100 * rate for rate in scores.curve], scores.kind
            )
            for scores in one.rows
        ],
        groupings=[
            _grouping(name, words[name], groups) for name, groups in plain.get("groups", {}).items()
        ],
    )


def _row(row: Mapping[str, Any]) -> ReportRow:
    ciou_at_0_5, auc, mean_ciou, pointing = _numbers(row)
    return ReportRow(
        row["name"],
        ciou_at_0_5,
        auc,
        mean_ciou,
        pointing,
        kind=row["kind"],
        intervals=_intervals(row),
    )


def _grouping(name: str, words: str, groups: Sequence[Mapping[str, Any]]) -> ReportGrouping:
    """The groups in their order, but classes by their score, the best first."""
    by_score = name == "class"
    ordered = sorted(groups, key=lambda group: -group[SCORE_KEYS[0]]) if by_score else groups
    return ReportGrouping(
        title=f"By {name.replace('_', ' ')}",
        words=f"Groups: {words}. Best blind and ceiling: their cIoU@0.5 on the same clips. Few "
        f"clips: fewer than {FEW_CLIPS}, for which the intervals are too narrow.",
        groups=[
            ReportGroup(
                group["name"],
                group["num_clips"],
                group["few_clips"],
                _numbers(group),
                _intervals(group),
                group["best_blind"],
                group["ceiling"],
            )
            for group in ordered
        ],
    )


def _numbers(row: Mapping[str, Any]) -> list[float]:
    """The headline numbers in percent, NaN where there is none."""
    return [math.nan if row[key] is None else float(row[key]) for key in SCORE_KEYS]


def _intervals(row: Mapping[str, Any]) -> list[Interval | None]:
    return [row["intervals"][key] for key in SCORE_KEYS]
