"""Pictures: background crops, objects at their final size, and pasting without a visible seam."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from datasets.stamps.material import crop_to_opaque, opaque_box

_MAX_EXTENT = 0.97  # of the frame's side, for slender objects
_MAX_ROTATION = 12.0  # degrees
_MAX_ZOOM = 2.6
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# How far an object follows the brightness and colour of its surroundings: 0 not at all, 1 fully.
_BRIGHTNESS_MATCH, _TINT_MATCH = 0.35, 0.3
_SHADOW_DARKNESS = 0.35


def crop_background(picture: Image.Image, frame_size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts a random square from a scene.

    Args:
        picture: RGB scene.
        frame_size: Side of the result, pixels.
        rng: Source of chance.

    Returns:
        float32 (H, W, 3) in [0, 255].
    """
    short_side = min(picture.size)
    side = short_side / rng.uniform(1, max(1, min(_MAX_ZOOM, short_side / frame_size)))
    x, y = (rng.uniform(0, extent - side) for extent in picture.size)
    crop = picture.resize(
        (frame_size, frame_size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side), reducing_gap=2
    )
    return np.asarray(crop, np.float32).copy()


def turn(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flips an RGBA object in half of the cases and turns it a little; cropped to alpha > 0.5."""
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    degrees = float(np.clip(rng.normal(0, _MAX_ROTATION / 2), -_MAX_ROTATION, _MAX_ROTATION))
    return crop_to_opaque(picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True))


def draw_size(
    size: tuple[int, int], area: Sequence[float], frame_size: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Draws the size of a box whose area is uniform between bounds.

    Args:
        size: (width, height) of the object, of which only the ratio counts.
        area: Smallest and largest area, as fractions of the frame.
        frame_size: Side of the frame, pixels.
        rng: Source of chance.

    Returns:
        (width, height) in pixels; below the smallest area if the object is too slender for it.
    """
    aspect = size[0] / size[1]
    largest = min(area[1], _MAX_EXTENT**2 * min(aspect, 1 / aspect))
    wanted = rng.uniform(min(area[0], largest), largest)
    width, height = (frame_size * float(np.sqrt(wanted * ratio)) for ratio in (aspect, 1 / aspect))
    return round(width), round(height)


def resize_into(picture: Image.Image, box: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Resizes an object to a box.

    Args:
        picture: RGBA object.
        box: int (4,), x_min, y_min, x_max, y_max in pixels.

    Returns:
        The resized object, cropped to alpha > 0.5, and its box: thin ends may have faded, so that
        it is a little smaller than the given one.
    """
    x, y = box[:2].tolist()
    width, height = (box[2:] - box[:2]).tolist()
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top, right, bottom = opaque_box(resized)
    tight_box = np.array([x + left, y + top, x + right, y + bottom])
    return resized.crop((left, top, right, bottom)), tight_box


def paint(frame: np.ndarray, picture: Image.Image, box: np.ndarray, rng: np.random.Generator) -> None:
    """Pastes an object in place, with a soft shadow, in the light and tint of what it covers.

    Args:
        frame: float32 (H, W, 3) in [0, 255]; changed.
        picture: RGBA object.
        box: int (4,), where it goes: x_min, y_min, x_max, y_max in pixels, of its size.
        rng: Source of chance.
    """
    (x, y), (width, height) = box[:2].tolist(), picture.size
    feathered = picture.getchannel("A").filter(ImageFilter.GaussianBlur(0.6))
    opacity = np.asarray(feathered, np.float32)[..., None] / 255
    colours = np.asarray(picture, np.float32)[..., :3]
    region = frame[y : y + height, x : x + width]

    own_brightness = (colours @ _LUMINANCE)[opacity[..., 0] > 0.5].mean()
    brightness = (region @ _LUMINANCE).mean()
    gain = np.clip((brightness / max(1, own_brightness)) ** _BRIGHTNESS_MATCH, 0.6, 1.5)
    tint = (region.mean(axis=(0, 1)) / max(1, region.mean())) ** _TINT_MATCH
    colours = np.clip(colours * gain * rng.uniform(0.9, 1.1) * tint, 0, 255)

    shadow = Image.new("L", (frame.shape[1], frame.shape[0]))
    shadow.paste(feathered, (x + width // 50, y + height // 33 + 1))
    shadow = shadow.filter(ImageFilter.GaussianBlur(max(1, width * 0.04)))
    frame *= 1 - _SHADOW_DARKNESS / 255 * np.asarray(shadow, np.float32)[..., None]
    region *= 1 - opacity
    region += colours * opacity
