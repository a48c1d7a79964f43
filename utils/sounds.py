"""Sounds inside a report's page."""

import base64
import io

import numpy as np
import scipy
import soundfile
from numpy.typing import NDArray

COMPRESSION = 0.6
"""of libsndfile's MP3, from 0 to 1: some 30 kB for 10 s at 16 kHz"""
RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Hz, that MP3 knows."""


def encode_mp3(waveform: NDArray[np.float32], sample_rate: int) -> bytes:
    """A sound as MP3, which every browser plays.

    Args:
        waveform: (L,), nominally in [-1, 1]; louder samples are cut.
        sample_rate: Hz; one that MP3 does not know is brought to 16,000.
    """
    if sample_rate not in RATES:
        # Not imported by name: scipy.signal takes a second, and few programs come here.
        waveform = scipy.signal.resample_poly(waveform, 16_000, sample_rate)
        sample_rate = 16_000
    file = io.BytesIO()
    soundfile.write(
        file,
        np.clip(waveform, -1, 1),
        sample_rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="VARIABLE",
        compression_level=COMPRESSION,
    )
    return file.getvalue()


def render_player(mp3: bytes, label: str) -> str:
    """An HTML player with the sound inside; it loads nothing and starts silent.

    Args:
        mp3: the sound.
        label: its name for those who cannot see the page, escaped.
    """
    data = base64.b64encode(mp3).decode()
    source = f"data:audio/mpeg;base64,{data}"
    return f'<audio controls preload="none" aria-label="{label}" src="{source}"></audio>'
