"""Command line: packs the clips of a data set into one HDF5 file, in the form of datasets/hdf5.py.

    bash scripts/pack_hdf5.sh vggsound data/VGGSound packed/clips.h5 --clip-list ssl_tie_vggsound_10k

Frames are stored as the bytes of their files and sounds as 16-bit PCM.
"""

import argparse
import io
import logging
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.audio import MIN_COMMON_RATE, read_sound
from datasets.benchmarks import DATA_SETS, ClipSet, build_clips
from datasets.clips import BrokenClip, Clip
from datasets.frames import FrameGeometry, read_frame
from datasets.hdf5 import FORMAT, FRAMES, read_row
from utils.files import BrokenFileError
from utils.training import configure_logging, run_command

logger = logging.getLogger("pack_hdf5")

JPEG_QUALITY = 95
"""Of frames that have to be encoded; their colours keep the full resolution."""


class PackedClips(Dataset[tuple[bytes, NDArray[np.int16]] | BrokenClip]):
    """Clips as they will be stored: the bytes of a picture, and 16-bit samples."""

    def __init__(self, clips: Sequence[Clip], options: argparse.Namespace) -> None:
        """Take clips, and the options --sample-rate, --seconds and --frame-size."""
        self.clips, self.options = clips, options

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[bytes, NDArray[np.int16]] | BrokenClip:
        """Read one clip."""
        clip = self.clips[position]
        try:
            return self._frame(clip), self._samples(clip)
        except BrokenFileError as error:
            return BrokenClip(clip.clip_id, str(error))

    def _frame(self, clip: Clip) -> bytes:
        # Decoded even where the bytes stay: a broken picture is found here, not in training.
        picture, source = read_frame(clip.frame_source), clip.frame_source
        if self.options.frame_size is not None:
            picture = FrameGeometry(self.options.frame_size).apply_to_frame(picture)
        elif isinstance(source, Path):
            return source.read_bytes()
        elif source.key == FRAMES:
            return read_row(source).tobytes()
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return encoded.getvalue()

    def _samples(self, clip: Clip) -> NDArray[np.int16]:
        rate, seconds = self.options.sample_rate, self.options.seconds
        waveform = read_sound(clip.audio_source, rate).numpy()
        if seconds is not None:
            # An even number, so that the middle of the middle is the middle of the whole.
            kept = 2 * round(seconds * rate / 2)
            start = max(0, len(waveform) // 2 - kept // 2)
            waveform = waveform[start : start + kept]
        return np.clip(np.rint(waveform * 32_768), -32_768, 32_767).astype(np.int16)


def pack(clip_set: ClipSet, options: argparse.Namespace, file: h5py.File) -> int:
    """Write a clip set into an open HDF5 file; return the number of clips written.

    Raises:
        ValueError: a clip cannot be decoded and --allow-missing is not given, or none can.
    """
    attributes = {"format": FORMAT, "dataset": clip_set.dataset, "list_name": clip_set.list_name}
    file.attrs.update(attributes | {"ids_known": clip_set.ids_known, "sample_rate": options.sample_rate})
    has_boxes = clip_set.clips[0].bounding_boxes is not None
    types: dict[str, type[np.generic]] = {"frames": np.uint8, "sounds": np.int16, "clip_ids": np.uint8}
    types |= {"bounding_boxes": np.float64} if has_boxes else {}
    for key, dtype in types.items():
        if key == "bounding_boxes":
            file.create_dataset(key, (0, 4), dtype, maxshape=(None, 4), chunks=(512, 4))
        else:
            file.create_dataset(key, (0,), dtype, maxshape=(None,), chunks=(2**16,))
    offsets = {key: [0] for key in types}
    checksums: dict[str, list[int]] = {"frames": [], "sounds": []}
    # batch_size=None: clip by clip, in order, a few ahead of what is written.
    loader = DataLoader(
        PackedClips(clip_set.clips, options), batch_size=None, num_workers=options.workers,
        collate_fn=lambda clip: clip,
    )  # fmt: skip
    for clip, packed in zip(clip_set.clips, tqdm(loader, options.output.name, unit="clip"), strict=True):
        if isinstance(packed, BrokenClip):
            if not options.allow_missing:
                raise ValueError(
                    f"{clip.clip_id}: {packed.reason}. Mend the data, or pass --allow-missing to leave "
                    "out what cannot be decoded."
                )
            logger.warning("%s is left out: %s", clip.clip_id, packed.reason)
            continue
        frame, samples = np.frombuffer(packed[0], np.uint8), packed[1]
        contents: dict[str, Any] = {"frames": frame, "sounds": samples, "bounding_boxes": clip.bounding_boxes}
        contents["clip_ids"] = np.frombuffer(clip.clip_id.encode(), np.uint8)
        for key in types:
            start, end = offsets[key][-1], offsets[key][-1] + len(contents[key])
            file[key].resize(end, axis=0)
            file[key][start:] = contents[key]
            offsets[key].append(end)
        for key, values in checksums.items():
            values.append(zlib.crc32(contents[key].data))
    if not checksums["frames"]:
        raise ValueError(f"{options.output}: none of its {len(clip_set.clips)} clips can be decoded.")
    for key in types:
        file[f"{key}_offsets"] = np.array(offsets[key], np.int64)
    for key, values in checksums.items():
        file[f"{key}_crc32"] = np.array(values, np.uint32)
    return len(checksums["frames"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 2 for bad input, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="pack_hdf5",
        description="Packs clips into an HDF5 file: frames as they are, sounds as 16-bit PCM.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dataset", choices=tuple(DATA_SETS), metavar="DATASET", help=f"one of {', '.join(DATA_SETS)}")
    add("data_root", type=Path, metavar="ROOT", help="its folder, see docs/data.md")
    add("output", type=Path, metavar="OUT.h5", help="file to write")
    add("--clip-list", help="file of clip ids or name of an official list; none: every clip")
    add("--annotations", type=Path, metavar="JSON", help="boxes to use and to store")
    add("--workers", type=int, default=4, metavar="N", help="decoding processes; 0: in this one")
    add("--sample-rate", type=int, default=16_000, metavar="HZ", help="of the sounds")
    add("--seconds", type=float, metavar="S", help="keep the middle of each sound; none: all of it")
    add(
        "--frame-size", type=int, metavar="PIXELS",
        help=f"squash frames to this side, JPEG quality {JPEG_QUALITY}; none: their files as they are",
    )  # fmt: skip
    add("--allow-missing", action="store_true", help="leave out clips that cannot be read")
    add("--clips-per-file", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    configure_logging()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    _check(options)
    clip_set = build_clips(
        options.dataset,
        options.data_root,
        clip_list=options.clip_list,
        annotations=options.annotations,
        allow_missing=options.allow_missing,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial = options.output.with_name(f".{options.output.name}.partial")
    try:
        with h5py.File(partial, "w", libver="latest") as file:
            num_clips = pack(clip_set, options, file)
        partial.replace(options.output)
    finally:
        partial.unlink(missing_ok=True)
    sys.stdout.write(
        f"{num_clips} clips, {options.output.stat().st_size} bytes\n"
        f"Read them with --data-root {options.output}\n"
    )
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.clips_per_file is not None:
        raise ValueError("--clips-per-file is gone: a packed set is one file.")
    if options.workers < 0:
        raise ValueError(f"--workers must be at least 0, got {options.workers}")
    if options.sample_rate < MIN_COMMON_RATE:
        raise ValueError(f"--sample-rate must be at least {MIN_COMMON_RATE} Hz, got {options.sample_rate}")
    if options.seconds is not None and not 2 <= options.seconds * options.sample_rate < np.inf:
        raise ValueError(f"--seconds must be a length above 0, got {options.seconds}")
    if options.frame_size is not None and options.frame_size < 1:
        raise ValueError(f"--frame-size must be at least 1, got {options.frame_size}")
    if why_not := DATA_SETS[options.dataset].why_not_packed:
        raise ValueError(f"{options.dataset} cannot be packed: {why_not}.")
    if options.output.suffix != ".h5":
        raise ValueError(f"{options.output}: expected a name that ends in .h5")
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already. Name another file, or remove it.")


if __name__ == "__main__":
    sys.exit(main())
