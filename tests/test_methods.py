"""The table of methods: each trains a student, and says which numbers its objective takes."""

import math
import re
from dataclasses import dataclass

import pytest
import torch
from tiny import QUEUE, refused, same, tiny_denoiser

from rddlib.data import load_dataset
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.train import distill
from rddlib.losses import pd_loss
from rddlib.methods import COMPETING, METHODS, OBJECTIVES, SUMS, LossConfig, build_objective, own_methods
from rddlib.study.profiles import load_profile
from rddlib.training import RunConfig, TrainConfig, Trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # lpips calls it in its old way

TERMS = {
    "pd": {"pd"},
    "pd_lpips": {"pd", "lpips"},
    "pd_stages": {"pd", "stages"},
    "cfd": {"cfd"},
    "rcfd": {"cfd", "entropy", "diversity"},
    "rdd": {"cfd", "is_p2p", "m_p2p"},
    "cfd_is": {"cfd", "is_p2p"},
    "cfd_pd": {"cfd", "pd"},
    "cfd_is_pd": {"cfd", "is_p2p", "pd"},
}


@pytest.fixture
def random_lpips(monkeypatch):
    """LPIPS on a small network that was never trained, so that nothing is downloaded."""
    lpips = pytest.importorskip("lpips")
    network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).requires_grad_(False).eval()
    monkeypatch.setattr("rddlib.methods.load_lpips", lambda: network)


def built(method, schedule, **changes):
    torch.manual_seed(0)
    loss = LossConfig(**{**QUEUE, **changes})
    return build_objective(METHODS[method], loss, 0.9, schedule, build_extractor("small_resnet", 1, 10))


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_method_trains_a_student(method, request):
    if method == "pd_lpips":
        request.getfixturevalue("random_lpips")
    teacher, trainer = tiny_denoiser(), Trainer(TrainConfig(2, 8, 1e-3), run=RunConfig(log_every=1))
    student = distill(teacher, load_dataset("digits"), 2, built(method, teacher.schedule), trainer)
    last = trainer.history[-1]
    assert set(TERMS[method]) <= set(last) and math.isfinite(last["loss"]) and 0 < last["gradient"] < math.inf
    assert not same(student, teacher)


@pytest.mark.usefixtures("random_lpips")
def test_lpips_stands_beside_pd_with_its_weight(generator):
    schedule = tiny_denoiser().schedule
    x_student, x_teacher = torch.rand(2, 2, 1, 8, 8, generator=generator) * 2 - 1
    t = torch.tensor([0.5, 1.0])
    objective = built("pd_lpips", schedule, perceptual=3.0)
    total, terms = objective(x_student, x_teacher, t, generator)
    torch.testing.assert_close(total, pd_loss(x_student, x_teacher, t, schedule) + 3 * terms["lpips"])
    assert terms["lpips"] > 0 and objective(x_teacher, x_teacher, t, generator).total == 0


def test_arguments_are_named_so_that_a_new_number_changes_no_student_s_key():
    @dataclass(frozen=True)
    class Later(LossConfig):
        new: float = 1.0

    assert METHODS["rdd"].arguments(LossConfig(), 0.9, 1).keys() == {
        *("temperature", "dual", "predictions", "cfd", "alpha", "beta", "tau_is", "tau_m"),
        *("queue_size", "draws", "per_image", "relation", "impl", "weights", "released"),
    }
    for method in METHODS.values():
        assert method.arguments(Later(), 0.9, 1) == method.arguments(LossConfig(), 0.9, 1)


@pytest.mark.parametrize(("term", "impl"), [("is_p2p", "chunked"), ("m_p2p(head=none)", "chunked"), ("ii_p2p", "auto")])
def test_sums_with_relations_heed_how_they_are_computed_and_what_was_released(term, impl):
    """By default neither is an argument, so that keys stay; in a sum without relations neither ever is."""
    loss = LossConfig(impl="chunked", released=("local_batch", "same_seed"))
    method = own_methods((f"ours = cfd + {term}",))["ours"]
    made = build_objective(method, loss, 0.9, CosineSchedule(), build_extractor("small_resnet", 1, 10))
    assert made.impl == impl and made.released == set(loss.released)
    assert not {"impl", "released"} & method.arguments(LossConfig(), 0.9, 1).keys()
    plain = METHODS["cfd_pd"]
    assert plain.arguments(loss, 0.9, 1) == plain.arguments(LossConfig(), 0.9, 1)


def test_the_table_is_whole():
    assert set(OBJECTIVES) == set(TERMS) and {*COMPETING, *SUMS} <= set(OBJECTIVES)
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
    assert len({tuple(method.style.values()) for method in METHODS.values()}) == len(METHODS)
    # those that share a figure are told apart without colour
    markers = [METHODS[method].style["marker"] for method in (*COMPETING, *SUMS, "ddim", "pndm", "dpm-solver")]
    assert len(set(markers)) == len(markers)
    assert re.search(
        "unknown method 'rdf'.*did you mean 'rdd'.*: known are pd, ", refused(load_profile("smoke").method, "rdf")
    )
