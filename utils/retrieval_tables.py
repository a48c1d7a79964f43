"""The scores of a retrieval as text: screen, Markdown, LaTeX, CSV, JSON."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from utils.evaluation.statistics import Interval
from utils.tables import ScoreTable, identity_columns, interval_fact, remarks, render_as

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
        ("missing", f"{len(summary['missing'])} without files, {len(summary['unreadable'])} unreadable"),
        ("classes", classes),
        ("frames", f"{summary['image_embedding']}; {summary['frame_geometry']}"),
        ("data", summary["data_root"]),
        ("clip list", f"{listed['name']} (sha256 {listed['sha256']})"),
        ("scored clips", f"sha256 {summary['scored_clips_sha256']}"),
        ("leak check", summary["leak_check"]["message"]),
        ("checkpoint", f"{checkpoint['path']} (sha256 {checkpoint['sha256']})"),
        ("trained", f"{checkpoint['method']}, {checkpoint['epoch']} epochs, {checkpoint['selection']}"),
        interval_fact(summary),
        ("environment", ", ".join(f"{k} {v}" for k, v in summary["environment"].items())),
        ("command", summary["command"]),
    ]
    return facts + remarks(summary)


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
    rows = score_rows(summary)
    table = ScoreTable(
        title_of(summary),
        ("direction", "metric", *COLUMNS),
        2,
        [(row.direction, row.metric, *row.cells) for row in rows],
        facts_of(summary),
    )
    return render_as(
        form, summary, markdown=table.markdown, latex=table.latex, csv_lines=partial(_csv_lines, summary)
    )


def _csv_lines(summary: Summary) -> list[dict[str, Any]]:
    """A line for each score; everything else is repeated in each of them."""
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
        **identity_columns(summary),
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
    return lines
