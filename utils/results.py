"""The files that an evaluation leaves: summary.json, per_clip.csv, report.html."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.evaluation import LocalisationResult, ProtocolScores, Scores
from utils.files import write_atomically
from utils.leaks import Leak
from utils.metrics import SUCCESS_THRESHOLDS
from utils.protocols import LocalisationProtocol
from utils.report import Gallery, Report, ReportRow, ReportTable, write_report
from utils.success_plot import SuccessCurve

SCORE_KEYS = ("ciou_at_0.5", "auc", "mean_ciou", "pointing_accuracy")
"""of Scores.summary, in the order of the table on the screen"""
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


def summarise(result: LocalisationResult, context: EvaluationContext) -> dict[str, Any]:
    """Everything about an evaluation but the single clips, as plain values."""
    by_protocol = summarise_protocols(result.by_protocol)
    first, model = by_protocol[0], result.model.summary()
    clip_ids = "\n".join(sorted(clip.clip_id for clip in result.model.clips))
    return {
        "benchmark": context.benchmark,
        "protocol": {name: value for name, value in first.items() if name != "rows"},
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
        "clip_list": {"name": context.clip_list, "sha256": context.clip_list_sha256},
        "scored_clips_sha256": hashlib.sha256(clip_ids.encode()).hexdigest(),
        "data_root": context.data_root,
        "frame_geometry": context.frame_geometry,
        "audio": context.audio,
        "note": context.note,
        "checkpoint": context.checkpoint,
        "leak_check": context.leak.as_dict(),
        "num_clips_epoch_was_chosen_on": context.num_chosen_on,
        "warnings": warnings_of(result, context),
        "environment": context.environment,
        "command": context.command,
    }


def summarise_protocols(by_protocol: Sequence[ProtocolScores]) -> list[dict[str, Any]]:
    """Each rule with its scores in percent, as plain values."""
    return [
        {
            **asdict(one.protocol),
            "description": one.protocol.description,
            "rows": [scores.summary() for scores in one.rows],
        }
        for one in by_protocol
    ]


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
    """Writes summary.json, per_clip.csv and report.html.

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
    write_atomically(folder / "per_clip.csv", _per_clip_table(result).encode())
    write_report(folder / "report.html", _report(result, context, galleries))
    write_atomically(folder / "summary.json", summary_text.encode())
    return summary


def score_table(by_protocol: Sequence[dict[str, Any]], heading: str) -> str:
    """The scores for the screen: a line for each rule and predictor, then the rules in words.

    Args:
        by_protocol: as `summarise_protocols` gives it.
        heading: what was scored; above the first column.
    """
    columns = ("cIoU@0.5", "AUC", "mean cIoU", "pointing")
    rows = [
        (
            protocol["name"] if index == 0 else "",
            row["name"],
            *(_two_digits(row[key]) for key in SCORE_KEYS),
        )
        for protocol in by_protocol
        for index, row in enumerate(protocol["rows"])
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[0] = max(widths[0], len("protocol"))
    lines = [heading]
    for name, predictor, *scores in (("protocol", "in percent", *columns), *rows):
        cells = "".join(f"{score:>11}" for score in scores)
        lines.append(f"{name:<{widths[0]}}  {predictor:<{widths[1]}}{cells}")
    lines += [f"{protocol['name']}: {protocol['description']}" for protocol in by_protocol]
    return "\n".join(lines)


def headline(summary: dict[str, Any]) -> str:
    """What was scored, in a line."""
    return f"{summary['benchmark']}, {summary['num_clips']} of {summary['num_listed']} listed clips"


def _two_digits(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _per_clip_table(result: LocalisationResult) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [
        f"{one.protocol.name}:{score}" for one in result.by_protocol for score in PER_CLIP_SCORES
    ]
    table.writerow(["clip_id", "pointing", *names])
    by_protocol = [
        list(zip(*(row.clips for row in one.rows), strict=True)) for one in result.by_protocol
    ]
    for of_clip in zip(result.model.clips, *by_protocol, strict=True):
        line = [of_clip[0].clip_id, int(bool(of_clip[0].pointing))]
        for model, *references in of_clip[1:]:
            others = [f"{clip.ciou:.6f}" for clip in references]
            line += [f"{model.ciou:.6f}", int(model.ciou >= 0.5), *others]
        table.writerow(line)
    return text.getvalue()


def _report(
    result: LocalisationResult, context: EvaluationContext, galleries: Sequence[Gallery]
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
        "environment": ", ".join(f"{name} {value}" for name, value in context.environment.items()),
        "command": context.command,
    }
    return Report(
        title=f"Sound localisation on {context.benchmark}"
        + (f" ({context.note})" if context.note else ""),
        facts=facts,
        warnings=warnings_of(result, context),
        tables=[_table(one) for one in result.by_protocol],
        galleries=galleries,
    )


def _table(one: ProtocolScores) -> ReportTable:
    return ReportTable(
        name=one.protocol.name,
        rule=one.protocol.description,
        rows=[_row(scores) for scores in one.rows],
        curves=[
            SuccessCurve(
                scores.name, SUCCESS_THRESHOLDS, [100 * rate for rate in scores.curve], scores.kind
            )
            for scores in one.rows
        ],
    )


def _row(scores: Scores) -> ReportRow:
    summary = scores.summary()
    pointing = summary["pointing_accuracy"]
    return ReportRow(
        name=scores.name,
        ciou_at_0_5=float(summary["ciou_at_0.5"] or 0.0),
        auc=float(summary["auc"] or 0.0),
        mean_ciou=float(summary["mean_ciou"] or 0.0),
        pointing_accuracy=math.nan if pointing is None else float(pointing),
        kind=scores.kind,
    )
