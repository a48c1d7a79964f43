"""From a picture to a square frame, with its boxes."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from datasets.hdf5 import HDF5Row, Source, read_row
from utils.files import BrokenFileError, decoding

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Formats that are read, in the order in which they are looked for."""


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """The frame given to the visual encoder; stored in the checkpoint."""

    frame_size: int = 224  # side of the frame, pixels, a multiple of 32

    def __post_init__(self) -> None:
        """Refuse sizes whose half does not fit the encoder's grid."""
        if self.frame_size < 32 or self.frame_size % 32:
            raise ValueError(f"--frame-size must be a multiple of 32, got {self.frame_size}")


GeometryMode = Literal["squash", "centre_crop", "squash_aliased"]


@dataclass(frozen=True)
class FrameGeometry:
    """The one way from a frame on disk to the square that is scored; carries frame and boxes.

    squash resizes to the square, whatever the shape. The authors' frames were stored squashed to
    299 x 299, so this is what published numbers rest on. centre_crop resizes the short side and
    cuts the middle, boxes included. On a square frame both are the authors' test transform, but SSL-Align's:
    squash_aliased resizes as its program does, bicubic without antialiasing and without rounding to bytes.
    """

    frame_size: int
    mode: GeometryMode = "squash"

    def to_square(self, frame: Image.Image) -> Tensor:
        """RGB picture of any size -> uint8 (3, S, S); squash_aliased: float32, a little beyond [0, 255]."""
        if self.mode != "squash_aliased":
            return to_tensor(self.apply_to_frame(frame))
        pixels = to_tensor(frame)[None].float()  # (1, 3, H, W)
        return F.interpolate(pixels, (self.frame_size, self.frame_size), mode="bicubic")[0]

    def to_short_side(self, frame: Image.Image) -> Tensor:
        """RGB picture of any size -> uint8 (3, H, W) of its shape, the short side of frame_size, bicubic."""
        width, height, _, _ = self._crop(*frame.size)
        return to_tensor(frame.resize((width, height), Image.Resampling.BICUBIC))

    def apply_to_frame(self, picture: Image.Image) -> Image.Image:
        """Picture of any size -> square of frame_size, bicubic with antialiasing."""
        if self.mode != "centre_crop":
            return picture.resize((self.frame_size, self.frame_size), Image.Resampling.BICUBIC)
        width, height, left, top = self._crop(*picture.size)
        corners = (left, top, left + self.frame_size, top + self.frame_size)
        return picture.resize((width, height), Image.Resampling.BICUBIC).crop(corners)

    def _crop(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Width and height to which centre_crop resizes a frame, and left and top of its cut; pixels."""
        short = min(width, height)
        width, height = int(self.frame_size * width / short), int(self.frame_size * height / short)
        return width, height, round((width - self.frame_size) / 2), round((height - self.frame_size) / 2)

    def square_in(self, width: int, height: int) -> tuple[float, ...]:
        """Return where the square lies in a frame: left, top, right, bottom as fractions of its sides."""
        if self.mode != "centre_crop":
            return 0.0, 0.0, 1.0, 1.0
        width, height, left, top = self._crop(width, height)
        right, bottom = left + self.frame_size, top + self.frame_size
        return left / width, top / height, right / width, bottom / height

    def apply_to_boxes(self, boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
        """Boxes of the frame on disk, whose sides are given in pixels -> boxes of the square.

        Both are (N, 4) x_min, y_min, x_max, y_max as fractions; those that the crop cuts go beyond [0, 1].
        """
        if self.mode != "centre_crop" or width == height:
            return boxes
        width, height, left, top = self._crop(width, height)
        return (boxes * (width, height, width, height) - (left, top, left, top)) / self.frame_size


def read_frame(source: Source) -> Image.Image:
    """Decode a picture file, or the row of an HDF5 file that holds one or its pixels, to RGB: see `as_shown`.

    Raises:
        BrokenFileError: it cannot be decoded, or its range of brightness is not known.
    """
    with decoding(source):
        content: Any = source
        if isinstance(source, HDF5Row):
            stored = read_row(source)
            if stored.ndim == 3:  # the authors' float32 (H, W, 3)
                with np.errstate(invalid="ignore"):  # NaN has no byte; it is found in the next line
                    pixels = stored.astype(np.uint8)
                if not np.array_equal(pixels, stored):
                    raise BrokenFileError(source, "a frame must hold whole numbers from 0 to 255")
                return Image.fromarray(pixels)
            content = io.BytesIO(stored.tobytes())
        with Image.open(content) as picture:
            picture.load()
            return as_shown(picture)


def as_shown(picture: Image.Image) -> Image.Image:
    """Turn a picture to RGB as viewers show it: turned as its EXIF data say, and white where transparent."""
    upright = ImageOps.exif_transpose(_in_8_bits(picture))
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Turn grey of 16 bits into mode L, from black to white; other pictures stay."""
    if picture.mode in ("I", "F"):
        raise ValueError("its grey has 32 bits, of which white is not known; save it with 8 or 16")
    if not picture.mode.startswith("I;16"):
        return picture
    grey = Image.fromarray((np.asarray(picture) / 65_535 * 255).round().astype(np.uint8))
    grey.info |= {name: value for name, value in picture.info.items() if name == "exif"}
    return grey


def to_picture(frame: Tensor) -> NDArray[np.uint8]:
    """(3, H, W), as `to_square` makes it, on any device -> RGB (H, W, 3)."""
    return np.ascontiguousarray(frame.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())


def to_tensor(frame: Image.Image) -> Tensor:
    """RGB picture -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(frame)).movedim(2, 0)


# -------------------------------------------------------------------------------------- pixels and back again


def as_float(frames: Tensor) -> Tensor:
    """Turn frames (B, 3, H, W) in [0, 255] in any memory order into float32 in [0, 1], channel by channel."""
    return frames.to(torch.float32, memory_format=torch.contiguous_format) / 255


def normalise(frames: Tensor) -> Tensor:
    """Give float frames (B, 3, H, W) in [0, 1] ImageNet's mean 0 and standard deviation 1."""
    mean, std = _imagenet_statistics(frames.device)
    return (frames - mean) / std


def to_displayable(frames: Tensor) -> NDArray[np.uint8]:
    """Turn normalised frames (B, 3, H, W) into pictures (B, H, W, 3), undoing `normalise`."""
    mean, std = _imagenet_statistics(frames.device)
    pixels = (frames * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    # Not torch.tensor(..., device=device), for which the CPU would wait until the GPU has done all before.
    statistics = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).to(device, non_blocking=True)
    mean, std = statistics[:, :, None, None]
    return mean, std  # (3, 1, 1) each
