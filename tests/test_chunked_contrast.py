"""The contrast in chunks equals the plain one, and keeps to its memory."""

import pytest
import torch
import torch.nn.functional as F

from datasets.loading_speed import profiled_peak_bytes
from models.chunked_contrast import frames_per_chunk
from models.losses import contrastive_loss
from models.ssl_tie import SSLTIE, SSLTIEConfig

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning"),
]
MIB = 2**20


@pytest.fixture(scope="module")
def model():
    """Only its head is used, which has no weights."""
    with torch.device("meta"):
        return SSLTIE(SSLTIEConfig())


def features(num_frames, num_sounds, channels, side, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (num_frames, channels, side, side), (num_sounds, channels)
    return tuple(
        F.normalize(torch.rand(shape, generator=generator, dtype=dtype), dim=1).requires_grad_()
        for shape in shapes
    )


def contrast(model, inputs, first_own, head_bytes):
    """Logits, own maps and the gradients of a loss of both."""
    model.head_bytes = head_bytes
    logits, maps = model.contrast(*inputs, first_own)
    loss = contrastive_loss(logits) + maps.square().mean()
    return logits.detach(), maps.detach(), *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("num_sounds", "first_own"), [(9, 0), (27, 9), (27, 18)])
@pytest.mark.parametrize("rows", [1, 2, 4, 9, 20])
def test_chunks_change_nothing(model, rows, num_sounds, first_own, dtype):
    inputs = features(9, num_sounds, 32, 7, dtype)
    head_bytes = bytes_for(inputs, rows)
    assert frames_per_chunk(*inputs, head_bytes) == rows
    expected = contrast(model, inputs, first_own, None)
    chunked = contrast(model, inputs, first_own, head_bytes)
    for ours, plain in zip(chunked, expected, strict=True):
        assert ours.shape == plain.shape
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
        assert plain.isinf().any() or (ours - plain).norm() <= 1e-6 * plain.norm()


def bytes_for(inputs, rows):
    """Fewest bytes that allow so many rows, by bisection."""
    low, high = 0, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        try:
            enough = frames_per_chunk(*inputs, middle) >= rows
        except ValueError:
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return high


def test_only_a_loss_of_the_maps(model):
    """What is not used has no gradient, which must not be mistaken for one."""
    inputs = features(4, 4, 8, 3)
    model.head_bytes = bytes_for(inputs, 2)
    maps_gradient = torch.autograd.grad(model.contrast(*inputs)[1].sum(), inputs)
    model.head_bytes = None
    expected = torch.autograd.grad(model.contrast(*inputs)[1].sum(), inputs)
    torch.testing.assert_close(maps_gradient, expected)
    with torch.no_grad():
        model.head_bytes = bytes_for(inputs, 2)
        assert not model.contrast(*inputs)[0].requires_grad


def test_chunks_are_float32_under_autocast(model):
    """As in a training step: backward is called outside."""
    inputs = features(4, 4, 8, 3)
    expected = contrast(model, inputs, 0, None)
    model.head_bytes = bytes_for(inputs, 3)
    with torch.autocast("cpu", torch.bfloat16):
        logits, maps = model.contrast(*inputs)
    assert logits.dtype == maps.dtype == torch.float32
    loss = contrastive_loss(logits) + maps.square().mean()
    ours = (logits, maps, *torch.autograd.grad(loss, inputs))
    for tensor, plain in zip(ours, expected, strict=True):
        torch.testing.assert_close(tensor, plain, rtol=1e-6, atol=1e-6)


def test_too_little_memory_is_refused_in_words(model):
    inputs = features(4, 4, 8, 3)
    least = bytes_for(inputs, 1)
    model.head_bytes = least - 1
    with pytest.raises(ValueError, match=f"one frame with 4 sounds, which takes {least} bytes"):
        model.contrast(*inputs)
    model.head_bytes = least
    model.contrast(*inputs)


def peak_bytes(function):
    """Most bytes that torch's allocator held at once beyond those before, and the result."""
    results = []
    peak = profiled_peak_bytes(lambda: results.append(function()))
    return peak, results[0]


def head_peak(model, inputs, first_own, head_bytes):
    """Peak of the head, forward and backward, beyond its inputs, results and their gradients."""
    model.head_bytes = head_bytes

    def step():
        results = model.contrast(*inputs, first_own)
        ones = [torch.ones_like(result) for result in results]
        return *results, *ones, *torch.autograd.grad(results, inputs, ones)

    peak, kept = peak_bytes(step)
    return peak - sum(tensor.untyped_storage().nbytes() for tensor in kept)


def test_the_peak_is_seen():
    """The measure itself: a temporary counts, though nothing of it is left."""
    peak, _ = peak_bytes(lambda: torch.ones(MIB // 4).mul(2).sum().item())
    assert 2 * MIB <= peak < 2.1 * MIB


@pytest.mark.parametrize(
    ("num_frames", "num_sounds", "channels", "side", "limit"),
    [
        (512, 512, 16, 14, 64 * MIB),
        (64, 64, 512, 14, 8 * MIB),
        (64, 64, 512, 14, 64 * MIB),
        (64, 256, 128, 7, 4 * MIB),
        (32, 32, 8, 2, MIB // 4),
        (8, 4096, 512, 14, 96 * MIB),
        (4, 4096, 512, 14, 48 * MIB),
    ],
)
def test_the_peak_stays_below_the_limit(model, num_frames, num_sounds, channels, side, limit):
    inputs = features(num_frames, num_sounds, channels, side)
    peak = head_peak(model, inputs, 0, limit)
    assert peak <= limit
    # The bound is not met by halves: what it allows is used, but for a chunk's rounding down.
    rows = frames_per_chunk(*inputs, limit)
    assert rows == num_frames or peak > 0.5 * limit * rows / (rows + 1)


def test_without_a_limit_the_peak_is_above(model):
    assert head_peak(model, features(512, 512, 16, 14), 0, None) > 1024 * MIB


def test_a_batch_of_4096_fits_in_4_gib():
    """Features, their gradient, logits and theirs, and a limit of 512 MiB for all the rest."""
    visual = torch.empty(4096, 512, 14, 14, device="meta")
    audio = torch.empty(4096, 512, device="meta")
    logits = torch.empty(4096, 4098, device="meta")
    maps = torch.empty(4096, 14, 14, device="meta")
    limit = 512 * MIB
    assert frames_per_chunk(visual, audio, limit) >= 16
    arguments = sum(t.numel() * t.element_size() for t in (visual, audio, logits, maps))
    assert 2 * arguments + limit < 4 * 1024 * MIB
