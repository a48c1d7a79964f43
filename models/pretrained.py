"""Published weights of encoders that are never trained here: found, fetched, verified and read.

    bash scripts/get_weights.sh            # all files, into ckpts/
    bash scripts/get_weights.sh vggish     # one of them

A file's name ends in the first eight hexadecimal digits of its sha256, as is usual for PyTorch's
hub. Nothing is read whose sum does not begin so.
"""

import hashlib
import http.client
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.object_prior import ObjectPrior, convert_resnet18
from models.sspl_weights import convert_vgg16, convert_vggish

FrozenKind = Literal["vgg16", "vggish"]
"""Encoders of SSPL."""
PretrainedKind = Literal[FrozenKind, "resnet18"]

_RANDOM = "--random-init starts from random encoders on purpose."


@dataclass(frozen=True, kw_only=True)
class PretrainedFile:
    """Published weights of one encoder."""

    title: str
    """what the file holds"""
    url: str
    """where its authors publish it"""
    sha256_prefix: str
    """first digits of its sum, lower case; more of it is not published"""
    convert: Callable[[Any, Path], dict[str, Tensor]]
    """from the file's content and path to the encoder's state dict"""
    remedy: str
    """what to do with a file that was fetched by hand, for messages"""

    @property
    def file_name(self) -> str:
        """Its published name."""
        return self.url.rsplit("/", 1)[-1]


PRETRAINED: dict[PretrainedKind, PretrainedFile] = {
    "vgg16": PretrainedFile(
        title="torchvision's VGG-16, IMAGENET1K_V1",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256_prefix="397923af",
        convert=convert_vgg16,
        remedy=f"name it with --vgg16. {_RANDOM}",
    ),
    "vggish": PretrainedFile(
        title="VGGish of torchvggish",
        url="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
        sha256_prefix="10086976",
        convert=convert_vggish,
        remedy=f"name it with --vggish. {_RANDOM}",
    ),
    "resnet18": PretrainedFile(
        title="torchvision's ResNet-18, IMAGENET1K_V1",
        url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
        sha256_prefix="f37072fd",
        convert=convert_resnet18,
        remedy="name it with --object-prior-weights.",
    ),
}
"""The frozen encoders' weights, and those of the object prior."""


PRETRAINED_FOLDERS = (Path(__file__).parents[1] / "ckpts", Path(torch.hub.get_dir()) / "checkpoints")
"""Where files are looked for that no option names."""


def find_pretrained(kind: PretrainedKind, given: Path | None, folders: Sequence[Path]) -> Path:
    """Where the weights of an encoder are.

    Args:
        kind: of encoder.
        given: the user's file; none: it is looked for by its published name.
        folders: looked through in this order.

    Returns:
        path of an existing file, not verified yet.

    Raises:
        FileNotFoundError: there is none; the message says how to get it.
    """
    published = PRETRAINED[kind]
    candidates = [folder / published.file_name for folder in folders] if given is None else [given]
    for path in candidates:
        if path.is_file():
            return path
    places = ", ".join(str(folder) for folder in folders)
    missing = f"is in none of: {places}" if given is None else f"is not at {given}"
    raise FileNotFoundError(
        f"{published.file_name} ({published.title}) {missing}. Fetch it into ckpts/ with: bash "
        f"scripts/get_weights.sh {kind}; or save {published.url} (sha256 begins with "
        f"{published.sha256_prefix}) by hand and {published.remedy}"
    )


def load_pretrained(kind: PretrainedKind, path: Path) -> dict[str, Tensor]:
    """Reads the weights of an encoder, after verifying that they are the published ones.

    Args:
        kind: of encoder.
        path: of the file.

    Returns:
        state dict that the encoder loads strictly, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its sha256 is not that of the published file.
    """
    published = PRETRAINED[kind]
    _verify(published, path, f"Fetch it anew: bash scripts/get_weights.sh {kind}")
    # Files in the format before PyTorch 1.6 cannot be mapped into memory.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return published.convert(content, path)


def load_frozen_encoders(
    encoders: Mapping[FrozenKind, nn.Module], **given: Path | None
) -> dict[FrozenKind, Path]:
    """Gives encoders their published weights.

    Args:
        encoders: to load, by kind.
        **given: the user's files, by kind; None: looked for by their published names.

    Returns:
        the files that were read.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file's sha256 is not the published one, or it cannot be read.
    """
    # All are looked for before the first is read, which takes seconds.
    found = {kind: find_pretrained(kind, given[kind], PRETRAINED_FOLDERS) for kind in encoders}
    for kind, path in found.items():
        encoders[kind].load_state_dict(load_pretrained(kind, path))
    return found


def load_object_prior(given: Path | None) -> ObjectPrior:
    """The object prior with its published weights, in evaluation mode, on the CPU.

    Args:
        given: the user's file; None: looked for by its published name.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: its sha256 is not the published one, or it cannot be read.
    """
    prior = ObjectPrior()
    path = find_pretrained("resnet18", given, PRETRAINED_FOLDERS)
    prior.encoder.load_state_dict(load_pretrained("resnet18", path))
    return prior.eval()


def fetch_pretrained(kind: PretrainedKind, folder: Path) -> Path:
    """Downloads the weights of an encoder, unless they are there already, and verifies them.

    Args:
        kind: of encoder.
        folder: where the file goes, under its published name; made if missing.

    Returns:
        path of the verified file; a download that fails leaves nothing behind.

    Raises:
        ValueError: what is there, or what came, is not the published file.
        ConnectionError: it could not be downloaded.
        OSError: the folder cannot be made.
    """
    published = PRETRAINED[kind]
    target = folder / published.file_name
    if target.exists():
        _verify(published, target, "Move it away and call again.")
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
            f"{kind}: could not download {published.url} to {folder}: {error}. Check the network, "
            f"the proxy (https_proxy) and the free space, or save that file by hand as {target} "
            f"(sha256 begins with {published.sha256_prefix}): it is verified whenever it is read."
        ) from error
    return target


def _verify(published: PretrainedFile, path: Path, remedy: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(published.sha256_prefix):
        raise ValueError(
            f"{path} has sha256 {actual}, expected one that begins with "
            f"{published.sha256_prefix}: it is not {published.title} as published at "
            f"{published.url}, or the download broke off. {remedy}"
        )
