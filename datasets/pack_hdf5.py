"""Command line: packs the clips of a data set into one HDF5 file, or into several.

python -m datasets.pack_hdf5 vggsound data/VGGSound packed/clips.h5 --clip-list ssl_tie_vggsound_10k

Frames are stored as the bytes of their files and sounds as 16-bit PCM, see datasets/hdf5.py. Called
again after an interruption, it goes on where it was.
"""

import argparse
import hashlib
import logging
import os
import signal
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
from tqdm import tqdm

from datasets.clip_sets import ClipSet, build_clips
from datasets.clips import Clip
from datasets.hdf5 import close_file, open_anew
from datasets.hdf5_sets import PACKED_NAME, check_packed, stored_clip_ids
from datasets.layouts import LAYOUTS
from datasets.packed_writer import PackedClip, PackedWriter
from datasets.packing import JPEG_QUALITY, PackConfig, Workers, pack_task, verify_task

logger = logging.getLogger(__name__)

AUTHORS_BYTES = 256 * 256 * 3 * 4 + 48_000 * 4 + 3 * 96 * 64 * 4
"""What one clip takes in the SSPL authors' files: frame, 3 s of sound and spectrogram, float32."""

# --------------------------------------------------------------------------------------- files


class _Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    def stop(number: int, _: FrameType | None) -> None:
        raise _Stopped(number)

    previous = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Part:
    """One file to write."""

    path: Path
    clips: Sequence[Clip]
    settings: dict[str, Any]
    """all that its content follows from"""


def _plan(output: Path, clip_set: ClipSet, config: PackConfig, clips_per_file: int) -> list[_Part]:
    clips = clip_set.clips
    parts = [clips[i : i + clips_per_file] for i in range(0, len(clips), clips_per_file)]
    boxes = [clip.bounding_boxes.tobytes() for clip in clips if clip.bounding_boxes is not None]
    of_all = {
        "dataset": clip_set.dataset,
        "list_name": clip_set.list_name,
        "clips_sha256": hashlib.sha256("\n".join(clip_set.clip_ids).encode()).hexdigest(),
        "boxes_crc32": zlib.crc32(b"".join(boxes)) if boxes else None,
        "ids_known": clip_set.ids_known,
        "sample_rate": config.sample_rate,
        "seconds": config.seconds,
        "frame_size": config.frame_size,
        "num_parts": len(parts),
    }
    return [
        _Part(
            output if len(parts) == 1 else output.with_name(f"{output.stem}_{number:04d}{output.suffix}"),
            part,
            of_all | {"part": number},
        )
        for number, part in enumerate(parts, start=1)
    ]


def _is_finished(part: _Part) -> bool:
    """Whether an earlier call wrote this part of several.

    Raises:
        FileExistsError: another file has its name.
    """
    if not part.path.exists():
        return False
    attributes = open_anew(part.path).file.attrs
    wanted = {name: value for name, value in part.settings.items() if value is not None}
    if any(attributes.get(name) != value for name, value in wanted.items()):
        raise FileExistsError(
            f"{part.path} is there already, packed with other settings. Name another file, or remove it."
        )
    return True


def _write_part(part: _Part, config: PackConfig, workers: Workers, *, allow_missing: bool) -> None:
    with PackedWriter(part.path, part.settings) as writer:
        there = set(writer.clip_ids)
        if there:
            logger.info("Going on with %d of %d clips of %s", len(there), len(part.clips), part.path)
        remaining = [clip for clip in part.clips if clip.clip_id not in there]
        bar = tqdm(desc=part.path.name, initial=len(there), total=len(part.clips), unit="clip")
        with bar:
            for clip in workers.map(pack_task, remaining, config):
                if isinstance(clip, PackedClip):
                    writer.append(clip)
                elif allow_missing:
                    logger.warning("%s is left out: %s", clip.clip_id, clip.reason)
                else:
                    raise ValueError(
                        f"{clip.clip_id}: {clip.reason}. Mend the data and call again, or pass "
                        "--allow-missing to leave out what cannot be decoded."
                    )
                bar.update()
        if not writer.clip_ids:
            raise ValueError(f"{part.path}: none of its {len(part.clips)} clips can be decoded.")

        with tqdm(
            desc=f"{part.path.name}: writing", total=writer.num_bytes, unit="B", unit_scale=True
        ) as bar:
            unchecked = writer.write_unchecked(bar.update)
        file = open_anew(unchecked)
        check_packed(unchecked, file, part.settings["dataset"])
        assert stored_clip_ids(file) == writer.clip_ids
        close_file(unchecked)
        rows = range(len(writer.clip_ids))
        checked = workers.map(verify_task, rows, unchecked)
        for _ in tqdm(checked, f"{part.path.name}: checking", len(rows), unit="clip"):
            pass
        writer.publish(unchecked)


def pack(options: argparse.Namespace) -> None:
    """Packs as the command line says.

    Raises:
        ValueError: the data or the options are not as they should be.
        OSError: files are missing, there already, or cannot be written.
    """
    config = PackConfig(
        sample_rate=options.sample_rate, seconds=options.seconds, frame_size=options.frame_size
    )
    if why_not := LAYOUTS[options.dataset].why_not_packed:
        raise ValueError(f"{options.dataset} cannot be packed: {why_not}.")
    if options.output.suffix != ".h5":
        raise ValueError(f"{options.output}: expected a name that ends in .h5")
    clip_set = build_clips(
        options.dataset,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    parts = _plan(options.output, clip_set, config, options.clips_per_file or len(clip_set.clips))
    if len(parts) > 1 and not PACKED_NAME.fullmatch(options.output.name):
        raise ValueError(f"{options.output}: several files are found again by their names; call it clips.h5.")
    unfinished = [part for part in parts if len(parts) == 1 or not _is_finished(part)]
    if not unfinished:
        raise FileExistsError(f"All {len(parts)} parts of {options.output} are there already.")
    with Workers(options.workers) as workers:
        for part in unfinished:
            _write_part(part, config, workers, allow_missing=options.allow_missing)
    _report(options.output, [part.path for part in parts])


def _report(output: Path, paths: Sequence[Path]) -> None:
    num_clips = 0
    for path in paths:
        with h5py.File(path, locking=False) as file:
            num_clips += len(file["frames_crc32"])
    num_bytes = sum(path.stat().st_size for path in paths)
    ratio = num_clips * AUTHORS_BYTES / num_bytes
    by_folder = PACKED_NAME.fullmatch(paths[0].name) and len(paths) > 1
    sys.stdout.write(
        f"{num_clips} clips, {num_bytes} bytes: {ratio:.1f} x smaller than in the SSPL authors' "
        f"layout ({num_clips * AUTHORS_BYTES} bytes)\nRead them with --data-root "
        f"{output.parent if by_folder else output}\n"
    )


# ---------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 2 for bad input, 128 + signal, else 1."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="pack_hdf5: %(message)s")
    try:
        with _stoppable():
            pack(options)
    except _Stopped as stopped:
        sys.stderr.write(
            f"pack_hdf5: stopped; what was packed is kept beside {options.output} in a folder "
            "*.partial. Call again with the same options to go on, or remove that folder.\n"
        )
        return 128 + stopped.number
    except BrokenExecutor:
        sys.stderr.write(
            "pack_hdf5: a worker process died, perhaps for want of memory. What was packed is "
            "kept; call again with fewer --workers to go on.\n"
        )
        return 1
    except (ValueError, OSError) as error:
        sys.stderr.write(f"pack_hdf5: {error}\n")
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.pack_hdf5",
        description="Packs clips into HDF5 files: frames as they are, sounds as 16-bit PCM.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("dataset", choices=tuple(LAYOUTS), metavar="DATASET", help=f"one of {', '.join(LAYOUTS)}")
    add("data_root", type=Path, metavar="ROOT", help="its folder, see docs/data.md")
    add("output", type=Path, metavar="OUT.h5", help="file to write")
    add("--clip-list", help="file of clip ids or name of an official list; none: every clip")
    add("--annotations", type=Path, metavar="JSON", help="boxes to use and to store")
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add("--workers", type=_at_least_1, default=num_cores, metavar="N", help="processes")
    defaults = PackConfig()
    add("--sample-rate", type=int, default=defaults.sample_rate, metavar="HZ", help="of the sounds")
    add("--seconds", type=float, metavar="S", help="keep the middle of each sound; none: all of it")
    add(
        "--frame-size",
        type=int,
        metavar="PIXELS",
        help=f"squash frames to this side, JPEG quality {JPEG_QUALITY}; none: their files as they are",
    )
    add("--clips-per-file", type=_at_least_1, metavar="N", help="several files; none: one")
    add("--allow-missing", action="store_true", help="leave out clips that cannot be read")
    return parser.parse_args(arguments)


def _at_least_1(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
