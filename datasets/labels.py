"""Class labels of clips, in the forms in which data sets publish them."""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HEADER_IDS = frozenset({"id", "clip", "clip_id", "video", "video_id", "file", "youtube_id"})
"""First fields that make the first line of a CSV a header; YouTube ids have 11 letters, and the
project's clip ids more."""

EXPECTED = (
    "Expected a CSV of `id,label` lines, VGGSound's CSV (youtube_id,start,label,split), the VGG-SS "
    'JSON ([{"file": …, "class": …}, …]), or the stamps.json of a stamps set.'
)


@dataclass(frozen=True)
class Labels:
    """One class for each clip, and where that was read."""

    path: str
    sha256: str
    """of the file"""
    form: str
    """which of the known forms the file has"""
    classes: dict[str, str]
    """clip id -> class"""

    def of(self, clip_ids: Sequence[str]) -> list[str]:
        """Classes of clips, in their order.

        Args:
            clip_ids: of the clips.

        Raises:
            ValueError: a clip has no class.
        """
        missing = [clip_id for clip_id in clip_ids if clip_id not in self.classes]
        if missing:
            raise ValueError(
                f"{self.path}: {len(missing)} of {len(clip_ids)} clips have no class, first: "
                f"{', '.join(missing[:5])}. It holds {len(self.classes)} clips, first: "
                f"{next(iter(self.classes))}. Name the labels of these clips (--labels), or score "
                "only clips that have one (--clip-list)."
            )
        return [self.classes[clip_id] for clip_id in clip_ids]


def read_labels(path: Path) -> Labels:
    """Reads the class of each clip; the form is recognised by the content.

    Args:
        path: `.json` is read as VGG-SS's or a stamps set's, everything else as CSV in UTF-8. Clips
            of VGGSound's CSV are named <youtube_id>_<start, six digits>, as in its clip lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has none of the forms, is empty, or names a clip twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No labels at {path}. {EXPECTED}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}). {EXPECTED}") from error
    read = _read_json if path.suffix.lower() == ".json" else _read_csv
    form, pairs = read(text, path)
    classes: dict[str, str] = {}
    for place, (clip_id, label) in enumerate(pairs, start=1):
        if not clip_id or not label:
            raise ValueError(f"{path}: entry {place} lacks its id or its class. {EXPECTED}")
        if clip_id in classes:
            raise ValueError(
                f"{path} names {clip_id} twice, as '{classes[clip_id]}' and '{label}'. Expected "
                "each clip once; remove the repeats."
            )
        classes[clip_id] = label
    if not classes:
        raise ValueError(f"{path} names no clips. {EXPECTED}")
    return Labels(str(path), hashlib.sha256(content).hexdigest(), form, classes)


Pairs = Iterable[tuple[str, str]]


def _read_csv(text: str, path: Path) -> tuple[str, Pairs]:
    try:
        rows = [
            [field.strip() for field in row]
            for row in csv.reader(text.splitlines(), skipinitialspace=True, strict=True)
            if any(field.strip() for field in row)
        ]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV ({error}). {EXPECTED}") from error
    header = rows[0] if rows and rows[0][0].lower() in HEADER_IDS else None
    rows = rows[1:] if header else rows
    widths = {len(row) for row in rows}
    if widths <= {2}:
        return "CSV of id,label", ((clip_id, label) for clip_id, label in rows)
    starts = [row[1] for row in rows if len(row) == 4]
    if widths != {4} or not all(start.isdecimal() for start in starts):
        raise ValueError(
            f"{path}: lines of {sorted(widths)} fields. {EXPECTED} A class with a comma in it "
            "stands between double quotes."
        )
    return "VGGSound's CSV", ((f"{row[0]}_{int(row[1]):06d}", row[2]) for row in rows)


def _read_json(text: str, path: Path) -> tuple[str, Pairs]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {EXPECTED}") from error
    if isinstance(found, list):
        form, entries, id_key = "VGG-SS JSON", found, "file"
    elif isinstance(found, dict) and isinstance(found.get("clips"), dict):
        form, id_key = "stamps.json", "id"
        entries = [
            {**record, "id": clip_id} if isinstance(record, dict) else record
            for clip_id, record in found["clips"].items()
        ]
    else:
        raise ValueError(f"{path} is JSON, but of another form. {EXPECTED}")
    pairs = []
    for place, entry in enumerate(entries, start=1):
        clip_id, label = (entry.get(id_key), entry.get("class")) if isinstance(entry, dict) else (None, None)
        if not isinstance(clip_id, str) or not isinstance(label, str):
            raise ValueError(f'{path}: entry {place} has no text under "{id_key}" or "class". {EXPECTED}')
        pairs.append((clip_id.strip(), label.strip()))
    return form, pairs
