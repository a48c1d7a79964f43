"""`test.py negatives` from files to a report, and what it hears."""

import csv
import json
import subprocess

import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, assert_refused, run, torchrun
from peer_inputs import SHAPES, filled, official_file

from datasets.audio import AudioConfig, MiddleSpectrogramConfig, SegmentConfig, SpectrogramConfig
from datasets.clips import AudioVisualClips
from scripts.negative_audio import negative_front_end

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


# ------------------------------------------------------------------------------- silence and noise


@pytest.mark.parametrize(
    ("audio", "floor"),
    [
        (AudioConfig(), -100.0),
        (SpectrogramConfig(), np.log(1e-7) / 12),
        (MiddleSpectrogramConfig(), np.log(1e-7) / 12),
    ],
)
def test_silence_is_the_floor_of_the_method_s_own_front_end(audio, floor):
    heard = negative_front_end(audio, None, CPU)(torch.zeros(1, audio.num_samples))
    torch.testing.assert_close(heard, torch.full_like(heard, floor))


def test_sspl_s_silence_is_the_constant_that_its_front_end_makes_of_any_level():
    audio = SegmentConfig()
    front_end = negative_front_end(audio, None, CPU)
    silence, offset = front_end(torch.tensor([[0.0], [0.3]]).expand(2, audio.num_samples))
    torch.testing.assert_close(silence, offset)
    torch.testing.assert_close(silence, silence[..., :1, :].expand_as(silence), atol=1e-4, rtol=0)
    assert silence.max() < 0  # quiet, but for what the constant leaks into the lowest bins


@pytest.mark.parametrize(
    ("audio", "peer"),
    [
        (AudioConfig(), "ssl_tie"),
        (MiddleSpectrogramConfig(), "ez_vsl"),
        (MiddleSpectrogramConfig(), "fnac"),
        (MiddleSpectrogramConfig(), "slavc"),
    ],
)
def test_silence_as_published_is_a_constant_zero(audio, peer):
    front_end = negative_front_end(audio, peer, CPU)
    silence = front_end(torch.zeros(1, audio.num_samples))
    assert silence.dtype == torch.float32 and not silence.any()
    noise = front_end(torch.randn(1, audio.num_samples))
    assert noise.shape == audio.build_front_end()(torch.zeros(1, audio.num_samples)).shape
    assert noise.min() >= 0 and noise.max() > 0


def test_lvs_hears_a_spectrogram_either_way_but_uncut_noise_as_published():
    noise = 3 * torch.randn(1, 160_000)
    own, published = (negative_front_end(SpectrogramConfig(), p, CPU)(noise) for p in (None, "lvs"))
    assert torch.equal(own, SpectrogramConfig().build_front_end()(noise.clamp(-1, 1)))
    assert published.mean() > own.mean()
    silence = negative_front_end(SpectrogramConfig(), "lvs", CPU)(torch.zeros(1, 160_000))
    torch.testing.assert_close(silence, torch.full_like(silence, np.log(1e-7) / 12))


# ------------------------------------------------------------------------------------- the program


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("".join(f"test_{index},{'abc'[index % 3]}\n" for index in range(6)))
    return path


@pytest.fixture
def arguments(tiny_data, checkpoint, tmp_path):
    return [
        "negatives", "--checkpoint", checkpoint, "--benchmark", "vgg_ss", "--data-root",
        tiny_data.root, "--output", tmp_path / "out", "--workers", 0, "--device", "cpu",
        "--seeds", 2, "--batch-size", 4,
    ]  # fmt: skip


@pytest.fixture
def negatives(arguments, testing_program):
    """Runs the task in this process; returns its exit status."""

    def score(*further):
        return testing_program.main([*map(str, arguments), *map(str, further)])

    return score


def test_from_the_command_line_to_a_report(arguments, labels, tmp_path):
    finished = run("test.py", *arguments, "--labels", labels)
    assert finished.returncode == 0, finished.stderr
    for words in ("F_LOC", "F_AUC", "pIA, off-screen", "third quartile", "report.html"):
        assert words in finished.stdout
    folder = tmp_path / "out"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_clips"] == 6 and summary["leak_check"]["num_clips"] == 0
    assert summary["threshold"]["num_negatives"] == 36
    assert summary["map_bytes"] == 6 * 6 * 2 * 2 * 4
    # The threshold leaves a quarter of the negatives' maxima above it.
    highest = [summary["similarities"][kind]["maximum"] for kind in ("silence", "noise")]
    assert min(map(min, highest)) <= summary["threshold"]["value"]
    with (folder / "per_clip.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip_id"] for row in rows] == [f"test_{index}" for index in range(6)]
    for row in rows:
        donors = row["off_screen_sounds_of"].split()
        assert len(donors) == 2
        assert all(int(donor[-1]) % 3 != int(row["clip_id"][-1]) % 3 for donor in donors)
    for name in ("table.md", "table.tex", "table.csv", "report.html"):
        assert (folder / name).stat().st_size > 1000
    again = run("test.py", *arguments, "--labels", labels, "--table", "csv")
    assert again.returncode == 0 and again.stdout.startswith("benchmark,number,")
    assert json.loads((folder / "summary.json").read_text())["scores"] == summary["scores"]
    other = run("test.py", *arguments, "--labels", labels, "--threshold", 0.5)
    assert_refused(other, "another evaluation", "threshold")


def test_the_own_maps_are_those_of_localisation(negatives, labels, testing_program, arguments):
    assert negatives("--labels", labels) == 0
    folder = arguments[arguments.index("--output") + 1]
    shared = [a for a in map(str, arguments[1:]) if a not in ("--seeds", "2")]
    shared[shared.index("--output") + 1] = str(folder / "localisation")
    rule = ("--protocol", "vssl_eval", "--gallery", "0")
    assert testing_program.main(["localisation", *shared, *rule]) == 0
    located = json.loads((folder / "localisation" / "summary.json").read_text())
    scores = json.loads((folder / "summary.json").read_text())["scores"]
    assert scores["ciou_at_0.5_own"]["mean"] == pytest.approx(located["cIoU@0.5"])
    assert scores["pointing_accuracy_own"]["mean"] == pytest.approx(located["pointing_accuracy"])


def test_classes_are_needed_or_given_up(negatives, arguments, caplog):
    assert negatives() == 2
    assert "--off-screen any" in caplog.text
    assert negatives("--off-screen", "any") == 0
    assert "same class" in caplog.text
    folder = arguments[arguments.index("--output") + 1]
    assert json.loads((folder / "summary.json").read_text())["off_screen"] == "any"


def test_a_held_out_threshold_and_the_authors_errors(negatives, labels, tmp_path, caplog):
    assert negatives("--labels", labels) == 0
    first = json.loads((tmp_path / "out" / "summary.json").read_text())
    few = tmp_path / "few.txt"
    few.write_text("test_0\ntest_1\ntest_2\n")
    held_out = tmp_path / "held_out"
    others = ("--labels", labels, "--clip-list", few, "--output", held_out)
    assert negatives(*others, "--threshold-from", tmp_path / "out" / "summary.json") == 0
    second = json.loads((held_out / "summary.json").read_text())
    assert second["threshold"]["value"] == first["threshold"]["value"]
    assert second["threshold"]["source"] == "shared clips"
    assert "not held out: 3 of the clips" in caplog.text
    published = ("--labels", labels, "--output", tmp_path / "published", "--as-published")
    assert negatives(*published) == 0
    assert "AS PUBLISHED" in caplog.text
    third = json.loads((tmp_path / "published" / "summary.json").read_text())
    assert third["threshold"]["value"] == pytest.approx(0.3338)
    assert "published_auc" in third["scores"]
    assert negatives(*published, "--peer", "fnac") == 2
    assert "does not fit" in caplog.text


def test_a_broken_clip_is_left_out_and_said(negatives, labels, tiny_data, tmp_path):
    path = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    path.write_bytes(path.read_bytes()[:700])
    assert negatives("--labels", labels) == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_clips"] == 5 and "test_3" in summary["unreadable"][0]
    with (tmp_path / "out" / "per_clip.csv").open() as file:
        assert not any("test_3" in value for row in csv.DictReader(file) for value in row.values())
    assert negatives("--labels", labels, "--allow-missing") == 0


@pytest.mark.parametrize("name", ["slavc", "ez_vsl_or_fnac"])
def test_a_peer_is_scored_on_its_own_scale(name, negatives, labels, tmp_path, caplog):
    path = tmp_path / "peer.pth"
    torch.save(official_file(name, filled(SHAPES[name])), path)
    few = tmp_path / "few.txt"
    few.write_text("test_0\ntest_1\n")
    peer = ("--labels", labels, "--checkpoint", path, "--clip-list", few, "--seeds", 1)
    assert negatives(*peer) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["threshold"]["similarity"] == "(cosine + 1) / 2"
    published = (*peer, "--as-published", "--output", tmp_path / "published")
    if name == "ez_vsl_or_fnac":
        assert negatives(*published) == 2
        assert "--peer ez_vsl, or --peer fnac" in caplog.text
        published = (*published, "--peer", "fnac")
    assert negatives(*published) == 0
    found = json.loads((tmp_path / "published" / "summary.json").read_text())["threshold"]
    assert found["value"] == pytest.approx({"slavc": 0.5450}.get(name, 0.5538))


@pytest.mark.slow
def test_two_processes_score_as_one(arguments, negatives, labels, tmp_path):
    assert negatives("--labels", labels) == 0
    parallel = [*arguments, "--labels", labels, "--output", tmp_path / "parallel"]
    finished = subprocess.run(
        torchrun(2, "test.py", *parallel),
        capture_output=True, check=False, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    one, many = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "parallel"))
    assert one["threshold"]["value"] == pytest.approx(many["threshold"]["value"], abs=1e-5)
    assert one["num_clips"] == many["num_clips"] and one["map_bytes"] == many["map_bytes"]
    for name, score in one["scores"].items():
        assert score["mean"] == pytest.approx(many["scores"][name]["mean"], abs=0.1), name


def test_a_frame_that_breaks_between_two_readings_is_left_out_and_said(
    negatives, labels, tiny_data, tmp_path, monkeypatch
):
    """The second reading is of frames alone."""
    path = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    whole = AudioVisualClips.__getitem__
    seen = set()

    def breaking(self, request):
        seen.add(self.content)
        if self.content == "frames" and self.clips[request.position].frame_source == path:
            path.write_bytes(path.read_bytes()[:700])
        return whole(self, request)

    monkeypatch.setattr(AudioVisualClips, "__getitem__", breaking)
    assert negatives("--labels", labels, "--workers", 0) == 2
    assert seen == {"both", "frames"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_clips"] == 5 and "test_3" in summary["unreadable"][0]
    with (tmp_path / "out" / "per_clip.csv").open() as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["test_0", "test_1", "test_2", "test_4", "test_5"]
    for clip_id, row in rows.items():
        donors = row["off_screen_sounds_of"].split()
        assert all(int(donor[-1]) % 3 != int(clip_id[-1]) % 3 for donor in donors)
