"""Pictures of an evaluation: overlays written as it goes, galleries chosen at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.evaluation.localisation import EvaluationBatch
from utils.report import Gallery, GalleryClip
from utils.reports.visualisation import encode_jpeg, encode_mp3, overlay_localisation_map, write_jpeg
from utils.scores import ClipScore


class PictureBatch(EvaluationBatch, Protocol):
    """What pictures need of a batch beside its scores."""

    @property
    def frames(self) -> Tensor:
        """uint8 (B, 3, S, S)."""
        ...

    @property
    def bounding_boxes(self) -> tuple[NDArray[np.float64] | None, ...]:
        """(N, 4) fractions, per clip."""
        ...

    @property
    def waveforms(self) -> Tensor:
        """float32 (B, L') of the longest sound."""
        ...

    @property
    def sound_lengths(self) -> tuple[int, ...]:
        """B lengths of the sounds, samples."""
        ...


@dataclass(frozen=True)
class DrawnClip:
    """A clip's frame and its overlay, both (M, M, 3) uint8 RGB."""

    score: ClipScore
    frame: NDArray[np.uint8]
    overlay: NDArray[np.uint8]


def draw_clips(
    batch: PictureBatch, maps: NDArray[np.float32], scores: Sequence[ClipScore]
) -> list[DrawnClip]:
    """Draws heat map, boxes and score on each frame.

    Args:
        batch: the clips.
        maps: (B, M, M) localisation maps.
        scores: of the clips that are wanted, the batch's first.
    """
    size, count = maps.shape[1:], len(scores)
    frames = batch.frames[:count].permute(0, 2, 3, 1).cpu().numpy()
    drawn = []
    for frame, heat, annotated, score in zip(
        frames, maps[:count], batch.bounding_boxes[:count], scores, strict=True
    ):
        boxes = np.zeros((0, 4)) if annotated is None else np.clip(annotated, 0, 1)
        # VGG-SS holds inverted boxes, which annotate nothing.
        visible = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        scaled = frame if frame.shape[:2] == size else cv2.resize(frame, size[::-1])
        # Constant maps lie outside [0, 1] under the median rule, see utils/evaluation/protocols.py.
        overlay = overlay_localisation_map(
            scaled, np.clip(heat, 0, 1), boxes[visible], f"cIoU {score.ciou:.2f}"
        )
        drawn.append(DrawnClip(score, scaled, overlay))
    return drawn


class OverlayWriter:
    """Writes the overlays of the first clips of an evaluation; pass it as `on_batch`."""

    def __init__(self, folder: Path, limit: float) -> None:
        """Nothing is written yet.

        Args:
            folder: for <clip_id>.jpg.
            limit: how many, or infinity.
        """
        self.folder = folder
        self.limit = limit
        self.num_written = 0

    def __call__(self, batch: PictureBatch, maps: Tensor, scores: Sequence[ClipScore]) -> None:
        """Draws and writes what is still wanted of a batch."""
        wanted = int(min(self.limit - self.num_written, len(scores)))
        for clip in draw_clips(batch, maps[:wanted].cpu().numpy(), scores[:wanted]):
            write_jpeg(self.folder / f"{clip.score.clip_id}.jpg", clip.overlay)
            self.num_written += 1


def choose_clips(scores: Sequence[ClipScore], count: int) -> dict[str, list[str]]:
    """Clip ids for the galleries: best, around the median, and worst, each clip once.

    Args:
        scores: of all clips.
        count: wanted of each; fewer where there are not enough.
    """
    ordered = sorted(scores, key=lambda s: (-np.nan_to_num(s.ciou), s.clip_id))
    count = min(count, len(ordered) // 3 or len(ordered))
    start = (len(ordered) - count) // 2
    chosen = {
        "Best clips": ordered[:count],
        "Clips around the median": ordered[start : start + count],
        "Worst clips": ordered[::-1][:count],
    }
    seen: set[str] = set()
    galleries: dict[str, list[str]] = {}
    for title, clips in chosen.items():
        galleries[title] = [clip.clip_id for clip in clips if clip.clip_id not in seen]
        seen.update(galleries[title])
    return {title: clip_ids for title, clip_ids in galleries.items() if clip_ids}


class PictureCollector:
    """Keeps every clip of an evaluation to be shown; pass it as `on_batch` for a few clips."""

    def __init__(self, sample_rate: int) -> None:
        """Nothing is drawn yet.

        Args:
            sample_rate: of the batches' sounds, Hz.
        """
        self.sample_rate = sample_rate
        self.drawn: dict[str, DrawnClip] = {}
        self.sounds: dict[str, bytes] = {}

    def __call__(self, batch: PictureBatch, maps: Tensor, scores: Sequence[ClipScore]) -> None:
        """Draws a batch, and keeps what was heard."""
        drawn = draw_clips(batch, maps.cpu().numpy(), scores)
        self.drawn.update({clip.score.clip_id: clip for clip in drawn})
        heard = zip(scores, batch.waveforms.cpu().numpy(), batch.sound_lengths, strict=True)
        for score, waveform, length in heard:
            self.sounds[score.clip_id] = encode_mp3(waveform[:length], self.sample_rate)

    def galleries(self, chosen: dict[str, list[str]]) -> list[Gallery]:
        """The galleries of the chosen clips, frame and overlay side by side, the sound below."""
        return [
            # A clip that breaks between its two readings is left out of the pictures.
            Gallery(title, [self._gallery_clip(i) for i in clip_ids if i in self.drawn])
            for title, clip_ids in chosen.items()
        ]

    def _gallery_clip(self, clip_id: str) -> GalleryClip:
        clip = self.drawn[clip_id]
        pictures = [encode_jpeg(clip.frame), encode_jpeg(clip.overlay)]
        return GalleryClip(clip_id, clip.score.ciou, pictures, "", self.sounds[clip_id])
