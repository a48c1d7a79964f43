"""The open-set splits: their scripts, and lists that users save by hand."""

import json

import pytest
from shell_scripts import ROOT, ROOTS, run

from datasets import splits
from datasets.official_splits import OFFICIAL_SPLITS
from datasets.splits import fetch_split, resolve_clip_list
from datasets.unverified_lists import UNVERIFIED_LISTS, read_unverified_list

TRAIN = ROOT / "scripts" / "train_VGGSound_openset.sh"
TEST = ROOT / "scripts" / "test_VGGSound_openset.sh"
HEARD = "ssl_tie_openset_heard"


def several_documents(text):
    """JSON documents that follow each other."""
    decoder, place, found = json.JSONDecoder(), 0, []
    while place < len(text):
        document, place = decoder.raw_decode(text, place)
        found.append(document)
        place += len(text[place:]) - len(text[place:].lstrip())
    return found


def save_list(folder, name, count):
    path = folder / f"{name}.txt"
    path.write_text("".join(f"clip_{place:06d}\n" for place in range(count)))
    return path


@pytest.mark.parametrize("name", UNVERIFIED_LISTS)
def test_a_list_that_is_not_there_is_refused_with_what_to_fetch(name, tmp_path):
    known = UNVERIFIED_LISTS[name]
    for attempt in (resolve_clip_list, fetch_split):
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            attempt(name, tmp_path)
        for word in (known.repository, known.place, f"{name}.txt"):
            assert word in str(caught.value)
    assert name not in OFFICIAL_SPLITS


def test_a_saved_list_is_read_and_counted(tmp_path):
    path = save_list(tmp_path, HEARD, 2425)
    found = resolve_clip_list(HEARD, tmp_path)
    assert (found.name, len(found.clip_ids)) == (HEARD, 2425)
    assert found.sha256 == resolve_clip_list(path).sha256
    save_list(tmp_path, HEARD, 2424)
    with pytest.raises(ValueError, match=r"has 2424 clips, expected 2425"):
        read_unverified_list(HEARD, tmp_path)
    save_list(tmp_path, "ssl_tie_openset_train", 3)  # its exact count is not known
    assert len(read_unverified_list("ssl_tie_openset_train", tmp_path).clip_ids) == 3


def test_the_list_of_lists_names_them(capsys):
    assert splits.main(["--list"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert listed == OFFICIAL_SPLITS.keys() | UNVERIFIED_LISTS.keys()


@pytest.mark.parametrize("openset", ["ssl_tie", "ez_vsl"])
def test_training_takes_one_definition_by_name(openset, start, tmp_path):
    finished = start(TRAIN, "--dry-run", **ROOTS, OPENSET=openset)
    options = json.loads(finished.stdout)
    assert options["data"]["clip_list"] == f"{openset}_openset_train"
    assert options["run"]["output"] == f"runs/ssl_tie_VGGSound_openset_{openset}"
    optimisation = options["optimisation"]
    assert (optimisation["epochs"], optimisation["batch_size"]) == (100, 32)
    assert not options["mixing"]["audio_mixing"]
    mine = start(TRAIN, "--dry-run", **ROOTS, OPENSET=openset, TRAIN_LIST="mine.txt")
    assert json.loads(mine.stdout)["data"]["clip_list"] == "mine.txt"
    refused = run(TRAIN, "--device", "cpu", **ROOTS, OPENSET=openset, VSSL_SPLITS=str(tmp_path))
    assert refused.returncode == 2
    assert "is not fetched for you" in refused.stderr
    assert f"{tmp_path}/{openset}_openset_train.txt" in refused.stderr
    assert "Traceback" not in refused.stderr


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
