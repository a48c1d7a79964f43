"""Whether the scored clips are those of a rule's published numbers."""

import json

import pytest
from result_inputs import make_context, make_result

from datasets.lists import LISTS, ROWS
from scripts.scoring import known_lists_of
from utils.evaluation.protocols import PROTOCOLS
from utils.published_lists import KnownLists, PublishedList, check_list, ids_sha256
from utils.results import summarise

CLIPS = ["b", "a", "c"]
MINE = PublishedList("my cut", "my_list")
KNOWN = KnownLists({"my_list": "ab" * 32}, {"my cut": ids_sha256(CLIPS), "lost cut": None})


def test_the_published_clips_are_known_again():
    checked = check_list("Me", MINE, KNOWN, CLIPS)
    assert checked.is_scored and checked.sha256 == "ab" * 32
    assert checked.words == "list: that of the published numbers (my cut)"


@pytest.mark.parametrize("clips", [CLIPS[:2], [*CLIPS, "d"], ["a", "b", "d"]])
def test_other_clips_are_said_to_be_others(clips):
    checked = check_list("Me", MINE, KNOWN, clips)
    assert not checked.is_scored and checked.sha256 == "ab" * 32
    assert "not comparable with those of Me" in checked.words


def test_a_part_of_which_numbers_are_published_too_is_known_again():
    part = PublishedList("part", "part_list")
    mine = PublishedList("my cut", "my_list", also=(part,))
    known = KnownLists({"part_list": "ef" * 32}, {"my cut": ids_sha256(CLIPS), "part": ids_sha256(CLIPS[:2])})
    checked = check_list("Me", mine, known, CLIPS[:2])
    assert checked.is_scored and (checked.cut, checked.sha256) == ("part", "ef" * 32)
    assert check_list("Me", mine, known, CLIPS).cut == "my cut"
    other = check_list("Me", mine, known, CLIPS[1:])
    assert not other.is_scored and other.cut == "my cut"


@pytest.mark.parametrize(
    ("name", "published_on_it"),
    [("slavc", True), ("ez_vsl", True), ("fnac", True), ("fnac_bicubic", True), ("lvs", False),
     ("ssl_tie", False)],
)  # fmt: skip
def test_classes_heard_in_training_are_a_list_of_those_who_published_on_it(name, published_on_it):
    cuts = [row.cut for row in ROWS if "EZ-VSL" in row.cut]
    published = PROTOCOLS[name].published_lists["vgg_ss"]
    assert [one.cut for one in published.also] == (cuts if published_on_it else [])
    heard = KnownLists(cuts={cuts[0]: ids_sha256(CLIPS)})
    assert check_list(name, published, heard, CLIPS).is_scored == published_on_it


def test_what_is_not_known_is_said():
    lost = check_list("Me", PublishedList("lost cut"), KNOWN, CLIPS)
    assert not lost.is_scored and "whose ids are not known here" in lost.words
    unknown = check_list("Me", None, KNOWN, CLIPS)
    assert not unknown.is_scored and (unknown.cut, unknown.sha256) == (None, None)
    assert "no numbers that Me published here" in unknown.words


def test_negatives_belong_to_the_list():
    known = KnownLists(cuts={"my cut": ids_sha256(CLIPS)}, negative_cut=ids_sha256(["n", "m"]))
    assert check_list("Me", MINE, known, CLIPS, ["m", "n"]).is_scored
    assert not check_list("Me", MINE, known, CLIPS, ["m"]).is_scored
    assert not check_list("Me", MINE, known, CLIPS).is_scored
    assert not check_list("Me", MINE, KNOWN, CLIPS, ["m"]).is_scored


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_rule_names_lists_that_there_are(name):
    protocol = PROTOCOLS[name]
    assert protocol.authors and "truncated" in protocol.ground_truth
    for benchmark, published in protocol.published_lists.items():
        for one in (published, *published.also):
            assert one.cut in {row.cut for row in ROWS if benchmark in row.benchmarks}
            assert one.name is None or one.name in LISTS


def test_the_lists_do_not_tell_rules_apart():
    assert PROTOCOLS["lvs"].published_lists != PROTOCOLS["ssl_tie"].published_lists
    assert PROTOCOLS["lvs"].rule == PROTOCOLS["ssl_tie"].rule
    assert hash(PROTOCOLS["lvs"].rule) == hash(PROTOCOLS["ssl_tie"].rule)


def test_hashes_of_an_extended_benchmark():
    known = known_lists_of("vgg_ss_extended")
    assert known.negative_cut == LISTS["slavc_vgg_ss_negatives"].ids_sha256
    assert known.files["slavc_vgg_ss_negatives"]
    assert known_lists_of("vgg_ss").negative_cut is None
    assert known_lists_of("stamps").cuts == {}


def test_each_rule_of_a_result_says_whose_list_it_is():
    result = make_result()
    ids = [clip.clip_id for clip in result.model.clips]
    known = KnownLists(
        {"ssl_tie_vgg_ss_4911": "cd" * 32}, {"SSL-TIE's cut": ids_sha256(ids), "SSPL's cut": "other"}
    )
    summary = summarise(result, make_context(known_lists=known))
    ssl_tie, sspl = (one["published_list"] for one in summary["protocols"])
    assert ssl_tie["is_scored"] and ssl_tie["sha256"] == "cd" * 32
    assert ssl_tie["name"] == "ssl_tie_vgg_ss_4911"
    assert not sspl["is_scored"] and "not comparable with those of SSPL" in sspl["words"]
    first = summary["protocols"][0]
    assert first["authors"] == "SSL-TIE" and "union" in first["ground_truth"]
    assert "published_lists" not in json.loads(json.dumps(first))
