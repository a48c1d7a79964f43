"""Networks, losses and methods: everything with parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets.audio import AudioConfig, SegmentConfig
from datasets.augmentation import AugmentationConfig
from datasets.geometry import GeometricConfig
from datasets.mixing import AudioMixingOptions
from models.method import AdamRecipe, Method
from models.ssl_tie import SSLTIE, NegativeSoundConfig, SSLTIEConfig
from models.sspl import SSPL, FrozenOptions, SSPLConfig, SSPLRecipe

if TYPE_CHECKING:
    from models.localiser import Localiser


class MethodRow(NamedTuple):
    """A method that can be trained."""

    model: type[Method]
    groups: Mapping[str, type]
    """its groups of options by name: at least `model`, `audio` and `optimisation`, see CONTRIBUTING.md"""
    rule: str = "ssl_tie"
    """scoring rule of its authors, a name of PROTOCOLS"""


METHODS: dict[str, MethodRow] = {
    "ssl_tie": MethodRow(
        SSLTIE,
        {
            "model": SSLTIEConfig,
            "audio": AudioConfig,
            "augmentation": AugmentationConfig,
            "geometric": GeometricConfig,
            "mixing": AudioMixingOptions,
            "negatives": NegativeSoundConfig,
            "optimisation": AdamRecipe,
        },
    ),
    "sspl": MethodRow(
        SSPL,
        {"model": SSPLConfig, "audio": SegmentConfig, "frozen": FrozenOptions, "optimisation": SSPLRecipe},
        rule="sspl",
    ),
}
"""Every method that can be trained, by name"""


def load_localiser(path: str | Path, device: str = "auto") -> "Localiser":
    """Read a trained model from a file; see `models.localiser.load_localiser`."""
    from models import localiser  # noqa: PLC0415 - it needs the tables above

    return localiser.load_localiser(path, device)
