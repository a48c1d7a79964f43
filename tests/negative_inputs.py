"""A made-up localiser whose numbers with negative sounds are known by hand, and its clips."""

from types import SimpleNamespace

import numpy as np
import torch

from utils.evaluation.protocols import upsample_maps
from utils.negative_audio import SoundBank, compare_with_sounds, draw_off_screen, encode_sounds, scenes_of
from utils.negative_audio_results import NegativeResult
from utils.negative_audio_scores import (
    Scoring,
    clip_columns,
    find_extremes,
    numbers_of,
    score_maps,
    universal_threshold,
)

CPU = torch.device("cpu")
NUM_CLIPS, NUM_SEEDS = 10, 4
CLIP_IDS = tuple(f"clip_{index}" for index in range(NUM_CLIPS))
CLASS_OF = [1.0 + index % 2 for index in range(NUM_CLIPS)]
"""What a clip shows and what it sounds of: 1 or 2."""
NUM_SAMPLES = 400


class Listener:
    """Points to the left of a frame that the sound fits, and nowhere at all when it does not."""

    def __init__(self, *, deaf=False):
        self.deaf, self.frames_seen, self.sounds_heard = deaf, 0, 0

    def visual_features(self, frames):
        self.frames_seen += len(frames)
        return frames.mean(dim=(1, 2, 3))

    def sound_features(self, waveforms):
        self.sounds_heard += len(waveforms)
        return torch.stack([waveforms.mean(dim=1), waveforms.std(dim=1)], dim=1)

    def compare(self, visual, sound):
        maps = torch.zeros(len(visual), 14, 14)
        maps[:, :, :4] = 1.0
        if self.deaf:
            return maps
        level, spread = sound.unbind(dim=1)
        others = torch.full_like(maps, 0.25)  # off-screen
        others[(level == 0) & (spread == 0)] = 0.125  # silence
        others[spread > 0.5] = 0.1875  # noise
        return torch.where(((level - visual).abs() < 0.01)[:, None, None], maps, others)


def own_truth():
    sharp = torch.zeros(1, 14, 14)
    sharp[:, :, :4] = 1.0
    return (upsample_maps(sharp, "bilinear_align_corners", 224) > 0.25).float().numpy()


def batches(size=4, truth=None):
    truth = own_truth() if truth is None else truth
    for start in range(0, NUM_CLIPS, size):
        part = slice(start, start + size)
        values = torch.tensor(CLASS_OF[part])
        yield SimpleNamespace(
            clip_ids=CLIP_IDS[part],
            frames=values[:, None, None, None].expand(-1, 3, 4, 4),
            waveforms=values[:, None].expand(-1, NUM_SAMPLES),
            ground_truth_maps=np.repeat(truth, len(values), axis=0),
            bounding_boxes=[None] * len(values),
            broken=[],
        )


def evaluate(model, scoring, threshold=None, **inputs):
    own = encode_sounds(model, batches(**inputs), lambda batch: batch.waveforms)
    classes = dict(zip(CLIP_IDS, map(str, CLASS_OF), strict=True))
    scenes = scenes_of(CLIP_IDS, [None] * NUM_CLIPS, classes, "other_class")
    donors = np.stack([draw_off_screen(CLIP_IDS, scenes, seed) for seed in range(NUM_SEEDS)])
    donor_ids = np.array(CLIP_IDS)[donors]
    bank = SoundBank(own, own, donors, lambda waveforms: waveforms, NUM_SAMPLES)
    maps = compare_with_sounds(model, batches(**inputs), lambda batch: batch.frames, bank)
    extremes = find_extremes(maps, scoring, CPU)
    if threshold is None:
        threshold = universal_threshold({kind: of[..., -1] for kind, of in extremes.items()})
    scores = score_maps(maps, scoring, threshold, CPU)
    return NegativeResult(CLIP_IDS, extremes, scores, threshold, donor_ids, maps.num_bytes)


def numbers(result):
    columns = clip_columns(result.scores)
    found = numbers_of({name: values.mean(axis=0) for name, values in columns.items()})
    return {name: values.mean() for name, values in found.items()}


COSINE = Scoring(half_cosine=False)
