"""Gets what sets are composed of: photos with transparency, recordings, backgrounds.

The real material is in two Debian packages, whose files are fetched at run time and stay in a cache
folder, because they are under the GPL and other free licences. catalogue.csv says which of them show
and sound what. It leaves out, after a look at every photo and a measurement of every recording:
digital silence, drawings, spoken words, recordings that are there twice, sounds that an AudioSet tagger
takes for something else, and things too slender to fill the share of a frame that `compose` asks for.
"""

import csv
import hashlib
import logging
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw
from scipy.signal import resample_poly

log = logging.getLogger(__name__)

SAMPLE_RATE = 16_000
CATALOGUE = Path(__file__).with_name("catalogue.csv")
BACKGROUND_FOLDERS = ("explore_monuments/resource", "categorization/resource/images/renewable")
"""of gcompris, with scenery in which none of the classes is to be seen"""
TEST_BACKGROUNDS = 4  # one in four is for test only
REAL_LICENCE = (
    "Contains photos and recordings of the Debian packages tuxpaint-stamps-default (GPL-2, single "
    "stamps also public domain, GFDL, CC-BY or CC-BY-SA) and gcompris-qt-data (GPL-3+, single "
    "photos public domain, CC0, CC-BY or CC-BY-SA). Keep to these licences when passing it on."
)


class StampsError(ValueError):
    """The set cannot be made as asked; the message says why and what to do."""


class MaterialUnavailableError(StampsError):
    """The real material cannot be had here and now: no apt-get, not offered, no network."""


@dataclass(frozen=True)
class Photo:
    """An object, RGBA and cropped to alpha > 0.5, or a background, RGB."""

    key: str
    picture: Image.Image
    held_out: bool = False


@dataclass(frozen=True)
class Sound:
    """A recording with silent ends cut: (L,) at SAMPLE_RATE, peak 1."""

    key: str
    waveform: np.ndarray
    held_out: bool = False


@dataclass(frozen=True)
class SoundingClass:
    """The photos and sounds of one class; at least one of each is not held out."""

    name: str
    photos: list[Photo]
    sounds: list[Sound]


@dataclass(frozen=True)
class Material:
    """All that clips are composed of."""

    source: str
    classes: list[SoundingClass]
    silent: list[Photo]
    """photos of things that never sound"""
    backgrounds: dict[str, list[Photo]]
    """by split"""
    licence: str
    packages: list[dict[str, str]]


# The real material.


@dataclass(frozen=True)
class Package:
    """A pinned Debian package, and the folder in it that keys are relative to."""

    name: str
    version: str
    sha256: str
    root: str
    archives: tuple[str, ...] = ()
    """.rcc files that are unpacked into `resources`"""


PACKAGES = {
    "tuxpaint": Package(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "usr/share/tuxpaint/stamps",
    ),
    "gcompris": Package(
        "gcompris-qt-data",
        "3.1-2",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        "resources/gcompris/src/activities",
        ("categorization", "explore_farm_animals", "explore_monuments", "instruments", "memory-sound"),
    ),
}


def load_real_material(num_classes: int, frame_size: int, cache: Path) -> Material:
    """Loads the catalogue's first classes, fetching the packages where the cache has none.

    Raises:
        StampsError: more classes than there are, or a file that is not the package.
        MaterialUnavailableError: the packages cannot be fetched.
    """
    rows = list(csv.DictReader(CATALOGUE.open(encoding="utf-8")))
    names = list(dict.fromkeys(row["class"] for row in rows if row["class"]))
    check_num_classes(num_classes, len(names), "real")
    roots = {name: fetch_package(package, cache) for name, package in PACKAGES.items()}

    def photo(row: dict[str, str]) -> Photo:
        with Image.open(_path(roots, row["file"], ".png")) as file:
            picture = crop_to_opaque(file.convert("RGBA"))
        picture.thumbnail((frame_size * 5 // 4,) * 2, Image.Resampling.LANCZOS)
        return Photo(row["file"], picture, row["held_out"] == "yes")

    def sound(row: dict[str, str]) -> Sound:
        waveform = read_recording(_path(roots, row["file"], ".ogg"))
        return Sound(row["file"], waveform, row["held_out"] == "yes")

    classes = [
        SoundingClass(
            name,
            [photo(row) for row in rows if row["class"] == name and row["kind"] == "photo"],
            [sound(row) for row in rows if row["class"] == name and row["kind"] == "sound"],
        )
        for name in names[:num_classes]
    ]
    root = roots["gcompris"]
    paths = sorted(path for folder in BACKGROUND_FOLDERS for path in (root / folder).rglob("*.webp"))
    keys = [f"gcompris:{path.relative_to(root).with_suffix('')}" for path in paths]
    scenes = [Photo(key, read_scene(path, frame_size)) for key, path in zip(keys, paths, strict=True)]
    return Material(
        source="real",
        classes=classes,
        silent=[photo(row) for row in rows if not row["class"]],
        backgrounds=split_backgrounds(scenes),
        licence=REAL_LICENCE,
        packages=[{"name": p.name, "version": p.version, "sha256": p.sha256} for p in PACKAGES.values()],
    )


def check_num_classes(wanted: int, available: int, source: str) -> None:
    """Refuses a number of classes that the source does not have."""
    if not 2 <= wanted <= available:
        raise StampsError(
            f"--classes {wanted}: the {source} material has {available} classes and a set needs "
            f"at least 2. Choose from 2 to {available}."
        )


def split_backgrounds(backgrounds: list[Photo]) -> dict[str, list[Photo]]:
    """Sets about a quarter of the backgrounds aside for test, by a hash of their keys."""
    split: dict[str, list[Photo]] = {"train": [], "test": []}
    for background in backgrounds:
        is_test = zlib.crc32(background.key.encode()) % TEST_BACKGROUNDS == 0
        split["test" if is_test else "train"].append(background)
    return split


def opaque_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Find the tight box of alpha > 0.5 of an RGBA picture: x_min, y_min, x_max, y_max, pixels."""
    box = picture.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    assert box is not None, "a stamp without an opaque pixel"
    return box


def crop_to_opaque(picture: Image.Image) -> Image.Image:
    """Cuts an RGBA picture to its `opaque_box`."""
    return picture.crop(opaque_box(picture))


def read_recording(path: Path) -> np.ndarray:
    """Reads a recording as mono at SAMPLE_RATE, peak 1, without ends below 2 % of its loudest 10 ms."""
    channels, sample_rate = soundfile.read(path, always_2d=True)
    divisor = gcd(sample_rate, SAMPLE_RATE)
    waveform = resample_poly(channels.mean(axis=1), SAMPLE_RATE // divisor, sample_rate // divisor)
    window = SAMPLE_RATE // 100
    envelope = np.convolve(np.abs(waveform), np.full(window, 1 / window), "same")
    (loud,) = np.nonzero(envelope > 0.02 * envelope.max())
    waveform = waveform[loud[0] : loud[-1] + 1]
    return (waveform / np.abs(waveform).max()).astype(np.float32)


def read_scene(path: Path, frame_size: int) -> Image.Image:
    """Reads a background, its short side brought to 1.6 to 2.8 times the frame's."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    short_side = min(picture.size)
    wanted = min(max(short_side, frame_size * 8 // 5), frame_size * 14 // 5)
    width, height = (round(side * wanted / short_side) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _path(roots: dict[str, Path], key: str, suffix: str) -> Path:
    package, name = key.split(":")
    return roots[package] / f"{name}{suffix}"


def default_cache() -> Path:
    """Return where packages are kept unless the user says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stamps"


def fetch_package(package: Package, cache: Path) -> Path:
    """Gets a package's files from the cache, or else with apt-get and dpkg; installs nothing.

    Returns:
        The folder that the package's keys are relative to.

    Raises:
        MaterialUnavailableError: apt-get or dpkg is missing, the version is not offered, or there is
            no network.
        StampsError: the file does not have the expected sha256 or content.
    """
    cache = cache.resolve()
    label = f"{package.name}_{package.version}"
    unpacked = cache / label
    if unpacked.is_dir():
        return unpacked / package.root
    cache.mkdir(parents=True, exist_ok=True)
    debs = sorted(cache.glob(f"{label}_*.deb"))
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        if not debs:
            problem = download(package, folder)
            debs = sorted(Path(folder).glob(f"{label}_*.deb"))
            if not debs:
                raise MaterialUnavailableError(
                    f"Debian package {package.name} {package.version} cannot be had: "
                    f"{problem or 'apt-get fetched nothing'}. Look at the network and the package "
                    f"sources (Debian 12 has it), or put the .deb into {cache} yourself."
                )
        with debs[0].open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != package.sha256:
            raise StampsError(
                f"{debs[0]} has sha256 {sha256}, expected {package.sha256}: refused. "
                "If the file is in the cache folder, delete it and retry."
            )
        deb = debs[0].replace(cache / debs[0].name)
        log.info("unpacking %s", deb.name)
        content = Path(folder) / "content"
        problem = run_tool("dpkg", "-x", str(deb), str(content))
        if problem:
            raise StampsError(f"dpkg -x {deb} failed: {problem}. Is the disk full?")
        for archive in package.archives:
            files = read_rcc(content / "usr/share/gcompris-qt/rcc" / f"{archive}.rcc")
            for name, file_content in files.items():
                target = content / "resources" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file_content)
        content.rename(unpacked)
    return unpacked / package.root


def download(package: Package, folder: str) -> str:
    """Lets apt-get fetch a package into a folder, writing nowhere else; returns its complaint, if any."""
    log.info("fetching %s %s", package.name, package.version)
    private = Path(folder) / "apt"
    for part in ("cache/archives/partial", "state/lists/partial"):
        (private / part).mkdir(parents=True)
    options = [
        "APT::Update::Error-Mode=any",  # else update says nothing of an unreachable source
        "APT::Sandbox::User=root",  # as root, apt's own user could not write to the cache
        "Acquire::Retries=1",
        "Acquire::http::Timeout=20",
        "Acquire::https::Timeout=20",
        f"Dir::Cache={private}/cache",
    ]
    wanted = ["download", f"{package.name}={package.version}"]
    problem = run_tool("apt-get", *[f"-o{option}" for option in options], *wanted, folder=folder)
    if problem:
        log.info("apt-get says '%s'; reading package lists into the cache folder", problem)
        options += [f"Dir::State={private}/state", f"Dir::State::Lists={private}/state/lists"]
        words = [f"-o{option}" for option in options]
        problems = [run_tool("apt-get", *words, *step, folder=folder) for step in (["update"], wanted)]
        problem = "; ".join(filter(None, reversed(problems)))
    return problem


def run_tool(tool: str, *arguments: str, folder: str | None = None) -> str:
    """Runs apt-get or dpkg; returns its first complaint, or nothing if all went well."""
    if shutil.which(tool) is None:
        raise MaterialUnavailableError(
            f"{tool} is not on PATH, so the Debian packages of the real material cannot be had. "
            "Use a Debian-like system, or --source procedural."
        )
    try:
        process = subprocess.run(
            [tool, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=1800,
            check=False,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        return f"{tool} gave no result in 30 minutes"
    if process.returncode == 0:
        return ""
    lines = process.stderr.splitlines()
    complaints = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")] or lines
    return complaints[0] if complaints else f"{tool} left with {process.returncode}"


def read_rcc(path: Path) -> dict[str, bytes]:
    """Reads Qt's resource archive (.rcc, versions 1 to 3): a tree of names over zlib-compressed files.

    Returns:
        content by path inside the archive.

    Raises:
        StampsError: not a .rcc file, damaged, compressed with zstd, or with a path that leads out.
    """
    archive = path.read_bytes()
    if archive[:4] != b"qres":
        raise StampsError(f"{path} is not a Qt resource archive (no 'qres' magic).")
    files = {}
    try:
        version, tree, payloads, names = struct.unpack_from(">4I", archive, 4)
        node_size = {1: 14, 2: 22, 3: 22}[version]  # version 2 appended the time of last change
        pending = [(0, "")]
        while pending:
            index, name = pending.pop()
            node = tree + index * node_size
            (flags,) = struct.unpack_from(">H", archive, node + 4)
            if flags & 2:  # a folder
                count, first = struct.unpack_from(">II", archive, node + 6)
                for child in range(first, first + count):
                    (start,) = struct.unpack_from(">I", archive, tree + child * node_size)
                    (length,) = struct.unpack_from(">H", archive, names + start)
                    start += names + 6  # two bytes of length, four of hash
                    child_name = archive[start : start + 2 * length].decode("utf-16-be")
                    pending.append((child, f"{name}/{child_name}" if name else child_name))
                continue
            if flags & 4 or ".." in name.split("/") or name.startswith("/"):
                raise StampsError(
                    f"{path}: {name} is compressed with zstd or leads out of the folder: refused."
                )
            (start,) = struct.unpack_from(">I", archive, node + 10)
            (length,) = struct.unpack_from(">I", archive, payloads + start)
            content = archive[payloads + start + 4 : payloads + start + 4 + length]
            if len(content) != length:
                raise struct.error("content ends too early")
            # Qt puts the four-byte uncompressed length before the zlib stream.
            files[name] = zlib.decompress(content[4:]) if flags & 1 else content
    except (struct.error, zlib.error, UnicodeDecodeError, KeyError) as error:
        raise StampsError(
            f"{path} is damaged or of an unknown version ({error}). Delete it and retry."
        ) from error
    return files


# The stand-in.

CORNERS = {"disc": 48, "square": 4, "triangle": 3, "hexagon": 6}
COLOURS = {"red": (205, 40, 40), "green": (45, 150, 60), "blue": (40, 80, 200)}
SILENT_COLOURS = ((240, 215, 60), (130, 60, 180), (235, 110, 170), (130, 130, 135))


def make_procedural_material(num_classes: int, frame_size: int) -> Material:
    """Draws shapes and plays chords, for where the real material cannot be fetched.

    A class is a shape in a colour with a pitch of its own; a darker photo and a sound a fourth higher
    are held out. Nothing here depends on the set's seed.
    """
    looks = [(shape, colour) for colour in COLOURS for shape in CORNERS]
    check_num_classes(num_classes, len(looks), "procedural")
    classes = []
    for number, (shape, colour) in enumerate(looks[:num_classes]):
        name = f"{colour}_{shape}"
        photos, sounds = [], []
        for variant in (0, 1):
            picture = draw_shape(CORNERS[shape], COLOURS[colour], variant, frame_size)
            pitch = 150 * 2 ** (number / 3 + variant * 5 / 12)  # Hz
            photos.append(Photo(f"procedural:{name}-{variant}", picture, variant == 1))
            sounds.append(Sound(f"procedural:{name}-{variant}", play_chord(pitch), variant == 1))
        classes.append(SoundingClass(name, photos, sounds))
    silent = zip(CORNERS.values(), SILENT_COLOURS, strict=True)
    scenes = [Photo(f"procedural:background-{n}", draw_background(n, frame_size)) for n in range(40)]
    return Material(
        source="procedural",
        classes=classes,
        silent=[
            Photo(f"procedural:silent-{n}", draw_shape(n, colour, 0, frame_size)) for n, colour in silent
        ],
        backgrounds=split_backgrounds(scenes),
        licence="Drawn and synthesised by this program; no rights of others.",
        packages=[],
    )


def draw_shape(corners: int, colour: tuple[int, int, int], variant: int, frame_size: int) -> Image.Image:
    """Draws a regular polygon, RGBA; variant 1 is darker and turned a little."""
    side = 3 * frame_size  # drawn large and reduced, for smooth edges
    picture = Image.new("RGBA", (side, side))
    fill = tuple(channel * (3 - variant) // 3 for channel in colour)
    circle = (side / 2, side / 2, 0.48 * side)
    ImageDraw.Draw(picture).regular_polygon(circle, corners, rotation=9 * variant, fill=fill)
    return crop_to_opaque(picture.resize((frame_size, frame_size), Image.Resampling.LANCZOS))


def draw_background(number: int, frame_size: int) -> Image.Image:
    """Draws smooth noise, grey with a little colour, RGB."""
    rng = np.random.default_rng([number, 7])
    cells = rng.uniform(60, 190, (6, 6, 1)) + rng.uniform(-35, 35, (6, 6, 3))
    return Image.fromarray(cells.astype(np.uint8)).resize((2 * frame_size,) * 2, Image.Resampling.BICUBIC)


def play_chord(frequency: float) -> np.ndarray:
    """Plays three harmonics, struck twice a second, for two seconds: float32, peak 1."""
    seconds = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    chord = sum(np.sin(2 * np.pi * frequency * n * seconds) / n for n in (1, 2, 3))
    waveform = chord * 0.5 ** (seconds % 0.5 / 0.1)
    return (waveform / np.abs(waveform).max()).astype(np.float32)
