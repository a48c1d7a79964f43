"""Builds each clip of a set from its files, or says what is wrong with it."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.audio import check_sound_header
from datasets.clip_files import ClipFiles
from datasets.clips import Clip
from datasets.frames import read_frame_size
from datasets.hdf5 import Source
from datasets.layouts import BENCHMARKS, LAYOUTS, Layout
from utils.files import BrokenFileError

HEADER_READERS = 16
"""Threads that read file headers; the disk, not the CPU, is what they wait for."""

NO_BOXES = np.zeros((0, 4))
"""Those of a negative, by which it is known as one."""


@dataclass(frozen=True)
class ClipItem:
    """What becomes one clip."""

    clip_id: str
    frame_id: str
    """clip whose frame it is"""
    sound_id: str
    """clip whose sound it is"""
    negative: bool = False
    """nothing in the frame makes the sound"""


BoxReader = Callable[[str], NDArray[np.float64] | None]


@dataclass(frozen=True)
class Truth:
    """Where boxes come from: XML files, one JSON, or the HDF5 files themselves; or masks."""

    clip_ids: frozenset[str]
    expected: str
    """pattern of the place, for messages"""
    read: BoxReader
    """clip id -> (N, 4); None where there is a mask"""


def truth_reader(dataset: str, layout: Layout, files: ClipFiles, annotations: Path | None) -> Truth | None:
    """Finds out where the boxes or masks of a data set come from.

    Args:
        dataset: a key of LAYOUTS.
        layout: of that key.
        files: of the data set.
        annotations: a JSON that the user named instead of what lies beside the clips.

    Returns:
        their reader; None: the data set has none.

    Raises:
        ValueError: the data set's boxes are of another form, or its clips have no ids.
        FileNotFoundError: a benchmark without boxes.
    """
    if not files.ids_known and (annotations is not None or layout.is_benchmark):
        raise ValueError(
            f"{dataset}: the HDF5 files hold no clip ids, and boxes belong to ids. Name the list "
            "whose line i is row i with --clip-list (for VGG-SS as SSPL's authors prepared it: "
            "sspl_vgg_ss_4692)."
        )
    if annotations is not None and layout.read_json is not None:
        return _json_boxes(annotations, layout.read_json)
    if annotations is not None and layout.read_frames is None:
        taking = [name for name in BENCHMARKS if LAYOUTS[name].read_json]
        taking += [name for name in BENCHMARKS if LAYOUTS[name].read_frames]
        raise ValueError(f"--annotations takes the JSON of {', '.join(taking)}; {dataset} has no such file.")
    if not layout.is_benchmark:
        return None
    expected = files.expected["annotation"]
    if files.masks is not None:
        return Truth(frozenset(files.masks), expected, lambda clip_id: None)
    if files.boxes is not None:
        return Truth(frozenset(files.boxes), expected, files.boxes.__getitem__)
    if files.annotations is not None and layout.read_annotation is not None:
        paths, read = files.annotations, layout.read_annotation
        return Truth(frozenset(paths), expected, lambda clip_id: read(paths[clip_id]))
    if files.boxes_json is not None and layout.read_json is not None:
        return _json_boxes(files.boxes_json, layout.read_json)
    raise FileNotFoundError(
        f"{dataset}: no boxes, expected {expected}"
        + (", or --annotations FILE with the VGG-SS JSON." if layout.read_json else ".")
    )


def _json_boxes(path: Path, read_json: Callable[[Path], dict[str, NDArray[np.float64]]]) -> Truth:
    if not path.is_file():
        raise FileNotFoundError(
            f"No annotations at {path}. `bash scripts/get_splits.sh lvs_vgg_ss_boxes` fetches the "
            "VGG-SS boxes."
        )
    boxes = read_json(path)
    return Truth(frozenset(boxes), f"{path} with an entry <id>", boxes.__getitem__)


def complete_ids(files: ClipFiles, truth: Truth | None) -> set[str]:
    """Ids of the clips that have a frame, a sound, and where there are any, boxes or a mask."""
    complete = files.frames.keys() & files.sounds.keys()
    complete = complete if truth is None else complete & truth.clip_ids
    return {clip_id for clip_id in complete if _is_there(files.frames[clip_id])}


def _is_there(source: Source) -> bool:
    """Rows of HDF5 files were counted, and files in a folder listed; a frame may lie deeper."""
    return source.is_file() if isinstance(source, Path) else True


def check_clips(
    items: Sequence[ClipItem], name: str, layout: Layout, files: ClipFiles, truth: Truth | None
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Builds each clip after a look at the headers of its files.

    Args:
        items: what to build.
        name: of the data set, for the progress bar.
        layout: of the data set.
        files: of the data set.
        truth: of the data set.

    Returns:
        the clips in the order of the items, and clip id and reason of those that are left out.
    """
    with ThreadPoolExecutor(HEADER_READERS) as pool:
        checked: Iterable[Clip | str] = pool.map(lambda item: _build_clip(item, layout, files, truth), items)
        bar = tqdm(checked, f"{name}: checking files", len(items), unit="clip", leave=False)
        results = list(bar)
    clips = [result for result in results if isinstance(result, Clip)]
    pairs = zip(items, results, strict=True)
    return clips, [(item.clip_id, problem) for item, problem in pairs if isinstance(problem, str)]


def _build_clip(item: ClipItem, layout: Layout, files: ClipFiles, truth: Truth | None) -> Clip | str:
    """The clip, or what is wrong with it."""
    clip_id = item.clip_id
    if truth is not None and not item.negative and clip_id not in truth.clip_ids:
        return f"no annotation (expected {truth.expected.replace('<id>', clip_id)})"
    wanted = (("frame", files.frames, item.frame_id), ("audio", files.sounds, item.sound_id))
    for kind, sources, i in wanted:
        if i not in sources or not _is_there(sources[i]):
            return f"no {kind} (expected {files.expected[kind].replace('<id>', i)})"
    frame, sound = files.frames[item.frame_id], files.sounds[item.sound_id]
    mask = None if files.masks is None else files.masks[clip_id]
    try:
        # What HDF5 rows have for headers, the tables of the whole file, is checked already.
        for picture in (frame, mask):
            if isinstance(picture, Path):
                read_frame_size(picture)
        if isinstance(sound, Path):
            check_sound_header(sound)
        boxes = None if truth is None else NO_BOXES if item.negative else truth.read(clip_id)
    except BrokenFileError as error:
        return str(error)
    if layout.negatives and not item.negative and boxes is not None and not len(boxes):
        return "its annotation holds no box, and only negatives have none"
    pair_key = layout.pair_key(clip_id) if layout.pair_key else None
    return Clip(clip_id, frame, sound, boxes, layout.annotators_needed, mask, pair_key)
