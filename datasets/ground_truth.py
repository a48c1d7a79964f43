"""A benchmark's boxes alone: all that blind baselines and ceilings need."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import consensus_map, read_vgg_ss_json
from datasets.layouts import LAYOUTS
from datasets.splits import resolve_clip_list


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

    def maps(
        self, *, map_size: int, batch_size: int
    ) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Batches of clip ids and ground-truth maps (B, M, M) in [0, 1], the boxes on the frame."""
        clip_ids = list(self.boxes)
        for start in range(0, len(clip_ids), batch_size):
            part = clip_ids[start : start + batch_size]
            maps = [
                consensus_map(
                    self.boxes[clip_id], annotators_needed=self.annotators_needed, size=map_size
                )
                for clip_id in part
            ]
            yield part, np.stack(maps)


def read_ground_truth(benchmark: str, annotations: Path, clip_list: str | None) -> GroundTruth:
    """Reads a benchmark's boxes, without its frames and sounds.

    Args:
        benchmark: a key of LAYOUTS with an annotation format.
        annotations: VGG-SS JSON, or a folder of <id>.xml.
        clip_list: file of clip ids or name of an official list; None: every clip annotated.

    Returns:
        the boxes, in the list's order; without a list, by id.

    Raises:
        FileNotFoundError: nothing lies there, or listed clips have no boxes.
        ValueError: the benchmark's boxes are not of this form, or a file is broken.
    """
    layout = LAYOUTS[benchmark]
    assert layout.read_annotation is not None, "options offer benchmarks only"
    if annotations.is_dir():
        paths = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
        known: dict[str, Path | NDArray[np.float64]] = dict(paths)
    elif benchmark != "vgg_ss":
        raise ValueError(
            f"--annotations of {benchmark} must be a folder of XML files <id>.xml; {annotations} "
            "is none."
        )
    elif not annotations.is_file():
        raise FileNotFoundError(
            f"No annotations at {annotations}. `bash scripts/get_splits.sh lvs_vgg_ss_boxes` "
            "fetches the VGG-SS boxes."
        )
    else:
        known = dict(read_vgg_ss_json(annotations))
    if clip_list is None:
        clip_ids, list_name = tuple(sorted(known)), "every clip annotated"
        list_sha256 = hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()
    else:
        listed = resolve_clip_list(clip_list)
        clip_ids, list_name, list_sha256 = listed.clip_ids, listed.name, listed.sha256
    missing = [clip_id for clip_id in clip_ids if clip_id not in known]
    if missing or not clip_ids:
        raise FileNotFoundError(
            f"{annotations}: {len(missing)} of {len(clip_ids)} clips of {list_name} have no boxes"
            + (f", first: {', '.join(missing[:5])}" if missing else "")
            + ". Name the list that belongs to these annotations (--clip-list)."
        )
    boxes = {
        clip_id: layout.read_annotation(found) if isinstance(found, Path) else found
        for clip_id in clip_ids
        for found in (known[clip_id],)
    }
    return GroundTruth(boxes, layout.annotators_needed, list_name, list_sha256)
