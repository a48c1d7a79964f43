"""Report of sound localisation: summary.json, tables and page from an evaluation's DataFrame."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.evaluation.localisation import (
    BASELINE,
    CEILING,
    FEW_CLIPS,
    MODEL,
    LocalisationResult,
    clip_groups,
    group_tables,
    score_table,
)
from utils.evaluation.metrics import EXTRA_METRICS, MASK_BATCH, SUCCESS_THRESHOLDS
from utils.evaluation.protocols import DISC, GAUSSIAN, LocalisationProtocol
from utils.evaluation.statistics import SCORE_KEYS, plain_interval
from utils.reports.report import EvaluationContext, Gallery, Plot, Report, ScoreTable, Section, Tile

if TYPE_CHECKING:
    import pandas as pd

SCORE_HEADINGS = dict(zip(SCORE_KEYS, ("cIoU@0.5", "AUC", "mean cIoU", "pointing"), strict=True))
GROUP_HEADINGS = {
    "num_clips": "Clips",
    "ciou_at_0.5": "cIoU@0.5",
    "best_blind": "Best blind",
    "ceiling": "Ceiling",
    **SCORE_HEADINGS,
}
REFERENCES = {"disc": DISC, "gaussian": GAUSSIAN}
"""columns of per_clip.csv, after those of the model"""
CURVE_COLOURS = ("#0072b2", "#c04f00", "#008560", "#b2528a", "#a87400")
INK, GRID = "#5a6775", "#dde2e8"
PLOT_VARIABLES = {INK: "var(--muted)", GRID: "var(--line)"} | {
    colour: f"var(--curve-{place})" for place, colour in enumerate(CURVE_COLOURS)
}
"""colours of a plot -> those of the page, which has others in dark mode"""
PLOT_STYLE: dict[Any, Any] = {
    "font.size": 9.5,  # on the page: 13 pixels
    "figure.subplot.left": 0.1, "figure.subplot.right": 0.98,
    "figure.subplot.bottom": 0.13, "figure.subplot.top": 0.94,
    "axes.grid": True, "grid.color": GRID, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "axes.labelpad": 8, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": INK, "xtick.major.size": 0, "xtick.major.pad": 6,
    "ytick.color": INK, "ytick.major.size": 0, "ytick.major.pad": 6,
    "svg.fonttype": "none", "svg.hashsalt": "report",
}  # fmt: skip
SCORES_HINT = (
    "All values in %, with 95 % bootstrap intervals over the clips. Blind baselines never hear the sound, so "
    "a model has to beat them; the ceiling is what a protocol grants the best possible map. The figures at "
    "the top are those of the first protocol. A success curve shows the share of clips whose consensus IoU "
    "reaches the threshold: the dotted vertical is cIoU@0.5, the area under the curve is AUC. Where the page "
    "may run its script, a click on a column's name sorts by it."
)
CLIPS_HINT = (
    "Frames are squares, as the model sees them; beside each, heat is the localisation map, shown only where "
    "it is high, and cyan boxes are annotated."
)
GROUPS_HINT = (
    "Groups: {}. Best blind and ceiling: their cIoU@0.5 on the same clips. Few clips: fewer than "
    f"{FEW_CLIPS}, for which the intervals are too narrow."
)

Benchmark = Any
"""a row of datasets.benchmarks: metrics (family of EXTRA_METRICS, or None), headline (the rule under
which they are published), numbers_published (False: published numbers are of other maps)"""


def localisation_report(
    result: LocalisationResult,
    context: EvaluationContext,
    benchmark: Benchmark,
    published: Mapping[str, Mapping[str, Any]],
    identity: Mapping[str, Any],
    galleries: Sequence[Gallery] = (),
) -> Report:
    """Put together everything that an evaluation writes; its clips have `class` where that is known.

    `published` says of each protocol, by name, whether its authors scored these clips: see
    datasets.lists.published_list.
    """
    clips, extra = result.headline, describe_extra_metrics(benchmark)
    scores, groups = score_table(result.clips, benchmark.metrics), group_tables(result.clips)
    protocols = plain_protocols(result.protocols, scores, extra, published, groups)
    headline, groupings = protocols[0], {name: words for name, (words, _) in clip_groups(clips).items()}
    first, without = headline["rows"][0], int((~clips["has_object"]).sum())
    summary = {
        "identity": dict(identity),
        "benchmark": context.benchmark,
        "protocol": {name: headline[name] for name in headline if name not in ("rows", "groups")},
        "cIoU@0.5": first["ciou_at_0.5"],
        "AUC": first["auc"],
        "mean_cIoU": first["mean_ciou"],
        "pointing_accuracy": first["pointing_accuracy"],
        **context.entries(list(clips["clip_id"]), result.unreadable),
        "num_without_object": without,
        "num_empty_ground_truth": result.num_empty,
        "num_non_finite_maps": result.num_non_finite,
        "rows": headline["rows"],
        "protocols": protocols,
        "extra_metrics": extra,
        "groupings": groupings,
        "warnings": [
            *context.warnings(result.unreadable, result.num_empty),
            *result_warnings(result, context.benchmark, benchmark),
        ],
    }
    title = context.title(len(clips))
    caption = f"Sound localisation: {title}"
    facts = {"protocol": headline["name"]}
    if without:
        caption += f", {len(clips) - without} of them with an object, of which cIoU, AUC and pointing are"
        facts["without an object"] = f"{without} clips: not in cIoU, AUC, pointing, curves and groups"
    notes = [(f"protocol {one['name']}", rule_words(one)) for one in protocols]

    sections = [Section("Scores", SCORES_HINT)]
    for one in protocols:
        name = one["name"]
        items: list[ScoreTable | Plot] = [*_page_tables(scores[scores["protocol"] == name], extra)]
        items.append(success_plot(result.clips[result.clips["protocol"] == name], name))
        for grouping, table in groups.items():
            items += _group_table(grouping, table[table["protocol"] == name], groupings[grouping])
        sections.append(Section("Protocol", rule_words(one), items, level=3, code=name))
    if galleries:
        sections.append(Section("Clips", CLIPS_HINT, galleries))
    listed = f"{len(clips)} of {context.num_listed} listed"
    return Report(
        title=title,
        caption=caption,
        eyebrow="Visual sound source localisation",
        summary=summary,
        clips=clip_table(result, benchmark.metrics),
        tables=score_tables(scores, extra, context.benchmark),
        rules=[f"{one['name']}: {one['published_list']['words']}" for one in protocols],
        csv=csv_table(summary, scores),
        notes=[*notes, *(extra["words"].items() if extra else ())],
        facts=facts,
        tiles=score_tiles(scores, listed, headline["name"], headline["published_list"]["words"]),
        sections=sections,
    ).with_provenance()


def plain_protocols(
    protocols: Sequence[LocalisationProtocol],
    scores: "pd.DataFrame",
    extra: Mapping[str, Any] | None,
    published: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, "pd.DataFrame"] | None = None,
) -> list[dict[str, Any]]:
    """Each rule with its scores in percent as plain values, for JSON.

    They are of `score_table`, `describe_extra_metrics` and `group_tables`; groups None: of all clips only.
    """
    plain = []
    for rule in protocols:
        rows = _plain_rows(scores.rename(columns={"predictor": "name"}), rule.name, ("name", "kind"))
        if extra is not None:
            own = _plain_rows(scores, rule.name, keys=extra["words"])
            further = [{"extra_intervals": row.pop("intervals"), "extra": row} for row in own]
            rows = [row | more for row, more in zip(rows, further, strict=True)]
        found = {**asdict(rule), "description": rule.description, "rows": rows}
        if groups is not None:
            facts = ("name", "num_clips", "few_clips", "best_blind", "ceiling")
            found["groups"] = {name: _plain_rows(table, rule.name, facts) for name, table in groups.items()}
        plain.append({**found, "published_list": dict(published[rule.name])})
    return plain


def _plain_rows(
    table: "pd.DataFrame", rule: str, facts: Sequence[str] = (), keys: Iterable[str] = SCORE_KEYS
) -> list[dict[str, Any]]:
    """Facts and scores by name under a rule, None where there is no score, and `intervals` likewise."""
    rows = []
    for row in table[table["protocol"] == rule].to_dict("records"):
        plain: dict[str, Any] = {key: None if np.isnan(row[key]) else row[key] for key in keys}
        ends = {key: plain_interval((row[f"{key}_low"], row[f"{key}_high"])) for key in plain}
        rows.append({**{fact: row[fact] for fact in facts}, **plain, "intervals": ends})
    return rows


def describe_extra_metrics(benchmark: Benchmark) -> dict[str, Any] | None:
    """Metrics of a benchmark beside consensus IoU, as plain values; None where there are none."""
    if benchmark.metrics is None:
        return None
    published = benchmark.headline if benchmark.numbers_published else None
    words = EXTRA_METRICS[benchmark.metrics]
    return {"published_under": published, "shown": list(words), "words": dict(words)}


def result_warnings(result: LocalisationResult, name: str, benchmark: Benchmark) -> list[str]:
    """Warnings that a reader must know before trusting this benchmark's scores, where there are any."""
    found = []
    clips, rules = result.headline, [protocol.name for protocol in result.protocols]
    if result.num_non_finite:
        found.append(f"{result.num_non_finite} maps are not finite numbers and count as misses.")
    if benchmark.metrics and benchmark.numbers_published and benchmark.headline not in rules:
        metrics = " and ".join(list(EXTRA_METRICS[benchmark.metrics])[:2])
        found.append(
            f"{metrics} of {name} are published under the rule {benchmark.headline}, which was not scored "
            f"(--protocol {benchmark.headline})."
        )
    if benchmark.metrics == "masks":
        found.append(
            f"Consensus IoU of {name} is with masks; SSL-Align's published one is with boxes, and other "
            "authors' mIoU and F are of masks that a network gave: compare with neither."
        )
        videos = list(clips["clip_id"].str.rpartition("_")[0])
        batches = [videos[start : start + MASK_BATCH] for start in range(0, len(videos), MASK_BATCH)]
        num_others = sum(len(batch) < MASK_BATCH or len(set(batch)) > 1 for batch in batches)
        if num_others:
            found.append(
                f"{num_others} of {len(batches)} batches of {MASK_BATCH} clips are not the "
                f"{MASK_BATCH} frames of a video (some are missing, or the list has another order): scores "
                "by batch differ."
            )
    if benchmark.metrics == "pairs":
        sizes = clips["pair_key"].value_counts()
        if (sizes == 1).any():
            found.append(
                f"{(sizes == 1).sum()} of {len(sizes)} frames were scored with one sound only: IIoU and IAUC "
                "take such a clip alone for its frame."
            )
    return found


def rule_words(protocol: Mapping[str, Any]) -> str:
    """Rule in words, and whether its authors scored the same clips."""
    return f"{protocol['description']}; {protocol['published_list']['words']}"


# -------------------------------------------------------------------------------------- tables


def score_tables(scores: "pd.DataFrame", extra: Mapping[str, Any] | None, on: str = "") -> list[ScoreTable]:
    """Tables for texts and the screen, on a set: the usual scores, and those of the benchmark."""
    tables = [ScoreTable(scores, SCORE_HEADINGS, latex=SCORE_KEYS[:2], scored_on=on)]
    if extra is not None:
        shown = {name: name for name in extra["shown"]}
        tables.append(ScoreTable(scores, shown, latex=[*shown], scored_on=on))
    return tables


def csv_table(summary: Mapping[str, Any], scores: "pd.DataFrame") -> "pd.DataFrame":
    """Line for each rule and predictor; everything else is repeated in each of them."""
    rules = {one["name"]: one for one in summary["protocols"]}
    table = scores.assign(num_without_object=summary["num_without_object"])
    table.insert(0, "benchmark", summary["benchmark"])
    table.insert(2, "rule", [rules[name]["description"] for name in scores["protocol"]])
    table.insert(3, "list_of_rule", [rules[name]["published_list"]["words"] for name in scores["protocol"]])
    table.insert(6, "num_clips", summary["num_clips"])
    return table


def clip_table(result: LocalisationResult, metrics: str | None) -> "pd.DataFrame":
    """Table per_clip.csv: a line for each clip; empty where a score says nothing of it."""
    import pandas as pd  # noqa: PLC0415

    clips = result.headline.reset_index(drop=True)
    located = {"pointing": clips["pointing"].astype(int).astype(str)}
    own: dict[str, Any] = {}
    for protocol in result.protocols:
        rows = result.clips[result.clips["protocol"] == protocol.name]
        names = rows["predictor"].where(rows["kind"] == BASELINE, rows["kind"])
        of = {name: one.reset_index(drop=True) for name, one in rows.groupby(names)}
        located[f"{protocol.name}:ciou"] = of[MODEL]["ciou"].map("{:.6f}".format)
        located[f"{protocol.name}:success"] = (of[MODEL]["ciou"] >= 0.5).astype(int).astype(str)
        for name, predictor in (REFERENCES | {"ceiling": CEILING}).items():
            located[f"{protocol.name}:{name}"] = of[predictor]["ciou"].map("{:.6f}".format)
        if metrics == "detection":
            own[f"{protocol.name}:confidence"] = of[MODEL]["confidence"].map(str)
        if metrics == "masks":
            own[f"{protocol.name}:iou"] = of[MODEL]["iou"].map("{:.6f}".format)
    table = pd.DataFrame(located)
    table[~clips["has_object"]] = ""
    table.insert(0, "clip_id", clips["clip_id"])
    table["area"] = clips["area"].map("{:g}".format)
    table["num_boxes"] = clips["num_boxes"].map("{:.0f}".format).replace("nan", "")
    if metrics == "pairs":
        table["pair"] = clips["pair_key"]
    table = table.assign(**own)
    return table.assign(**{"class": clips["class"].fillna("")}) if "class" in clips else table


def _page_tables(scores: "pd.DataFrame", extra: Mapping[str, Any] | None) -> list[ScoreTable]:
    names = {"predictor": "Name"}
    tables = [ScoreTable(scores, SCORE_HEADINGS, names, bar=SCORE_KEYS[0])]
    if extra is not None:
        rule = extra["published_under"]
        words = f"Published under the rule {rule}" if rule else "Published numbers are of other maps"
        described = "; ".join(f"{name}: {text}" for name, text in extra["words"].items())
        hint = f"{words}; in percent, with 95 % intervals. {described}."
        shown = {name: name for name in extra["shown"]}
        tables.append(ScoreTable(scores, shown, names, "Metrics of this benchmark", hint))
    return tables


def _group_table(grouping: str, rows: "pd.DataFrame", words: str) -> list[ScoreTable]:
    """Groups in their order, but classes by their score, the best first; none where all clips are in one.

    Groups of one clip are left to per_clip.csv.
    """
    single = rows["num_clips"] == 1
    rows, num_single = rows[~single], int(single.sum())
    if len(rows) + num_single < 2 or rows.empty:
        return []
    if num_single:
        words += f"; groups of one clip are left out ({num_single})"
    rows = rows.assign(note=np.where(rows["few_clips"], "few clips", ""))
    if grouping == "class":
        rows = rows.sort_values(SCORE_KEYS[0], ascending=False, kind="stable")
    title, names = f"By {grouping.replace('_', ' ')}", {"name": "Group"}
    hint = GROUPS_HINT.format(words)
    return [ScoreTable(rows, GROUP_HEADINGS, names, title, hint, bar=SCORE_KEYS[0])]


def score_tiles(scores: "pd.DataFrame", clips: str, protocol: str, published: str = "") -> list[Tile]:
    """Figures at the top of the page: the first row, against the blind baselines of its rule.

    `published`: whether the rule's authors scored these clips, in words.
    """
    rows = scores[scores["protocol"] == protocol]
    model, baselines = rows.iloc[0], rows[rows["kind"] == BASELINE]
    tiles = []
    for key in SCORE_KEYS[:2]:
        notes = [f"{model[key] - baselines[key].max():+.1f} points against the best blind baseline"]
        if not np.isnan(model[f"{key}_low"]):
            notes.insert(0, f"95 % interval {model[f'{key}_low']:.1f}\N{EN DASH}{model[f'{key}_high']:.1f}")
        notes = [note.replace("-", "\N{MINUS SIGN}") for note in notes]
        tiles.append(Tile(SCORE_HEADINGS[key], f"{model[key]:.1f}", "%", "lead", notes))
    rule = Tile("Protocol", protocol, style="words", notes=[published] if published else ())
    return [*tiles, Tile("Clips", clips, style="words"), rule]


def success_plot(clips: "pd.DataFrame", protocol: str) -> Plot:
    """Success curves of clips with an object under one rule: their share over the consensus-IoU threshold."""
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    groups = clips[clips["has_object"]].groupby(["predictor", "kind"], sort=False)["ciou"]
    legend, text = [], io.StringIO()
    with mpl.rc_context(PLOT_STYLE):
        figure = Figure((6.4, 4))
        axes = figure.subplots()
        for place, ((name, kind), cious) in enumerate(groups):
            rates = 100 * (cious.to_numpy()[:, None] >= SUCCESS_THRESHOLDS).mean(axis=0)  # (21,)
            colour = INK if kind == CEILING else CURVE_COLOURS[place % len(CURVE_COLOURS)]
            dashes: tuple[float, ...] = (1, 2) if kind == CEILING else ()
            if kind == BASELINE or (kind == MODEL and place >= len(CURVE_COLOURS)):
                dashes = ((4, 2), (1.5, 1.5), (5, 1.5, 1, 1.5))[place % 3]  # models: once colours run out
            line, layer = (2.6, 3) if kind == MODEL else (1.5, 2)  # models lie on top
            style = (0, dashes) if dashes else "-"
            axes.plot(SUCCESS_THRESHOLDS, rates, color=colour, ls=style, lw=line, zorder=layer)
            css = " ".join(f"{2 * length:g}" for length in dashes) or "none"
            legend.append((name, kind, f"stroke: {PLOT_VARIABLES[colour]}; stroke-dasharray: {css}"))
        axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
        axes.text(0.5, 102, "cIoU@0.5", ha="center", color=INK)
        axes.set(xlabel="threshold on cIoU", ylabel="clips that reach it (%)", xlim=(0, 1), ylim=(0, 100.5))
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    for colour, variable in PLOT_VARIABLES.items():
        svg = svg.replace(colour, variable)
    return Plot(f"Success curves, protocol {protocol}", svg, legend)


def choose_clips(clips: "pd.DataFrame", count: int) -> dict[str, "pd.DataFrame"]:
    """Rows of the best clips, of those around the median, and of the worst, `count` of each if there are.

    They are of one predictor under one rule, with an object; no clip comes twice.
    """
    ordered = clips.fillna({"ciou": 0}).sort_values(["ciou", "clip_id"], ascending=[False, True])
    count = min(count, len(ordered) // 3 or len(ordered))
    middle, last = max(count, (len(ordered) - count) // 2), max(count, len(ordered) - count)
    galleries = {
        "Best clips": ordered[:count],
        "Clips around the median": ordered[middle : min(middle + count, last)],
        "Worst clips": ordered[last:][::-1],
    }
    return {title: rows for title, rows in galleries.items() if len(rows)}
