"""Embeddings of clips: computed batch by batch, kept in a file, read again."""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from utils.distributed import gather_objects, is_main_process
from utils.files import write_atomically

logger = logging.getLogger(__name__)

MAX_IMAGE_BYTES = 8 << 30
"""Most bytes that the embeddings of all frames may take"""


@runtime_checkable
class Embedder(Protocol):
    """What a model must offer for retrieval."""

    def embed_audio(self, audio_input: Tensor) -> Tensor:
        """Sounds, as the method's views give them -> (B, D), unit norm."""
        ...

    def embed_frames(self, frames: Tensor, pooling: str) -> Tensor:
        """Normalised frames (B, 3, H, W) -> (B, D) or, by position, (B, P, D), unit norm."""
        ...


class EmbeddingBatch(Protocol):
    """What is needed of a batch."""

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """B ids."""
        ...

    @property
    def broken(self) -> Sequence[Any]:
        """Clips of this batch that could not be decoded."""
        ...


BatchType = TypeVar("BatchType", bound=EmbeddingBatch)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N clips, on the CPU."""

    clip_ids: tuple[str, ...]
    audio: Tensor
    """float32 (N, D), unit norm"""
    image: Tensor | None
    """float32 (N, D) or (N, P, D), unit norm; None where only sounds were embedded"""
    unreadable: tuple[tuple[str, str], ...] = field(default=())
    """(clip id, reason) of clips that broke while being decoded"""

    def of(self, modality: str) -> Tensor:
        """Those of the sounds ("audio") or of the frames ("image").

        Raises:
            ValueError: the frames were not embedded.
        """
        found = self.audio if modality == "audio" else self.image
        if found is None:
            raise ValueError("These embeddings are of sounds only; the frames were not embedded.")
        return found


@torch.inference_mode()
def embed_clips(
    model: object,
    batches: Iterable[BatchType],
    views: Callable[[BatchType], tuple[Tensor, Tensor]],
    *,
    num_clips: int,
    image_pooling: str | None,
) -> Embeddings:
    """Embeds clips, each decoded once.

    Args:
        model: an Embedder in evaluation mode.
        batches: decoded clips, each exactly once.
        views: batch -> normalised frames and the input of the method's audio encoder.
        num_clips: most clips that come.
        image_pooling: how a frame's map becomes its embedding; None: sounds only.

    Raises:
        ValueError: no clip could be decoded, an embedding is not finite, the frames' would take
            more than MAX_IMAGE_BYTES, or the model has none, or none of a frame alone.
    """
    if not isinstance(model, Embedder):
        raise ValueError(
            f"{type(model).__name__} has no embeddings for retrieval: it lacks embed_audio and embed_frames."
        )
    clip_ids: list[str] = []
    unreadable: list[tuple[str, str]] = []
    stores: dict[str, Tensor] = {}
    for batch in batches:
        unreadable.extend((broken.clip_id, broken.reason) for broken in batch.broken)
        if not batch.clip_ids:
            continue
        frames, audio_input = views(batch)
        found = {"audio": model.embed_audio(audio_input)}
        if image_pooling is not None:
            found["image"] = model.embed_frames(frames, image_pooling)
        for modality, vectors in found.items():
            _check_finite(vectors, batch.clip_ids, modality)
            if modality not in stores:
                stores[modality] = _new_store(vectors, num_clips)
            stores[modality][len(clip_ids) : len(clip_ids) + len(vectors)] = vectors.float().cpu()
        clip_ids += batch.clip_ids
    if not clip_ids:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be embedded ({len(unreadable)} unreadable{first}).")
    parts = {modality: store[: len(clip_ids)] for modality, store in stores.items()}
    return Embeddings(tuple(clip_ids), parts["audio"], parts.get("image"), tuple(unreadable))


def _check_finite(vectors: Tensor, clip_ids: Sequence[str], modality: str) -> None:
    finite = vectors.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        first = clip_ids[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"The {modality} embedding of clip {first} is not finite, so it has no neighbours. Its "
            "file is damaged, or the model is."
        )


def _new_store(vectors: Tensor, num_clips: int) -> Tensor:
    shape = (num_clips, *vectors.shape[1:])
    num_bytes = 4 * torch.Size(shape).numel()
    if num_bytes > MAX_IMAGE_BYTES:
        raise ValueError(
            f"The embeddings of {num_clips} clips would take {num_bytes / 2**30:.0f} GiB, more "
            f"than {MAX_IMAGE_BYTES / 2**30:.0f}. Keep one vector a frame (--image-pooling max or "
            "mean), or score fewer clips (--clip-list)."
        )
    return torch.empty(shape, dtype=torch.float32)


def merge_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """One after the other, e.g. those of several processes; all with frames, or all without."""
    if len(parts) == 1:
        return parts[0]
    images = [part.image for part in parts if part.image is not None]
    return Embeddings(
        tuple(clip_id for part in parts for clip_id in part.clip_ids),
        torch.cat([part.audio for part in parts]),
        torch.cat(images) if images else None,
        tuple(broken for part in parts for broken in part.unreadable),
    )


def embeddings_identity(
    checkpoint_sha256: str, clip_ids: Sequence[str], frame_geometry: str
) -> dict[str, str]:
    """What embeddings are of, for `save_embeddings` and `load_embeddings`.

    Args:
        checkpoint_sha256: of the model's file.
        clip_ids: of all clips that were to be embedded, in their order.
        frame_geometry: how frames become squares.
    """
    return {
        "checkpoint": checkpoint_sha256,
        "clips": hashlib.sha256("\n".join(clip_ids).encode()).hexdigest(),
        "frame geometry": frame_geometry,
    }


def save_embeddings(
    path: Path, embeddings: Embeddings, identity: Mapping[str, str], image_pooling: str | None
) -> None:
    """Writes embeddings into an .npz: clip_ids, audio, image where there is one, and a record.

    Args:
        path: the file to write or to replace.
        embeddings: of clips.
        identity: what they are of.
        image_pooling: of the frames; None without them.
    """
    record = {**identity, "image pooling": image_pooling, "unreadable": embeddings.unreadable}
    arrays = {"audio": embeddings.audio.numpy()}
    if embeddings.image is not None:
        arrays["image"] = embeddings.image.numpy()
    content = io.BytesIO()
    np.savez(
        content,
        clip_ids=np.array(embeddings.clip_ids, dtype=np.str_),
        record=np.array(json.dumps(record)),
        **arrays,  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    )
    write_atomically(path, content.getbuffer())


def load_embeddings(path: Path, identity: Mapping[str, str], image_pooling: str | None) -> Embeddings | None:
    """Reads what `save_embeddings` wrote.

    Args:
        path: the file.
        identity: what the embeddings must be of.
        image_pooling: of the frames; None: sounds will do.

    Returns:
        None where there is no file, or one of sounds only where frames are wanted too.

    Raises:
        FileExistsError: they are of another checkpoint, other clips or another treatment.
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        record: dict[str, Any] = json.loads(str(arrays["record"]))
        clip_ids = tuple(arrays["clip_ids"].tolist())
        audio = torch.from_numpy(arrays["audio"])
        image = torch.from_numpy(arrays["image"]) if "image" in arrays else None
        unreadable = tuple((clip_id, reason) for clip_id, reason in record["unreadable"])
        pooled_by = record["image pooling"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole file of embeddings ({error}). Delete it: it is made again."
        ) from error
    wanted = {**identity, "image pooling": image_pooling}
    if None in (image_pooling, pooled_by):
        del wanted["image pooling"]
    different = [name for name, value in wanted.items() if record.get(name) != value]
    if different:
        raise FileExistsError(
            f"{path} holds the embeddings of another evaluation (another {', '.join(different)}). "
            "Name another --output."
        )
    if image_pooling is not None and image is None:
        return None
    return Embeddings(clip_ids, audio, image, unreadable)


def read_or_embed(
    path: Path, identity: Mapping[str, str], image_pooling: str | None, embed: Callable[[], Embeddings]
) -> Embeddings:
    """Embeddings from their file; where it is not there, computed by all processes and kept.

    Args:
        path: the file.
        identity: what the embeddings must be of.
        image_pooling: of the frames; None: sounds only.
        embed: computes those of this process's part of the clips.

    Raises:
        FileExistsError: the file holds others.
        ValueError: the file is damaged, or what `embed` raises.
    """
    known = load_embeddings(path, identity, image_pooling)
    if known is not None:
        logger.info("Embeddings of %d clips from %s.", len(known.clip_ids), path)
        return known
    embeddings = merge_embeddings(gather_objects([embed()]))
    if is_main_process():
        save_embeddings(path, embeddings, identity, image_pooling)
    return embeddings
