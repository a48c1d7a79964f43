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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils.checkpoint import Checkpoint, save_checkpoint
from utils.distributed import all_reduce_mean, gather_objects, is_main_process
from utils.evaluation import BrokenClipLike, LocalisationResult
from utils.files import lock_folder, write_atomically
from utils.reporting import log_to_file
from utils.visualisation import overlay_localisation_map

logger = logging.getLogger(__name__)


class _Step(NamedTuple):
    """A finished step whose values have not been read from the device yet."""

    number: int
    clip_ids: tuple[str, ...]
    values: Mapping[str, Tensor]


class TrainingRun:
    """Where a run stands, and what it leaves on disk."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Looks whether a folder is free; nothing is written before `start`.

        Args:
            folder: of the run.
            resume: whether it holds a run to go on with.

        Raises:
            FileExistsError: it holds a run, and resume is not set.
            FileNotFoundError: it holds none, and resume is set.
        """
        self.folder = folder
        self.last_path = folder / "last.pth"
        self.best_path = folder / "best.pth"
        if self.last_path.exists() and not resume:
            raise FileExistsError(
                f"{self.last_path} exists: a run lives in this folder. Go on with it "
                "(--resume), or name another --output."
            )
        if resume and not self.last_path.exists():
            raise FileNotFoundError(
                f"Nothing to resume: there is no {self.last_path}. Leave --resume out to "
                "start anew."
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
        """
        self.diagnose = diagnose
        self.steps_per_epoch = steps_per_epoch
        self.log_every = log_every
        self.writer: SummaryWriter | None = None
        if not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.folder)
        self._log_handler = log_to_file(self.folder / "log.txt")
        write_atomically(
            self.folder / "options.json", json.dumps(options, indent=2).encode() + b"\n"
        )
        if missing:
            lines = "".join(f"{line}\n" for line in missing)
            write_atomically(self.folder / "missing_clips.txt", lines.encode())
        self.writer = SummaryWriter(str(self.folder), purge_step=self.global_step)

    def close(self) -> None:
        """Closes the logs and frees the folder."""
        if self.writer is None:
            return
        self.writer.close()
        logging.getLogger().removeHandler(self._log_handler)
        self._log_handler.close()
        self._lock.close()

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

    def note_step(
        self, loss: Tensor, terms: Mapping[str, Tensor], clip_ids: tuple[str, ...]
    ) -> None:
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
        rows = all_reduce_mean({"rows": local})["rows"].tolist()
        losses = {step.number: row[0] for step, row in zip(recent, rows, strict=True)}
        if not all(map(math.isfinite, losses.values())):
            self._stop_diverged(recent, losses)
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

    def _stop_diverged(self, recent: Sequence[_Step], losses: Mapping[int, float]) -> NoReturn:
        first = next(number for number, loss in losses.items() if not math.isfinite(loss))
        own = [(step.number, step.clip_ids) for step in recent if step.number <= first]
        diagnosis = {
            "epoch": self.epoch + 1,
            "first_bad_step": first,
            "losses": {number: repr(loss) for number, loss in losses.items()},
            "clips_by_process_and_step": gather_objects([own]),
        }
        path = self.folder / "diagnosis.json"
        if is_main_process():
            write_atomically(path, json.dumps(diagnosis, indent=2).encode() + b"\n")
        clips = ", ".join(own[-1][1][:5])
        raise FloatingPointError(
            f"The loss is no longer a finite number: epoch {self.epoch + 1}, step {first}, clips "
            f"{clips} …; all of them, and the steps before, are in {path}. {self.last_path} holds "
            "the last good state, if one was saved; a lower learning rate is the usual remedy."
        )

    def _add_scalar(self, name: str, value: float) -> None:
        if self.writer is not None:
            self.writer.add_scalar(name, value, self.global_step)

    def add_pictures(self, frames: NDArray[np.uint8], maps: NDArray[np.float32]) -> None:
        """Adds overlays to TensorBoard.

        Args:
            frames: (N, S, S, 3) RGB.
            maps: (N, h, w), scaled to the range of each.
        """
        if self.writer is None:
            return
        for index, (frame, similarity) in enumerate(zip(frames, maps, strict=True)):
            size = (frame.shape[1], frame.shape[0])
            heat = cv2.normalize(cv2.resize(similarity, size), None, 0, 1, cv2.NORM_MINMAX)  # type: ignore[call-overload]
            picture = overlay_localisation_map(frame, np.clip(heat, 0, 1), np.zeros((0, 4)))
            self.writer.add_image(
                f"train/overlay_{index}", picture, self.global_step, dataformats="HWC"
            )

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

    def save(self, checkpoint: Checkpoint, *, best_on: Mapping[str, Any] | None) -> None:
        """Writes last.pth, and best.pth where the epoch is the best on the named clips.

        Args:
            checkpoint: of now.
            best_on: the benchmark and clips on which this epoch is the best; None if it is not.
        """
        checkpoint.selection = {"kind": "last"}
        save_checkpoint(self.last_path, checkpoint)
        if best_on is not None:
            checkpoint.selection = {"kind": "best", **best_on}
            save_checkpoint(self.best_path, checkpoint)

    def _write_history(self) -> None:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        write_atomically(self.folder / "history.csv", text.getvalue().encode())
