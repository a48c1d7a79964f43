"""How quiet a localiser stays on sounds that nothing in the picture makes (Juanola et al., arXiv 2410.01020).

Each frame meets its own sound and three negatives: silence (zeros), noise (N(0, 1), not cut) and the
off-screen sound, that of a clip of another class. With S the up-sampled similarity map and t one
threshold for all clips of a data set:

    pIA     = share of pixels with S > t                   on negatives 0 is right
    AUC_N   = trapezoid over x = 0, .05 ... 1 of the share of maps with pIA <= x
    cIoU_U  = mean consensus IoU of S > t over the clips with their own sounds
    AUC_U   = area under the success curve of the same masks
    F_LOC   = harmonic mean of cIoU_U and 100 - pIA, over the kinds of negatives
    F_AUC   = harmonic mean of AUC_U and AUC_N, over the kinds of negatives

Each clip's sound is encoded once, though it is other clips' negative: so all sounds are encoded before
any frame is. t is known only at the end, so the maps are kept as small as the model makes them.
"""

import hashlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.distributed import gather_objects
from utils.evaluation.metrics import TruthMaps, consensus_iou, harmonic_mean, pointing_hits, quiet_areas
from utils.evaluation.protocols import DISC, PROTOCOLS, centre_disc, predict, upsample
from utils.evaluation.statistics import bootstrap_statistics, clip_values

if TYPE_CHECKING:
    import pandas as pd

OWN = "own"
NEGATIVES = ("silence", "noise", "off_screen")
KINDS = (OWN, *NEGATIVES)
KIND_WORDS = dict(zip(KINDS, ("own sound", "silence", "noise", "off-screen"), strict=True))
PAIRS = tuple(combinations(KINDS, 2))
DEAF = "own map for every sound (deaf)"
MEDIAN_RULE = PROTOCOLS["ssl_align"]  # each map's upper median, to compare the right sound with a wrong one
UNIVERSAL_QUANTILE = 0.75
CHUNK_CLIPS = 8  # whose up-sampled maps are there at once: 35 MB for 10 seeds
OffScreen = Literal["other_class", "any"]
CLASSES_WANTED = (
    "Off-screen sounds are those of another class, and the classes are not known. Name a file with "
    "them (--labels), or take the sound of any other clip (--off-screen any)."
)
_MEASURES = (("pia", "pIA"), ("auc_n", "AUC_N"), ("f_loc", "F_LOC"), ("f_auc", "F_AUC"))
LABELS = {
    "ciou_u": "cIoU_U",
    "auc_u": "AUC_U",
    "f_loc": "F_LOC",
    "f_auc": "F_AUC",
    **{f"{key}_{kind}": f"{name}, {KIND_WORDS[kind]}" for kind in NEGATIVES for key, name in _MEASURES},
    **{f"iou_{a}~{b}": f"IoU of masks, {KIND_WORDS[a]} and {KIND_WORDS[b]}" for a, b in PAIRS},
    "ciou_at_0.5_own": "cIoU@0.5 (median rule), own sound",
    "ciou_at_0.5_off_screen": "cIoU@0.5 (median rule), off-screen",
    "sensitivity_ciou_at_0.5": "audio sensitivity: cIoU@0.5, own minus off-screen",
    "pointing_accuracy_own": "pointing (median rule), own sound",
    "pointing_accuracy_off_screen": "pointing (median rule), off-screen",
    "sensitivity_pointing_accuracy": "audio sensitivity: pointing, own minus off-screen",
}  # key of a number -> its name
LOWER_IS_BETTER = ("pia_", "iou_own~")  # beginnings of keys; of all others higher is better, or
NEITHER_IS_BETTER = ("iou_", "ciou_at_0.5_off_screen", "pointing_accuracy_off_screen")

ClipArrays = dict[str, NDArray[np.float64]]  # (N clips, 1 or R draws) by name


class Scene(NamedTuple):
    """A clip's sound, and the sounds that would be right for its frame: classes or files."""

    sound: str
    on_screen: frozenset[str]


def scenes_of(clips: Sequence[Any], classes: Mapping[str, str] | None, wanted: OffScreen) -> dict[str, Scene]:
    """Find which sounds are right for which frames: those of the class, or file, and of the same picture.

    Clips with the same picture share a scene, those of a pair a pair_key; ids of these are
    <first>_<second>_…_<class of the sound>.
    """
    if wanted == "any":
        sounds = [clip.sound for clip in clips]
    elif classes is not None:
        sounds = [classes[clip.clip_id] for clip in clips]
    elif all(clip.pair_key is not None for clip in clips):
        sounds = [clip.clip_id.removeprefix(f"{clip.pair_key}_") for clip in clips]
    else:
        raise ValueError(CLASSES_WANTED)
    heard = set(sounds)
    visible: dict[str, set[str]] = {}
    for clip, sound in (found := list(zip(clips, sounds, strict=True))):
        # The key of a pair names both things to be seen; the name of a picture need not.
        named = heard & set((clip.pair_key or "").split("_"))
        visible.setdefault(clip.scene, named).add(sound)
    return {clip.clip_id: Scene(sound, frozenset(visible[clip.scene])) for clip, sound in found}


def _clip_rng(purpose: str, clip_id: str, seed: int) -> np.random.Generator:
    """Draws for one clip do not depend on the other clips, the batch or the process."""
    digest = hashlib.sha256(f"{purpose}\0{clip_id}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def draw_off_screen(clip_ids: Sequence[str], scenes: Mapping[str, Scene], seed: int) -> NDArray[np.int64]:
    """Draw whose sound each of N clips gets as its off-screen sound: (N,) places in `clip_ids`."""
    sounds = [scenes[clip_id].sound for clip_id in clip_ids]
    possible: dict[frozenset[str], NDArray[np.int64]] = {}
    drawn = np.empty(len(clip_ids), dtype=np.int64)
    for place, clip_id in enumerate(clip_ids):
        on_screen = scenes[clip_id].on_screen
        if on_screen not in possible:
            possible[on_screen] = np.flatnonzero([sound not in on_screen for sound in sounds])
        if not len(possible[on_screen]):
            raise ValueError(
                f"There is no off-screen sound for {clip_id}: all {len(clip_ids)} clips sound of "
                f"what its scene has ({', '.join(sorted(on_screen))}). Score clips that differ more; "
                "where only classes are too few, --off-screen any takes any other clip's sound."
            )
        drawn[place] = _clip_rng("off-screen", clip_id, seed).choice(possible[on_screen])
    return drawn


def white_noise(clip_ids: Sequence[str], num_samples: int, seed: int) -> Tensor:
    """Draw waveforms (B, L) float32 from N(0, 1), not cut, for each clip from its own seed."""
    noise = [_clip_rng("noise", c, seed).standard_normal(num_samples, np.float32) for c in clip_ids]
    return torch.from_numpy(np.stack(noise))


@dataclass(frozen=True)
class NegativeResult:
    """Everything that was found of N clips with R seeds."""

    clip_ids: tuple[str, ...]
    scores: ClipArrays
    """of each kind of sound maximum:, area: (pIA) and quiet: (AUC_N), of two kinds iou:<kind>~<kind>;
    of own and DISC ciou: and auc:; under the median rule of own and off_screen success: and pointing:;
    empty, where nothing is annotated"""
    threshold: float
    donors: NDArray[np.str_]  # (R, N) ids of the clips whose sounds were off-screen
    maps: Tensor  # (N, K, h, w) similarity, on the threshold's scale, of each of KINDS; the first draws
    unreadable: tuple[tuple[str, str], ...] = ()  # (clip id, reason), not among the N


@torch.inference_mode()
def evaluate_negatives(
    model: Any,  # noqa: ANN401
    read: Callable[[Literal["both", "frames"], Collection[str] | None], Iterable[Any]],
    scenes: Mapping[str, Scene],
    *,
    num_seeds: int,
    num_samples: int,
    device: torch.device,
    threshold: float | None = None,
) -> NegativeResult:
    """Score a model with every kind of sound; processes share the clips, and all get the result.

    `read` decodes this process's clips in batches, "both" or their "frames"; all, or only some ids.
    Of each clip's noise (num_samples long) and off-screen sound there are R = num_seeds draws. The
    similarity is the cosine or (cosine + 1) / 2, as the model's `half_cosine` says; a map predicts what lies
    above the threshold on it, by default the universal one.
    """
    # Frames too: a clip whose frame is broken is not to lend its sound.
    heard, encoded, unreadable = [], [], []
    for batch in read("both", None):
        unreadable += [(broken.clip_id, broken.reason) for broken in batch.broken]
        if batch.clip_ids:
            heard += batch.clip_ids
            encoded.append(model.sound_features(model.prepare(batch.frames, batch.waveforms)[1]).cpu())
    heard, encoded = gather_objects(heard), gather_objects(encoded)
    if not heard:
        unreadable = gather_objects(unreadable)
        first = f", first: {unreadable[0][1]}" if unreadable else ""
        raise ValueError(f"No clip could be scored ({len(unreadable)} unreadable{first}).")
    sounds, place_of = torch.cat(encoded), {clip_id: place for place, clip_id in enumerate(heard)}  # (N, ...)
    donors = np.stack([draw_off_screen(heard, scenes, seed) for seed in range(num_seeds)])  # (R, N)

    clip_ids: list[str] = []
    truths: list[bytes] = []
    parts: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for batch in read("frames", place_of):
        unreadable += [(broken.clip_id, broken.reason) for broken in batch.broken]
        if not batch.clip_ids:
            continue
        zeros = torch.zeros(len(batch.clip_ids), num_samples, device=device)
        frames, zeros = model.prepare(batch.frames, zeros)
        visual, silence = model.visual_features(frames), model.sound_features(zeros[:1])  # (B, ...), (1, ...)
        places = np.array([place_of[clip_id] for clip_id in batch.clip_ids])
        noises = (white_noise(batch.clip_ids, num_samples, seed).to(device) for seed in range(num_seeds))
        features = {
            OWN: [sounds[places].to(device)],
            "silence": [silence.expand(len(places), *silence.shape[1:])],
            "noise": (model.sound_features(model.prepare(batch.frames, noise)[1]) for noise in noises),
            "off_screen": (sounds[donor[places]].to(device) for donor in donors),
        }
        for kind, draws in features.items():
            maps = torch.stack([model.compare(visual, draw) for draw in draws], dim=1)  # (B, 1 or R, h, w)
            if not maps.isfinite().all():
                names = ", ".join(batch.clip_ids)
                raise ValueError(f"A map of clips {names} with {KIND_WORDS[kind]} is not finite everywhere.")
            parts[kind].append(maps.float().cpu())
        clip_ids += batch.clip_ids
        # A few hundred bytes each: they are needed once the threshold is known.
        truths += [zlib.compress(truth.tobytes(), level=1) for truth in batch.ground_truth_maps]
    cosines = {kind: torch.cat(maps) for kind, maps in parts.items() if maps}
    scores, threshold = score_maps(cosines, truths, device, model.half_cosine, threshold)
    first_draws = [torch.stack([maps[:, 0] for maps in cosines.values()], dim=1)] if cosines else []
    shown = torch.cat(gather_objects(first_draws))  # (N, K, h, w)
    shown = (shown + 1) / 2 if model.half_cosine else shown
    scored = tuple(gather_objects(clip_ids))
    donor_ids = np.array(heard)[donors[:, [place_of[clip_id] for clip_id in scored]]]
    return NegativeResult(scored, scores, threshold, donor_ids, shown, tuple(gather_objects(unreadable)))


def score_maps(
    cosines: Mapping[str, Tensor],
    truths: Sequence[bytes],
    device: torch.device,
    half_cosine: bool,
    threshold: float | None,
) -> tuple[ClipArrays, float]:
    """Score this process's maps (N, 1 or R, h, w) by kind of sound, and return the scores of all.

    `truths` are the clips' ground-truth maps (M, M) float32 of MEDIAN_RULE's size, compressed.
    """

    def upsampled(chosen: slice) -> Iterator[tuple[str, Tensor]]:
        for kind, maps in cosines.items():
            scaled = (maps[chosen].to(device) + 1) / 2 if half_cosine else maps[chosen].to(device)
            large = upsample(scaled.flatten(0, 1), MEDIAN_RULE)
            yield kind, large.unflatten(0, scaled.shape[:2])  # (B, 1 or R, M, M)

    chunks = [slice(start, start + CHUNK_CLIPS) for start in range(0, len(truths), CHUNK_CLIPS)]
    scores = _join([{f"maximum:{kind}": m.amax((-2, -1)) for kind, m in upsampled(one)} for one in chunks])
    if threshold is None:
        threshold = universal_threshold([scores[f"maximum:{kind}"] for kind in NEGATIVES])
    threshold = float(np.float32(threshold))

    size, parts = MEDIAN_RULE.map_size, []
    disc = centre_disc(size)[None].to(device)
    for chosen in chunks:
        masks = {kind: similarity > threshold for kind, similarity in upsampled(chosen)}
        unpacked = [np.frombuffer(zlib.decompress(packed), np.float32) for packed in truths[chosen]]
        truth = TruthMaps(torch.from_numpy(np.stack(unpacked)).view(-1, size, size).to(device))
        found = compare_masks(masks)
        found["empty"] = (truth.num_annotated == 0)[:, None]
        found[f"ciou:{OWN}"] = consensus_iou(masks[OWN][:, 0], truth)[:, None]
        found[f"ciou:{DISC}"] = consensus_iou(disc, truth)[:, None]
        for kind in (OWN, "off_screen"):
            draws = cosines[kind][chosen].to(device).unbind(dim=1)  # (B, h, w) each
            predictions = [predict(draw, [MEDIAN_RULE])[0] for draw in draws]
            cious = [consensus_iou(prediction.masks, truth) for prediction in predictions]
            hits = [pointing_hits(prediction.localisation_maps, truth) for prediction in predictions]
            found[f"success:{kind}"] = torch.stack(cious, dim=1) >= 0.5
            found[f"pointing:{kind}"] = torch.stack(hits, dim=1)
        parts.append(found)
    scores |= _join(parts)
    for name in (OWN, DISC):
        _, areas, cious, _ = clip_values(scores[f"ciou:{name}"][:, 0]).T
        scores |= {f"ciou:{name}": cious[:, None], f"auc:{name}": areas[:, None]}
    return scores | {f"quiet:{kind}": quiet_areas(scores[f"area:{kind}"]) for kind in KINDS}, threshold


def _join(parts: Sequence[Mapping[str, Tensor]]) -> ClipArrays:
    """Scores of consecutive clips -> those of all clips of all processes, in order."""
    arrays = [{name: values.double().cpu().numpy() for name, values in part.items()} for part in parts]
    everyone = gather_objects(arrays)
    return {name: np.concatenate([part[name] for part in everyone]) for name in everyone[0]}


def universal_threshold(maxima: Sequence[NDArray[np.float64]]) -> float:
    """Find the third quartile of the negatives' highest similarities, numpy's linear quantile.

    Each kind (N, 1 or R) counts the same: silence, which no seed changes, as often as there are seeds.
    """
    return float(np.quantile(np.broadcast_arrays(*maxima), UNIVERSAL_QUANTILE))


def compare_masks(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Measure how large masks (B, 1 or R, M, M) are, and how much those of two kinds have in common.

    Returns float64 (B, 1 or R) in [0, 1]: `area:<kind>` share of predicted pixels, pIA, and
    `iou:<kind>~<kind>` of each of PAIRS, 1 where both masks are empty.
    """
    flat = torch.cat(list(masks.values()), dim=1).flatten(-2).float()  # (B, K, M * M)
    shared = (flat @ flat.mT).double()  # (B, K, K) numbers of pixels, which float32 adds up exactly
    counts = shared.diagonal(dim1=1, dim2=2)
    sizes = [draws.shape[1] for draws in masks.values()]
    places = dict(zip(masks, torch.arange(sum(sizes)).split(sizes), strict=True))
    found = {f"area:{kind}": counts[:, at] / flat.shape[-1] for kind, at in places.items()}
    for one, other in PAIRS:
        first, second = torch.broadcast_tensors(places[one], places[other])
        union = counts[:, first] + counts[:, second] - shared[:, first, second]
        iou = shared[:, first, second] / union.clamp_min(1)
        found[f"iou:{one}~{other}"] = torch.where(union == 0, 1.0, iou)
    return found


Means = Mapping[str, NDArray[np.float64]]  # over clips, of NegativeResult.scores: (R,) or (1,)


def f_numbers(means: Means) -> dict[str, NDArray[np.float64]]:
    """Compute cIoU_U to F_AUC in percent, (R,) or (1,)."""
    ciou, auc = 100 * means[f"ciou:{OWN}"], 100 * means[f"auc:{OWN}"]
    areas = {kind: 100 * means[f"area:{kind}"] for kind in NEGATIVES}
    quiet = {kind: 100 * means[f"quiet:{kind}"] for kind in NEGATIVES}
    found = {"ciou_u": ciou, "auc_u": auc}
    found["f_loc"] = harmonic_mean(ciou, 100 - sum(areas.values(), np.zeros(1)) / len(NEGATIVES))
    found["f_auc"] = harmonic_mean(auc, sum(quiet.values(), np.zeros(1)) / len(NEGATIVES))
    for kind in NEGATIVES:
        found |= {f"pia_{kind}": areas[kind], f"f_loc_{kind}": harmonic_mean(ciou, 100 - areas[kind])}
        found |= {f"auc_n_{kind}": quiet[kind], f"f_auc_{kind}": harmonic_mean(auc, quiet[kind])}
    return found


def numbers_of(means: Means) -> dict[str, NDArray[np.float64]]:
    """Compute the model's numbers in percent, (R,) or (1,)."""
    found = f_numbers(means) | {f"iou_{a}~{b}": 100 * means[f"iou:{a}~{b}"] for a, b in PAIRS}
    for name, column in (("ciou_at_0.5", "success"), ("pointing_accuracy", "pointing")):
        own, wrong = (100 * means[f"{column}:{kind}"] for kind in (OWN, "off_screen"))
        found |= {f"{name}_own": own, f"{name}_off_screen": wrong, f"sensitivity_{name}": own - wrong}
    return found


def score_table(scores: ClipArrays) -> "pd.DataFrame":
    """Table of all numbers in percent, beside those of predictors that do not hear.

    A row for each of LABELS: key, label, better, score (mean over seeds) with score_low and score_high
    (95 %, over clips; NaN where each clip has the same), sd (over seeds; NaN where no seed changes it),
    deaf and disc (NaN where these have no such number).
    """
    import pandas as pd  # noqa: PLC0415 - only where results are written

    matrix = np.concatenate(list(scores.values()), axis=1)  # (N, all draws of all scores)
    ends = np.cumsum([values.shape[1] for values in scores.values()])[:-1]

    def resampled(repeats: NDArray[np.int64]) -> list[float]:
        means = np.split(repeats @ matrix / len(matrix), ends)
        numbers = numbers_of(dict(zip(scores, means, strict=True))).values()
        return [round(float(values.mean()), 9) for values in numbers]  # another order of sums is no spread

    means = {name: values.mean(axis=0) for name, values in scores.items()}
    numbers = numbers_of(means)
    intervals = dict(zip(numbers, bootstrap_statistics(resampled, len(matrix)), strict=True))
    share = centre_disc(MEDIAN_RULE.map_size).double().mean().numpy()[None]
    disc = {f"ciou:{OWN}": means[f"ciou:{DISC}"], f"auc:{OWN}": means[f"auc:{DISC}"]}
    for kind in NEGATIVES:
        disc |= {f"area:{kind}": share, f"quiet:{kind}": quiet_areas(share)}
    own = {f"{name}:{kind}": means[f"{name}:{OWN}"] for name in ("area", "quiet") for kind in NEGATIVES}
    references = [f_numbers({**means, **blind}) for blind in (own, disc)]
    rows = []
    for key, label in LABELS.items():
        values, better = numbers[key], "" if key.startswith(NEITHER_IS_BETTER) else "higher"
        better = "lower" if key.startswith(LOWER_IS_BETTER) else better
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        blind = [found[key][0] if key in found else np.nan for found in references]
        rows.append((key, label, better, values.mean(), *intervals[key], spread, *blind))
    columns = ["key", "label", "better", "score", "score_low", "score_high", "sd", "deaf", "disc"]
    return pd.DataFrame(rows, columns=columns)
