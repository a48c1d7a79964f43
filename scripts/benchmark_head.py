"""The contrast of all frames with all sounds: at once, and a few frames at a time."""

import statistics
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from datasets.loading_speed import peak_memory
from models.losses import contrastive_loss
from models.ssl_tie import SSLTIE, SSLTIEConfig
from scripts.benchmark_measure import (
    SEED,
    check_counts,
    device_peak,
    peak_line,
    setting_line,
    speed_ratio,
    take_turns,
    times_line,
    write_line,
)
from utils.reproducibility import use_full_float32

CHANNELS = 512
MAP_SIDE = 14
"""Of frames of 224 pixels."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class HeadBenchmark:
    """What is measured, and how often."""

    batch_sizes: str = "64,128,256,512"
    """clips in a batch, commas between the numbers"""
    head_megabytes: int = 64
    """limit of the contrast in chunks, 2**20 bytes"""
    repeats: int = 5
    """rounds over both ways"""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be measured."""
        check_counts(head_megabytes=self.head_megabytes, repeats=self.repeats)
        sizes = self.batch_sizes.split(",")
        if not all(size.isdecimal() and int(size) > 1 for size in sizes):
            raise ValueError(
                f"--batch-sizes takes numbers of 2 or more, commas between them, got {self.batch_sizes!r}"
            )


def benchmark_head(device: torch.device, options: HeadBenchmark) -> None:
    """Prints two lines for each batch size: all frames at once, and in chunks."""
    use_full_float32()
    peak = device_peak(device, "fp32")
    for batch_size in map(int, options.batch_sizes.split(",")):
        inputs = draw_features(batch_size, device)
        ways = {"plain": None, "chunked": options.head_megabytes * MIB}
        actions = {name: partial(contrast_once, build_head(limit), inputs) for name, limit in ways.items()}
        memory = {name: peak_memory(action, device) for name, action in actions.items()}
        seconds = take_turns(actions, device, repeats=options.repeats)
        useful = head_flops(batch_size)
        for name, taken in seconds.items():
            write_line(
                case="head",
                variant=name,
                batch_size=batch_size,
                **times_line(taken, batch_size),
                **memory[name],
                flops_per_sample=useful / batch_size,
                **peak_line(useful / statistics.median(taken), peak),
                ratio_to_plain=speed_ratio(seconds["plain"], taken),
                head_megabytes=None if ways[name] is None else options.head_megabytes,
                repeats=options.repeats,
                **setting_line(device),
            )


def draw_features(batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random unit-norm features of frames (B, 512, 14, 14) and sounds (B, 512), with gradients."""
    generator = torch.Generator().manual_seed(SEED)
    frames = torch.rand(batch_size, CHANNELS, MAP_SIDE, MAP_SIDE, generator=generator)
    sounds = torch.rand(batch_size, CHANNELS, generator=generator)
    visual, audio = (F.normalize(features, dim=1).to(device) for features in (frames, sounds))
    return visual.requires_grad_(), audio.requires_grad_()


def build_head(head_bytes: int | None) -> SSLTIE:
    """A model of which only the contrast is used, which has no weights."""
    with torch.device("meta"):
        model = SSLTIE(SSLTIEConfig())
    model.head_bytes = head_bytes
    return model


def contrast_once(head: SSLTIE, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward; returns the gradients of frames' and sounds' features."""
    logits, maps = head.contrast(*inputs)
    return torch.autograd.grad(contrastive_loss(logits) + maps.square().mean(), inputs)


def head_flops(batch_size: int) -> int:
    """Of one contrast, forward and backward, without what chunks compute twice."""
    head = build_head(None)
    with FakeTensorMode():
        inputs = draw_features(batch_size, torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            contrast_once(head, inputs)
    return counter.get_total_flops()
