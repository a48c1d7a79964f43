"""How a similarity map becomes a prediction: each rule of the field is a row of data."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LocalisationProtocol:
    """A scoring rule."""

    name: str
    threshold: Literal["median", "fixed"]
    """median: the upper half of each clip's pixels; fixed: `value` on the normalised map"""
    comparison: Literal[">", ">="]
    value: float | None = None
    """of the fixed threshold, in [0, 1]"""
    map_size: int = 224
    """side of the scored map, pixels"""

    @property
    def description(self) -> str:
        """The rule in words, for results."""
        at = "each map's upper median" if self.threshold == "median" else f"{self.value}"
        return (
            f"maps up-sampled to {self.map_size} x {self.map_size} (cv2 bilinear, half-pixel "
            f"centres), min-max normalised, predicted where {self.comparison} {at}"
        )


PROTOCOLS: dict[str, LocalisationProtocol] = {
    protocol.name: protocol
    for protocol in (
        LocalisationProtocol(name="ssl_tie", threshold="median", comparison=">"),
        LocalisationProtocol(name="min_max_0.5", threshold="fixed", comparison=">=", value=0.5),
    )
}
"""ssl_tie: SSL-TIE's and LVS's rule, predicts half of the frame; min_max_0.5: SSPL's rule."""


def upsample(similarity_maps: Maps, protocol: LocalisationProtocol) -> Maps:
    """(B, h, w) -> (B, M, M), float32, not normalised."""
    size = (protocol.map_size, protocol.map_size)
    resized = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in similarity_maps]
    return np.stack(resized).astype(np.float32, copy=False)


def normalise(maps: Maps, protocol: LocalisationProtocol) -> Maps:
    """Min-max normalises each map in float32, as the rule's authors do.

    SSL-TIE's program forms 1 - normalise(-map) and leaves a constant map c alone, which then
    becomes 1 + c: a constant map of 0 or more predicts everything. SSPL's program divides 0 by 0
    there: a constant map becomes NaN and predicts nothing.

    Args:
        maps: (B, M, M) float32.
        protocol: the rule.

    Returns:
        (B, M, M) float32, in [0, 1] unless constant.
    """
    inverted = protocol.threshold == "median"
    signed = -maps if inverted else maps
    lowest = signed.min(axis=(1, 2), keepdims=True)
    span = signed.max(axis=(1, 2), keepdims=True) - lowest
    with np.errstate(invalid="ignore"):
        scaled = (signed - lowest) / span
    return np.float32(1) - np.where(span == 0, signed, scaled) if inverted else scaled


def binarise(localisation_maps: Maps, protocol: LocalisationProtocol) -> Masks:
    """Predicted pixels of normalised maps.

    Args:
        localisation_maps: (B, M, M), as `normalise` returns them.
        protocol: the rule.

    Returns:
        (B, M, M); a map with NaN predicts nothing.
    """
    if protocol.threshold == "fixed":
        threshold: NDArray[np.float32] | np.float32 = np.float32(protocol.value or 0.0)
    else:
        pixels = localisation_maps.reshape(len(localisation_maps), -1)
        middle = pixels.shape[1] // 2
        threshold = np.partition(pixels, middle, axis=1)[:, middle, None, None]
    if protocol.comparison == ">=":
        return localisation_maps >= threshold
    # Where half of a map or more sits at its maximum of 1, nothing lies above the median; the
    # authors' program then keeps what equals 1.
    return (localisation_maps > threshold) | (localisation_maps >= 1)
