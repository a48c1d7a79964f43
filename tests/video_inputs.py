"""Videos made for tests: each picture carries its number, so that it can be told from any other."""

from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition

WIDTH, HEIGHT = 64, 48
AUDIO_RATE = 48_000
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # by number of channels


def numbered_picture(number):
    """Eight cells, black or white, are the bits of the number; noise makes each picture costly."""
    bits = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4)
    cells = np.kron(bits, np.ones((HEIGHT // 2, WIDTH // 4), np.uint8))
    noise = np.random.default_rng(number).integers(0, 40, (HEIGHT, WIDTH, 3))
    return (30 + 155 * cells[:, :, None] + noise).astype(np.uint8)


def number_on(picture):
    """Reads the number off a picture of any size."""
    small = np.asarray(picture.convert("L").resize((4, 2), 4))  # box filter
    return sum(1 << bit for bit, cell in enumerate(small.reshape(-1)) if cell > 128)


def tone(seconds, level=0.3, channels=2):
    time = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    wave = level * np.sin(2 * np.pi * 440 * time)
    return np.stack([wave] * channels).astype(np.float32)


def _add_picture_stream(container, codec, rate, options, size):
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    stream.options = {**quiet, **(options or {})}
    stream.codec_context.time_base = Fraction(1, rate if codec.startswith("mpeg") else 1000)
    return stream


def make_video(
    path,
    *,
    seconds=2.0,
    rate=25,
    codec="libx264",
    options=None,
    times=None,
    rotation=0,
    mirrored=(False, False),
    pictures=None,
    sounds=None,
    sound_codec="aac",
    sound_start=0.0,
    sound_again=None,
    start=0.0,
    container_options=None,
    default_sound=0,
):
    """Writes a video; `sounds` are (channels, L) arrays at AUDIO_RATE, by default one tone."""
    times = [index / rate for index in range(round(seconds * rate))] if times is None else times
    sounds = [tone(seconds)] if sounds is None else sounds
    with av.open(str(path), "w", options=container_options or {}) as container:
        size = (WIDTH, HEIGHT) if pictures is None else pictures[0].shape[1::-1]
        video = _add_picture_stream(container, codec, rate, options, size) if times else None
        if rotation or any(mirrored):
            video.set_display_rotation(rotation, *mirrored)
        layouts = [LAYOUTS[len(samples)] for samples in sounds]
        streams = [container.add_stream(sound_codec, AUDIO_RATE, layout=layout) for layout in layouts]
        if default_sound:
            streams[default_sound].disposition = Disposition.default
        packets = []
        for index, time in enumerate(times):
            array = numbered_picture(index) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(array, "rgb24").reformat(format="yuv420p")
            time_base = video.codec_context.time_base
            frame.pts, frame.time_base = round((time + start) / time_base), time_base
            packets += video.encode(frame)
        container.mux(packets + (video.encode(None) if video else []))
        for stream, samples in zip(streams, sounds, strict=True):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", stream.layout.name)
            frame.sample_rate, frame.time_base = AUDIO_RATE, Fraction(1, AUDIO_RATE)
            frame.pts = round((start + sound_start) * AUDIO_RATE)
            packets = stream.encode(frame)
            if sound_again is not None:
                frame.pts = round((start + sound_again) * AUDIO_RATE)
                packets += stream.encode(frame)
            container.mux(packets + stream.encode(None))
    return path
