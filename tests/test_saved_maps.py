"""Saved similarity maps: scored from the file alone as they were from the model."""

import json
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, assert_refused, run, torchrun
from localiser_inputs import small_ssl_tie
from result_inputs import make_context

from datasets.annotations import consensus_map, read_vgg_ss_json
from datasets.lists import read_clip_list
from utils.checkpoint import save_checkpoint
from utils.evaluation.localisation import LocalisedBatch, score_maps
from utils.evaluation.protocols import PROTOCOLS, ObjectMaps
from utils.files import file_sha256
from utils.saved_maps import MapsRecorder, SavedBatch, SavedBrokenClip, read_saved_maps

METADATA = Path(__file__).parents[2] / "shared" / "metadata"
RULES = list(PROTOCOLS.values())
CPU = torch.device("cpu")
ALPHA = 0.4


# ----------------------------------------------------------------------------------------- the file


def draw_batch(clip_ids, seed, truths, boxes, *, objects=False):
    generator = torch.Generator().manual_seed(seed)
    count = len(clip_ids)
    batch = SavedBatch(
        tuple(clip_ids),
        truths.astype(np.float32),
        tuple(boxes),
        tuple(f"pair_{clip_id[0]}" if index % 2 else None for index, clip_id in enumerate(clip_ids)),
        (SavedBrokenClip(f"broken_{seed}", "no JPEG"),),
    )
    maps = torch.randn(count, 14, 14, generator=generator)
    others = ObjectMaps(torch.rand(count, 7, 7, generator=generator), ALPHA) if objects else None
    return LocalisedBatch(batch, maps, others)


def made_up_batches(*, objects=False):
    """Two batches with other values of truth, and one in which all clips are broken."""
    rng = np.random.default_rng(0)
    votes = rng.choice([0, 0.5, 1], (3, 224, 224), p=[0.7, 0.2, 0.1])
    thirds = rng.choice([0, 1 / 3, 1], (2, 224, 224))
    boxes = [rng.random((number, 4)) for number in (2, 0, 3)]
    yield draw_batch(("a1", "a2", "b1"), 0, votes, boxes, objects=objects)
    nobody = SavedBatch((), None, (), (), (SavedBrokenClip("silent", "no sound"),))
    yield LocalisedBatch(nobody, None)
    yield draw_batch(("c1", "b2"), 1, thirds, [np.zeros((1, 4)), rng.random((4, 4))], objects=objects)


def saved(tmp_path, context, *, objects=False):
    """The direct result, and the file that was written beside it."""
    recorder, path = MapsRecorder(), tmp_path / "maps.npz"
    alpha = ALPHA if objects else None
    localised = recorder.watched(made_up_batches(objects=objects))
    direct = score_maps(localised, RULES, alpha=alpha)
    recorder.write(path, context, 224)
    return direct, path


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_from_the_file_are_the_direct_ones(tmp_path, objects, batch_size):
    alpha = ALPHA if objects else None
    direct, path = saved(tmp_path, make_context(object_prior=alpha), objects=objects)
    maps = read_saved_maps(path)
    again = score_maps(maps.batches(range(5), batch_size, CPU), RULES, alpha=alpha)
    assert again == direct
    assert [truth.num_boxes for truth in again.truths] == [2, 0, 3, 1, 4]
    assert len(again.unreadable) == 3
    expected = f"model + object prior (alpha {ALPHA})" if objects else "model"
    assert again.model.name == expected


def test_ground_truth_and_boxes_come_back_as_they_were(tmp_path):
    _, path = saved(tmp_path, make_context())
    (batch,) = list(read_saved_maps(path).batches([1, 3], 8, CPU))
    truths = [found.batch.ground_truth_maps for found in made_up_batches() if found.batch.clip_ids]
    assert batch.batch.clip_ids == ("a2", "c1")
    np.testing.assert_array_equal(batch.batch.ground_truth_maps, [truths[0][1], truths[1][0]])
    boxes = read_saved_maps(path).clips.bounding_boxes
    direct = [box for found in made_up_batches() for box in found.batch.bounding_boxes]
    for one, other in zip(boxes, direct, strict=True):
        np.testing.assert_array_equal(one, other)


def test_clips_with_outlines_have_no_boxes(tmp_path):
    recorder = MapsRecorder()
    (*_, found) = made_up_batches()
    without = replace(found.batch, bounding_boxes=(None, None))
    assert len(list(recorder.watched([replace(found, batch=without)]))) == 1
    recorder.write(tmp_path / "maps.npz", make_context(), 224)
    assert read_saved_maps(tmp_path / "maps.npz").clips == replace(without, ground_truth_maps=None)


def test_the_context_comes_back_with_the_file_that_it_was_read_from(tmp_path):
    context = make_context(classes={"a1": "dog"}, missing=("x: no frame",), object_prior=None)
    _, path = saved(tmp_path, context)
    found = read_saved_maps(path).context
    assert replace(found, saved_maps=None) == context
    assert found.saved_maps["path"] == str(path)
    assert found.saved_maps["sha256"] == file_sha256(path)
    assert found.saved_maps["made_by"] == context.command


def test_broken_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No saved maps at .*none"):
        read_saved_maps(tmp_path / "none.npz")
    _, path = saved(tmp_path, make_context())
    content, arrays = path.read_bytes(), dict(np.load(path))
    header = json.loads(arrays["header"].tobytes())
    elsewhere = tmp_path / "other.npz"
    damaged = {
        "cut": content[: len(content) // 2],
        "turned": content[:900] + bytes(64) + content[964:],
        "text": b"similarity maps",
        "empty": b"",
    }
    for content in damaged.values():
        elsewhere.write_bytes(content)
        with pytest.raises(ValueError, match="is broken, or no file of --save-maps"):
            read_saved_maps(elsewhere)
    changes = {
        "foreign": {"header": None},
        "pickled": {"maps": np.array([{}], dtype=object)},
        "short": {"maps": arrays["maps"][:-1]},
        "other_type": {"maps": arrays["maps"].astype(np.float64)},
        "without_truth": {"truth_0": None},
        "small_truth": {"truth_0": arrays["truth_0"][:, :-1]},
        "other_format": {"header": {**header, "format": "another"}},
        "other_context": {"header": {**header, "context": {"benchmark": "vgg_ss"}}},
        "prior_without_maps": {"header": {**header, "context": {**header["context"], "object_prior": 0.5}}},
    }
    for change in changes.values():
        changed = {**arrays, **change}
        if isinstance(changed["header"], dict):
            changed["header"] = np.frombuffer(json.dumps(changed["header"]).encode(), np.uint8)
        np.savez(elsewhere, **{name: array for name, array in changed.items() if array is not None})
        with pytest.raises(ValueError, match="is broken, or no file of --save-maps"):
            read_saved_maps(elsewhere)


# -------------------------------------------------------------------------------------- the program


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run" / "last.pth"
    save_checkpoint(path, small_ssl_tie().checkpoint)
    return path


def asked(tiny_data, checkpoint, output, *arguments):
    return (
        "localisation", "--checkpoint", checkpoint, "--benchmark", "vgg_ss", "--data-root",
        tiny_data.root, "--output", output, "--workers", 0, "--device", "cpu", "--gallery", 1,
        *arguments,
    )  # fmt: skip


def test_a_second_scoring_needs_neither_model_nor_data(tiny_data, checkpoint, tmp_path):
    direct, again, maps = tmp_path / "direct", tmp_path / "again", tmp_path / "deep" / "maps.npz"
    every = ("--protocol", "all")
    finished = run(
        "test.py", *asked(tiny_data, checkpoint, direct, "--save-maps", maps, "--note", "tiny"),
        *every,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    shutil.rmtree(tiny_data.root)
    shutil.rmtree(checkpoint.parent)
    given = ("localisation", "--from-maps", maps, "--output", again, "--device", "cpu", *every)
    finished = run("test.py", *given)
    assert finished.returncode == 0, finished.stderr
    assert "clip/s" in finished.stderr
    for name in ("per_clip.csv", "table.tex", "table.csv"):
        assert (again / name).read_bytes() == (direct / name).read_bytes(), name
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (direct, again))
    source = second.pop("scored_from_maps")
    assert first.pop("scored_from_maps") is None
    assert (source["path"], source["sha256"]) == (str(maps), file_sha256(maps))
    assert source["made_by"] == first.pop("command") != second.pop("command")
    assert second == first
    page = (again / "report.html").read_text()
    assert source["sha256"] in page and "saved maps come without their frames" in page
    assert "<img" not in page and "<img" in (direct / "report.html").read_text()
    # Into the folder of the same evaluation, and with fewer rules into that of another.
    assert run("test.py", *given).returncode == 0
    assert_refused(run("test.py", *given[:-1], "sspl"), "another protocol")


@pytest.mark.slow
def test_several_processes_write_and_score_one_file(tiny_data, checkpoint, tmp_path):
    alone, both, again = tmp_path / "alone", tmp_path / "both", tmp_path / "again"
    assert run("test.py", *asked(tiny_data, checkpoint, alone)).returncode == 0
    maps = tmp_path / "maps.npz"

    def in_two_processes(*arguments):
        return subprocess.run(
            torchrun(2, "test.py", *arguments),
            capture_output=True, check=False, text=True, env=ENVIRONMENT, timeout=300,
        )  # fmt: skip

    finished = in_two_processes(*asked(tiny_data, checkpoint, both, "--save-maps", maps))
    assert finished.returncode == 0, finished.stderr
    finished = in_two_processes("localisation", "--from-maps", maps, "--output", again)
    assert finished.returncode == 0, finished.stderr
    for folder in (both, again):
        assert (folder / "per_clip.csv").read_bytes() == (alone / "per_clip.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "c.pth"], "--checkpoint cannot be given beside --from-maps"),
        (["--data-root", "data", "--audio", "shuffled"], "--data-root, --audio cannot"),
        (["--benchmark", "vgg_ss"], "--benchmark cannot"),
        (["--clip-list", "l", "--annotations", "a"], "--clip-list, --annotations cannot"),
        (["--object-prior", "0.4"], "--object-prior cannot"),
        (["--frame-geometry", "centre_crop"], "--frame-geometry cannot"),
        (["--save-maps", "again.npz"], "--save-maps cannot"),
        (["--save-overlays", "3"], "--save-overlays cannot"),
        (["--gallery", "0", "--workers", "2"], "--gallery, --workers cannot"),
    ],
)
def test_options_that_the_file_answers_are_refused(testing_program, tmp_path, caplog, arguments, words):
    given = ["localisation", "--from-maps", str(tmp_path / "m"), "--output", str(tmp_path / "o")]
    assert testing_program.main([*given, *arguments]) == 2
    assert words in caplog.text
    assert not (tmp_path / "o").exists()


def test_a_place_where_no_maps_can_be_saved_is_refused_at_once(testing_program, tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    given = ["localisation", "--checkpoint", "none.pth", "--benchmark", "vgg_ss", "--data-root",
             str(tmp_path), "--output", str(tmp_path / "o"), "--save-maps"]  # fmt: skip
    assert testing_program.main([*given, str(tmp_path)]) == 2
    assert "--save-maps" in caplog.text and "is a folder; name a file" in caplog.text
    caplog.clear()
    assert testing_program.main([*given, str(tmp_path / "file" / "maps.npz")]) == 2
    assert "--save-maps" in caplog.text and "is a file" in caplog.text
    assert not (tmp_path / "o").exists()


def test_without_saved_maps_the_model_and_the_data_are_needed(testing_program, tmp_path, caplog):
    assert testing_program.main(["localisation", "--output", "o", "--benchmark", "vgg_ss"]) == 2
    assert "--checkpoint, --data-root is missing" in caplog.text
    missing = ["localisation", "--output", "o", "--from-maps", str(tmp_path / "none.npz")]
    assert testing_program.main(missing) == 2
    assert "No saved maps at" in caplog.text


# ---------------------------------------------------------------------------------------- its speed


@pytest.mark.slow
def test_4911_clips_under_every_rule_take_less_than_two_minutes_of_processor_time(tmp_path):
    path = METADATA / "lvs_vggss.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    boxes = read_vgg_ss_json(path)
    clip_ids = read_clip_list(METADATA / "ssl_tie_test_vggss_4911.txt").clip_ids
    recorder = MapsRecorder()
    generator = torch.Generator().manual_seed(0)

    def localised():
        for start in range(0, len(clip_ids), 64):
            part = clip_ids[start : start + 64]
            annotated = [boxes[clip_id] for clip_id in part]
            truths = np.stack([consensus_map(one, annotators_needed=1) for one in annotated])
            coarse = torch.randn(len(part), 1, 4, 4, generator=generator)
            maps = torch.nn.functional.interpolate(coarse, (14, 14), mode="bicubic")[:, 0]
            clips = SavedBatch(tuple(part), truths, tuple(annotated), (None,) * len(part))
            yield LocalisedBatch(clips, maps / 3)

    for _ in recorder.watched(localised()):
        pass
    recorder.write(tmp_path / "maps.npz", make_context(num_listed=4911), 224)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run(
        "test.py", "localisation", "--from-maps", tmp_path / "maps.npz", "--protocol", "all",
        "--output", tmp_path / "out",
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert finished.returncode == 0, finished.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # On two free cores it takes less than 60 s; others on the machine slow each of them down.
    assert seconds < 120
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_clips"] == 4911 and len(summary["protocols"]) == len(RULES)
    assert summary["rows"][-1]["ciou_at_0.5"] == pytest.approx(50.52, abs=0.005)
