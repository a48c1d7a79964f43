"""Networks, losses and methods: everything with parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets.audio import (
    AlignSpectrogramConfig,
    AudioConfig,
    MiddleSpectrogramConfig,
    SegmentConfig,
    SpectrogramConfig,
)
from datasets.augmentation import AugmentationConfig
from datasets.geometry import GeometricConfig
from datasets.mixing import AudioMixingOptions
from models.ez_vsl import EZVSL, EZVSLConfig
from models.fnac import FNAC, FNACConfig, FNACRecipe
from models.lvs import LVS, LVSConfig
from models.method import AdamRecipe, Method
from models.peers import ImageNetStart, PeerRecipe
from models.slavc import SLAVC, SLAVCConfig
from models.ssl_tie import SSLTIE, NegativeSoundConfig, SSLTIEConfig
from models.sspl import SSPL, FrozenOptions, SSPLConfig, SSPLRecipe

if TYPE_CHECKING:
    from models.localiser import Localiser


class MethodRow(NamedTuple):
    """A method that can be trained."""

    model: type[Method]
    groups: Mapping[str, type]
    """its groups of options by name: at least `model`, `audio` and `optimisation`, see CONTRIBUTING.md"""
    rule: str = "ssl_tie"  # scoring rule of its authors, a name of PROTOCOLS


_PUBLISHED = {"audio": MiddleSpectrogramConfig, "start": ImageNetStart, "optimisation": PeerRecipe}

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
    "lvs": MethodRow(LVS, {"model": LVSConfig, "audio": SpectrogramConfig, "optimisation": AdamRecipe}),
    "ez_vsl": MethodRow(EZVSL, _PUBLISHED | {"model": EZVSLConfig}, rule="ez_vsl"),
    "slavc": MethodRow(SLAVC, _PUBLISHED | {"model": SLAVCConfig}, rule="slavc"),
    "fnac": MethodRow(FNAC, _PUBLISHED | {"model": FNACConfig, "optimisation": FNACRecipe}, rule="ez_vsl"),
}
"""Every method that can be trained, by name"""

SCORED: dict[str, MethodRow] = METHODS | {
    "ez_vsl_or_fnac": METHODS["ez_vsl"],
    "ssl_align": MethodRow(LVS, {"model": LVSConfig, "audio": AlignSpectrogramConfig}),
}
"""Every method that can be scored: also released files of which the program or the loss is not known"""


def load_localiser(path: str | Path, device: str = "auto") -> "Localiser":
    """Read a trained model from a file; see `models.localiser.load_localiser`."""
    from models import localiser  # noqa: PLC0415 - it needs the tables above

    return localiser.load_localiser(path, device)
