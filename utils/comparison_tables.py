"""What stands beside the scores of several models: facts, columns of the CSV, groups of clips."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.evaluation.statistics import SCORE_KEYS
from utils.groups import FEW_CLIPS
from utils.report_tables import ReportGroup, ReportGrouping
from utils.tables import Summary, render_table

Fact = tuple[str, str]
"""its name and its words"""

FACTS_OF_A_MODEL = ("checkpoint", "leak check", "note", "warning")
"""named with their model even where all have the same"""
COLUMNS_OF_CLIPS = (
    "benchmark",
    "rule",
    "list_of_rule",
    "num_clips",
    "num_without_object",
    "num_listed",
    "num_missing",
    "num_unreadable",
    "clip_list",
    "clip_list_sha256",
    "cut",
    "scored_clips_sha256",
    "frame_geometry",
    "audio",
)
"""columns of a table.csv that say what was scored, and how"""
COLUMNS_OF_A_MODEL = (
    "leak_checked",
    "num_leaked",
    "num_clips_epoch_was_chosen_on",
    "method",
    "checkpoint",
    "checkpoint_sha256",
    "note",
    "warnings",
)
"""columns of a table.csv that say nothing of a blind baseline or the ceiling"""


def columns_beside(summary: Summary) -> dict[str, dict[str, str]]:
    """What a model's table.csv has beside its scores: under each rule, by column.

    Args:
        summary: of an evaluation.

    Raises:
        KeyError: an entry is not there.
    """
    found: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(io.StringIO(render_table(summary, "csv"))):
        # All predictors' lines under a rule have the same.
        names = (*COLUMNS_OF_CLIPS, *COLUMNS_OF_A_MODEL)
        found[line["protocol"]] = {name: line[name] for name in names}
    return found


def join_facts(by_model: Mapping[str, Sequence[Fact]]) -> list[Fact]:
    """What must stand beside the scores: once where all models agree, else with the model's name.

    Args:
        by_model: of each model's name, as `utils.tables.facts_of` gives them.
    """
    first, *others = by_model.values()
    shared = [
        fact for fact in first if fact[0] not in FACTS_OF_A_MODEL and all(fact in facts for facts in others)
    ]
    own = [
        (f"{name} of {model}", words)
        for model, facts in by_model.items()
        for name, words in facts
        if (name, words) not in shared
    ]
    return shared + own


def build_groupings(by_model: Mapping[str, Summary], place: int) -> list[ReportGrouping]:
    """The scores by group of clips, all models' one below the other within each group.

    Groups stand in the order of the first model that has them, but classes by its score, the best
    first.

    Args:
        by_model: of each model's name.
        place: of the rule.
    """
    words: dict[str, str] = {}
    for summary in by_model.values():
        words = summary["groupings"] | words
    return [_grouping(name, words[name], by_model, place) for name in words]


def _grouping(grouping: str, words: str, by_model: Mapping[str, Summary], place: int) -> ReportGrouping:
    by_group: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for model, summary in by_model.items():
        for group in summary["protocols"][place].get("groups", {}).get(grouping, ()):
            by_group.setdefault(group["name"], []).append((model, group))
    ordered = list(by_group.values())
    if grouping == "class":
        ordered.sort(key=lambda lines: -lines[0][1][SCORE_KEYS[0]])
    return ReportGrouping(
        title=f"By {grouping.replace('_', ' ')}",
        words=f"Groups: {words}. Best blind and ceiling: their cIoU@0.5 on the same clips. Few "
        f"clips: fewer than {FEW_CLIPS}, for which the intervals are too narrow.",
        groups=[_group(model, group) for lines in ordered for model, group in lines],
    )


def _group(model: str, group: Mapping[str, Any]) -> ReportGroup:
    return ReportGroup(
        f"{group['name']}: {model}",
        group["num_clips"],
        group["few_clips"],
        [math.nan if group[key] is None else group[key] for key in SCORE_KEYS],
        [group["intervals"][key] for key in SCORE_KEYS],
        group["best_blind"],
        group["ceiling"],
    )
