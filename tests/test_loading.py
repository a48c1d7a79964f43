"""Dataset, loaders and views: what is decoded, in which order, and that it repeats exactly."""

import multiprocessing
import random
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.audio import AudioConfig, SegmentConfig, VGGishLogMel, level_waveform
from datasets.augmentation import AugmentationConfig, cut_out, draw_for_clips
from datasets.benchmarks import build_clips
from datasets.clips import AudioVisualClips, collate, with_wrong_sounds
from datasets.frames import FrameConfig, FrameGeometry, as_float, normalise
from datasets.geometry import GeometricConfig, GeometricTransform
from datasets.loaders import ClipLoader, SeededBatches, hash_seed
from models.ssl_tie import SSLTIE, SSLTIEConfig
from models.sspl import SSPL, SSPLConfig

AUDIO = AudioConfig(window_seconds=1.0, mel_bins=32, hop_length=400)
NOTHING = AugmentationConfig(crop=False, colour=False, grey=False, blur=False, flip=False, spec_augment=False)


@pytest.fixture
def test_clips(tiny_data):
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None).clips
    return AudioVisualClips(clips, geometry=FrameGeometry(64), audio=AUDIO)


@pytest.fixture
def train_clips(tiny_data):
    clips = build_clips("vggsound", tiny_data.root, clip_list=None).clips
    return AudioVisualClips(clips, geometry=FrameGeometry(64), audio=AUDIO, random_crop=True)


def test_clips_are_what_is_stored_and_test_clips_have_their_truth(train_clips, test_clips, tiny_data):
    sample = test_clips[0]
    assert sample.frame.shape == (3, 64, 64)
    assert sample.waveform.shape == (16_000,)
    box = np.array(tiny_data.boxes["test_0"])
    np.testing.assert_allclose(sample.bounding_boxes, [box])
    x_min, y_min, x_max, y_max = (224 * box).astype(int)
    assert sample.ground_truth_map.sum() == (x_max - x_min) * (y_max - y_min)
    centre_x, centre_y = (64 * (box[:2] + box[2:]) / 2).astype(int)
    assert sample.frame[0, centre_y, centre_x] > 200  # the red square of clip 0

    sample = train_clips[0]
    with Image.open(train_clips.clips[0].frame_source) as picture:
        np.testing.assert_array_equal(sample.frame.permute(1, 2, 0), np.asarray(picture))
    assert sample.bounding_boxes is None and sample.ground_truth_map is None


def test_frames_of_several_sizes_lie_side_by_side(train_clips):
    sizes = [(96, 96), (40, 120), (120, 30)]
    rng = np.random.default_rng(0)
    for clip, (height, width) in zip(train_clips.clips, sizes, strict=False):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(clip.frame_source)
    samples = [train_clips[i] for i in range(3)]
    batch = collate(samples)
    assert batch.picture_sizes == tuple(sizes)
    assert batch.frames.shape == (3, 3, 120, 120)
    for frame, sample, (height, width) in zip(batch.frames, samples, sizes, strict=True):
        assert torch.equal(frame[:, :height, :width], sample.frame)
        assert not frame[:, height:].any() and not frame[:, :, width:].any()


@pytest.mark.parametrize("error", [RuntimeError("cut off"), AssertionError()])
@pytest.mark.parametrize("decoder", ["PIL.JpegImagePlugin.JpegImageFile.load", "soundfile.SoundFile.read"])
def test_whatever_a_decoder_raises_makes_the_clip_a_broken_one(test_clips, monkeypatch, decoder, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(decoder, fail)
    monkeypatch.setattr("av.open", fail)  # which sounds fall back to
    broken = test_clips[1]
    assert broken.clip_id == "test_1"
    assert (str(error) or type(error).__name__) in broken.reason
    assert ("test_1.jpg" if "PIL" in decoder else "test_1.wav") in broken.reason


def test_broken_files_are_named_and_never_replaced(test_clips):
    test_clips.clips[1].audio_source.write_bytes(b"RIFF")
    batch = collate([test_clips[i] for i in range(3)])
    assert batch.clip_ids == ("test_0", "test_2")
    assert [broken.clip_id for broken in batch.broken] == ["test_1"]
    assert "test_1.wav" in batch.broken[0].reason
    assert len(batch.frames) == len(batch.waveforms) == len(batch.ground_truth_maps) == 2
    for clip in test_clips.clips[:2]:
        clip.frame_source.write_bytes(b"\xff\xd8 cut off")
    batch = collate([test_clips[i] for i in range(2)])
    assert len(batch) == 0
    assert len(batch.broken) == 2


def test_wrong_sounds_are_those_of_other_videos(test_clips):
    clips = test_clips.clips
    wrong = with_wrong_sounds(clips)
    assert [clip.clip_id for clip in wrong] == [clip.clip_id for clip in clips]
    assert [clip.frame_source for clip in wrong] == [clip.frame_source for clip in clips]
    assert {clip.audio_source for clip in wrong} == {clip.audio_source for clip in clips}
    assert with_wrong_sounds(clips) == wrong != with_wrong_sounds(clips, 1)
    videos = [clip for clip in clips[:2] for _ in range(5)]
    for given in (clips, videos):
        for seed in range(3):
            wrong = with_wrong_sounds(given, seed)
            assert all(w.audio_source != c.audio_source for w, c in zip(wrong, given, strict=True))
    with pytest.raises(ValueError, match="--audio shuffled"):
        with_wrong_sounds(videos[:5])


def test_batches_are_a_function_of_seed_and_epoch():
    batches = SeededBatches(10, 3, seed=4)
    assert batches.steps_per_epoch == len(batches) == 3
    first = list(batches)
    assert list(batches) == first
    assert len({position for batch in first for position in batch}) == 9
    batches.start_at(0, 2)
    assert list(batches) == first[2:]
    batches.start_at(1, 0)
    assert list(batches) != first
    assert list(SeededBatches(10, 3, seed=5)) != first
    with pytest.raises(ValueError, match="--batch-size 4"):
        SeededBatches(3, 4, seed=0)
    seeds = {hash_seed(4, epoch, step) for epoch in range(30) for step in range(300)}
    assert len(seeds) == 9000


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_give_the_same_whatever_the_workers(train_clips, test_clips, num_workers):
    batches = SeededBatches(len(train_clips), 4, seed=1)
    with ClipLoader(train_clips, batch_sampler=batches, workers=num_workers) as loader:
        for _ in range(2):  # epochs
            for batch, requests in zip(loader, batches, strict=True):
                expected = collate([train_clips[request] for request in requests])
                assert batch.clip_ids == expected.clip_ids
                assert torch.equal(batch.frames, expected.frames)
    with ClipLoader(test_clips, batch_size=4, workers=num_workers) as loader:
        assert [len(batch) for batch in loader] == [4, 2]
        assert [i for batch in loader for i in batch.clip_ids] == sorted(f"test_{i}" for i in range(6))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("stuck", [False, True])
def test_no_worker_outlives_its_loader(test_clips, stuck, monkeypatch):
    """Though it ignores the signals that end programs, and is in the middle of an epoch."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    if stuck:
        take = AudioVisualClips.__getitem__
        hang = {1: signal.pause}
        monkeypatch.setattr(AudioVisualClips, "__getitem__", lambda c, r: hang.get(r, int)() or take(c, r))
    with pytest.raises(ZeroDivisionError), ClipLoader(test_clips, workers=2) as loader:
        for _ in loader:
            assert len(multiprocessing.active_children()) == 2
            raise ZeroDivisionError
    assert not multiprocessing.active_children()


def test_a_worker_whose_batch_nobody_takes_any_more_prints_no_traceback(test_clips, monkeypatch, capsys):
    ignored = []
    monkeypatch.setattr(signal, "signal", lambda number, _: ignored.append(number))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    ClipLoader(test_clips).worker_init_fn(0)
    assert set(ignored) == {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    for error in (BrokenPipeError(), ConnectionResetError(), EOFError(), ValueError("another")):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == "ValueError: another\n"


def make_views(augmentation, **geometric):
    return SSLTIE(
        SSLTIEConfig(),
        audio=AUDIO,
        frame=FrameConfig(frame_size=64),
        augmentation=augmentation,
        geometric=GeometricConfig(**geometric),
    ).augment


DRAWN = ("frames", "log_mel_spectrogram", "transformed_frames")


def test_processes_share_out_what_is_drawn_for_the_whole_batch_by_the_seed(train_clips):
    batch = collate([train_clips[i] for i in range(4)])
    views = make_views(AugmentationConfig(time_mask=10, frequency_mask=8), max_rotation=90)
    whole, again, other = views(batch, 5), views(batch, 5), views(batch, 2)
    for name in DRAWN:
        assert torch.equal(whole[name], again[name])
        assert not torch.equal(whole[name], other[name])
    maps = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(0))
    for part in (slice(0, 4), slice(0, 2), slice(2, 4), slice(1, 4)):
        own = views(batch.part(part), 5, first=part.start, global_size=4)
        for name in DRAWN:
            torch.testing.assert_close(own[name], whole[name][part], atol=1e-4, rtol=1e-5)
        target, _ = own["transform"](maps[part])
        torch.testing.assert_close(target, whole["transform"](maps)[0][part])
    unaware = views(batch.part(slice(2, 4)), 5)
    for name in DRAWN:
        assert not torch.equal(unaware[name], whole[name][2:])
    with pytest.raises(ValueError, match=r"clips 2 to 6 are wanted of a batch of 4"):
        views(batch, 5, first=2, global_size=4)


def test_views_without_augmentation_are_the_test_views_and_the_transform_is_that_of_the_frames(test_clips):
    batch = collate([test_clips[i] for i in range(4)])
    inputs = make_views(NOTHING)(batch, 3)
    frames, log_mel = SSLTIE(SSLTIEConfig(), audio=AUDIO).prepare(batch.frames, batch.waveforms)
    assert torch.equal(inputs["frames"], frames)
    assert torch.equal(inputs["log_mel_spectrogram"], log_mel)
    assert inputs["negative_sounds"] is None
    expected = GeometricTransform.sample(GeometricConfig(), 4, 64, random.Random(3))
    assert torch.equal(inputs["transformed_frames"], expected.warp_frames(frames))
    maps = torch.rand(4, 4, 4)
    assert torch.equal(inputs["transform"](maps)[0], expected.warp_maps(maps)[0])
    inputs = make_views(NOTHING, rotation=False, scaling=False, geometric_flip=False)(batch, 0)
    torch.testing.assert_close(inputs["transformed_frames"], frames, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [32, 96])
def test_sspl_s_views_are_cut_from_larger_frames(train_clips, size):
    model = SSPL(SSPLConfig(pcm=False), frame=FrameConfig(frame_size=size))
    assert model.training_frame_size == {32: 35, 96: 105}[size]  # 246 for 224
    geometry = FrameGeometry(model.training_frame_size)
    clips = AudioVisualClips(train_clips.clips, geometry=geometry, audio=SegmentConfig())
    batch = collate([clips[i] for i in range(4)])
    inputs = model.augment(batch, 5)
    assert inputs["frames"].shape == inputs["second_frames"].shape == (4, 3, size, size)
    assert inputs["log_mel_segments"].shape == (4, 3, 1, 96, 64)
    assert not torch.equal(inputs["frames"], inputs["second_frames"])
    part = model.augment(batch.part(slice(2, 4)), 5, first=2, global_size=4)
    for name, view in part.items():
        torch.testing.assert_close(view, inputs[name][2:], rtol=1e-5, atol=1e-5)
    numbers = draw_for_clips(5, 4, 6)[:, :3]
    frames = cut_out(batch.frames, batch.picture_sizes, size, numbers)
    assert torch.equal(inputs["frames"], normalise(as_float(frames)))
    assert torch.equal(inputs["log_mel_segments"], VGGishLogMel()(level_waveform(batch.waveforms)))
