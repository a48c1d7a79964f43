"""Writes a trained localiser as ONNX, for programs that have no PyTorch.

    bash scripts/export.sh --checkpoint runs/mine/last.pth --output mine.onnx
    bash scripts/export.sh --checkpoint F --output mine.onnx --inputs raw --benchmark 10

Before the file is written, ONNX Runtime must give the same maps as PyTorch. What goes in, what
comes out and what is noted in the file: docs/export.md.
"""

import importlib.util
import io
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets.transforms import as_float, normalise
from models.localiser import TrainedModel, load_model
from scripts.benchmark_measure import setting_line, speed_ratio, take_turns, times_line, write_line
from scripts.export_metadata import describe_file
from utils.checkpoint import file_sha256
from utils.command_line import parse_group
from utils.files import write_atomically
from utils.reporting import configure_logging, run_command

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
"""The oldest that PyTorch's exporter writes without converting."""
TOLERANCE = 1e-4
"""Most by which a similarity may differ from PyTorch's."""
CHECKED_SHAPES = ((1, 0), (3, 0), (2, 64))
"""Clips, and pixels by which the frame is larger than the model's, of the batches compared."""
CPU = torch.device("cpu")
BENCHMARK_CLIPS = (1, 8)
"""Batch sizes."""

Inputs = Literal["prepared", "raw"]
INPUT_NAMES: dict[Inputs, tuple[str, str]] = {"prepared": ("frames", "audio"), "raw": ("frames", "waveforms")}
Batch = tuple[Tensor, Tensor]
Localise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write."""

    checkpoint: Path
    """file of main.py, or a released file, or the results folder of SSPL's authors' program"""
    output: Path
    """the .onnx file to write or to replace"""
    inputs: Inputs = "prepared"
    """prepared: normalised frames and spectrograms go in; raw: bytes of frames and waveforms, the
    file computes the rest"""
    torchscript: Path | None = None
    """also write the same as TorchScript, into this .pt file"""
    benchmark: int = 0
    """rounds in which ONNX Runtime and PyTorch take turns on this CPU, for a JSON line on the speed
    of each batch size; 0: none"""
    threads: int | None = None
    """of both in the benchmark; none: PyTorch's own choice"""

    def __post_init__(self) -> None:
        """Refuses names that say something else than what is written."""
        if self.output.suffix != ".onnx":
            raise ValueError(f"--output must end in .onnx, got {self.output}")
        if self.torchscript is not None and self.torchscript.suffix != ".pt":
            raise ValueError(f"--torchscript must end in .pt, got {self.torchscript}")
        if self.benchmark < 0:
            raise ValueError(f"--benchmark must be 0 or a number of rounds, got {self.benchmark}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")


class Localiser(nn.Module):
    """What the file holds: a model from its prepared inputs to the similarity map."""

    def __init__(self, trained: TrainedModel) -> None:
        """Takes over a model.

        Args:
            trained: on the CPU.
        """
        super().__init__()
        self.model = trained.model
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor, audio: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) and what the model hears -> (B, h, w)."""
        localise: Any = self.model.localise
        return localise(frames, audio)


class RawLocaliser(Localiser):
    """A model from bytes and samples to the similarity map."""

    def __init__(self, trained: TrainedModel) -> None:
        """Takes over a model and builds what prepares its inputs.

        Args:
            trained: on the CPU.
        """
        super().__init__(trained)
        self.front_end = trained.audio.build_front_end().eval()

    def forward(self, frames: Tensor, audio: Tensor) -> Tensor:
        """uint8 frames (B, 3, H, W) and waveforms (B, L) -> (B, h, w)."""
        return super().forward(normalise(as_float(frames)), self.front_end(audio))


class Exporter:
    """One trained model on its way into files."""

    def __init__(self, trained: TrainedModel, inputs: Inputs) -> None:
        """Wraps the model.

        Args:
            trained: on the CPU.
            inputs: what goes in.
        """
        self.trained = trained
        self.inputs = inputs
        self.localiser = (RawLocaliser if inputs == "raw" else Localiser)(trained)
        self.front_end = trained.audio.build_front_end()

    def make_batch(self, clips: int, larger: int = 0) -> Batch:
        """Noise as input, the same for the same sizes.

        Args:
            clips: B.
            larger: pixels by which the frames' sides exceed the model's.
        """
        generator = torch.Generator().manual_seed(clips)
        side = self.trained.frame.frame_size + larger
        frames = torch.randint(256, (clips, 3, side, side), dtype=torch.uint8, generator=generator)
        loudness = torch.rand((clips, 1), generator=generator)
        samples = self.trained.audio.num_samples
        waveforms = loudness * (2 * torch.rand((clips, samples), generator=generator) - 1)
        if self.inputs == "raw":
            return frames, waveforms
        return normalise(as_float(frames)), self.front_end(waveforms)

    def to_onnx(self, metadata: Mapping[str, str]) -> bytes:
        """The content of an ONNX file.

        Args:
            metadata: to note in it.
        """
        batch = self.make_batch(2)
        audio_axes = {0: "B"}  # a waveform fills the window
        if self.inputs == "prepared":
            audio_axes |= {1: "S"} if batch[1].ndim == 5 else {3: "T"}
        for name in ("onnx_ir", "onnxscript"):  # they log each weight that they touch
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # PyTorch's exporter uses what PyTorch deprecates, and two inputs share the axis B.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message=".*axis name: B will not be used")
            program = torch.onnx.export(
                self.localiser,
                batch,
                input_names=list(INPUT_NAMES[self.inputs]),
                output_names=["similarity_map"],
                dynamic_shapes=({0: "B", 2: "H", 3: "W"}, audio_axes),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        program.model.metadata_props.update(metadata)
        return program.model_proto.SerializeToString()

    def to_torchscript(self) -> bytes:
        """The content of a TorchScript file."""
        with warnings.catch_warnings():
            # Sizes are looked at only to refuse wrong ones; `check` tries several.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = torch.jit.trace(self.localiser, self.make_batch(2), check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        return buffer.getvalue()

    def check(self, localise: Localise, what: str) -> float:
        """Compares maps with PyTorch's.

        Args:
            localise: of the exported model.
            what: it is, for messages.

        Returns:
            the largest difference.

        Raises:
            ValueError: a map differs by more than TOLERANCE.
        """
        largest = 0.0
        for clips, larger in CHECKED_SHAPES:
            frames, audio = self.make_batch(clips, larger)
            expected, found = self.localiser(frames, audio), localise(frames, audio)
            where = f"{what} of {clips} clips of {frames.shape[-1]} x {frames.shape[-1]} pixels"
            if found.shape != expected.shape:
                raise ValueError(
                    f"{where} gives maps of shape {tuple(found.shape)}, PyTorch "
                    f"{tuple(expected.shape)}. Nothing is written."
                )
            difference = (found - expected).abs().max().item()
            if not difference <= TOLERANCE:  # also where it is no number
                raise ValueError(
                    f"{where} differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}. "
                    "Nothing is written. Install the versions of requirements-export.txt."
                )
            largest = max(largest, difference)
        return largest


def onnx_runtime(content: bytes, inputs: Inputs) -> Localise:
    """The exported model in ONNX Runtime, on the CPU, with as many threads as PyTorch.

    Args:
        content: of an ONNX file.
        inputs: what goes in.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def localise(frames: Tensor, audio: Tensor) -> Tensor:
        given = zip(INPUT_NAMES[inputs], (frames.numpy(), audio.numpy()), strict=True)
        return torch.from_numpy(session.run(["similarity_map"], dict(given))[0])

    return localise


def benchmark(exporter: Exporter, localise: Localise, rounds: int) -> None:
    """Prints a JSON line for each batch size: milliseconds per clip of both, in turns.

    Args:
        exporter: has PyTorch's model.
        localise: ONNX Runtime's.
        rounds: turns of each.
    """
    for clips in BENCHMARK_CLIPS:
        batch = exporter.make_batch(clips)
        actions = {
            "torch": lambda batch=batch: exporter.localiser(*batch),
            "onnx_runtime": lambda batch=batch: localise(*batch),
        }
        for action in actions.values():
            action()
        seconds = take_turns(actions, CPU, repeats=rounds)
        write_line(
            case="export",
            method=exporter.trained.checkpoint.method,
            inputs=exporter.inputs,
            frame_size=exporter.trained.frame.frame_size,
            batch_size=clips,
            onnx_runtime=version("onnxruntime"),
            **setting_line(CPU),
            milliseconds_per_clip={
                name: times_line(values, clips)["milliseconds_per_sample"] for name, values in seconds.items()
            },
            speed_ratio=speed_ratio(seconds["torch"], seconds["onnx_runtime"]),
        )


def check_packages() -> None:
    """Refuses to begin without the packages that the export needs.

    Raises:
        ValueError: one is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"The export needs {', '.join(missing)}, which {sys.executable} lacks. Call "
            "scripts/export.sh without VSSL_PYTHON, or: "
            f"{sys.executable} -m pip install -r requirements-export.txt"
        )


@torch.no_grad()
def export(options: ExportOptions) -> int:
    """Writes the files; returns the exit status.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, a package is missing, or an exported map differs.
    """
    check_packages()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    exporter = Exporter(load_model(options.checkpoint, CPU), options.inputs)
    sha256 = file_sha256(options.checkpoint)
    metadata = describe_file(exporter.trained, options.checkpoint, sha256, inputs=options.inputs, opset=OPSET)
    content = exporter.to_onnx(metadata)
    localise = onnx_runtime(content, options.inputs)
    differences = {options.output: exporter.check(localise, "ONNX Runtime's map")}
    contents = {options.output: content}
    if options.torchscript is not None:
        script = exporter.to_torchscript()
        loaded = torch.jit.load(io.BytesIO(script))
        differences[options.torchscript] = exporter.check(loaded, "TorchScript's map")
        contents[options.torchscript] = script
    for path, written in contents.items():
        write_atomically(path, written)
        sys.stdout.write(
            f"{path}: {len(written) / 1e6:.1f} MB; largest difference from PyTorch's maps "
            f"{differences[path]:.1e}\n"
        )
    if options.benchmark:
        benchmark(exporter, localise, options.benchmark)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, or 2 for bad input."""
    configure_logging()
    summary = "Writes a trained localiser as ONNX."
    options = parse_group(ExportOptions, "export.sh", summary, arguments)
    return run_command(lambda: export(options()))


if __name__ == "__main__":
    sys.exit(main())
