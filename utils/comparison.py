"""Several evaluations side by side: one table, one page, and how each differs from the first."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.files import write_atomically
from utils.metrics import SUCCESS_THRESHOLDS, success_curve
from utils.report import Report, write_report
from utils.report_rows import build_metrics
from utils.report_tables import ReportRow, ReportTable
from utils.results import PER_CLIP_SCORES
from utils.statistics import SCORE_KEYS, compare_paired
from utils.success_plot import SuccessCurve
from utils.tables import CHARACTERS_OF_LATEX

Values = NDArray[np.float64]

REFERENCE_COLUMNS = PER_CLIP_SCORES[2:]
"""of the blind baselines and the ceiling, in the order of a summary's rows after the model"""
WORDLESS = ("last", "best", "latest")
"""File names that say nothing of a model; its folder's name does."""
MUST_AGREE = ("benchmark", "scored_clips_sha256", "frame_geometry", "audio")
"""Entries of the summaries without which scores are not those of the same clips."""
HEADINGS = (
    "protocol",
    "model",
    "cIoU@0.5",
    "AUC",
    "mean cIoU",
    "pointing",
    "Δ cIoU@0.5",
    "Δ AUC",
    "Δ mean cIoU",
    "hits gained",
    "hits lost",
    "p",
)
"""The table's first columns; those after `pointing` compare with the first model on the same clips,
and p is McNemar's of the hits gained and lost."""
COMPARED = SCORE_KEYS[:3]
"""Scores whose differences have a column."""


@dataclass(frozen=True)
class ScoredModel:
    """What one evaluation left in its folder."""

    name: str
    """in tables"""
    summary: dict[str, Any]
    """its summary.json"""
    columns: dict[str, Values]
    """the scores in its per_clip.csv, in the order of the ids: (N,) each; on extended benchmarks of
    the clips with an object"""

    def column(self, protocol: str, score: str) -> Values:
        """One of PER_CLIP_SCORES under a rule, (N,)."""
        return self.columns[f"{protocol}:{score}"]

    def cious(self, protocol: str) -> Values:
        """(N,) consensus IoU under a rule; what was rounded up to a hit in the file is none."""
        almost = np.nextafter(0.5, 0)
        cious, hits = self.column(protocol, "ciou"), self.column(protocol, "success")
        return np.where(hits == 0, np.minimum(cious, almost), cious)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Names for checkpoints, fit for folders: of the file, its folder's where that says nothing.

    Args:
        paths: of the checkpoints.

    Returns:
        as many names, all different.
    """
    stems = [path.name.split(".pt")[0] for path in paths]
    clear = [stem not in WORDLESS and stems.count(stem) == 1 for stem in stems]
    long = [
        stem if enough else f"{path.absolute().parent.name}_{stem}"
        for path, stem, enough in zip(paths, stems, clear, strict=True)
    ]
    names: list[str] = []
    for name in (re.sub(r"[^\w.+-]", "_", name) for name in long):
        candidates = (f"{name}-{number}" for number in count(2))
        names.append(name if name not in names else next(c for c in candidates if c not in names))
    return names


def read_scored_model(name: str, folder: Path) -> ScoredModel:
    """Reads what `test.py localisation` left.

    Args:
        name: for tables; the method and an object prior are added.
        folder: with summary.json and per_clip.csv.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not of this version of the program, or the two do not fit.
    """
    with (folder / "per_clip.csv").open(newline="") as file:
        clips = sorted(csv.DictReader(file), key=lambda row: row["clip_id"])
    try:
        summary = json.loads((folder / "summary.json").read_text())
        without_object = {"0"} if summary["num_without_object"] else set()
        located = [clip for clip in clips if clip["num_boxes"] not in without_object]
        columns = {
            column: np.array([float(clip[column]) for clip in located])
            for column in clips[0]
            if ":" in column  # scores of a rule; others tell what kind of clip it is
        }
        method, num_clips = summary["checkpoint"]["method"], summary["num_clips"]
        title = f"{name} ({method}){summary['rows'][0]['name'].removeprefix('model')}"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"The results in {folder} cannot be read ({error!r}). They were written by another "
            "version of the program or are damaged: remove the folder and score the model anew."
        ) from error
    if len(clips) != num_clips:
        raise ValueError(
            f"{folder}: summary.json is of {num_clips} clips, per_clip.csv of {len(clips)}. Remove "
            "the folder and score the model anew."
        )
    return ScoredModel(title, summary, columns)


def check_comparable(models: Sequence[ScoredModel]) -> None:
    """Refuses evaluations that are not of the same clips, boxes and rules.

    Raises:
        ValueError: they differ; the message says in what.
    """
    first = models[0]
    for other in models[1:]:
        different = [key for key in MUST_AGREE if other.summary[key] != first.summary[key]]
        if _rules(other) != _rules(first):
            different.append("protocols")
        elif not different and not _same_truth(first, other):
            different.append("boxes")
        if different:
            raise ValueError(
                f"{first.name} and {other.name} cannot be compared: their results differ in "
                f"{', '.join(different)}. Score all on the same clips, with the same options."
            )


def _rules(model: ScoredModel) -> list[dict[str, Any]]:
    found = ("rows", "groups")
    return [{k: v for k, v in one.items() if k not in found} for one in model.summary["protocols"]]


def _same_truth(first: ScoredModel, other: ScoredModel) -> bool:
    """A blind mask's consensus IoU follows from the boxes alone."""
    column = f"{first.summary['protocols'][0]['name']}:{REFERENCE_COLUMNS[0]}"
    return np.array_equal(first.columns[column], other.columns[column], equal_nan=True)


def compare(models: Sequence[ScoredModel], command: str) -> dict[str, Any]:
    """Everything about a comparison, as plain values.

    Args:
        models: of the same clips (check_comparable); the others are compared with the first.
        command: that made it.
    """
    first = models[0].summary
    return {
        "benchmark": first["benchmark"],
        "num_clips": first["num_clips"],
        "num_without_object": first["num_without_object"],
        "extra_metrics": first["extra_metrics"],
        "clip_list": first["clip_list"],
        **{key: first[key] for key in MUST_AGREE},
        "compared_with": models[0].name,
        "protocols": [
            {"name": one["name"], "description": one["description"], "rows": _rows(models, place)}
            for place, one in enumerate(first["protocols"])
        ],
        "models": [
            {
                "name": model.name,
                "checkpoint": model.summary["checkpoint"],
                "object_prior": model.summary["object_prior"],
                "warnings": model.summary["warnings"],
                "command": model.summary["command"],
            }
            for model in models
        ],
        "command": command,
    }


def _rows(models: Sequence[ScoredModel], place: int) -> list[dict[str, Any]]:
    """The models' rows under a rule, then those of the blind baselines and the ceiling."""
    of_first = models[0].summary["protocols"][place]
    rows = []
    for model in models:
        both = [one.cious(of_first["name"]) for one in (model, models[0])]
        rows.append(
            {
                **model.summary["protocols"][place]["rows"][0],
                "name": model.name,
                "difference": None if model is models[0] else compare_paired(*both).as_dict(),
            }
        )
    return rows + [{**row, "difference": None} for row in of_first["rows"][1:]]


def write_comparison(folder: Path, models: Sequence[ScoredModel], command: str) -> dict[str, Any]:
    """Writes comparison.json, .csv, .md and .tex, and report.html.

    Args:
        folder: for the files.
        models: of the same clips; the others are compared with the first.
        command: that made it.

    Returns:
        the comparison, as in comparison.json.

    Raises:
        ValueError: the models were not scored on the same clips, boxes and rules.
    """
    check_comparable(models)
    comparison = compare(models, command)
    cells = table_cells(comparison)
    text = json.dumps(comparison, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "comparison.csv", _as_csv(cells).encode())
    write_atomically(folder / "comparison.md", as_markdown(cells).encode())
    write_atomically(folder / "comparison.tex", _as_latex(cells).encode())
    write_report(folder / "report.html", _report(models, comparison))
    write_atomically(folder / "comparison.json", text.encode())
    return comparison


def table_cells(comparison: dict[str, Any]) -> list[list[str]]:
    """The comparison as a table of words: a line each for its headings, then rules and models.

    The headings are HEADINGS and, where the benchmark has metrics of its own, those after them.
    """
    extra = comparison["extra_metrics"]
    names = [] if extra is None else extra["shown"]
    lines = [[*HEADINGS, *names]]
    for protocol in comparison["protocols"]:
        for row in protocol["rows"]:
            scores = [_number(row[key]) for key in SCORE_KEYS]
            cells = [protocol["name"], row["name"], *scores, *_difference(row["difference"])]
            lines.append(cells + [_number(row["extra"][name]) for name in names])
    return lines


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _difference(difference: dict[str, Any] | None) -> list[str]:
    if difference is None:
        return [""] * (len(COMPARED) + 3)
    success = difference["success"]
    points = [f"{difference['differences'][score]:+.2f}" for score in COMPARED]
    for place, score in enumerate(COMPARED):
        if difference["intervals"][score] is not None:
            points[place] += " [{:+.2f}, {:+.2f}]".format(*difference["intervals"][score])
    counts = [str(success["only_first"]), str(success["only_second"])]
    return [*points, *counts, f"{success['p_value']:.2g}"]


def _as_csv(cells: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def as_markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table of words as Markdown."""
    head, *lines = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def _as_latex(cells: Sequence[Sequence[str]]) -> str:
    head, *lines = [[_latex_words(cell) for cell in line] for line in cells]
    body = "".join(f"{' & '.join(line)} \\\\\n" for line in lines)
    columns = "ll" + "r" * (len(head) - 2)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{' & '.join(head)} \\\\\n\\hline\n{body}"
        "\\hline\n\\end{tabular}\n"
    )


def _latex_words(words: str) -> str:
    escaped = "".join(CHARACTERS_OF_LATEX.get(letter, letter) for letter in words)
    return escaped.replace("Δ", r"$\Delta$")


def _report(models: Sequence[ScoredModel], comparison: dict[str, Any]) -> Report:
    others = ", ".join(model.name for model in models[1:])
    without = comparison["num_without_object"]
    facts = {
        "clips": f"{comparison['num_clips']}, the same for all"
        + (f"; {without} without an object: not in cIoU, AUC, pointing and curves" * bool(without)),
        "protocol": comparison["protocols"][0]["name"],
        "clip list": f"{comparison['clip_list']['name']} (sha256 "
        f"{comparison['clip_list']['sha256']})",
        "frames": comparison["frame_geometry"],
        **{
            model.name: f"{model.summary['checkpoint']['path']} (sha256 "
            f"{model.summary['checkpoint']['sha256']})"
            for model in models
        },
        "command": comparison["command"],
    }
    return Report(
        title=f"{models[0].name} compared with {others} on {comparison['benchmark']}",
        facts=facts,
        warnings=[f"{m.name}: {warning}" for m in models for warning in m.summary["warnings"]],
        tables=[
            _report_table(models, one, comparison["extra_metrics"])
            for one in comparison["protocols"]
        ],
        galleries=[],
    )


def _report_table(
    models: Sequence[ScoredModel], protocol: dict[str, Any], extra: dict[str, Any] | None
) -> ReportTable:
    name, rows = protocol["name"], protocol["rows"]
    sources = [(model, PER_CLIP_SCORES[0]) for model in models]
    sources += [(models[0], score) for score in REFERENCE_COLUMNS]
    curves = []
    for row, (model, score) in zip(rows, sources, strict=True):
        rates = [100 * rate for rate in success_curve(model.column(name, score))]
        curves.append(SuccessCurve(row["name"], SUCCESS_THRESHOLDS, rates, row["kind"]))
    return ReportTable(
        name=name,
        rule=protocol["description"],
        rows=[_report_row(row, models[0].name) for row in rows],
        curves=curves,
        metrics=build_metrics(rows, extra),
    )


def _report_row(row: dict[str, Any], first: str) -> ReportRow:
    note = ""
    if row["difference"] is not None:
        success = row["difference"]["success"]
        note = (
            f"{row['difference']['differences']['ciou_at_0.5']:+.1f} points against {first}: "
            f"{success['only_first']} hits gained, {success['only_second']} lost, "
            f"p = {success['p_value']:.2g}"
        )
    pointing = row["pointing_accuracy"]
    return ReportRow(
        name=row["name"],
        ciou_at_0_5=row["ciou_at_0.5"],
        auc=row["auc"],
        mean_ciou=row["mean_ciou"],
        pointing_accuracy=math.nan if pointing is None else pointing,
        kind=row["kind"],
        intervals=[row["intervals"][key] for key in SCORE_KEYS],
        note=note,
    )
