"""What localising a video is made of: windows of sound, smoothing, drawing, the contact sheet."""

from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from localiser_inputs import whole_sound
from video_inputs import make_video

from datasets.audio import (
    AlignSpectrogramConfig,
    AudioConfig,
    MiddleSpectrogramConfig,
    SegmentConfig,
    load_waveform,
)
from datasets.frames import FrameGeometry
from datasets.video_windows import SoundWindows, heard_part
from scripts.video_localiser import ExponentialMean
from utils.video_options import ImageOptions, VideoOptions
from utils.video_overlay import ContactSheet, Square, draw_localisation, find_peak, peak_box

SHORT = AudioConfig(window_seconds=1.0)


def sweep(seconds, rate=48_000):
    """A tone whose pitch rises, so that no two places of it are alike."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)[None]


def lossless(path, samples, start=0.0):
    """A Matroska file with 20 pictures a second and uncompressed sound."""
    seconds = max(0.1, samples.shape[1] / 48_000)
    return make_video(
        path, seconds=seconds, rate=20, codec="mpeg4", sounds=[samples],
        sound_codec="pcm_s16le", layout="mono", sound_start=start,
    )  # fmt: skip


@pytest.mark.parametrize("audio", [SHORT, SegmentConfig(segment_seconds=1.5)])
@pytest.mark.parametrize("start", [0.0, 0.7])
def test_windows_are_those_of_a_slow_loop_over_the_whole_sound(tmp_path, audio, start):
    path = lossless(tmp_path / "clip.mkv", sweep(4.0), start)
    place, sound = whole_sound(path)
    assert place == round(start * 16_000)
    windows = SoundWindows(path, audio)
    length = audio.num_samples
    for time in np.arange(0, 6, 0.13):
        begin = round(time * 16_000) - length // 2 - place
        while begin + length > len(sound):
            begin -= 1
        while begin < 0:
            begin += 1
        np.testing.assert_array_equal(windows.around(time), sound[begin : begin + length])
    windows.close()


def test_the_part_that_is_heard_is_what_is_centred(tmp_path):
    audio = AlignSpectrogramConfig()
    path = lossless(tmp_path / "clip.mkv", sweep(12.0))
    _, sound = whole_sound(path)
    windows, heard = SoundWindows(path, audio), heard_part(audio)
    assert (heard.start, heard.stop) == (56_000, 104_000)
    for time, begin in ((0.0, 0), (1.5, 0), (4.0, 40_000), (11.9, len(sound) - 48_000)):
        window = windows.around(time)
        assert window.shape == (160_000,)
        np.testing.assert_array_equal(window[heard], sound[begin : begin + 48_000])
        assert window[: heard.start].abs().max() == window[heard.stop :].abs().max() == 0


@pytest.mark.parametrize("audio", [SHORT, SegmentConfig(), MiddleSpectrogramConfig()])
def test_a_short_sound_is_treated_as_in_test(tmp_path, audio):
    path = lossless(tmp_path / "clip.mkv", sweep(0.61))
    _, sound = whole_sound(path)
    soundfile.write(tmp_path / "clip.wav", sound, 16_000, subtype="FLOAT")
    expected = load_waveform(tmp_path / "clip.wav", audio)
    windows = SoundWindows(path, audio)
    assert torch.equal(windows.around(0.0), expected)
    assert torch.equal(windows.around(0.6), expected)


def test_a_hole_in_the_sound_is_silence(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        sound = container.add_stream("pcm_s16le", 16_000, layout="mono")
        for index in range(40):
            picture = av.VideoFrame(32, 32, "yuv420p")
            picture.pts = index
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for begin in (0, 2 * 16_000):
            samples = np.full((1, 16_000), 8000, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), begin
            container.mux(sound.encode(frame))
    place, samples = whole_sound(path)
    assert (place, len(samples)) == (0, 48_000)
    assert abs(samples[:16_000]).min() > 0.2
    assert not samples[16_000:32_000].any()
    assert abs(samples[32_000:]).min() > 0.2


def test_no_more_sound_is_kept_than_a_window(tmp_path):
    path = lossless(tmp_path / "clip.mkv", sweep(30.0))
    windows = SoundWindows(path, SHORT)
    kept = []
    for time in np.arange(0, 30, 0.2):
        windows.around(time)
        kept.append(len(windows._samples))
    assert max(kept) < 2.5 * SHORT.num_samples


def test_smoothing_is_that_of_a_slow_loop():
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.3, 12))
    maps = rng.random((12, 3, 3)).astype(np.float32)
    smooth = ExponentialMean(0.5)
    weights = []
    for index in range(12):
        mean = smooth(maps[index], times[index])
        weights = [1.0] if index == 0 else [
            *(w * np.exp(-(times[index] - times[index - 1]) / 0.5) for w in weights),
            1 - np.exp(-(times[index] - times[index - 1]) / 0.5),
        ]  # fmt: skip
        expected = sum(w * m for w, m in zip(weights, maps, strict=False))
        np.testing.assert_allclose(mean, expected, atol=1e-6)
    assert smooth(None, 99.0) is None
    np.testing.assert_array_equal(smooth(maps[0], 99.1), maps[0])
    np.testing.assert_array_equal(ExponentialMean(0)(maps[1], 1.0), maps[1])


def test_the_peak_is_the_middle_of_the_strongest_cell():
    values = np.zeros((4, 5), np.float32)
    values[2, 3] = 0.8
    assert find_peak(values, Square(), 100, 40) == (70.0, 25.0, pytest.approx(0.8))
    middle = Square(0.25, 0.0, 0.75, 1.0)
    assert find_peak(values, middle, 100, 40)[:2] == (60.0, 25.0)
    assert find_peak(np.ones((3, 3), np.float32), Square(), 9, 9) is None
    assert find_peak(np.full((3, 3), np.nan, np.float32), Square(), 9, 9) is None


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (64, 64)])
def test_the_square_in_the_frame_is_what_the_geometry_cuts(size):
    whole = Square.of(FrameGeometry(32).apply_to_boxes, *size)
    assert whole == Square()
    cut = FrameGeometry(32, "centre_crop")
    square = Square.of(cut.apply_to_boxes, *size)
    back = cut.apply_to_boxes(np.array([square]), *size)
    np.testing.assert_allclose(back, [[0, 0, 1, 1]], atol=1e-12)


def test_the_box_holds_the_region_of_the_peak_and_no_other():
    values = np.zeros((7, 7), np.float32)
    values[1, 1], values[5, 4:6] = 0.9, 1.0
    (box,) = peak_box(values, Square())
    left, top, right, bottom = box * 7
    assert 3.4 < left < 4.6
    assert 5.4 < right < 6.6
    assert 4.4 < top < 5.6
    assert 5.4 < bottom < 6.6
    shifted = peak_box(values, Square(0.5, 0.0, 1.0, 1.0))
    np.testing.assert_allclose(shifted[0, ::2], 0.5 + box[::2] / 2)
    assert peak_box(np.ones((3, 3), np.float32), Square()).shape == (0, 4)


def test_heat_lies_on_the_peak_inside_the_square_beside_a_colour_bar():
    frame = np.full((90, 160, 3), 120, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[1, 0] = 1
    drawn = draw_localisation(frame, values, Square(0.25, 0, 0.75, 1))
    changed = (drawn != frame).any(axis=2)
    assert changed[34, 50]
    assert not changed[:, :40].any()
    assert changed[20:70, 150:].any()  # the colour bar
    assert not changed[:, 100:140].any()
    assert (frame == 120).all()
    fainter = draw_localisation(frame, values, Square(0.25, 0, 0.75, 1), opacity=0.2)
    assert abs(fainter[34, 50].astype(int) - 120).sum() < abs(drawn[34, 50].astype(int) - 120).sum()
    boxed = draw_localisation(frame, values, Square(0.25, 0, 0.75, 1), box=True)
    assert (boxed == (0, 235, 255)).all(axis=2).any()
    assert not (drawn == (0, 235, 255)).all(axis=2).any()


def test_the_numbers_at_the_colour_bar_can_be_read():
    """White letters on ground much darker than the frame, with gaps between their strokes."""
    frame = np.full((240, 320, 3), 120, np.uint8)
    values = np.zeros((4, 4), np.float32)
    values[0, 0] = 0.41
    drawn = draw_localisation(frame, values, Square())
    above_bar = drawn[50:68, 283:315].astype(int).sum(axis=2)
    dark, white = (above_bar < 200).mean(), (above_bar > 600).mean()
    assert dark > 0.4 and white > 0.05


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (47, 47), (48, 48), (200, 161)])
def test_any_size_can_be_drawn_on(size):
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    frame = np.zeros((*size, 3), np.uint8)
    for geometry in (FrameGeometry(32), FrameGeometry(32, "centre_crop")):
        square = Square.of(geometry.apply_to_boxes, size[1], size[0])
        assert draw_localisation(frame, values, square, box=True).shape == frame.shape


def test_silence_and_flat_maps_give_no_heat():
    frame = np.full((60, 160, 3), 90, np.uint8)
    flat = draw_localisation(frame, np.ones((3, 3), np.float32), Square(), box=True)
    np.testing.assert_array_equal(flat, frame)
    silent = draw_localisation(frame, None, Square())
    assert (silent[:25, :60] != frame[:25, :60]).any()  # the word
    np.testing.assert_array_equal(silent[30:], frame[30:])


@pytest.mark.parametrize("count", [1, 5, 12, 95, 96, 97, 1000])
def test_a_contact_sheet_is_evenly_spaced_and_bounded(count, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "utils.video_overlay.overlay_localisation_map",
        lambda picture, _heat, _boxes, caption: shown.append(caption) or picture,
    )
    sheet = ContactSheet()
    for index in range(count):
        sheet.add(np.full((36, 64, 3), index % 256, np.uint8), index / 25)
        assert len(sheet._kept) < 96
    drawn = sheet.draw()
    times = [round(25 * float(words.split()[0])) for words in shown]
    assert len(times) == min(count, 12)
    assert times[0] == 0
    assert times[-1] >= 0.97 * (count - 1) - 1
    gaps = np.diff(times)
    assert count < 13 or gaps.max() - gaps.min() <= max(2, count / 40)
    columns = min(4, len(times))
    assert drawn.shape == (40 * -(-len(times) // columns) - 4, 68 * columns - 4, 3)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"audio_step": -1.0}, "--audio-step"),
        ({"smoothing": float("inf")}, "--smoothing"),
        ({"opacity": 1.5}, "--opacity"),
        ({"batch_size": 0}, "--batch-size"),
        ({"max_seconds": 0.0}, "--max-seconds"),
    ],
)
def test_nonsense_is_refused_with_the_flag_s_name(values, flag):
    paths = {"checkpoint": "c", "input": "i", "output": "o"}
    with pytest.raises(ValueError, match=flag):
        VideoOptions(**paths, **values)
    if flag == "--opacity":
        with pytest.raises(ValueError, match=flag):
            ImageOptions(checkpoint="c", image="i", sound="s", output="o", **values)
