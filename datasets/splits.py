"""Named clip lists: how lists are read, where the official ones come from, their count and sha256.

The official lists belong to their authors and are not part of this repository; each user fetches
them from the authors' repositories, and they are verified before they are used:

    bash scripts/get_splits.sh                          # all of them, into metadata/
    bash scripts/get_splits.sh ssl_tie_vgg_ss_4911      # one of them
    bash scripts/get_splits.sh --list                   # what there is
"""

import argparse
import hashlib
import http.client
import json
import os
import shlex
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

BASE_URL = "https://raw.githubusercontent.com"
FOLDER_VARIABLE = "VSSL_SPLITS"
MEDIA_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".mp4", ".mkv", ".webm", ".avi", ".wav", ".mp3", ".flac", ".ogg"}
)

_HEADER_NAMES = frozenset(
    {"video", "video_id", "audio", "clip", "clip_id", "id", "file", "filename", "frame", "image"}
)
_TIMEOUT_SECONDS = 30
_BLOCK_BYTES = 1 << 16
_PROGRESS_FROM_BYTES = 1 << 20


@dataclass(frozen=True)
class ClipList:
    """The clips of one list, in its order, and the fingerprint of the file they came from."""

    name: str
    clip_ids: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class OfficialSplit:
    """A published list: its place at a fixed commit, what it must contain, its local file name."""

    repository: str
    commit: str
    path: str
    num_clips: int
    sha256: str
    file_name: str
    note: str

    def url(self, base_url: str = BASE_URL) -> str:
        """Returns the address of the list on GitHub or, with another base, on a mirror."""
        return f"{base_url.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


_SSL_TIE = ("jinxiang-liu/SSL-TIE", "c49e6a9")
_LVS = ("hche11/Localizing-Visual-Sounds-the-Hard-Way", "8fe8cbb")
_SSPL = ("zjsong/SSPL", "d1af4c7")
_EZ_VSL = ("stoneMo/EZ-VSL", "95ff5bf")

OFFICIAL_SPLITS = {
    "ssl_tie_vgg_ss_4911": OfficialSplit(
        *_SSL_TIE,
        "metadata/test_vggss_4911.txt",
        4911,
        "6d60cdd17757a7e10537d4bff0e6a53833d88beccffa0e58755c5d10fc50aead",
        "ssl_tie_vgg_ss_4911.txt",
        "SSL-TIE's VGG-SS test clips",
    ),
    "ssl_tie_flickr_249": OfficialSplit(
        *_SSL_TIE,
        "metadata/test_flickr_250.txt",
        249,
        "d6e743caab0775b1136c388e0de3012d84ad3d85303e8ff95a2af71eb6b238d1",
        "ssl_tie_flickr_249.txt",
        "Flickr-SoundNet test clips; 249 despite the published file name",
    ),
    "ssl_tie_flickr_249_csv": OfficialSplit(
        *_SSL_TIE,
        "metadata/test_flick.csv",
        249,
        "faf5465bdb991cfb7506ccadef64dfea9e9bceb47e895d0e4dbdc2a0ca622871",
        "ssl_tie_flickr_249_csv.csv",
        "the same 249 Flickr-SoundNet test clips as CSV",
    ),
    "ssl_tie_vggsound_10k": OfficialSplit(
        *_SSL_TIE,
        "metadata/train_vggss_train_10k.txt",
        10000,
        "47b12e74a448b10f1d51fa7b4908b93c45f3be18099033e8e3ef735fa8caedb6",
        "ssl_tie_vggsound_10k.txt",
        "VGGSound training clips, none of them in VGG-SS",
    ),
    "ssl_tie_vggsound_144k": OfficialSplit(
        *_SSL_TIE,
        "metadata/train_vggss_train_144k.txt",
        144000,
        "703eca24ff71c1fcfbdcde06d49a246151838f4a03620104fa8dd3b00e977e46",
        "ssl_tie_vggsound_144k.txt",
        "VGGSound training clips, none of them in VGG-SS",
    ),
    "ssl_tie_flickr_10k": OfficialSplit(
        *_SSL_TIE,
        "metadata/train_flickr_10k.txt",
        10000,
        "93f0e6c510a8eb3d090fbfdd91633071227a393168379e2b3aba9ae248774703",
        "ssl_tie_flickr_10k.txt",
        "Flickr-SoundNet training clips; 2 of the 249 test clips are among them",
    ),
    "lvs_vgg_ss_5158": OfficialSplit(
        *_LVS,
        "metadata/vggss_test.csv",
        5158,
        "971081929d45caf21a148a6ca968822d96e8316331d0cc0bafb1783acb4d2c35",
        "lvs_vgg_ss_5158.csv",
        "all VGG-SS test clips",
    ),
    "lvs_vgg_ss_boxes": OfficialSplit(
        *_LVS,
        "metadata/vggss.json",
        5158,
        "ae300b4a259267e6fe839970d495862edd70bfe3da63d925bcdb34054ed3b15e",
        "lvs_vgg_ss_boxes.json",
        "the VGG-SS annotation: the same 5158 clips with class and boxes",
    ),
    "sspl_vgg_ss_4692": OfficialSplit(
        *_SSPL,
        "metadata/vggss_test_4692.csv",
        4692,
        "f075b27306ca213da3c56fe996cdf7a1b39ef7d6e0077c95be580fc5a60af98d",
        "sspl_vgg_ss_4692.csv",
        "SSPL's VGG-SS test clips",
    ),
    "sspl_flickr_249": OfficialSplit(
        *_SSPL,
        "metadata/flickr_test249_in5k.csv",
        249,
        "faf5465bdb991cfb7506ccadef64dfea9e9bceb47e895d0e4dbdc2a0ca622871",
        "sspl_flickr_249.csv",
        "SSPL's Flickr-SoundNet test clips, the bytes of ssl_tie_flickr_249_csv",
    ),
    "ez_vsl_vggsound_10k": OfficialSplit(
        *_EZ_VSL,
        "metadata/vggss_10k.txt",
        10000,
        "9a19023b17aedc79001bbcb69ccd5c96f6af2f7b8ef1b12fa92a76050a0ae43e",
        "ez_vsl_vggsound_10k.txt",
        "VGGSound training clips; 238 VGG-SS test clips are among them",
    ),
    "ez_vsl_vgg_ss_heard": OfficialSplit(
        *_EZ_VSL,
        "metadata/vggss_heard_test.csv",
        2564,
        "70a01c6828e7b84531823616ebb2e32e75bbaf5e44c715fa366b61111ab33c4e",
        "ez_vsl_vgg_ss_heard.csv",
        "VGG-SS test clips of EZ-VSL's heard classes",
    ),
    "ez_vsl_vgg_ss_unheard": OfficialSplit(
        *_EZ_VSL,
        "metadata/vggss_unheard_test.csv",
        2575,
        "11883813db359df63e1a28f69bb53e1ceef7f5b8d68e0149de5792540acb9e17",
        "ez_vsl_vgg_ss_unheard.csv",
        "VGG-SS test clips of EZ-VSL's unheard classes",
    ),
}


def default_folder() -> Path:
    """Returns where official lists are kept: $VSSL_SPLITS, else `metadata/` in the repository."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / "metadata"


def read_clip_list(path: str | Path) -> ClipList:
    """Reads a list of clip ids in any of the formats that are in use.

    Accepted are one id per line, CSV with the id in the first column (with or without a header
    line), ids that are file names or paths with a media suffix, and the VGG-SS JSON.

    Args:
        path: The list; `.json` is read as VGG-SS JSON, everything else as text in UTF-8.

    Returns:
        The ids in the order of the file; the list is named after the file without its suffix.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a list of clips, is empty, names a clip twice, or pairs frames
            with the audio of other clips.
    """
    path = Path(path)
    content = _read_file(path)
    clip_ids = _parse(content, is_json=path.suffix.lower() == ".json", source=str(path))
    return ClipList(path.stem, clip_ids, _sha256(content))


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
        _verify(name, _read_file(target), f"{target} is there but", "Move it away and fetch again.")
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
    split = _official_split(
        name, "is neither an existing file nor an official list. Give the path of your own list, or"
    )
    command = f"bash scripts/get_splits.sh {name}"
    if folder is not None:
        command += f" --folder {shlex.quote(str(Path(folder).resolve()))}"
    path = (default_folder() if folder is None else Path(folder)) / split.file_name
    if not path.is_file():
        raise FileNotFoundError(
            f"The official list {name} ({split.num_clips} clips) is not at {path}. Fetch it with: "
            f"{command}"
        )
    content = _read_file(path)
    clip_ids = _verify(name, content, str(path), f"Delete it and fetch it again with: {command}")
    return ClipList(name, clip_ids, split.sha256)


def _official_split(name: str, complaint: str) -> OfficialSplit:
    if name not in OFFICIAL_SPLITS:
        raise ValueError(f"{name!r} {complaint} one of: {', '.join(OFFICIAL_SPLITS)}.")
    return OFFICIAL_SPLITS[name]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(
            f"No clip list at {path}. Expected a text, CSV or VGG-SS JSON file. The official lists "
            "are fetched with: bash scripts/get_splits.sh"
        )
    if not path.is_file():
        raise ValueError(f"{path} is a folder. Expected a clip list: a text, CSV or JSON file.")
    return path.read_bytes()


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
    actual = _sha256(content)
    if actual != split.sha256:
        raise ValueError(
            f"{name}: {source} has sha256 {actual}, expected {split.sha256} "
            f"({split.num_clips} clips, {split.repository} at {split.commit}). {remedy}"
        )
    clip_ids = _parse(content, is_json=split.file_name.endswith(".json"), source=source)
    if len(clip_ids) != split.num_clips:
        raise ValueError(
            f"{name}: {source} has {len(clip_ids)} clips, expected {split.num_clips}. {remedy}"
        )
    return clip_ids


def _parse(content: bytes, *, is_json: bool, source: str) -> tuple[str, ...]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is not text in UTF-8 (byte {error.start}). Expected a clip list: one id per "
            "line, CSV with the id first, or VGG-SS JSON. Save it as UTF-8 text."
        ) from error
    fields = _json_fields(text, source) if is_json else _text_fields(text, source)
    clip_ids = tuple(_clip_id(field) for field in fields)
    if not clip_ids:
        raise ValueError(f"{source} names no clips. Expected at least one id; check the file.")
    if "" in clip_ids:
        raise ValueError(
            f"{source}: entry {clip_ids.index('') + 1} has no clip id. Expected an id in the first "
            "column of each line; give it one or remove it."
        )
    duplicates = [clip_id for clip_id, count in Counter(clip_ids).items() if count > 1]
    if duplicates:
        raise ValueError(
            f"{source}: {len(duplicates)} of {len(set(clip_ids))} ids occur more than once, first: "
            f"{', '.join(duplicates[:5])}. Expected each clip once; remove the repeats."
        )
    return clip_ids


def _text_fields(text: str, source: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [[field.strip().strip('"') for field in line.split(",")] for line in lines]
    if rows and rows[0][0].lower() in _HEADER_NAMES:
        _refuse_foreign_audio([name.lower() for name in rows[0]], rows[1:], source)
        rows = rows[1:]
    return [row[0] for row in rows]


def _refuse_foreign_audio(header: list[str], rows: list[list[str]], source: str) -> None:
    """Lists of mismatched pairs must not be scored as if each frame came with its own sound."""
    if "audio" not in header:
        return
    column = header.index("audio")
    foreign = [row for row in rows if len(row) > column and row[column] != row[0]]
    if foreign:
        raise ValueError(
            f"{source}: {len(foreign)} of {len(rows)} lines pair a frame with the audio of another "
            f"clip, first: {foreign[0][0]} with {foreign[0][column]}. Expected a list of clips "
            "that keep their own audio; remove these lines."
        )


def _json_fields(text: str, source: str) -> list[str]:
    expected = 'Expected the VGG-SS form: [{"file": "<clip id>", ...}, ...].'
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not valid JSON ({error}). {expected}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{source} holds a JSON {type(entries).__name__}. {expected}")
    for position, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise ValueError(f'{source}: entry {position} has no text under "file". {expected}')
    return [entry["file"] for entry in entries]


def _clip_id(field: str) -> str:
    name = PurePosixPath(field.strip().replace("\\", "/"))
    # Other dots stay: they may be part of the id.
    return name.stem if name.suffix.lower() in MEDIA_SUFFIXES else name.name


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
    parser.add_argument(
        "--base-url", default=BASE_URL, help="address of a mirror (default: %(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="show the official lists and stop")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches the lists named on the command line; returns the exit status, 2 if one failed."""
    options = _parse_command_line(arguments)
    if options.list:
        for name, split in OFFICIAL_SPLITS.items():
            place = f"{split.repository}@{split.commit}"
            sys.stdout.write(
                f"{name:24}{split.num_clips:>7}  {split.sha256[:12]}  {place}  {split.note}\n"
            )
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
