"""The folder of a training run: checkpoints, history, TensorBoard, and where the run stands.

last.pth       after each epoch, and when stopped; --resume goes on from it
best.pth       the epoch with the best validation score; only when a benchmark is named
options.json   all options
missing_clips.txt  listed clips that are not trained on (--allow-missing)
history.csv    a row per epoch: mean losses, validation scores
log.txt        the program's messages
events.*       TensorBoard
diagnosis.json which clips the last steps saw, when the loss was no longer a number
.lock          held while a process writes here

Among several processes, only the main one writes; the others keep the same account.
"""

import csv
import io
import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils.checkpoint import Checkpoint, find_non_finite, save_checkpoint
from utils.distributed import average, gather_objects, is_main_process
from utils.evaluation.localisation import BrokenClipLike
from utils.files import check_place, lock_folder, write_atomically
from utils.reporting import log_to_file
from utils.reports.visualisation import Square, draw_localisation
from utils.scores import LocalisationResult

logger = logging.getLogger(__name__)


class _Step(NamedTuple):
    """A finished step whose values have not been read from the device yet."""

    number: int
    clip_ids: tuple[str, ...]
    values: Mapping[str, Tensor]


def _log_thread_error(failure: threading.ExceptHookArgs) -> None:
    """One line for Python's traceback: what TensorBoard's thread cannot write comes up again."""
    logger.error("A thread failed: %s", failure.exc_value)


class TrainingRun:
    """Where a run stands, and what it leaves on disk.

    Use as a context manager from `start` on, which closes the logs and frees the folder.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Looks whether a folder is free, and locks one that is there.

        Beside the lock, nothing is written before `start`.

        Args:
            folder: of the run.
            resume: whether it holds a run to go on with.

        Raises:
            FileExistsError: it holds a run, and resume is not set.
            FileNotFoundError: it holds none, and resume is set.
            NotADirectoryError: it is a file.
            PermissionError: nothing can be written there.
            ValueError: another process writes there.
        """
        self.folder = folder
        self.last_path = folder / "last.pth"
        self.best_path = folder / "best.pth"
        self._lock: TextIO | None = None
        check_place(folder, f"--output {folder}")
        if folder.exists():
            self._take_lock()  # before last.pth is looked at, which the other might be writing
        if not resume:
            self._check_no_run()
        if resume and not self.last_path.exists():
            raise FileNotFoundError(
                f"Nothing to resume: there is no {self.last_path}. Leave --resume out to start anew."
            )
        self.epoch = 0
        """finished epochs"""
        self.step = 0
        """finished steps of the current epoch"""
        self.best_score = -1.0
        """best validation cIoU@0.5 so far, percent"""
        self.history: list[dict[str, float]] = []
        """a row per finished epoch"""
        self.broken: dict[str, str] = {}
        """reason by id, of training clips that broke while being decoded"""
        self._sums: dict[str, float] = {}
        self._num_summed = 0
        self._recent: list[_Step] = []
        self._warned = False
        """whether this epoch's diagnosis has been told"""
        self.writer: SummaryWriter | None = None
        self._log_handler: logging.Handler | None = None
        self._thread_hook = threading.excepthook

    def _check_no_run(self) -> None:
        if self.last_path.exists():
            raise FileExistsError(
                f"{self.last_path} exists: a run lives in this folder. Go on with it "
                "(--resume), or name another --output."
            )

    def _take_lock(self) -> None:
        if is_main_process():
            self._lock = lock_folder(self.folder)

    def progress(self) -> dict[str, Any]:
        """What resuming needs beside the weights."""
        self._log_recent()
        return {
            "best_score": self.best_score,
            "history": self.history,
            "broken": self.broken,
            "sums": self._sums,
            "num_summed": self._num_summed,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stands where the checkpoint stood."""
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.best_score = checkpoint.progress["best_score"]
        self.history = checkpoint.progress["history"]
        self.broken = checkpoint.progress["broken"]
        self._sums = checkpoint.progress["sums"]
        self._num_summed = checkpoint.progress["num_summed"]

    def start(
        self,
        options: Mapping[str, Any],
        *,
        missing: Sequence[str],
        steps_per_epoch: int,
        log_every: int,
        diagnose: Callable[[Mapping[str, float]], str | None],
    ) -> None:
        """Makes the folder and opens the logs.

        Args:
            options: of the run, as plain values.
            missing: listed training clips that are not trained on, with the reason.
            steps_per_epoch: full batches in an epoch.
            log_every: steps between two TensorBoard entries.
            diagnose: mean terms of some steps -> a warning about them, or None.

        Raises:
            FileExistsError: another process has begun a run there in the meantime.
            ValueError: another process writes there.
            OSError: the folder or a file in it cannot be written.
        """
        self.diagnose = diagnose
        self.steps_per_epoch = steps_per_epoch
        self.log_every = log_every
        if not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:  # the folder was not there, and others may have made it since
            self._take_lock()
            self._check_no_run()
        for leftover in self.folder.glob(".*.[0-9]*.partial"):  # a killed process was writing it
            leftover.unlink(missing_ok=True)
        self._log_handler = log_to_file(self.folder / "log.txt")
        write_atomically(self.folder / "options.json", json.dumps(options, indent=2).encode() + b"\n")
        if missing:
            lines = "".join(f"{line}\n" for line in missing)
            write_atomically(self.folder / "missing_clips.txt", lines.encode())
        threading.excepthook = _log_thread_error
        with self._naming_tensorboard():
            self.writer = SummaryWriter(str(self.folder), purge_step=self.global_step)

    def __enter__(self) -> "TrainingRun":
        """Itself."""
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Notes in log.txt what ended the run; closes the logs and frees the folder."""
        handler = self._log_handler
        if error is not None and handler is not None:
            words = ("Ended by %s: %s", (type(error).__name__, error))
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, *words, None))
        if handler is not None:
            logging.getLogger().removeHandler(handler)
        for part in (self.writer, handler, self._lock):
            try:
                if part is not None:
                    part.close()
            except OSError as failure:
                logger.warning("The logs in %s are not complete: %s", self.folder, failure)
        threading.excepthook = self._thread_hook

    @contextmanager
    def _naming_tensorboard(self) -> Iterator[None]:
        """Its thread writes much later than it is told to, and names no file."""
        try:
            yield
        except OSError as error:
            words = f"TensorBoard's log cannot be written: {error.strerror}"
            raise OSError(error.errno, words, str(self.folder)) from error

    @property
    def global_step(self) -> int:
        """Steps since the beginning."""
        return self.epoch * self.steps_per_epoch + self.step

    def note_broken(self, broken: Sequence[BrokenClipLike]) -> None:
        """Lists clips that were skipped because their files could not be decoded."""
        for clip in broken:
            if clip.clip_id not in self.broken:
                logger.warning("Skipped %s: %s", clip.clip_id, clip.reason)
            self.broken[clip.clip_id] = clip.reason

    def note_step(self, loss: Tensor, terms: Mapping[str, Tensor], clip_ids: tuple[str, ...]) -> None:
        """Counts a finished step and logs every so often.

        Args:
            loss: scalar.
            terms: scalars by name.
            clip_ids: of the clips that this process saw.

        Raises:
            FloatingPointError: a loss is not finite; nothing is saved from there on.
        """
        self.step += 1
        self._recent.append(_Step(self.step, clip_ids, {"loss": loss.detach(), **terms}))
        if self.step % self.log_every == 0 or self.step == self.steps_per_epoch:
            self._log_recent()

    def _log_recent(self) -> None:
        """Reads the values of the steps since the last time; all processes must call it."""
        recent, self._recent = self._recent, []
        if not recent:
            return
        # Reading the values waits for the device, hence not at each step.
        names = list(recent[0].values)
        local = torch.stack([torch.stack([s.values[name] for name in names]) for s in recent])
        rows = average(local).tolist()
        losses = {step.number: row[0] for step, row in zip(recent, rows, strict=True)}
        if not all(map(math.isfinite, losses.values())):
            self._stop_diverged(recent, losses, local[:, 0].tolist())
        totals = dict(zip(names, map(sum, zip(*rows, strict=True)), strict=True))
        for name, total in totals.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        self._num_summed += len(rows)
        warning = self.diagnose({name: total / len(rows) for name, total in totals.items()})
        if warning is not None and not self._warned:
            logger.warning("Epoch %d, step %d: %s", self.epoch + 1, self.step, warning)
            self._warned = True
        for name, last in zip(names, rows[-1], strict=True):
            self._add_scalar(f"train/{name}", last)

    def _stop_diverged(
        self, recent: Sequence[_Step], losses: Mapping[int, float], own_losses: Sequence[float]
    ) -> NoReturn:
        first = next(number for number, loss in losses.items() if not math.isfinite(loss))
        own: list[dict[str, Any]] = [
            {"step": step.number, "loss": repr(loss), "clips": step.clip_ids}
            for step, loss in zip(recent, own_losses, strict=True)
            if step.number <= first
        ]
        diagnosis = {
            "epoch": self.epoch + 1,
            "first_bad_step": first,
            "mean_losses": {number: repr(loss) for number, loss in losses.items()},
            "steps_by_process": gather_objects([own]),
        }
        path = self.folder / "diagnosis.json"
        if is_main_process():
            write_atomically(path, json.dumps(diagnosis, indent=2).encode() + b"\n")
        clips = own[-1]["clips"]
        more = " …" if len(clips) > 5 else ""
        raise FloatingPointError(
            f"The loss is no longer a finite number: epoch {self.epoch + 1}, step {first}, clips "
            f"{', '.join(clips[:5])}{more}; all of them, and the steps before, are in {path}. "
            f"{self.last_path} holds the last good state, if one was saved; a lower learning rate "
            "is the usual remedy."
        )

    def _add_scalar(self, name: str, value: float) -> None:
        if self.writer is not None:
            with self._naming_tensorboard():
                self.writer.add_scalar(name, value, self.global_step)

    def add_pictures(self, frames: NDArray[np.uint8], maps: NDArray[np.float32]) -> None:
        """Adds overlays to TensorBoard.

        Args:
            frames: (N, S, S, 3) RGB.
            maps: (N, h, w), not normalised.
        """
        if self.writer is None:
            return
        for index, (frame, similarity) in enumerate(zip(frames, maps, strict=True)):
            picture = draw_localisation(frame, similarity, Square())
            with self._naming_tensorboard():
                self.writer.add_image(f"train/overlay_{index}", picture, self.global_step, dataformats="HWC")

    def finish_epoch(self, result: LocalisationResult | None) -> bool:
        """Closes an epoch's account.

        Args:
            result: of the validation; None without one.

        Returns:
            whether this is the best epoch so far.
        """
        self._log_recent()
        for broken in gather_objects([self.broken]):
            self.broken |= broken
        if self._num_summed == 0:
            raise ValueError(
                f"No step of epoch {self.epoch + 1} could be made: {len(self.broken)} clips cannot "
                f"be decoded, first: {next(iter(self.broken.values()), 'none')}"
            )
        row: dict[str, float] = {"epoch": self.epoch + 1}
        row |= {name: total / max(self._num_summed, 1) for name, total in self._sums.items()}
        row["broken_clips"] = len(self.broken)
        is_best = False
        if result is not None:
            scores = result.model.summary()
            row["validation_clips"] = len(result.model.clips)
            for clip_id, reason in result.unreadable:
                logger.warning("Validation clip %s is not scored: %s", clip_id, reason)
            for name in ("ciou_at_0.5", "auc", "mean_ciou", "pointing_accuracy"):
                row[f"validation_{name}"] = float(scores[name] or 0.0)
                self._add_scalar(f"validation/{name}", row[f"validation_{name}"])
            is_best = row["validation_ciou_at_0.5"] > self.best_score
            self.best_score = max(self.best_score, row["validation_ciou_at_0.5"])
        self.history.append(row)
        logger.info("Finished %s", ", ".join(f"{k} {value:.4g}" for k, value in row.items()))
        self.epoch, self.step = self.epoch + 1, 0
        self._sums, self._num_summed, self._warned = {}, 0, False
        if is_main_process():
            self._write_history()
        return is_best

    def check_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Refuses weights that no run can go on from; a step's loss is that before the step.

        Called before they are scored or saved.

        Args:
            state_dict: of the model, the same in all processes.

        Raises:
            FloatingPointError: a number is not finite.
        """
        self._log_recent()  # a loss that is not finite is found here, and says more
        broken = find_non_finite(state_dict)
        if broken:
            raise FloatingPointError(
                f"The weights are no longer finite numbers after {self.epoch} epochs and "
                f"{self.step} steps: {len(broken)} tensors, first {broken[0]}. Nothing is saved: "
                f"{self.last_path} holds the last good state, if one was saved; a lower learning "
                "rate is the usual remedy."
            )

    def save(self, checkpoint: Checkpoint, *, best_on: Mapping[str, Any] | None) -> None:
        """Writes last.pth, and before it best.pth where the epoch is the best on the named clips.

        last.pth knows the best score: were it written first, a crash between the two would leave
        a best.pth that never catches up.

        Args:
            checkpoint: of now.
            best_on: the benchmark and clips on which this epoch is the best; None if it is not.
        """
        if best_on is not None:
            checkpoint.selection = {"kind": "best", **best_on}
            save_checkpoint(self.best_path, checkpoint)
        checkpoint.selection = {"kind": "last"}
        save_checkpoint(self.last_path, checkpoint)

    def _write_history(self) -> None:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        write_atomically(self.folder / "history.csv", text.getvalue().encode())
