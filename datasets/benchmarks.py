"""Data sets: a row each says all that is special about it; from its name and a folder to clips.

To add a data set, add a row to DATA_SETS: the choices of the programs' options follow from it. To add a
layout of its files, add patterns to its row.
"""

import csv
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from datasets.annotations import (
    Boxes,
    read_box_csv,
    read_flickr_xml,
    read_mask,
    read_pixel_json,
    read_vgg_ss_json,
    read_vgg_ss_xml,
)
from datasets.audio import AUDIO_SUFFIXES
from datasets.clips import Clip
from datasets.frames import FRAME_SUFFIXES
from datasets.hdf5 import PACKED_NAME, Source, Split, StoredClips, read_authors, read_packed
from datasets.lists import JOIN, ClipList, clip_id_in, find_list, ids_sha256, name_cut
from utils.files import SYSTEM_FOLDERS, BrokenFileError, decoding

logger = logging.getLogger(__name__)

# ------------------------------------------------------------------------------- one row a data set


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What is special about a data set.

    Files are found by patterns, of which the first that has a clip counts: <id> is the clip, * any folder,
    .jpg any picture and .wav any sound.
    """

    title: str
    roots: tuple[str, ...]  # the root itself and sub-folders of it in which the data may lie
    frames: tuple[str, ...]
    sounds: tuple[str, ...]
    annotations: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)
    """pattern -> reader; without <id> it is one file of all clips, which --annotations may name too"""
    split: Split | None = None  # which of the SSPL authors' HDF5 files hold it; None: they have no file of it
    annotators_needed: int = 1  # boxes that make a full vote, see consensus_map
    negatives: str | None = None
    """official list of frames with sounds that are not seen in them, which are added"""
    pair_key: Callable[[str], str] | None = None
    """clip id -> what clips of one scene with different sounds share"""
    ids_tell_class: bool = False  # what follows the pair key is the class of the sound
    sound_of: Callable[[str], str] = str  # clip id -> name of its sound, where several clips share one
    sound_lists: str | None = None  # CSVs of VPO's authors, which name the VGGSound clip that is heard
    ids_of_training: bool = True  # ids are those of training lists, so that leaks can be looked for
    clip_seconds: float = 10.0  # how long its sounds are
    metrics: Literal["detection", "pairs", "masks"] | None = None  # further scores beside consensus IoU
    headline: str | None = None
    """protocol under which its numbers are published, scored first; None: ssl_tie, then sspl"""
    test_set: str = ""  # of a training set, its benchmark
    complete: bool = False  # without a list, every clip must have all its files
    numbers_published: bool = True
    """False: published numbers are of maps that no protocol makes, such as a network's masks"""

    @property
    def has_masks(self) -> bool:
        """The object is outlined pixel by pixel, not boxed."""
        return read_mask in self.annotations.values()

    @property
    def why_not_packed(self) -> str | None:
        """Why HDF5 files do not hold such sets; None: they do."""
        if self.has_masks or self.negatives:
            return "masks, and negatives that borrow frames and sounds, are not stored in HDF5: use folders"
        return None


SSPL_DATA = "5k_labeled/Data"  # Where SSPL's authors keep what a benchmark consists of
SSPL_BOXES, VGG_SS_JSON = "5k_labeled/Annotations", "vggss_test_5158.json"
IS3_BOXES = ("IS3_annotation.json", "IS3_annotations.json", "synthetic3240_bbox.json")
SOUNDNET_TREES = ("videos" + 3 * "/*", "videos2" + 8 * "/*")
"""Folders of SoundNet's release, a level for each of the last digits of a video's number."""


def scene_of(clip_id: str) -> str:
    """Return a name without its last _<token>: the scene in IS3 and VPO, the video in AVSBench."""
    return clip_id.rpartition("_")[0] or clip_id


DATA_SETS: dict[str, DataSet] = {
    "vggsound": DataSet(
        title="VGGSound training clips",
        roots=(".", "VGGSound"),
        frames=("total_video_frames/<id>/125.jpg",),
        sounds=("total_video_3s_audio/<id>.wav",),
        split="train",
        test_set="vgg_ss",
    ),
    "flickr": DataSet(
        title="Flickr-SoundNet training clips",
        roots=(".", "Flickr"),
        frames=("frames/<id>/00000003.jpg", *(f"frames/{t}/<id>.mp4/00000003.jpg" for t in SOUNDNET_TREES)),
        sounds=(
            *("mp3/<id>.mp3", "wav/<id>.wav", "audio/<id>.wav"),
            *(f"mp3/{tree}/<id>.mp4.mp3" for tree in SOUNDNET_TREES),
        ),
        split="train",
        test_set="flickr_soundnet",
    ),
    "vgg_ss": DataSet(
        title="VGG-SS",
        roots=(".", "VGG-Sound", "VGGSound_test"),
        frames=("frame/<id>.jpg",),
        sounds=("audio/<id>.wav",),
        annotations={"anno/<id>.xml": read_vgg_ss_xml, f"{SSPL_BOXES}/{VGG_SS_JSON}": read_vgg_ss_json},
        split="test",
    ),
    "flickr_soundnet": DataSet(
        title="Flickr-SoundNet",
        roots=(".", "SoundNet_Flickr", "Flickr_test"),
        frames=("frame/<id>.jpg", f"{SSPL_DATA}/frames/<id>.jpg", "Data/*/<id>.jpg"),
        sounds=(
            *("audio/<id>.wav", "wav/<id>.wav", "mp3/<id>.mp3"),
            *(f"{SSPL_DATA}/audio/<id>.wav", "Data/*/<id>.wav"),
        ),
        annotations={
            "anno/<id>.xml": read_flickr_xml,
            f"{SSPL_BOXES}/<id>.xml": read_flickr_xml,
            "Annotations/<id>.xml": read_flickr_xml,
        },
        split="test",
        annotators_needed=2,
    ),
    "folder": DataSet(
        title="own clips",
        roots=(".",),
        frames=("./<id>.jpg",),
        sounds=("./<id>.wav",),
        annotations={"boxes.csv": read_box_csv},
        ids_of_training=False,
        complete=True,
    ),
    "is3": DataSet(
        title="IS3",
        roots=(".", "IS3"),
        frames=("images/<id>.jpg", "visual_frames/<id>.jpg"),
        sounds=("audio_wav/<id>.wav", "audio_waw/<id>.wav"),
        annotations=dict.fromkeys(IS3_BOXES, read_pixel_json),
        pair_key=scene_of,
        ids_tell_class=True,
        ids_of_training=False,
        metrics="pairs",
        headline="ssl_align_adaptive",
    ),
    "vpo_ss": DataSet(
        title="VPO-SS",
        roots=(".", "VPO-SS"),
        frames=("visual_frames/<id>.jpg", "data/*/<id>.jpg"),
        sounds=("audio_wav/<id>.wav", "audio/<id>.wav"),
        sound_lists="vpo_ss*.csv",
        annotations={"vpo_ss_bbox.json": read_pixel_json},
        pair_key=scene_of,
        ids_of_training=False,
    ),
    "avsbench_s4": DataSet(
        title="AVSBench S4",
        roots=(".", "Single-source/s4_data", "s4_data"),
        frames=("visual_frames/test/*/*/<id>.png",),
        sounds=("audio_wav/test/*/<id>.wav",),
        annotations={"gt_masks/test/*/*/<id>.png": read_mask},
        ids_of_training=False,
        clip_seconds=5.0,
        sound_of=scene_of,
        metrics="masks",
        headline="ssl_align",
        numbers_published=False,
    ),
}
"""Every data set, by name."""

DATA_SETS["is3_masks"] = replace(
    DATA_SETS["is3"],
    title="IS3 with masks",
    annotations={"gt_segmentation/<id>.jpg": read_mask},
    numbers_published=False,
)
DATA_SETS["stamps"] = replace(DATA_SETS["vgg_ss"], title="stamps", roots=(".", "VGGSound_test"))
DATA_SETS["vpo_ms"] = replace(
    DATA_SETS["vpo_ss"],
    title="VPO-MS",
    roots=(".", "VPO-MS"),
    frames=("visual_frames/<id>.jpg", "data/<id>.jpg"),
    sound_lists="vpo_ms*.csv",
    metrics="pairs",
    headline="ssl_align_adaptive",
    annotations={"vpo_ms_bbox.json": read_pixel_json},
)
DATA_SETS["avsbench_ms3"] = replace(
    DATA_SETS["avsbench_s4"],
    title="AVSBench MS3",
    roots=(".", "Multi-sources/ms3_data", "ms3_data"),
    frames=("visual_frames/*/<id>.png",),
    sounds=("audio_wav/test/<id>.wav",),
    annotations={"gt_masks/test/*/<id>.png": read_mask},
)
for _name, _title, _negatives in (
    ("vgg_ss", "Extended VGG-SS", "slavc_vgg_ss_negatives"),
    ("flickr_soundnet", "Extended Flickr-SoundNet", "slavc_flickr_negatives"),
):
    DATA_SETS[f"{_name}_extended"] = replace(
        DATA_SETS[_name], title=_title, negatives=_negatives, metrics="detection", headline="slavc"
    )

BENCHMARKS = tuple(name for name, row in DATA_SETS.items() if row.annotations)
"""Data sets in which it is known what makes the sound."""
TRAINING_SETS = tuple(name for name in DATA_SETS if name not in BENCHMARKS)
PLAIN_BENCHMARKS = tuple(name for name in BENCHMARKS if not DATA_SETS[name].negatives)
"""Those in which every sound comes from something in the picture."""
BOX_BENCHMARKS = tuple(name for name in PLAIN_BENCHMARKS if not DATA_SETS[name].has_masks)


def find_test_set(train_set: str, data_root: Path) -> tuple[str, Path | None]:
    """Return the benchmark of a training set, and the same root where it holds that too, else None."""
    benchmark = "stamps" if (data_root / "stamps.json").is_file() else DATA_SETS[train_set].test_set
    try:
        find_files(benchmark, data_root, None, None)
    except (OSError, ValueError):
        return benchmark, None
    return benchmark, data_root


# ------------------------------------------------------------------------------------- finding files

KINDS = ("frame", "audio", "annotation")
Annotation = Path | Boxes | Callable[[], Boxes]
"""A clip's mask, its boxes, or what reads these and may raise BrokenFileError."""
Files = Mapping[str, Mapping[str, Any]]
"""Kind -> name of a frame, name of a sound, or clip id -> Source or Annotation, which not all have."""


def find_files(
    dataset: str, data_root: Path, listed: Sequence[str] | None, annotations: Path | None
) -> tuple[Files, dict[str, str], bool]:
    """List a data set's files once; return also where they are expected, and whether their ids are known."""
    row = DATA_SETS[dataset]
    place, root, read_stored = _find_place(dataset, data_root, listed)
    if read_stored is None:
        ids_known, patterns = True, (row.frames, row.sounds, row.annotations)
        files: dict[str, Any] = {"frame": list_files(root, row.frames), "audio": list_files(root, row.sounds)}
        for table in sorted(root.glob(row.sound_lists)) if row.sound_lists else ():
            files["audio"] |= _sounds_of_vpo(table, files["audio"])
        places = [f"{' or '.join(of_kind)} in {root}" for of_kind in patterns]
        expected = dict(zip(KINDS, places, strict=True))
    elif row.why_not_packed:
        raise ValueError(f"{row.title}: {place} is there, but {row.why_not_packed}.")
    else:
        stored = read_stored()
        files, ids_known = {"frame": stored.frames, "audio": stored.sounds}, stored.ids_known
        files |= {} if stored.boxes is None else {"annotation": stored.boxes}
        expected = dict.fromkeys(KINDS, f"<id> in {place}")
        if row.annotations and not ids_known:
            raise ValueError(
                f"{dataset}: the HDF5 files hold no clip ids, and boxes belong to ids. Name the list whose "
                "line i is row i with --clip-list (SSPL's authors' VGG-SS: sspl_vgg_ss_4692)."
            )
    if annotations is not None or (row.annotations and "annotation" not in files):
        files["annotation"] = _find_annotations(dataset, root, annotations)
    if annotations is not None:
        expected["annotation"] = f"<id> in {annotations}"
    return files, expected, ids_known


def _find_place(
    dataset: str, data_root: Path, listed: Sequence[str] | None
) -> tuple[str, Path, Callable[[], StoredClips] | None]:
    """Return the one way in which a data set is there: in words, its root, and what reads HDF5 files."""
    row = DATA_SETS[dataset]
    ways: dict[str, tuple[str, Path, Callable[[], StoredClips] | None]] = {}
    for root in [data_root / name for name in row.roots]:
        kinds = [[root / re.split("/[*<]", name)[0] for name in kind] for kind in (row.frames, row.sounds)]
        if all(any(map(Path.is_dir, folders)) for folders in kinds):
            ways.setdefault("folders", (f"{kinds[0][0]}/", root, None))
        packed = data_root if data_root.is_file() else root / PACKED_NAME
        if packed.is_file():
            ways.setdefault("packed", (str(packed), packed.parent, partial(read_packed, packed, dataset)))
        for folder in (root, root / SSPL_DATA):
            if row.split and (files := sorted(folder.glob(f"h5py_{row.split}_*.h5"))):
                read = partial(read_authors, files, row.split, listed)
                ways.setdefault("authors", (f"{files[0]} and so on", root, read))
    if len(ways) > 1:
        raise ValueError(
            f"{row.title}: {data_root} holds them in several ways: "
            f"{'; '.join(words for words, *_ in ways.values())}. Expected one; name a folder with that alone."
        )
    for way in ways.values():
        return way
    content = "it does not exist"
    if data_root.is_dir():
        names = sorted(path.name for path in data_root.iterdir())
        content = f"it holds: {', '.join(names[:10]) or 'nothing'}"
    raise FileNotFoundError(
        f"{row.title}: neither {row.frames[0]} and {row.sounds[0]} nor HDF5 files in {data_root} or its "
        f"sub-folder {row.roots[-1]}/ ({content}). See docs/data.md for the layouts."
    )


def list_files(root: Path, patterns: Collection[str]) -> dict[str, Path]:
    """List files by clip id, see DataSet; of those of one clip the first pattern and then suffix wins."""
    found: dict[str, Path] = {}
    others = {root / re.split("/[*<]", pattern)[0] for pattern in patterns}  # are no clips of each other
    for pattern in patterns:
        parent, name = Path(pattern).parent, Path(pattern).name
        suffixes = next(kind for kind in (FRAME_SUFFIXES, AUDIO_SUFFIXES, (".xml",)) if name[-4:] in kind)
        is_listed = "<id>" in name  # a fixed name in a folder for each clip is looked for with the clip
        wanted = re.sub(r"<id>|\*", "[!.]*", str(parent / "*" if is_listed else parent))
        files: dict[tuple[int, str], Path] = {}  # (rank of the suffix, id) -> file
        for path in root.glob(wanted):
            suffix = path.suffix.lower()
            if is_listed:
                is_clip = suffix in suffixes
            else:
                is_clip = path not in others and ("." not in path.name or path.is_dir())
            if not is_clip or path.name in SYSTEM_FOLDERS:
                continue
            key = suffixes.index(suffix) if is_listed else 0, clip_id_in(path.name)
            if key in files:
                raise ValueError(f"{files[key]} and {path} have the same name; expected each once.")
            files[key] = path if is_listed else path / name
        for (_, clip_id), path in sorted(files.items()):
            found.setdefault(clip_id, path)
    return found


def _sounds_of_vpo(table: Path, sounds: Mapping[str, Path]) -> dict[str, Path]:
    """Find what VPO's clips, <COCO image>_<annotation>, sound of: the VGGSound clips that a CSV names."""
    found = {}
    form = "expected columns img_Id and ann_Ids of numbers, and vgg_file of <YouTube id>_<6 digits>"
    with decoding(table, form), table.open(encoding="utf-8-sig", newline="") as file:
        for line in csv.DictReader(file):
            objects = re.findall(r"\d+", line["ann_Ids"])
            heard = re.findall(r"[\w-]{11}_\d{6}", line["vgg_file"])
            heard = heard * len(objects) if len(heard) == 1 else heard
            for one, clip_id in zip(objects, heard, strict=True):
                if clip_id in sounds:
                    found[f"{int(line['img_Id']):012d}_{int(one)}"] = sounds[clip_id]
    return found


def _find_annotations(dataset: str, root: Path, given: Path | None) -> Mapping[str, Annotation]:
    """Read the file or list the folder `given`, or else the first place in `root`, of annotations."""
    forms = DATA_SETS[dataset].annotations
    places = [(root, pattern, read) for pattern, read in forms.items()]
    names = " or ".join(str(root / pattern) for pattern in forms) if given is None else given
    if given is not None:
        folder, name = (given, "<id>.xml") if given.is_dir() else (given.parent, given.name)
        suffixes = ".xml" if given.is_dir() else (".json", ".csv")
        places = [(folder, name, read) for pattern, read in forms.items() if pattern.endswith(suffixes)][:1]
        if given.exists() and not places:
            words = " or ".join(forms) or "none"
            raise ValueError(f"--annotations {given} does not fit {dataset}, which has {words}.")
    for folder, pattern, read in places:
        if "<id>" not in pattern and (folder / pattern).is_file():
            return read(folder / pattern)
        if "<id>" in pattern and (files := list_files(folder, [pattern])):
            return files if read is read_mask else {i: partial(read, path) for i, path in files.items()}
    fetch = "; `bash scripts/get_splits.sh lvs_vgg_ss_boxes` fetches them" * dataset.startswith("vgg_ss")
    raise FileNotFoundError(
        f"{dataset}: No annotations at {names}. Name them with --annotations (a path from where you are), or "
        f"put them there, see docs/data.md{fetch}."
    )


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

    @property
    def clip_ids(self) -> list[str]:
        """Of the clips that are there."""
        return [clip.clip_id for clip in self.clips]

    @property
    def known_ids(self) -> list[str] | None:
        """Of the clips that are there; None where the ids are only row numbers."""
        return self.clip_ids if self.ids_known else None

    @property
    def source_ids(self) -> list[str] | None:
        """Clips whose frames or sounds these are, to look for leaks; None: ids are not those of training."""
        row = DATA_SETS[self.dataset]
        names = dict.fromkeys(name for clip_id in self.clip_ids for name in _names_of(row, clip_id))
        return list(names) if row.ids_of_training and self.ids_known else None

    def list_record(self) -> dict[str, Any]:
        """Return the list and how much of it is missing, as plain values."""
        record = {"name": self.list_name, "sha256": self.list_sha256}
        return {**record, "num_listed": self.num_listed, "num_missing": len(self.missing)}

    def identity(self) -> dict[str, Any]:
        """Return which clips these are, as plain values."""
        names = {"benchmark": self.dataset, "list_name": self.list_name, "list_sha256": self.list_sha256}
        return {**names, "clips": self.clip_ids}


def build_clips(
    dataset: str,
    data_root: Path,
    *,
    clip_list: str | None,
    annotations: Path | None = None,
    negatives: str | None = None,
    allow_missing: bool = False,
    keep_incomplete: bool = False,
) -> ClipSet:
    """Find the files of a data set's clips, and read their boxes; negatives follow, with boxes (0, 4).

    Args:
        dataset: a key of DATA_SETS.
        data_root: the user's folder, see docs/data.md, or one packed HDF5 file.
        clip_list: file of clip ids or name of an official list; None: every complete clip.
        annotations: JSON of all boxes, or folder of <id>.xml, instead of what lies in its place.
        negatives: of the extended benchmarks, a file or name of an official list; None: SLAVC's.
        allow_missing: leave clips out whose files are missing, instead of refusing.
        keep_incomplete: without a list, clips that lack a file count as listed.

    Raises:
        ValueError: annotations, negatives or a list do not fit the data set; it is there in several ways.
        FileNotFoundError: folders, or files of listed clips, are missing.
    """
    row = DATA_SETS[dataset]
    pairs = _find_negatives(dataset, clip_list, negatives)
    listed = None if clip_list is None else find_list(clip_list)
    listed_ids = None if listed is None else listed.clip_ids
    files, expected, ids_known = find_files(dataset, data_root, listed_ids, annotations)
    # Beside masks lie frames of training too, and beside VPO's pictures all sounds of VGGSound.
    of_kinds = ("annotation",) if row.has_masks or row.sound_lists else KINDS
    found = {clip_id for kind in of_kinds for clip_id in files.get(kind, ())}
    ids = (*(sorted(found) if listed is None else listed.clip_ids), *pairs.clip_ids)

    def build(clip_id: str) -> Clip | OSError | ValueError:
        try:
            return _build_clip(row, files, expected, clip_id)
        except (FileNotFoundError, ValueError) as error:
            return error

    with ThreadPool(16) as pool:  # on network drives it is the disk that takes the time
        built = tqdm(pool.imap(build, ids, 32), f"{dataset}: finding files", len(ids), leave=False)
        results = dict(zip(ids, built, strict=True))
    if listed is None:
        if not keep_incomplete and not row.complete:
            results = {i: clip for i, clip in results.items() if not isinstance(clip, FileNotFoundError)}
        listed = ClipList("every clip found", tuple(results), ids_sha256(results))
    clips = tuple(clip for clip in results.values() if isinstance(clip, Clip))
    missing = tuple(f"{i}: {error}" for i, error in results.items() if not isinstance(error, Clip))
    message = f"{dataset}: {len(missing)} of {len(results)} clips are missing or broken"
    message += f", first: {'; '.join(missing[:5])}." if missing else "."
    if not clips and not (keep_incomplete and results):
        raise FileNotFoundError(f"{message} None is left. Expected: {', '.join(expected.values())}.")
    if missing and not allow_missing:
        raise FileNotFoundError(f"{message} Mend the data, or --allow-missing uses only what is there.")
    if missing:
        logger.warning("%s They are left out.", message)
    cut = name_cut(dataset, row.title, listed.clip_ids, pairs.clip_ids, len(missing))
    if pairs.clip_ids:
        sha256 = hashlib.sha256(f"{listed.sha256} {pairs.sha256}".encode()).hexdigest()
        listed = ClipList(f"{listed.name} and {pairs.name}", (), sha256)
    return ClipSet(dataset, clips, listed.name, listed.sha256, len(results), missing, ids_known, cut)


def _find_negatives(dataset: str, clip_list: str | None, negatives: str | None) -> ClipList:
    """Return the negatives of an extended benchmark; an empty list otherwise."""
    official = DATA_SETS[dataset].negatives
    if official is None and negatives is not None:
        extended = " and ".join(name for name in BENCHMARKS if DATA_SETS[name].negatives)
        raise ValueError(f"--negatives goes with {extended}; {dataset} has none. Leave it out.")
    if official is not None and clip_list is None:
        raise ValueError(
            f"{dataset}: the positives must be named with --clip-list, the negatives follow from "
            "--negatives; which clips in a folder are which cannot be seen there."
        )
    return find_list(negatives or official, pairs=True) if official else ClipList("", (), "")


def _names_of(row: DataSet, clip_id: str) -> tuple[str, str]:
    """Return the names of a clip's frame and sound."""
    frame, _, sound = clip_id.partition(JOIN) if row.negatives else (clip_id, "", row.sound_of(clip_id))
    return frame, sound or frame


def _build_clip(row: DataSet, files: Files, expected: Mapping[str, str], clip_id: str) -> Clip:
    """Return the clip; FileNotFoundError: it lacks a file, ValueError: a file is empty or broken."""
    frame, sound = _names_of(row, clip_id)
    names, sources = {"frame": frame, "audio": sound, "annotation": clip_id}, []
    is_negative = row.negatives and clip_id != frame
    for kind, found in files.items():
        source = found.get(names[kind])
        if source is None and kind == "frame" and row.pair_key:  # VPO's own pictures are called by the scene
            source = found.get(row.pair_key(frame))
        if kind == "annotation" and is_negative:
            source = np.zeros((0, 4))
        if source is None or (isinstance(source, Path) and not source.is_file()):
            place = expected[kind].replace("<id>", names[kind])
            raise FileNotFoundError(f"no {kind} of {names[kind]}, expected {place}")
        sources.append(source)
    for source in sources:  # a clip that lacks a file is incomplete, whatever the others hold
        if isinstance(source, Path) and source.stat().st_size == 0:
            raise BrokenFileError(source, "it is empty")
    clip = _make_clip(row, clip_id, *sources)
    if row.negatives and not is_negative and clip.bounding_boxes is not None and not len(clip.bounding_boxes):
        raise ValueError("its annotation holds no box, and only negatives have none")
    return clip


def _make_clip(
    row: DataSet, clip_id: str, frame: Source, sound: Source, annotation: Annotation | None = None
) -> Clip:
    if callable(annotation):
        annotation = annotation()
    boxes, mask = (None, annotation) if isinstance(annotation, Path) else (annotation, None)
    pair_key = row.pair_key and row.pair_key(clip_id)
    return Clip(clip_id, frame, sound, boxes, row.annotators_needed, mask, pair_key)


def read_ground_truth(benchmark: str, annotations: Path, clip_list: str | None) -> ClipSet:
    """Read the boxes of one of BOX_BENCHMARKS without frames and sounds; arguments and errors as build_clips.

    The Dataset of these clips can give the content "truth" alone.
    """
    row, boxes = DATA_SETS[benchmark], _find_annotations(benchmark, annotations, annotations)
    ids = tuple(sorted(boxes))
    listed = find_list(clip_list) if clip_list else ClipList("every clip annotated", ids, ids_sha256(ids))
    missing = [clip_id for clip_id in listed.clip_ids if clip_id not in boxes]
    if missing or not boxes:
        raise FileNotFoundError(
            f"{annotations}: {len(missing)} of {len(listed.clip_ids)} clips of {listed.name} have no boxes, "
            f"first: {', '.join(missing[:5])}. Name the list that belongs to these annotations (--clip-list)."
        )
    clips = tuple(_make_clip(row, i, Path(), Path(), boxes[i]) for i in listed.clip_ids)
    cut = name_cut(benchmark, row.title, listed.clip_ids)
    return ClipSet(benchmark, clips, listed.name, listed.sha256, len(clips), cut=cut)
