"""Weights that others published, read strictly: trained localisers, and pretrained encoders.

    bash scripts/get_weights.sh [vgg16] [vggish] [resnet18] [--folder DIR]     # fetched and verified

A release is known by its content, never by its name; every tensor is used or known to be of no use.
Pretrained encoders are read only if their sha256 begins as published.
"""

import argparse
import hashlib
import http.client
import logging
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.encoders import ResNet18Encoder
from models.peers import PEERS, ObjectPrior, PeerLocaliser
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig
from utils.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint_file
from utils.reporting import configure_logging, run_command

logger = logging.getLogger("get_weights")

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and of torch.compile


def convert_strictly(
    content: Any,  # noqa: ANN401 - whatever a file holds
    source: Path,
    build: Callable[[], nn.Module],
    *,
    title: str,
    prefixes: Mapping[str, str] | None = None,
    ignored: tuple[str, ...] = (),
    part: tuple[str, ...] = ("",),
) -> dict[str, Tensor]:
    """Rename the tensors of a published state dict to ours.

    Args:
        content: official name -> tensor, with or without `module.` before the names.
        source: of the content, for messages.
        build: makes our network, all of whose tensors must come out.
        title: what the content should be, for messages.
        prefixes: beginning of our names -> that of the official ones, where they differ.
        ignored: beginnings of official names that may be there, but never reach the map.
        part: beginnings of those of our names that the content holds.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape, or none.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, not a state dict.")
    tensors = {WRAPPERS.sub("", str(name)): tensor for name, tensor in content.items()}
    if len(tensors) != len(content):
        raise ValueError(f"{source} holds tensors twice, with and without `module.`.")
    with torch.device("meta"):  # names and shapes only
        network = build().state_dict()
    expected = {name: str(tuple(t.shape)) for name, t in network.items() if name.startswith(part)}
    ours = {_official_name(name, prefixes or {}): name for name in expected}
    # Batch counters, which only training needs, are missing in files from before PyTorch 0.4.1.
    tensors = {name: torch.tensor(0) for name in ours if name.endswith("num_batches_tracked")} | tensors
    problems = {
        "missing": ours.keys() - tensors.keys(),
        "unknown": {name for name in tensors.keys() - ours.keys() if not name.startswith(ignored)},
        "of another shape": {
            f"{official} {_shape(tensors[official])}, not {expected[name]}"
            for official, name in ours.items()
            if official in tensors and _shape(tensors[official]) != expected[name]
        },
    }
    words = [
        f"{len(names)} tensors {kind}: {', '.join(sorted(names)[:5])}{' …' if len(names) > 5 else ''}"
        for kind, names in problems.items()
        if names
    ]
    if words:
        raise ValueError(f"{source} does not hold the weights of {title}: {'; '.join(words)}")
    return {name: tensors[official] for official, name in ours.items()}


def _official_name(name: str, prefixes: Mapping[str, str]) -> str:
    for ours, official in prefixes.items():
        if name.startswith(ours):
            return official + name.removeprefix(ours)
    return name


def _shape(value: object) -> str:
    """Describe a tensor that holds its numbers by its shape, anything else by its kind."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}"
    dense = value.layout == torch.strided and value.device.type != "meta"
    return str(tuple(value.shape)) if dense else "is a sparse or an empty tensor"


# --------------------------------------------------------------- trained localisers in one file


@dataclass(frozen=True, kw_only=True)
class Release:
    """How a method's authors keep its weights in a file."""

    title: str
    build: Callable[[], nn.Module]
    """makes our network"""
    entry: str
    """of the file, which holds the weights"""
    marks: tuple[str, ...]
    """tensors that tell it from other releases with the same entry"""
    data_parallel: bool | None = None
    """whether all names begin with `module.`; None: with or without"""
    prefixes: Mapping[str, str] | None = None
    ignored: tuple[str, ...] = ()
    """both as convert_strictly takes them"""

    def __str__(self) -> str:
        modules = {None: "", True: ", all names with module.", False: ", no name with module."}
        return f"{self.title}: {self.entry} with {' and '.join(self.marks)}{modules[self.data_parallel]}"

    def holds(self, content: Mapping[str, Any]) -> bool:
        """Tell whether a file's content is of this release."""
        weights = content.get(self.entry)
        names = [str(name) for name in weights] if isinstance(weights, Mapping) else []
        prefixed = {name.startswith("module.") for name in names}
        if self.data_parallel is not None and prefixed != {self.data_parallel}:
            return False
        return {WRAPPERS.sub("", name) for name in names}.issuperset(self.marks)


# SSL-TIE took over LVS's networks, with stems for other inputs and layers that never reach the map.
TWO_STEMS: dict[str, Any] = {
    "marks": ("audnet.conv1_a.weight",),
    "prefixes": {"audnet.conv1.weight": "audnet.conv1_a.weight"},
    "ignored": (
        *("imgnet.conv1_a.", "imgnet.conv1_flow.", "imgnet.fc.", "audnet.conv1.", "audnet.conv1_flow."),
        *("audnet.fc.", "vision_fc1.", "conv3.", "norm3."),
    ),
}
CLASSIFIERS = ("imgnet.fc.", "audnet.fc.")
RELEASES = {
    "ssl_tie": Release(
        title="SSL-TIE", build=lambda: SSLTIE(SSLTIEConfig()), entry="state_dict", **TWO_STEMS
    ),
    "lvs": Release(
        title="LVS",
        build=lambda: PeerLocaliser(PEERS["lvs"]),
        entry="model_state_dict",
        data_parallel=True,
        **TWO_STEMS,
    ),
    "ssl_align": Release(
        title="SSL-Align",
        build=lambda: PeerLocaliser(PEERS["ssl_align"]),
        entry="model_state_dict",
        data_parallel=False,
        **TWO_STEMS,
    ),
    "ez_vsl_or_fnac": Release(
        title="EZ-VSL or FNAC",
        build=lambda: PeerLocaliser(PEERS["ez_vsl_or_fnac"]),
        entry="model",
        marks=("img_proj.weight",),
        prefixes={"img_proj.0.": "img_proj.", "aud_proj.0.": "aud_proj."},
        ignored=CLASSIFIERS,
    ),
    "slavc": Release(
        title="SLAVC",
        build=lambda: PeerLocaliser(PEERS["slavc"]),
        entry="model",
        marks=("img_proj1.weight", "img_proj2.weight"),
        prefixes={f"{p}_proj.{i}.": f"{p}_proj{i + 1}." for p in ("img", "aud") for i in range(2)},
        ignored=(*CLASSIFIERS, "momentum_"),  # a second, slowly moving copy of all networks
    ),
}


def convert_release(content: Mapping[str, Any], source: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the method of a released file's content, and the state dict that its model loads strictly.

    Raises:
        ValueError: it is of no known release (the message says what was looked for), or a tensor does
            not fit.
    """
    for method, row in RELEASES.items():
        if row.holds(content):
            return method, convert_strictly(
                content[row.entry],
                source,
                row.build,
                title=row.title,
                prefixes=row.prefixes,
                ignored=row.ignored,
            )
    holds = [f"{k} ({', '.join([*map(str, v)][:3])} ...)" if isinstance(v, Mapping) else str(k)
             for k, v in content.items()]  # fmt: skip
    raise ValueError(
        f"{source} is no checkpoint of this project (it has no entry 'format') and no release that is known. "
        f"Looked for: {'; '.join(map(str, RELEASES.values()))}. It holds: {', '.join(holds) or 'nothing'}."
    )


# ------------------------------------------------------------- results folder of SSPL's authors


def sspl_prefixes(num_cycles: int) -> dict[str, dict[str, str]]:
    """Return, for each file of the folder, the beginnings of our names -> those of the names in it."""
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
        "frame_best.pth": {"frame_encoder.features.": "feat_extractor."},
        "sound_best.pth": {
            "audio_encoder.features.": "features.",
            "audio_encoder.embeddings.": "embeddings.",
            "audio_projection.": "fc.",
        },
        "pcm_best.pth": {f"predictive_coding.{ours}": official for ours, official in pcm.items()},
        "ssl_head_best.pth": {"projection_head.": "projector.", "prediction_head.": "predictor."},
    }


SSPL_FILES = tuple(sspl_prefixes(0))


def convert_sspl_release(files: Mapping[str, Any], source: Path) -> tuple[SSPLConfig, dict[str, Tensor]]:
    """Return SSPL's configuration and state dict from the files of the authors' results folder.

    Args:
        files: name -> content. With pcm_best.pth the model has a PCM. Without frame_best.pth, which
            always holds ImageNet's weights, the tensors of `frame_encoder` do not come out.
        source: folder of the files, for messages.

    Raises:
        ValueError: a file is missing, or a tensor does not fit.
    """
    missing = [name for name in ("sound_best.pth", "ssl_head_best.pth") if name not in files]
    if missing:
        raise ValueError(f"{source} is no results folder of SSPL's authors: it lacks {missing}.")
    config = SSPLConfig(pcm="pcm_best.pth" in files)
    if config.pcm:
        norms = set(re.findall(r"BNPred_step\.(\d+)\.", " ".join(map(str, files["pcm_best.pth"]))))
        # Two batch norms a cycle. A wrong count surfaces as missing or unknown tensors.
        config = SSPLConfig(pcm_cycles=max(1, len(norms) // 2))
    converted: dict[str, Tensor] = {}
    for name, prefixes in sspl_prefixes(config.pcm_cycles).items():
        if name in files:
            converted |= convert_strictly(
                files[name], source / name, lambda: SSPL(config), title="SSPL",
                prefixes=prefixes, part=tuple(prefixes),
            )  # fmt: skip
    return config, converted


def read_any_checkpoint(path: Path) -> Checkpoint:
    """Read a file of main.py, a released file, or a results folder of SSPL's authors' program.

    Raises:
        FileNotFoundError: it is not there, or lacks a file.
        ValueError: it is broken or unknown.
    """
    config: dict[str, Any] = {}
    content: dict[str, Any] = {}
    if path.is_dir():
        files = {name: read_checkpoint_file(path / name) for name in SSPL_FILES if (path / name).is_file()}
        if not files:
            raise FileNotFoundError(
                f"No checkpoint at {path}: it is a folder. Name a file, or a results folder of SSPL's "
                f"authors, which holds {', '.join(SSPL_FILES)}."
            )
        sspl_config, weights = convert_sspl_release(files, path)
        if "frame_best.pth" not in files:
            vgg16 = load_pretrained("vgg16", find_pretrained("vgg16", None))
            weights |= {f"frame_encoder.{name}": tensor for name, tensor in vgg16.items()}
        method, config = "sspl", asdict(sspl_config)
    else:
        content = read_checkpoint_file(path)
        if "format" in content:
            return parse_checkpoint(content, path)
        method, weights = convert_release(content, path)
    return Checkpoint(
        method=method,
        method_config=config,
        audio_config={},
        frame_config={},
        state_dict=weights,
        epoch=int(content.get("epoch", 0)),
        selection={"kind": "released file"},
    )


# ------------------------------------------------------------------------ pretrained encoders


@dataclass(frozen=True)
class PretrainedFile:
    """Published weights of an encoder; its file name ends in the first eight digits of the sha256."""

    title: str
    url: str
    build: Callable[[], nn.Module]
    option: str
    """names a file that was fetched by hand"""
    ignored: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Its published name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def sha256_prefix(self) -> str:
        """As much of the sha256 as is published."""
        return self.file_name.removesuffix(".pth")[-8:]

    def verify(self, path: Path, remedy: str) -> None:
        """Refuse a file that is not the published one."""
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not actual.startswith(self.sha256_prefix):
            raise ValueError(
                f"{path} has sha256 {actual}, expected one that begins with {self.sha256_prefix}: it is not "
                f"{self.title} as published at {self.url}, or the download broke off. {remedy}"
            )


PRETRAINED = {
    "vgg16": PretrainedFile(
        "torchvision's VGG-16, IMAGENET1K_V1",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        lambda: SSPL(SSPLConfig(pcm=False)).frame_encoder,
        "--vgg16; --random-init starts from random encoders on purpose",
        ignored=("classifier.",),
    ),
    "vggish": PretrainedFile(
        "VGGish of torchvggish",
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        lambda: SSPL(SSPLConfig(pcm=False)).audio_encoder,
        "--vggish; --random-init starts from random encoders on purpose",
    ),
    "resnet18": PretrainedFile(
        "torchvision's ResNet-18, IMAGENET1K_V1",
        "https://download.pytorch.org/models/resnet18-f37072fd.pth",
        lambda: ResNet18Encoder(3, last_stride=2),
        "--object-prior-weights",
        ignored=("fc.",),
    ),
}
FOLDERS = (Path(__file__).parents[1] / "ckpts", Path(torch.hub.get_dir()) / "checkpoints")
"""Where files are looked for that no option names."""


def find_pretrained(kind: str, named: Path | None, folders: tuple[Path, ...] = FOLDERS) -> Path:
    """Return where an encoder's weights are: the file that the user named, else one in the folders.

    Raises:
        FileNotFoundError: there is none; the message says how to get it.
    """
    published = PRETRAINED[kind]
    for path in [named] if named is not None else [folder / published.file_name for folder in folders]:
        if path.is_file():
            return path
    missing = f"is not at {named}" if named is not None else f"is in none of: {', '.join(map(str, folders))}"
    raise FileNotFoundError(
        f"{published.file_name} ({published.title}) {missing}. Fetch it into ckpts/ with: bash "
        f"scripts/get_weights.sh {kind}; or save {published.url} (sha256 begins with "
        f"{published.sha256_prefix}) by hand and name it with {published.option}."
    )


def load_pretrained(kind: str, path: Path) -> dict[str, Tensor]:
    """Verify a file of published weights and return the state dict that the encoder loads strictly."""
    published = PRETRAINED[kind]
    published.verify(path, f"Fetch it anew: bash scripts/get_weights.sh {kind}")
    # Files in the format before PyTorch 1.6 cannot be mapped into memory.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    title = published.title.split(",")[0]
    return convert_strictly(content, path, published.build, title=title, ignored=published.ignored)


def load_frozen_encoders(encoders: Mapping[Any, nn.Module], **named: Path | None) -> dict[str, Path]:
    """Give encoders, by kind, their published weights; return the files that were read.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not the published one.
    """
    # All are looked for before the first is read, which takes seconds.
    files = {kind: find_pretrained(kind, named[kind]) for kind in encoders}
    for kind, path in files.items():
        encoders[kind].load_state_dict(load_pretrained(kind, path))
    return files


def load_object_prior(named: Path | None) -> ObjectPrior:
    """Return the object prior with its published weights, in eval mode; raise as the functions above."""
    prior = ObjectPrior()
    prior.encoder.load_state_dict(load_pretrained("resnet18", find_pretrained("resnet18", named)))
    return prior.eval()


def fetch_pretrained(kind: str, folder: Path) -> Path:
    """Download and verify an encoder's weights, unless they are in the folder; return the file.

    Raises:
        ValueError: what is there, or what came, is not the published file.
        ConnectionError: it could not be downloaded; nothing is left of it.
    """
    published = PRETRAINED[kind]
    target = folder / published.file_name
    if target.exists():
        published.verify(target, "Move it away and call again.")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            published.url, str(target), hash_prefix=published.sha256_prefix, progress=sys.stderr.isatty()
        )
    except RuntimeError as error:
        raise ValueError(
            f"{kind}: what came from {published.url} is not {published.title}: sha256 {error}. "
            "Nothing was kept. Try again."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{kind}: could not download {published.url} to {folder}: {error}. Check the network, the proxy "
            f"(https_proxy) and the free space, or save that file by hand as {target} (sha256 begins with "
            f"{published.sha256_prefix}): it is verified whenever it is read."
        ) from error
    return target


def main(arguments: list[str] | None = None) -> int:
    """Run get_weights.sh: fetch files one after the other, also after one has failed."""
    parser = argparse.ArgumentParser("get_weights.sh", description="Fetches and verifies encoders' weights.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PRETRAINED)}; none: all")
    parser.add_argument("--folder", type=Path, default=FOLDERS[0], help="where the files go")
    options = parser.parse_args(arguments)
    configure_logging()
    if unknown := [name for name in options.names if name not in PRETRAINED]:
        logger.error("No weights are known of %s; there are: %s.", unknown, ", ".join(PRETRAINED))
        return 2
    # PyTorch's downloader sets no limit of its own: a dead connection would hang for ever.
    socket.setdefaulttimeout(30)

    def fetch(kind: str) -> int:
        path = fetch_pretrained(kind, options.folder)
        sys.stdout.write(f"{kind}: {PRETRAINED[kind].title}, verified: {path}\n")
        return 0

    return max(run_command(partial(fetch, kind)) for kind in options.names or PRETRAINED)


if __name__ == "__main__":
    sys.exit(main())
