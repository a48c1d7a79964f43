"""The contrast of frames with sounds a few frames at a time, so that its maps fit into memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Contrast = Callable[[Tensor, Tensor, int], tuple[Tensor, ...]]
"""Visual feature map (R, D, h, w), audio embedding (A, D), index of the first frame's own sound ->
tensors with R rows. Row i depends on frame i and the sounds alone."""

NUMBERS_PER_SIMILARITY = 9
"""Numbers that a contrast and its gradient hold at once for each similarity, at most; 8 of them
were counted, see tests/test_chunked_contrast.py."""
NUMBERS_PER_FEATURE = 2
"""The same, for each number of the frames' features."""
NUMBERS_PER_EMBEDDED = 2
"""The same, for each number of the audio embeddings, whatever the number of frames."""


def contrast_in_chunks(
    contrast: Contrast,
    visual_feature_map: Tensor,
    audio_embedding: Tensor,
    first_own: int,
    *,
    head_bytes: int,
) -> tuple[Tensor, ...]:
    """Applies a contrast to a few frames at a time, once in forward and once more in backward.

    Nothing is kept from forward to backward but the arguments.

    Args:
        contrast: of some frames with all sounds; without parameters of its own.
        visual_feature_map: (B, D, h, w).
        audio_embedding: (A, D).
        first_own: index of the first frame's own sound.
        head_bytes: most bytes that are held at once, on top of arguments, results and the gradients
            of both.

    Returns:
        what `contrast` returns for all frames.

    Raises:
        ValueError: head_bytes does not suffice for one frame.
    """
    rows = frames_per_chunk(visual_feature_map, audio_embedding, head_bytes)
    return _InChunks.apply(contrast, rows, first_own, visual_feature_map, audio_embedding)


def frames_per_chunk(visual_feature_map: Tensor, audio_embedding: Tensor, head_bytes: int) -> int:
    """How many frames can be contrasted with all sounds at once.

    Args:
        visual_feature_map: (B, D, h, w).
        audio_embedding: (A, D).
        head_bytes: most bytes that are held at once.

    Returns:
        1 or more.

    Raises:
        ValueError: not even one.
    """
    _, channels, height, width = visual_feature_map.shape
    cells, num_sounds = height * width, len(audio_embedding)
    per_frame = NUMBERS_PER_FEATURE * channels * cells
    per_frame += NUMBERS_PER_SIMILARITY * num_sounds * (cells + 1)  # one more for the logits
    frame_bytes = per_frame * visual_feature_map.element_size()
    fixed_bytes = NUMBERS_PER_EMBEDDED * audio_embedding.numel() * audio_embedding.element_size()
    rows = (head_bytes - fixed_bytes) // frame_bytes
    if rows < 1:
        raise ValueError(
            f"head_bytes = {head_bytes} is too little to contrast one frame with "
            f"{num_sounds} sounds, which takes {frame_bytes + fixed_bytes} bytes. Allow "
            "as many, or make the batch smaller."
        )
    return rows


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context has no type
        contrast: Contrast,
        rows: int,
        first_own: int,
        visual_feature_map: Tensor,
        audio_embedding: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(visual_feature_map, audio_embedding)
        ctx.contrast, ctx.rows, ctx.first_own = contrast, rows, first_own
        results: tuple[Tensor, ...] = ()
        for start in range(0, len(visual_feature_map), rows):
            chunk = slice(start, start + rows)
            pieces = contrast(visual_feature_map[chunk], audio_embedding, first_own + start)
            if not results:
                size = len(visual_feature_map)
                results = tuple(piece.new_empty(size, *piece.shape[1:]) for piece in pieces)
            for result, piece in zip(results, pieces, strict=True):
                result[chunk] = piece
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        visual_feature_map, audio_embedding = ctx.saved_tensors
        visual_gradient = torch.empty_like(visual_feature_map)
        audio_gradient = torch.zeros_like(audio_embedding)
        for start in range(0, len(visual_feature_map), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            inputs = (
                visual_feature_map[chunk].detach().requires_grad_(),
                audio_embedding.detach().requires_grad_(),
            )
            with torch.enable_grad():
                pieces = ctx.contrast(*inputs, ctx.first_own + start)
            visual_gradient[chunk], of_sounds = torch.autograd.grad(
                pieces, inputs, [gradient[chunk] for gradient in gradients]
            )
            audio_gradient += of_sounds
        return None, None, None, visual_gradient, audio_gradient
