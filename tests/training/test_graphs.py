"""What is recorded as a CUDA graph, and when; that the numbers stay is in test_on_device."""

import copy

import pytest
import torch
from tiny import conditional_denoiser, tiny_denoiser
from torch import nn

from rddlib.training import RunConfig
from rddlib.training.graphs import MOST, Recorded, recorded
from rddlib.training.hardware import plain


@pytest.fixture
def recordings(monkeypatch):
    """The inputs of each recording, where a graph is played by the call itself, and writes to one place as graphs do."""
    made, place = [], {}

    def record(call, inputs, allow_unused_input):
        made.append(inputs)

        def replay(*inputs):
            found = call(*inputs)
            return place.setdefault(call, torch.empty_like(found)).copy_(found)

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


def test_a_gradient_at_the_input_is_not_recorded(recordings):
    z, t, y = inputs_of(2)
    Recorded(network_of(trained=True))(z.requires_grad_(), t, y).sum().backward()
    assert not recordings and z.grad is not None


def test_nothing_is_recorded_on_a_cpu_and_plain_and_copies_undo_it():
    denoiser = recorded(tiny_denoiser(), RunConfig())
    assert denoiser.network._compiled_call_impl is None
    denoiser.network._compiled_call_impl = Recorded(denoiser.network)
    assert copy.deepcopy(denoiser).network._compiled_call_impl is None
    assert plain(nn.Sequential(denoiser))[0].network._compiled_call_impl is None
