"""What the demo's page asks for: models that are there, and work for a process with PyTorch."""

import json
import logging
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger("demo")

ROOT = Path(__file__).resolve().parents[1]
WEIGHT_SUFFIXES = (".pth", ".pth.tar", ".pt", ".tar")
OF_A_RUN = ("best.pth", "last.pth")
MAX_MEGAPIXELS = 25.0
"""Of a picture."""
KEPT_SECONDS = 3600.0
"""After which results are removed."""
STOPPED = "The work stopped unexpectedly; the program's log says more. Try again, or another file."

OnProgress = Callable[[int, int | None], None]


class JobError(ValueError):
    """Why something could not be done, in words for the person at the page."""


class ModelProcess:
    """The process that has PyTorch: one request at a time, started anew after it has died."""

    def __init__(self, command: Sequence[str], timeout: float) -> None:
        """Remembers how to start it.

        Args:
            command: of the process, which reads requests and writes answers as JSON lines.
            timeout: longest time for one request, seconds.
        """
        self._command = list(command)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask(self, on_progress: OnProgress | None = None, **request: object) -> dict[str, Any]:
        """Sends a request and waits for its result.

        Args:
            on_progress: called with what is done, and of how much.
            **request: `task` and its arguments, which JSON can hold.

        Raises:
            JobError: the request cannot be met, took too long, or the process died.
        """
        with self._lock:
            process = self._running()
            deadline = time.monotonic() + self._timeout
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                while True:
                    answer = self._next_answer(deadline)
                    if "progress" in answer and on_progress is not None:
                        on_progress(*answer["progress"])
                    if "error" in answer:
                        raise JobError(answer["error"])
                    if "result" in answer:
                        return answer["result"]
            except BrokenPipeError as error:
                self._end()
                raise JobError(STOPPED) from error

    def close(self) -> None:
        """Ends the process."""
        self._end()

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._answers = queue.SimpleQueue()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the page, which then ends this
            )
            reader = threading.Thread(target=_pass_on, args=(self._process, self._answers), daemon=True)
            reader.start()
        return self._process

    def _next_answer(self, deadline: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self._end()
            raise JobError(
                f"This took longer than {self._timeout:g} s and was stopped. Take a shorter or smaller video."
            ) from None
        if line is None:
            self._end()
            raise JobError(STOPPED)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                logger.debug("a request was not read to its end")
            self._process = None


def _pass_on(process: "subprocess.Popen[str]", answers: "queue.SimpleQueue[str | None]") -> None:
    """Puts a process's lines into a queue, and None after the last."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            answers.put(line)
    answers.put(None)


def find_models(
    checkpoints: Path, runs: Path, *, not_models: Collection[str], release_files: Collection[str]
) -> dict[str, Path]:
    """Files that may hold a localiser, by the name that the page shows.

    Args:
        checkpoints: folder with files, and with results folders of SSPL's authors' program.
        runs: folder with the folders of training runs.
        not_models: names of files that hold something else.
        release_files: all of which a results folder has.
    """
    found = {}
    entries = sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []
    for entry in entries:
        is_file = entry.is_file() and entry.name.endswith(WEIGHT_SUFFIXES)
        is_release = all((entry / name).is_file() for name in release_files)
        if (is_file and entry.name not in not_models) or is_release:
            found[entry.name] = entry
    for run in sorted(runs.iterdir()) if runs.is_dir() else []:
        found |= {f"{run.name}/{name}": run / name for name in OF_A_RUN if (run / name).is_file()}
    return {name: path.resolve() for name, path in found.items()}


@dataclass(frozen=True)
class Localised:
    """What became of a request."""

    name: str
    """of the model"""
    output: str
    """video or picture with the heat map"""
    peaks: str
    """CSV"""
    words: str
    """about it, in one line"""


class Jobs:
    """Requests of the page's visitors."""

    def __init__(
        self, models: ModelProcess, find: Callable[[], dict[str, Path]], folder: Path, *, limit: float
    ) -> None:
        """Prepares the folder of results.

        Args:
            models: does the work.
            find: finds the models that are there.
            folder: for results, made here.
            limit: seconds of a video that are localised.
        """
        self.find = find
        self._models = models
        self._folder = folder
        self._limit = limit
        folder.mkdir()

    def localise_video(
        self, name: str, video: str, options: dict[str, Any], on_progress: OnProgress
    ) -> Localised:
        """Draws where a video's sound comes from.

        Args:
            name: of a model.
            video: path of an upload.
            options: of `test.py video`, those without paths.
            on_progress: called with the frames that are done, and of how many.

        Raises:
            JobError: it cannot be done.
        """
        result = self._ask(
            "video", name, {"input": video}, ".mp4", {**options, "max_seconds": self._limit}, on_progress
        )
        words = f"{name}: {result['frames']} frames, {result['seconds']:.1f} s"
        if result["seconds"] > self._limit - 1:
            words += f"; the demo localises the first {self._limit:g} s"
        if result["silent_frames"]:
            words += f"; {result['silent_frames']} frames without sound, on which nothing is drawn"
        return Localised(name, result["output"], result["peaks"], words)

    def localise_picture(self, name: str, picture: str, sound: str, options: dict[str, Any]) -> Localised:
        """Draws where in a picture a sound comes from.

        Args:
            name: of a model.
            picture: path of an upload.
            sound: path of an upload.
            options: of `test.py image`, those without paths.

        Raises:
            JobError: it cannot be done.
        """
        result = self._ask(
            "picture",
            name,
            {"image": picture, "sound": sound},
            ".png",
            {**options, "max_megapixels": MAX_MEGAPIXELS},
            None,
        )
        words = f"{name}: the sound is silent, nothing is drawn" if result["silent"] else name
        return Localised(name, result["output"], result["peaks"], words)

    def _ask(
        self,
        task: str,
        name: str,
        uploads: dict[str, str],
        suffix: str,
        options: dict[str, Any],
        on_progress: OnProgress | None,
    ) -> dict[str, Any]:
        models = self.find()
        if name not in models:
            raise JobError(f"There is no model {name!r} any more. Choose another one.")
        self._remove_old()
        output = Path(tempfile.mkdtemp(dir=self._folder)) / (re.sub(r"[^\w.-]", "_", name) + suffix)
        paths = {**uploads, "checkpoint": str(models[name]), "output": str(output)}
        try:
            return self._models.ask(on_progress, task=task, paths=paths, options=options)
        except JobError as error:
            words = str(error)  # visitors need not know where this computer keeps things
            for path in paths.values():
                words = words.replace(path, Path(path).name)
            # Files that are being written have names of their own.
            words = words.replace(f"{output.parent}{os.sep}", "")
            raise JobError(words) from error

    def _remove_old(self) -> None:
        for folder in self._folder.iterdir():
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def worker_command(python: Path, device: str) -> list[str]:
    """How to start scripts/demo_worker.py.

    Args:
        python: that has PyTorch.
        device: auto, cpu, cuda or cuda:<number>.
    """
    run = str(ROOT / "scripts" / "run.sh")
    variables = ["env", f"VSSL_PYTHON={os.fspath(python)}"]
    return [*variables, "bash", run, "scripts/demo_worker.py", device]
