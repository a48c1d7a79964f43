"""Gathers the runs of an ablation: mean and deviation over seeds, of what was really scored."""

import csv
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.evaluation.negatives import DISC
from utils.negative_audio_tables import SOURCES, score_rows
from utils.tables import SCORE_NAMES

MUST_AGREE = ("benchmark", "num_clips", "scored_clips_sha256", "clip_list")
"""Entries of the summaries of a task without which the scores of its runs cannot stand together."""
DEVIATION = "sample standard deviation over seeds (n - 1); none for a single one"
MODEL = "model"
"""Kind of the row that is no reference."""
NEGATIVE_SCORES = (
    "f_loc", "f_auc", "ciou_u", "auc_u", "pia_silence", "pia_noise", "pia_off_screen",
    "auc_n_silence", "auc_n_noise", "auc_n_off_screen",
)  # fmt: skip
"""Of `test.py negatives`, those that are gathered."""

Scores = dict[str, float | None]
"""percent, by the name of the score"""


@dataclass(frozen=True)
class ScoreSheet:
    """The scores of one run under one rule of a task of test.py."""

    task: str
    rule: str
    """name of the rule"""
    words: str
    """the rule in words"""
    headings: dict[str, str]
    """of the scores, in the table's order"""
    scores: Scores
    references: dict[str, Scores] = field(default_factory=dict)
    """what needs no model, by name: blind baselines and the ceiling"""


@dataclass(frozen=True)
class AblationRun:
    """A variant with a seed: where it stands, and what it scored."""

    variant: str
    seed: int
    folder: str
    state: str
    """scored; trained: not scored yet; interrupted; failed; not started"""
    command: str
    """of the training"""
    reason: str = ""
    """why it failed"""
    epochs: int = 0
    """finished ones"""
    checkpoint_sha256: str | None = None
    training_list: dict[str, Any] = field(default_factory=dict)
    """name, sha256, size"""
    last_epoch: dict[str, float] = field(default_factory=dict)
    """mean losses of the last finished epoch"""
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """of each task that scored it"""

    def sheets(self) -> list[ScoreSheet]:
        """All its scores."""
        return [sheet for task, summary in self.summaries.items() for sheet in READERS[task](summary)]


def read_last_epoch(folder: Path) -> dict[str, float]:
    """The last row of a run's history.csv; empty without one."""
    path = folder / "history.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: float(value) for name, value in rows[-1].items() if value} if rows else {}


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary.json of an evaluation.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read.
    """
    path = folder / "summary.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged; remove {folder} and call again: {error}") from error


def _localisation_sheets(summary: Mapping[str, Any]) -> list[ScoreSheet]:
    shown = (summary.get("extra_metrics") or {"shown": ()})["shown"]
    headings = SCORE_NAMES | {name: name for name in shown}
    sheets = []
    for protocol in summary["protocols"]:
        scores: dict[str, Scores] = {}
        for row in protocol["rows"]:
            extra = {name: row["extra"][name] for name in shown}
            name = MODEL if row["kind"] == MODEL else row["name"]
            scores[name] = {key: row[key] for key in SCORE_NAMES} | extra
        rule = (protocol["name"], protocol["description"])
        sheets.append(ScoreSheet("localisation", *rule, headings, scores.pop(MODEL), scores))
    return sheets


def _negative_sheets(summary: Mapping[str, Any]) -> list[ScoreSheet]:
    rows = {row.key: row for row in score_rows(dict(summary)) if row.key in NEGATIVE_SCORES}
    threshold = SOURCES[summary["threshold"]["source"]]
    # The deaf guess is left out: it is the model's own map, another for each run.
    references = {DISC: {key: row.disc for key, row in rows.items()}}
    return [
        ScoreSheet(
            "negatives",
            "universal threshold",
            f"one threshold on the similarity for all clips and sounds of a model ({threshold}); "
            "docs/negative_audio.md explains the numbers",
            {key: row.label for key, row in rows.items()},
            {key: row.mean for key, row in rows.items()},
            references,
        )
    ]


READERS: dict[str, Callable[[Mapping[str, Any]], list[ScoreSheet]]] = {
    "localisation": _localisation_sheets,
    "negatives": _negative_sheets,
}
"""How the summary of each task of test.py is read; an ablation can be scored by these."""


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the values that are there.

    Args:
        values: of the runs of a variant; None where a run has no such score.

    Returns:
        the mean, None without values; the deviation, None for fewer than two.
    """
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    return mean, statistics.stdev(known) if len(known) > 1 else None


def check_comparable(runs: Sequence[AblationRun]) -> None:
    """Refuses to put scores of different clips into one table.

    Raises:
        ValueError: two runs were scored on different clips, or the same task by different rules.
    """
    for task, read in READERS.items():
        scored = [run for run in runs if task in run.summaries]
        for run in scored[1:]:
            first, other = scored[0].summaries[task], run.summaries[task]
            differing = [name for name in MUST_AGREE if first.get(name) != other.get(name)]
            rules = [[sheet.rule for sheet in read(one)] for one in (first, other)]
            differing += ["the rules"] if rules[0] != rules[1] else []
            if differing:
                raise ValueError(
                    f"{scored[0].folder} and {run.folder} were not scored alike by {task}: "
                    f"{', '.join(differing)} differ. Remove the older folder '{task}' in them and "
                    "call again."
                )


def gather(
    runs: Sequence[AblationRun], *, grid: Mapping[str, Any], command: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the tables say, as plain values.

    Args:
        runs: every planned run, in whatever state.
        grid: name, method, words, shared options and variants (name, options, words) in order.
        command: that makes it.
        environment: versions and device.

    Raises:
        ValueError: runs were scored on different clips.
    """
    check_comparable(runs)
    return {
        "grid": dict(grid),
        "deviation": DEVIATION,
        "sheets": _sheets(runs, [variant["name"] for variant in grid["variants"]]),
        "runs": [_plain_run(run) for run in runs],
        "failed": [f"{run.variant}, seed {run.seed}" for run in runs if run.state == "failed"],
        "unfinished": [
            f"{run.variant}, seed {run.seed}" for run in runs if run.state not in ("scored", "failed")
        ],
        "environment": dict(environment),
        "command": command,
    }


def _sheets(runs: Sequence[AblationRun], variants: Sequence[str]) -> list[dict[str, Any]]:
    by_rule: dict[tuple[str, str], list[tuple[AblationRun, ScoreSheet]]] = {}
    for run in runs:
        for sheet in run.sheets() if run.state == "scored" else ():
            by_rule.setdefault((sheet.task, sheet.rule), []).append((run, sheet))
    gathered = []
    for (task, rule), entries in by_rule.items():
        first_run, first = entries[0]
        rows = []
        for variant in variants:
            of_variant = [(r, sheet.scores) for r, sheet in entries if r.variant == variant]
            scores = {}
            for key in first.headings:
                values = [found[key] for _, found in of_variant]
                mean, deviation = mean_and_deviation(values)
                scores[key] = {"mean": mean, "deviation": deviation, "values": values}
            seeds = [run.seed for run, _ in of_variant]
            rows.append({"variant": variant, "seeds": seeds, "n": len(seeds), "scores": scores})
        summary = first_run.summaries[task]
        gathered.append(
            {
                "task": task,
                "rule": rule,
                "words": first.words,
                "headings": first.headings,
                "benchmark": summary["benchmark"],
                "num_clips": summary["num_clips"],
                "clip_list": summary["clip_list"],
                "scored_clips_sha256": summary["scored_clips_sha256"],
                "rows": rows,
                "references": first.references,
            }
        )
    return gathered


def _plain_run(run: AblationRun) -> dict[str, Any]:
    plain = {name: value for name, value in asdict(run).items() if name != "summaries"}
    evaluations = {
        task: {
            "command": summary["command"],
            "clip_list": summary["clip_list"],
            "warnings": summary["warnings"],
            "device": summary["environment"]["device"],
        }
        for task, summary in run.summaries.items()
    }
    return {**plain, "evaluations": evaluations}
