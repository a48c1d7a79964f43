"""The audio-mixing curriculum: schedule, neighbours, mixtures, and runs that stop anywhere."""

import logging
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from command_line import assert_same_weights, run, training
from golden_inputs import arrays
from test_faults import signal_at, train

import main
from datasets.audio import AudioConfig
from datasets.benchmarks import build_clips
from datasets.clips import AudioVisualClips, BrokenClip, Clip, Mixture, collate
from datasets.frames import FrameGeometry
from datasets.loaders import ClipLoader, SeededBatches
from datasets.mixing import NOBODY, AudioMixingOptions, Mixing, MixingCurriculum, nearest_others

AUDIO = AudioConfig(window_seconds=1.5, mel_bins=32, hop_length=400)
FROM_THE_FIRST = ("--audio-mixing", "--mixing-start-epoch", 1)


def decoded(clips, **settings):
    return AudioVisualClips(clips, geometry=FrameGeometry(64), audio=AUDIO, **settings)


def build_curriculum(**options):
    clips = [Clip(f"clip_{place}", Path("none.jpg"), Path("none.wav")) for place in range(31)]
    return MixingCurriculum(AudioMixingOptions(audio_mixing=True, **options), decoded(clips), seed=0)


def positions_of(requests):
    return [request if isinstance(request, int) else request.position for request in requests]


# ---------------------------------------------------------------------------------- the schedule


def test_the_schedule_is_that_of_the_authors_program_but_for_the_cap():
    """Epochs of their program, with its probability and strength; a probability beyond 1 is 1."""
    authors = {2: (0.11, 0.01), 3: (0.12, 0.02), 51: (0.6, 0.5), 52: (0.61, 0.51), 100: (1.09, 0.99)}
    for start in (2, 3):
        curriculum = build_curriculum(mixing_start_epoch=start)
        assert [curriculum.needs_search(epoch) for epoch in range(4)] == [n + 1 >= start for n in range(4)]
        assert curriculum.mixing_for_epoch(start - 2) is None
        for epoch, (probability, strength) in authors.items():
            mixing = curriculum.mixing_for_epoch(epoch + start - 3)  # counted from 0
            assert mixing.probability == pytest.approx(min(1, probability))
            assert mixing.strength == pytest.approx(min(0.5, strength))


# -------------------------------------------------------------------------------- the neighbours


def random_embeddings(count):
    vectors = torch.rand(count, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(vectors - 0.5, dim=1)


@pytest.mark.parametrize("num_candidates", [7, 60, 90])
def test_neighbours_against_a_loop(num_candidates):
    vectors = random_embeddings(60)
    found = nearest_others(vectors, (4, 1), num_candidates=num_candidates)
    candidates = np.random.default_rng([4, 1]).permutation(60)[:num_candidates]
    for own, vector in enumerate(vectors.double()):
        scores = {int(c): float(vector @ vectors[c].double()) for c in candidates if c != own}
        assert found[own] == max(scores, key=scores.get)
    if num_candidates == 7:
        assert not torch.equal(found, nearest_others(vectors, (4, 2), num_candidates=7))


def test_the_recorded_neighbours():
    golden = arrays("retrieval")
    names = golden["names"].tolist()
    found = nearest_others(torch.from_numpy(golden["emb"]), (0, 0))
    expected = golden["full_noself_top1"]
    # Duplicates and a sound without any feature tie with others.
    unclear = [names.index(f"clip_{place:03d}") for place in (3, 7, 11)]
    clear = [place for place in range(len(names)) if place not in unclear and expected[place] not in unclear]
    assert len(clear) > 45
    assert found[clear].tolist() == expected[clear].tolist()


def test_unreadable_and_empty_sounds_are_nobody_s(caplog):
    vectors, curriculum, again = random_embeddings(31), build_curriculum(), build_curriculum()
    vectors[1] = vectors[4] = 0
    readable = [place for place in range(31) if place != 3]
    batch = SimpleNamespace(
        clip_ids=tuple(f"clip_{place}" for place in readable), frames=None, waveforms=vectors[readable],
        broken=(BrokenClip("clip_3", "cut off"),),
    )  # fmt: skip
    # A sound's embedding is the sound.
    model = SimpleNamespace(prepare=lambda seen, heard: (seen, heard), embed_audio=lambda heard: heard)
    curriculum.search(5, model, lambda *_: [batch], lambda: None)
    assert curriculum.partners[[1, 3, 4]].tolist() == [NOBODY] * 3
    assert {1, 3, 4}.isdisjoint(curriculum.partners.tolist())
    assert "1 training sounds cannot be read and are not mixed in, first: clip_3" in caplog.text
    assert not curriculum.needs_search(5) and curriculum.needs_search(6)
    again.load_state_dict(curriculum.state_dict())
    assert torch.equal(again.mixing_for_epoch(5).partners, curriculum.partners)
    again.search(6, model, lambda *_: [batch], lambda: signal.SIGTERM)  # a part of the sounds is no search
    assert again.needs_search(6) and torch.equal(again.partners, curriculum.partners)


# ----------------------------------------------------------------------------------- the mixtures


@pytest.fixture
def clips(tiny_data):
    sounds = tiny_data.root / "VGGSound" / "total_video_3s_audio"
    rng = np.random.default_rng(0)
    soundfile.write(sounds / "train_1.wav", rng.uniform(-0.5, 0.5, 7_000), 16_000)
    soundfile.write(sounds / "train_2.wav", rng.uniform(-0.5, 0.5, (30_000, 2)), 8_000)
    return build_clips("vggsound", tiny_data.root, clip_list=None).clips


@pytest.mark.parametrize("excerpt", [None, 0.3])
def test_a_mixture_is_a_weighted_sum_of_waveforms(clips, excerpt):
    data = decoded(clips, excerpt_seconds=excerpt)
    own, short, other_rate = collate([data[place] for place in range(3)]).waveforms
    for partner, waveform in ((1, short), (2, other_rate)):
        sample = data[Mixture(0, partner, 0.3)]
        assert sample.clip_id == "train_0"
        assert len(sample.waveform) == AUDIO.num_samples
        torch.testing.assert_close(sample.waveform, 0.7 * own + 0.3 * waveform)
        assert torch.equal(sample.frame, data[0].frame)
    assert torch.equal(data[Mixture(0, 1, 0.0)].waveform, own)
    assert not torch.allclose(own, short)


def test_a_broken_partner_is_named_and_nobody_takes_its_place(clips):
    path = clips[1].audio_source
    path.write_bytes(path.read_bytes()[:20])
    sample = decoded(clips)[Mixture(0, 1, 0.3)]
    assert isinstance(sample, BrokenClip) and sample.clip_id == "train_0"
    assert "to be mixed in" in sample.reason and "train_1.wav" in sample.reason
    broken_itself = decoded(clips)[Mixture(1, 0, 0.3)]
    assert broken_itself.clip_id == "train_1" and "to be mixed in" not in broken_itself.reason


def test_who_is_mixed_follows_from_the_seed():
    partners = torch.arange(4000).roll(1)
    partners[::10] = NOBODY
    positions = torch.randperm(4000, generator=torch.Generator().manual_seed(2)).tolist()
    requests = Mixing(partners, 0.25, 0.3)(positions, seed=5)
    mixed = [request for request in requests if isinstance(request, Mixture)]
    assert all(r.partner == partners[r.position] and r.strength == 0.3 for r in mixed)
    assert {request.position % 10 for request in mixed} == set(range(1, 10))
    assert 0.2 < len(mixed) / 3600 < 0.3
    assert positions_of(requests) == positions
    assert Mixing(partners, 0.25, 0.3)(positions, seed=5) == requests
    assert Mixing(partners, 0.25, 0.3)(positions, seed=6) != requests
    assert Mixing(partners, 0.0, 0.3)(positions, seed=5) == positions


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_out_the_batches_with_their_mixtures(clips, workers):
    plain, whole, part = (SeededBatches(8, 4, 3, part=p) for p in (slice(4), slice(4), slice(1, 3)))
    whole.mixing = part.mixing = Mixing(torch.arange(8).roll(1), 0.5, 0.3)
    requests = list(whole)
    assert list(part) == [batch[1:3] for batch in requests]
    assert [positions_of(batch) for batch in requests] == list(plain)
    assert {type(request) for batch in requests for request in batch} == {int, Mixture}
    data = decoded(clips)
    with ClipLoader(data, batch_sampler=whole, workers=workers) as loader:
        for batch, expected in zip(loader, requests, strict=True):
            assert torch.equal(batch.waveforms, collate([data[request] for request in expected]).waveforms)


def test_sounds_alone_are_decoded_without_frames(clips):
    sounds = decoded(clips, excerpt_seconds=0.3, content="sounds")
    whole = decoded(clips, excerpt_seconds=0.3)[0].waveform
    for clip in clips:
        clip.frame_source.unlink()  # frames are not even opened
    assert torch.equal(collate([sounds[place] for place in range(3)]).waveforms[0], whole)
    clips[1].audio_source.write_bytes(b"")
    assert isinstance(sounds[1], BrokenClip)


# --------------------------------------------------------------------------------------- the runs


@pytest.fixture
def much(monkeypatch):
    """More clips and more of the other sound than the first epochs have."""
    really = MixingCurriculum.mixing_for_epoch
    monkeypatch.setattr(
        MixingCurriculum, "mixing_for_epoch", lambda c, epoch: really(c, epoch) and really(c, epoch + 40)
    )


@pytest.mark.usefixtures("narrow", "much")
def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(tiny_data, tmp_path, monkeypatch):
    whole, words = tmp_path / "whole", (*FROM_THE_FIRST, "--epochs", 3)
    assert train(tiny_data, whole, *words) == 0
    mixing = torch.load(whole / "last.pth", weights_only=True)["progress"]["mixing"]
    places = mixing["places"].tolist()
    assert mixing["found_in"] == 2
    assert len(places) == 8 and all(0 <= o < 8 and o != p for p, o in enumerate(places))

    # An epoch is looked at twice in its search, and after 2 steps.
    for number, where in ((1, (0, 0)), (2, (0, 0)), (3, (0, 1)), (7, (1, 1)), (8, (1, 2)), (9, (2, 0))):
        stopped = tmp_path / f"stopped_{number}"
        with signal_at(monkeypatch, main.Interruption, "agreed", number, signal.SIGTERM):
            assert train(tiny_data, stopped, *words) == 128 + signal.SIGTERM
        content = torch.load(stopped / "last.pth", weights_only=True)
        assert (content["epoch"], content["step"]) == where
        assert train(tiny_data, stopped, *words, "--resume") == 0
        assert_same_weights(whole / "last.pth", stopped / "last.pth")
        assert (whole / "history.csv").read_text() == (stopped / "history.csv").read_text()


@pytest.mark.usefixtures("narrow", "much")
def test_mixing_changes_the_run_from_its_first_epoch_on(tiny_data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, words in {"plain": (), "later": ("--audio-mixing",), "mixed": FROM_THE_FIRST}.items():
        assert train(tiny_data, tmp_path / name, "--epochs", 1, *words) == 0
    assert_same_weights(tmp_path / "plain" / "last.pth", tmp_path / "later" / "last.pth")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "plain" / "last.pth", tmp_path / "mixed" / "last.pth")
    assert "Epoch 1: 11 % of the clips are mixed, with 1 % of their nearest" in caplog.text
    assert caplog.text.count("Mixing begins with epoch 2, after the last of --epochs") == 1


@pytest.mark.usefixtures("narrow")
def test_a_run_names_broken_sounds_and_refuses_another_start(tiny_data, tmp_path, caplog):
    path = tiny_data.root / "VGGSound" / "total_video_3s_audio" / "train_3.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, np.full(len(samples), np.nan), rate, subtype="FLOAT")
    output = tmp_path / "run"
    assert train(tiny_data, output, "--epochs", 1, *FROM_THE_FIRST) == 0
    assert "1 training sounds cannot be read and are not mixed in" in caplog.text
    places = torch.load(output / "last.pth", weights_only=True)["progress"]["mixing"]["places"]
    assert places[3] == NOBODY and 3 not in places
    assert train(tiny_data, output, "--epochs", 2, "--resume") == 2
    assert "--audio-mixing was True, is False" in caplog.text


@pytest.mark.slow
def test_two_processes_mix_as_one_does(tiny_data, tmp_path):
    words = ("--epochs", 1, *FROM_THE_FIRST)
    assert train(tiny_data, tmp_path / "alone", *words) == 0
    finished = run("main.py", *training(tiny_data, tmp_path / "both", *words), processes=2)
    assert finished.returncode == 0, finished.stderr
    alone, both = (
        torch.load(tmp_path / name / "last.pth", weights_only=True)["progress"] for name in ("alone", "both")
    )
    # Each tone is there twice, and a clip's twin is the nearest.
    assert alone["mixing"]["places"].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert both["mixing"]["places"].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert both["history"][0]["loss"] == pytest.approx(alone["history"][0]["loss"], rel=2e-3)
    assert finished.stderr.count("of the clips are mixed") == 1  # one process talks
