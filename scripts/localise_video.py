"""`test.py video`: draws into one's own video where its sound comes from; see docs/video.md."""

import csv
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from datasets.video_playback import Pictures, check_playable
from datasets.video_tracks import CUT_OFF_SECONDS, Reason, UnusableVideoError, open_video
from datasets.video_windows import SoundWindows
from datasets.video_writer import CONTAINERS, VideoWriter
from models.localiser import Localiser
from scripts.video_localiser import (
    PEAK_COLUMNS,
    ExponentialMean,
    SlidingSound,
    check_output,
    draw_with_peak,
    load_for,
    localise_frames,
    peak_cells,
)
from utils.files import moved_when_whole
from utils.video_options import VideoOptions
from utils.video_overlay import ContactSheet, encode_png

logger = logging.getLogger("test")

OnProgress = Callable[[int, int | None], None]
"""Called with the number of frames that are done, and of all as far as the file tells."""

WHAT_TO_DO: dict[Reason, str] = {
    "no_video_stream": "For a picture with a sound there is test.py image.",
    "no_audio_stream": "A localiser needs pictures and their sound. For a picture with a sound "
    "there is test.py image.",
    "truncated": "Get the whole file, or have FFmpeg repair it.",
    "unreadable": "Have FFmpeg convert it; --max-seconds takes what precedes a damage.",
}


@dataclass(frozen=True)
class VideoResult:
    """What was written."""

    frames: int
    """number of pictures"""
    seconds: float
    """when the last of them ends"""
    silent_frames: int
    """pictures whose window of sound is silent: nothing is drawn on them"""
    output: Path
    contact_sheet: Path
    """PNG with a few of the pictures"""
    peaks: Path
    """CSV of time_seconds, x, y (pixels of the frame), similarity; no more than the time where
    there is no peak"""


def localise_video(
    trained: Localiser, options: VideoOptions, on_progress: OnProgress | None = None
) -> VideoResult:
    """Writes a video with heat maps, its contact sheet and its peaks: all, or after an error none.

    Memory does not grow with the length of the video.

    Args:
        trained: the model, on its device; `options.checkpoint` and `options.device` are not read.
        options: which video, where to, and how.
        on_progress: called after each frame; what it raises stops the work.

    Raises:
        FileNotFoundError: there is no such video.
        ValueError: it cannot be localised, or the output cannot be what is asked for.
    """
    sheet = options.output.with_name(f"{options.output.stem}_contact_sheet.png")
    peaks = options.output.with_name(f"{options.output.stem}_peaks.csv")
    check_output(options.output, CONTAINERS, [sheet, peaks], [options.input, options.checkpoint])
    with (
        _errors_naming(options.input),
        moved_when_whole(peaks) as peaks_file,
        moved_when_whole(sheet) as sheet_file,
        moved_when_whole(options.output) as video_file,
    ):
        check_playable(options.input)
        drawing = _Drawing(replace(trained, frame_geometry=options.frame_geometry), options)
        with ExitStack() as stack:
            container = stack.enter_context(open_video(options.input))
            pictures = Pictures(container, options.max_seconds)
            windows = stack.enter_context(closing(SoundWindows(options.input, trained.audio)))
            writer = VideoWriter(
                video_file,
                CONTAINERS[options.output.suffix.lower()],
                options.input,
                time_base=pictures.time_base,
                rate=pictures.rate,
                bt709=pictures.bt709,
                max_seconds=options.max_seconds,
            )
            rows = stack.enter_context(peaks_file.open("w", newline=""))
            drawing.run(pictures, windows, stack.enter_context(writer), csv.writer(rows), on_progress)
        sheet_file.write_bytes(encode_png(drawing.sheet.draw()))
    _warn(pictures, drawing, writer.sound_end, options)
    return VideoResult(drawing.frames, drawing.seconds, drawing.silent_frames, options.output, sheet, peaks)


class _Drawing:
    """One pass through a video."""

    def __init__(self, localiser: Localiser, options: VideoOptions) -> None:
        self._localiser, self._options = localiser, options
        self.sheet = ContactSheet()
        self.frames = self.silent_frames = 0
        self.seconds = 0.0

    def run(
        self,
        pictures: Pictures,
        windows: SoundWindows,
        writer: VideoWriter,
        rows: Any,  # noqa: ANN401 - csv's writers have no name
        on_progress: OnProgress | None,
    ) -> None:
        options, expected = self._options, pictures.expected_frames
        sound = SlidingSound(self._localiser, windows, options.audio_step)
        smooth = ExponentialMean(options.smoothing)
        rows.writerow(("time_seconds", *PEAK_COLUMNS))
        for shown, found in localise_frames(self._localiser, pictures, sound, options.batch_size):
            similarity_map = smooth(found, shown.time)
            drawn, peak = draw_with_peak(np.asarray(shown.picture), similarity_map, self._localiser, options)
            writer.write(drawn, shown.stamp, shown.duration)
            self.sheet.add(drawn, shown.time)
            rows.writerow((f"{shown.time:.6f}", *peak_cells(peak)))
            self.frames += 1
            self.silent_frames += similarity_map is None
            self.seconds = float((shown.stamp + shown.duration) * pictures.time_base)
            if on_progress is not None:
                on_progress(self.frames, expected)


@contextmanager
def _errors_naming(video: Path) -> Iterator[None]:
    try:
        yield
    except UnusableVideoError as error:
        advice = WHAT_TO_DO.get(error.reason, "")
        raise ValueError(f"{video} cannot be localised: {error.detail}. {advice}") from error


def _warn(pictures: Pictures, drawing: _Drawing, sound_end: float, options: VideoOptions) -> None:
    """Says what cannot be seen in the result."""
    if drawing.silent_frames:
        logger.warning(
            "%s: the sound around %d of %d frames is silent; nothing is drawn on these.",
            options.input,
            drawing.silent_frames,
            drawing.frames,
        )
    if pictures.num_damaged:
        logger.warning(
            "%s: %d pictures are damaged and shown as far as they could be decoded.",
            options.input,
            pictures.num_damaged,
        )
    announced, end = pictures.announced_seconds, max(drawing.seconds, sound_end)
    if options.max_seconds is None and announced and end < announced - CUT_OFF_SECONDS:
        logger.warning(
            "%s was cut off: %.2f s are announced, it ends at %.2f s.", options.input, announced, end
        )


def run_video(options: VideoOptions) -> int:
    """`test.py video`; returns 0."""
    with _terminated_as_stopped(), tqdm(desc=options.input.name, unit="frame") as bar:
        trained = load_for(options)

        def count(done: int, expected: int | None) -> None:
            bar.total = expected if expected is None else max(done, expected)
            bar.update(done - bar.n)

        result = localise_video(trained, options, count)
    sys.stdout.write(
        f"{result.frames} frames, {result.seconds:.2f} s: {result.output}\n"
        f"Contact sheet: {result.contact_sheet}\nPeaks: {result.peaks}\n"
    )
    return 0


@contextmanager
def _terminated_as_stopped() -> Iterator[None]:
    """SIGTERM removes what is half-written, as Ctrl-C does."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
