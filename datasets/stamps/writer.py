"""Writes a whole set in VGGSound's layout, in parallel, all or nothing."""

import json
import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import soundfile
from tqdm import tqdm

from datasets.stamps.composer import SPLITS, Clip, compose_clip
from datasets.stamps.errors import StampsError
from datasets.stamps.material import SAMPLE_RATE, Material

log = logging.getLogger(__name__)

MANIFEST = "stamps.json"
_FORMAT_VERSION = 3  # goes up whenever the same recipe gives other files
_CLIPS_PER_TASK = 8


@dataclass(frozen=True)
class Recipe:
    """Everything that the content of a set follows from.

    Attributes:
        source: "real" or "procedural".
        seed: Seed of all chance, 0 or more.
        num_train: Training clips.
        num_test: Test clips.
        num_classes: Classes, the first of the source's list.
        frame_size: Side of the frames, pixels.
        format_version: Version of this generator's output.
    """

    source: str
    seed: int
    num_train: int
    num_test: int
    num_classes: int
    frame_size: int
    format_version: int = _FORMAT_VERSION


def find_finished_set(folder: Path, recipe: Recipe, *, any_source: bool) -> str | None:
    """Looks whether a folder already holds the set.

    Args:
        folder: Where the set is to stand.
        recipe: What is wanted.
        any_source: Whether a set of another source is as good.

    Returns:
        The source of the finished set, or None if the folder is missing or empty.

    Raises:
        StampsError: The folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        found = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StampsError(
            f"{folder} is neither empty nor a set made by this program (no readable {MANIFEST}). "
            "Pick another folder."
        ) from error
    wanted = asdict(recipe)
    if any_source:
        wanted["source"] = found.get("source")
    if found != wanted:
        differences = ", ".join(
            f"{name} {found.get(name)} instead of {wanted.get(name)}"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
        )
        raise StampsError(f"{folder} holds a set of another recipe ({differences}). Pick another folder.")
    return str(found["source"])


def write_set(folder: Path, recipe: Recipe, material: Material, *, num_workers: int) -> None:
    """Composes and writes all clips and the manifest; nothing is left behind on failure.

    Args:
        folder: Where the set is to stand; missing or empty.
        recipe: What to make; its source is the material's.
        material: What to compose clips of.
        num_workers: Processes; the files do not depend on it.
    """
    assert recipe.source == material.source
    tasks = [
        (split, index)
        for split, count in zip(SPLITS, (recipe.num_train, recipe.num_test), strict=True)
        for index in range(count)
    ]
    with _complete_or_nothing(folder) as partial:
        for part in _PARTS:
            (partial / part).mkdir(parents=True)
        records = _write_clips(partial, recipe, material, tasks, num_workers)
        for name, clip_ids in _clip_lists(records).items():
            lines = "".join(f"{clip_id}\n" for clip_id in clip_ids)
            (partial / f"{name}.txt").write_text(lines, encoding="utf-8")
        manifest = _manifest(recipe, material, records)
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _clip_lists(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Both splits, and the parts of the test split that mean different things; none is empty."""
    test = {clip_id: record for clip_id, record in records.items() if clip_id.startswith("test_")}
    seen = {
        clip_id: (record["photo_seen_in_training"], record["sound_seen_in_training"])
        for clip_id, record in test.items()
    }
    single = {clip_id for clip_id, record in test.items() if not record["other_objects"]}
    lists = {
        "train": [clip_id for clip_id in records if clip_id not in test],
        "test": list(test),
        "test_seen": [clip_id for clip_id in test if seen[clip_id] == (True, True)],
        "test_held_out_recording": [i for i in test if seen[i] == (True, False)],
        "test_held_out_photo": [i for i in test if seen[i] == (False, True)],
        "test_both_held_out": [i for i in test if seen[i] == (False, False)],
        "test_one_object": [clip_id for clip_id in test if clip_id in single],
        "test_two_objects": [clip_id for clip_id in test if clip_id not in single],
    }
    return {name: clip_ids for name, clip_ids in lists.items() if clip_ids}


_TRAIN_FRAMES = "VGGSound/total_video_frames"
_TRAIN_AUDIO = "VGGSound/total_video_3s_audio"
_TEST_FRAMES, _TEST_AUDIO, _TEST_BOXES = (f"VGGSound_test/{part}" for part in ("frame", "audio", "anno"))
_PARTS = (_TRAIN_FRAMES, _TRAIN_AUDIO, _TEST_FRAMES, _TEST_AUDIO, _TEST_BOXES)


@contextmanager
def _complete_or_nothing(folder: Path) -> Iterator[Path]:
    """Gives a folder beside the wanted one that takes its place in the end, or is removed."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's is for the owner only
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_clips(
    folder: Path, recipe: Recipe, material: Material, tasks: list[tuple[str, int]], num_workers: int
) -> dict[str, dict[str, Any]]:
    """Writes all clips; returns their records by clip id, in the order of the tasks."""
    progress = tqdm(total=len(tasks), unit="clip", desc=f"{recipe.source} stamps")
    records = {}
    with (
        progress,
        ProcessPoolExecutor(
            num_workers, initializer=_set_up_worker, initargs=(folder, recipe, material)
        ) as pool,
    ):
        for clip_id, record in pool.map(_write_task, tasks, chunksize=_CLIPS_PER_TASK):
            records[clip_id] = record
            progress.update()
    return records


class _Worker:
    """What a worker process keeps between tasks; handed over once, as the material is large."""

    folder: Path
    recipe: Recipe
    material: Material


def _set_up_worker(folder: Path, recipe: Recipe, material: Material) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    _Worker.folder, _Worker.recipe, _Worker.material = folder, recipe, material


def _write_task(task: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    split, index = task
    recipe = _Worker.recipe
    clip = compose_clip(_Worker.material, split, index, seed=recipe.seed, frame_size=recipe.frame_size)
    clip_id = f"{split}_{index:06d}"
    _write_clip(_Worker.folder, split, clip_id, clip)
    return clip_id, clip.record


def _write_clip(folder: Path, split: str, clip_id: str, clip: Clip) -> None:
    if split == "train":
        frame_path = folder / _TRAIN_FRAMES / clip_id / "125.jpg"
        frame_path.parent.mkdir()
        audio_path = folder / _TRAIN_AUDIO / f"{clip_id}.wav"
    else:
        frame_path = folder / _TEST_FRAMES / f"{clip_id}.jpg"
        audio_path = folder / _TEST_AUDIO / f"{clip_id}.wav"
        annotation = _annotation(clip_id, clip.record["box"])
        (folder / _TEST_BOXES / f"{clip_id}.xml").write_bytes(annotation)
    clip.frame.save(frame_path, quality=90)
    soundfile.write(audio_path, clip.waveform, SAMPLE_RATE, subtype="PCM_16")


def _annotation(clip_id: str, box: list[float]) -> bytes:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{clip_id}.jpg"
    element = ElementTree.SubElement(ElementTree.SubElement(root, "bbox"), "box")
    for name, side in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
        ElementTree.SubElement(element, name).text = repr(side)
    return ElementTree.tostring(root)


def _manifest(recipe: Recipe, material: Material, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "source": material.source,
        "recipe": asdict(recipe),
        "licence": material.licence,
        "packages": list(material.packages),
        "classes": {
            member.name: {
                "stamps": [photo.key for photo in member.photos],
                "held_out_stamps": [photo.key for photo in member.photos if photo.held_out],
                "sounds": [sound.key for sound in member.sounds],
                "held_out_sounds": [sound.key for sound in member.sounds if sound.held_out],
            }
            for member in material.classes
        },
        "clips": records,
    }
