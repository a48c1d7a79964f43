"""Retrieval: which clips a model finds alike, by the cosine of their embeddings.

Every clip is a query, and all clips are the gallery, in the order of the clip list; equal scores are
ordered by that too. By class (Acc@k, Prec@k, mAP) the query's own clip is no candidate, in whatever
modality; by clip (R@k) it is what must be found. A frame kept as positions scores its best position.

The search is exact: embeddings are multiples of 2**-26, about what float32 holds of a unit vector, so
float64 adds their products without rounding, and scores depend neither on blocks nor on threads or
device.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from utils.distributed import gather_objects
from utils.evaluation.statistics import bootstrap_intervals
from utils.files import decoding, write_atomically

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS = {
    "audio_to_audio": ("audio", "audio"),
    "audio_to_image": ("audio", "image"),
    "image_to_audio": ("image", "audio"),
}  # name -> queries and gallery
NUM_SHOWN = 5  # neighbours in per_query.csv and in the pictures
BLOCK_BYTES = 1 << 25  # most bytes of one intermediate array of the search
MAX_BYTES = 8 << 30  # most bytes of the embeddings of all frames


def parse_directions(names: str) -> tuple[str, ...]:
    """Read names of DIRECTIONS with commas between them."""
    found = tuple(name.strip() for name in names.split(","))
    if len(set(found)) != len(found) or not set(found) <= DIRECTIONS.keys():
        raise ValueError(f"--directions takes some of {', '.join(DIRECTIONS)}, each once, got {names!r}")
    return found


def parse_ks(numbers: str) -> tuple[int, ...]:
    """Read numbers of neighbours with commas between them, into ascending order."""
    found = [int(part) if part.strip().isdecimal() else 0 for part in numbers.split(",")]
    if min(found) < 1 or len(set(found)) != len(found):
        raise ValueError(f"--ks takes whole numbers from 1 on, each once, such as 1,5,10; got {numbers}")
    return tuple(sorted(found))


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N clips: float32 on the CPU, of unit norm, in multiples of 2**-26."""

    clip_ids: tuple[str, ...]
    audio: Tensor  # (N, D)
    image: Tensor | None  # (N, D) or, by position, (N, P, D); None: only sounds were embedded
    unreadable: tuple[tuple[str, str], ...] = ()  # (clip id, reason)


def fixed_point(vectors: Tensor) -> Tensor:
    """Round to multiples of 2**-26, which float32 holds exactly up to 1."""
    return vectors.float().mul(2.0**26).round_().div_(2.0**26)


@torch.inference_mode()
def embed_clips(
    model: Any,  # noqa: ANN401
    batches: Iterable[Any],
    *,
    num_clips: int,
    image_pooling: str | None,
) -> Embeddings:
    """Embed the num_clips decoded clips that processes share; image_pooling None: their sounds only."""
    if not hasattr(model, "embed_audio"):
        raise ValueError(f"{type(model).__name__} has no embeddings for retrieval.")
    clip_ids: list[str] = []
    unreadable: list[tuple[str, str]] = []
    vectors: dict[str, list[Tensor]] = {"audio": [], "image": []}
    for batch in batches:
        unreadable += [(broken.clip_id, broken.reason) for broken in batch.broken]
        if not batch.clip_ids:
            continue
        frames, sounds = model.prepare(batch.frames, batch.waveforms)
        found = {"audio": model.embed_audio(sounds)}
        if image_pooling is not None:
            found["image"] = model.embed_frames(frames, image_pooling)
        for name, of_batch in found.items():
            if not of_batch.isfinite().all():
                raise ValueError(f"An {name} embedding of clips {', '.join(batch.clip_ids)} is not finite.")
            if 4 * num_clips * of_batch[0].numel() > MAX_BYTES:
                raise ValueError(
                    f"The embeddings of {num_clips} clips would take more than {MAX_BYTES >> 30} GiB. Keep "
                    "one vector a frame (--image-pooling max or mean), or score fewer clips (--clip-list)."
                )
            vectors[name].append(fixed_point(of_batch).cpu())
        clip_ids += batch.clip_ids
    clip_ids, unreadable = gather_objects(clip_ids), gather_objects(unreadable)
    if not clip_ids:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be embedded ({len(unreadable)} unreadable{first}).")
    parts = {name: gather_objects(of_batches) for name, of_batches in vectors.items()}
    image = torch.cat(parts["image"]) if parts["image"] else None
    return Embeddings(tuple(clip_ids), torch.cat(parts["audio"]), image, tuple(unreadable))


def save_embeddings(path: Path, embeddings: Embeddings, identity: Mapping[str, str | None]) -> None:
    """Write an .npz of clip_ids, audio, image where there is one, and a record: the identity in JSON."""
    record = json.dumps({**identity, "unreadable": embeddings.unreadable})
    arrays = {"clip_ids": np.array(embeddings.clip_ids), "record": np.array(record)}
    arrays["audio"] = embeddings.audio.numpy()
    if embeddings.image is not None:
        arrays["image"] = embeddings.image.numpy()
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    write_atomically(path, content.getbuffer())


def load_embeddings(path: Path, identity: Mapping[str, str | None]) -> Embeddings | None:
    """Read what `save_embeddings` wrote for the same identity; None: it is not there, or lacks frames.

    Where the "image pooling" of the identity is None, sounds will do. Raises FileExistsError for
    embeddings of other things, ValueError for a damaged file.
    """
    if not path.exists():
        return None
    with decoding(path, "it is not a whole file of embeddings: delete it"):
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        record = json.loads(str(arrays["record"]))
        vectors = {n: fixed_point(torch.from_numpy(arrays[n])) for n in ("audio", "image") if n in arrays}
        unreadable = tuple((clip_id, reason) for clip_id, reason in record["unreadable"])
        clip_ids = tuple(arrays["clip_ids"].tolist())
        loaded = Embeddings(clip_ids, vectors["audio"], vectors.get("image"), unreadable)
    wanted = {name: value for name, value in identity.items() if None not in (value, record.get(name, ""))}
    different = [name for name, value in wanted.items() if record.get(name) != value]
    if different:
        raise FileExistsError(
            f"{path} holds the embeddings of another evaluation (another {', '.join(different)}). "
            "Name another --output or --embeddings."
        )
    return None if identity["image pooling"] is not None and loaded.image is None else loaded


@torch.inference_mode()
def rank_gallery(
    queries: Tensor, gallery: Tensor, device: torch.device | None = None, most: int | None = None
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.int64]]]:
    """Rank the gallery for each query by cosine, block by block: never all scores at once.

    Queries (Q, D) and gallery (G, D) are as in Embeddings; of (…, P, D) with P positions the best counts.
    Yields the place of the first of R queries, their scores (R, G), and places (R, most or G) in the
    gallery, the best first, equal ones in its order.
    """
    device, width = device or queries.device, queries.shape[-1]
    queries, gallery = (vectors.reshape(len(vectors), -1, width) for vectors in (queries, gallery))
    rows = max(1, BLOCK_BYTES // (8 * max(len(gallery), width * queries.shape[1])))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].to(device, torch.float64)  # (R, P, D)
        sizes = gallery.shape[1] * max(width, len(block) * block.shape[1])
        scores = torch.empty(len(block), len(gallery), dtype=torch.float64, device=device)
        at_once = max(1, BLOCK_BYTES // (128 * sizes))  # a sixteenth of a block stays in the cache
        for first in range(0, len(gallery), at_once):
            part = gallery[first : first + at_once].to(device, torch.float64)  # (G', P', D)
            products = block.flatten(0, 1) @ part.flatten(0, 1).T  # (R * P, G' * P')
            products = products.view(*block.shape[:2], *part.shape[:2])
            scores[:, first : first + at_once] = products.amax(dim=(1, 3))
        similarities = scores.cpu().numpy()
        if most is None or most >= len(gallery):
            order = scores.argsort(dim=1, descending=True, stable=True).cpu().numpy()
        else:  # sort what scores as the last of the first or better: with ties, more than `most` of a query
            of, places = (scores >= scores.topk(most).values[:, -1:]).nonzero().cpu().numpy().T
            order = places[np.lexsort((-similarities[of, places], of))]
            order = order[np.searchsorted(of, range(len(block)))[:, None] + np.arange(most)]
        yield start, similarities, order


def check_request(num_clips: int, directions: Sequence[str], ks: Sequence[int], *, labelled: bool) -> None:
    """Refuse as many neighbours as clips, and sounds to be found by sounds without classes."""
    if ks[-1] >= num_clips:
        raise ValueError(f"--ks {ks[-1]}: of {num_clips} clips, each has {num_clips - 1} others. Take fewer.")
    if not labelled and "audio_to_audio" in directions:
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
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Score retrieval in some of DIRECTIONS; labels are the clips' classes, None: only R@k.

    Returns:
        a row for each direction and query: direction, clip_id, label, own_rank (of the other half
        of its clip, from 1 on; none beyond the largest k or within one modality), neighbour_i and
        score_i of the first NUM_SHOWN without the own clip, and each metric in [0, 1]; and
        a row for each direction and metric, in percent: direction, metric, score, score_low and
        score_high (95 %, over queries; NaN where each scores the same), chance, ceiling, and ties,
        the queries of which a tie decided who is among the first k.
    """
    import pandas as pd  # noqa: PLC0415 - only where results are written
    from sklearn.metrics import average_precision_score  # noqa: PLC0415 - takes a second

    clip_ids, num_clips = np.array(embeddings.clip_ids), len(embeddings.clip_ids)
    classes = None if labels is None else np.unique(np.asarray(labels, np.str_), return_inverse=True)[1]
    tables, scores = [], []
    for direction in directions:
        queries, gallery = (getattr(embeddings, modality) for modality in DIRECTIONS[direction])
        blocks: list[dict[str, NDArray[Any]]] = []
        with tqdm(total=num_clips, desc=direction, unit="query") as bar:
            # mAP needs them all; else the own clip, the largest k, and one that shows if its place is tied.
            most = ks[-1] + 2 if classes is None else None
            for first, similarities, order in rank_gallery(queries, gallery, device, most):
                own = np.arange(first, first + len(order))[:, None]
                left_out = order == own  # (R, W)
                left_out[:, -1] |= ~left_out.any(axis=1)  # where the own clip is not among the first
                others = order[~left_out].reshape(len(order), -1)  # (R, W - 1)
                cosines = np.take_along_axis(similarities, others, axis=1)
                block = {"others": others[:, : ks[-1] + 1], "cosines": cosines[:, : ks[-1] + 1]}
                block["with_own"] = np.take_along_axis(similarities, order[:, : ks[-1] + 1], axis=1)
                block["own_rank"] = left_out.argmax(axis=1) + 1
                if classes is not None:
                    pairs = zip(classes[others] == classes[own], cosines, strict=True)  # R of (W - 1,) each
                    precisions = [average_precision_score(*pair) if pair[0].any() else 0.0 for pair in pairs]
                    block["mAP"] = np.array(precisions)
                blocks.append(block)
                bar.update(len(order))
        found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        others, cosines = found["others"], found["cosines"]  # (Q, K + 1)
        table = {"direction": direction, "clip_id": clip_ids, "label": labels or "", "own_rank": pd.NA}
        for place in range(min(NUM_SHOWN, ks[-1])):
            table |= {f"neighbour_{place + 1}": clip_ids[others[:, place]]}
            table |= {f"score_{place + 1}": cosines[:, place]}

        # Name -> values (Q,), chance, ceiling (a clip alone in its class finds nobody), ties.
        metrics: dict[str, tuple[NDArray[Any], float, float, int]] = {}
        if classes is not None:
            same = classes[others] == classes[:, None]  # (Q, K + 1)
            partners = np.bincount(classes)[classes] - 1  # (Q,)
            possible = (partners > 0).mean()
            for k in ks:
                chance = chance_accuracy(partners, num_clips - 1, k)
                metrics[f"Acc@{k}"] = (same[:, :k].any(axis=1), chance, possible, num_tied(cosines, k))
            for k in ks:
                chance, ceiling = partners.mean() / (num_clips - 1), np.minimum(partners, k).mean() / k
                metrics[f"Prec@{k}"] = (same[:, :k].mean(axis=1), chance, ceiling, num_tied(cosines, k))
            chance = chance_average_precision(partners, num_clips - 1)
            metrics["mAP"] = (found["mAP"], chance, possible, 0)
        if len(set(DIRECTIONS[direction])) == 2:
            rank = found["own_rank"]
            table["own_rank"] = pd.Series(rank, dtype="Int64").where(rank <= ks[-1])
            for k in ks:
                metrics[f"R@{k}"] = (rank <= k, k / num_clips, 1.0, num_tied(found["with_own"], k))
        values = {name: metric[0].astype(np.float64) for name, metric in metrics.items()}
        tables.append(pd.DataFrame(table | values))
        ends = 100 * bootstrap_intervals(np.stack(list(values.values()), axis=1))
        scores += [
            (direction, name, 100 * values[name].mean(), low, high, 100 * chance, 100 * ceiling, ties)
            for (name, (_, chance, ceiling, ties)), (low, high) in zip(metrics.items(), ends, strict=True)
        ]
    columns = ["direction", "metric", "score", "score_low", "score_high", "chance", "ceiling", "ties"]
    return pd.concat(tables, ignore_index=True), pd.DataFrame(scores, columns=columns)


def num_tied(cosines: NDArray[np.float64], k: int) -> int:
    """Count the queries whose k-th and next neighbour score the same; (Q, K), the best first."""
    return int((cosines[:, k - 1 : k] == cosines[:, k : k + 1]).sum())


def chance_accuracy(partners: NDArray[np.int64], num_others: int, k: int) -> float:
    """Return Acc@k of random order, 1 - C(M - m, k) / C(M, k), over queries (Q,) with m of M candidates."""
    missed = np.ones(len(partners))
    for drawn in range(k):
        missed *= np.maximum(num_others - partners - drawn, 0) / (num_others - drawn)
    return float(1 - missed.mean())


def chance_average_precision(partners: NDArray[np.int64], num_others: int) -> float:
    """Return mAP of random order, H_M / M (1 - s) + s with s = (m - 1) / (M - 1), over the queries.

    The i-th of M candidates is relevant with probability m / M; then 1 + (i - 1) s of the first i
    are. AP is 0 where m is 0.
    """
    share = (partners - 1) / max(num_others - 1, 1)
    harmonic = (1 / np.arange(1, num_others + 1)).sum() / num_others
    return float(np.where(partners > 0, harmonic * (1 - share) + share, 0).mean())
