"""Similarity maps of a benchmark in a file, to be scored again without the model and the data."""

import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from utils.distributed import gather_objects, is_main_process
from utils.evaluation.localisation import EvaluationBatch, LocalisedBatch
from utils.evaluation.protocols import ObjectMaps
from utils.files import file_sha256, write_atomically
from utils.leaks import Leak
from utils.published_lists import KnownLists
from utils.results import EvaluationContext

FORMAT = "similarity maps of visual sound localisation, version 1"
NO_BOXES = -1
"""stands for the number of boxes of a clip whose object is outlined"""

BatchType = TypeVar("BatchType", bound=EvaluationBatch)


@dataclass(frozen=True)
class SavedBrokenClip:
    """A clip that could not be decoded when the maps were made."""

    clip_id: str
    reason: str


@dataclass(frozen=True)
class SavedBatch:
    """What evaluation needs of clips, without their frames and sounds."""

    clip_ids: tuple[str, ...]
    ground_truth_maps: NDArray[np.float32] | None
    bounding_boxes: tuple[NDArray[np.float64] | None, ...]
    pair_keys: tuple[str | None, ...]
    broken: tuple[SavedBrokenClip, ...] = ()


@dataclass(frozen=True)
class _Part:
    """What is kept of a batch."""

    clips: SavedBatch
    """without ground-truth maps: they take 200 kB each"""
    maps: NDArray[np.float32]
    object_maps: NDArray[np.float32] | None
    truth_bits: dict[float, NDArray[np.uint8]]
    """value above 0 of the ground-truth maps -> (B, M * M / 8) where it stands"""


class MapsRecorder:
    """Keeps the maps of an evaluation as they pass."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._parts: list[_Part] = []

    def watched(self, localised: Iterable[LocalisedBatch[BatchType]]) -> Iterator[LocalisedBatch[BatchType]]:
        """The same batches, each kept once it is scored."""
        for found in localised:
            yield found
            self._parts.append(_part_of(found))

    def write(self, path: Path, context: EvaluationContext, map_size: int) -> None:
        """Writes what all processes have kept, in the order of their ranks, from the main one.

        Args:
            path: of the file.
            context: of the evaluation.
            map_size: side of the ground-truth maps, pixels.
        """
        parts = gather_objects(self._parts)
        if not is_main_process():
            return
        header = {
            "format": FORMAT,
            "context": asdict(context),
            "map_size": map_size,
            "clip_ids": [clip_id for part in parts for clip_id in part.clips.clip_ids],
            "pair_keys": [key for part in parts for key in part.clips.pair_keys],
            "broken": [asdict(clip) for part in parts for clip in part.clips.broken],
        }
        arrays = {
            "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
            **_joined(parts, (map_size**2 + 7) // 8),
        }
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # see utils/embeddings.py
        write_atomically(path, file.getbuffer())


def _part_of(found: LocalisedBatch[BatchType]) -> _Part:
    batch = found.batch
    clips = SavedBatch(
        tuple(batch.clip_ids),
        None,
        tuple(batch.bounding_boxes),
        tuple(batch.pair_keys),
        tuple(SavedBrokenClip(broken.clip_id, broken.reason) for broken in batch.broken),
    )
    if found.similarity_maps is None:
        return _Part(clips, np.zeros((0, 1, 1), np.float32), None, {})
    truth = batch.ground_truth_maps
    assert truth is not None, "without it there are no scores"
    flat = truth.reshape(len(truth), -1)
    return _Part(
        clips,
        found.similarity_maps.float().cpu().numpy(),
        None if found.objects is None else found.objects.maps.float().cpu().numpy(),
        {float(level): np.packbits(flat == level, axis=1) for level in np.unique(flat) if level != 0},
    )


def _joined(parts: Sequence[_Part], num_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of all parts as one."""
    full = [part for part in parts if part.clips.clip_ids]
    levels = sorted({level for part in full for level in part.truth_bits})
    boxes = [boxes for part in full for boxes in part.clips.bounding_boxes]
    arrays: dict[str, NDArray[Any]] = {
        "maps": np.concatenate([part.maps for part in full]),
        "truth_levels": np.array(levels, np.float32),
        "num_boxes": np.array([NO_BOXES if one is None else len(one) for one in boxes], np.int64),
        "boxes": np.concatenate([np.zeros((0, 4)), *(one for one in boxes if one is not None)]),
    }
    for place, level in enumerate(levels):
        nowhere = np.zeros((1, num_bytes), np.uint8)
        arrays[f"truth_{place}"] = np.concatenate(
            [part.truth_bits.get(level, nowhere.repeat(len(part.clips.clip_ids), axis=0)) for part in full]
        )
    object_maps = [part.object_maps for part in full if part.object_maps is not None]
    if object_maps:
        arrays["object_maps"] = np.concatenate(object_maps)
    return arrays


@dataclass(frozen=True)
class SavedMaps:
    """A file of maps, read."""

    context: EvaluationContext
    """of the evaluation that made them"""
    map_size: int
    """side of the ground-truth maps, pixels"""
    clips: SavedBatch
    """all of them, without ground-truth maps"""
    maps: NDArray[np.float32]
    """(N, h, w)"""
    object_maps: NDArray[np.float32] | None
    """(N, h', w'); None: the model alone"""
    truth_levels: NDArray[np.float32]
    """(L,) values above 0 of the ground-truth maps"""
    truth_bits: tuple[NDArray[np.uint8], ...]
    """L times (N, M * M / 8)"""

    def batches(
        self, places: Sequence[int], batch_size: int, device: torch.device
    ) -> Iterator[LocalisedBatch[SavedBatch]]:
        """Some of the clips with their maps, for `score_maps`; the first has the broken clips.

        Args:
            places: of the clips.
            batch_size: clips of a batch.
            device: for the maps.
        """
        if 0 in places and self.clips.broken:
            yield LocalisedBatch(SavedBatch((), None, (), (), self.clips.broken), None)
        for start in range(0, len(places), batch_size):
            part = list(places[start : start + batch_size])
            batch = SavedBatch(
                tuple(self.clips.clip_ids[place] for place in part),
                self._truths(part),
                tuple(self.clips.bounding_boxes[place] for place in part),
                tuple(self.clips.pair_keys[place] for place in part),
            )
            objects = None
            if self.object_maps is not None and self.context.object_prior is not None:
                of_clips = torch.from_numpy(self.object_maps[part]).to(device)
                objects = ObjectMaps(of_clips, self.context.object_prior)
            yield LocalisedBatch(batch, torch.from_numpy(self.maps[part]).to(device), objects)

    def _truths(self, places: list[int]) -> NDArray[np.float32]:
        num_pixels = self.map_size**2
        truths = np.zeros((len(places), num_pixels), np.float32)
        for level, bits in zip(self.truth_levels, self.truth_bits, strict=True):
            truths[np.unpackbits(bits[places], axis=1, count=num_pixels).view(np.bool_)] = level
        return truths.reshape(len(places), self.map_size, self.map_size)


def read_saved_maps(path: Path) -> SavedMaps:
    """Reads a file that MapsRecorder wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is broken, or another kind of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No saved maps at {path}: --from-maps takes a file that --save-maps wrote.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}, not {FORMAT!r}")
            saved = _parse(header, {name: stored[name] for name in stored.files})
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise _not_saved_maps(path, error) from error
    except zipfile.BadZipFile as error:
        raise _not_saved_maps(path, error) from error
    source = {
        "path": str(path),
        "sha256": file_sha256(path),
        "made_by": saved.context.command,
        "made_with": saved.context.environment,
    }
    return replace(saved, context=replace(saved.context, saved_maps=source))


def _not_saved_maps(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is broken, or no file of --save-maps ({error!r}); write it again, or name another."
    )


def _parse(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> SavedMaps:
    plain = header["context"]
    context = EvaluationContext(
        **{
            **plain,
            "missing": tuple(plain["missing"]),
            "leak": Leak(**{**plain["leak"], "first": tuple(plain["leak"]["first"])}),
            "known_lists": KnownLists(**plain["known_lists"]),
        }
    )
    counts = arrays["num_boxes"].tolist()
    ends = np.cumsum([max(count, 0) for count in counts])
    boxes = [
        None if count == NO_BOXES else arrays["boxes"][end - count : end]
        for count, end in zip(counts, ends, strict=True)
    ]
    saved = SavedMaps(
        context,
        header["map_size"],
        SavedBatch(
            tuple(header["clip_ids"]),
            None,
            tuple(boxes),
            tuple(header["pair_keys"]),
            tuple(SavedBrokenClip(**broken) for broken in header["broken"]),
        ),
        arrays["maps"],
        arrays.get("object_maps"),
        arrays["truth_levels"],
        tuple(arrays[f"truth_{place}"] for place in range(len(arrays["truth_levels"]))),
    )
    _check(saved)
    return saved


def _check(saved: SavedMaps) -> None:
    """Refuses parts that do not fit each other."""
    num_clips = len(saved.clips.clip_ids)
    of_clips: list[Sized] = [saved.maps, saved.clips.pair_keys, saved.clips.bounding_boxes, *saved.truth_bits]
    if saved.object_maps is not None:
        of_clips.append(saved.object_maps)
    lengths = {len(part) for part in of_clips}
    num_bytes = (saved.map_size**2 + 7) // 8
    if (
        lengths != {num_clips}
        or any(bits.shape[1] != num_bytes or bits.dtype != np.uint8 for bits in saved.truth_bits)
        or any(maps.dtype != np.float32 or maps.ndim != 3 for maps in (saved.maps,))
        or (saved.object_maps is None) != (saved.context.object_prior is None)
    ):
        raise ValueError("its parts do not belong together")
