"""The material of a set in memory: photos with transparency, recordings and backgrounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from zlib import crc32

import numpy as np
import soundfile
from PIL import Image
from scipy.signal import resample_poly

from datasets.stamps.catalogue import BACKGROUND_FOLDERS, CATALOGUE, SILENT_PHOTOS
from datasets.stamps.errors import StampsError
from datasets.stamps.packages import GCOMPRIS, TUXPAINT, Package, fetch_package

SAMPLE_RATE = 16_000
_LICENCE = (
    "Contains photos and recordings of the Debian packages tuxpaint-stamps-default (GPL-2, single "
    "stamps also public domain, GFDL, CC-BY or CC-BY-SA) and gcompris-qt-data (GPL-3+, single "
    "photos public domain, CC0, CC-BY or CC-BY-SA). Keep to these licences when passing it on."
)
_TEST_SHARE_OF_BACKGROUNDS = 4  # one in four


@dataclass(frozen=True)
class Photo:
    """An object without its surroundings; `picture` is RGBA, cropped to alpha > 0.5."""

    key: str
    picture: Image.Image
    held_out: bool = False


@dataclass(frozen=True)
class Sound:
    """A recording at `SAMPLE_RATE` with silent ends cut; `waveform` is (L,), peak 1."""

    key: str
    waveform: np.ndarray
    held_out: bool = False


@dataclass(frozen=True)
class Background:
    """A scene without any of the objects; `picture` is RGB."""

    key: str
    picture: Image.Image


@dataclass(frozen=True)
class SoundingClass:
    """The photos and sounds of one class; at least one of each is not held out."""

    name: str
    photos: tuple[Photo, ...]
    sounds: tuple[Sound, ...]


@dataclass(frozen=True)
class Material:
    """All that clips are composed of."""

    source: str
    classes: tuple[SoundingClass, ...]
    silent: tuple[Photo, ...]
    backgrounds: dict[str, tuple[Background, ...]]  # by split
    licence: str
    packages: tuple[dict[str, str], ...] = field(default=())


def load_real_material(num_classes: int, frame_size: int, cache: Path) -> Material:
    """Loads the catalogue's first classes, fetching the packages if need be.

    Args:
        num_classes: How many classes, in the catalogue's order.
        frame_size: Side of the frames to come, pixels; photos are kept a little larger.
        cache: Folder where packages are kept.

    Returns:
        The material.

    Raises:
        StampsError: More classes than there are, or see `fetch_package`.
    """
    check_num_classes(num_classes, len(CATALOGUE), "real")
    roots = {"tuxpaint": fetch_package(TUXPAINT, cache), "gcompris": fetch_package(GCOMPRIS, cache)}
    files = _Files(roots, frame_size)
    classes = []
    for name in list(CATALOGUE)[:num_classes]:
        entry = CATALOGUE[name]
        photos = [files.photo(key, held_out) for key, held_out in _with_held_out(entry.photos)]
        sounds = [files.sound(key, held_out) for key, held_out in _with_held_out(entry.sounds)]
        classes.append(SoundingClass(name, tuple(photos), tuple(sounds)))
    return Material(
        source="real",
        classes=tuple(classes),
        silent=tuple(files.photo(key) for key in SILENT_PHOTOS),
        backgrounds=split_backgrounds(files.backgrounds()),
        licence=_LICENCE,
        packages=tuple(_package_record(package) for package in (TUXPAINT, GCOMPRIS)),
    )


def check_num_classes(wanted: int, available: int, source: str) -> None:
    """Refuses a number of classes that the source does not have, StampsError."""
    if not 2 <= wanted <= available:
        raise StampsError(
            f"--classes {wanted}: the {source} material has {available} classes and a set needs "
            f"at least 2. Choose from 2 to {available}."
        )


def split_backgrounds(backgrounds: Sequence[Background]) -> dict[str, tuple[Background, ...]]:
    """Sets about a quarter of the backgrounds aside for test, by a hash of their keys."""
    split: dict[str, list[Background]] = {"train": [], "test": []}
    for background in backgrounds:
        is_test = crc32(background.key.encode()) % _TEST_SHARE_OF_BACKGROUNDS == 0
        split["test" if is_test else "train"].append(background)
    return {name: tuple(members) for name, members in split.items()}


def crop_to_opaque(picture: Image.Image) -> Image.Image:
    """Cuts an RGBA picture to the tight box of alpha > 0.5."""
    return picture.crop(opaque_box(picture))


def opaque_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Finds the tight box of alpha > 0.5 of an RGBA picture: x_min, y_min, x_max, y_max, pixels."""
    box = picture.getchannel("A").point(_OPAQUE).getbbox()
    assert box is not None, "a stamp without an opaque pixel"
    return box


_OPAQUE = [0] * 128 + [255] * 128


class _Files:
    """Opens files of the unpacked packages by key."""

    def __init__(self, roots: dict[str, Path], frame_size: int) -> None:
        self.roots, self.frame_size = roots, frame_size

    def photo(self, key: str, held_out: bool = False) -> Photo:
        with Image.open(self._path(key, ".png")) as file:
            picture = crop_to_opaque(file.convert("RGBA"))
        picture.thumbnail((self.frame_size * 5 // 4,) * 2, Image.Resampling.LANCZOS)
        return Photo(key, picture, held_out)

    def sound(self, key: str, held_out: bool = False) -> Sound:
        channels, sample_rate = soundfile.read(self._path(key, ".ogg"), always_2d=True)
        divisor = gcd(sample_rate, SAMPLE_RATE)
        waveform = resample_poly(channels.mean(axis=1), SAMPLE_RATE // divisor, sample_rate // divisor)
        return Sound(key, _trim(waveform).astype(np.float32), held_out)

    def backgrounds(self) -> list[Background]:
        root = self.roots["gcompris"]
        paths = [path for folder in BACKGROUND_FOLDERS for path in (root / folder).rglob("*.webp")]
        return [
            Background(f"gcompris:{path.relative_to(root).with_suffix('')}", self._scene(path))
            for path in sorted(paths)
        ]

    def _scene(self, path: Path) -> Image.Image:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        short_side = min(picture.size)
        wanted = min(max(short_side, self.frame_size * 8 // 5), self.frame_size * 14 // 5)
        size = [round(side * wanted / short_side) for side in picture.size]
        return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)

    def _path(self, key: str, suffix: str) -> Path:
        package, name = key.split(":")
        return self.roots[package] / f"{name}{suffix}"


def _with_held_out(keys: Sequence[str]) -> list[tuple[str, bool]]:
    return [(key, len(keys) > 1 and key == keys[-1]) for key in keys]


def _trim(waveform: np.ndarray) -> np.ndarray:
    """Cuts the ends that are below 2 % of the loudest 10 ms, and scales the peak to 1."""
    window = SAMPLE_RATE // 100
    envelope = np.convolve(np.abs(waveform), np.full(window, 1 / window), "same")
    (loud,) = np.nonzero(envelope > 0.02 * envelope.max())
    assert loud.size, "a recording that is digital silence"
    waveform = waveform[loud[0] : loud[-1] + 1]
    return waveform / np.abs(waveform).max()


def _package_record(package: Package) -> dict[str, str]:
    return {"name": package.name, "version": package.version, "sha256": package.sha256}
