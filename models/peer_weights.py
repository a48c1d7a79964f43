"""Reads the files that peers' authors release: told apart by their content, converted strictly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.official_weights import IGNORED, RENAMED, convert_strictly
from models.peers import PEERS, PeerConfig, PeerLocaliser

PREFIX = "module."
MOMENTUM = "momentum_"
"""SLAVC's files hold a second, slowly moving copy of all networks, which only training needs."""

CLASSIFIERS = frozenset(
    f"{network}.fc.{kind}" for network in ("imgnet", "audnet") for kind in ("weight", "bias")
)
"""Heads of torchvision's networks, which never reach the map. Whether the files of EZ-VSL, SLAVC
and FNAC hold them is not known."""


def convert_peer_release(content: Mapping[str, Any], source: Path) -> tuple[str, dict[str, Tensor]]:
    """A peer's file -> which it is, and its state dict as ours.

    Args:
        content: of the file.
        source: of the file, for messages.

    Returns:
        a key of PEERS, and the state dict that its PeerLocaliser loads strictly.

    Raises:
        ValueError: the file is of no peer (the message says what was looked for); a tensor is
            missing, unknown, or of another shape.
    """
    for name, config in PEERS.items():
        if _is_of(config, content):
            return name, _convert(config, content[config.entry], source)
    looked_for = "; ".join(f"{config.title}: {_marks_in_words(config)}" for config in PEERS.values())
    raise ValueError(
        f"{source} is no checkpoint of this project (it has no entry 'format') and no release that "
        "is known. Looked for: SSL-TIE: state_dict and best_miou; "
        f"{looked_for}. It holds: {_contents_in_words(content)}."
    )


def _marks(config: PeerConfig) -> list[str]:
    """Names of tensors that tell a peer from the others with the same entry."""
    if not config.projections:
        return ["audnet.conv1_a.weight"]
    return [f"img_proj{ending}.weight" for ending in config.projections]


def _marks_in_words(config: PeerConfig) -> str:
    prefix = {True: f", all names with {PREFIX}", False: f", no name with {PREFIX}", None: ""}
    names = " and ".join(_marks(config))
    return f"{config.entry} with {names}{prefix[config.data_parallel]}"


def _contents_in_words(content: Mapping[str, Any]) -> str:
    parts = []
    for name, value in content.items():
        inner = [str(key) for key in value] if isinstance(value, Mapping) else []
        parts.append(f"{name} ({', '.join(inner[:3])} ...)" if inner else str(name))
    return ", ".join(parts) or "nothing"


def _is_of(config: PeerConfig, content: Mapping[str, Any]) -> bool:
    weights = content.get(config.entry)
    if not isinstance(weights, Mapping) or not weights:
        return False
    prefixed = {str(name).startswith(PREFIX) for name in weights}
    if config.data_parallel is not None and prefixed != {config.data_parallel}:
        return False
    names = {str(name).removeprefix(PREFIX) for name in weights}
    return names.issuperset(_marks(config))


def _convert(config: PeerConfig, official: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    with torch.device("meta"):  # names and shapes only
        expected = PeerLocaliser(config).state_dict()
    if config.projections:
        ignored, renamed = CLASSIFIERS, _projection_names(config)
    else:  # the networks of LVS, which SSL-TIE took over, unused layers included
        ignored, renamed = IGNORED, RENAMED
    return convert_strictly(
        official,
        source,
        expected=expected,
        renamed=renamed,
        is_ignored=lambda name: name in ignored or _is_momentum(name, config),
        what=config.title,
    )


def _is_momentum(name: str, config: PeerConfig) -> bool:
    return len(config.projections) > 1 and name.startswith(MOMENTUM)


def _projection_names(config: PeerConfig) -> dict[str, str]:
    """Official name -> ours."""
    return {
        f"{projection}{ending}.{kind}": f"{projection}.{place}.{kind}"
        for projection in ("img_proj", "aud_proj")
        for place, ending in enumerate(config.projections)
        for kind in ("weight", "bias")
    }
