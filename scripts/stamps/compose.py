"""Composes one clip: a background, one or two objects on it, and the sound of one of them.

Evaluation calls half of a frame sounding, so a box below a quarter of the frame could not be matched
by any method: all boxes are larger. Objects lie anywhere they fit, so that guessing the middle is not
rewarded. The order of the random draws is part of a set's recipe.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image, ImageFilter
from scipy.signal import lfilter

from datasets.frames import read_frame
from datasets.video import write_video
from scripts.stamps.material import (
    SAMPLE_RATE,
    Material,
    Photo,
    Sound,
    crop_to_opaque,
    make_procedural_material,
    opaque_box,
)

SPLITS = ("train", "test")
SOUNDING_AREA = (0.27, 0.45)  # of the frame
DISTRACTOR_AREA = (0.25, 0.40)
MAX_OVERLAP = 0.12  # of the smaller of two boxes
DURATION = 3 * SAMPLE_RATE  # samples
ONE_OBJECT_SHARE = 0.35
SILENT_SHARE = 0.25  # of the distractors
HELD_OUT_SHARE = 0.5  # of the test clips of a class that has held-out photos (sounds)
LAYOUT_TRIES, SIZE_TRIES, PLACEMENT_TRIES, CROP_TRIES = 100, 60, 200, 8

MAX_EXTENT = 0.97  # of the frame's side, for slender objects
MAX_ROTATION = 12.0  # degrees
MAX_ZOOM = 2.6
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# How far an object follows the brightness and colour of its surroundings: 0 not at all, 1 fully.
BRIGHTNESS_MATCH, TINT_MATCH = 0.35, 0.3
SHADOW_DARKNESS = 0.35


def as_fraction(side: float, frame_size: int) -> float:
    """Return an edge in pixels as a fraction, of which scoring, by truncation, makes the same pixel again."""
    nearest = round(side / frame_size, 6)
    return nearest if int(224 * nearest) == int(224 * side / frame_size) else round(nearest + 1e-6, 6)


def compose_clip(
    material: Material, split: str, index: int, *, seed: int, frame_size: int
) -> tuple[Image.Image, np.ndarray, dict[str, Any]]:
    """Compose one clip; equal arguments give equal clips.

    Returns:
        frame, RGB; waveform, float32 (3 s,) in [-1, 1]; and the clip's entry in the manifest, with
        boxes as fractions of width and height.
    """
    stream = SPLITS.index(split)
    rng = np.random.default_rng([seed, stream, index, 0])
    # Each run of as many clips as classes has each class once: small test sets are balanced.
    block, place = divmod(index, len(material.classes))
    order = np.random.default_rng([seed, stream, block, 1]).permutation(len(material.classes))
    sounding = int(order[place])

    objects, pictures, boxes = lay_out(material, sounding, split, frame_size, rng)
    background = _choose(material.backgrounds[split], rng)
    frame = crop_background(background.picture, frame_size, rng)
    for number in rng.permutation(len(objects)):  # either may be in front
        paint(frame, pictures[number], boxes[number], rng)
    sound = _choose_instance(material.classes[sounding].sounds, split, rng)
    waveform = compose_waveform(sound.waveform, rng)

    described: list[dict[str, Any]] = [
        {"class": name, "stamp": photo.key, "box": [as_fraction(side, frame_size) for side in box.tolist()]}
        for (name, photo), box in zip(objects, boxes, strict=True)
    ]
    record = {
        **described[0],
        "sound": sound.key,
        "photo_seen_in_training": not objects[0][1].held_out,
        "sound_seen_in_training": not sound.held_out,
        "background": background.key,
        "other_objects": described[1:],
    }
    return Image.fromarray(np.rint(frame).astype(np.uint8)), waveform, record


# Where objects lie. An object is the name of its class (None: a thing that never sounds) and a photo.


def lay_out(
    material: Material, sounding: int, split: str, frame_size: int, rng: np.random.Generator
) -> tuple[list[tuple[str | None, Photo]], list[Image.Image], np.ndarray]:
    """Choose the objects, the sounding one first, with their pictures and boxes, int (objects, 4)."""
    sounding_class = material.classes[sounding]
    others = [*material.classes[:sounding], *material.classes[sounding + 1 :]]
    photo = _choose_instance(sounding_class.photos, split, rng)
    objects: list[tuple[str | None, Photo]] = [(sounding_class.name, photo)]
    has_distractor = rng.random() >= ONE_OBJECT_SHARE
    for _ in range(LAYOUT_TRIES):
        if has_distractor and rng.random() < SILENT_SHARE:
            objects[1:] = [(None, _choose(material.silent, rng))]
        elif has_distractor:
            other = _choose(others, rng)
            objects[1:] = [(other.name, _choose_instance(other.photos, split, rng))]
        layout = fit([photo.picture for _, photo in objects], frame_size, rng)
        if layout:
            return objects, *layout
    raise ValueError(f"{photo.key} cannot be made to fit a frame of {frame_size} pixels.")


def _choose(members: Sequence[Any], rng: np.random.Generator) -> Any:  # noqa: ANN401 - one of the members
    return members[int(rng.integers(len(members)))]


def _choose_instance(instances: Sequence[Photo | Sound], split: str, rng: np.random.Generator) -> Any:  # noqa: ANN401
    """Choose a photo or sound of a class; held-out ones only in test, in about half the clips."""
    has_held_out = any(instance.held_out for instance in instances)
    held_out = split == "test" and has_held_out and rng.random() < HELD_OUT_SHARE
    return _choose([instance for instance in instances if instance.held_out == held_out], rng)


def fit(
    pictures: Sequence[Image.Image], frame_size: int, rng: np.random.Generator
) -> tuple[list[Image.Image], np.ndarray] | None:
    """Turn objects and find sizes and places; many tries, or bulky ones would be rare."""
    areas = np.array([SOUNDING_AREA, DISTRACTOR_AREA][: len(pictures)])  # (objects, 2)
    turned = [turn(picture, rng) for picture in pictures]
    for _ in range(SIZE_TRIES):
        sizes = [draw_size(one.size, area, frame_size, rng) for one, area in zip(turned, areas, strict=True)]
        boxes = place_boxes(sizes, frame_size, rng)
        if boxes is None:
            continue
        fitted, tight = zip(*map(resize_into, turned, boxes), strict=True)
        tight = np.array(tight)
        low, high = areas.T * frame_size**2
        fits = ((low <= _area(tight)) & (_area(tight) <= high)).all()
        if fits and (len(tight) == 1 or overlap_share(*tight) <= MAX_OVERLAP):
            return list(fitted), tight
    return None


def place_boxes(
    sizes: Sequence[tuple[int, int]], frame_size: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Place one or two boxes, int (boxes, 4), uniformly over all positions that obey the overlap rule."""
    extents = np.array(sizes)
    tries = 1 if len(sizes) == 1 else PLACEMENT_TRIES
    corners = rng.integers(0, frame_size - extents + 1, (tries, *extents.shape))
    boxes = np.concatenate([corners, corners + extents], axis=-1)  # (tries, boxes, 4)
    if len(sizes) > 1:
        boxes = boxes[overlap_share(boxes[:, 0], boxes[:, 1]) <= MAX_OVERLAP]
    return boxes[0] if len(boxes) else None


def overlap_share(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the overlap of pairs of boxes (..., 4), as a share of the smaller box of the pair."""
    lower = np.maximum(first[..., :2], second[..., :2])
    upper = np.minimum(first[..., 2:], second[..., 2:])
    return np.maximum(upper - lower, 0).prod(axis=-1) / np.minimum(_area(first), _area(second))


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


# How objects look.


def turn(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flip an RGBA object in half of the cases and turn it a little; cropped to alpha > 0.5."""
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    degrees = float(np.clip(rng.normal(0, MAX_ROTATION / 2), -MAX_ROTATION, MAX_ROTATION))
    return crop_to_opaque(picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True))


def draw_size(
    size: tuple[int, int], area: Sequence[float], frame_size: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw width and height with the ratio of `size` and an area uniform within bounds (of the frame).

    Too slender objects come out below the smallest area.
    """
    aspect = size[0] / size[1]
    largest = min(area[1], MAX_EXTENT**2 * min(aspect, 1 / aspect))
    wanted = rng.uniform(min(area[0], largest), largest)
    width, height = (frame_size * float(np.sqrt(wanted * ratio)) for ratio in (aspect, 1 / aspect))
    return round(width), round(height)


def resize_into(picture: Image.Image, box: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Resize an RGBA object to a box; thin ends may fade, so that its tight box is a little smaller."""
    x, y = box[:2].tolist()
    width, height = (box[2:] - box[:2]).tolist()
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top, right, bottom = opaque_box(resized)
    return resized.crop((left, top, right, bottom)), np.array([x + left, y + top, x + right, y + bottom])


def crop_background(picture: Image.Image, frame_size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random square from a scene: float32 (H, W, 3) in [0, 255]."""
    short_side = min(picture.size)
    side = short_side / rng.uniform(1, max(1, min(MAX_ZOOM, short_side / frame_size)))
    x, y = (rng.uniform(0, extent - side) for extent in picture.size)
    size, box = (frame_size, frame_size), (x, y, x + side, y + side)
    crop = picture.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2)
    return np.asarray(crop, np.float32).copy()


def paint(frame: np.ndarray, picture: Image.Image, box: np.ndarray, rng: np.random.Generator) -> None:
    """Paste an object into the frame, with a soft shadow, in the light and tint of what it covers."""
    (x, y), (width, height) = box[:2].tolist(), picture.size
    feathered = picture.getchannel("A").filter(ImageFilter.GaussianBlur(0.6))
    opacity = np.asarray(feathered, np.float32)[..., None] / 255  # (h, w, 1)
    colours = np.asarray(picture, np.float32)[..., :3]  # (h, w, 3)
    region = frame[y : y + height, x : x + width]

    own_brightness = (colours @ LUMINANCE)[opacity[..., 0] > 0.5].mean()
    brightness = (region @ LUMINANCE).mean()
    gain = np.clip((brightness / max(1, own_brightness)) ** BRIGHTNESS_MATCH, 0.6, 1.5)
    tint = (region.mean(axis=(0, 1)) / max(1, region.mean())) ** TINT_MATCH
    colours = np.clip(colours * gain * rng.uniform(0.9, 1.1) * tint, 0, 255)

    shadow = Image.new("L", (frame.shape[1], frame.shape[0]))
    shadow.paste(feathered, (x + width // 50, y + height // 33 + 1))
    shadow = shadow.filter(ImageFilter.GaussianBlur(max(1, width * 0.04)))
    frame *= 1 - SHADOW_DARKNESS / 255 * np.asarray(shadow, np.float32)[..., None]
    region *= 1 - opacity
    region += colours * opacity


# How they sound.


def compose_waveform(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make three seconds from a recording (L,): speed, crop or repeats, gain, noise; float32."""
    speed = rng.uniform(0.94, 1.06)
    positions = np.arange(0, len(recording) - 1, speed)
    recording = np.interp(positions, np.arange(len(recording)), recording).astype(np.float32)
    waveform = _crop(recording, rng) if len(recording) >= DURATION else _repeat(recording, rng)
    peak = 10 ** (rng.uniform(-14, -3) / 20)
    waveform *= peak / np.abs(waveform).max()

    noise = lfilter([1], [1, -rng.uniform(0, 0.97)], rng.standard_normal(DURATION))
    signal_to_noise = 10 ** (rng.uniform(12, 35) / 20)
    noise *= _root_mean_square(waveform) / (signal_to_noise * _root_mean_square(noise))
    return np.clip(waveform + noise, -1, 1).astype(np.float32)


def _crop(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a random part, not one of the recording's pauses."""
    audible = 0.3 * _root_mean_square(recording)
    part = recording[:DURATION]
    for _ in range(CROP_TRIES):
        start = int(rng.integers(len(recording) - DURATION + 1))
        part = recording[start : start + DURATION]
        if _root_mean_square(part) >= audible:
            break
    return part.copy()


def _repeat(recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat a short call with pauses of random length, as animals do."""
    waveform = np.zeros(DURATION, np.float32)
    start = int(rng.integers(max(1, min(DURATION - len(recording), DURATION // 3)) + 1))
    while start < DURATION:
        part = recording[: DURATION - start]
        waveform[start : start + len(part)] = part
        start += len(part) + int(rng.uniform(0.15, 0.9) * SAMPLE_RATE)
    return waveform


def _root_mean_square(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


# Examples to look at and to listen to.


def write_examples(source: Path | None, folder: Path) -> None:
    """Write four test clips of a stamps set, or drawn ones, and a video in which two things sound in turn.

    Files are named after what sounds. The video's sounds are known from training, if possible, and its things
    as far apart as possible.
    """
    clips: list[tuple[Image.Image, np.ndarray, dict[str, Any]]] = []  # frame, waveform (L,), record
    if source is None:
        material = make_procedural_material(12, 256)
        clips = [compose_clip(material, "test", index, seed=0, frame_size=256) for index in range(12)]
    else:
        manifest = json.loads((source / "stamps.json").read_text(encoding="utf-8"))
        for clip in (source / "test.txt").read_text().split()[: len(manifest["classes"])]:
            waveform, _ = soundfile.read(source / f"VGGSound_test/audio/{clip}.wav", dtype="float32")
            frame = read_frame(source / f"VGGSound_test/frame/{clip}.jpg")
            clips.append((frame, waveform, manifest["clips"][clip]))
    sounds = {record["class"]: (waveform, record) for _, waveform, record in clips}
    films = []
    for index, (frame, waveform, record) in enumerate(clips):
        things = [record, *record["other_objects"]]
        names = [(thing["class"] or Path(thing["stamp"]).name).replace("_", " ") for thing in things]
        if index < 4:
            frame.save(folder / f"{names[0]} sounds.png")
            soundfile.write(folder / f"{names[0]} sounds.wav", waveform, SAMPLE_RATE)
        if len(things) > 1 and things[1]["class"] in sounds:
            boxes = np.array([thing["box"] for thing in things])
            other, its_record = sounds[things[1]["class"]]
            known = record["sound_seen_in_training"] and its_record["sound_seen_in_training"]
            rank = (known, float(np.linalg.norm(boxes[0] - boxes[1])))
            films.append((rank, f"{names[0]}, then {names[1]}", frame, np.concatenate([waveform, other])))
    for _, name, frame, sound in sorted(films, key=lambda film: film[0])[-1:]:
        heard = folder / f"{name}.wav"
        soundfile.write(heard, sound, SAMPLE_RATE)
        seconds = np.arange(0, len(sound) / SAMPLE_RATE, 0.1)
        near = 0.03 * (1 - np.cos(2 * np.pi * seconds / seconds[-1]))  # how far the camera goes, and back
        views = [(part, part, frame.width - part, frame.width - part) for part in frame.width * near]
        pictures = (np.asarray(frame.resize((480, 480), Image.Resampling.BICUBIC, view)) for view in views)
        write_video(heard.with_suffix(".mp4"), zip(seconds.tolist(), pictures, strict=True), heard)
