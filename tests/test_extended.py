"""Average precision of extended benchmarks, against loops over thresholds and clips."""

import dataclasses
import math
import time

import numpy as np
import pytest
from detection_oracle import slow_scores

from utils.evaluation.metrics import success_rate
from utils.extended import IOU_LEVELS, RankedClips


def made_up_clips(num_clips, *, ties, seed, share=0.5):
    """(confidence, consensus IoU, has an object) of clips; confidences of good clips are larger."""
    rng = np.random.default_rng(seed)
    cious = np.where(rng.random(num_clips) < 0.2, 0.5, rng.random(num_clips))
    has_object = rng.random(num_clips) < share
    has_object[0] = True
    confidences = 0.3 + 0.2 * rng.random(num_clips) + 0.2 * has_object * cious
    if ties:
        confidences = np.round(confidences, 2)
    return list(zip(confidences.tolist(), cious.tolist(), has_object.tolist(), strict=True))


def fast_scores(clips, level, repeats=None):
    confidences, cious, has_object = zip(*clips, strict=True)
    return dataclasses.asdict(RankedClips(confidences, cious, has_object).scores(level, repeats))


@pytest.mark.parametrize("level", IOU_LEVELS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_clips", [1, 2, 3, 11, 25, 199, 401, 650])
def test_scores_are_those_of_slow_loops(num_clips, ties, level):
    clips = made_up_clips(num_clips, ties=ties, seed=num_clips)
    assert fast_scores(clips, level) == pytest.approx(slow_scores(clips, level), abs=1e-12)


def test_a_toy_of_six_clips():
    clips = [
        (0.9, 0.8, True),
        (0.8, 0.0, False),
        (0.7, 0.2, True),
        (0.6, 0.6, True),
        (0.4, 0.0, False),
        (0.3, 0.9, True),
    ]
    scores = RankedClips(*zip(*clips, strict=True)).scores()
    # Downwards: precision 1, 1/2, 1/3, 2/4, 2/5, 3/6; recall 1/4, 1/4, 1/3, 2/3, 2/3, 1.
    assert scores.average_precision_exact == pytest.approx(1 / 4 + 3 / 4 * 1 / 2)
    # Without the largest confidence: the first recall, 1/4, earns nothing.
    assert scores.average_precision == pytest.approx(3 / 4 * 1 / 2)
    assert scores.max_f1 == scores.max_f1_exact == pytest.approx(2 / 3)
    assert scores.f1_at_half == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert (scores.localisation_accuracy, scores.precision_all) == (3 / 4, 3 / 6)


def test_equal_confidences_say_nothing_about_who_sounds():
    clips = [(1.0, 0.9, index % 4 == 0) for index in range(40)]
    scores = RankedClips(*zip(*clips, strict=True)).scores()
    assert scores.average_precision == 0
    assert scores.average_precision_exact == pytest.approx(10 / 40)
    assert scores.localisation_accuracy == 1


@pytest.mark.parametrize("confidence", [math.nan, -math.inf])
def test_a_clip_without_a_confidence_comes_last_and_without_a_ciou_is_missed(confidence):
    clips = [(0.2, 0.9, True), (0.9, math.nan, True), (confidence, 0.9, True), (0.4, 0.1, False)]
    lowest = [(-1.0 if clip[0] is confidence else clip[0], *clip[1:]) for clip in clips]
    lowest[1] = (0.9, 0.0, True)
    assert fast_scores(clips, 0.5) == fast_scores(lowest, 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_a_resample_is_scored_as_its_list_of_clips(seed):
    clips = made_up_clips(230, ties=seed % 2 == 0, seed=seed)
    drawn = np.random.default_rng(seed).integers(len(clips), size=len(clips))
    repeats = np.bincount(drawn, minlength=len(clips))
    expected = slow_scores([clips[place] for place in drawn], 0.5)
    assert fast_scores(clips, 0.5, repeats) == pytest.approx(expected, abs=1e-12)


def test_clips_with_an_object_only_give_the_success_rate():
    clips = made_up_clips(300, ties=True, seed=5, share=2)
    scores = fast_scores(clips, 0.5)
    rate = success_rate([ciou for _, ciou, _ in clips])
    assert scores["localisation_accuracy"] == scores["precision_all"] == rate


def test_ten_thousand_clips_take_a_moment():
    clips = made_up_clips(10_316, ties=False, seed=1)
    started = time.process_time()
    fast_scores(clips, 0.5)
    assert time.process_time() - started < 0.5


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="a clip with an object; got 2, 2 and 2, of these 0"):
        RankedClips([0.5, 0.6], [0, 0], [False, False])
    with pytest.raises(ValueError, match="got 1, 2 and 2"):
        RankedClips([0.5], [0, 0], [True, False])
