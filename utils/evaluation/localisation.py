"""The one evaluation of sound localisation, called by training and by testing, and its score tables.

Every clip is scored under every rule, for the model, two blind baselines and the rule's ceiling. The
result is one DataFrame, a row for each of these; tables, intervals and groups are made of it.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import gather_objects
from utils.evaluation.baselines import centre_disc, centre_gaussian, centre_square, oracle_cious, whole_frame
from utils.evaluation.metrics import (
    EXTRA_METRICS,
    TruthMaps,
    consensus_iou,
    detection_scores,
    f_curves,
    mask_ious,
    mask_scores,
    pair_cious,
    pointing_hits,
)
from utils.evaluation.protocols import LocalisationProtocol, ObjectMaps, predict
from utils.evaluation.statistics import SCORE_KEYS, bootstrap_intervals, bootstrap_statistics, clip_values
from utils.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd  # imported when results are made: not every program makes any

MODEL, CEILING = "model", "ceiling"
DISC, GAUSSIAN = "centre disc (blind)", "centre Gaussian (blind)"
AREA_SIDE = 224  # of the frame in whose pixels areas are given, whatever the size of a rule's map
SIZE_LIMITS = {"small": 32**2, "medium": 96**2, "large": 144**2}  # SLAVC's: the area is below, else huge
MOST_BOXES = 3  # clips with so many boxes or more are one group
FEW_CLIPS = 30  # in a group of fewer the percentile interval is too narrow: marked
MAPS_FORMAT = "sound localisation maps 2"

Columns = dict[str, NDArray[Any]]
"""name -> (B,), or (B, 255) for f_curve: what is known of each clip"""


@dataclass(frozen=True)
class LocalisationResult:
    """Everything that an evaluation found.

    `clips` has a row for each protocol, predictor and clip, the clips always in the same order, with the
    columns protocol, predictor, kind (model, baseline or ceiling), clip_id; ciou in [0, 1] (NaN: prediction
    and truth are both empty), pointing (0 or 1; NaN: no peak), confidence (NaN: no map), where objects are
    outlined iou and f_curve; area (pixels of 224 x 224), num_boxes (NaN: not known), pair_key, has_object
    (False: the sound has no source in the frame). Clips that broke while being decoded, and those alone,
    are in `unreadable`.
    """

    protocols: tuple[LocalisationProtocol, ...]  # the headline first
    clips: "pd.DataFrame"
    unreadable: tuple[tuple[str, str], ...] = ()  # (clip id, reason)
    num_non_finite: int = 0  # clips whose map is not a finite number everywhere: a miss
    maps: NDArray[np.float32] | None = None  # (N, h, w) the model's similarity maps
    object_maps: NDArray[np.float32] | None = None  # (N, h', w') what was mixed in
    alpha: float = 1.0  # share of the model's map beside the objects'

    @property
    def headline(self) -> "pd.DataFrame":
        """Rows of the first predictor, the model if there is one, under the first rule: a clip each."""
        return self.clips[: self.clips["clip_id"].nunique()]

    @property
    def num_empty(self) -> int:
        """Clips with nothing annotated though something sounds: a miss whatever the map."""
        clips = self.headline
        return int(((clips["area"] == 0) & clips["has_object"]).sum())

    def scores(self) -> dict[str, float]:
        """Model's headline numbers under the first rule, in percent, by name of SCORE_KEYS."""
        clips = self.headline[self.headline["has_object"]]
        means = 100 * clip_values(clips["ciou"], clips["pointing"]).mean(axis=0)
        return dict(zip(SCORE_KEYS, means.tolist(), strict=True))


@torch.inference_mode()
def evaluate_localisation(  # noqa: C901 - reads from top to bottom
    localise: Callable[[Any], Tensor] | None,
    batches: Iterable[Any],
    protocols: Sequence[LocalisationProtocol],
    *,
    objects: Callable[[Any], ObjectMaps] | None = None,
    model_name: str = MODEL,
    negatives: bool = False,
    on_batch: Callable[[Any, Tensor, Sequence[float]], None] | None = None,
    shared: bool = False,
) -> LocalisationResult:
    """Score a model, the blind baselines and the ceiling on the same clips, each decoded and localised once.

    Args:
        localise: batch -> similarity maps (B, h, w), by a model in evaluation mode; None: blind predictors
            (two more of them) and ceilings alone.
        batches: decoded clips, each exactly once, with clip_ids, ground_truth_maps (B, M, M),
            bounding_boxes (of each clip (N, 4), or None for all where objects are outlined), pair_keys, and
            `broken` clips.
        protocols: the scoring rules, the headline first.
        objects: batch -> maps of objects, to be mixed into the model's; None: the model alone.
        model_name: what its row is called.
        negatives: the set has frames whose sound has no source in them: clips without a box.
        on_batch: called with the batch, its localisation maps (B, M, M) and consensus IoUs under the first
            rule.
        shared: each process brings its own part of the batches; all get the whole result, in rank order.

    Returns:
        the clips in the order of the batches.

    Raises:
        ValueError: no clip could be scored, a clip came twice, or a clip has no boxes; the rules are none,
            come twice, or score maps of different sizes.
    """
    names, sizes = [protocol.name for protocol in protocols], {protocol.map_size for protocol in protocols}
    if not names or len(set(names)) != len(names) or len(sizes) != 1:
        raise ValueError(
            f"Scoring takes one protocol or more, each once and all of one map size, got {names} of sizes "
            f"{sorted(sizes)}."
        )
    rules = list(dict.fromkeys(protocol.rule for protocol in protocols))  # some differ in name only
    shapes = {DISC: centre_disc(*sizes)}
    if localise is None:
        more = {"whole frame (blind)": whole_frame(*sizes), "centre square (blind)": centre_square(*sizes)}
        shapes = more | shapes
    found: dict[tuple[str, LocalisationProtocol], list[Columns]] = {}
    truths: list[Columns] = []
    maps: list[tuple[NDArray[np.float32], NDArray[np.float32] | None]] = []
    unreadable: list[tuple[str, str]] = []
    num_non_finite, alpha = 0, 1.0

    for batch in batches:
        unreadable += [(broken.clip_id, broken.reason) for broken in batch.broken]
        if not batch.clip_ids:
            continue
        given = batch.ground_truth_maps
        if given is None or len(given) != len(batch.clip_ids):
            raise ValueError(f"Clips without boxes cannot be scored, e.g. {batch.clip_ids[0]}.")
        outlined = all(boxes is None for boxes in batch.bounding_boxes)
        truth = TruthMaps(torch.from_numpy(given), outlined)
        if localise is not None:
            similarity = localise(batch).float()  # (B, h, w)
            mixed = None if objects is None else objects(batch)
            alpha = alpha if mixed is None else mixed.alpha
            truth = TruthMaps(truth.maps.to(similarity.device), outlined)
            num_non_finite += int((~similarity.isfinite()).any(2).any(1).sum())
            shown, scored = _score_maps(similarity, truth, rules, mixed)
            for rule, columns in zip(rules, scored, strict=True):
                found.setdefault((MODEL, rule), []).append(columns)
            maps.append(
                (similarity.cpu().numpy(), None if mixed is None else mixed.maps.float().cpu().numpy())
            )
        for name, rule, columns in _score_references(shapes, truth, rules):
            found.setdefault((name, rule), []).append(columns)
        truths.append(_describe_truth(batch, truth, negatives=negatives))
        if localise is not None and on_batch is not None:
            on_batch(batch, shown, scored[0]["ciou"].tolist())

    if shared:
        parts, found = gather_objects([found]), {}
        for part in parts:
            for key, of_batches in part.items():
                found.setdefault(key, []).extend(of_batches)
        truths, maps, unreadable = gather_objects(truths), gather_objects(maps), gather_objects(unreadable)
        num_non_finite = sum(gather_objects([num_non_finite]))
    return LocalisationResult(
        tuple(protocols),
        _as_table(found, truths, protocols, unreadable, model_name),
        tuple(unreadable),
        num_non_finite,
        np.concatenate([one for one, _ in maps]) if maps else None,
        np.concatenate([one for _, one in maps if one is not None]) if maps and objects else None,
        alpha,
    )


def headline_map(result: LocalisationResult, place: int) -> Tensor:
    """Localisation map (M, M) of one clip of a result under its first rule, to be drawn."""
    assert result.maps is not None, "there is a model"
    objects = None
    if result.object_maps is not None:
        objects = ObjectMaps(torch.from_numpy(result.object_maps[place : place + 1]), result.alpha)
    maps = torch.from_numpy(result.maps[place : place + 1])
    return predict(maps, result.protocols[:1], torch.ones(1, dtype=torch.int64), objects)[
        0
    ].localisation_maps[0]


def _score_maps(
    maps: Tensor, truth: TruthMaps, rules: Sequence[LocalisationProtocol], objects: ObjectMaps | None = None
) -> tuple[Tensor, list[Columns]]:
    """Score maps (B, h, w), or one for all clips, under each rule; with the first's localisation maps."""
    predictions = predict(maps, rules, truth.num_annotated, objects)
    scores = torch.stack(
        [
            torch.stack(
                [
                    consensus_iou(one.masks, truth),
                    pointing_hits(one.localisation_maps, truth).double(),
                    one.confidences.expand(len(truth)),
                ]
            )
            for one in predictions
        ]
    )  # (R, 3, B)
    names = ("ciou", "pointing", "confidence")
    columns = [
        dict(zip(names, of_rule, strict=True)) for of_rule in scores.cpu().numpy()
    ]  # one transfer for all
    if truth.outlined:
        # Rules share maps: each is compared once.
        distinct = {id(one.localisation_maps): one.localisation_maps for one in predictions}
        compared = {key: _compare_masks(one, truth) for key, one in distinct.items()}
        for of_rule, one in zip(columns, predictions, strict=True):
            of_rule.update(compared[id(one.localisation_maps)])
    return predictions[0].localisation_maps, columns


def _compare_masks(localisation_maps: Tensor, truth: TruthMaps) -> Columns:
    maps = localisation_maps.expand_as(truth.maps)
    return {
        "iou": mask_ious(maps, truth.maps).cpu().numpy(),
        "f_curve": f_curves(maps, truth.maps).cpu().numpy(),
    }


def _score_references(
    shapes: dict[str, Tensor], truth: TruthMaps, rules: Sequence[LocalisationProtocol]
) -> Iterator[tuple[str, LocalisationProtocol, Columns]]:
    """Score what needs no model: blind masks and the blind map, and the ceiling of each rule."""
    device = truth.maps.device
    unknown = np.full(len(truth), np.nan)
    for name, mask in shapes.items():
        cious = consensus_iou(mask[None].to(device), truth).cpu().numpy()
        columns: Columns = {"ciou": cious, "pointing": unknown, "confidence": unknown}
        if truth.outlined:
            columns |= _compare_masks(mask[None].to(device, torch.float32), truth)
        yield from ((name, rule, columns) for rule in rules)
    _, scored = _score_maps(centre_gaussian().to(device), truth, rules)
    yield from ((GAUSSIAN, rule, columns) for rule, columns in zip(rules, scored, strict=True))
    for rule in rules:
        cious = oracle_cious(truth, rule).cpu().numpy()
        yield CEILING, rule, {"ciou": cious, "pointing": unknown, "confidence": unknown}


def _describe_truth(batch: Any, truth: TruthMaps, *, negatives: bool) -> Columns:  # noqa: ANN401 - see above
    counts = np.array([np.nan if boxes is None else len(boxes) for boxes in batch.bounding_boxes])
    return {
        "clip_id": np.array(batch.clip_ids, dtype=object),
        "area": truth.total_votes.cpu().numpy() * (AREA_SIDE**2 / truth.maps[0].numel()),
        "num_boxes": counts,
        "pair_key": np.array(batch.pair_keys, dtype=object),
        "has_object": (counts > 0) if negatives else np.ones(len(counts), bool),
    }


def _as_table(
    found: dict[tuple[str, LocalisationProtocol], list[Columns]],
    truths: list[Columns],
    protocols: Sequence[LocalisationProtocol],
    unreadable: Sequence[tuple[str, str]],
    model_name: str,
) -> "pd.DataFrame":
    """Put all scores into one table; refuse none at all, and a clip that came twice."""
    import pandas as pd  # noqa: PLC0415

    if not truths:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
    truth = _join(truths)
    if len(set(truth["clip_id"])) != len(truth["clip_id"]):
        raise ValueError("A clip came twice in the evaluation; scores would count it twice.")
    tables = []
    for protocol in protocols:
        for name in dict.fromkeys(name for name, _ in found):
            kind = name if name in (MODEL, CEILING) else "baseline"
            shown = {MODEL: model_name, CEILING: f"ceiling of {protocol.name} (maps without ties)"}.get(
                name, name
            )
            columns = _join(found[name, protocol.rule])
            curves = columns.pop("f_curve", None)
            row = {"protocol": protocol.name, "predictor": shown, "kind": kind, **truth, **columns}
            tables.append(pd.DataFrame(row if curves is None else {**row, "f_curve": list(curves)}))
    return pd.concat(tables, ignore_index=True)


def _join(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


# ----------------------------------------------------------------------------------- saved maps


def save_maps(path: Path, result: LocalisationResult, context: Mapping[str, Any]) -> None:
    """Write similarity maps, and the plain values that stand beside their scores, to an .npz file."""
    header = {"format": MAPS_FORMAT, "context": dict(context), "unreadable": result.unreadable}
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "clip_ids": result.headline["clip_id"].to_numpy(dtype=str),
        "maps": result.maps,
    }
    if result.object_maps is not None:
        arrays["object_maps"] = result.object_maps
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomically(path, file.getvalue())


def read_maps(
    path: Path,
) -> tuple[dict[str, Any], dict[str, int], NDArray[np.float32], NDArray[np.float32] | None]:
    """Read what `save_maps` wrote.

    Returns:
        header with `context` and `unreadable`; clip id -> its place in the maps; the maps (N, h, w);
        those of objects (N, h', w'), or None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or another kind of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No saved maps at {path}: --from-maps takes a file that --save-maps wrote.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != MAPS_FORMAT:
            raise ValueError(f"its format is {header['format']!r}, not {MAPS_FORMAT!r}")
        clip_ids, maps, objects = arrays["clip_ids"].tolist(), arrays["maps"], arrays.get("object_maps")
        if len(clip_ids) != len(maps) or (objects is None) != (header["context"]["object_prior"] is None):
            raise ValueError("its parts do not belong together")
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is broken, or no file of --save-maps of this version ({error!r}); write it "
            "again, or name another."
        ) from error
    return header, {clip_id: place for place, clip_id in enumerate(clip_ids)}, maps, objects


# --------------------------------------------------------------------------------------- tables


def score_table(clips: "pd.DataFrame", metrics: str | None = None) -> "pd.DataFrame":
    """Scores in percent with their intervals, a row for each protocol and predictor.

    Args:
        clips: of a LocalisationResult.
        metrics: family of EXTRA_METRICS that the benchmark has beside consensus IoU.

    Returns:
        columns protocol, predictor and kind; for each of SCORE_KEYS and of the family's names the score under
        that name, and its interval's ends under <name>_low and <name>_high; NaN where there is none. Clips
        without an object count only in the family's.
    """
    import pandas as pd  # noqa: PLC0415

    groups = list(clips.groupby(["protocol", "predictor", "kind"], sort=False))
    values = [clip_values(one["ciou"], one["pointing"]) for _, one in groups]
    located = [one["has_object"].to_numpy() for _, one in groups]
    chosen = np.concatenate([one[has] for one, has in zip(values, located, strict=True)], axis=1)  # (N, 4 G)
    ends = 100 * bootstrap_intervals(chosen).reshape(len(groups), len(SCORE_KEYS), 2)
    means = 100 * chosen.mean(axis=0).reshape(len(groups), len(SCORE_KEYS))
    rows = []
    for place, ((protocol, predictor, kind), one) in enumerate(groups):
        row = {"protocol": protocol, "predictor": predictor, "kind": kind}
        scores: dict[str, Sequence[float]]
        scores = {key: (means[place, k], *ends[place, k]) for k, key in enumerate(SCORE_KEYS)}
        if metrics is not None:
            scores |= extra_scores(metrics, one, kind)
        rows.append(row | _flat(scores))
    return pd.DataFrame(rows)


def _flat(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name -> (score, low, high), as columns of a score table."""
    ends = ("", "_low", "_high")
    return {
        key + end: value for key, values in scores.items() for end, value in zip(ends, values, strict=True)
    }


def extra_scores(metrics: str, clips: "pd.DataFrame", kind: str) -> dict[str, tuple[float, float, float]]:
    """One predictor's scores in percent by a family of EXTRA_METRICS: name -> (score, low, high)."""
    names = list(EXTRA_METRICS[metrics])
    num_clips = len(clips)
    scores, ends = np.full(len(names), np.nan), np.full((len(names), 2), np.nan)
    if metrics == "detection":
        positive = clips["has_object"].to_numpy()
        confidences = clips["confidence"].to_numpy()
        if kind == CEILING:  # it knows what sounds, without ties
            confidences = np.where(positive, 1, -1) + np.arange(num_clips) / num_clips
        elif np.isnan(confidences).all():  # a blind mask is as confident of every clip
            confidences = np.ones(num_clips)
        order = np.argsort(np.nan_to_num(confidences, nan=-np.inf), kind="stable")
        confidences, cious, positive = confidences[order], clips["ciou"].to_numpy()[order], positive[order]
        scores = np.array(detection_scores(confidences, cious, positive))
        if kind == MODEL:

            def resampled(repeats: NDArray[np.int64]) -> tuple[float, float, float]:
                drawn = np.repeat(np.arange(num_clips), repeats[order])
                return detection_scores(confidences[drawn], cious[drawn], positive[drawn])

            ends = bootstrap_statistics(resampled, num_clips)
    elif metrics == "pairs":
        values = clip_values(pair_cious(clips["ciou"], clips["pair_key"]))[:, :2]
        scores, ends = values.mean(axis=0), bootstrap_intervals(values)
    elif kind != CEILING:  # masks; a ceiling has no map
        ious = clips["iou"].to_numpy()
        curves = np.stack(clips["f_curve"].to_list())
        scores = np.array(mask_scores(ious, curves))
        known = ~np.isnan(curves[:, 0])
        filled = np.where(known[:, None], curves, 0).astype(np.float64)

        def means(repeats: NDArray[np.int64]) -> list[float]:
            num_known = int(repeats @ known)
            best = float((repeats @ filled).max()) / num_known if num_known else np.nan
            return [float(repeats @ ious) / num_clips, best]

        # The others depend on which clips share a batch, which a resample would tear apart.
        ends[:2] = bootstrap_statistics(means, num_clips)
    return dict(zip(names, zip(100 * scores, 100 * ends[:, 0], 100 * ends[:, 1], strict=True), strict=True))


def clip_groups(clips: "pd.DataFrame") -> dict[str, tuple[str, "pd.Series"]]:
    """Group clips by what is known of them: name -> (words, group of each clip; None: of none).

    Args:
        clips: of one predictor under one rule, with `class` where it is known.
    """
    import pandas as pd  # noqa: PLC0415

    limits = ", ".join(f"{name} < {limit**0.5:.0f}²" for name, limit in SIZE_LIMITS.items())
    edges, order = [0, *SIZE_LIMITS.values(), np.inf], [*SIZE_LIMITS, "huge"]
    sizes = pd.cut(clips["area"], edges, right=False, labels=order).cat.add_categories("nothing annotated")
    sizes[clips["area"] == 0] = "nothing annotated"
    groups = {"box_size": (f"annotated pixels of 224 x 224: {limits}, otherwise huge", sizes)}
    if clips["num_boxes"].notna().all():
        counts = [str(count) for count in range(MOST_BOXES)] + [f"{MOST_BOXES} or more"]
        codes = clips["num_boxes"].clip(upper=MOST_BOXES).astype(int)
        boxes = pd.Series(pd.Categorical.from_codes(codes, counts), clips.index)
        groups["number_of_boxes"] = ("number of boxes, those of all annotators", boxes)
    if "class" in clips:
        groups["class"] = ("class", clips["class"].astype("category"))
    return groups


def group_tables(clips: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """Model's scores on groups of clips, beside blind guesses and ceiling, in percent.

    Returns:
        by name of `clip_groups`, a row for each protocol and group with clips: protocol, name, num_clips,
        few_clips, the headline numbers as in `score_table`, best_blind and ceiling (their cIoU@0.5 there).
    """
    import pandas as pd  # noqa: PLC0415

    clips = clips[clips["has_object"]]
    predictors = list(clips.groupby(["protocol", "predictor", "kind"], sort=False))
    values = np.stack([clip_values(one["ciou"], one["pointing"]) for _, one in predictors])  # (G, N, 4)
    kinds = np.array([kind for (_, _, kind), _ in predictors])
    protocols = np.array([protocol for (protocol, _, _), _ in predictors])
    models = np.flatnonzero(kinds == MODEL)
    tables = {}
    for grouping, (_, groups) in clip_groups(predictors[0][1]).items():
        rows = []
        for name in groups.cat.categories:
            inside = values[:, (groups == name).to_numpy()]  # (G, n, 4)
            num_clips = inside.shape[1]
            if not num_clips:
                continue
            columns = np.concatenate(list(inside[models]), axis=1)  # (n, 4 P)
            ends = 100 * bootstrap_intervals(columns).reshape(len(models), len(SCORE_KEYS), 2)
            means = 100 * inside.mean(axis=1)
            for place, model in enumerate(models):
                alike = protocols == protocols[model]
                row = {"protocol": protocols[model], "name": name, "num_clips": num_clips}
                row |= {"few_clips": num_clips < FEW_CLIPS}
                row |= _flat({key: (means[model, k], *ends[place, k]) for k, key in enumerate(SCORE_KEYS)})
                row["best_blind"] = means[alike & (kinds == "baseline"), 0].max()
                row["ceiling"] = means[alike & (kinds == CEILING), 0].max()
                rows.append(row)
        tables[grouping] = pd.DataFrame(rows)
    return tables
