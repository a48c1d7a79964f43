"""Where each data set keeps the frame, the sound and the boxes of a clip."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import read_flickr_xml, read_vgg_ss_xml
from datasets.audio import AUDIO_SUFFIXES
from datasets.frames import FRAME_SUFFIXES
from datasets.hdf5 import Source
from datasets.hdf5_sets import Split, authors_files, packed_files, read_authors, read_packed


@dataclass(frozen=True)
class Folders:
    """Names of the folders in which each clip has files of its own."""

    frames: str
    sounds: tuple[str, ...]
    """looked through in this order"""
    boxes: str | None = None
    """folder of <clip_id>.xml; None for training sets"""
    frame_name: str | None = None
    """file name inside a folder per clip; None: the frames are <clip_id>.jpg"""


@dataclass(frozen=True)
class Layout:
    """How one data set lies below its root."""

    title: str
    """what the data set is"""
    roots: tuple[str, ...]
    """the root itself and sub-folders of it in which the data may lie"""
    folders: tuple[Folders, ...]
    """looked for in this order"""
    split: Split = "train"
    """which of the SSPL authors' HDF5 files hold it"""
    boxes_json: str | None = None
    """file of boxes in the SSPL authors' layout"""
    read_annotation: Callable[[Path], NDArray[np.float64]] | None = None
    annotators_needed: int = 1


SSPL_TEST_FOLDER = "5k_labeled/Data"
"""Where SSPL's authors keep what a benchmark consists of."""

LAYOUTS: dict[str, Layout] = {
    "vggsound": Layout(
        title="VGGSound training clips",
        roots=(".", "VGGSound"),
        folders=(Folders("total_video_frames", ("total_video_3s_audio",), frame_name="125.jpg"),),
    ),
    "flickr": Layout(
        title="Flickr-SoundNet training clips",
        roots=(".", "Flickr"),
        folders=(Folders("frames", ("mp3", "wav", "audio"), frame_name="00000003.jpg"),),
    ),
    "vgg_ss": Layout(
        title="VGG-SS test clips",
        roots=(".", "VGG-Sound", "VGGSound_test"),
        folders=(Folders("frame", ("audio",), "anno"),),
        split="test",
        boxes_json="5k_labeled/Annotations/vggss_test_5158.json",
        read_annotation=read_vgg_ss_xml,
    ),
    "stamps": Layout(
        title="Stamps test clips (scripts/make_stamps.sh)",
        roots=(".", "VGGSound_test"),
        folders=(Folders("frame", ("audio",), "anno"),),
        split="test",
        read_annotation=read_vgg_ss_xml,
    ),
    "flickr_soundnet": Layout(
        title="Flickr-SoundNet test clips",
        roots=(".", "SoundNet_Flickr", "Flickr_test"),
        folders=(
            Folders("frame", ("audio", "wav", "mp3"), "anno"),
            Folders(
                f"{SSPL_TEST_FOLDER}/frames",
                (f"{SSPL_TEST_FOLDER}/audio",),
                "5k_labeled/Annotations",
            ),
        ),
        split="test",
        read_annotation=read_flickr_xml,
        annotators_needed=2,
    ),
}
"""Every data set, by name. Those with read_annotation are benchmarks."""


@dataclass(frozen=True)
class ClipFiles:
    """A data set on disk: for each kind of content, where that of a clip is."""

    frames: Mapping[str, Source]
    sounds: Mapping[str, Source]
    annotations: dict[str, Path] | None
    """XML files"""
    expected: dict[str, str]
    """kind of content -> pattern of its place, for messages"""
    boxes: dict[str, NDArray[np.float64]] | None = None
    """clip id -> (N, 4), where our HDF5 files hold them"""
    boxes_json: Path | None = None
    """where it is in its place in the SSPL authors' layout"""
    ids_known: bool = True
    """False: HDF5 files without ids; they are row numbers"""


@dataclass(frozen=True)
class _Place:
    """One way in which a data set is there."""

    root: Path
    folders: Folders | None = None
    packed: tuple[Path, ...] = ()
    authors: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """For messages."""
        if self.folders:
            return f"the folders {self.folders.frames}/ and so on in {self.root}"
        files = self.packed or self.authors
        return f"{files[0]}" + (f" and {len(files) - 1} more" if files[1:] else "")


def find_files(dataset: str, data_root: Path, *, listed: Sequence[str] | None = None) -> ClipFiles:
    """Lists the files of a data set once: folders, our HDF5 files, or the SSPL authors'.

    Args:
        dataset: a key of LAYOUTS.
        data_root: the user's folder, or one HDF5 file of ours.
        listed: clip ids that the user named; the ids of the authors' HDF5 files, which hold none.

    Returns:
        the files by clip id.

    Raises:
        FileNotFoundError: the root or the layout's folders are not there, or a file of a set is
            missing.
        ValueError: the data set is there in several ways, or HDF5 files are broken or do not go
            together.
    """
    layout = LAYOUTS[dataset]
    place = _find_place(layout, data_root)
    if place.folders:
        return _list_folders(layout, place.root, place.folders)
    if place.packed:
        stored = read_packed(place.packed, dataset)
    else:
        stored = read_authors(place.authors, layout.split, listed)
    return ClipFiles(
        stored.frames,
        stored.sounds,
        _annotations(place.root, layout.folders),
        dict.fromkeys(("frame", "audio"), f"a row for <id> in {place}")
        | {"annotation": str(place.root / f"{layout.folders[0].boxes}" / "<id>.xml")},
        stored.boxes,
        _boxes_json(layout, place.root),
        stored.ids_known,
    )


def _find_place(layout: Layout, data_root: Path) -> _Place:
    if data_root.is_file():
        return _Place(data_root.parent, packed=(data_root,))
    roots = [data_root / name for name in layout.roots]
    ways = [
        [_Place(root, folders=f) for root in roots for f in layout.folders if _is_there(root, f)],
        [_Place(root, packed=tuple(files)) for root in roots if (files := packed_files(root))],
        [
            _Place(root, authors=tuple(files))
            for root in roots
            for folder in (root, *([root / SSPL_TEST_FOLDER] if layout.split == "test" else []))
            if (files := authors_files(folder, layout.split))
        ],
    ]
    places = [way[0] for way in ways if way]
    if len(places) > 1:
        raise ValueError(
            f"{layout.title}: {data_root} holds them in several ways: "
            f"{'; '.join(map(str, places))}. Expected one; name a folder that holds only what you "
            "want to use."
        )
    if places:
        return places[0]
    there = sorted(path.name for path in data_root.iterdir()) if data_root.is_dir() else None
    found = (
        "it does not exist" if there is None else f"it holds: {', '.join(there[:10]) or 'nothing'}"
    )
    first = layout.folders[0]
    raise FileNotFoundError(
        f"{layout.title}: no folders {first.frames}/ and {'|'.join(first.sounds)}/, no clips.h5 "
        f"and no h5py_{layout.split}_frames.h5 in {data_root} or its sub-folder "
        f"{layout.roots[-1]}/ ({found}). See docs/data.md for the layouts."
    )


def _is_there(root: Path, folders: Folders) -> bool:
    return (root / folders.frames).is_dir() and any((root / f).is_dir() for f in folders.sounds)


def _list_folders(layout: Layout, root: Path, folders: Folders) -> ClipFiles:
    audio_folders = [root / name for name in folders.sounds if (root / name).is_dir()]
    frame_pattern = f"<id>/{folders.frame_name}" if folders.frame_name else "<id>.jpg"
    if folders.frame_name:
        frames = {
            entry.name: entry / folders.frame_name for entry in (root / folders.frames).iterdir()
        }
    else:
        frames = _files_by_id([root / folders.frames], FRAME_SUFFIXES)
    expected = {
        "frame": str(root / folders.frames / frame_pattern),
        "audio": str(audio_folders[0] / f"<id>.{{{','.join(s[1:] for s in AUDIO_SUFFIXES)}}}"),
    }
    if folders.boxes:
        expected["annotation"] = str(root / folders.boxes / "<id>.xml")
    return ClipFiles(
        frames,
        _files_by_id(audio_folders, AUDIO_SUFFIXES),
        _annotations(root, (folders,)),
        expected,
        boxes_json=_boxes_json(layout, root),
    )


def _annotations(root: Path, folders: Iterable[Folders]) -> dict[str, Path] | None:
    """Clip id -> XML file, from the first folder of boxes that holds any."""
    for names in folders:
        if names.boxes and (root / names.boxes).is_dir():
            files = _files_by_id([root / names.boxes], (".xml",))
            if files:
                return files
    return None


def _boxes_json(layout: Layout, root: Path) -> Path | None:
    path = root / layout.boxes_json if layout.boxes_json else None
    return path if path and path.is_file() else None


def _files_by_id(folders: Iterable[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Clip id -> file; where several would do, the first folder and the first suffix win."""
    found: dict[str, Path] = {}
    for folder in folders:
        by_suffix: dict[str, list[Path]] = {suffix: [] for suffix in suffixes}
        for path in sorted(folder.iterdir()):
            by_suffix.get(path.suffix.lower(), []).append(path)
        for suffix in suffixes:
            for path in by_suffix[suffix]:
                found.setdefault(path.stem, path)
    return found
