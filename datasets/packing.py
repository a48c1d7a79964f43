"""Clips as our HDF5 files store them, and the processes that bring them there."""

import io
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.audio import MIN_COMMON_RATE, read_sound
from datasets.clips import BrokenClip, Clip
from datasets.errors import BrokenFileError
from datasets.frames import FrameGeometry, read_frame
from datasets.hdf5 import FRAMES, FULL_SCALE, SOUNDS, HDF5Row, read_row, read_stored_sound
from datasets.packed_writer import PackedClip

JPEG_QUALITY = 95
"""Of frames that have to be encoded; their colours keep the full resolution."""

_CLIPS_PER_TASK = 8
_TASKS_PER_WORKER = 4


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How clips are stored."""

    sample_rate: int = 16_000
    """Hz; other sounds are resampled"""
    seconds: float | None = None
    """middle of each sound that is kept, seconds, shorter ones whole; None: all of it"""
    frame_size: int | None = None
    """frames are squashed to this side in pixels and encoded anew; None: their files as they are"""

    def __post_init__(self) -> None:
        """Refuses what gives no sound or no frame."""
        if self.sample_rate < MIN_COMMON_RATE:
            raise ValueError(f"--sample-rate must be at least {MIN_COMMON_RATE} Hz, got {self.sample_rate}")
        if self.seconds is not None and not (
            math.isfinite(self.seconds) and self.seconds * self.sample_rate >= 2
        ):
            raise ValueError(f"--seconds must be a length above 0, got {self.seconds}")
        if self.frame_size is not None and self.frame_size < 1:
            raise ValueError(f"--frame-size must be at least 1, got {self.frame_size}")


def pack_clip(clip: Clip, config: PackConfig) -> PackedClip:
    """Reads one clip as it will be stored.

    Raises:
        BrokenFileError: its frame or its sound cannot be decoded.
    """
    return PackedClip(
        clip.clip_id, _frame_bytes(clip, config.frame_size), _sound_samples(clip, config), clip.bounding_boxes
    )


def _frame_bytes(clip: Clip, frame_size: int | None) -> bytes:
    # Decoded even where the bytes stay: a broken picture is found here, not in training.
    picture = read_frame(clip.frame_source)
    source = clip.frame_source
    if frame_size is not None:
        picture = FrameGeometry(frame_size).apply_to_frame(picture)
    elif isinstance(source, Path):
        return source.read_bytes()
    elif source.key == FRAMES:
        return read_row(source).tobytes()
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return encoded.getvalue()


def _sound_samples(clip: Clip, config: PackConfig) -> NDArray[np.int16]:
    waveform = read_sound(clip.audio_source, config.sample_rate).numpy()
    if config.seconds is not None:
        # An even number, so that the middle of the middle is the middle of the whole.
        kept = 2 * round(config.seconds * config.sample_rate / 2)
        start = max(0, len(waveform) // 2 - kept // 2)
        waveform = waveform[start : start + kept]
    samples = np.rint(waveform * FULL_SCALE)
    return np.clip(samples, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


# ---------------------------------------------------------------------------- worker processes


def _set_up_worker() -> None:
    """Ctrl-C is the main process's to handle; without that process, a worker ends.

    SIGTERM ends a worker: it is how the pool stops the others when one has died.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def pack_task(clips: Sequence[Clip], config: PackConfig) -> list[PackedClip | BrokenClip]:
    """Packs clips; those that cannot be decoded come back as BrokenClip."""
    packed: list[PackedClip | BrokenClip] = []
    for clip in clips:
        try:
            packed.append(pack_clip(clip, config))
        except BrokenFileError as error:
            packed.append(BrokenClip(clip.clip_id, str(error)))
    return packed


def verify_task(rows: Sequence[int], path: Path) -> list[int]:
    """Reads rows of a file of ours back as training will.

    Raises:
        BrokenFileError: a checksum is wrong, or a picture broken.
    """
    for row in rows:
        read_frame(HDF5Row(path, FRAMES, row))
        read_stored_sound(HDF5Row(path, SOUNDS, row))
    return list(rows)


Item = TypeVar("Item")
Result = TypeVar("Result")
Setting = TypeVar("Setting")


class Workers:
    """Processes that work through tasks in order, only a few tasks ahead of what is taken."""

    def __init__(self, num_workers: int) -> None:
        """Starts with the first task.

        Args:
            num_workers: processes.
        """
        # Not forked: this process has threads, and HDF5 files open.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._limit = _TASKS_PER_WORKER * num_workers
        self._pool = ProcessPoolExecutor(num_workers, context, _set_up_worker)

    def __enter__(self) -> "Workers":
        """Ready for tasks."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the tasks at work, drops the others."""
        self._pool.shutdown(cancel_futures=True)

    def map(
        self,
        task: Callable[[Sequence[Item], Setting], Sequence[Result]],
        items: Sequence[Item],
        setting: Setting,
    ) -> Iterator[Result]:
        """The task's results for all items, in their order."""
        waiting: deque[Future[Sequence[Result]]] = deque()
        for start in range(0, len(items), _CLIPS_PER_TASK):
            part = items[start : start + _CLIPS_PER_TASK]
            waiting.append(self._pool.submit(task, part, setting))
            if len(waiting) >= self._limit:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
