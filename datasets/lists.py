"""Lists of clips: the published ones by name, a user's own, and which of them were scored or trained on.

lists.csv holds a line for each published list and each published cut of a benchmark: where it is, its
count, the sha256 of the file and of its ids, and by which protocols its authors published numbers on
it. The lists belong to their authors and are not part of this repository; each user fetches them with
scripts/get_splits.sh, and they are verified before they are used.
"""

import csv
import hashlib
import http.client
import json
import os
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from utils.files import write_atomically
from utils.options import Parser

BASE_URL = "https://raw.githubusercontent.com"
FOLDER_VARIABLE = "VSSL_SPLITS"
MEDIA_SUFFIXES = frozenset(
    ".jpg .jpeg .png .webp .bmp .mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .flv .wmv .ogv .3gp "
    ".wav .mp3 .flac .ogg .opus .m4a .aac .wma .xml".split()
)
HEADER_NAMES = (
    "video videoid youtubeid ytid audio clip clipid id uid vid file filename name frame image".split()
)
PAIR_COLUMNS = ["video", "audio", "label"]  # Of SLAVC's lists of frames with sounds that are not seen in them
JOIN = "+"
"""Between the names of a pair's frame and sound; the ids of an extended benchmark's positives hold none."""
EXPECTED = (
    "Expected text in UTF-8: an id a line, a CSV of id or id,class (with a comma in it: between double "
    "quotes), VGGSound's CSV, the VGG-SS JSON, or the stamps.json of a stamps set."
)


@dataclass(frozen=True)
class ListRow:
    """A line of lists.csv: a published list, a published cut of a benchmark, or both."""

    name: str  # empty: only the ids' digest is known, no file can be fetched
    pairs: bool  # frames with the sounds of other clips, see JOIN, instead of clips
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


def read_clip_list(path: Path, *, pairs: bool = False) -> ClipList:
    """Read the clips of a list in any form of EXPECTED, or SLAVC's pairs, whose ids become <video>+<audio>.

    Raises:
        ValueError: the file has another form, is empty, names a clip twice, or pairs frames with the
            audio of other clips where `pairs` is False.
    """
    content = path.read_bytes()
    header, rows = _parse(content, path)
    if pairs:
        wrong = next((row for row in rows if len(row) != 3 or not all(row) or row[2] != "non-sounding"), None)
        if header != PAIR_COLUMNS or wrong:
            raise ValueError(
                f"{path} is no list of negatives: a line holds {','.join(wrong or header) or 'an id alone'}. "
                f"Expected a CSV of {','.join(PAIR_COLUMNS)}, each label non-sounding."
            )
        clip_ids = [JOIN.join(row[:2]) for row in rows]
    else:
        # Pairs that do not match must not be scored as if each frame came with its own sound.
        column = header.index("audio") if "audio" in header else 0
        if foreign := [row for row in rows if len(row) > column and row[column] != row[0]]:
            raise ValueError(
                f"{path}: {len(foreign)} of {len(rows)} lines pair a frame with the audio of another clip, "
                f"first: {foreign[0][0]} with {foreign[0][column]}. Expected clips that keep their own audio."
            )
        clip_ids = [row[0] for row in rows]
    _check_ids(clip_ids, path)
    return ClipList(path.stem, tuple(clip_ids), hashlib.sha256(content).hexdigest())


def read_classes(path: Path, clip_ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """Read the classes of these clips, clip id -> class, from a list that has them; also the file's sha256.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no form of EXPECTED, names a clip twice, or lacks the class of one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No labels at {path}. {EXPECTED}")
    content = path.read_bytes()
    _, rows = _parse(content, path)
    if wrong := next((row for row in rows if len(row) != 2 or not row[1]), None):
        raise ValueError(f"{path}: expected an id and a class, got {', '.join(wrong)}. {EXPECTED}")
    _check_ids(ids := [row[0] for row in rows], path)
    classes = {clip_id: label for clip_id, (_, label) in zip(ids, rows, strict=True)}
    if missing := [clip_id for clip_id in clip_ids if clip_id not in classes]:
        raise ValueError(
            f"{path}: {len(missing)} of {len(clip_ids)} clips have no class, first: {', '.join(missing[:5])}."
            f" It holds {len(classes)} clips, first: {next(iter(classes))}. Name the labels of these clips "
            "(--labels), or score only clips that have one (--clip-list)."
        )
    return {clip_id: classes[clip_id] for clip_id in clip_ids}, hashlib.sha256(content).hexdigest()


def _parse(content: bytes, path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, none without a header, and the fields of each line, the id first."""
    header: list[str] = []
    try:
        text = content.decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            return header, [[clip_id_in(name), label] for name, label in _json_rows(json.loads(text))]
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        delimiter = "\t" if "\t" in text else ","
        table = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = [[field.strip() for field in line] for line in table]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} is no list of clips ({error!r}). {EXPECTED}") from error
    rows = [row for row in rows if any(row)]
    if rows and re.sub("[ _]", "", rows[0][0].lower()) in HEADER_NAMES:
        header, *rows = rows
    if rows and all(len(r) == 4 and r[1].isdecimal() and r[3].lower() in ("train", "test") for r in rows):
        rows = [[f"{clip_id_in(video)}_{int(start):06d}", label] for video, start, label, _ in rows]
    header = [name.lower() for name in header]
    names = {0, header.index("audio") if "audio" in header else 0}
    return header, [[clip_id_in(v) if i in names else v for i, v in enumerate(row)] for row in rows]


def _json_rows(document: Any) -> list[list[str]]:  # noqa: ANN401 - of any form
    if isinstance(document, dict):  # of a stamps set
        document = [{"file": clip_id, **entry} for clip_id, entry in document["clips"].items()]
    named = [{"file": entry.get("image"), **entry} for entry in document]  # IS3's and its like
    rows = [[entry["file"], entry.get("class", entry.get("category", ""))] for entry in named]
    if wrong := [row for row in rows if not all(isinstance(field, str) for field in row)]:
        raise ValueError(f"an entry has {wrong[0]} instead of text")
    return rows


def _check_ids(clip_ids: Sequence[str], path: Path) -> None:
    if not clip_ids:
        raise ValueError(f"{path} names no clips. {EXPECTED}")
    if "" in clip_ids:
        raise ValueError(f"{path}: entry {clip_ids.index('') + 1} has no clip id. {EXPECTED}")
    if repeats := [clip_id for clip_id, count in Counter(clip_ids).items() if count > 1]:
        raise ValueError(
            f"{path}: {len(repeats)} of {len(set(clip_ids))} ids occur more than once, first: "
            f"{', '.join(repeats[:5])}. Expected each clip once; remove the repeats."
        )


def clip_id_in(field: str) -> str:
    """Return the id in a file's name; SSL-Align's <YouTube id>_<start>_<end> are milliseconds."""
    name = PurePosixPath(field.replace("\\", "/"))
    while name.suffix.lower() in MEDIA_SUFFIXES:  # SoundNet's sounds end in .mp4.mp3
        name = name.with_suffix("")
    # Other dots stay: they may be part of the id. AVSBench MS3 calls its frames <video>.mp4_<k>.
    clip_id = name.name.replace(".mp4_", "_")
    milliseconds = re.fullmatch(r"(.{11})_(\d+)_(\d+)", clip_id)
    if milliseconds and int(milliseconds[3]) - int(milliseconds[2]) == 10_000:
        return f"{milliseconds[1]}_{int(milliseconds[2]) // 1000:06d}"
    return clip_id


# -------------------------------------------------------------------------------- lists by name


def default_folder() -> Path:
    """Return where official lists are kept: $VSSL_SPLITS, else `metadata/` in the repository."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).resolve().parents[1] / "metadata")


def find_list(name_or_path: str | Path, *, pairs: bool = False) -> ClipList:
    """Read the file of this path, or else the official list of this name; `pairs`: a list of negatives.

    Raises:
        FileNotFoundError: an official list that has not been fetched yet.
        ValueError: neither a file nor an official name, or a file that is not what it should be.
    """
    if Path(name_or_path).is_file():
        return read_clip_list(Path(name_or_path), pairs=pairs)
    row = LISTS.get(str(name_or_path))
    if row is None:
        raise ValueError(
            f"{str(name_or_path)!r} is neither an existing file nor an official list. Give the path of your "
            f"own list, or one of: {', '.join(LISTS)}."
        )
    if row.pairs != pairs:
        kinds = ("clips (--clip-list)", "negatives (--negatives)")
        raise ValueError(f"{row.name} is a list of {kinds[row.pairs]}; expected one of {kinds[pairs]}.")
    path, remedy = default_folder() / row.file_name, f"fetch it with: bash scripts/get_splits.sh {row.name}"
    if not path.is_file():
        raise FileNotFoundError(f"Official list {row.name} ({row.clips} clips) is not at {path}; {remedy}")
    _verify(row, path.read_bytes(), f"{path} is there but", f"Move it away and {remedy}")
    return ClipList(row.name, read_clip_list(path, pairs=pairs).clip_ids, row.sha256)


def fetch_list(name: str, folder: Path, base_url: str = BASE_URL) -> Path:
    """Download an official list to a folder, unless it is there already, verify it, and return its path.

    Raises:
        ValueError: unknown name, or content that is not the published one; nothing is left behind then.
        OSError: the list could not be downloaded, or not be written.
    """
    if name not in LISTS:
        raise ValueError(f"{name!r} is not an official list. Expected one of: {', '.join(LISTS)}.")
    row, target = LISTS[name], folder / LISTS[name].file_name
    if target.exists():
        _verify(row, target.read_bytes(), f"{target} is there but", "Move it away and fetch again.")
        return target
    url = f"{base_url.rstrip('/')}/{row.repository}/{row.commit}/{row.path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{name}: could not download {url}: {error}. Check the network and the proxy (https_proxy), name "
            f"a mirror with --base-url, or save the list by hand as {target}: it is verified when it is read."
        ) from error
    _verify(row, content, f"what came from {url}", "Nothing was kept. Try again, or another --base-url.")
    write_atomically(target, content)
    return target


def _verify(row: ListRow, content: bytes, source: str, remedy: str) -> None:
    actual = hashlib.sha256(content).hexdigest()
    if actual != row.sha256:
        raise ValueError(
            f"{row.name}: {source} has sha256 {actual}, expected {row.sha256} "
            f"({row.clips} clips, {row.repository} at {row.commit}). {remedy}"
        )


# ------------------------------------------------------------- which clips were scored or trained on


def ids_sha256(clip_ids: Iterable[str]) -> str:
    """Return the sha256 of ids, whatever their order and the form of the list that named them."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()


def name_cut(
    benchmark: str, title: str, clip_ids: Sequence[str], negatives: Sequence[str] = (), num_missing: int = 0
) -> str:
    """Say which published cut of a benchmark is listed, e.g. "VGG-SS, 4,911 clips: SSL-TIE's cut"."""
    cuts = {row.ids_sha256: row.cut for row in ROWS if benchmark in row.benchmarks}
    if not cuts:
        return f"{benchmark}, {len(clip_ids):,} clips: no cut of this set is published"
    none = "none of the published cuts"
    words = f"{title}, {len(clip_ids):,} clips: {cuts.get(ids_sha256(clip_ids), none)}"
    if negatives:
        words += f"; {len(negatives):,} negatives: {cuts.get(ids_sha256(negatives), none)}"
    return words + (f"; {num_missing:,} of them are missing" if num_missing else "")


def published_list(
    protocol: str, authors: str, benchmark: str, clip_ids: Collection[str], negative_ids: Collection[str] = ()
) -> dict[str, Any]:
    """Compare the scored clips, with an object and without, with those of a protocol's published numbers.

    Returns:
        cut: name of the published clips, None where no numbers are known; name and sha256 of their
        list's file, where there is one; is_scored: exactly they were scored; words.
    """
    cuts = [row for row in ROWS if benchmark in row.benchmarks]
    # Some publish on parts of the classes too; the first row is the main one.
    rows = [row for row in cuts if protocol in row.published_by and not row.pairs]
    pairs = next((row for row in cuts if row.pairs), None)  # the negatives of an extended benchmark
    if not rows or (pairs is not None and protocol not in pairs.published_by):
        words = f"{authors} published no result on this clip list"
        return {"cut": None, "name": None, "sha256": None, "is_scored": False, "words": words}
    scored, negatives = ids_sha256(clip_ids), ids_sha256(negative_ids)
    row = next((row for row in rows if row.ids_sha256 == scored), rows[0])
    is_scored = row.ids_sha256 == scored and negatives == (pairs.ids_sha256 if pairs else ids_sha256([]))
    other = "" if row is rows[0] else f", not {rows[0].cut}"
    words = f"{authors} published results on this very clip list ({row.cut}{other})"
    if not is_scored:
        words = f"{authors} published results on another clip list ({row.cut}): not comparable"
    names = {"name": (pairs or row).name or None, "sha256": (pairs or row).sha256 or None}
    return {"cut": row.cut, **names, "is_scored": is_scored, "words": words}


def find_leak(
    training_clips: Collection[str] | None, scored_clips: Collection[str] | None, *, purpose: str
) -> dict[str, Any]:
    """Look for scored clips, whose list is for `purpose`, among the training clips; None: not known."""
    if training_clips is None or scored_clips is None:
        message = f"The {purpose} clips are not named as in training lists: overlap could not be looked for."
        if scored_clips is not None:
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
    parser = Parser("get_splits", description="Fetches clip lists, verifies their sha256.")
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="lists to fetch; default: all")
    add("--folder", type=Path, default=default_folder(), help="where the lists go (default: %(default)s)")
    add("--base-url", default=BASE_URL, help="address of a mirror (default: %(default)s)")
    add("--list", action="store_true", help="show the official lists and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for name, row in LISTS.items():
            place = f"{row.repository}@{row.commit}"
            sys.stdout.write(f"{name:24}{row.clips:>7}  {row.sha256[:12]}  {place}  {row.note}\n")
        return 0
    status = 0
    for name in dict.fromkeys(options.names or LISTS):
        try:
            path = fetch_list(name, options.folder, options.base_url)
            sys.stdout.write(f"{name}: {LISTS[name].clips} clips, verified: {path}\n")
        except (OSError, ValueError) as error:
            sys.stderr.write(f"get_splits: {error}\n")
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
