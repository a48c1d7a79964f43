"""Report of negative sounds: summary.json, per_clip.csv, tables, and a page with a plot of similarities."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.evaluation.negatives import (
    DEAF,
    DISC,
    KIND_WORDS,
    KINDS,
    MEDIAN_RULE,
    NEGATIVES,
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
EXTREMES = ("minimum", "median", "maximum")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILE_RULE = (
    "numpy's linear quantile of the maxima of all negatives' up-sampled maps, each kind as often as there "
    "are seeds"
)
HINT = (
    "All values in %, means over the seeds, with 95 % bootstrap intervals over the clips. What needs no "
    f"hearing stands beside them. Deaf: {DEAF}. Blind disc: {DISC} for every sound."
)
PLOT_HINT = (
    "Over all maps of a kind of sound: quartiles, and the 5th and 95th percentile, of their lowest, middle "
    "or highest similarity; the vertical line is the threshold."
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
            "rule": QUANTILE_RULE,
            "num_negatives": len(NEGATIVES) * num_seeds * num_clips,
            "num_distinct_maps": (1 + 2 * num_seeds) * num_clips,
            "seeds": list(range(num_seeds)),
            "clip_list_sha256": context.clip_list_sha256,
        }
    warnings = context.warnings(result.unreadable, int(result.scores["empty"].sum()))
    other = "class"
    if identity["off_screen"] == "any":
        other = "file, class not known"
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
        **entries,
        "warnings": warnings,
    }
    notes = [
        ("threshold", f"{result.threshold:.6g} on {similarity}, {source}; a map is active above it"),
        ("median rule", MEDIAN_RULE.description),
        (
            "sounds",
            f"silence: zeros; noise: N(0, 1); off-screen: a clip of another {other}; {num_seeds} seeds",
        ),
        ("deaf, blind disc", f"{DEAF}; {DISC} for every sound: what needs no hearing"),
    ]
    title = f"Negative audio on {context.benchmark}, {num_clips} of {context.num_listed} listed clips"
    csv = scores.drop(columns="label").rename(
        columns={"key": "number", "score_low": "low", "score_high": "high", "disc": "blind_disc"}
    )
    csv.insert(0, "benchmark", context.benchmark)
    shared = {
        "threshold": result.threshold,
        "threshold_source": threshold["source"],
        "similarity": similarity,
    }
    shared |= {"num_seeds": num_seeds, "off_screen": identity["off_screen"], "num_clips": num_clips}
    tiles = []
    for row in (rows[key] for key in TILES):
        words = [f"95 % interval {row['score_low']:.1f} to {row['score_high']:.1f}"]
        words += [f"{row['deaf']:.1f} with the own map for every sound"]
        known = [text for text in words if "nan" not in text]
        tiles.append(Tile(row["label"], f"{row['score']:.1f}", "%", "lead", known))
    tiles.append(
        Tile("Universal threshold", f"{result.threshold:.4f}", "", "lead", [f"on {similarity}", source])
    )
    return Report(
        title=title,
        caption=f"{title}, threshold {result.threshold:.6g} on {similarity} ({source})",
        eyebrow="Sounds that are not in the picture",
        summary=summary,
        clips=clip_table(result, context.classes),
        tables=[ScoreTable(scores, HEADINGS, {"label": "number"})],
        csv=csv.assign(**shared, **provenance_columns(summary)),
        notes=[*notes, *provenance_notes(summary)],
        facts=dict(notes) | provenance_facts(summary),
        tiles=tiles,
        sections=[
            Section("Scores", HINT, [ScoreTable(scores, HEADINGS, {"label": "Number"})]),
            Section("Similarities", PLOT_HINT, [similarity_plot(summary["similarities"], threshold)]),
        ],
    )


def clip_table(result: NegativeResult, classes: Mapping[str, str] | None) -> "pd.DataFrame":
    """Table per_clip.csv: a line for each clip, with means over the seeds."""
    import pandas as pd  # noqa: PLC0415

    names = {"cIoU_U": "ciou:own"} | {f"pIA_{kind}": f"area:{kind}" for kind in KINDS}
    names |= {f"max_{kind}": f"maximum:{kind}" for kind in KINDS}
    for name in ("success", "pointing"):
        names |= {f"{name}_median_{kind}": f"{name}:{kind}" for kind in ("own", "off_screen")}
    means = {heading: result.scores[name].mean(axis=1).round(6) for heading, name in names.items()}
    table = pd.DataFrame({"clip_id": result.clip_ids} | means)
    if classes is not None:
        table["class"] = table["clip_id"].map(dict(classes))
    return table.assign(off_screen_sounds_of=[" ".join(donors) for donors in result.donors.T])


def similarity_plot(
    similarities: Mapping[str, Mapping[str, list[float]]], threshold: Mapping[str, Any]
) -> Plot:
    """Draw boxes over maps of their lowest, middle and highest similarity, for each kind of sound."""
    boxes: list[dict[str, Any]] = []
    places: list[float] = []
    for extreme in EXTREMES:
        for kind in KINDS:
            five = zip(("whislo", "q1", "med", "q3", "whishi"), similarities[kind][extreme], strict=True)
            boxes.append({**dict(five), "label": f"{extreme}, {KIND_WORDS[kind]}"})
            places.append(len(places) + 0.6 * EXTREMES.index(extreme))
    figure, axes = new_axes(11, 5.2)
    grey = {"color": "#5a6775"}
    drawn = axes.bxp(
        boxes, places, widths=0.6, orientation="horizontal", showfliers=False, patch_artist=True,
        medianprops=grey, whiskerprops=grey, capprops=grey,
    )  # fmt: skip
    for place, box in enumerate(drawn["boxes"]):
        box.set(facecolor=CURVE_COLOURS[place % len(KINDS)], edgecolor="#5a6775")
    axes.axvline(threshold["value"], color="#5a6775", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel=f"similarity, {threshold['similarity']}")
    return Plot("Lowest, middle and highest similarity of the maps", render_figure(figure))
