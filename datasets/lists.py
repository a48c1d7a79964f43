"""Lists of clips: the published ones by name, a user's own, and which of them were scored or trained on.

lists.csv holds a line for each published list and each published cut of a benchmark: where it is, its
count, the sha256 of the file and of its ids, and by which protocols its authors published numbers on
it. The lists belong to their authors and are not part of this repository; each user fetches them, and
they are verified before they are used:

    bash scripts/get_splits.sh                          # all of them, into metadata/
    bash scripts/get_splits.sh ssl_tie_vgg_ss_4911      # one of them
    bash scripts/get_splits.sh --list                   # what there is
"""

import argparse
import csv
import hashlib
import http.client
import json
import os
import re
import shlex
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from utils.files import write_atomically

BASE_URL = "https://raw.githubusercontent.com"
FOLDER_VARIABLE = "VSSL_SPLITS"
MEDIA_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".mp4", ".mkv", ".webm", ".avi", ".wav", ".mp3", ".flac", ".ogg"}
)
HEADER_NAMES = frozenset(
    {"video", "video_id", "audio", "clip", "clip_id", "id", "file", "filename", "frame", "image"}
)
PAIR_COLUMNS = ["video", "audio", "label"]  # Of SLAVC's lists of frames with sounds that are not seen in them
JOIN = "+"
"""Between the names of a pair's frame and sound; the ids of an extended benchmark's positives hold none."""


@dataclass(frozen=True)
class ListRow:
    """A line of lists.csv: a published list, a published cut of a benchmark, or both."""

    name: str  # empty: only the ids' digest is known, no file can be fetched
    pairs: bool  # frames with the sounds of other clips, see split_pair, instead of clips
    clips: int
    benchmarks: tuple[str, ...]  # on which the clips are a cut with a name
    cut: str
    published_by: tuple[str, ...]  # protocols whose authors published numbers on these clips
    repository: str
    commit: str
    path: str
    sha256: str  # of the file
    ids_sha256: str  # see ids_sha256(); only of cuts
    note: str

    @property
    def file_name(self) -> str:
        """Name of the file in metadata/."""
        return self.name + PurePosixPath(self.path).suffix


def _read_rows() -> list[ListRow]:
    with Path(__file__).with_name("lists.csv").open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {"clips": int(row["clips"]), "pairs": row.pop("kind") == "pairs"}
        row |= {key: tuple(row[key].split()) for key in ("benchmarks", "published_by")}
    return [ListRow(**row) for row in rows]


ROWS = _read_rows()
LISTS = {row.name: row for row in ROWS if row.name}  # The lists that can be fetched, by name


@dataclass(frozen=True)
class ClipList:
    """The clips of one list, in its order, and the sha256 of the file they came from."""

    name: str
    clip_ids: tuple[str, ...]
    sha256: str


# --------------------------------------------------------------------------------- reading a list


def read_clip_list(path: str | Path, *, pairs: bool = False) -> ClipList:
    """Read a list in any of the forms that are in use.

    Clips may be one id per line, CSV with the id in the first column (with or without a header line),
    VGGSound's CSV of youtube_id,start,label,split, file names or paths with a media suffix, or the
    VGG-SS JSON. Ids in SSL-Align's form, <YouTube id>_<start>_<end> in milliseconds, become
    <YouTube id>_<start, six digits of seconds>.

    Args:
        path: `.json` is read as VGG-SS JSON, everything else as text in UTF-8.
        pairs: read SLAVC's CSV of video,audio,label instead; the ids become <video>+<audio>.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, is empty, names a clip twice, or pairs frames with the
            audio of other clips where `pairs` is False.
    """
    path = Path(path)
    content = _read_bytes(path)
    clip_ids = _parse(content, str(path), is_json=path.suffix.lower() == ".json", pairs=pairs)
    return ClipList(path.stem, clip_ids, hashlib.sha256(content).hexdigest())


def split_pair(clip_id: str) -> tuple[str, str]:
    """Return the clips whose frame and whose sound a pair's id names."""
    video, _, audio = clip_id.partition(JOIN)
    return video, audio


def without_negatives(clip_ids: Iterable[str]) -> list[str]:
    """Return the ids of an extended benchmark's positives, in their order."""
    return [clip_id for clip_id in clip_ids if JOIN not in clip_id]


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Expected a clip list: a text, CSV or JSON file.")
    if not path.exists():
        raise FileNotFoundError(
            f"No clip list at {path}. Expected a text, CSV or VGG-SS JSON file. The official lists "
            "are fetched with: bash scripts/get_splits.sh"
        )
    return path.read_bytes()


def _parse(content: bytes, source: str, *, is_json: bool, pairs: bool) -> tuple[str, ...]:
    """Take the ids out of a list's bytes, each once, in their order."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is not text in UTF-8 (byte {error.start}). Expected a clip list: one id per "
            "line, CSV with the id first, or VGG-SS JSON. Save it as UTF-8 text."
        ) from error
    if pairs:
        clip_ids = _parse_pairs(text, source)
    else:
        clip_ids = [_clip_id(field) for field in (_parse_json if is_json else _parse_text)(text, source)]
    if not clip_ids:
        raise ValueError(f"{source} names no clips. Expected at least one id; check the file.")
    if "" in clip_ids:
        raise ValueError(
            f"{source}: entry {clip_ids.index('') + 1} has no clip id. Expected an id in the first "
            "column of each line; give it one or remove it."
        )
    repeats = [clip_id for clip_id, count in Counter(clip_ids).items() if count > 1]
    if repeats:
        raise ValueError(
            f"{source}: {len(repeats)} of {len(set(clip_ids))} ids occur more than once, first: "
            f"{', '.join(repeats[:5])}. Expected each clip once; remove the repeats."
        )
    return tuple(clip_ids)


def _parse_text(text: str, source: str) -> list[str]:
    rows = [[field.strip().strip('"') for field in line.split(",")] for line in text.splitlines()]
    rows = [row for row in rows if any(row)]
    if rows and rows[0][0].lower() in HEADER_NAMES:
        header, *rows = rows
        names = [name.lower() for name in header]
        column = names.index("audio") if "audio" in names else 0
        # Pairs that do not match must not be scored as if each frame came with its own sound.
        foreign = [row for row in rows if len(row) > column and row[column] != row[0]]
        if foreign:
            raise ValueError(
                f"{source}: {len(foreign)} of {len(rows)} lines pair a frame with the audio of another "
                f"clip, first: {foreign[0][0]} with {foreign[0][column]}. Expected a list of clips "
                "that keep their own audio; remove these lines."
            )
    if rows and all(len(row) >= 4 and row[1].isdecimal() and row[-1] in ("train", "test") for row in rows):
        return [f"{video}_{int(start):06d}" for video, start, *_ in rows]  # VGGSound's own CSV
    return [row[0] for row in rows]


def _parse_json(text: str, source: str) -> list[str]:
    expected = 'Expected the VGG-SS form: [{"file": "<clip id>", ...}, ...].'
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON ({error}). {expected}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{source} holds a JSON {type(entries).__name__}. {expected}")
    for position, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise ValueError(f'{source}: entry {position} has no text under "file". {expected}')
    return [entry["file"] for entry in entries]


def _parse_pairs(text: str, source: str) -> list[str]:
    expected = f"Expected a CSV of {','.join(PAIR_COLUMNS)}, each label non-sounding."
    header, *rows = [line.split(",") for line in text.splitlines() if line] or [["nothing"]]
    if header != PAIR_COLUMNS:
        raise ValueError(f"{source} is no list of negatives: it begins with {','.join(header)}. {expected}")
    for row in rows:
        if len(row) != 3 or not row[0] or not row[1] or row[2] != "non-sounding":
            raise ValueError(f"{source}: a line holds {','.join(row)}. {expected}")
    return [f"{video}{JOIN}{audio}" for video, audio, _ in rows]


def _clip_id(field: str) -> str:
    name = PurePosixPath(field.strip().replace("\\", "/"))
    # Other dots stay: they may be part of the id.
    clip_id = name.stem if name.suffix.lower() in MEDIA_SUFFIXES else name.name
    milliseconds = re.fullmatch(r"(.{11})_(\d+)_(\d+)", clip_id)
    if milliseconds and int(milliseconds[3]) - int(milliseconds[2]) == 10_000:
        return f"{milliseconds[1]}_{int(milliseconds[2]) // 1000:06d}"
    return clip_id


# -------------------------------------------------------------------------------- lists by name


def default_folder() -> Path:
    """Return where official lists are kept: $VSSL_SPLITS, else `metadata/` in the repository."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path(__file__).resolve().parents[1] / "metadata"


def find_list(name_or_path: str | Path, folder: str | Path | None = None, *, pairs: bool = False) -> ClipList:
    """Turn what a user gave into a list: the path of a file, or the name of an official list.

    Args:
        name_or_path: a file in a form of read_clip_list, or a key of LISTS; a file wins.
        folder: where official lists were fetched to; None: default_folder().
        pairs: expect negatives, frames with the sounds of other clips, instead of clips.

    Returns:
        the list; an official one carries its name and has been verified again.

    Raises:
        FileNotFoundError: an official list that has not been fetched yet.
        ValueError: neither a file nor an official name, or a file that is not what it should be.
    """
    if Path(name_or_path).is_file():
        return read_clip_list(name_or_path, pairs=pairs)
    row = _official(
        str(name_or_path),
        "is neither an existing file nor an official list. Give the path of your own list, or",
    )
    if row.pairs != pairs:
        kinds = ("clips (--clip-list)", "negatives (--negatives)")
        raise ValueError(f"{row.name} is a list of {kinds[row.pairs]}; expected one of {kinds[pairs]}.")
    command = f"bash scripts/get_splits.sh {row.name}"
    if folder is not None:
        command += f" --folder {shlex.quote(str(Path(folder).resolve()))}"
    path = Path(folder or default_folder()) / row.file_name
    if not path.is_file():
        raise FileNotFoundError(
            f"The official list {row.name} ({row.clips} clips) is not at {path}. Fetch it with: {command}"
        )
    content = _read_bytes(path)
    clip_ids = _verify(row, content, str(path), f"Delete it and fetch it again with: {command}")
    return ClipList(row.name, clip_ids, row.sha256)


def fetch_list(name: str, folder: str | Path | None = None, *, base_url: str = BASE_URL) -> Path:
    """Download an official list, unless it is there already, and verify its sha256 and count.

    Args:
        name: a key of LISTS.
        folder: where the list goes; made if missing. None: default_folder().
        base_url: what stands in front of /<repository>/<commit>/<path>: http, https or file.

    Returns:
        the path of the verified list.

    Raises:
        ValueError: unknown name, unusable base address, or content that is not the published one;
            nothing is left behind then.
        ConnectionError: the list could not be downloaded.
        OSError: the folder cannot be written to.
    """
    row = _official(name, "is not an official list. Expected")
    target = Path(folder or default_folder()) / row.file_name
    if target.exists():
        _verify(row, _read_bytes(target), f"{target} is there but", "Move it away and fetch again.")
        return target
    if urllib.parse.urlsplit(base_url).scheme not in {"http", "https", "file"}:
        raise ValueError(
            f"--base-url {base_url!r} is not an http://, https:// or file:// address. Expected "
            f"the part in front of /{row.repository}/{row.commit}/, such as {BASE_URL}."
        )
    url = f"{base_url.rstrip('/')}/{row.repository}/{row.commit}/{row.path}"
    content = _download(row, url, target)
    remedy = "Nothing was kept. Try again, or name another mirror with --base-url."
    _verify(row, content, f"what came from {url}", remedy)
    try:
        write_atomically(target, content)
    except OSError as error:
        raise OSError(
            f"{name}: could not write {target}: {error.strerror}. Name a folder you can write to "
            f"with --folder or {FOLDER_VARIABLE}."
        ) from error
    return target


def _official(name: str, complaint: str) -> ListRow:
    if name not in LISTS:
        raise ValueError(f"{name!r} {complaint} one of: {', '.join(LISTS)}.")
    return LISTS[name]


def _verify(row: ListRow, content: bytes, source: str, remedy: str) -> tuple[str, ...]:
    """Return the clip ids of an official list after checking that it is the published one."""
    actual = hashlib.sha256(content).hexdigest()
    if actual != row.sha256:
        raise ValueError(
            f"{row.name}: {source} has sha256 {actual}, expected {row.sha256} "
            f"({row.clips} clips, {row.repository} at {row.commit}). {remedy}"
        )
    clip_ids = _parse(content, source, is_json=row.path.endswith(".json"), pairs=row.pairs)
    if len(clip_ids) != row.clips:
        raise ValueError(f"{row.name}: {source} has {len(clip_ids)} clips, expected {row.clips}. {remedy}")
    return clip_ids


def _download(row: ListRow, url: str, target: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{row.name}: could not download {url}: {error}. Expected {row.path} of the repository "
            f"{row.repository} at commit {row.commit}. Check the network and the proxy (https_proxy), name "
            f"a mirror with --base-url, or save the list by hand as {target}: it is verified whenever it "
            "is read."
        ) from error


# ------------------------------------------------------------- which clips were scored or trained on


def ids_sha256(clip_ids: Iterable[str]) -> str:
    """Return the sha256 of ids, whatever their order and the form of the list that named them."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()


def name_cut(
    benchmark: str,
    title: str,
    clip_ids: Collection[str],
    negatives: Collection[str] = (),
    num_missing: int = 0,
) -> str:
    """Say which published cut of a benchmark is scored, e.g. "VGG-SS, 4,911 clips: SSL-TIE's cut".

    Args:
        benchmark: its name.
        title: what its authors call it.
        clip_ids: of the listed clips, those that are missing among them; without negatives.
        negatives: ids of the negatives, likewise.
        num_missing: clips among all of them that are left out.
    """
    cuts = [row for row in ROWS if benchmark in row.benchmarks]
    if not cuts:
        return f"{benchmark}, {len(clip_ids):,} clips: no cut of this set is published"
    words = f"{title}, {len(clip_ids):,} clips: {_which([row for row in cuts if not row.pairs], clip_ids)}"
    if negatives:
        which = _which([row for row in cuts if row.pairs], negatives)
        words += f"; {len(negatives):,} negatives: {which}"
    return words + (f"; {num_missing:,} of them are missing" if num_missing else "")


def _which(cuts: Iterable[ListRow], clip_ids: Collection[str]) -> str:
    digest = ids_sha256(clip_ids)
    same_length = [row for row in cuts if row.clips == len(clip_ids)]
    for row in same_length:
        if row.ids_sha256 == digest:
            return row.cut
    others = "; as many, but others: " + " and ".join(row.cut for row in same_length)
    return "none of the published cuts" + (others if same_length else "")


def published_list(
    protocol: str, authors: str, benchmark: str, clip_ids: Collection[str], negative_ids: Collection[str] = ()
) -> dict[str, Any]:
    """Compare the scored clips with those of the numbers that a protocol's authors published.

    Args:
        protocol: name of the scoring rule.
        authors: of the rule, for the words.
        benchmark: that was scored.
        clip_ids: of the scored clips, on an extended benchmark those with an object.
        negative_ids: of the scored clips without an object.

    Returns:
        cut: name of the published clips, None where no numbers are known; name and sha256 of their
        list's file, where there is one; is_scored: exactly they were scored; words.
    """
    cuts = [row for row in ROWS if benchmark in row.benchmarks]
    # Some publish on parts of the classes too; the first row is the main one.
    rows = [row for row in cuts if protocol in row.published_by and not row.pairs]
    pairs = next((row for row in cuts if row.pairs), None)  # the negatives of an extended benchmark
    if not rows or (pairs is not None and protocol not in pairs.published_by):
        words = f"list: no numbers that {authors} published here by this rule are known"
        return {"cut": None, "name": None, "sha256": None, "is_scored": False, "words": words}
    scored, negatives = ids_sha256(clip_ids), ids_sha256(negative_ids)
    row = next((row for row in rows if row.ids_sha256 == scored), rows[0])
    is_scored = row.ids_sha256 == scored and negatives == (pairs.ids_sha256 if pairs else ids_sha256([]))
    words = f"list: that of the published numbers ({row.cut})"
    if not is_scored:
        words = f"list: not that of the published numbers ({row.cut}); not comparable with those of {authors}"
    names = {"name": (pairs or row).name or None, "sha256": (pairs or row).sha256 or None}
    return {"cut": row.cut, **names, "is_scored": is_scored, "words": words}


def find_leak(
    training_clips: Collection[str] | None, scored_clips: Collection[str], *, purpose: str
) -> dict[str, Any]:
    """Compare the training list with a list that is scored.

    Args:
        training_clips: ids; None when not known.
        scored_clips: ids.
        purpose: what the second list is for, e.g. "test".

    Returns:
        checked (False: the training clips are not known), num_clips in both lists, the first five of them,
        and a message.
    """
    if training_clips is None:
        message = (
            "The checkpoint does not say which clips it was trained on, so the overlap with the "
            f"{purpose} list could not be checked; name its list with --training-list."
        )
        return {"checked": False, "num_clips": None, "first": [], "message": message}
    shared = sorted(set(training_clips) & set(scored_clips))
    message = f"No {purpose} clip was trained on."
    if shared:
        message = (
            f"LEAK: {len(shared)} of {len(scored_clips)} {purpose} clips are in the training list, first: "
            f"{', '.join(shared[:5])}. The scores are not those of unseen clips."
        )
    return {"checked": True, "num_clips": len(shared), "first": shared[:5], "message": message}


# ---------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the lists named on the command line; return the exit status, 2 if one failed."""
    parser = argparse.ArgumentParser(
        "get_splits", description="Fetches official clip lists and verifies their count and sha256."
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="lists to fetch; default: all")
    folder_help = f"where the lists go (default: ${FOLDER_VARIABLE}, else metadata/ in the repository)"
    add("--folder", type=Path, default=default_folder(), help=folder_help)
    add("--base-url", default=BASE_URL, help="address of a mirror (default: %(default)s)")
    add("--list", action="store_true", help="show the official lists and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for name, row in LISTS.items():
            place = f"{row.repository}@{row.commit}"
            sys.stdout.write(f"{name:24}{row.clips:>7}  {row.sha256[:12]}  {place}  {row.note}\n")
        return 0
    names = list(dict.fromkeys(options.names)) or list(LISTS)
    failures = []
    for name in names:
        try:
            path = fetch_list(name, options.folder, base_url=options.base_url)
            sys.stdout.write(f"{name}: {LISTS[name].clips} clips, verified: {path}\n")
        except (OSError, ValueError) as error:
            failures.append(f"  {error}\n")
    if failures:
        sys.stderr.write(f"get_splits: {len(failures)} of {len(names)} lists failed.\n")
        sys.stderr.writelines(failures)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
