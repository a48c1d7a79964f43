"""What training draws for frames and sounds, and does to them, on whichever device the batch is.

moco_v2 for frames: torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur and
RandomHorizontalFlip, in this order, each frame with numbers of its own; SpecAugment for spectrograms; shifted
and mirrored cut-outs for SSPL and the peers. Frames stay float in between; the authors' program rounds to
whole pixel values after each operation.

Numbers are drawn for the batch of all processes from the seed of the step, and each process takes its own
rows (`draw_for_clips`). So N processes see what one would, and a resumed run what an unbroken one would.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.options import Options, option

CROP_SCALE = (0.3, 1.0)  # share of the frame that the random crop keeps
CROP_ASPECT = (3 / 4, 4 / 3)  # width by height
CROP_ATTEMPTS = 10  # a crop that does not fit is drawn anew so often; then the largest in the middle is taken
JITTER = ((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))  # brightness, contrast, saturation; hue in circles
BLUR_KERNEL = 13  # pixels: three standard deviations of the widest blur to each side
BLUR_RANGE = (0.1, 2.0)  # standard deviation, pixels
COLOUR_SHARE, GREY_SHARE, BLUR_SHARE, FLIP_SHARE, MASK_SHARE = 0.8, 0.2, 0.5, 0.5, 0.8  # of the clips

CROP_NUMBERS, LOOK_NUMBERS, MASK_NUMBERS = 4 * CROP_ATTEMPTS, 13, 5
"""Numbers in [0, 1) that a clip needs for its crop, its look and its sound's masks"""
CUT_OUT_NUMBERS = 3
"""Numbers in [0, 1) that a cut-out needs"""
CUT_OUT_MARGIN = 0.1  # by how much the frame is larger than a view, of the view's side


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Options):
    """The appearance augmentation; by default moco_v2 for frames and SpecAugment for sounds."""

    crop: bool = True  # cut 30 to 100 % of each frame at random
    colour: bool = True  # jitter brightness, contrast, saturation (0.4) and hue (0.1) of 80 % of the frames
    grey: bool = True  # drop the colour of 20 % of the frames
    blur: bool = True  # blur 50 % of the frames, sigma 0.1 to 2 pixels
    flip: bool = True  # mirror 50 % of the frames
    spec_augment: bool = True  # mask a stretch of time and a band of frequencies in 80 % of the spectrograms
    time_mask: int = option(180, at_least=1)  # longest masked stretch, spectrogram frames
    frequency_mask: int = option(35, at_least=1)  # widest masked band, mel filters
    audio_excerpt_seconds: float | None = option(None, above=0)
    """use only the first seconds of each training sound (the authors: 4 for Flickr)"""

    def check_fits(self, mel_bins: int, num_frames: int) -> None:
        """Refuse masks that can be longer than the spectrogram (mel_bins, num_frames)."""
        if self.spec_augment and (self.time_mask > num_frames or self.frequency_mask > mel_bins):
            raise ValueError(
                f"--time-mask {self.time_mask} and --frequency-mask {self.frequency_mask} do not "
                f"fit a spectrogram of {num_frames} frames and {mel_bins} filters "
                "(--window-seconds, --hop-length, --mel-bins)."
            )


def draw_for_clips(
    seed: int, count: int, numbers: int, *, first: int = 0, total: int | None = None
) -> Tensor:
    """Draw a row of n numbers for each of a step's B clips: (B, n) float64 on the CPU, uniform in [0, 1).

    All processes draw from the seed of the step for the batch of all, `total` clips (None: B), and each takes
    its own rows, from `first` on.
    """
    total = count if total is None else total
    if first + count > total:
        raise ValueError(f"clips {first} to {first + count} are wanted of a batch of {total}")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(total, numbers, generator=generator, dtype=torch.float64)
    return rows[first : first + count]


# ---------------------------------------------------------------------------------------------- random crop


def draw_crops(sizes: Tensor, numbers: Tensor) -> Tensor:
    """Draw a rectangle of 30 to 100 % of each frame, aspect 3/4 to 4/3, as RandomResizedCrop does.

    `sizes` (B, 2), height and width; `numbers` (B, 40) in [0, 1) -> int64 (B, 4): top, left, height, width.
    """
    area, aspect, down, right = numbers.view(-1, CROP_ATTEMPTS, 4).unbind(2)  # (B, attempts) each
    frame_height, frame_width = sizes[:, :1], sizes[:, 1:]  # (B, 1)
    kept = frame_height * frame_width * _between(area, CROP_SCALE)
    ratio = _between(aspect, (math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1]))).exp()
    height, width = (kept / ratio).sqrt().round().long(), (kept * ratio).sqrt().round().long()
    fits = (height > 0) & (height <= frame_height) & (width > 0) & (width <= frame_width)
    top = (down * (frame_height - height + 1)).long()
    left = (right * (frame_width - width + 1)).long()
    attempts = torch.stack([top, left, height, width], dim=2)  # (B, attempts, 4)
    first_fitting = attempts[torch.arange(len(attempts)), fits.int().argmax(dim=1)]  # (B, 4)

    # No attempt fits a very long or a very small frame: take the largest allowed aspect in the middle.
    height = torch.minimum(sizes[:, 0], (sizes[:, 1] / CROP_ASPECT[0]).round().long())
    width = torch.minimum(sizes[:, 1], (sizes[:, 0] * CROP_ASPECT[1]).round().long())
    middle = torch.stack([(sizes[:, 0] - height) // 2, (sizes[:, 1] - width) // 2, height, width], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), first_fitting, middle)


def resized_crop(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a rectangle out of each frame and resize it, bilinear with antialiasing, as torchvision does.

    Frames float (B, 3, H, W), boxes (B, 4) of whole pixels (top, left, height, width) -> (B, 3, S, S).
    kornia.geometry.crop_and_resize has no antialiasing for boxes that differ. Here rows and columns are
    combined by matrices of the filter's weights; pixels outside of the rectangle have none.
    """
    top, left, height, width = boxes.to(frames.device, non_blocking=True).to(frames.dtype).unbind(dim=1)
    rows = _resizing_matrix(top, height, frames.shape[2], size)  # (B, S, H)
    columns = _resizing_matrix(left, width, frames.shape[3], size)  # (B, S, W)
    narrowed = torch.einsum("bsh,bchw->bcsw", rows, frames)  # (B, 3, S, W)
    return torch.einsum("btw,bcsw->bcst", columns, narrowed).contiguous()


def _resizing_matrix(starts: Tensor, lengths: Tensor, side: int, size: int) -> Tensor:
    """Weights (B, size, side) of the pixels of each stretch (start, length); rows sum to 1."""
    scale = (lengths / size)[:, None, None]  # (B, 1, 1)
    places = torch.arange(side, device=starts.device) - starts[:, None]  # (B, side)
    centres = scale * (torch.arange(size, device=starts.device)[:, None] + 0.5)  # (B, size, 1)
    weights = 1 - (places[:, None] + 0.5 - centres).abs() / scale.clamp_min(1)  # (B, size, side)
    inside = (places >= 0) & (places < lengths[:, None])
    weights = weights.clamp_min_(0) * inside[:, None]
    return weights / weights.sum(dim=2, keepdim=True)


# --------------------------------------------------------------------------------- colour, grey, blur, mirror


def change_look(frames: Tensor, config: AugmentationConfig, numbers: Tensor) -> Tensor:
    """Jitter the colours, drop them, blur and mirror frames (B, 3, H, W) in [0, 1], which stay as they are.

    Each frame goes by its own `numbers`, (B, 13) in [0, 1). Each operation runs once, on all frames that want
    it.
    """
    from kornia import enhance, filters  # noqa: PLC0415 - takes a second, and --help does without
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # noqa: PLC0415

    operations: list[Callable[..., Tensor]] = []
    plans: list[Tensor] = []  # of each operation: the places of its n frames and its parameter, (2, n)

    def change(wanted: Tensor, operation: Callable[..., Tensor], parameter: Tensor) -> None:
        chosen = wanted.nonzero()[:, 0]  # found on the CPU: on the device, the CPU would wait for the count
        if len(chosen):
            operations.append(operation)
            plans.append(torch.stack([chosen.double(), parameter[chosen]]))

    coloured = (numbers[:, 0] < COLOUR_SHARE) & config.colour
    order = numbers[:, 1:5].argsort(dim=1)  # (B, 4): which adjustment comes first, second …
    adjustments = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda chosen, turns: enhance.adjust_hue(chosen, 2 * math.pi * turns),
    )
    for place in range(len(adjustments)):
        for which, adjust in enumerate(adjustments):
            factors = _between(numbers[:, 5 + which], JITTER[which])
            change(coloured & (order[:, place] == which), adjust, factors)
    no_parameter = torch.zeros(len(numbers))
    greyed = (numbers[:, 9] < GREY_SHARE) & config.grey
    change(greyed, lambda chosen, _: rgb_to_grayscale(chosen, num_output_channels=3), no_parameter)
    blurred = (numbers[:, 10] < BLUR_SHARE) & config.blur
    sigmas = _between(numbers[blurred, 11:12], BLUR_RANGE).expand(-1, 2)  # on the CPU, where they are checked
    change(blurred, lambda chosen, _: filters.gaussian_blur2d(chosen, BLUR_KERNEL, sigmas), no_parameter)
    change((numbers[:, 12] < FLIP_SHARE) & config.flip, lambda chosen, _: chosen.flip(-1), no_parameter)

    frames = frames.clone()
    if plans:  # all go to the device in one copy
        on_device = torch.cat(plans, dim=1).to(frames.device, non_blocking=True)  # (2, sum of n)
        for operation, plan in zip(operations, on_device.split([p.shape[1] for p in plans], 1), strict=True):
            places = plan[0].long()
            frames[places] = operation(frames[places], plan[1].to(frames.dtype))
    return frames


# ---------------------------------------------------------------------------------------------- spectrograms


def spec_augment(power: Tensor, config: AugmentationConfig, numbers: Tensor) -> Tensor:
    """Mask a stretch of time and a band of frequencies of 80 % of the spectrograms (B, F, T) with 0.

    The formula is that of torchaudio.functional.mask_along_axis_iid, which takes no generator; `numbers` are
    (B, 5) in [0, 1).
    """
    if not config.spec_augment:
        return power
    masked = numbers[:, 0] < MASK_SHARE

    def inside(axis: int, longest: int, length: Tensor, start: Tensor) -> Tensor:
        size = power.shape[axis]
        length = longest * length
        first = (start * (size - length)).long()
        limits = torch.stack([first, first + length.long() * masked])[:, :, None]
        first, end = limits.to(power.device, non_blocking=True)
        places = torch.arange(size, device=power.device)
        return (places >= first) & (places < end)

    stretch = inside(2, config.time_mask, numbers[:, 1], numbers[:, 2])  # (B, T)
    band = inside(1, config.frequency_mask, numbers[:, 3], numbers[:, 4])  # (B, F)
    return power.masked_fill(stretch[:, None, :] | band[:, :, None], 0)


# --------------------------------------------------------------------------- cut-outs of SSPL and the peers


def cut_out(frames: Tensor, sizes: Sequence[tuple[int, int]], size: int, numbers: Tensor) -> Tensor:
    """Cut a shifted square, mirrored half of the time, out of each frame: (B, 3, H, W) -> (B, 3, S, S).

    The frames, of heights and widths `sizes`, at least S, lie in the top-left corners; `numbers` are (B, 3)
    in [0, 1).
    """
    drawn = torch.cat([numbers[:, :2] * (torch.tensor(sizes) - size + 1), numbers[:, 2:]], dim=1)
    drawn = drawn.to(frames.device, non_blocking=True)  # (B, 3)
    top, left = drawn[:, :2].long().T  # (B,) each
    offsets = torch.arange(size, device=frames.device)
    across = torch.where(drawn[:, 2:] < FLIP_SHARE, offsets.flip(0), offsets)  # (B, S)
    rows, columns = top[:, None] + offsets, left[:, None] + across  # (B, S) each
    clips = torch.arange(len(frames), device=frames.device)
    cut = frames.movedim(1, 3)[clips[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, S, S, 3)
    return cut.movedim(3, 1)


def _between(numbers: Tensor, limits: tuple[float, float]) -> Tensor:
    """[0, 1) -> [limits[0], limits[1])."""
    return limits[0] + (limits[1] - limits[0]) * numbers
