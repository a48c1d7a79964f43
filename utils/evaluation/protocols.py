"""How a similarity map becomes a prediction: each rule of the field is a row; and what needs no model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.evaluation.metrics import TruthMaps

Upsampling = Literal["cv2_linear", "bilinear_align_corners", "bicubic", "bicubic_align_corners"]

SLAVC_OBJECT_SCALE = 2.5  # by which SLAVC's program divides object maps
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1
DISC, GAUSSIAN = "centre disc (blind)", "centre Gaussian (blind)"  # what results call the blind guesses

UPSAMPLING_WORDS: dict[Upsampling, str] = {
    "cv2_linear": "cv2 bilinear, half-pixel centres",
    "bilinear_align_corners": "bilinear, corners aligned",
    "bicubic": "bicubic, half-pixel centres",
    "bicubic_align_corners": "bicubic, corners aligned",
}


@dataclass(frozen=True)
class LocalisationProtocol:
    """A scoring rule."""

    name: str
    authors: str = field(compare=False)  # whose rule it is
    upsampling: Upsampling
    normalisation: Literal["min_max", "min_max_or_unchanged", "inverted_min_max", "half_cosine"]
    # of each map; the three min-max ones differ in a constant map, see `normalise`
    threshold: Literal["median", "fixed", "adaptive"]
    # median: the upper half of each clip's pixels; fixed: `value` on the normalised map; adaptive: as many
    # pixels as the truth annotates (half, where it annotates none)
    comparison: Literal[">", ">="]
    # of a pixel's value with the threshold, which is a pixel's value itself under the median and the adaptive
    # rule: > predicts one pixel less
    value: float | None = None  # of the fixed threshold, in [0, 1]
    keep_maximum: bool = False  # predict what is at 1 even where the comparison leaves it out
    object_prior: Literal["maps", "scores"] = "maps"  # what is mixed with it: normalised maps, raw scores
    object_upsampling: Upsampling | None = None  # of its maps; None: as the model's
    map_size: int = 224  # side of the scored map, pixels: that of the truth, which AudioVisualClips makes
    ground_truth: str = (
        "boxes truncated to whole pixels of 224 x 224 and cut to the frame: their union, or the "
        "consensus of annotators; masks as they are"
    )  # how annotation becomes pixels, the same under every rule

    @property
    def description(self) -> str:
        """The rule in words, for results."""
        at = {
            "median": "each map's upper median",
            "fixed": f"{self.value}",
            "adaptive": "the value that leaves as many pixels as the truth has",
        }
        scale = "as (cosine + 1) / 2" if self.normalisation == "half_cosine" else "min-max normalised"
        return (
            f"maps up-sampled to {self.map_size} x {self.map_size} ({UPSAMPLING_WORDS[self.upsampling]}), "
            f"{scale}, predicted where {self.comparison} {at[self.threshold]}"
        )


_SSL_TIE = LocalisationProtocol(
    "ssl_tie", "SSL-TIE and LVS", "cv2_linear", "inverted_min_max", "median", ">", keep_maximum=True
)
_EZ_VSL = LocalisationProtocol(
    "ez_vsl", "EZ-VSL and FNAC", "bilinear_align_corners", "min_max_or_unchanged", "median", ">="
)
_SLAVC = replace(
    _EZ_VSL, name="slavc", authors="SLAVC", upsampling="bicubic_align_corners", object_prior="scores"
)
_SSL_ALIGN = replace(
    _EZ_VSL, name="ssl_align", authors="SSL-Align", normalisation="inverted_min_max", comparison=">"
)
# Its program enlarges SSL-TIE's maps with OpenCV everywhere, LVS's and its own on VGG-SS.
_SSL_ALIGN_VGG_SS = replace(_SSL_ALIGN, name="ssl_align_vgg_ss", upsampling="cv2_linear")

PROTOCOLS: dict[str, LocalisationProtocol] = {
    protocol.name: protocol
    for protocol in (
        _SSL_TIE,
        LocalisationProtocol("sspl", "SSPL", "cv2_linear", "min_max", "fixed", ">=", value=0.5),
        _EZ_VSL,
        _SLAVC,
        replace(_SLAVC, name="slavc_fixed", normalisation="half_cosine", threshold="fixed", value=0.5),
        replace(
            _EZ_VSL, name="fnac_bicubic", authors="FNAC", upsampling="bicubic",
            object_upsampling="bilinear_align_corners",
        ),
        _SSL_ALIGN,
        replace(_SSL_ALIGN, name="ssl_align_adaptive", threshold="adaptive"),
        _SSL_ALIGN_VGG_SS,
        replace(_SSL_ALIGN_VGG_SS, name="ssl_align_vgg_ss_adaptive", threshold="adaptive"),
    )
}  # fmt: skip
"""Every rule, by name. Whose each is, and what differs: docs/evaluation.md."""
OTHER_NAMES = {
    "lvs": "ssl_tie", "fnac": "ez_vsl", "vssl_eval": "ssl_align", "vssl_eval_adaptive": "ssl_align_adaptive",
}  # fmt: skip
"""Names that rules had, too."""


def find_protocols(names: str) -> tuple[LocalisationProtocol, ...]:
    """Rules that a user named, in that order: names of PROTOCOLS with commas between, or 'all'."""
    wanted = list(PROTOCOLS) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name in OTHER_NAMES:
            raise ValueError(f"The protocol {name!r} is the same rule as {OTHER_NAMES[name]!r}: name that.")
        if name not in PROTOCOLS:
            raise ValueError(
                f"There is no protocol {name!r}. There are: {', '.join(PROTOCOLS)}; several take "
                "commas between them, and 'all' names each."
            )
        if wanted.count(name) > 1:
            raise ValueError(f"The protocol {name!r} is named twice in {names!r}.")
    return tuple(PROTOCOLS[name] for name in wanted)


class Prediction(NamedTuple):
    """Pixels that a rule predicts of similarity maps."""

    localisation_maps: Tensor  # (B, M, M) float32, of `normalise`; shared between rules, not to be written to
    masks: Tensor  # (B, M, M) bool, the predicted pixels


class ObjectMaps(NamedTuple):
    """Where objects are, to be mixed with similarity maps."""

    maps: Tensor  # (B, h, w), at least 0
    alpha: float  # share of the similarity map, in [0, 1]; the object map has the rest


def predict(
    similarity_maps: Tensor,
    protocols: Sequence[LocalisationProtocol],
    num_annotated: Tensor | None = None,
    objects: ObjectMaps | None = None,
) -> list[Prediction]:
    """Predict by several rules; what they have in common is computed once.

    Args:
        similarity_maps: (B, h, w) on any device; (1, h, w) stands for the same map for each clip.
        protocols: the rules.
        num_annotated: (B,) pixels of the truth above 0; only the adaptive rule needs it.
        objects: of the same clips, to be mixed in; None: the maps alone.

    Returns:
        one for each rule, on the device of the maps; maps with NaN or infinity predict nothing.
    """
    alike: dict[object, list[LocalisationProtocol]] = {}
    for rule in protocols:
        # Rules that enlarge, and mix, alike score the same maps.
        mixed = None if objects is None or rule.object_prior == "scores" else rule.normalisation
        enlarged = rule.upsampling, rule.object_upsampling, rule.map_size
        alike.setdefault((enlarged, rule.object_prior, mixed), []).append(rule)
    predictions = {}
    for rules in alike.values():
        maps = mix(similarity_maps, objects, rules[0])  # (C, M, M); C is B, or 1
        value_range = _value_range(maps)
        scored: dict[str, Tensor] = {}
        at_rank: dict[str, Tensor] = {}
        for rule in rules:
            scale: str = rule.normalisation
            if scale == "half_cosine" and objects is not None:
                scale = "unchanged"  # SLAVC's mixed scores are (map + 1) / 2 already
            if scale not in scored:
                scored[scale] = _rescale(maps, value_range, scale)
            if rule.value is not None:
                limit = maps.new_full((), rule.value)
            else:
                if rule.threshold not in at_rank:
                    ranks = threshold_ranks(rule, maps[0].numel(), num_annotated).to(maps.device)
                    # Columns (C, 1); a single map can have a threshold for each clip, (1, B).
                    columns = ranks[:, None] if len(ranks) == len(maps) else ranks.expand(len(maps), -1)
                    at_rank[rule.threshold] = values_at_ranks(maps.flatten(1), columns).view(-1, 1, 1)
                # Normalising keeps the order, so that a rank's pixel is the same before and after it.
                limit = _rescale(at_rank[rule.threshold], value_range, scale)
            if rule.keep_maximum:
                # Where half of a map or more sits at its maximum of 1, nothing lies above the median;
                # SSL-TIE's program then keeps what equals 1.
                limit = limit.clamp(max=BELOW_ONE)
            masks = scored[scale] > limit if rule.comparison == ">" else scored[scale] >= limit
            predictions[rule] = Prediction(scored[scale], masks)
    return [predictions[rule] for rule in protocols]


def confidences(
    similarity_maps: Tensor, protocol: LocalisationProtocol, objects: ObjectMaps | None = None
) -> Tensor:
    """Mean of the highest quarter of each map's pixels before normalisation: (B, h, w) -> (B,) float64.

    Of SLAVC's scores (cosine + 1) / 2, mixed with those of objects, where the rule mixes scores, else of the
    similarity map alone; NaN where that is not a finite number everywhere.
    """
    of_scores = protocol.object_prior == "scores"
    maps = mix(similarity_maps, objects if of_scores else None, protocol)
    count = max(1, maps[0].numel() // 4)
    ranks = torch.full((len(maps), 1), maps[0].numel() - count, device=maps.device)
    least = values_at_ranks(maps.flatten(1), ranks)  # (B, 1)
    beyond = (maps - least[:, None]).clamp_(min=0)
    # Rows first: their sums are the same whatever the batch and the number of threads.
    means = beyond.sum(2).sum(1, dtype=torch.float64) / count + least[:, 0]
    means = torch.where(maps.isfinite().flatten(1).all(1), means, torch.nan)
    return (means + 1) / 2 if of_scores and objects is None else means


def upsample(similarity_maps: Tensor, protocol: LocalisationProtocol) -> Tensor:
    """Enlarge maps (B, h, w) of any floating type to (B, M, M) float32; does not normalise."""
    maps, size = similarity_maps.float(), (protocol.map_size, protocol.map_size)
    if protocol.upsampling == "cv2_linear":
        resized = [cv2.resize(one, size, interpolation=cv2.INTER_LINEAR) for one in maps.cpu().numpy()]
        return torch.from_numpy(np.stack(resized)).to(maps.device)
    mode = "bilinear" if protocol.upsampling.startswith("bilinear") else "bicubic"
    aligned = protocol.upsampling.endswith("align_corners")
    return F.interpolate(maps[:, None], size, mode=mode, align_corners=aligned)[:, 0]


def normalise(maps: Tensor, protocol: LocalisationProtocol) -> Tensor:
    """Bring each map (B, M, M) to [0, 1] in float32, as the rule's authors do; NaN where it is not finite.

    They differ in a constant map c. SSPL's program (min_max) divides 0 by 0 there: c becomes NaN
    and predicts nothing. Others (min_max_or_unchanged) leave it alone. SSL-TIE's and SSL-Align's
    (inverted_min_max) form 1 - normalise(-map), likewise left alone, so that it becomes 1 + c: a constant
    of 0 or more predicts everything by SSL-TIE's rule. SLAVC's raw scores (half_cosine) are not scaled by
    the map at all. A small constant map comes here with the rounding noise of PyTorch's enlarging, which
    is stretched to [0, 1]: what is predicted then means nothing, as in the authors' programs.
    """
    return _rescale(maps, _value_range(maps), protocol.normalisation)


def mix(similarity_maps: Tensor, objects: ObjectMaps | None, protocol: LocalisationProtocol) -> Tensor:
    """Up-sample maps (B, h, w) to (B, M, M) and lead them by objects, as the rule's authors do it.

    With n for `normalise`: alpha n(map) + (1 - alpha) n(objects). SLAVC's program mixes raw scores
    instead, alpha (map + 1) / 2 + (1 - alpha) objects / 2.5. The sum is normalised once more, or
    not, as the rule has it.
    """
    maps = upsample(similarity_maps, protocol)
    if objects is None:
        return maps
    # FNAC's second block enlarges the two in different ways.
    enlarged = replace(protocol, upsampling=protocol.object_upsampling or protocol.upsampling)
    alpha, others = objects.alpha, upsample(objects.maps, enlarged)
    if protocol.object_prior == "maps":
        return alpha * normalise(maps, protocol) + (1 - alpha) * normalise(others, protocol)
    scores = _rescale(maps, _value_range(maps), "half_cosine")
    return alpha * scores + (1 - alpha) * others / SLAVC_OBJECT_SCALE


def threshold_ranks(protocol: LocalisationProtocol, num_pixels: int, num_annotated: Tensor | None) -> Tensor:
    """Find where a median or adaptive threshold stands among a map's pixels in ascending order, from 0.

    (1,) int64 under the median rule; (B,) under the adaptive one, from the `num_annotated` (B,) pixels.
    """
    half = num_pixels // 2
    if protocol.threshold == "median":
        return torch.tensor([half])
    assert num_annotated is not None, "the adaptive rule needs the truth"
    return num_pixels - torch.where(num_annotated == 0, half, num_annotated)


def values_at_ranks(values: Tensor, ranks: Tensor) -> Tensor:
    """Select what each row, sorted, would hold at its ranks (from 0): (C, N), (C, Q) -> (C, Q).

    NumPy's partition of a row takes a tenth of a sort on a CPU; a GPU sorts all rows at once.
    """
    if values.device.type != "cpu":
        return values.sort(dim=1).values.gather(1, ranks)
    found = np.empty(ranks.shape, np.float32)
    for place, (row, wanted) in enumerate(zip(values.numpy(), ranks.numpy(), strict=True)):
        found[place] = np.partition(row, wanted)[wanted]
    return torch.from_numpy(found)


def _value_range(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each map, (B, 1, 1) each."""
    return maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)


def _rescale(values: Tensor, value_range: tuple[Tensor, Tensor], normalisation: str) -> Tensor:
    """Normalise values of maps with these ranges; NaN where a range is not finite."""
    lowest, highest = value_range
    span = highest - lowest
    span = torch.where(torch.isfinite(span), span, torch.nan)
    if normalisation == "unchanged":
        return values + 0 * span
    if normalisation == "half_cosine":
        return (values + 1).div_(2 + 0 * span)
    inverted = normalisation == "inverted_min_max"
    origin = highest if inverted else lowest
    if normalisation != "min_max":
        flat = span == 0
        origin, span = torch.where(flat, 0, origin), torch.where(flat, 1, span)
    if inverted:
        return (origin - values).div_(span).neg_().add_(1)
    return (values - origin).div_(span)


# ------------------------------------- what needs no model: predictors that never hear, and a rule's ceiling

GAUSSIAN_GRID, GAUSSIAN_SIGMA = 14, 4.0  # side of the map with the centred Gaussian, its deviation: cells


def centre_square(map_size: int) -> Tensor:
    """A centred square (M, M) of half of the map: 158 x 158 of 224 x 224."""
    inside = _centred(map_size).abs() < round(map_size * 0.5**0.5) / 2
    return inside[:, None] & inside


def centre_disc(map_size: int) -> Tensor:
    """The pixels (M, M) nearest to the centre, as many as half of the map, ties left out."""
    squared = _squared_distance(map_size)
    return squared < squared.flatten().sort().values[squared.numel() // 2]


def centre_gaussian() -> Tensor:
    """A similarity map (1, 14, 14) in [0, 1]: a rule up-samples it as it does a model's."""
    squared = _squared_distance(GAUSSIAN_GRID)
    return torch.exp(-squared / (2 * GAUSSIAN_SIGMA**2)).float()[None]


def oracle_cious(truth: TruthMaps, protocol: LocalisationProtocol) -> Tensor:
    """The best consensus IoU (B,) that a map without ties can reach under a rule; 0 where the truth is empty.

    The number of pixels is given under the median and the adaptive rule, so the best is to take those with
    the highest truth first. Under a fixed threshold the truth itself can be predicted.
    """
    if protocol.threshold == "fixed":
        return (truth.total_votes > 0).double()
    num_pixels = truth.maps[0].numel()
    ranks = threshold_ranks(protocol, num_pixels, truth.num_annotated).to(truth.maps.device)
    num_predicted = num_pixels - ranks - int(protocol.comparison == ">")
    num_found = torch.minimum(num_predicted, truth.num_annotated)
    best = num_found.double()
    # Where there are parts of votes, whole ones are found first: the sum of the num_found largest.
    divided = truth.total_votes != truth.num_annotated
    values, counts = truth.maps.flatten(1)[divided], num_found[divided]  # (C, N), (C,)
    ranks = (num_pixels - counts).clamp(max=num_pixels - 1)
    least = values_at_ranks(values, ranks[:, None]).double()
    best[divided] = (values - least).clamp_(min=0).sum(1) + counts * least[:, 0]
    false_positive = num_predicted - num_found
    return best / (truth.total_votes + false_positive)


def _centred(map_size: int) -> Tensor:
    """(M,) float64, offsets from the centre, pixels."""
    return torch.arange(map_size, dtype=torch.float64) - (map_size - 1) / 2


def _squared_distance(map_size: int) -> Tensor:
    """(M, M) float64, squared distance to the centre, pixels."""
    squared = _centred(map_size) ** 2
    return squared[:, None] + squared
