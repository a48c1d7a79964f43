"""Where each data set keeps the frame, the sound and the boxes of a clip."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import read_flickr_xml, read_vgg_ss_xml
from datasets.audio import AUDIO_SUFFIXES
from datasets.frames import FRAME_SUFFIXES


@dataclass(frozen=True)
class Layout:
    """Folders of one data set, below its root."""

    title: str
    """what the data set is"""
    roots: tuple[str, ...]
    """the root itself and sub-folders of it in which the data may lie"""
    frame_folder: str
    audio_folders: tuple[str, ...]
    """looked through in this order"""
    frame_name: str | None = None
    """file name inside a folder per clip; None: the frames are <clip_id>.jpg"""
    annotation_folder: str | None = None
    """folder of <clip_id>.xml; None for training sets"""
    read_annotation: Callable[[Path], NDArray[np.float64]] | None = None
    annotators_needed: int = 1


LAYOUTS: dict[str, Layout] = {
    "vggsound": Layout(
        title="VGGSound training clips",
        roots=(".", "VGGSound"),
        frame_folder="total_video_frames",
        frame_name="125.jpg",
        audio_folders=("total_video_3s_audio",),
    ),
    "flickr": Layout(
        title="Flickr-SoundNet training clips",
        roots=(".", "Flickr"),
        frame_folder="frames",
        frame_name="00000003.jpg",
        audio_folders=("mp3", "wav", "audio"),
    ),
    "vgg_ss": Layout(
        title="VGG-SS test clips",
        roots=(".", "VGGSound_test"),
        frame_folder="frame",
        audio_folders=("audio",),
        annotation_folder="anno",
        read_annotation=read_vgg_ss_xml,
    ),
    "stamps": Layout(
        title="Stamps test clips (scripts/make_stamps.sh)",
        roots=(".", "VGGSound_test"),
        frame_folder="frame",
        audio_folders=("audio",),
        annotation_folder="anno",
        read_annotation=read_vgg_ss_xml,
    ),
    "flickr_soundnet": Layout(
        title="Flickr-SoundNet test clips",
        roots=(".", "Flickr_test"),
        frame_folder="frame",
        audio_folders=("audio", "wav", "mp3"),
        annotation_folder="anno",
        read_annotation=read_flickr_xml,
        annotators_needed=2,
    ),
}
"""Every data set, by name. Those with an annotation folder are benchmarks."""


@dataclass(frozen=True)
class ClipFolder:
    """A data set on disk: for each kind of file, where the file of a clip is."""

    frames: dict[str, Path]
    sounds: dict[str, Path]
    annotations: dict[str, Path] | None
    expected: dict[str, str]
    """kind of file -> pattern of its path, for messages"""


def find_files(layout: Layout, data_root: Path) -> ClipFolder:
    """Lists the folders of a data set once.

    Args:
        layout: of the data set.
        data_root: the user's folder.

    Returns:
        the files by clip id.

    Raises:
        FileNotFoundError: the root or one of the layout's folders is not there.
    """
    root = _find_root(layout, data_root)
    audio_folders = [root / name for name in layout.audio_folders if (root / name).is_dir()]
    frame_pattern = f"<id>/{layout.frame_name}" if layout.frame_name else "<id>.jpg"
    expected = {
        "frame": str(root / layout.frame_folder / frame_pattern),
        "audio": str(audio_folders[0] / f"<id>.{{{','.join(s[1:] for s in AUDIO_SUFFIXES)}}}"),
    }
    annotations = None
    if layout.annotation_folder:
        expected["annotation"] = str(root / layout.annotation_folder / "<id>.xml")
        if (root / layout.annotation_folder).is_dir():
            annotations = _files_by_id([root / layout.annotation_folder], (".xml",))
    if layout.frame_name:
        frames = {
            entry.name: entry / layout.frame_name
            for entry in (root / layout.frame_folder).iterdir()
        }
    else:
        frames = _files_by_id([root / layout.frame_folder], FRAME_SUFFIXES)
    return ClipFolder(frames, _files_by_id(audio_folders, AUDIO_SUFFIXES), annotations, expected)


def _find_root(layout: Layout, data_root: Path) -> Path:
    """The folder that holds the layout's folders."""
    for name in layout.roots:
        root = data_root / name
        has_audio = any((root / folder).is_dir() for folder in layout.audio_folders)
        if has_audio and (root / layout.frame_folder).is_dir():
            return root
    there = sorted(path.name for path in data_root.iterdir()) if data_root.is_dir() else None
    found = (
        "it does not exist" if there is None else f"it holds: {', '.join(there[:10]) or 'nothing'}"
    )
    raise FileNotFoundError(
        f"{layout.title}: no folders {layout.frame_folder}/ and {'|'.join(layout.audio_folders)}/ "
        f"in {data_root} or its sub-folder {layout.roots[-1]}/ ({found}). See docs/data.md for the "
        "layout."
    )


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
