"""The audio-mixing curriculum: schedule, neighbours, mixtures, and runs that stop anywhere."""

import datetime
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
from datasets.benchmarks import build_clips
from datasets.clips import AudioVisualClips, BrokenClip, Clip, Mixture, collate
from datasets.frames import FrameGeometry
from datasets.loaders import ClipLoader, SeededBatches
from datasets.mixing import NOBODY, AudioMixingOptions, Mixing, MixingCurriculum, nearest_others
from models import ssl_tie

pytestmark = pytest.mark.usefixtures("one_thread")
AUDIO = AudioConfig(window_seconds=1.5, mel_bins=32, hop_length=400)
GOLDEN = Path(__file__).parents[2] / "shared" / "goldens" / "e_retrieval.npz"
TIME_LIMIT = datetime.timedelta(seconds=60)
CLIPS = [Clip(f"clip_{place}", Path("none.jpg"), Path("none.wav")) for place in range(31)]


# ---------------------------------------------------------------------------------- the schedule


def test_the_schedule_grows_by_epoch_and_is_capped():
    options = AudioMixingOptions(audio_mixing=True, mixing_start_epoch=3)
    curriculum = MixingCurriculum(options, CLIPS, AUDIO, seed=0)
    assert [curriculum.needs_search(epoch) for epoch in range(4)] == [False, False, True, True]
    assert curriculum.mixing_for_epoch(1) is None
    for epoch in range(2, 150):  # counted from 0: n = 1 in epoch 3
        n, mixing = epoch - 1, curriculum.mixing_for_epoch(epoch)
        assert mixing.probability == pytest.approx(min(1, 0.1 + 0.01 * n))
        assert mixing.strength == pytest.approx(min(0.5, 0.01 * n))


def test_settings_of_a_mixing_that_is_off_are_refused():
    words = "ssl_tie --train-set vggsound --data-root d --output o --mixing-start-epoch 2".split()
    with pytest.raises(ValueError, match="--mixing-start-epoch needs --audio-mixing"):
        opts.parse_train_options(words)
    with pytest.raises(ValueError, match="--mixing-start-epoch must be at least 1"):
        AudioMixingOptions(audio_mixing=True, mixing_start_epoch=0)


# -------------------------------------------------------------------------------- the neighbours


def random_embeddings(count, seed=0):
    vectors = torch.rand(count, 16, generator=torch.Generator().manual_seed(seed))
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
    if not GOLDEN.is_file():
        pytest.skip(f"the recorded embeddings are not at {GOLDEN}")
    golden = np.load(GOLDEN)
    names = golden["names"].tolist()
    found = nearest_others(torch.from_numpy(golden["emb"]), (0, 0))
    expected = golden["full_noself_top1"]
    # Duplicates and a sound without any feature tie with others.
    unclear = [names.index(f"clip_{place:03d}") for place in (3, 7, 11)]
    clear = [place for place in range(len(names)) if place not in unclear and expected[place] not in unclear]
    assert len(clear) > 45
    assert found[clear].tolist() == expected[clear].tolist()


class Embedder:
    """Stands in for a model: a sound's embedding is the sound."""

    def prepare(self, frames, waveforms):
        return frames, waveforms

    def embed_audio(self, sounds):
        return sounds


def search(curriculum, epoch, vectors, unreadable=(), stopped=lambda: None):
    """Searches with made-up sounds instead of decoded ones."""

    def decode(clips, _):
        for clip in clips.clips:
            place = int(clip.clip_id.removeprefix("clip_"))
            broken = place in unreadable
            yield type("Batch", (), {
                "clip_ids": () if broken else (clip.clip_id,), "frames": None,
                "waveforms": vectors[place : place + 1],
                "broken": (BrokenClip(clip.clip_id, "cut off"),) if broken else (),
            })  # fmt: skip

    curriculum.search(epoch, Embedder(), decode, stopped)


def test_unreadable_and_empty_sounds_are_nobody_s(caplog):
    vectors = random_embeddings(31)
    vectors[1] = vectors[4] = 0
    curriculum = MixingCurriculum(AudioMixingOptions(audio_mixing=True), CLIPS, AUDIO, seed=0)
    search(curriculum, 5, vectors, unreadable=(3,))
    assert curriculum.partners[[1, 3, 4]].tolist() == [NOBODY] * 3
    assert {1, 3, 4}.isdisjoint(curriculum.partners.tolist())
    assert "1 training sounds cannot be read and are not mixed in, first: clip_3" in caplog.text
    assert not curriculum.needs_search(5) and curriculum.needs_search(6)
    again = MixingCurriculum(AudioMixingOptions(audio_mixing=True), CLIPS, AUDIO, seed=0)
    again.load_state_dict(curriculum.state_dict())
    assert torch.equal(again.mixing_for_epoch(5).partners, curriculum.partners)
    search(again, 6, vectors, stopped=lambda: signal.SIGTERM)  # a part of the sounds is no search
    assert again.needs_search(6) and torch.equal(again.partners, curriculum.partners)


def work(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=TIME_LIMIT
    )
    curriculum = MixingCurriculum(AudioMixingOptions(audio_mixing=True), CLIPS, AUDIO, seed=2)
    search(curriculum, 4, random_embeddings(31))
    torch.save(curriculum.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    torch.multiprocessing.start_processes(work, (tmp_path,), 2, start_method="spawn")
    alone = MixingCurriculum(AudioMixingOptions(audio_mixing=True), CLIPS, AUDIO, seed=2)
    search(alone, 4, random_embeddings(31))
    assert (alone.partners >= 0).all()
    for found in (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)):
        assert found["found_in"] == 4
        assert torch.equal(found["places"], alone.partners)


# ----------------------------------------------------------------------------------- the mixtures


@pytest.fixture
def clips(tiny_data):
    sounds = tiny_data.root / "VGGSound" / "total_video_3s_audio"
    rng = np.random.default_rng(0)
    soundfile.write(sounds / "train_1.wav", rng.uniform(-0.5, 0.5, 7_000), 16_000)
    soundfile.write(sounds / "train_2.wav", rng.uniform(-0.5, 0.5, (30_000, 2)), 8_000)
    return build_clips("vggsound", tiny_data.root, clip_list=None).clips


def decoded(clips, **settings):
    return AudioVisualClips(clips, geometry=FrameGeometry(64), audio=AUDIO, **settings)


@pytest.mark.parametrize("excerpt", [None, 0.3])
def test_a_mixture_is_a_weighted_sum_of_waveforms(clips, excerpt):
    data = decoded(clips, excerpt_seconds=excerpt)
    plain = collate([data[place] for place in range(3)])
    own, short, other_rate = plain.waveforms
    for partner, waveform in ((1, short), (2, other_rate)):
        sample = data[Mixture(0, partner, 0.3)]
        assert sample.clip_id == plain.clip_ids[0]
        assert len(sample.waveform) == AUDIO.num_samples
        torch.testing.assert_close(sample.waveform, 0.7 * own + 0.3 * waveform)
        assert torch.equal(sample.frame, data[0].frame)
    assert torch.equal(data[Mixture(0, 1, 0.0)].waveform, own)
    assert not torch.allclose(own, short)


def test_a_broken_partner_is_named_and_nobody_takes_its_place(clips, tiny_data):
    path = tiny_data.root / "VGGSound" / "total_video_3s_audio" / "train_1.wav"
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
    assert [r if isinstance(r, int) else r.position for r in requests] == positions
    assert Mixing(partners, 0.25, 0.3)(positions, seed=5) == requests
    assert Mixing(partners, 0.25, 0.3)(positions, seed=6) != requests
    more = Mixing(partners, 0.5, 0.3)(positions, seed=5)  # the same ones, and others
    assert {r.position for r in mixed} < {r.position for r in more if isinstance(r, Mixture)}
    assert Mixing(partners, 0.0, 0.3)(positions, seed=5) == positions


def test_processes_share_out_the_batches_with_their_mixtures():
    plain, whole, part = (SeededBatches(20, 4, 3, part=p) for p in (slice(4), slice(4), slice(1, 3)))
    for batches in (plain, whole, part):
        batches.start_at(2, 1)
    whole.mixing = part.mixing = Mixing(torch.arange(20).roll(1), 0.5, 0.3)
    found = list(whole)
    assert list(part) == [requests[1:3] for requests in found]
    assert [[r if isinstance(r, int) else r.position for r in requests] for requests in found] == list(plain)
    assert {type(request) for requests in found for request in requests} == {int, Mixture}


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_decode_mixtures(clips, workers):
    batches = SeededBatches(8, 4, seed=1)
    batches.mixing = Mixing(torch.arange(8).roll(1), 0.6, 0.3)
    data = decoded(clips)
    with ClipLoader(data, batch_sampler=batches, workers=workers) as loader:
        for batch, requests in zip(loader, list(batches), strict=True):
            expected = collate([data[request] for request in requests])
            assert torch.equal(batch.waveforms, expected.waveforms)


def test_sounds_alone_are_decoded_without_frames(clips, tiny_data):
    sounds = decoded(clips, excerpt_seconds=0.3, content="sounds")
    whole = decoded(clips, excerpt_seconds=0.3)[0].waveform
    for clip in clips:
        clip.frame_source.unlink()  # frames are not even opened
    batch = collate([sounds[place] for place in range(3)])
    assert torch.equal(batch.waveforms[0], whole)
    path = tiny_data.root / "VGGSound" / "total_video_3s_audio" / "train_1.wav"
    path.write_bytes(b"")
    assert isinstance(sounds[1], BrokenClip)


# --------------------------------------------------------------------------------------- the runs

MIXING = "--audio-mixing --epochs 3".split()


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


@pytest.fixture
def much(monkeypatch):
    """More clips and more of the other sound than the first epochs have."""
    really = MixingCurriculum.mixing_for_epoch
    monkeypatch.setattr(
        MixingCurriculum, "mixing_for_epoch", lambda c, epoch: really(c, epoch) and really(c, epoch + 40)
    )


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


@pytest.mark.usefixtures("narrow", "much")
def test_a_run_that_is_stopped_anywhere_goes_on_as_if_it_had_not_been(tiny_data, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert main.main(arguments(tiny_data, whole, *MIXING)) == 0
    content = torch.load(whole / "last.pth", weights_only=True)
    assert content["progress"]["mixing"]["found_in"] == 2
    places = content["progress"]["mixing"]["places"].tolist()
    assert len(places) == 8 and all(0 <= o < 8 and o != p for p, o in enumerate(places))

    # An epoch is looked at twice in its search, after 2 steps, and at its end.
    for number, where in ((1, (0, 0)), (2, (0, 0)), (3, (0, 1)), (8, (1, 1)), (11, (2, 0))):
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


@pytest.mark.usefixtures("narrow", "much")
def test_mixing_changes_the_run_from_its_first_epoch_on(tiny_data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name, words in {
        "plain": (),
        "later": ("--audio-mixing", "--mixing-start-epoch", 2),
        "mixed": ("--audio-mixing",),
    }.items():
        assert main.main(arguments(tiny_data, tmp_path / name, "--epochs", 1, *words)) == 0
    assert_same_weights(tmp_path / "plain" / "last.pth", tmp_path / "later" / "last.pth")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "plain" / "last.pth", tmp_path / "mixed" / "last.pth")
    assert "Epoch 1: 11 % of the clips are mixed, with 1 % of their nearest" in caplog.text
    assert caplog.text.count("Mixing begins with epoch 2, after the last of --epochs") == 1


def test_the_command_line_names_broken_sounds_and_refuses_another_start(tiny_data, tmp_path):
    sounds = tiny_data.root / "VGGSound" / "total_video_3s_audio"
    samples, rate = soundfile.read(sounds / "train_3.wav")
    soundfile.write(sounds / "train_3.wav", np.full(len(samples), np.nan), rate, subtype="FLOAT")
    output = tmp_path / "run"
    finished = run("main.py", *arguments(tiny_data, output, "--epochs", 1, "--audio-mixing"))
    assert finished.returncode == 0, finished.stderr
    assert "1 training sounds cannot be read and are not mixed in" in finished.stderr
    assert "embedding sounds" in finished.stderr and "batch/s" in finished.stderr
    places = torch.load(output / "last.pth", weights_only=True)["progress"]["mixing"]["places"]
    assert places[3] == NOBODY and 3 not in places
    again = arguments(tiny_data, output, "--epochs", 2, "--resume")
    refused = run("main.py", *again)
    assert refused.returncode == 2
    assert "--audio-mixing was True, is False" in refused.stderr


@pytest.mark.slow
def test_two_processes_mix_as_one_does(tiny_data, tmp_path):
    words = ("--epochs", 1, "--audio-mixing")
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
