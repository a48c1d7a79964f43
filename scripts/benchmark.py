"""Measures this computer's speed: a JSON line for each way of doing the same work.

    bash scripts/benchmark.sh train --variants bf16,encoded_twice      # training steps of SSL-TIE
    bash scripts/benchmark.sh loader --worker-counts 0,2,4             # decoding of training clips
    bash scripts/benchmark.sh evaluate                                 # scoring, as test.py does it

Clips are made up, of the size of VGGSound's. Ways take turns in one process, every other round backwards, so
that other work on the computer slows all of them; `ratio_to_plain` is the median over rounds of the ratio
within a round. docs/performance.md has figures.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from datasets.audio import AudioConfig
from datasets.clips import AudioVisualClips, Clip
from datasets.frames import FrameConfig, FrameGeometry
from datasets.loaders import ClipLoader, SeededBatches, build_test_loader, build_train_loader
from models.localiser import ready_to_localise
from models.ssl_tie import SSLTIE, SSLTIEConfig, SSLTIERecipe
from utils.evaluation.localisation import evaluate_localisation
from utils.evaluation.protocols import PROTOCOLS
from utils.options import Options, add_group, build, option
from utils.training import (
    Precision,
    autocast,
    configure_logging,
    environment_report,
    pick_device,
    run_command,
    use_full_float32,
)

SEED = 4
NUM_BATCHES = 2
"""different batches in a round of training steps; one of them at scale 0.5"""
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "tf32": {"precision": "tf32"},
    "channels_first": {"layout": torch.contiguous_format},
    "compile": {"compiled": True},
    "encoded_twice": {"audio_encodings": 2},
}
"""ways to make a training step"""
Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Options):
    """What is measured, and how often."""

    device: str = "cpu"
    """auto, cpu, cuda or cuda:<number>"""
    threads: int | None = option(None, at_least=1)
    """threads of PyTorch on the CPU; none: PyTorch's own choice"""
    batch_size: int = option(8, at_least=2)
    """clips at once"""
    frame_size: int = option(224, at_least=32)
    """side of a frame, pixels"""
    clips: int = option(64, at_least=8)
    """made-up clips"""
    repeats: int = option(5, at_least=1)
    """rounds"""
    variants: str = "all"
    """of `train`, commas between them; plain always runs"""
    worker_counts: str = "0,2"
    """of `loader`: numbers of decoding processes, commas between them"""


def benchmark_train(options: BenchmarkOptions, device: torch.device, clips: list[Clip]) -> None:
    """Times training steps on ready views: the plain way, and with one option of main.py at a time."""
    chosen = list(VARIANTS) if options.variants == "all" else ["plain", *options.variants.split(",")]
    if unknown := set(chosen) - VARIANTS.keys():
        raise ValueError(f"--variants takes {', '.join(VARIANTS)}; not {', '.join(sorted(unknown))}.")
    views = build_views(options, device)
    with training_loader(options, clips * NUM_BATCHES, workers=0) as loader:
        decoded = [batch.to(device) for _, batch in zip(range(NUM_BATCHES), loader, strict=False)]
    batches = [views(batch, seed) for seed, batch in enumerate(decoded)]
    samples = NUM_BATCHES * options.batch_size
    ways: Ways = {}
    figures: dict[str, dict[str, float]] = {}
    for name in chosen:
        step = build_step(device, **VARIANTS[name])
        ways[name] = partial(lambda step: [step(batch) for batch in batches], step)
        if name in ("plain", "encoded_twice"):
            with FlopCounterMode(display=False) as counter:
                ways[name]()
            figures[name] = {"gflop_per_sample": counter.get_total_flops() / 1e9 / samples}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            ways[name]()
            figures.setdefault(name, {})["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    measure("train", ways, options, device, samples=samples, figures=figures)


def build_step(
    device: torch.device,
    *,
    precision: Precision = "fp32",
    layout: torch.memory_format = torch.channels_last,
    audio_encodings: Literal[1, 2] = 1,
    compiled: bool = False,
) -> Callable[[dict[str, Any]], None]:
    """Builds the training step that main.py makes with such options."""
    torch.manual_seed(SEED)
    model = SSLTIE(SSLTIEConfig(audio_encodings=audio_encodings)).train()
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = model.build_optimizer(SSLTIERecipe())
    if compiled:
        for network in model.networks():
            network.compile()

    def step(batch: dict[str, Any]) -> None:
        use_full_float32(precision != "tf32")
        with autocast(device, precision):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build_views(options: BenchmarkOptions, device: torch.device) -> Callable[..., dict[str, Any]]:
    """Builds what makes the training views of a batch."""
    return SSLTIE(SSLTIEConfig(), frame=FrameConfig(frame_size=options.frame_size)).to(device).augment


def benchmark_loader(options: BenchmarkOptions, device: torch.device, clips: list[Clip]) -> None:
    """Times the decoding of training clips by numbers of processes, and the views on the device."""
    clips = clips * 8

    def load(workers: int) -> None:
        with training_loader(options, clips, workers=workers) as loader:
            for _ in loader:
                pass

    counts = map(int, options.worker_counts.split(","))
    ways: Ways = {f"workers_{count}": partial(load, count) for count in counts}
    batch_size = options.batch_size
    measure("loader", ways, options, device, samples=len(clips) // batch_size * batch_size)

    with training_loader(options, clips, workers=0) as loader:
        batch = next(iter(loader)).to(device)
    views = build_views(options, device)
    measure("loader", {"views": lambda: views(batch, SEED)}, options, device, samples=batch_size)


def training_loader(options: BenchmarkOptions, clips: list[Clip], *, workers: int) -> ClipLoader:
    """Loads clips as training does."""
    geometry = FrameGeometry(options.frame_size)
    decoded = AudioVisualClips(clips, geometry=geometry, audio=AudioConfig(), random_crop=True)
    batches = SeededBatches(len(clips), options.batch_size, SEED)
    return build_train_loader(decoded, batches, num_workers=workers, pin_memory=False)


def benchmark_evaluate(options: BenchmarkOptions, device: torch.device, clips: list[Clip]) -> None:
    """Times scoring: clip by clip as the authors do, in batches, and in batches under all rules."""
    use_full_float32()
    torch.manual_seed(SEED)
    model = ready_to_localise(SSLTIE(SSLTIEConfig()), device)
    decoded = AudioVisualClips(clips, geometry=FrameGeometry(options.frame_size), audio=AudioConfig())

    def score(batch_size: int, names: Sequence[str]) -> None:
        protocols = [PROTOCOLS[name] for name in names]
        with build_test_loader(decoded, batch_size=batch_size, num_workers=0, pin_memory=False) as loader:
            evaluate_localisation(
                lambda batch: model.localise(*model.prepare(batch.frames, batch.waveforms)),
                (batch.to(device) for batch in loader),
                protocols,
            )

    ways: Ways = {
        "one_by_one": partial(score, 1, ["ssl_tie"]),
        "batches": partial(score, options.batch_size, ["ssl_tie"]),
        "batches_all_rules": partial(score, options.batch_size, list(PROTOCOLS)),
    }
    measure("evaluate", ways, options, device, samples=len(clips))


def measure(
    case: str,
    ways: Ways,
    options: BenchmarkOptions,
    device: torch.device,
    *,
    samples: int,
    figures: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """Lets ways to treat so many samples take turns; prints a line for each, the plain one first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in tqdm(range(options.repeats + 1), desc=case, disable=None):
        for name in list(ways) if repeat % 2 else reversed(ways):
            start = time.perf_counter()
            ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    plain = next(iter(seconds.values()))
    for name, taken in seconds.items():
        line = {
            "case": case,
            "variant": name,
            "samples_per_s": samples / statistics.median(taken),
            "ratio_to_plain": statistics.median(p / t for p, t in zip(plain, taken, strict=True)),
            **figures.get(name, {}),
            "batch_size": options.batch_size,
            "frame_size": options.frame_size,
            "repeats": options.repeats,
            **environment_report(device),
        }
        sys.stdout.write(json.dumps(line) + "\n")


def make_clips(count: int, folder: Path) -> list[Clip]:
    """Writes clips of the size of VGGSound's: a JPEG of 299 x 299, some 30 kB, and a WAV of 3 s."""
    rng = np.random.default_rng(SEED)
    box = np.array([[0.25, 0.25, 0.75, 0.75]])
    clips = []
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((299, 299), Image.Resampling.BICUBIC), np.float64)
        pixels = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
        picture, sound = folder / f"{number}.jpg", folder / f"{number}.wav"
        Image.fromarray(pixels).save(picture, quality=90)
        soundfile.write(sound, rng.uniform(-0.5, 0.5, 48_000), 16_000)
        clips.append(Clip(str(number), picture, sound, bounding_boxes=box))
    return clips


CASES = {"train": benchmark_train, "loader": benchmark_loader, "evaluate": benchmark_evaluate}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    configure_logging()
    parser = argparse.ArgumentParser(prog="benchmark.sh", description="Measures speed.", allow_abbrev=False)
    parser.add_argument("case", choices=CASES)
    add_group(parser, BenchmarkOptions)
    values = vars(parser.parse_args(arguments))

    def command() -> int:
        options = build(BenchmarkOptions, values)
        device = pick_device(options.device)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as folder:
            CASES[values["case"]](
                options, device, make_clips(max(options.clips, options.batch_size), Path(folder))
            )
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
