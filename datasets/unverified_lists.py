"""Published clip lists that we know by name and count only: users save them by hand.

They define the two open-set splits of VGG-SS, in each of which a model is trained on half of the
classes ("heard") and tested on these and on the others ("unheard"). The halves were drawn by
different people: 52 of the 110 classes that SSL-TIE hears in training are heard in EZ-VSL's split
too. A model that was trained on one of them must not be tested on the other.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from datasets.clip_lists import ClipList, parse_clip_ids, read_list_file


@dataclass(frozen=True)
class UnverifiedList:
    """A published list whose sha256 is not known here."""

    repository: str
    place: str
    """in the repository"""
    num_clips: int | None
    """None: only known in thousands"""
    note: str

    def how_to_get(self, name: str, target: Path) -> str:
        """What to fetch, and where to save it."""
        return (
            f"{name} ({self.note}) is not fetched for you, as its sum is not known here. Save "
            f"{self.place} of github.com/{self.repository} as {target}, or name your own file."
        )


_SSL_TIE, _EZ_VSL = "jinxiang-liu/SSL-TIE", "stoneMo/EZ-VSL"

UNVERIFIED_LISTS = {
    "ssl_tie_openset_train": UnverifiedList(
        _SSL_TIE,
        "metadata/openset/openset_train_110_70k.txt",
        None,
        "SSL-TIE's open set: 70k training clips of 110 classes, some of them in the VGG-SS test",
    ),
    "ssl_tie_openset_heard": UnverifiedList(
        _SSL_TIE,
        "the test list of heard classes in metadata/openset/",
        2425,
        "SSL-TIE's open set: VGG-SS test clips of its 110 heard classes",
    ),
    "ssl_tie_openset_unheard": UnverifiedList(
        _SSL_TIE,
        "the test list of unheard classes in metadata/openset/",
        2463,
        "SSL-TIE's open set: VGG-SS test clips of its 110 unheard classes",
    ),
    "ez_vsl_openset_train": UnverifiedList(
        _EZ_VSL, "metadata/vggss_heard.txt", 59_468, "EZ-VSL's open set: training clips of its heard classes"
    ),
}
"""By name; EZ-VSL's test lists are verified ones, in datasets/official_splits.py."""


def read_unverified_list(name: str, folder: Path) -> ClipList:
    """Reads a list that the user has saved, and checks its count.

    Args:
        name: a key of UNVERIFIED_LISTS.
        folder: where lists are kept; the list is `<name>.txt` in it.

    Returns:
        the list, with the sha256 of the user's file.

    Raises:
        FileNotFoundError: it has not been saved; the message says what to fetch.
        ValueError: it is no list of clips, or has another count than the published one.
    """
    known, path = UNVERIFIED_LISTS[name], folder / f"{name}.txt"
    if not path.is_file():
        raise FileNotFoundError(known.how_to_get(name, path))
    content = read_list_file(path)
    clip_ids = parse_clip_ids(content, is_json=False, source=str(path))
    if known.num_clips not in (None, len(clip_ids)):
        raise ValueError(
            f"{name}: {path} has {len(clip_ids)} clips, expected {known.num_clips} ({known.note}). "
            f"Save {known.place} of github.com/{known.repository} there; a list of your own goes "
            "in by its path."
        )
    return ClipList(name, clip_ids, hashlib.sha256(content).hexdigest())
