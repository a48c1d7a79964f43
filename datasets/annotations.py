"""Boxes of the benchmarks: file formats, and the map they make.

A box is (x_min, y_min, x_max, y_max) as fractions of the frame's width and height, float64.
"""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.errors import BrokenFileError

FLICKR_CANVAS = 256
"""Side of the canvas on which Flickr-SoundNet's boxes were drawn, pixels."""


def read_vgg_ss_xml(path: Path) -> NDArray[np.float64]:
    """VGG-SS boxes, XML: root/bbox/<any name>/four fractions.

    A bbox that holds the four numbers itself, and a label before them, are understood too.

    Returns:
        (N, 4), N may be 0.

    Raises:
        BrokenFileError: no XML, or a box without four numbers.
    """
    boxes: list[list[float]] = []
    for block in _root(path).iter("bbox"):
        holders = [child for child in block if len(child)] or ([block] if len(block) else [])
        boxes.extend(_last_four(holder, path) for holder in holders)
    return _as_boxes(boxes)


def read_flickr_xml(path: Path) -> NDArray[np.float64]:
    """Flickr-SoundNet boxes, XML: root/<annotator>/bbox/label and four pixels on a 256 canvas.

    Returns:
        (N, 4), all annotators' boxes; N may be 0.

    Raises:
        BrokenFileError: no XML, or a box without four numbers.
    """
    boxes = [_last_four(block, path) for block in _root(path).iter("bbox")]
    return _as_boxes(boxes) / FLICKR_CANVAS


def read_vgg_ss_json(path: Path) -> dict[str, NDArray[np.float64]]:
    """VGG-SS boxes, JSON: [{"file": clip_id, "bbox": [[four fractions], ...]}, ...].

    Returns:
        clip_id -> (N, 4).

    Raises:
        BrokenFileError: no JSON, or not of this form.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["file"]: _as_boxes(entry["bbox"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenFileError(
            path, f"not a list of {{'file': …, 'bbox': [[…]]}} ({error!r})"
        ) from error


def consensus_map(
    boxes: NDArray[np.float64], *, annotators_needed: int, size: int = 224
) -> NDArray[np.float32]:
    """Ground-truth map: min(boxes that cover the pixel / annotators_needed, 1).

    With annotators_needed = 1 this is the union of the boxes (VGG-SS), with 2 the consensus of
    Flickr-SoundNet (Senocak et al., CVPR 2018). Coordinates are cut to [0, 1] and become pixels by
    int(size * v), the upper end excluded.

    Args:
        boxes: (N, 4) fractions.
        annotators_needed: boxes that make a full vote.
        size: side of the map, pixels.

    Returns:
        (size, size) in [0, 1].
    """
    votes = np.zeros((size, size), dtype=np.float32)
    for x_min, y_min, x_max, y_max in (size * np.clip(boxes, 0.0, 1.0)).astype(int):
        votes[y_min:y_max, x_min:x_max] += 1
    return np.minimum(votes / annotators_needed, 1).astype(np.float32)


def _root(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise BrokenFileError(path, f"not readable as XML ({error})") from error


def _last_four(holder: ET.Element, path: Path) -> list[float]:
    """The box's coordinates: a label, where there is one, comes first."""
    texts = [child.text or "" for child in holder][-4:]
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise BrokenFileError(path, f"a box must end in four numbers, got {texts}")
    return numbers


def _as_boxes(boxes: list[list[float]]) -> NDArray[np.float64]:
    if any(len(box) != 4 for box in boxes):
        raise ValueError("a box must be four numbers")
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(array).all():
        raise ValueError("a box holds a number that is not finite")
    return array
