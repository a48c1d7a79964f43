"""What a training step sees and hears: decoded clips and their views."""

import torch

import opts
from datasets.audio import SegmentConfig
from datasets.audio_mixing import MixingClips
from datasets.benchmarks import ClipSet
from datasets.clips import AudioVisualClips
from datasets.frames import FrameGeometry
from datasets.paired_views import enlarged_size
from datasets.views import SSLTIEViews, SSPLViews


def build_training_clips(options: opts.TrainOptions, training_set: ClipSet) -> AudioVisualClips:
    """The training clips, decoded as the method's views need them."""
    size, augmentation = options.frame.frame_size, options.augmentation
    if augmentation is None:
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
        return SSPLViews(options.audio, options.frame.frame_size, device)
    assert options.augmentation is not None and options.geometric is not None
    return SSLTIEViews(options.audio, options.augmentation, options.geometric, device, options.negatives)
