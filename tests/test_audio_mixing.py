"""The audio-mixing curriculum: schedule, neighbours, mixtures, and runs that stop anywhere."""

import datetime
import json
import logging
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
from command_line import ENVIRONMENT, run, torchrun
from distributed_workers import narrow_encoder
from test_end_to_end import SMALL, assert_same_weights

import main
import opts
from datasets.audio import AudioConfig
from datasets.audio_mixing import MixedRequest, Mixing, MixingBatches, MixingClips
from datasets.benchmarks import build_clips
from datasets.clips import AudioVisualClips, BrokenClip, ClipRequest, collate
from datasets.frames import FrameGeometry
from datasets.loaders import SeededBatches, build_train_loader
from datasets.views import TestViews, tiled_waveforms
from models import ssl_tie
from utils.evaluation.retrieval import Embeddings
from utils.mixing_schedule import NOBODY, AudioMixingOptions, MixingCurriculum, places_of_nearest

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
AUDIO = AudioConfig(window_seconds=1.5, mel_bins=32, hop_length=400)
GOLDEN = Path(__file__).parents[2] / "shared" / "goldens" / "e_retrieval.npz"
TIME_LIMIT = datetime.timedelta(seconds=60)


# ---------------------------------------------------------------------------------- the schedule


def test_the_schedule_grows_by_epoch_and_is_capped():
    options = AudioMixingOptions(audio_mixing=True, mixing_start_epoch=3)
    assert [options.is_on(epoch) for epoch in range(4)] == [False, False, True, True]
    for epoch in range(2, 150):  # counted from 0: n = 1 in epoch 3
        n = epoch - 1
        assert options.probability_in(epoch) == pytest.approx(min(1, 0.1 + 0.01 * n))
        assert options.strength_in(epoch) == pytest.approx(min(0.5, 0.01 * n))
    own = AudioMixingOptions(
        audio_mixing=True, mixing_probability=0.3, mixing_probability_growth=0,
        mixing_strength=0.2, mixing_strength_growth=0.1, mixing_strength_limit=0.35,
    )  # fmt: skip
    assert [own.probability_in(epoch) for epoch in range(3)] == [0.3] * 3
    assert [own.strength_in(epoch) for epoch in range(3)] == pytest.approx([0.3, 0.35, 0.35])
    assert not AudioMixingOptions().is_on(50)


def test_neighbours_are_kept_for_some_epochs():
    options = AudioMixingOptions(audio_mixing=True, mixing_start_epoch=2, mixing_refresh=3)
    assert [options.refreshed_in(epoch) for epoch in range(1, 9)] == [1, 1, 1, 4, 4, 4, 7, 7]
    curriculum = MixingCurriculum(options, ["a", "b"], seed=0)
    assert [curriculum.is_due(epoch) for epoch in range(3)] == [False, True, True]
    curriculum.search(1, Embeddings(("a", "b"), torch.eye(2), None), CPU)
    assert [curriculum.is_due(epoch) for epoch in range(1, 6)] == [False, False, False, True, True]
    again = MixingCurriculum(options, ["a", "b"], seed=0)
    again.load_state_dict(curriculum.state_dict())
    places, probability, strength = again.in_epoch(2)
    assert (places.tolist(), places.dtype) == ([1, 0], torch.int64)
    assert (probability, strength) == pytest.approx((0.12, 0.02))
    assert again.in_epoch(0) is None
    assert not MixingCurriculum(None, ["a"], seed=0).is_due(3)


@pytest.mark.parametrize(
    "given",
    [
        {"mixing_start_epoch": 0},
        {"mixing_refresh": 0},
        {"mixing_candidates": 1},
        {"mixing_probability": -0.1},
        {"mixing_probability": 0.9, "mixing_probability_limit": 0.8},
        {"mixing_strength_limit": 1.1},
        {"mixing_strength_growth": float("nan")},
    ],
)
def test_nonsense_is_refused_with_the_flag_s_name(given):
    flag = "--" + next(iter(given)).replace("_", "-")
    with pytest.raises(ValueError, match=flag):
        AudioMixingOptions(audio_mixing=True, **given)
    with pytest.raises(ValueError, match=r"needs --audio-mixing|must be"):
        AudioMixingOptions(**given)


def test_settings_of_a_mixing_that_is_off_are_refused():
    with pytest.raises(ValueError, match="--mixing-refresh needs --audio-mixing"):
        AudioMixingOptions(mixing_refresh=2)
    AudioMixingOptions(mixing_refresh=1, mixing_candidates=4000)


# -------------------------------------------------------------------------------- the neighbours


def slow_nearest(vectors, candidates):
    """Best other candidate of each vector, the first of equals."""
    found = []
    for own, vector in enumerate(vectors):
        scores = [(-float(vector @ vectors[other]), other) for other in candidates if other != own]
        found.append(min(scores)[1])
    return found


def random_embeddings(count, seed=0):
    vectors = torch.rand(count, 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors - 0.5, dim=1)


def embedded(vectors, order=None):
    order = range(len(vectors)) if order is None else order
    return Embeddings(tuple(f"clip_{place}" for place in order), vectors[list(order)], None)


def ids(count):
    return [f"clip_{place}" for place in range(count)]


def test_all_clips_as_candidates_against_a_loop():
    vectors = random_embeddings(60)
    found = places_of_nearest(embedded(vectors), ids(60), num_candidates=0, seed=1)
    assert found.tolist() == slow_nearest(vectors.double(), range(60))
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
    again = places_of_nearest(embedded(vectors, shuffled), ids(60), num_candidates=90, seed=1)
    assert torch.equal(found, again)


def test_a_queue_of_candidates_against_a_loop():
    vectors = random_embeddings(60)
    found = places_of_nearest(embedded(vectors), ids(60), num_candidates=7, seed=1)
    drawn = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:7].tolist()
    assert found.tolist() == slow_nearest(vectors.double(), drawn)
    assert len(set(found.tolist())) <= 7
    other = places_of_nearest(embedded(vectors), ids(60), num_candidates=7, seed=2)
    assert not torch.equal(found, other)


def test_ties_go_to_the_first_and_empty_sounds_to_nobody():
    vectors = random_embeddings(8)
    vectors[5] = vectors[2] = vectors[6]
    vectors[1] = vectors[4] = 0
    embeddings = embedded(vectors, [0, 1, 2, 4, 5, 6, 7])  # clip_3 could not be read
    found = places_of_nearest(embeddings, ids(8), num_candidates=0, seed=0)
    assert found[[5, 6, 2]].tolist() == [2, 2, 5]
    assert found[[1, 3, 4]].tolist() == [NOBODY] * 3
    assert {1, 3, 4}.isdisjoint(found.tolist())
    alone = places_of_nearest(embedded(vectors, [0, 1]), ids(8), num_candidates=0, seed=0)
    assert alone.tolist() == [NOBODY] * 8


def test_the_recorded_neighbours():
    if not GOLDEN.is_file():
        pytest.skip(f"the recorded embeddings are not at {GOLDEN}")
    golden = np.load(GOLDEN)
    names = golden["names"].tolist()
    vectors = torch.nn.functional.normalize(torch.from_numpy(golden["emb"]), dim=1)
    found = places_of_nearest(Embeddings(tuple(names), vectors, None), names, num_candidates=0, seed=0)
    expected = golden["full_noself_top1"]
    # Duplicates and a sound without any feature tie with others.
    unclear = [names.index(f"clip_{place:03d}") for place in (3, 7, 11)]
    clear = [place for place in range(len(names)) if place not in unclear and expected[place] not in unclear]
    assert len(clear) > 45
    assert found[clear].tolist() == expected[clear].tolist()


def work(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=TIME_LIMIT
    )
    options = AudioMixingOptions(audio_mixing=True, mixing_candidates=9)
    curriculum = MixingCurriculum(options, ids(31), seed=2)
    own = range(31)[slice(0, 15) if rank == 0 else slice(15, 31)]
    curriculum.search(4, embedded(random_embeddings(31), own), CPU)
    torch.save(curriculum.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    torch.multiprocessing.start_processes(work, (tmp_path,), 2, start_method="spawn")
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    options = AudioMixingOptions(audio_mixing=True, mixing_candidates=9)
    alone = MixingCurriculum(options, ids(31), seed=2)
    alone.search(4, embedded(random_embeddings(31)), CPU)
    assert (alone.places >= 0).all()
    for found in both:
        assert found["found_in"] == 4
        assert torch.equal(found["places"], alone.places)


# ----------------------------------------------------------------------------------- the mixtures


@pytest.fixture
def clips(tiny_data):
    sounds = tiny_data.root / "VGGSound" / "total_video_3s_audio"
    rng = np.random.default_rng(0)
    soundfile.write(sounds / "train_1.wav", rng.uniform(-0.5, 0.5, 7_000), 16_000)
    soundfile.write(sounds / "train_2.wav", rng.uniform(-0.5, 0.5, (30_000, 2)), 8_000)
    return build_clips("vggsound", tiny_data.root, clip_list=None).clips


def build_mixing_clips(clips, **settings):
    return MixingClips(clips, geometry=FrameGeometry(64), audio=AUDIO, **settings)


@pytest.mark.parametrize("excerpt", [None, 0.3])
def test_a_mixture_is_a_weighted_sum_of_waveforms(clips, excerpt):
    mixing_clips = build_mixing_clips(clips, excerpt_seconds=excerpt)
    plain = collate([mixing_clips[ClipRequest(place, 5)] for place in range(3)])
    own, short, other_rate = tiled_waveforms(plain, AUDIO)
    for other, waveform in ((1, short), (2, other_rate)):
        sample = mixing_clips[MixedRequest(0, 5, other, 0.3)]
        assert sample.clip_id == plain.clip_ids[0] and sample.crop_seed == 5
        assert sample.waveform.shape == (AUDIO.num_samples,)
        torch.testing.assert_close(sample.waveform, 0.7 * own + 0.3 * waveform)
        assert torch.equal(sample.frame, mixing_clips[ClipRequest(0, 5)].frame)
    assert torch.equal(mixing_clips[MixedRequest(0, 5, 1, 0.0)].waveform, own)
    assert not torch.allclose(own, short)


def test_a_broken_partner_is_named_and_nobody_takes_its_place(clips, tiny_data):
    path = tiny_data.root / "VGGSound" / "total_video_3s_audio" / "train_1.wav"
    path.write_bytes(path.read_bytes()[:20])
    sample = build_mixing_clips(clips)[MixedRequest(0, 5, 1, 0.3)]
    assert isinstance(sample, BrokenClip) and sample.clip_id == "train_0"
    assert "to be mixed in" in sample.reason and "train_1.wav" in sample.reason
    broken_itself = build_mixing_clips(clips)[MixedRequest(1, 5, 0, 0.3)]
    assert broken_itself.clip_id == "train_1" and "to be mixed in" not in broken_itself.reason


def test_who_is_mixed_depends_on_the_clip_s_seed_alone():
    others = torch.arange(4000).roll(1)
    others[::10] = NOBODY
    requests = [ClipRequest(place, 7 * place) for place in range(4000)]
    found = Mixing(others, 0.25, 0.3).applied_to(requests)
    mixed = [request for request in found if isinstance(request, MixedRequest)]
    assert all(r.other == others[r.position] and r.strength == 0.3 for r in mixed)
    assert {request.position % 10 for request in mixed} == set(range(1, 10))
    assert 0.2 < len(mixed) / 3600 < 0.3
    assert [request[:2] for request in found] == [tuple(request) for request in requests]
    assert Mixing(others, 0.25, 0.3).applied_to(requests[90:130][::-1]) == found[90:130][::-1]
    more = Mixing(others, 0.5, 0.3).applied_to(requests)  # the same ones, and others
    assert {r.position for r in mixed} < {r.position for r in more if isinstance(r, MixedRequest)}
    assert Mixing(others, 0.0, 0.3).applied_to(requests) == requests
    everyone = Mixing(others.clamp(min=0), 1.0, 0.3).applied_to(requests)
    assert all(isinstance(request, MixedRequest) for request in everyone)


def test_batches_are_the_same_but_for_the_mixtures():
    plain, mixing = SeededBatches(20, 4, 3), MixingBatches(20, 4, 3, part=slice(1, 3))
    plain.start_at(2, 1)
    mixing.start_at(2, 1)
    assert list(mixing) == [requests[1:3] for requests in plain]
    mixing.mixing = Mixing(torch.arange(20).roll(1), 0.5, 0.3)
    found = list(mixing)
    assert [[r[:2] for r in requests] for requests in found] == [
        [tuple(r) for r in requests[1:3]] for requests in plain
    ]
    kinds = {type(request) for requests in found for request in requests}
    assert kinds == {ClipRequest, MixedRequest}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_decode_mixtures(clips, workers):
    batches = MixingBatches(8, 4, seed=1)
    batches.mixing = Mixing(torch.arange(8).roll(1), 0.6, 0.3)
    mixing_clips = build_mixing_clips(clips)
    loader = build_train_loader(mixing_clips, batches, num_workers=workers, pin_memory=False)
    for batch, requests in zip(loader, list(batches), strict=True):
        expected = collate([mixing_clips[request] for request in requests])
        assert torch.equal(batch.waveforms, expected.waveforms)
        assert batch.sound_lengths == expected.sound_lengths


def test_the_search_hears_clean_sounds_without_frames(clips, tiny_data):
    sounds = AudioVisualClips(
        clips, geometry=FrameGeometry(64), audio=AUDIO, excerpt_seconds=0.3, content="sounds"
    )
    for clip in clips:
        clip.frame_source.unlink()  # frames are not even opened
    batch = collate([sounds[ClipRequest(place, 0)] for place in range(3)])
    _, found = TestViews(AUDIO, CPU)(batch)
    assert torch.equal(found, AUDIO.build_front_end()(tiled_waveforms(batch, AUDIO)))
    assert batch.sound_lengths == (4800, 4800, 4800)
    path = tiny_data.root / "VGGSound" / "total_video_3s_audio" / "train_1.wav"
    path.write_bytes(b"")
    assert isinstance(sounds[ClipRequest(1, 0)], BrokenClip)


# --------------------------------------------------------------------------------------- the runs

MIXING = (
    "--audio-mixing --mixing-probability 0.8 --mixing-probability-growth 0.1 "
    "--mixing-strength 0.3 --mixing-refresh 2 --mixing-candidates 5 --epochs 3"
).split()


def arguments(tiny_data, output, *words):
    return [
        "ssl_tie", "--train-set", "vggsound", "--data-root", str(tiny_data.root),
        "--output", str(output), *SMALL, *map(str, words),
    ]  # fmt: skip


@pytest.fixture
def narrow(monkeypatch):
    """Small networks, as there is much to train and to save."""

    def build(in_channels, batch_norm_passes=1):
        return narrow_encoder(in_channels, passes=batch_norm_passes)

    monkeypatch.setattr(ssl_tie, "ResNet18Encoder", build)


class StopAfter:
    """Stands in for Interruption: the signal comes before the n-th time it is looked for."""

    def __init__(self, number):
        self.left = number
        self.signal_number = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def agreed(self):
        self.left -= 1
        if self.left == 0:
            self.signal_number = signal.SIGTERM
        return self.signal_number


def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(
    tiny_data, tmp_path, monkeypatch, narrow
):
    whole = tmp_path / "whole"
    assert main.main(arguments(tiny_data, whole, *MIXING)) == 0
    content = torch.load(whole / "last.pth", weights_only=True)
    assert content["progress"]["mixing"]["found_in"] == 2
    places = content["progress"]["mixing"]["places"].tolist()
    assert len(places) == 8 and all(0 <= o < 8 and o != p for p, o in enumerate(places))

    # An epoch is looked at after its search, where there is one, after 2 steps, and at its end.
    for number, where in ((1, (0, 0)), (2, (0, 1)), (5, (1, 1)), (8, (2, 0))):
        stopped = tmp_path / f"stopped_{number}"
        with monkeypatch.context() as patched:
            patched.setattr(main, "Interruption", lambda number=number: StopAfter(number))
            status = main.main(arguments(tiny_data, stopped, *MIXING))
        assert status == 128 + signal.SIGTERM
        content = torch.load(stopped / "last.pth", weights_only=True)
        assert (content["epoch"], content["step"]) == where
        assert main.main(arguments(tiny_data, stopped, *MIXING, "--resume")) == 0
        assert_same_weights(whole / "last.pth", stopped / "last.pth")
        assert (whole / "history.csv").read_text() == (stopped / "history.csv").read_text()


def test_mixing_changes_the_run_from_its_first_epoch_on(tiny_data, tmp_path, caplog, narrow):
    caplog.set_level(logging.INFO)
    runs = {
        name: main.main(arguments(tiny_data, tmp_path / name, "--epochs", 1, *words))
        for name, words in {
            "plain": (),
            "later": ("--audio-mixing", "--mixing-start-epoch", 2),
            "mixed": ("--audio-mixing", "--mixing-probability", 1, "--mixing-strength", 0.4),
        }.items()
    }
    assert set(runs.values()) == {0}
    assert_same_weights(tmp_path / "plain" / "last.pth", tmp_path / "later" / "last.pth")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "plain" / "last.pth", tmp_path / "mixed" / "last.pth")
    assert "Epoch 1: 100 % of the clips are mixed, with 41 % of their nearest" in caplog.text
    assert caplog.text.count("Mixing begins with epoch 2, after the last of --epochs") == 1


def test_the_command_line_names_broken_sounds_and_refuses_another_schedule(tiny_data, tmp_path):
    sounds = tiny_data.root / "VGGSound" / "total_video_3s_audio"
    samples, rate = soundfile.read(sounds / "train_3.wav")
    soundfile.write(sounds / "train_3.wav", np.full(len(samples), np.nan), rate, subtype="FLOAT")
    output = tmp_path / "run"
    words = ("--audio-mixing", "--mixing-probability", 1, "--mixing-probability-growth", 0)
    finished = run("main.py", *arguments(tiny_data, output, "--epochs", 1, *words))
    assert finished.returncode == 0, finished.stderr
    assert "1 training sounds cannot be read and are not mixed in" in finished.stderr
    assert "embedding sounds" in finished.stderr and "batch/s" in finished.stderr
    places = torch.load(output / "last.pth", weights_only=True)["progress"]["mixing"]["places"]
    assert places[3] == NOBODY and 3 not in places
    again = arguments(tiny_data, output, "--epochs", 2, "--resume", *words[:3])
    refused = run("main.py", *again)
    assert refused.returncode == 2
    assert "--mixing-probability-growth was 0.0, is 0.01" in refused.stderr


@pytest.mark.slow
def test_two_processes_mix_as_one_does(tiny_data, tmp_path):
    words = ("--epochs", 1, "--audio-mixing", "--mixing-probability", 1, "--mixing-strength", 0.4)
    assert main.main(arguments(tiny_data, tmp_path / "alone", *words)) == 0
    finished = subprocess.run(
        torchrun(2, "main.py", *arguments(tiny_data, tmp_path / "both", *words)),
        capture_output=True, check=False, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    alone, both = (
        torch.load(tmp_path / name / "last.pth", weights_only=True)["progress"] for name in ("alone", "both")
    )
    assert torch.equal(alone["mixing"]["places"], both["mixing"]["places"])
    # Each tone is there twice, and a clip's twin is the nearest.
    assert alone["mixing"]["places"].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert both["history"][0]["loss"] == pytest.approx(alone["history"][0]["loss"], rel=2e-3)
    assert finished.stderr.count("of the clips are mixed") == 1  # one process talks


def test_the_options_are_in_the_checkpoint_s_record(tmp_path):
    words = f"ssl_tie --train-set vggsound --data-root d --output {tmp_path} --audio-mixing"
    plain = opts.as_plain(opts.parse_train_options(words.split()))
    assert plain["mixing"]["audio_mixing"] and plain["mixing"]["mixing_candidates"] == 4000
    json.dumps(plain)
    other = opts.as_plain(opts.parse_train_options([*words.split(), "--mixing-refresh", "2"]))
    assert opts.differences_that_matter(plain, other) == ["--mixing-refresh was 1, is 2"]
