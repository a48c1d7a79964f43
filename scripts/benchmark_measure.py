"""How the benchmarks measure: turns, arithmetic, the device's peak, and their lines."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from datasets.loading_speed import synchronise
from utils.training import Precision

SEED = 4
PEAK_MATRIX_SIDE = {"cpu": 1536, "cuda": 8192}
"""Of the product that stands for a peak where none is published."""
PEAK_TRIES = 5

TERA = 1e12
PUBLISHED_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200 NVL", {"half": 835 * TERA, "tf32": 417 * TERA, "fp32": 60 * TERA}),
    ("H200", {"half": 989 * TERA, "tf32": 494 * TERA, "fp32": 67 * TERA}),
    ("H100 NVL", {"half": 835 * TERA, "tf32": 417 * TERA, "fp32": 60 * TERA}),
    ("H100 PCIe", {"half": 756 * TERA, "tf32": 378 * TERA, "fp32": 51 * TERA}),
    ("H100", {"half": 989 * TERA, "tf32": 494 * TERA, "fp32": 67 * TERA}),
    ("A100", {"half": 312 * TERA, "tf32": 156 * TERA, "fp32": 19.5 * TERA}),
    ("L40S", {"half": 362 * TERA, "tf32": 183 * TERA, "fp32": 91.6 * TERA}),
    ("L4", {"half": 121 * TERA, "tf32": 60 * TERA, "fp32": 30.3 * TERA}),
)
"""FLOP/s of dense products by part of the device's name, the first that fits; from the makers' data
sheets. Half is both bf16 and fp16, summed up in float32."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where to measure."""

    device: str = "cpu"
    """auto, cpu, cuda or cuda:<number>"""
    threads: int | None = None
    """threads of PyTorch on the CPU; none: PyTorch's own choice"""

    def __post_init__(self) -> None:
        """Refuses no thread at all."""
        check_counts(threads=self.threads)


@dataclass(frozen=True)
class Peak:
    """What a device could do at best."""

    flops_per_s: float
    basis: str
    """where the number comes from"""


def check_counts(**counts: int | None) -> None:
    """Refuses numbers of things below 1; options are named as they are typed.

    Raises:
        ValueError: one is below 1.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {count}")


def arithmetic(precision: Precision, *, tf32: bool) -> str:
    """Key of PUBLISHED_PEAKS for the networks' products: half, tf32 or fp32."""
    if precision != "fp32":
        return "half"
    return "tf32" if tf32 else "fp32"


def published_peak(device_name: str, kind: str) -> Peak | None:
    """The maker's figure, where the table has one.

    Args:
        device_name: as torch.cuda.get_device_name gives it.
        kind: half, tf32 or fp32.
    """
    words = device_name.replace("-", " ").split()
    for name, peaks in PUBLISHED_PEAKS:
        if all(word in words for word in name.split()):
            return Peak(peaks[kind], f"data sheet of {name}, {kind}, dense")
    return None


def device_peak(device: torch.device, kind: str) -> Peak:
    """The device's peak: published for a known GPU, else that of a large float32 product, measured.

    Args:
        device: what is measured.
        kind: half, tf32 or fp32; a CPU is always held against its float32.
    """
    if device.type == "cuda":
        published = published_peak(torch.cuda.get_device_name(device), kind)
        if published is not None:
            return published
    side = PEAK_MATRIX_SIDE[device.type]
    matrix = torch.randn(side, side, device=device)
    product = torch.mm(matrix, matrix)
    seconds = [seconds_of(lambda: torch.mm(matrix, matrix, out=product), device) for _ in range(PEAK_TRIES)]
    return Peak(2 * side**3 / min(seconds), f"measured: float32 product of {side} x {side} matrices")


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Seconds by the clock that an action takes, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def take_turns(
    actions: Mapping[str, Callable[[], object]], device: torch.device, *, repeats: int
) -> dict[str, list[float]]:
    """Times actions in turn, so that other work on the computer slows all of them.

    Args:
        actions: by name, each run once before as a warm-up by the caller.
        device: whose work counts.
        repeats: rounds; every other one goes backwards.

    Returns:
        seconds by name, one for each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in tqdm(range(repeats), desc="rounds", disable=None):
        for name in list(actions)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(seconds_of(actions[name], device))
    return seconds


def speed_ratio(plain: Sequence[float], variant: Sequence[float]) -> float:
    """How many times faster a variant is: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(plain, variant, strict=True))


def times_line(seconds: Sequence[float], samples: int) -> dict[str, object]:
    """Samples per second and the seconds they come from.

    Args:
        seconds: of each round, for all its samples.
        samples: clips in a round.
    """
    median = statistics.median(seconds)
    return {
        "samples_per_s": samples / median,
        "milliseconds_per_sample": {
            "median": 1000 * median / samples,
            "minimum": 1000 * min(seconds) / samples,
        },
    }


def peak_line(flops_per_s: float, peak: Peak) -> dict[str, object]:
    """The share of the device's peak that useful arithmetic reaches."""
    return {
        "share_of_peak": flops_per_s / peak.flops_per_s,
        "peak_flops_per_s": peak.flops_per_s,
        "peak_basis": peak.basis,
    }


def setting_line(device: torch.device) -> dict[str, object]:
    """What the figures were measured on."""
    name = str(device)
    if device.type == "cuda":
        name = f"{device} ({torch.cuda.get_device_name(device)})"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def write_line(**values: object) -> None:
    """Writes one JSON line, numbers to five significant digits."""
    sys.stdout.write(json.dumps(_rounded(values), allow_nan=False) + "\n")
    sys.stdout.flush()


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value
