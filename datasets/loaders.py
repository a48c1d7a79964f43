"""Loaders: the order of clips, and decoding in worker processes."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling

from datasets.clips import AudioVisualClips, Mixture, collate
from utils.training import SIGNALS


class SeededBatches(Sampler[list[int | Mixture]]):
    """Shuffled batches that are a function of (seed, epoch) alone, from any step on.

    The last clips of an epoch that do not fill a batch are left out: they would have fewer negatives.
    """

    mixing: Callable[[Sequence[int], int], list[int | Mixture]] | None = None
    """turns the positions of a batch of all processes into requests, by a seed: see datasets/mixing.py"""

    def __init__(self, num_clips: int, batch_size: int, seed: int, *, part: slice = slice(None)) -> None:
        """Start before epoch 0, step 0.

        Args:
            num_clips: size of the data set.
            batch_size: clips a step.
            seed: of the whole run.
            part: of each batch that is asked for; the rest is another process's.
        """
        if num_clips < batch_size:
            raise ValueError(
                f"--batch-size {batch_size} is larger than the training set of {num_clips} clips."
            )
        self.num_clips, self.batch_size, self.seed, self.part = num_clips, batch_size, seed, part
        self.steps_per_epoch = num_clips // batch_size
        self.start_at(0, 0)

    def start_at(self, epoch: int, first_step: int) -> None:
        """Make the next iteration begin at a step of an epoch."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[int | Mixture]]:
        """Yield what this process decodes of each batch: positions in the data set, or mixtures."""
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_clips, generator=generator).tolist()
        for step in range(self.first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            if self.mixing is not None:
                batch = self.mixing(batch, hash_seed(self.seed, self.epoch, step, 0))
            yield batch[self.part]


def hash_seed(*numbers: int) -> int:
    """Make one seed below 2**62 of several small numbers, e.g. seed, epoch and step."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**62
    return seed


class ClipLoader(DataLoader[Any]):
    """A DataLoader to be used as a context manager: its workers end with the block.

    Workers ignore the signals that end programs, as the main process needs them until it has saved.
    Python's own clean-up, which sends SIGTERM and waits, would therefore wait for ever.
    """

    _running: Any = None

    def __init__(self, clips: AudioVisualClips, **settings: Any) -> None:  # noqa: ANN401 - as DataLoader
        dataset: Any = clips
        super().__init__(dataset, collate_fn=collate, worker_init_fn=_prepare_worker, **settings)

    def _get_iterator(self) -> Any:  # noqa: ANN401 - torch's iterators are private
        self._running = super()._get_iterator()
        if self.num_workers > 0:
            # Python's exit runs this before it waits for child processes.
            Finalize(self._running, _kill, (self._running._workers, id(self._running)), exitpriority=0)
        return self._running

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(self, *_: object) -> None:
        running, self._running, self._iterator = self._running, None, None
        if self.num_workers == 0 or running is None:
            return
        if all(worker.is_alive() for worker in running._workers):
            running._shutdown_workers()
        # A worker that died may have left half a message, for which torch's clean-up would wait.
        running._shutdown = True
        _kill(running._workers, id(running))


def _kill(workers: Sequence[BaseProcess], iterator_id: int) -> None:
    """End the workers of an iterator, which is no error that torch should report."""
    with suppress(ValueError):  # done by torch's clean-up
        signal_handling._remove_worker_pids(iterator_id)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def build_train_loader(
    clips: AudioVisualClips, batches: SeededBatches, *, num_workers: int, pin_memory: bool
) -> ClipLoader:
    """Load the batches of a SeededBatches; the workers (0: this process) live from epoch to epoch.

    Move it with `batches.start_at` before iterating. `pin_memory` is for a GPU.
    """
    return ClipLoader(
        clips,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )


def build_test_loader(
    clips: AudioVisualClips, *, batch_size: int, num_workers: int, pin_memory: bool
) -> ClipLoader:
    """Load all clips in order, the last batch as small as it comes."""
    return ClipLoader(clips, batch_size=batch_size, num_workers=num_workers, pin_memory=pin_memory)


def _prepare_worker(_: int) -> None:
    """Ignore signals to the whole group: the main process still needs its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _report_unless_cut_off


def _report_unless_cut_off(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    # In the thread that hands batches over: that the main process ends meanwhile is no error.
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)
