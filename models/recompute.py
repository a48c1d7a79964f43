"""Trading time for memory: activations that are computed twice instead of being kept."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(encoder: nn.Module, inputs: Tensor) -> Tensor:
    """encoder(inputs), whose activations are computed again when gradients are needed.

    Output and gradients are those of a plain call; batch norms' running statistics move once.

    Args:
        encoder: any module without random numbers.
        inputs: its argument.
    """
    if not torch.is_grad_enabled():
        return encoder(inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _buffers_kept(encoder)

    return checkpoint(encoder, inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Undoes what happens to the module's buffers, so that a second pass leaves no trace."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])
