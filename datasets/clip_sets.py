"""From a data set's name and folder to checked clips."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.annotations import read_vgg_ss_json
from datasets.audio import check_sound_header
from datasets.clips import Clip
from datasets.errors import BrokenFileError
from datasets.frames import read_frame_size
from datasets.hdf5 import Source
from datasets.layouts import LAYOUTS, ClipFiles, Layout, find_files
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
    ids_known: bool = True
    """False: the data is HDF5 files without ids, and the clip ids are row numbers"""

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
    allow_missing: bool = False,
) -> ClipSet:
    """Finds the clips of a data set and reads the header of every file.

    Args:
        dataset: a key of LAYOUTS.
        data_root: the user's folder, see docs/data.md.
        clip_list: file of clip ids or name of an official list; None: every complete clip.
        annotations: VGG-SS JSON to use instead of the boxes beside the clips.
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
    listed = None if clip_list is None else resolve_clip_list(clip_list)
    files = find_files(dataset, data_root, listed=None if listed is None else listed.clip_ids)
    boxes_of = _box_reader(dataset, layout, files, annotations)
    if listed is None:
        clip_ids: Sequence[str] = sorted(_complete_ids(files, boxes_of))
        list_name = "every clip found"
        list_sha256 = hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()
    else:
        clip_ids, list_name, list_sha256 = listed.clip_ids, listed.name, listed.sha256
    if not clip_ids:
        raise FileNotFoundError(
            f"{dataset}: no clip in {data_root} has all its files. Expected: "
            + ", ".join(files.expected.values())
        )
    clips, problems = _check_all(dataset, clip_ids, layout, files, boxes_of)
    _report_problems(dataset, problems, len(clip_ids), allow_missing=allow_missing)
    if not clips:
        raise FileNotFoundError(f"{dataset}: none of {len(clip_ids)} clips is readable.")
    missing = tuple(f"{clip_id}: {problem}" for clip_id, problem in problems)
    return ClipSet(
        dataset, tuple(clips), list_name, list_sha256, len(clip_ids), missing, files.ids_known
    )


BoxReader = Callable[[str], NDArray[np.float64] | None]


@dataclass(frozen=True)
class _Boxes:
    """Where the boxes come from: XML files, one JSON, or the HDF5 files themselves."""

    clip_ids: frozenset[str]
    expected: str
    read: BoxReader


def _box_reader(
    dataset: str, layout: Layout, files: ClipFiles, annotations: Path | None
) -> _Boxes | None:
    if not files.ids_known and (annotations is not None or layout.read_annotation is not None):
        raise ValueError(
            f"{dataset}: the HDF5 files hold no clip ids, and boxes belong to ids. Name the list "
            "whose line i is row i with --clip-list (for VGG-SS as SSPL's authors prepared it: "
            "sspl_vgg_ss_4692)."
        )
    if annotations is not None:
        if dataset != "vgg_ss":
            raise ValueError(f"--annotations takes the VGG-SS JSON; {dataset} has no such file.")
        if not annotations.is_file():
            raise FileNotFoundError(
                f"No annotations at {annotations}. `bash scripts/get_splits.sh lvs_vgg_ss_boxes` "
                "fetches the VGG-SS boxes."
            )
        return _json_boxes(annotations)
    if layout.read_annotation is None:
        return None
    if files.boxes is not None:
        return _Boxes(frozenset(files.boxes), files.expected["frame"], files.boxes.__getitem__)
    if files.annotations is not None:
        paths, read = files.annotations, layout.read_annotation
        return _Boxes(
            frozenset(paths), files.expected["annotation"], lambda clip_id: read(paths[clip_id])
        )
    if files.boxes_json is not None:
        return _json_boxes(files.boxes_json)
    raise FileNotFoundError(
        f"{dataset}: no boxes, expected {files.expected['annotation']}"
        + (", or --annotations FILE with the VGG-SS JSON." if dataset == "vgg_ss" else ".")
    )


def _json_boxes(path: Path) -> _Boxes:
    boxes = read_vgg_ss_json(path)
    return _Boxes(frozenset(boxes), f"{path} with an entry <id>", boxes.__getitem__)


def _complete_ids(files: ClipFiles, boxes: _Boxes | None) -> set[str]:
    complete = files.frames.keys() & files.sounds.keys()
    complete = complete if boxes is None else complete & boxes.clip_ids
    return {clip_id for clip_id in complete if _is_there(files.frames[clip_id])}


def _is_there(source: Source) -> bool:
    """Rows of HDF5 files were counted, and files in a folder listed; a frame may lie deeper."""
    return source.is_file() if isinstance(source, Path) else True


def _check_all(
    dataset: str,
    clip_ids: Sequence[str],
    layout: Layout,
    files: ClipFiles,
    boxes: _Boxes | None,
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Builds each clip, or says what is wrong with it."""

    def check(clip_id: str) -> Clip | str:
        if boxes is not None and clip_id not in boxes.clip_ids:
            return f"no annotation (expected {boxes.expected.replace('<id>', clip_id)})"
        for kind, sources in (("frame", files.frames), ("audio", files.sounds)):
            if clip_id not in sources or not _is_there(sources[clip_id]):
                return f"no {kind} (expected {files.expected[kind].replace('<id>', clip_id)})"
        frame, sound = files.frames[clip_id], files.sounds[clip_id]
        try:
            # What HDF5 rows have for headers, the tables of the whole file, is checked already.
            if isinstance(frame, Path):
                read_frame_size(frame)
            if isinstance(sound, Path):
                check_sound_header(sound)
            bounding_boxes = None if boxes is None else boxes.read(clip_id)
        except BrokenFileError as error:
            return str(error)
        return Clip(clip_id, frame, sound, bounding_boxes, layout.annotators_needed)

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
