"""The SSPL authors' HDF5 files in small, written the slow way from their description."""

import h5py
import numpy as np
import torch

from datasets.audio import VGGishLogMel


def level(samples):
    """The authors' levelling, in float64, a clip at a time."""
    shifted = samples.astype(np.float64) - samples.min()
    return (2 * (shifted / (shifted.max() + 1e-3) - 0.5)).astype(np.float32)


def real_sounds(count, seed=0, num_samples=48_000):
    """Sums of decaying tones of all loudnesses, 16-bit; the first is silent."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / 16_000
    sounds = np.zeros((count, num_samples))
    for index in range(1, count):
        for _ in range(4):
            pitch, decay = rng.uniform(80, 4000), rng.uniform(0, 3)
            sounds[index] += np.exp(-decay * time) * np.sin(2 * np.pi * pitch * time)
        sounds[index] *= 10 ** rng.uniform(-4, -0.1) / np.abs(sounds[index]).max()
    return (np.rint(sounds * 32768) / 32768).astype(np.float32)


def write_authors_files(folder, split, frames, sounds, suffix="", *, spects=True):
    """One shard: h5py_<split>_{frames,audios,spects}<suffix>.h5, contiguous, as the authors do."""
    folder.mkdir(parents=True, exist_ok=True)
    levelled = np.stack([level(sound) for sound in sounds])
    arrays = {"frames": frames.astype(np.float32), "audios": levelled}
    if spects:
        arrays["spects"] = VGGishLogMel()(torch.from_numpy(levelled))[:, :, 0].numpy()
    for kind, array in arrays.items():
        with h5py.File(folder / f"h5py_{split}_{kind}{suffix}.h5", "w") as file:
            file.create_dataset(f"{split}_{kind}", data=array)
    return arrays
