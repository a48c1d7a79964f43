"""The files that an evaluation leaves: summary.json, per_clip.csv, table.*, report.html."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.benchmark_metrics import (
    clip_columns,
    describe_extra_metrics,
    extra_scores,
    extra_warnings,
    with_object_only,
)
from utils.evaluation.protocols import LocalisationProtocol
from utils.evaluation.statistics import CONFIDENCE, RESAMPLES, SEED
from utils.files import write_atomically
from utils.groups import Grouping, detail_scores, groupings_of
from utils.leaks import Leak
from utils.metric_families import ExtraScores
from utils.published_lists import KnownLists, check_list, ids_sha256
from utils.report import Gallery, Report, write_report
from utils.report_rows import build_table
from utils.scores import LocalisationResult, ProtocolScores
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
    """class of each scored clip with an object, by its id; None: not known"""
    labels: Mapping[str, str] | None = None
    """where the classes were read: path, sha256 and form of the file"""
    cut: str | None = None
    """which published cut of the benchmark the list is, or that it is none; None: not known"""
    known_lists: KnownLists = field(default_factory=KnownLists)
    """the published lists of this benchmark"""
    saved_maps: Mapping[str, Any] | None = None
    """file that the maps were read from: its path and sha256, and the command and environment that
    made them; None: they come from the model itself"""


def summarise(result: LocalisationResult, context: EvaluationContext) -> dict[str, Any]:
    """Everything about an evaluation but the single clips, as plain values."""
    located = with_object_only(context.benchmark, result)
    groupings = _groupings(located, context)
    extra = extra_scores(context.benchmark, result)
    by_protocol = summarise_protocols(located.by_protocol, groupings, extra)
    ids = {clip.clip_id for clip in located.model.clips}
    others = {clip.clip_id for clip in result.model.clips} - ids
    name_lists(by_protocol, result, context.benchmark, context.known_lists)
    first, model = by_protocol[0], located.model.summary()
    return {
        "benchmark": context.benchmark,
        "protocol": {name: first[name] for name in first if name not in ("rows", "groups")},
        "cIoU@0.5": model["ciou_at_0.5"],
        "AUC": model["auc"],
        "mean_cIoU": model["mean_ciou"],
        "pointing_accuracy": model["pointing_accuracy"],
        "num_clips": len(result.model.clips),
        "num_without_object": len(others),
        "num_listed": context.num_listed,
        "complete": not context.missing and not result.unreadable,
        "num_missing": len(context.missing),
        "missing": list(context.missing),
        "num_empty_ground_truth": located.num_empty,
        "num_non_finite_maps": result.num_non_finite,
        "num_unreadable": len(result.unreadable),
        "unreadable": [f"{clip_id}: {reason}" for clip_id, reason in result.unreadable],
        "rows": first["rows"],
        "protocols": by_protocol,
        "extra_metrics": describe_extra_metrics(context.benchmark),
        "intervals": {
            "method": "percentile bootstrap over clips",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "groupings": {grouping.name: grouping.words for grouping in groupings},
        "labels": None if context.labels is None else dict(context.labels),
        "clip_list": {"name": context.clip_list, "sha256": context.clip_list_sha256},
        "cut": context.cut,
        "scored_clips_sha256": ids_sha256(ids | others),
        "data_root": context.data_root,
        "frame_geometry": context.frame_geometry,
        "audio": context.audio,
        "object_prior": context.object_prior,
        "note": context.note,
        "scored_from_maps": None if context.saved_maps is None else dict(context.saved_maps),
        "checkpoint": context.checkpoint,
        "leak_check": context.leak.as_dict(),
        "num_clips_epoch_was_chosen_on": context.num_chosen_on,
        "warnings": warnings_of(result, context),
        "environment": context.environment,
        "command": context.command,
    }


def summarise_protocols(
    by_protocol: Sequence[ProtocolScores],
    groupings: Sequence[Grouping] = (),
    extra: Sequence[Sequence[ExtraScores]] | None = None,
) -> list[dict[str, Any]]:
    """Each rule with its scores and their intervals in percent, as plain values.

    Args:
        by_protocol: the scores under each rule, on the same clips.
        groupings: of these clips; none: scores of all clips only.
        extra: of each rule and its rows, metrics of the benchmark; None: it has none.
    """
    plain: list[dict[str, Any]] = []
    for one, detail in zip(by_protocol, detail_scores(by_protocol, groupings), strict=True):
        rows = [
            {**scores.summary(), "intervals": intervals}
            for scores, intervals in zip(one.rows, detail.intervals, strict=True)
        ]
        if extra is not None:
            rows = [
                {**row, **further.as_dict()} for row, further in zip(rows, extra[len(plain)], strict=True)
            ]
        groups = {
            name: [group.as_dict() for group in of_grouping] for name, of_grouping in detail.groups.items()
        }
        rule = asdict(one.protocol)
        del rule["published_lists"]  # of this benchmark it stands under published_list
        described = {**rule, "description": one.protocol.description, "rows": rows}
        plain.append({**described, "groups": groups} if groups else described)
    return plain


def name_lists(
    plain: Sequence[dict[str, Any]], result: LocalisationResult, benchmark: str, known: KnownLists
) -> None:
    """Adds to each rule whether its authors scored these clips.

    Args:
        plain: of `summarise_protocols`; gets an entry `published_list`.
        result: of all clips, also those without an object.
        benchmark: its name.
        known: its published lists.
    """
    clips = {clip.clip_id for clip in result.by_protocol[0].rows[0].clips}
    located = with_object_only(benchmark, result).by_protocol[0].rows[0].clips
    ids = {clip.clip_id for clip in located}
    for of_rule, one in zip(plain, result.by_protocol, strict=True):
        published = one.protocol.published_lists.get(benchmark)
        checked = check_list(one.protocol.authors, published, known, ids, clips - ids)
        of_rule["published_list"] = asdict(checked)


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
    num_empty = with_object_only(context.benchmark, result).num_empty
    if num_empty:
        found.append(
            f"{num_empty} clips have nothing annotated inside the frame: consensus IoU counts as 0 "
            "there, whatever the map."
        )
    if result.num_non_finite:
        found.append(f"{result.num_non_finite} maps are not finite numbers and count as misses.")
    return found + extra_warnings(context.benchmark, result) + _warnings_of_context(context)


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
        found.append("No clip list was given: every clip with a frame, a sound and boxes was scored.")
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
    folder: Path, result: LocalisationResult, context: EvaluationContext, galleries: Sequence[Gallery]
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
    """A line for each clip; hits and consensus IoU say nothing of one without an object: empty."""
    located = {clip.clip_id for clip in with_object_only(context.benchmark, result).model.clips}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [f"{one.protocol.name}:{score}" for one in result.by_protocol for score in PER_CLIP_SCORES]
    properties = _properties_of_clips(result, context)
    table.writerow(["clip_id", "pointing", *names, *properties])
    by_protocol = [list(zip(*(row.clips for row in one.rows), strict=True)) for one in result.by_protocol]
    columns = list(properties.values())
    for place, of_clip in enumerate(zip(result.model.clips, *by_protocol, strict=True)):
        line: list[str | int] = [int(bool(of_clip[0].pointing))]
        for model, *references in of_clip[1:]:
            others = [f"{clip.ciou:.6f}" for clip in references]
            line += [f"{model.ciou:.6f}", int(model.ciou >= 0.5), *others]
        clip_id = of_clip[0].clip_id
        line = line if clip_id in located else [""] * len(line)
        table.writerow([clip_id, *line, *(column[place] for column in columns)])
    return text.getvalue()


def _properties_of_clips(result: LocalisationResult, context: EvaluationContext) -> dict[str, list[str]]:
    """Columns of per_clip.csv by which its clips are grouped, where they are known, and others."""
    columns: dict[str, list[str]] = {}
    if result.truths:
        columns["area"] = [f"{truth.area:g}" for truth in result.truths]
        counts = [truth.num_boxes for truth in result.truths]
        columns["num_boxes"] = ["" if count is None else str(count) for count in counts]
    columns |= clip_columns(context.benchmark, result)
    if context.classes is not None:
        # Negatives of extended benchmarks have none.
        columns["class"] = [context.classes.get(clip.clip_id, "") for clip in result.model.clips]
    return columns


def _report(
    result: LocalisationResult,
    context: EvaluationContext,
    galleries: Sequence[Gallery],
    summary: Mapping[str, Any],
) -> Report:
    checkpoint = context.checkpoint
    located = with_object_only(context.benchmark, result)
    facts = {
        "clips": f"{len(result.model.clips)} of {context.num_listed} listed",
        "data": context.data_root,
        "protocol": result.by_protocol[0].protocol.name,
        "clip list": f"{context.clip_list} (sha256 {context.clip_list_sha256})",
        "frames": context.frame_geometry,
        "checkpoint": f"{checkpoint['path']} (sha256 {checkpoint['sha256']})",
        "trained": f"{checkpoint['method']}, {checkpoint['epoch']} epochs, {checkpoint['selection']}",
        "leak check": context.leak.message,
        "intervals": f"{CONFIDENCE:.0%}, {summary['intervals']['method']}, {RESAMPLES} resamples",
        "environment": ", ".join(f"{name} {value}" for name, value in context.environment.items()),
        "command": context.command,
    }
    if context.cut is not None:
        facts["published cut"] = context.cut
    if summary["num_without_object"]:
        facts["without an object"] = (
            f"{summary['num_without_object']} clips: not in cIoU, AUC, pointing, curves and groups"
        )
    if context.saved_maps is not None:
        facts["maps"] = "saved in {path} (sha256 {sha256}) by: {made_by}".format_map(context.saved_maps)
        facts["pictures"] = "none: saved maps come without their frames"
    if context.labels is not None:
        facts["classes"] = "{form} {path} (sha256 {sha256})".format_map(context.labels)
    return Report(
        title=f"Sound localisation on {context.benchmark}" + (f" ({context.note})" if context.note else ""),
        facts=facts,
        warnings=warnings_of(result, context),
        tables=[
            build_table(one, plain, summary["groupings"], summary["extra_metrics"])
            for one, plain in zip(located.by_protocol, summary["protocols"], strict=True)
        ],
        galleries=galleries,
    )
