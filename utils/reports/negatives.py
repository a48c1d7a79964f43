"""Report of negative sounds: summary.json, per_clip.csv, tables, and a page with a plot of similarities."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.evaluation.negatives import (
    DEAF,
    DISC,
    EXTREMES,
    KIND_WORDS,
    KINDS,
    MEDIAN_RULE,
    NEGATIVES,
    QUANTILES,
    UNIVERSAL_QUANTILE,
    NegativeResult,
    score_table,
)
from utils.evaluation.statistics import plain_interval
from utils.reports.report import (
    CURVE_COLOURS,
    EvaluationContext,
    Plot,
    Report,
    ScoreTable,
    Section,
    Tile,
    new_axes,
    provenance_columns,
    provenance_facts,
    provenance_notes,
    render_figure,
)

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = {"better": "better", "score": "score", "sd": "sd over seeds", "deaf": "deaf", "disc": "blind disc"}
TILES = ("f_loc", "f_auc", "sensitivity_ciou_at_0.5")
HINT = (
    "All values in %, means over the seeds, with 95 % bootstrap intervals over the clips. What needs no "
    f"hearing stands beside them. Deaf: {DEAF}. Blind disc: {DISC} for every sound."
)


def negatives_report(
    result: NegativeResult, context: EvaluationContext, identity: Mapping[str, Any], similarity: str
) -> Report:
    """Put together everything that an evaluation with negative sounds writes.

    Args:
        result: of the evaluation.
        context: what stands beside every number.
        identity: see check_results_folder; has num_seeds, off_screen and threshold.
        similarity: the scale of the threshold, in words.
    """
    scores, num_clips, num_seeds = score_table(result.scores), len(result.clip_ids), identity["num_seeds"]
    threshold: dict[str, Any] = {"value": result.threshold, "source": "given", "similarity": similarity}
    source = "given by --threshold"
    if identity["threshold"] is None:
        source = "third quartile of the highest similarities of these negatives"
        threshold |= {
            "source": "negatives",
            "quantile": UNIVERSAL_QUANTILE,
            "rule": "numpy's linear quantile of the maxima of all negatives' up-sampled maps, each "
            "kind as often as there are seeds",
            "num_negatives": len(NEGATIVES) * num_seeds * num_clips,
            "num_distinct_maps": (1 + 2 * num_seeds) * num_clips,
            "seeds": list(range(num_seeds)),
            "clip_list_sha256": context.clip_list_sha256,
        }
    words = f"{result.threshold:.6g} on {similarity}, {source}"
    warnings = context.warnings(result.unreadable, int(result.scores["empty"].sum()))
    if identity["off_screen"] == "any":
        warnings.insert(
            0,
            "Off-screen sounds are those of any other clip: some of them may be of the same class, and "
            "right for the frame.",
        )
    entries = context.entries(result.clip_ids, result.unreadable)
    entries["intervals"]["method"] = "percentile bootstrap over clips, the threshold as given"
    rows = scores.set_index("key").to_dict("index")
    summary = {
        "identity": dict(identity),
        "benchmark": context.benchmark,
        "threshold": threshold,
        "scores": {
            key: {
                "mean": row["score"],
                "sd": None if np.isnan(row["sd"]) else row["sd"],
                "interval": plain_interval((row["score_low"], row["score_high"])),
            }
            for key, row in rows.items()
        },
        "without_ears": {
            name: {key: row[column] for key, row in rows.items() if not np.isnan(row[column])}
            for name, column in ((DEAF, "deaf"), (DISC, "disc"))
        },
        "similarities": {
            kind: {
                name: np.quantile(result.scores[f"{name}:{kind}"], QUANTILES).tolist() for name in EXTREMES
            }
            for kind in KINDS
        },
        "off_screen": identity["off_screen"],
        "num_seeds": num_seeds,
        "map_bytes": result.map_bytes,
        **entries,
        "warnings": warnings,
    }
    notes = [
        ("threshold", words),
        (
            "maps",
            f"up-sampled to {MEDIAN_RULE.map_size} x {MEDIAN_RULE.map_size}; active where they lie "
            f"above the threshold; median rule: {MEDIAN_RULE.description}",
        ),
        (
            "sounds",
            "silence: zeros; noise: N(0, 1); off-screen: a clip of another "
            + ("class" if identity["off_screen"] == "other_class" else "id, class not known")
            + f"; {num_seeds} seeds",
        ),
        ("deaf, blind disc", f"{DEAF}; {DISC} for every sound: what needs no hearing"),
    ]
    csv = scores.rename(
        columns={"key": "number", "score_low": "low", "score_high": "high", "disc": "blind_disc"}
    )
    csv.insert(0, "benchmark", context.benchmark)
    title = f"Negative audio on {context.benchmark}, {num_clips} of {context.num_listed} listed clips"
    return Report(
        title=title,
        caption=f"{title}, threshold {words}",
        eyebrow="Sounds that are not in the picture",
        summary=summary,
        clips=clip_table(result, context.classes),
        tables=[ScoreTable(scores, HEADINGS, {"label": "number"})],
        csv=csv.drop(columns="label").assign(
            threshold=result.threshold,
            threshold_source=threshold["source"],
            similarity=similarity,
            num_seeds=num_seeds,
            off_screen=identity["off_screen"],
            num_clips=num_clips,
            **provenance_columns(summary),
        ),
        notes=[*notes, *provenance_notes(summary)],
        facts=dict(notes) | provenance_facts(summary),
        tiles=[
            *(_tile(rows[key]) for key in TILES),
            Tile(
                "Universal threshold",
                f"{result.threshold:.4f}",
                style="lead",
                notes=[f"on {similarity}", source],
            ),
        ],
        sections=[
            Section("Scores", HINT, [ScoreTable(scores, HEADINGS, {"label": "Number"})]),
            Section(
                "Similarities",
                "Each box is over all maps of a kind of sound: from the 5th to the 95th percentile of their "
                "lowest, middle or highest similarity; the vertical line is the threshold.",
                [similarity_plot(summary["similarities"], threshold)],
            ),
        ],
    )


def _tile(row: Mapping[str, Any]) -> Tile:
    notes = []
    if not np.isnan(row["score_low"]):
        notes.append(f"95 % interval {row['score_low']:.1f} to {row['score_high']:.1f}")
    if not np.isnan(row["deaf"]):
        notes.append(f"{row['deaf']:.1f} with the own map for every sound")
    return Tile(row["label"], f"{row['score']:.1f}", "%", "lead", notes)


def clip_table(result: NegativeResult, classes: Mapping[str, str] | None) -> "pd.DataFrame":
    """Table per_clip.csv: a line for each clip, with means over the seeds."""
    import pandas as pd  # noqa: PLC0415

    names = {"cIoU_U": "ciou:own"}
    names |= {f"pIA_{kind}": f"area:{kind}" for kind in KINDS}
    names |= {f"max_{kind}": f"maximum:{kind}" for kind in KINDS}
    names |= {
        f"{name}_median_{kind}": f"{name}:{kind}"
        for name in ("success", "pointing")
        for kind in ("own", "off_screen")
    }
    columns: dict[str, Any] = {"clip_id": result.clip_ids}
    columns |= {
        heading: np.char.mod("%.6f", result.scores[name].mean(axis=1)) for heading, name in names.items()
    }
    if classes is not None:
        columns["class"] = [classes[clip_id] for clip_id in result.clip_ids]
    columns["off_screen_sounds_of"] = [" ".join(of_clip) for of_clip in result.donors.T]
    return pd.DataFrame(columns)


def similarity_plot(
    similarities: Mapping[str, Mapping[str, list[float]]], threshold: Mapping[str, Any]
) -> Plot:
    """Boxes over maps of their lowest, middle and highest similarity, for each kind of sound."""
    boxes = [
        dict(zip(("whislo", "q1", "med", "q3", "whishi"), similarities[kind][extreme], strict=True))
        | {"label": f"{extreme}, {KIND_WORDS[kind]}"}
        for extreme in EXTREMES
        for kind in KINDS
    ]
    places = [place + 0.6 * (place // len(KINDS)) for place in range(len(boxes))]
    figure, axes = new_axes(11, 5.2)
    drawn = axes.bxp(
        boxes, places, widths=0.6, orientation="horizontal", showfliers=False, patch_artist=True,
        medianprops={"color": "#5a6775"}, whiskerprops={"color": "#5a6775"}, capprops={"color": "#5a6775"},
    )  # fmt: skip
    for place, box in enumerate(drawn["boxes"]):
        box.set(facecolor=CURVE_COLOURS[place % len(KINDS)], edgecolor="#5a6775")
    axes.axvline(threshold["value"], color="#5a6775", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel=f"similarity, {threshold['similarity']}")
    return Plot("Lowest, middle and highest similarity of the maps", render_figure(figure))
