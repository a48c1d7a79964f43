"""Cached features: the same training as without, whole after a stop, never of other data."""

import json
import os

import numpy as np
import pytest
import torch

import opts
from datasets.clip_sets import build_clips
from datasets.clips import BrokenClip, ClipRequest
from datasets.feature_cache import CachedClips, FeatureCache, collate_features
from datasets.loaders import SeededBatches, build_train_loader
from models import build_model
from scripts import training_inputs

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture
def options(tiny_data, tmp_path):
    return opts.parse_train_options(
        f"sspl --no-pcm --train-set vggsound --data-root {tiny_data.root} --output {tmp_path}/run "
        f"--random-init --frame-size 32 --batch-size 4 --workers 0 --device cpu --view-pool 3 "
        f"--feature-cache {tmp_path}/cache".split()
    )


@pytest.fixture
def training_set(options):
    return build_clips("vggsound", options.data.data_root, clip_list=None)


@pytest.fixture
def model(options):
    torch.manual_seed(0)
    return build_model("sspl", options.model).train()


def losses(model, loader, views):
    found = []
    with torch.no_grad():
        for step, batch in enumerate(loader):
            output = model(**views(batch, step))
            found.append([output.loss.item(), *(term.item() for term in output.terms.values())])
    return np.array(found)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_with_and_without(options, training_set, model, workers):
    batches = SeededBatches(len(training_set.clips), 4, seed=3)
    batches.start_at(1, 0)
    clips, views = training_inputs.build_inputs(options, training_set, model, CPU)
    assert isinstance(clips, CachedClips)
    loader = build_train_loader(clips, batches, num_workers=workers, pin_memory=False)
    cached = losses(model, loader, views)
    live_clips = training_inputs.build_training_clips(options, training_set)
    live_views = training_inputs.build_views(options, CPU)
    loader = build_train_loader(live_clips, batches, num_workers=0, pin_memory=False)
    live = losses(model, loader, live_views)
    assert cached.shape == (2, 1 + 7)  # the loss and its terms
    np.testing.assert_allclose(cached, live, rtol=1e-5, atol=1e-6)


def test_features_are_what_the_encoders_yield(options, training_set, model):
    clips, _ = training_inputs.build_inputs(options, training_set, model, CPU)
    batches = SeededBatches(8, 4, seed=0)
    cached = next(iter(build_train_loader(clips, batches, num_workers=0, pin_memory=False)))
    live_clips = training_inputs.build_training_clips(options, training_set)
    live = next(iter(build_train_loader(live_clips, batches, num_workers=0, pin_memory=False)))
    views = training_inputs.build_views(options, CPU)(live, 0)
    assert cached.clip_ids == live.clip_ids
    for index in range(4):
        one = slice(index, index + 1)
        expected = model.encode_frozen(**{name: tensor[one] for name, tensor in views.items()})
        for place in (0, 1):
            torch.testing.assert_close(cached.frame_maps[one, place], expected[place])
        torch.testing.assert_close(cached.sounds[one], expected[2])


def count_encoded(monkeypatch, model):
    counted = []
    encode = model.audio_encoder.forward
    monkeypatch.setattr(
        model.audio_encoder, "forward", lambda batch: counted.append(len(batch)) or encode(batch)
    )
    return counted


def test_nothing_is_encoded_twice_and_a_stop_loses_little(options, training_set, model, monkeypatch):
    monkeypatch.setattr(training_inputs, "FILL_BATCH", 3)
    counted = count_encoded(monkeypatch, model)
    store = FeatureCache.store
    monkeypatch.setattr(FeatureCache, "store", stop_at_second(store))
    with pytest.raises(KeyboardInterrupt):
        training_inputs.build_inputs(options, training_set, model, CPU)
    monkeypatch.setattr(FeatureCache, "store", store)
    training_inputs.build_inputs(options, training_set, model, CPU)
    assert sum(counted) == 8 + 3  # only what was being encoded at the stop is done again
    training_inputs.build_inputs(options, training_set, model, CPU)
    assert sum(counted) == 8 + 3


def stop_at_second(store):
    calls = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        store(*arguments)

    return stopping


@pytest.mark.parametrize(
    "option",
    ["--view-pool 4", "--frame-size 64", "--segment-seconds 2", "--precision bf16", "--tf32",
     "--channels-last", "--compile"],
)  # fmt: skip
def test_options_that_move_features_have_another_cache(
    options, training_set, model, tiny_data, tmp_path, option
):
    arguments = (
        f"sspl --no-pcm --train-set vggsound --data-root {tiny_data.root} --output {tmp_path}/run "
        f"--random-init --frame-size 32 --batch-size 4 --view-pool 3 --feature-cache cache {option}"
    )
    root = options.frozen.feature_cache
    first = training_inputs.open_cache(options, training_set, model, root).folder
    assert training_inputs.open_cache(options, training_set, model, root).folder == first
    changed = opts.parse_train_options(arguments.split())
    assert training_inputs.open_cache(changed, training_set, model, root).folder != first


def test_other_clips_or_weights_have_another_cache(options, training_set, model):
    def folder():
        return training_inputs.open_cache(
            options, training_set, model, options.frozen.feature_cache
        ).folder  # fmt: skip

    first = folder()
    os.utime(training_set.clips[0].frame_source, ns=(1, 1))
    second = folder()
    with torch.no_grad():
        model.frame_encoder.features[0].weight[0, 0, 0, 0] += 1
    assert len({first, second, folder()}) == 3


def test_a_full_disk_is_refused_before_anything_is_written(options, training_set, model, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"No room for the feature cache .* takes 0\.0 GB"):
        training_inputs.open_cache(options, training_set, model, options.frozen.feature_cache)
    assert list(options.frozen.feature_cache.iterdir()) == []


def test_features_that_are_not_there_are_never_read_as_zeros(options, training_set, model):
    cache = training_inputs.open_cache(options, training_set, model, options.frozen.feature_cache)
    with pytest.raises(ValueError, match="lacks the features of clip 0"):
        CachedClips(cache, training_set.clip_ids, 3)[ClipRequest(0, 0)]


def test_a_broken_clip_is_named_not_replaced(options, training_set, model):
    training_set.clips[2].frame_source.write_bytes(b"no picture")
    clips, _ = training_inputs.build_inputs(options, training_set, model, CPU)
    broken = clips[ClipRequest(2, 0)]
    assert isinstance(broken, BrokenClip) and broken.clip_id == "train_2"
    batch = collate_features([clips[ClipRequest(index, 0)] for index in range(4)])
    assert batch.clip_ids == ("train_0", "train_1", "train_3")
    assert [clip.clip_id for clip in batch.broken] == ["train_2"]
    assert len(collate_features([broken])) == 0


def test_a_damaged_cache_is_refused(options, training_set, model):
    root = options.frozen.feature_cache
    folder = training_inputs.open_cache(options, training_set, model, root).folder
    (folder / "sounds.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=f"Remove {folder}"):
        training_inputs.open_cache(options, training_set, model, options.frozen.feature_cache)
    assert json.loads((folder / "key.json").read_text())["format"] == "vssl-features-1"
