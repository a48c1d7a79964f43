"""A trained model, ready to use: a picture and a sound in, the map of where the sound comes from out.

from models import load_localiser

localiser = load_localiser("ckpts/x.pth")    # of main.py, or released by a method's authors
heat = localiser("dog.jpg", "dog.wav")       # or a PIL picture, arrays, tensors
heat.map, heat.score, heat.peak              # (h, w) float32; its largest value; where that is
heat.save("dog_heat.png")
for seconds, frame, similarity_map in localiser.video("clip.mp4"): ...
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from datasets.audio import (
    AlignSpectrogramConfig,
    AudioWindow,
    fit_window,
    is_silent,
    load_waveform,
    resample,
    sound_around,
)
from datasets.frames import (
    FrameConfig,
    FrameGeometry,
    GeometryMode,
    as_float,
    as_shown,
    normalise,
    read_frame,
)
from datasets.video import open_video, read_frames, read_sound, write_video
from models import SCORED
from models.released import build_localiser, read_any_checkpoint
from utils.checkpoint import Checkpoint, find_non_finite
from utils.files import moved_when_whole, write_atomically
from utils.reports.visualisation import (
    ContactSheet,
    Peak,
    Scale,
    Square,
    draw_localisation,
    encode_png,
    find_peak,
    format_peak,
    is_weak,
    similarity_range,
)
from utils.training import pick_device, use_full_float32


@dataclass(frozen=True)
class HeatMap:
    """Where in a picture a sound comes from."""

    picture: NDArray[np.uint8]  # (H, W, 3) RGB
    map: NDArray[np.float32] | None  # (h, w) similarity; None: the sound is silent
    square: Square  # the part of the picture that the map covers

    @property
    def score(self) -> float | None:
        """The largest similarity; None for a silent sound."""
        return None if self.map is None else float(self.map.max())

    @property
    def peak(self) -> Peak | None:
        """x, y (pixels of the picture) and similarity; None: silent, or the same everywhere."""
        height, width = self.picture.shape[:2]
        return None if self.map is None else find_peak(self.map, self.square, width, height)

    def overlay(self, **options: Any) -> NDArray[np.uint8]:  # noqa: ANN401
        """Draw the heat with its colour bar, by the options of `draw_localisation`: (H, W or more, 3) RGB."""
        return draw_localisation(self.picture, self.map, self.square, **options)

    def save(self, path: str | Path, **options: Any) -> None:  # noqa: ANN401 - those of overlay
        """Write the overlay as PNG, whatever the name ends in."""
        write_atomically(Path(path), encode_png(self.overlay(**options)))


@dataclass(frozen=True)
class Localiser:
    """A model with what prepares its inputs, in eval mode on its device."""

    model: Any  # a Method
    audio: AudioWindow
    frame: FrameConfig
    checkpoint: Checkpoint
    frame_geometry: GeometryMode = "squash"  # how pictures become square

    def __call__(
        self,
        picture: str | Path | Image.Image | NDArray[np.uint8] | Tensor,
        sound: str | Path | NDArray[np.floating] | Tensor | tuple[NDArray[np.floating] | Tensor, int],
    ) -> HeatMap:
        """Localise a sound in a picture.

        Args:
            picture: file, PIL picture, or uint8 RGB (H, W, 3).
            sound: file; or samples in [-1, 1], (L,) or as soundfile reads them (L, channels), with
                their rate in Hz, or without it if that is `audio.sample_rate`. The part that the
                method hears is taken, as in a test: short sounds are repeated.
        """
        image, waveform = _as_picture(picture), self._as_waveform(sound)
        heat = None
        if not is_silent(waveform[self.audio.heard]):
            (heat,) = self._similarity_maps([image], [*self._sound_features([waveform])])
        return self.heat_map(np.asarray(image), heat)

    def heat_map(self, picture: NDArray[np.uint8], similarity_map: NDArray[np.float32] | None) -> HeatMap:
        """Put a map, (h, w) or None, where it belongs in a picture, (H, W, 3)."""
        return HeatMap(picture, similarity_map, Square(*self._geometry.square_in(*picture.shape[1::-1])))

    def cosine(self, threshold: float | None) -> float | None:
        """Bring a threshold of `test.py negatives` to the scale of the maps; None stays None."""
        return threshold if threshold is None or not self.model.half_cosine else 2 * threshold - 1

    @property
    def _geometry(self) -> FrameGeometry:
        return FrameGeometry(self.frame.frame_size, self.frame_geometry)

    @torch.inference_mode()
    def _sound_features(self, waveforms: list[Tensor]) -> Tensor:
        """Encode windows (L,) of sound, one row each."""
        sounds = torch.stack(waveforms).to(self._device)  # (B, L)
        return self.model.sound_features(self.model.front_end(sounds))

    @torch.inference_mode()
    def _similarity_maps(self, pictures: list[Image.Image], rows: list[Tensor]) -> NDArray[np.float32]:
        """Compare B pictures with as many rows of `_sound_features`: float32 (B, h, w)."""
        squares = torch.stack([self._geometry.to_square(picture) for picture in pictures])
        visual = self.model.visual_features(normalise(as_float(squares.to(self._device))))  # of (B, 3, S, S)
        return self.model.compare(visual, torch.stack(rows)).float().cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def video(
        self,
        path: str | Path,
        *,
        audio_step: float = 0.2,
        smoothing: float = 0.0,
        batch_size: int = 8,
        max_seconds: float | None = None,
    ) -> Iterator[tuple[float, NDArray[np.uint8], NDArray[np.float32] | None]]:
        """Localise the sound of a video in each of its pictures.

        Args:
            path: of a video with sound; at time t the model hears `datasets.audio.sound_around` t.
            audio_step: seconds between two moments whose sound is encoded; a picture takes the nearest of
                these. 0: each picture has its own.
            smoothing: time constant of an exponential mean over past maps, seconds; 0: none.
            batch_size: pictures that are localised at once.
            max_seconds: stop there; None: at the end.

        Yields:
            seconds, picture uint8 RGB (H, W, 3), similarity map (h, w) or None where the sound is silent.
        """
        rate, path = self.audio.sample_rate, Path(path)
        until = None if max_seconds is None else max_seconds + self.audio.num_samples / rate
        sound = torch.from_numpy(read_sound(path, rate, until, left_channel=self.audio.left_channel))
        frames = read_frames(path, max_seconds)
        rows: dict[float, tuple[Tensor, bool]] = {}  # of the last batch, by moment: encoded sound, is silent
        mean, last = None, 0.0
        while batch := list(islice(frames, batch_size)):
            moments = [audio_step * round(s / audio_step) if audio_step else s for s, _ in batch]
            rows = {moment: row for moment, row in rows.items() if moment in moments}
            if new := [moment for moment in dict.fromkeys(moments) if moment not in rows]:
                windows = [sound_around(sound, moment, self.audio) for moment in new]
                silent = [is_silent(window[self.audio.heard]) for window in windows]
                rows |= zip(new, zip(self._sound_features(windows), silent, strict=True), strict=True)
            pictures = [Image.fromarray(picture) for _, picture in batch]
            maps = self._similarity_maps(pictures, [rows[moment][0] for moment in moments])  # (B, h, w)
            for (seconds, picture), moment, heat in zip(batch, moments, maps, strict=True):
                current = None if rows[moment][1] else heat
                if mean is None or current is None or smoothing == 0:
                    mean = current
                else:
                    mean = mean + np.float32(-math.expm1((last - seconds) / smoothing)) * (current - mean)
                last = seconds
                yield seconds, picture, mean

    def _as_waveform(self, sound: Any) -> Tensor:  # noqa: ANN401 - see __call__
        """Return the method's window of the sound, (L,)."""
        if isinstance(sound, str | Path):
            return load_waveform(_existing(sound), self.audio)
        samples, rate = sound if isinstance(sound, tuple) else (sound, self.audio.sample_rate)
        samples = torch.as_tensor(samples).cpu()
        if not samples.is_floating_point() or samples.ndim not in (1, 2) or not samples.numel():
            raise ValueError(
                "Expected floating-point samples in [-1, 1], (L,) or (L, channels), got "
                f"{samples.dtype} {tuple(samples.shape)}. Whole numbers of 16 bits: divide by 32768."
            )
        if not samples.isfinite().all():
            raise ValueError("The samples of the sound are not finite numbers everywhere.")
        waveform = samples.float()
        if samples.ndim == 2:
            waveform = waveform[:, 0] if self.audio.left_channel else waveform.mean(dim=1)
        return fit_window(resample(waveform, rate, self.audio.sample_rate), self.audio)


class VideoResult(NamedTuple):
    """What `VideoMaps.draw` wrote."""

    frames: int
    seconds: float  # at which the last picture ends
    silent_frames: int  # pictures around which the sound is silent: nothing is drawn on them
    weak_frames: int  # pictures whose map is nowhere above the threshold: likewise
    output: Path
    contact_sheet: Path
    peaks: Path


Progress = Callable[[int, int | None], object]
"""Called with the number of pictures done, and of all as far as known; what it raises stops the work."""


@dataclass(frozen=True)
class VideoMaps:
    """The map of each picture of a video: known before the first is drawn, so that one scale fits all."""

    localiser: Localiser
    source: Path
    max_seconds: float | None
    maps: Sequence[NDArray[np.float32] | None]  # (h, w) each; None where the sound is silent

    def draw(
        self,
        output: Path,
        *,
        scale: Scale | Literal["video", "frame"] = "video",
        threshold: float | None = None,
        box: bool = False,
        on_progress: Progress = lambda *_: None,
    ) -> VideoResult:
        """Write the video with heat, its contact sheet and its peaks: all of them, or after an error none.

        Beside `output`, an MP4 file, go *_contact_sheet.png, and *_peaks.csv with x, y (pixels) and
        similarity at each time, empty where there is no peak; with a threshold also weak, 1 where the
        similarity is not above it, else 0.

        `scale` is that of all maps (video), of each by itself (frame), or two similarities: those that
        `similarity_range` finds for the maps of two models. The rest is as in `draw_localisation`.
        """
        sheet_path = output.with_name(f"{output.stem}_contact_sheet.png")
        peaks_path = output.with_name(f"{output.stem}_peaks.csv")
        with open_video(self.source) as video:
            frame_seconds = float(1 / video.rate)
        ends = similarity_range(self.maps) if scale == "video" else None if scale == "frame" else scale
        lines = [",".join(["time_seconds", *format_peak(None, threshold)])]
        sheet, end = ContactSheet(len(self.maps)), 0.0

        def drawn() -> Iterator[tuple[float, NDArray[np.uint8]]]:
            nonlocal end
            # The maps first: where they end no further picture is read, so nothing is warned of twice.
            frames = zip(self.maps, read_frames(self.source, self.max_seconds), strict=False)
            for similarity_map, (seconds, picture) in frames:
                heat = self.localiser.heat_map(picture, similarity_map)
                drawing = heat.overlay(scale=ends, threshold=threshold, box=box)
                sheet.add(drawing, seconds)
                lines.append(",".join([f"{seconds:.6f}", *format_peak(heat.peak, threshold).values()]))
                end = seconds + frame_seconds
                on_progress(len(lines) - 1, len(self.maps))
                yield seconds, drawing

        with (
            moved_when_whole(peaks_path) as peaks_file,
            moved_when_whole(sheet_path) as sheet_file,
            moved_when_whole(output) as video_file,
        ):
            write_video(video_file, drawn(), self.source, max_seconds=self.max_seconds)
            sheet_file.write_bytes(encode_png(sheet.draw()))
            peaks_file.write_text("\n".join(lines) + "\n")
        num_silent = sum(one is None for one in self.maps)
        num_weak = sum(is_weak(one, threshold) for one in self.maps)
        return VideoResult(len(lines) - 1, end, num_silent, num_weak, output, sheet_path, peaks_path)


def localise_frames(
    localiser: Localiser,
    source: Path,
    *,
    on_progress: Progress = lambda *_: None,
    **options: Any,  # noqa: ANN401 - those of Localiser.video
) -> VideoMaps:
    """Localise the sound of a video in each of its pictures and keep the maps: 1 kB each, no pictures."""
    max_seconds, maps = options.get("max_seconds"), []
    with open_video(source) as video:
        until = min(filter(None, (max_seconds, video.seconds)), default=None)
        expected = None if until is None else round(until * video.rate)
    for _, _, similarity_map in localiser.video(source, **options):
        maps.append(similarity_map)
        on_progress(len(maps), expected)
    return VideoMaps(localiser, source, max_seconds, maps)


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return Path(path)


def _as_picture(picture: Any) -> Image.Image:  # noqa: ANN401 - see Localiser.__call__
    if isinstance(picture, str | Path):
        return read_frame(_existing(picture))
    if isinstance(picture, Image.Image):
        return as_shown(picture)
    pixels = np.asarray(picture.cpu() if isinstance(picture, Tensor) else picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"Expected a picture of uint8 (H, W, 3), got {pixels.dtype} {pixels.shape}.")
    return Image.fromarray(pixels)


def load_localiser(
    path: str | Path,
    device: str | torch.device = "auto",
    *,
    frame_geometry: GeometryMode = "squash",
    clip_seconds: float = 10.0,
) -> Localiser:
    """Rebuild a trained model from a file of main.py, a released one, or a results folder of SSPL's authors.

    `device` is auto (the GPU where there is one), cpu, cuda or cuda:<number>; `frame_geometry` says how
    pictures become square, `clip_seconds` how long the sounds are of whose middle SSL-Align hears 3 s, which
    are repeated or cut to that. It turns TF32 off. A file that is broken, unknown or unfit is a ValueError.
    """
    device = pick_device(device) if isinstance(device, str) else device
    use_full_float32()
    checkpoint = read_any_checkpoint(Path(path))
    method = checkpoint.method
    if non_finite := find_non_finite(checkpoint.state_dict):
        raise ValueError(
            f"{path} holds numbers that are not finite in {len(non_finite)} tensors, first: "
            f"{', '.join(non_finite[:5])}. Training diverged, or the file is damaged."
        )
    if method not in SCORED:
        raise ValueError(f"{path}: unknown method '{method}'; there are {list(SCORED)}.")
    try:
        audio = SCORED[method].groups["audio"](**checkpoint.audio_config)
        if isinstance(audio, AlignSpectrogramConfig):
            start = (clip_seconds - audio.excerpt_seconds) / 2
            audio = replace(audio, window_seconds=clip_seconds, excerpt_start=start)
        frame = FrameConfig(**checkpoint.frame_config)
        config = dict(checkpoint.method_config)
        config.pop("audio_encodings", None)  # of earlier versions; it changed no result
        model = build_localiser(method, config, audio, frame)
        model.load_state_dict(checkpoint.state_dict)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model it names: {error}") from error
    return Localiser(ready_to_localise(model, device), audio, frame, checkpoint, frame_geometry)


def ready_to_localise(model: nn.Module, device: torch.device) -> Any:  # noqa: ANN401 - the model itself
    """Move a model to the device, in eval mode and in the layout that is fast there."""
    # A CPU's convolutions are 1.2 x as fast with the channels innermost; a GPU's in float32 are slower.
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    return model.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
