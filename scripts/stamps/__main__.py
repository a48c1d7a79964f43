"""Composes the stamps data set: object photos on background photos, one of the objects heard.

    bash scripts/make_stamps.sh data/stamps --train 2000 --test 200 --seed 0

Every clip is a square frame with one or two objects of different classes and three seconds of sound of
exactly one of them, so where the sound comes from is known to the pixel. Photos, recordings and
backgrounds are real; only their combination is made up. Where the real material cannot be fetched,
coloured shapes and chords stand in. Folders and annotations have VGGSound's form.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import soundfile
from tqdm import tqdm

from scripts.stamps.compose import SPLITS, compose_clip
from scripts.stamps.material import (
    SAMPLE_RATE,
    Material,
    MaterialUnavailableError,
    load_real_material,
    make_procedural_material,
)
from utils.options import NUM_CORES, Options, Parser, add_group, build, option, run_command

log = logging.getLogger("stamps")

MANIFEST = "stamps.json"
FORMAT_VERSIONS = {"real": 3, "procedural": 4}
"""go up whenever the same recipe gives other files"""
FRAMES = {"train": "VGGSound/total_video_frames/{}/125.jpg", "test": "VGGSound_test/frame/{}.jpg"}
SOUNDS = {"train": "VGGSound/total_video_3s_audio/{}.wav", "test": "VGGSound_test/audio/{}.wav"}
BOXES = {"test": "VGGSound_test/anno/{}.xml"}


@dataclass(frozen=True, kw_only=True)
class StampsOptions(Options):
    """What to compose, of what."""

    train: int = option(2000, at_least=1)  # training clips
    test: int = option(200, at_least=1)  # test clips
    seed: int = option(0, at_least=0)  # of all chance
    classes: int = 12  # the first of the list
    frame_size: int = option(256, at_least=64)  # side of a frame, pixels
    source: Literal["auto", "real", "procedural"] = "auto"
    """real: photos and recordings of two Debian packages; procedural: coloured shapes and chords;
    auto: procedural only where real is not to be had"""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stamps"
    """where packages are kept"""
    workers: int = option(NUM_CORES, at_least=1)  # processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status, 2 for what the user can mend."""
    parser = Parser(
        "make_stamps.sh",
        description="Composes clips of object photos on background photos, one object heard.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="OUT", help="folder to make")
    add_group(parser, StampsOptions)
    values = vars(parser.parse_args(arguments))
    return run_command(lambda: make_set(values["folder"], build(StampsOptions, values)))


def make_set(folder: Path, options: StampsOptions) -> int:
    """Make the set, or find that it is there already."""
    recipe: dict[str, Any] = {
        "source": options.source, "seed": options.seed, "num_train": options.train, "num_test": options.test,
        "num_classes": options.classes, "frame_size": options.frame_size,
    }  # fmt: skip
    existing = find_finished_set(folder, recipe)
    if existing:
        log.info("%s is complete (source: %s); nothing to do", folder, existing)
    else:
        material = load_material(options)
        recipe |= {"source": material.source, "format_version": FORMAT_VERSIONS[material.source]}
        write_set(folder, recipe, material, options.workers)
        log.info("%d + %d clips, source: %s", options.train, options.test, material.source)
    sys.stdout.write(f"{folder}\n")
    return 0


def find_finished_set(folder: Path, recipe: dict[str, Any]) -> str | None:
    """Look whether a folder holds the set; return its source, or None if the folder is missing or empty.

    Raises:
        ValueError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        existing = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["recipe"])
        source = str(existing["source"])
        wanted = recipe | {"format_version": FORMAT_VERSIONS[source]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} is neither empty nor a set made by this program (no readable {MANIFEST}). "
            "Pick another folder."
        ) from error
    if recipe["source"] == "auto":
        wanted["source"] = source
    pairs = ((name, existing.get(name), value) for name, value in wanted.items())
    differences = ", ".join(f"{name} {old} instead of {new}" for name, old, new in pairs if old != new)
    if differences:
        raise ValueError(f"{folder} holds a set of another recipe ({differences}). Pick another folder.")
    return source


def load_material(options: StampsOptions) -> Material:
    """Load the real material; its stand-in where that was asked for, or where auto cannot fetch it."""
    if options.source != "procedural":
        try:
            return load_real_material(options.classes, options.frame_size, options.cache)
        except MaterialUnavailableError as error:
            if options.source == "real":
                raise
            log.warning("No real material: %s", error)
            log.warning("Coloured shapes and chords are used instead (procedural).")
    return make_procedural_material(options.classes, options.frame_size)


def write_set(folder: Path, recipe: dict[str, Any], material: Material, num_workers: int) -> None:
    """Compose and write all clips, their lists and the manifest; all or nothing."""
    counts = zip(SPLITS, (recipe["num_train"], recipe["num_test"]), strict=True)
    tasks = [(split, index) for split, count in counts for index in range(count)]
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        kept = partial, recipe, material
        with ProcessPoolExecutor(num_workers, initializer=_set_up_worker, initargs=kept) as pool:
            written = pool.map(_write_clip, tasks, chunksize=8)
            description = f"{material.source} stamps"
            records = dict(tqdm(written, total=len(tasks), unit="clip", desc=description))
        for name, clip_ids in list_clips(records).items():
            (partial / f"{name}.txt").write_text("\n".join([*clip_ids, ""]), encoding="utf-8")
        manifest = {
            "source": material.source,
            "recipe": recipe,
            "licence": material.licence,
            "packages": material.packages,
            "classes": {
                name: {
                    "stamps": [photo.key for photo in photos],
                    "held_out_stamps": [photo.key for photo in photos if photo.held_out],
                    "sounds": [sound.key for sound in sounds],
                    "held_out_sounds": [sound.key for sound in sounds if sound.held_out],
                }
                for name, photos, sounds in material.classes
            },
            "clips": records,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def list_clips(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """List both splits, and the parts of the test split that mean different things; none is empty."""
    lists: dict[str, list[str]] = {}
    for clip_id, record in records.items():
        names = ["train"]
        if clip_id.startswith("test_"):
            seen = (record["photo_seen_in_training"], record["sound_seen_in_training"])
            parts = ("both_held_out", "held_out_photo", "held_out_recording", "seen")
            objects = "two_objects" if record["other_objects"] else "one_object"
            names = ["test", f"test_{parts[2 * seen[0] + seen[1]]}", f"test_{objects}"]
        for name in names:
            lists.setdefault(name, []).append(clip_id)
    return lists


_worker: tuple[Path, dict[str, Any], Material]
"""what a worker process keeps between tasks; handed over once, as the material is large"""


def _set_up_worker(*kept: Any) -> None:  # noqa: ANN401
    global _worker  # noqa: PLW0603
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _worker = kept


def _write_clip(task: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    """Write a clip; return its id and its entry in the manifest."""
    (folder, recipe, material), (split, index) = _worker, task
    how = {name: recipe[name] for name in ("seed", "frame_size")}
    frame, waveform, record = compose_clip(material, split, index, **how)
    clip_id = f"{split}_{index:06d}"
    paths = [folder / form[split].format(clip_id) for form in (FRAMES, SOUNDS, BOXES) if split in form]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    frame.save(paths[0], quality=90)
    soundfile.write(paths[1], waveform, SAMPLE_RATE, subtype="PCM_16")
    if split == "test":
        sides = zip(("xmin", "ymin", "xmax", "ymax"), record["box"], strict=True)
        box = "".join(f"<{name}>{side!r}</{name}>" for name, side in sides)
        annotation = f"<filename>{clip_id}.jpg</filename><bbox><box>{box}</box></bbox>"
        paths[2].write_text(f"<annotation>{annotation}</annotation>")
    return clip_id, record


if __name__ == "__main__":
    sys.exit(main())
