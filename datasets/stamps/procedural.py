"""Stand-in for the real material: own drawings, synthesised sounds and smooth coloured noise.

Twelve classes; each is a shape with a pattern in two colourings, and a timbre in two pitches. The
second of each is held out, as with the real material. Nothing here depends on the set's seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.signal import lfilter, sawtooth, square

from datasets.stamps.material import (
    SAMPLE_RATE,
    Background,
    Material,
    Photo,
    Sound,
    SoundingClass,
    check_num_classes,
    crop_to_opaque,
    split_backgrounds,
)

_SECONDS = 2.0
_OVERSAMPLING = 3
_NUM_BACKGROUNDS = 40
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Look:
    """How a class is drawn: the corners of its shape on the unit circle, its pattern, its hue."""

    corners: int  # points of a star if negative
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray]
    colours: tuple[_Colour, _Colour]


def make_procedural_material(num_classes: int, frame_size: int) -> Material:
    """Draws and synthesises the material.

    Args:
        num_classes: How many classes, in the order of the list.
        frame_size: Side of the frames to come, pixels.

    Returns:
        The material; the same for equal arguments.

    Raises:
        StampsError: More classes than there are.
    """
    check_num_classes(num_classes, len(_CLASSES), "procedural")
    classes = []
    for name, (look, voice) in list(_CLASSES.items())[:num_classes]:
        photos = [
            Photo(f"procedural:{name}-{variant}", _draw(look, variant, frame_size), variant == 1)
            for variant in (0, 1)
        ]
        sounds = [
            Sound(f"procedural:{name}-{variant}", _synthesise(voice, variant), variant == 1)
            for variant in (0, 1)
        ]
        classes.append(SoundingClass(name, tuple(photos), tuple(sounds)))
    backgrounds = [
        Background(f"procedural:background-{number}", _draw_background(number, frame_size))
        for number in range(_NUM_BACKGROUNDS)
    ]
    silent = [
        Photo(f"procedural:silent-{number}", _draw(look, 0, frame_size))
        for number, look in enumerate(_SILENT)
    ]
    return Material(
        source="procedural",
        classes=tuple(classes),
        silent=tuple(silent),
        backgrounds=split_backgrounds(backgrounds),
        licence="Drawn and synthesised by this program; no rights of others.",
    )


def _draw(look: _Look, variant: int, frame_size: int) -> Image.Image:
    """Draws an RGBA object; the variant swaps the colours and turns the shape a little."""
    side = frame_size * _OVERSAMPLING
    num_points = abs(look.corners) * (2 if look.corners < 0 else 1)
    angles = 2 * np.pi * np.arange(num_points) / num_points - np.pi / 2 + 0.15 * variant
    radii = np.where(np.arange(num_points) % 2, 0.5, 1) if look.corners < 0 else np.ones(num_points)
    corners = side * (0.5 + 0.48 * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in corners.tolist()], fill=255)

    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    weight = look.pattern(x, y)[..., None]
    colours = np.array(look.colours if variant == 0 else look.colours[::-1], np.float64)
    light = (1.0 - 0.35 * (x + y) / 2)[..., None]  # lit from the upper left
    pixels = np.clip(light * (weight * colours[0] + (1 - weight) * colours[1]), 0, 255)
    picture = Image.fromarray(pixels.astype(np.uint8))
    picture.putalpha(mask)
    picture = picture.resize((frame_size, frame_size), Image.Resampling.LANCZOS)
    return crop_to_opaque(picture)


def _draw_background(number: int, frame_size: int) -> Image.Image:
    """Draws a colour gradient with noise of several scales over it."""
    rng = np.random.default_rng([number, 7])
    side = frame_size * 2
    down, right = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j][..., None]
    corners = rng.uniform(30, 220, (4, 3))
    pixels = (1 - down) * ((1 - right) * corners[0] + right * corners[1])
    pixels += down * ((1 - right) * corners[2] + right * corners[3])
    for cells, strength in ((4, 35), (12, 20), (48, 12)):
        noise = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        smooth = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
        pixels = pixels + strength * np.asarray(smooth)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _plain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.hypot(x, y) < 0.45).astype(float)


def _stripes(x: np.ndarray, _: np.ndarray) -> np.ndarray:
    return (np.sin(16 * x) > 0).astype(float)


def _bands(_: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.sin(14 * y) > 0).astype(float)


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.sin(12 * x) * np.sin(12 * y) > 0).astype(float)


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.cos(14 * x) + np.cos(14 * y) > 0.6).astype(float)


def _rings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.sin(22 * np.hypot(x, y)) > 0).astype(float)


def _rays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.sin(9 * np.arctan2(y, x)) > 0).astype(float)


# A voice turns time (seconds) and a base frequency (Hz) into a waveform of any scale.
_Voice = Callable[[np.ndarray, float], np.ndarray]


def _synthesise(voice: tuple[_Voice, float], variant: int) -> np.ndarray:
    """Plays a voice; the variant is a fourth (five semitones) higher."""
    synthesiser, frequency = voice
    time = np.arange(int(_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    waveform = synthesiser(time, frequency * 2 ** (5 / 12 * variant))
    return (waveform / np.abs(waveform).max()).astype(np.float32)


def _phase(frequency: np.ndarray) -> np.ndarray:
    return 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE


def _decay(time: np.ndarray, period: float, half_life: float) -> np.ndarray:
    """An envelope that starts anew every `period` seconds."""
    return 0.5 ** (time % period / half_life)


def _noise(time: np.ndarray) -> np.ndarray:
    return np.random.default_rng(11).standard_normal(len(time))


def _siren(time: np.ndarray, frequency: float) -> np.ndarray:
    return np.sin(_phase(frequency * (1 + 0.35 * np.sin(2 * np.pi * 0.8 * time))))


def _bell(time: np.ndarray, frequency: float) -> np.ndarray:
    partials = sum(np.sin(2 * np.pi * frequency * r * time) for r in (1, 2.76, 5.4))
    return partials * _decay(time, 1.0, 0.2)


def _buzz(time: np.ndarray, frequency: float) -> np.ndarray:
    return sawtooth(_phase(frequency * (1 + 0.03 * np.sin(2 * np.pi * 9 * time))))


def _chirps(time: np.ndarray, frequency: float) -> np.ndarray:
    return np.sin(_phase(frequency * (1 + 0.8 * (time % 0.18) / 0.18))) * (time % 0.36 < 0.18)


def _hiss(time: np.ndarray, frequency: float) -> np.ndarray:
    return lfilter([1, -0.95], [1], _noise(time)) * (1 + np.sin(2 * np.pi * frequency * time))


def _drum(time: np.ndarray, frequency: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * time % (2 * np.pi)) * _decay(time, 0.4, 0.05)


def _pluck(time: np.ndarray, frequency: float) -> np.ndarray:
    return sum(np.sin(2 * np.pi * frequency * n * time) / n * _decay(time, 0.5, 0.3 / n) for n in range(1, 7))


def _hum(time: np.ndarray, frequency: float) -> np.ndarray:
    tone = sum(np.sin(2 * np.pi * frequency * n * time) for n in (1, 2, 3))
    return tone * (1 + 0.8 * np.sin(2 * np.pi * 5 * time))


def _whistle(time: np.ndarray, frequency: float) -> np.ndarray:
    return np.sin(_phase(frequency * (1 + 0.02 * np.sin(2 * np.pi * 6 * time))))


def _clicks(time: np.ndarray, frequency: float) -> np.ndarray:
    return _noise(time) * _decay(time, 1 / frequency, 0.004)


def _arpeggio(time: np.ndarray, frequency: float) -> np.ndarray:
    steps = np.array([1, 1.26, 1.5, 2])[(time / 0.15).astype(int) % 4]
    return square(_phase(frequency * steps))


def _rumble(time: np.ndarray, frequency: float) -> np.ndarray:
    pole = np.exp(-2 * np.pi * frequency / SAMPLE_RATE)
    return lfilter([1], [1, -pole], _noise(time))


_RED, _ORANGE, _YELLOW = (205, 40, 40), (235, 135, 30), (240, 215, 60)
_GREEN, _TEAL, _BLUE = (45, 150, 60), (30, 160, 160), (40, 80, 200)
_VIOLET, _PINK, _BROWN = (130, 60, 180), (235, 110, 170), (125, 80, 45)
_WHITE, _BLACK, _GREY = (240, 240, 235), (30, 30, 35), (130, 130, 135)

_CLASSES: dict[str, tuple[_Look, tuple[_Voice, float]]] = {
    "disc_with_rings": (_Look(64, _rings, (_RED, _WHITE)), (_siren, 700)),
    "striped_square": (_Look(4, _stripes, (_YELLOW, _BLACK)), (_buzz, 150)),
    "star_with_rays": (_Look(-5, _rays, (_ORANGE, _RED)), (_bell, 520)),
    "dotted_triangle": (_Look(3, _dots, (_GREEN, _YELLOW)), (_chirps, 1800)),
    "checked_hexagon": (_Look(6, _checks, (_BLUE, _WHITE)), (_arpeggio, 330)),
    "banded_disc": (_Look(64, _bands, (_VIOLET, _PINK)), (_hum, 110)),
    "dotted_disc": (_Look(64, _dots, (_TEAL, _BLACK)), (_drum, 80)),
    "ringed_star": (_Look(-8, _rings, (_PINK, _BROWN)), (_pluck, 220)),
    "rayed_square": (_Look(4, _rays, (_GREEN, _BLUE)), (_clicks, 6)),
    "plain_pentagon": (_Look(5, _plain, (_BROWN, _ORANGE)), (_rumble, 90)),
    "striped_triangle": (_Look(3, _stripes, (_RED, _BLUE)), (_whistle, 1100)),
    "banded_star": (_Look(-6, _bands, (_GREY, _WHITE)), (_hiss, 3)),
}

_SILENT: Sequence[_Look] = (
    _Look(64, _plain, (_GREY, _BLACK)),
    _Look(4, _plain, (_WHITE, _TEAL)),
    _Look(6, _rings, (_YELLOW, _BROWN)),
    _Look(-4, _plain, (_VIOLET, _GREY)),
)
