"""In what trains, a tensor is made on the device where it is used, or there is a reason; and all of it compiles whole."""

import ast
import shutil
from pathlib import Path

import pytest
import torch
from tiny import conditional_denoiser, tiny_denoiser
from torch._dynamo.utils import counters

from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.losses import cfd_loss, diversity_loss, entropy_loss, ii_p2p_loss, is_p2p_loss, m_p2p_loss, pd_loss
from rddlib.training import RunConfig, hardware

TOP = Path(__file__).resolve().parents[1]
TRAINS = ("losses", "distillation", "diffusion", "training")
MAKERS = ("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint")
MAKERS += ("randn", "randperm", "tensor", "zeros")
BUFFER = "a buffer, which moves with its module"
ROWS = "numbers of rows, which stay on the CPU beside the data set"
STATE = "a few numbers for a checkpoint, read back as numbers"
TABLE = "a table made once, sent to where it is looked into"
EXAMPLE = "an example for notebooks, in float64 on the CPU"
WITHOUT_DEVICE = {
    "diffusion/gaussian_mixture.py": {
        "torch.as_tensor(a, dtype=torch.float64)": EXAMPLE,
        "torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)": EXAMPLE,
    },
    "diffusion/samplers.py": {"torch.arange(1, size + 1, dtype=torch.float64)": TABLE},
    "diffusion/schedule.py": {
        "torch.as_tensor(t, dtype=torch.float64)": "leaves a tensor where it is",
        "torch.arange(self.steps + 2, dtype=torch.float64)": TABLE,
        "torch.tensor(self.betas, dtype=torch.float64)": TABLE,
    },
    "diffusion/unet.py": {"torch.arange(c.time_grid + 1)": BUFFER},
    "distillation/extractor.py": {
        "torch.arange(start, min(start + batch_size, len(dataset)))": ROWS,
        "torch.zeros(())": "says which device a function without parameters is on: the CPU",
    },
    "distillation/label_free.py": {
        "torch.zeros(())": "says which device a function without parameters is on: the CPU",
        "torch.tensor(mean)": BUFFER,
        "torch.tensor(std)": BUFFER,
    },
    "distillation/objectives.py": {
        "torch.tensor([float(self.count), *(-1.0 if norm is None else float(norm) for norm in norms)])": STATE,
        "torch.tensor(float(len(self.queue)))": "a number for the log, which no device has to be asked for",
    },
    "distillation/pixel_queue.py": {
        "torch.randn(size, channels)": BUFFER,
        "torch.tensor([self.pushed])": STATE,
        "torch.zeros(size, *shape)": BUFFER,
    },
    "distillation/train.py": {
        "torch.arange(count)": ROWS,
        "torch.randn(count, *dataset.images.shape[1:], generator=generator)": "the same noise on every machine, then moved",
        "torch.randperm(len(test), generator=torch.Generator().manual_seed(METRIC_SEED))": ROWS,
    },
    "training/batches.py": {
        "torch.empty(0, dtype=torch.long)": ROWS,
        "torch.randperm(self.rows, generator=generator)": ROWS,
    },
}


def made_without_device(source):
    """The calls of torch's functions that make a tensor from nothing and do not say on which device."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [call for call in calls if ast.unparse(call.func).removeprefix("torch.") in MAKERS]
    made = [call for call in made if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "torch"]
    return {ast.unparse(call) for call in made if "device" not in {word.arg for word in call.keywords}}


def test_tensors_are_made_on_a_device_or_for_a_reason():
    found = {}
    for folder in TRAINS:
        for path in (TOP / "rddlib" / folder).glob("*.py"):
            if calls := made_without_device(path.read_text()):
                found[f"{folder}/{path.name}"] = calls
    assert found == {path: set(reasons) for path, reasons in WITHOUT_DEVICE.items()}


def test_a_tensor_of_no_device_is_found():
    wrong = "def f(x):\n    return x + torch.zeros(3) + torch.zeros(3, device=x.device) + x.new_zeros(3) + zeros(3)"
    assert made_without_device(wrong) == {"torch.zeros(3)"}


# compiled whole: a graph break would raise


def compiled(function, backend="inductor"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler on a CPU"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("build", [tiny_denoiser, conditional_denoiser], ids=["plain", "of classes"])
def test_denoisers_compile_whole(build):
    denoiser, t = build().double().requires_grad_(True), torch.tensor([0.1, 0.5, 1.0]).double()
    y, z = torch.tensor([0, 3, -1]) if denoiser.num_classes else None, torch.randn(3, 1, 8, 8).double()

    def look(z):
        return denoiser(z, t, y)

    parameters = list(denoiser.parameters())
    found, expected = compiled(look)(z), look(z)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(
            torch.autograd.grad(x.square().sum(), parameters, allow_unused=True, materialize_grads=True)
            for x in (found, expected)
        )
    )


@pytest.mark.slow
@needs_compiler
def test_blocks_compile_one_by_one():
    """Three kinds among seven blocks, and what follows them, each once for training and once for sampling; values and gradients as before."""
    network = UNet(UNetConfig(8, 1, 8, (1,), blocks=2, attention=(), groups=4))
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # a new network outputs 0
    z, t, parameters = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0]), list(network.parameters())

    def found() -> list:
        with torch.no_grad():
            sampled = network(z, t)
        return [sampled, *torch.autograd.grad(network(z, t).square().sum(), parameters)]

    expected = found()
    torch._dynamo.reset()
    counters.clear()
    hardware.compiled(network, RunConfig(compile="blocks"))
    for _ in range(2):  # nothing is compiled again
        torch.testing.assert_close(found(), expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 4 * 2 and not counters["graph_break"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name, backend", [("small_resnet", "inductor"), ("densenet201", "aot_eager")])
def test_extractors_compile_whole(name, backend):
    """Inductor would take minutes for the 201 layers; that they are one graph is seen without it."""
    extractor, images = build_extractor(name, 1, 10).eval(), torch.randn(2, 1, 16, 16)
    found, expected = compiled(extractor, backend)(images), extractor(images)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_losses_compile_whole(impl):
    map_T, E, t = torch.randn(4, 6, 2, 2).double(), torch.eye(6).double(), torch.tensor([0.2, 0.4, 0.6, 1.0]).double()
    schedule = tiny_denoiser().schedule

    def total(x):
        relations = is_p2p_loss(x, map_T, 0.5, impl=impl, chunk=3) + m_p2p_loss(x, map_T, E, 0.5, impl=impl, chunk=3)
        pooled = x.mean((2, 3))
        points = cfd_loss(pooled, map_T.mean((2, 3)), 0.9) + entropy_loss(pooled) + diversity_loss(pooled)
        return relations + ii_p2p_loss(x, map_T, 0.5) + points + pd_loss(x, map_T, t, schedule)

    x = torch.randn(4, 6, 2, 2).double().requires_grad_()
    run = compiled(total)
    torch.testing.assert_close(run(x), total(x))
    torch.testing.assert_close(torch.autograd.grad(run(x), x), torch.autograd.grad(total(x), x))
