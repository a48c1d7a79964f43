"""Networks, losses and methods: everything with parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from datasets.audio import AudioConfig, SegmentConfig
from datasets.augmentation import AugmentationConfig
from datasets.frames import FrameConfig
from datasets.geometry import GeometricConfig
from datasets.mixing import AudioMixingOptions
from models.method import AdamRecipe, Method
from models.peers import PEERS, PeerLocaliser
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


def localiser_names() -> tuple[str, ...]:
    """Return the names of all that can be scored: the methods, and the peers, which cannot be trained."""
    return (*METHODS, *PEERS)


def audio_config_class(name: str) -> type:
    """Return the class that says what a method of METHODS or a peer of PEERS hears."""
    return METHODS[name].groups["audio"] if name in METHODS else PEERS[name].audio


def build_localiser(
    name: str,
    config: Mapping[str, Any],
    audio: Any = None,  # noqa: ANN401 - each has its own
    frame: FrameConfig | None = None,
) -> nn.Module:
    """Build a freshly initialised model of whatever can be scored, one of localiser_names(), on the CPU.

    `config` is that of a method, as its checkpoint stores it; peers have none. `audio` is an instance of
    audio_config_class(name). An entry that the method does not know is a TypeError.
    """
    audio, frame = audio or audio_config_class(name)(), frame or FrameConfig()
    if name in PEERS:
        return PeerLocaliser(PEERS[name], audio)
    row = METHODS[name]
    return row.model(row.groups["model"](**config), audio=audio, frame=frame)  # type: ignore[call-arg, misc]


def load_localiser(path: str | Path, device: str = "auto") -> "Localiser":
    """Read a trained model from a file; see `models.localiser.load_localiser`."""
    from models import localiser  # noqa: PLC0415 - it needs the tables above

    return localiser.load_localiser(path, device)
