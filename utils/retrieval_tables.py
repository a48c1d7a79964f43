"""The scores of a retrieval as text: screen, Markdown, LaTeX, CSV, JSON."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.statistics import Interval
from utils.tables import escape_latex, escape_markdown, latex_facts, markdown_facts

Summary = dict[str, Any]
"""summary.json, as `utils.retrieval_results.write_retrieval` gives it"""

COLUMNS = ("score", "95 % interval", "chance", "ceiling", "ties")


@dataclass(frozen=True)
class ScoreRow:
    """One score of one direction with what stands beside it, in percent."""

    direction: str
    """such as audio_to_image"""
    metric: str
    """Acc@k, Prec@k or R@k"""
    value: float
    interval: Interval | None
    """None where each query scores the same"""
    chance: float
    ceiling: float
    num_tied: int
    """queries of which a tie decided who is among the first k"""

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts in the order of COLUMNS."""
        ends = "-" if self.interval is None else "{:.2f} to {:.2f}".format(*self.interval)
        others = (f"{share:.2f}" for share in (self.chance, self.ceiling))
        return (f"{self.value:.2f}", ends, *others, str(self.num_tied))


def score_rows(summary: Summary) -> list[ScoreRow]:
    """The scores of a retrieval, in the order of the tables."""
    return [
        ScoreRow(
            direction,
            metric,
            row["value"],
            row["interval"],
            row["chance"],
            row["ceiling"],
            row["num_queries_decided_by_a_tie"],
        )
        for direction, metrics in summary["directions"].items()
        for metric, row in metrics.items()
    ]


def title_of(summary: Summary) -> str:
    """What was scored, in a line."""
    classes = f", {summary['labels']['num_classes']} classes" if summary["labels"] else ""
    clips = f"{summary['num_clips']} of {summary['num_listed']} listed clips"
    return f"Retrieval on {summary['dataset']}, {clips}{classes}"


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """What must stand beside the scores, named and in words."""
    checkpoint, labels, listed = (summary[name] for name in ("checkpoint", "labels", "clip_list"))
    classes = "no labels"
    if labels is not None:
        classes = "{num_classes}, {form} {path} (sha256 {sha256})".format(**labels)
    facts = [
        ("rule", summary["rule"]),
        ("chance", "expected of neighbours drawn at random"),
        ("ceiling", "what these clips and classes allow at most"),
        ("ties", "queries of which the order of equal neighbours decided who is among the first"),
        ("clips", f"{summary['num_clips']} scored of {summary['num_listed']} listed"),
        (
            "missing",
            f"{len(summary['missing'])} without files, {len(summary['unreadable'])} unreadable",
        ),
        ("classes", classes),
        ("frames", f"{summary['image_embedding']}; {summary['frame_geometry']}"),
        ("data", summary["data_root"]),
        ("clip list", f"{listed['name']} (sha256 {listed['sha256']})"),
        ("scored clips", f"sha256 {summary['scored_clips_sha256']}"),
        ("leak check", summary["leak_check"]["message"]),
        ("checkpoint", f"{checkpoint['path']} (sha256 {checkpoint['sha256']})"),
        (
            "trained",
            f"{checkpoint['method']}, {checkpoint['epoch']} epochs, {checkpoint['selection']}",
        ),
        (
            "intervals",
            "{confidence:.0%}, {method}, {resamples} resamples, seed {seed}".format(
                **summary["intervals"]
            ),
        ),
        ("environment", ", ".join(f"{k} {v}" for k, v in summary["environment"].items())),
        ("command", summary["command"]),
    ]
    facts += [("note", summary["note"])] if summary["note"] else []
    return facts + [("warning", warning) for warning in summary["warnings"]]


def screen_table(summary: Summary) -> str:
    """The scores for the screen."""
    lines = [title_of(summary), _screen_line("in percent", "", COLUMNS)]
    before = None
    for row in score_rows(summary):
        first = row.direction if row.direction != before else ""
        lines.append(_screen_line(first, row.metric, row.cells))
        before = row.direction
    return "\n".join([*lines, summary["rule"], f"Frames: {summary['image_embedding']}"])


def _screen_line(direction: str, metric: str, cells: tuple[str, ...]) -> str:
    return f"{direction:<16}{metric:<10}" + "".join(
        f"{cell:>{room}}" for cell, room in zip(cells, (8, 18, 9, 9, 7), strict=True)
    )


def render_table(summary: Summary, form: str) -> str:
    """The scores with all that must stand beside them.

    Args:
        summary: of a retrieval.
        form: md, tex, csv (a line for each score), or json (the whole summary).

    Returns:
        text that ends with a line feed.
    """
    writers: dict[str, Callable[[Summary], str]] = {
        "md": _markdown,
        "tex": _latex,
        "csv": _csv,
        "json": lambda whole: json.dumps(whole, indent=2, allow_nan=False) + "\n",
    }
    return writers[form](summary)


def _markdown(summary: Summary) -> str:
    lines = [
        f"{escape_markdown(title_of(summary))}, in percent",
        "",
        f"| direction | metric | {' | '.join(COLUMNS)} |",
        "| --- | --- |" + " ---: |" * len(COLUMNS),
    ]
    for row in score_rows(summary):
        names = map(escape_markdown, (row.direction, row.metric))
        lines.append(f"| {' | '.join([*names, *row.cells])} |")
    return "\n".join([*lines, "", *markdown_facts(facts_of(summary))]) + "\n"


def _latex(summary: Summary) -> str:
    """A table that needs no package; its file is in UTF-8."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(title_of(summary))}, in percent.}}",
        r"\begin{tabular}{ll" + "r" * len(COLUMNS) + "}",
        r"\hline",
        " & ".join(map(escape_latex, ("direction", "metric", *COLUMNS))) + r" \\",
        r"\hline",
    ]
    for row in score_rows(summary):
        cells = map(escape_latex, (row.direction, row.metric, *row.cells))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\hline", r"\end{tabular}", "", r"\smallskip", *latex_facts(facts_of(summary))]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _csv(summary: Summary) -> str:
    """A line for each score; everything else is repeated in each of them."""
    leak, checkpoint, listed = (summary[name] for name in ("leak_check", "checkpoint", "clip_list"))
    labels = summary["labels"] or {"num_classes": "", "path": "", "sha256": ""}
    shared = {
        "rule": summary["rule"],
        "image_embedding": summary["image_embedding"],
        "num_clips": summary["num_clips"],
        "num_listed": summary["num_listed"],
        "num_missing": len(summary["missing"]),
        "num_unreadable": len(summary["unreadable"]),
        "num_classes": labels["num_classes"],
        "labels": labels["path"],
        "labels_sha256": labels["sha256"],
        "clip_list": listed["name"],
        "clip_list_sha256": listed["sha256"],
        "scored_clips_sha256": summary["scored_clips_sha256"],
        "leak_checked": int(leak["checked"]),
        "num_leaked": "" if leak["num_clips"] is None else leak["num_clips"],
        "num_clips_epoch_was_chosen_on": summary["num_clips_epoch_was_chosen_on"],
        "method": checkpoint["method"],
        "checkpoint": checkpoint["path"],
        "checkpoint_sha256": checkpoint["sha256"],
        "frame_geometry": summary["frame_geometry"],
        "note": summary["note"],
        "warnings": " | ".join(summary["warnings"]),
    }
    lines = []
    for row in score_rows(summary):
        low, high = row.interval or (None, None)
        values = {"score": row.value, "low": low, "high": high,
                  "chance": row.chance, "ceiling": row.ceiling}  # fmt: skip
        numbers = {name: "" if v is None else f"{v:.4f}" for name, v in values.items()}
        first = {"dataset": summary["dataset"], "direction": row.direction, "metric": row.metric}
        ties = {"num_queries_decided_by_a_tie": row.num_tied}
        lines.append(first | numbers | ties | shared)
    text = io.StringIO()
    table = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()
