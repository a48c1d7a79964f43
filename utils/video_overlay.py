"""Localisation drawn into the frames of a video or into a picture of any size, and its peak."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.visualisation import (
    CAPTION_COLOUR,
    CAPTION_FONT,
    HEAT_OPACITY,
    OUTLINE_COLOUR,
    Picture,
    overlay_localisation_map,
)

BOX_LEVEL = 0.5
"""Where the region of a box begins, on the way from the map's smallest to its largest value."""
BOX_GRID = 224
"""Side of the up-sampled map in which the region is looked for, as the scoring rules', pixels."""
BAR_GROUND = 70
"""Grey under the colour bar; like a frame, it shows where there is no heat."""
SMALLEST_WITH_BAR = 48
"""Shorter side of a frame from which on it has a colour bar, pixels."""
SMALLEST_WITH_LABELS = 160
"""The same for the numbers at its ends."""
THUMBNAIL_SIDE = 320
"""Longer side of a picture in the contact sheet, pixels."""
GUTTER = 4
"""Between these, pixels."""
NO_BOXES = np.zeros((0, 4))

SimilarityMap = NDArray[np.float32]


class Square(NamedTuple):
    """Where in the frame the square lies that the model saw; fractions of width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def in_frame(self, x: float, y: float) -> tuple[float, float]:
        """Fractions of the square -> fractions of the frame."""
        return (self.left + x * (self.right - self.left), self.top + y * (self.bottom - self.top))

    @classmethod
    def of(
        cls,
        to_square: Callable[[NDArray[np.float64], int, int], NDArray[np.float64]],
        width: int,
        height: int,
    ) -> "Square":
        """The square that a geometry cuts.

        Args:
            to_square: boxes (N, 4) of a frame with its width and height -> boxes of the square,
                both as fractions; sides stay parallel.
            width: of the frame.
            height: of the frame.
        """
        left, top, right, bottom = to_square(np.array([[0.0, 0.0, 1.0, 1.0]]), width, height)[0]
        wide, high = right - left, bottom - top
        return cls(-left / wide, -top / high, (1 - left) / wide, (1 - top) / high)


class Peak(NamedTuple):
    """The strongest cell of a similarity map."""

    x: float
    """of its centre, pixels of the frame from the left edge"""
    y: float
    """likewise, from the upper edge"""
    similarity: float
    """its value, not normalised"""


def format_peak(peak: Peak | None) -> str:
    """Write a peak as the columns x, y, similarity of a CSV file; empty where there is none."""
    return ",," if peak is None else f"{peak.x:.1f},{peak.y:.1f},{peak.similarity:.6f}"


def find_peak(similarity_map: SimilarityMap, square: Square, width: int, height: int) -> Peak | None:
    """The strongest cell; the first in reading order among equals.

    Args:
        similarity_map: (h, w), not normalised.
        square: where it lies in the frame.
        width: of the frame, pixels.
        height: of the frame, pixels.

    Returns:
        None where the map is the same everywhere, or not a finite number somewhere.
    """
    lowest, highest = similarity_map.min(), similarity_map.max()
    if not np.isfinite(lowest) or not np.isfinite(highest) or lowest == highest:
        return None
    row, column = np.unravel_index(np.argmax(similarity_map), similarity_map.shape)
    rows, columns = similarity_map.shape
    x, y = square.in_frame((int(column) + 0.5) / columns, (int(row) + 0.5) / rows)
    return Peak(x * width, y * height, float(highest))


def peak_box(similarity_map: SimilarityMap, square: Square) -> NDArray[np.float64]:
    """The box around the region of the peak.

    The region is what hangs together with the peak, up-sampled, from BOX_LEVEL on.

    Args:
        similarity_map: (h, w), not normalised.
        square: where it lies in the frame.

    Returns:
        (1, 4) fractions of the frame's width and height; (0, 4) where there is no peak.
    """
    if find_peak(similarity_map, square, 1, 1) is None:
        return NO_BOXES
    side = BOX_GRID
    localisation_map = _stretched(similarity_map, side, side)
    row, column = np.unravel_index(np.argmax(localisation_map), localisation_map.shape)
    _, regions, extents, _ = cv2.connectedComponentsWithStats(
        (localisation_map >= BOX_LEVEL).astype(np.uint8)
    )
    left, top, width, height = extents[regions[row, column], :4].tolist()
    corners = (left / side, top / side), ((left + width) / side, (top + height) / side)
    return np.array([[c for corner in corners for c in square.in_frame(*corner)]])


def draw_localisation(
    frame: Picture,
    similarity_map: SimilarityMap | None,
    square: Square,
    *,
    opacity: float = HEAT_OPACITY,
    box: bool = False,
) -> Picture:
    """Draws heat, a colour bar with the map's smallest and largest value, and the peak's box.

    Args:
        frame: uint8 RGB (H, W, 3).
        similarity_map: (h, w), not normalised; None: the sound is silent, and nothing is drawn but
            the word.
        square: where the map lies in the frame.
        opacity: of the hottest heat, 0 to 1.
        box: draw the box of `peak_box`.

    Returns:
        A new picture of the same size. A map without a peak gives no heat.
    """
    height, width = frame.shape[:2]
    if similarity_map is None or find_peak(similarity_map, square, width, height) is None:
        caption = "silent" if similarity_map is None else ""
        heat = np.full((height, width), np.nan, np.float32)
        return overlay_localisation_map(frame, heat, NO_BOXES, caption)
    heat = _heat_of(similarity_map, square, width, height)
    boxes = peak_box(similarity_map, square) if box else NO_BOXES
    picture = overlay_localisation_map(frame, heat, boxes, opacity=opacity)
    _draw_colour_bar(picture, float(similarity_map.min()), float(similarity_map.max()), opacity)
    return picture


def _stretched(similarity_map: SimilarityMap, width: int, height: int) -> SimilarityMap:
    """Up-samples a map that has a peak to (height, width), its cells' values brought to [0, 1]."""
    lowest = similarity_map.min()
    scaled = (similarity_map - lowest) / (similarity_map.max() - lowest)
    resized = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def _heat_of(similarity_map: SimilarityMap, square: Square, width: int, height: int) -> SimilarityMap:
    """The map over the whole frame (H, W), in [0, 1], NaN outside of the square."""
    left, right = round(square.left * width), round(square.right * width)
    top, bottom = round(square.top * height), round(square.bottom * height)
    inside = _stretched(similarity_map, right - left, bottom - top)
    if inside.shape == (height, width):
        return inside
    heat = np.full((height, width), np.nan, np.float32)
    heat[top:bottom, left:right] = inside
    return heat


def _draw_colour_bar(picture: Picture, lowest: float, highest: float, opacity: float) -> None:
    """At the right edge, what the heat looks like from the map's largest value to its smallest."""
    height, width = picture.shape[:2]
    side = min(height, width)
    if side < SMALLEST_WITH_BAR:
        return
    bar_height, bar_width, margin = round(0.4 * height), max(4, side // 32), max(3, side // 48)
    right, top = width - margin, (height - bar_height) // 2
    left, bottom = right - bar_width, top + bar_height
    ground = np.full((bar_height, bar_width, 3), BAR_GROUND, np.uint8)
    ramp = np.linspace(1, 0, bar_height, dtype=np.float32)[:, None].repeat(bar_width, axis=1)
    picture[top:bottom, left:right] = overlay_localisation_map(ground, ramp, NO_BOXES, opacity=opacity)
    cv2.rectangle(picture, (left - 1, top - 1), (right, bottom), OUTLINE_COLOUR, 1)
    if side < SMALLEST_WITH_LABELS:
        return
    scale = max(0.4, side / 1000)
    for value, baseline in ((highest, top - margin), (lowest, bottom + margin)):
        text, thickness = f"{value:.2f}", max(1, round(scale))
        (text_width, text_height), _ = cv2.getTextSize(text, CAPTION_FONT, scale, thickness)
        left, bottom = right - text_width, baseline + (value != highest) * text_height
        # Darkened ground, not outlines: around letters this small these would fill the gaps.
        picture[bottom - text_height - 2 : bottom + 3, left - 2 : right + 2] //= 4
        cv2.putText(
            picture, text, (left, bottom), CAPTION_FONT, scale, CAPTION_COLOUR, thickness,
            cv2.LINE_AA,
        )  # fmt: skip


class ContactSheet:
    """A few pictures of a video, evenly spaced, whose length need not be known before its end."""

    def __init__(self, num_pictures: int = 12, num_columns: int = 4) -> None:
        """Nothing is kept yet.

        Args:
            num_pictures: at most on the sheet.
            num_columns: of the sheet.
        """
        self._num_pictures, self._num_columns = num_pictures, num_columns
        self._seen, self._stride = 0, 1
        self._kept: list[tuple[Picture, float]] = []

    def add(self, picture: Picture, seconds: float) -> None:
        """Looks at the next picture of the video.

        Args:
            picture: uint8 RGB (H, W, 3), all of one size.
            seconds: when it is shown.
        """
        wanted = self._seen % self._stride == 0
        self._seen += 1
        if not wanted:
            return
        scale = min(1.0, THUMBNAIL_SIDE / max(picture.shape[:2]))
        size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
        thumbnail = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        self._kept.append((np.asarray(thumbnail, dtype=np.uint8), seconds))
        if len(self._kept) == 8 * self._num_pictures:  # every other is dropped: memory is bounded
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def draw(self) -> Picture:
        """The sheet, uint8 RGB: time runs along the rows.

        Raises:
            ValueError: no picture was added.
        """
        if not self._kept:
            raise ValueError("A contact sheet needs at least one picture.")
        last = len(self._kept) - 1
        places = np.unique(np.rint(np.linspace(0, last, min(self._num_pictures, last + 1))))
        chosen = [self._kept[int(place)] for place in places]
        height, width = chosen[0][0].shape[:2]
        columns = min(self._num_columns, len(chosen))
        rows = -(-len(chosen) // columns)
        sheet = np.full(
            (rows * (height + GUTTER) - GUTTER, columns * (width + GUTTER) - GUTTER, 3), 255, np.uint8
        )
        blank = np.full((height, width), np.nan, np.float32)
        for index, (picture, seconds) in enumerate(chosen):
            row, column = divmod(index, columns)
            top, left = row * (height + GUTTER), column * (width + GUTTER)
            captioned = overlay_localisation_map(picture, blank, NO_BOXES, f"{seconds:.2f} s")
            sheet[top : top + height, left : left + width] = captioned
        return sheet


def encode_png(picture: Picture) -> bytes:
    """uint8 RGB (H, W, 3) -> the bytes of a PNG file."""
    encoded, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert encoded, "OpenCV refused to encode a picture"
    return content.tobytes()
