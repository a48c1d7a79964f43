"""Reads the weights that the authors released, strictly."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.ssl_tie import SSLTIE, SSLTIEConfig

RENAMED = {"audnet.conv1_a.weight": "audnet.conv1.weight"}
"""Official name -> ours. All other names are the same."""

IGNORED = frozenset(
    {
        "imgnet.conv1_a.weight",
        "imgnet.conv1_flow.weight",
        "imgnet.fc.weight",
        "imgnet.fc.bias",
        "audnet.conv1.weight",
        "audnet.conv1_flow.weight",
        "audnet.fc.weight",
        "audnet.fc.bias",
        "vision_fc1.weight",
        "vision_fc1.bias",
        "conv3.weight",
        "conv3.bias",
        "norm3.weight",
        "norm3.bias",
        "norm3.running_mean",
        "norm3.running_var",
        "norm3.num_batches_tracked",
    }
)
"""Official tensors that never reach the map: stems of the other modality, unused heads."""


def is_ssl_tie_release(content: Mapping[str, Any]) -> bool:
    """Whether a loaded file has the layout of the SSL-TIE release."""
    return "state_dict" in content and "best_miou" in content


def convert_ssl_tie_release(official: Any, source: Path) -> dict[str, Tensor]:  # noqa: ANN401
    """Official state dict -> ours.

    Args:
        official: the file's `state_dict`, with or without the `module.` prefix of DataParallel.
        source: of the file, for messages.

    Returns:
        state dict that SSLTIE loads strictly.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or a value is no tensor.
    """
    with torch.device("meta"):  # names and shapes only
        expected = SSLTIE(SSLTIEConfig()).state_dict()
    return convert_strictly(
        official,
        source,
        expected=expected,
        renamed=RENAMED,
        is_ignored=IGNORED.__contains__,
        what="an SSL-TIE release",
    )


def convert_strictly(
    official: Any,  # noqa: ANN401
    source: Path,
    *,
    expected: Mapping[str, Tensor],
    renamed: Mapping[str, str],
    is_ignored: Callable[[str], bool],
    what: str,
) -> dict[str, Tensor]:
    """A release's state dict -> ours, each tensor used or known to be of no use.

    Args:
        official: the release's state dict, with or without the `module.` prefix of DataParallel.
        source: of the file, for messages.
        expected: our name -> tensor of the right shape, all that must come out.
        renamed: official name -> ours, where they differ.
        is_ignored: whether an official tensor may be there but is not wanted.
        what: the file should hold, for messages.

    Returns:
        our name -> tensor.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or a value is no tensor.
    """
    if not isinstance(official, Mapping):
        raise ValueError(f"{source}: its state_dict is a {type(official).__name__}.")
    strangers = [str(name) for name, value in official.items() if not _is_weight(name, value)]
    if strangers:
        raise ValueError(
            f"{source}: its state_dict holds {len(strangers)} values that are not tensors with "
            f"storage under a name, first: {', '.join(strangers[:5])}"
        )
    converted: dict[str, Tensor] = {}
    for full_name, tensor in official.items():
        name = full_name.removeprefix("module.")
        if not is_ignored(name):
            converted[renamed.get(name, name)] = tensor

    problems = [
        list_names("missing", sorted(expected.keys() - converted.keys())),
        list_names("unknown", sorted(converted.keys() - expected.keys())),
        list_names(
            "of another shape",
            sorted(
                f"{name} {tuple(converted[name].shape)}, not {tuple(expected[name].shape)}"
                for name in converted.keys() & expected.keys()
                if converted[name].shape != expected[name].shape
            ),
        ),
    ]
    if any(problems):
        raise ValueError(
            f"{source} does not hold the weights of {what}: " + "; ".join(filter(None, problems))
        )
    return converted


def _is_weight(name: Any, value: Any) -> bool:  # noqa: ANN401
    """Neither sparse nor without storage: such tensors have names and shapes, but no numbers."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type != "meta"
    )


def list_names(kind: str, names: list[str], shown: int = 5) -> str:
    """What is wrong with how many tensors, and the first of them; empty for none."""
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} tensors {kind}: {', '.join(names[:shown])}{more}"
