"""Training steps and scoring on a GPU that is not there: shapes, devices, and what would be waited for.

Tensors on cuda:0 are PyTorch's fake ones, which have a shape and a device but no values. Tensors on the CPU
are real, so that what is drawn there is drawn as ever.
"""

import pytest
import torch
from method_inputs import batch_of
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import opts
from models import METHODS
from utils.evaluation import protocols
from utils.evaluation.protocols import PROTOCOLS, predict

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is there")
CUDA = torch.device("cuda:0")
WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class FakeCUDA(TorchDispatchMode):
    """Answers what is on cuda:0 with fake tensors, and notes what a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.fake, self.waits = FakeTensorMode(allow_non_fake_inputs=True), []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        leaves = tree_leaves((arguments, keywords or {}))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim}
        devices |= {leaf.type for leaf in leaves if isinstance(leaf, torch.device)}
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves) and "cuda" not in devices:
            return operation(*arguments, **keywords or {})
        blocks = operation in COPIES and not (keywords or {}).get("non_blocking")
        if operation in WAITING or (blocks and "cpu" in devices):
            self.waits.append(operation)
        with self.fake:
            return operation(*arguments, **keywords or {})


@pytest.fixture(params=METHODS)
def options(request, tmp_path):
    arguments = [request.param, "--train-set", "vggsound", "--data-root", ".", "--output", str(tmp_path)]
    return opts.parse_train_options(arguments + ["--random-init"] * (request.param == "sspl"))


@pytest.fixture
def cuda(monkeypatch):
    """The mode; in it, pictures are sampled by shape."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)  # which looks for a driver
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    monkeypatch.setattr(torch.nn.functional, "grid_sample", sample_by_shape)
    monkeypatch.setattr(torch, "Generator", GeneratorOnCPU)
    with FakeCUDA() as mode:
        yield mode
    torch.__future__.set_overwrite_module_params_on_conversion(False)


class GeneratorOnCPU(torch.Generator):
    """What stands for a generator on the device: PyTorch has no fake ones."""

    def __new__(cls, device=None):
        return super().__new__(cls)


def sample_by_shape(pictures, grid, **_):
    assert pictures.device == grid.device
    return pictures.new_empty((*pictures.shape[:2], *grid.shape[1:3]))


def test_training_step_waits_for_nothing_and_leaves_nothing_on_the_cpu(options, cuda):
    model = METHODS[options.method].model.from_options(options).train().to(CUDA)
    size = model.training_frame_size + 32 * model.random_crop
    batch = batch_of(model, [(size, size)] * 4).to(CUDA)
    cuda.waits.clear()

    output = model(**model.augment(batch, seed=1))

    assert cuda.waits == []
    assert output.loss.device == output.similarity_map.device == CUDA
    assert {term.device for term in output.terms.values()} == {CUDA}
    side = options.frame.frame_size
    maps = model.eval().localise(*model.prepare(batch.frames[:, :, :side, :side], batch.waveforms))
    assert maps.device == CUDA
    assert maps.ndim == 3


@pytest.mark.parametrize("name", PROTOCOLS)
def test_scoring_rules_stay_on_the_device(name, cuda, monkeypatch):
    if PROTOCOLS[name].upsampling == "cv2_linear":  # OpenCV enlarges on the CPU
        monkeypatch.setattr(protocols, "upsample", lambda maps, _: maps.new_empty(len(maps), 224, 224))
    maps = torch.empty(4, 14, 14, device=CUDA)

    (prediction,) = predict(maps, [PROTOCOLS[name]], torch.full((4,), 9))

    assert prediction.localisation_maps.device == prediction.masks.device == CUDA
