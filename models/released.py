"""Weights that others published, read strictly: trained localisers, and pretrained encoders.

    bash scripts/get_weights.sh [vgg16] [vggish] [resnet18] [--folder DIR]     # fetched and verified

A release is known by its content, never by its name; every tensor is used or known to be of no use.
Pretrained encoders are read only if their sha256 begins as published.
"""

import http.client
import logging
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datasets.frames import FrameConfig
from datasets.lists import read_classes
from models import SCORED
from models.encoders import ResNet18Encoder, VGG16Encoder, VGGishEncoder
from utils.checkpoint import Checkpoint, find_non_finite, parse_checkpoint, read_checkpoint_file
from utils.files import file_sha256
from utils.options import Parser, run_command

logger = logging.getLogger(__name__)

WRAPPERS = re.compile(r"(?<![^./])(module|_orig_mod)\.")  # of DataParallel and of torch.compile, anywhere


def build_localiser(
    name: str,
    config: Mapping[str, Any],
    audio: Any = None,  # noqa: ANN401 - each has its own
    frame: FrameConfig | None = None,
) -> nn.Module:
    """Build a freshly initialised model of whatever can be scored, a row of SCORED, on the CPU.

    `config` is that of a method, as its checkpoint stores it; `audio` an instance of the row's group.
    An entry that the method does not know is a TypeError.
    """
    row = SCORED[name]
    audio, frame = audio or row.groups["audio"](), frame or FrameConfig()
    return row.model(row.groups["model"](**config), audio=audio, frame=frame)  # type: ignore[call-arg, misc]


def convert_strictly(
    content: Mapping[str, Any],
    source: Path,
    title: str,
    build: Callable[[], nn.Module],
    renames: Mapping[str, str] | None = None,
    ignored: tuple[str, ...] = (),
    *,
    strict: bool = True,
) -> dict[str, Tensor]:
    """Rename the tensors of a published state dict to those of the network that `build` makes.

    `renames` maps beginnings of our names to the official ones, where they differ. Official names that begin
    as in `ignored` may be there, but never reach the map; if not `strict`, any others are said and left out.
    `source` and `title` are for messages.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or none.
    """
    tensors = {WRAPPERS.sub("", str(name)): value for name, value in content.items()}
    if len(tensors) != len(content):
        raise ValueError(f"{source} holds tensors twice, with and without `module.` or `_orig_mod.`.")
    with torch.device("meta"):  # names and shapes only
        network = build().state_dict()
    renames, ours = renames or {}, {}  # ours: official name -> our name
    for name in network:
        begin = next((begin for begin in renames if name.startswith(begin)), "")
        ours[renames.get(begin, "") + name.removeprefix(begin)] = name
    # Batch counters, which only training needs, are missing in files from before PyTorch 0.4.1.
    tensors = {name: torch.tensor(0) for name in ours if name.endswith("num_batches_tracked")} | tensors

    unknown = [name for name in tensors if name not in ours and not name.startswith(ignored)]
    if unknown and not strict:
        logger.warning("%s: %s are left out, as by the program of %s.", source, _named(unknown), title)
        unknown = []
    problems = {"missing": list[str](), "unknown": unknown, "of another shape": [], "no number": []}
    state = {}
    for official, name in ours.items():
        value, expected = tensors.get(official), tuple(network[name].shape)
        if isinstance(value, np.ndarray | np.number | int | float):  # as other programs keep counters
            value = torch.from_numpy(np.array(value))
        if official not in tensors:
            problems["missing"].append(official)
        elif not isinstance(value, Tensor):
            problems["no number"].append(f"{official} ({type(value).__name__})")
        elif tuple(value.shape) != expected:
            problems["of another shape"].append(f"{official} {tuple(value.shape)}, not {expected}")
        else:
            state[name] = value
    words = [_named(names, kind) for kind, names in problems.items() if names]
    if words:
        raise ValueError(f"{source} does not hold the weights of {title}: {'; '.join(words)}")
    return state


def _named(names: list[str], kind: str = "unknown") -> str:
    """Count and name tensors, the first five of them."""
    return f"{len(names)} tensors {kind}: {', '.join(sorted(names)[:5])}{' …' * (len(names) > 5)}"


# ------------------------------------------------------------------------------- trained localisers


class Release(NamedTuple):
    """How a method's authors keep its weights in a file."""

    title: str
    entry: str  # of the file, which holds the weights
    data_parallel: bool | None  # whether all names begin with `module.`; None: with or without
    marks: tuple[str, ...]  # tensors that tell it from other releases with the same entry
    renames: Mapping[str, str]  # as convert_strictly's, and so are the next two
    ignored: tuple[str, ...]
    strict: bool = True
    copies: str = ""  # what the names of a second set of all networks begin with


# SSL-TIE took over LVS's networks, with stems for other inputs and layers that never reach the map.
STEM = ("audnet.conv1_a.weight",)
STEMS = {"audnet.conv1.weight": "audnet.conv1_a.weight"}
CLASSIFIERS = ("imgnet.fc.", "audnet.fc.")
UNUSED = (*CLASSIFIERS, "imgnet.conv1_a.", "imgnet.conv1_flow.", "audnet.conv1.", "audnet.conv1_flow.",
          "vision_fc1.", "conv3.", "norm3.")  # fmt: skip
ONE_PAIR = {"img_proj.0.": "img_proj.", "aud_proj.0.": "aud_proj."}
SLOW = "momentum_"
TWO_PAIRS = {
    f"{copy}{kind}_proj.{i}.": f"{copy}{kind}_proj{i + 1}."
    for copy in ("", SLOW) for kind in ("img", "aud") for i in range(2)
}  # fmt: skip
RELEASES = {
    "ssl_tie": Release("SSL-TIE", "state_dict", None, STEM, STEMS, UNUSED),
    "lvs": Release("LVS", "model_state_dict", True, STEM, STEMS, UNUSED),
    "ssl_align": Release("SSL-Align", "model_state_dict", False, STEM, STEMS, UNUSED, strict=False),
    "ez_vsl_or_fnac": Release("EZ-VSL or FNAC", "model", None, ("img_proj.weight",), ONE_PAIR, CLASSIFIERS),
    "slavc": Release(
        "SLAVC", "model", None, ("img_proj1.weight", "img_proj2.weight"), TWO_PAIRS,
        (*CLASSIFIERS, *(f"{SLOW}{name}" for name in CLASSIFIERS)), copies=SLOW,
    ),
}  # fmt: skip


def convert_release(content: Mapping[str, Any], source: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the method of a released file's content, and the state dict that its model loads strictly.

    A file of no known release is a ValueError that says what was looked for.
    """
    for method, row in RELEASES.items():
        weights = content.get(row.entry)
        weights = weights if isinstance(weights, Mapping) else {}
        names = [*map(str, weights)]
        is_marked = {WRAPPERS.sub("", name) for name in names}.issuperset(row.marks)
        prefixed = {re.match(r"(_orig_mod\.)*module\.", name) is not None for name in names}
        if is_marked and (row.data_parallel is None or prefixed == {row.data_parallel}):
            build = partial(build_localiser, method, {})
            if row.copies and not any(row.copies in name for name in names):  # as at the start of a training
                copies = {row.copies + WRAPPERS.sub("", str(n)): tensor for n, tensor in weights.items()}
                weights = copies | dict(weights)
            return method, convert_strictly(
                weights, source, row.title, build, row.renames, row.ignored, strict=row.strict
            )
    marks = (f"{row.title}: {row.entry} with {' and '.join(row.marks)}" for row in RELEASES.values())
    raise ValueError(
        f"{source} is no checkpoint of this project (it has no entry 'format') and no release that is known. "
        f"Looked for: {'; '.join(marks)}; `module.` before all names or none. "
        f"It holds: {', '.join(map(str, content)) or 'nothing'}."
    )


def name_model(checkpoint: Checkpoint, path: Path) -> str:
    """Method, run and epochs in words: "SSL-TIE quickstart-small, 6 epochs"."""
    titles = {"sspl": "SSPL"} | {name: row.title for name, row in RELEASES.items()}
    method, kind = titles.get(checkpoint.method, checkpoint.method), checkpoint.selection.get("kind")
    if kind == "released file":
        return f"{method} {path.name.split('.pt')[0]}, released"
    epochs = f"{checkpoint.epoch} epoch{'s' * (checkpoint.epoch != 1)}"
    return f"{method} {path.resolve().parent.name}, {epochs}" + " (the best)" * (kind == "best")


SSPL_FILES = ("frame_best.pth", "sound_best.pth", "pcm_best.pth", "ssl_head_best.pth")
"""The results folder of SSPL's authors"""


def sspl_renames(num_cycles: int) -> dict[str, str]:
    """Return the beginnings of our names -> those of the authors' names, each behind its file and a slash."""
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
    for cycle in range(num_cycles):
        pcm |= {f"prediction_norms.{cycle}.{i}.": f"BNPred_step.{2 * cycle + i}." for i in range(2)}
        pcm |= {f"correction_norms.{cycle}.{i}.": f"BNError_step.{3 * cycle + i}." for i in range(3)}
    return {
        "frame_encoder.features.": "frame_best.pth/feat_extractor.",
        "audio_encoder.": "sound_best.pth/",
        "audio_projection.": "sound_best.pth/fc.",
        "projection_head.": "ssl_head_best.pth/projector.",
        "prediction_head.": "ssl_head_best.pth/predictor.",
        **{f"predictive_coding.{ours}": f"pcm_best.pth/{official}" for ours, official in pcm.items()},
    }


def convert_sspl_release(files: Mapping[str, Any], source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return SSPL's configuration and state dict of the authors' files; with pcm_best.pth it has a PCM."""
    content = {f"{file}/{name}": value for file, values in files.items() for name, value in values.items()}
    norms = set(re.findall(r"BNPred_step\.(\d+)\.", " ".join(content)))
    num_cycles = max(1, len(norms) // 2)  # a wrong count surfaces as missing or unknown tensors
    config = {"pcm": True, "pcm_cycles": num_cycles} if "pcm_best.pth" in files else {"pcm": False}
    build = partial(build_localiser, "sspl", config)
    return config, convert_strictly(content, source, "SSPL", build, sspl_renames(num_cycles))


def read_any_checkpoint(path: Path) -> Checkpoint:
    """Read a file of main.py, a released file, or a results folder of SSPL's authors' program."""
    selection = {"kind": "released file"}
    released = partial(Checkpoint, audio_config={}, frame_config={}, selection=selection)
    if path.is_dir():
        files = {name: read_checkpoint_file(path / name) for name in SSPL_FILES if (path / name).is_file()}
        if not files:
            raise FileNotFoundError(
                f"No checkpoint at {path}: it is a folder. Name a file, or a results folder of SSPL's "
                f"authors, which holds {', '.join(SSPL_FILES)}."
            )
        if "frame_best.pth" not in files:  # which always holds ImageNet's weights
            vgg16 = read_pretrained("vgg16", find_pretrained("vgg16", None))
            files["frame_best.pth"] = {n.replace("features", "feat_extractor"): t for n, t in vgg16.items()}
        config, weights = convert_sspl_release(files, path)
        return released(method="sspl", method_config=config, state_dict=weights)
    content = read_checkpoint_file(path)
    if "format" in content:
        checkpoint = parse_checkpoint(content, path)
        weights = {WRAPPERS.sub("", str(name)): tensor for name, tensor in checkpoint.state_dict.items()}
        return replace(checkpoint, state_dict=weights)
    method, weights = convert_release(content, path)
    if method == "ez_vsl_or_fnac":
        selection |= _program_of(content)
    try:
        epoch = int(content.get("epoch", 0))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several numbers
        epoch = 0
        logger.warning("%s: its epoch, %.40r, is no number, and taken as 0.", path, content["epoch"])
    return released(method=method, method_config={}, state_dict=weights, epoch=epoch)


def find_checkpoints(folder: Path, pattern: str) -> list[Path]:
    """Find at any depth what may hold a localiser: files with such names, and SSPL's results folders."""
    encoders = {row.file_name for row in PRETRAINED.values()}
    files = (path for path in folder.rglob("[!.]*") if re.fullmatch(pattern, path.name) and path.exists())
    return sorted({p.parent if p.name in SSPL_FILES else p for p in files if p.name not in encoders})


def describe_file(path: Path, root: Path) -> tuple[str, str]:
    """Say which model a checkpoint holds and what it learned from; in two words its fault, if it has one.

    Classes are those of a stamps set that still lies there; `root` is the project's folder.
    """
    try:
        checkpoint = read_any_checkpoint(path)
    except (ValueError, OSError) as error:
        logger.warning("%s", error)
        return "the file is damaged, or no model of this program", "unreadable"
    words, clips = name_model(checkpoint, path), checkpoint.training_clips or ()
    if checkpoint.selection.get("kind") == "released file":
        return f"{words}, which does not tell its training data", ""
    if not checkpoint.epoch:
        return f"{words}: it has learned nothing yet, and its heat means nothing", "untrained"
    data = root / checkpoint.options.get("data", {}).get("data_root", "")
    words += f", trained on {len(clips):,} clips of {data.name} (list {checkpoint.training_list.get('name')})"
    try:
        classes = sorted({*read_classes(data / "stamps.json", clips)[0].values()})
        words += f", {len(classes)} classes: {', '.join(classes)}".replace("_", " ")
    except (ValueError, OSError):
        words += ", classes not known"
    if checkpoint.options.get("frozen", {}).get("random_init"):
        words += "; its frozen encoders are random, and its accuracy is not the method's"
        return words, "random encoders"
    return words, ""


def load_start(model: nn.Module, path: Path, method: str) -> None:
    """Give a model the weights of its method's checkpoint, ours or released, for a new training."""
    checkpoint = read_any_checkpoint(path)
    if method not in checkpoint.method.split("_or_"):  # of a release whose program is one of two
        raise ValueError(f"--start {path} holds weights of {checkpoint.method}, not of {method}.")
    if (checkpoint.options.get("frozen") or {}).get("random_init"):
        raise ValueError(f"--start {path} has random encoders (--random-init): start from another file.")
    if non_finite := find_non_finite(checkpoint.state_dict):
        raise ValueError(f"--start {path} holds numbers that are not finite, first in {non_finite[0]}.")
    try:
        model.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise ValueError(f"--start {path} does not fit the model of these options: {error}") from error


def _program_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Tell EZ-VSL's file from FNAC's, whose tensors are alike: only FNAC's training decays weights."""
    try:
        decay = float(content["optimizer"]["param_groups"][0]["weight_decay"])
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return {"program": f"{'FNAC' if decay else 'EZ-VSL'}, by its optimiser's weight decay of {decay:g}"}


# ------------------------------------------------------------------------ pretrained encoders


class PretrainedFile(NamedTuple):
    """Published weights of an encoder; the file name ends in the first eight digits of the sha256."""

    title: str
    host: str
    file_name: str
    build: Callable[[], nn.Module]
    ignored: tuple[str, ...]
    option: str  # names a file that was fetched by hand

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"{self.host}/{self.file_name}"

    @property
    def digits(self) -> str:
        """The first digits of the sha256; more are not published."""
        return self.file_name.removesuffix(".pth")[-8:]


TORCHVISION = "https://download.pytorch.org/models"
TORCHVGGISH = "https://github.com/harritaylor/torchvggish/releases/download/v0.1"
RANDOM = "; --random-init starts from random encoders on purpose"
PRETRAINED = {
    "vgg16": PretrainedFile(
        "torchvision's VGG-16, IMAGENET1K_V1", TORCHVISION, "vgg16-397923af.pth",
        VGG16Encoder, ("classifier.",), f"--vgg16{RANDOM}",
    ),
    "vggish": PretrainedFile(
        "VGGish of torchvggish", TORCHVGGISH, "vggish-10086976.pth", VGGishEncoder, (), f"--vggish{RANDOM}"
    ),
    "resnet18": PretrainedFile(
        "torchvision's ResNet-18, IMAGENET1K_V1", TORCHVISION, "resnet18-f37072fd.pth",
        partial(ResNet18Encoder, 3), ("fc.",),
        "--object-prior-weights; a training finds it in ckpts/, or takes --start scratch",
    ),
}  # fmt: skip
FOLDERS = (Path(__file__).parents[1] / "ckpts", Path(torch.hub.get_dir()) / "checkpoints")
"""Where files are looked for that no option names."""


def load_pretrained(networks: Mapping[str, tuple[nn.Module, Path | None]]) -> dict[str, Path]:
    """Give networks, by kind and each with its file if one is named, their weights; return the files read."""
    # All are looked for before the first is read, which takes seconds.
    files = {kind: find_pretrained(kind, named) for kind, (_, named) in networks.items()}
    for kind, path in files.items():
        networks[kind][0].load_state_dict(read_pretrained(kind, path))
    return files


def load_object_prior(named: Path | None) -> nn.Module:
    """Return the prior of EZ-VSL's object-guided localisation with its published weights, in eval mode.

    ResNet-18 as trained on ImageNet answers wherever it sees something; the mean of its last features,
    (B, 512, H/32, W/32), is a map that never hears the sound. Mixed with a model's map it scores higher,
    without any better hearing: how much of a result is its doing is seen by scoring it alone.
    """
    prior = ResNet18Encoder(3, last_stride=2)
    load_pretrained({"resnet18": (prior, named)})
    return prior.eval()


def find_pretrained(kind: str, named: Path | None, folders: tuple[Path, ...] = FOLDERS) -> Path:
    """Return where an encoder's weights are: the file that the user named, else one in the folders."""
    row = PRETRAINED[kind]
    paths = [named] if named is not None else [folder / row.file_name for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{row.file_name} ({row.title}) is not at {' or '.join(map(str, paths))}. Fetch it into ckpts/ with: "
        f"bash scripts/get_weights.sh {kind}; or save {row.url} (sha256 begins with {row.digits}) by hand "
        f"and name it with {row.option}."
    )


def read_pretrained(kind: str, path: Path) -> dict[str, Tensor]:
    """Verify a file of published weights and return the state dict that the encoder loads strictly."""
    verify(kind, path)
    row, content = PRETRAINED[kind], read_checkpoint_file(path)
    return convert_strictly(content, path, row.title.split(",")[0], row.build, ignored=row.ignored)


def verify(kind: str, path: Path) -> None:
    """Refuse a file that is not the published one, with a ValueError."""
    row, actual = PRETRAINED[kind], file_sha256(path)
    if not actual.startswith(row.digits):
        raise ValueError(
            f"{path} has sha256 {actual}, expected one that begins with {row.digits}: it is not {row.title} "
            f"as published at {row.url}, or the download broke off. Move it away and call: "
            f"bash scripts/get_weights.sh {kind}"
        )


def fetch_pretrained(kind: str, folder: Path) -> int:
    """Download and verify an encoder's weights, unless they are in the folder; return the exit status."""
    row, target = PRETRAINED[kind], folder / PRETRAINED[kind].file_name
    if target.exists():
        verify(kind, target)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(row.url, str(target), row.digits, progress=sys.stderr.isatty())
        except (RuntimeError, OSError, http.client.HTTPException) as error:  # the first: another sha256
            raise ConnectionError(
                f"{kind}: could not download {row.title} from {row.url} to {folder}: {error}. Nothing was "
                "kept. Check the network, the proxy (https_proxy) and the free space, or save that file by "
                f"hand as {target}: it is verified whenever it is read."
            ) from error
    sys.stdout.write(f"{kind}: {row.title}, verified: {target}\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run get_weights.sh: fetch files one after the other, also after one has failed."""
    parser = Parser("get_weights.sh", description="Fetches and verifies encoders' weights.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PRETRAINED)}; none: all")
    parser.add_argument("--folder", type=Path, default=FOLDERS[0], help="where the files go")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in PRETRAINED]:
        parser.error(f"no weights are known of {unknown}; there are: {', '.join(PRETRAINED)}")
    socket.setdefaulttimeout(30)  # PyTorch's downloader sets no limit of its own
    fetch = partial(fetch_pretrained, folder=options.folder)
    return max(run_command(partial(fetch, kind)) for kind in options.names or PRETRAINED)


if __name__ == "__main__":
    sys.exit(main())
