"""From a data set's name and folder to checked clips."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.clip_checks import ClipItem, check_clips, complete_ids, truth_reader
from datasets.clips import Clip
from datasets.file_finding import find_files
from datasets.layouts import BENCHMARKS, LAYOUTS, Layout
from datasets.lists import ClipList, find_list, name_cut, split_pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipSet:
    """Clips that are there and readable, and what is not."""

    dataset: str
    clips: tuple[Clip, ...]
    list_name: str
    """the clip list, or 'every clip found' without one"""
    list_sha256: str
    """of the list file, or of the sorted ids found"""
    num_listed: int
    missing: tuple[str, ...]
    """'<clip_id>: <what is wrong>' for each listed clip that is left out"""
    ids_known: bool = True
    """False: the data is HDF5 files without ids, and the clip ids are row numbers"""
    cut: str = ""
    """which published cut of a benchmark the list is, or that it is none"""
    source_ids: tuple[str, ...] | None = None
    """clips whose frames or sounds these are, to look for leaks; None: not as training sets name
    their clips"""

    @property
    def clip_ids(self) -> list[str]:
        """Of the clips that are there."""
        return [clip.clip_id for clip in self.clips]

    @property
    def known_ids(self) -> list[str] | None:
        """Of the clips that are there; None where the ids are only row numbers."""
        return self.clip_ids if self.ids_known else None

    def list_record(self) -> dict[str, Any]:
        """The list and how much of it is missing, as plain values."""
        return {
            "name": self.list_name,
            "sha256": self.list_sha256,
            "num_listed": self.num_listed,
            "num_missing": len(self.missing),
        }

    def identity(self) -> dict[str, Any]:
        """Which clips these are, as plain values."""
        return {
            "benchmark": self.dataset,
            "list_name": self.list_name,
            "list_sha256": self.list_sha256,
            "clips": self.clip_ids,
        }


def build_clips(
    dataset: str,
    data_root: Path,
    *,
    clip_list: str | None,
    annotations: Path | None = None,
    negatives: str | None = None,
    allow_missing: bool = False,
) -> ClipSet:
    """Finds the clips of a data set and reads the header of every file.

    Args:
        dataset: a key of LAYOUTS.
        data_root: the user's folder, see docs/data.md.
        clip_list: file of clip ids or name of an official list; None: every complete clip.
        annotations: JSON to use instead of the boxes beside the clips: VGG-SS, IS3 and VPO.
        negatives: of the extended benchmarks, a file or name of an official list; None: SLAVC's.
        allow_missing: leave clips out whose files are missing or broken, instead of refusing.

    Returns:
        the clips, in the list's order; negatives follow, with boxes of shape (0, 4).

    Raises:
        ValueError: unknown data set; files are broken, or annotations or negatives do not fit the
            data set.
        FileNotFoundError: folders, or files of listed clips, are missing.
    """
    if dataset not in LAYOUTS:
        raise ValueError(f"Unknown data set '{dataset}'. There are: {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[dataset]
    added = _negatives_of(dataset, layout, clip_list, negatives)
    listed = None if clip_list is None else find_list(clip_list)
    files = find_files(
        dataset, data_root, listed=None if listed is None else listed.clip_ids, annotations=annotations
    )
    truth = truth_reader(dataset, layout, files, annotations)
    if listed is None:
        clip_ids: Sequence[str] = sorted(complete_ids(files, truth))
        list_name = "every clip found"
        list_sha256 = hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()
    else:
        clip_ids, list_name, list_sha256 = listed.clip_ids, listed.name, listed.sha256
    if not clip_ids:
        raise FileNotFoundError(
            f"{dataset}: no clip in {data_root} has all its files. Expected: "
            + ", ".join(files.expected.values())
        )
    items = [ClipItem(clip_id, clip_id, clip_id) for clip_id in clip_ids]
    if added is not None:
        items += [ClipItem(clip_id, *split_pair(clip_id), True) for clip_id in added.clip_ids]
        list_name = f"{list_name} and {added.name}"
        list_sha256 = hashlib.sha256(f"{list_sha256} {added.sha256}".encode()).hexdigest()
    clips, problems = check_clips(items, dataset, layout, files, truth)
    _report_problems(dataset, problems, len(items), allow_missing=allow_missing)
    if not clips:
        raise FileNotFoundError(f"{dataset}: none of {len(items)} clips is readable.")
    cut = name_cut(
        dataset,
        layout.title,
        clip_ids,
        negatives=[item.clip_id for item in items if item.negative],
        num_missing=len(problems),
    )
    left_out = {clip_id for clip_id, _ in problems}
    there = [item for item in items if item.clip_id not in left_out]
    sources = dict.fromkeys(i for item in there for i in (item.frame_id, item.sound_id))
    return ClipSet(
        dataset,
        tuple(clips),
        list_name,
        list_sha256,
        len(items),
        tuple(f"{clip_id}: {problem}" for clip_id, problem in problems),
        files.ids_known,
        cut,
        tuple(sources) if layout.ids_of_training else None,
    )


def _negatives_of(
    dataset: str, layout: Layout, clip_list: str | None, negatives: str | None
) -> ClipList | None:
    if layout.negatives is None:
        if negatives is not None:
            extended = [name for name in BENCHMARKS if LAYOUTS[name].negatives]
            raise ValueError(
                f"--negatives goes with {' and '.join(extended)}; {dataset} has none. Leave it out."
            )
        return None
    if clip_list is None:
        raise ValueError(
            f"{dataset}: the positives must be named with --clip-list, the negatives follow from "
            "--negatives; which clips in a folder are which cannot be seen there."
        )
    return find_list(negatives or layout.negatives, pairs=True)


def _report_problems(
    dataset: str, problems: Sequence[tuple[str, str]], num_listed: int, *, allow_missing: bool
) -> None:
    if not problems:
        return
    first = "; ".join(f"{clip_id}: {problem}" for clip_id, problem in problems[:5])
    message = f"{dataset}: {len(problems)} of {num_listed} clips are missing or broken, first: {first}"
    if not allow_missing:
        raise FileNotFoundError(
            f"{message}. Mend the data, or pass --allow-missing to use only what is there."
        )
    logger.warning("%s. They are left out (--allow-missing).", message)
