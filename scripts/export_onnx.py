"""Writes a trained localiser as ONNX, for programs that have no PyTorch.

    bash scripts/export.sh --checkpoint runs/mine/last.pth --output mine.onnx [--inputs raw]

Before the file is written, ONNX Runtime must give the same maps as PyTorch. Inputs, output and
metadata of the file: docs/export.md.
"""

import importlib.util
import json
import logging
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datasets.frames import IMAGENET_MEAN, IMAGENET_STD
from models.localiser import Localiser, load_localiser
from utils.files import file_sha256, write_atomically
from utils.options import parse_group, run_command

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18  # the oldest that PyTorch's exporter writes without converting
DROPPED = dict.fromkeys(
    ("--torchscript", "--benchmark", "--threads"), "ONNX is written and compared; time it with your runtime."
)
TOLERANCE = 1e-4  # of a similarity, against PyTorch's


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write."""

    checkpoint: Path  # file of main.py, or a released file, or the results folder of SSPL's authors' program
    output: Path  # the .onnx file to write or to replace
    inputs: Literal["prepared", "raw"] = "prepared"
    """prepared: normalised frames and spectrograms go in; raw: bytes of frames and waveforms go in,
    and the file computes the rest"""


class ExportedLocaliser(nn.Module):
    """The graph in the file: frames and sounds of B clips -> similarity maps (B, h, w)."""

    def __init__(self, localiser: Localiser, inputs: str) -> None:
        super().__init__()
        self.model, self.inputs = localiser.model, inputs
        self.frame_size, self.num_samples = localiser.frame.frame_size, localiser.audio.num_samples
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor, sounds: Tensor) -> Tensor:
        """Localise inputs as described by `inputs`."""
        if self.inputs == "raw":  # uint8 (B, 3, H, W), waveforms (B, L)
            frames, sounds = self.model.prepare(frames, sounds)
        return self.model.localise(frames, sounds)

    def random_batch(self, clips: int, larger: int = 0) -> tuple[Tensor, Tensor]:
        """Draw inputs; frames are `larger` pixels larger than the model's."""
        generator, side = torch.Generator().manual_seed(clips), self.frame_size + larger
        frames = torch.randint(256, (clips, 3, side, side), dtype=torch.uint8, generator=generator)
        waveforms = 2 * torch.rand((clips, self.num_samples), generator=generator) - 1  # (B, L)
        return (frames, waveforms) if self.inputs == "raw" else self.model.prepare(frames, waveforms)


def describe(localiser: Localiser, checkpoint: Path, inputs: str) -> dict[str, str]:
    """Return the metadata of the file; entries with parts are JSON."""
    audio, trained = localiser.audio, localiser.checkpoint
    parts = {
        "checkpoint": {"name": checkpoint.name, "sha256": file_sha256(checkpoint), "epoch": trained.epoch,
                       "config": trained.method_config},
        "frames": {"frame_size": localiser.frame.frame_size, "geometry": "squash, bicubic with antialiasing",
                   "colours": "RGB", "scale": 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "audio": {"front_end": type(localiser.model.front_end).__name__, **asdict(audio),
                  "channels": "left" if audio.left_channel else "mean", "num_samples": audio.num_samples,
                  "sample_rate": audio.sample_rate, "centred": audio.centred,
                  "centres_short": audio.centres_short},
    }  # fmt: skip
    plain = {"format": "vssl-onnx-1", "method": trained.method, "inputs": inputs, "opset": str(OPSET)}
    return plain | {"torch": torch.__version__} | {name: json.dumps(part) for name, part in parts.items()}


def to_onnx(network: ExportedLocaliser, metadata: dict[str, str]) -> bytes:
    """Return the content of an ONNX file."""
    frames, sounds = network.random_batch(2)
    sound_axes = {0: "B"}  # a waveform fills the window
    if network.inputs == "prepared":
        sound_axes |= {1: "S"} if sounds.ndim == 5 else {3: "T"}
    for name in ("onnx_ir", "onnxscript"):  # they log each weight that they touch
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # PyTorch's exporter uses what PyTorch deprecates, and two inputs share the axis B.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message=".*axis name: B will not be used")
        program: Any = torch.onnx.export(
            network, (frames, sounds), output_names=["similarity_map"],
            input_names=["frames", "waveforms" if network.inputs == "raw" else "audio"],
            dynamic_shapes=({0: "B", 2: "H", 3: "W"}, sound_axes),
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def largest_difference(network: ExportedLocaliser, content: bytes) -> float:
    """Return by how much ONNX Runtime's maps differ from PyTorch's, over three batches."""
    import onnxruntime  # noqa: PLC0415 - only the export needs it

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    differences = []
    for clips, larger in ((1, 0), (3, 0), (2, 64)):
        batch = network.random_batch(clips, larger)
        expected = network(*batch).numpy()  # (B, h, w)
        (exported,) = session.run(None, {name: x.numpy() for name, x in zip(names, batch, strict=True)})
        differences.append(np.abs(exported - expected).max() if exported.shape == expected.shape else np.inf)
    return float(np.max(differences))  # NaN if one is


@torch.no_grad()
def export(options: ExportOptions) -> int:
    """Write the file and return the exit status."""
    if options.output.suffix != ".onnx":
        raise ValueError(f"--output must end in .onnx, got {options.output}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        install = f"{sys.executable} -m pip install -r requirements-export.txt"
        raise ValueError(f"The export needs {', '.join(missing)}. Install them: {install}")
    localiser = load_localiser(options.checkpoint, "cpu")
    network = ExportedLocaliser(localiser, options.inputs)
    content = to_onnx(network, describe(localiser, options.checkpoint, options.inputs))
    difference = largest_difference(network, content)
    if not difference <= TOLERANCE:  # also where it is NaN
        raise ValueError(
            f"ONNX Runtime's maps differ from PyTorch's by {difference:.2g}, more than {TOLERANCE:g}. "
            "Nothing is written. Install the versions of requirements-export.txt."
        )
    write_atomically(options.output, content)
    sys.stdout.write(f"{options.output}: largest difference from PyTorch's maps {difference:.1e}\n")
    return 0


if __name__ == "__main__":
    summary = "Writes a trained localiser as ONNX."
    sys.exit(run_command(lambda: export(parse_group(ExportOptions, "export.sh", summary, None, DROPPED))))
