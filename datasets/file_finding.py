"""Lists the files of a data set on disk, in whichever way it is there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.audio import AUDIO_SUFFIXES
from datasets.clip_files import ClipFiles, files_by_id
from datasets.frames import FRAME_SUFFIXES
from datasets.hdf5 import authors_files, packed_files, read_authors, read_packed
from datasets.layouts import LAYOUTS, SSPL_TEST_FOLDER, Folders, Layout
from datasets.video_frames import list_video_frames


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


def find_files(
    dataset: str, data_root: Path, *, listed: Sequence[str] | None = None, annotations: Path | None = None
) -> ClipFiles:
    """Lists the files of a data set once: folders, our HDF5 files, or the SSPL authors'.

    Args:
        dataset: a key of LAYOUTS.
        data_root: the user's folder, or one HDF5 file of ours.
        listed: clip ids that the user named; the ids of the authors' HDF5 files, which hold none.
        annotations: a file that names the frames with their sounds, instead of that in its place.

    Returns:
        the files by clip id.

    Raises:
        FileNotFoundError: the root or the layout's folders are not there, or a file of a set is
            missing.
        ValueError: the data set is there in several ways, HDF5 files are broken or do not go
            together, or cannot hold such a set.
    """
    layout = LAYOUTS[dataset]
    place = _find_place(layout, data_root)
    if annotations is not None and layout.read_frames and not place.folders:
        raise ValueError(f"{place} holds boxes of its own; leave --annotations out.")
    if place.folders:
        return _list_folders(layout, place.root, place.folders, annotations)
    if layout.why_not_packed:
        raise ValueError(f"{layout.title}: {place} is there, but {layout.why_not_packed}.")
    if place.packed:
        stored = read_packed(place.packed, dataset)
    else:
        assert layout.split is not None, "only then are the authors' files looked for"
        stored = read_authors(place.authors, layout.split, listed)
    row = f"a row for <id> in {place}"
    xml = str(place.root / f"{layout.folders[0].boxes}" / "<id>.xml")
    return ClipFiles(
        stored.frames,
        stored.sounds,
        _annotations(place.root, layout.folders),
        {"frame": row, "audio": row, "annotation": xml if stored.boxes is None else row},
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
            if layout.split and (files := authors_files(folder, layout.split))
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
    found = "it does not exist" if there is None else f"it holds: {', '.join(there[:10]) or 'nothing'}"
    first = layout.folders[0]
    packed = "" if layout.why_not_packed else ", no clips.h5"
    authors = f" and no h5py_{layout.split}_frames.h5" if layout.split else ""
    raise FileNotFoundError(
        f"{layout.title}: no folders {first.frames}/ and {'|'.join(first.sounds)}/{packed}{authors}"
        f" in {data_root} or its sub-folder {layout.roots[-1]}/ ({found}). See docs/data.md for "
        "the layouts."
    )


def _is_there(root: Path, folders: Folders) -> bool:
    return (root / folders.frames).is_dir() and any((root / f).is_dir() for f in folders.sounds)


def _list_folders(layout: Layout, root: Path, folders: Folders, annotations: Path | None) -> ClipFiles:
    if folders.videos is not None:
        return list_video_frames(root, folders.frames, folders.sounds[0], folders.videos)
    audio_folders = [root / name for name in folders.sounds if (root / name).is_dir()]
    frame_pattern = f"<id>/{folders.frame_name}" if folders.frame_name else "<id>.jpg"
    if folders.frame_name:
        frames = {entry.name: entry / folders.frame_name for entry in (root / folders.frames).iterdir()}
    else:
        frames = files_by_id([root / folders.frames], FRAME_SUFFIXES)
    expected = {
        "frame": str(root / folders.frames / frame_pattern),
        "audio": str(audio_folders[0] / f"<id>.{{{','.join(s[1:] for s in AUDIO_SUFFIXES)}}}"),
    }
    if folders.boxes:
        expected["annotation"] = str(root / folders.boxes / "<id>.xml")
    sounds = files_by_id(audio_folders, AUDIO_SUFFIXES)
    if layout.read_frames is not None:
        path = annotations or root / f"{layout.boxes_json}"
        if not path.is_file():
            raise FileNotFoundError(
                f"{layout.title}: no annotations at {path}, which name the frames with their "
                "sounds. Put the authors' file there, or name it with --annotations."
            )
        items = layout.read_frames(path)
        return ClipFiles(
            {i: frames[item.frame_name] for i, item in items.items() if item.frame_name in frames},
            {i: sounds[item.sound_name] for i, item in items.items() if item.sound_name in sounds},
            None,
            expected | {"annotation": f"{path} with an entry <id>"},
            boxes={i: item.bounding_boxes for i, item in items.items()},
        )
    return ClipFiles(
        frames, sounds, _annotations(root, (folders,)), expected, boxes_json=_boxes_json(layout, root)
    )


def _annotations(root: Path, folders: Iterable[Folders]) -> dict[str, Path] | None:
    """Clip id -> XML file, from the first folder of boxes that holds any."""
    for names in folders:
        if names.boxes and (root / names.boxes).is_dir():
            files = files_by_id([root / names.boxes], (".xml",))
            if files:
                return files
    return None


def _boxes_json(layout: Layout, root: Path) -> Path | None:
    path = root / layout.boxes_json if layout.boxes_json else None
    return path if path and path.is_file() else None
