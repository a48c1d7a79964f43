"""Several evaluations side by side: one table, one page, and how each differs from the first."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison_tables import COLUMNS_OF_A_MODEL, COLUMNS_OF_CLIPS, Fact, build_groupings, join_facts
from utils.evaluation.metrics import SUCCESS_THRESHOLDS, success_curve
from utils.evaluation.statistics import SCORE_KEYS, Interval, compare_paired
from utils.files import write_atomically
from utils.report import Report, write_report
from utils.report_rows import build_metrics
from utils.report_tables import ReportRow, ReportTable
from utils.results import PER_CLIP_SCORES
from utils.scored_models import KEPT, MUST_AGREE, ScoredModel
from utils.success_plot import SuccessCurve
from utils.tables import escape_latex, latex_facts, markdown_facts, rule_words

REFERENCE_COLUMNS = PER_CLIP_SCORES[2:]
"""of the blind baselines and the ceiling, in the order of a summary's rows after the model"""
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
        "intervals": first["intervals"],
        "clip_list": first["clip_list"],
        **{key: first[key] for key in MUST_AGREE},
        "compared_with": models[0].name,
        "protocols": [
            {
                **{key: one[key] for key in ("name", "description", "published_list")},
                "rows": _rows(models, place),
            }
            for place, one in enumerate(first["protocols"])
        ],
        "models": [{"name": model.name, **{key: model.summary[key] for key in KEPT}} for model in models],
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
    latex = [_as_latex(cells), *latex_facts(_facts(models)), ""]
    write_atomically(folder / "comparison.csv", _as_csv(comparison, models).encode())
    write_atomically(folder / "comparison.md", comparison_markdown(models, comparison).encode())
    write_atomically(folder / "comparison.tex", "\n".join(latex).encode())
    write_report(folder / "report.html", _report(models, comparison, folder))
    write_atomically(folder / "comparison.json", text.encode())
    return comparison


def comparison_markdown(models: Sequence[ScoredModel], comparison: dict[str, Any]) -> str:
    """The table with all that must stand beside it, as Markdown.

    Args:
        models: that are compared.
        comparison: of these models, as `compare` gives it.
    """
    lines = markdown_facts(_facts(models))
    return "\n".join([as_markdown(table_cells(comparison)), *lines]) + "\n"


def _facts(models: Sequence[ScoredModel]) -> list[Fact]:
    return join_facts({model.name: model.facts for model in models})


def table_cells(comparison: dict[str, Any], *, apart: bool = False) -> list[list[str]]:
    """The comparison as a table of words: a line each for its headings, then rules and models.

    The headings are HEADINGS and, where the benchmark has metrics of its own, those after them.

    Args:
        comparison: as `compare` gives it.
        apart: the ends of an interval stand in columns of their own, as numbers; else behind what
            they belong to, in brackets.
    """
    extra = comparison["extra_metrics"]
    names = [] if extra is None else extra["shown"]
    with_intervals = {*HEADINGS[2 : 2 + len(SCORE_KEYS) + len(COMPARED)], *names}
    columns = [
        [name, f"{name} low", f"{name} high"] if apart and name in with_intervals else [name]
        for name in (*HEADINGS, *names)
    ]
    spread = _in_columns if apart else _in_brackets
    lines = [[cell for column in columns for cell in column]]
    for protocol in comparison["protocols"]:
        for row in protocol["rows"]:
            cells = [protocol["name"], row["name"]]
            for key in SCORE_KEYS:
                cells += spread(row[key], row["intervals"][key])
            cells += _difference(row["difference"], spread)
            for name in names:
                cells += spread(row["extra"][name], row["extra_intervals"].get(name))
            lines.append(cells)
    return lines


def _in_brackets(score: float | None, interval: Interval | None, form: str = ".2f") -> list[str]:
    if score is None or interval is None:
        return [_number(score, form)]
    low, high = (_number(end, form) for end in interval)
    return [f"{score:{form}} [{low}, {high}]"]


def _in_columns(score: float | None, interval: Interval | None, form: str = ".2f") -> list[str]:
    return [_number(one, form) for one in (score, *(interval or (None, None)))]


def _number(score: float | None, form: str) -> str:
    return "" if score is None else f"{score:{form}}"


def _difference(difference: dict[str, Any] | None, spread: Callable[..., list[str]]) -> Iterator[str]:
    for score in COMPARED:
        of_score = (
            (None, None)
            if difference is None
            else (difference["differences"][score], difference["intervals"][score])
        )
        yield from spread(*of_score, "+.2f")
    if difference is None:
        yield from ("", "", "")
    else:
        success = difference["success"]
        yield from (str(success["only_first"]), str(success["only_second"]))
        yield f"{success['p_value']:.2g}"


def _as_csv(comparison: dict[str, Any], models: Sequence[ScoredModel]) -> str:
    """The table, and in further columns what must stand beside each of its lines."""
    head, *lines = table_cells(comparison, apart=True)
    named = {model.name: model for model in models}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*head, *COLUMNS_OF_CLIPS, *COLUMNS_OF_A_MODEL])
    for line in lines:
        protocol, name = line[:2]
        beside = named.get(name, models[0]).beside[protocol]
        of_model = [beside[key] if name in named else "" for key in COLUMNS_OF_A_MODEL]
        table.writerow([*line, *(beside[key] for key in COLUMNS_OF_CLIPS), *of_model])
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
    return escape_latex(words).replace("Δ", r"$\Delta$")


def _report(models: Sequence[ScoredModel], comparison: dict[str, Any], folder: Path) -> Report:
    others = ", ".join(model.name for model in models[1:])
    without = comparison["num_without_object"]
    facts = {
        "clips": f"{comparison['num_clips']}, the same for all"
        + (f"; {without} without an object: not in cIoU, AUC, pointing and curves" * bool(without)),
        "protocol": comparison["protocols"][0]["name"],
        **_clip_lists(models),
        **{
            model.name: f"{model.summary['checkpoint']['path']} (sha256 "
            f"{model.summary['checkpoint']['sha256']})"
            for model in models
        },
    }
    shown_elsewhere = ("protocol ", "warning of ")
    for name, words in _facts(models):
        if not name.startswith(shown_elsewhere):
            facts.setdefault(name, words)
    pages = [model.page for model in models if model.page.parent.parent == folder]
    if pages:
        names = ", ".join(str(page.relative_to(folder)) for page in pages)
        facts["pages of the models"] = f"{names}, beside this page"
    facts["command"] = comparison["command"]
    return Report(
        title=f"{models[0].name} compared with {others} on {comparison['benchmark']}",
        facts=facts,
        warnings=[f"{m.name}: {warning}" for m in models for warning in m.summary["warnings"]],
        tables=[_report_table(models, comparison, place) for place in range(len(comparison["protocols"]))],
        galleries=[],
    )


def _clip_lists(models: Sequence[ScoredModel]) -> dict[str, str]:
    """The clip list, or each model's where they differ: other lists may name the same clips."""
    words = {
        model.name: "{name} (sha256 {sha256})".format_map(model.summary["clip_list"]) for model in models
    }
    if len(set(words.values())) == 1:
        return {"clip list": words[models[0].name]}
    return {f"clip list of {name}": listed for name, listed in words.items()}


def _report_table(models: Sequence[ScoredModel], comparison: dict[str, Any], place: int) -> ReportTable:
    protocol = comparison["protocols"][place]
    name, rows = protocol["name"], protocol["rows"]
    sources = [(model, PER_CLIP_SCORES[0]) for model in models]
    sources += [(models[0], score) for score in REFERENCE_COLUMNS]
    curves = []
    for row, (model, score) in zip(rows, sources, strict=True):
        rates = [100 * rate for rate in success_curve(model.column(name, score))]
        curves.append(SuccessCurve(row["name"], SUCCESS_THRESHOLDS, rates, row["kind"]))
    return ReportTable(
        name=name,
        rule=rule_words(protocol),
        rows=[_report_row(row, models[0].name) for row in rows],
        curves=curves,
        groupings=build_groupings({model.name: model.summary for model in models}, place),
        metrics=build_metrics(rows, comparison["extra_metrics"]),
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
