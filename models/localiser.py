"""From any file that holds a trained localiser to the model, ready to localise."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from datasets.audio import AudioConfig, SegmentConfig, SpectrogramConfig
from datasets.frames import FrameConfig
from datasets.views import AUDIO_CONFIGS
from models import LOCALISERS, build_localiser
from models.official_weights import convert_ssl_tie_release, is_ssl_tie_release
from models.peer_weights import convert_peer_release
from models.pretrained import PRETRAINED_FOLDERS, find_pretrained, load_pretrained
from models.sspl_weights import (
    FRAME_FILE,
    RELEASE_FILES,
    convert_sspl_release,
    is_release_folder,
    read_release_folder,
)
from utils.checkpoint import Checkpoint, find_non_finite, parse_checkpoint, read_checkpoint_file
from utils.evaluation import ObjectPrior

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class TrainedModel:
    """A model rebuilt from a file, ready to localise, and what the file says of it."""

    model: nn.Module
    audio: AudioConfig | SegmentConfig | SpectrogramConfig
    frame: FrameConfig
    checkpoint: Checkpoint
    prior: ObjectPrior | None = None


def read_any_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file of main.py, or in what a method's authors released.

    Args:
        path: of the file, or of the results folder that SSPL's authors' program leaves.

    Raises:
        FileNotFoundError: it is not there, or lacks a file.
        ValueError: it is broken or unknown.
    """
    released = {"kind": "released file"}
    if is_release_folder(path):
        files = read_release_folder(path, read_checkpoint_file)
        vgg16 = None
        if FRAME_FILE not in files:  # always ImageNet's weights, so theirs will do
            vgg16 = load_pretrained("vgg16", find_pretrained("vgg16", None, PRETRAINED_FOLDERS))
        config, state_dict = convert_sspl_release(files, path, vgg16=vgg16)
        return Checkpoint(
            method="sspl",
            method_config=asdict(config),
            audio_config={},
            frame_config={},
            state_dict=state_dict,
            selection=released,
        )
    if path.is_dir():
        raise FileNotFoundError(
            f"No checkpoint at {path}: it is a folder. Name a file, or a results folder of SSPL's "
            f"authors, which holds {', '.join(RELEASE_FILES)}."
        )
    content = read_checkpoint_file(path)
    if "format" in content:
        return parse_checkpoint(content, path)
    if is_ssl_tie_release(content):
        method, state_dict = "ssl_tie", convert_ssl_tie_release(content["state_dict"], path)
    else:
        method, state_dict = convert_peer_release(content, path)
    return Checkpoint(
        method=method,
        method_config={},
        audio_config={},
        frame_config={},
        state_dict=state_dict,
        epoch=int(content.get("epoch", 0)),
        selection=released,
    )


def load_model(path: Path, device: torch.device) -> TrainedModel:
    """Rebuilds a model from any file that can be read.

    Args:
        path: written by main.py, or a released file.
        device: where the model goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, unknown, or does not fit the model it claims to be.
    """
    checkpoint = read_any_checkpoint(path)
    non_finite = find_non_finite(checkpoint.state_dict)
    if non_finite:
        raise ValueError(
            f"{path} holds numbers that are not finite in {len(non_finite)} tensors, first: "
            f"{', '.join(non_finite[:5])}. Training diverged, or the file is damaged."
        )
    if checkpoint.method not in LOCALISERS:
        raise ValueError(f"{path}: unknown method '{checkpoint.method}'; there are {list(LOCALISERS)}.")
    try:
        model = build_localiser(checkpoint.method, checkpoint.method_config)
        audio, frame = (
            AUDIO_CONFIGS[checkpoint.method](**checkpoint.audio_config),
            FrameConfig(**checkpoint.frame_config),
        )
        model.load_state_dict(checkpoint.state_dict)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model it names: {error}") from error
    return TrainedModel(ready_to_localise(model, device), audio, frame, checkpoint)


def ready_to_localise(model: ModelT, device: torch.device) -> ModelT:
    """The model itself, on the device, in eval mode and in the layout that is fast there."""
    model = model.to(device).eval()
    # A CPU's convolutions are 1.2 x as fast with the channels innermost: docs/performance.md.
    if device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
