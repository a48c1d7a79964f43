"""Gets what sets are composed of: photos with transparency, recordings, backgrounds.

The real material is in two Debian packages, whose files are fetched at run time and stay in a cache folder,
because they are under the GPL and other free licences. catalogue.csv says which of them show and sound what.
It leaves out, after a look at every photo and a measurement of every recording: digital silence, drawings,
spoken words, recordings that are there twice, sounds that an AudioSet tagger takes for something else, and
things too slender to fill the share of a frame that `compose` asks for.
"""

import csv
import logging
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image, ImageDraw
from scipy.signal import resample_poly

from utils.files import file_sha256

log = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
CATALOGUE = Path(__file__).with_name("catalogue.csv")
LICENCE = (
    "Contains photos and recordings of the Debian packages tuxpaint-stamps-default (GPL-2, single "
    "stamps also public domain, GFDL, CC-BY or CC-BY-SA) and gcompris-qt-data (GPL-3+, single "
    "photos public domain, CC0, CC-BY or CC-BY-SA). Keep to these licences when passing it on."
)
PACKAGES = {
    "tuxpaint": {
        "name": "tuxpaint-stamps-default",
        "version": "2022.06.04-1",
        "sha256": "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    },
    "gcompris": {
        "name": "gcompris-qt-data",
        "version": "3.1-2",
        "sha256": "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    },
}
ROOTS = {"tuxpaint": "usr/share/tuxpaint/stamps", "gcompris": "resources/gcompris/src/activities"}
"""folders in the unpacked packages that the catalogue's files are relative to"""
ARCHIVES = ("categorization", "explore_farm_animals", "explore_monuments", "instruments", "memory-sound")
"""Qt's archives in gcompris, unpacked into `resources`"""
NODE_BYTES = 22  # of the tree in such an archive
SCENERY = ("explore_monuments/resource", "categorization/resource/images/renewable")
"""folders of gcompris with backgrounds in which none of the classes is to be seen"""


class MaterialUnavailableError(ValueError):
    """The real material cannot be had here and now: no apt-get, not offered, no network."""


class Photo(NamedTuple):
    """An object, RGBA and cropped to alpha > 0.5, or a background, RGB."""

    key: str
    picture: Image.Image
    held_out: bool = False


class Sound(NamedTuple):
    """A recording: (L,) at SAMPLE_RATE, peak 1."""

    key: str
    waveform: np.ndarray
    held_out: bool


class SoundingClass(NamedTuple):
    """The photos and sounds of one class; at least one of each is not held out."""

    name: str
    photos: list[Photo]
    sounds: list[Sound]


class Material(NamedTuple):
    """All that clips are composed of: `silent` are photos of things that never sound."""

    source: str
    classes: list[SoundingClass]
    silent: list[Photo]
    backgrounds: dict[str, list[Photo]]  # by split
    licence: str
    packages: list[dict[str, str]]


def load_real_material(num_classes: int, frame_size: int, cache: Path) -> Material:
    """Load the catalogue's first classes, fetching the packages where the cache has none.

    Raises:
        ValueError: more classes than there are, or a file that is not the package.
        MaterialUnavailableError: the packages cannot be fetched.
    """
    rows = list(csv.DictReader(CATALOGUE.open(encoding="utf-8")))
    names = list(dict.fromkeys(row["class"] for row in rows if row["class"]))
    check_num_classes(num_classes, len(names), "real")
    roots = {short: fetch_package(short, cache) / ROOTS[short] for short in PACKAGES}

    silent = SoundingClass("", [], [])
    classes = [SoundingClass(name, [], []) for name in names[:num_classes]]
    by_name = {chosen.name: chosen for chosen in (silent, *classes)}
    for row in (row for row in rows if row["class"] in by_name):
        package, file = row["file"].split(":")
        key, path, held_out = row["file"], f"{roots[package]}/{file}", row["held_out"] == "yes"
        if row["kind"] == "photo":
            by_name[row["class"]].photos.append(Photo(key, read_photo(f"{path}.png", frame_size), held_out))
        else:
            by_name[row["class"]].sounds.append(Sound(key, read_recording(f"{path}.ogg"), held_out))
    root = roots["gcompris"]
    scenes = sorted(scene for folder in SCENERY for scene in (root / folder).rglob("*.webp"))
    keys = [f"gcompris:{scene.relative_to(root).with_suffix('')}" for scene in scenes]
    backgrounds = [Photo(key, read_scene(scene, frame_size)) for key, scene in zip(keys, scenes, strict=True)]
    parts, packages = split_backgrounds(backgrounds), list(PACKAGES.values())
    return Material("real", classes, silent.photos, parts, LICENCE, packages)


def check_num_classes(wanted: int, available: int, source: str) -> None:
    """Refuse a number of classes that the source does not have."""
    if not 2 <= wanted <= available:
        raise ValueError(f"--classes {wanted}: choose 2 to {available} classes of the {source} material.")


def split_backgrounds(backgrounds: list[Photo]) -> dict[str, list[Photo]]:
    """Set about a quarter of the backgrounds aside for test, by a hash of their keys."""
    parts: dict[str, list[Photo]] = {"train": [], "test": []}
    for photo in backgrounds:
        parts["train" if zlib.crc32(photo.key.encode()) % 4 else "test"].append(photo)
    return parts


def opaque_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Find the tight box of alpha > 0.5 of an RGBA picture: x_min, y_min, x_max, y_max, pixels."""
    box = picture.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    assert box is not None, "a stamp without an opaque pixel"
    return box


def crop_to_opaque(picture: Image.Image) -> Image.Image:
    """Cut an RGBA picture to its `opaque_box`."""
    return picture.crop(opaque_box(picture))


def read_photo(path: str, frame_size: int) -> Image.Image:
    """Read an object, no larger than 1.25 times the frame."""
    with Image.open(path) as file:
        picture = crop_to_opaque(file.convert("RGBA"))
    picture.thumbnail((frame_size * 5 // 4,) * 2, Image.Resampling.LANCZOS)
    return picture


def read_scene(path: Path, frame_size: int) -> Image.Image:
    """Read a background, its short side brought to 1.6 to 2.8 times the frame's."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    short_side = min(picture.size)
    wanted = min(max(short_side, frame_size * 8 // 5), frame_size * 14 // 5)
    width, height = (round(side * wanted / short_side) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def read_recording(path: str) -> np.ndarray:
    """Read a recording as mono at SAMPLE_RATE, peak 1, without ends below 2 % of its loudest 10 ms."""
    channels, sample_rate = soundfile.read(path, always_2d=True)
    divisor = gcd(sample_rate, SAMPLE_RATE)
    waveform = resample_poly(channels.mean(axis=1), SAMPLE_RATE // divisor, sample_rate // divisor)
    window = SAMPLE_RATE // 100
    envelope = np.convolve(np.abs(waveform), np.full(window, 1 / window), "same")
    (loud,) = np.nonzero(envelope > 0.02 * envelope.max())
    waveform = waveform[loud[0] : loud[-1] + 1]
    return (waveform / np.abs(waveform).max()).astype(np.float32)


# ------------------------------------------------------------------------------ packages


def fetch_package(short: str, cache: Path) -> Path:
    """Get a package's files from the cache, or else with apt-get and dpkg; install nothing.

    Raises:
        MaterialUnavailableError: apt-get or dpkg is missing, the version is not offered, no network.
        ValueError: the file does not have the expected sha256.
    """
    package, cache = PACKAGES[short], cache.resolve()
    label = "{name}_{version}".format(**package)
    if (cache / label).is_dir():
        return cache / label
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        deb = next(cache.glob(f"{label}_*.deb"), None) or download(package, Path(folder))
        sha256 = file_sha256(deb)
        if sha256 != package["sha256"]:
            raise ValueError(
                f"{deb} has sha256 {sha256}, expected {package['sha256']}: refused. "
                "If the file is in the cache folder, delete it and retry."
            )
        deb, content = deb.replace(cache / deb.name), Path(folder) / "content"
        problem = run_tool("dpkg", "-x", str(deb), str(content))
        if problem:
            raise OSError(f"dpkg -x {deb} failed: {problem}. Is the disk full?")
        for archive in ARCHIVES if short == "gcompris" else ():
            for name, file_content in read_rcc(content / f"usr/share/gcompris-qt/rcc/{archive}.rcc").items():
                (content / "resources" / name).parent.mkdir(parents=True, exist_ok=True)
                (content / "resources" / name).write_bytes(file_content)
        content.rename(cache / label)
    return cache / label


def download(package: dict[str, str], folder: Path) -> Path:
    """Let apt-get fetch a package into a folder, writing nowhere else."""
    log.info("fetching %s %s", package["name"], package["version"])
    for part in ("cache/archives/partial", "state/lists/partial"):
        (folder / part).mkdir(parents=True)
    # Without the first, update says nothing of an unreachable source; apt's own user could not write here.
    settings = ["-oAPT::Update::Error-Mode=any", "-oAPT::Sandbox::User=root", "-oAcquire::Retries=1",
                "-oAcquire::http::Timeout=20", f"-oDir::Cache={folder}/cache"]  # fmt: skip
    wanted = ["download", "{name}={version}".format(**package)]
    problem = run_tool("apt-get", *settings, *wanted, folder=folder)
    if problem:  # perhaps for lack of package lists, which go into the folder as well
        settings += [f"-oDir::State={folder}/state", f"-oDir::State::Lists={folder}/state/lists"]
        updated = run_tool("apt-get", *settings, "update", folder=folder)
        problem = "; ".join(filter(None, (run_tool("apt-get", *settings, *wanted, folder=folder), updated)))
    for deb in folder.glob("*.deb"):
        return deb
    raise MaterialUnavailableError(
        f"Debian package {package['name']} {package['version']} cannot be had: {problem}. Look at the "
        f"network and the sources (Debian 12 has it), or put the .deb into {folder.parent}."
    )


def run_tool(tool: str, *arguments: str, folder: Path | None = None) -> str:
    """Run apt-get or dpkg; return its complaint, or nothing if all went well."""
    if shutil.which(tool) is None:
        raise MaterialUnavailableError(
            f"{tool} is not on PATH, so the Debian packages of the real material cannot be had. "
            "Use a Debian-like system, or --source procedural."
        )
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    process = subprocess.run([tool, *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                             text=True, check=False, env=environment)  # fmt: skip
    if process.returncode == 0:
        return ""
    complaints = [line for line in process.stderr.splitlines() if not line.startswith("W: ")]
    return complaints[0].removeprefix("E: ") if complaints else f"{tool} left with {process.returncode}"


def read_rcc(path: Path) -> dict[str, bytes]:
    """Read Qt's resource archive, version 3: the content of its files by their path inside.

    A tree of nodes (name, flags, children or payload) over zlib-compressed payloads. The archives come out
    of a package whose sha256 was checked.
    """
    archive, files = path.read_bytes(), {}
    tree, payloads, names = struct.unpack_from(">3I", archive, 8)
    pending = [(0, "")]
    while pending:
        index, name = pending.pop()
        _, flags, count, first = struct.unpack_from(">IHII", archive, tree + index * NODE_BYTES)
        if flags & 2:  # a folder
            for child in range(first, first + count):
                (start,) = struct.unpack_from(">I", archive, tree + child * NODE_BYTES)
                (length,) = struct.unpack_from(">H", archive, names + start)
                start += names + 6  # two bytes of length, four of hash
                part = archive[start : start + 2 * length].decode("utf-16-be")
                pending.append((child, f"{name}/{part}".removeprefix("/")))
        else:
            (length,) = struct.unpack_from(">I", archive, payloads + first)
            content = archive[payloads + first + 4 : payloads + first + 4 + length]
            # Qt puts the four-byte uncompressed length before the zlib stream.
            files[name] = zlib.decompress(content[4:]) if flags & 1 else content
    return files


# ------------------------------------------------------------------------------ stand-in

CORNERS = {"disc": 48, "square": 4, "triangle": 3, "hexagon": 6}
COLOURS = {"red": (205, 40, 40), "green": (45, 150, 60), "blue": (40, 80, 200)}


def make_procedural_material(num_classes: int, frame_size: int) -> Material:
    """Draw shapes and play chords, for where the real material cannot be fetched.

    A class is a shape in a colour with a pitch of its own; a darker photo and a sound a fourth higher
    are held out. Nothing here depends on the set's seed.
    """
    looks = [(shape, colour) for colour in COLOURS for shape in CORNERS]
    check_num_classes(num_classes, len(looks), "procedural")
    classes = []
    for number, (shape, colour) in enumerate(looks[:num_classes]):
        added = SoundingClass(f"{colour}_{shape}", [], [])
        for variant in (0, 1):
            key = f"procedural:{added.name}-{variant}"
            fill = tuple(channel * (3 - variant) // 3 for channel in COLOURS[colour])
            pitch = 150 * 2 ** (number / 3 + variant * 5 / 12)  # Hz
            added.photos.append(Photo(key, draw_shape(CORNERS[shape], fill, frame_size), variant == 1))
            added.sounds.append(Sound(key, play_chord(pitch), variant == 1))
        classes.append(added)
    silent = [
        Photo(f"procedural:silent-{corners}", draw_shape(corners, (240, 215, 60), frame_size))
        for corners in CORNERS.values()
    ]
    scenes = [Photo(f"procedural:background-{n}", draw_background(n, frame_size)) for n in range(40)]
    licence = "Drawn and synthesised by this program; no rights of others."
    return Material("procedural", classes, silent, split_backgrounds(scenes), licence, [])


def draw_shape(corners: int, fill: tuple[int, ...], frame_size: int) -> Image.Image:
    """Draw a regular polygon, RGBA."""
    side = 3 * frame_size  # drawn large and reduced, for smooth edges
    picture = Image.new("RGBA", (side, side))
    ImageDraw.Draw(picture).regular_polygon((side / 2, side / 2, 0.48 * side), corners, fill=fill)
    return crop_to_opaque(picture.resize((frame_size, frame_size), Image.Resampling.LANCZOS))


def draw_background(number: int, frame_size: int) -> Image.Image:
    """Draw smooth noise, grey with a little colour, RGB."""
    rng = np.random.default_rng([number, 7])
    cells = rng.uniform(60, 190, (6, 6, 1)) + rng.uniform(-35, 35, (6, 6, 3))
    return Image.fromarray(cells.astype(np.uint8)).resize((2 * frame_size,) * 2, Image.Resampling.BICUBIC)


def play_chord(frequency: float) -> np.ndarray:
    """Play three harmonics, struck twice a second, for two seconds: float32, peak 1."""
    seconds = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * frequency * n * seconds) / n for n in (1, 2, 3))
    waveform = chord * 0.5 ** (seconds % 0.5 / 0.1)
    return (waveform / np.abs(waveform).max()).astype(np.float32)
