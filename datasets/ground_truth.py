"""A benchmark's boxes alone: all that blind baselines and ceilings need."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import consensus_map
from datasets.layouts import LAYOUTS, Layout
from datasets.lists import find_list, name_cut


@dataclass(frozen=True)
class GroundTruth:
    """The boxes of listed clips."""

    boxes: dict[str, NDArray[np.float64]]
    """clip id -> (N, 4) fractions, in the list's order"""
    annotators_needed: int
    """boxes that make a full vote, see consensus_map"""
    list_name: str
    """the clip list, or 'every clip annotated' without one"""
    list_sha256: str
    """of the list file, or of the sorted ids found"""
    cut: str
    """which published cut of the benchmark the clips are, or that they are none"""
    pair_keys: dict[str, str | None]
    """clip id -> what clips of one scene with different sounds share; None: there are no pairs"""

    def maps(self, *, map_size: int, batch_size: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Batches of clip ids and ground-truth maps (B, M, M) in [0, 1], the boxes on the frame."""
        clip_ids = list(self.boxes)
        for start in range(0, len(clip_ids), batch_size):
            part = clip_ids[start : start + batch_size]
            maps = [
                consensus_map(self.boxes[clip_id], annotators_needed=self.annotators_needed, size=map_size)
                for clip_id in part
            ]
            yield part, np.stack(maps)


def read_ground_truth(benchmark: str, annotations: Path, clip_list: str | None) -> GroundTruth:
    """Reads a benchmark's boxes, without its frames and sounds.

    Args:
        benchmark: a key of LAYOUTS with boxes.
        annotations: JSON of VGG-SS, IS3 or VPO, or a folder of <id>.xml.
        clip_list: file of clip ids or name of an official list; None: every clip annotated.

    Returns:
        the boxes, in the list's order; without a list, by id.

    Raises:
        FileNotFoundError: nothing lies there, or listed clips have no boxes.
        ValueError: the benchmark's boxes are not of this form, or a file is broken.
    """
    layout = LAYOUTS[benchmark]
    known = _known_boxes(benchmark, layout, annotations)
    if clip_list is None:
        clip_ids, list_name = tuple(sorted(known)), "every clip annotated"
        list_sha256 = hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()
    else:
        listed = find_list(clip_list)
        clip_ids, list_name, list_sha256 = listed.clip_ids, listed.name, listed.sha256
    missing = [clip_id for clip_id in clip_ids if clip_id not in known]
    if missing or not clip_ids:
        raise FileNotFoundError(
            f"{annotations}: {len(missing)} of {len(clip_ids)} clips of {list_name} have no boxes"
            + (f", first: {', '.join(missing[:5])}" if missing else "")
            + ". Name the list that belongs to these annotations (--clip-list)."
        )
    boxes = {clip_id: known[clip_id]() for clip_id in clip_ids}
    cut = name_cut(benchmark, layout.title, clip_ids)
    keys = {clip_id: layout.pair_key and layout.pair_key(clip_id) for clip_id in clip_ids}
    return GroundTruth(boxes, layout.annotators_needed, list_name, list_sha256, cut, keys)


def _known_boxes(
    benchmark: str, layout: Layout, annotations: Path
) -> dict[str, Callable[[], NDArray[np.float64]]]:
    """Clip id -> what gives its boxes; XML files are read only when they are listed."""
    if layout.negatives is not None:
        raise ValueError(
            f"{benchmark} has clips with nothing to find, which no blind map can leave out; its "
            "positives alone are those of the benchmark that it extends."
        )
    if layout.has_masks:
        raise ValueError(
            f"{benchmark} has masks, no boxes; `test.py localisation` scores blind predictors and "
            "the ceiling beside the model."
        )
    read = layout.read_annotation
    if annotations.is_dir() and read is not None:
        paths = sorted(annotations.glob("*.xml"))
        return {path.stem: partial(read, path) for path in paths}
    if layout.read_json is None and layout.read_frames is None:
        raise ValueError(
            f"--annotations of {benchmark} must be a folder of XML files <id>.xml; {annotations} is none."
        )
    if not annotations.is_file():
        raise FileNotFoundError(
            f"No annotations at {annotations}. "
            + (
                "`bash scripts/get_splits.sh lvs_vgg_ss_boxes` fetches the VGG-SS boxes."
                if layout.read_json
                else f"Expected the authors' {layout.boxes_json}, see docs/data.md."
            )
        )
    if layout.read_json is not None:
        boxes = layout.read_json(annotations)
    else:
        assert layout.read_frames is not None, "nothing else is left"
        frames = layout.read_frames(annotations)
        boxes = {clip_id: frame.bounding_boxes for clip_id, frame in frames.items()}
    return {clip_id: partial(np.asarray, of_clip) for clip_id, of_clip in boxes.items()}
