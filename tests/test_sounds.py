import base64
import io
import re

import numpy as np
import pytest
import soundfile

from utils.sounds import encode_mp3, render_player


def tone(hertz, rate, seconds=1.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate, dtype="f4")


def loudest_hertz(samples, rate):
    spectrum = np.abs(np.fft.rfft(samples))
    return np.argmax(spectrum) * rate / len(samples)


@pytest.mark.parametrize("rate", [16_000, 22_050, 10_000, 96_000])
def test_a_sound_comes_back_at_any_rate(rate):
    samples, played_rate = soundfile.read(io.BytesIO(encode_mp3(tone(440, rate), rate)))
    assert played_rate == (rate if rate in (16_000, 22_050) else 16_000)
    assert abs(len(samples) / played_rate - 1) < 0.1
    assert abs(loudest_hertz(samples, played_rate) - 440) < 2
    assert abs(np.abs(samples[2000:-2000]).max() - 0.5) < 0.05


def test_too_loud_a_sound_is_cut_and_not_wrapped():
    samples, _ = soundfile.read(io.BytesIO(encode_mp3(5 * tone(440, 16_000), 16_000)))
    assert np.abs(samples).max() < 1.3
    assert abs(loudest_hertz(samples, 16_000) - 440) < 2


def test_the_player_holds_the_sound_and_waits():
    player = render_player(b"abc", "sound of x")
    assert base64.b64decode(re.search(r"base64,([^\"]*)", player)[1]) == b"abc"
    assert 'preload="none"' in player and "controls" in player and "autoplay" not in player
    assert 'aria-label="sound of x"' in player
