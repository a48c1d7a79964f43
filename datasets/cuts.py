"""Which published cut of a benchmark a set of clips is: scores on different cuts do not compare."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """The clips that one publication scores."""

    name: str
    num_clips: int
    ids_sha256: str | None = None
    """of the sorted ids, see ids_digest; None: only the length of the list is known"""


_VGG_SS = (
    Cut("the complete set", 5158, "8acc0c93362233f7a16f82240d8d77361740ffc93859809d021ff71a29f63bb3"),
    Cut("SSL-TIE's cut", 4911, "3e2640dbeb8ca96c33635a19792a97c63cd0afe8fa29e1d361305d6191729f29"),
    Cut("SSPL's cut", 4692, "103e7a80eca9d331efa97e6e2c28d640848c48d507c7a02dcb07c55577d09d22"),
    Cut("HTF's cut", 4670),
    Cut("SSL-Align's cut", 4655),
    Cut("EZ-VSL's heard classes", 2564, "619bccbc43cded73b9782b287a033418963cff074f803799fbca12763522cea7"),
    Cut("EZ-VSL's unheard classes", 2575, "ad5f876fe0df3f4a6acad52bc6fee91f868c42cbf77151805f243d5901566b4a"),
    Cut("SSL-TIE's heard classes (open set)", 2425),
    Cut("SSL-TIE's unheard classes (open set)", 2463),
)
_FLICKR = (
    Cut("the common cut", 249, "09c34846bd90eb7b2275807253f36459f2518c06112e1ce6040b5bbe4644564d"),
    Cut(
        "the cut of SLAVC, SSL-Align and ACL, the common 249 and 3908875350",
        250,
        "696ab39ce58b0fa111bfdf2323443d08c659da06a6fce4d808db9b2d3de37239",
    ),
    Cut(
        "the cut of Senocak et al., the common 249 and 3908875357",
        250,
        "e62f0922bb0fd13d1af50ba32518515f3e965c72313231ab132a57d07c1c2d08",
    ),
)
_SLAVC = "SLAVC's list"

TITLES = {
    "vgg_ss": "VGG-SS",
    "flickr_soundnet": "Flickr-SoundNet",
    "vgg_ss_extended": "Extended VGG-SS",
    "flickr_soundnet_extended": "Extended Flickr-SoundNet",
    "is3": "IS3",
    "vpo_ss": "VPO-SS",
    "vpo_ms": "VPO-MS",
    "avsbench_s4": "AVSBench S4",
    "avsbench_ms3": "AVSBench MS3",
}
"""Benchmarks of which cuts are published, as their authors call them."""

CUTS: dict[str, tuple[Cut, ...]] = {
    "vgg_ss": _VGG_SS,
    "flickr_soundnet": _FLICKR,
    "vgg_ss_extended": _VGG_SS,
    "flickr_soundnet_extended": _FLICKR,
    "is3": (
        Cut("the complete set", 6480, "de51c7d93e115696333f0ab2de8fb0164b9439cb65852d425a20e806328017dd"),
    ),
    "vpo_ss": (Cut("the complete set", 890),),
    "vpo_ms": (Cut("the complete set", 2157),),
    "avsbench_s4": (Cut("the complete test set", 3700),),
    "avsbench_ms3": (Cut("the complete test set", 320),),
}
"""Of the extended sets: the positives."""

NEGATIVE_CUTS: dict[str, tuple[Cut, ...]] = {
    "vgg_ss_extended": (
        Cut(_SLAVC, 5158, "c974fe72318d61d4da6943a64307debbacd222ece76833629870cfeb08013cba"),
    ),
    "flickr_soundnet_extended": (
        Cut(_SLAVC, 250, "910d3c8623e5200aafad18bf9504bedc731acd6dd7db77ac84ef1ed27bc8f6b2"),
    ),
}


def ids_digest(clip_ids: Iterable[str]) -> str:
    """sha256 of ids, whatever their order and the form of the list that named them."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()


def name_cut(
    dataset: str, listed: Collection[str], *, negatives: Collection[str] = (), num_missing: int = 0
) -> str:
    """Says which published cut is scored, or that it is none.

    Args:
        dataset: a key of datasets.layouts.LAYOUTS.
        listed: ids of the clips to score, those that are missing among them; without negatives.
        negatives: ids of the negatives, likewise.
        num_missing: clips among all of them that are left out.

    Returns:
        e.g. "VGG-SS, 4,911 clips: SSL-TIE's cut".
    """
    if dataset not in CUTS:
        return f"{dataset}, {_number(listed)} clips: no cut of this set is published"
    words = f"{TITLES[dataset]}, {_number(listed)} clips: {_which(CUTS[dataset], listed)}"
    if negatives:
        which = _which(NEGATIVE_CUTS[dataset], negatives)
        words += f"; {_number(negatives)} negatives: {which}"
    return words + (f"; {num_missing:,} of them are missing" if num_missing else "")


def _which(cuts: Iterable[Cut], clip_ids: Collection[str]) -> str:
    digest = ids_digest(clip_ids)
    same_length = [cut for cut in cuts if cut.num_clips == len(clip_ids)]
    for cut in same_length:
        if cut.ids_sha256 == digest:
            return cut.name
    for cut in same_length:
        if cut.ids_sha256 is None:
            return f"as many as {cut.name}, whose ids could not be compared"
    other = "; as many, but others: " + " and ".join(cut.name for cut in same_length)
    return "none of the published cuts" + (other if same_length else "")


def _number(clip_ids: Collection[str]) -> str:
    return f"{len(clip_ids):,}"
