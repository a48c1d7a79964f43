"""Sound files to log-mel spectrograms: the authors' numbers, every format, every refusal."""

import math

import av
import numpy as np
import pytest
import soundfile
import torch
from golden_inputs import FULL_GOLDENS, GOLDENS, arrays
from video_inputs import make_video, tone

from datasets import audio
from datasets.audio import (
    AudioConfig,
    LogMelSpectrogram,
    SegmentConfig,
    VGGishLogMel,
    fit_window,
    level_waveform,
    load_waveform,
    mel_matrix,
    read_sound,
)
from utils.files import BrokenFileError

SHORT = AudioConfig(window_seconds=1.0)


@pytest.fixture(scope="module")
def log_mel():
    return LogMelSpectrogram(AudioConfig())


def spectrogram_of(path, config, *, excerpt_seconds=None):
    waveform = load_waveform(path, config, excerpt_seconds=excerpt_seconds)
    return LogMelSpectrogram(config)(waveform[None])[0]


def assert_decibels(actual, expected):
    """The golden's own spread between float32 and float64."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.numpy() - expected)
    assert difference.max() < 5e-3
    assert difference.mean() < 1e-5


def full_golden(name):
    path = FULL_GOLDENS / "c_spec.npz"
    if not path.is_file():
        pytest.skip(f"the full goldens are not at {path}")
    with np.load(path) as golden:
        return golden[name]


def sine(frequency, seconds, rate=16_000):
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def write(path, samples, rate=16_000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


# -------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", ["m16k_3s", "m16k_0p05s"])
def test_golden_spectrogram(name):
    spectrogram = spectrogram_of(GOLDENS / "c_audio" / f"{name}.wav", AudioConfig())
    assert spectrogram.shape == (1, 257, 670)
    assert_decibels(spectrogram[:, ::8, ::9], arrays("inputs")[name])


@pytest.mark.parametrize(
    ("name", "file_name", "rate", "excerpt_seconds"),
    [
        ("m16k_10s", "audio/m16k_10s.wav", 16_000, None),
        ("m16k_2p5s_exact", "audio/m16k_2p5s_exact.wav", 16_000, None),
        ("m22k_3s", "audio/m22k_3s.wav", 22_050, None),
        ("m44k_10s", "audio/m44k_10s.wav", 44_100, None),
        # A WAV file whose name ends in .mp3: what counts is what is inside.
        ("flickr_train_4s_of_10s", "mp3/flickr_train.mp3", 16_000, 4),
    ],
)
def test_golden_spectrogram_in_full(name, file_name, rate, excerpt_seconds):
    golden = full_golden(name)
    path = FULL_GOLDENS / "c_audio" / file_name
    config = AudioConfig(sample_rate=rate)
    assert_decibels(spectrogram_of(path, config, excerpt_seconds=excerpt_seconds), golden)


# ------------------------------------------------------------------------------- the waveform


@pytest.mark.parametrize("seconds", [0.25, 0.5, 7])
def test_short_sounds_and_excerpts_are_repeated(tmp_path, seconds):
    samples = np.linspace(-1, 1, 40_000, dtype=np.float32)
    path = write(tmp_path / "long.wav", samples, subtype="FLOAT")
    waveform = load_waveform(path, SHORT, excerpt_seconds=seconds)
    kept = samples[: min(round(seconds * 16_000), 16_000)]
    assert torch.equal(waveform, torch.from_numpy(kept).repeat(4)[:16_000])
    write(path, kept, subtype="FLOAT")
    assert torch.equal(load_waveform(path, SHORT), waveform)


@pytest.mark.parametrize("rate", [44_100, 22_050, 11_025, 8_000])
def test_resampling_keeps_pitch_and_length(tmp_path, rate):
    path = write(tmp_path / "tone.wav", sine(1000, 2, rate), rate)
    config = AudioConfig(window_seconds=2)
    waveform = load_waveform(path, config)
    assert waveform.shape == (32_000,)
    spectrum = np.abs(np.fft.rfft(waveform.numpy()))
    assert spectrum.argmax() == 2000  # bins of 0.5 Hz
    np.testing.assert_allclose(waveform[200:-200], sine(1000, 2)[200:-200], atol=5e-3)


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        (".flac", {}, 1e-4),
        (".ogg", {}, 0.03),
        (".mp3", {}, 0.03),
        (".wav", {"subtype": "PCM_16"}, 1e-4),
        (".wav", {"subtype": "PCM_24"}, 1e-4),
        (".wav", {"subtype": "FLOAT"}, 1e-4),
        (".wav", {"subtype": "IMA_ADPCM"}, 0.03),
        (".wav", {"format": "WAVEX"}, 1e-4),
        (".wav", {"format": "RF64"}, 1e-4),
    ],
)
def test_every_format_is_read(tmp_path, suffix, options, tolerance):
    samples = (sine(440, 1) * np.linspace(1, 0.2, 16_000, dtype=np.float32))[:15_999]  # no period to hide in
    path = write(tmp_path / f"tone{suffix}", samples, **options)
    if suffix == ".wav":
        path.write_bytes(path.read_bytes() + b"LIST\x04\0\0\0INFO")  # a chunk behind the sound
    waveform = load_waveform(path, SHORT)
    assert waveform.shape == (16_000,)
    np.testing.assert_allclose(waveform[200:15_999], samples[200:], atol=tolerance)


def test_what_libsndfile_cannot_decode_is_left_to_ffmpeg(tmp_path):
    m4a = make_video(tmp_path / "sound.m4a", times=[], sounds=[tone(1)], container_options={"f": "mp4"})
    assert load_waveform(m4a, SHORT).abs().max() == pytest.approx(0.3, abs=0.05)
    m4a.write_bytes(m4a.read_bytes()[:-3000])
    with pytest.raises(BrokenFileError, match=r"sound\.m4a"):
        load_waveform(m4a, SHORT)


# ----------------------------------------------------------------------------- broken files


def test_broken_files_are_named(tmp_path):
    (tmp_path / "text.wav").write_text("HTTP 404: the sound you want is not here\n" * 20)
    write(tmp_path / "no_samples.wav", np.zeros(0, np.float32))
    write(tmp_path / "odd.wav", np.zeros(100), 47_999)
    reasons = {"absent.wav": "no such file", "no_samples.wav": "no audio sample", "text.wav": "cannot"}
    reasons |= {"odd.wav": "47999 Hz", "nan.wav": "not finite", "-inf.wav": "not finite"}
    for value in (math.nan, -math.inf):
        samples = sine(440, 0.5)
        samples[3000] = value
        path = write(tmp_path / f"{value}.wav", samples, subtype="FLOAT")
        assert load_waveform(path, SHORT, excerpt_seconds=0.1).isfinite().all()
    for suffix in (".wav", ".mp3", ".flac", ".ogg"):
        for content in (b"", np.random.default_rng(0).bytes(3000)):
            name = f"{len(content)}{suffix}"
            (tmp_path / name).write_bytes(content)
            reasons[name] = "cannot be read"
    for name, reason in reasons.items():
        with pytest.raises(BrokenFileError, match=reason) as caught:
            load_waveform(tmp_path / name, SHORT)
        assert caught.value.path == tmp_path / name
        assert str(caught.value).startswith(f"{tmp_path / name} cannot be read: ")
        assert caught.value.reason


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au"])
@pytest.mark.parametrize(("lost", "is_cut"), [(2, False), (1500, False), (1700, True), (31_000, True)])
def test_a_sound_that_was_cut_off_is_named_and_a_slip_of_the_header_is_none(tmp_path, suffix, lost, is_cut):
    path = write(tmp_path / f"tone.{suffix}", sine(440, 1), subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-lost])
    if not is_cut:
        assert load_waveform(path, SHORT).shape == (16_000,)
        return
    with pytest.raises(BrokenFileError, match=rf"cut off: {lost} bytes of its sound are missing"):
        load_waveform(path, SHORT)


def without_index(path, samples, *, variable=True):
    """An MP3 as it comes out of a pipe, which says nowhere how long it is."""
    options = {"write_xing": "0", "id3v2_version": "0"}
    with av.open(str(path), "w", "mp3", options=options) as container:
        stream = container.add_stream("libmp3lame", 16_000, layout="mono")
        if variable:
            stream.codec_context.flags |= av.codec.context.Flags.qscale
            stream.codec_context.global_quality = 4 * 118
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate = 16_000
        fifo = av.AudioFifo()
        fifo.write(frame)
        for piece in fifo.read_many(stream.codec_context.frame_size or 576):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def heard(path, rate=16_000):
    """Seconds of it, and the last quarter's loudest sample."""
    sound = read_sound(path, rate)
    return len(sound) / rate, float(sound[len(sound) * 3 // 4 :].abs().max())


def test_what_is_decoded_counts_and_not_what_is_announced(tmp_path):
    quiet_then_loud = sine(440, 8) * np.repeat([0.001, 1], 64_000).astype(np.float32)
    for variable in (True, False):
        path = without_index(tmp_path / "pipe.mp3", quiet_then_loud, variable=variable)
        assert heard(path) == (pytest.approx(8, abs=0.2), pytest.approx(0.5, abs=0.15))
    for suffix in ("mp3", "ogg"):  # two after each other; the first announces 1 s
        path = write(tmp_path / f"two.{suffix}", sine(440, 1))
        path.write_bytes(path.read_bytes() + write(path, 0.1 * sine(440, 1)).read_bytes())
        assert heard(path) == (pytest.approx(2, abs=0.2), pytest.approx(0.05, abs=0.02))
    wav = write(tmp_path / "switched_off.wav", quiet_then_loud)
    for announced in (0, 20_000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):  # the large ones: of pipes
        content = wav.read_bytes()
        wav.write_bytes(content[:40] + announced.to_bytes(4, "little") + content[44:])
        assert heard(wav) == (pytest.approx(8), pytest.approx(0.5, abs=0.01))


@pytest.mark.parametrize("name", ["x.mp3", "x.ogg", "x.flac", "pipe.flac", "x.opus"])
def test_downloads_that_broke_off_are_named(tmp_path, name):
    path, samples = tmp_path / name, sine(440, 8)
    write(path, samples, **({"format": "OGG", "subtype": "OPUS"} if name == "x.opus" else {}))
    if name == "pipe.flac":
        content = bytearray(path.read_bytes())
        # The number of samples, 36 bits: 0 is not known.
        content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
        path.write_bytes(content)
    seconds, loudest = heard(path)
    assert seconds == pytest.approx(8, abs=0.2) and loudest > 0.3
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])
    with pytest.raises(BrokenFileError, match=r"cut off"):
        load_waveform(path, AudioConfig())


def test_damage_within_a_sound_is_named_and_what_lies_around_an_mp3_is_skipped(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 8 * 16_000)
    for suffix in ("ogg", "flac"):
        path = write(tmp_path / f"x.{suffix}", noise)
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 30] = b"damage" * 5
        path.write_bytes(content)
        with pytest.raises(BrokenFileError, match="damaged"):
            load_waveform(path, AudioConfig())
    path = write(tmp_path / "x.mp3", noise)
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125) + b"junk" * 500)
    assert heard(path)[0] == pytest.approx(8, abs=0.1)


# --------------------------------------------------------------------------- the spectrogram


def test_power_and_decibels(log_mel):
    waveforms = torch.from_numpy(sine(440, 10))[None]
    power = log_mel.mel(waveforms)
    assert power.shape == (1, 257, 670) and power.min() >= 0
    assert torch.equal(log_mel.to_decibels(power), log_mel(waveforms))
    known = log_mel.to_decibels(torch.tensor([[[1.0, 10.0, 0.001, 1e-10, 0.0]]]))
    torch.testing.assert_close(known, torch.tensor([[[[0.0, 10, -30, -100, -100]]]]))
    noise = torch.randn(1, 160_000, generator=torch.Generator().manual_seed(1))
    at_the_floor = (log_mel(noise)[0, 0] == -100).all(dim=1)
    assert at_the_floor.sum() == 28  # filters without a bin
    silence = log_mel(torch.zeros(1, 160_000))[0]
    assert (silence == -100).all()
    assert (silence[:, ::8, ::9].numpy() == arrays("inputs")["silence"]).all()


def test_a_sound_of_absurd_length_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    path, middle = write(tmp_path / "long.flac", np.zeros(20 * 8_000), 8_000), SegmentConfig()
    monkeypatch.setattr(audio, "MAX_SECONDS", 20)
    assert load_waveform(path, middle).shape == (48_000,)
    monkeypatch.setattr(audio, "MAX_SECONDS", 19)
    with pytest.raises(BrokenFileError, match=r"longer than 19 s .* to find its middle"):
        load_waveform(path, middle)
    assert load_waveform(path, SHORT).shape == (16_000,)  # the rest is not decoded


# ------------------------------------------------------------------------------------ VGGish


def test_golden_mel_matrix():
    matrix = mel_matrix()
    assert matrix.shape == (257, 64) and matrix.dtype == torch.float64
    assert matrix.sum().item() == pytest.approx(230.91360, abs=5e-6)
    assert (matrix > 0).sum() == 461
    assert matrix[0].sum() == 0 and matrix.max() <= 1


@pytest.mark.parametrize("length", [1, 7, 16_000, 24_000, 47_999, 48_000, 48_001, 50_001, 160_000])
def test_the_middle_is_tiling_then_cutting(length):
    waveform = torch.arange(length)
    tiled = waveform if length >= 48_000 else waveform.repeat(48_000 // length + 1)
    start = len(tiled) // 2 - 24_000
    assert torch.equal(fit_window(waveform, SegmentConfig()), tiled[start : start + 48_000])


def test_levelling_is_of_each_waveform_and_leaves_silence_finite():
    generator = torch.Generator().manual_seed(3)
    waveforms = torch.randn(3, 1000, generator=generator) * torch.tensor([[0.01], [1.0], [0.0]])
    levelled = level_waveform(waveforms)
    for waveform, expected in zip(waveforms, levelled, strict=True):
        torch.testing.assert_close(level_waveform(waveform), expected)
    assert (levelled.amin(dim=1) == -1).all() and levelled.max() < 1
    assert (levelled[2] == -1).all()
    segments = VGGishLogMel()(level_waveform(torch.zeros(1, 48_000)))  # leaks into the lowest bins only
    assert segments.min().item() == pytest.approx(-4.60, abs=5e-3)
    assert segments.max().item() == pytest.approx(-0.64, abs=5e-3)
    assert (segments.flatten(0, 3).argmax(dim=1) == 1).all()


def test_log_mel_equals_a_loop_and_leaves_the_rest_out():
    waveforms = torch.randn(2, 31_500, generator=torch.Generator().manual_seed(4))
    segments = VGGishLogMel()(waveforms)
    assert segments.shape == (2, 2, 1, 96, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    for clip, segment, frame in [(0, 0, 0), (1, 0, 95), (0, 1, 0), (1, 1, 50)]:
        start = 160 * (96 * segment + frame)
        samples = waveforms[clip, start : start + 400].double().numpy() * window
        mel = np.abs(np.fft.rfft(samples, 512)) @ mel_matrix().numpy()
        expected = np.log(mel + 0.01).astype(np.float32)
        np.testing.assert_allclose(segments[clip, segment, 0, frame], expected, atol=1e-6)
