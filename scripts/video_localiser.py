"""From a trained model, the pictures of a video and its sound to a similarity map for each."""

import logging
import math
from collections.abc import Collection, Generator, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.video_playback import ShownFrame
from datasets.video_windows import SoundWindows, is_silent
from models.localiser import Localiser, load_localiser
from utils.files import check_place
from utils.reproducibility import use_full_float32
from utils.video_options import ImageOptions, VideoOptions
from utils.video_overlay import Peak, draw_localisation, find_peak

logger = logging.getLogger("test")

PEAK_COLUMNS = ("x", "y", "similarity")

LocalisedFrame = tuple[ShownFrame, NDArray[np.float32] | None]
"""A picture and its similarity map (h, w); None: the sound around it is silent."""


class SlidingSound:
    """The encoded sound around each moment of a video; None where it is silent."""

    def __init__(self, localiser: Localiser, windows: SoundWindows, step: float) -> None:
        """Nothing is encoded yet.

        Args:
            localiser: encodes.
            windows: of the video.
            step: seconds between two moments that are encoded; others take the nearest. 0: all are.
        """
        self._localiser, self._windows, self._step = localiser, windows, step
        self._known: dict[float, Tensor | None] = {}
        """encoded sound by moment; no more than the last batch's"""

    def around(self, times: Sequence[float]) -> list[Tensor | None]:
        """Rows of the model's `sound_features`.

        Args:
            times: of a batch, rising, none before those of the last call; seconds.
        """
        moments = [self._moment(time) for time in times]
        new = [moment for moment in dict.fromkeys(moments) if moment not in self._known]
        windows = {moment: self._windows.around(moment) for moment in new}
        heard = [moment for moment in new if not is_silent(windows[moment])]
        encoded: dict[float, Tensor | None] = dict.fromkeys(new)
        if heard:
            rows = self._localiser.sound_features([windows[moment] for moment in heard])
            encoded |= zip(heard, rows, strict=True)
        self._known = {moment: (self._known | encoded)[moment] for moment in moments}
        return [self._known[moment] for moment in moments]

    def _moment(self, time: float) -> float:
        return self._step * round(time / self._step) if self._step else time


class ExponentialMean:
    """A mean over past maps that forgets them with a time constant, whatever the frame rate."""

    def __init__(self, time_constant: float) -> None:
        """Nothing has been seen.

        Args:
            time_constant: seconds after which a map counts 1/e as much; 0: only the last counts.
        """
        self._time_constant = time_constant
        self._mean: NDArray[np.float32] | None = None
        self._time = 0.0

    def __call__(self, similarity_map: NDArray[np.float32] | None, time: float) -> NDArray[np.float32] | None:
        """Takes the next map; after a silence (None) the mean begins anew.

        Args:
            similarity_map: (h, w).
            time: of the map, later than the last; seconds.

        Returns:
            the mean (h, w).
        """
        if self._mean is None or similarity_map is None or self._time_constant == 0:
            self._mean = similarity_map
        else:
            share = np.float32(-math.expm1((self._time - time) / self._time_constant))
            self._mean = self._mean + share * (similarity_map - self._mean)
        self._time = time
        return self._mean


def localise_frames(
    localiser: Localiser, pictures: Iterable[ShownFrame], sound: SlidingSound, batch_size: int
) -> Generator[LocalisedFrame, None, None]:
    """Similarity maps of a video's pictures with the sound around each, a batch at a time.

    Args:
        localiser: the model.
        pictures: in the order of showing.
        sound: of the same video.
        batch_size: pictures that are encoded at once.
    """
    remaining = iter(pictures)
    while batch := list(islice(remaining, batch_size)):
        rows = sound.around([shown.time for shown in batch])
        heard = [(shown.picture, row) for shown, row in zip(batch, rows, strict=True)
                 if row is not None]  # fmt: skip
        maps = iter(localiser.similarity_maps(*zip(*heard, strict=True)) if heard else ())
        for shown, row in zip(batch, rows, strict=True):
            yield shown, None if row is None else next(maps)


def draw_with_peak(
    frame: NDArray[np.uint8],
    similarity_map: NDArray[np.float32] | None,
    localiser: Localiser,
    options: VideoOptions | ImageOptions,
) -> tuple[NDArray[np.uint8], Peak | None]:
    """A frame (H, W, 3) with its map (None: silence) drawn in, and where the map peaks."""
    height, width = frame.shape[:2]
    square = localiser.square_in(width, height)
    drawn = draw_localisation(frame, similarity_map, square, opacity=options.opacity, box=options.box)
    if similarity_map is None:
        return drawn, None
    return drawn, find_peak(similarity_map, square, width, height)


def peak_cells(peak: Peak | None) -> tuple[str, str, str]:
    """A peak in the columns PEAK_COLUMNS of a CSV; empty where there is none."""
    if peak is None:
        return "", "", ""
    return f"{peak.x:.1f}", f"{peak.y:.1f}", f"{peak.similarity:.6f}"


def check_output(
    output: Path, suffixes: Collection[str], beside: Sequence[Path], sources: Sequence[Path]
) -> None:
    """Refuses at once a result that could not be written at the end.

    Args:
        output: the result.
        suffixes: of the formats that are written.
        beside: what is written beside it.
        sources: files that are read.

    Raises:
        ValueError: the format is another one, or one of the files is a folder, or one that is read.
        NotADirectoryError: the folder is a file.
        PermissionError: nothing can be written there.
    """
    if output.suffix.lower() not in suffixes:
        raise ValueError(
            f"--output must end in {' or '.join(suffixes)}, got {output}. Other formats are made "
            "from these by FFmpeg."
        )
    for path in (output, *beside):
        if path.is_dir():
            raise ValueError(f"--output {output}: {path} is a folder; name another file.")
        if any(path.exists() and source.exists() and path.samefile(source) for source in sources):
            raise ValueError(f"--output {output}: {path} is what is read; name another file.")
    check_place(output.parent, f"--output {output}")


def load_for(options: VideoOptions | ImageOptions) -> Localiser:
    """The model that the options name, on their device."""
    use_full_float32()
    localiser = load_localiser(options.checkpoint, options.device)
    logger.info("%s from %s", localiser.checkpoint.method, options.checkpoint)
    return localiser
