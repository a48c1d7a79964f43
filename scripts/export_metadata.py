"""What an exported localiser notes about itself: where it is from, and what its inputs must be."""

import json
from dataclasses import asdict
from functools import singledispatch
from pathlib import Path
from typing import Any

import torch

from datasets import audio as front_ends
from datasets.audio import AudioConfig, SegmentConfig, SpectrogramConfig
from datasets.transforms import IMAGENET_MEAN, IMAGENET_STD
from models.localiser import TrainedModel

FORMAT = "vssl-onnx-1"
"""Under which name and meaning the entries stand."""


@singledispatch
def describe_front_end(audio: object) -> dict[str, Any]:
    """How a waveform becomes what the audio encoder hears."""
    raise AssertionError(audio)


@describe_front_end.register
def _(audio: AudioConfig) -> dict[str, Any]:
    return {
        "audio": f"log_mel_spectrogram (B, 1, {audio.mel_bins}, T), T = {audio.num_frames}",
        "window": "hann, periodic, over the root of its energy",
        "window_samples": audio.fft_size,
        "hop_samples": audio.hop_length,
        "fft_size": audio.fft_size,
        "padding": f"{audio.fft_size // 2} samples reflected at both ends",
        "spectrum": "power",
        "mel_bins": audio.mel_bins,
        "mel_scale": "HTK, triangles of height 1 straight in Hz",
        "mel_range_hz": [0, audio.sample_rate / 2],
        "scaling": "10 log10(max(mel, 1e-10)), dB",
    }


@describe_front_end.register
def _(audio: SegmentConfig) -> dict[str, Any]:
    return {
        "audio": f"log_mel_segments (B, S, 1, {front_ends.SEGMENT_FRAMES}, "
        f"{front_ends.VGGISH_MEL_BINS}), S = {audio.num_segments}",
        "levelling": "w <- w - min w; w <- 2 (w / (max w + 1e-3) - 0.5)",
        "window": "hann, periodic",
        "window_samples": front_ends.VGGISH_WINDOW,
        "hop_samples": front_ends.VGGISH_HOP,
        "fft_size": front_ends.VGGISH_FFT,
        "padding": "none; each window is filled up with zeros to the FFT",
        "spectrum": "magnitude",
        "mel_bins": front_ends.VGGISH_MEL_BINS,
        "mel_scale": "1127 ln(1 + f / 700), triangles of height 1 straight in mel",
        "mel_range_hz": list(front_ends.VGGISH_HZ),
        "scaling": f"ln(mel + {front_ends.VGGISH_LOG_OFFSET})",
    }


@describe_front_end.register
def _(audio: SpectrogramConfig) -> dict[str, Any]:
    hop = front_ends.PEER_FFT - audio.overlap
    samples = round(audio.excerpt_seconds * audio.sample_rate)
    return {
        "audio": f"log_spectrogram (B, 1, {front_ends.PEER_FFT // 2 + 1}, T), "
        f"T = {(samples - front_ends.PEER_FFT) // hop + 1}",
        "window": f"tukey, periodic, shape {front_ends.TUKEY_SHAPE}; each window's mean is removed",
        "window_samples": front_ends.PEER_FFT,
        "hop_samples": hop,
        "fft_size": front_ends.PEER_FFT,
        "padding": "none",
        "spectrum": "power per Hz, one-sided: times 2 but for the first and the last frequency",
        "scaling": f"ln(power + {front_ends.POWER_OFFSET:g}) / {front_ends.LOG_SCALE:g}",
    }


def describe_file(
    trained: TrainedModel, checkpoint: Path, sha256: str, *, inputs: str, opset: int
) -> dict[str, str]:
    """Entries for the file; those with parts are JSON.

    Args:
        trained: the model.
        checkpoint: it comes from.
        sha256: of the checkpoint.
        inputs: prepared or raw.
        opset: of ONNX.
    """
    audio = trained.audio
    frames = {
        "frame_size": trained.frame.frame_size,
        "geometry": "squash: to the square whatever the shape; bicubic with antialiasing",
        "colours": "RGB",
        "scale": 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    sound = {
        **asdict(audio),
        "sample_rate": audio.sample_rate,
        "num_samples": audio.num_samples,
        "centred": audio.centred,
        "channels": "mean",
        **describe_front_end(audio),
    }
    source = {
        "name": checkpoint.name,
        "sha256": sha256,
        "epoch": trained.checkpoint.epoch,
        "config": trained.checkpoint.method_config,
    }
    return {
        "format": FORMAT,
        "method": trained.checkpoint.method,
        "inputs": inputs,
        "opset": str(opset),
        "checkpoint": json.dumps(source),
        "frames": json.dumps(frames),
        "audio": json.dumps(sound),
        "similarity_map": "(B, h, w): cosine of the sound with each place of its frame",
        "torch": torch.__version__,
    }
