"""Reads the weights that SSPL starts from and those that its authors' program saves, strictly."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.official_weights import list_names
from models.sspl import SSPL, SSPLConfig

FRAME_FILE = "frame_best.pth"
SOUND_FILE = "sound_best.pth"
PCM_FILE = "pcm_best.pth"
HEAD_FILE = "ssl_head_best.pth"
RELEASE_FILES = (FRAME_FILE, SOUND_FILE, PCM_FILE, HEAD_FILE)
"""The four state dicts in the results folder of the authors' program, and in the folder
`models/pretrain/` from which it tests."""

CLASSIFIER = frozenset(f"classifier.{layer}.{kind}" for layer in (0, 3, 6) for kind in ("weight", "bias"))
"""Tensors of torchvision's VGG-16 file behind the convolutions, which SSPL does not have."""


def official_prefixes(config: SSPLConfig) -> dict[str, tuple[str, str]]:
    """Where the authors keep each part of our model.

    Args:
        config: of the model.

    Returns:
        prefix of our names -> file, prefix of the names in it. Each tensor has one prefix.
    """
    prefixes = {
        "frame_encoder.features.": (FRAME_FILE, "feat_extractor."),
        "audio_encoder.features.": (SOUND_FILE, "features."),
        "audio_encoder.embeddings.": (SOUND_FILE, "embeddings."),
        "audio_projection.": (SOUND_FILE, "fc."),
        "projection_head.": (HEAD_FILE, "projector."),
        "prediction_head.": (HEAD_FILE, "predictor."),
    }
    if not config.pcm:
        return prefixes
    pcm = {
        "predict_audio.": "PredProcess.0.",
        "predict_level_1.": "PredProcess.1.conv2d.",
        "predict_level_2.": "PredProcess.2.conv2d.",
        "correct_level_1.": "ErrorProcess.0.",
        "correct_level_2.": "ErrorProcess.1.",
        "correct_level_3.": "ErrorProcess.2.convtrans2d.",
        "output.": "ErrorProcess.3.",
        "correction_rates.": "a0.",
        "prediction_rates.": "b0.",
        "initial_prediction_norms.": "BNPred.",
        "initial_correction_norms.": "BNError.",
    }
    for cycle in range(config.pcm_cycles):
        for level in range(2):
            pcm[f"prediction_norms.{cycle}.{level}."] = f"BNPred_step.{2 * cycle + level}."
        for level in range(3):
            pcm[f"correction_norms.{cycle}.{level}."] = f"BNError_step.{3 * cycle + level}."
    return prefixes | {f"predictive_coding.{ours}": (PCM_FILE, official) for ours, official in pcm.items()}


def convert_vgg16(official: Any, source: Path) -> dict[str, Tensor]:  # noqa: ANN401
    """State dict of torchvision's VGG-16 -> that of VGG16Encoder.

    Args:
        official: the file's content; its classifier is left out.
        source: of the file, for messages.

    Returns:
        state dict that SSPL.frame_encoder loads strictly.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    expected = _without_prefix(_expected(SSPLConfig(pcm=False)), "frame_encoder.")
    names = {name: name for name in expected}
    convolutions = _without_module(official, source)
    convolutions = {k: v for k, v in convolutions.items() if k not in CLASSIFIER}
    return _take(convolutions, names, expected, source, "VGG-16 of torchvision")


def convert_vggish(official: Any, source: Path) -> dict[str, Tensor]:  # noqa: ANN401
    """State dict of the released VGGish -> that of VGGishEncoder.

    Args:
        official: the file's content, 18 tensors.
        source: of the file, for messages.

    Returns:
        state dict that SSPL.audio_encoder loads strictly.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    expected = _without_prefix(_expected(SSPLConfig(pcm=False)), "audio_encoder.")
    names = {name: name for name in expected}
    return _take(_without_module(official, source), names, expected, source, "VGGish")


def is_release_folder(folder: Path) -> bool:
    """Whether a folder holds any of the authors' files, so that it is meant as theirs."""
    return any((folder / name).is_file() for name in RELEASE_FILES)


def read_release_folder(folder: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """Reads the authors' files in a folder; logs, pictures and whatever else lies there are left.

    Args:
        folder: results folder of the authors' program, or its `models/pretrain/`.
        read: loads a file of weights.

    Returns:
        name -> content of those of RELEASE_FILES that are there, for convert_sspl_release, which
        refuses a folder that lacks one.
    """
    paths = (folder / name for name in RELEASE_FILES)
    return {path.name: read(path) for path in paths if path.is_file()}


def convert_sspl_release(
    files: Mapping[str, Any], source: Path, *, vgg16: Mapping[str, Tensor] | None = None
) -> tuple[SSPLConfig, dict[str, Tensor]]:
    """The state dicts that the authors' program saves -> configuration and state dict of ours.

    Args:
        files: file name -> its content, with or without the `module.` prefix of DataParallel.
            FRAME_FILE may be left out, as it always holds ImageNet's weights; PCM_FILE is there
            or not, as the variant has it.
        source: folder of the files, for messages.
        vgg16: as convert_vgg16 returns it; stands in for a missing FRAME_FILE.

    Returns:
        the configuration (with the PCM or not, and its number of cycles), and a state dict that
        SSPL of it loads strictly.

    Raises:
        ValueError: a file is missing or unknown, or a tensor is missing, unknown or of another
            shape.
    """
    missing = {SOUND_FILE, HEAD_FILE} - files.keys()
    unknown = files.keys() - set(RELEASE_FILES)
    if missing or unknown:
        raise ValueError(
            f"{source} is no results folder of SSPL's authors: it lacks {sorted(missing)} and "
            f"holds unknown {sorted(unknown)}."
        )
    if FRAME_FILE not in files and vgg16 is None:
        raise ValueError(
            f"{source} holds no {FRAME_FILE}, and no VGG-16 of torchvision is given in its place."
        )
    contents = {name: _without_module(files[name], source / name) for name in files}
    config = _config_of(contents.get(PCM_FILE))
    expected = _expected(config)
    converted: dict[str, Tensor] = {}
    for file, content in contents.items():
        names = _official_names(expected, config, file)
        converted |= _take(content, names, expected, source / file, "SSPL")
    if FRAME_FILE not in files and vgg16 is not None:
        converted |= {f"frame_encoder.{name}": tensor for name, tensor in vgg16.items()}
    return config, converted


def _config_of(pcm: Mapping[str, Any] | None) -> SSPLConfig:
    if pcm is None:
        return SSPLConfig(pcm=False)
    steps = {name.split(".")[1] for name in pcm if name.startswith("BNPred_step.")}
    # Two batch norms a cycle. A wrong count surfaces as missing or unknown tensors.
    return SSPLConfig(pcm=True, pcm_cycles=max(1, len(steps) // 2))


def _expected(config: SSPLConfig) -> dict[str, Tensor]:
    with torch.device("meta"):  # names and shapes only
        return SSPL(config).state_dict()


def _official_names(expected: Mapping[str, Tensor], config: SSPLConfig, file: str) -> dict[str, str]:
    """Name in one of the authors' files -> ours."""
    names: dict[str, str] = {}
    for ours, (owner, official) in official_prefixes(config).items():
        if owner == file:
            own = [name for name in expected if name.startswith(ours)]
            names |= {official + name.removeprefix(ours): name for name in own}
    return names


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _without_module(official: Any, source: Path) -> dict[str, Any]:  # noqa: ANN401
    """The content without the prefix of DataParallel."""
    if not isinstance(official, Mapping):
        raise ValueError(f"{source} holds a {type(official).__name__}, not a state dict.")
    content = {str(name).removeprefix("module."): value for name, value in official.items()}
    if len(content) != len(official):
        raise ValueError(f"{source} holds tensors twice, with and without `module.`.")
    return content


def _take(
    content: Mapping[str, Any],
    names: Mapping[str, str],
    expected: Mapping[str, Tensor],
    source: Path,
    what: str,
) -> dict[str, Tensor]:
    """Renames a file's tensors.

    Args:
        content: official name -> tensor.
        names: official name -> ours, all that the file must hold.
        expected: our name -> tensor of the right shape.
        source: of the file, for messages.
        what: the file should hold.

    Returns:
        our name -> tensor.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    wrong = []
    for name in sorted(names.keys() & content.keys()):
        found, wanted = content[name], tuple(expected[names[name]].shape)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if shape != wanted:
            wrong.append(f"{name} {shape}, not {wanted}")
    problems = [
        list_names("missing", sorted(names.keys() - content.keys())),
        list_names("unknown", sorted(content.keys() - names.keys())),
        list_names("of another shape", wrong),
    ]
    if any(problems):
        raise ValueError(
            f"{source} does not hold the weights of {what}: " + "; ".join(filter(None, problems))
        )
    return {ours: content[name] for name, ours in names.items()}
