"""Frames and sounds that do not belong together: the negatives of the extended benchmarks."""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets.clip_lists import read_list_file

COLUMNS = ["video", "audio", "label"]
NEGATIVE_LABEL = "non-sounding"
JOIN = "+"
"""between the names of frame and sound; the ids of an extended benchmark's positives hold none"""


@dataclass(frozen=True)
class Negative:
    """The frame of one clip with the sound of another, or of the same one if it is not seen."""

    video: str
    """clip whose frame it is"""
    audio: str
    """clip whose sound it is"""

    @property
    def clip_id(self) -> str:
        """A name of its own, also as a file name: no clip's id holds a plus sign."""
        return f"{self.video}{JOIN}{self.audio}"


def without_negatives(clip_ids: Iterable[str]) -> list[str]:
    """Ids of an extended benchmark's positives, in their order."""
    return [clip_id for clip_id in clip_ids if JOIN not in clip_id]


@dataclass(frozen=True)
class NegativeList:
    """The negatives of one list, in its order, and the fingerprint of the file they came from."""

    name: str
    negatives: tuple[Negative, ...]
    sha256: str


def read_negatives(path: Path) -> NegativeList:
    """Reads a list of negatives in SLAVC's form.

    Args:
        path: CSV with the header video,audio,label, each label non-sounding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, is empty, or names a pair twice.
    """
    content = read_list_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    return NegativeList(path.stem, parse_negatives(content, str(path)), sha256)


def parse_negatives(content: bytes, source: str) -> tuple[Negative, ...]:
    """Takes the negatives out of a list's bytes.

    Args:
        content: the whole list, see read_negatives.
        source: what to call it in messages.

    Raises:
        ValueError: it has another form, is empty, or names a pair twice.
    """
    expected = f"Expected a CSV of {','.join(COLUMNS)}, each label {NEGATIVE_LABEL}."
    try:
        rows = [row for row in csv.reader(content.decode("utf-8-sig").splitlines()) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is no list of negatives ({error}). {expected}") from error
    if not rows or rows[0] != COLUMNS:
        first = ",".join(rows[0]) if rows else "nothing"
        raise ValueError(f"{source} is no list of negatives: it begins with {first}. {expected}")
    for row in rows[1:]:
        if len(row) != len(COLUMNS) or not row[0] or not row[1] or row[2] != NEGATIVE_LABEL:
            raise ValueError(f"{source}: a line holds {','.join(row)}. {expected}")
    negatives = tuple(Negative(video, audio) for video, audio, _ in rows[1:])
    if not negatives:
        raise ValueError(f"{source} names no negatives. {expected}")
    twice = [negative for negative, count in Counter(negatives).items() if count > 1]
    if twice:
        raise ValueError(
            f"{source}: {len(twice)} pairs occur more than once, first: {twice[0].video} with "
            f"{twice[0].audio}. Expected each once; remove the repeats."
        )
    return negatives
