"""How a similarity map becomes a prediction: each rule of the field is a row of data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]
Counts = NDArray[np.int64]

UPSAMPLING_WORDS = {
    "cv2_linear": "cv2 bilinear, half-pixel centres",
    "bilinear_align_corners": "bilinear, corners aligned",
    "bicubic": "bicubic, half-pixel centres",
    "bicubic_align_corners": "bicubic, corners aligned",
}
SLAVC_OBJECT_SCALE = 2.5
"""By which SLAVC's program divides object maps."""

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
    upsampling: Literal["cv2_linear", "bilinear_align_corners", "bicubic", "bicubic_align_corners"]
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

    def __post_init__(self) -> None:
        """Refuses a fixed threshold without its value, and the reverse."""
        if (self.threshold == "fixed") != (self.value is not None):
            raise ValueError(f"{self.name}: a fixed threshold, and only that, takes a value.")

    @property
    def rule(self) -> "LocalisationProtocol":
        """The rule without its name: rules of several authors can be one and the same."""
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
    upsampling="cv2_linear",
    normalisation="inverted_min_max",
    threshold="median",
    comparison=">",
    keep_maximum=True,
)
_SSPL = LocalisationProtocol(
    name="sspl",
    upsampling="cv2_linear",
    normalisation="min_max",
    threshold="fixed",
    comparison=">=",
    value=0.5,
)
_EZ_VSL = LocalisationProtocol(
    name="ez_vsl",
    upsampling="bilinear_align_corners",
    normalisation="min_max_or_unchanged",
    threshold="median",
    comparison=">=",
)
_SLAVC = replace(_EZ_VSL, name="slavc", upsampling="bicubic_align_corners", object_prior="scores")
_SSL_ALIGN = replace(_EZ_VSL, name="ssl_align", comparison=">")
_SSL_ALIGN_ADAPTIVE = replace(_SSL_ALIGN, name="ssl_align_adaptive", threshold="adaptive")

PROTOCOLS: dict[str, LocalisationProtocol] = {
    protocol.name: protocol
    for protocol in (
        _SSL_TIE,
        _SSPL,
        replace(_SSL_TIE, name="lvs"),
        _EZ_VSL,
        _SLAVC,
        replace(
            _SLAVC, name="slavc_fixed", normalisation="half_cosine", threshold="fixed", value=0.5
        ),
        replace(_EZ_VSL, name="fnac"),
        replace(_EZ_VSL, name="fnac_bicubic", upsampling="bicubic"),
        _SSL_ALIGN,
        _SSL_ALIGN_ADAPTIVE,
        replace(_SSL_ALIGN, name="vssl_eval"),
        replace(_SSL_ALIGN_ADAPTIVE, name="vssl_eval_adaptive"),
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

    localisation_maps: Maps
    """(B, M, M), as `normalise` returns them; shared between rules, not to be written to"""
    masks: Masks
    """(B, M, M), the predicted pixels"""


@dataclass(frozen=True)
class ObjectMaps:
    """Where objects are, to be mixed with similarity maps."""

    maps: Maps
    """(B, h, w), at least 0"""
    alpha: float
    """share of the similarity map, in [0, 1]; the object map has the rest"""


def predict(
    similarity_maps: Maps,
    protocols: Sequence[LocalisationProtocol],
    num_annotated: Counts | None = None,
    objects: ObjectMaps | None = None,
) -> list[Prediction]:
    """Predicts by several rules; what they have in common is computed once.

    Args:
        similarity_maps: (B, h, w); (1, h, w) stands for the same map for each clip.
        protocols: the rules.
        num_annotated: (B,) pixels of the truth above 0; only the adaptive rule needs it.
        objects: of the same clips, to be mixed in; None: the maps alone.

    Returns:
        one for each rule. A map that is not a finite number everywhere predicts nothing.

    Raises:
        ValueError: an adaptive rule without num_annotated.
    """
    upsampled: dict[object, Maps] = {}
    localised: dict[object, Maps] = {}
    ascending: dict[object, Maps] = {}
    predictions = []
    for protocol in protocols:
        resized = (protocol.upsampling, protocol.map_size)
        scaled = (*resized, protocol.normalisation, protocol.object_prior)
        if resized not in upsampled:
            upsampled[resized] = upsample(similarity_maps, protocol)
        if scaled not in localised:
            maps = upsampled[resized]
            localised[scaled] = (
                normalise(maps, protocol) if objects is None else mix(maps, objects, protocol)
            )
        maps = localised[scaled]
        if protocol.threshold == "fixed":
            threshold: Maps | np.float32 = np.float32(protocol.value)
        else:
            if scaled not in ascending:
                ascending[scaled] = np.sort(maps.reshape(len(maps), -1), axis=1)
            threshold = _value_at_rank(ascending[scaled], protocol, num_annotated)
        predictions.append(Prediction(maps, _compare(maps, protocol, threshold)))
    return predictions


def upsample(similarity_maps: Maps, protocol: LocalisationProtocol) -> Maps:
    """(B, h, w) -> (B, M, M), float32, not normalised."""
    size = (protocol.map_size, protocol.map_size)
    if protocol.upsampling == "cv2_linear":
        resized = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in similarity_maps]
        return np.stack(resized).astype(np.float32, copy=False)
    maps = torch.from_numpy(np.ascontiguousarray(similarity_maps, dtype=np.float32))
    mode, _, corners = protocol.upsampling.partition("_")
    resized_maps = F.interpolate(maps[:, None], size, mode=mode, align_corners=bool(corners))
    return resized_maps[:, 0].numpy()


def normalise(maps: Maps, protocol: LocalisationProtocol) -> Maps:
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
    inverted = protocol.normalisation == "inverted_min_max"
    signed = -maps if inverted else maps
    lowest = signed.min(axis=(1, 2), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        span = signed.max(axis=(1, 2), keepdims=True) - lowest
        if protocol.normalisation == "half_cosine":
            scaled = (maps + np.float32(1)) / np.float32(2)
        else:
            scaled = signed - lowest
            scaled /= span
    if protocol.normalisation in ("inverted_min_max", "min_max_or_unchanged"):
        flat = span[:, 0, 0] == 0
        scaled[flat] = signed[flat]
    scaled[~np.isfinite(span[:, 0, 0])] = np.nan
    return np.float32(1) - scaled if inverted else scaled


def mix(maps: Maps, objects: ObjectMaps, protocol: LocalisationProtocol) -> Maps:
    """Localisation maps that are led by objects, as the rule's authors do it.

    With n for `normalise`: n(alpha n(map) + (1 - alpha) n(objects)). SLAVC's program mixes scores
    instead, alpha (map + 1) / 2 + (1 - alpha) objects / 2.5, and normalises the sum or not.

    Args:
        maps: (B, M, M), up-sampled similarity maps.
        objects: of the same clips.
        protocol: the rule.

    Returns:
        (B, M, M) float32, as `normalise` returns them.
    """
    alpha, others = np.float32(objects.alpha), upsample(objects.maps, protocol)
    if protocol.object_prior == "maps":
        mixed = alpha * normalise(maps, protocol) + (1 - alpha) * normalise(others, protocol)
        return normalise(mixed, protocol)
    scores = normalise(maps, replace(protocol, normalisation="half_cosine"))
    mixed = alpha * scores + (1 - alpha) * others / np.float32(SLAVC_OBJECT_SCALE)
    return mixed if protocol.normalisation == "half_cosine" else normalise(mixed, protocol)


def threshold_ranks(
    protocol: LocalisationProtocol, num_pixels: int, num_annotated: Counts | None
) -> Counts:
    """Where the threshold stands among a map's pixels in ascending order, from 0.

    Args:
        protocol: with a median or an adaptive threshold.
        num_pixels: of a map.
        num_annotated: (B,) pixels of the truth above 0; only the adaptive rule needs it.

    Returns:
        (B,), or (1,) under the median rule.

    Raises:
        ValueError: an adaptive rule without num_annotated.
    """
    half = num_pixels // 2
    if protocol.threshold == "median":
        return np.array([half])
    if num_annotated is None:
        raise ValueError(f"{protocol.name} predicts as many pixels as the truth has: it needs it.")
    return num_pixels - np.where(num_annotated == 0, half, num_annotated)


def _value_at_rank(
    ascending: Maps, protocol: LocalisationProtocol, num_annotated: Counts | None
) -> Maps:
    ranks = threshold_ranks(protocol, ascending.shape[1], num_annotated)
    num_clips = max(len(ranks), len(ascending))
    pixels = np.broadcast_to(ascending, (num_clips, ascending.shape[1]))
    ranks = np.broadcast_to(ranks, num_clips)
    return np.take_along_axis(pixels, ranks[:, None], axis=1)[:, :, None]


def _compare(
    localisation_maps: Maps, protocol: LocalisationProtocol, threshold: Maps | np.float32
) -> Masks:
    if protocol.comparison == ">=":
        masks = localisation_maps >= threshold
    else:
        masks = localisation_maps > threshold
    # Where half of a map or more sits at its maximum of 1, nothing lies above the median; SSL-TIE's
    # program then keeps what equals 1.
    return masks | (localisation_maps >= 1) if protocol.keep_maximum else masks
