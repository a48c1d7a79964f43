"""How fast training clips are decoded on one core, in the authors' way and in this project's.

The authors' way is enacted again from what their program does for a clip of VGGSound: it decodes
the picture twice, augments it with Pillow, reads the whole sound, tiles it to 10 seconds, builds
the spectrogram's filters and computes it, masks it and turns it into decibels, all for one clip
at a time. Ours decodes, and leaves the rest to the device, a batch at a time.
"""

import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, ImageFilter
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from datasets.audio import AudioConfig
from datasets.clips import AudioVisualClips, Batch, Clip
from datasets.frames import FrameGeometry
from datasets.geometric_transform import GeometricConfig
from datasets.loaders import SeededBatches, build_train_loader
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, AugmentationConfig
from datasets.views import SSLTIEViews

SAMPLE_RATE = 16_000
FRAME_SIZE = 224
JPEG_QUALITY = 90
"""With NOISE it makes files of some 30 kB, as those of VGGSound are."""
NOISE = 9.0
"""Standard deviation, of 255."""
SEED = 4
CPU = torch.device("cpu")
NOT_COUNTED = dict.fromkeys(("flops_per_sample", "share_of_peak", "peak_flops_per_s", "peak_basis"), None)
"""What the lines of other benchmarks say of arithmetic, which loading is not about."""


@dataclass(frozen=True, kw_only=True)
class LoaderSizes:
    """What is loaded."""

    clips: int = 300
    """made-up clips"""
    batch_size: int = 32
    """clips"""
    picture_size: int = 299
    """side of a stored picture, pixels"""
    sound_seconds: float = 3.0
    """length of a stored sound"""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be measured."""
        if not 1 <= self.batch_size <= self.clips:
            raise ValueError(f"--batch-size must be 1 to --clips, got {self.batch_size} and {self.clips}")
        if self.picture_size < 16 or self.sound_seconds < 0.1:
            raise ValueError(
                "--picture-size must be at least 16 and --sound-seconds at least 0.1, got "
                f"{self.picture_size} and {self.sound_seconds}"
            )


@dataclass(frozen=True)
class LoadingTimes:
    """Seconds for each clip, one of each kind a repeat."""

    wall: list[float]
    """by the clock"""
    processor: list[float]
    """of the core's own time, other work on the computer left out"""
    memory: dict[str, int]
    """most bytes that loading a batch holds at once, see peak_memory"""


def make_clips(sizes: LoaderSizes, folder: Path) -> list[Clip]:
    """Writes smooth, noisy pictures as JPEG and tones with noise as 16-bit WAV."""
    source = np.random.default_rng(SEED)
    side = sizes.picture_size
    times = np.arange(round(sizes.sound_seconds * SAMPLE_RATE)) / SAMPLE_RATE
    clips = []
    for index in tqdm(range(sizes.clips), desc="clips", disable=None):
        clip = Clip(f"clip_{index}", folder / f"{index}.jpg", folder / f"{index}.wav")
        coarse = Image.fromarray(source.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=float)
        noisy = smooth + source.normal(0, NOISE, smooth.shape)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{index}.jpg", quality=JPEG_QUALITY)
        tone = 0.4 * np.sin(2 * np.pi * source.uniform(100, 4000) * times)
        sound = tone + 0.02 * source.standard_normal(len(times))
        soundfile.write(folder / f"{index}.wav", sound, SAMPLE_RATE)
        clips.append(clip)
    return clips


class ReferenceClips(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The authors' way: everything on the CPU, one clip at a time."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        """Collects moco_v2's transforms.

        Args:
            clips: what is loaded.
        """
        self.clips = clips
        self.augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(FRAME_SIZE, scale=(0.3, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.Lambda(_blur)], p=0.5),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented frame (3, 224, 224), log-mel spectrogram (1, 257, 670), picture (H, W, 3)."""
        clip = self.clips[position]
        frame = self.augment(_decode(clip.frame_source))
        picture = torch.from_numpy(np.array(_decode(clip.frame_source)))
        return frame, _reference_spectrogram(clip.audio_source), picture


def _decode(path: object) -> Image.Image:
    with Image.open(str(path)) as picture:
        return picture.convert("RGB")


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def _reference_spectrogram(path: object) -> Tensor:
    samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.T)
    waveform = waveform.repeat(1, -(-10 * rate // waveform.shape[1]))[:, : 10 * rate]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero")
        mel = torchaudio.transforms.MelSpectrogram(
            rate, n_fft=512, hop_length=239, n_mels=257, normalized=True
        )
    power = mel(waveform)
    if random.random() < 0.8:
        power = torchaudio.transforms.TimeMasking(180)(power)
        power = torchaudio.transforms.FrequencyMasking(35)(power)
    return torchaudio.transforms.AmplitudeToDB()(power)


def time_loading(clips: Sequence[Clip], sizes: LoaderSizes, *, repeats: int) -> dict[str, LoadingTimes]:
    """Times an epoch of both ways in turn, in this process, on one thread.

    Args:
        clips: made by make_clips.
        sizes: of the batches.
        repeats: rounds; every other one takes the ways backwards.

    Returns:
        times by way: reference, the plain one, and ours.
    """
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    random.seed(SEED)
    reference = DataLoader(ReferenceClips(clips), batch_size=sizes.batch_size, shuffle=True, drop_last=True)
    ours = our_loader(clips, sizes)
    epochs: dict[str, Callable[[], int]] = {
        "reference": lambda: sum(len(frames) for frames, _, _ in reference),
        "ours": lambda: sum(len(batch) for batch in ours),
    }
    for epoch in epochs.values():
        epoch()
    times = {
        "reference": LoadingTimes([], [], peak_memory(lambda: next(iter(reference)), CPU)),
        "ours": LoadingTimes([], [], peak_memory(lambda: next(iter(ours)), CPU)),
    }
    for repeat in tqdm(range(repeats), desc="repeats", disable=None):
        for name in list(epochs)[:: 1 if repeat % 2 == 0 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            loaded = epochs[name]()
            times[name].wall.append((time.perf_counter() - clock) / loaded)
            times[name].processor.append((time.process_time() - processor) / loaded)
    return times


def our_loader(clips: Sequence[Clip], sizes: LoaderSizes) -> DataLoader[Batch]:
    """The loader that training has, in this process."""
    decoded = AudioVisualClips(
        clips, geometry=FrameGeometry(FRAME_SIZE), audio=AudioConfig(), random_crop=True
    )
    batches = SeededBatches(len(clips), sizes.batch_size, SEED)
    return build_train_loader(  # type: ignore[return-value]  # clips are not from a cache
        decoded, batches, num_workers=0, pin_memory=False
    )


def time_views(
    clips: Sequence[Clip], sizes: LoaderSizes, device: torch.device, *, repeats: int
) -> tuple[list[float], dict[str, int]]:
    """Times the views of a batch on the device, after one to warm up.

    Args:
        clips: made by make_clips.
        sizes: of the batch.
        device: where the views are made.
        repeats: batches that are timed.

    Returns:
        seconds for each batch, and the most bytes that its views hold at once, see peak_memory.
    """
    views = SSLTIEViews(AudioConfig(), AugmentationConfig(), GeometricConfig(), device)
    batch = next(iter(our_loader(clips, sizes))).to(device)
    seconds = []
    for repeat in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        views(batch, repeat)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:], peak_memory(lambda: views(batch, repeats), device)


def synchronise(device: torch.device) -> None:
    """Waits for a GPU to finish; a CPU has always finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(action: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Most bytes an action holds at once, beyond what was held before it, named by the measure.

    On a GPU it is the caching allocator's peak; on a CPU the sum of the allocator's events in
    torch's profiler, as the resident size of a process does not fall when memory is freed.
    """
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        synchronise(device)
        held = torch.cuda.max_memory_allocated(device) - before
        return {"peak_memory_bytes_cuda_allocator": held}
    return {"peak_memory_bytes_cpu_profiler": profiled_peak_bytes(action)}


def profiled_peak_bytes(action: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator holds at once during an action, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        action()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def loader_lines(
    clips: Sequence[Clip], sizes: LoaderSizes, device: torch.device, *, repeats: int
) -> list[dict[str, object]]:
    """Everything measured: a line per way of loading, the plain one first, and one for the views.

    The keys are those of the other benchmarks' lines. `ratio_to_plain` is the median over rounds
    of the ratio by the clock within a round; `speed_ratio` has those of medians and of minima, by
    the clock and by the core's own time. `peak_memory_bytes_cpu_profiler` is of a batch, in what
    torch's CPU allocator hands out: a batch and the tensors on the way to it, not what Pillow,
    soundfile and NumPy take for themselves. Arithmetic is null, as loading has none that a peak
    would measure; so is the ratio of the views, which the plain way does not make apart.

    Args:
        clips: made by make_clips.
        sizes: of the clips and the batches.
        device: where the views are made; clips are loaded on the CPU.
        repeats: rounds over both ways, and batches of views.
    """
    threads = torch.get_num_threads()
    times = time_loading(clips, sizes, repeats=repeats)
    torch.set_num_threads(threads)
    picture_bytes = sum(Path(str(clip.frame_source)).stat().st_size for clip in clips) / len(clips)
    plain = times["reference"]
    lines: list[dict[str, object]] = [
        {
            "variant": name,
            **_rates(taken.wall),
            "samples_per_processor_second": {
                "median": 1 / statistics.median(taken.processor),
                "maximum": 1 / min(taken.processor),
            },
            **taken.memory,
            **NOT_COUNTED,
            "ratio_to_plain": statistics.median(a / b for a, b in zip(plain.wall, taken.wall, strict=True)),
            "speed_ratio": {
                "wall": _ratios(plain.wall, taken.wall),
                "processor": _ratios(plain.processor, taken.processor),
            },
            **vars(sizes),
            "picture_kilobytes": picture_bytes / 1000,
            "repeats": repeats,
            "device": str(CPU),
            "threads": 1,
        }
        for name, taken in times.items()
    ]
    seconds, memory = time_views(clips, sizes, device, repeats=repeats)
    lines.append(
        {
            "variant": "views_on_device",
            **_rates([taken / sizes.batch_size for taken in seconds]),
            "milliseconds_per_batch": {
                "median": 1000 * statistics.median(seconds),
                "minimum": 1000 * min(seconds),
            },
            **memory,
            **NOT_COUNTED,
            "ratio_to_plain": None,
            "batch_size": sizes.batch_size,
            "repeats": repeats,
            "device": str(device),
            "threads": threads,
        }
    )
    return lines


def _rates(seconds: Sequence[float]) -> dict[str, object]:
    """Samples per second by the clock, and what they come from.

    Args:
        seconds: for a sample, one of each round.
    """
    median = statistics.median(seconds)
    return {
        "samples_per_s": 1 / median,
        "milliseconds_per_sample": {"median": 1000 * median, "minimum": 1000 * min(seconds)},
    }


def _ratios(plain: Sequence[float], variant: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(plain) / statistics.median(variant),
        "minimum": min(plain) / min(variant),
    }
