"""Heat, boxes, captions and JPEG files."""

import io

import cv2
import numpy as np
import pytest
import soundfile
from conftest import PITCHES, RATE, tone

from datasets.frames import FrameGeometry
from utils.reports.visualisation import (
    BOX_COLOUR,
    HEAT_FLOOR,
    NO_BOXES,
    ContactSheet,
    Square,
    draw_localisation,
    draw_row,
    encode_mp3,
    find_peak,
    is_weak,
    overlay_localisation_map,
    peak_box,
    similarity_range,
)

MIDDLE = Square(0.25, 0.0, 0.75, 1.0)


def test_heat_only_where_the_map_is_high():
    frame = np.full((60, 80, 3), (40, 90, 200), np.uint8)
    localisation_map = np.tile(np.linspace(0, 1, 80, dtype=np.float32), (60, 1))
    localisation_map[:, 60:70] = np.nan
    overlay = overlay_localisation_map(frame, localisation_map, NO_BOXES)
    untouched = ~(localisation_map > HEAT_FLOOR)
    np.testing.assert_array_equal(overlay[untouched], frame[untouched])
    difference = np.abs(overlay.astype(int) - frame).sum(axis=2)[0]
    assert difference[-1] > 200 and difference[30] < difference[-1] / 2
    red, green, blue = overlay[0, -1].astype(int)
    assert red > 200 and green > 200 and blue < red, "the peak is pale yellow, in RGB order"


def test_frame_is_not_changed_and_layout_does_not_matter():
    frame = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    strided = np.ascontiguousarray(frame.transpose(2, 0, 1)).transpose(1, 2, 0)
    given = (np.ones((200, 300), np.float32), np.array([[0.1, 0.1, 0.5, 0.5]]), "cIoU 0.50")
    overlay = overlay_localisation_map(frame, *given)
    np.testing.assert_array_equal(frame, strided)
    assert overlay.dtype == np.uint8 and overlay.shape == frame.shape
    np.testing.assert_array_equal(overlay_localisation_map(strided, *given), overlay)


@pytest.mark.parametrize(
    ("box", "left", "top", "right", "bottom"),
    [((0.25, 0.1, 0.5, 0.8), 75, 20, 149, 159), ((0.0, 0.0, 1.0, 1.0), 0, 0, 299, 199)],
)
def test_box_lines_lie_on_the_last_pixels_inside(box, left, top, right, bottom):
    frame = np.full((200, 300, 3), 128, np.uint8)
    overlay = overlay_localisation_map(frame, np.zeros((200, 300), np.float32), np.array([box]))
    middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
    for x, y in ((left, middle_y), (right, middle_y), (middle_x, top), (middle_x, bottom)):
        assert tuple(overlay[y, x]) == BOX_COLOUR
    np.testing.assert_array_equal(overlay[top + 5 : bottom - 4, left + 5 : right - 4], 128)


def test_caption_strip_stays_in_its_corner():
    frame = np.full((224, 224, 3), 200, np.uint8)
    no_heat = np.zeros((224, 224), np.float32)
    overlay = overlay_localisation_map(frame, no_heat, NO_BOXES, "cIoU 0.63")
    changed = np.argwhere((overlay != frame).any(axis=2))
    assert tuple(changed.min(axis=0)) == (0, 0)
    bottom, right = changed.max(axis=0)
    assert bottom < 40 and right < 140
    assert overlay[:bottom, :right].max() > 230, "the text is bright"
    long_caption = overlay_localisation_map(frame, no_heat, NO_BOXES, "a long caption " * 6)
    assert long_caption.shape == frame.shape


def test_the_peak_is_the_middle_of_the_strongest_cell():
    values = np.zeros((4, 5), np.float32)
    values[2, 3] = 0.8
    assert find_peak(values, Square(), 100, 40) == (70.0, 25.0, pytest.approx(0.8))
    assert find_peak(values, MIDDLE, 100, 40)[:2] == (60.0, 25.0)
    for constant in (1, np.nan):
        assert find_peak(np.full((3, 3), constant, np.float32), Square(), 9, 9) is None


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (64, 64)])
def test_the_square_in_the_frame_is_what_the_geometry_cuts(size):
    assert FrameGeometry(32).square_in(*size) == Square()
    cut = FrameGeometry(32, "centre_crop")
    back = cut.apply_to_boxes(np.array([cut.square_in(*size)]), *size)
    np.testing.assert_allclose(back, [[0, 0, 1, 1]], atol=1e-12)


def test_the_box_holds_the_region_of_the_peak_and_no_other():
    values = np.zeros((7, 7), np.float32)
    values[1, 1], values[5, 4:6] = 0.9, 1.0
    (box,) = peak_box(values, Square())
    np.testing.assert_allclose(box * 7, [4, 5, 6, 6], atol=0.6)
    shifted = peak_box(values, Square(0.5, 0.0, 1.0, 1.0))
    np.testing.assert_allclose(shifted[0, ::2], 0.5 + box[::2] / 2)
    assert peak_box(np.ones((3, 3), np.float32), Square()).shape == (0, 4)
    np.testing.assert_array_equal(peak_box(values, Square(), (0.0, 1.0)), [box])
    assert peak_box(values, Square(), (0.0, 2.1)).shape == (0, 4), "not half-way up this scale"


def test_heat_lies_on_the_peak_inside_the_square_beside_a_colour_bar():
    frame = np.full((180, 320, 3), 120, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[1, 0] = 1
    drawn = draw_localisation(frame, values, MIDDLE)
    changed = (drawn[:, :320] != frame).any(axis=2)
    assert changed[68, 100] and not changed[:, :80].any() and not changed[:, 200:].any()
    bar = drawn[40:140, 320:].astype(int)
    lightness = bar[:, bar.shape[1] // 2].sum(axis=1)
    assert lightness[0] > lightness[50] > lightness[-1], "light heat at the upper end"
    assert (frame == 120).all()
    boxed = draw_localisation(frame, values, MIDDLE, box=True)
    tight = draw_localisation(frame, values, MIDDLE, box=True, threshold=0.9)
    lines = [(picture == BOX_COLOUR).all(axis=2).sum() for picture in (drawn, tight, boxed)]
    assert 0 == lines[0] < lines[1] < lines[2], "as tight as the heat"


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (159, 159), (160, 160), (200, 161)])
def test_any_size_can_be_drawn_on(size):
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    frame = np.zeros((*size, 3), np.uint8)
    for geometry in (FrameGeometry(32), FrameGeometry(32, "centre_crop")):
        square = Square(*geometry.square_in(size[1], size[0]))
        drawn = [draw_localisation(frame, one, square, box=True) for one in (values, None, 0 * values)]
        assert {picture.shape for picture in drawn} == {drawn[0].shape}, "as the frames of a video must be"
        wider = drawn[0].shape[1] - size[1]
        assert drawn[0].shape[0] == size[0] and (wider > 30 if min(size) >= 160 else wider == 0)


def glow(similarity_map, **options):
    """How much heat changes each pixel of a grey frame."""
    frame = np.full((120, 120, 3), 90, np.uint8)
    drawn = draw_localisation(frame, similarity_map, Square(), **options)
    return np.abs(drawn.astype(int) - frame).sum(axis=2)


def test_on_a_common_scale_a_low_map_glows_less_than_a_high_one():
    high = np.random.default_rng(0).uniform(0, 0.86, (7, 7)).astype(np.float32)
    low = high * 0.32 / 0.86
    assert similarity_range([high, None, low, np.full((2, 2), np.nan, np.float32)]) == (low.min(), high.max())
    scale = similarity_range([high, low])
    assert np.abs(glow(low) - glow(high)).max() <= 3, "each by itself, they look the same"
    assert glow(low, scale=scale).sum() < glow(high, scale=scale).sum() / 5
    np.testing.assert_array_equal(glow(high, scale=(high.min(), high.max())), glow(high))
    assert similarity_range([None]) is None and similarity_range([0 * high]) is None


@pytest.mark.parametrize("scale", [None, (0.0, 0.5), (-1.0, 1.0), (0.7, 0.9)])
def test_nothing_glows_below_the_threshold(scale):
    values = np.tile(np.linspace(0, 0.86, 8, dtype=np.float32), (8, 1))
    heat = glow(values, scale=scale, threshold=0.6)
    similarity = np.interp(np.arange(120), (np.arange(8) + 0.5) * 15 - 0.5, values[0])
    begin = max(0.6, scale[0] if scale else 0)
    assert (heat[:, similarity < begin - 0.02] == 0).all() and (heat[:, similarity > begin + 0.02] > 0).all()
    words = glow(values, scale=scale, threshold=0.9, box=True)
    assert words[:20].any() and not words[30:].any(), "only the words, no heat and no box"
    assert is_weak(values, 0.9) and not is_weak(values, 0.8) and not is_weak(None, 0.9)


def test_maps_are_enlarged_smoothly_and_not_beyond_their_values():
    spot = np.zeros((3, 3), np.float32)
    spot[1, 1] = 1
    row = glow(spot, scale=(0.0, 2.0), threshold=0.0)[60].astype(int)
    assert row[60] - row[80] > 3 * (row[60] - row[70]) > 0, "round at the peak, not pointed"
    step = np.tile(np.float32([0, 0, 1, 1]), (4, 1))
    heat = glow(step, scale=(0.0, 2.0), threshold=0.0)
    assert heat.max() == heat[60, 119] and not heat[:, :30].any()


def test_silence_and_flat_maps_give_no_heat():
    frame = np.full((60, 160, 3), 90, np.uint8)
    flat = draw_localisation(frame, np.ones((3, 3), np.float32), Square(), box=True)
    np.testing.assert_array_equal(flat, frame)
    silent = draw_localisation(frame, None, Square())
    assert (silent[:25, :60] != frame[:25, :60]).any()  # the word
    np.testing.assert_array_equal(silent[30:], frame[30:])


@pytest.mark.parametrize("count", [1, 5, 12, 1000])
def test_a_contact_sheet_is_evenly_spaced(count):
    sheet = ContactSheet(count)
    for index in range(count):
        sheet.add(np.full((36, 64, 3), index // 4, np.uint8), index / 25)
    drawn = sheet.draw()
    shown = min(count, 12)
    columns = min(4, shown)
    assert drawn.shape == (40 * -(-shown // columns) - 4, 68 * columns - 4, 3)
    places = 4 * drawn[::40, ::68, 0].ravel()[:shown].astype(int)
    np.testing.assert_allclose(places, np.linspace(0, count - 1, shown), atol=4)


@pytest.mark.parametrize("loudness", [0.5, 5])
def test_a_sound_comes_back_cut_and_not_wrapped(loudness):
    file = io.BytesIO(encode_mp3(2 * loudness * tone(1).astype(np.float32), RATE))
    samples, played_rate = soundfile.read(file)
    assert played_rate == RATE and len(samples) == pytest.approx(RATE, rel=0.1)
    assert np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples) == pytest.approx(PITCHES[1], abs=2)
    assert abs(np.abs(samples[2000:-2000]).max() - min(loudness, 1.1)) < (0.05 if loudness < 1 else 0.2)


def test_a_row_has_one_scale_and_nothing_glows_below_the_threshold():
    frame = np.full((192, 192, 3), 120, np.uint8)
    quiet, loud = np.full((3, 3), 0.1, np.float32), np.full((3, 3), 0.1, np.float32)
    quiet[0, 0], loud[2, 2] = 0.3, 0.9
    boxes = np.array([[0.1, 0.4, 0.3, 0.6], [0.9, 0.9, 0.1, 0.1]])
    pictures = [
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
        for jpeg in draw_row(frame, boxes, [quiet, loud], (0.4, 0.9), 0.4)
    ]
    assert {picture.shape for picture in pictures} == {frame.shape} and (frame == 120).all()
    changed = [np.abs(picture - 120).max(axis=2) > 40 for picture in pictures]
    assert changed[0].any() and not changed[0][130:].any()  # the box, and not the inverted one
    assert not changed[1][40:][~changed[0][40:]].any()  # below the caption
    assert changed[2][150:, 150:].mean() > 0.9 and not changed[2][130:, :90].any()
