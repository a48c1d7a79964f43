"""What a training step sees and hears: decoded clips and their views, or a cache of features."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import opts
from datasets.audio import SegmentConfig
from datasets.audio_mixing import MixingClips
from datasets.clip_sets import ClipSet
from datasets.clips import AudioVisualClips, Batch
from datasets.feature_cache import CachedClips, CachedViews, FeatureCache, clips_fingerprint, fill
from datasets.frames import FrameGeometry
from datasets.loaders import build_test_loader
from datasets.paired_views import PairedViewConfig, enlarged_size
from datasets.transforms import AugmentationConfig
from datasets.views import SSLTIEViews, SSPLViews
from datasets.watched_workers import dead_workers_named
from models.sspl import SSPL
from utils.checkpoint import weights_sha256
from utils.distributed import barrier, main_process_first, rank, shard, world_size
from utils.optimisation import autocast

logger = logging.getLogger("main")

FILL_BATCH = 32
"""Clips whose features are made at once."""

Views = SSLTIEViews | SSPLViews | CachedViews


def build_training_clips(options: opts.TrainOptions, training_set: ClipSet) -> AudioVisualClips:
    """The training clips, decoded as the method's views need them."""
    size, augmentation = options.frame.frame_size, options.augmentation
    if isinstance(augmentation, PairedViewConfig):
        return AudioVisualClips(
            training_set.clips, geometry=FrameGeometry(enlarged_size(size)), audio=options.audio
        )
    return MixingClips(
        training_set.clips,
        geometry=FrameGeometry(size),
        audio=options.audio,
        excerpt_seconds=augmentation.audio_excerpt_seconds,
        random_crop=augmentation.crop,
    )


def build_views(options: opts.TrainOptions, device: torch.device) -> SSLTIEViews | SSPLViews:
    """What turns a batch into the keyword arguments of the method's forward."""
    if isinstance(options.audio, SegmentConfig):
        assert isinstance(options.augmentation, PairedViewConfig)
        return SSPLViews(options.audio, options.augmentation, options.frame.frame_size, device)
    assert isinstance(options.augmentation, AugmentationConfig) and options.geometric is not None
    return SSLTIEViews(options.audio, options.augmentation, options.geometric, device, options.negatives)


def build_inputs(
    options: opts.TrainOptions, training_set: ClipSet, model: nn.Module, device: torch.device
) -> tuple[AudioVisualClips | CachedClips, Views]:
    """Where a step's inputs come from: decoded clips, or a cache of features, filled here."""
    views = build_views(options, device)
    if options.frozen is None or options.frozen.feature_cache is None:
        return build_training_clips(options, training_set), views
    assert isinstance(model, SSPL) and isinstance(views, SSPLViews)
    with main_process_first():
        cache = open_cache(options, training_set, model, options.frozen.feature_cache)
    missing = shard(cache.missing(), rank(), world_size())
    barrier()  # nobody stores anything before all have seen what is missing
    rest = replace(training_set, clips=tuple(training_set.clips[p] for p in missing))
    loader = build_test_loader(
        build_training_clips(options, rest),
        batch_size=FILL_BATCH,
        num_workers=options.data.workers,
        pin_memory=device.type == "cuda",
    )

    def encode(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        decoded = batch.to(device)
        with autocast(device, options.compute.precision):
            maps = [model.frame_encoder(view) for view in views.pool_of(decoded)]
            return torch.stack(maps, 1), model.audio_encoder(views.front_end(decoded.waveforms))

    with dead_workers_named():
        fill(cache, dict(zip(rest.clip_ids, missing, strict=True)), loader, encode)
    barrier()
    logger.info("Frozen features of %d clips: %s", len(training_set.clips), cache.folder)
    return CachedClips(cache, training_set.clip_ids, views.view_pool), CachedViews()


def open_cache(options: opts.TrainOptions, training_set: ClipSet, model: SSPL, root: Path) -> FeatureCache:
    """The cache of all that the frozen encoders' output depends on."""
    assert isinstance(options.audio, SegmentConfig)
    plain = opts.as_plain(options)
    frozen = model.frozen_encoders()
    side, pool = options.frame.frame_size // 16, plain["augmentation"]["view_pool"]
    return FeatureCache(
        root,
        {
            "clips": clips_fingerprint(training_set.clips),
            "encoders": {name: weights_sha256(part.state_dict()) for name, part in frozen.items()},
            "device": next(model.parameters()).device.type,
            "compute": {**plain["compute"], "micro_batches": None},  # parts have no part in this
            **{group: plain[group] for group in ("audio", "frame", "augmentation")},
        },
        num_clips=len(training_set.clips),
        frame_maps_shape=(pool, model.frame_encoder.embedding_size, side, side),
        sound_shape=(options.audio.num_segments, model.audio_encoder.embedding_size),
    )
