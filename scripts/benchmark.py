"""Measures this computer's speed: a JSON line for each way of doing the same work.

    bash scripts/benchmark.sh train --variants bf16,compile            # training steps of SSL-TIE
    bash scripts/benchmark.sh train --method sspl --no-pcm             # of another method
    bash scripts/benchmark.sh train --batch-sizes 32,256,largest       # by clips a step
    bash scripts/benchmark.sh loader --worker-counts 0,2,4             # decoding of training clips
    bash scripts/benchmark.sh evaluate --batch-size 8                  # scoring, as test.py does it

Options of `main.py METHOD` hold as well. Clips are made up, of the size of VGGSound's. Ways take turns in
one process, every other round backwards, so that other work on the computer slows all of them;
`ratio_to_plain` is the median over rounds of the ratio within a round. `peak_mib` is torch's memory on a GPU,
else the whole process's. Limits are computed, not measured: see Roofline. docs/performance.md has figures.
"""

import argparse
import json
import logging
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

import main as training_program
import opts
from datasets.clips import AudioVisualClips, Clip
from datasets.frames import FrameGeometry
from datasets.loaders import ClipLoader, SeededBatches
from models.localiser import ready_to_localise
from models.method import Method
from utils.evaluation.localisation import evaluate_localisation
from utils.evaluation.protocols import PROTOCOLS
from utils.files import write_atomically
from utils.options import Options, add_group, build, option, run_command
from utils.training import environment_report, pick_device, use_full_float32

logger = logging.getLogger("benchmark")

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

    method: str = option("ssl_tie", choices=opts.METHODS)  # whose options follow
    output: Path | None = None
    """of `train`: folder for summary.json, the plain line; none: only on the screen"""
    clips: int = option(64, at_least=8)  # made-up clips, and at least a batch
    repeats: int = option(5, at_least=1)  # rounds
    variants: str = ",".join(VARIANTS)  # of `train`; plain always runs
    batch_sizes: str | None = None
    """of `train`, commas between them; `largest` at the end: doubled while memory lasts, to 512; for GPUs"""
    tflops: float | None = option(None, above=0)
    """TFLOP/s of the GPU whose limit on `train` is computed; none: 790, an H200's in bf16"""
    bandwidth: float | None = option(None, above=0)
    """TB/s of its memory; none: an H200's 4.8. Without both, there is a limit on an H200 only"""
    worker_counts: str = "0,2"  # of `loader`: numbers of decoding processes, commas between them


class Roofline(TorchDispatchMode):
    """Counts what a GPU must at least do: products, bytes, and seconds, one operation after another.

    An operation takes its products' time or that of reading its arguments and writing its results once,
    whichever is longer. Compiled, those that go element by element cost nothing: they ride along.
    """

    def __init__(self, options: BenchmarkOptions) -> None:
        """Take the GPU's speed from the options."""
        super().__init__()
        self.flops_per_s = 1e12 * (options.tflops or 790)
        self.bytes_per_s = 1e12 * (options.bandwidth or 4.8)
        self.flops, self.bytes, self.seconds, self.compiled_seconds = 0, 0, 0.0, 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - as torch
        """Run an operation and count it; a multiply-add is 2."""
        result, kind = operation(*args, **kwargs or {}), operation._overloadpacket
        flops = flop_registry[kind](*args, **kwargs or {}, out_val=result) if kind in flop_registry else 0
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        moved = 0 if operation.is_view else sum(tensor.nbytes for tensor in tensors)
        seconds = max(flops / self.flops_per_s, moved / self.bytes_per_s)
        self.flops, self.bytes, self.seconds = self.flops + flops, self.bytes + moved, self.seconds + seconds
        self.compiled_seconds += 0 if torch.Tag.pointwise in operation.tags else seconds
        return result


class Benchmark:
    """The cases, on one set of made-up clips."""

    def __init__(self, options: BenchmarkOptions, words: list[str], folder: Path) -> None:
        """Take the options of main.py as `words`; clips go to a folder."""
        self.options, self.words = options, words
        self.training = opts.parse_train_options(words)
        self.device = pick_device(self.training.run.device)
        self.batch_size = self.training.optimisation.batch_size
        training_program.settle_precision(self.training, self.device)
        self.model, self.wrapped = training_program.build_model(self.training, self.device)
        self.clips = make_clips(max(options.clips, self.batch_size), folder)

    def load(self, workers: int = 0, times: int = 8) -> ClipLoader:
        """Load so many times the clips as training does."""
        decoded = self.model.training_clips(self.clips * times)
        batches = SeededBatches(len(decoded), self.batch_size, seed=0)
        return ClipLoader(decoded, batch_sampler=batches, workers=workers)

    def train(self) -> None:
        """Time main.py's training step on ready views: plain, and with one option at a time."""
        chosen = list(dict.fromkeys(["plain", *self.options.variants.split(",")]))
        if unknown := set(chosen) - VARIANTS.keys():
            raise ValueError(f"--variants takes {', '.join(VARIANTS)}; not {', '.join(sorted(unknown))}.")
        decoded = zip(range(NUM_BATCHES), self.load(), strict=False)
        batches = [self.model.augment(batch.to(self.device), seed) for seed, batch in decoded]

        def build_steps(options: opts.TrainOptions, model: Method, wrapped: nn.Module) -> Callable[[], None]:
            optimizer, precision = model.build_optimizer(options.optimisation), options.compute.precision
            scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

            def take_steps() -> None:
                use_full_float32(precision != "tf32")
                for views in batches:
                    training_program.take_step(views, wrapped, optimizer, scaler, precision)

            return take_steps

        ways: Ways = {"plain": build_steps(self.training, self.model, self.wrapped)}
        for name in chosen[1:]:
            options = opts.parse_train_options(self.words + VARIANTS[name])
            training_program.settle_precision(options, self.device)
            ways[name] = build_steps(options, *training_program.build_model(options, self.device))
        samples = NUM_BATCHES * self.batch_size
        with Roofline(self.options) as counted:
            ways["plain"]()
        facts = {
            "gflop_per_sample": counted.flops / samples / 1e9,
            "megabytes_per_sample": counted.bytes / samples / 1e6,
        }
        is_h200 = "NVIDIA H200" in environment_report(self.device)["device"]
        if is_h200 or self.options.tflops or self.options.bandwidth:
            facts["limit_samples_per_s"] = samples / counted.seconds
            facts["compiled_limit_samples_per_s"] = samples / counted.compiled_seconds
        line = self.measure("train", ways, samples=samples, **facts)
        if self.options.output is not None:
            write_atomically(self.options.output / "summary.json", json.dumps(line).encode())

    def loader(self) -> None:
        """Time the decoding of training clips by numbers of processes, and the views on the device."""

        def load_all(workers: int) -> None:
            with self.load(workers, times) as loader:
                for _ in loader:
                    pass

        counts = whole_numbers("--worker-counts", self.options.worker_counts)
        times = 8 * max(1, *counts)  # what it takes to start the processes must not count
        ways: Ways = {f"workers_{count}": partial(load_all, count) for count in counts}
        self.measure("loader", ways, samples=len(self.load(times=times)) * self.batch_size)

        batch = next(iter(self.load())).to(self.device)
        self.measure("loader", {"views": lambda: self.model.augment(batch, 0)}, samples=self.batch_size)

    def evaluate(self) -> None:
        """Time scoring: clip by clip as the authors do, in batches, and in batches under all rules."""
        model = ready_to_localise(self.model, self.device)
        geometry = FrameGeometry(self.training.frame.frame_size)
        decoded = AudioVisualClips(self.clips, geometry=geometry, audio=self.training.audio)
        workers, pinned = self.training.data.workers, self.device.type == "cuda"
        load = partial(ClipLoader, decoded, workers=workers, pin_memory=pinned)

        def score(batch_size: int, *names: str) -> None:
            evaluate_localisation(
                lambda batch: model.localise(*model.prepare(batch.frames, batch.waveforms)),
                (batch.to(self.device) for batch in load(batch_size=batch_size)),
                [PROTOCOLS[name] for name in names],
            )

        ways: Ways = {
            "one_by_one": partial(score, 1, "ssl_tie"),
            "batches": partial(score, self.batch_size, "ssl_tie"),
            "batches_all_rules": partial(score, self.batch_size, *PROTOCOLS),
        }
        self.measure("evaluate", ways, samples=len(self.clips))

    def measure(self, case: str, ways: Ways, *, samples: int, **facts: float) -> dict[str, Any]:
        """Let ways to treat so many samples take turns; print a line for each, return the first one's."""
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        memory: dict[str, float] = {}
        for repeat in tqdm(range(self.options.repeats + 1), desc=case, disable=None):
            for name in list(ways) if repeat % 2 else reversed(ways):
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                start = time.perf_counter()
                ways[name]()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                    memory[name] = torch.cuda.max_memory_allocated(self.device) / 2**20
                if repeat:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
        plain = next(iter(seconds.values()))
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        lines = []
        for name, taken in seconds.items():
            speed = samples / statistics.median(taken)
            limits = {key: limit for key, limit in facts.items() if key.endswith("limit_samples_per_s")}
            line = {
                "case": case,
                "method": self.options.method,
                "variant": name,
                "samples_per_s": speed,
                "ratio_to_plain": statistics.median(p / t for p, t in zip(plain, taken, strict=True)),
                **facts,
                **{key.replace("samples_per_s", "share"): speed / limit for key, limit in limits.items()},
                "peak_mib": memory.get(name, process),
                "batch_size": self.batch_size,
                "frame_size": self.training.frame.frame_size,
                "repeats": self.options.repeats,
                **environment_report(self.device),
            }
            sys.stdout.write(json.dumps(line) + "\n")
            lines.append(line)
        return lines[0]


def batch_sizes(options: BenchmarkOptions, words: list[str]) -> list[int]:
    """Returns the clips a step to measure; with `largest` up to 512."""
    training = opts.parse_train_options(words)
    listed = options.batch_sizes or str(training.optimisation.batch_size)
    endless = listed.endswith(",largest")
    sizes = whole_numbers("--batch-sizes", listed.removesuffix(",largest"))
    if endless and pick_device(training.run.device).type != "cuda":
        raise ValueError("--batch-sizes: `largest` is for GPUs.")
    while endless and sizes[-1] <= 256:
        sizes.append(2 * sizes[-1])
    return sizes


def whole_numbers(flag: str, words: str) -> list[int]:
    """Reads numbers with commas between them."""
    if not re.fullmatch(r"\d+(,\d+)*", words):
        raise ValueError(f"{flag} takes whole numbers with commas between them, got {words!r}.")
    return [int(word) for word in words.split(",")]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmark.sh", allow_abbrev=False, description="Measures speed. Takes options of main.py too."
    )
    parser.add_argument("case", choices=("train", "loader", "evaluate"))
    add_group(parser, BenchmarkOptions)
    values, others = parser.parse_known_args(arguments)

    def command() -> int:
        options = build(BenchmarkOptions, vars(values))
        with tempfile.TemporaryDirectory() as folder:
            places = ["--train-set", "vggsound", "--data-root", folder, "--output", folder]
            words = [options.method, *places, *others]
            sizes = batch_sizes(options, words)
            for size in sizes:
                sized = [*words, "--batch-size", str(size)]
                try:
                    getattr(Benchmark(options, sized, Path(folder)), values.case)()
                except RuntimeError as error:  # cuDNN and cuBLAS have words of their own
                    full = re.search("out of memory|ALLOC_FAILED|unable to find an engine", str(error))
                    if size == sizes[0] or not full:
                        raise
                    logger.warning("A batch of %d clips does not fit into the GPU's memory.", size)
                    break
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
