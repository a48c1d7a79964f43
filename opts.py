"""The only place where options are defined and read: frozen dataclasses turned into argparse."""

import argparse
import ast
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from datasets.audio import AudioConfig
from datasets.frames import FrameConfig
from datasets.geometric_transform import GeometricConfig
from datasets.transforms import AugmentationConfig
from models import METHODS

ConfigType = TypeVar("ConfigType")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which clips to train on."""

    train_set: Literal["vggsound", "flickr"]
    """data set, see docs/data.md for its folders"""
    data_root: Path
    """folder of the data set"""
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    allow_missing: bool = False
    """leave clips out whose files are missing or broken, instead of refusing to start"""
    audio_excerpt_seconds: float | None = None
    """use only the first seconds of each training sound (the authors: 4 for Flickr)"""
    workers: int = 4
    """decoding processes; 0 decodes in the main process"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        if self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        if self.audio_excerpt_seconds is not None and not 0 < self.audio_excerpt_seconds < math.inf:
            raise ValueError(
                "--audio-excerpt-seconds must be a number of seconds above 0, got "
                f"{self.audio_excerpt_seconds}"
            )


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Scoring after each epoch; best.pth is only kept when a benchmark is named."""

    validation_benchmark: Literal["vgg_ss", "flickr_soundnet", "stamps"] | None = None
    """benchmark to choose the best epoch on; none: no best.pth"""
    validation_root: Path | None = None
    """folder of the benchmark"""
    validation_list: str | None = None
    """clip list of the benchmark, as --clip-list"""
    validation_protocol: Literal["ssl_tie", "min_max_0.5"] = "ssl_tie"
    """scoring rule"""

    def __post_init__(self) -> None:
        """Refuses half a benchmark."""
        if (self.validation_benchmark is None) != (self.validation_root is None):
            raise ValueError("--validation-benchmark and --validation-root go together.")
        if self.validation_list is not None and self.validation_benchmark is None:
            raise ValueError("--validation-list needs --validation-benchmark.")


@dataclass(frozen=True, kw_only=True)
class OptimisationOptions:
    """How to train; the defaults are the published recipe."""

    epochs: int = 100
    """passes over the training set"""
    batch_size: int = 32
    """clips a step; each is a negative for the others"""
    learning_rate: float = 1e-4
    """of Adam, constant"""
    weight_decay: float = 1e-4
    """L2 penalty of Adam, not decoupled"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the encoders; the loss is always float32"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                "--epochs must be at least 1 and --batch-size at least 2 (the other clips of a "
                f"batch are the negatives), got {self.epochs}, {self.batch_size}"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                "--learning-rate must be above 0 and --weight-decay not below, got "
                f"{self.learning_rate}, {self.weight_decay}"
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the run lives."""

    output: Path
    """folder for checkpoints, logs and pictures"""
    resume: bool = False
    """go on from last.pth in --output"""
    seed: int = 4
    """of initial weights, order, crops and augmentation"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    log_every: int = 20
    """steps between two entries in TensorBoard"""
    pictures: int = 4
    """overlays in TensorBoard after each epoch"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        if self.log_every < 1 or self.pictures < 0:
            raise ValueError(
                "--log-every must be at least 1 and --pictures 0 or more, got "
                f"{self.log_every}, {self.pictures}"
            )


@dataclass(frozen=True, kw_only=True)
class LocalisationOptions:
    """What to score, and how."""

    checkpoint: Path
    """written by main.py, or a released file (ckpts/README.md)"""
    benchmark: Literal["vgg_ss", "flickr_soundnet", "stamps"]
    """data set with boxes, see docs/data.md for its folders"""
    data_root: Path
    """folder of the benchmark"""
    output: Path
    """folder for summary.json, per_clip.csv, report.html and overlays"""
    protocol: Literal["ssl_tie", "min_max_0.5"] = "ssl_tie"
    """scoring rule, see docs/evaluation.md"""
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    annotations: Path | None = None
    """VGG-SS JSON with the boxes, instead of the XML files"""
    frame_geometry: Literal["squash", "centre_crop"] = "squash"
    """how frames that are not square become so; boxes follow"""
    training_list: str | None = None
    """list that was trained on, beside the ids in the checkpoint (released files hold none)"""
    audio: Literal["own", "shuffled"] = "own"
    """sound of each clip: its own, or another clip's, as a control of what the sound contributes"""
    allow_missing: bool = False
    """score what is there; every result says what is not"""
    save_overlays: str = "0"
    """number of overlay pictures to write, or all"""
    note: str = ""
    """words that go into every result, e.g. what is special about the data"""
    gallery: int = 8
    """best, median and worst clips shown in report.html, of each"""
    batch_size: int = 32
    """clips scored at once; does not change the scores"""
    workers: int = 4
    """decoding processes; 0 decodes in the main process"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<number>"""
    dry_run: bool = False
    """print all options and stop"""

    def __post_init__(self) -> None:
        """Refuses values without meaning."""
        if self.save_overlays != "all" and not self.save_overlays.isdecimal():
            raise ValueError(f"--save-overlays takes a number or 'all', got {self.save_overlays!r}")
        if self.batch_size < 1 or self.workers < 0 or self.gallery < 0:
            raise ValueError(
                "--batch-size must be at least 1, --workers and --gallery 0 or more, got "
                f"{self.batch_size}, {self.workers}, {self.gallery}"
            )

    @property
    def max_overlays(self) -> float:
        """Overlay pictures to write; infinite for all."""
        return float("inf") if self.save_overlays == "all" else int(self.save_overlays)


@dataclass(frozen=True)
class TrainOptions:
    """Everything that defines a training run."""

    method: str
    model: Any
    """configuration of the method, see models.METHODS"""
    data: DataOptions
    audio: AudioConfig
    frame: FrameConfig
    augmentation: AugmentationConfig
    geometric: GeometricConfig
    validation: ValidationOptions
    optimisation: OptimisationOptions
    run: RunOptions

    def __post_init__(self) -> None:
        """Refuses groups that contradict each other."""
        frames, masked = self.audio.num_frames, self.augmentation.time_mask
        filters, band = self.audio.mel_bins, self.augmentation.frequency_mask
        if self.augmentation.spec_augment and (masked > frames or band > filters):
            raise ValueError(
                f"--time-mask {masked} and --frequency-mask {band} do not fit a spectrogram of "
                f"{frames} frames and {filters} filters (--window-seconds, --hop-length, "
                "--mel-bins)."
            )


_SHARED_GROUPS = {
    "data": DataOptions,
    "audio": AudioConfig,
    "frame": FrameConfig,
    "augmentation": AugmentationConfig,
    "geometric": GeometricConfig,
    "validation": ValidationOptions,
    "optimisation": OptimisationOptions,
    "run": RunOptions,
}


def parse_train_options(arguments: Sequence[str] | None = None) -> TrainOptions:
    """Command line of main.py -> options.

    Raises:
        ValueError: values contradict each other.
    """
    parser = argparse.ArgumentParser("main.py", description="Trains a sound localiser.")
    methods = parser.add_subparsers(dest="method", required=True, metavar="METHOD")
    for name, (model_class, config_class) in METHODS.items():
        sub = methods.add_parser(
            name,
            help=(inspect.getdoc(inspect.getmodule(model_class)) or "").splitlines()[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        for group in (config_class, *_SHARED_GROUPS.values()):
            _add_group(sub, group)
    values = vars(parser.parse_args(arguments))
    groups: dict[str, Any] = {name: _build(group, values) for name, group in _SHARED_GROUPS.items()}
    method = values["method"]
    return TrainOptions(method=method, model=_build(METHODS[method][1], values), **groups)


def parse_test_options(arguments: Sequence[str] | None = None) -> LocalisationOptions:
    """Command line of test.py -> options.

    Raises:
        ValueError: values contradict each other.
    """
    parser = argparse.ArgumentParser("test.py", description="Scores a trained sound localiser.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    sub = tasks.add_parser(
        "localisation",
        help="where in the frame does the sound come from: cIoU and AUC on a benchmark",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_group(sub, LocalisationOptions)
    return _build(LocalisationOptions, vars(parser.parse_args(arguments)))


def as_plain(options: TrainOptions | LocalisationOptions) -> dict[str, Any]:
    """The options as nested plain values, for JSON and checkpoints."""
    plain = asdict(options)
    for group in (plain, *plain.values()):
        if isinstance(group, dict):
            group |= {name: str(v) for name, v in group.items() if isinstance(v, Path)}
    return plain


MAY_CHANGE_ON_RESUME = {
    "epochs", "data_root", "clip_list", "allow_missing", "workers", "output", "resume", "device",
    "log_every", "pictures", "dry_run", "validation_root",
}  # fmt: skip
"""Options that leave the weights of an epoch as they are; the clips are compared apart."""


def differences_that_matter(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' plain options and moves the weights, in words."""
    found = []
    for group, values in now.items():
        for name, value in values.items() if isinstance(values, dict) else ((group, values),):
            old = before.get(group, {}).get(name) if isinstance(values, dict) else before.get(name)
            if old != value and name not in MAY_CHANGE_ON_RESUME:
                found.append(f"--{name.replace('_', '-')} was {old}, is {value}")
    return found


def _build(config_class: type[ConfigType], values: dict[str, Any]) -> ConfigType:
    chosen = {f.name: values[f.name] for f in fields(config_class)}  # type: ignore[arg-type]
    return config_class(**chosen)


def _add_group(parser: argparse.ArgumentParser, config_class: type) -> None:
    """One option per field: --field-name, --switch/--no-switch; required without a default."""
    summary = (inspect.getdoc(config_class) or "").splitlines()[0]
    group = parser.add_argument_group(config_class.__name__, summary)
    help_of, type_of = field_docstrings(config_class), typing.get_type_hints(config_class)
    for option in fields(config_class):
        settings: dict[str, Any] = {"help": help_of[option.name].replace("%", "%%")}
        settings |= _argument_type(type_of[option.name])
        if option.default is MISSING:
            settings |= {"required": True, "default": argparse.SUPPRESS}
        else:
            settings["default"] = option.default
        group.add_argument("--" + option.name.replace("_", "-"), dest=option.name, **settings)


def _argument_type(annotation: Any) -> dict[str, Any]:  # noqa: ANN401 - a type annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # X | None: absent is None
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": type(choices[0])}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": annotation, "metavar": annotation.__name__.upper()}


def field_docstrings(config_class: type) -> dict[str, str]:
    """The text under each field of a configuration class."""
    body = ast.parse(inspect.getsource(config_class)).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = {}
    for statement, follower in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(follower, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            documented[statement.target.id] = ast.literal_eval(follower.value)
    return documented
