"""Report of negative sounds: summary.json, per_clip.csv, tables and a page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.evaluation.negatives import DEAF, DISC, KINDS, MEDIAN_RULE, NEGATIVES, NegativeResult, score_table
from utils.evaluation.statistics import plain_interval
from utils.reports.report import (
    EvaluationContext,
    Report,
    ScoreTable,
    Section,
    Tile,
    provenance_columns,
    provenance_facts,
    provenance_notes,
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
    """Put together everything that an evaluation writes; `similarity` is the threshold's scale, in words."""
    scores, num_clips, num_seeds = score_table(result.scores), len(result.clip_ids), identity["num_seeds"]
    source, num_negatives = "given by --threshold", None
    if identity["threshold"] is None:
        source = "third quartile of the highest similarities of these negatives"
        num_negatives = len(NEGATIVES) * num_seeds * num_clips
    warnings, other = context.warnings(result.unreadable, int(result.scores["empty"].sum())), "class"
    if identity["off_screen"] == "any":
        other = "file, class not known"
        words = "Off-screen sounds are those of any other clip: some may be of the same class, and right."
        warnings.insert(0, words)
    entries = context.entries(result.clip_ids, result.unreadable)
    entries["intervals"]["method"] = "percentile bootstrap over clips, the threshold as given"
    rows = scores.set_index("key").to_dict("index")
    summary = {
        "identity": dict(identity),
        "benchmark": context.benchmark,
        "threshold": {
            "value": result.threshold,
            "source": source,
            "similarity": similarity,
            "num_negatives": num_negatives,
        },
        "scores": {
            key: {
                "mean": row["score"],
                "sd": None if np.isnan(row["sd"]) else row["sd"],
                "interval": plain_interval((row["score_low"], row["score_high"])),
            }
            for key, row in rows.items()
        },
        "without_ears": {
            name: scores.set_index("key")[column].dropna().to_dict()
            for name, column in ((DEAF, "deaf"), (DISC, "disc"))
        },
        "off_screen": identity["off_screen"],
        "num_seeds": num_seeds,
        **entries,
        "warnings": warnings,
    }
    threshold = f"{result.threshold:.6g} on {similarity}, {source}"
    sounds = f"silence: zeros; noise: N(0, 1); off-screen: a clip of another {other}; {num_seeds} seeds"
    notes = [
        ("threshold", f"{threshold}; a map is active above it"),
        ("median rule", MEDIAN_RULE.description),
        ("sounds", sounds),
        ("deaf, blind disc", f"{DEAF}; {DISC} for every sound: what needs no hearing"),
    ]
    tiles = []
    for row in (rows[key] for key in TILES):
        beside = [f"95 % interval {row['score_low']:.1f} to {row['score_high']:.1f}"]
        beside += [f"{row['deaf']:.1f} with the own map for every sound"]
        known = [words for words in beside if "nan" not in words]
        tiles.append(Tile(row["label"], f"{row['score']:.1f}", "%", "lead", known))
    universal = Tile("Universal threshold", f"{result.threshold:.4f}", style="lead", notes=[threshold])
    shared = {"benchmark": context.benchmark, "num_clips": num_clips, "num_seeds": num_seeds}
    shared |= {"threshold": result.threshold, "threshold_source": source, "similarity": similarity}
    shared |= {"off_screen": identity["off_screen"]}
    title = f"Negative audio on {context.benchmark}, {num_clips} of {context.num_listed} listed clips"
    return Report(
        title=title,
        caption=f"{title}, threshold {threshold}",
        eyebrow="Sounds that are not in the picture",
        summary=summary,
        clips=clip_table(result, context.classes),
        tables=[ScoreTable(scores, HEADINGS, {"label": "number"})],
        csv=scores.drop(columns="label").assign(**shared, **provenance_columns(summary)),
        notes=[*notes, *provenance_notes(summary)],
        facts=dict(notes) | provenance_facts(summary),
        tiles=[*tiles, universal],
        sections=[Section("Scores", HINT, [ScoreTable(scores, HEADINGS, {"label": "Number"})])],
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
