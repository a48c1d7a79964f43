"""The geometric transform of SSL-TIE's equivariance branch: one rotation, scale and flip for frames and maps.

Convention: pixels are indexed from 0 at the top-left corner; an angle is in degrees, anticlockwise; the
matrix M maps source to destination pixels, x' = M (x, y, 1). A frame of size S is warped by M at size S
(bilinear, zeros outside, align_corners as in kornia 0.5.6), mirrored, and resized to S * scale (bilinear,
half-pixel centres). M turns and scales about (S/2, S/2), half a pixel off the true centre, as the authors'
program does. At scale 0.5 the frame is therefore shrunk twice: by M and by the resize.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.options import Options, option


@dataclass(frozen=True, kw_only=True)
class GeometricConfig(Options):
    """Which transforms the equivariance branch draws."""

    rotation: bool = True  # rotate each frame by its own whole angle of at most 30 degrees
    max_rotation: int = option(30, at_least=0, at_most=180, hidden=True)  # largest angle, degrees
    scaling: bool = True  # shrink a batch to scale 0.5 half of the time
    geometric_flip: bool = True  # mirror a batch half of the time
    equivariance_target: Literal["reference", "masked"] = "reference"
    """reference: the authors' blurred map, blank borders scored; masked: exact, borders left out"""


@dataclass(frozen=True)
class GeometricTransform:
    """A transform that was drawn for a batch; applies to frames and to their maps."""

    angles: tuple[int, ...]  # degrees anticlockwise, one per frame
    scale: float  # 1 or 0.5, for the whole batch
    flip: bool  # mirror, for the whole batch
    frame_size: int  # S, pixels
    target: Literal["reference", "masked"] = "reference"

    @classmethod
    def sample(
        cls, config: GeometricConfig, batch_size: int, frame_size: int, generator: random.Random
    ) -> "GeometricTransform":
        """Draw scale, angles and flip of B frames of S pixels, in the authors' order."""
        scale = 1.0 if generator.random() > 0.5 else 0.5
        limit = config.max_rotation
        angles = tuple(generator.randint(-limit, limit) for _ in range(batch_size))
        flip = generator.random() > 0.5
        return cls(
            angles=angles if config.rotation else (0,) * batch_size,
            scale=scale if config.scaling else 1.0,
            flip=flip and config.geometric_flip,
            frame_size=frame_size,
            target=config.equivariance_target,
        )

    def matrix(self) -> Tensor:
        """Return M of each frame, (B, 2, 3) float32, source to destination pixels."""
        centre = self.frame_size / 2
        radians = torch.tensor(self.angles, dtype=torch.float32) * math.pi / 180  # (B,)
        cosine = torch.cos(radians) * self.scale
        sine = torch.sin(radians) * self.scale
        first_row = [cosine, sine, (1 - cosine) * centre - sine * centre]
        second_row = [-sine, cosine, sine * centre + (1 - cosine) * centre]
        return torch.stack([torch.stack(first_row, -1), torch.stack(second_row, -1)], dim=1)

    def warp_frames(self, frames: Tensor) -> Tensor:
        """Transform normalised frames, (B, C, S, S) -> (B, C, S * scale, S * scale), 0 outside."""
        size, count = self.frame_size, len(self.angles)
        if frames.shape[0] != count or frames.shape[-2:] != (size, size):
            raise ValueError(f"frames must be ({count}, C, {size}, {size}), got {tuple(frames.shape)}")
        return _resize(self._warp(frames), int(size * self.scale))

    def warp_maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Transform the maps (B, h, h) of the plain frames into those expected of the transformed frames.

        Returns:
            target (B, h * scale, h * scale) and the weight of each of its cells. `reference`: the map goes
            through the frame's own path, resized to S first, and every cell counts. `masked`: cells are
            averaged straight from the map, and a cell counts only if it lies within the frame altogether.
        """
        if maps.ndim != 3 or len(maps) != len(self.angles) or maps.shape[1] != maps.shape[2]:
            raise ValueError(f"maps must be ({len(self.angles)}, h, h), got {tuple(maps.shape)}")
        if self.target == "masked":
            return self._sample_maps(maps)
        enlarged = _resize(maps[:, None], self.frame_size)  # (B, 1, S, S)
        target = _resize(self._warp(enlarged), int(maps.shape[-1] * self.scale))[:, 0]
        return target, torch.ones_like(target)

    def _warp(self, pictures: Tensor) -> Tensor:
        """Warp (B, C, S, S) by M at size S, then mirror.

        Products and inverse stay in float32 and in kornia's order: exact arithmetic moves the sampling points
        by 4e-4 pixels, more than the reference's own spread, and the bfloat16 of an autocast region by cells.
        """
        with torch.autocast("cpu", enabled=False), torch.autocast(pictures.device.type, enabled=False):
            last = self.frame_size - 1
            to_unit = torch.tensor([[[2 / last, 0, -1], [0, 2 / last, -1], [0, 0, 1]]])  # pixels -> [-1, 1]
            bottom_row = torch.tensor([0.0, 0.0, 1.0]).expand(len(self.angles), 1, 3)
            pixel_matrix = torch.cat([self.matrix(), bottom_row], dim=1)  # (B, 3, 3)
            unit_matrix = to_unit @ (pixel_matrix @ torch.inverse(to_unit))
            theta = torch.inverse(unit_matrix)[:, :2].to(pictures.dtype)  # (B, 2, 3), destination to source
            theta = theta.to(pictures.device, non_blocking=True)
            grid = F.affine_grid(theta, list(pictures.shape), align_corners=True)  # (B, S, S, 2)
            warped = F.grid_sample(pictures, grid, align_corners=True)
        return warped.flip(-1) if self.flip else warped

    def _sample_maps(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Average the map over each destination cell, at the places the frame's path takes."""
        cells = maps.shape[-1]
        output_cells = int(cells * self.scale)
        # A destination cell spans 1 / scale**2 source cells a side: one sample for each.
        samples = round(self.scale**-2)
        side = output_cells * samples
        centres = torch.arange(side, device=maps.device).double() + 0.5  # (side,)
        grid = 2 * self._source_of(centres / side) - 1  # (B, side, side, 2)
        # On the outermost half cell there is nothing to interpolate with: the border's own value.
        sampled = F.grid_sample(maps[:, None], grid.to(maps), padding_mode="border", align_corners=False)
        edges = torch.arange(output_cells + 1, device=maps.device).double()
        corners = self._source_of(edges / output_cells)
        outside = ((corners < -1e-6) | (corners > 1 + 1e-6)).any(dim=-1)  # (B, cells + 1, cells + 1)
        covered = 1 - F.max_pool2d(outside[:, None].to(maps), 2, stride=1)
        return F.avg_pool2d(sampled, samples)[:, 0], covered[:, 0]

    def _source_of(self, fractions: Tensor) -> Tensor:
        """Find where a grid of the transformed frame lies in the plain frame, both as fractions of the side.

        Positions (n,) along each side -> (B, n, n, 2), x and y, float64.
        """
        positions = fractions * self.frame_size - 0.5
        ys, xs = torch.meshgrid(positions, positions, indexing="ij")
        if self.flip:
            xs = self.frame_size - 1 - xs
        matrix = self.matrix().double()
        matrix[:, :, :2] = torch.inverse(matrix[:, :, :2])  # on the CPU: a GPU would be waited for
        matrix = matrix.to(fractions.device, non_blocking=True)
        offset = torch.stack([xs, ys], dim=-1) - matrix[:, None, None, :, 2]
        source = torch.einsum("bij,bhwj->bhwi", matrix[:, :, :2], offset)
        return (source + 0.5) / self.frame_size


def _resize(pictures: Tensor, size: int) -> Tensor:
    return F.interpolate(pictures, (size, size), mode="bilinear", align_corners=False)
