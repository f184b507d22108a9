"""What is recorded as a CUDA graph, and when; that the numbers stay is in test_on_device."""

import copy

import pytest
import torch
from tiny import conditional_denoiser, tiny_denoiser
from torch import nn
from torch.utils._pytree import tree_leaves

from rddlib.data import DataConfig, load_dataset
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.train import distill
from rddlib.methods import build_objective
from rddlib.study.profiles import load_profile
from rddlib.training import RunConfig, TrainConfig, Trainer
from rddlib.training import graphs as graphs_module
from rddlib.training.graphs import MOST, Recorded, recorded
from rddlib.training.hardware import plain


@pytest.fixture
def recordings(monkeypatch):
    """The inputs of each recording, where a graph is played by the call itself, and overwrites what it returned before, as
    graphs do."""
    made, place = [], {}

    def record(call, inputs, allow_unused_input):
        made.append(inputs)

        def replay(*inputs):
            found = call(*inputs)
            for old, new in zip(place.get(call, ()), tree_leaves(found), strict=False):
                old.data.copy_(new.data)
            place[call] = tree_leaves(found)
            return found

        return replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    return made


def inputs_of(count):
    return torch.randn(count, 1, 8, 8), torch.full((count,), 0.5, dtype=torch.float64), torch.arange(count)


def network_of(trained):
    """One whose outputs are not zeros."""
    return conditional_denoiser().network.requires_grad_(trained)


def test_each_kind_of_input_is_recorded_once_up_to_a_number(recordings):
    network = network_of(trained=False)
    call = Recorded(network)
    for count in (1, 2, 1, 3, 4, 5, 6, 6):
        inputs = inputs_of(count)
        assert torch.equal(call(*inputs), network(*inputs)) and network(*inputs).any()
    assert [len(z) for z, *_ in recordings] == [1, 2, 3, 4] and MOST == 4


def test_training_and_its_absence_are_kinds_of_their_own(recordings):
    network = network_of(trained=True)
    call = Recorded(network)
    for grad, training in ((True, True), (False, True), (False, False)):
        network.train(training)
        with torch.set_grad_enabled(grad):
            call(*inputs_of(2))
    assert len(recordings) == 3


def test_what_was_returned_stays(recordings):
    """Teachers are asked twice a step, and a graph writes to the same place each time."""
    call, (z, t, y) = Recorded(network_of(trained=False)), inputs_of(2)
    first = call(z, t, y)
    before = first.clone()
    assert not torch.equal(call(z + 1, t, y), before) and torch.equal(first, before)


def test_a_gradient_at_the_input_is_a_kind_of_its_own(recordings):
    network, (z, t, y) = network_of(trained=False), inputs_of(2)
    call, seen = Recorded(network), z.clone().requires_grad_()
    call(z, t, y)
    (found,) = torch.autograd.grad(call(seen, t, y).sum(), seen)
    assert torch.equal(found, torch.autograd.grad(network(seen, t, y).sum(), seen)[0])
    assert [inputs[0].requires_grad for inputs in recordings] == [False, True]


@pytest.mark.parametrize("method", ["rdd", "cfd_is_pd"])
def test_a_student_learns_through_recorded_networks_as_through_others(recordings, monkeypatch, method):
    """Student, teacher and extractor; the sum takes several gradients of one look."""
    profile, losses = load_profile("smoke"), {}
    for graphs in ("never", "auto"):
        monkeypatch.setattr(graphs_module, "_records", lambda network, run: run.graphs == "auto")
        torch.manual_seed(1)
        teacher, extractor = tiny_denoiser(), build_extractor("small_resnet", 1, 10).eval()
        objective = build_objective(profile.method(method), profile.loss, 0.9, teacher.schedule, extractor, 2)
        trainer = Trainer(TrainConfig(3, 8, 1e-3), seed=3, run=RunConfig(log_every=1, graphs=graphs))
        distill(teacher, load_dataset(DataConfig("digits"), "train"), 2, objective, trainer)
        losses[graphs] = [record["loss"] for record in trainer.history]
        assert extractor._compiled_call_impl is None
    assert losses["auto"] == losses["never"]
    looks = [inputs[0].requires_grad for inputs in recordings if len(inputs) == 1]
    assert sorted(looks) == [False, True] and len(recordings) > len(looks)


def test_nothing_is_recorded_on_a_cpu_and_plain_and_copies_undo_it():
    denoiser = recorded(tiny_denoiser(), RunConfig())
    assert denoiser.network._compiled_call_impl is None
    denoiser.network._compiled_call_impl = Recorded(denoiser.network)
    assert copy.deepcopy(denoiser).network._compiled_call_impl is None
    assert plain(nn.Sequential(denoiser))[0].network._compiled_call_impl is None
