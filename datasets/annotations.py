"""Where the object is, and what it is: boxes, masks and class labels, from files to maps.

A box is (x_min, y_min, x_max, y_max) as fractions of the frame's width and height, float64.
"""

import csv
import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.frames import FrameGeometry
from utils.files import BrokenFileError

Boxes = NDArray[np.float64]  # (N, 4)

FLICKR_CANVAS = 256  # Side of the canvas on which Flickr-SoundNet's boxes were drawn, pixels
PIXEL_JSON_CANVAS = 224  # Side of the canvas on which the boxes of IS3 and VPO are given, pixels
MAX_FRACTION = 2.0  # Annotators drew a little beyond the frame; what lies further out is in another unit
SLIP = -1e6  # Below it a coordinate of VGG-SS is a slip, not a pixel: a few published boxes hold -2.9e16
JSON_ERRORS = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What reading a JSON of another form than expected raises."""

# --------------------------------------------------------------------------------------------- boxes


def read_vgg_ss_xml(path: Path) -> Boxes:
    """Read VGG-SS boxes from XML: root/bbox/<any name>/four fractions; (N, 4), N may be 0.

    A bbox that holds the four numbers itself, and a label before them, are understood too.

    Raises:
        BrokenFileError: no XML, a box without four numbers, or one that is not in fractions.
    """
    boxes = _xml_boxes(path)
    _refuse(boxes, (boxes > MAX_FRACTION) | ((boxes < -MAX_FRACTION) & (boxes > SLIP)), path)
    return boxes


def read_flickr_xml(path: Path) -> Boxes:
    """Read Flickr-SoundNet boxes from XML: root/<annotator>/bbox/label and four pixels on a 256 canvas.

    Returns:
        (N, 4) fractions, all annotators' boxes; N may be 0.

    Raises:
        BrokenFileError: no XML, a box without four numbers, or one beyond the canvas.
    """
    pixels = _xml_boxes(path)
    _refuse(pixels, pixels > MAX_FRACTION * FLICKR_CANVAS, path, FLICKR_CANVAS)
    return pixels / FLICKR_CANVAS


def read_vgg_ss_json(path: Path) -> dict[str, Boxes]:
    """Read VGG-SS boxes from JSON: [{"file": clip_id, "bbox": [[four fractions], ...]}, ...].

    Returns:
        clip_id -> (N, 4).

    Raises:
        BrokenFileError: no JSON, not of this form, or a box that is not in fractions.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        boxes_by_id = {entry["file"]: _as_boxes(entry["bbox"]) for entry in entries}
        if len(boxes_by_id) < len(entries):
            raise ValueError(f"{len(entries) - len(boxes_by_id)} clips come twice")
    except JSON_ERRORS as error:
        raise BrokenFileError(path, f"not a list of {{'file': …, 'bbox': [[…]]}} ({error!r})") from error
    for boxes in boxes_by_id.values():
        _refuse(boxes, boxes > MAX_FRACTION, path)
    return boxes_by_id


@dataclass(frozen=True)
class SoundedFrame:
    """A frame with one of its sounds, and the boxes of what makes that sound."""

    frame_name: str  # of the file, without its suffix
    sound_name: str  # likewise
    bounding_boxes: Boxes


def read_pixel_json(path: Path) -> dict[str, SoundedFrame]:
    """Read the boxes of IS3 and VPO from JSON: [{"image": path, "audio": path, "gt_box": …}, …].

    A gt_box is four pixels x_min, y_min, x_max, y_max on a 224 canvas, or a list of such boxes. The
    paths are those of the authors' machine; only the names of the files count.

    Returns:
        clip id -> frame, sound and boxes, in the file's order. The id is the name of both files, or
        <frame>+<sound> where they differ.

    Raises:
        BrokenFileError: no JSON, not of this form, a pair that comes twice, or a box beyond the canvas.
    """
    items: dict[str, SoundedFrame] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8-sig")):
            frame, sound = PurePosixPath(entry["image"]).stem, PurePosixPath(entry["audio"]).stem
            clip_id = frame if frame == sound else f"{frame}+{sound}"
            if clip_id in items:
                raise ValueError(f"{clip_id} comes twice")
            box = entry["gt_box"]
            pixels = _as_boxes(box if box and isinstance(box[0], list) else [box])
            # Fractions that give the pixels back: 61 / 224 * 224 is less than 61, and cut to 60.
            fractions = pixels / PIXEL_JSON_CANVAS
            too_small = fractions * PIXEL_JSON_CANVAS < pixels
            boxes = np.where(too_small, np.nextafter(fractions, np.inf), fractions)
            items[clip_id] = SoundedFrame(frame, sound, boxes)
    except JSON_ERRORS as error:
        raise BrokenFileError(
            path, f"not a list of {{'image': …, 'audio': …, 'gt_box': […]}} ({error!r})"
        ) from error
    for item in items.values():
        beyond = np.abs(item.bounding_boxes) > MAX_FRACTION
        _refuse(item.bounding_boxes * PIXEL_JSON_CANVAS, beyond, path, PIXEL_JSON_CANVAS)
    return items


def consensus_map(boxes: Boxes, *, annotators_needed: int, size: int = 224) -> NDArray[np.float32]:
    """Return the ground-truth map: min(boxes that cover the pixel / annotators_needed, 1).

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


def _xml_boxes(path: Path) -> Boxes:
    """Read the last four numbers of each bbox, or of each element in it that has elements of its own."""
    try:
        content = path.read_bytes()
        # Entities are never expanded: their declaration is refused in a pass of its own, as
        # ElementTree's parser would only report the handler's error at the end.
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = _refuse_doctype
        guard.Parse(content, True)
        root = ET.fromstring(content)
    except (expat.ExpatError, ET.ParseError, LookupError, *JSON_ERRORS) as error:
        raise BrokenFileError(path, f"not readable as XML ({error})") from error
    boxes = []
    for block in root.iter("bbox"):
        for box in [child for child in block if len(child)] or [block] * bool(len(block)):
            texts = [child.text or "" for child in box][-4:]  # a label, where there is one, comes first
            try:
                boxes += [_as_boxes([[float(text) for text in texts]])]
            except ValueError:
                raise BrokenFileError(path, f"a box must end in four numbers, got {texts}") from None
    return np.concatenate([np.zeros((0, 4)), *boxes])


def _refuse_doctype(name: str, *_: object) -> None:
    raise ValueError(
        f"it declares a DOCTYPE '{name}', which can define entities; box files need none, remove it"
    )


def _as_boxes(boxes: list[list[float]]) -> Boxes:
    if any(len(box) != 4 for box in boxes):
        raise ValueError("a box must be four numbers")
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(array).all():
        raise ValueError("a box holds a number that is not finite")
    return array


def _refuse(boxes: Boxes, beyond: NDArray[np.bool_], path: Path, canvas: int | None = None) -> None:
    """Name the first box with a coordinate that can only be in another unit."""
    if beyond.any():
        unit = f"pixels on a canvas of {canvas} x {canvas}" if canvas else "fractions of width and height"
        first = boxes[beyond.any(axis=1)][0].tolist()
        raise BrokenFileError(path, f"boxes are expected as {unit}, got {first}")


# --------------------------------------------------------------------------------------------- masks

COLOUR_MODES = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes in which a value is no brightness, or has an opacity beside it."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decode a mask: whatever is not black is the object; opacity does not count.

    Returns:
        (H, W), True on the object.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            values = np.asarray(picture.convert("RGB") if picture.mode in COLOUR_MODES else picture)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any type
        raise BrokenFileError(path, str(error) or type(error).__name__) from error
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))  # (H, W[, channels]) -> (H, W)


def mask_map(
    path: Path, geometry: FrameGeometry, frame_size: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """Return the ground-truth map of a mask: 1 on the object, 0 elsewhere.

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
"""First fields that make the first line of a CSV a header."""

EXPECTED_LABELS = (
    "Expected a CSV of `id,label` lines, VGGSound's CSV (youtube_id,start,label,split), the VGG-SS "
    'JSON ([{"file": …, "class": …}, …]), or the stamps.json of a stamps set.'
)


@dataclass(frozen=True)
class Labels:
    """One class for each clip, and where that was read."""

    path: str
    sha256: str  # of the file
    form: str  # which of the known forms the file has
    classes: dict[str, str]  # clip id -> class

    def of(self, clip_ids: Sequence[str]) -> list[str]:
        """Return the classes of clips, in their order.

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
    """Read the class of each clip; the form is recognised by the content.

    Args:
        path: `.json` is read as VGG-SS's or a stamps set's, everything else as CSV in UTF-8. Clips
            of VGGSound's CSV are named <youtube_id>_<start, six digits>, as in its clip lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none of the forms, is empty, or names a clip twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No labels at {path}. {EXPECTED_LABELS}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        form, pairs = (_json_labels if path.suffix.lower() == ".json" else _csv_labels)(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}). {EXPECTED_LABELS}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}. {EXPECTED_LABELS}") from error
    classes: dict[str, str] = {}
    for place, (clip_id, label) in enumerate(pairs, start=1):
        if not clip_id or not label:
            raise ValueError(f"{path}: entry {place} lacks its id or its class. {EXPECTED_LABELS}")
        if clip_id in classes:
            raise ValueError(
                f"{path} names {clip_id} twice, as '{classes[clip_id]}' and '{label}'. Expected "
                "each clip once; remove the repeats."
            )
        classes[clip_id] = label
    if not classes:
        raise ValueError(f"{path} names no clips. {EXPECTED_LABELS}")
    return Labels(str(path), hashlib.sha256(content).hexdigest(), form, classes)


def _csv_labels(text: str) -> tuple[str, list[tuple[str, str]]]:
    try:
        rows = [
            [field.strip() for field in row]
            for row in csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
            if any(field.strip() for field in row)
        ]
    except csv.Error as error:
        raise ValueError(f"it is not a CSV ({error})") from error
    if rows and rows[0][0].lower() in HEADER_IDS:
        rows = rows[1:]
    widths = {len(row) for row in rows}
    if widths <= {2}:
        return "CSV of id,label", [(clip_id, label) for clip_id, label in rows]
    if widths != {4} or not all(row[1].isdecimal() for row in rows):
        raise ValueError(
            f"lines of {sorted(widths)} fields; a class with a comma in it stands between double quotes"
        )
    return "VGGSound's CSV", [(f"{video}_{int(start):06d}", label) for video, start, label, _ in rows]


def _json_labels(text: str) -> tuple[str, list[tuple[str, str]]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON ({error})") from error
    if isinstance(document, list):
        form, entries = "VGG-SS JSON", [(_field(entry, "file"), entry) for entry in document]
    elif isinstance(document, dict) and isinstance(document.get("clips"), dict):
        form, entries = "stamps.json", list(document["clips"].items())
    else:
        raise ValueError("it is JSON, but of another form")
    pairs = []
    for place, (clip_id, entry) in enumerate(entries, start=1):
        label = _field(entry, "class")
        if not isinstance(clip_id, str) or not isinstance(label, str):
            raise ValueError(f'entry {place} has no text under "file" or "class"')
        pairs.append((clip_id.strip(), label.strip()))
    return form, pairs


def _field(entry: object, key: str) -> object:
    return entry.get(key) if isinstance(entry, dict) else None
