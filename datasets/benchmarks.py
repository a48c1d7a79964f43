"""Data sets: a row each says all that is special about it; from its name and a folder to clips.

To add a data set, add a row to DATA_SETS: the choices of the programs' options follow from it.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from datasets.annotations import (
    Boxes,
    SoundedFrame,
    read_flickr_xml,
    read_pixel_json,
    read_vgg_ss_json,
    read_vgg_ss_xml,
)
from datasets.audio import AUDIO_SUFFIXES
from datasets.clips import Clip
from datasets.frames import FRAME_SUFFIXES
from datasets.hdf5 import PACKED_NAME, Source, Split, StoredClips, read_authors, read_packed
from datasets.lists import ClipList, find_list, ids_sha256, name_cut, split_pair
from utils.files import BrokenFileError

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------------------- one row a data set


@dataclass(frozen=True)
class Folders:
    """Names of the folders in which each clip has files of its own."""

    frames: str
    sounds: tuple[str, ...]  # looked through in this order
    boxes: str | None = None  # of <clip_id>.xml
    frame_name: str | None = None  # file name inside a folder per clip; None: the frames are <clip_id>.jpg
    masks: str | None = None
    """of <video>/<video>_<k>.png, k = 1, 2 …: frames k of videos with one sound each (AVSBench)"""
    by_category: bool = False  # the videos lie in a folder for each category
    frame_infix: str = ""  # what stands in a frame's name between the video's and _<k>


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is special about a data set."""

    title: str
    roots: tuple[str, ...]  # the root itself and sub-folders of it in which the data may lie
    folders: tuple[Folders, ...]  # looked for in this order
    split: Split | None = None  # which of the SSPL authors' HDF5 files hold it; None: they have no file of it
    read_xml: Callable[[Path], Boxes] | None = None  # reader of one clip's file of boxes
    read_json: Callable[[Path], Mapping[str, Boxes | SoundedFrame]] | None = None
    """reader of a file of all clips' boxes, taken by --annotations"""
    boxes_json: str | None = None  # place of that file in the data set
    annotators_needed: int = 1  # boxes that make a full vote, see consensus_map
    negatives: str | None = None
    """official list of frames with sounds that are not seen in them, which are added"""
    pair_key: Callable[[str], str] | None = None
    """clip id -> what clips of one scene with different sounds share"""
    ids_of_training: bool = True  # ids are those of training lists, so that leaks can be looked for
    metrics: Literal["detection", "pairs", "masks"] | None = None  # further scores beside consensus IoU
    headline: str | None = None
    """protocol under which its numbers are published, scored first; None: ssl_tie, then sspl"""
    numbers_published: bool = True
    """False: published numbers are of maps that no protocol makes, such as a network's masks"""

    @property
    def has_masks(self) -> bool:
        """The object is outlined pixel by pixel."""
        return any(folders.masks for folders in self.folders)

    @property
    def has_boxes(self) -> bool:
        """The object is known by boxes."""
        return bool(self.read_xml or self.read_json)

    @property
    def why_not_packed(self) -> str | None:
        """Why HDF5 files do not hold such sets; None: they do."""
        if self.has_masks:
            return "masks are not stored in HDF5 files; use the folders themselves"
        if self.negatives:
            return "its negatives borrow the frames and sounds of other clips; use the folders"
        return None


SSPL_DATA = "5k_labeled/Data"  # Where SSPL's authors keep what a benchmark consists of


def scene_of(clip_id: str) -> str:
    """Return IS3's pair key: the name without its last _<token>, which says whose sound is heard."""
    return clip_id.rpartition("_")[0] or clip_id


_VGG_SS_FOLDERS = (Folders("frame", ("audio",), "anno"),)

DATA_SETS: dict[str, DataSet] = {
    "vggsound": DataSet(
        title="VGGSound training clips",
        roots=(".", "VGGSound"),
        folders=(Folders("total_video_frames", ("total_video_3s_audio",), frame_name="125.jpg"),),
        split="train",
    ),
    "flickr": DataSet(
        title="Flickr-SoundNet training clips",
        roots=(".", "Flickr"),
        folders=(Folders("frames", ("mp3", "wav", "audio"), frame_name="00000003.jpg"),),
        split="train",
    ),
    "vgg_ss": DataSet(
        title="VGG-SS",
        roots=(".", "VGG-Sound", "VGGSound_test"),
        folders=_VGG_SS_FOLDERS,
        split="test",
        read_xml=read_vgg_ss_xml,
        read_json=read_vgg_ss_json,
        boxes_json="5k_labeled/Annotations/vggss_test_5158.json",
    ),
    "flickr_soundnet": DataSet(
        title="Flickr-SoundNet",
        roots=(".", "SoundNet_Flickr", "Flickr_test"),
        folders=(
            Folders("frame", ("audio", "wav", "mp3"), "anno"),
            Folders(f"{SSPL_DATA}/frames", (f"{SSPL_DATA}/audio",), "5k_labeled/Annotations"),
        ),
        split="test",
        read_xml=read_flickr_xml,
        annotators_needed=2,
    ),
    "stamps": DataSet(
        title="stamps",
        roots=(".", "VGGSound_test"),
        folders=_VGG_SS_FOLDERS,
        split="test",
        read_xml=read_vgg_ss_xml,
    ),
    "is3": DataSet(
        title="IS3",
        roots=(".", "IS3"),
        folders=(Folders("visual_frames", ("audio_wav",)),),
        boxes_json="synthetic3240_bbox.json",
        read_json=read_pixel_json,
        pair_key=scene_of,
        ids_of_training=False,
        metrics="pairs",
        headline="ssl_align_adaptive",
    ),
    "vpo_ss": DataSet(
        title="VPO-SS",
        roots=(".", "VPO-SS"),
        folders=(Folders("visual_frames", ("audio_wav",)),),
        boxes_json="vpo_ss_bbox.json",
        read_json=read_pixel_json,
        ids_of_training=False,
    ),
    "avsbench_s4": DataSet(
        title="AVSBench S4",
        roots=(".", "Single-source/s4_data", "s4_data"),
        folders=(
            Folders("visual_frames/test", ("audio_wav/test",), masks="gt_masks/test", by_category=True),
        ),
        ids_of_training=False,
        metrics="masks",
        headline="ssl_align",
        numbers_published=False,
    ),
}
"""Every data set, by name."""

DATA_SETS["vpo_ms"] = replace(
    DATA_SETS["vpo_ss"], title="VPO-MS", roots=(".", "VPO-MS"), boxes_json="vpo_ms_bbox.json"
)
DATA_SETS["avsbench_ms3"] = replace(
    DATA_SETS["avsbench_s4"],
    title="AVSBench MS3",
    roots=(".", "Multi-sources/ms3_data", "ms3_data"),
    folders=(Folders("visual_frames", ("audio_wav/test",), masks="gt_masks/test", frame_infix=".mp4"),),
)
for _name, _title, _negatives in (
    ("vgg_ss", "Extended VGG-SS", "slavc_vgg_ss_negatives"),
    ("flickr_soundnet", "Extended Flickr-SoundNet", "slavc_flickr_negatives"),
):
    DATA_SETS[f"{_name}_extended"] = replace(
        DATA_SETS[_name], title=_title, negatives=_negatives, metrics="detection", headline="slavc"
    )

BENCHMARKS = tuple(name for name, row in DATA_SETS.items() if row.has_boxes or row.has_masks)
"""Data sets in which it is known what makes the sound."""
TRAINING_SETS = tuple(name for name in DATA_SETS if name not in BENCHMARKS)
PLAIN_BENCHMARKS = tuple(name for name in BENCHMARKS if not DATA_SETS[name].negatives)
"""Those in which every sound comes from something in the picture."""
BOX_BENCHMARKS = tuple(name for name in PLAIN_BENCHMARKS if DATA_SETS[name].has_boxes)

# ------------------------------------------------------------------------------------- finding files


@dataclass(frozen=True)
class ClipFiles:
    """A data set on disk: for each kind of content, where that of a clip is, by clip id."""

    frames: Mapping[str, Source]
    sounds: Mapping[str, Source]
    expected: dict[str, str]  # kind of content -> pattern of its place, for messages
    boxes: Mapping[str, Callable[[], Boxes]] | None = None
    """what reads a clip's boxes, and may raise BrokenFileError"""
    masks: Mapping[str, Path] | None = None
    ids_known: bool = True  # False: HDF5 files without ids; they are row numbers

    @property
    def annotated(self) -> Set[str] | None:
        """Ids of the clips with boxes or a mask; None: the data set has neither."""
        annotations = self.masks if self.boxes is None else self.boxes
        return None if annotations is None else annotations.keys()


def find_files(
    dataset: str, data_root: Path, *, listed: Sequence[str] | None = None, annotations: Path | None = None
) -> ClipFiles:
    """List the files of a data set once: folders, packed HDF5 files, or the SSPL authors'.

    Args:
        dataset: a key of DATA_SETS.
        data_root: the user's folder, or one packed file.
        listed: clip ids that the user named; the ids of the authors' HDF5 files, which hold none.
        annotations: JSON of boxes, instead of what lies in its place.

    Raises:
        FileNotFoundError, ValueError: files are missing, broken, there in several ways, or cannot hold it.
    """
    row = DATA_SETS[dataset]
    if annotations is not None and row.read_json is None:
        taking = [name for name in BENCHMARKS if DATA_SETS[name].read_json]
        raise ValueError(f"--annotations takes the JSON of {', '.join(taking)}; {dataset} has no such file.")
    place, root, content = _find_place(dataset, row, data_root, listed)
    if isinstance(content, Folders) and content.masks:
        return _list_video_frames(root, content, content.masks)
    frames: Mapping[str, Source]
    sounds: Mapping[str, Source]
    boxes: Mapping[str, Callable[[], Boxes]] | None = None
    ids_known, box_folders = True, [folders.boxes for folders in row.folders if folders.boxes]
    if isinstance(content, Folders):
        frames, sounds, expected = _list_folders(root, content)
        box_folders = [content.boxes] if content.boxes else []
    else:
        if row.why_not_packed:
            raise ValueError(f"{row.title}: {place} is there, but {row.why_not_packed}.")
        stored = content()
        frames, sounds, ids_known = stored.frames, stored.sounds, stored.ids_known
        boxes = _as_readers(stored.boxes)
        expected = dict.fromkeys(("frame", "audio", "annotation"), f"a row for <id> in {place}")
    if boxes is None and row.read_xml is not None:
        expected["annotation"] = str(root / box_folders[0] / "<id>.xml")
        for name in box_folders:
            boxes = boxes or _xml_readers(row, root / name)
    in_place = root / row.boxes_json if row.boxes_json and boxes is None else None
    if annotations is None and in_place is not None and (in_place.is_file() or row.read_xml is None):
        annotations = in_place
    if annotations is not None:
        items = _read_json(row, annotations)
        boxes = _as_readers({i: item.bounding_boxes for i, item in items.items()})
        expected["annotation"] = f"{annotations} with an entry <id>"
        if isinstance(content, Folders):  # an item's frame and sound may have names of their own
            frames = {i: frames[item.frame_name] for i, item in items.items() if item.frame_name in frames}
            sounds = {i: sounds[item.sound_name] for i, item in items.items() if item.sound_name in sounds}
    return ClipFiles(frames, sounds, expected, boxes, ids_known=ids_known)


def _find_place(
    dataset: str, row: DataSet, data_root: Path, listed: Sequence[str] | None
) -> tuple[str, Path, Folders | Callable[[], StoredClips]]:
    """Return the one way in which a data set is there: in words, its root, and what is in it."""
    ways: list[tuple[str, Path, Folders | Callable[[], StoredClips]]] = []
    roots = [data_root / name for name in row.roots]
    for root, folders in product(roots, row.folders):
        if (root / folders.frames).is_dir() and any((root / name).is_dir() for name in folders.sounds):
            ways.append((f"the folders {folders.frames}/ and so on in {root}", root, folders))
            break
    for root in roots:
        packed = data_root if data_root.is_file() else root / PACKED_NAME
        if packed.is_file():
            ways.append((str(packed), packed.parent, partial(read_packed, packed, dataset)))
            break
    deeper = ["", SSPL_DATA] if row.split == "test" else [""]
    for root, name in product(roots, deeper):
        if row.split and (files := sorted((root / name).glob(f"h5py_{row.split}_*.h5"))):
            words = f"{files[0]}" + (f" and {len(files) - 1} more" if files[1:] else "")
            ways.append((words, root, partial(read_authors, files, row.split, listed)))
            break
    if len(ways) > 1:
        raise ValueError(
            f"{row.title}: {data_root} holds them in several ways: {'; '.join(way[0] for way in ways)}. "
            "Expected one; name a folder that holds only what you want to use."
        )
    if ways:
        return ways[0]
    content = "it does not exist"
    if data_root.is_dir():
        names = sorted(path.name for path in data_root.iterdir())
        content = f"it holds: {', '.join(names[:10]) or 'nothing'}"
    first = row.folders[0]
    no_packed = "" if row.why_not_packed else ", no clips.h5"
    no_authors = f" and no h5py_{row.split}_frames.h5" if row.split else ""
    raise FileNotFoundError(
        f"{row.title}: no folders {first.frames}/ and {'|'.join(first.sounds)}/{no_packed}{no_authors}"
        f" in {data_root} or its sub-folder {row.roots[-1]}/ ({content}). See docs/data.md for the layouts."
    )


def _as_readers(boxes: Mapping[str, Boxes] | None) -> dict[str, Callable[[], Boxes]] | None:
    return None if boxes is None else {i: partial(np.asarray, array) for i, array in boxes.items()}


def _xml_readers(row: DataSet, folder: Path) -> dict[str, Callable[[], Boxes]] | None:
    """Return what reads each clip's boxes; None: there is no file."""
    assert row.read_xml is not None
    files = files_by_id([folder], (".xml",)) if folder.is_dir() else {}
    return {i: partial(row.read_xml, path) for i, path in files.items()} or None


def _list_folders(root: Path, folders: Folders) -> tuple[dict[str, Path], dict[str, Path], dict[str, str]]:
    """Return frames, sounds, and the patterns of their places."""
    pattern = f"<id>/{folders.frame_name}" if folders.frame_name else "<id>.jpg"
    if folders.frame_name:
        frames = {entry.name: entry / folders.frame_name for entry in (root / folders.frames).iterdir()}
    else:
        frames = files_by_id([root / folders.frames], FRAME_SUFFIXES)
    sound_folders = [root / name for name in folders.sounds if (root / name).is_dir()]
    suffixes = ",".join(suffix[1:] for suffix in AUDIO_SUFFIXES)
    expected = {
        "frame": str(root / folders.frames / pattern),
        "audio": str(sound_folders[0] / f"<id>.{{{suffixes}}}"),
    }
    return frames, files_by_id(sound_folders, AUDIO_SUFFIXES), expected


def files_by_id(folders: Sequence[Path], suffixes: tuple[str, ...]) -> dict[str, Path]:
    """List files by their name without its suffix; the first folder and then the first suffix win.

    Args:
        folders: looked through in this order.
        suffixes: of the files, in lower case.
    """
    by_id: dict[str, Path] = {}
    for folder in folders:
        # Not what a Mac leaves beside each file, ._<name>.
        files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() in suffixes)
        for path in sorted(files, key=lambda path: suffixes.index(path.suffix.lower())):
            by_id.setdefault(path.stem, path)
    return by_id


def _list_video_frames(root: Path, folders: Folders, masks_folder: str) -> ClipFiles:
    """List AVSBench's frames that have a mask, each with the sound of its whole video.

    The archive itself was not at hand: the folders are those that its authors' program reads.
    """
    masks_root = root / masks_folder
    if not masks_root.is_dir():
        raise FileNotFoundError(f"No masks: expected the folder {masks_root}. See docs/data.md.")
    frames: dict[str, Path] = {}
    sounds: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    parents = _visible_folders(masks_root) if folders.by_category else [masks_root]
    for place in (video for parent in parents for video in _visible_folders(parent)):
        video, below = place.name, place.relative_to(masks_root)
        pictures = root / folders.frames / below
        by_name = files_by_id([pictures], FRAME_SUFFIXES) if pictures.is_dir() else {}
        sound = root / folders.sounds[0] / below
        sound_files = [sound.with_name(video + suffix) for suffix in AUDIO_SUFFIXES]  # names may hold dots
        sound_file = next((path for path in sound_files if path.is_file()), None)
        for mask in sorted(path for path in place.iterdir() if not path.name.startswith(".")):
            clip_id = mask.stem
            start, _, number = clip_id.rpartition("_")
            if start != video or not number.isdecimal():
                raise ValueError(f"{mask}: expected a mask called {video}_<k>.png, k = 1, 2 …")
            if clip_id in masks:
                raise ValueError(f"{masks[clip_id]} and {mask} have the same name; expected each once.")
            masks[clip_id] = mask
            if (frame := by_name.get(f"{video}{folders.frame_infix}_{number}")) is not None:
                frames[clip_id] = frame
            if sound_file is not None:
                sounds[clip_id] = sound_file
    middle = "<category>/<video>" if folders.by_category else "<video>"
    expected = {
        "frame": f"{root / folders.frames / middle}/<video>{folders.frame_infix}_<k>.png for <id>",
        "audio": f"{root / folders.sounds[0] / middle}.wav for <id>",
        "annotation": f"{masks_root / middle}/<id>.png",
    }
    return ClipFiles(frames, sounds, expected, masks=masks)


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_json(row: DataSet, path: Path) -> dict[str, SoundedFrame]:
    """Read the boxes of all clips, with the names of their frames and sounds."""
    assert row.read_json is not None
    if path.is_file():
        items = row.read_json(path)
        return {
            i: item if isinstance(item, SoundedFrame) else SoundedFrame(i, i, item)
            for i, item in items.items()
        }
    if row.read_xml is not None:
        remedy = "`bash scripts/get_splits.sh lvs_vgg_ss_boxes` fetches the VGG-SS boxes."
    else:
        remedy = f"Expected the authors' {row.boxes_json} there, or --annotations FILE; see docs/data.md."
    raise FileNotFoundError(f"No annotations at {path}. {remedy}")


# -------------------------------------------------------------------------------------- clip sets


@dataclass(frozen=True)
class ClipSet:
    """Clips whose files are there, and what is not."""

    dataset: str
    clips: tuple[Clip, ...]
    list_name: str  # the clip list, or 'every clip found' without one
    list_sha256: str  # of the list file, or of the sorted ids found
    num_listed: int
    missing: tuple[str, ...] = ()  # '<clip_id>: <what is wrong>' for each listed clip that is left out
    ids_known: bool = True  # False: the data is HDF5 files without ids, and the clip ids are row numbers
    cut: str = ""  # which published cut of a benchmark the list is, or that it is none
    source_ids: tuple[str, ...] | None = None
    """clips whose frames or sounds these are, to look for leaks; None: not as training sets name
    their clips"""

    @property
    def clip_ids(self) -> list[str]:
        """Of the clips that are there."""
        return [clip.clip_id for clip in self.clips]

    @property
    def known_ids(self) -> list[str] | None:
        """Of the clips that are there; None where the ids are only row numbers."""
        return self.clip_ids if self.ids_known else None

    def list_record(self) -> dict[str, Any]:
        """Return the list and how much of it is missing, as plain values."""
        return {
            "name": self.list_name,
            "sha256": self.list_sha256,
            "num_listed": self.num_listed,
            "num_missing": len(self.missing),
        }

    def identity(self) -> dict[str, Any]:
        """Return which clips these are, as plain values."""
        return {
            "benchmark": self.dataset,
            "list_name": self.list_name,
            "list_sha256": self.list_sha256,
            "clips": self.clip_ids,
        }


def build_clips(
    dataset: str,
    data_root: Path,
    *,
    clip_list: str | None,
    annotations: Path | None = None,
    negatives: str | None = None,
    allow_missing: bool = False,
) -> ClipSet:
    """Find the files of a data set's clips, and read their boxes.

    Args:
        dataset: a key of DATA_SETS.
        data_root: the user's folder, see docs/data.md.
        clip_list: file of clip ids or name of an official list; None: every complete clip.
        annotations: JSON to use instead of the boxes beside the clips: VGG-SS, IS3 and VPO.
        negatives: of the extended benchmarks, a file or name of an official list; None: SLAVC's.
        allow_missing: leave clips out whose files are missing, instead of refusing.

    Returns:
        the clips, in the list's order; negatives follow, with boxes of shape (0, 4).

    Raises:
        ValueError: unknown data set; or annotations or negatives do not fit the data set.
        FileNotFoundError: folders, or files of listed clips, are missing.
    """
    if dataset not in DATA_SETS:
        raise ValueError(f"Unknown data set '{dataset}'. There are: {', '.join(DATA_SETS)}.")
    row = DATA_SETS[dataset]
    if row.negatives is None and negatives is not None:
        extended = [name for name in BENCHMARKS if DATA_SETS[name].negatives]
        raise ValueError(f"--negatives goes with {' and '.join(extended)}; {dataset} has none. Leave it out.")
    if row.negatives is not None and clip_list is None:
        raise ValueError(
            f"{dataset}: the positives must be named with --clip-list, the negatives follow from "
            "--negatives; which clips in a folder are which cannot be seen there."
        )
    pairs = find_list(negatives or row.negatives, pairs=True) if row.negatives else None
    listed = None if clip_list is None else find_list(clip_list)
    ids = None if listed is None else listed.clip_ids
    files = find_files(dataset, data_root, listed=ids, annotations=annotations)
    if dataset in BENCHMARKS:
        _check_annotations(dataset, files)
    listed = listed or _every_clip("found", _complete_ids(files))
    if not listed.clip_ids:
        raise FileNotFoundError(
            f"{dataset}: no clip in {data_root} has all its files. Expected: "
            + ", ".join(files.expected.values())
        )
    sources = {clip_id: (clip_id, clip_id) for clip_id in listed.clip_ids}  # of its frame and its sound
    list_name, list_sha256 = listed.name, listed.sha256
    pair_ids: tuple[str, ...] = ()
    if pairs is not None:
        pair_ids = pairs.clip_ids
        sources |= {pair_id: split_pair(pair_id) for pair_id in pair_ids}
        files = replace(
            files, boxes={**(files.boxes or {}), **dict.fromkeys(pair_ids, partial(np.zeros, (0, 4)))}
        )
        list_name = f"{list_name} and {pairs.name}"
        list_sha256 = hashlib.sha256(f"{list_sha256} {pairs.sha256}".encode()).hexdigest()

    with ThreadPoolExecutor(16) as pool:  # on network drives it is the disk that takes the time
        built = pool.map(lambda clip_id: _build_clip(row, files, clip_id, *sources[clip_id]), sources)
        results = list(tqdm(built, f"{dataset}: finding files", len(sources), unit="clip", leave=False))
    clips = tuple(clip for clip in results if isinstance(clip, Clip))
    problems = [f"{i}: {clip}" for i, clip in zip(sources, results, strict=True) if isinstance(clip, str)]
    if problems:
        message = f"{dataset}: {len(problems)} of {len(sources)} clips are missing or broken, first: "
        message += "; ".join(problems[:5])
        if not allow_missing:
            raise FileNotFoundError(
                f"{message}. Mend the data, or pass --allow-missing to use only what is there."
            )
        logger.warning("%s. They are left out (--allow-missing).", message)
    if not clips:
        raise FileNotFoundError(f"{dataset}: none of {len(sources)} clips is readable.")
    source_ids = dict.fromkeys(source for clip in clips for source in sources[clip.clip_id])
    return ClipSet(
        dataset,
        clips,
        list_name,
        list_sha256,
        num_listed=len(sources),
        missing=tuple(problems),
        ids_known=files.ids_known,
        cut=name_cut(dataset, row.title, listed.clip_ids, pair_ids, len(problems)),
        source_ids=tuple(source_ids) if row.ids_of_training else None,
    )


def _every_clip(which: str, clip_ids: Iterable[str]) -> ClipList:
    ids = tuple(sorted(clip_ids))
    return ClipList(f"every clip {which}", ids, ids_sha256(ids))


def _check_annotations(dataset: str, files: ClipFiles) -> None:
    """Refuse a benchmark of which it is not known where the objects are."""
    if not files.ids_known:
        raise ValueError(
            f"{dataset}: the HDF5 files hold no clip ids, and boxes belong to ids. Name the list "
            "whose line i is row i with --clip-list (for VGG-SS as SSPL's authors prepared it: "
            "sspl_vgg_ss_4692)."
        )
    if files.annotated is None:
        raise FileNotFoundError(
            f"{dataset}: no boxes, expected {files.expected['annotation']}"
            + (", or --annotations FILE with their JSON." if DATA_SETS[dataset].read_json else ".")
        )


def _complete_ids(files: ClipFiles) -> set[str]:
    """Return the ids of clips with a frame, a sound, and where there are any, boxes or a mask."""
    complete = files.frames.keys() & files.sounds.keys()
    if files.annotated is not None:
        complete &= files.annotated
    return {clip_id for clip_id in complete if _is_there(files.frames[clip_id])}


def _is_there(source: Source) -> bool:
    # Rows of HDF5 files were counted, and files in a folder listed; a frame may lie deeper.
    return source.is_file() if isinstance(source, Path) else True


def _build_clip(row: DataSet, files: ClipFiles, clip_id: str, frame_id: str, sound_id: str) -> Clip | str:
    """Return the clip, or what is wrong with it."""
    if files.annotated is not None and clip_id not in files.annotated:
        return f"no annotation (expected {files.expected['annotation'].replace('<id>', clip_id)})"
    for kind, sources, i in (("frame", files.frames, frame_id), ("audio", files.sounds, sound_id)):
        if i not in sources or not _is_there(sources[i]):
            return f"no {kind} (expected {files.expected[kind].replace('<id>', i)})"
        source = sources[i]
        if isinstance(source, Path) and source.stat().st_size == 0:
            return f"{source} is empty"
    try:
        boxes = None if files.boxes is None else files.boxes[clip_id]()
    except BrokenFileError as error:
        return str(error)
    if row.negatives and frame_id == clip_id and boxes is not None and not len(boxes):
        return "its annotation holds no box, and only negatives have none"
    return Clip(
        clip_id,
        files.frames[frame_id],
        files.sounds[sound_id],
        boxes,
        row.annotators_needed,
        None if files.masks is None else files.masks[clip_id],
        row.pair_key and row.pair_key(clip_id),
    )


# ------------------------------------------------------------------------------------ boxes alone


def read_ground_truth(benchmark: str, annotations: Path, clip_list: str | None) -> ClipSet:
    """Read a benchmark's boxes, without its frames and sounds.

    Args:
        benchmark: a key of DATA_SETS with boxes.
        annotations: JSON of VGG-SS, IS3 or VPO, or a folder of <id>.xml.
        clip_list: file of clip ids or name of an official list; None: every clip annotated.

    Returns:
        clips without files, in the list's order; without a list, by id. Their Dataset can give the
        content "truth" alone.

    Raises:
        FileNotFoundError: nothing lies there, or listed clips have no boxes.
        ValueError: the benchmark's boxes are not of this form, or a file is broken.
    """
    row = DATA_SETS[benchmark]
    if row.negatives is not None:
        raise ValueError(
            f"{benchmark} has clips with nothing to find, which no blind map can leave out; its "
            "positives alone are those of the benchmark that it extends."
        )
    if row.has_masks:
        raise ValueError(
            f"{benchmark} has masks, no boxes; `test.py localisation` scores blind predictors and "
            "the ceiling beside the model."
        )
    if annotations.is_dir() and row.read_xml is not None:
        boxes = _xml_readers(row, annotations) or {}
    elif row.read_json is not None:
        items = _read_json(row, annotations)
        boxes = _as_readers({i: item.bounding_boxes for i, item in items.items()}) or {}
    else:
        raise ValueError(
            f"--annotations of {benchmark} must be a folder of XML files <id>.xml; {annotations} is none."
        )
    listed = _every_clip("annotated", boxes) if clip_list is None else find_list(clip_list)
    missing = [clip_id for clip_id in listed.clip_ids if clip_id not in boxes]
    if missing or not listed.clip_ids:
        raise FileNotFoundError(
            f"{annotations}: {len(missing)} of {len(listed.clip_ids)} clips of {listed.name} have no boxes"
            + (f", first: {', '.join(missing[:5])}" if missing else "")
            + ". Name the list that belongs to these annotations (--clip-list)."
        )
    clips = [
        Clip(i, Path(), Path(), boxes[i](), row.annotators_needed, None, row.pair_key and row.pair_key(i))
        for i in listed.clip_ids
    ]
    cut = name_cut(benchmark, row.title, listed.clip_ids)
    return ClipSet(benchmark, tuple(clips), listed.name, listed.sha256, len(clips), cut=cut)
