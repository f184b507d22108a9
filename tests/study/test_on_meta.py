"""Every stage of every profile trains on PyTorch's meta device, which knows shapes and devices and holds no values.

So what is made on the CPU and meets what is not, and what reads a value of the device between two logs (`.item()`, `float`,
`bool`, `.tolist()`, `.cpu()`: on a GPU each of them waits), is an error here, without a GPU.
"""

import contextlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rddlib.distillation.extractor import EXTRACTORS
from rddlib.study import graph
from rddlib.study.costs import Prober
from rddlib.study.profiles import PROFILES, load_profile
from rddlib.training import TrainConfig, Trainer
from rddlib.training import loop as training_loop
from rddlib.training.resume import State

META = torch.device("meta")
COVERING = ("pd", "pd_stages", "rcfd", "rdd", "cfd_is_pd")
aten = torch.ops.aten


class Generator(torch.Generator):
    """Says that it is on the meta device, which has none of its own."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    device = property(lambda self: META)


class Copies(TorchDispatchMode):
    """Notes copies from one device to another that the host waits for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[0] if func is aten._to_copy.default else args[1]
            waits = not ((kwargs or {}).get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,)))
            if waits and source.device != out.device:
                self.seen.append((source.shape, source.device, out.device))
        return out


def on_meta(make):
    def made(*arguments, **options):
        with META:
            return make(*arguments, **options)

    return made


@pytest.fixture
def meta(monkeypatch):
    """The meta device stands where a GPU would; no iteration is logged. What reads values before, after or for a log is
    left out."""
    for name, module in list(sys.modules.items()):
        if name.startswith("rddlib.") and hasattr(module, "training_device"):
            monkeypatch.setattr(module, "training_device", lambda: META)
        if name.startswith("rddlib.") and hasattr(module, "no_autocast"):
            monkeypatch.setattr(module, "no_autocast", lambda x: contextlib.nullcontext())  # meta has none
    alone = {"device": META, "num_processes": 1, "process_index": 0, "is_main_process": True}
    alone |= {"prepare_model": lambda model: model, "no_sync": lambda model: contextlib.nullcontext()}
    alone |= {"backward": lambda total: total.backward()}
    monkeypatch.setattr(training_loop, "process_group", lambda: SimpleNamespace(**alone))
    monkeypatch.setattr(torch, "Generator", Generator)
    supported = "_get_fused_kernels_supported_devices"
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], supported, lambda: ["meta"])
    sgd = torch.optim.SGD
    monkeypatch.setattr(
        torch.optim, "SGD", lambda groups, fused, **options: sgd(groups, **options)
    )  # not fused on meta
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda *arguments: replace(step(*arguments), logged=False))
    monkeypatch.setattr(Trainer, "_resume", lambda *_: 0)
    monkeypatch.setattr(State, "tensors", lambda self: {})
    monkeypatch.setattr(graph, "accuracy", lambda *_: 1.0)
    for name in ("build_denoiser", "new_extractor", "takes_guidance"):  # networks of that size take seconds to fill
        monkeypatch.setattr(graph, name, on_meta(getattr(graph, name)))


def stages(prober):
    """One of each kind: (its name, it). LPIPS has weights of its own, which do not come with the package; all but the smallest
    networks are spared the methods whose terms the others have."""
    yield "base", prober.plain.base
    yield "extractor", prober.plain.extractor
    yield "halving", prober.plain.teacher()
    for method in prober.profile.objectives:
        if method != "pd_lpips" and (prober.profile.name == "smoke" or method in COVERING):
            yield method, prober.plain.student(method, prober.profile.student_steps[0], prober.profile.seeds[0])
    yield "guidance", prober.guided.base
    yield "stochastic", prober.guided.stochastic("pd", prober.profile.student_steps[0], prober.profile.seeds[0])


def train(prober, name, stage):
    """Two images an iteration; the pixel queue is empty in the first."""
    config = replace(stage.config, iterations=2 if name == "rdd" else 1, batch_size=2, accumulate=1)
    network, _ = stage.fit(stage.trainer(config), *map(prober.network, stage.parents))
    assert {tensor.device for tensor in network.state_dict().values() if torch.is_tensor(tensor)} <= {META}


LARGE = ("cifar10_small", "cifar10", "imagenet64")
TRAINED = [name for name in PROFILES if PROFILES[name]().extractor.name in EXTRACTORS and name != "smoke"]  # that below


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.ci] * (n in LARGE)) for n in TRAINED])
def test_every_stage_trains_and_reads_no_value(meta, name):
    prober = Prober(load_profile(name, {}))
    for kind, stage in stages(prober):
        train(prober, kind, stage)


def test_no_iteration_waits_for_a_copy(meta, monkeypatch):
    """Of all methods, in the smoke profile."""
    backward, found = Trainer._backward, {}

    def watched(self, *arguments):
        with Copies() as copies:
            result = backward(self, *arguments)
        found.setdefault(self.label, []).extend(copies.seen)
        return result

    monkeypatch.setattr(Trainer, "_backward", watched)
    prober = Prober(load_profile("smoke", {"base.schedule": "discrete"}))  # which has a table to look into
    for kind, stage in stages(prober):
        train(prober, kind, stage)
    assert len(found) > 10 and not {label: seen for label, seen in found.items() if seen}


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda x: x.sum() * float(x.detach().mean()), "meta"),
        (lambda x: x.sum() if x.mean() > 0 else -x.sum(), "meta"),
        (lambda x: x.cpu().sum(), "meta"),
        (lambda x: x.sum() * sum(x.mean(0).tolist()), "meta"),
        (lambda x: (x + torch.ones(4)).sum(), "device"),
    ],
    ids=["float", "if", "cpu", "tolist", "another device"],
)
def test_faults_are_found(meta, wrong, words):
    def loss(model, step):
        return wrong(model(torch.zeros(2, 4, device=META))), {}

    with pytest.raises((RuntimeError, NotImplementedError), match=words):
        Trainer(TrainConfig(1, 2, 1e-3)).fit(nn.Linear(4, 4), loss, 10)


def test_a_copy_is_noticed():
    with Copies() as copies:
        torch.ones(3).to(META, non_blocking=True)
        assert not copies.seen
        torch.ones(3).to(META)
        torch.empty(3, device=META).copy_(torch.ones(3))
    assert len(copies.seen) == 2
