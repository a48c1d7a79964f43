"""Boxes of the benchmarks: file formats, and the map they make.

A box is (x_min, y_min, x_max, y_max) as fractions of the frame's width and height, float64.
"""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from utils.files import BrokenFileError

FLICKR_CANVAS = 256
"""Side of the canvas on which Flickr-SoundNet's boxes were drawn, pixels."""

PIXEL_JSON_CANVAS = 224
"""Side of the canvas on which the boxes of IS3 and VPO are given, pixels."""

MAX_FRACTION = 2.0
"""Annotators drew a little beyond the frame; what lies further out is in another unit."""

SLIP = -1e6
"""Below it a coordinate of VGG-SS is a slip, not a pixel: a few published boxes hold -2.9e16."""


def read_vgg_ss_xml(path: Path) -> NDArray[np.float64]:
    """VGG-SS boxes, XML: root/bbox/<any name>/four fractions.

    A bbox that holds the four numbers itself, and a label before them, are understood too.

    Returns:
        (N, 4), N may be 0.

    Raises:
        BrokenFileError: no XML, a box without four numbers, or one that is not in fractions.
    """
    boxes: list[list[float]] = []
    for block in _root(path).iter("bbox"):
        holders = [child for child in block if len(child)] or ([block] if len(block) else [])
        boxes.extend(_last_four(holder, path) for holder in holders)
    array = _as_boxes(boxes)
    _refuse(array, (array > MAX_FRACTION) | ((array < -MAX_FRACTION) & (array > SLIP)), path)
    return array


def read_flickr_xml(path: Path) -> NDArray[np.float64]:
    """Flickr-SoundNet boxes, XML: root/<annotator>/bbox/label and four pixels on a 256 canvas.

    Returns:
        (N, 4), all annotators' boxes; N may be 0.

    Raises:
        BrokenFileError: no XML, a box without four numbers, or one beyond the canvas.
    """
    array = _as_boxes([_last_four(block, path) for block in _root(path).iter("bbox")])
    unit = f"pixels on a canvas of {FLICKR_CANVAS} x {FLICKR_CANVAS}"
    _refuse(array, array > MAX_FRACTION * FLICKR_CANVAS, path, unit)
    return array / FLICKR_CANVAS


def read_vgg_ss_json(path: Path) -> dict[str, NDArray[np.float64]]:
    """VGG-SS boxes, JSON: [{"file": clip_id, "bbox": [[four fractions], ...]}, ...].

    Returns:
        clip_id -> (N, 4).

    Raises:
        BrokenFileError: no JSON, not of this form, or a box that is not in fractions.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        boxes_of = {entry["file"]: _as_boxes(entry["bbox"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BrokenFileError(path, f"not a list of {{'file': …, 'bbox': [[…]]}} ({error!r})") from error
    for boxes in boxes_of.values():
        _refuse(boxes, boxes > MAX_FRACTION, path)
    return boxes_of


@dataclass(frozen=True)
class SoundedFrame:
    """A frame with one of its sounds, and the boxes of what makes that sound."""

    frame_name: str
    """of the file, without its suffix"""
    sound_name: str
    """likewise"""
    bounding_boxes: NDArray[np.float64]
    """(N, 4)"""

    @property
    def clip_id(self) -> str:
        """The name of both files, or both names where they differ."""
        if self.frame_name == self.sound_name:
            return self.frame_name
        return f"{self.frame_name}+{self.sound_name}"


def read_pixel_json(path: Path) -> dict[str, SoundedFrame]:
    """Boxes of IS3 and VPO, JSON: [{"image": path, "audio": path, "gt_box": …}, …].

    A gt_box is four pixels x_min, y_min, x_max, y_max on a 224 canvas, or a list of such boxes. The
    paths are those of the authors' machine; only the names of the files count.

    Returns:
        clip id -> frame, sound and boxes, in the file's order.

    Raises:
        BrokenFileError: no JSON, not of this form, a pair that comes twice, or a box beyond the
            canvas.
    """
    frames: dict[str, SoundedFrame] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            given = entry["gt_box"]
            nested = bool(given) and isinstance(given[0], list)
            frame = SoundedFrame(
                PurePosixPath(entry["image"]).stem,
                PurePosixPath(entry["audio"]).stem,
                _as_boxes(given if nested else [given]),
            )
            if frame.clip_id in frames:
                raise ValueError(f"{frame.clip_id} comes twice")
            frames[frame.clip_id] = frame
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BrokenFileError(
            path, f"not a list of {{'image': …, 'audio': …, 'gt_box': […]}} ({error!r})"
        ) from error
    unit = f"pixels on a canvas of {PIXEL_JSON_CANVAS} x {PIXEL_JSON_CANVAS}"
    for clip_id, frame in frames.items():
        boxes = frame.bounding_boxes
        _refuse(boxes, np.abs(boxes) > MAX_FRACTION * PIXEL_JSON_CANVAS, path, unit)
        frames[clip_id] = replace(frame, bounding_boxes=_as_fractions(boxes, PIXEL_JSON_CANVAS))
    return frames


def _as_fractions(pixels: NDArray[np.float64], canvas: int) -> NDArray[np.float64]:
    """Pixels -> fractions that give them back: 61 / 224 * 224 is less than 61, and cut to 60."""
    fractions = pixels / canvas
    return np.where(fractions * canvas < pixels, np.nextafter(fractions, np.inf), fractions)


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
    """The file's root element; entities are never expanded, nor fetched."""
    try:
        content = path.read_bytes()
        # Its own pass: ElementTree's parser would only report the handler's error at the end.
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = _refuse_doctype
        guard.Parse(content, True)
        return ET.fromstring(content)
    except (OSError, expat.ExpatError, ET.ParseError, LookupError, ValueError) as error:
        raise BrokenFileError(path, f"not readable as XML ({error})") from error


def _refuse_doctype(name: str, *_: object) -> None:
    raise ValueError(
        f"it declares a DOCTYPE '{name}', which can define entities; box files need none, remove it"
    )


def _refuse(
    boxes: NDArray[np.float64],
    beyond: NDArray[np.bool_],
    path: Path,
    unit: str = "fractions of the frame's width and height",
) -> None:
    """Names the first box with a coordinate that can only be in another unit."""
    if beyond.any():
        first = boxes[beyond.any(axis=1)][0].tolist()
        raise BrokenFileError(path, f"boxes are expected as {unit}, got {first}")


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
