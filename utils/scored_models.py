"""What `test.py localisation` left of a model: read again, to be put beside others."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.comparison_tables import Fact, columns_beside
from utils.tables import facts_of

Values = NDArray[np.float64]

WORDLESS = ("last", "best", "latest")
"""File names that say nothing of a model; its folder's name does."""
MUST_AGREE = ("benchmark", "scored_clips_sha256", "frame_geometry", "audio")
"""Entries of the summaries without which scores are not those of the same clips."""
KEPT = (
    "checkpoint",
    "object_prior",
    "clip_list",
    "cut",
    "num_listed",
    "complete",
    "num_missing",
    "missing",
    "num_unreadable",
    "unreadable",
    "leak_check",
    "num_clips_epoch_was_chosen_on",
    "note",
    "warnings",
    "command",
)
"""Entries of each model's summary that the comparison holds too."""


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
    facts: list[Fact]
    """what must stand beside its scores, in words"""
    beside: dict[str, dict[str, str]]
    """the same under each rule, as columns of a CSV"""
    page: Path
    """its report.html"""

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
        facts, beside = facts_of(summary), columns_beside(summary)
        lacking = [key for key in (*MUST_AGREE, *KEPT, "groupings") if key not in summary]
        if lacking:
            raise KeyError(*lacking)
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
    return ScoredModel(title, summary, columns, facts, beside, folder / "report.html")
