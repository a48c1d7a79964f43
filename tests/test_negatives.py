"""Sounds that are not in the picture: which they are, maps, numbers, files, and the command line."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run, scoring
from peer_inputs import SHAPES, filled, official_file
from result_inputs import make_context

from datasets.clips import Clip, with_wrong_sounds
from models import SCORED
from models.released import build_localiser
from scripts.ablate import read_scores
from utils.evaluation.metrics import quiet_areas
from utils.evaluation.negatives import (
    KINDS,
    MEDIAN_RULE,
    NEGATIVES,
    PAIRS,
    compare_masks,
    draw_off_screen,
    evaluate_negatives,
    scenes_of,
    score_table,
    universal_threshold,
    white_noise,
)
from utils.evaluation.protocols import upsample
from utils.evaluation.statistics import bootstrap_intervals
from utils.reports.negatives import clip_words, negatives_report, shown_clips
from utils.reports.report import write_report

CPU = torch.device("cpu")
SOUNDS = {"ssl_tie": (1, 64, 50), "sspl": (3, 1, 96, 64)}
"""Shape of a sound; peers hear (1, 257, 40)."""
CONFIGS: list[tuple[str, dict]] = [(name, {}) for name in SCORED] + [("sspl", {"pcm": False})]


@pytest.mark.parametrize(("name", "config"), CONFIGS)
@torch.inference_mode()
def test_localise_is_its_two_halves_and_frames_never_hear(name, config):
    torch.manual_seed(0)
    given = asdict(SCORED[name].groups["model"](**config))
    model = build_localiser(name, given).eval()
    frames = torch.randn(2, 3, 96, 96)
    sounds, others = torch.randn(2, 2, *SOUNDS.get(name, (1, 257, 40)))
    visual, heard = model.visual_features(frames), model.sound_features(sounds)
    assert len(visual) == len(heard) == 2
    assert torch.equal(model.compare(visual, heard), model.localise(frames, sounds))
    wrong = model.compare(visual, model.sound_features(others))
    assert torch.equal(wrong, model.localise(frames, others))
    assert not torch.equal(wrong, model.localise(frames, sounds))
    one = model.sound_features(sounds[:1])
    same = model.compare(visual, one.expand(2, *one.shape[1:]))
    torch.testing.assert_close(same[0], model.localise(frames, sounds)[0], rtol=1e-4, atol=1e-5)


def clips_named(*clip_ids, **fields):
    return [Clip(name, Path(f"{name}.jpg"), Path(f"{name}.wav"), **fields) for name in clip_ids]


def heard_by(clips, scenes, num_seeds=40):
    """Ids of all clips whose sounds each clip gets."""
    clip_ids = [clip.clip_id for clip in clips]
    drawn = np.stack([draw_off_screen(clip_ids, scenes, seed) for seed in range(num_seeds)])
    return {name: {clip_ids[d] for d in drawn[:, place]} for place, name in enumerate(clip_ids)}


def test_off_screen_sounds_are_of_another_class_and_of_no_process():
    clips = clips_named(*(f"clip_{index}" for index in range(30)))
    classes = {clip.clip_id: "abc"[index % 3] for index, clip in enumerate(clips)}
    scenes = scenes_of(clips, classes, "other_class")
    for clip_id, donors in heard_by(clips, scenes).items():
        assert {classes[donor] for donor in donors} == set("abc") - {classes[clip_id]}
        assert len(donors) > 10
    third, again, fourth = (draw_off_screen(list(classes), scenes, seed) for seed in (3, 3, 4))
    assert np.array_equal(third, again) and not np.array_equal(third, fourth)


def test_neither_sound_of_a_pair_is_off_screen():
    clips = [
        replace(clip, pair_key=clip.clip_id.rpartition("_")[0])
        for clip in clips_named("cat_dog_1_cat", "cat_dog_1_dog", "owl_subwaytrain_2_owl",
                                "owl_subwaytrain_2_subway", "dog_owl_3_owl", "dog_owl_3_dog")
    ]  # fmt: skip
    scenes = scenes_of(clips, None, "other_class")
    assert scenes["cat_dog_1_cat"] == ("cat", {"cat", "dog"})
    assert scenes["owl_subwaytrain_2_owl"].on_screen == {"owl", "subway"}
    alone = scenes_of(clips[1:], None, "other_class")
    assert alone["cat_dog_1_dog"].on_screen == {"dog"}  # no clip has a cat's sound
    for clip_id, donors in heard_by(clips, scenes).items():
        assert not {scenes[donor].sound for donor in donors} & scenes[clip_id].on_screen
    labelled = scenes_of(clips, dict.fromkeys(scenes, "x"), "other_class")
    with pytest.raises(ValueError, match=r"no off-screen sound for cat_dog_1_cat: all 6 .*\(x\)"):
        draw_off_screen(list(scenes), labelled, 0)
    keys = {clip.clip_id: clip.pair_key for clip in clips}
    for clip_id, donors in heard_by(clips, scenes_of(clips, None, "any")).items():
        assert keys[clip_id] not in {keys[donor] for donor in donors}


SOUNDS_OF_PICTURES = {
    "img1+dog3": "dog", "img1+guitar7": "guitar", "img2+dog3": "dog", "img3+guitar8": "guitar",
    "img4+cat1": "cat", "a_dog+owl2": "owl",
}  # fmt: skip
"""Ids, here <picture>+<sound>, and their classes."""


def test_the_sounds_of_a_picture_are_off_screen_for_none_of_its_clips():
    clips = []
    for clip_id in SOUNDS_OF_PICTURES:
        frame, sound = clip_id.split("+")
        clips.append(Clip(clip_id, Path(f"a_cat/{frame}.jpg"), Path(f"{sound}.wav")))
    scenes = scenes_of(clips, SOUNDS_OF_PICTURES, "other_class")
    assert [set(scene.on_screen) for scene in scenes.values()] == [
        {"dog", "guitar"}, {"dog", "guitar"}, {"dog"}, {"guitar"}, {"cat"}, {"owl"}
    ]  # fmt: skip
    heard = heard_by(clips, scenes)
    assert heard["img1+dog3"] == heard["img1+guitar7"] == {"img4+cat1", "a_dog+owl2"}
    heard = heard_by(clips, scenes_of(clips, None, "any"), 60)
    # Neither the picture's sounds nor the same file with another picture.
    assert heard["img1+dog3"] == heard["img1+guitar7"] == {"img3+guitar8", "img4+cat1", "a_dog+owl2"}
    assert heard["img2+dog3"] == set(SOUNDS_OF_PICTURES) - {"img1+dog3", "img2+dog3"}
    for seed in range(20):
        chosen = {wrong.audio_source for wrong in with_wrong_sounds(clips, seed)[:2]}
        assert chosen.isdisjoint(clip.audio_source for clip in clips[:3])
    with pytest.raises(ValueError, match=r"different scenes; for img1\+"):
        with_wrong_sounds(clips[:2])


def test_noise_is_standard_normal_and_a_clip_s_own():
    noise = white_noise(["a", "b"], 40_000, 0)
    assert noise.dtype == torch.float32
    assert noise.mean().abs() < 0.02 and abs(noise.std() - 1) < 0.02
    assert noise.abs().max() > 3
    assert torch.equal(noise[1:], white_noise(["b"], 40_000, 0))
    assert not torch.equal(noise[:1], white_noise(["a"], 40_000, 1))
    assert not torch.equal(noise[0], noise[1])


def test_areas_and_ious_are_those_of_the_masks():
    generator = torch.Generator().manual_seed(0)
    draws = {"own": 1, "silence": 1, "noise": 3, "off_screen": 3}
    masks = {kind: torch.rand(4, num, 8, 8, generator=generator) > 0.6 for kind, num in draws.items()}
    for kind in draws:
        masks[kind][0] = False  # every mask of the first clip, so that pairs are empty
    masks["own"][1] = False
    found = compare_masks(masks)
    for kind, of_kind in masks.items():
        assert torch.equal(found[f"area:{kind}"], of_kind.double().mean(dim=(2, 3)))
    for one, other in PAIRS:
        shared = (masks[one] & masks[other]).sum(dim=(2, 3)).double()  # (4, 1 or 3)
        expected = shared / (masks[one] | masks[other]).sum(dim=(2, 3))
        torch.testing.assert_close(found[f"iou:{one}~{other}"], expected.nan_to_num(1.0))
    assert found["iou:own~noise"][:2].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_auc_n_is_the_trapezoid_of_the_share_of_quiet_maps():
    rng = np.random.default_rng(0)
    areas = rng.random((50, 4)) ** 3
    areas[0] = (0.0, 1.0, 0.05 * 3, 0.15)  # 0.15 is below the product 0.05 * 3
    shares = [np.mean([[a <= 0.05 * i for a in row] for row in areas]) for i in range(21)]
    expected = sum(0.05 * (shares[i] + shares[i + 1]) / 2 for i in range(20))
    assert quiet_areas(areas).mean() == pytest.approx(expected)
    assert quiet_areas(np.array([0.0, 1.0])).tolist() == pytest.approx([1, 0.025])


def test_the_universal_threshold_is_the_third_quartile_of_all_negatives():
    rng = np.random.default_rng(1)
    silence, *others = rng.random((7, 1)), rng.random((7, 3)), rng.random((7, 3))
    every = sorted([*silence.ravel().tolist() * 3, *np.ravel(others)])  # 63 numbers
    assert universal_threshold([silence, *others]) == pytest.approx((every[46] + every[47]) / 2)


NUM_CLIPS, NUM_SEEDS, NUM_SAMPLES = 10, 4, 400
CLIP_IDS = tuple(f"clip_{index}" for index in range(NUM_CLIPS))
CLASS_OF = [1.0 + index % 2 for index in range(NUM_CLIPS)]
"""What a clip shows and what it sounds of: 1 or 2."""


class Listener:
    """Points to the left of a frame that the sound fits, and nowhere at all when it does not."""

    def __init__(self, *, deaf=False, half_cosine=False):
        self.deaf, self.half_cosine, self.frames_seen, self.sounds_heard = deaf, half_cosine, 0, 0

    def prepare(self, frames, waveforms):
        return frames, waveforms

    def visual_features(self, frames):
        self.frames_seen += len(frames)
        return frames.mean(dim=(1, 2, 3))

    def sound_features(self, waveforms):
        self.sounds_heard += len(waveforms)
        return torch.stack([waveforms.mean(dim=1), waveforms.std(dim=1)], dim=1)

    def compare(self, visual, sound):
        maps = torch.zeros(len(visual), 14, 14)
        maps[:, :, :4] = 1.0
        if self.deaf:
            return maps
        level, spread = sound.unbind(dim=1)
        others = torch.full_like(maps, 0.25)  # off-screen
        others[(level == 0) & (spread == 0)] = 0.125  # silence
        others[spread > 0.5] = 0.1875  # noise
        return torch.where(((level - visual).abs() < 0.01)[:, None, None], maps, others)


def own_truth():
    sharp = torch.zeros(1, 14, 14)
    sharp[:, :, :4] = 1.0
    return (upsample(sharp, MEDIAN_RULE) > 0.25).float().numpy()


def batches(size=4, **changes):
    for start in range(0, NUM_CLIPS, size):
        part = slice(start, start + size)
        values = torch.tensor(CLASS_OF[part])
        batch = SimpleNamespace(
            clip_ids=list(CLIP_IDS[part]),
            frames=values[:, None, None, None].expand(-1, 3, 4, 4),
            waveforms=values[:, None].expand(-1, NUM_SAMPLES),
            ground_truth_maps=np.repeat(own_truth(), len(values), axis=0),
            broken=[],
        )
        yield SimpleNamespace(**{**vars(batch), **changes})


def evaluate(model, threshold=None, size=4, read=None, **changes):
    classes = dict(zip(CLIP_IDS, map(str, CLASS_OF), strict=True))
    return evaluate_negatives(
        model,
        read or (lambda content, chosen: batches(size, **changes)),
        scenes_of(clips_named(*CLIP_IDS), classes, "other_class"),
        num_seeds=NUM_SEEDS,
        num_samples=NUM_SAMPLES,
        device=CPU,
        threshold=threshold,
    )


def numbers(result):
    return score_table(result.scores).set_index("key")["score"]


def test_a_perfect_listener_has_the_numbers_known_by_hand_and_encodes_nothing_twice():
    model = Listener()
    result = evaluate(model)
    assert model.frames_seen == NUM_CLIPS
    assert model.sounds_heard == NUM_CLIPS + 3 + NUM_SEEDS * NUM_CLIPS  # own, silence of 3 batches, noise
    assert result.threshold == 0.25
    found = numbers(result)
    for name in ("ciou_u", "auc_u", "f_loc", "f_auc"):
        assert found[name] == pytest.approx(100), name
    for kind in NEGATIVES:
        assert found[f"pia_{kind}"] == 0 and found[f"auc_n_{kind}"] == pytest.approx(100)
        assert found[f"f_loc_{kind}"] == pytest.approx(100)
    for first, second in PAIRS:
        assert found[f"iou_{first}~{second}"] == (0 if first == "own" else 100)
    assert found["pointing_accuracy_own"] == 100
    assert found["sensitivity_ciou_at_0.5"] == pytest.approx(100)
    for kind, level in {"silence": 0.125, "noise": 0.1875, "off_screen": 0.25, "own": 1}.items():
        assert np.array_equal(np.unique(result.scores[f"maximum:{kind}"]), [level])


def test_a_deaf_model_is_active_on_every_negative():
    found = numbers(evaluate(Listener(deaf=True)))
    assert (found["pia_noise"], found["ciou_u"], found["f_loc"]) == (0, 0, 0)  # nothing lies above
    area = 100 * own_truth().mean()
    found = numbers(evaluate(Listener(deaf=True), threshold=0.25))
    assert found["ciou_u"] == pytest.approx(100)
    for kind in NEGATIVES:
        assert found[f"pia_{kind}"] == pytest.approx(area)
    assert found["f_loc"] == pytest.approx(2 * 100 * (100 - area) / (200 - area))
    assert all(found[f"iou_{a}~{b}"] == 100 for a, b in PAIRS)
    assert found["sensitivity_ciou_at_0.5"] == found["sensitivity_pointing_accuracy"] == 0


def test_clips_are_shown_with_their_first_draws():
    result, half = evaluate(Listener(), 0.2), evaluate(Listener(half_cosine=True), 0.6)
    maxima = [result.scores[f"maximum:{kind}"][:, 0] for kind in KINDS]
    np.testing.assert_allclose(result.maps.amax((2, 3)).numpy(), np.stack(maxima, axis=1))
    torch.testing.assert_close(half.maps, (result.maps + 1) / 2)
    chosen = shown_clips(result, 2)
    assert [len(rows) for rows in chosen.values()] == [2, 2, 2]
    for place, row in chosen["Worst clips"].to_dict("index").items():
        assert (row["clip_id"], row["donor"]) == (CLIP_IDS[place], result.donors[0, place])
        sounds = ["own sound: cIoU 0.98", "silence: pIA 0 %", "noise: pIA 0 %", "off-screen: pIA 100 %"]
        assert clip_words(row) == ["frame", *sounds]


def test_a_third_of_the_negatives_active_and_neither_batch_nor_scale_changes_it():
    one, many = (evaluate(Listener(), 0.2, size) for size in (1, 7))
    for name, values in one.scores.items():
        assert np.array_equal(values, many.scores[name]), name
    found = numbers(one)
    assert [found[f"pia_{kind}"] for kind in NEGATIVES] == [0, 0, 100]
    assert found["f_loc"] == pytest.approx(2 * 100 * (200 / 3) / (100 + 200 / 3), rel=2e-2)
    half = evaluate(Listener(half_cosine=True), 0.6)
    np.testing.assert_allclose(numbers(half), found)


def test_what_cannot_be_scored_is_refused():
    class Broken(Listener):
        def compare(self, visual, sound):
            return super().compare(visual, sound) / 0

    with pytest.raises(ValueError, match=r"map of clips clip_0, .* with own sound is not finite"):
        evaluate(Broken())
    torn = [SimpleNamespace(clip_id="x", reason="torn")]
    with pytest.raises(ValueError, match=r"No clip could be scored \(3 unreadable, first: torn"):
        evaluate(Listener(), clip_ids=(), broken=torn)


def test_the_files_hold_the_numbers(tmp_path):
    result = evaluate(Listener())
    identity = {"num_seeds": NUM_SEEDS, "off_screen": "other_class", "threshold": None}
    write_report(tmp_path, negatives_report(result, make_context(), identity, "cosine"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    means = {name: one["mean"] for name, one in summary["scores"].items()}
    assert means == pytest.approx(dict(numbers(result)))
    assert summary["threshold"]["value"] == 0.25
    area = 100 * own_truth().mean()
    deaf, disc = summary["without_ears"].values()
    assert deaf["f_loc"] == pytest.approx(2 * 100 * (100 - area) / (200 - area))
    assert disc["pia_noise"] == pytest.approx(50, abs=0.1) and len(disc) == 16
    lines = pd.read_csv(tmp_path / "table.csv").set_index("key")["score"]
    assert dict(lines) == pytest.approx(means, abs=1e-4)
    model, blind = read_scores(tmp_path / "summary.json", "full", "4").to_dict("records")  # of an ablation
    assert (model["rule"], model["variant"], model["seed"]) == ("universal threshold", "full", "4")
    assert blind["seed"] == "" and (model["f_loc"], blind["f_loc"]) == (means["f_loc"], disc["f_loc"])
    rows = pd.read_csv(tmp_path / "per_clip.csv")
    assert rows["clip_id"].tolist() == list(CLIP_IDS) and (rows["pIA_noise"] == 0).all()
    assert rows["off_screen_sounds_of"].str.split().map(len).eq(NUM_SEEDS).all()
    page = (tmp_path / "report.html").read_text()
    assert "Universal threshold" in page and r"F\_LOC" in (tmp_path / "table.tex").read_text()


def test_the_spread_is_over_seeds_and_the_interval_over_clips():
    scores = evaluate(Listener(), threshold=0.2).scores
    areas = np.random.default_rng(0).random((NUM_CLIPS, NUM_SEEDS))
    rows = score_table({**scores, "area:noise": areas}).set_index("key")
    low, high = bootstrap_intervals(areas.mean(axis=1, keepdims=True))[0]
    noise = rows.loc["pia_noise", ["score", "sd", "score_low", "score_high"]].to_numpy(float) / 100
    assert noise == pytest.approx([areas.mean(), areas.mean(axis=0).std(ddof=1), low, high])
    assert rows.loc["pia_silence", ["sd", "score_low"]].isna().all()


@pytest.fixture
def arguments(tiny_data, checkpoint, tmp_path):
    """Of the task; its results go to out."""
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"test_{index},{'abc'[index % 3]}\n" for index in range(6)))
    words = ("--seeds", 2, "--batch-size", 4, "--labels", labels)
    return scoring(tiny_data, checkpoint, tmp_path / "out", *words, task="negatives")


@pytest.fixture
def negatives(arguments, testing_program):
    """Runs the task in this process; returns its exit status."""
    return lambda *further: testing_program.main([*arguments, *map(str, further)])


def test_the_own_maps_are_those_of_localisation(
    negatives, testing_program, tiny_data, checkpoint, tmp_path, capsys, caplog
):
    assert negatives() == 0
    folder = tmp_path / "out"
    summary = json.loads((folder / "summary.json").read_text())
    scores = summary["scores"]
    assert (summary["num_clips"], summary["threshold"]["num_negatives"]) == (6, 36)
    assert "F_LOC" in capsys.readouterr().out
    with (folder / "per_clip.csv").open() as file:
        for row in csv.DictReader(file):
            donors = [int(donor[-1]) for donor in row["off_screen_sounds_of"].split()]
            assert len(donors) == 2 and int(row["clip_id"][-1]) % 3 not in {donor % 3 for donor in donors}
    page = (folder / "report.html").read_text()
    assert page.count("panel query-row") == 6 and page.count('<li class="candidate') == 6 * 5
    assert page.count("<audio") == 6 * 2
    assert f"universal threshold, {summary['threshold']['value']:.3f}" in page
    assert negatives("--table", "csv", "--gallery", 0) == 0
    assert "panel query-row" not in (folder / "report.html").read_text()
    assert capsys.readouterr().out.startswith("key,better,score,")
    assert json.loads((folder / "summary.json").read_text())["scores"] == scores
    assert negatives("--threshold", 0.5) == 2
    assert "another evaluation (another threshold)" in caplog.text
    rule = ("--protocol", "ssl_align", "--gallery", 0)
    assert testing_program.main(scoring(tiny_data, checkpoint, tmp_path / "located", *rule)) == 0
    located = json.loads((tmp_path / "located" / "summary.json").read_text())
    assert scores["ciou_at_0.5_own"]["mean"] == pytest.approx(located["cIoU@0.5"])
    assert scores["pointing_accuracy_own"]["mean"] == pytest.approx(located["pointing_accuracy"])


def test_classes_are_needed_or_given_up(arguments, testing_program, tmp_path, caplog):
    words = arguments[:-2]
    assert testing_program.main([*words, "--data-root", "nowhere"]) == 2  # before anything is read
    assert "--labels" in caplog.text and "--off-screen any" in caplog.text
    assert testing_program.main([*words, "--off-screen", "any"]) == 0
    assert "same class" in caplog.text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["off_screen"] == "any"


def test_a_peer_is_scored_on_its_own_scale(negatives, tmp_path):
    path, few = tmp_path / "peer.pth", tmp_path / "few.txt"
    torch.save(official_file("slavc", filled(SHAPES["slavc"])), path)
    few.write_text("test_0\ntest_1\n")
    peer = ("--checkpoint", path, "--clip-list", few, "--seeds", 1, "--threshold", 0.5)
    assert negatives(*peer) == 0
    threshold = json.loads((tmp_path / "out" / "summary.json").read_text())["threshold"]
    assert (threshold["value"], threshold["similarity"]) == (0.5, "(cosine + 1) / 2")


def test_a_frame_that_breaks_between_two_readings_is_left_out_and_said():
    def read(content, chosen):
        first, *others = batches(5)
        if content == "frames":
            torn = SimpleNamespace(clip_id="clip_0", reason="torn")
            first = SimpleNamespace(clip_ids=[], broken=[torn])
        return [first, *others]

    result = evaluate(Listener(), read=read)
    assert result.clip_ids == CLIP_IDS[5:] and result.donors.shape == (NUM_SEEDS, 5)
    assert result.unreadable == (("clip_0", "torn"),)


@pytest.mark.slow
def test_two_processes_score_as_one(arguments, negatives, tmp_path):
    assert negatives() == 0
    finished = run("test.py", *arguments, "--output", tmp_path / "parallel", processes=2)
    assert finished.returncode == 0, finished.stderr
    one, many = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "parallel"))
    assert one["threshold"]["value"] == pytest.approx(many["threshold"]["value"], abs=1e-5)
    assert one["num_clips"] == many["num_clips"]
    for name, score in one["scores"].items():
        assert score["mean"] == pytest.approx(many["scores"][name]["mean"], abs=0.1), name
