"""What frozen encoders make of each clip, kept on disk for training.

A cache is a folder <root>/<key>: key.json says of what, frame_maps.npy and sounds.npy hold the
features of every clip as float32, in the clips' order, and state.npy how far each clip is. The key
is a hash of everything that the features depend on, so that a cache is never used for other data,
other weights or other views.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.clips import Batch, BrokenClip, Clip, ClipRequest
from datasets.paired_views import choose_pair

FORMAT = "vssl-features-1"
MISSING, STORED, BROKEN = 0, 1, 2
"""States of a clip."""


def clips_fingerprint(clips: Sequence[Clip]) -> str:
    """Hash of the ids of clips and of the size and time of their files, which is read quickly."""
    total = hashlib.sha256()
    stamps: dict[Path, tuple[int, int]] = {}
    for clip in clips:
        for source in (clip.frame_source, clip.audio_source):
            path = source if isinstance(source, Path) else source.path
            if path not in stamps:
                status = path.stat()
                stamps[path] = (status.st_size, status.st_mtime_ns)
            row = "" if isinstance(source, Path) else f"{source.key} {source.row}"
            total.update(f"{clip.clip_id} {row} {stamps[path]}\n".encode())
    return total.hexdigest()


class FeatureCache:
    """Features of every clip: of its pool of views, and of its sound."""

    def __init__(
        self,
        root: Path,
        key: Mapping[str, Any],
        *,
        num_clips: int,
        frame_maps_shape: tuple[int, ...],
        sound_shape: tuple[int, ...],
    ) -> None:
        """Opens the cache of a key, or makes an empty one.

        Args:
            root: folder of all caches.
            key: everything that the features depend on, as plain values.
            num_clips: N.
            frame_maps_shape: of one clip, (K, D, h, w) for a pool of K views.
            sound_shape: of one clip, (S, 128).

        Raises:
            ValueError: files of the cache are damaged, or the disk has no room for them.
        """
        text = json.dumps({"format": FORMAT, **key}, indent=2, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shapes = {
            "frame_maps": ((num_clips, *frame_maps_shape), np.float32),
            "sounds": ((num_clips, *sound_shape), np.float32),
            "state": ((num_clips,), np.uint8),
        }
        if not self.folder.exists():
            self._make(text)
        self._open: dict[str, NDArray] = {}
        for name in self._shapes:
            self.array(name)

    def _make(self, key: str) -> None:
        """An empty cache, all of its room reserved, under its name only when it is complete."""
        unfinished = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")
        unfinished.mkdir(parents=True)
        try:
            for name, (shape, dtype) in self._shapes.items():
                path = unfinished / f"{name}.npy"
                np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
                self._reserve(path)
            (unfinished / "key.json").write_text(key)
            try:
                unfinished.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # else another process was as fast: as good as ours
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _reserve(self, path: Path) -> None:
        """Takes a file's room on the disk now: writing to a mapped file on a full one is fatal."""
        size = path.stat().st_size
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free
            raise ValueError(
                f"No room for the feature cache in {self.folder.parent}: {path.name} takes "
                f"{size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. Name another --feature-cache, "
                "or lower --view-pool."
            ) from error

    def array(self, name: str) -> NDArray:
        """frame_maps, sounds or state, mapped into memory; writing to it writes to the disk."""
        if name not in self._open:
            shape, dtype = self._shapes[name]
            try:
                mapped = np.load(self._path(name), mmap_mode="r+")
            except (OSError, ValueError) as error:
                raise ValueError(self._damaged(name)) from error
            if mapped.shape != shape or mapped.dtype != dtype:
                raise ValueError(self._damaged(name))
            self._open[name] = mapped
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: they map the files themselves."""
        return {**self.__dict__, "_open": {}}

    def missing(self) -> list[int]:
        """Positions of clips that are not stored yet."""
        return np.flatnonzero(self.array("state") == MISSING).tolist()

    def store(self, positions: Sequence[int], frame_maps: Tensor, sounds: Tensor) -> None:
        """Writes the features of some clips.

        Args:
            positions: n of them.
            frame_maps: (n, K, D, h, w).
            sounds: (n, S, 128).
        """
        chosen = list(positions)
        self.array("frame_maps")[chosen] = frame_maps.float().cpu().numpy()
        self.array("sounds")[chosen] = sounds.float().cpu().numpy()
        self._flush()
        self.array("state")[chosen] = STORED  # only after the features: a crash loses no truth
        self._flush()

    def mark_broken(self, position: int) -> None:
        """Notes that a clip's files cannot be decoded; mended files have another cache."""
        self.array("state")[position] = BROKEN

    def read(self, position: int, places: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Maps (n, D, h, w) at places of a clip's pool and its sound (S, 128); None if broken.

        Raises:
            ValueError: the clip is not stored yet.
        """
        state = self.array("state")[position]
        if state == BROKEN:
            return None
        if state != STORED:
            raise ValueError(f"{self.folder} lacks the features of clip {position}.")
        maps = self.array("frame_maps")[position][list(places)]
        return torch.from_numpy(maps), torch.from_numpy(self.array("sounds")[position].copy())

    def _flush(self) -> None:
        for array in self._open.values():
            array.flush()  # type: ignore[attr-defined]  # a numpy.memmap

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _damaged(self, name: str) -> str:
        return (
            f"{self._path(name)} is damaged or of another shape than {self._shapes[name][0]}. "
            f"Remove {self.folder}; it is made anew."
        )


@torch.no_grad()
def fill(
    cache: FeatureCache,
    positions: Mapping[str, int],
    batches: Iterable[Batch],
    encode: Callable[[Batch], tuple[Tensor, Tensor]],
) -> None:
    """Encodes and stores clips; stopped at any time, the next call goes on with what is missing.

    Args:
        cache: that lacks these clips.
        positions: of the clips in the cache, by id.
        batches: of decoded clips.
        encode: batch -> maps of all views (n, K, D, h, w) and sounds (n, S, 128).
    """
    with tqdm(total=len(positions), desc="frozen features", unit="clip") as bar:
        for batch in batches:
            for broken in batch.broken:
                cache.mark_broken(positions[broken.clip_id])
            if len(batch):
                cache.store([positions[clip_id] for clip_id in batch.clip_ids], *encode(batch))
            bar.update(len(batch) + len(batch.broken))


@dataclass(frozen=True)
class CachedSample:
    """A pair of views and the sound of a clip, as the frozen encoders see and hear them."""

    clip_id: str
    frame_maps: Tensor
    """(2, D, h, w)"""
    sound: Tensor
    """(S, 128)"""


@dataclass(frozen=True)
class FeatureBatch:
    """Cached samples side by side; clips that are broken are left out and named."""

    clip_ids: tuple[str, ...]
    frame_maps: Tensor
    """(B, 2, D, h, w)"""
    sounds: Tensor
    """(B, S, 128)"""
    broken: tuple[BrokenClip, ...]

    def __len__(self) -> int:
        """B."""
        return len(self.clip_ids)

    def to(self, device: torch.device) -> "FeatureBatch":
        """The batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, chosen: slice) -> "FeatureBatch":
        """Some of the batch's samples; the broken clips stay with the whole."""
        return replace(
            self,
            clip_ids=self.clip_ids[chosen],
            frame_maps=self.frame_maps[chosen],
            sounds=self.sounds[chosen],
            broken=(),
        )

    def pin_memory(self) -> "FeatureBatch":
        """The batch in page-locked memory; called by DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "FeatureBatch":
        return replace(self, frame_maps=change(self.frame_maps), sounds=change(self.sounds))


class CachedClips(Dataset[CachedSample | BrokenClip]):
    """Reads pairs of views from a cache, chosen as SSPLViews chooses them."""

    def __init__(self, cache: FeatureCache, clip_ids: Sequence[str], view_pool: int) -> None:
        """Takes a full cache.

        Args:
            cache: of these clips.
            clip_ids: N of them, in the cache's order.
            view_pool: K.
        """
        self.cache = cache
        self.clip_ids = clip_ids
        self.view_pool = view_pool

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clip_ids)

    def __getitem__(self, request: ClipRequest) -> CachedSample | BrokenClip:
        """Reads one clip; a broken one gives a BrokenClip, never another clip."""
        clip_id = self.clip_ids[request.position]
        features = self.cache.read(request.position, choose_pair(request.crop_seed, self.view_pool))
        if features is None:
            return BrokenClip(clip_id, "its files could not be decoded when the cache was made")
        return CachedSample(clip_id, *features)


def collate_features(samples: Sequence[CachedSample | BrokenClip]) -> FeatureBatch:
    """Samples -> FeatureBatch; a batch whose clips are all broken has length 0."""
    whole = [sample for sample in samples if isinstance(sample, CachedSample)]
    return FeatureBatch(
        clip_ids=tuple(sample.clip_id for sample in whole),
        frame_maps=torch.stack([s.frame_maps for s in whole]) if whole else torch.empty(0),
        sounds=torch.stack([s.sound for s in whole]) if whole else torch.empty(0),
        broken=tuple(sample for sample in samples if isinstance(sample, BrokenClip)),
    )


class CachedViews:
    """Keyword arguments of SSPL.forward from cached features."""

    shown = None
    """no frame is decoded, so none can be shown"""

    def __call__(
        self, batch: FeatureBatch, seed: int, *, first: int = 0, global_size: int | None = None
    ) -> dict[str, tuple[Tensor, ...]]:
        """Passes the features on; everything was drawn when they were read.

        Args:
            batch: of cached samples.
            seed: as SSLTIEViews; not used.
            first: as SSLTIEViews; not used.
            global_size: as SSLTIEViews; not used.
        """
        del seed, first, global_size
        return {"frozen_features": (*batch.frame_maps.unbind(1), batch.sounds)}
