"""Clip lists: reading them in any of the formats that are in use."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MEDIA_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".mp4", ".mkv", ".webm", ".avi", ".wav", ".mp3", ".flac", ".ogg"}
)

_HEADER_NAMES = frozenset(
    {"video", "video_id", "audio", "clip", "clip_id", "id", "file", "filename", "frame", "image"}
)


@dataclass(frozen=True)
class ClipList:
    """The clips of one list, in its order, and the fingerprint of the file they came from."""

    name: str
    clip_ids: tuple[str, ...]
    sha256: str


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
    content = read_list_file(path)
    clip_ids = parse_clip_ids(content, is_json=path.suffix.lower() == ".json", source=str(path))
    return ClipList(path.stem, clip_ids, hashlib.sha256(content).hexdigest())


def read_list_file(path: Path) -> bytes:
    """Reads the bytes of a list.

    Args:
        path: The list.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"No clip list at {path}. Expected a text, CSV or VGG-SS JSON file. The official lists "
            "are fetched with: bash scripts/get_splits.sh"
        )
    if not path.is_file():
        raise ValueError(f"{path} is a folder. Expected a clip list: a text, CSV or JSON file.")
    return path.read_bytes()


def parse_clip_ids(content: bytes, *, is_json: bool, source: str) -> tuple[str, ...]:
    """Takes the clip ids out of a list's bytes.

    Args:
        content: The whole list, see `read_clip_list` for the formats.
        is_json: Whether it is the VGG-SS JSON instead of text.
        source: What to call the list in messages.

    Returns:
        The ids in the order of the list, each once.

    Raises:
        ValueError: It is not a list of clips, is empty, names a clip twice, or pairs frames with
            the audio of other clips.
    """
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
