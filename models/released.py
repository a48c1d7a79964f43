"""Weights that others published, read strictly: trained localisers, and pretrained encoders.

    bash scripts/get_weights.sh [vgg16] [vggish] [resnet18] [--folder DIR]     # fetched and verified

A release is known by its content, never by its name; every tensor is used or known to be of no use.
Pretrained encoders are read only if their sha256 begins as published.
"""

import argparse
import hashlib
import http.client
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.encoders import ResNet18Encoder
from models.peers import PEERS, ObjectPrior, PeerLocaliser
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig
from utils.checkpoint import Checkpoint, parse_checkpoint, read_checkpoint_file
from utils.training import configure_logging, run_command

WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # of DataParallel and of torch.compile


def convert_strictly(
    content: Any,  # noqa: ANN401 - whatever a file holds
    source: Path,
    title: str,
    build: Callable[[], nn.Module],
    prefixes: Mapping[str, str] | None = None,
    ignored: tuple[str, ...] = (),
    part: tuple[str, ...] = ("",),
) -> dict[str, Tensor]:
    """Rename the tensors of a published state dict to those of the network that `build` makes.

    `prefixes` maps beginnings of our names to the official ones, where they differ. Official names that begin
    as in `ignored` may be there, but never reach the map. `part`: beginnings of those of our names that the
    content holds. `source` and `title` are for messages.

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
    prefixes, ours = prefixes or {}, {}  # ours: official name -> our name
    for name in (name for name in network if name.startswith(part)):
        begin = next((begin for begin in prefixes if name.startswith(begin)), "")
        ours[prefixes.get(begin, "") + name.removeprefix(begin)] = name
    # Batch counters, which only training needs, are missing in files from before PyTorch 0.4.1.
    tensors = {name: torch.tensor(0) for name in ours if name.endswith("num_batches_tracked")} | tensors

    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "of another shape": []}
    problems["unknown"] = [name for name in tensors if name not in ours and not name.startswith(ignored)]
    for official, name in ours.items():
        shape, expected = getattr(tensors.get(official), "shape", ()), network[name].shape
        if official not in tensors:
            problems["missing"].append(official)
        elif shape != expected:
            problems["of another shape"].append(f"{official} {tuple(shape)}, not {tuple(expected)}")
    words = [f"{len(names)} tensors {kind}: {', '.join(sorted(names)[:5])}{' …' * (len(names) > 5)}"
             for kind, names in problems.items() if names]  # fmt: skip
    if words:
        raise ValueError(f"{source} does not hold the weights of {title}: {'; '.join(words)}")
    return {name: tensors[official] for official, name in ours.items()}


# --------------------------------------------------------------- trained localisers in one file


class Release(NamedTuple):
    """How a method's authors keep its weights in a file; the last fields are as convert_strictly's."""

    title: str
    entry: str
    """of the file, which holds the weights"""
    data_parallel: bool | None
    """whether all names begin with `module.`; None: with or without"""
    marks: tuple[str, ...]
    """tensors that tell it from other releases with the same entry"""
    prefixes: Mapping[str, str]
    ignored: tuple[str, ...]


# SSL-TIE took over LVS's networks, with stems for other inputs and layers that never reach the map.
STEM = ("audnet.conv1_a.weight",)
STEMS = {"audnet.conv1.weight": "audnet.conv1_a.weight"}
CLASSIFIERS = ("imgnet.fc.", "audnet.fc.")
UNUSED = (*CLASSIFIERS, "imgnet.conv1_a.", "imgnet.conv1_flow.", "audnet.conv1.", "audnet.conv1_flow.",
          "vision_fc1.", "conv3.", "norm3.")  # fmt: skip
ONE_PAIR = {"img_proj.0.": "img_proj.", "aud_proj.0.": "aud_proj."}
TWO_PAIRS = {f"{kind}_proj.{i}.": f"{kind}_proj{i + 1}." for kind in ("img", "aud") for i in range(2)}
MOMENTUM = (*CLASSIFIERS, "momentum_")  # SLAVC: a second, slowly moving copy of all networks
RELEASES = {
    "ssl_tie": Release("SSL-TIE", "state_dict", None, STEM, STEMS, UNUSED),
    "lvs": Release("LVS", "model_state_dict", True, STEM, STEMS, UNUSED),
    "ssl_align": Release("SSL-Align", "model_state_dict", False, STEM, STEMS, UNUSED),
    "ez_vsl_or_fnac": Release("EZ-VSL or FNAC", "model", None, ("img_proj.weight",), ONE_PAIR, CLASSIFIERS),
    "slavc": Release("SLAVC", "model", None, ("img_proj1.weight", "img_proj2.weight"), TWO_PAIRS, MOMENTUM),
}


def build_released(method: str) -> nn.Module:
    """Build the network that a released file of a method of RELEASES fills."""
    return SSLTIE(SSLTIEConfig()) if method == "ssl_tie" else PeerLocaliser(PEERS[method])


def convert_release(content: Mapping[str, Any], source: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the method of a released file's content, and the state dict that its model loads strictly.

    Raises:
        ValueError: it is of no known release (the message says what was looked for), or a tensor does
            not fit.
    """
    looked_for = []
    for method, row in RELEASES.items():
        weights = content.get(row.entry)
        names = [*map(str, weights)] if isinstance(weights, Mapping) else []
        is_marked = {WRAPPERS.sub("", name) for name in names}.issuperset(row.marks)
        prefixed = {name.startswith("module.") for name in names}
        if is_marked and (row.data_parallel is None or prefixed == {row.data_parallel}):
            build = partial(build_released, method)
            return method, convert_strictly(weights, source, row.title, build, row.prefixes, row.ignored)
        modules = {None: "", True: ", all names with module.", False: ", no name with module."}
        marks = f"{' and '.join(row.marks)}{modules[row.data_parallel]}"
        looked_for.append(f"{row.title}: {row.entry} with {marks}")
    holds = [f"{k} ({', '.join([*map(str, v)][:3])} ...)" if isinstance(v, Mapping) else str(k)
             for k, v in content.items()]  # fmt: skip
    raise ValueError(
        f"{source} is no checkpoint of this project (it has no entry 'format') and no release that is known. "
        f"Looked for: {'; '.join(looked_for)}. It holds: {', '.join(holds) or 'nothing'}."
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
    sound = {"features.": "features.", "embeddings.": "embeddings."}
    return {
        "frame_best.pth": {"frame_encoder.features.": "feat_extractor."},
        "sound_best.pth": {f"audio_encoder.{name}": name for name in sound} | {"audio_projection.": "fc."},
        "pcm_best.pth": {f"predictive_coding.{ours}": official for ours, official in pcm.items()},
        "ssl_head_best.pth": {"projection_head.": "projector.", "prediction_head.": "predictor."},
    }


def convert_sspl_release(files: Mapping[str, Any], source: Path) -> tuple[SSPLConfig, dict[str, Tensor]]:
    """Return SSPL's configuration and state dict from the files, by name, of the authors' results folder.

    With pcm_best.pth the model has a PCM. Without frame_best.pth, which always holds ImageNet's weights, the
    tensors of `frame_encoder` do not come out. A missing file or a tensor that does not fit is a ValueError.
    """
    missing = [name for name in ("sound_best.pth", "ssl_head_best.pth") if name not in files]
    if missing:
        raise ValueError(f"{source} is no results folder of SSPL's authors: it lacks {missing}.")
    norms = set(re.findall(r"BNPred_step\.(\d+)\.", " ".join(map(str, files.get("pcm_best.pth", ())))))
    # Two batch norms a cycle. A wrong count surfaces as missing or unknown tensors.
    pcm = {"pcm": True, "pcm_cycles": max(1, len(norms) // 2)} if "pcm_best.pth" in files else {"pcm": False}
    config = SSPLConfig(**pcm)
    converted: dict[str, Tensor] = {}
    for name, prefixes in sspl_prefixes(config.pcm_cycles).items():
        if name in files:
            converted |= convert_strictly(
                files[name], source / name, "SSPL", lambda: SSPL(config), prefixes, part=tuple(prefixes)
            )
    return config, converted


def read_any_checkpoint(path: Path) -> Checkpoint:
    """Read a file of main.py, a released file, or a results folder of SSPL's authors' program.

    Raises:
        FileNotFoundError: it is not there, or lacks a file.
        ValueError: it is broken or unknown.
    """
    released = partial(Checkpoint, audio_config={}, frame_config={}, selection={"kind": "released file"})
    if path.is_dir():
        names = [*sspl_prefixes(0)]
        files = {name: read_checkpoint_file(path / name) for name in names if (path / name).is_file()}
        if not files:
            raise FileNotFoundError(
                f"No checkpoint at {path}: it is a folder. Name a file, or a results folder of SSPL's "
                f"authors, which holds {', '.join(names)}."
            )
        config, weights = convert_sspl_release(files, path)
        if "frame_best.pth" not in files:
            vgg16 = load_pretrained("vgg16", find_pretrained("vgg16", None))
            weights |= {f"frame_encoder.{name}": tensor for name, tensor in vgg16.items()}
        return released(method="sspl", method_config=asdict(config), state_dict=weights)
    content = read_checkpoint_file(path)
    if "format" in content:
        return parse_checkpoint(content, path)
    method, weights = convert_release(content, path)
    epoch = int(content.get("epoch", 0))
    return released(method=method, method_config={}, state_dict=weights, epoch=epoch)


# ------------------------------------------------------------------------ pretrained encoders


class PretrainedFile(NamedTuple):
    """Published weights of an encoder; the file name ends in the first eight digits of the sha256."""

    title: str
    url: str
    build: Callable[[], nn.Module]
    ignored: tuple[str, ...]
    option: str
    """names a file that was fetched by hand"""

    @property
    def file_name(self) -> str:
        """Its published name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def digits(self) -> str:
        """The first digits of the sha256; more are not published."""
        return self.file_name.removesuffix(".pth")[-8:]


TORCHVISION = "https://download.pytorch.org/models"
TORCHVGGISH = "https://github.com/harritaylor/torchvggish/releases/download/v0.1"
RANDOM = "; --random-init starts from random encoders on purpose"
PRETRAINED = {
    "vgg16": PretrainedFile(
        "torchvision's VGG-16, IMAGENET1K_V1", f"{TORCHVISION}/vgg16-397923af.pth",
        lambda: SSPL(SSPLConfig(pcm=False)).frame_encoder, ("classifier.",), f"--vgg16{RANDOM}",
    ),
    "vggish": PretrainedFile(
        "VGGish of torchvggish", f"{TORCHVGGISH}/vggish-10086976.pth",
        lambda: SSPL(SSPLConfig(pcm=False)).audio_encoder, (), f"--vggish{RANDOM}",
    ),
    "resnet18": PretrainedFile(
        "torchvision's ResNet-18, IMAGENET1K_V1", f"{TORCHVISION}/resnet18-f37072fd.pth",
        lambda: ResNet18Encoder(3, last_stride=2), ("fc.",), "--object-prior-weights",
    ),
}  # fmt: skip
FOLDERS = (Path(__file__).parents[1] / "ckpts", Path(torch.hub.get_dir()) / "checkpoints")
"""Where files are looked for that no option names."""


def find_pretrained(kind: str, named: Path | None, folders: tuple[Path, ...] = FOLDERS) -> Path:
    """Return where an encoder's weights are: the file that the user named, else one in the folders.

    Raises:
        FileNotFoundError: there is none; the message says how to get it.
    """
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


def verify(kind: str, path: Path, remedy: str) -> None:
    """Refuse a file that is not the published one, with a ValueError."""
    row = PRETRAINED[kind]
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(row.digits):
        raise ValueError(
            f"{path} has sha256 {actual}, expected one that begins with {row.digits}: it is not {row.title} "
            f"as published at {row.url}, or the download broke off. {remedy}"
        )


def load_pretrained(kind: str, path: Path) -> dict[str, Tensor]:
    """Verify a file of published weights and return the state dict that the encoder loads strictly."""
    verify(kind, path, f"Fetch it anew: bash scripts/get_weights.sh {kind}")
    # Files in the format before PyTorch 1.6 cannot be mapped into memory.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    row = PRETRAINED[kind]
    return convert_strictly(content, path, row.title.split(",")[0], row.build, ignored=row.ignored)


def load_frozen_encoders(encoders: Mapping[Any, nn.Module], **named: Path | None) -> dict[str, Path]:
    """Give encoders, by kind, their published weights; return the files that were read."""
    # All are looked for before the first is read, which takes seconds.
    files = {kind: find_pretrained(kind, named[kind]) for kind in encoders}
    for kind, path in files.items():
        encoders[kind].load_state_dict(load_pretrained(kind, path))
    return files


def load_object_prior(named: Path | None) -> ObjectPrior:
    """Return the object prior with its published weights, in eval mode."""
    prior = ObjectPrior()
    prior.encoder.load_state_dict(load_pretrained("resnet18", find_pretrained("resnet18", named)))
    return prior.eval()


def fetch_pretrained(kind: str, folder: Path) -> int:
    """Download and verify an encoder's weights, unless they are in the folder; return the exit status.

    Raises:
        ValueError: what is there, or what came, is not the published file.
        ConnectionError: it could not be downloaded; nothing is left of it.
    """
    row = PRETRAINED[kind]
    target = folder / row.file_name
    if target.exists():
        verify(kind, target, "Move it away and call again.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(row.url, str(target), row.digits, progress=sys.stderr.isatty())
        except RuntimeError as error:
            raise ValueError(
                f"{kind}: what came from {row.url} is not {row.title}: sha256 {error}. Nothing was kept."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"{kind}: could not download {row.url} to {folder}: {error}. Check the network, the proxy "
                f"(https_proxy) and the free space, or save that file by hand as {target}: it is verified "
                "whenever it is read."
            ) from error
    sys.stdout.write(f"{kind}: {row.title}, verified: {target}\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run get_weights.sh: fetch files one after the other, also after one has failed."""
    parser = argparse.ArgumentParser("get_weights.sh", description="Fetches and verifies encoders' weights.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PRETRAINED)}; none: all")
    parser.add_argument("--folder", type=Path, default=FOLDERS[0], help="where the files go")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in PRETRAINED]:
        parser.error(f"no weights are known of {unknown}; there are: {', '.join(PRETRAINED)}")
    configure_logging()
    # PyTorch's downloader sets no limit of its own: a dead connection would hang for ever.
    socket.setdefaulttimeout(30)
    return max(
        run_command(partial(fetch_pretrained, kind, options.folder)) for kind in options.names or PRETRAINED
    )


if __name__ == "__main__":
    sys.exit(main())
