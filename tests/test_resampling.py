"""The middle of a long sound read alone: the same samples as from the whole, and nothing else."""

import math

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from datasets.audio import AudioConfig, centre_clip, load_waveform, read_sound
from datasets.errors import BrokenFileError
from datasets.resampling import middle_part, resample, resampled_length
from datasets.vggish_log_mel import SegmentConfig

MIDDLE = SegmentConfig(segment_seconds=1.0)
RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]


def write(path, seconds, rate, channels=1, **options):
    generator = np.random.default_rng(round(seconds * rate))
    samples = 0.3 * generator.standard_normal((round(seconds * rate), channels))
    soundfile.write(path, samples.clip(-1, 1), rate, **options)
    return path


def spy_on_reads(monkeypatch):
    read, lengths = soundfile.SoundFile.read, []

    def counted(file, *arguments, **options):
        samples = read(file, *arguments, **options)
        lengths.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    return lengths


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("seconds", [1.0, 1.0005, 3.21, 10.0])
def test_the_middle_is_that_of_the_whole(tmp_path, monkeypatch, rate, suffix, seconds):
    path = write(tmp_path / f"sound.{suffix}", seconds, rate)
    whole = centre_clip(read_sound(path, 16_000), MIDDLE.num_samples)
    lengths = spy_on_reads(monkeypatch)
    middle = load_waveform(path, MIDDLE)
    assert middle.shape == (16_000,)
    torch.testing.assert_close(middle, whole, atol=1e-6, rtol=0)
    if rate == 16_000:
        assert torch.equal(middle, whole)
    assert lengths == [min(lengths[0], round(seconds * rate))]
    assert lengths[0] <= 1.13 * rate  # a second, and three periods of the filters at most


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("mp3", {}), ("ogg", {}), ("wav", {"subtype": "IMA_ADPCM"}), ("wav", {"subtype": "PCM_U8"})],
)
def test_other_formats_give_their_middle_too(tmp_path, suffix, options):
    path = write(tmp_path / f"sound.{suffix}", 2.7, 22_050, channels=1, **options)
    whole = centre_clip(read_sound(path, 16_000), MIDDLE.num_samples)
    torch.testing.assert_close(load_waveform(path, MIDDLE), whole, atol=1e-6, rtol=0)


def test_short_and_stereo_sounds(tmp_path):
    for seconds, channels in ((0.3, 1), (0.99, 2), (1.7, 2)):
        path = write(tmp_path / "sound.wav", seconds, 44_100, channels)
        whole = centre_clip(read_sound(path, 16_000), MIDDLE.num_samples)
        torch.testing.assert_close(load_waveform(path, MIDDLE), whole, atol=1e-6, rtol=0)


def test_a_sound_that_was_cut_off_gives_the_middle_of_what_is_left(tmp_path):
    path = write(tmp_path / "sound.wav", 3.0, 16_000)
    path.write_bytes(path.read_bytes()[:-30_000])
    whole = centre_clip(read_sound(path, 16_000), MIDDLE.num_samples)
    assert torch.equal(load_waveform(path, MIDDLE), whole)


def test_a_middle_that_is_no_number_is_named(tmp_path):
    samples = np.zeros(48_000, np.float32)
    samples[24_000] = math.nan
    path = tmp_path / "sound.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(BrokenFileError, match=r"sound\.wav cannot be read: .* not finite"):
        load_waveform(path, MIDDLE)
    with pytest.raises(BrokenFileError, match=r"absent\.wav cannot be read: "):
        load_waveform(tmp_path / "absent.wav", MIDDLE)


@pytest.mark.parametrize("rate", RATES)
def test_the_beginning_is_that_of_the_whole(tmp_path, monkeypatch, rate):
    path = write(tmp_path / "sound.wav", 5.0, rate)
    whole = read_sound(path, 16_000)[:16_000]
    lengths = spy_on_reads(monkeypatch)
    beginning = load_waveform(path, AudioConfig(window_seconds=1.0))
    torch.testing.assert_close(beginning, whole, atol=1e-6, rtol=0)
    assert lengths[0] <= 1.02 * rate


@pytest.mark.parametrize("rate", RATES)
def test_resampling_is_torchaudio_s(rate):
    waveform = torch.randn(rate + 7, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.functional.resample(waveform, rate, 16_000)
    for _ in range(2):
        assert torch.equal(resample(waveform, rate, 16_000), expected)
    assert resampled_length(len(waveform), rate, 16_000) == len(expected)


def test_a_part_begins_within_the_file():
    assert middle_part(15_999, 16_000, 16_000, 16_000) is None
    for length in (16_000, 16_001, 20_000, 1_000_000):
        part = middle_part(length, 16_000, 16_000, 16_000)
        assert part.first >= 0 and part.first + part.length <= length
        assert part.first + part.skip == length // 2 - 8000
