"""Measures how fast this computer trains, and how much arithmetic that takes.

    bash scripts/benchmark.sh train              # one SSL-TIE step, sound encoded once and twice
    bash scripts/benchmark.sh train --help       # all options

Prints JSON lines: one per variant, and a last one that compares them. The variants run in one
process and take turns, so that other work on the computer slows both. See docs/performance.md.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from datasets.geometric_transform import GeometricConfig, GeometricTransform
from models.ssl_tie import SSLTIE, SSLTIEConfig
from utils.reporting import configure_logging, run_command
from utils.reproducibility import pick_device

SCALES = (1.0, 0.5)
STRIDE = 32
"""a frame of a multiple of this many pixels has a map that halves as the frame does"""
SMALLEST_SPECTROGRAM = 16
"""bins or frames: the audio encoder's stride"""
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-4
SEED = 4


@dataclass(frozen=True)
class Variant:
    """A way to do the same training step."""

    name: str
    audio_encodings: Literal[1, 2]


ONCE = Variant("sound_encoded_once", 1)
TWICE = Variant("sound_encoded_twice", 2)
VARIANTS = (ONCE, TWICE)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Shape of a training batch; the defaults are the paper's but for the batch."""

    batch_size: int = 8
    """clips"""
    frame_size: int = 224
    """side of a frame, pixels"""
    mel_bins: int = 257
    """frequency bins of a spectrogram"""
    spectrogram_frames: int = 670
    """time steps of a spectrogram"""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be measured."""
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.frame_size < STRIDE or self.frame_size % STRIDE:
            raise ValueError(f"--frame-size must be a multiple of {STRIDE}, got {self.frame_size}")
        if min(self.mel_bins, self.spectrogram_frames) < SMALLEST_SPECTROGRAM:
            raise ValueError(
                f"--mel-bins and --spectrogram-frames must be at least {SMALLEST_SPECTROGRAM}, "
                f"got {self.mel_bins} and {self.spectrogram_frames}"
            )


@dataclass(frozen=True)
class StepInputs:
    """What a training step gets from the loader."""

    frames: Tensor
    log_mel_spectrogram: Tensor
    transformed_frames: Tensor
    transform: GeometricTransform


def draw_inputs(sizes: Sizes, scale: float, device: torch.device) -> StepInputs:
    """Draws random inputs, the same for the same sizes and scale.

    Args:
        sizes: shape of the batch.
        scale: scale of the geometric transform, 1 or 0.5.
        device: where the inputs go.
    """
    generator = torch.Generator().manual_seed(SEED)
    side = sizes.frame_size
    frames = torch.randn(sizes.batch_size, 3, side, side, generator=generator)
    spectrogram_shape = (sizes.batch_size, 1, sizes.mel_bins, sizes.spectrogram_frames)
    spectrogram = torch.randn(spectrogram_shape, generator=generator)
    limit = GeometricConfig().max_rotation
    angles = random.Random(SEED)
    transform = GeometricTransform(
        angles=tuple(angles.randint(-limit, limit) for _ in range(sizes.batch_size)),
        scale=scale,
        flip=True,
        frame_size=side,
    )
    return StepInputs(
        frames=frames.to(device),
        log_mel_spectrogram=spectrogram.to(device),
        transformed_frames=transform.warp_frames(frames).to(device),
        transform=transform,
    )


def compute_loss(model: SSLTIE, inputs: StepInputs) -> Tensor:
    """Forward pass of a training step; returns the scalar loss."""
    return model(
        frames=inputs.frames,
        log_mel_spectrogram=inputs.log_mel_spectrogram,
        transformed_frames=inputs.transformed_frames,
        transform=inputs.transform.warp_maps,
    ).loss


def gflop_per_sample(variant: Variant, sizes: Sizes, scale: float) -> float:
    """Counts forward and backward on shapes alone, 2 FLOP per multiply-add, in units of 1e9.

    Args:
        variant: how often the sound is encoded.
        sizes: shape of the batch.
        scale: scale of the geometric transform, 1 or 0.5.
    """
    with FakeTensorMode():  # tensors without contents; a meta device has no autocast
        model = SSLTIE(SSLTIEConfig(audio_encodings=variant.audio_encodings)).train()
        inputs = draw_inputs(sizes, scale, torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            compute_loss(model, inputs).backward()
    return counter.get_total_flops() / sizes.batch_size / 1e9


class TimedStep:
    """A variant's model and optimiser, ready to be timed."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        """Builds the model with the same first weights whatever the variant.

        Args:
            variant: how often the sound is encoded.
            device: where to train.
        """
        torch.manual_seed(SEED)
        config = SSLTIEConfig(audio_encodings=variant.audio_encodings)
        self.device = device
        self.model = SSLTIE(config).to(device).train()
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def seconds_per_step(self, inputs: StepInputs, steps: int) -> float:
        """Trains some steps on the same inputs and returns the mean time of one."""
        self._synchronise()
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            compute_loss(self.model, inputs).backward()
            self.optimizer.step()
        self._synchronise()
        return (time.perf_counter() - start) / steps

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def time_variants(
    sizes: Sizes, device: torch.device, *, steps: int, repeats: int
) -> dict[Variant, dict[float, list[float]]]:
    """Times all variants in turn, after one step of each to warm up.

    Args:
        sizes: shape of the batch.
        device: where to train.
        steps: steps timed together.
        repeats: rounds over variants and scales; every other round takes the variants backwards.

    Returns:
        seconds per step by variant and scale, one for each repeat.
    """
    inputs = {scale: draw_inputs(sizes, scale, device) for scale in SCALES}
    timed = {variant: TimedStep(variant, device) for variant in VARIANTS}
    seconds: dict[Variant, dict[float, list[float]]] = {
        variant: {scale: [] for scale in SCALES} for variant in VARIANTS
    }
    for scale in SCALES:
        for variant in VARIANTS:
            timed[variant].seconds_per_step(inputs[scale], steps=1)
    for repeat in tqdm(range(repeats), desc="repeats", disable=None):
        order = VARIANTS if repeat % 2 == 0 else VARIANTS[::-1]
        for scale in SCALES:
            for variant in order:
                elapsed = timed[variant].seconds_per_step(inputs[scale], steps)
                seconds[variant][scale].append(elapsed)
    return seconds


def benchmark_train(arguments: argparse.Namespace) -> int:
    """Runs `train`: prints a line per variant and their ratios; returns the exit status."""
    for option in ("steps", "repeats", "threads"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1, got {value}")
    device = pick_device(arguments.device)
    sizes = Sizes(
        batch_size=arguments.batch_size,
        frame_size=arguments.frame_size,
        mel_bins=arguments.mel_bins,
        spectrogram_frames=arguments.spectrogram_frames,
    )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    seconds = time_variants(sizes, device, steps=arguments.steps, repeats=arguments.repeats)

    gflop, median, minimum = {}, {}, {}
    for variant in VARIANTS:
        by_scale = {scale: gflop_per_sample(variant, sizes, scale) for scale in SCALES}
        gflop[variant] = statistics.fmean(by_scale.values())
        median[variant] = statistics.fmean(map(statistics.median, seconds[variant].values()))
        minimum[variant] = statistics.fmean(map(min, seconds[variant].values()))
        write_line(
            variant=variant.name,
            audio_encodings=variant.audio_encodings,
            **vars(sizes),
            device=describe(device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            steps=arguments.steps,
            repeats=arguments.repeats,
            gflop_per_sample=gflop[variant],
            gflop_per_sample_by_scale={f"{scale:g}": by_scale[scale] for scale in SCALES},
            seconds_per_step={"median": median[variant], "minimum": minimum[variant]},
            samples_per_second={
                "median": sizes.batch_size / median[variant],
                "maximum": sizes.batch_size / minimum[variant],
            },
        )
    write_line(
        compared=f"{ONCE.name} with {TWICE.name}",
        flop_ratio=gflop[ONCE] / gflop[TWICE],
        speed_ratio={
            "median": median[TWICE] / median[ONCE],
            "minimum": minimum[TWICE] / minimum[ONCE],
        },
    )
    return 0


def describe(device: torch.device) -> str:
    """Device for the output, with the name of a GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def write_line(**values: object) -> None:
    """Writes one JSON line, numbers to five significant digits."""
    sys.stdout.write(json.dumps(_rounded(values), allow_nan=False) + "\n")
    sys.stdout.flush()


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def build_parser() -> argparse.ArgumentParser:
    """Command line; a sub-command per case sets `run` to what carries it out."""
    parser = argparse.ArgumentParser(prog="benchmark.sh", description="Measures speed.")
    cases = parser.add_subparsers(title="cases", required=True, metavar="case")

    train = cases.add_parser(
        "train",
        help="one SSL-TIE training step, sound encoded once and twice",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(run=benchmark_train)
    sizes = Sizes()
    for option, default, meaning in (
        ("--batch-size", sizes.batch_size, "clips in a batch"),
        ("--frame-size", sizes.frame_size, f"side of a frame, pixels, a multiple of {STRIDE}"),
        ("--mel-bins", sizes.mel_bins, "frequency bins of a spectrogram"),
        ("--spectrogram-frames", sizes.spectrogram_frames, "time steps of a spectrogram"),
        ("--steps", 3, "steps timed together"),
        ("--repeats", 5, "rounds over variants and scales"),
        ("--threads", None, "threads of PyTorch on the CPU; without it, PyTorch's own choice"),
    ):
        train.add_argument(option, type=int, default=default, metavar="N", help=meaning)
    train.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:<number>")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    configure_logging()
    parsed = build_parser().parse_args(arguments)
    return run_command(lambda: parsed.run(parsed))


if __name__ == "__main__":
    sys.exit(main())
