"""The scripts of the open-set splits."""

import json
import re

import pytest
from shell_scripts import ROOT, ROOTS, run

TRAIN = ROOT / "scripts" / "train_VGGSound_openset.sh"
TEST = ROOT / "scripts" / "test_VGGSound_openset.sh"


def several_documents(text):
    """JSON documents that follow each other; the last brace of each begins its line."""
    return [json.loads(one) for one in re.split(r"(?m)(?<=^\})\n", text) if one]


@pytest.mark.parametrize("openset", ["ssl_tie", "ez_vsl"])
def test_training_takes_one_definition_by_name(openset, start):
    finished = start(TRAIN, "--dry-run", **ROOTS, OPENSET=openset)
    options = json.loads(finished.stdout)
    assert options["data"]["clip_list"] == f"{openset}_openset_train"
    assert options["run"]["output"] == f"runs/ssl_tie_VGGSound_openset_{openset}"
    optimisation = options["optimisation"]
    assert (optimisation["epochs"], optimisation["batch_size"]) == (100, 32)
    assert not options["mixing"]["audio_mixing"]
    mine = start(TRAIN, "--dry-run", **ROOTS, OPENSET=openset, TRAIN_LIST="mine.txt")
    assert json.loads(mine.stdout)["data"]["clip_list"] == "mine.txt"


@pytest.mark.parametrize(("openset", "lists"), [("ssl_tie", "ssl_tie_openset"), ("ez_vsl", "ez_vsl_vgg_ss")])
def test_both_halves_of_one_definition_are_scored(openset, lists, start):
    finished = start(TEST, "--dry-run", **ROOTS, OPENSET=openset)
    assert finished.returncode == 0, finished.stderr
    heard, unheard = several_documents(finished.stdout)
    for part, options in (("heard", heard), ("unheard", unheard)):
        assert options["clip_list"] == f"{lists}_{part}"
        assert options["output"] == f"results/VGGSound_openset_{openset}/{part}"
        assert options["checkpoint"] == f"runs/ssl_tie_VGGSound_openset_{openset}/last.pth"
        assert options["benchmark"] == "vgg_ss"
    finished = start(TEST, "--dry-run", **ROOTS, OPENSET=openset, UNHEARD_LIST="mine.txt")
    found = [options["clip_list"] for options in several_documents(finished.stdout)]
    assert found == [f"{lists}_heard", "mine.txt"]


@pytest.mark.parametrize("script", [TRAIN, TEST], ids=lambda path: path.stem)
def test_a_third_definition_is_refused(script):
    finished = run(script, "--dry-run", **ROOTS, OPENSET="mine")
    assert finished.returncode == 2
    assert "OPENSET is ssl_tie or ez_vsl, not 'mine'" in finished.stderr


def test_the_second_half_is_tried_when_the_first_ends_with_2(tmp_path):
    finished = run(TEST, **ROOTS, OPENSET="ez_vsl", CHECKPOINT=str(tmp_path / "none.pth"))
    assert finished.returncode == 2
    assert finished.stderr.count("No checkpoint at") == 2
