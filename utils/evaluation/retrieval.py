"""Retrieval: which clips a model finds alike, by the cosine of their embeddings.

Every clip is a query, and all clips are the gallery, in the order of the clip list; equal scores are
ordered by that too. By class (Acc@k, Prec@k, mAP) the query's own clip is no candidate, in whatever
modality; by clip (R@k) it is what must be found. A frame kept as positions scores its best position.

The search is exact. Embeddings are rounded to multiples of 2**-26, about what float32 holds of a
unit vector: their products are multiples of 2**-52, all sums stay below 2, and float64 adds them
without any rounding. So scores depend neither on blocks nor on threads or device, and equal vectors
have equal scores wherever they stand. mAP needs every score, so neighbours come from the same pass.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.evaluation.statistics import bootstrap_intervals
from utils.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS: dict[str, tuple[str, str]] = {
    "audio_to_audio": ("audio", "audio"),
    "audio_to_image": ("audio", "image"),
    "image_to_audio": ("image", "audio"),
}
"""Name -> what the queries are, and what the gallery is."""
NUM_SHOWN = 5
"""neighbours in per_query.csv and in the pictures"""
BLOCK_BYTES = 1 << 27
"""most bytes of one intermediate array of the search; about four of them live at a time"""
MAX_IMAGE_BYTES = 8 << 30
"""most bytes that the embeddings of all frames may take"""


def parse_directions(names: str) -> tuple[str, ...]:
    """Read names of DIRECTIONS with commas between them; ValueError: none, an unknown one, or one twice."""
    found = tuple(name.strip() for name in names.split(","))
    if len(set(found)) != len(found) or not set(found) <= DIRECTIONS.keys():
        raise ValueError(f"takes some of {', '.join(DIRECTIONS)}, each once, got {names!r}")
    return found


def parse_ks(numbers: str) -> tuple[int, ...]:
    """Read numbers of neighbours, in ascending order; ValueError: none, one below 1, or one twice."""
    parts = [part.strip() for part in numbers.split(",")]
    found = [int(part) if part.isdecimal() else 0 for part in parts]
    if min(found) < 1 or len(set(found)) != len(found):
        raise ValueError(f"takes whole numbers from 1 on, each once, such as 1,5,10; got {numbers}")
    return tuple(sorted(found))


# ------------------------------------------------------------------------------- embeddings


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N clips, on the CPU, float32, of unit norm, in multiples of 2**-26."""

    clip_ids: tuple[str, ...]
    audio: Tensor
    """(N, D)"""
    image: Tensor | None
    """(N, D) or, by position, (N, P, D); None where only sounds were embedded"""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(clip id, reason) of clips that broke while being decoded"""


def fixed_point(vectors: Tensor) -> Tensor:
    """Round to multiples of 2**-26, which float32 holds exactly up to 1."""
    return vectors.float().mul(2.0**26).round_().div_(2.0**26)


@torch.inference_mode()
def embed_clips(
    model: Any,  # noqa: ANN401
    batches: Iterable[Any],
    views: Callable[[Any], tuple[Tensor, Tensor]],
    *,
    num_clips: int,
    image_pooling: str | None,
) -> Embeddings:
    """Embed clips, each decoded once.

    Args:
        model: in evaluation mode, with `embed_audio` and `embed_frames`.
        batches: decoded clips, each exactly once.
        views: batch -> normalised frames and the input of the method's audio encoder.
        num_clips: most clips that come.
        image_pooling: how a frame's map becomes its embedding; None: sounds only.

    Raises:
        ValueError: no clip could be decoded, an embedding is not finite, the frames' would take
            more than MAX_IMAGE_BYTES, or the model has none, or none of a frame alone.
    """
    if not hasattr(model, "embed_audio") or not hasattr(model, "embed_frames"):
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
        frames, sounds = views(batch)
        found = {"audio": model.embed_audio(sounds)}
        if image_pooling is not None:
            found["image"] = model.embed_frames(frames, image_pooling)
        for modality, vectors in found.items():
            finite = vectors.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                first = batch.clip_ids[int(finite.logical_not().nonzero()[0])]
                raise ValueError(
                    f"The {modality} embedding of clip {first} is not finite, so it has no neighbours. "
                    "Its file is damaged, or the model is."
                )
            if modality not in stores:
                stores[modality] = _empty_store((num_clips, *vectors.shape[1:]))
            stores[modality][len(clip_ids) : len(clip_ids) + len(vectors)] = fixed_point(vectors).cpu()
        clip_ids += batch.clip_ids
    if not clip_ids:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be embedded ({len(unreadable)} unreadable{first}).")
    parts = {modality: store[: len(clip_ids)] for modality, store in stores.items()}
    return Embeddings(tuple(clip_ids), parts["audio"], parts.get("image"), tuple(unreadable))


def _empty_store(shape: tuple[int, ...]) -> Tensor:
    num_bytes = 4 * torch.Size(shape).numel()
    if num_bytes > MAX_IMAGE_BYTES:
        raise ValueError(
            f"The embeddings of {shape[0]} clips would take {num_bytes / 2**30:.0f} GiB, more "
            f"than {MAX_IMAGE_BYTES / 2**30:.0f}. Keep one vector a frame (--image-pooling max or "
            "mean), or score fewer clips (--clip-list)."
        )
    return torch.empty(shape)


def merge_embeddings(parts: Sequence[Embeddings]) -> Embeddings:
    """Join those of several processes; all with frames, or all without."""
    if len(parts) == 1:
        return parts[0]
    images = [part.image for part in parts if part.image is not None]
    return Embeddings(
        tuple(clip_id for part in parts for clip_id in part.clip_ids),
        torch.cat([part.audio for part in parts]),
        torch.cat(images) if images else None,
        tuple(broken for part in parts for broken in part.unreadable),
    )


def save_embeddings(path: Path, embeddings: Embeddings, identity: Mapping[str, str | None]) -> None:
    """Write an .npz of clip_ids, audio, image where there is one, and a record: the identity in JSON."""
    record = json.dumps({**identity, "unreadable": embeddings.unreadable})
    arrays: dict[str, Any] = {"clip_ids": np.array(embeddings.clip_ids), "record": np.array(record)}
    for name in ("audio", "image"):
        vectors = getattr(embeddings, name)
        arrays |= {} if vectors is None else {name: vectors.numpy()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, content.getbuffer())


def load_embeddings(path: Path, identity: Mapping[str, str | None]) -> Embeddings | None:
    """Read what `save_embeddings` wrote.

    Args:
        path: the file.
        identity: what the embeddings must be of; its "image pooling" is None where sounds will do.

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
        record = json.loads(str(arrays["record"]))
        clip_ids = tuple(arrays["clip_ids"].tolist())
        vectors = {n: fixed_point(torch.from_numpy(arrays[n])) for n in ("audio", "image") if n in arrays}
        unreadable = tuple((clip_id, reason) for clip_id, reason in record["unreadable"])
        loaded = Embeddings(clip_ids, vectors["audio"], vectors.get("image"), unreadable)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole file of embeddings ({error}). Delete it: it is made again."
        ) from error
    poolings = identity["image pooling"], record.get("image pooling")
    different = [
        name
        for name, value in identity.items()
        if record.get(name) != value and not (name == "image pooling" and None in poolings)
    ]
    if different:
        raise FileExistsError(
            f"{path} holds the embeddings of another evaluation (another {', '.join(different)}). "
            "Name another --output."
        )
    return None if poolings[0] is not None and loaded.image is None else loaded


# ------------------------------------------------------------------------------- search


class Neighbours(NamedTuple):
    """The best of a gallery for each query, the best first."""

    indices: NDArray[np.int64]
    """(Q, K) places in the gallery"""
    scores: NDArray[np.float64]
    """(Q, K) cosines"""


@torch.inference_mode()
def nearest(
    queries: Tensor,
    gallery: Tensor,
    count: int,
    *,
    device: torch.device | None = None,
    on_block: Callable[[slice, Tensor], object] | None = None,
) -> Neighbours:
    """Find exact nearest neighbours by cosine, block by block: never all scores at once.

    Args:
        queries: (Q, D) as in Embeddings, or (Q, P, D) with P positions each, of which the best counts.
        gallery: (G, D) or (G, P, D) likewise.
        count: neighbours of each query, at most G.
        device: to compute on; None: that of the queries.
        on_block: called with the places of some queries and their scores (R, G).

    Returns:
        by score, equal scores by place in the gallery.
    """
    if not 1 <= count <= len(gallery):
        raise ValueError(f"{count} neighbours cannot be found among {len(gallery)} candidates.")
    device, width = device or queries.device, queries.shape[-1]
    queries, gallery = (vectors.reshape(len(vectors), -1, width) for vectors in (queries, gallery))
    rows = max(1, BLOCK_BYTES // (8 * max(len(gallery), width * queries.shape[1])))
    found, scores = [], torch.empty(min(rows, len(queries)), len(gallery), dtype=torch.float64, device=device)
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].to(device, torch.float64)  # (R, P, D)
        # A sixteenth of a block stays in the cache.
        at_once = max(1, BLOCK_BYTES // (128 * gallery.shape[1] * max(width, len(block) * block.shape[1])))
        for first in range(0, len(gallery), at_once):
            part = gallery[first : first + at_once].to(device, torch.float64)  # (G', P', D)
            scores[: len(block), first : first + at_once] = _best_positions(block, part)
        found.append([array.cpu().numpy() for array in _highest(scores[: len(block)], count)])
        if on_block is not None:
            on_block(slice(start, start + len(block)), scores[: len(block)])
    indices, cosines = zip(*found, strict=True)
    return Neighbours(np.concatenate(indices), np.concatenate(cosines))


def _best_positions(queries: Tensor, gallery: Tensor) -> Tensor:
    """(R, P, D) and (G, P', D) -> (R, G), the best pair of positions."""
    scores = queries.flatten(0, 1) @ gallery.flatten(0, 1).T
    if queries.shape[1] == gallery.shape[1] == 1:
        return scores
    return scores.view(*queries.shape[:2], *gallery.shape[:2]).amax(dim=(1, 3))


def _highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places and values of the `count` highest of each row of (R, G), equal ones by place."""
    highest, places = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    # topk takes any of several equals: where one of them must stay out, all are sorted.
    tied = (highest[:, count - 1 : count] == highest[:, count:]).any(dim=1)
    if tied.any():
        places[tied, :count] = scores[tied].argsort(dim=1, descending=True, stable=True)[:, :count]
    places = places[:, :count].sort(dim=1).values
    highest, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return places.gather(1, order), highest


# ------------------------------------------------------------------------------- scores


class Metric(NamedTuple):
    """One score of one direction; shares in [0, 1]."""

    name: str
    """Acc@k, Prec@k, mAP or R@k"""
    values: NDArray[np.float64]
    """(Q,) of each query, whose mean is the score"""
    chance: float
    """expected of a gallery in random order"""
    ceiling: float
    """the best that the clips allow: a clip alone in its class can find nobody"""
    num_tied: int
    """queries of which a tie decided who is among the first k"""


def check_request(
    num_clips: int, directions: Sequence[str], ks: Sequence[int], *, labels_known: bool
) -> None:
    """Refuse what cannot be scored: as many neighbours as clips, or sounds by sounds without classes."""
    if ks[-1] >= num_clips:
        raise ValueError(
            f"--ks {ks[-1]}: of {num_clips} clips, each has {num_clips - 1} others. Take smaller "
            "numbers, or more clips."
        )
    if not labels_known and "audio_to_audio" in directions:
        raise ValueError(
            "audio_to_audio is scored by class only: name the classes with --labels, or choose "
            "--directions audio_to_image,image_to_audio."
        )


def evaluate_retrieval(
    embeddings: Embeddings,
    labels: Sequence[str] | None,
    directions: Sequence[str],
    ks: Sequence[int],
    *,
    device: torch.device | None = None,
    on_queries: Callable[[int], object] | None = None,
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Score retrieval in each direction.

    Args:
        embeddings: of N clips.
        labels: class of each clip; None: only R@k, between the modalities.
        directions: keys of DIRECTIONS.
        ks: numbers of neighbours, ascending.
        device: to compute on; None: the CPU.
        on_queries: called with the number of queries done since the last call.

    Returns:
        a row for each direction and query: direction, clip_id, label, own_rank (of the other half
        of its clip, from 1 on, none beyond the largest k or within one modality), each metric in
        [0, 1], and the first NUM_SHOWN neighbour_i with score_i, without the own clip; and
        a row for each direction and metric, in percent: direction, metric, score, score_low and
        score_high (95 %, over queries; NaN where each scores the same), chance, ceiling, and ties,
        the queries of which a tie decided who is among the first k.

    Raises:
        ValueError: see `check_request`; or the frames were not embedded.
    """
    import pandas as pd  # noqa: PLC0415 - only where results are written

    clip_ids, vectors = np.array(embeddings.clip_ids), {"audio": embeddings.audio, "image": embeddings.image}
    check_request(len(clip_ids), directions, ks, labels_known=labels is not None)
    classes = None if labels is None else np.unique(np.asarray(labels, np.str_), return_inverse=True)[1]
    queries, scores = [], []
    for direction in directions:
        first, second = (vectors[modality] for modality in DIRECTIONS[direction])
        if first is None or second is None:
            raise ValueError("These embeddings are of sounds only; the frames were not embedded.")
        precisions = np.zeros(len(clip_ids))

        def on_block(places: slice, block: Tensor, precisions: NDArray[np.float64] = precisions) -> None:
            if classes is not None:
                precisions[places] = average_precisions(block.cpu().numpy(), classes, places.start)
            if on_queries is not None:
                on_queries(len(block))

        # One more for the own clip, and one to see whether the last place is tied.
        count, device = min(ks[-1] + 2, len(clip_ids)), device or torch.device("cpu")
        found = nearest(first, second, count, device=device, on_block=on_block)
        own = found.indices == np.arange(len(clip_ids))[:, None]  # (Q, K)
        order = np.argsort(own, axis=1, kind="stable")[:, :-1]
        others = Neighbours(
            np.take_along_axis(found.indices, order, axis=1), np.take_along_axis(found.scores, order, axis=1)
        )
        metrics = [] if classes is None else _metrics_by_class(others, classes, precisions, ks)
        ranks: Any = pd.NA
        if len(set(DIRECTIONS[direction])) == 2:
            hits = own[:, : ks[-1]]
            ranks = pd.Series(hits.argmax(axis=1) + 1, dtype="Int64").where(hits.any(axis=1))
            for k in ks:
                shares = hits[:, :k].any(axis=1).astype(np.float64)
                metrics.append(Metric(f"R@{k}", shares, k / len(clip_ids), 1.0, _num_tied(found, k)))
        table = {"direction": direction, "clip_id": clip_ids, "label": labels or "", "own_rank": ranks}
        table |= {metric.name: metric.values for metric in metrics}
        for place in range(min(NUM_SHOWN, ks[-1])):
            table[f"neighbour_{place + 1}"] = clip_ids[others.indices[:, place]]
            table[f"score_{place + 1}"] = others.scores[:, place]
        queries.append(pd.DataFrame(table))
        ends = bootstrap_intervals(np.stack([metric.values for metric in metrics], axis=1))
        scores += [
            {
                "direction": direction,
                "metric": metric.name,
                "score": 100 * metric.values.mean(),
                "score_low": 100 * low,
                "score_high": 100 * high,
                "chance": 100 * metric.chance,
                "ceiling": 100 * metric.ceiling,
                "ties": metric.num_tied,
            }
            for metric, (low, high) in zip(metrics, ends, strict=True)
        ]
    # Metrics before neighbours, also those of later directions.
    joined = pd.concat(queries, ignore_index=True)
    shown = [name for name in joined if name.startswith(("neighbour_", "score_"))]
    return joined[[name for name in joined if name not in shown] + shown], pd.DataFrame(scores)


def _metrics_by_class(
    others: Neighbours, classes: NDArray[np.int64], precisions: NDArray[np.float64], ks: Sequence[int]
) -> list[Metric]:
    """Acc@k, Prec@k and mAP from neighbours without the own clip, and from the AP of each query."""
    relevant = classes[others.indices] == classes[:, None]  # (Q, K)
    num_relevant, num_others = np.bincount(classes)[classes] - 1, len(classes) - 1
    possible = float((num_relevant > 0).mean())
    metrics = []
    for k in ks:
        hits, chance = relevant[:, :k].any(axis=1), chance_accuracy(num_relevant, num_others, k)
        metrics.append(Metric(f"Acc@{k}", hits.astype(np.float64), chance, possible, _num_tied(others, k)))
    for k in ks:
        shares, chance = relevant[:, :k].mean(axis=1), float(num_relevant.mean() / num_others)
        ceiling = float(np.minimum(num_relevant, k).mean() / k)
        metrics.append(Metric(f"Prec@{k}", shares, chance, ceiling, _num_tied(others, k)))
    chance = chance_average_precision(num_relevant, num_others)
    return [*metrics, Metric("mAP", precisions, chance, possible, 0)]


def average_precisions(
    scores: NDArray[np.float64], classes: NDArray[np.int64], first: int
) -> NDArray[np.float64]:
    """AP (R,) of the queries from `first` on, of whose scores (R, G) equal ones count at once.

    The query's own clip is left out; a clip alone in its class has 0.
    """
    from sklearn.metrics import average_precision_score  # noqa: PLC0415 - takes a second to import

    found = np.zeros(len(scores))
    for row, query in enumerate(range(first, first + len(scores))):
        same = np.delete(classes == classes[query], query)
        if same.any():
            found[row] = average_precision_score(same, np.delete(scores[row], query))
    return found


def _num_tied(found: Neighbours, k: int) -> int:
    """Queries whose k-th and next neighbour score the same: order alone chose between them."""
    scores = found.scores
    return int((scores[:, k - 1] == scores[:, k]).sum()) if k < scores.shape[1] else 0


def chance_accuracy(num_relevant: NDArray[np.int64], num_others: int, k: int) -> float:
    """Expected Acc@k of random order, 1 - C(M - m, k) / C(M, k), over queries with m of M candidates."""
    missed = np.ones(len(num_relevant))
    for drawn in range(k):
        missed *= np.maximum(num_others - num_relevant - drawn, 0) / (num_others - drawn)
    return float(1 - missed.mean())


def chance_average_precision(num_relevant: NDArray[np.int64], num_others: int) -> float:
    """Expected AP of random order, H_M / M (1 - s) + s with s = (m - 1) / (M - 1), over the queries.

    The i-th of M candidates is relevant with probability m / M; then 1 + (i - 1) s of the first i
    are. AP is 0 where m is 0.
    """
    share = (num_relevant - 1) / max(num_others - 1, 1)
    harmonic = (1 / np.arange(1, num_others + 1)).sum() / num_others
    return float(np.where(num_relevant > 0, harmonic * (1 - share) + share, 0).mean())
