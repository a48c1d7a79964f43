"""Which published cut was scored: counts and ids, against the real lists where they are at hand."""

import gzip
import json
from pathlib import Path

import pytest

from datasets.annotations import read_pixel_json
from datasets.clip_lists import read_clip_list
from datasets.cuts import CUTS, NEGATIVE_CUTS, TITLES, Cut, ids_digest, name_cut
from datasets.ground_truth import read_ground_truth
from datasets.layouts import BENCHMARKS, LAYOUTS, scene_of
from datasets.negatives import read_negatives
from utils.localisation_options import Benchmark

# Copies of the published lists that a developer may keep beside the repository.
PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "metadata"
THE_250 = ["3908875350", "3908875357"]


def published(name):
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"no copy of the published list at {path}")
    return path


@pytest.fixture
def is3_json(tmp_path):
    path = tmp_path / "synthetic3240_bbox.json"
    path.write_bytes(gzip.decompress(published("is3_synthetic3240_bbox.json.gz").read_bytes()))
    return path


@pytest.fixture
def two_cuts(monkeypatch):
    ids = ["a", "b", "c"]
    cuts = (Cut("the first", 3, ids_digest(ids)), Cut("the second", 2))
    monkeypatch.setitem(CUTS, "vgg_ss", cuts)
    monkeypatch.setitem(CUTS, "vgg_ss_extended", cuts)
    monkeypatch.setitem(NEGATIVE_CUTS, "vgg_ss_extended", (Cut("N", 1, ids_digest(["x+y"])),))


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["c", "a", "b"], "VGG-SS, 3 clips: the first"),
        (["a", "b", "d"], "VGG-SS, 3 clips: none of the published cuts; as many, but others: the"),
        (["a", "b"], "VGG-SS, 2 clips: as many as the second, whose ids could not be compared"),
        (["a"], "VGG-SS, 1 clips: none of the published cuts"),
    ],
)
def test_a_cut_is_known_by_its_ids_or_by_its_number(two_cuts, listed, words):
    assert name_cut("vgg_ss", listed).startswith(words)


def test_what_is_missing_and_what_is_added_is_said(two_cuts):
    assert name_cut("vgg_ss", list("abc"), num_missing=1) == (
        "VGG-SS, 3 clips: the first; 1 of them are missing"
    )
    assert name_cut("vgg_ss_extended", list("abc"), negatives=["x+y"]) == (
        "Extended VGG-SS, 3 clips: the first; 1 negatives: N"
    )
    assert "; 1 negatives: none of the published cuts; as many" in name_cut(
        "vgg_ss_extended", list("abc"), negatives=["y+x"]
    )


def test_sets_without_published_cuts():
    assert name_cut("stamps", ["a"]) == "stamps, 1 clips: no cut of this set is published"


def test_every_benchmark_is_offered_and_has_its_counts():
    assert set(Benchmark.__args__) == set(BENCHMARKS)
    assert set(CUTS) == set(TITLES) == set(BENCHMARKS) - {"stamps"}
    assert set(NEGATIVE_CUTS) == {name for name in BENCHMARKS if LAYOUTS[name].negatives}
    sizes = {name: [cut.num_clips for cut in cuts] for name, cuts in CUTS.items()}
    assert sizes["vgg_ss"] == [5158, 4911, 4692, 4670, 4655, 2564, 2575, 2425, 2463]
    assert sizes["flickr_soundnet"] == [249, 250, 250]
    assert [sizes[name][0] for name in ("is3", "vpo_ss", "vpo_ms")] == [6480, 890, 2157]
    assert [sizes[name][0] for name in ("avsbench_s4", "avsbench_ms3")] == [3700, 320]


@pytest.mark.parametrize(
    ("dataset", "file_name", "words"),
    [
        ("vgg_ss", "lvs_vggss_test.csv", "VGG-SS, 5,158 clips: the complete set"),
        ("vgg_ss", "lvs_vggss.json", "VGG-SS, 5,158 clips: the complete set"),
        ("vgg_ss", "ssl_tie_test_vggss_4911.txt", "VGG-SS, 4,911 clips: SSL-TIE's cut"),
        ("vgg_ss", "sspl_vggss_test_4692.csv", "VGG-SS, 4,692 clips: SSPL's cut"),
        ("vgg_ss", "ezvsl_vggss_heard_test.csv", "VGG-SS, 2,564 clips: EZ-VSL's heard classes"),
        ("vgg_ss", "ezvsl_vggss_unheard_test.csv", "VGG-SS, 2,575 clips: EZ-VSL's unheard classes"),
        ("flickr_soundnet", "ssl_tie_test_flickr_250.txt", "249 clips: the common cut"),
        ("flickr_soundnet", "ssl_tie_test_flick.csv", "249 clips: the common cut"),
        ("flickr_soundnet", "sslalignment_flickr_test_249.csv", "249 clips: the common cut"),
    ],
)
def test_published_lists_are_recognised(dataset, file_name, words):
    clip_ids = read_clip_list(published(file_name)).clip_ids
    assert name_cut(dataset, clip_ids).endswith(words)
    assert "none" in name_cut(dataset, clip_ids[1:])


def test_the_two_250_of_flickr_soundnet_differ():
    common = read_clip_list(published("ssl_tie_test_flickr_250.txt")).clip_ids
    slavc, senocak = (name_cut("flickr_soundnet", [*common, one]) for one in THE_250)
    assert slavc.endswith("250 clips: the cut of SLAVC, SSL-Align and ACL, the common 249 and "
                          + THE_250[0])  # fmt: skip
    assert senocak.endswith(THE_250[1])
    assert "none" in name_cut("flickr_soundnet", [*common, "1"])


def test_ssl_align_s_cut_is_known_by_its_number_alone():
    clip_ids = read_clip_list(published("lvs_vggss_test.csv")).clip_ids[:4655]
    assert "as many as SSL-Align's cut, whose ids could not be" in name_cut("vgg_ss", clip_ids)


@pytest.mark.parametrize(
    ("dataset", "positives", "negatives", "count", "same_clip"),
    [
        ("vgg_ss_extended", "lvs_vggss_test.csv", "slavc_vggss_test_plus_silent.csv", 5158, 379),
        (
            "flickr_soundnet_extended",
            "ssl_tie_test_flickr_250.txt",
            "slavc_flickr_test_plus_silent.csv",
            250,
            0,
        ),
    ],
)
def test_published_negatives_are_recognised(dataset, positives, negatives, count, same_clip):
    found = read_negatives(published(negatives)).negatives
    listed = [*read_clip_list(published(positives)).clip_ids]
    if "flickr" in dataset:
        listed.append(THE_250[0])
    assert len(found) == len(listed) == count
    assert sum(negative.video == negative.audio for negative in found) == same_clip
    # What is not of the test set itself: the clips with sounds that are silent or not seen.
    strangers = {negative.video for negative in found} - set(listed)
    assert strangers == {negative.audio for negative in found} - set(listed)
    assert strangers == {one.video for one in found if one.video == one.audio}
    ids = [negative.clip_id for negative in found]
    words = name_cut(dataset, listed, negatives=ids)
    assert f"{count:,} clips: the c" in words and "none" not in words
    assert words.endswith(f"; {count:,} negatives: SLAVC's list")
    assert "none" in name_cut(dataset, listed, negatives=ids[1:])


def test_is3_s_boxes_as_published(is3_json):
    frames = read_pixel_json(is3_json)
    assert name_cut("is3", frames) == "IS3, 6,480 clips: the complete set"
    assert all(len(frame.bounding_boxes) == 1 for frame in frames.values())
    assert all(frame.frame_name == frame.sound_name for frame in frames.values())
    scenes = [scene_of(clip_id) for clip_id in frames]
    assert len(set(scenes)) == 3240 and all(scenes.count(scene) == 2 for scene in scenes[:9])
    # Each pixel of the published boxes comes back through the map's rounding.
    entries = json.loads(is3_json.read_text())
    for entry, frame in zip(entries, frames.values(), strict=True):
        assert (224 * frame.bounding_boxes).astype(int).tolist() == [entry["gt_box"]]


def test_is3_s_mean_area_is_the_published_one(is3_json):
    truth = read_ground_truth("is3", is3_json, None)
    areas = [maps.mean(dtype=float) for _, maps in truth.maps(map_size=224, batch_size=1)]
    assert sum(areas) / len(areas) == pytest.approx(0.328, abs=5e-4)
    assert truth.cut == "IS3, 6,480 clips: the complete set"


def test_positives_without_area_keep_their_boxes():
    truth = read_ground_truth("vgg_ss", published("lvs_vggss.json"), None)
    empty = [i for i, maps in truth.maps(map_size=224, batch_size=1) if not maps.any()]
    assert empty == [["M1P1xla8rg0_000000"], ["MKC9LvRivTM_000030"]]
    assert all(len(boxes) > 0 for boxes in truth.boxes.values())
