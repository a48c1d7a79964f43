"""The only place where options are defined and read: frozen dataclasses turned into argparse."""

import argparse
import inspect
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from torch import nn

from datasets.benchmarks import BENCHMARKS, BOX_BENCHMARKS, DATA_SETS, PLAIN_BENCHMARKS, TRAINING_SETS
from datasets.frames import FrameConfig, GeometryMode
from models import METHODS
from models.method import Method, StartOptions
from utils.evaluation.negatives import CLASSES_WANTED, OffScreen
from utils.evaluation.protocols import PROTOCOLS, LocalisationProtocol, find_protocols
from utils.evaluation.retrieval import parse_directions, parse_ks
from utils.files import check_place
from utils.options import NUM_CORES, Options, Parser, build, did_you_mean, flag, option, refuse_dropped
from utils.training import Precision

WORKERS = max(1, min(8, NUM_CORES // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
"""A core decodes some 675 clips a second, eight what a GPU can train on; one core is left for the training"""

_DROPPED = {
    "Lower --batch-size, or use more GPUs.": "--micro-batches --recompute-audio --head-megabytes",
    "SSPL draws any of the 1,058 views of a frame each time, as its authors do.": "--view-pool",
    "SSPL's frozen encoders see new views in every step, so there is nothing to keep.": "--feature-cache",
    "Use --precision tf32.": "--tf32",
    "It is chosen by itself: on CPUs, and for half precision on GPUs.": "--channels-last",
    "TensorBoard gets an entry every 20 steps.": "--log-every",
    "TensorBoard gets 4 overlays after each epoch.": "--pictures",
    "Sounds are heard at 16 kHz, as by the authors.": "--sample-rate",
    "The largest angle is the authors' 30 degrees; --no-rotation takes rotation out.": "--max-rotation",
    "It is the authors' 0.03.": "--sharpness",
    "The sound is encoded once in a step, with the same results as the authors' twice.": "--audio-encodings",
    "A step has one noise, its level drawn between 0.01 and 1 of full scale.":
        "--noise-sounds --noise-quietest --noise-loudest",
    "Sounds are mixed as the authors' curriculum says: docs/method_ssl_tie.md.":
        "--mixing-probability --mixing-probability-growth --mixing-probability-limit --mixing-strength "
        "--mixing-strength-growth --mixing-strength-limit --mixing-candidates --mixing-refresh",
    "The authors' errors are not repeated; --threshold takes their thresholds.": "--as-published",
    "It went with --as-published.": "--peer",
    "Pillow's own limit holds, 179 million pixels.": "--max-megapixels",
    "The hottest heat has the opacity of the reports, 0.8.": "--opacity",
    "Give the number itself: --threshold takes another result's threshold.value.": "--threshold-from",
}  # fmt: skip
DROPPED = {name: reason for reason, names in _DROPPED.items() for name in names.split()}
"""Options of earlier versions -> why they are gone, or what to use instead."""


# --------------------------------------------------------------------------------------- of main.py


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Which clips to train on."""

    train_set: str = option(choices=TRAINING_SETS)  # data set, see docs/data.md for its folders
    data_root: Path  # folder of the data set
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    allow_missing: bool = False
    """leave clips out whose files are missing or broken, instead of refusing to start"""
    workers: int = option(WORKERS, at_least=0)  # decoding processes of each process; 0: it decodes itself


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Scoring after each epoch; best.pth is only kept when a benchmark is named."""

    validation_benchmark: str | None = option(None, choices=BOX_BENCHMARKS)
    """benchmark to choose the best epoch on; none: no best.pth"""
    validation_root: Path | None = None  # folder of the benchmark
    validation_list: str | None = None  # clip list of the benchmark, as --clip-list
    validation_protocol: str | None = option(None, choices=PROTOCOLS)
    """scoring rule, see docs/evaluation.md; none: that of the method's authors"""

    def __post_init__(self) -> None:
        benchmark, root = self.validation_benchmark, self.validation_root
        if (benchmark is None) != (root is None) or (self.validation_list is not None and benchmark is None):
            raise ValueError(
                "--validation-benchmark and --validation-root go together; --validation-list needs both."
            )


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How the arithmetic is done; docs/performance.md has what each is worth."""

    precision: Precision = "auto"
    """of the networks; weights, similarities and losses are always float32. tf32: GPUs round what they
    convolve; auto: on GPUs bf16, or tf32 on those without; on CPUs fp32"""
    compile: bool = False  # compile the networks with torch.compile, which needs a C++ compiler or Triton


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Where the run lives."""

    config: Path | None = None
    """JSON of options, as options.json of a run or flat; those on the command line win"""
    output: Path  # folder for checkpoints, logs and pictures
    resume: bool = False  # go on from last.pth in --output
    seed: int = option(4, at_least=0, at_most=2**32 - 1)
    """of initial weights, order, crops and augmentation; the authors: 4 SSL-TIE, 1234 SSPL"""
    device: str = "auto"  # auto, cpu, cuda or cuda:<number>
    dry_run: bool = False  # print all options and stop


SHARED_GROUPS = {
    "data": DataOptions,
    "frame": FrameConfig,
    "start": StartOptions,
    "validation": ValidationOptions,
    "compute": ComputeOptions,
    "run": RunOptions,
}
"""Groups of main.py that every method has; its row of METHODS has the others, or other defaults"""


class TrainOptions(SimpleNamespace):
    """Everything that defines a training run: `method`, its name, and the groups of train_groups."""


# --------------------------------------------------------------------------------------- of test.py


@dataclass(frozen=True, kw_only=True)
class TestTask(Options):
    """What every task of test.py takes."""

    device: str = "auto"  # auto, cpu, cuda or cuda:<number>
    dry_run: bool = False  # print all options and stop


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(TestTask):
    """How heat maps are made and drawn."""

    checkpoint: Path  # written by main.py, or a released file (ckpts/README.md)
    frame_geometry: GeometryMode = "squash"  # how pictures that are not square become so for the model
    box: bool = False
    """draw the box around the region of the peak that is at least half-way up the scale, and glows"""
    scale: str = "frame"
    """similarities between which heat runs: frame, from the map's smallest to its largest; or LOW,HIGH"""
    threshold: float | None = option(None, at_least=-1, at_most=1)
    """where no similarity is above this universal threshold of test.py negatives, nothing glows; none: heat
    begins at 30 % of the scale"""
    scale_words: ClassVar[tuple[str, ...]] = ("frame",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parse_scale()

    def parse_scale(self) -> Any:  # noqa: ANN401 - one of the words, or two numbers
        """Return the word of --scale, or its two similarities."""
        if self.scale in self.scale_words:
            return self.scale
        try:
            low, high = map(float, self.scale.split(","))
        except ValueError:
            low, high = math.nan, math.nan
        if not 0 < high - low < math.inf:
            words = " or ".join([*self.scale_words, "LOW,HIGH (two similarities, the lower first)"])
            raise ValueError(f"--scale must be {words}, got {self.scale!r}")
        return low, high


@dataclass(frozen=True, kw_only=True)
class VideoOptions(DrawingOptions):
    """Draw where the sound comes from into your own video."""

    input: Path  # video with sound, in any format that FFmpeg reads
    output: Path  # MP4 to write; a contact sheet and the peaks go beside it
    scale: str = "video"
    """similarities between which heat runs: video, those of the whole clip; frame, each frame's own; or
    LOW,HIGH"""
    scale_words: ClassVar[tuple[str, ...]] = ("video", "frame")
    audio_step: float = option(0.2, at_least=0)
    """seconds from one encoded sound to the next; a frame takes the nearest. 0: each frame has its own"""
    smoothing: float = option(0.0, at_least=0)
    """time constant of the exponential mean over past maps, seconds; 0: none"""
    batch_size: int = option(8, at_least=1)
    """frames localised at once; does not change the maps but for rounding"""
    max_seconds: float | None = option(None, above=0)
    """stop after so many seconds of the video; none: at its end"""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(DrawingOptions):
    """Draw where a sound comes from into a picture."""

    image: Path  # picture of any size, in any format that Pillow reads
    sound: Path  # sound in any format that libsndfile or FFmpeg reads, or a video for its sound
    output: Path  # PNG to write; the peak goes beside it as CSV


@dataclass(frozen=True, kw_only=True)
class RuleOptions(TestTask):
    """Which objects a map is scored by, and how."""

    benchmark: str = option(choices=BENCHMARKS)
    """data set with boxes or masks, see docs/data.md for its folders"""
    protocol: str | None = None
    """scoring rules, commas between them, the headline first, or all (docs/evaluation.md); none:
    ssl_tie,sspl, after the rule under which metrics of the benchmark's own are published"""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            find_protocols(self.protocol or "all")
        except ValueError as error:
            raise ValueError(f"--protocol: {error}") from error

    @property
    def protocols(self) -> tuple[LocalisationProtocol, ...]:
        """The named rules; or the benchmark's own, one that predicts half of the frame, one that does not."""
        own = DATA_SETS[self.benchmark].headline
        return find_protocols(self.protocol or ",".join(filter(None, (own, "ssl_tie", "sspl"))))


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(RuleOptions):
    """What blind predictors and the best possible map score, from the boxes alone."""

    benchmark: str = option(choices=BOX_BENCHMARKS)  # data set with boxes
    annotations: Path  # JSON (VGG-SS, IS3, VPO) or CSV (folder) of the boxes, or a folder of <id>.xml
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    output: Path | None = None  # JSON file for the scores; none: only on the screen


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(TestTask):
    """Which clips a checkpoint is scored on, and what its results say."""

    data_root: Path  # folder of the data set
    clip_list: str | None = None
    """file of clip ids, or name of an official list (scripts/get_splits.sh --list); none: all"""
    annotations: Path | None = None
    """file of the boxes, instead of those beside the clips: JSON (VGG-SS, IS3, VPO) or CSV (folder)"""
    labels: Path | None = None
    """file with each clip's class (docs/evaluation.md); none: only where the ids tell it"""
    frame_geometry: GeometryMode = "squash"
    """how frames that are not square become so; boxes follow. squash_aliased: as SSL-Align's program"""
    training_list: str | None = None
    """list that was trained on, beside the ids in the checkpoint (released files hold none)"""
    output: Path
    """folder for summary.json, per_clip.csv (retrieval: per_query.csv, embeddings.npz), table.md, .tex and
    .csv, and report.html"""
    table: Literal["md", "tex", "csv", "json"] | None = None
    """print only the scores, in this form and with what belongs to them; none: for reading"""
    allow_missing: bool = False  # score what is there; every result says what is not
    note: str = ""  # words that go into every result, e.g. what is special about the data
    batch_size: int = option(32, at_least=1)
    """clips scored at once; does not change the scores but for rounding"""
    workers: int = option(WORKERS, at_least=0)  # decoding processes of each process; 0: it decodes itself


SAID_BY_SAVED_MAPS = (
    "checkpoint", "save_maps", "frame_geometry", "training_list", "object_prior", "object_prior_weights",
    "audio", "save_overlays", "gallery",
)  # fmt: skip
"""Options that a file of saved maps leaves without meaning."""


@dataclass(frozen=True, kw_only=True)
class LocalisationOptions(RuleOptions, ScoringOptions):
    """Where in the frame does the sound come from: cIoU and AUC on a benchmark."""

    checkpoint: Path | None = None  # written by main.py, or a released file (ckpts/README.md)
    save_maps: Path | None = None
    """file for the similarity maps, to be scored again by --from-maps; none: they are not kept"""
    from_maps: Path | None = None  # file of --save-maps to be scored, instead of a checkpoint
    negatives: str | None = None
    """of the extended benchmarks: file of video,audio,label; none: SLAVC's official list"""
    object_prior: float | None = option(None, at_least=0, at_most=1)
    """share of the model's map beside one of objects, 0 to 1 (docs/peers.md); none: it alone"""
    object_prior_weights: Path | None = None
    """torchvision's resnet18-f37072fd.pth; none: looked up by name in ckpts/ and torch hub"""
    audio: Literal["own", "shuffled"] = "own"
    """sound of each clip: its own, or another clip's, as a control of what the sound contributes"""
    save_overlays: str = "0"  # number of overlay pictures to write, or all
    gallery: int = option(8, at_least=0)  # best, median and worst clips shown in report.html, of each

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.save_overlays != "all" and not self.save_overlays.isdecimal():
            raise ValueError(f"--save-overlays takes a number or 'all', got {self.save_overlays!r}")
        if self.object_prior_weights is not None and self.object_prior is None:
            raise ValueError("--object-prior-weights needs --object-prior.")
        if self.save_maps is not None:
            if self.save_maps.is_dir():
                raise ValueError(f"--save-maps {self.save_maps} is a folder; name a file.")
            check_place(self.save_maps.parent, f"--save-maps {self.save_maps}")
        if self.from_maps is None and self.checkpoint is None:
            raise ValueError("--checkpoint is missing; or name saved --from-maps.")
        defaults = {described.name: described.default for described in fields(self)}
        unread = [flag(name) for name in SAID_BY_SAVED_MAPS if getattr(self, name) != defaults[name]]
        if self.from_maps is not None and unread:
            raise ValueError(
                f"{', '.join(unread)} cannot be given beside --from-maps: the file says from which model its "
                "maps come, and holds no frames."
            )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ScoringOptions):
    """A checkpoint whose clips have their own sounds."""

    checkpoint: Path  # written by main.py, or a released file (ckpts/README.md)

    audio, object_prior, negatives = "own", None, None


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(ModelOptions):
    """Which clips sound or look alike: nearest neighbours by class and by clip."""

    dataset: str = option(
        choices=[name for name, row in DATA_SETS.items() if row.ids_of_training and not row.negatives]
    )
    """data set of the clips, see docs/data.md for its folders"""
    directions: str = "audio_to_audio,audio_to_image,image_to_audio"
    """what is found by what, commas between them; sounds by sounds needs --labels"""
    ks: str = "1,5,10"  # numbers of neighbours that count, commas between them
    image_pooling: Literal["max", "mean", "positions"] = "max"
    """from a frame's map to its embedding: maximum or mean over positions, or all positions, of
    which a sound's best counts (memory: as many times more)"""
    embeddings: Path | None = None
    """file that keeps the embeddings, read instead of the clips where it is there and no clip broke; none:
    embeddings.npz in --output"""
    gallery: int = option(4, at_least=0)
    """best, median and worst queries shown in report.html, of each and for each direction"""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_directions(self.directions)
        parse_ks(self.ks)

    @property
    def benchmark(self) -> str:
        """The data set, under the name that it has in other tasks."""
        return self.dataset


@dataclass(frozen=True, kw_only=True)
class NegativeOptions(ModelOptions):
    """What the model shows for silence, noise and sounds that are not in the picture."""

    benchmark: str = option(choices=PLAIN_BENCHMARKS)
    """data set with boxes or masks whose sounds are all in the picture, see docs/data.md"""
    seeds: int = option(10, at_least=1)
    """draws of the noise and of the off-screen sound of each clip: seeds 0, 1 …"""
    off_screen: OffScreen = "other_class"
    """off-screen sounds: of a clip of another class, or of any other clip, class unknown"""
    threshold: float | None = option(None, at_least=-1, at_most=1)
    """universal threshold on the model's similarity; none: third quartile over these negatives"""
    gallery: int = option(2, at_least=0)  # best, median and worst clips shown in report.html, of each

    def __post_init__(self) -> None:
        super().__post_init__()
        ids_tell = DATA_SETS[self.benchmark].ids_tell_class
        if self.off_screen == "other_class" and self.labels is None and not ids_tell:
            raise ValueError(CLASSES_WANTED)


Scoring = LocalisationOptions | RetrievalOptions | NegativeOptions
WHICH_CLIPS = ("clip_list", "annotations", "negatives", "allow_missing")  # arguments of build_clips
TestOptions = Scoring | BaselineOptions | VideoOptions | ImageOptions
TASKS: dict[str, type[TestOptions]] = {
    "localisation": LocalisationOptions,
    "baselines": BaselineOptions,
    "retrieval": RetrievalOptions,
    "negatives": NegativeOptions,
    "video": VideoOptions,
    "image": ImageOptions,
}
"""Tasks of test.py; the first line of a class says what its task does"""


# ------------------------------------------------------------------------------------------- parsing


def parse_train_options(arguments: Sequence[str] | None = None) -> TrainOptions:
    """Parse the command line of main.py; values that contradict each other are a ValueError."""
    commands = {name: (inspect.getmodule(row.model), train_groups(name)) for name, row in METHODS.items()}
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    finder = argparse.ArgumentParser("main.py", add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    config = finder.parse_known_args(arguments)[0].config
    if config is not None and arguments[0] in METHODS:
        arguments[1:1] = read_config(config, arguments[0])
    method, values = _parse("main.py", "Trains a sound localiser.", "METHOD", commands, arguments)
    check_method(method)
    options = TrainOptions(method=method, **values)
    METHODS[method].model.check_options(options)
    return options


def parse_test_options(arguments: Sequence[str] | None = None) -> TestOptions:
    """Parse the command line of test.py; values that contradict each other are a ValueError."""
    commands = {name: (group, {"task": group}) for name, group in TASKS.items()}
    _, values = _parse("test.py", "Scores a trained sound localiser.", "TASK", commands, arguments)
    return values["task"]


OF_ONE_CALL = {"config", "resume", "dry_run"}  # options that a config cannot set


def read_config(path: Path, method: str) -> list[str]:
    """Return a method's options in a JSON object, nested as options.json or flat, as a command line.

    Null stands for no value. ValueError: it is none, or another method's, or has a key that is no option.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f'--config {path}: expected an object such as {{"epochs": 20}}.')
    if (theirs := document.pop("method", method)) != method:
        raise ValueError(f"--config {path} has options of the method {theirs!r}; this is {method}.")
    groups = train_groups(method)
    known = {described.name: described for group in groups.values() for described in fields(group)}
    flat: dict[str, Any] = {}
    for key, content in document.items():
        flat |= content if key in groups and isinstance(content, dict) else {key: content}
    flat.pop("audio_encodings", None)  # in options.json of earlier versions; it changed no result
    words = []
    for name, value in flat.items():
        if name not in known:
            refuse_dropped(DROPPED, [flag(name)])
            raise ValueError(f"--config {path}: unknown key {name!r}.{did_you_mean(name, [*known, *groups])}")
        is_default = known[name].metadata.get("hidden") and value == known[name].default
        if name in OF_ONE_CALL or value is None or is_default:
            continue
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words.append(f"{flag(name)}={value}")
    return words


def _parse(
    program: str,
    summary: str,
    metavar: str,
    commands: Mapping[str, tuple[Any, Mapping[str, type]]],
    arguments: Sequence[str] | None,
) -> tuple[str, dict[str, Any]]:
    """Parse one of the sub-commands, each described by an object's docstring; return its name and groups."""
    usage = f"%(prog)s {{{','.join(commands)}}} [options]"
    parser = Parser(program, usage=usage, description=summary, dropped=DROPPED)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar=metavar)
    for name, (described, groups) in commands.items():
        words = (inspect.getdoc(described) or name).splitlines()[0]
        command = subparsers.add_parser(
            name, prog=f"{program} {name}", help=words, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_groups(groups.values())
    values = vars(parser.parse_args(arguments))
    name = values.pop("command")
    return name, {key: build(group, values) for key, group in commands[name][1].items()}


def train_groups(method: str) -> dict[str, type]:
    """Return the option groups of main.py for a method, by name."""
    return {**SHARED_GROUPS, **METHODS[method].groups}


def check_method(name: str) -> None:
    """Refuse a method that could not be trained to an end: name all that its row or its class lacks."""
    row = METHODS[name]
    methods = ("augment", "visual_features", "sound_features", "compare")
    missing = [f"the group {g!r}" for g in ("model", "audio", "optimisation") if g not in row.groups]
    missing += [f"{row.model.__name__}.{m}()" for m in methods if getattr(row.model, m) is getattr(Method, m)]
    if row.model.forward is nn.Module.forward:
        missing.append(f"{row.model.__name__}.forward()")
    if missing:
        raise ValueError(f"The method {name!r} lacks {', '.join(missing)}: see CONTRIBUTING.md.")


def as_plain(options: TrainOptions | TestOptions) -> dict[str, Any]:
    """Return the options as nested plain values, for JSON and checkpoints."""
    groups = vars(options) if isinstance(options, TrainOptions) else {"task": options}
    plain: dict[str, Any] = {name: asdict(group) for name, group in groups.items() if name != "method"}
    for group in plain.values():
        group |= {name: str(value) for name, value in group.items() if isinstance(value, Path)}
    return {"method": options.method, **plain} if isinstance(options, TrainOptions) else plain["task"]


MAY_CHANGE_ON_RESUME = {
    "epochs", "data_root", "clip_list", "allow_missing", "workers", "output", "config", "resume",
    "device", "dry_run", "validation_root", "vgg16", "vggish",
}  # fmt: skip
"""Options that leave the weights of an epoch as they are; the clips are compared apart."""


def differences_that_matter(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two runs' plain options, and moves the weights.

    Options that are newer than the first run were what their defaults are.
    """
    if before.get("method") != now["method"]:
        return [f"--method was {before.get('method')}, is {now['method']}"]
    differences = []
    for group, group_class in train_groups(now["method"]).items():
        for name, value in now[group].items():
            old = (before.get(group) or {}).get(name, getattr(group_class, name, None))
            if name == "mixing_start_epoch" and not now[group]["audio_mixing"]:
                continue  # its default was 1
            if old != value and name not in MAY_CHANGE_ON_RESUME:
                differences.append(f"{flag(name)} was {old}, is {value}")
    return differences
