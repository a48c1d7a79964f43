"""Clips and the one Dataset that decodes them."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.annotations import consensus_map, mask_map
from datasets.audio import AudioWindow, load_waveform
from datasets.frames import FrameGeometry, read_frame, to_tensor
from datasets.hdf5 import Source
from utils.files import BrokenFileError, decoding

Content = Literal["both", "frames", "sounds", "truth"]  # truth: its boxes or its mask alone


@dataclass(frozen=True)
class Clip:
    """One frame with its sound, and its boxes or its mask where the data set has them."""

    clip_id: str
    frame_source: Source
    audio_source: Source
    bounding_boxes: NDArray[np.float64] | None = None  # (N, 4) fractions of the frame on disk
    annotators_needed: int = 1  # boxes that make a full vote, see consensus_map
    mask_source: Path | None = None  # picture of the object, where the data set has no boxes
    pair_key: str | None = None  # what clips of one scene with different sounds share, where there are pairs

    @property
    def scene(self) -> str:
        """What clips whose frames show the same have in common: the pair, or the picture."""
        return self.pair_key or str(self.frame_source)

    @property
    def sound(self) -> str:
        """What clips that sound the same have in common: the file."""
        return str(self.audio_source)


class Mixture(NamedTuple):
    """A request for a clip that is heard together with another's sound, see datasets/mixing.py."""

    position: int  # of the clip in the data set
    partner: int  # position of the clip whose sound is mixed in
    strength: float  # share of that sound


@dataclass(frozen=True)
class Sample:
    """One decoded clip."""

    clip_id: str
    frame: Tensor  # (3, S, S), see FrameGeometry.to_square, or uint8 (3, H, W) still to be cropped
    waveform: Tensor  # float32 (L,), the whole window
    bounding_boxes: NDArray[np.float64] | None = None  # (N, 4) fractions of `frame`
    ground_truth_map: NDArray[np.float32] | None = None  # (M, M) in [0, 1]
    pair_key: str | None = None


@dataclass(frozen=True)
class BrokenClip:
    """A clip whose files could not be decoded."""

    clip_id: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Samples side by side; broken clips are left out and named."""

    clip_ids: tuple[str, ...]
    # (B, 3, S, S), see FrameGeometry.to_square, or uint8 (B, 3, H, W) still to be cropped: smaller
    # ones lie in the top-left corner, the rest is 0.
    frames: Tensor
    waveforms: Tensor  # float32 (B, L), the whole window
    bounding_boxes: tuple[NDArray[np.float64] | None, ...]
    ground_truth_maps: NDArray[np.float32] | None  # (B, M, M) in [0, 1], where there are boxes or masks
    broken: tuple[BrokenClip, ...]
    picture_sizes: tuple[tuple[int, int], ...] = ()  # B heights and widths in `frames`, pixels
    pair_keys: tuple[str | None, ...] = ()  # equal for clips of one scene with different sounds

    def __len__(self) -> int:
        """B."""
        return len(self.clip_ids)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        frames, waveforms = (t.to(device, non_blocking=True) for t in (self.frames, self.waveforms))
        return replace(self, frames=frames, waveforms=waveforms)

    def part(self, chosen: slice) -> "Batch":
        """Return some of the samples; the broken clips stay with the whole batch."""
        fields = {name: value for name, value in vars(self).items() if name != "broken" and value is not None}
        return replace(self, **{name: value[chosen] for name, value in fields.items()}, broken=())

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory, for asynchronous copies; called by DataLoader."""
        return replace(self, frames=self.frames.pin_memory(), waveforms=self.waveforms.pin_memory())


def with_wrong_sounds(clips: Sequence[Clip], seed: int = 0) -> list[Clip]:
    """Return the same frames and boxes, each with the sound of another scene's clip; the seed chooses.

    A model that listens must do worse on them; one that only sees does as well.

    Raises:
        ValueError: all sounds belong to one scene.
    """
    own: dict[str, set[str]] = {}
    for clip in clips:
        own.setdefault(clip.scene, set()).add(clip.sound)
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    wrong = list(clips)
    for place, position in enumerate(order):
        right = own[clips[position].scene]
        following = (clips[order[(place + step) % len(order)]] for step in range(1, len(order)))
        other = next((clip for clip in following if clip.sound not in right), None)
        if other is None:
            raise ValueError(
                "--audio shuffled needs at least two clips with sounds of their own, and of "
                f"different scenes; for {clips[position].clip_id} there is no other sound."
            )
        wrong[position] = replace(clips[position], audio_source=other.audio_source)
    return wrong


@dataclass(eq=False, repr=False)
class AudioVisualClips(Dataset[Sample | BrokenClip]):
    """Decodes clips: frames as squares, or as they are stored for a random crop on the device."""

    clips: Sequence[Clip]  # what to decode, in order
    _: KW_ONLY
    geometry: FrameGeometry  # from the frame on disk to the square
    audio: AudioWindow  # which part of each sound
    excerpt_seconds: float | None = None  # use only the first seconds of each sound; None: the window
    random_crop: bool = False  # leave frames as they are stored, and the crop to the device
    keep_shape: bool = False  # only make their short side that of the square; the device crops
    map_size: int = 224  # side of the ground-truth map, pixels
    content: Content = "both"  # which half of a clip is read; the other one is empty, and may be broken

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def __getitem__(self, request: int | Mixture) -> Sample | BrokenClip:
        """Decode one clip; a broken file gives a BrokenClip, never another clip."""
        clip = self.clips[request if isinstance(request, int) else request.position]
        try:
            with decoding(clip.clip_id):
                return self._decode(clip, request)
        except BrokenFileError as error:
            return BrokenClip(clip.clip_id, str(error))

    def _decode(self, clip: Clip, request: int | Mixture) -> Sample:
        waveform = torch.empty(0)
        if self.content in ("both", "sounds"):
            waveform = self._hear(clip)
        if isinstance(request, Mixture):
            other = self._hear(self.clips[request.partner], " (the sound to be mixed in)")
            waveform = (1 - request.strength) * waveform + request.strength * other  # (L,)
        if self.content == "sounds":
            return Sample(clip.clip_id, torch.empty(3, 0, 0, dtype=torch.uint8), waveform)
        keeps_boxes = self.geometry.mode != "centre_crop"
        if self.content == "truth" and keeps_boxes and clip.mask_source is None:
            picture = Image.new("RGB", (1, 1))  # fractions of a frame stay what they are
        else:
            picture = read_frame(clip.frame_source)
        boxes, ground_truth_map = self._truth_of(clip, picture)
        shaped = self.geometry.to_short_side if self.keep_shape else self.geometry.to_square
        frame = to_tensor(picture) if self.random_crop else shaped(picture)
        return Sample(clip.clip_id, frame, waveform, boxes, ground_truth_map, clip.pair_key)

    def _hear(self, clip: Clip, role: str = "") -> Tensor:
        try:
            return load_waveform(clip.audio_source, self.audio, excerpt_seconds=self.excerpt_seconds)
        except BrokenFileError as error:
            raise BrokenFileError(error.path, error.reason + role) from error

    def _truth_of(
        self, clip: Clip, picture: Image.Image
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float32] | None]:
        """Return boxes (N, 4) as fractions of the square and map (M, M); none if no square is cut yet."""
        if self.random_crop or self.keep_shape:
            return None, None
        if clip.mask_source is not None:
            return None, mask_map(clip.mask_source, self.geometry, picture.size, self.map_size)
        if clip.bounding_boxes is None:
            return None, None
        boxes = self.geometry.apply_to_boxes(clip.bounding_boxes, *picture.size)
        return boxes, consensus_map(boxes, annotators_needed=clip.annotators_needed, size=self.map_size)


def collate(samples: Sequence[Sample | BrokenClip]) -> Batch:
    """Make a batch of samples; one whose clips are all broken has length 0."""
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    maps = [s.ground_truth_map for s in whole if s.ground_truth_map is not None]
    return Batch(
        clip_ids=tuple(sample.clip_id for sample in whole),
        frames=_stack_pictures([sample.frame for sample in whole]),
        waveforms=torch.stack([sample.waveform for sample in whole]) if whole else torch.empty(0),
        bounding_boxes=tuple(sample.bounding_boxes for sample in whole),
        ground_truth_maps=np.stack(maps) if maps else None,
        broken=tuple(sample for sample in samples if isinstance(sample, BrokenClip)),
        picture_sizes=tuple((s.frame.shape[1], s.frame.shape[2]) for s in whole),
        pair_keys=tuple(sample.pair_key for sample in whole),
    )


def _stack_pictures(pictures: list[Tensor]) -> Tensor:
    """Stack (3, H, W) of any sizes to (B, 3, H, W) of the largest, channels last as decoded."""
    if not pictures:
        return torch.empty(0)
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    stacked = torch.zeros((len(pictures), height, width, 3), dtype=pictures[0].dtype)
    for place, picture in zip(stacked, pictures, strict=True):
        place[: picture.shape[1], : picture.shape[2]] = picture.movedim(0, 2)
    return stacked.movedim(3, 1)
