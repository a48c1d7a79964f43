"""Where the object is, and what it is: boxes, masks and class labels, from files to maps.

A box is (x_min, y_min, x_max, y_max) as fractions of the frame's width and height, float64.
"""

import csv
import hashlib
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.frames import FrameGeometry
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


# --------------------------------------------------------------------------------------------- masks

COLOUR_MODES = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes in which a value is no brightness, or has an opacity beside it."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decodes a mask: whatever is not black is the object.

    Args:
        path: a picture; of several channels each counts, opacity does not.

    Returns:
        (H, W), True on the object.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            decoded = picture.convert("RGB") if picture.mode in COLOUR_MODES else picture
            values = np.asarray(decoded)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any type
        raise BrokenFileError(path, str(error) or type(error).__name__) from error
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))


def mask_map(
    path: Path, geometry: FrameGeometry, frame_size: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """Ground-truth map of a mask: 1 on the object, 0 elsewhere.

    The mask covers its frame whatever its own size; it goes the frame's way to the square and on to
    the map's size, each pixel taking the value of the nearest one.

    Args:
        path: of the mask.
        geometry: from the frame on disk to the square.
        frame_size: width and height of the frame on disk, pixels.
        size: side of the map, pixels.

    Returns:
        (size, size) of 0 and 1.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    mask = Image.fromarray(read_mask(path).astype(np.uint8))
    nearest = Image.Resampling.NEAREST
    square = geometry.apply_to_mask(mask.resize(frame_size, nearest))
    return np.asarray(square.resize((size, size), nearest), dtype=np.float32)


# -------------------------------------------------------------------------------------------- classes

HEADER_IDS = frozenset({"id", "clip", "clip_id", "video", "video_id", "file", "youtube_id"})
"""First fields that make the first line of a CSV a header; YouTube ids have 11 letters, and the
project's clip ids more."""

EXPECTED = (
    "Expected a CSV of `id,label` lines, VGGSound's CSV (youtube_id,start,label,split), the VGG-SS "
    'JSON ([{"file": …, "class": …}, …]), or the stamps.json of a stamps set.'
)


@dataclass(frozen=True)
class Labels:
    """One class for each clip, and where that was read."""

    path: str
    sha256: str
    """of the file"""
    form: str
    """which of the known forms the file has"""
    classes: dict[str, str]
    """clip id -> class"""

    def of(self, clip_ids: Sequence[str]) -> list[str]:
        """Classes of clips, in their order.

        Args:
            clip_ids: of the clips.

        Raises:
            ValueError: a clip has no class.
        """
        missing = [clip_id for clip_id in clip_ids if clip_id not in self.classes]
        if missing:
            raise ValueError(
                f"{self.path}: {len(missing)} of {len(clip_ids)} clips have no class, first: "
                f"{', '.join(missing[:5])}. It holds {len(self.classes)} clips, first: "
                f"{next(iter(self.classes))}. Name the labels of these clips (--labels), or score "
                "only clips that have one (--clip-list)."
            )
        return [self.classes[clip_id] for clip_id in clip_ids]


def read_labels(path: Path) -> Labels:
    """Reads the class of each clip; the form is recognised by the content.

    Args:
        path: `.json` is read as VGG-SS's or a stamps set's, everything else as CSV in UTF-8. Clips
            of VGGSound's CSV are named <youtube_id>_<start, six digits>, as in its clip lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none of the forms, is empty, or names a clip twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No labels at {path}. {EXPECTED}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}). {EXPECTED}") from error
    read = _read_json if path.suffix.lower() == ".json" else _read_csv
    form, pairs = read(text, path)
    classes: dict[str, str] = {}
    for place, (clip_id, label) in enumerate(pairs, start=1):
        if not clip_id or not label:
            raise ValueError(f"{path}: entry {place} lacks its id or its class. {EXPECTED}")
        if clip_id in classes:
            raise ValueError(
                f"{path} names {clip_id} twice, as '{classes[clip_id]}' and '{label}'. Expected "
                "each clip once; remove the repeats."
            )
        classes[clip_id] = label
    if not classes:
        raise ValueError(f"{path} names no clips. {EXPECTED}")
    return Labels(str(path), hashlib.sha256(content).hexdigest(), form, classes)


Pairs = Iterable[tuple[str, str]]


def _read_csv(text: str, path: Path) -> tuple[str, Pairs]:
    try:
        rows = [
            [field.strip() for field in row]
            for row in csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
            if any(field.strip() for field in row)
        ]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV ({error}). {EXPECTED}") from error
    header = rows[0] if rows and rows[0][0].lower() in HEADER_IDS else None
    rows = rows[1:] if header else rows
    widths = {len(row) for row in rows}
    if widths <= {2}:
        return "CSV of id,label", ((clip_id, label) for clip_id, label in rows)
    starts = [row[1] for row in rows if len(row) == 4]
    if widths != {4} or not all(start.isdecimal() for start in starts):
        raise ValueError(
            f"{path}: lines of {sorted(widths)} fields. {EXPECTED} A class with a comma in it "
            "stands between double quotes."
        )
    return "VGGSound's CSV", ((f"{row[0]}_{int(row[1]):06d}", row[2]) for row in rows)


def _read_json(text: str, path: Path) -> tuple[str, Pairs]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {EXPECTED}") from error
    if isinstance(found, list):
        form, entries, id_key = "VGG-SS JSON", found, "file"
    elif isinstance(found, dict) and isinstance(found.get("clips"), dict):
        form, id_key = "stamps.json", "id"
        entries = [
            {**record, "id": clip_id} if isinstance(record, dict) else record
            for clip_id, record in found["clips"].items()
        ]
    else:
        raise ValueError(f"{path} is JSON, but of another form. {EXPECTED}")
    pairs = []
    for place, entry in enumerate(entries, start=1):
        clip_id, label = (entry.get(id_key), entry.get("class")) if isinstance(entry, dict) else (None, None)
        if not isinstance(clip_id, str) or not isinstance(label, str):
            raise ValueError(f'{path}: entry {place} has no text under "{id_key}" or "class". {EXPECTED}')
        pairs.append((clip_id.strip(), label.strip()))
    return form, pairs
