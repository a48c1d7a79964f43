"""Retrieval: exact nearest neighbours in bounded memory, and their scores by class and by clip.

Convention. Every clip is a query, and all clips are the gallery, in the order of the clip list. The
score of a query and a candidate is their cosine; a frame kept as positions scores its best
position. Candidates are ordered by score, equal scores by their place in the gallery. By class, the
query's own clip is no candidate, in whatever modality; by clip (R@k), it is what must be found.

Exact. Embeddings are rounded to multiples of 2**-26, about what float32 holds of a unit vector.
Products are then multiples of 2**-52 and all sums stay below 2, so float64 adds them without any
rounding: scores depend neither on the size of the blocks nor on threads or device, and equal
vectors have equal scores wherever they stand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.embeddings import Embeddings

BLOCK_BYTES = 1 << 27
"""Most bytes of one intermediate array of the search; about four of them live at a time"""
FIXED_POINT = 2.0**26
LARGEST_NORM = 1.001
"""of an embedding, with its rounding: sums of products must stay below 2"""

DIRECTIONS: dict[str, tuple[str, str]] = {
    "audio_to_audio": ("audio", "audio"),
    "audio_to_image": ("audio", "image"),
    "image_to_audio": ("image", "audio"),
}
"""Name -> what the queries are, and what the gallery is."""


def find_directions(names: str) -> tuple[str, ...]:
    """Directions from their names with commas between them.

    Raises:
        ValueError: none, an unknown one, or one twice.
    """
    found = tuple(name.strip() for name in names.split(","))
    if len(set(found)) != len(found) or not set(found) <= DIRECTIONS.keys():
        raise ValueError(f"takes some of {', '.join(DIRECTIONS)}, each once, got {names!r}")
    return found


def find_ks(numbers: str) -> tuple[int, ...]:
    """Ascending numbers of neighbours from text with commas between them.

    Raises:
        ValueError: none, one below 1, or one twice.
    """
    parts = [part.strip() for part in numbers.split(",")]
    found = [int(part) if part.isdecimal() else 0 for part in parts]
    if min(found) < 1 or len(set(found)) != len(found):
        raise ValueError(f"takes whole numbers from 1 on, each once, such as 1,5,10; got {numbers}")
    return tuple(sorted(found))


@dataclass(frozen=True)
class Neighbours:
    """The best of a gallery for each query, the best first."""

    indices: NDArray[np.int64]
    """(Q, K) places in the gallery"""
    scores: NDArray[np.float64]
    """(Q, K)"""

    def without_own(self) -> "Neighbours":
        """One fewer for each query i: candidate i is left out, or else the last one.

        Queries and gallery must be of the same clips.
        """
        own = self.indices == np.arange(len(self.indices))[:, None]
        order = np.argsort(own, axis=1, kind="stable")[:, : self.indices.shape[1] - 1]
        return Neighbours(
            np.take_along_axis(self.indices, order, axis=1), np.take_along_axis(self.scores, order, axis=1)
        )

    def num_tied(self, k: int) -> int:
        """Queries whose k-th and next neighbour score the same: order alone chose between them."""
        if self.scores.shape[1] <= k:
            return 0
        return int((self.scores[:, k - 1] == self.scores[:, k]).sum())


@torch.inference_mode()
def nearest(
    queries: Tensor,
    gallery: Tensor,
    count: int,
    *,
    device: torch.device | None = None,
    block_bytes: int = BLOCK_BYTES,
    on_queries: Callable[[int], object] | None = None,
) -> Neighbours:
    """Exact nearest neighbours by cosine, block by block: never all scores at once.

    Args:
        queries: (Q, D) of unit norm, or (Q, P, D) with P positions each, of which the best counts.
        gallery: (G, D) or (G, P, D) likewise.
        count: neighbours of each query, at most G.
        device: to compute on; None: that of the queries.
        block_bytes: see BLOCK_BYTES; does not change the result.
        on_queries: called with the number of queries done since the last call.

    Returns:
        by score, equal scores by place in the gallery.

    Raises:
        ValueError: a vector is not finite or longer than 1, or the gallery is too small.
    """
    if not 1 <= count <= len(gallery):
        raise ValueError(f"{count} neighbours cannot be found among {len(gallery)} candidates.")
    device = device or queries.device
    rows = _rows_of_a_block(queries, gallery, block_bytes)
    found = []
    for start in range(0, len(queries), rows):
        block = _fixed_point(queries[start : start + rows], start, device)
        scores = torch.empty(len(block), 0, dtype=torch.float64, device=device)
        indices = torch.empty(len(block), 0, dtype=torch.int64, device=device)
        for offset in range(0, len(gallery), rows):
            part = _fixed_point(gallery[offset : offset + rows], offset, device)
            part_scores, part_indices = _best(_scores(block, part), count)
            # What was found so far stands earlier in the gallery: a stable sort keeps it first.
            scores, order = torch.cat([scores, part_scores], dim=1).sort(dim=1, descending=True, stable=True)
            indices = torch.cat([indices, part_indices + offset], dim=1).gather(1, order)
            scores, indices = scores[:, :count], indices[:, :count]
        found.append((indices.cpu().numpy(), scores.cpu().numpy()))
        if on_queries is not None:
            on_queries(len(block))
    all_indices, all_scores = zip(*found, strict=True)
    return Neighbours(np.concatenate(all_indices), np.concatenate(all_scores))


def _rows_of_a_block(queries: Tensor, gallery: Tensor, block_bytes: int) -> int:
    """Vectors to a side, so that neither their float64 copies nor their scores take more."""
    per_query, per_candidate = (math.prod(vectors.shape[1:-1]) for vectors in (queries, gallery))
    by_scores = math.isqrt(block_bytes // (8 * per_query * per_candidate))
    by_copies = block_bytes // (8 * queries.shape[-1] * max(per_query, per_candidate))
    return max(1, min(by_scores, by_copies))


def _fixed_point(vectors: Tensor, first: int, device: torch.device) -> Tensor:
    """(N, D) or (N, P, D) -> float64 (N, P, D), rounded so that sums of products are exact."""
    wide = vectors.to(device, torch.float64, copy=True).mul_(FIXED_POINT).round_().div_(FIXED_POINT)
    wide = wide.reshape(len(wide), -1, wide.shape[-1])
    fits = (torch.linalg.vector_norm(wide, dim=-1) <= LARGEST_NORM).all(dim=1)  # NaN does not
    if not fits.all():
        worst = first + int(fits.logical_not().nonzero()[0])
        raise ValueError(f"Embeddings must be finite and of unit norm; that of row {worst} is not.")
    return wide


def _scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """(Q, P, D) and (G, P', D) -> (Q, G), the best pair of positions."""
    scores = queries.flatten(0, 1) @ gallery.flatten(0, 1).T
    if queries.shape[1] == gallery.shape[1] == 1:
        return scores
    shape = (len(queries), queries.shape[1], len(gallery), gallery.shape[1])
    return scores.view(shape).amax(dim=(1, 3))


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row of (Q, G), among equals the first; in the order of G."""
    if scores.shape[1] <= count:
        return scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    highest, indices = scores.topk(count, dim=1)
    lowest = highest[:, -1:]
    # topk takes any of several equals. Where some of them must stay out, choose again.
    tied = (scores >= lowest).count_nonzero(dim=1) > count
    if tied.any():
        rows, limit = scores[tied], lowest[tied]
        above, equal = rows > limit, rows == limit
        room = count - above.count_nonzero(dim=1)
        kept = above | (equal & (equal.cumsum(dim=1) <= room[:, None]))
        indices[tied] = kept.nonzero()[:, 1].view(-1, count)
    indices = indices.sort(dim=1).values
    return scores.gather(1, indices), indices


def accuracy_at_k(relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Acc@k of each query: 1 where any of the first k neighbours is of its class.

    Args:
        relevant: (Q, K), whether each neighbour is; K at least k.
        k: neighbours that count.

    Returns:
        (Q,) of 0 and 1.
    """
    return np.asarray(relevant[:, :k].any(axis=1), dtype=np.float64)


def precision_at_k(relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Prec@k of each query: the share of its class among its first k neighbours.

    Args:
        relevant: (Q, K), whether each neighbour is; K at least k.
        k: neighbours that count.

    Returns:
        (Q,) in [0, 1].
    """
    return np.asarray(relevant[:, :k].mean(axis=1), dtype=np.float64)


def recall_at_k(indices: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """R@k of each query i: 1 where candidate i, its own clip's other half, is in the first k.

    Args:
        indices: (Q, K) places in the gallery, K at least k.
        k: neighbours that count.

    Returns:
        (Q,) of 0 and 1.
    """
    own = np.arange(len(indices))[:, None]
    return (indices[:, :k] == own).any(axis=1).astype(np.float64)


def chance_accuracy(num_relevant: NDArray[np.int64], num_others: int, k: int) -> float:
    """Expected Acc@k of neighbours drawn at random: 1 - C(M - m, k) / C(M, k), over the queries.

    Args:
        num_relevant: (Q,) candidates of the query's class, m.
        num_others: candidates of each query, M, at least k.
        k: neighbours that count.
    """
    missed = np.ones(len(num_relevant))
    for drawn in range(k):
        missed *= np.maximum(num_others - num_relevant - drawn, 0) / (num_others - drawn)
    return float(1 - missed.mean())


@dataclass(frozen=True)
class Metric:
    """One score of one direction; shares in [0, 1]."""

    name: str
    """Acc@k, Prec@k or R@k"""
    per_query: NDArray[np.float64]
    """(Q,)"""
    chance: float
    """expected from neighbours drawn at random"""
    ceiling: float
    """best that the clips allow: a clip alone in its class can find nobody"""
    num_tied: int
    """queries of which a tie decided who is among the first k"""

    @property
    def value(self) -> float:
        """Mean of the queries."""
        return float(self.per_query.mean())

    def summary(self) -> dict[str, float | int]:
        """Plain values, shares in percent."""
        return {
            "value": 100 * self.value,
            "chance": 100 * self.chance,
            "ceiling": 100 * self.ceiling,
            "num_queries_decided_by_a_tie": self.num_tied,
        }


@dataclass(frozen=True)
class DirectionResult:
    """What one direction found."""

    name: str
    others: Neighbours
    """nearest candidates but the own clip, one more than the largest k where there are as many"""
    relevant: NDArray[np.bool_] | None
    """(Q, K) whether `others` are of the query's class; None without labels"""
    own_ranks: NDArray[np.int64] | None
    """(Q,) place of the own clip from 1 on, 0 beyond the largest k; None within one modality"""
    metrics: tuple[Metric, ...]


def check_request(
    num_clips: int, directions: Sequence[str], ks: Sequence[int], *, labels_known: bool
) -> None:
    """Refuses what cannot be scored.

    Args:
        num_clips: queries, and candidates.
        directions: keys of DIRECTIONS.
        ks: numbers of neighbours, ascending.
        labels_known: whether the clips' classes are.

    Raises:
        ValueError: there are fewer other clips than neighbours, or sounds are to be found by sounds
            without classes.
    """
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
) -> tuple[DirectionResult, ...]:
    """Scores retrieval in each direction.

    Args:
        embeddings: of N clips.
        labels: class of each clip; None: only R@k, between the modalities.
        directions: keys of DIRECTIONS.
        ks: numbers of neighbours, ascending.
        device: to compute on; None: the CPU.
        on_queries: see `nearest`.

    Raises:
        ValueError: there are fewer clips than neighbours, sounds are to be found by sounds without
            labels, or embeddings are missing or not unit vectors.
    """
    num_clips = len(embeddings.clip_ids)
    check_request(num_clips, directions, ks, labels_known=labels is not None)
    results = []
    for name in directions:
        queries, gallery = (embeddings.of(modality) for modality in DIRECTIONS[name])
        # One more for the own clip, and one to see whether the last place is tied.
        count = min(ks[-1] + 2, num_clips)
        found = nearest(queries, gallery, count, device=device, on_queries=on_queries)
        cross_modal = DIRECTIONS[name][0] != DIRECTIONS[name][1]
        results.append(_score(name, found, labels, ks, cross_modal=cross_modal))
    return tuple(results)


def _score(
    name: str, found: Neighbours, labels: Sequence[str] | None, ks: Sequence[int], *, cross_modal: bool
) -> DirectionResult:
    others, num_clips = found.without_own(), len(found.indices)
    metrics, relevant, own_ranks = [], None, None
    if labels is not None:
        _, classes, sizes = np.unique(
            np.asarray(labels, dtype=np.str_), return_inverse=True, return_counts=True
        )
        relevant = classes[others.indices] == classes[:, None]
        metrics += _metrics_by_class(relevant, sizes[classes] - 1, others, ks)
    if cross_modal:
        hits = found.indices[:, : ks[-1]] == np.arange(num_clips)[:, None]
        own_ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
        metrics += [
            Metric(f"R@{k}", recall_at_k(found.indices, k), k / num_clips, 1.0, found.num_tied(k)) for k in ks
        ]
    return DirectionResult(name, others, relevant, own_ranks, tuple(metrics))


def _metrics_by_class(
    relevant: NDArray[np.bool_], num_relevant: NDArray[np.int64], others: Neighbours, ks: Sequence[int]
) -> list[Metric]:
    num_others = len(relevant) - 1
    accuracies = [
        Metric(
            f"Acc@{k}",
            accuracy_at_k(relevant, k),
            chance_accuracy(num_relevant, num_others, k),
            float((num_relevant > 0).mean()),
            others.num_tied(k),
        )
        for k in ks
    ]
    precisions = [
        Metric(
            f"Prec@{k}",
            precision_at_k(relevant, k),
            float(num_relevant.mean() / num_others),
            float(np.minimum(num_relevant, k).mean() / k),
            others.num_tied(k),
        )
        for k in ks
    ]
    return accuracies + precisions
