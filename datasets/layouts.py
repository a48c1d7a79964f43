"""Where each data set keeps the frame, the sound and the boxes of a clip."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import (
    SoundedFrame,
    read_flickr_xml,
    read_pixel_json,
    read_vgg_ss_json,
    read_vgg_ss_xml,
)
from datasets.hdf5 import Split
from datasets.video_frames import VideoNames


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
    videos: VideoNames | None = None
    """names below these folders, where each video has several frames with masks"""


@dataclass(frozen=True)
class Layout:
    """How one data set lies below its root."""

    title: str
    """what the data set is"""
    roots: tuple[str, ...]
    """the root itself and sub-folders of it in which the data may lie"""
    folders: tuple[Folders, ...]
    """looked for in this order"""
    split: Split | None = None
    """which of the SSPL authors' HDF5 files hold it; None: they have no file of it"""
    boxes_json: str | None = None
    """file of boxes beside the folders, or in the SSPL authors' layout"""
    read_annotation: Callable[[Path], NDArray[np.float64]] | None = None
    """of one clip's XML file"""
    read_json: Callable[[Path], dict[str, NDArray[np.float64]]] | None = None
    """of all clips' boxes"""
    read_frames: Callable[[Path], dict[str, SoundedFrame]] | None = None
    """of a file that names the frames with their sounds and boxes"""
    annotators_needed: int = 1
    negatives: str | None = None
    """official list of frames with sounds that are not seen in them, which are added"""
    pair_key: Callable[[str], str] | None = None
    """clip id -> what clips of one scene with different sounds share"""
    ids_of_training: bool = True
    """ids are those of training lists, so that leaks can be looked for"""

    @property
    def has_masks(self) -> bool:
        """The object is outlined pixel by pixel."""
        return any(folders.videos for folders in self.folders)

    @property
    def is_benchmark(self) -> bool:
        """The object is known, by boxes or by a mask."""
        return bool(self.read_annotation or self.read_frames or self.has_masks)

    @property
    def why_not_packed(self) -> str | None:
        """Why our HDF5 files do not hold such sets; None: they do."""
        if self.has_masks:
            return "masks are not stored in HDF5 files; use the folders themselves"
        if self.negatives:
            return "its negatives borrow the frames and sounds of other clips; use the folders"
        return None


SSPL_TEST_FOLDER = "5k_labeled/Data"
"""Where SSPL's authors keep what a benchmark consists of."""


def scene_of(clip_id: str) -> str:
    """IS3's pair key: the name without its last _<token>, which says whose sound is heard."""
    return clip_id.rpartition("_")[0] or clip_id


_SOUNDED_FRAMES = (Folders("visual_frames", ("audio_wav",)),)

LAYOUTS: dict[str, Layout] = {
    "vggsound": Layout(
        title="VGGSound training clips",
        roots=(".", "VGGSound"),
        folders=(Folders("total_video_frames", ("total_video_3s_audio",), frame_name="125.jpg"),),
        split="train",
    ),
    "flickr": Layout(
        title="Flickr-SoundNet training clips",
        roots=(".", "Flickr"),
        folders=(Folders("frames", ("mp3", "wav", "audio"), frame_name="00000003.jpg"),),
        split="train",
    ),
    "vgg_ss": Layout(
        title="VGG-SS",
        roots=(".", "VGG-Sound", "VGGSound_test"),
        folders=(Folders("frame", ("audio",), "anno"),),
        split="test",
        boxes_json="5k_labeled/Annotations/vggss_test_5158.json",
        read_annotation=read_vgg_ss_xml,
        read_json=read_vgg_ss_json,
    ),
    "stamps": Layout(
        title="stamps",
        roots=(".", "VGGSound_test"),
        folders=(Folders("frame", ("audio",), "anno"),),
        split="test",
        read_annotation=read_vgg_ss_xml,
    ),
    "flickr_soundnet": Layout(
        title="Flickr-SoundNet",
        roots=(".", "SoundNet_Flickr", "Flickr_test"),
        folders=(
            Folders("frame", ("audio", "wav", "mp3"), "anno"),
            Folders(f"{SSPL_TEST_FOLDER}/frames", (f"{SSPL_TEST_FOLDER}/audio",), "5k_labeled/Annotations"),
        ),
        split="test",
        read_annotation=read_flickr_xml,
        annotators_needed=2,
    ),
    "is3": Layout(
        title="IS3",
        roots=(".", "IS3"),
        folders=_SOUNDED_FRAMES,
        boxes_json="synthetic3240_bbox.json",
        read_frames=read_pixel_json,
        pair_key=scene_of,
        ids_of_training=False,
    ),
    "vpo_ss": Layout(
        title="VPO-SS",
        roots=(".", "VPO-SS"),
        folders=_SOUNDED_FRAMES,
        boxes_json="vpo_ss_bbox.json",
        read_frames=read_pixel_json,
        ids_of_training=False,
    ),
    "vpo_ms": Layout(
        title="VPO-MS",
        roots=(".", "VPO-MS"),
        folders=_SOUNDED_FRAMES,
        boxes_json="vpo_ms_bbox.json",
        read_frames=read_pixel_json,
        ids_of_training=False,
    ),
    "avsbench_s4": Layout(
        title="AVSBench S4",
        roots=(".", "Single-source/s4_data", "s4_data"),
        folders=(
            Folders(
                "visual_frames/test",
                ("audio_wav/test",),
                videos=VideoNames("gt_masks/test", by_category=True),
            ),
        ),
        ids_of_training=False,
    ),
    "avsbench_ms3": Layout(
        title="AVSBench MS3",
        roots=(".", "Multi-sources/ms3_data", "ms3_data"),
        folders=(
            Folders(
                "visual_frames",
                ("audio_wav/test",),
                videos=VideoNames("gt_masks/test", by_category=False, frame_infix=".mp4"),
            ),
        ),
        ids_of_training=False,
    ),
}
"""Every data set, by name."""

LAYOUTS["vgg_ss_extended"] = replace(
    LAYOUTS["vgg_ss"], title="Extended VGG-SS", negatives="slavc_vgg_ss_negatives"
)
LAYOUTS["flickr_soundnet_extended"] = replace(
    LAYOUTS["flickr_soundnet"], title="Extended Flickr-SoundNet", negatives="slavc_flickr_negatives"
)

BENCHMARKS = tuple(name for name, layout in LAYOUTS.items() if layout.is_benchmark)
