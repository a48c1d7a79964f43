"""Saved similarity maps: scored again with the boxes as they were from the model."""

import json
import resource
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_inputs import make_s4
from command_line import assert_refused, run
from conftest import vgg_ss_xml
from PIL import Image
from result_inputs import make_context, make_result

from datasets.annotations import read_vgg_ss_json
from datasets.lists import read_clip_list
from utils.evaluation.localisation import LocalisationResult, read_maps, save_maps
from utils.evaluation.protocols import PROTOCOLS
from utils.files import file_sha256

METADATA = Path(__file__).parents[2] / "shared" / "metadata"


def test_what_was_saved_comes_back(tmp_path):
    result = make_result(unreadable=[("torn", "no JPEG")])
    context = asdict(make_context(missing=("x: no frame",)))
    save_maps(tmp_path / "deep" / "maps.npz", result, context)
    header, places, maps, objects = read_maps(tmp_path / "deep" / "maps.npz")
    assert header["context"] == json.loads(json.dumps(context))
    assert header["unreadable"] == [["torn", "no JPEG"]]
    assert places == {f"clip_{place}": place for place in range(4)}
    np.testing.assert_array_equal(maps, result.maps)
    assert objects is None


def test_broken_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No saved maps at .*none"):
        read_maps(tmp_path / "none.npz")
    path, other = tmp_path / "maps.npz", tmp_path / "other.npz"
    save_maps(path, make_result(), asdict(make_context()))
    content, arrays = path.read_bytes(), dict(np.load(path))
    header = json.loads(arrays["header"].tobytes())

    def changed(**changes):
        np.savez(other, **{name: array for name, array in (arrays | changes).items() if array is not None})
        return other.read_bytes()

    def packed(**changes):
        return np.frombuffer(json.dumps(header | changes).encode(), np.uint8)

    for wrong in (
        content[: len(content) // 2],
        b"similarity maps",
        b"",
        changed(header=None),
        changed(maps=np.array([{}], dtype=object)),
        changed(maps=arrays["maps"][:-1]),
        changed(header=packed(format="another")),
        changed(header=packed(context=header["context"] | {"object_prior": 0.5})),
    ):
        other.write_bytes(wrong)
        with pytest.raises(ValueError, match="is broken, or no file of --save-maps"):
            read_maps(other)


# -------------------------------------------------------------------------------------- the program


def asked(tiny_data, output, *arguments):
    return (
        "localisation", "--benchmark", "vgg_ss", "--data-root", tiny_data.root, "--output", output,
        "--workers", 0, "--device", "cpu", *arguments,
    )  # fmt: skip


@pytest.mark.slow
def test_a_second_scoring_needs_neither_model_nor_frames(tiny_data, checkpoint, tmp_path):
    direct, again, maps = tmp_path / "direct", tmp_path / "again", tmp_path / "deep" / "maps.npz"
    copied = shutil.copy(checkpoint, tmp_path / "last.pth")
    every, model = ("--protocol", "all", "--note", "tiny"), ("--checkpoint", copied, "--gallery", 1)
    finished = run("test.py", *asked(tiny_data, direct, *model, *every, "--save-maps", maps))
    assert finished.returncode == 0, finished.stderr
    copied.unlink()
    for frame in (tiny_data.root / "VGGSound_test" / "frame").iterdir():
        frame.write_bytes(frame.read_bytes()[:700])  # the header is whole, the picture is not
    given = asked(tiny_data, again, "--from-maps", maps, *every)
    finished = run("test.py", *given)
    assert finished.returncode == 0, finished.stderr
    for name in ("per_clip.csv", "table.tex", "table.csv"):
        assert (again / name).read_bytes() == (direct / name).read_bytes(), name
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (direct, again))
    source = second.pop("scored_from_maps")
    assert first.pop("scored_from_maps") is None
    assert (source["path"], source["sha256"]) == (str(maps), file_sha256(maps))
    assert source["made_by"] == first.pop("command") != second.pop("command")
    assert second == first
    page = (again / "report.html").read_text()
    assert source["sha256"] in page and "<img" not in page
    assert "<img" in (direct / "report.html").read_text()
    # Into the folder of the same evaluation; with fewer rules into that of another; of other clips.
    assert run("test.py", *given).returncode == 0
    assert_refused(run("test.py", *given, "--protocol", "sspl"), "another protocol")
    (tmp_path / "few.txt").write_text("test_0\n")
    few = run("test.py", *given, "--clip-list", tmp_path / "few.txt")
    assert_refused(few, "holds maps of 6 clips of vgg_ss", "are others, 5 differ")


@pytest.mark.parametrize(
    ("benchmark", "options"), [("avsbench_s4", []), ("vgg_ss", ["--frame-geometry", "centre_crop"])]
)
def test_masks_and_cropped_boxes_are_those_of_the_first_scoring(
    testing_program, tiny_data, checkpoint, tmp_path, benchmark, options
):
    if benchmark == "avsbench_s4":
        make_s4(tmp_path)
    else:
        shutil.copytree(tiny_data.root / "VGGSound_test", tmp_path, dirs_exist_ok=True)
        for path in (tmp_path / "frame").iterdir():
            with Image.open(path) as picture:
                picture.resize((160, 90)).save(path)
    given = ["localisation", "--benchmark", benchmark, "--data-root", tmp_path, "--workers", 0]
    model = ["--checkpoint", checkpoint, "--save-maps", tmp_path / "maps.npz", "--gallery", 0, *options]
    for name, source in (("direct", model), ("again", ["--from-maps", tmp_path / "maps.npz"])):
        words = [*given, *source, "--output", tmp_path / name]
        assert testing_program.main([str(word) for word in words]) == 0
    direct, again = ((tmp_path / name / "per_clip.csv").read_bytes() for name in ("direct", "again"))
    assert again == direct


@pytest.mark.slow
def test_several_processes_write_and_score_one_file(tiny_data, checkpoint, tmp_path):
    alone, both, again, maps = (tmp_path / name for name in ("alone", "both", "again", "maps.npz"))
    model = ("--checkpoint", checkpoint, "--gallery", 1, "--save-overlays", 5)
    assert run("test.py", *asked(tiny_data, alone, *model)).returncode == 0
    for arguments in (
        asked(tiny_data, both, *model, "--save-maps", maps), asked(tiny_data, again, "--from-maps", maps)
    ):  # fmt: skip
        finished = run("test.py", *arguments, processes=2)
        assert finished.returncode == 0, finished.stderr
    assert len(list((both / "overlays").glob("*.jpg"))) == 5
    for folder in (both, again):
        assert (folder / "per_clip.csv").read_bytes() == (alone / "per_clip.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--from-maps m --checkpoint c.pth", "--checkpoint cannot be given beside --from-maps"),
        ("--from-maps m --audio shuffled --object-prior 0.4", "--object-prior, --audio cannot"),
        ("--from-maps m --frame-geometry centre_crop", "--frame-geometry cannot"),
        ("--from-maps m --save-maps again.npz", "--save-maps cannot"),
        ("--from-maps m --save-overlays 3 --gallery 0", "--save-overlays, --gallery cannot"),
        ("--checkpoint c.pth --save-maps .", "--save-maps . is a folder; name a file"),
        ("--checkpoint c.pth --save-maps file/maps.npz", "is a file"),
        ("", "--checkpoint is missing"),
    ],
)
def test_options_that_contradict_are_refused_at_once(
    testing_program, tmp_path, caplog, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    given = "localisation --benchmark vgg_ss --data-root . --output o".split()
    assert testing_program.main([*given, *arguments.split()]) == 2
    assert words in caplog.text
    assert not Path("o").exists()


# ---------------------------------------------------------------------------------------- its speed


@pytest.mark.slow
def test_4911_clips_under_every_rule_take_less_than_two_minutes_of_processor_time(tmp_path):
    path = METADATA / "lvs_vggss.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    boxes = read_vgg_ss_json(path)
    clip_ids = read_clip_list(METADATA / "ssl_tie_test_vggss_4911.txt").clip_ids
    data = tmp_path / "data"
    for folder in ("frame", "audio", "anno"):
        (data / folder).mkdir(parents=True)
    for clip_id in clip_ids:
        (data / "frame" / f"{clip_id}.jpg").write_bytes(b"a frame")
        (data / "audio" / f"{clip_id}.wav").write_bytes(b"a sound")
        (data / "anno" / f"{clip_id}.xml").write_text(vgg_ss_xml(clip_id, *boxes[clip_id]))
    coarse = torch.randn(len(clip_ids), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = torch.nn.functional.interpolate(coarse, (14, 14), mode="bicubic")[:, 0] / 3
    found = LocalisationResult((), pd.DataFrame({"clip_id": clip_ids}), maps=maps)
    save_maps(tmp_path / "maps.npz", found, asdict(make_context(num_listed=len(clip_ids))))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = run(
        "test.py", "localisation", "--from-maps", tmp_path / "maps.npz", "--protocol", "all",
        "--benchmark", "vgg_ss", "--data-root", data, "--output", tmp_path / "out", "--workers", 0,
        "--clip-list", METADATA / "ssl_tie_test_vggss_4911.txt",
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert finished.returncode == 0, finished.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # On two free cores it takes less than 60 s; others on the machine slow each of them down.
    assert seconds < 120
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_clips"] == 4911 and len(summary["protocols"]) == len(PROTOCOLS)
    assert summary["rows"][-1]["ciou_at_0.5"] == pytest.approx(50.52, abs=0.005)
