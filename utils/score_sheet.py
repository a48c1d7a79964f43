"""Scores of every predictor under every rule, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from utils.distributed import gather_objects
from utils.evaluation.baselines import centre_gaussian, oracle_cious
from utils.evaluation.metrics import TruthMaps, consensus_iou, pointing_hits
from utils.evaluation.protocols import LocalisationProtocol, ObjectMaps, predict
from utils.scores import ClipScore, ProtocolScores, Scores
from utils.segmentation import MaskScores, compare_masks

MODEL, GAUSSIAN, CEILING = "model", "centre Gaussian (blind)", "ceiling"


class ScoreSheet:
    """Scores of every predictor under every rule, filled batch by batch.

    Rules that differ in name only are scored once.
    """

    def __init__(
        self,
        protocols: Sequence[LocalisationProtocol],
        shapes: Mapping[str, Callable[[int], Tensor]],
        model_name: str = MODEL,
    ) -> None:
        """Nothing is scored yet.

        Args:
            protocols: the rules, the headline first.
            shapes: masks (M, M) by their names, as functions of M.
            model_name: what the model's row is called.

        Raises:
            ValueError: the rules are none, come twice, or score maps of different sizes.
        """
        names = [protocol.name for protocol in protocols]
        sizes = {protocol.map_size for protocol in protocols}
        if not names or len(set(names)) != len(names) or len(sizes) != 1:
            raise ValueError(
                "Scoring takes one protocol or more, each once and all of one map size, got "
                f"{names} of sizes {sorted(sizes)}."
            )
        self._protocols = tuple(protocols)
        self._rules = list(dict.fromkeys(protocol.rule for protocol in protocols))
        (map_size,) = sizes
        self._masks = {name: shape(map_size) for name, shape in shapes.items()}
        self._model_name = model_name
        self._clip_ids: list[str] = []
        self._found: dict[tuple[str, LocalisationProtocol], list[ClipScore]] = {}

    def add_model(
        self,
        clip_ids: Sequence[str],
        similarity_maps: Tensor,
        truth: TruthMaps,
        objects: ObjectMaps | None = None,
    ) -> tuple[Tensor, list[ClipScore]]:
        """Scores a model's maps; returns the first rule's localisation maps and scores."""
        maps = self._add_maps(MODEL, clip_ids, similarity_maps, truth, objects)
        return maps, self._found[MODEL, self._rules[0]][-len(clip_ids) :]

    def add_references(self, clip_ids: Sequence[str], truth: TruthMaps) -> None:
        """Scores the blind predictors and the ceiling."""
        self._clip_ids += clip_ids
        device = truth.maps.device
        for name, mask in self._masks.items():
            cious = consensus_iou(mask[None].to(device), truth).tolist()
            masks = _mask_scores(mask[None].to(device, torch.float32), truth)
            for rule in self._rules:
                self._add(name, rule, _without_maps(clip_ids, cious, masks))
        self._add_maps(GAUSSIAN, clip_ids, centre_gaussian().to(device), truth)
        ceilings = torch.stack([oracle_cious(truth, rule) for rule in self._rules]).tolist()
        for rule, cious in zip(self._rules, ceilings, strict=True):
            self._add(CEILING, rule, _without_maps(clip_ids, cious, [None] * len(truth)))

    def gather(self) -> None:
        """Adds up what all processes have found, in the order of their ranks."""
        self._clip_ids = gather_objects(self._clip_ids)
        parts, self._found = gather_objects([self._found]), {}
        for part in parts:
            for key, scores in part.items():
                self._found.setdefault(key, []).extend(scores)

    def by_protocol(self, unreadable: Sequence[tuple[str, str]]) -> tuple[ProtocolScores, ...]:
        """All scores; refuses none at all, and a clip that came twice."""
        if not self._clip_ids:
            first = f", first: {unreadable[0][1]}" if unreadable else ""
            raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
        if len(set(self._clip_ids)) != len(self._clip_ids):
            raise ValueError("A clip came twice in the evaluation; scores would count it twice.")
        names = dict.fromkeys(name for name, _ in self._found)
        return tuple(
            ProtocolScores(protocol, tuple(self._row(name, protocol) for name in names))
            for protocol in self._protocols
        )

    def _row(self, name: str, protocol: LocalisationProtocol) -> Scores:
        clips = tuple(self._found[name, protocol.rule])
        if name == CEILING:
            return Scores(f"ceiling of {protocol.name} (maps without ties)", "ceiling", clips)
        if name == MODEL:
            return Scores(self._model_name, "model", clips)
        return Scores(name, "baseline", clips)

    def _add_maps(
        self,
        name: str,
        clip_ids: Sequence[str],
        similarity_maps: Tensor,
        truth: TruthMaps,
        objects: ObjectMaps | None = None,
    ) -> Tensor:
        predictions = predict(similarity_maps, self._rules, truth.num_annotated, objects)
        columns = [
            (
                consensus_iou(prediction.masks, truth),
                pointing_hits(prediction.localisation_maps, truth).double(),
                prediction.confidences.expand(len(truth)),
            )
            for prediction in predictions
        ]
        # One transfer from the device for all rules.
        found = torch.stack([torch.stack(column) for column in columns]).tolist()
        masks = _masks_of_rules([prediction.localisation_maps for prediction in predictions], truth)
        for rule, of_clips, columns_of_rule in zip(self._rules, masks, found, strict=True):
            cious, hits, confidences = columns_of_rule
            scores = map(ClipScore, clip_ids, cious, map(bool, hits), confidences, of_clips)
            self._add(name, rule, scores)
        return predictions[0].localisation_maps

    def _add(self, name: str, rule: LocalisationProtocol, scores: Iterable[ClipScore]) -> None:
        self._found.setdefault((name, rule), []).extend(scores)


def _masks_of_rules(
    localisation_maps: Sequence[Tensor], truth: TruthMaps
) -> list[Sequence[MaskScores | None]]:
    """Of each rule's maps; those that several rules share are compared once."""
    distinct = {id(maps): maps for maps in localisation_maps}
    found = {key: _mask_scores(maps, truth) for key, maps in distinct.items()}
    return [found[id(maps)] for maps in localisation_maps]


def _mask_scores(localisation_maps: Tensor, truth: TruthMaps) -> Sequence[MaskScores | None]:
    """Maps (B, M, M), or (1, M, M) that are the same for each clip."""
    if not truth.outlined:
        return [None] * len(truth)
    return compare_masks(localisation_maps.expand_as(truth.maps), truth.maps)


def _without_maps(
    clip_ids: Sequence[str], cious: Sequence[float], masks: Sequence[MaskScores | None]
) -> Iterator[ClipScore]:
    columns = zip(clip_ids, cious, masks, strict=True)
    return (ClipScore(clip_id, ciou, None, mask=mask) for clip_id, ciou, mask in columns)
