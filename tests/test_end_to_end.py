"""From files to a report through the command line: train, stop, resume, test."""

import csv
import json
import re
import shlex

import pytest
import torch
from command_line import assert_refused, assert_same_weights, run, scoring, training, validation
from shell_scripts import run as run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def succeed(*command):
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


def train(tiny_data, output, *arguments):
    return succeed("main.py", *training(tiny_data, output, *arguments))


def localisation(tiny_data, checkpoint, output, *arguments):
    return succeed("test.py", *scoring(tiny_data, checkpoint, output, *arguments))


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_train_resume_test_report(tiny_data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    messages = train(tiny_data, whole, "--epochs", 2)
    assert "clip/s, loss=" in messages
    assert re.search(r"Finished epoch 2.*, in 0:0\d:\d\d", messages)
    command = shlex.split(messages.split("Score it: ")[1].splitlines()[0])
    train(tiny_data, parts, "--epochs", 1)
    resumed = training(tiny_data, parts, "--epochs", 2, "--resume")
    assert_refused(run("main.py", *resumed, "--no-blur"), "--blur")
    succeed("main.py", *resumed)
    assert_same_weights(whole / "last.pth", parts / "last.pth")

    history = read_table(parts / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert history == read_table(whole / "history.csv")
    assert not (whole / "best.pth").exists()
    logged = [EventAccumulator(str(folder)).Reload().Scalars("train/loss") for folder in (whole, parts)]
    assert len(logged[0]) == len(logged[1]) == 2, "resuming drops no entry"
    assert json.loads((whole / "options.json").read_text())["run"]["seed"] == 4

    results = whole / "results" / "vgg_ss"
    finished = run_script(*command[1:], "--device", "cpu", "--workers", "0", "--save-overlays", "all")
    assert finished.returncode == 0, finished.stderr
    assert "cIoU@0.5" in finished.stdout
    summary = read_summary(results)
    assert (summary["model"], summary["num_clips"]) == ("SSL-TIE whole, 2 epochs", 6)
    assert summary["leak_check"]["num_clips"] == 0
    assert [row["kind"] for row in summary["rows"]] == ["model", "baseline", "baseline", "ceiling"]
    rows = read_table(results / "per_clip.csv")
    hits = sum(float(row["ssl_tie:ciou"]) >= 0.5 for row in rows)
    assert summary["cIoU@0.5"] == pytest.approx(100 * hits / 6)
    assert len(list((results / "overlays").glob("*.jpg"))) == 6
    assert "data:image/jpeg" in (results / "report.html").read_text()

    control = tmp_path / "control"
    localisation(tiny_data, whole / "last.pth", control, "--audio", "shuffled")
    assert read_summary(control)["audio"] == "shuffled"
    page = (control / "report.html").read_text()
    assert "CONTROL" in page and "heard:  (test_" in page
    assert (control / "per_clip.csv").read_text() != (results / "per_clip.csv").read_text()

    other = tmp_path / "batch_of_one"
    localisation(tiny_data, whole / "last.pth", other, "--batch-size", 1)
    for one, many in zip(read_table(other / "per_clip.csv"), rows, strict=True):
        assert one["clip_id"] == many["clip_id"]
        for name in ("ssl_tie:ciou", "sspl:ciou"):
            assert float(one[name]) == pytest.approx(float(many[name]), abs=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        "--precision bf16 --equivariance-target masked",
        *(
            pytest.param(others, marks=pytest.mark.slow)
            for others in (
                "--no-equivariance-gradient --no-tri-map",
                "--equivariance-weight 0 --transformed-contrastive-weight 0 --no-hard-negatives",
                "--no-crop --no-colour --no-grey --no-blur --no-flip --no-spec-augment --workers 2",
            )
        ),
    ],
)
def test_variants_train(tiny_data, tmp_path, arguments):
    train(tiny_data, tmp_path / "run", "--epochs", 1, *arguments.split())
    (history,) = read_table(tmp_path / "run" / "history.csv")
    assert 0 < float(history["loss"]) < 20


def test_validation_keeps_the_best_epoch_and_test_says_so(tiny_data, tmp_path):
    output = tmp_path / "run"
    train(tiny_data, output, "--epochs", 1, *validation(tiny_data))
    (history,) = read_table(output / "history.csv")
    localisation(tiny_data, output / "best.pth", tmp_path / "results")
    summary = read_summary(tmp_path / "results")
    assert summary["cIoU@0.5"] == pytest.approx(float(history["validation_ciou_at_0.5"]), abs=1e-3)
    assert summary["checkpoint"]["selection"]["kind"] == "best"
    assert summary["num_clips_epoch_was_chosen_on"] == 6
    assert "CHOSEN ON TEST" in (tmp_path / "results" / "report.html").read_text()


def test_broken_clip_in_training_is_skipped_and_listed(tiny_data, tmp_path):
    path = tiny_data.root / "VGGSound" / "total_video_frames" / "train_3" / "125.jpg"
    path.write_bytes(path.read_bytes()[:700])  # the header is whole, the picture is not
    assert "Skipped train_3" in train(tiny_data, tmp_path / "run", "--epochs", 1)
    content = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert list(content["progress"]["broken"]) == ["train_3"]
    assert read_table(tmp_path / "run" / "history.csv")[0]["broken_clips"] == "1"


def test_what_a_start_file_had_learned_from_is_not_vouched_for(
    testing_program, tiny_data, checkpoint, tmp_path
):
    content = torch.load(checkpoint, weights_only=True) | {"options": {"start": {"start": "A.pth"}}}
    torch.save(content, tmp_path / "b.pth")
    (tmp_path / "list.txt").write_text("train_1\n")
    for name, words in (("unknown", ()), ("known", ("--training-list", tmp_path / "list.txt"))):
        given = scoring(tiny_data, tmp_path / "b.pth", tmp_path / name, "--gallery", 0, *words)
        assert testing_program.main(given) == 0
        leak = read_summary(tmp_path / name)["leak_check"]
        assert leak["checked"] == (name == "known") and ("A.pth" in leak["message"]) == (name == "unknown")


def test_broken_clip_at_test_is_left_out_and_said(tiny_data, checkpoint, tmp_path):
    path = tiny_data.root / "VGGSound_test" / "frame" / "test_3.jpg"
    path.write_bytes(path.read_bytes()[:700])
    given = scoring(tiny_data, checkpoint, tmp_path / "results")
    assert_refused(run("test.py", *given), "test_3")
    summary = read_summary(tmp_path / "results")
    assert (summary["num_clips"], summary["complete"]) == (5, False)
    assert "test_3" in summary["unreadable"][0]
    succeed("test.py", *given, "--allow-missing")
