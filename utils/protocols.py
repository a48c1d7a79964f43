"""How a similarity map becomes a prediction: each rule of the field is a row of data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from utils import published_lists
from utils.published_lists import PublishedList
from utils.selection import values_at_ranks
from utils.upsampling import UPSAMPLING_WORDS, Upsampling, upsample_maps

SLAVC_OBJECT_SCALE = 2.5
"""By which SLAVC's program divides object maps."""
BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""

NORMALISATION_WORDS = {
    "min_max": "min-max normalised",
    "min_max_or_unchanged": "min-max normalised",
    "inverted_min_max": "min-max normalised",
    "half_cosine": "as (cosine + 1) / 2",
}


@dataclass(frozen=True, kw_only=True)
class LocalisationProtocol:
    """A scoring rule."""

    name: str
    upsampling: Upsampling
    normalisation: Literal["min_max", "min_max_or_unchanged", "inverted_min_max", "half_cosine"]
    """min-max of each map; the three differ in a constant map, see `normalise`"""
    threshold: Literal["median", "fixed", "adaptive"]
    """median: the upper half of each clip's pixels; fixed: `value` on the normalised map; adaptive:
    as many pixels as the truth annotates (half, where it annotates none)"""
    comparison: Literal[">", ">="]
    """how a pixel's value stands to the threshold, which is a pixel's value itself under the median
    and the adaptive rule: > predicts one pixel less"""
    value: float | None = None
    """of the fixed threshold, in [0, 1]"""
    keep_maximum: bool = False
    """predict what is at 1 even where the comparison leaves it out"""
    object_prior: Literal["maps", "scores"] = "maps"
    """what is mixed with an object prior, see `mix`: normalised maps, or raw scores"""
    map_size: int = 224
    """side of the scored map, pixels"""
    ground_truth: str = (
        "boxes truncated to whole pixels of 224 x 224 and cut to the frame: their union, or the "
        "consensus of annotators; masks as they are"
    )
    """how annotation becomes pixels, the same under every rule"""
    authors: str = field(default="", compare=False)
    """whose rule it is"""
    published_lists: Mapping[str, PublishedList] = field(default_factory=dict, compare=False)
    """benchmark -> the clips that its authors scored"""

    def __post_init__(self) -> None:
        """Refuses a fixed threshold without its value, and the reverse."""
        if (self.threshold == "fixed") != (self.value is not None):
            raise ValueError(f"{self.name}: a fixed threshold, and only that, takes a value.")

    @property
    def rule(self) -> "LocalisationProtocol":
        """The rule without its name; those of several authors can equal each other."""
        return replace(self, name="")

    @property
    def description(self) -> str:
        """The rule in words, for results."""
        at = {
            "median": "each map's upper median",
            "fixed": f"{self.value}",
            "adaptive": "the value that leaves as many pixels as the truth has",
        }
        return (
            f"maps up-sampled to {self.map_size} x {self.map_size} "
            f"({UPSAMPLING_WORDS[self.upsampling]}), {NORMALISATION_WORDS[self.normalisation]}, "
            f"predicted where {self.comparison} {at[self.threshold]}"
        )


_SSL_TIE = LocalisationProtocol(
    name="ssl_tie",
    authors="SSL-TIE",
    published_lists=published_lists.SSL_TIE,
    upsampling="cv2_linear",
    normalisation="inverted_min_max",
    threshold="median",
    comparison=">",
    keep_maximum=True,
)
_SSPL = LocalisationProtocol(
    name="sspl",
    authors="SSPL",
    published_lists=published_lists.SSPL,
    upsampling="cv2_linear",
    normalisation="min_max",
    threshold="fixed",
    comparison=">=",
    value=0.5,
)
_EZ_VSL = LocalisationProtocol(
    name="ez_vsl",
    authors="EZ-VSL",
    published_lists=published_lists.EZ_VSL,
    upsampling="bilinear_align_corners",
    normalisation="min_max_or_unchanged",
    threshold="median",
    comparison=">=",
)
_SLAVC = replace(
    _EZ_VSL,
    name="slavc",
    authors="SLAVC",
    published_lists=published_lists.SLAVC,
    upsampling="bicubic_align_corners",
    object_prior="scores",
)
_SSL_ALIGN = replace(
    _EZ_VSL, name="ssl_align", authors="SSL-Align", published_lists=published_lists.SSL_ALIGN, comparison=">"
)
_SSL_ALIGN_ADAPTIVE = replace(_SSL_ALIGN, name="ssl_align_adaptive", threshold="adaptive")
# Its program has a branch of its own for this benchmark, which enlarges with OpenCV.
_SSL_ALIGN_VGG_SS = replace(
    _SSL_ALIGN,
    name="ssl_align_vgg_ss",
    published_lists=published_lists.SSL_ALIGN_VGG_SS,
    upsampling="cv2_linear",
)

PROTOCOLS: dict[str, LocalisationProtocol] = {
    protocol.name: protocol
    for protocol in (
        _SSL_TIE,
        _SSPL,
        replace(_SSL_TIE, name="lvs", authors="LVS", published_lists=published_lists.LVS),
        _EZ_VSL,
        _SLAVC,
        replace(_SLAVC, name="slavc_fixed", normalisation="half_cosine", threshold="fixed", value=0.5),
        replace(_EZ_VSL, name="fnac", authors="FNAC"),
        replace(_EZ_VSL, name="fnac_bicubic", authors="FNAC", upsampling="bicubic"),
        _SSL_ALIGN,
        _SSL_ALIGN_ADAPTIVE,
        _SSL_ALIGN_VGG_SS,
        replace(_SSL_ALIGN_VGG_SS, name="ssl_align_vgg_ss_adaptive", threshold="adaptive"),
        replace(_SSL_ALIGN, name="vssl_eval", authors="vssl_eval", published_lists={}),
        replace(_SSL_ALIGN_ADAPTIVE, name="vssl_eval_adaptive", authors="vssl_eval", published_lists={}),
    )
}
"""Every rule, by name. Whose each is, and what differs: docs/evaluation.md."""


def find_protocols(names: str) -> tuple[LocalisationProtocol, ...]:
    """The rules that a user named.

    Args:
        names: of PROTOCOLS, with commas between, or 'all'.

    Returns:
        in the order of the names.

    Raises:
        ValueError: a name is unknown or comes twice.
    """
    wanted = list(PROTOCOLS) if names == "all" else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in PROTOCOLS:
            raise ValueError(
                f"There is no protocol {name!r}. There are: {', '.join(PROTOCOLS)}; several take "
                "commas between them, and 'all' names each."
            )
        if wanted.count(name) > 1:
            raise ValueError(f"The protocol {name!r} is named twice in {names!r}.")
    return tuple(PROTOCOLS[name] for name in wanted)


@dataclass(frozen=True)
class Prediction:
    """What a rule makes of similarity maps."""

    localisation_maps: Tensor
    """(B, M, M) float32, as `normalise` returns them; shared between rules, not to be written to"""
    masks: Tensor
    """(B, M, M) bool, the predicted pixels"""
    confidences: Tensor
    """(B,) float64, mean of the quarter of the pixels with the highest scores before they are
    normalised: (map + 1) / 2, or what is mixed of it and an object prior, where the rule mixes
    scores (SLAVC's), elsewhere the model's up-sampled map; NaN if that is not finite"""


@dataclass(frozen=True)
class ObjectMaps:
    """Where objects are, to be mixed with similarity maps."""

    maps: Tensor
    """(B, h, w), at least 0"""
    alpha: float
    """share of the similarity map, in [0, 1]; the object map has the rest"""


def predict(
    similarity_maps: Tensor,
    protocols: Sequence[LocalisationProtocol],
    num_annotated: Tensor | None = None,
    objects: ObjectMaps | None = None,
) -> list[Prediction]:
    """Predicts by several rules; what they have in common is computed once.

    Args:
        similarity_maps: (B, h, w) on any device; (1, h, w) stands for the same map for each clip.
        protocols: the rules.
        num_annotated: (B,) pixels of the truth above 0; only the adaptive rule needs it.
        objects: of the same clips, to be mixed in; None: the maps alone.

    Returns:
        one for each rule, on the device of the maps. A map that is not a finite number everywhere
        predicts nothing.

    Raises:
        ValueError: an adaptive rule without num_annotated.
    """
    scored: dict[object, _Scores] = {}
    for protocol in protocols:
        own, mixed = _kinds(protocol, objects)
        if own not in scored:
            scored[own] = _Scores(upsample(similarity_maps, protocol))
        if objects is not None and mixed not in scored:
            of_both = mix(scored[own].maps, objects, protocol)
            scored[mixed] = _Scores(of_both, halved=protocol.object_prior == "scores")
        scored[mixed].prepare(protocol, num_annotated)
    predictions = []
    for protocol in protocols:
        own, mixed = _kinds(protocol, objects)
        maps, threshold = scored[mixed].normalised(protocol), scored[mixed].threshold(protocol)
        confident = mixed if protocol.object_prior == "scores" else own
        confidences = scored[confident].confidences(protocol)
        predictions.append(Prediction(maps, _compare(maps, protocol, threshold), confidences))
    return predictions


def upsample(similarity_maps: Tensor, protocol: LocalisationProtocol) -> Tensor:
    """(B, h, w) -> (B, M, M), float32, not normalised."""
    return upsample_maps(similarity_maps, protocol.upsampling, protocol.map_size)


def normalise(maps: Tensor, protocol: LocalisationProtocol) -> Tensor:
    """Brings each map to [0, 1] in float32, as the rule's authors do.

    They differ in a constant map c. SSPL's program (min_max) divides 0 by 0 there: c becomes NaN
    and predicts nothing. Others (min_max_or_unchanged) leave it alone. SSL-TIE's (inverted_min_max)
    forms 1 - normalise(-map), likewise left alone, so that it becomes 1 + c: a constant of 0 or
    more predicts everything. SLAVC's raw scores (half_cosine) are not scaled by the map at all.

    Args:
        maps: (B, M, M) float32.
        protocol: the rule.

    Returns:
        (B, M, M) float32, in [0, 1] unless constant; NaN throughout where a map has a number that
        is not finite.
    """
    return _Scores(maps).normalised(protocol)


def mix(maps: Tensor, objects: ObjectMaps, protocol: LocalisationProtocol) -> Tensor:
    """Scores that are led by objects, as the rule's authors do it.

    With n for `normalise`: alpha n(map) + (1 - alpha) n(objects). SLAVC's program mixes raw scores
    instead, alpha (map + 1) / 2 + (1 - alpha) objects / 2.5. The sum is normalised once more, or
    not, as the rule has it.

    Args:
        maps: (B, M, M), up-sampled similarity maps.
        objects: of the same clips.
        protocol: the rule.

    Returns:
        (B, M, M) float32, before the last `normalise`.
    """
    alpha, others = objects.alpha, upsample(objects.maps, protocol)
    if protocol.object_prior == "maps":
        own = normalise(maps, protocol)
        return alpha * own + (1 - alpha) * normalise(others, protocol)
    scores = normalise(maps, replace(protocol, normalisation="half_cosine"))
    return alpha * scores + (1 - alpha) * others / SLAVC_OBJECT_SCALE


def threshold_ranks(protocol: LocalisationProtocol, num_pixels: int, num_annotated: Tensor | None) -> Tensor:
    """Where the threshold stands among a map's pixels in ascending order, from 0.

    Args:
        protocol: with a median or an adaptive threshold.
        num_pixels: of a map.
        num_annotated: (B,) pixels of the truth above 0; only the adaptive rule needs it.

    Returns:
        (B,) int64, or (1,) under the median rule.

    Raises:
        ValueError: an adaptive rule without num_annotated.
    """
    half = num_pixels // 2
    if protocol.threshold == "median":
        return torch.tensor([half])
    if num_annotated is None:
        raise ValueError(f"{protocol.name} predicts as many pixels as the truth has: it needs it.")
    return num_pixels - torch.where(num_annotated == 0, half, num_annotated)


class _Scores:
    """Maps before their last normalisation, and what several rules ask of them."""

    def __init__(self, maps: Tensor, *, halved: bool = False) -> None:
        """Finds the ends of each map's range.

        Args:
            maps: (B, M, M) float32.
            halved: they are SLAVC's scores, (map + 1) / 2, already.
        """
        self.maps = maps
        self._halved = halved
        self._lowest = maps.amin((1, 2), keepdim=True)
        self._highest = maps.amax((1, 2), keepdim=True)
        self._normalised: dict[str, Tensor] = {}
        self._quarter = max(1, maps[0].numel() // 4)
        self._ranks = {"top quarter": torch.tensor([maps[0].numel() - self._quarter])}

    def prepare(self, protocol: LocalisationProtocol, num_annotated: Tensor | None) -> None:
        """Notes which threshold a rule will ask for: all are found in one go."""
        if protocol.threshold != "fixed":
            ranks = threshold_ranks(protocol, self.maps[0].numel(), num_annotated)
            self._ranks[protocol.threshold] = ranks

    def normalised(self, protocol: LocalisationProtocol) -> Tensor:
        """(B, M, M), see `normalise`."""
        if protocol.normalisation not in self._normalised:
            self._normalised[protocol.normalisation] = self._rescale(self.maps, protocol)
        return self._normalised[protocol.normalisation]

    def threshold(self, protocol: LocalisationProtocol) -> Tensor:
        """(B, 1, 1) on the normalised map, or a single one for all."""
        if protocol.value is not None:
            return self.maps.new_tensor(protocol.value)
        # Normalising keeps the order, so that a rank's pixel is the same before and after it.
        return self._rescale(self._at_ranks[protocol.threshold][:, None, None], protocol)

    def confidences(self, protocol: LocalisationProtocol) -> Tensor:
        """(B,) float64, see `Prediction`."""
        if protocol.object_prior == "scores" and not self._halved:
            return (self._top_quarter_means + 1) / 2
        return self._top_quarter_means

    @cached_property
    def _top_quarter_means(self) -> Tensor:
        least = self._at_ranks["top quarter"]
        beyond = (self.maps - least[:, None, None]).clamp_(min=0)
        # Rows first: their sums are the same whatever the batch and the number of threads.
        sums = beyond.sum(2).sum(1, dtype=torch.float64)
        return sums / self._quarter + least

    @cached_property
    def _at_ranks(self) -> dict[str, Tensor]:
        """(B,) or (1,) values of the maps for each of the ranks."""
        num_maps = len(self.maps)
        columns = [
            ranks.to(self.maps.device)[:, None].expand(num_maps, 1)
            if len(ranks) in (1, num_maps)
            else ranks.to(self.maps.device)[None]  # many ranks of one map
            for ranks in self._ranks.values()
        ]
        found = values_at_ranks(self.maps.flatten(1), torch.cat(columns, 1))
        parts = found.split([column.shape[1] for column in columns], 1)
        return {name: part.flatten() for name, part in zip(self._ranks, parts, strict=True)}

    def _rescale(self, values: Tensor, protocol: LocalisationProtocol) -> Tensor:
        span = self._highest - self._lowest
        span = torch.where(torch.isfinite(span), span, torch.nan)
        if protocol.normalisation == "half_cosine":
            zero = 0 * span  # or NaN
            return values + zero if self._halved else (values + 1).div_(2 + zero)
        inverted = protocol.normalisation == "inverted_min_max"
        origin = self._highest if inverted else self._lowest
        if protocol.normalisation != "min_max":
            flat = span == 0
            origin, span = torch.where(flat, 0, origin), torch.where(flat, 1, span)
        if inverted:
            return (origin - values).div_(span).neg_().add_(1)
        return (values - origin).div_(span)


def _kinds(protocol: LocalisationProtocol, objects: ObjectMaps | None) -> tuple[object, object]:
    """What tells a rule's up-sampled maps, and its mixed ones, from those of other rules."""
    own = (protocol.upsampling, protocol.map_size)
    if objects is None:
        return own, own
    normalised = protocol.normalisation if protocol.object_prior == "maps" else None
    return own, (own, normalised)


def _compare(maps: Tensor, protocol: LocalisationProtocol, threshold: Tensor) -> Tensor:
    strict = protocol.comparison == ">"
    if protocol.keep_maximum:
        # Where half of a map or more sits at its maximum of 1, nothing lies above the median;
        # SSL-TIE's program then keeps what equals 1.
        threshold = threshold.clamp(max=BELOW_ONE if strict else 1)
    return maps > threshold if strict else maps >= threshold
