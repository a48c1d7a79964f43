"""The scores of a negative-audio evaluation as text: screen, Markdown, LaTeX, CSV, JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from utils.evaluation.negatives import DEAF, DISC, MEDIAN_RULE, NEGATIVES, OWN, PAIRS
from utils.evaluation.statistics import Interval
from utils.tables import ScoreTable, identity_columns, interval_fact, remarks, render_as

Summary = dict[str, Any]
"""as `utils.negative_audio_results.summarise` gives it"""

KIND_WORDS = {OWN: "own sound", "silence": "silence", "noise": "noise", "off_screen": "off-screen"}
_HEADLINE = {"f_loc": "F_LOC", "f_auc": "F_AUC", "ciou_u": "cIoU_U", "auc_u": "AUC_U"}
_BY_KIND = {
    "pia": ("pIA", "lower"),
    "auc_n": ("AUC_N", "higher"),
    "f_loc": ("F_LOC", "higher"),
    "f_auc": ("F_AUC", "higher"),
}
COLUMNS = ("better", "score", "sd over seeds", "95 % interval", "deaf", "blind disc")
SOURCES = {
    "negatives": "third quartile of the highest similarities of these negatives",
    "given": "given by --threshold",
}


@dataclass(frozen=True)
class ScoreRow:
    """One number with what stands beside it, in percent."""

    key: str
    label: str
    better: str
    """higher, lower, or nothing"""
    mean: float
    sd: float | None
    """over the seeds; None where they do not change it, or there is one"""
    interval: Interval | None
    deaf: float | None
    """of the model's own map shown for every sound; None where that has no such number"""
    disc: float | None
    """of a centred disc of half the frame"""

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts in the order of COLUMNS."""
        ends = "-" if self.interval is None else "{:.2f} to {:.2f}".format(*self.interval)
        others = (_two_digits(value) for value in (self.deaf, self.disc))
        return (self.better or "-", f"{self.mean:.2f}", _two_digits(self.sd), ends, *others)


def _labels() -> Iterator[tuple[str, str, str]]:
    """Key, label and which way is better, in the order of the tables."""
    for key, label in _HEADLINE.items():
        yield key, label, "higher"
    for name, (label, better) in _BY_KIND.items():
        for kind in NEGATIVES:
            yield f"{name}_{kind}", f"{label}, {KIND_WORDS[kind]}", better
    for first, second in PAIRS:
        words = f"IoU of masks, {KIND_WORDS[first]} and {KIND_WORDS[second]}"
        yield f"iou_{first}~{second}", words, "lower" if first == OWN else ""
    for name, label in (("ciou_at_0.5", "cIoU@0.5"), ("pointing_accuracy", "pointing")):
        yield f"{name}_own", f"{label} (median rule), own sound", "higher"
        yield f"{name}_off_screen", f"{label} (median rule), off-screen", ""
        yield f"sensitivity_{name}", f"audio sensitivity: {label}, own minus off-screen", "higher"


def score_rows(summary: Summary) -> list[ScoreRow]:
    """The numbers of an evaluation, in the order of the tables."""
    deaf, disc = (summary["without_ears"][name] for name in (DEAF, DISC))
    rows = []
    for key, label, better in _labels():
        if key in summary["scores"]:
            score = summary["scores"][key]
            rows.append(ScoreRow(key, label, better, **score, deaf=deaf.get(key), disc=disc.get(key)))
    return rows


def title_of(summary: Summary) -> str:
    """What was scored, in a line."""
    clips = f"{summary['num_clips']} of {summary['num_listed']} listed clips"
    return f"Negative audio on {summary['benchmark']}, {clips}"


def threshold_words(summary: Summary) -> str:
    """The threshold and where it is from."""
    threshold = summary["threshold"]
    words = f"{threshold['value']:.6g} on {threshold['similarity']}: {SOURCES[threshold['source']]}"
    if "num_negatives" in threshold:
        words += f" ({threshold['num_negatives']} negatives, {threshold['rule']})"
    return words


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """What must stand beside the scores, named and in words."""
    checkpoint, listed, labels = (summary[name] for name in ("checkpoint", "clip_list", "labels"))
    classes = "not known" if labels is None else "{form} {path} (sha256 {sha256})".format(**labels)
    facts = [
        ("threshold", threshold_words(summary)),
        (
            "maps",
            f"up-sampled to {MEDIAN_RULE.map_size} x {MEDIAN_RULE.map_size}; active where they lie "
            f"above the threshold; median rule: {MEDIAN_RULE.description}",
        ),
        (
            "sounds",
            "silence: zeros; noise: N(0, 1); off-screen: a clip of another "
            + ("class" if summary["off_screen"] == "other_class" else "id, class not known")
            + f"; {summary['num_seeds']} seeds",
        ),
        ("deaf, blind disc", f"{DEAF}; {DISC} for every sound: what needs no hearing"),
        ("clips", f"{summary['num_clips']} scored of {summary['num_listed']} listed"),
        ("missing", f"{len(summary['missing'])} without files, {len(summary['unreadable'])} unreadable"),
        ("clip list", f"{listed['name']} (sha256 {listed['sha256']})"),
        ("published cut", summary["cut"] or "not known"),
        ("scored clips", f"sha256 {summary['scored_clips_sha256']}"),
        ("classes", classes),
        ("leak check", summary["leak_check"]["message"]),
        (
            "checkpoint",
            f"{checkpoint['method']}, {checkpoint['epoch']} epochs (sha256 {checkpoint['sha256']})",
        ),
        ("frames", summary["frame_geometry"]),
        interval_fact(summary),
        ("environment", ", ".join(f"{k} {v}" for k, v in summary["environment"].items())),
        ("command", summary["command"]),
    ]
    return facts + remarks(summary)


def screen_table(summary: Summary) -> str:
    """The scores for the screen."""
    rows = score_rows(summary)
    width = max(len(row.label) for row in rows)
    lines = [title_of(summary), _screen_line("in percent", COLUMNS, width)]
    lines += [_screen_line(row.label, row.cells, width) for row in rows]
    return "\n".join([*lines, f"threshold: {threshold_words(summary)}"])


def _screen_line(label: str, cells: tuple[str, ...], width: int) -> str:
    return f"{label:<{width}}" + "".join(
        f"{cell:>{room}}" for cell, room in zip(cells, (8, 8, 15, 18, 8, 12), strict=True)
    )


def render_table(summary: Summary, form: str) -> str:
    """The scores with all that must stand beside them.

    Args:
        summary: of an evaluation.
        form: md, tex, csv (a line for each number), or json (the whole summary).

    Returns:
        text that ends with a line feed.
    """
    rows = score_rows(summary)
    table = ScoreTable(
        title_of(summary),
        ("number", *COLUMNS),
        2,
        [(row.label, *row.cells) for row in rows],
        facts_of(summary),
    )
    return render_as(
        form, summary, markdown=table.markdown, latex=table.latex, csv_lines=partial(_csv_lines, summary)
    )


def _csv_lines(summary: Summary) -> list[dict[str, Any]]:
    """A line for each number; everything else is repeated in each of them."""
    threshold = summary["threshold"]
    shared = {
        "threshold": f"{threshold['value']:.9g}",
        "threshold_source": threshold["source"],
        "similarity": threshold["similarity"],
        "num_seeds": summary["num_seeds"],
        "off_screen": summary["off_screen"],
        "num_clips": summary["num_clips"],
        "num_listed": summary["num_listed"],
        "num_missing": len(summary["missing"]),
        "num_unreadable": len(summary["unreadable"]),
        "cut": summary["cut"] or "",
        **identity_columns(summary),
    }
    lines = []
    for row in score_rows(summary):
        low, high = row.interval or (None, None)
        values = {"score": row.mean, "sd": row.sd, "low": low, "high": high,
                  "deaf": row.deaf, "blind_disc": row.disc}  # fmt: skip
        numbers = {name: "" if v is None else f"{v:.4f}" for name, v in values.items()}
        first = {"benchmark": summary["benchmark"], "number": row.key, "better": row.better}
        lines.append(first | numbers | shared)
    return lines


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
