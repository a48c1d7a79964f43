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
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from scripts.stamps.compose import SPLITS, compose_clip
from scripts.stamps.material import (
    SAMPLE_RATE,
    Material,
    MaterialUnavailableError,
    StampsError,
    default_cache,
    load_real_material,
    make_procedural_material,
)

log = logging.getLogger(__name__)

MANIFEST = "stamps.json"
FORMAT_VERSIONS = {"real": 3, "procedural": 4}
"""go up whenever the same recipe gives other files"""
FRAMES, AUDIO = "VGGSound/total_video_frames", "VGGSound/total_video_3s_audio"
TEST_FRAMES, TEST_AUDIO, TEST_BOXES = (f"VGGSound_test/{part}" for part in ("frame", "audio", "anno"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, 2 for what the user can mend."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="stamps: %(message)s")
    try:
        make_set(options)
    except (StampsError, OSError) as error:
        sys.stderr.write(f"stamps: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stamps: stopped; nothing was left behind\n")
        return 130
    sys.stdout.write(f"{options.folder}\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="make_stamps.sh",
        description="Composes clips of object photos on background photos, one object heard.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="OUT", help="folder to make")
    add("--train", type=int, default=2000, metavar="N", help="training clips")
    add("--test", type=int, default=200, metavar="M", help="test clips")
    add("--seed", type=int, default=0, metavar="S", help="seed of all chance")
    add("--classes", type=int, default=12, metavar="K", help="first K classes of the list")
    add("--frame-size", type=int, default=256, metavar="PIXELS", help="side of a frame")
    add("--source", choices=("auto", "real", "procedural"), default="auto",
        help="real: photos and recordings of two Debian packages; procedural: coloured shapes and "
        "chords; auto: procedural only where real is not to be had")  # fmt: skip
    add("--cache", type=Path, default=default_cache(), help="where packages are kept")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="W", help="processes")
    options = parser.parse_args(arguments)
    bounds = {"train": 1, "test": 1, "seed": 0, "frame_size": 64, "workers": 1}
    for name, smallest in bounds.items():
        if getattr(options, name) < smallest:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} must be at least {smallest}, got {getattr(options, name)}")
    return options


def make_set(options: argparse.Namespace) -> None:
    """Makes the set, or finds that it is there already."""
    names = {"train": "num_train", "test": "num_test", "classes": "num_classes"}
    kept = ("source", "seed", "train", "test", "classes", "frame_size")
    recipe = {names.get(name, name): getattr(options, name) for name in kept}
    existing = find_finished_set(options.folder, recipe)
    if existing:
        log.info("%s is complete (source: %s); nothing to do", options.folder, existing)
        return
    material = load_material(options)
    recipe |= {"source": material.source, "format_version": FORMAT_VERSIONS[material.source]}
    write_set(options.folder, recipe, material, options.workers)
    log.info("%d + %d clips, source: %s", options.train, options.test, material.source)


def find_finished_set(folder: Path, recipe: dict[str, Any]) -> str | None:
    """Looks whether a folder holds the set; its source, or None if the folder is missing or empty.

    Raises:
        StampsError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        existing = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["recipe"])
        source = existing["source"]
        wanted = recipe | {"format_version": FORMAT_VERSIONS[source]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StampsError(
            f"{folder} is neither empty nor a set made by this program (no readable {MANIFEST}). "
            "Pick another folder."
        ) from error
    if recipe["source"] == "auto":
        wanted["source"] = source
    differences = [
        f"{name} {existing.get(name)} instead of {wanted.get(name)}"
        for name in sorted(existing.keys() | wanted.keys())
        if existing.get(name) != wanted.get(name)
    ]
    if differences:
        raise StampsError(
            f"{folder} holds a set of another recipe ({', '.join(differences)}). Pick another folder."
        )
    return str(source)


def load_material(options: argparse.Namespace) -> Material:
    """Loads the real material; its stand-in where that was asked for, or where auto cannot fetch it."""
    if options.source != "procedural":
        try:
            return load_real_material(options.classes, options.frame_size, options.cache)
        except MaterialUnavailableError as error:
            if options.source == "real":
                raise
            log.warning("WARNING: no real material: %s", error)
            log.warning("WARNING: coloured shapes and chords are used instead (procedural)")
    return make_procedural_material(options.classes, options.frame_size)


def write_set(folder: Path, recipe: dict[str, Any], material: Material, num_workers: int) -> None:
    """Composes and writes all clips, their lists and the manifest; all or nothing."""
    counts = zip(SPLITS, (recipe["num_train"], recipe["num_test"]), strict=True)
    tasks = [(split, index) for split, count in counts for index in range(count)]
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        for part in (FRAMES, AUDIO, TEST_FRAMES, TEST_AUDIO, TEST_BOXES):
            (partial / part).mkdir(parents=True)
        with ProcessPoolExecutor(
            num_workers, initializer=_set_up_worker, initargs=(partial, recipe, material)
        ) as pool:
            written = pool.map(_write_clip, tasks, chunksize=8)
            description = f"{material.source} stamps"
            records = dict(tqdm(written, total=len(tasks), unit="clip", desc=description))
        for name, clip_ids in list_clips(records).items():
            lines = "".join(f"{clip_id}\n" for clip_id in clip_ids)
            (partial / f"{name}.txt").write_text(lines, encoding="utf-8")
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
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp's is for the owner only
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def list_clips(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Lists both splits, and the parts of the test split that mean different things; none is empty."""
    lists: dict[str, list[str]] = {}
    for clip_id, record in records.items():
        names = ["train"]
        if clip_id.startswith("test_"):
            seen = (record["photo_seen_in_training"], record["sound_seen_in_training"])
            parts = ("both_held_out", "held_out_photo", "held_out_recording", "seen")
            part = parts[2 * seen[0] + seen[1]]
            objects = "two_objects" if record["other_objects"] else "one_object"
            names = ["test", f"test_{part}", f"test_{objects}"]
        for name in names:
            lists.setdefault(name, []).append(clip_id)
    return lists


_worker: tuple[Path, dict[str, Any], Material]
"""what a worker process keeps between tasks; handed over once, as the material is large"""


def _set_up_worker(*given: Any) -> None:  # noqa: ANN401
    global _worker  # noqa: PLW0603
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _worker = given


def _write_clip(task: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    """Writes a clip; returns its id and its entry in the manifest."""
    folder, recipe, material = _worker
    split, index = task
    frame, waveform, record = compose_clip(
        material, split, index, seed=recipe["seed"], frame_size=recipe["frame_size"]
    )
    clip_id = f"{split}_{index:06d}"
    if split == "train":
        frame_path, audio_path = folder / FRAMES / clip_id / "125.jpg", folder / AUDIO / f"{clip_id}.wav"
        frame_path.parent.mkdir()
    else:
        frame_path, audio_path = (
            folder / TEST_FRAMES / f"{clip_id}.jpg",
            folder / TEST_AUDIO / f"{clip_id}.wav",
        )
        sides = zip(("xmin", "ymin", "xmax", "ymax"), record["box"], strict=True)
        box = "".join(f"<{name}>{side!r}</{name}>" for name, side in sides)
        annotation = (
            f"<annotation><filename>{clip_id}.jpg</filename><bbox><box>{box}</box></bbox></annotation>"
        )
        (folder / TEST_BOXES / f"{clip_id}.xml").write_text(annotation)
    frame.save(frame_path, quality=90)
    soundfile.write(audio_path, waveform, SAMPLE_RATE, subtype="PCM_16")
    return clip_id, record


if __name__ == "__main__":
    sys.exit(main())
