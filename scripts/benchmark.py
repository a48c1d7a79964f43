"""Measures this computer's speed: a JSON line for each way of doing the same work.

    bash scripts/benchmark.sh train --variants bf16,compile            # training steps of SSL-TIE
    bash scripts/benchmark.sh loader --worker-counts 0,2,4             # decoding of training clips
    bash scripts/benchmark.sh evaluate --batch-size 8                  # scoring, as test.py does it

Options of `main.py ssl_tie` hold as well. Clips are made up, of the size of VGGSound's. Ways take turns in
one process, every other round backwards, so that other work on the computer slows all of them;
`ratio_to_plain` is the median over rounds of the ratio within a round. docs/performance.md has figures.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image
from tqdm import tqdm

import main as training_program
import opts
from datasets.clips import AudioVisualClips, Clip
from datasets.frames import FrameGeometry
from datasets.loaders import ClipLoader, SeededBatches
from models.localiser import ready_to_localise
from utils.evaluation.localisation import evaluate_localisation
from utils.evaluation.protocols import PROTOCOLS
from utils.options import Options, add_group, build, option
from utils.training import configure_logging, environment_report, pick_device, run_command, use_full_float32

NUM_BATCHES = 2
"""different batches in a round of training steps; one of them at scale 0.5"""
VARIANTS = {
    "plain": [],
    "bf16": ["--precision", "bf16"],
    "tf32": ["--precision", "tf32"],
    "compile": ["--compile"],
}
"""options of main.py by which training steps are compared"""
Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Options):
    """What is measured, and how often."""

    threads: int | None = option(None, at_least=1)
    """threads of PyTorch on the CPU; none: PyTorch's own choice"""
    clips: int = option(64, at_least=8)
    """made-up clips, and at least a batch"""
    repeats: int = option(5, at_least=1)
    """rounds"""
    variants: str = "all"
    """of `train`, commas between them; plain always runs"""
    worker_counts: str = "0,2"
    """of `loader`: numbers of decoding processes, commas between them"""


class Setting(NamedTuple):
    """What all cases measure with."""

    options: BenchmarkOptions
    words: list[str]
    """of main.py"""
    training: opts.TrainOptions
    """the same, parsed"""
    device: torch.device
    clips: list[Clip]

    def loader(self, clips: list[Clip], workers: int = 0) -> ClipLoader:
        """Load clips as training does."""
        geometry = FrameGeometry(self.training.frame.frame_size)
        decoded = AudioVisualClips(clips, geometry=geometry, audio=self.training.audio, random_crop=True)
        batches = SeededBatches(len(clips), self.training.optimisation.batch_size, self.training.run.seed)
        return ClipLoader(decoded, batch_sampler=batches, workers=workers)


def benchmark_train(setting: Setting) -> None:
    """Times main.py's training step on ready views: plain, and with one option at a time."""
    names = setting.options.variants
    chosen = list(VARIANTS) if names == "all" else list(dict.fromkeys(["plain", *names.split(",")]))
    if unknown := set(chosen) - VARIANTS.keys():
        raise ValueError(f"--variants takes {', '.join(VARIANTS)}; not {', '.join(sorted(unknown))}.")
    model, _ = training_program.build_model(setting.training, setting.device)
    with setting.loader(setting.clips * NUM_BATCHES) as loader:
        decoded = [batch.to(setting.device) for _, batch in zip(range(NUM_BATCHES), loader, strict=False)]
    batches = [model.augment(batch, seed) for seed, batch in enumerate(decoded)]

    def build_steps(options: opts.TrainOptions) -> Callable[[], None]:
        model, wrapped = training_program.build_model(options, setting.device)
        optimizer, precision = model.build_optimizer(options.optimisation), options.compute.precision
        scaler = torch.amp.GradScaler(setting.device.type, enabled=precision == "fp16")

        def take_steps() -> None:
            use_full_float32(precision != "tf32")
            for views in batches:
                training_program.take_step(views, wrapped, optimizer, scaler, precision)

        return take_steps

    ways: Ways = {
        name: build_steps(opts.parse_train_options(setting.words + VARIANTS[name])) for name in chosen
    }
    measure("train", ways, setting, samples=NUM_BATCHES * setting.training.optimisation.batch_size)


def benchmark_loader(setting: Setting) -> None:
    """Times the decoding of training clips by numbers of processes, and the views on the device."""
    clips, batch_size = setting.clips * 8, setting.training.optimisation.batch_size

    def load(workers: int) -> None:
        with setting.loader(clips, workers) as loader:
            for _ in loader:
                pass

    counts = map(int, setting.options.worker_counts.split(","))
    ways: Ways = {f"workers_{count}": partial(load, count) for count in counts}
    measure("loader", ways, setting, samples=len(clips) // batch_size * batch_size)

    model, _ = training_program.build_model(setting.training, setting.device)
    batch = next(iter(setting.loader(clips))).to(setting.device)
    measure("loader", {"views": lambda: model.augment(batch, 0)}, setting, samples=batch_size)


def benchmark_evaluate(setting: Setting) -> None:
    """Times scoring: clip by clip as the authors do, in batches, and in batches under all rules."""
    options, device = setting.training, setting.device
    model = ready_to_localise(training_program.build_model(options, device)[0], device)
    geometry = FrameGeometry(options.frame.frame_size)
    decoded = AudioVisualClips(setting.clips, geometry=geometry, audio=options.audio)

    def score(batch_size: int, *names: str) -> None:
        with ClipLoader(decoded, batch_size=batch_size) as loader:
            evaluate_localisation(
                lambda batch: model.localise(*model.prepare(batch.frames, batch.waveforms)),
                (batch.to(device) for batch in loader),
                [PROTOCOLS[name] for name in names],
            )

    batch_size = options.optimisation.batch_size
    ways: Ways = {
        "one_by_one": partial(score, 1, "ssl_tie"),
        "batches": partial(score, batch_size, "ssl_tie"),
        "batches_all_rules": partial(score, batch_size, *PROTOCOLS),
    }
    measure("evaluate", ways, setting, samples=len(setting.clips))


def measure(case: str, ways: Ways, setting: Setting, *, samples: int) -> None:
    """Lets ways to treat so many samples take turns; prints a line for each, the plain one first."""
    device, repeats = setting.device, setting.options.repeats
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, dict[str, float]] = {name: {} for name in ways}
    for repeat in tqdm(range(repeats + 1), desc=case, disable=None):
        for name in list(ways) if repeat % 2 else reversed(ways):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            ways[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                memory[name] = {"peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    plain = next(iter(seconds.values()))
    for name, taken in seconds.items():
        line = {
            "case": case,
            "variant": name,
            "samples_per_s": samples / statistics.median(taken),
            "ratio_to_plain": statistics.median(p / t for p, t in zip(plain, taken, strict=True)),
            **memory[name],
            "batch_size": setting.training.optimisation.batch_size,
            "frame_size": setting.training.frame.frame_size,
            "repeats": repeats,
            **environment_report(device),
        }
        sys.stdout.write(json.dumps(line) + "\n")


def make_clips(count: int, folder: Path) -> list[Clip]:
    """Writes clips of the size of VGGSound's: a JPEG of 299 x 299, some 30 kB, and a WAV of 3 s."""
    rng = np.random.default_rng(4)
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
    parser = argparse.ArgumentParser(
        prog="benchmark.sh",
        allow_abbrev=False,
        description="Measures speed. Takes main.py's options as well.",
    )
    parser.add_argument("case", choices=CASES)
    add_group(parser, BenchmarkOptions)
    values, others = parser.parse_known_args(arguments)

    def command() -> int:
        options = build(BenchmarkOptions, vars(values))
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        with tempfile.TemporaryDirectory() as folder:
            words = ["ssl_tie", "--train-set", "vggsound", "--data-root", folder, "--output", folder, *others]
            training = opts.parse_train_options(words)
            clips = make_clips(max(options.clips, training.optimisation.batch_size), Path(folder))
            setting = Setting(options, words, training, pick_device(training.run.device), clips)
            CASES[values.case](setting)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
