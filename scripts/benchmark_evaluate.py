"""How fast test.py scores clips, and what its time goes into."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from datasets.audio import AudioConfig
from datasets.clips import AudioVisualClips, Batch, Clip
from datasets.frames import FrameGeometry
from datasets.loaders import build_test_loader
from datasets.loading_speed import LoaderSizes, make_clips, peak_memory
from datasets.views import TestViews
from models.localiser import ready_to_localise
from models.ssl_tie import SSLTIE, SSLTIEConfig
from scripts.benchmark_measure import (
    SEED,
    check_counts,
    device_peak,
    peak_line,
    setting_line,
    speed_ratio,
    synchronise,
    take_turns,
    times_line,
    write_line,
)
from utils.evaluation.localisation import evaluate_localisation
from utils.evaluation.protocols import PROTOCOLS
from utils.training import use_full_float32

BOX = np.array([[0.25, 0.25, 0.75, 0.75]])
"""Of each clip, as fractions of its frame."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class EvaluateBenchmark:
    """What is measured, and how often."""

    clips: int = 64
    """made-up clips"""
    batch_size: int = 32
    """clips in a batch"""
    frame_size: int = 224
    """side of a frame, pixels"""
    mel_bins: int = 257
    """frequency bins of a spectrogram"""
    repeats: int = 5
    """rounds over the ways to score"""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be measured."""
        check_counts(repeats=self.repeats)
        if not 1 <= self.batch_size <= self.clips:
            raise ValueError(f"--batch-size must be 1 to --clips, got {self.batch_size} and {self.clips}")


@dataclass(frozen=True)
class _Way:
    """A way to score the same clips."""

    name: str
    batch_size: int
    protocols: tuple[str, ...]


@dataclass
class Stopwatch:
    """Adds up the seconds that named parts of an evaluation take."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, part: str, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function, whose time is added to a part's."""

        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise(self.device)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            return result

        return call


class _TimedModel:
    """A model whose localise is timed."""

    def __init__(self, model: SSLTIE, watch: Stopwatch) -> None:
        self.localise: Callable[[Tensor, Tensor], Tensor] = watch.timed("forward", model.localise)


class _Evaluation:
    """One of the ways, ready to be timed."""

    def __init__(
        self,
        way: _Way,
        model: SSLTIE,
        clips: Sequence[Clip],
        options: EvaluateBenchmark,
        device: torch.device,
    ) -> None:
        audio = AudioConfig(mel_bins=options.mel_bins)
        self.watch = Stopwatch(device)
        self.protocols = [PROTOCOLS[name] for name in way.protocols]
        self.loader = build_test_loader(
            AudioVisualClips(clips, geometry=FrameGeometry(options.frame_size), audio=audio),
            batch_size=way.batch_size,
            num_workers=0,  # decoding in this process, so that its time is seen
            pin_memory=device.type == "cuda",
        )
        self.model = _TimedModel(model, self.watch)
        self.views = self.watch.timed("views", TestViews(audio, device))

    def __call__(self) -> None:
        evaluate_localisation(self.model, self._batches(), self.views, self.protocols)

    def shares(self, total: float) -> dict[str, float]:
        """Of the time since the watch was last set to zero; the rest is scoring.

        Args:
            total: seconds of all calls since then.
        """
        shares = {part: seconds / total for part, seconds in self.watch.seconds.items()}
        return {**shares, "scoring": 1 - sum(shares.values())}

    def _batches(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        fetch = self.watch.timed("decoding", lambda: next(batches, None))
        while (batch := fetch()) is not None:
            yield batch.to(self.watch.device)


def benchmark_evaluate(device: torch.device, options: EvaluateBenchmark) -> None:
    """Prints a line for scoring clip by clip, as the authors do, in batches, and by all rules."""
    use_full_float32()
    torch.manual_seed(SEED)
    model = ready_to_localise(SSLTIE(SSLTIEConfig()), device)
    ways = (
        _Way("one_by_one", 1, ("ssl_tie",)),
        _Way("batches", options.batch_size, ("ssl_tie",)),
        _Way("batches_all_rules", options.batch_size, tuple(PROTOCOLS)),
    )
    peak = device_peak(device, "fp32")
    flops = _forward_flops(options)
    with tempfile.TemporaryDirectory() as folder:
        made = make_clips(LoaderSizes(clips=options.clips, batch_size=1), Path(folder))
        clips = [replace(clip, bounding_boxes=BOX) for clip in made]
        evaluations = {way.name: _Evaluation(way, model, clips, options, device) for way in ways}
        memory = {name: peak_memory(call, device) for name, call in evaluations.items()}
        for evaluation in evaluations.values():
            evaluation.watch.seconds.clear()
        seconds = take_turns(evaluations, device, repeats=options.repeats)
    for way in ways:
        taken = seconds[way.name]
        write_line(
            case="evaluate",
            variant=way.name,
            **times_line(taken, options.clips),
            **memory[way.name],
            flops_per_sample=flops,
            **peak_line(flops * options.clips / statistics.median(taken), peak),
            ratio_to_plain=speed_ratio(seconds[ways[0].name], taken),
            share_of_time=evaluations[way.name].shares(sum(taken)),
            batch_size=way.batch_size,
            rules=len(way.protocols),
            clips=options.clips,
            frame_size=options.frame_size,
            mel_bins=options.mel_bins,
            repeats=options.repeats,
            **setting_line(device),
        )


def _forward_flops(options: EvaluateBenchmark) -> float:
    """Of localising one clip, counted on shapes alone, 2 FLOP per multiply-add."""
    with FakeTensorMode():
        model = SSLTIE(SSLTIEConfig()).eval()
        front_end = AudioConfig(mel_bins=options.mel_bins)
        frames = torch.zeros(1, 3, options.frame_size, options.frame_size)
        sounds = torch.zeros(1, 1, options.mel_bins, front_end.num_frames)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.localise(frames, sounds)
    return float(counter.get_total_flops())
