"""Pictures of a localisation: heat and bounding boxes over the frame, and their JPEG files."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.files import write_atomically

# Min-max normalised maps sit near 0.3 on background; heat starts above that, so that it marks
# a source instead of tinting the whole frame.
HEAT_FLOOR = 0.3
HEAT_OPACITY = 0.8
BOX_COLOUR = (0, 235, 255)  # cyan: absent from the black-violet-orange-yellow of the heat
OUTLINE_COLOUR = (10, 20, 30)
CAPTION_COLOUR = (255, 255, 255)
CAPTION_FONT = cv2.FONT_HERSHEY_SIMPLEX
RANGE_TOLERANCE = 1e-3  # rounding of bilinear up-sampling

Picture = NDArray[np.uint8]


def overlay_localisation_map(
    frame: Picture,
    localisation_map: NDArray[np.floating],
    bounding_boxes: NDArray[np.floating],
    caption: str = "",
    *,
    opacity: float = HEAT_OPACITY,
) -> Picture:
    """Draw a localisation map, bounding boxes and a caption over a frame.

    Where the map is at most `HEAT_FLOOR` the frame stays as it is; from there the heat grows
    more opaque and lighter with the map, in a colour map of even perceptual steps (inferno).

    Args:
        frame: RGB picture, uint8 (H, W, 3); not changed.
        localisation_map: floating point (H, W) in [0, 1]; NaN positions get no heat.
        bounding_boxes: (N, 4) rows of (x_min, y_min, x_max, y_max), fractions of width and
            height; N may be 0. What lies outside the frame is not drawn.
        caption: short ASCII text for a strip in the upper left corner; empty for none.
        opacity: of the hottest heat, 0 to 1.

    Returns:
        A new RGB picture, uint8 (H, W, 3).

    Raises:
        ValueError: If a shape, a type or a range is not as above.
    """
    _check_picture(frame, "frame")
    _check_map(localisation_map, frame.shape[:2])
    _check_boxes(bounding_boxes)
    overlay = _blend_heat(frame, localisation_map, opacity)
    for colour, extra_thickness in ((OUTLINE_COLOUR, 2), (BOX_COLOUR, 0)):
        _draw_boxes(overlay, bounding_boxes, colour, extra_thickness)
    if caption:
        _draw_caption(overlay, caption)
    return overlay


def encode_jpeg(picture: Picture, quality: int = 85) -> bytes:
    """Encode an RGB picture as JPEG.

    Args:
        picture: uint8 (H, W, 3), RGB.
        quality: JPEG quality, 1 to 100.

    Returns:
        The bytes of a JPEG file.

    Raises:
        ValueError: If the picture or the quality is not as above.
    """
    _check_picture(picture, "picture")
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be 1 to 100, got {quality}.")
    blue_green_red = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    encoded, content = cv2.imencode(".jpg", blue_green_red, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded, "OpenCV refused to encode a checked picture"
    return content.tobytes()


def write_jpeg(path: Path, picture: Picture) -> None:
    """Write an RGB picture as a JPEG file that is never seen half-written.

    Args:
        path: the file to write or to replace; missing parent folders are made.
        picture: uint8 (H, W, 3), RGB.

    Raises:
        ValueError: If the picture is not as above.
    """
    write_atomically(path, encode_jpeg(picture), durable=False)


def _check_picture(picture: Picture, name: str) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"{name} must be (H, W, 3), got {picture.shape}.")
    if picture.dtype != np.uint8:
        raise ValueError(f"{name} must be uint8 RGB in 0 to 255, got {picture.dtype}.")


def _check_map(localisation_map: NDArray[np.floating], size: tuple[int, ...]) -> None:
    if localisation_map.shape != size:
        raise ValueError(
            f"localisation_map must be (H, W) = {size} like the frame, "
            f"got {localisation_map.shape}. Up-sample the similarity map to the frame first."
        )
    if not np.issubdtype(localisation_map.dtype, np.floating):
        raise ValueError(f"localisation_map must be floating point, got {localisation_map.dtype}.")
    # fmin and fmax pass over NaN without the warning that nanmin gives for an all-NaN map.
    lowest, highest = np.fmin.reduce(localisation_map, None), np.fmax.reduce(localisation_map, None)
    if lowest < -RANGE_TOLERANCE or highest > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"localisation_map must be in [0, 1], got {lowest:.3g} to {highest:.3g}. "
            "Min-max normalise the similarity map first."
        )


def _check_boxes(bounding_boxes: NDArray[np.floating]) -> None:
    if bounding_boxes.ndim != 2 or bounding_boxes.shape[1] != 4:
        raise ValueError(f"bounding_boxes must be (N, 4), got {bounding_boxes.shape}.")
    if not np.isfinite(bounding_boxes).all():
        raise ValueError(f"bounding_boxes must be finite, got {bounding_boxes.tolist()}.")
    if np.abs(bounding_boxes).max(initial=0) > 2:
        raise ValueError(
            "bounding_boxes must be fractions of width and height in [0, 1], "
            f"got {bounding_boxes.tolist()}. Divide pixels by the size of the frame."
        )


def _blend_heat(frame: Picture, localisation_map: NDArray[np.floating], hottest: float) -> Picture:
    strength = np.nan_to_num(localisation_map.astype(np.float32), nan=0.0)
    ramp = np.clip((strength - HEAT_FLOOR) / (1 - HEAT_FLOOR), 0, 1)
    # The darkest quarter of inferno is left out: nearly black, it would look like shadow.
    levels = (64 + 191 * ramp).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    # The square root makes the rim of a source visible while the heat is still dark there.
    opacity = np.float32(hottest) * np.sqrt(ramp)
    blended = cv2.blendLinear(np.ascontiguousarray(frame), heat, 1 - opacity, opacity)
    return np.asarray(blended, dtype=np.uint8)


def _line_thickness(picture: Picture) -> int:
    return max(1, round(min(picture.shape[:2]) / 120))


def _draw_boxes(
    picture: Picture, bounding_boxes: NDArray[np.floating], colour: tuple[int, int, int], extra_thickness: int
) -> None:
    height, width = picture.shape[:2]
    edges = np.rint(bounding_boxes * (width, height, width, height)).astype(int).tolist()
    thickness = _line_thickness(picture) + extra_thickness
    for left, top, right, bottom in edges:
        # The last pixel inside the box, so that a box up to 1.0 stays within the frame.
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, thickness)


def _draw_caption(picture: Picture, caption: str) -> None:
    height, width = picture.shape[:2]
    scale = max(0.4, min(height, width) / 500)
    text_thickness = max(1, round(scale))
    (text_width, _), _ = cv2.getTextSize(caption, CAPTION_FONT, scale, text_thickness)
    scale *= min(1.0, 0.94 * width / max(text_width, 1))
    (text_width, text_height), descent = cv2.getTextSize(caption, CAPTION_FONT, scale, text_thickness)
    padding = max(2, text_height // 2)
    strip = picture[: text_height + descent + padding, : text_width + 2 * padding]
    strip //= 4
    origin = (padding, text_height + padding // 2 + 1)
    cv2.putText(picture, caption, origin, CAPTION_FONT, scale, CAPTION_COLOUR, text_thickness, cv2.LINE_AA)
