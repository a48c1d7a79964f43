"""From a data set's name and folder to checked clips."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.annotations import read_vgg_ss_json
from datasets.audio import check_sound_header
from datasets.clips import Clip
from datasets.errors import BrokenFileError
from datasets.frames import read_frame_size
from datasets.layouts import LAYOUTS, ClipFolder, Layout, find_files
from datasets.splits import resolve_clip_list

logger = logging.getLogger(__name__)

HEADER_READERS = 16
"""Threads that read file headers; the disk, not the CPU, is what they wait for."""


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

    @property
    def clip_ids(self) -> list[str]:
        """Of the clips that are there."""
        return [clip.clip_id for clip in self.clips]


def build_clips(
    dataset: str,
    data_root: Path,
    *,
    clip_list: str | None,
    annotations: Path | None = None,
    allow_missing: bool = False,
) -> ClipSet:
    """Finds the clips of a data set and reads the header of every file.

    Args:
        dataset: a key of LAYOUTS.
        data_root: the user's folder, see docs/data.md.
        clip_list: file of clip ids or name of an official list; None: every complete clip.
        annotations: VGG-SS JSON to use instead of the XML files.
        allow_missing: leave clips out whose files are missing or broken, instead of refusing.

    Returns:
        the clips, in the list's order.

    Raises:
        ValueError: unknown data set; files are broken, or annotations do not fit the data set.
        FileNotFoundError: folders, or files of listed clips, are missing.
    """
    if dataset not in LAYOUTS:
        raise ValueError(f"Unknown data set '{dataset}'. There are: {', '.join(LAYOUTS)}.")
    layout = LAYOUTS[dataset]
    folder = find_files(layout, data_root)
    boxes_of = _box_reader(dataset, layout, folder, annotations)
    if clip_list is None:
        clip_ids: Sequence[str] = sorted(_complete_ids(folder, boxes_of))
        list_name = "every clip found"
        list_sha256 = hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()
    else:
        listed = resolve_clip_list(clip_list)
        clip_ids, list_name, list_sha256 = listed.clip_ids, listed.name, listed.sha256
    if not clip_ids:
        raise FileNotFoundError(
            f"{dataset}: no clip in {data_root} has all its files. Expected: "
            + ", ".join(folder.expected.values())
        )
    clips, problems = _check_all(dataset, clip_ids, layout, folder, boxes_of)
    _report_problems(dataset, problems, len(clip_ids), allow_missing=allow_missing)
    if not clips:
        raise FileNotFoundError(f"{dataset}: none of {len(clip_ids)} clips is readable.")
    missing = tuple(f"{clip_id}: {problem}" for clip_id, problem in problems)
    return ClipSet(dataset, tuple(clips), list_name, list_sha256, len(clip_ids), missing)


BoxReader = Callable[[str], NDArray[np.float64] | None]


@dataclass(frozen=True)
class _Boxes:
    """Where the boxes come from: XML files or one JSON."""

    clip_ids: frozenset[str]
    expected: str
    read: BoxReader


def _box_reader(
    dataset: str, layout: Layout, folder: ClipFolder, annotations: Path | None
) -> _Boxes | None:
    if annotations is not None:
        if dataset != "vgg_ss":
            raise ValueError(f"--annotations takes the VGG-SS JSON; {dataset} has no such file.")
        if not annotations.is_file():
            raise FileNotFoundError(
                f"No annotations at {annotations}. `bash scripts/get_splits.sh lvs_vgg_ss_boxes` "
                "fetches the VGG-SS boxes."
            )
        boxes = read_vgg_ss_json(annotations)
        return _Boxes(frozenset(boxes), f"{annotations} with an entry <id>", boxes.__getitem__)
    if layout.read_annotation is None:
        return None
    if folder.annotations is None:
        raise FileNotFoundError(
            f"{dataset}: no boxes, expected {folder.expected['annotation']}"
            + (", or --annotations FILE with the VGG-SS JSON." if dataset == "vgg_ss" else ".")
        )
    paths, read = folder.annotations, layout.read_annotation
    return _Boxes(
        frozenset(paths), folder.expected["annotation"], lambda clip_id: read(paths[clip_id])
    )


def _complete_ids(folder: ClipFolder, boxes: _Boxes | None) -> set[str]:
    complete = folder.frames.keys() & folder.sounds.keys()
    complete = complete if boxes is None else complete & boxes.clip_ids
    return {clip_id for clip_id in complete if folder.frames[clip_id].is_file()}


def _check_all(
    dataset: str,
    clip_ids: Sequence[str],
    layout: Layout,
    folder: ClipFolder,
    boxes: _Boxes | None,
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Builds each clip, or says what is wrong with it."""

    def check(clip_id: str) -> Clip | str:
        if boxes is not None and clip_id not in boxes.clip_ids:
            return f"no annotation (expected {boxes.expected.replace('<id>', clip_id)})"
        for kind, files in (("frame", folder.frames), ("audio", folder.sounds)):
            if clip_id not in files or not files[clip_id].is_file():
                return f"no {kind} (expected {folder.expected[kind].replace('<id>', clip_id)})"
        clip = Clip(clip_id, folder.frames[clip_id], folder.sounds[clip_id])
        try:
            read_frame_size(clip.frame_path)
            check_sound_header(clip.audio_path)
            bounding_boxes = None if boxes is None else boxes.read(clip_id)
        except BrokenFileError as error:
            return str(error)
        return Clip(
            clip_id, clip.frame_path, clip.audio_path, bounding_boxes, layout.annotators_needed
        )

    with ThreadPoolExecutor(HEADER_READERS) as pool:
        checked: Iterable[Clip | str] = pool.map(check, clip_ids)
        bar = tqdm(checked, f"{dataset}: checking files", len(clip_ids), unit="clip", leave=False)
        results = list(bar)
    clips = [result for result in results if isinstance(result, Clip)]
    pairs = zip(clip_ids, results, strict=True)
    return clips, [(clip_id, problem) for clip_id, problem in pairs if isinstance(problem, str)]


def _report_problems(
    dataset: str, problems: Sequence[tuple[str, str]], num_listed: int, *, allow_missing: bool
) -> None:
    if not problems:
        return
    first = "; ".join(f"{clip_id}: {problem}" for clip_id, problem in problems[:5])
    message = (
        f"{dataset}: {len(problems)} of {num_listed} clips are missing or broken, first: {first}"
    )
    if not allow_missing:
        raise FileNotFoundError(
            f"{message}. Mend the data, or pass --allow-missing to use only what is there."
        )
    logger.warning("%s. They are left out (--allow-missing).", message)
