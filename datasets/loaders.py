"""Loaders: the order of clips, and decoding in worker processes."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
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
        """Start before epoch 0, step 0; of each batch, `part` is this process's."""
        if num_clips < batch_size:
            raise ValueError(f"--batch-size {batch_size} is more than the training set of {num_clips} clips.")
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
    """Decodes batches of clips in worker processes (0: in this one), which end with the `with` block.

    Workers ignore the signals that end programs, as the main process needs them until it has saved.
    Python's own clean-up, which sends SIGTERM and waits, would therefore wait for ever.
    """

    _running: Any = None

    def __init__(self, clips: AudioVisualClips, *, workers: int = 0, **settings: Any) -> None:  # noqa: ANN401
        """Take clips in order by `batch_size`, or as a `batch_sampler` says; `pin_memory` is for a GPU."""
        super().__init__(
            clips,
            **settings,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            worker_init_fn=_prepare_worker,
        )

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
        worker.join()


def _prepare_worker(_: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Of the thread that hands batches over: that the main process ends meanwhile is no error.
    sys.excepthook = lambda kind, *error: (
        None if issubclass(kind, (ConnectionError, EOFError)) else sys.__excepthook__(kind, *error)
    )
