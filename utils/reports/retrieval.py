"""Report of a retrieval: summary.json, per_query.csv, tables, and a page with nearest neighbours."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from utils.evaluation.retrieval import NUM_SHOWN
from utils.evaluation.statistics import plain_interval
from utils.reports.localisation import choose_clips
from utils.reports.report import Card, EvaluationContext, Gallery, Report, ScoreTable, Section

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
MATRIX_HINT = "All values in %; a dash: what a direction does not have."
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
    """Put together everything that a retrieval writes, of the tables of `evaluate_retrieval`.

    The page shows `num_shown` best, median and worst queries, of each and for each direction.
    """
    frames, clip_ids = POOLING_WORDS[identity["image_pooling"]], queries["clip_id"].unique().tolist()
    entries = context.entries(clip_ids, unreadable, "over queries, the gallery as given")
    caption = f"Retrieval: {context.title(len(clip_ids))}"
    if context.labels is not None:
        entries["labels"] = {**context.labels, "num_classes": queries["label"].nunique()}
        caption += f", {entries['labels']['num_classes']} classes"
    by_direction: dict[str, Any] = {name: {} for name in identity["directions"]}
    for row in scores.to_dict("records"):
        cell = {"value": row["score"], "interval": plain_interval((row["score_low"], row["score_high"]))}
        cell |= {name: row[name] for name in ("chance", "ceiling", "ties")}
        by_direction[row["direction"]][row["metric"]] = cell
    summary = {
        "identity": dict(identity),
        "dataset": context.benchmark,
        "rule": RULE,
        "image_embedding": frames,
        "directions": by_direction,
        **entries,
        "warnings": context.warnings(unreadable),
    }
    sections = [Section("Scores", MATRIX_HINT, [direction_matrix(scores)])]
    sections.append(Section("Each direction", f"{RULE} {SCORES_HINT}"))
    galleries = list[Gallery]()
    for name in identity["directions"]:
        table = ScoreTable(scores[scores["direction"] == name], HEADINGS, {"metric": "Metric"})
        sections.append(Section(direction_title(name), items=[table], level=3))
        rows = queries[queries["direction"] == name]
        galleries += _galleries(rows, name, identity["ks"][-1], num_shown, card_of)
    if galleries:
        sections.append(Section("Queries with their nearest neighbours", items=galleries))
    return Report(
        title=context.title(len(clip_ids)),
        caption=caption,
        eyebrow="Retrieval by sound and frame",
        summary=summary,
        clips=queries.round(6),
        clips_file="per_query.csv",
        tables=[ScoreTable(scores, HEADINGS, {"direction": "direction", "metric": "metric"})],
        csv=scores.assign(dataset=context.benchmark, image_embedding=frames),
        notes=[("rule", RULE), ("frames", frames)],
        facts={"rule": RULE, "embeddings": frames},
        sections=sections,
    ).with_provenance()


def direction_title(name: str) -> str:
    """Name of DIRECTIONS in words."""
    query, found = (KINDS[modality] for modality in name.split("_to_"))
    return f"{found.capitalize()}s found by a {query}"


def direction_matrix(scores: "pd.DataFrame") -> ScoreTable:
    """Table of directions by metric, above chance and ceiling, which directions have in common."""
    import pandas as pd  # noqa: PLC0415

    metrics = [name for name in scores["metric"].unique() if name != "Prec@1"]  # which is Acc@1
    rows = scores.pivot(index="direction", columns="metric", values="score").loc[scores["direction"].unique()]
    shared = scores.groupby("metric")[["chance", "ceiling"]].first().T
    table = pd.concat([rows.rename(index=direction_title), shared.rename(index=str.capitalize)])
    headings = {name: name for name in metrics}
    return ScoreTable(table.rename_axis("name").reset_index(), headings, {"name": "Direction"})


def _galleries(
    queries: "pd.DataFrame", direction: str, largest_k: int, num_shown: int, card_of: Callable[[str], Card]
) -> Iterator[Gallery]:
    """Rows of pictures: the best, median and worst queries of a direction, each with its neighbours."""
    kinds, title = [KINDS[modality] for modality in direction.split("_to_")], direction_title(direction)
    labels = dict(zip(queries["clip_id"], queries["label"], strict=True))
    measure = f"Prec@{largest_k}"
    by_class = measure in queries
    quality = queries[measure] if by_class else 1 / queries["own_rank"]

    def card(clip_id: str, kind: str, words: str, style: str) -> Card:
        found = card_of(clip_id)
        sound = found.sound if kind == "sound" else None
        return replace(found, score=words, style=style, note=labels[clip_id], sound=sound)

    for group, rows in choose_clips(queries.assign(ciou=quality), num_shown).items():
        for number, query in enumerate(rows.to_dict("records")):
            cards = [card(query["clip_id"], kinds[0], f"query: {kinds[0]}", "query")]
            for place in range(1, min(NUM_SHOWN, largest_k) + 1):
                clip_id, words = query[f"neighbour_{place}"], f"cosine {query[f'score_{place}']:.3f}"
                style = ("hit" if labels[clip_id] == query["label"] else "miss") if by_class else ""
                mark = {"hit": "\N{CHECK MARK} hit, ", "miss": "✗ miss, ", "": ""}[style]
                cards.append(card(clip_id, kinds[1], mark + words, style))
            metrics = [name for name in query if "@" in name or name == "mAP"]
            note = ", ".join(f"{name} {100 * query[name]:.0f}" for name in metrics if query[name] >= 0)
            yield Gallery(cards, "" if number else f"{title}: {group.lower()}", row=True, note=note)
