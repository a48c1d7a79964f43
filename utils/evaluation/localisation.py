"""The one evaluation of sound localisation, called by training and by testing, and its score tables.

Every clip is scored under every rule, for the model, two blind baselines and the rule's ceiling. The
result is one DataFrame, a row for each of these; tables, intervals and groups are made of it.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import gather_objects
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
from utils.evaluation.protocols import (
    DISC,
    GAUSSIAN,
    LocalisationProtocol,
    ObjectMaps,
    Prediction,
    centre_disc,
    centre_gaussian,
    centre_square,
    confidences,
    oracle_cious,
    predict,
)
from utils.evaluation.statistics import SCORE_KEYS, bootstrap_intervals, bootstrap_statistics, clip_values
from utils.files import decoding, write_atomically

if TYPE_CHECKING:
    import pandas as pd  # imported when results are made: not every program makes any

MODEL, BASELINE, CEILING = "model", "baseline", "ceiling"
SIZE_LIMITS = {"small": 32**2, "medium": 96**2, "large": 144**2}  # SLAVC's: the area is below, else huge
MOST_BOXES = 3  # clips with so many boxes or more are one group
FEW_CLIPS = 30  # in a group of fewer the percentile interval is too narrow: marked
MAPS_FORMAT = "sound localisation maps 2"

Columns = dict[str, Any]
"""name -> B plain numbers or texts of a batch, or an array (B, 255) for f_curve. Small arrays that stay among
the large ones of the batches would keep the memory around them taken: gigabytes for 4,911 clips."""


@dataclass(frozen=True)
class LocalisationResult:
    """Everything that an evaluation found.

    `clips` has a row for each protocol, predictor and clip, the clips always in the same order, with the
    columns protocol, predictor, kind (model, baseline or ceiling), clip_id; ciou in [0, 1] (NaN: prediction
    and truth are both empty), pointing (0 or 1; NaN: no peak); in sets with negatives the model's confidence
    (NaN: no map), where objects are outlined iou and f_curve; area (pixels of 224 x 224), num_boxes (NaN: not
    known), pair_key, has_object (False: the sound has no source in the frame). Clips that broke while being
    decoded, and those alone, are in `unreadable`.
    """

    protocols: tuple[LocalisationProtocol, ...]  # the headline first
    clips: "pd.DataFrame"
    unreadable: tuple[tuple[str, str], ...] = ()  # (clip id, reason)
    maps: Tensor | None = None  # (N, h, w) the model's similarity maps
    objects: ObjectMaps | None = None  # of the N clips, what was mixed in

    @property
    def headline(self) -> "pd.DataFrame":
        """Rows of the first predictor, the model if there is one, under the first rule: a clip each."""
        return self.clips[: self.clips["clip_id"].nunique()]

    @property
    def num_empty(self) -> int:
        """Clips with nothing annotated though something sounds: a miss whatever the map."""
        clips = self.headline
        return int(((clips["area"] == 0) & clips["has_object"]).sum())

    @property
    def num_non_finite(self) -> int:
        """Clips whose map is not a finite number everywhere: a miss."""
        return 0 if self.maps is None else int((~self.maps.isfinite().flatten(1).all(1)).sum())

    def scores(self) -> dict[str, float]:
        """Model's headline numbers under the first rule, in percent, by name of SCORE_KEYS."""
        clips = self.headline[self.headline["has_object"]]
        means = 100 * clip_values(clips["ciou"], clips["pointing"]).mean(axis=0)
        return dict(zip(SCORE_KEYS, means.tolist(), strict=True))


@torch.inference_mode()
def evaluate_localisation(
    localise: Callable[[Any], Tensor] | None,
    batches: Iterable[Any],
    protocols: Sequence[LocalisationProtocol],
    *,
    objects: Callable[[Any], ObjectMaps] | None = None,
    model_name: str = MODEL,
    negatives: bool = False,
    on_batch: Callable[[Any, Tensor, Sequence[float]], None] | None = None,
) -> LocalisationResult:
    """Score a model, the blind baselines and the ceiling on the same clips, each decoded and localised once.

    Processes bring their own part of the batches each; all get the whole result, in rank order.

    Args:
        localise: batch -> similarity maps (B, h, w), by a model in evaluation mode; None: blind predictors
            (two more of them) and ceilings alone.
        batches: decoded clips (datasets.clips.Batch), each exactly once; where objects are outlined,
            bounding_boxes are None for all.
        protocols: the scoring rules, the headline first, all of one map size.
        objects: batch -> maps of objects, to be mixed into the model's; None: the model alone.
        model_name: what its row is called.
        negatives: the set has frames whose sound has no source in them: clips without a box.
        on_batch: called with the batch, its localisation maps and consensus IoUs under the first rule.
    """
    size = protocols[0].map_size
    blind = {DISC: centre_disc(size)}
    if localise is None:
        whole_frame = torch.ones(size, size, dtype=torch.bool)
        more = {"whole frame (blind)": whole_frame, "centre square (blind)": centre_square(size)}
        blind = more | blind
    found: dict[tuple[str, str, str], list[Columns]] = {}  # (protocol, predictor, kind) -> of each batch
    maps: list[Tensor] = []
    mixed_in: list[ObjectMaps] = []
    unreadable: list[tuple[str, str]] = []
    for batch in batches:
        unreadable += [(broken.clip_id, broken.reason) for broken in batch.broken]
        if not batch.clip_ids:
            continue
        outlined = all(boxes is None for boxes in batch.bounding_boxes)
        truth = TruthMaps(torch.from_numpy(batch.ground_truth_maps), outlined)
        scored: dict[tuple[str, str], list[Columns]] = {}  # (predictor, kind) -> scores under each rule
        if localise is not None:
            similarity = localise(batch).float()  # (B, h, w)
            truth = TruthMaps(truth.maps.to(similarity.device), outlined)
            mixed = None if objects is None else objects(batch)
            predictions = predict(similarity, protocols, truth.num_annotated, mixed)
            scores = [_score(prediction, truth) for prediction in predictions]
            for of_rule, rule in zip(scores, protocols, strict=True) if negatives else ():
                of_rule["confidence"] = confidences(similarity, rule, mixed).tolist()
            scored[model_name, MODEL] = scores
            maps.append(similarity.cpu())
            if mixed is not None:
                mixed_in.append(ObjectMaps(mixed.maps.float().cpu(), mixed.alpha))
            if on_batch is not None:
                on_batch(batch, predictions[0].localisation_maps, scores[0]["ciou"])
        scored |= _score_references(truth, protocols, blind)
        counts = [np.nan if boxes is None else len(boxes) for boxes in batch.bounding_boxes]
        description: Columns = {
            "clip_id": list(batch.clip_ids),
            "area": truth.total_votes.tolist(),
            "num_boxes": counts,
            "pair_key": list(batch.pair_keys),
            "has_object": [count > 0 or not negatives for count in counts],
        }
        for place, protocol in enumerate(protocols):
            for (predictor, kind), of_rules in scored.items():
                name = f"ceiling of {protocol.name} (maps without ties)" if kind == CEILING else predictor
                found.setdefault((protocol.name, name, kind), []).append(description | of_rules[place])

    unreadable, maps, mixed_in = (gather_objects(parts) for parts in (unreadable, maps, mixed_in))
    return LocalisationResult(
        tuple(protocols),
        _join(gather_objects([found]), unreadable),
        tuple(unreadable),
        torch.cat(maps) if maps else None,
        ObjectMaps(torch.cat([one.maps for one in mixed_in]), mixed_in[0].alpha) if mixed_in else None,
    )


def _join(
    parts: Sequence[Mapping[tuple[str, str, str], Sequence[Columns]]], unreadable: Sequence[tuple[str, str]]
) -> "pd.DataFrame":
    """Join what the processes found to one table; refuse none at all, and a clip that came twice."""
    import pandas as pd  # noqa: PLC0415

    tables = []
    for key in next(filter(None, parts), {}):
        batches = [columns for part in parts for columns in part.get(key, ())]
        joined = {name: np.concatenate([columns[name] for columns in batches]) for name in batches[0]}
        table = pd.DataFrame({name: list(one) if one.ndim > 1 else one for name, one in joined.items()})
        tables.append(table.assign(**dict(zip(("protocol", "predictor", "kind"), key, strict=True))))
    if not tables:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
    if tables[0]["clip_id"].duplicated().any():
        raise ValueError("A clip came twice in the evaluation; scores would count it twice.")
    return pd.concat(tables, ignore_index=True)


def _score(prediction: Prediction, truth: TruthMaps) -> Columns:
    """Score predicted masks and their maps, (B, M, M), or (1, M, M) for all clips."""
    columns: Columns = {
        "ciou": consensus_iou(prediction.masks, truth).tolist(),
        "pointing": pointing_hits(prediction.localisation_maps, truth).double().tolist(),
    }
    if truth.outlined:
        maps = prediction.localisation_maps.expand_as(truth.maps)
        columns["iou"] = mask_ious(maps, truth.maps).tolist()
        columns["f_curve"] = f_curves(maps, truth.maps).cpu().numpy()  # (B, 255)
    return columns


def _score_references(
    truth: TruthMaps, rules: Sequence[LocalisationProtocol], blind: Mapping[str, Tensor]
) -> dict[tuple[str, str], list[Columns]]:
    """Score what needs no model: blind masks and the blind map, and the ceiling of each rule."""
    device, scored, unknown = truth.maps.device, {}, [np.nan] * len(truth)
    for name, mask in blind.items():
        alone = Prediction(mask[None].to(device, torch.float32), mask[None].to(device))
        scored[name, BASELINE] = [_score(alone, truth) | {"pointing": unknown}] * len(rules)
    gaussian = predict(centre_gaussian().to(device), rules, truth.num_annotated)
    scored[GAUSSIAN, BASELINE] = [_score(prediction, truth) for prediction in gaussian]
    scored[CEILING, CEILING] = [{"ciou": oracle_cious(truth, rule).tolist()} for rule in rules]
    return scored


def headline_map(result: LocalisationResult, place: int) -> Tensor:
    """Localisation map (M, M) of one clip of a result under its first rule, to be drawn."""
    assert result.maps is not None, "there is a model"
    one, num_annotated = slice(place, place + 1), torch.ones(1, dtype=torch.int64)
    objects = result.objects and result.objects._replace(maps=result.objects.maps[one])
    (prediction,) = predict(result.maps[one], result.protocols[:1], num_annotated, objects)
    return prediction.localisation_maps[0]


# ----------------------------------------------------------------------------------- saved maps


def save_maps(path: Path, result: LocalisationResult, context: Mapping[str, Any]) -> None:
    """Write similarity maps, and the plain values that stand beside their scores, to an .npz file."""
    record = {"format": MAPS_FORMAT, "context": dict(context), "unreadable": result.unreadable}
    header = np.frombuffer(json.dumps(record).encode(), np.uint8)
    clip_ids, objects = result.headline["clip_id"].to_numpy(dtype=str), result.objects
    further: dict[str, Any] = {} if objects is None else {"object_maps": objects.maps}
    file = io.BytesIO()
    np.savez_compressed(file, header=header, clip_ids=clip_ids, maps=np.asarray(result.maps), **further)
    write_atomically(path, file.getvalue())


def read_maps(
    path: Path,
) -> tuple[dict[str, Any], dict[str, int], NDArray[np.float32], NDArray[np.float32] | None]:
    """Read what `save_maps` wrote.

    Returns the header with `context` and `unreadable`, each clip id's place in the maps, the maps (N, h, w),
    and those of objects (N, h', w') or None.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No saved maps at {path}: --from-maps takes a file that --save-maps wrote.")
    advice = "it is broken, or no file of --save-maps of this version; write it again, or name another"
    with decoding(path, advice):
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        header = json.loads(arrays["header"].tobytes())
        clip_ids, maps, objects = arrays["clip_ids"].tolist(), arrays["maps"], arrays.get("object_maps")
        whole = (objects is None) == (header["context"]["object_prior"] is None)
        if header["format"] != MAPS_FORMAT or len(clip_ids) != len(maps) or not whole:
            raise ValueError(f"its format is {header['format']!r}, or its parts do not belong together")
    return header, {clip_id: place for place, clip_id in enumerate(clip_ids)}, maps, objects


# --------------------------------------------------------------------------------------- tables


def score_table(clips: "pd.DataFrame", metrics: str | None = None) -> "pd.DataFrame":
    """Scores in percent with their intervals, a row for each protocol and predictor.

    Clips, of a LocalisationResult, without an object only count for a family of EXTRA_METRICS.

    Returns:
        columns protocol, predictor and kind; for each of SCORE_KEYS and of the metrics the score under that
        name, and its interval's ends under <name>_low and <name>_high; NaN where there is none.
    """
    import pandas as pd  # noqa: PLC0415

    names = ["protocol", "predictor", "kind"]
    groups = list(clips.groupby(names, sort=False))
    located = [one[one["has_object"]] for _, one in groups]
    values = np.concatenate([clip_values(one["ciou"], one["pointing"]) for one in located], axis=1)
    scores = np.column_stack([values.mean(axis=0), bootstrap_intervals(values)]).reshape(len(groups), -1)
    keys = [*SCORE_KEYS]  # of scores (G, 3 K): each with its interval's ends
    if metrics is not None:
        extra = [extra_scores(metrics, one, kind).ravel() for (_, _, kind), one in groups]
        scores, keys = np.concatenate([scores, extra], axis=1), [*keys, *EXTRA_METRICS[metrics]]
    columns = [key + end for key in keys for end in ("", "_low", "_high")]
    table = pd.DataFrame([name for name, _ in groups], columns=names)
    return table.join(pd.DataFrame(100 * scores, columns=columns))


def extra_scores(metrics: str, clips: "pd.DataFrame", kind: str) -> NDArray[np.float64]:
    """One predictor's scores by a family of EXTRA_METRICS, with the ends of their intervals: (K, 3)."""
    num_clips = len(clips)
    scores = np.full(len(EXTRA_METRICS[metrics]), np.nan)
    ends = np.full((len(scores), 2), np.nan)
    if metrics == "detection":
        positive, confidence = clips["has_object"].to_numpy(), clips["confidence"].to_numpy()
        if kind == CEILING:  # it knows what sounds, without ties
            confidence = np.where(positive, 1, -1) + np.arange(num_clips) / num_clips
        elif kind == BASELINE:  # it is as confident of every clip
            confidence = np.ones(num_clips)
        order = np.argsort(np.nan_to_num(confidence, nan=-np.inf), kind="stable")
        confidence, cious, positive = confidence[order], clips["ciou"].to_numpy()[order], positive[order]
        scores = np.array(detection_scores(confidence, cious, positive))
        if kind == MODEL:

            def resampled(repeats: NDArray[np.int64]) -> tuple[float, float, float]:
                drawn = np.repeat(np.arange(num_clips), repeats[order])
                return detection_scores(confidence[drawn], cious[drawn], positive[drawn])

            ends = bootstrap_statistics(resampled, num_clips)
    elif metrics == "pairs":
        values = clip_values(pair_cious(clips["ciou"], clips["pair_key"]))[:, :2]
        scores, ends = values.mean(axis=0), bootstrap_intervals(values)
    elif kind != CEILING:  # masks; a ceiling has no map
        ious, curves = clips["iou"].to_numpy(), np.stack(clips["f_curve"].to_list())  # (N,), (N, 255)
        scores = np.array(mask_scores(ious, curves))
        known = ~np.isnan(curves[:, 0])
        filled = np.where(known[:, None], curves, 0).astype(np.float64)

        def means(repeats: NDArray[np.int64]) -> list[float]:
            num_known = int(repeats @ known)
            best = float((repeats @ filled).max()) / num_known if num_known else np.nan
            return [float(repeats @ ious) / num_clips, best]

        # The others depend on which clips share a batch, which a resample would tear apart.
        ends[:2] = bootstrap_statistics(means, num_clips)
    return np.column_stack([scores, ends])


def clip_groups(clips: "pd.DataFrame") -> dict[str, tuple[str, "pd.Series"]]:
    """Group clips of a LocalisationResult by what is known of them: name -> (words, group of each clip)."""
    import pandas as pd  # noqa: PLC0415

    limits = ", ".join(f"{name} < {limit**0.5:.0f}²" for name, limit in SIZE_LIMITS.items())
    edges, order = [0, *SIZE_LIMITS.values(), np.inf], [*SIZE_LIMITS, "huge"]
    sizes = pd.cut(clips["area"], edges, right=False, labels=order).cat.add_categories("nothing annotated")
    sizes[clips["area"] == 0] = "nothing annotated"
    groups = {"box_size": (f"annotated pixels of 224 x 224: {limits}, otherwise huge", sizes)}
    if clips["num_boxes"].notna().all():
        counts = [str(count) for count in range(MOST_BOXES)] + [f"{MOST_BOXES} or more"]
        boxes = pd.cut(clips["num_boxes"], [*range(MOST_BOXES + 1), np.inf], right=False, labels=counts)
        groups["number_of_boxes"] = ("number of boxes, those of all annotators", boxes)
    if "class" in clips:
        groups["class"] = ("class", clips["class"].astype("category"))
    return groups


def group_tables(clips: "pd.DataFrame") -> dict[str, "pd.DataFrame"]:
    """Model's scores on groups of clips, beside blind guesses and ceiling, in percent.

    Returns:
        by name of a grouping, for each protocol and group its name, num_clips, few_clips (the intervals
        are too narrow), the model's scores as of `score_table`, and best_blind and ceiling: the
        cIoU@0.5 of the best baseline and of the ceiling on the same clips.
    """
    import pandas as pd  # noqa: PLC0415

    clips = clips[clips["has_object"]]
    models = clips[clips["kind"] == MODEL]
    tables = {}
    for grouping, (_, groups) in clip_groups(clips).items():
        by = [clips["protocol"], groups.rename("name"), clips["kind"], clips["predictor"]]
        rates = 100 * (clips["ciou"] >= 0.5).groupby(by, observed=True).mean()
        best = rates.groupby(level=[0, 1, 2], observed=True).max().unstack()  # (protocol, name) x kind
        best = best[[BASELINE, CEILING]].rename(columns={BASELINE: "best_blind", CEILING: "ceiling"})
        rows = [
            score_table(inside).assign(name=name, num_clips=inside["clip_id"].nunique())
            for name, inside in models.groupby(groups[models.index], observed=True)
        ]
        table = pd.concat(rows, ignore_index=True).drop(columns=["predictor", "kind"])
        table = table.join(best, on=["protocol", "name"])
        tables[grouping] = table.assign(few_clips=table["num_clips"] < FEW_CLIPS)
    return tables
