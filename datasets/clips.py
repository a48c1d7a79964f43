"""Clips and the one Dataset that decodes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations import consensus_map
from datasets.audio import AudioWindow, load_waveform
from datasets.errors import BrokenFileError
from datasets.frames import FrameGeometry, random_resized_crop, read_frame, to_tensor


@dataclass(frozen=True)
class Clip:
    """One frame with its sound, and its boxes where the data set has them."""

    clip_id: str
    frame_path: Path
    audio_path: Path
    bounding_boxes: NDArray[np.float64] | None = None
    """(N, 4) fractions of the frame on disk"""
    annotators_needed: int = 1
    """boxes that make a full vote, see consensus_map"""


class ClipRequest(NamedTuple):
    """What a sampler asks the Dataset for: which clip, and the seed of its random crop."""

    position: int
    """of the clip in the data set"""
    crop_seed: int


@dataclass(frozen=True)
class Sample:
    """One decoded clip."""

    clip_id: str
    frame: Tensor
    """uint8 (3, S, S)"""
    waveform: Tensor
    """float32 (L,)"""
    bounding_boxes: NDArray[np.float64] | None
    """(N, 4) fractions of `frame`"""
    ground_truth_map: NDArray[np.float32] | None
    """(M, M) in [0, 1]"""


@dataclass(frozen=True)
class BrokenClip:
    """A clip whose files could not be decoded."""

    clip_id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Samples side by side; broken clips are left out and named."""

    clip_ids: tuple[str, ...]
    frames: Tensor
    """uint8 (B, 3, S, S)"""
    waveforms: Tensor
    """float32 (B, L)"""
    bounding_boxes: tuple[NDArray[np.float64] | None, ...]
    ground_truth_maps: NDArray[np.float32] | None
    """(B, M, M) in [0, 1]; None where the data set has no boxes"""
    broken: tuple[BrokenClip, ...]

    def __len__(self) -> int:
        """B."""
        return len(self.clip_ids)

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        return Batch(
            self.clip_ids,
            self.frames.to(device, non_blocking=True),
            self.waveforms.to(device, non_blocking=True),
            self.bounding_boxes,
            self.ground_truth_maps,
            self.broken,
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for asynchronous copies; called by DataLoader."""
        return Batch(
            self.clip_ids,
            self.frames.pin_memory(),
            self.waveforms.pin_memory(),
            self.bounding_boxes,
            self.ground_truth_maps,
            self.broken,
        )


def with_wrong_sounds(clips: Sequence[Clip], seed: int = 0) -> list[Clip]:
    """The same frames and boxes, each with the sound of another clip.

    A model that listens must do worse on them; one that only sees does as well.

    Args:
        clips: at least two.
        seed: the same seed and clips give the same pairs.

    Raises:
        ValueError: there is only one clip.
    """
    if len(clips) < 2:
        raise ValueError("--audio shuffled needs at least two clips.")
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    donors = dict(zip(order, order[1:] + order[:1], strict=True))
    return [
        replace(clip, audio_path=clips[donors[position]].audio_path)
        for position, clip in enumerate(clips)
    ]


class AudioVisualClips(Dataset[Sample | BrokenClip]):
    """Decodes clips: for training with a random crop, for testing whole."""

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        geometry: FrameGeometry,
        audio: AudioWindow,
        excerpt_seconds: float | None = None,
        random_crop: bool = False,
        map_size: int = 224,
    ) -> None:
        """Keeps what is needed to decode.

        Args:
            clips: what to decode, in order.
            geometry: from the frame on disk to the square.
            audio: which part of each sound.
            excerpt_seconds: use only the first seconds of each sound; None: the window.
            random_crop: cut frames at random by the request's seed instead of using them whole.
            map_size: side of the ground-truth map, pixels.
        """
        self.clips = clips
        self.geometry = geometry
        self.audio = audio
        self.excerpt_seconds = excerpt_seconds
        self.random_crop = random_crop
        self.map_size = map_size

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def __getitem__(self, request: ClipRequest) -> Sample | BrokenClip:
        """Decodes one clip; a broken file gives a BrokenClip, never another clip."""
        clip = self.clips[request.position]
        try:
            picture = read_frame(clip.frame_path)
            waveform = load_waveform(
                clip.audio_path, self.audio, excerpt_seconds=self.excerpt_seconds
            )
        except BrokenFileError as error:
            return BrokenClip(clip.clip_id, str(error))
        if self.random_crop:
            frame = random_resized_crop(picture, self.geometry.frame_size, request.crop_seed)
            return Sample(clip.clip_id, to_tensor(frame), waveform, None, None)
        frame = self.geometry.apply_to_frame(picture)
        boxes = ground_truth_map = None
        if clip.bounding_boxes is not None:
            boxes = self.geometry.apply_to_boxes(clip.bounding_boxes, *picture.size)
            ground_truth_map = consensus_map(
                boxes, annotators_needed=clip.annotators_needed, size=self.map_size
            )
        return Sample(clip.clip_id, to_tensor(frame), waveform, boxes, ground_truth_map)


def collate(samples: Sequence[Sample | BrokenClip]) -> Batch:
    """Samples -> Batch; a batch whose clips are all broken has length 0."""
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    maps = [s.ground_truth_map for s in whole if s.ground_truth_map is not None]
    return Batch(
        clip_ids=tuple(sample.clip_id for sample in whole),
        frames=_stack([sample.frame for sample in whole]),
        waveforms=_stack([sample.waveform for sample in whole]),
        bounding_boxes=tuple(sample.bounding_boxes for sample in whole),
        ground_truth_maps=np.stack(maps) if maps else None,
        broken=tuple(sample for sample in samples if isinstance(sample, BrokenClip)),
    )


def _stack(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if tensors else torch.empty(0)
