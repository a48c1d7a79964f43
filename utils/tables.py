"""The scores as text: for the screen, and as Markdown, LaTeX and CSV that stand on their own."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from utils.statistics import SCORE_KEYS

SCORE_NAMES = dict(zip(SCORE_KEYS, ("cIoU@0.5", "AUC", "mean cIoU", "pointing"), strict=True))
SHORT_SHA256 = 12
"""digits of a sha256 where there is little room"""
TABLE_FILES = ("md", "tex", "csv")
"""forms that each evaluation leaves as table.<form>"""
CHARACTERS_OF_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
}  # fmt: skip

Summary = dict[str, Any]
"""as `utils.results.summarise` gives it"""


def headline(summary: Summary) -> str:
    """What was scored, in a line."""
    return f"{summary['benchmark']}, {summary['num_clips']} of {summary['num_listed']} listed clips"


def score_table(by_protocol: Sequence[dict[str, Any]], heading: str) -> str:
    """The scores for the screen: a line for each rule and predictor, then the rules in words.

    Args:
        by_protocol: as `utils.results.summarise_protocols` gives it.
        heading: what was scored; above the first column.
    """
    rows = []
    for protocol in by_protocol:
        for index, row in enumerate(protocol["rows"]):
            scores = [_two_digits(row[key]) for key in SCORE_KEYS]
            rows.append((protocol["name"] if index == 0 else "", row["name"], *scores))
            if row["kind"] == "model":
                ends = [_range(row["intervals"][key]) for key in SCORE_KEYS]
                rows.append(("", "  95 % interval", *ends))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[0] = max(widths[0], len("protocol"))
    lines = [heading]
    for name, predictor, *scores in (("protocol", "in percent", *SCORE_NAMES.values()), *rows):
        cells = "".join(f"{score:>11}" for score in scores)
        lines.append(f"{name:<{widths[0]}}  {predictor:<{widths[1]}}{cells}")
    lines += [f"{protocol['name']}: {protocol['description']}" for protocol in by_protocol]
    return "\n".join(lines)


def render_table(summary: Summary, form: str) -> str:
    """The scores under every rule with all that must stand beside them.

    Args:
        summary: of an evaluation.
        form: md, tex, csv (a line for each rule and predictor), or json (the whole summary).

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


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """What must stand beside the scores, named and in words."""
    checkpoint, listed = summary["checkpoint"], summary["clip_list"]
    method = summary["intervals"]
    facts = [(f"protocol {one['name']}", one["description"]) for one in summary["protocols"]]
    facts += [
        ("clips", f"{summary['num_clips']} scored of {summary['num_listed']} listed"),
        (
            "missing",
            f"{summary['num_missing']} without files, {summary['num_unreadable']} unreadable",
        ),
        ("clip list", f"{listed['name']} (sha256 {listed['sha256'][:SHORT_SHA256]})"),
        ("scored clips", f"sha256 {summary['scored_clips_sha256'][:SHORT_SHA256]}"),
        ("leak check", summary["leak_check"]["message"]),
        (
            "checkpoint",
            f"{checkpoint['method']}, {checkpoint['epoch']} epochs "
            f"(sha256 {checkpoint['sha256'][:SHORT_SHA256]})",
        ),
        ("frames, sound", f"{summary['frame_geometry']}, {summary['audio']}"),
        (
            "intervals",
            f"{method['confidence']:.0%}, {method['method']}, {method['resamples']} resamples, "
            f"seed {method['seed']}",
        ),
    ]
    facts += [("note", summary["note"])] if summary["note"] else []
    return facts + [("warning", warning) for warning in summary["warnings"]]


def escape_latex(text: str) -> str:
    """Text for LaTeX, in one line."""
    return " ".join("".join(CHARACTERS_OF_LATEX.get(c, c) for c in text).split())


def _markdown(summary: Summary) -> str:
    lines = [
        f"Sound localisation on {_escape_markdown(headline(summary))}, in percent [95 % interval]",
        "",
        f"| protocol | predictor | {' | '.join(SCORE_NAMES.values())} |",
        "| --- | --- |" + " ---: |" * len(SCORE_NAMES),
    ]
    for protocol, row in _rows(summary):
        cells = [_with_interval(row, key, "{} [{}, {}]") for key in SCORE_KEYS]
        names = [_escape_markdown(name) for name in (protocol["name"], row["name"])]
        lines.append(f"| {' | '.join([*names, *cells])} |")
    lines.append("")
    lines += [f"- {name}: {_escape_markdown(words)}" for name, words in facts_of(summary)]
    return "\n".join(lines) + "\n"


def _latex(summary: Summary) -> str:
    """A table that needs no package; its file is in UTF-8."""
    columns = [escape_latex(name) for name in ("protocol", "predictor", *SCORE_NAMES.values())]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{Sound localisation on {escape_latex(headline(summary))}, in percent "
        r"[95\,\% interval].}",
        r"\begin{tabular}{ll" + "r" * len(SCORE_NAMES) + "}",
        r"\hline",
        " & ".join(columns) + r" \\",
    ]
    for protocol, row in _rows(summary):
        cells = [_with_interval(row, key, r"{} {{\tiny [{}, {}]}}") for key in SCORE_KEYS]
        names = [escape_latex(name) for name in (protocol["name"], row["name"])]
        first = row is protocol["rows"][0]
        lines += [r"\hline"] if first else []
        lines.append(" & ".join([names[0] if first else "", names[1], *cells]) + r" \\")
    lines += [r"\hline", r"\end{tabular}", "", r"\smallskip", r"\parbox{\linewidth}{\footnotesize"]
    lines += [escape_latex(f"{name}: {words}") + r"\\" for name, words in facts_of(summary)]
    lines[-1] = lines[-1].removesuffix(r"\\") + "}"
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _csv(summary: Summary) -> str:
    """A line for each rule and predictor; everything else is repeated in each of them."""
    leak, checkpoint, listed = (summary[name] for name in ("leak_check", "checkpoint", "clip_list"))
    shared = {
        "num_listed": summary["num_listed"],
        "num_missing": summary["num_missing"],
        "num_unreadable": summary["num_unreadable"],
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
        "audio": summary["audio"],
        "note": summary["note"],
        "warnings": " | ".join(summary["warnings"]),
    }
    lines = []
    for protocol, row in _rows(summary):
        line: dict[str, Any] = {
            "benchmark": summary["benchmark"],
            "protocol": protocol["name"],
            "rule": protocol["description"],
            "predictor": row["name"],
            "kind": row["kind"],
            "num_clips": summary["num_clips"],
        }
        for key in SCORE_KEYS:
            values = (row[key], *(row["intervals"][key] or (None, None)))
            for suffix, value in zip(("", "_low", "_high"), values, strict=True):
                line[key + suffix] = "" if value is None else f"{value:.4f}"
        lines.append(line | shared)
    text = io.StringIO()
    table = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


def _rows(summary: Summary) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each rule with each of its predictors."""
    return [(protocol, row) for protocol in summary["protocols"] for row in protocol["rows"]]


def _with_interval(row: dict[str, Any], key: str, form: str) -> str:
    """A score with its interval where it has one; `form` takes the three numbers."""
    interval = row["intervals"][key]
    if interval is None:
        return _two_digits(row[key])
    return form.format(*map(_two_digits, (row[key], *interval)))


def _two_digits(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1f}-{interval[1]:.1f}"


def _escape_markdown(text: str) -> str:
    """Text for Markdown, in one line."""
    marked = "".join(f"\\{letter}" if letter in r"\`*_[]<>|" else letter for letter in text)
    return " ".join(marked.split())
