"""What surrounds a training: signals, the device, and the folder of the run.

A run's folder holds:

last.pth       after each epoch, and when stopped; --resume goes on from it
best.pth       the epoch with the best validation score; only when a benchmark is named
options.json   all options
missing_clips.txt  listed clips that are not trained on (--allow-missing)
history.csv    a row per epoch: mean losses, validation scores
log.txt        the program's messages
events.*       TensorBoard
.lock          held while a process writes here
"""

import json
import logging
import math
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.checkpoint import Checkpoint, find_non_finite, save_checkpoint
from utils.distributed import average, gather_objects, is_main_process, largest, world_size
from utils.files import check_place, lock_folder, write_atomically
from utils.reports.visualisation import Square, draw_caption, draw_localisation

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------------------------------ signals


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """Context in which SIGTERM, SIGUSR1 and Ctrl-C are only noted; a second Ctrl-C stops at once.

    Cluster managers send SIGTERM or SIGUSR1 some time before they end a job. Look at `agreed` after a step.
    """

    signal_number: int | None = None

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self) -> int | None:
        """Return the signal that this or another process got, if any; all processes must call it."""
        return largest(self.signal_number or 0) or None

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        message = f"\n{signal.Signals(number).name}: finishing the step, then saving and stopping.\n"
        with suppress(OSError):  # not sys.stderr: a signal in the middle of writing to it makes that fail
            os.write(2, message.encode())


# ------------------------------------------------------------------------------------------- device

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


def choose_precision(precision: Precision, device: torch.device) -> Precision:
    """Return what `auto` stands for on a device: the fast one of a GPU, bf16 or tf32, else fp32."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "tf32"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context in which networks compute in a precision; weights and losses stay float32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision in ("bf16", "fp16"))


def use_full_float32(full: bool = True) -> None:
    """Keep GPUs from rounding to TF32, which moves scores; False lets convolutions alone, as PyTorch does."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = not full


def pick_device(name: str) -> torch.device:
    """Return a device by name; `auto` is the GPU where there is one, else the CPU."""
    if name == "auto":
        found = torch.cuda.is_available()
        if not found and Path("/dev/nvidia0").exists():
            logger.warning("On the CPU: PyTorch has no CUDA, or this NVIDIA GPU's driver is older than 580.")
        return torch.device("cuda" if found else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        reason = " MPS lacks float64, in which scores and some spectrograms are computed."
        words = f"--device {name}: use auto, cpu, cuda or cuda:<number>."
        raise ValueError(words + reason * name.startswith("mps"))
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device cpu, or --device auto to take what is there."
        )
    return device


def environment_report(device: torch.device) -> dict[str, str]:
    """Return the versions of all that can move a score, and the device, for result files."""
    packages = "torch torchvision torchaudio numpy opencv-python-headless pillow soundfile".split()
    words = f"CPU, {torch.get_num_threads()} threads ({platform.machine()})"
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device)
    versions = {package: version(package) for package in packages}
    return {"python": platform.python_version(), **versions, "device": words}


# ------------------------------------------------------------------------------------------- folder

LOG_EVERY = 20  # steps between two entries in TensorBoard
PROGRESS = ("best_score", "history", "broken", "sums", "num_summed")
"""Attributes of TrainingRun that are kept in checkpoints."""


class TrainingRun:
    """Where a run stands, and what it leaves on disk.

    Among several processes only the main one writes; the others keep the same account. Use as a context
    manager from `start` on, which closes the logs and frees the folder.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Lock the folder if it is there; nothing is written before `start`.

        It is refused if it holds a run or, to resume, none; if it cannot be written, or another process does.
        """
        self.folder, self.last_path, self.best_path = folder, folder / "last.pth", folder / "best.pth"
        self._open = ExitStack()  # lock, logs
        self._locked = False
        self._log: logging.Handler | None = None
        self._writer: Any = None
        check_place(folder, f"--output {folder}")
        self._take_folder(resume)
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the current epoch
        self.best_score = -1.0  # best validation cIoU@0.5 so far, percent
        self.history: list[dict[str, float]] = []  # a row per finished epoch
        self.broken: dict[str, str] = {}  # clip id -> reason, of training clips that cannot be decoded
        self.sums: dict[str, float] = {}  # of this epoch's losses, by name
        self.num_summed = 0
        # Steps whose values have not been read from the device yet: number, clip ids, values by name.
        self._recent: list[tuple[int, tuple[str, ...], dict[str, Tensor]]] = []
        self._warned = False  # whether this epoch's diagnosis has been told

    def _take_folder(self, resume: bool) -> None:
        if is_main_process() and self.folder.exists():
            self._open.enter_context(lock_folder(self.folder))  # first: another might write last.pth now
            self._locked = True
        if self.last_path.exists() and not resume:
            raise FileExistsError(
                f"{self.last_path} exists: a run lives in this folder. Go on with it "
                "(--resume), or name another --output."
            )
        if resume and not self.last_path.exists():
            raise FileNotFoundError(f"Nothing to resume: there is no {self.last_path}. Leave --resume out.")

    def progress(self) -> dict[str, Any]:
        """Return what resuming needs beside the weights; all processes must call it."""
        self._gather()
        return {name: getattr(self, name) for name in PROGRESS}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where a checkpoint stood."""
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        vars(self).update({name: checkpoint.progress[name] for name in PROGRESS})

    def start(
        self,
        options: Mapping[str, Any],
        *,
        missing: Sequence[str],
        steps_per_epoch: int,
        diagnose: Callable[[Mapping[str, float]], str | None],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Make the folder, write options and the listed clips that are missing, and open the logs.

        `diagnose` gets the mean losses of the last steps, by name, and may return a warning.
        """
        self.diagnose, self.steps_per_epoch, self.optimizer = diagnose, steps_per_epoch, optimizer
        if not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._locked:  # the folder was not there, and others may have made it since
            self._take_folder(resume=False)
        for leftover in self.folder.glob(".*.[0-9]*.partial"):  # a killed process was writing it
            leftover.unlink(missing_ok=True)
        options_text = json.dumps(options, indent=2)
        write_atomically(self.folder / "options.json", options_text.encode() + b"\n")
        if missing:
            write_atomically(self.folder / "missing_clips.txt", "\n".join([*missing, ""]).encode())
        self._log = logging.FileHandler(self.folder / "log.txt")
        self._open.callback(self._log.close)
        # A full disk cuts the log short: the checkpoint, which does not fit either, says so.
        self._log.handleError = lambda record: None  # type: ignore[method-assign]
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log)
        self._open.callback(logging.getLogger().removeHandler, self._log)
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes a second

        # What TensorBoard's thread cannot write comes up again in this one: no traceback of the thread.
        self._open.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = lambda failure: logger.error("A thread failed: %s", failure.exc_value)
        writer = SummaryWriter(str(self.folder), purge_step=self._global_step() + 1)
        self._writer = self._open.enter_context(writer)
        self._add("text", "options", f"```json\n{options_text}\n```")

    def __enter__(self) -> "TrainingRun":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Note in log.txt what ended the run; close the logs and free the folder."""
        if self._log is not None and error is not None:
            words = ("Ended by %s: %s", (type(error).__name__, error))
            self._log.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, *words, None))
        try:
            self._open.close()
        except OSError as failure:
            logger.warning("The logs in %s are not complete: %s", self.folder, failure)

    def begin_epoch(self) -> None:
        """Start the clock of an epoch, or of what is left of it."""
        self._began = self._logged = time.monotonic()

    def note_broken(self, broken: Sequence[Any]) -> None:
        """List clips that were skipped because their files could not be decoded: clip_id, reason."""
        for clip in broken:
            if clip.clip_id not in self.broken:
                logger.warning("Skipped %s: %s", clip.clip_id, clip.reason)
            self.broken[clip.clip_id] = clip.reason

    def note_step(self, loss: Tensor, terms: Mapping[str, Tensor], clip_ids: tuple[str, ...]) -> None:
        """Count a finished step of these clips; a loss that is not finite raises FloatingPointError."""
        self.step += 1
        self._recent.append((self.step, clip_ids, {"loss": loss.detach(), **terms}))
        if self.step % LOG_EVERY == 0 or self.step == self.steps_per_epoch:
            self._log_recent()

    def _log_recent(self) -> None:
        """Read the values of the steps since the last time; all processes must call it."""
        recent, self._recent = self._recent, []
        if not recent:
            return
        # Reading the values waits for the device, hence not at each step.
        names = list(recent[0][2])
        rows = average(torch.stack([torch.stack([one[name] for name in names]) for _, _, one in recent]))
        losses = dict(zip(names, rows.T.tolist(), strict=True))  # of each step, by name
        num_clips, since, self._logged = sum(len(ids) for _, ids, _ in recent), self._logged, time.monotonic()
        self._add("scalar", "train/clips_per_second", num_clips * world_size() / (self._logged - since))
        for index, group in enumerate(self.optimizer.param_groups):
            self._add("scalar", f"learning_rate/{group.get('name', index)}", group["lr"])
        for (step, clip_ids, _), loss in zip(recent, losses["loss"], strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"The loss is no longer a finite number: epoch {self.epoch + 1}, step {step}, clips "
                    f"{', '.join(clip_ids)}. {self._last_good_state()}"
                )
        self.num_summed += len(recent)
        for name, values in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + sum(values)
            self._add("scalar", f"train/{name}", values[-1])
        warning = self.diagnose({name: sum(values) / len(values) for name, values in losses.items()})
        if warning is not None and not self._warned:
            logger.warning("Epoch %d, step %d: %s", self.epoch + 1, self.step, warning)
            self._warned = True

    def _global_step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def _last_good_state(self) -> str:
        return f"{self.last_path} holds the last good state, if one was saved; try a lower learning rate."

    def _add(self, kind: str, name: str, value: Any, **settings: Any) -> None:  # noqa: ANN401 - as TensorBoard
        if self._writer is not None:
            try:
                getattr(self._writer, f"add_{kind}")(name, value, self._global_step(), **settings)
            except OSError as error:  # of its thread, some time ago
                error.filename = f"TensorBoard's log in {self.folder}"
                raise

    def add_pictures(self, frames: NDArray[Any], maps: NDArray[Any], clip_ids: Sequence[str]) -> None:
        """Add overlays of frames uint8 (N, S, S, 3) and similarity maps float32 (N, h, w) to TensorBoard."""
        for index, (frame, heat, clip_id) in enumerate(zip(frames, maps, clip_ids, strict=True)):
            overlay = draw_caption(draw_localisation(frame, heat, Square()), clip_id)
            self._add("image", f"train/overlay_{index}", overlay, dataformats="HWC")

    def _gather(self) -> None:
        """Log what is summed up, and learn of the other processes' broken clips."""
        self._log_recent()
        for broken in gather_objects([self.broken]):
            self.broken |= broken

    def finish_epoch(self, scores: Mapping[str, float] | None) -> bool:
        """Close an epoch's account; return whether the validation's `ciou_at_0.5` is the best so far."""
        self._gather()
        if self.num_summed == 0:
            raise ValueError(
                f"No step of epoch {self.epoch + 1} could be made: {len(self.broken)} clips cannot "
                f"be decoded, first: {next(iter(self.broken.values()), 'none')}"
            )
        row: dict[str, float] = {"epoch": self.epoch + 1}
        row |= {name: total / self.num_summed for name, total in self.sums.items()}
        row["broken_clips"] = len(self.broken)
        for name, score in (scores or {}).items():
            row[f"validation_{name}"] = score
            self._add("scalar", f"validation/{name}", score)
        is_best = row.get("validation_ciou_at_0.5", -1.0) > self.best_score
        if is_best:
            self.best_score = row["validation_ciou_at_0.5"]
        self.history.append(row)
        words = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        logger.info("Finished %s, in %s", words, timedelta(seconds=round(time.monotonic() - self._began)))
        self.epoch, self.step = self.epoch + 1, 0
        self.sums, self.num_summed, self._warned = {}, 0, False
        if is_main_process():
            import pandas as pd  # noqa: PLC0415 - takes a second

            table = pd.DataFrame(self.history).to_csv(index=False)
            write_atomically(self.folder / "history.csv", table.encode())
        return is_best

    def check_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise FloatingPointError for weights that are not finite, before they are scored or saved."""
        self._log_recent()  # finds a loss that is not finite; that of the last step does not show what it did
        broken = find_non_finite(state_dict)
        if broken:
            raise FloatingPointError(
                f"The weights are no longer finite numbers after {self.epoch} epochs and {self.step} steps: "
                f"{len(broken)} tensors, first {broken[0]}. Nothing is saved. {self._last_good_state()}"
            )

    def save(self, checkpoint: Checkpoint, *, best_on: Mapping[str, Any] | None) -> None:
        """Write last.pth, and best.pth of the best epoch: `best_on` names the benchmark and its clips."""
        if best_on is not None:  # first: last.pth knows the best score, and must not without best.pth
            checkpoint.selection = {"kind": "best", **best_on}
            save_checkpoint(self.best_path, checkpoint)
        checkpoint.selection = {"kind": "last"}
        save_checkpoint(self.last_path, checkpoint)
