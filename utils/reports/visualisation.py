"""Pictures and sounds for people: heat over a frame, boxes, colour bars, contact sheets, JPEG, PNG and MP3.

Pictures are uint8 RGB arrays (H, W, 3).
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import soundfile
from numpy.typing import NDArray

# Min-max normalised maps sit near 0.3 on background; heat starts above that, so that it marks a source
# instead of tinting the whole frame.
HEAT_FLOOR, HEAT_OPACITY = 0.3, 0.8
BOX_COLOUR = (0, 235, 255)  # cyan: absent from the black-violet-orange-yellow of the heat
OUTLINE_COLOUR, TEXT_COLOUR = (10, 20, 30), (255, 255, 255)
FONT = cv2.FONT_HERSHEY_SIMPLEX
BOX_LEVEL = 0.5  # a box's region begins there, on the way from the scale's smallest to its largest value
BOX_GRID = 224  # side of the up-sampled map in which the region is looked for, as the scoring rules', pixels
BAR_GROUND, STRIP_GROUND = 70, 16  # greys: under the colour bar, where there is no heat, and around it
SMALLEST_WITH_BAR = 160  # shorter side of a frame, pixels
WEAK = "weak: the sound may not be in the picture"
THUMBNAIL_SIDE, GUTTER = 320, 4  # of a contact sheet: longer side of a picture, and what lies between two
GALLERY_SIDE = 360  # of frames in a report, pixels: sharp at half of it on a dense display

Picture = NDArray[np.uint8]
SimilarityMap = NDArray[np.float32]
Scale = tuple[float, float]  # similarities at the two ends of the colour bar
NO_BOXES = np.zeros((0, 4))


class Square(NamedTuple):
    """Where in the frame the square lies that the model saw; fractions of width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def in_frame(self, x: float, y: float) -> tuple[float, float]:
        """Fractions of the square -> fractions of the frame."""
        return self.left + x * (self.right - self.left), self.top + y * (self.bottom - self.top)


class Peak(NamedTuple):
    """The strongest cell of a similarity map."""

    x: float  # of its centre, pixels of the frame from the left edge
    y: float  # likewise, from the upper edge
    similarity: float  # not normalised


def find_peak(similarity_map: SimilarityMap, square: Square, width: int, height: int) -> Peak | None:
    """Find the strongest cell of a map (h, w), the first in reading order, in a frame of width x height.

    None where the map is the same everywhere, or not a finite number somewhere.
    """
    lowest, highest = similarity_map.min(), similarity_map.max()
    if not np.isfinite(lowest) or not np.isfinite(highest) or lowest == highest:
        return None
    rows, columns = similarity_map.shape
    row, column = divmod(int(np.argmax(similarity_map)), columns)
    x, y = square.in_frame((column + 0.5) / columns, (row + 0.5) / rows)
    return Peak(x * width, y * height, float(highest))


def similarity_range(maps: Iterable[SimilarityMap | None]) -> Scale | None:
    """Find the smallest and largest similarity of maps, to draw all on one scale; None: there are none."""
    usable = [one for one in maps if one is not None and np.isfinite(one).all()]
    low = min((float(one.min()) for one in usable), default=0.0)
    high = max((float(one.max()) for one in usable), default=0.0)
    return (low, high) if low < high else None


def is_weak(similarity_map: SimilarityMap | None, threshold: float | None) -> bool:
    """Tell whether no similarity of a map is above a threshold, if there are both."""
    return similarity_map is not None and threshold is not None and float(similarity_map.max()) <= threshold


def format_peak(peak: Peak | None, threshold: float | None) -> dict[str, str]:
    """Write a peak as a CSV file's columns, weak (1 or 0) with a threshold; empty where there is no peak."""
    columns = {"x": "", "y": "", "similarity": ""} | ({} if threshold is None else {"weak": ""})
    if peak is not None:
        columns |= {"x": f"{peak.x:.1f}", "y": f"{peak.y:.1f}", "similarity": f"{peak.similarity:.6f}"}
        if threshold is not None:
            columns["weak"] = f"{peak.similarity <= threshold:d}"
    return columns


def peak_box(
    similarity_map: SimilarityMap, square: Square, scale: Scale | None = None
) -> NDArray[np.float64]:
    """Box the region of a map (h, w) that hangs together with the peak, up-sampled, from BOX_LEVEL on.

    Returns (1, 4) fractions of the frame's width and height; (0, 4) where there is no peak, or it is lower.
    `scale` is as in `draw_localisation`.
    """
    if find_peak(similarity_map, square, 1, 1) is None:
        return NO_BOXES
    low, high = scale or (similarity_map.min(), similarity_map.max())
    scaled = np.asarray((similarity_map - low) / (high - low), np.float32)
    localisation_map = cv2.resize(scaled, (BOX_GRID, BOX_GRID), interpolation=cv2.INTER_LINEAR)
    if localisation_map.max() < BOX_LEVEL:
        return NO_BOXES
    row, column = np.unravel_index(np.argmax(localisation_map), localisation_map.shape)
    _, regions, boxes, _ = cv2.connectedComponentsWithStats((localisation_map >= BOX_LEVEL).astype(np.uint8))
    left, top, width, height = boxes[regions[row, column], :4] / BOX_GRID
    return np.array([[*square.in_frame(left, top), *square.in_frame(left + width, top + height)]])


def overlay_localisation_map(
    frame: Picture,
    localisation_map: NDArray[np.floating],
    bounding_boxes: NDArray[np.floating],
    caption: str = "",
) -> Picture:
    """Draw a localisation map (H, W) in [0, 1], bounding boxes and a caption over a copy of a frame.

    Where the map is at most `HEAT_FLOOR`, or NaN, the frame stays as it is; from there the heat grows more
    opaque and lighter with the map, in a colour map of even perceptual steps (inferno). Boxes (N, 4) are
    x_min, y_min, x_max, y_max, fractions of width and height.
    """
    strength = (localisation_map.astype(np.float32) - HEAT_FLOOR) / (1 - HEAT_FLOOR)
    ramp = np.fmin(np.fmax(strength, 0), 1)  # 0 for NaN
    # The darkest quarter of inferno is left out: nearly black, it would look like shadow.
    levels = (64 + 191 * ramp).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    # The square root makes the rim of a source visible while the heat is still dark there.
    weight = np.float32(HEAT_OPACITY) * np.sqrt(ramp)
    picture = np.asarray(cv2.blendLinear(np.ascontiguousarray(frame), heat, 1 - weight, weight), np.uint8)
    draw_boxes(picture, bounding_boxes)
    return draw_caption(picture, caption) if caption else picture


def draw_boxes(picture: Picture, bounding_boxes: NDArray[np.floating]) -> Picture:
    """Draw boxes (N, 4), as fractions of width and height, into this very picture; inverted ones are none."""
    height, width = picture.shape[:2]
    boxes = np.clip(bounding_boxes, 0, 1)
    visible = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # VGG-SS holds inverted boxes
    edges = np.rint(boxes[visible] * (width, height, width, height)).astype(int).tolist()
    thickness = max(1, round(min(height, width) / 120))
    for colour, pen in ((OUTLINE_COLOUR, thickness + 2), (BOX_COLOUR, thickness)):
        for left, top, right, bottom in edges:
            # The last pixel inside the box, so that a box up to 1.0 stays within the frame.
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, pen)
    return picture


def draw_caption(picture: Picture, caption: str, *, below: bool = False) -> Picture:
    """Write a short ASCII text into the upper, or lower, left corner of this very picture."""
    height, width = picture.shape[:2]
    scale = max(0.4, min(height, width) / 500)
    pen = max(1, round(scale))
    (text_width, _), _ = cv2.getTextSize(caption, FONT, scale, pen)
    scale *= min(1.0, 0.94 * width / max(text_width, 1))
    (text_width, text_height), descent = cv2.getTextSize(caption, FONT, scale, pen)
    padding = max(2, text_height // 2)
    top = max(0, height - text_height - descent - padding) if below else 0
    picture[top : top + text_height + descent + padding, : text_width + 2 * padding] //= 4
    corner = (padding, top + text_height + padding // 2 + 1)
    cv2.putText(picture, caption, corner, FONT, scale, TEXT_COLOUR, pen, cv2.LINE_AA)
    return picture


def draw_localisation(
    frame: Picture,
    similarity_map: SimilarityMap | None,
    square: Square,
    *,
    scale: Scale | None = None,
    threshold: float | None = None,
    box: bool = False,
) -> Picture:
    """Draw heat and the peak's box, and the heat's colour bar beside the picture: (H, W or more, 3).

    Args:
        frame: uint8 RGB (H, W, 3).
        similarity_map: (h, w), not normalised, enlarged smoothly; None: the sound is silent, and only the
            word is drawn. A map without a peak gives no heat.
        square: the part of the frame that the map covers.
        scale: similarities between which heat runs; None: the map's smallest and largest.
        threshold: similarity at which heat begins; a map that is nowhere above it is marked as weak. None: it
            begins at HEAT_FLOOR of the scale.
        box: draw the peak's box.
    """
    picture, (height, width) = frame.copy(), frame.shape[:2]
    scale = scale or similarity_range([similarity_map])
    if similarity_map is None:
        draw_caption(picture, "silent")
    elif is_weak(similarity_map, threshold):
        draw_caption(picture, WEAK)
    elif scale is not None and find_peak(similarity_map, square, width, height) is not None:
        left, right = round(square.left * width), round(square.right * width)
        top, bottom = round(square.top * height), round(square.bottom * height)
        strength = np.asarray(_heat_strength(similarity_map, scale, threshold), np.float32)
        enlarged = cv2.resize(strength, (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
        heat = np.full((height, width), np.nan, np.float32)
        # Bicubic curves swing beyond the values that they join.
        heat[top:bottom, left:right] = enlarged.clip(strength.min(), strength.max())
        low, high = scale if threshold is None else (max(scale[0], 2 * threshold - scale[1]), scale[1])
        boxes = peak_box(similarity_map, square, (low, high)) if box else NO_BOXES  # no lower than the heat
        picture = overlay_localisation_map(frame, heat, boxes)
    if min(height, width) < SMALLEST_WITH_BAR:
        return picture
    return np.hstack([picture, _colour_bar(height, max(height, width), scale, threshold)])


def _heat_strength(similarity: NDArray[Any], scale: Scale, threshold: float | None) -> NDArray[np.floating]:
    """Similarities -> what `overlay_localisation_map` draws: HEAT_FLOOR where heat begins, 1 at the end."""
    low, high = scale
    begin = low + HEAT_FLOOR * (high - low) if threshold is None else max(low, threshold)
    high = max(high, begin)
    return 1 - (1 - HEAT_FLOOR) * (high - similarity) / max(high - begin, 1e-9)


def _colour_bar(height: int, side: int, scale: Scale | None, threshold: float | None) -> Picture:
    """Strip (height, w, 3) that shows the heat of a scale, sized by the picture's longer `side`."""
    letters, pen = max(0.4, side / 700), max(1, round(side / 640))
    (text_width, text_height), _ = cv2.getTextSize("-0.00", FONT, letters, pen)
    margin = text_height // 2
    strip = np.full((height, text_width + 2 * margin, 3), STRIP_GROUND, np.uint8)
    if scale is None:
        return strip
    bar_height, bar_width = round(0.6 * height), text_width // 2
    left, top = (strip.shape[1] - bar_width) // 2, (height - bar_height) // 2
    ground = np.full((bar_height, bar_width, 3), BAR_GROUND, np.uint8)
    ramp = _heat_strength(np.linspace(*scale[::-1], bar_height), scale, threshold)
    ramp = ramp[:, None].repeat(bar_width, axis=1)
    strip[top : top + bar_height, left : left + bar_width] = overlay_localisation_map(ground, ramp, NO_BOXES)
    for value, baseline in zip(scale, (top + bar_height + margin + text_height, top - margin), strict=True):
        text = f"{value:.2f}"
        place = (strip.shape[1] - cv2.getTextSize(text, FONT, letters, pen)[0][0]) // 2
        cv2.putText(strip, text, (place, baseline), FONT, letters, TEXT_COLOUR, pen, cv2.LINE_AA)
    return strip


class ContactSheet:
    """Twelve frames of a video at most, evenly spaced, with the time when each is shown."""

    def __init__(self, num_frames: int) -> None:
        self._chosen = {*np.linspace(0, num_frames - 1, 12).round().astype(int).tolist()}
        self._num_seen = 0
        self._tiles: list[Picture] = []

    def add(self, picture: Picture, seconds: float) -> None:
        """Look at the next frame; all are of one size."""
        if self._num_seen in self._chosen:
            scale = min(1.0, THUMBNAIL_SIDE / max(picture.shape[:2]))
            size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
            small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
            self._tiles.append(draw_caption(small, f"{seconds:.2f} s", below=True))
        self._num_seen += 1

    def draw(self) -> Picture:
        """Draw the sheet, of at least one frame; time runs along the rows of four."""
        columns = min(4, len(self._tiles))
        tiles = self._tiles + [np.full_like(self._tiles[0], 255)] * (-len(self._tiles) % columns)
        around = ((0, 0), (0, GUTTER), (0, GUTTER), (0, 0))
        padded = np.pad(tiles, around, constant_values=255)  # (N, h, w, 3)
        rows = [np.hstack([*padded[first : first + columns]]) for first in range(0, len(padded), columns)]
        return np.vstack(rows)[:-GUTTER, :-GUTTER]


def draw_row(
    frame: Picture,
    boxes: NDArray[np.floating] | None,
    similarity_maps: Sequence[SimilarityMap],
    scale: Scale | None,
    threshold: float | None = None,
) -> list[bytes]:
    """Draw a frame with its boxes, then with each map as `draw_localisation` does: JPEG files of one size.

    A line runs round what is above the threshold.
    """
    drawn = draw_boxes(frame.copy(), NO_BOXES if boxes is None else boxes)
    pictures, (height, width) = [drawn], frame.shape[:2]
    for similarity_map in similarity_maps:
        picture = draw_localisation(drawn, similarity_map, Square(), scale=scale, threshold=threshold)
        picture = np.ascontiguousarray(picture[:, :width])  # the colour bar would be too small to be read
        if threshold is not None:
            large = cv2.resize(similarity_map, (width, height), interpolation=cv2.INTER_CUBIC)
            active = (large.clip(None, similarity_map.max()) > threshold).astype(np.uint8)
            lines, _ = cv2.findContours(active, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, lines, -1, TEXT_COLOUR, 1)
        pictures.append(picture)
    return [encode_jpeg(picture) for picture in pictures]


def encode_jpeg(picture: Picture) -> bytes:
    """Return the bytes of a JPEG file of quality 85."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def encode_png(picture: Picture) -> bytes:
    """Return the bytes of a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def encode_mp3(waveform: NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode a sound (L,), cut to [-1, 1], as MP3, which every browser plays: 30 kB for 10 s at 16 kHz."""
    file = io.BytesIO()
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "VARIABLE"}
    soundfile.write(file, np.clip(waveform, -1, 1), sample_rate, compression_level=0.6, **options)
    return file.getvalue()
