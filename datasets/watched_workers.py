"""Loader workers that note what they read, so that the death of one names the files."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import Dataset, get_worker_info

from datasets.clips import AudioVisualClips, ClipRequest

PROCESS, POSITION, READING = range(3)
"""Columns of the notes."""

_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", re.DOTALL)
"""How PyTorch's message begins, whichever of its checks finds the death."""


class WatchedClips(Dataset[Any]):
    """Clips for the workers of one loader, which note in shared memory which clip they are at."""

    def __init__(self, clips: AudioVisualClips, num_workers: int) -> None:
        """Nothing has been read.

        Args:
            clips: what is decoded.
            num_workers: of the loader, at least 1.
        """
        self.clips = clips
        self._notes = torch.full((num_workers, 3), -1).share_memory_()
        _watched.add(self)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def __getitem__(self, request: ClipRequest) -> Any:  # noqa: ANN401
        """The clip, as the data set gives it."""
        worker = get_worker_info()
        assert worker is not None  # nobody else reads from here
        note = self._notes[worker.id]
        note[PROCESS], note[POSITION], note[READING] = os.getpid(), request.position, 1
        sample = self.clips[request]
        note[READING] = 0
        return sample

    def doing_of(self, process: int) -> str | None:
        """What a worker did last, in words; None if it was not of this loader or had not begun."""
        for noted, position, reading in self._notes.tolist():
            if noted == process:
                when = "while it read" if reading else "after it had read"
                return f"{when} {self._describe(position)}"
        return None

    def _describe(self, position: int) -> str:
        clip = self.clips.clips[position]
        return f"clip {clip.clip_id}: frame {clip.frame_source}, sound {clip.audio_source}"


_watched: WeakSet[WatchedClips] = WeakSet()
"""Of all loaders: PyTorch reports a death wherever the main process happens to be."""


@contextmanager
def dead_workers_named() -> Iterator[None]:
    """Turns the death of a loader's worker into an error that names the clip and its files.

    Raises:
        ChildProcessError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        # Found while waiting for data, it is raised from the one that knows the signal.
        reports = [_DEATH.match(str(raised)) for raised in (error.__cause__, error)]
        report = next(filter(None, reports), None)
        if report is None:
            raise
        raise ChildProcessError(_death_message(report)) from error


def _death_message(report: re.Match[str]) -> str:
    """From PyTorch's words to ours."""
    processes = [int(number) for number in report[1].split(",")]
    doings = [clips.doing_of(process) for process in processes for clips in _watched]
    doing = "; ".join(filter(None, doings)) or "before it had read anything"
    reason = report[2].strip().splitlines()[0].rstrip(".")
    return (
        f"A decoding process (pid {report[1]}) {reason}, {doing}. If it crashed, a file breaks its "
        "decoder: scripts/verify_dataset.sh finds such files; mend it, or leave the clip out with "
        "--clip-list. If it was killed, memory ran out, most often: lower --workers. After a bus "
        "error, /dev/shm is too small."
    )
