"""Report of a retrieval: summary.json, per_query.csv, tables, and a page with nearest neighbours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.evaluation.retrieval import NUM_SHOWN
from utils.evaluation.statistics import plain_interval
from utils.reports.report import (
    Card,
    EvaluationContext,
    Gallery,
    Report,
    ScoreTable,
    Section,
    provenance_columns,
    provenance_facts,
    provenance_notes,
)

if TYPE_CHECKING:
    import pandas as pd

RULE = (
    "All clips are the gallery. By class (Acc@k, Prec@k, mAP) the query's own clip is left out, in "
    "either modality; by clip (R@k) it is what must be found. Neighbours by cosine, equal ones in "
    "the order of the clip list."
)
SCORES_HINT = (
    "All values in %, with 95 % bootstrap intervals over the queries. Chance: expected of a gallery in "
    "random order. Ceiling: what these clips and classes allow at most. Ties: queries of which the order of "
    "equal neighbours decided who is among the first."
)
POOLING_WORDS = {
    None: "not used",
    "max": "max: maximum of each channel over the positions of the frame's map, then unit norm",
    "mean": "mean: mean of each channel over the positions of the frame's map, then unit norm",
    "positions": "positions: the best of the positions of the frame's map, each of unit norm",
}
HEADINGS = {"score": "score", "chance": "chance", "ceiling": "ceiling", "ties": "ties"}
KINDS = {"audio": "sound", "image": "frame"}


def retrieval_report(
    queries: "pd.DataFrame",
    scores: "pd.DataFrame",
    context: EvaluationContext,
    identity: Mapping[str, Any],
    *,
    unreadable: Sequence[tuple[str, str]],
    num_shown: int,
    card_of: Callable[[str], Card],
) -> Report:
    """Put together everything that a retrieval writes.

    Args:
        queries: see `evaluate_retrieval`.
        scores: likewise.
        context: what stands beside every number.
        identity: see check_results_folder; has directions, ks and image_pooling.
        unreadable: (clip id, reason) of clips that could not be decoded.
        num_shown: best, median and worst queries on the page, of each and for each direction.
        card_of: picture and sound of a clip.
    """
    directions, frames = identity["directions"], POOLING_WORDS[identity["image_pooling"]]
    clip_ids = list(dict.fromkeys(queries["clip_id"]))
    entries = context.entries(clip_ids, unreadable)
    entries["intervals"]["method"] = "percentile bootstrap over queries, the gallery as given"
    caption = f"Retrieval on {context.benchmark}, {len(clip_ids)} of {context.num_listed} listed clips"
    if context.labels is not None:
        entries["labels"] = {**context.labels, "num_classes": queries["label"].nunique()}
        caption += f", {entries['labels']['num_classes']} classes"
    by_direction: dict[str, Any] = {name: {} for name in directions}
    for row in scores.to_dict("records"):
        by_direction[row["direction"]][row["metric"]] = {
            "value": row["score"],
            "chance": row["chance"],
            "ceiling": row["ceiling"],
            "num_queries_decided_by_a_tie": row["ties"],
            "interval": plain_interval((row["score_low"], row["score_high"])),
        }
    summary = {
        "identity": dict(identity),
        "dataset": context.benchmark,
        "rule": RULE,
        "image_embedding": frames,
        "directions": by_direction,
        **entries,
        "warnings": context.warnings(unreadable),
    }
    sections, galleries = [Section("Scores", f"{RULE} {SCORES_HINT}")], []
    for name in directions:
        table = ScoreTable(scores[scores["direction"] == name], HEADINGS, {"metric": "Metric"})
        sections.append(Section(_in_words(name), items=[table], level=3))
        rows = queries[queries["direction"] == name].to_dict("records")
        galleries += _galleries(rows, identity["ks"][-1], num_shown, card_of)
    if galleries:
        sections.append(Section("Queries with their nearest neighbours", items=galleries))
    csv = scores.rename(
        columns={"score_low": "low", "score_high": "high", "ties": "num_queries_decided_by_a_tie"}
    )
    csv.insert(0, "dataset", context.benchmark)
    return Report(
        title=f"Retrieval on {context.benchmark}" + (f" ({context.note})" if context.note else ""),
        caption=caption,
        eyebrow="Retrieval by sound and frame",
        summary=summary,
        clips=queries.round(6),
        clips_file="per_query.csv",
        tables=[ScoreTable(scores, HEADINGS, {"direction": "direction", "metric": "metric"})],
        csv=csv.assign(image_embedding=frames, **provenance_columns(summary)),
        notes=[("rule", RULE), ("frames", frames), *provenance_notes(summary)],
        facts={"rule": RULE, "embeddings": frames, **provenance_facts(summary)},
        sections=sections,
    )


def _in_words(direction: str) -> str:
    queries, gallery = direction.split("_to_")
    return f"{KINDS[gallery].capitalize()}s found by a {KINDS[queries]}"


def _galleries(
    queries: Sequence[Mapping[Any, Any]], largest_k: int, num_shown: int, card_of: Callable[[str], Card]
) -> list[Gallery]:
    """Best, median and worst queries of a direction, each once; fewer where there are not enough."""
    direction, measure = queries[0]["direction"], f"Prec@{largest_k}"
    query_kind, gallery_kind = (KINDS[modality] for modality in direction.split("_to_"))
    by_class = not np.isnan(queries[0].get(measure, np.nan))
    labels = {query["clip_id"]: query["label"] for query in queries}

    def card(clip_id: str, kind: str, words: str, style: str) -> Card:
        shown = card_of(clip_id)
        sound = shown.sound if kind == "sound" else None
        return replace(shown, score=words, style=style, note=labels[clip_id], sound=sound)

    def row(query: Mapping[Any, Any], title: str) -> Gallery:
        cards = [card(query["clip_id"], query_kind, f"query: {query_kind}", "query")]
        for place in range(1, min(NUM_SHOWN, largest_k) + 1):
            clip_id, words, style = query[f"neighbour_{place}"], f"cosine {query[f'score_{place}']:.3f}", ""
            if by_class:
                style = "hit" if labels[clip_id] == query["label"] else "miss"
                words = ("\N{CHECK MARK} hit, " if style == "hit" else "✗ miss, ") + words
            cards.append(card(clip_id, gallery_kind, words, style))
        metrics = [name for name in query if ("@" in name or name == "mAP") and not np.isnan(query[name])]
        note = ", ".join(f"{name} {100 * query[name]:.0f}" for name in metrics)
        return Gallery(cards, title, row=True, note=note)

    # Without classes, by 1 / own rank, which is missing beyond the largest k.
    inverse_ranks = [1 / q["own_rank"] if isinstance(q["own_rank"], int) else 0 for q in queries]
    quality = [q[measure] for q in queries] if by_class else inverse_ranks
    ordered = [queries[place] for place in np.argsort(-np.array(quality, float), kind="stable")]
    count = min(num_shown, len(ordered) // 3)
    middle = (len(ordered) - count) // 2
    groups = {
        "best queries": ordered[:count],
        "queries around the median": ordered[middle : middle + count],
        "worst queries": ordered[::-1][:count],
    }
    return [
        row(query, "" if place else f"{_in_words(direction)}: {title}")
        for title, chosen in groups.items()
        for place, query in enumerate(chosen)
    ]
