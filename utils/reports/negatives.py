"""Report of negative sounds: summary.json, per_clip.csv, tables and a page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.evaluation.metrics import harmonic_mean
from utils.evaluation.negatives import (
    DEAF,
    KIND_WORDS,
    KINDS,
    MEDIAN_RULE,
    NEGATIVES,
    OWN,
    NegativeResult,
    score_table,
)
from utils.evaluation.protocols import DISC
from utils.evaluation.statistics import plain_interval
from utils.reports.localisation import choose_clips
from utils.reports.report import EvaluationContext, Gallery, Report, ScoreTable, Section, Tile

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = {"better": "better", "score": "score", "sd": "sd over seeds", "deaf": "deaf", "disc": "blind disc"}
TILES = ("f_loc", "f_auc", "sensitivity_ciou_at_0.5")
HINT = (
    "All values in %, means over the seeds, with 95 % bootstrap intervals over the clips. What needs no "
    f"hearing stands beside them. Deaf: {DEAF}. Blind disc: {DISC} for every sound."
)
CLIPS_HINT = (
    "Each frame with its annotated boxes, then with its own sound and the first draw of each negative one, "
    "all on one scale: heat begins at the universal threshold, {:.3f}, round which a white line runs, and is "
    "hottest at {:.3f}, the highest similarity of all clips. pIA: share of the frame above the threshold. "
    "With a negative sound nothing should glow."
)


def negatives_report(
    result: NegativeResult,
    context: EvaluationContext,
    identity: Mapping[str, Any],
    similarity: str,
    galleries: Sequence[Gallery] = (),
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
    keyed = scores.set_index("key")
    rows = keyed.to_dict("index")
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
        "without_ears": {DEAF: keyed["deaf"].dropna().to_dict(), DISC: keyed["disc"].dropna().to_dict()},
        "off_screen": identity["off_screen"],
        "num_seeds": num_seeds,
        **context.entries(result.clip_ids, result.unreadable, "over clips, the threshold as given"),
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
    words = f"on {similarity}, {source}"
    universal = Tile("Universal threshold", f"{result.threshold:.4f}", style="lead", notes=[words])
    shared = {"benchmark": context.benchmark, "num_clips": num_clips, "num_seeds": num_seeds}
    shared |= {"threshold": result.threshold, "threshold_source": source, "similarity": similarity}
    shared |= {"off_screen": identity["off_screen"]}
    sections = [Section("Scores", HINT, [ScoreTable(scores, HEADINGS, {"label": "Number"})])]
    if galleries:
        hint = CLIPS_HINT.format(result.threshold, result.maps.max().item())
        sections.append(Section("Clips", hint, galleries))
    title = context.title(num_clips)
    return Report(
        title=title,
        caption=f"Negative audio: {title}, threshold {threshold}",
        eyebrow="Sounds that are not in the picture",
        summary=summary,
        clips=clip_table(result, context.classes),
        tables=[ScoreTable(scores, HEADINGS, {"label": "number"})],
        csv=scores.drop(columns="label").assign(**shared),
        notes=notes,
        facts=dict(notes),
        tiles=[*tiles, universal],
        sections=sections,
    ).with_provenance()


def shown_clips(result: NegativeResult, count: int) -> dict[str, "pd.DataFrame"]:
    """Choose the best, median and worst clips by F_LOC of their first draws; the index is their place."""
    import pandas as pd  # noqa: PLC0415

    first = {name: values[:, 0] for name, values in result.scores.items()}
    clips = pd.DataFrame({"clip_id": result.clip_ids, OWN: first[f"ciou:{OWN}"]})
    clips = clips.assign(**{kind: first[f"area:{kind}"] for kind in NEGATIVES}, donor=result.donors[0])
    quiet = 1 - clips[[*NEGATIVES]].mean(axis=1)
    return choose_clips(clips.assign(ciou=harmonic_mean(clips[OWN], quiet)), count)


def clip_words(clip: Mapping[str, Any]) -> list[str]:
    """Say what the pictures of a row of `shown_clips` are, and what was found."""
    quiet = [f"{KIND_WORDS[kind]}: pIA {100 * clip[kind]:.0f} %" for kind in NEGATIVES]
    return ["frame", f"{KIND_WORDS[OWN]}: cIoU {clip[OWN]:.2f}", *quiet]


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
