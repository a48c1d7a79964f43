"""Official clip lists: fetched from their authors, verified, and found again by name.

The official lists belong to their authors and are not part of this repository; each user fetches
them from the authors' repositories, and they are verified before they are used:

    bash scripts/get_splits.sh                          # all of them, into metadata/
    bash scripts/get_splits.sh ssl_tie_vgg_ss_4911      # one of them
    bash scripts/get_splits.sh --list                   # what there is
"""

import argparse
import hashlib
import http.client
import os
import shlex
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from datasets.clip_lists import ClipList, parse_clip_ids, read_clip_list, read_list_file
from datasets.negatives import NegativeList, parse_negatives, read_negatives
from datasets.official_splits import BASE_URL, OFFICIAL_SPLITS, OfficialSplit
from datasets.unverified_lists import UNVERIFIED_LISTS, read_unverified_list

FOLDER_VARIABLE = "VSSL_SPLITS"

_TIMEOUT_SECONDS = 30
_BLOCK_BYTES = 1 << 16
_PROGRESS_FROM_BYTES = 1 << 20


def default_folder() -> Path:
    """Returns where official lists are kept: $VSSL_SPLITS, else `metadata/` in the repository."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / "metadata"


def fetch_split(name: str, folder: str | Path | None = None, *, base_url: str = BASE_URL) -> Path:
    """Downloads an official list, unless it is there already, and verifies sha256 and count.

    Args:
        name: A key of `OFFICIAL_SPLITS`.
        folder: Where the list goes; made if missing. Default: `default_folder()`.
        base_url: What stands in front of `/<repository>/<commit>/<path>`: http, https or file.

    Returns:
        The path of the verified list.

    Raises:
        ValueError: Unknown name, unusable base address, or content that is not the published one;
            nothing is left behind then.
        ConnectionError: The list could not be downloaded.
        OSError: The folder cannot be written to.
    """
    split = _official_split(name, "is not an official list. Expected")
    folder = default_folder() if folder is None else Path(folder)
    target = folder / split.file_name
    if target.exists():
        _verify(name, read_list_file(target), f"{target} is there but", "Move it away and fetch again.")
        return target
    if urllib.parse.urlsplit(base_url).scheme not in {"http", "https", "file"}:
        raise ValueError(
            f"--base-url {base_url!r} is not an http://, https:// or file:// address. Expected "
            f"the part in front of /{split.repository}/{split.commit}/, such as {BASE_URL}."
        )
    content = _download(name, split.url(base_url), target)
    _verify(
        name,
        content,
        f"what came from {split.url(base_url)}",
        "Nothing was kept. Try again, or name another mirror with --base-url.",
    )
    _write_whole(name, target, content)
    return target


def resolve_clip_list(name_or_path: str | Path, folder: str | Path | None = None) -> ClipList:
    """Turns what a user gave into a list of clips: a path of an existing file, or an official name.

    Args:
        name_or_path: A file, in any format of `read_clip_list`, or a key of `OFFICIAL_SPLITS`. A
            file of that name wins over an official list.
        folder: Where official lists were fetched to. Default: `default_folder()`.

    Returns:
        The list; an official one carries its official name and has been verified again.

    Raises:
        FileNotFoundError: An official list that has not been fetched yet.
        ValueError: Neither a file nor an official name, or a file that is not what it should be.
    """
    if Path(name_or_path).is_file():
        return read_clip_list(name_or_path)
    name = str(name_or_path)
    if name in UNVERIFIED_LISTS:
        return read_unverified_list(name, default_folder() if folder is None else Path(folder))
    _, clip_ids, sha256 = _read_official(name, folder, pairs=False)
    return ClipList(name, clip_ids, sha256)


def resolve_negatives(name_or_path: str | Path, folder: str | Path | None = None) -> NegativeList:
    """Turns what a user gave into a list of negatives, as `resolve_clip_list` does for clips.

    Args:
        name_or_path: A file, in the form of `read_negatives`, or a key of `OFFICIAL_SPLITS`.
        folder: Where official lists were fetched to. Default: `default_folder()`.

    Raises:
        FileNotFoundError: An official list that has not been fetched yet.
        ValueError: Neither a file nor an official name, or a file that is not what it should be.
    """
    if Path(name_or_path).is_file():
        return read_negatives(Path(name_or_path))
    name = str(name_or_path)
    content, _, sha256 = _read_official(name, folder, pairs=True)
    return NegativeList(name, parse_negatives(content, name), sha256)


def _read_official(
    name: str, folder: str | Path | None, *, pairs: bool
) -> tuple[bytes, tuple[str, ...], str]:
    """Content, clip ids and sha256 of a fetched list, verified again."""
    split = _official_split(
        name, "is neither an existing file nor an official list. Give the path of your own list, or"
    )
    if split.pairs != pairs:
        kinds = ("clips (--clip-list)", "negatives (--negatives)")
        raise ValueError(f"{name} is a list of {kinds[split.pairs]}; expected one of {kinds[pairs]}.")
    command = f"bash scripts/get_splits.sh {name}"
    if folder is not None:
        command += f" --folder {shlex.quote(str(Path(folder).resolve()))}"
    path = (default_folder() if folder is None else Path(folder)) / split.file_name
    if not path.is_file():
        raise FileNotFoundError(
            f"The official list {name} ({split.num_clips} clips) is not at {path}. Fetch it with: {command}"
        )
    content = read_list_file(path)
    clip_ids = _verify(name, content, str(path), f"Delete it and fetch it again with: {command}")
    return content, clip_ids, split.sha256


def _official_split(name: str, complaint: str) -> OfficialSplit:
    if name in UNVERIFIED_LISTS:
        target = default_folder() / f"{name}.txt"
        raise ValueError(UNVERIFIED_LISTS[name].how_to_get(name, target))
    if name not in OFFICIAL_SPLITS:
        raise ValueError(f"{name!r} {complaint} one of: {', '.join(OFFICIAL_SPLITS)}.")
    return OFFICIAL_SPLITS[name]


def _write_whole(name: str, target: Path, content: bytes) -> None:
    """Writes under another name first: an interrupted run leaves no half of a list."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{name}: could not write {target}: {error.strerror}. Name a folder you can write to "
            f"with --folder or {FOLDER_VARIABLE}."
        ) from error


def _verify(name: str, content: bytes, source: str, remedy: str) -> tuple[str, ...]:
    """Returns the clip ids of an official list after checking that it is the published one."""
    split = OFFICIAL_SPLITS[name]
    actual = hashlib.sha256(content).hexdigest()
    if actual != split.sha256:
        raise ValueError(
            f"{name}: {source} has sha256 {actual}, expected {split.sha256} "
            f"({split.num_clips} clips, {split.repository} at {split.commit}). {remedy}"
        )
    if split.pairs:
        clip_ids = tuple(negative.clip_id for negative in parse_negatives(content, source))
    else:
        clip_ids = parse_clip_ids(content, is_json=split.file_name.endswith(".json"), source=source)
    if len(clip_ids) != split.num_clips:
        raise ValueError(f"{name}: {source} has {len(clip_ids)} clips, expected {split.num_clips}. {remedy}")
    return clip_ids


def _download(name: str, url: str, target: Path) -> bytes:
    by_hand = f"or save the list by hand as {target}: it is verified whenever it is read."
    split = OFFICIAL_SPLITS[name]
    try:
        return _read_url(name, url)
    except urllib.error.HTTPError as error:
        raise ConnectionError(
            f"{name}: HTTP {error.code} ({error.reason}) for {url}. Expected {split.path} of the "
            f"repository {split.repository} at commit {split.commit}. Name a mirror with "
            f"--base-url, {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ConnectionError(
            f"{name}: could not download {url}: {reason}. Check the network and the proxy "
            f"(https_proxy), name a mirror with --base-url, {by_hand}"
        ) from error


def _read_url(name: str, url: str) -> bytes:
    content = bytearray()
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        size = int(response.headers.get("Content-Length") or 0)
        hidden = True if size < _PROGRESS_FROM_BYTES else None
        with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=hidden) as progress:
            while block := response.read(_BLOCK_BYTES):
                content += block
                progress.update(len(block))
    if len(content) < size:
        raise ConnectionError(f"the connection ended after {len(content)} of {size} bytes")
    return bytes(content)


def _parse_command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="get_splits",
        description="Fetches official clip lists from their authors' repositories and verifies "
        "count and sha256.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="lists to fetch; default: all")
    parser.add_argument(
        "--folder",
        type=Path,
        default=default_folder(),
        help=f"where the lists go (default: ${FOLDER_VARIABLE}, else metadata/ in the repository)",
    )
    parser.add_argument("--base-url", default=BASE_URL, help="address of a mirror (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="show the official lists and stop")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches the lists named on the command line; returns the exit status, 2 if one failed."""
    options = _parse_command_line(arguments)
    if options.list:
        for name, split in OFFICIAL_SPLITS.items():
            place = f"{split.repository}@{split.commit}"
            sys.stdout.write(f"{name:24}{split.num_clips:>7}  {split.sha256[:12]}  {place}  {split.note}\n")
        for name, known in UNVERIFIED_LISTS.items():
            count = known.num_clips or "70k"
            sys.stdout.write(f"{name:24}{count:>7}  by hand       {known.note}\n")
        return 0
    names = list(dict.fromkeys(options.names)) or list(OFFICIAL_SPLITS)
    failures = []
    for name in names:
        try:
            path = fetch_split(name, options.folder, base_url=options.base_url)
        except (OSError, ValueError) as error:
            failures.append(str(error))
        else:
            sys.stdout.write(f"{name}: {OFFICIAL_SPLITS[name].num_clips} clips, verified: {path}\n")
    if failures:
        sys.stderr.write(f"get_splits: {len(failures)} of {len(names)} lists failed.\n")
        sys.stderr.writelines(f"  {failure}\n" for failure in failures)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
