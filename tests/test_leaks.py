"""Clips that were trained on and are scored."""

import json

import pytest

from utils.leaks import find_leak


def test_no_clip_in_both_lists():
    leak = find_leak(["a", "b"], ["c", "d"], purpose="test")
    assert leak.checked and leak.num_clips == 0 and leak.first == ()
    assert leak.message == "No test clip was trained on."


def test_clips_in_both_lists_are_counted_and_named():
    training = [f"clip_{index}" for index in (9, 3, 5, 1, 7, 8, 2, 4)]
    scored = tuple(f"clip_{index}" for index in (8, 7, 6, 5, 4, 3, 2, 0))
    leak = find_leak(training, scored, purpose="validation")
    assert leak.checked and leak.num_clips == 6
    assert leak.first == ("clip_2", "clip_3", "clip_4", "clip_5", "clip_7")
    assert "LEAK: 6 of 8 validation clips" in leak.message
    assert "first: clip_2, clip_3, clip_4, clip_5, clip_7." in leak.message
    assert "clip_8" not in leak.message


@pytest.mark.parametrize("listed_twice", [["a", "a", "b"], ("a", "b", "b")])
def test_a_clip_that_is_trained_on_twice_counts_once(listed_twice):
    assert find_leak(listed_twice, ["a"], purpose="test").num_clips == 1


def test_unknown_training_list_is_not_taken_for_a_clean_one():
    leak = find_leak(None, ["a"], purpose="test")
    assert not leak.checked and leak.num_clips is None and leak.first == ()
    assert "could not be checked" in leak.message and "--training-list" in leak.message
    assert find_leak([], ["a"], purpose="test").checked


def test_leak_becomes_json():
    leak = find_leak(["a"], ["a", "b"], purpose="test")
    assert json.loads(json.dumps(leak.as_dict())) == {
        "checked": True,
        "num_clips": 1,
        "first": ["a"],
        "message": leak.message,
    }
