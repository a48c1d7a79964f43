"""Does the demo's work: a process that takes requests as JSON lines and answers in JSON lines.

scripts/demo.py starts it, in the environment that has PyTorch, since Gradio needs another one. A
request has a `task` and its arguments; answers are any number of {"progress": [done, expected]}
and then {"result": {...}} or, for what the user can mend, {"error": "words"}.
"""

import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from datasets.frames import read_frame_size
from models.localiser import Localiser, load_localiser, localise_video
from models.released import PRETRAINED, SSPL_FILES
from scripts.demo_examples import make_examples
from utils.files import write_atomically
from utils.reporting import configure_logging
from utils.reproducibility import pick_device, use_full_float32
from utils.video_overlay import HEAT_OPACITY, encode_png, format_peak

MODELS_KEPT = 2
"""As many as are compared side by side."""

Answer = dict[str, Any]
OnProgress = Callable[[int, int | None], None]


class Worker:
    """Answers requests, and keeps the models that were used last."""

    def __init__(self, device: str) -> None:
        """Takes the device.

        Args:
            device: auto, cpu, cuda or cuda:<number>.
        """
        self.device = pick_device(device)
        self.models: OrderedDict[tuple[Path, int], Localiser] = OrderedDict()

    def answer(self, request: Mapping[str, Any], on_progress: OnProgress) -> Answer:
        """Does what is asked for.

        Args:
            request: a task and its arguments.
            on_progress: called with the number of frames that are done, and of all.
        """
        task = request["task"]
        if task == "hello":
            encoders = [entry.file_name for entry in PRETRAINED.values()]
            return {"not_models": encoders, "release_files": list(SSPL_FILES)}
        if task == "examples":
            source = request["source"]
            return make_examples(Path(request["folder"]), Path(source) if source else None)
        paths = {name: Path(path) for name, path in request["paths"].items()}
        localiser, output, options = self._load(paths["checkpoint"]), paths["output"], request["options"]
        if task == "video":
            result = localise_video(localiser, paths["input"], output, on_progress=on_progress, **options)
            return {
                "frames": result.frames,
                "seconds": result.seconds,
                "silent_frames": result.silent_frames,
                "output": str(result.output),
                "peaks": str(result.peaks),
            }
        width, height = read_frame_size(paths["image"])
        if width * height > 1e6 * options["max_megapixels"]:
            raise ValueError(
                f"The picture has {width} x {height} pixels; at most {options['max_megapixels']:g} million "
                "are taken."
            )
        heat = localiser(paths["image"], paths["sound"])
        write_atomically(
            output, encode_png(heat.overlay(opacity=HEAT_OPACITY, box=options.get("box", False)))
        )
        peaks = output.with_name(f"{output.stem}_peak.csv")
        peaks.write_text(f"x,y,similarity\n{format_peak(heat.peak)}\n")
        return {"silent": heat.map is None, "output": str(output), "peaks": str(peaks)}

    def _load(self, path: Path) -> Localiser:
        """A model, anew if its file has changed."""
        changed = path.stat().st_mtime_ns if path.exists() else 0
        key = (path, changed)
        if key not in self.models:
            while len(self.models) >= MODELS_KEPT:
                self.models.popitem(last=False)
            self.models[key] = load_localiser(path, self.device)
        self.models.move_to_end(key)
        return self.models[key]


def serve(worker: Worker, requests: IO[str], answers: IO[str]) -> None:
    """Answers one request after the other until there are no more."""

    def say(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    def report(done: int, expected: int | None) -> None:
        say(progress=[done, expected])

    for line in requests:
        try:
            result = worker.answer(json.loads(line), report)
        except (ValueError, OSError) as error:
            say(error=str(error))
        else:
            say(result=result)


def main() -> int:
    """Serves on the standard streams: the device is the only argument."""
    configure_logging()
    use_full_float32()
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with answers:
        serve(Worker(sys.argv[1]), sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
