"""Training steps of SSL-TIE on made-up inputs, in all the ways that can be compared."""

import random
import shutil
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from datasets.geometric_transform import GeometricConfig, GeometricTransform
from models.recipes import SSLTIERecipe
from models.ssl_tie import SSLTIE, SSLTIEConfig
from scripts.benchmark_measure import SEED, arithmetic
from utils.optimisation import Stepper, Trainer
from utils.training import Precision, use_full_float32

SCALES = (1.0, 0.5)
STRIDE = 32
"""a frame of a multiple of this many pixels has a map that halves as the frame does"""
SMALLEST_SPECTROGRAM = 16
"""bins or frames: the audio encoder's stride"""
NUDGE = 1e-6
"""Relative change of the first weights that stands for rounding."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to do the same training step; the defaults are the plain way."""

    name: str
    precision: Precision = "fp32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    fused_adam: bool = True
    audio_encodings: Literal[1, 2] = 1
    nudged: bool = False
    """start from weights that differ by rounding"""

    @property
    def arithmetic(self) -> str:
        """Which of a device's peaks the networks could reach: half, tf32 or fp32."""
        return arithmetic(self.precision, tf32=self.tf32)

    def missing(self, device: torch.device) -> str | None:
        """What this computer lacks to run it, in words."""
        if self.tf32 and device.type != "cuda":
            return "TF32 is arithmetic of GPUs"
        if self.precision == "fp16" and device.type != "cuda":
            return "CPUs compute fp16 several times slower than fp32"
        if self.compile and device.type != "cuda" and shutil.which("g++") is None:
            return "torch.compile needs a C++ compiler on a CPU"
        return None


PLAIN = Variant(name="plain")


def variants_for(device: torch.device) -> tuple[Variant, ...]:
    """Everything that can be compared, the plain way first.

    Args:
        device: on a CPU, nothing is joined that only a GPU has.
    """
    gpu = device.type == "cuda"
    together = Variant(name="together", precision="bf16", tf32=gpu, channels_last=True, compile=True)
    return (
        PLAIN,
        Variant(name="bf16", precision="bf16"),
        Variant(name="fp16", precision="fp16"),
        Variant(name="tf32", tf32=True),
        Variant(name="channels_last", channels_last=True),
        Variant(name="bf16_channels_last", precision="bf16", channels_last=True),
        Variant(name="compile", compile=True),
        Variant(name="plain_adam", fused_adam=False),
        Variant(name="encoded_twice", audio_encodings=2),
        together,
        Variant(name="plain_nudged", nudged=True),
    )


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
        if self.batch_size < 4:
            raise ValueError(f"--batch-size must be at least 4, got {self.batch_size}")
        if self.frame_size < STRIDE or self.frame_size % STRIDE:
            raise ValueError(f"--frame-size must be a multiple of {STRIDE}, got {self.frame_size}")
        if min(self.mel_bins, self.spectrogram_frames) < SMALLEST_SPECTROGRAM:
            raise ValueError(
                f"--mel-bins and --spectrogram-frames must be at least {SMALLEST_SPECTROGRAM}, "
                f"got {self.mel_bins} and {self.spectrogram_frames}"
            )


@dataclass(frozen=True)
class StepInputs:
    """What a training step gets once its views are made; a batch of utils.optimisation."""

    frames: Tensor
    log_mel_spectrogram: Tensor
    transformed_frames: Tensor
    transform: GeometricTransform

    def __len__(self) -> int:
        """B."""
        return len(self.frames)

    def to(self, device: torch.device) -> "StepInputs":
        """Itself, on a device."""
        return StepInputs(
            self.frames.to(device),
            self.log_mel_spectrogram.to(device),
            self.transformed_frames.to(device),
            self.transform,
        )


def draw_inputs(sizes: Sizes, scale: float, device: torch.device, seed: int = SEED) -> StepInputs:
    """Draws random inputs, the same for the same sizes, scale and seed.

    Args:
        sizes: shape of the batch.
        scale: scale of the geometric transform, 1 or 0.5.
        device: where the inputs go.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    side = sizes.frame_size
    frames = torch.randn(sizes.batch_size, 3, side, side, generator=generator)
    spectrogram_shape = (sizes.batch_size, 1, sizes.mel_bins, sizes.spectrogram_frames)
    spectrogram = torch.randn(spectrogram_shape, generator=generator)
    limit = GeometricConfig().max_rotation
    angles = random.Random(seed)
    transform = GeometricTransform(
        angles=tuple(angles.randint(-limit, limit) for _ in range(sizes.batch_size)),
        scale=scale,
        flip=True,
        frame_size=side,
    )
    inputs = StepInputs(frames, spectrogram, transform.warp_frames(frames), transform)
    return inputs.to(device)


def as_arguments(inputs: StepInputs, *_: int, **__: int) -> dict[str, Any]:
    """Keyword arguments of SSLTIE.forward; seed and place in the batch change nothing."""
    return {
        "frames": inputs.frames,
        "log_mel_spectrogram": inputs.log_mel_spectrogram,
        "transformed_frames": inputs.transformed_frames,
        "transform": inputs.transform.warp_maps,
    }


def build_model(variant: Variant) -> SSLTIE:
    """The model with the same first weights whatever the variant, but for the nudged one."""
    torch.manual_seed(SEED)
    model = SSLTIE(SSLTIEConfig(audio_encodings=variant.audio_encodings)).train()
    if variant.nudged:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + NUDGE * torch.randn_like(parameter))
    return model


def flops_per_sample(variant: Variant, sizes: Sizes, scale: float) -> float:
    """Counts forward and backward on shapes alone, 2 FLOP per multiply-add.

    Args:
        variant: how often the sound is encoded, and what is computed twice.
        sizes: shape of the batch.
        scale: scale of the geometric transform, 1 or 0.5.
    """
    with FakeTensorMode():  # tensors without contents; a meta device has no autocast
        model = build_model(replace(variant, nudged=False))
        inputs = draw_inputs(sizes, scale, torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            model(**as_arguments(inputs)).loss.backward()
    return counter.get_total_flops() / sizes.batch_size


class TrainingSteps:
    """A variant's model and optimiser, ready to train."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        """Builds what main.py would from the same options.

        Args:
            variant: how to train.
            device: where.
        """
        self.variant = variant
        model = build_model(variant)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
        recipe = SSLTIERecipe()
        if variant.fused_adam:
            optimizer = recipe.build_optimizer(model)
        else:
            optimizer = torch.optim.Adam(
                model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        if variant.compile:
            for network in model.networks():
                network.compile()
        stepper = Stepper(optimizer, device, variant.precision)
        self.trainer = Trainer(model, model, stepper)

    def step(self, inputs: StepInputs) -> Tensor:
        """One step of the project's training; returns the scalar loss before it."""
        use_full_float32(not self.variant.tf32)
        return self.trainer.step_on(inputs, as_arguments, seed=SEED, global_size=len(inputs)).loss
