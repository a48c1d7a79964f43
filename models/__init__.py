"""Networks, losses and methods: everything with parameters. No data sets, no metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from models.peers import PEERS, PeerLocaliser
from models.recipes import SSLTIERecipe, SSPLRecipe
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig

if TYPE_CHECKING:
    from models.localiser import Localiser


class Method(NamedTuple):
    """A method: what is built, what defines it, how it is optimised."""

    model: type[nn.Module]
    config: type
    recipe: type


METHODS: dict[str, Method] = {
    "ssl_tie": Method(SSLTIE, SSLTIEConfig, SSLTIERecipe),
    "sspl": Method(SSPL, SSPLConfig, SSPLRecipe),
}
"""Every method that can be trained, by name."""

LOCALISERS = (*METHODS, *PEERS)
"""Names of all that can be scored: the methods, and the peers, which cannot be trained."""


def build_model(method: str, config: Any) -> nn.Module:  # noqa: ANN401 - each method has its own
    """A freshly initialised model.

    Args:
        method: a key of METHODS.
        config: an instance of the method's configuration class.

    Returns:
        the module, on the CPU, in training mode.
    """
    chosen = METHODS[method]
    assert isinstance(config, chosen.config), (method, config)
    return chosen.model(config)


def load_localiser(path: str | Path, device: str = "auto") -> "Localiser":
    """Read a trained model from a file; see `models.localiser.load_localiser`."""
    from models import localiser  # noqa: PLC0415 - it needs the tables above

    return localiser.load_localiser(path, device)


def build_localiser(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised model of whatever can be scored.

    Args:
        name: one of LOCALISERS.
        config: of a method, as its checkpoint stores it; peers have none.

    Returns:
        the module, on the CPU, in training mode.

    Raises:
        TypeError: the configuration has an entry that the method does not know.
    """
    if name in PEERS:
        return PeerLocaliser(PEERS[name])
    return build_model(name, METHODS[name].config(**config))
