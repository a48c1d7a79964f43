"""Maps of frames with their own sound, and with sounds that nothing in them makes.

Three negative sounds for each frame, as Juanola et al. (arXiv 2410.01020): silence (zeros), noise
(N(0, 1), not cut) and the sound of a clip of another class. All are waveforms and pass the method's
own front end.

A frame is encoded once, whatever the number of sounds; a clip's sound too, also where it is another
clip's negative, so that the sounds of all clips are encoded before any frame is.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import gather_objects
from utils.evaluation.localisation import EvaluationBatch

NEGATIVES = ("silence", "noise", "off_screen")
OWN = "own"
OffScreen = Literal["other_class", "any"]
CLASSES_WANTED = (
    "Off-screen sounds are those of another class, and the classes are not known. Name a file with "
    "them (--labels), or take the sound of any other clip (--off-screen any)."
)


class SplitLocaliser(Protocol):
    """What a model must offer: `localise` in two halves and what joins them."""

    def visual_features(self, frames: Tensor) -> Tensor:
        """Normalised frames (B, 3, H, W) -> (B, ...)."""
        ...

    def sound_features(self, audio_input: Tensor) -> Tensor:
        """Sounds, as the method's front end gives them -> (B, ...)."""
        ...

    def compare(self, visual: Tensor, sound: Tensor) -> Tensor:
        """Similarity maps (B, h, w) of B frames with B sounds."""
        ...


BatchType = TypeVar("BatchType", bound=EvaluationBatch)


@dataclass(frozen=True)
class Scene:
    """What can be heard and what can be seen in a clip."""

    sound: str
    """its sound's class; where classes do not count, its file"""
    on_screen: frozenset[str]
    """classes or files of the sounds that would be right for its frame"""


def scenes_of(
    clip_ids: Sequence[str],
    pair_keys: Sequence[str | None],
    classes: Mapping[str, str] | None,
    off_screen: OffScreen,
    *,
    pictures: Sequence[str] | None = None,
    sound_files: Sequence[str] | None = None,
) -> dict[str, Scene]:
    """Which sounds are right for which frames.

    Where clips come in pairs, two sounding things share a frame and neither sound is off-screen.
    The ids of such clips are <first>_<second>_…_<class of the sound>, so that they need no labels.
    Nor is any sound off-screen that belongs to another clip with the same picture.

    Args:
        clip_ids: of all clips.
        pair_keys: of the clips; what the clips of a pair have in common, None without pairs.
        classes: of the clips, by id; None: not known.
        off_screen: "other_class": sounds of another class; "any": of another clip, which may by
            chance be of the same class.
        pictures: of the clips; what those have in common whose frame is the same. None: each has
            its own.
        sound_files: likewise, of their sounds.

    Raises:
        ValueError: classes are needed but not known.
    """
    keys = dict(zip(clip_ids, pair_keys, strict=True))
    if off_screen == "any":
        # Each sound is a class of its own.
        sounds = dict(zip(clip_ids, sound_files or clip_ids, strict=True))
    elif classes is not None:
        sounds = {clip_id: classes[clip_id] for clip_id in keys}
    elif None not in keys.values():
        sounds = {clip_id: clip_id.removeprefix(f"{key}_") for clip_id, key in keys.items()}
    else:
        raise ValueError(CLASSES_WANTED)
    known = set(sounds.values())
    shown = dict(zip(clip_ids, pictures or clip_ids, strict=True))
    scenes = {clip_id: (key, shown[clip_id] if key is None else "") for clip_id, key in keys.items()}
    visible: dict[tuple[str | None, str], set[str]] = {}
    for clip_id, scene in scenes.items():
        # A pair's key names what is to be seen; the name of a picture need not.
        named = set() if scene[0] is None else set(scene[0].split("_"))
        visible.setdefault(scene, known & named).add(sounds[clip_id])
    return {clip_id: Scene(sounds[clip_id], frozenset(visible[scene])) for clip_id, scene in scenes.items()}


def _clip_rng(purpose: str, clip_id: str, seed: int) -> np.random.Generator:
    """Draws for one clip, which do not depend on the other clips, the batch or the process."""
    digest = hashlib.sha256(f"{purpose}\0{clip_id}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def draw_off_screen(clip_ids: Sequence[str], scenes: Mapping[str, Scene], seed: int) -> NDArray[np.int64]:
    """Whose sound each clip gets as its off-screen sound.

    Args:
        clip_ids: N clips, whose sounds may be drawn.
        scenes: of these clips, by id.
        seed: the same seed and clips give the same sounds.

    Returns:
        (N,) places in `clip_ids`.

    Raises:
        ValueError: no sound is off-screen for a clip.
    """
    sounds = [scenes[clip_id].sound for clip_id in clip_ids]
    possible: dict[frozenset[str], NDArray[np.int64]] = {}
    drawn = np.empty(len(clip_ids), dtype=np.int64)
    for place, clip_id in enumerate(clip_ids):
        shown = scenes[clip_id].on_screen
        if shown not in possible:
            possible[shown] = np.flatnonzero([sound not in shown for sound in sounds])
        if not len(possible[shown]):
            raise ValueError(
                f"There is no off-screen sound for {clip_id}: all {len(clip_ids)} clips sound of "
                f"what its scene has ({', '.join(sorted(shown))}). Score clips that differ more; "
                "where only classes are too few, --off-screen any takes any other clip's sound."
            )
        rng = _clip_rng("off-screen", clip_id, seed)
        drawn[place] = possible[shown][rng.integers(len(possible[shown]))]
    return drawn


def white_noise(clip_ids: Sequence[str], num_samples: int, seed: int) -> Tensor:
    """Waveforms (B, L) float32 drawn from N(0, 1), not cut, for each clip from its own seed."""
    shape = (num_samples,)
    noise = [_clip_rng("noise", c, seed).standard_normal(shape, np.float32) for c in clip_ids]
    return torch.from_numpy(np.stack(noise))


@dataclass(frozen=True)
class ClipSounds:
    """Features of the sounds of N clips, on the CPU."""

    clip_ids: tuple[str, ...]
    features: Tensor
    """(N, ...), as the model's `sound_features`"""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(clip id, reason) of clips that broke while being decoded; they are not among the N"""


@torch.inference_mode()
def encode_sounds(
    model: SplitLocaliser, batches: Iterable[BatchType], sounds_of: Callable[[BatchType], Tensor]
) -> ClipSounds:
    """Encodes the sound of each clip; each process brings its part and gets those of all.

    Args:
        model: in evaluation mode.
        batches: decoded clips, each exactly once.
        sounds_of: batch -> input of the model's audio encoder.

    Raises:
        ValueError: no clip could be decoded.
    """
    clip_ids: list[str] = []
    features: list[Tensor] = []
    unreadable: list[tuple[str, str]] = []
    for batch in batches:
        unreadable.extend((broken.clip_id, broken.reason) for broken in batch.broken)
        if batch.clip_ids:
            clip_ids.extend(batch.clip_ids)
            features.append(model.sound_features(sounds_of(batch)).cpu())
    clip_ids, features = gather_objects(clip_ids), gather_objects(features)
    unreadable = gather_objects(unreadable)
    if not features:
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
    return ClipSounds(tuple(clip_ids), torch.cat(features), tuple(unreadable))


class SoundBank:
    """Every sound that frames are compared with; silence is encoded once."""

    def __init__(
        self,
        own: ClipSounds,
        off_screen: ClipSounds,
        donors: NDArray[np.int64],
        negative_input: Callable[[Tensor], Tensor],
        num_samples: int,
    ) -> None:
        """Keeps the sounds that are there, and what makes the others.

        Args:
            own: of all clips, by all processes.
            off_screen: the same clips; other features only where these sounds are read otherwise.
            donors: (R, N) whose sound each clip gets as its off-screen sound, for each of R seeds.
            negative_input: waveforms (B, L) of silence or noise -> input of the audio encoder.
            num_samples: L.
        """
        if own.clip_ids != off_screen.clip_ids:
            different = sorted(set(own.clip_ids) ^ set(off_screen.clip_ids))
            raise ValueError(
                f"The sounds of {len(different)} clips, first {different[0]}, break in one of the "
                "two windows that --as-published reads; mend these files, or take them off the "
                "list."
            )
        self.own, self.off_screen, self.donors = own, off_screen, donors
        self.negative_input, self.num_samples = negative_input, num_samples
        self.places = {clip_id: place for place, clip_id in enumerate(own.clip_ids)}
        self.silence: Tensor | None = None

    def features_for(
        self, model: SplitLocaliser, clip_ids: Sequence[str], device: torch.device
    ) -> dict[str, Iterator[Tensor]]:
        """Features (B, ...) of each kind of sound for some clips: of one sound, or of R.

        Args:
            model: that encodes what is not encoded yet.
            clip_ids: B of the clips.
            device: of the model.
        """
        places = np.array([self.places[clip_id] for clip_id in clip_ids])

        def encoded(waveforms: Tensor) -> Tensor:
            return model.sound_features(self.negative_input(waveforms.to(device)))

        def known(sounds: ClipSounds, chosen: NDArray[np.int64]) -> Tensor:
            return sounds.features[torch.from_numpy(chosen)].to(device)

        if self.silence is None:
            self.silence = encoded(torch.zeros(1, self.num_samples))
        noise = (white_noise(clip_ids, self.num_samples, seed) for seed in range(len(self.donors)))
        return {
            OWN: iter([known(self.own, places)]),
            "silence": iter([self.silence.expand(len(clip_ids), *self.silence.shape[1:])]),
            "noise": map(encoded, noise),
            "off_screen": (known(self.off_screen, donors[places]) for donors in self.donors),
        }


@dataclass(frozen=True)
class SimilarityMaps:
    """Low-resolution maps of N clips, on the CPU, as the model gives them."""

    clip_ids: tuple[str, ...]
    maps: dict[str, Tensor]
    """own (N, 1, h, w), silence (N, 1, h, w), noise (N, R, h, w), off_screen (N, R, h, w)"""
    truths: tuple[bytes, ...]
    """ground-truth maps (M, M) float32, packed by `pack_map`"""
    map_size: int
    """M"""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(clip id, reason) of clips whose frames broke while being decoded; not among the N"""

    @property
    def num_bytes(self) -> int:
        """Of the maps."""
        return sum(maps.nbytes for maps in self.maps.values())

    def truth(self, chosen: slice) -> NDArray[np.float32]:
        """Ground-truth maps (B, M, M) of some clips."""
        shape = (self.map_size, self.map_size)
        unpacked = [zlib.decompress(packed) for packed in self.truths[chosen]]
        return np.stack([np.frombuffer(one, np.float32).reshape(shape) for one in unpacked])


def pack_map(truth: NDArray[np.float32]) -> bytes:
    """A ground-truth map without loss, in a few hundred bytes."""
    return zlib.compress(truth.tobytes(), level=1)


@torch.inference_mode()
def compare_with_sounds(
    model: SplitLocaliser,
    batches: Iterable[BatchType],
    frames_of: Callable[[BatchType], Tensor],
    sounds: SoundBank,
) -> SimilarityMaps:
    """Encodes each frame once and compares it with its own sound and with every negative.

    The maps are kept as small as the model makes them: for 5,158 clips, 10 seeds and maps of 14 x
    14, 5,158 x 22 x 14 x 14 x 4 bytes = 89 MB.

    Args:
        model: in evaluation mode.
        batches: decoded clips, each exactly once.
        frames_of: batch -> normalised frames (B, 3, H, W).
        sounds: to compare with.

    Raises:
        ValueError: a clip has no ground truth, or a map is not finite.
    """
    found: dict[str, list[Tensor]] = {kind: [] for kind in (OWN, *NEGATIVES)}
    clip_ids: list[str] = []
    truths: list[bytes] = []
    unreadable: list[tuple[str, str]] = []
    map_size = 0
    for batch in batches:
        unreadable.extend((broken.clip_id, broken.reason) for broken in batch.broken)
        if not batch.clip_ids:
            continue
        truth = batch.ground_truth_maps
        if truth is None or len(truth) != len(batch.clip_ids):
            raise ValueError(f"Clips without boxes cannot be scored, e.g. {batch.clip_ids[0]}.")
        visual = model.visual_features(frames_of(batch))
        by_kind = sounds.features_for(model, batch.clip_ids, visual.device)
        for kind, features in by_kind.items():
            maps = torch.stack([model.compare(visual, one) for one in features], dim=1)
            found[kind].append(_finite(maps.float().cpu(), kind, batch.clip_ids))
        clip_ids.extend(batch.clip_ids)
        truths.extend(map(pack_map, truth))
        map_size = truth.shape[-1]
    joined = {kind: torch.cat(parts) if parts else torch.empty(0) for kind, parts in found.items()}
    return SimilarityMaps(tuple(clip_ids), joined, tuple(truths), map_size, tuple(unreadable))


def _finite(maps: Tensor, kind: str, clip_ids: Sequence[str]) -> Tensor:
    finite = maps.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        first = clip_ids[int(finite.logical_not().nonzero()[0])]
        raise ValueError(
            f"The map of clip {first} with its {kind.replace('_', '-')} sound is not finite "
            "everywhere, so no threshold fits it. The file is damaged, or the model is."
        )
    return maps
