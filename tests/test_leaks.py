"""Clips that were trained on and are scored."""

import pytest

from datasets.lists import find_leak


def test_clips_in_both_lists_are_counted_once_and_named():
    clean = find_leak(["a", "b"], ["c", "d"], purpose="test")
    assert clean == {"checked": True, "num_clips": 0, "first": [], "message": "No test clip was trained on."}
    training = [f"clip_{index}" for index in (9, 3, 5, 1, 7, 8, 2, 4, 4)]
    scored = tuple(f"clip_{index}" for index in (8, 7, 6, 5, 4, 3, 2, 0))
    leak = find_leak(training, scored, purpose="validation")
    assert leak["checked"] and leak["num_clips"] == 6
    assert leak["first"] == ["clip_2", "clip_3", "clip_4", "clip_5", "clip_7"]
    assert "LEAK: 6 of 8 validation clips" in leak["message"]
    assert "first: clip_2, clip_3, clip_4, clip_5, clip_7." in leak["message"]


@pytest.mark.parametrize(("training", "checked"), [(None, False), ([], True)])
def test_unknown_training_list_is_not_taken_for_a_clean_one(training, checked):
    leak = find_leak(training, ["a"], purpose="test")
    assert leak["checked"] is checked
    assert ("--training-list" in leak["message"]) is not checked
