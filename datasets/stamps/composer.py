"""Composes one clip: a background, one or two objects on it, and the sound of one of them.

Evaluation calls half of a frame sounding, so a box below a quarter of the frame could not be
matched by any method: all boxes are larger. Objects lie anywhere they fit, so that guessing the
middle is not rewarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from datasets.stamps.errors import StampsError
from datasets.stamps.material import Material, Photo, Sound
from datasets.stamps.painting import crop_background, draw_size, paint, resize_into, turn
from datasets.stamps.sounds import compose_waveform

SPLITS = ("train", "test")
SOUNDING_AREA = (0.27, 0.45)  # of the frame
DISTRACTOR_AREA = (0.25, 0.40)
MAX_OVERLAP = 0.12  # of the smaller of two boxes
_ONE_OBJECT_SHARE = 0.35
_SILENT_SHARE = 0.25  # of the distractors
_HELD_OUT_SHARE = 0.5  # of the test clips of a class that has held-out photos (sounds)
_LAYOUT_TRIES, _SIZE_TRIES, _PLACEMENT_TRIES = 100, 60, 200

_Member = TypeVar("_Member")
_Instance = TypeVar("_Instance", Photo, Sound)


@dataclass(frozen=True)
class Clip:
    """A frame, its sound and what is where.

    Attributes:
        frame: RGB, square.
        waveform: (L,), float32 in [−1, 1], three seconds.
        record: The clip's entry in the manifest, boxes as fractions of width and height.
    """

    frame: Image.Image
    waveform: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class _Object:
    """A photo with its class (None: a thing that never sounds)."""

    class_name: str | None
    photo: Photo


def compose_clip(material: Material, split: str, index: int, *, seed: int, frame_size: int) -> Clip:
    """Composes one clip; equal arguments give equal clips.

    Args:
        material: What to compose it of.
        split: "train" or "test".
        index: Number of the clip within its split.
        seed: Seed of the whole set.
        frame_size: Side of the frame, pixels.

    Returns:
        The clip.

    Raises:
        StampsError: The class's photos cannot be made to fit a frame.
    """
    stream = SPLITS.index(split)
    rng = np.random.default_rng([seed, stream, index, 0])
    # Each run of as many clips as classes has each class once: small test sets are balanced.
    block, place = divmod(index, len(material.classes))
    order = np.random.default_rng([seed, stream, block, 1]).permutation(len(material.classes))
    sounding = int(order[place])

    objects, pictures, boxes = _lay_out(material, sounding, split, frame_size, rng)
    background = _choose(material.backgrounds[split], rng)
    frame = crop_background(background.picture, frame_size, rng)
    for number in rng.permutation(len(objects)):  # either may be in front
        paint(frame, pictures[number], boxes[number], rng)
    sound = _choose_instance(material.classes[sounding].sounds, split, rng)
    waveform = compose_waveform(sound.waveform, rng)

    described = [_describe(member, box, frame_size) for member, box in zip(objects, boxes, strict=True)]
    record = {
        **described[0],
        "sound": sound.key,
        "photo_seen_in_training": not objects[0].photo.held_out,
        "sound_seen_in_training": not sound.held_out,
        "background": background.key,
        "other_objects": described[1:],
    }
    return Clip(Image.fromarray(np.rint(frame).astype(np.uint8)), waveform, record)


def overlap_share(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of pairs of boxes, as a share of the smaller box of the pair.

    Args:
        first: (..., 4), x_min, y_min, x_max, y_max in any unit, maxima exclusive.
        second: The same of the other boxes.

    Returns:
        (...), [0, 1].
    """
    lower = np.maximum(first[..., :2], second[..., :2])
    upper = np.minimum(first[..., 2:], second[..., 2:])
    smaller = np.minimum(_area(first), _area(second))
    return np.maximum(upper - lower, 0).prod(axis=-1) / smaller


def place_boxes(
    sizes: Sequence[tuple[int, int]], frame_size: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Places one or two boxes, uniformly over all positions that obey the overlap rule.

    Args:
        sizes: (width, height) of each box, pixels, at most the frame's.
        frame_size: Side of the frame, pixels.
        rng: Source of chance.

    Returns:
        int (boxes, 4) inside the frame, which overlap by at most `MAX_OVERLAP`; or None if none
        were found.
    """
    extents = np.array(sizes)
    tries = 1 if len(sizes) == 1 else _PLACEMENT_TRIES
    corners = rng.integers(0, frame_size - extents + 1, (tries, *extents.shape))
    boxes = np.concatenate([corners, corners + extents], axis=-1)
    if len(sizes) > 1:
        boxes = boxes[overlap_share(boxes[:, 0], boxes[:, 1]) <= MAX_OVERLAP]
    return boxes[0] if len(boxes) else None


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def _lay_out(
    material: Material, sounding: int, split: str, frame_size: int, rng: np.random.Generator
) -> tuple[list[_Object], list[Image.Image], np.ndarray]:
    """Chooses the objects, the sounding one first, their sizes and their places."""
    sounding_class = material.classes[sounding]
    photo = _choose_instance(sounding_class.photos, split, rng)
    objects = [_Object(sounding_class.name, photo)]
    has_distractor = rng.random() >= _ONE_OBJECT_SHARE
    for _ in range(_LAYOUT_TRIES):
        if has_distractor:
            objects[1:] = [_draw_distractor(material, sounding, split, rng)]
        layout = _fit(objects, frame_size, rng)
        if layout:
            return objects, *layout
    raise StampsError(f"{photo.key} cannot be made to fit a frame of {frame_size} pixels.")


def _draw_distractor(material: Material, sounding: int, split: str, rng: np.random.Generator) -> _Object:
    if rng.random() < _SILENT_SHARE:
        return _Object(None, _choose(material.silent, rng))
    other = _choose([*material.classes[:sounding], *material.classes[sounding + 1 :]], rng)
    return _Object(other.name, _choose_instance(other.photos, split, rng))


def _fit(
    objects: Sequence[_Object], frame_size: int, rng: np.random.Generator
) -> tuple[list[Image.Image], np.ndarray] | None:
    """Turns the objects and finds sizes and places; many tries, or bulky ones would be rare."""
    areas = np.array([SOUNDING_AREA, DISTRACTOR_AREA][: len(objects)])
    turned = [turn(member.photo.picture, rng) for member in objects]
    for _ in range(_SIZE_TRIES):
        sizes = [
            draw_size(picture.size, area, frame_size, rng)
            for picture, area in zip(turned, areas, strict=True)
        ]
        boxes = place_boxes(sizes, frame_size, rng)
        if boxes is None:
            continue
        fitted = [resize_into(*pair) for pair in zip(turned, boxes, strict=True)]
        tight_boxes = np.array([box for _, box in fitted])
        if _is_allowed(tight_boxes, areas * frame_size**2):
            return [picture for picture, _ in fitted], tight_boxes
    return None


def _is_allowed(boxes: np.ndarray, areas: np.ndarray) -> bool:
    """Whether boxes keep within (smallest, largest) areas and overlap little enough."""
    large_enough = (areas[:, 0] <= _area(boxes)) & (_area(boxes) <= areas[:, 1])
    overlaps_little = len(boxes) == 1 or overlap_share(boxes[0], boxes[1]) <= MAX_OVERLAP
    return bool(large_enough.all() and overlaps_little)


def _choose(members: Sequence[_Member], rng: np.random.Generator) -> _Member:
    return members[int(rng.integers(len(members)))]


def _choose_instance(instances: Sequence[_Instance], split: str, rng: np.random.Generator) -> _Instance:
    """Chooses a photo or sound of a class; held-out ones only in test, in about half the clips."""
    has_held_out = any(instance.held_out for instance in instances)
    held_out = split == "test" and has_held_out and rng.random() < _HELD_OUT_SHARE
    return _choose([instance for instance in instances if instance.held_out == held_out], rng)


def _describe(member: _Object, box: np.ndarray, frame_size: int) -> dict[str, Any]:
    return {
        "class": member.class_name,
        "stamp": member.photo.key,
        "box": [round(side / frame_size, 6) for side in box.tolist()],
    }
