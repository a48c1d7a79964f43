"""What each of training's options is worth: speed, memory, and how far the loss moves."""

import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from datasets.audio import AudioConfig
from datasets.clips import AudioVisualClips
from datasets.frames import FrameGeometry
from datasets.geometric_transform import GeometricConfig
from datasets.loaders import SeededBatches, build_train_loader
from datasets.loading_speed import LoaderSizes, make_clips, peak_memory
from datasets.transforms import AugmentationConfig
from datasets.views import SSLTIEViews
from scripts.benchmark_measure import (
    SEED,
    check_counts,
    device_peak,
    peak_line,
    seconds_of,
    setting_line,
    speed_ratio,
    take_turns,
    times_line,
    write_line,
)
from scripts.benchmark_steps import (
    PLAIN,
    SCALES,
    Sizes,
    StepInputs,
    TrainingSteps,
    Variant,
    draw_inputs,
    flops_per_sample,
    variants_for,
)
from utils.training import use_full_float32

logger = logging.getLogger("benchmark")

SMALL_SIZES = Sizes(batch_size=8, frame_size=64, mel_bins=48, spectrogram_frames=64)
"""Of the steps after which losses are compared, where the timed ones would take hours."""
HEARD = (Sizes.mel_bins, Sizes.spectrogram_frames)
"""Shape of the spectrograms of training, by default."""
LOSS_BATCHES = 4
"""Different batches in a comparison of losses, at each scale."""
PREFETCHED = 2
"""Batches that torch's DataLoader makes ahead in each worker."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark:
    """What is compared, and how often."""

    variants: str = "all"
    """names of variants, commas between them, or all; the plain one always runs"""
    steps: int = 1
    """steps at each scale that are timed together"""
    repeats: int = 5
    """rounds over the variants; every other one goes backwards"""
    loss_steps: int = 50
    """steps after which losses are compared; 0: they are not"""
    loss_sizes: Literal["small", "same"] = "small"
    """batches of these steps: 8 clips of 64 pixels and 48 x 64, or as the timed ones"""
    loader_workers: int = 0
    """also train the fastest variant from files, decoded by so many processes; 0: do not"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        check_counts(steps=self.steps, repeats=self.repeats)
        if min(self.loss_steps, self.loader_workers) < 0:
            raise ValueError("--loss-steps and --loader-workers must be 0 or more.")


def benchmark_train(device: torch.device, sizes: Sizes, options: TrainBenchmark) -> None:
    """Prints a line for each variant, the plain one first, and one for training from a loader.

    A variant that does not fit into the GPU's memory is skipped. Where it is the plain one, what
    the other lines would compare with it is left out of them.

    Raises:
        ValueError: a variant is unknown, or the loader's batches have another shape than `sizes`.
    """
    if options.loader_workers and (sizes.mel_bins, sizes.spectrogram_frames) != HEARD:
        raise ValueError(
            "--loader-workers compares with sounds as training hears them: leave --mel-bins and "
            "--spectrogram-frames at their defaults."
        )
    chosen = _choose(variants_for(device), options.variants)
    runnable = _report_missing(chosen, device)
    inputs = [draw_inputs(sizes, scale, device) for scale in SCALES]
    useful = _mean_flops(PLAIN, sizes)
    peaks = {kind: device_peak(device, kind) for kind in {v.arithmetic for v in runnable}}
    trained, memory = _prepare(runnable, inputs, device)
    actions = {name: partial(_train, steps, inputs, options.steps) for name, steps in trained.items()}
    seconds = take_turns(actions, device, repeats=options.repeats)
    del actions
    if PLAIN.name not in seconds:
        logger.warning(
            "There is no %s to compare with: the lines have no ratio_to_plain and no loss_difference.",
            PLAIN.name,
        )
    losses = _losses(list(trained.values()), sizes, options, device)
    samples = options.steps * len(SCALES) * sizes.batch_size
    for variant in runnable:
        if variant.name not in seconds:
            continue
        times = times_line(seconds[variant.name], samples)
        rate = samples / statistics.median(seconds[variant.name])
        write_line(
            case="train",
            variant=variant.name,
            **times,
            **memory[variant.name],
            flops_per_sample=useful,
            flops_done_per_sample=_mean_flops(variant, sizes),
            **peak_line(useful * rate, peaks[variant.arithmetic]),
            **_ratio_to_plain(seconds, variant.name),
            **losses.get(variant.name, {}),
            options={k: v for k, v in asdict(variant).items() if k != "name"},
            **vars(sizes),
            steps=options.steps,
            repeats=options.repeats,
            **setting_line(device),
        )
    if options.loader_workers and seconds:
        fastest = max(seconds, key=lambda name: 1 / statistics.median(seconds[name]))
        _compare_with_loader(trained[fastest], inputs, sizes, options)


def _choose(variants: Sequence[Variant], names: str) -> list[Variant]:
    known = [variant.name for variant in variants]
    wanted = known if names == "all" else names.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--variants takes all, or some of {', '.join(known)}; not {', '.join(unknown)}")
    return [v for v in variants if v.name in wanted or v.name == PLAIN.name]


def _report_missing(variants: Sequence[Variant], device: torch.device) -> list[Variant]:
    runnable = []
    for variant in variants:
        missing = variant.missing(device)
        if missing is None:
            runnable.append(variant)
        else:
            write_line(case="train", variant=variant.name, skipped=missing)
    return runnable


def _mean_flops(variant: Variant, sizes: Sizes) -> float:
    """Over both scales, each of which half of all batches have."""
    return statistics.fmean(flops_per_sample(variant, sizes, scale) for scale in SCALES)


def _prepare(
    variants: Sequence[Variant], inputs: Sequence[StepInputs], device: torch.device
) -> tuple[dict[str, TrainingSteps], dict[str, dict[str, int]]]:
    """Builds and warms up each variant that fits into memory; also the memory of its step."""
    trained, memory = {}, {}
    for variant in tqdm(variants, desc="warm-up", disable=None):
        steps = TrainingSteps(variant, device)
        try:
            _train(steps, inputs, 1)
            memory[variant.name] = peak_memory(partial(steps.step, inputs[0]), device)
        except torch.OutOfMemoryError:
            write_line(case="train", variant=variant.name, skipped="out of the GPU's memory")
            continue
        trained[variant.name] = steps
    return trained, memory


def _train(steps: TrainingSteps, inputs: Sequence[StepInputs], count: int) -> None:
    for batch in inputs:
        for _ in range(count):
            steps.step(batch)


def _ratio_to_plain(seconds: Mapping[str, Sequence[float]], name: str) -> dict[str, float]:
    """Of a variant by name, as its line has it; empty where the plain one was not timed."""
    if PLAIN.name not in seconds:
        return {}
    return {"ratio_to_plain": speed_ratio(seconds[PLAIN.name], seconds[name])}


def _losses(
    trained: Sequence[TrainingSteps], sizes: Sizes, options: TrainBenchmark, device: torch.device
) -> dict[str, dict[str, object]]:
    """What a line says of the loss of the last of some steps on a few batches, by variant.

    Without the plain variant nothing is said of a difference to it.
    """
    if not options.loss_steps:
        return {}
    shape = sizes if options.loss_sizes == "same" else SMALL_SIZES
    batches = [
        draw_inputs(shape, scale, device, seed=SEED + number)
        for number in range(LOSS_BATCHES)
        for scale in SCALES
    ]
    last = {}
    for variant in tqdm([steps.variant for steps in trained], desc="losses", disable=None):
        torch.compiler.reset()  # another size is another program; old ones count against a limit
        steps = TrainingSteps(variant, device)
        for number in range(options.loss_steps):
            loss = steps.step(batches[number % len(batches)])
        last[variant.name] = loss.item()
    ending = f"after_{options.loss_steps}_steps"
    plain = last.get(PLAIN.name)
    return {
        name: {
            f"loss_{ending}": loss,
            **({} if plain is None else {f"loss_difference_{ending}": loss - plain}),
            "loss_sizes": vars(shape),
        }
        for name, loss in last.items()
    }


def _compare_with_loader(
    steps: TrainingSteps, inputs: Sequence[StepInputs], sizes: Sizes, options: TrainBenchmark
) -> None:
    """Trains from files: decoding, views and steps; beside it, the same steps on ready inputs.

    Batches that workers made ahead are used up before the clock starts, so that a loader that is
    too slow shows.
    """
    use_full_float32(not steps.variant.tf32)
    device = steps.trainer.stepper.device
    workers, batch_size = options.loader_workers, sizes.batch_size
    ahead = 2 * workers * PREFETCHED
    timed = options.steps * len(SCALES) * options.repeats
    views = SSLTIEViews(AudioConfig(), AugmentationConfig(), GeometricConfig(), device)
    with tempfile.TemporaryDirectory() as folder:
        files = make_clips(LoaderSizes(batch_size=min(batch_size, 32)), Path(folder))
        copies = -(-(ahead + timed + 1) * batch_size // len(files))
        clips = AudioVisualClips(
            files * copies, geometry=FrameGeometry(sizes.frame_size), audio=AudioConfig(), random_crop=True
        )
        loader = build_train_loader(
            clips,
            SeededBatches(len(clips), batch_size, SEED),
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        batches = iter(loader)

        def train(count: int) -> None:
            for number, batch in enumerate(islice(batches, count)):
                steps.trainer.step_on(batch, views, seed=number, global_size=batch_size)

        _train(steps, inputs, 1)  # compiles again what the comparison of losses has reset
        before = seconds_of(lambda: _train(steps, inputs, timed // len(SCALES)), device)
        train(ahead)
        seconds = seconds_of(lambda: train(timed), device)
        after = seconds_of(lambda: _train(steps, inputs, timed // len(SCALES)), device)
    ready = (before + after) / 2
    write_line(
        case="train",
        variant=f"{steps.variant.name}_from_loader",
        **times_line([seconds], timed * batch_size),
        ratio_to_ready_inputs=ready / seconds,
        workers=workers,
        steps=timed,
        **vars(sizes),
        **setting_line(device),
    )
