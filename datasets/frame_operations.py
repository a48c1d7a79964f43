"""Operations on a batch of frames, each frame with parameters of its own; on any device.

Each equals torchvision's function of the same name for one float frame, and takes what differs
from frame to frame as a tensor. Frames are float (B, 3, H, W) in [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Luma of red, green and blue."""


def adjust_brightness(frames: Tensor, factors: Tensor) -> Tensor:
    """Frames (B, 3, H, W) times their factors (B,), 0: black, 1: unchanged."""
    return (frames * _each(factors)).clamp_(0, 1)


def adjust_contrast(frames: Tensor, factors: Tensor) -> Tensor:
    """Away from each frame's mean grey by factors (B,), 0: grey throughout, 1: unchanged."""
    return _blend(frames, grey_of(frames).mean(dim=(2, 3), keepdim=True), factors)


def adjust_saturation(frames: Tensor, factors: Tensor) -> Tensor:
    """Away from each pixel's grey by factors (B,), 0: without colour, 1: unchanged."""
    return _blend(frames, grey_of(frames), factors)


def adjust_hue(frames: Tensor, factors: Tensor) -> Tensor:
    """Turns the hue by factors (B,), shares of the colour circle in [-0.5, 0.5].

    With h in sixths of the circle, v the largest channel and c the difference to the smallest, a
    channel is v - c clamp(min(k, 4 - k), 0, 1), where k = (n + h) mod 6 and n = 5, 3, 1 for red,
    green, blue.
    """
    red, green, blue = frames.unbind(dim=1)
    smallest, largest = frames.aminmax(dim=1)
    span = largest - smallest
    divisor = torch.where(span == 0, 1, span)
    hue = torch.where(
        largest == red,
        (green - blue) / divisor,
        torch.where(largest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    offsets = torch.tensor([5.0, 3.0, 1.0], device=frames.device)[:, None, None]
    sixths = (hue[:, None] + 6 * _each(factors) + offsets).remainder_(6)
    share = torch.minimum(sixths, 4 - sixths).clamp_(0, 1)
    return largest[:, None] - span[:, None] * share


def grey_of(frames: Tensor) -> Tensor:
    """Frames (B, 3, H, W) -> their luma (B, 1, H, W)."""
    red, green, blue = frames.split(1, dim=1)
    return red * GREY_WEIGHTS[0] + green * GREY_WEIGHTS[1] + blue * GREY_WEIGHTS[2]


def gaussian_blur(frames: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    """Blurs each frame with its own width; the border is reflected.

    Args:
        frames: (B, 3, H, W).
        sigmas: (B,) standard deviations, pixels, above 0.
        kernel_size: pixels, odd.
    """
    reach = kernel_size // 2
    offsets = torch.arange(-reach, reach + 1, device=frames.device)
    weights = torch.softmax(-0.5 * (offsets / sigmas[:, None]).square(), dim=1)
    weights = weights.to(frames.dtype).repeat_interleave(frames.shape[1], dim=0)  # (3 B, k)
    planes = F.pad(frames, (reach,) * 4, mode="reflect").flatten(0, 1)[None]  # (1, 3 B, H, W)
    planes = F.conv2d(planes, weights[:, None, :, None], groups=planes.shape[1])
    planes = F.conv2d(planes, weights[:, None, None, :], groups=planes.shape[1])
    return planes[0].view(frames.shape)


def resized_crop(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cuts a rectangle out of each frame and resizes it, bilinear with antialiasing.

    Rows and columns are combined by matrices, (B, S, H) and (B, S, W), that hold the weights of
    torchvision's filter; pixels outside of the rectangle have none.

    Args:
        frames: (B, 3, H, W).
        boxes: (B, 4) whole pixels: top, left, height, width.
        size: S, side of the result, pixels.

    Returns:
        (B, 3, S, S).
    """
    top, left, height, width = boxes.to(frames.dtype).unbind(dim=1)
    rows = _resizing_matrix(top, height, frames.shape[2], size)
    columns = _resizing_matrix(left, width, frames.shape[3], size)
    narrowed = torch.einsum("bsh,bchw->bcsw", rows, frames)
    return torch.einsum("btw,bcsw->bcst", columns, narrowed).contiguous()


def _resizing_matrix(starts: Tensor, lengths: Tensor, side: int, size: int) -> Tensor:
    """Weights (B, size, side) of the pixels of each stretch (start, length), rows sum to 1."""
    scale = (lengths / size)[:, None, None]
    places = torch.arange(side, device=starts.device) - starts[:, None]  # (B, side)
    centres = scale * (torch.arange(size, device=starts.device)[:, None] + 0.5)  # (B, size, 1)
    weights = 1 - (places[:, None] + 0.5 - centres).abs() / scale.clamp_min(1)
    inside = (places >= 0) & (places < lengths[:, None])
    weights = weights.clamp_min_(0) * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


def _blend(frames: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    shares = _each(factors)
    return (frames * shares + others * (1 - shares)).clamp_(0, 1)


def _each(factors: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to go with frames."""
    return factors[:, None, None, None]
