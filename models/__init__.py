"""Networks, losses and methods: everything with parameters. No files, no data sets, no metrics."""

from typing import Any

from torch import nn

from models.ssl_tie import SSLTIE, SSLTIEConfig

METHODS: dict[str, tuple[type[nn.Module], type]] = {
    "ssl_tie": (SSLTIE, SSLTIEConfig),
}
"""Method name -> module and its configuration class."""


def build_model(method: str, config: Any) -> nn.Module:  # noqa: ANN401 - each method has its own
    """A freshly initialised model.

    Args:
        method: a key of METHODS.
        config: an instance of the method's configuration class.

    Returns:
        the module, on the CPU, in training mode.
    """
    model_class, config_class = METHODS[method]
    assert isinstance(config, config_class), (method, config)
    return model_class(config)
