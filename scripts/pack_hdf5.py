"""Command line: packs the clips of a data set into one HDF5 file, in the form of datasets/hdf5.py.

    bash scripts/pack_hdf5.sh vggsound data/VGGSound packed/clips.h5 --clip-list ssl_tie_vggsound_10k

Frames are stored as the bytes of their files and sounds as 16-bit PCM.
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.audio import read_sound
from datasets.benchmarks import DATA_SETS, build_clips
from datasets.clips import Clip
from datasets.frames import read_frame
from datasets.hdf5 import FORMAT
from utils.files import BrokenFileError, moved_when_whole
from utils.options import Parser, run_command

logger = logging.getLogger("pack_hdf5")

_WHOLE = "Clips are packed whole, in one file; readers cut and scale them."
DROPPED = {
    **dict.fromkeys(("--seconds", "--frame-size", "--clips-per-file"), _WHOLE),
    "--sample-rate": "Sounds are packed at 16 kHz, the rate that all methods hear.",
}
SAMPLE_RATE = 16_000  # Hz


def encode_clip(clip: Clip) -> tuple[NDArray[np.uint8], NDArray[np.int16]] | BrokenFileError:
    """Return the bytes of a clip's picture and the samples of its sound, (L,), or why it has none."""
    try:
        picture = read_frame(clip.frame_source)  # also where the bytes stay: broken ones are found here
        samples = read_sound(clip.audio_source, SAMPLE_RATE).numpy() * 32_768  # (L,)
    except BrokenFileError as error:
        return error
    encoded = io.BytesIO()
    if isinstance(clip.frame_source, Path):
        encoded.write(clip.frame_source.read_bytes())
    else:
        picture.save(encoded, "JPEG", quality=95, subsampling=0)
    sound = np.clip(np.rint(samples), -32_768, 32_767).astype(np.int16)
    return np.frombuffer(encoded.getvalue(), np.uint8), sound


def pack(options: argparse.Namespace) -> int:
    """Write the file, all of it or none; return the exit status.

    Raises:
        ValueError, FileExistsError: options without sense, or a clip cannot be decoded and --allow-missing is
            not given.
    """
    if why_not := DATA_SETS[options.dataset].why_not_packed:
        raise ValueError(f"{options.dataset} cannot be packed: {why_not}.")
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already. Name another file, or remove it.")
    chosen = {name: getattr(options, name) for name in ("clip_list", "annotations", "allow_missing")}
    clip_set = build_clips(options.dataset, options.data_root, **chosen)
    if len({clip.sound for clip in clip_set.clips}) < len(clip_set.clips):
        raise ValueError(f"{options.dataset}: some clips share a sound, which is not stored: use folders.")
    types = {"frames": h5py.vlen_dtype(np.uint8), "sounds": h5py.vlen_dtype(np.int16)}
    types["clip_ids"] = h5py.string_dtype()
    if clip_set.clips[0].bounding_boxes is not None:
        types["bounding_boxes"] = h5py.vlen_dtype(np.float64)
    row = 0
    with moved_when_whole(options.output) as unfinished, h5py.File(unfinished, "w", libver="latest") as file:
        file.attrs.update(format=FORMAT, dataset=clip_set.dataset, list_name=clip_set.list_name)
        file.attrs.update(ids_known=clip_set.ids_known, sample_rate=SAMPLE_RATE)
        for key, dtype in types.items():
            file.create_dataset(key, len(clip_set.clips), dtype, maxshape=(None,))
        # Clip by clip, in order, decoded by worker processes a few ahead of what is written.
        loader: DataLoader[Any] = DataLoader(
            clip_set.clips,  # type: ignore[arg-type]
            batch_size=None, collate_fn=encode_clip,  # type: ignore[arg-type]
            num_workers=options.workers,
        )  # fmt: skip
        for clip, encoded in zip(clip_set.clips, tqdm(loader, options.output.name, unit="clip"), strict=True):
            if isinstance(encoded, BrokenFileError):
                if not options.allow_missing:
                    raise ValueError(f"{clip.clip_id}: {encoded}. --allow-missing leaves such clips out.")
                logger.warning("%s is left out: %s", clip.clip_id, encoded)
                continue
            file["frames"][row], file["sounds"][row] = encoded
            file["clip_ids"][row] = clip.clip_id
            if clip.bounding_boxes is not None:
                file["bounding_boxes"][row] = clip.bounding_boxes.ravel()
            row += 1
        if not row:
            raise ValueError(f"{options.output}: none of its {len(clip_set.clips)} clips can be decoded.")
        for key in types:
            file[key].resize(row, axis=0)
    sys.stdout.write(f"{row} clips. Read them with --data-root {options.output}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 2 for bad input, 130 when stopped."""
    parser = Parser("pack_hdf5.sh", description=__doc__.splitlines()[0], dropped=DROPPED)
    add = parser.add_argument
    add("dataset", choices=tuple(DATA_SETS), metavar="DATASET", help=f"one of {', '.join(DATA_SETS)}")
    add("data_root", type=Path, metavar="ROOT", help="its folder, see docs/data.md")
    add("output", type=Path, metavar="OUT.h5", help="file to write")
    add("--clip-list", help="file of clip ids or name of an official list; none: every clip")
    add("--annotations", type=Path, metavar="JSON", help="boxes to use and to store")
    add("--workers", type=int, default=4, metavar="N", help="decoding processes; 0: in this one")
    add("--allow-missing", action="store_true", help="leave out clips that cannot be read")
    return run_command(lambda: pack(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
