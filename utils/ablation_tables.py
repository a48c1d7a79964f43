"""What an ablation found, as Markdown, CSV and LaTeX that stand on their own."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.ablation_plot import render_plot
from utils.comparison import as_markdown
from utils.files import write_atomically
from utils.tables import SHORT_SHA256, escape_latex

TABLE, PLOT = "table", "plot.svg"
"""Names of the files."""

Result = Mapping[str, Any]
"""as `utils.ablation.gather` gives it"""


def write_ablation(folder: Path, result: Result) -> list[Path]:
    """Writes table.md, table.csv, table.tex, plot.svg and last table.json; returns their paths."""
    texts = {
        f"{TABLE}.md": render_markdown(result),
        f"{TABLE}.csv": render_csv(result),
        f"{TABLE}.tex": render_latex(result),
        PLOT: render_plot(result),
        f"{TABLE}.json": json.dumps(result, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]


def render_scores(result: Result) -> str:
    """What is not in the means, and a table for each rule, as Markdown."""
    grid = result["grid"]
    parts = [f"# Ablation {grid['name']}\n", f"{_sentence(grid)}\n"]
    parts += [f"**Failed: {'; '.join(result['failed'])}.**\n"] if result["failed"] else []
    unfinished = result["unfinished"]
    parts += [f"**Not finished: {'; '.join(unfinished)}.**\n"] if unfinished else []
    for sheet in result["sheets"]:
        table = as_markdown(_cells(sheet))
        parts += [f"## {_title(sheet)}\n", f"{_facts(sheet, result)}\n", table]
    return "\n".join(parts)


def render_markdown(result: Result) -> str:
    """The scores, then every variant and run, and the commands."""
    commands = [line for run in result["runs"] for line in _commands(run)]
    parts = [
        render_scores(result),
        "## Variants\n",
        as_markdown(_variant_cells(result["grid"])),
        "## Runs\n",
        as_markdown(_run_cells(result["runs"])),
        f"Made by `{result['command']}`.\n",
        "```bash",
        *commands,
        "```\n",
    ]
    return "\n".join(parts)


def render_latex(result: Result) -> str:
    """A table for each rule; needs no package, in UTF-8."""
    tables = []
    for sheet in result["sheets"]:
        head, *lines = _cells(sheet)
        words = [[escape_latex(cell).replace("±", r"$\pm$") for cell in line] for line in lines]
        caption = f"Ablation {result['grid']['name']}: {_title(sheet)}. {_facts(sheet, result)}"
        tables += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(caption)}}}",
            r"\begin{tabular}{lr" + "r" * len(sheet["headings"]) + "}",
            r"\hline",
            " & ".join(map(escape_latex, head)) + r" \\",
            r"\hline",
            *(" & ".join(line) + r" \\" for line in words),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    problems = [*result["failed"], *result["unfinished"]]
    tables += [f"% not in the means: {'; '.join(problems)}"] if problems else []
    return "\n".join(tables) + "\n"


def render_csv(result: Result) -> str:
    """A line for each rule and run, then its mean and deviation, then what needs no model."""
    headings = dict.fromkeys(key for sheet in result["sheets"] for key in sheet["headings"])
    text = io.StringIO()
    fixed = ("task", "rule", "variant", "kind", "seed", "n")
    origin = ("epochs", "checkpoint_sha256", "training_list_sha256", "clip_list_sha256", "command")
    table = csv.DictWriter(text, [*fixed, *headings, *origin], restval="", lineterminator="\n")
    table.writeheader()
    for sheet in result["sheets"]:
        table.writerows(_csv_lines(sheet, result["runs"]))
    for run in result["runs"]:
        if run["state"] != "scored":
            line = {"variant": run["variant"], "kind": run["state"], "seed": run["seed"]}
            table.writerow({**line, "epochs": run["epochs"], "command": run["command"]})
    return text.getvalue()


def _csv_lines(sheet: Result, runs: Sequence[Result]) -> Iterable[dict[str, Any]]:
    shared = {"task": sheet["task"], "rule": sheet["rule"]}
    shared["clip_list_sha256"] = sheet["clip_list"]["sha256"]
    by_name = {(run["variant"], run["seed"]): run for run in runs}
    for row in sheet["rows"]:
        named = {**shared, "variant": row["variant"]}
        for place, seed in enumerate(row["seeds"]):
            run = by_name[row["variant"], seed]
            values = {key: scores["values"][place] for key, scores in row["scores"].items()}
            yield {
                **named, "kind": "run", "seed": seed, "n": 1, **_four_digits(values),
                "epochs": run["epochs"], "checkpoint_sha256": run["checkpoint_sha256"],
                "training_list_sha256": run["training_list"].get("sha256", ""),
                "command": run["command"],
            }  # fmt: skip
        for kind in ("mean", "deviation"):
            values = {key: scores[kind] for key, scores in row["scores"].items()}
            yield {**named, "kind": kind, "n": row["n"], **_four_digits(values)}
    for name, scores in sheet["references"].items():
        yield {**shared, "variant": name, "kind": "reference", **_four_digits(scores)}


def _four_digits(scores: Mapping[str, float | None]) -> dict[str, str]:
    return {key: "" if value is None else f"{value:.4f}" for key, value in scores.items()}


def _sentence(grid: Result) -> str:
    shared = " ".join(grid["options"])
    words = f"{grid['method']}; {grid['words']}" if grid["words"] else grid["method"]
    return f"{words}. Shared options: `{shared}`." if shared else f"{words}."


def _title(sheet: Result) -> str:
    return f"{sheet['benchmark']}, {sheet['task']}, {sheet['rule']}"


def _facts(sheet: Result, result: Result) -> str:
    listed = sheet["clip_list"]
    return (
        f"Percent, mean ± {result['deviation']}. {sheet['num_clips']} clips of {listed['name']} "
        f"(sha256 {listed['sha256'][:SHORT_SHA256]}), {result['environment']['device']}. "
        f"{sheet['rule']}: {sheet['words']}"
    )


def _cells(sheet: Result) -> list[list[str]]:
    """Head, a line for each variant, and one for each reference."""
    lines = [["variant", "n", *sheet["headings"].values()]]
    for row in sheet["rows"]:
        scores = [_number(row["scores"][key]) for key in sheet["headings"]]
        lines.append([row["variant"], str(row["n"]), *scores])
    for name, scores in sheet["references"].items():
        known = [scores.get(key) for key in sheet["headings"]]
        lines.append([name, "", *("" if s is None else f"{s:.2f}" for s in known)])
    return lines


def _number(score: Result) -> str:
    mean, deviation = score["mean"], score["deviation"]
    if mean is None:
        return ""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _variant_cells(grid: Result) -> list[list[str]]:
    lines = [["variant", "changes", "options"]]
    for variant in grid["variants"]:
        options = " ".join(variant["options"])
        lines.append([variant["name"], variant["words"], f"`{options}`" if options else ""])
    return lines


def _run_cells(runs: Sequence[Result]) -> list[list[str]]:
    lines = [["variant", "seed", "state", "epochs", "checkpoint sha256", "training list sha256"]]
    for run in runs:
        sums = [run["checkpoint_sha256"] or "", run["training_list"].get("sha256", "")]
        state = f"{run['state']}: {run['reason']}" if run["reason"] else run["state"]
        counts = [str(run["seed"]), state, str(run["epochs"])]
        lines.append([run["variant"], *counts, *(one[:SHORT_SHA256] for one in sums)])
    return lines


def _commands(run: Result) -> list[str]:
    return [run["command"], *(found["command"] for found in run["evaluations"].values())]
