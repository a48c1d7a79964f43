"""Dataset, loaders and views: what is decoded, in which order, and that it repeats exactly."""

import random

import numpy as np
import pytest
import torch

from datasets.audio import AudioConfig
from datasets.clip_sets import build_clips
from datasets.clips import AudioVisualClips, ClipRequest, collate, with_wrong_sounds
from datasets.frames import FrameGeometry
from datasets.geometric_transform import GeometricConfig, GeometricTransform
from datasets.loaders import SeededBatches, build_test_loader, build_train_loader, hash_seed
from datasets.transforms import (
    AugmentationConfig,
    FrameAugmentation,
    SpecAugment,
    as_float,
    normalise,
    to_displayable,
)
from datasets.views import SSLTIEViews, TestViews

AUDIO = AudioConfig(window_seconds=1.0, mel_bins=32, hop_length=400)
CPU = torch.device("cpu")
NOTHING = AugmentationConfig(
    crop=False, colour=False, grey=False, blur=False, flip=False, spec_augment=False
)


@pytest.fixture
def test_clips(tiny_data):
    clips = build_clips("vgg_ss", tiny_data.root, clip_list=None).clips
    return AudioVisualClips(clips, geometry=FrameGeometry(64), audio=AUDIO)


@pytest.fixture
def train_clips(tiny_data):
    clips = build_clips("vggsound", tiny_data.root, clip_list=None).clips
    return AudioVisualClips(clips, geometry=FrameGeometry(64), audio=AUDIO, random_crop=True)


def test_a_test_clip_is_whole_and_has_its_truth(test_clips, tiny_data):
    sample = test_clips[ClipRequest(0, 0)]
    assert sample.frame.shape == (3, 64, 64)
    assert sample.waveform.shape == (16_000,)
    box = np.array(tiny_data.boxes["test_0"])
    np.testing.assert_allclose(sample.bounding_boxes, [box])
    x_min, y_min, x_max, y_max = (224 * box).astype(int)
    assert sample.ground_truth_map.sum() == (x_max - x_min) * (y_max - y_min)
    centre_x, centre_y = (64 * (box[:2] + box[2:]) / 2).astype(int)
    assert sample.frame[0, centre_y, centre_x] > 200  # the red square of clip 0


def test_training_crops_repeat_with_their_seed(train_clips):
    first, again, other = (train_clips[ClipRequest(0, seed)].frame for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_broken_file_is_named_and_never_replaced(test_clips):
    path = test_clips.clips[1].audio_path
    path.write_bytes(path.read_bytes()[:20])
    batch = collate([test_clips[ClipRequest(i, 0)] for i in range(3)])
    assert batch.clip_ids == ("test_0", "test_2")
    assert [broken.clip_id for broken in batch.broken] == ["test_1"]
    assert path.name in batch.broken[0].reason
    assert len(batch.frames) == len(batch.waveforms) == len(batch.ground_truth_maps) == 2


def test_a_batch_of_broken_clips_is_empty(test_clips):
    for clip in test_clips.clips[:2]:
        clip.frame_path.write_bytes(b"\xff\xd8 cut off")
    batch = collate([test_clips[ClipRequest(i, 0)] for i in range(2)])
    assert len(batch) == 0
    assert len(batch.broken) == 2


def test_wrong_sounds_are_those_of_other_clips(test_clips):
    clips = test_clips.clips
    wrong = with_wrong_sounds(clips)
    assert [clip.clip_id for clip in wrong] == [clip.clip_id for clip in clips]
    assert [clip.frame_path for clip in wrong] == [clip.frame_path for clip in clips]
    assert all(w.audio_path != c.audio_path for w, c in zip(wrong, clips, strict=True))
    assert {clip.audio_path for clip in wrong} == {clip.audio_path for clip in clips}
    assert with_wrong_sounds(clips) == wrong
    assert any(
        a.audio_path != b.audio_path
        for a, b in zip(with_wrong_sounds(clips, 1), wrong, strict=True)
    )
    with pytest.raises(ValueError, match="--audio shuffled"):
        with_wrong_sounds(clips[:1])


def test_batches_are_a_function_of_seed_and_epoch():
    batches = SeededBatches(10, 3, seed=4)
    assert batches.steps_per_epoch == len(batches) == 3
    first = list(batches)
    assert list(batches) == first
    positions = [request.position for batch in first for request in batch]
    assert len(set(positions)) == 9
    batches.start_at(0, 2)
    assert list(batches) == first[2:]
    batches.start_at(1, 0)
    assert list(batches) != first
    assert list(SeededBatches(10, 3, seed=5)) != first


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(ValueError, match="--batch-size 4"):
        SeededBatches(3, 4, seed=0)


def test_hash_seed_tells_positions_apart():
    seeds = {hash_seed(4, epoch, step) for epoch in range(30) for step in range(300)}
    assert len(seeds) == 9000


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_give_the_same_whatever_the_workers(train_clips, test_clips, num_workers):
    batches = SeededBatches(len(train_clips), 4, seed=1)
    loader = build_train_loader(train_clips, batches, num_workers=num_workers, pin_memory=False)
    for batch, requests in zip(loader, batches, strict=True):
        expected = collate([train_clips[request] for request in requests])
        assert batch.clip_ids == expected.clip_ids
        assert torch.equal(batch.frames, expected.frames)
    loader = build_test_loader(test_clips, batch_size=4, num_workers=num_workers, pin_memory=False)
    assert [len(batch) for batch in loader] == [4, 2]
    assert [i for batch in loader for i in batch.clip_ids] == sorted(f"test_{i}" for i in range(6))


def make_views(augmentation, **geometric):
    return SSLTIEViews(AUDIO, augmentation, GeometricConfig(**geometric), CPU)


@pytest.fixture
def batch(train_clips):
    return collate([train_clips[ClipRequest(i, i)] for i in range(4)])


def test_views_repeat_with_their_seed(batch):
    views = make_views(AugmentationConfig(time_mask=10, frequency_mask=8))
    first, again, other = views(batch, 1), views(batch, 1), views(batch, 2)
    for name in ("frames", "log_mel_spectrogram", "transformed_frames"):
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["frames"], other["frames"])
    assert not torch.equal(first["log_mel_spectrogram"], other["log_mel_spectrogram"])


def test_views_without_augmentation_are_the_test_views(batch):
    inputs = make_views(NOTHING)(batch, 0)
    frames, log_mel = TestViews(AUDIO, CPU)(batch)
    assert torch.equal(inputs["frames"], frames)
    assert torch.equal(inputs["log_mel_spectrogram"], log_mel)


def test_transform_is_the_same_for_frames_and_maps(batch):
    inputs = make_views(NOTHING)(batch, 3)
    expected = GeometricTransform.sample(GeometricConfig(), 4, 64, random.Random(3))
    assert torch.equal(inputs["transformed_frames"], expected.warp_frames(inputs["frames"]))
    maps = torch.rand(4, 4, 4)
    assert torch.equal(inputs["transform"](maps)[0], expected.warp_maps(maps)[0])


def test_no_geometry_leaves_frames_alone(batch):
    inputs = make_views(NOTHING, rotation=False, scaling=False, geometric_flip=False)(batch, 0)
    torch.testing.assert_close(inputs["transformed_frames"], inputs["frames"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["colour", "grey", "blur", "flip"])
def test_each_frame_augmentation_acts_alone(name):
    frames = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    switches = dict.fromkeys(("colour", "grey", "blur", "flip"), False) | {name: True}
    torch.manual_seed(0)
    augmented = FrameAugmentation(AugmentationConfig(**switches))(frames)
    changed = (augmented != frames).flatten(1).any(dim=1).float().mean().item()
    expected = {"colour": 0.8, "grey": 0.2, "blur": 0.5, "flip": 0.5}[name]
    assert changed == pytest.approx(expected, abs=0.2)
    if name == "flip":
        differs = (augmented != frames).flatten(1).any(dim=1)
        assert torch.equal(augmented[differs], frames[differs].flip(-1))
    if name == "grey":
        grey = (augmented[:, 0] == augmented[:, 1]).flatten(1).all(dim=1)
        assert grey.float().mean().item() == pytest.approx(changed)


def test_spec_augment_masks_stretches_of_its_own_for_each_clip():
    power = torch.ones(400, 40, 100)
    torch.manual_seed(0)
    masked = SpecAugment(AugmentationConfig(time_mask=30, frequency_mask=10))(power)
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    columns = (masked == 0).all(dim=1).sum(dim=1)
    rows = (masked == 0).all(dim=2).sum(dim=1)
    assert columns.max() < 30
    assert rows.max() < 10
    touched = ((columns + rows) > 0).float().mean().item()
    assert touched == pytest.approx(0.8, abs=0.06)
    assert len(columns.unique()) > 10
    # A stretch is uniform in [0, 30) frames in 80 % of the clips.
    assert columns.float().mean().item() == pytest.approx(0.8 * 14.5, rel=0.15)


def test_masks_longer_than_the_spectrogram_are_refused():
    with pytest.raises(ValueError, match="--time-mask"):
        SpecAugment(AugmentationConfig())(torch.ones(1, 257, 100))


def test_displayable_undoes_normalise():
    frames = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    pictures = to_displayable(normalise(as_float(frames)))
    np.testing.assert_array_equal(pictures, frames.permute(0, 2, 3, 1).numpy())
