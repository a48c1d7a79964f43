"""From a picture file to a square frame, with its boxes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from datasets.errors import BrokenFileError

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Formats that are read, in the order in which they are looked for."""

CROP_SCALE = (0.3, 1.0)
"""Share of the frame that the random crop of moco_v2 keeps."""


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """The frame given to the visual encoder; stored in the checkpoint."""

    frame_size: int = 224
    """side of the frame, pixels, a multiple of 32"""

    def __post_init__(self) -> None:
        """Refuses sizes whose half does not fit the encoder's grid."""
        if self.frame_size < 32 or self.frame_size % 32:
            raise ValueError(f"--frame-size must be a multiple of 32, got {self.frame_size}")


@dataclass(frozen=True)
class FrameGeometry:
    """The one way from a frame on disk to the square that is scored; carries frame and boxes.

    squash resizes to the square, whatever the shape. The authors' frames were stored squashed to
    299 x 299, so this is what published numbers rest on. centre_crop resizes the short side and
    cuts the middle, boxes included. On a square frame both are the authors' test transform.
    """

    frame_size: int
    mode: Literal["squash", "centre_crop"] = "squash"

    def apply_to_frame(self, frame: Image.Image) -> Image.Image:
        """RGB picture of any size -> square of frame_size, bicubic with antialiasing."""
        size = [self.frame_size, self.frame_size]
        if self.mode == "squash":
            return TF.resize(frame, size, TF.InterpolationMode.BICUBIC)
        shorter_side = TF.resize(frame, size[:1], TF.InterpolationMode.BICUBIC)
        return TF.center_crop(shorter_side, size)

    def apply_to_boxes(
        self, boxes: NDArray[np.float64], width: int, height: int
    ) -> NDArray[np.float64]:
        """Boxes of the frame on disk -> boxes of the square, both as fractions.

        Args:
            boxes: (N, 4) x_min, y_min, x_max, y_max as fractions of width and height.
            width: of the frame on disk, pixels.
            height: of the frame on disk, pixels.

        Returns:
            (N, 4), possibly beyond [0, 1] where the crop cuts a box.
        """
        if self.mode == "squash" or width == height:
            return boxes
        size, shorter = self.frame_size, min(width, height)
        resized = np.array([int(size * width / shorter), int(size * height / shorter)])
        offset = np.array([round((side - size) / 2) for side in resized])
        return (boxes * np.tile(resized, 2) - np.tile(offset, 2)) / size


def read_frame(path: Path) -> Image.Image:
    """Decodes a picture.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise SyntaxError and ValueError for damaged files, not only OSError.
        raise BrokenFileError(path, str(error)) from error


def read_frame_size(path: Path) -> tuple[int, int]:
    """Width and height from the header, without decoding.

    Raises:
        BrokenFileError: the header cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BrokenFileError(path, str(error)) from error


def random_resized_crop(frame: Image.Image, size: int, seed: int) -> Image.Image:
    """The crop of moco_v2: 30 to 100 % of the area, aspect 3/4 to 4/3, bilinear.

    Args:
        frame: RGB picture.
        size: side of the result, pixels.
        seed: the same seed crops the same part.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RandomResizedCrop(size, scale=CROP_SCALE, antialias=True)(frame)


def to_tensor(frame: Image.Image) -> Tensor:
    """RGB picture -> uint8 (3, H, W)."""
    return TF.pil_to_tensor(frame)
