"""Which clips the authors of each rule scored: a number on other clips is not to be compared."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class PublishedList:
    """The clips behind the numbers that authors published on a benchmark."""

    cut: str
    """which clips, a name in datasets/lists.csv"""
    name: str | None = None
    """of the list file, see datasets/lists.csv; None: none is at hand"""
    also: "tuple[PublishedList, ...]" = ()
    """others on which they published numbers of their own, e.g. of a part of the classes"""


_HEARD = (
    PublishedList("EZ-VSL's heard classes", "ez_vsl_vgg_ss_heard"),
    PublishedList("EZ-VSL's unheard classes", "ez_vsl_vgg_ss_unheard"),
)
_VGG_SS_5158 = PublishedList("the complete set", "lvs_vgg_ss_5158")
_FLICKR_249 = PublishedList("the common cut", "ssl_tie_flickr_249")
_FLICKR_250 = PublishedList("the cut of SLAVC, SSL-Align and ACL, the common 249 and 3908875350")
_COMPLETE = PublishedList("the complete set")
_COMPLETE_TEST = PublishedList("the complete test set")

SSL_TIE = {"vgg_ss": PublishedList("SSL-TIE's cut", "ssl_tie_vgg_ss_4911"), "flickr_soundnet": _FLICKR_249}
SSPL = {"vgg_ss": PublishedList("SSPL's cut", "sspl_vgg_ss_4692"), "flickr_soundnet": _FLICKR_249}
LVS = {"vgg_ss": _VGG_SS_5158, "flickr_soundnet": _FLICKR_249}
EZ_VSL = {**LVS, "vgg_ss": replace(_VGG_SS_5158, also=_HEARD)}
"""FNAC's too."""
SLAVC = {
    "vgg_ss": EZ_VSL["vgg_ss"],
    "flickr_soundnet": _FLICKR_250,
    "vgg_ss_extended": PublishedList("the complete set", "slavc_vgg_ss_negatives"),
    "flickr_soundnet_extended": PublishedList(_FLICKR_250.cut, "slavc_flickr_negatives"),
}
SSL_ALIGN_VGG_SS = {"vgg_ss": PublishedList("SSL-Align's cut")}
SSL_ALIGN = {
    "flickr_soundnet": _FLICKR_250,
    "is3": _COMPLETE,
    "vpo_ss": _COMPLETE,
    "vpo_ms": _COMPLETE,
    "avsbench_s4": _COMPLETE_TEST,
    "avsbench_ms3": _COMPLETE_TEST,
}


@dataclass(frozen=True)
class KnownLists:
    """What is known of the published lists of a benchmark: hashes only."""

    files: Mapping[str, str] = field(default_factory=dict)
    """name of a list file -> its sha256"""
    cuts: Mapping[str, str | None] = field(default_factory=dict)
    """name of a cut -> `ids_sha256` of its clips; None: not known"""
    negative_cut: str | None = None
    """likewise, of the clips without an object that an extended benchmark adds to each cut"""


@dataclass(frozen=True)
class ListCheck:
    """Whether the scored clips are those of a rule's published numbers."""

    cut: str | None
    """the published clips; None: not known"""
    name: str | None
    """of their list file"""
    sha256: str | None
    """of that file"""
    is_scored: bool
    """exactly they were scored"""
    words: str


def ids_sha256(clip_ids: Iterable[str]) -> str:
    """Which clips these are, whatever their order: the sha256 of their ids, a line each."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()


def check_list(
    authors: str,
    published: PublishedList | None,
    known: KnownLists,
    clip_ids: Collection[str],
    negative_ids: Collection[str] = (),
) -> ListCheck:
    """Compares the scored clips with those of a rule's published numbers.

    Args:
        authors: of the rule.
        published: the clips that they scored on this benchmark; None: not known.
        known: hashes of the published lists of this benchmark.
        clip_ids: of the scored clips, on an extended benchmark those with an object.
        negative_ids: of the scored clips without an object.
    """
    if published is None:
        words = f"list: no numbers that {authors} published here by this rule are known"
        return ListCheck(None, None, None, False, words)
    negatives = ids_sha256(negative_ids) if negative_ids else None
    scored = ids_sha256(clip_ids)
    fitting = (one for one in published.also if known.cuts.get(one.cut) == scored)
    published = next(fitting, published)
    wanted = known.cuts.get(published.cut)
    is_scored = scored == wanted and negatives == known.negative_cut
    if is_scored:
        words = f"list: that of the published numbers ({published.cut})"
    elif wanted is None:
        words = (
            f"list: the published numbers of {authors} are on {published.cut}, whose ids are not known here"
        )
    else:
        words = (
            f"list: not that of the published numbers ({published.cut}); not comparable with those "
            f"of {authors}"
        )
    sha256 = None if published.name is None else known.files.get(published.name)
    return ListCheck(published.cut, published.name, sha256, is_scored, words)
