"""Where the object is: boxes and masks, from files to maps.

A box is (x_min, y_min, x_max, y_max) as fractions of the frame's width and height, float64.
"""

import csv
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.frames import FrameGeometry
from datasets.lists import clip_id_in
from utils.files import decoding

Boxes = NDArray[np.float64]  # (N, 4)

FLICKR_CANVAS = 256  # Side of the canvas on which Flickr-SoundNet's boxes were drawn, pixels
PIXEL_JSON_CANVAS = 224  # Side of the canvas on which the boxes of IS3 and VPO are given, pixels
MAX_FRACTION = 2.0  # Annotators drew a little beyond the frame; what lies further out is in another unit
CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"))
"""Names of a box's numbers; other names are read in their order."""
SIZES = frozenset({"w", "h", "width", "height", "cx", "cy", "xcenter", "ycenter", "xc", "yc"})
"""Names that say that a box is not given by its corners."""
SLIP = -1e6  # Below it a coordinate of VGG-SS is a slip, not a pixel: a few published boxes hold -2.9e16

# --------------------------------------------------------------------------------------------- boxes


def read_vgg_ss_xml(path: Path) -> Boxes:
    """Read VGG-SS boxes (N, 4) from XML: root/bbox/<any name>/four fractions; N may be 0.

    A bbox that holds the four numbers itself, and a label before them, are understood too. Numbers with
    names of CORNERS are read by these, whatever their case, namespace and order.

    Raises:
        BrokenFileError: no XML, none with a bbox, a box without four numbers, or one in another unit; so
            do all readers here.
    """
    return _read_xml(path, canvas=1)


def read_flickr_xml(path: Path) -> Boxes:
    """Read Flickr-SoundNet boxes (N, 4) from XML: root/<annotator>/bbox/label and four pixels of 256."""
    return _read_xml(path, FLICKR_CANVAS)


def read_vgg_ss_json(path: Path) -> dict[str, Boxes]:
    """Read VGG-SS boxes, clip id -> (N, 4), from JSON: [{"file": id, "bbox": [[four fractions], …]}, …]."""
    return _read_json(
        path, "{'file': …, 'bbox': [[…]]}", lambda entry: (clip_id_in(entry["file"]), entry["bbox"]), canvas=1
    )


def read_pixel_json(path: Path) -> dict[str, Boxes]:
    """Read the boxes of IS3 and VPO, clip id -> (N, 4), from JSON.

    It is [{"image": path, "audio": path, "gt_box": …}, …]; IS3's download calls the last one box. It is
    four pixels of 224, or a list of such boxes. Of the paths only the file names count: the clip's id.
    """

    def parse(entry: dict[str, Any]) -> tuple[str, list[Any]]:
        frame, sound = PurePosixPath(entry["image"]).stem, PurePosixPath(entry["audio"]).stem
        if frame != sound:
            raise ValueError(f"{frame} and {sound} have different names")
        box = entry["gt_box"] if "gt_box" in entry else entry.get("box")
        return frame, box if box and isinstance(box[0], list) else [box]

    return _read_json(path, "{'image': …, 'audio': …, 'gt_box': […]}", parse, PIXEL_JSON_CANVAS)


def read_box_csv(path: Path) -> dict[str, Boxes]:
    """Read one's own boxes, clip id -> (N, 4), from a CSV: clip, x0, y0, x1, y1; a line for each box."""
    columns = ("x0", "y0", "x1", "y1")
    boxes: dict[str, list[list[float]]] = {}
    with decoding(path), path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, skipinitialspace=True)
        header = [name.strip().lower() for name in table.fieldnames or ()]
        if lacking := [name for name in ("clip", *columns) if name not in header]:
            raise ValueError(f"the first line has no {', '.join(lacking)}, it names clip,x0,y0,x1,y1")
        table.fieldnames = header
        for row in table:
            clip_id, numbers = clip_id_in((row["clip"] or "").strip()), [row[name] or "" for name in columns]
            try:
                x0, y0, x1, y1 = box = [float(number) for number in numbers]
                is_box = clip_id and 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            except ValueError:
                is_box = False
            if not is_box:
                raise ValueError(
                    f"line {table.line_num} has {clip_id or 'no clip'} and {', '.join(numbers)}; expected a "
                    "clip and fractions of width and height, 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
                )
            boxes.setdefault(clip_id, []).append(box)
        if not boxes:
            raise ValueError("no line after the first holds a box")
    return {clip_id: np.array(of_clip) for clip_id, of_clip in boxes.items()}


def _read_xml(path: Path, canvas: int) -> Boxes:
    """Read the four numbers of each bbox, or of each element in it that has elements of its own."""
    with decoding(path, "not readable as XML with boxes"):
        root = ET.fromstring(path.read_bytes(), ET.XMLParser(target=_NoDoctype()))
        names = {element: _name(element.tag) for element in root.iter()}
        blocks = [element for element, name in names.items() if name == "bbox"]
        # A file that names its picture alone, or has an empty bbox, says that nothing is annotated.
        if not blocks and set(names.values()) - {names[root]} != {"filename"}:
            found = ", ".join(sorted(set(names.values())))
            raise ValueError(f"no box: expected elements <bbox> with four numbers each, found {found}")
        inside = dict.fromkeys(element for block in blocks for element in block.iter())
        boxes = [_corners(element) for element in inside if _is_box(element, blocks)]
        return _as_fractions(boxes, canvas)


def _name(tag: str) -> str:
    """Return a tag without its namespace, in lower case and without underscores."""
    return tag.rpartition("}")[2].lower().replace("_", "")


def _is_box(element: ET.Element, blocks: Sequence[ET.Element]) -> bool:
    """Say whether an element in a bbox is a box: all its elements are numbers, or a bbox has text instead."""
    if len(element):
        return not any(map(len, element))
    return element in blocks and bool(element.attrib or (element.text or "").strip())


def _corners(element: ET.Element) -> list[str]:
    """Return the texts of a box's elements by their names, or else the last four: a label comes first."""
    fields = [(_name(child.tag), child.text or "") for child in element] or [("", element.text or "")]
    named = {_name(key): value for key, value in element.attrib.items()} | dict(fields)
    for names in CORNERS:
        if named.keys() >= set(names):
            return [named[name] for name in names]
    if sizes := SIZES & named.keys():
        raise ValueError(f"a box is given by {', '.join(sorted(sizes))}, expected corners, as xmin … ymax")
    return [text for _, text in fields][-4:]


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, *_: object) -> None:
        raise ValueError(f"it declares a DOCTYPE '{name}', which can define entities; remove it")


def _read_json(
    path: Path, form: str, parse: Callable[[dict[str, Any]], tuple[str, list[Any]]], canvas: int
) -> dict[str, Boxes]:
    """Read the boxes of all clips; `parse` returns the clip id and the boxes of an entry."""
    boxes: dict[str, Boxes] = {}
    with decoding(path, f"not a list of {form}"):
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        lower = ({key.lower(): value for key, value in entry.items()} for entry in entries)
        for clip_id, values in map(parse, lower):
            if clip_id in boxes:
                raise ValueError(f"{clip_id} comes twice; put all its boxes into one entry")
            boxes[clip_id] = _as_fractions(values, canvas, most=MAX_FRACTION if canvas == 1 else 1.0)
    return boxes


def _as_fractions(boxes: Sequence[Sequence[float | str]], canvas: int, most: float = MAX_FRACTION) -> Boxes:
    """Turn boxes on a canvas of that many pixels (1: in fractions) into fractions (N, 4), at most `most`."""
    if any(len(box) != 4 for box in boxes):
        raise ValueError(f"a box must end in four numbers, got {list(boxes)}")
    values = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    fractions = values / canvas
    # Fractions that give the pixels back: 61 / 224 * 224 is less than 61, and would be cut to 60.
    fractions = np.where(fractions * canvas < values, np.nextafter(fractions, np.inf), fractions)
    beyond = ~np.isfinite(values) | (fractions > most) | ((fractions < -MAX_FRACTION) & (values > SLIP))
    if beyond.any():
        unit = "fractions of width and height" if canvas == 1 else f"pixels of {canvas} x {canvas}"
        raise ValueError(f"boxes are expected as {unit}, got {values[beyond.any(axis=1)][0].tolist()}")
    return fractions


def consensus_map(boxes: Boxes, *, annotators_needed: int, size: int = 224) -> NDArray[np.float32]:
    """Return the ground-truth map (size, size): min(boxes that cover the pixel / annotators_needed, 1).

    With annotators_needed = 1 this is the union of the boxes (VGG-SS), with 2 the consensus of
    Flickr-SoundNet (Senocak et al., CVPR 2018). Coordinates are cut to [0, 1] and become pixels by
    int(size * v), the upper end excluded.
    """
    votes = np.zeros((size, size), dtype=np.float32)
    for x_min, y_min, x_max, y_max in (size * np.clip(boxes, 0.0, 1.0)).astype(int):
        votes[y_min:y_max, x_min:x_max] += 1
    return np.minimum(votes / annotators_needed, 1).astype(np.float32)


# --------------------------------------------------------------------------------------------- masks

COLOUR_MODES = frozenset({"P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes in which a value is no brightness, or has an opacity beside it."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decode a mask (H, W): whatever is not black is the object, True; opacity does not count.

    In a JPEG, whose black is not quite black near an edge, the object is brighter than half of white.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    with decoding(path), Image.open(path) as picture:
        picture.load()
        values = np.asarray(picture.convert("RGB") if picture.mode in COLOUR_MODES else picture)
        values = values > 127 if picture.format == "JPEG" else values
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))  # (H, W[, channels]) -> (H, W)


def mask_map(
    path: Path, geometry: FrameGeometry, frame_size: tuple[int, int], size: int
) -> NDArray[np.float32]:
    """Return the ground-truth map (size, size) of a mask: 1 on the object, 0 elsewhere.

    The mask covers its frame, of `frame_size` = (width, height) pixels on disk, whatever its own size. Each
    pixel of the map takes the value of the nearest one in the part that the square shows, whatever the
    model's frame size.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    mask = Image.fromarray(read_mask(path).astype(np.uint8))
    left, top, right, bottom = replace(geometry, frame_size=size).square_in(*frame_size)
    box = (left * mask.width, top * mask.height, right * mask.width, bottom * mask.height)
    return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST, box=box), dtype=np.float32)
