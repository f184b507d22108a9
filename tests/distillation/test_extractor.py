"""Extractors: shapes, where the map is taken, and any network as one."""

import copy
import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from tiny import same
from torch import nn

from rddlib.data import load_dataset
from rddlib.distillation.extractor import EXTRACTORS, MapExtractor, accuracy, as_extractor, build_extractor
from rddlib.distillation.objectives import CFD, RCFD, RDD
from rddlib.evaluation import load_metric_network, shipped_network_file
from rddlib.study.profiles import PROFILES
from rddlib.utils.installation import shipped

SHAPES = {  # own and text look through their teachers
    "smoke": (96, 4),
    "digits": (96, 4),
    "photos": (128, 4),
    "cifar10_small": (512, 4),
    "cifar10": (1920, 4),
    "imagenet64": (1920, 8),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_profile_builds_its_extractor(name):
    profile, (channels, side) = PROFILES[name](), SHAPES[name]
    channels_in = profile.unet.image_channels
    with torch.device("meta"):
        extractor = build_extractor(profile.extractor.name, channels_in, 10).eval()
        features = extractor(torch.empty(2, *profile.unet.image_shape))
    assert features.map.shape == (2, channels, side, side) and extractor.image_channels == channels_in
    assert features.pooled.shape == (2, channels) and features.logits.shape == (2, 10)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_map_before_and_after_the_relu(name):
    conv, relu = (build_extractor(name, 1, 10, map_at).eval() for map_at in ("conv", "relu"))
    relu.load_state_dict(conv.state_dict())
    x = torch.randn(2, 1, 16, 16)
    before, after = conv(x), relu(x)
    torch.testing.assert_close(F.relu(conv.norm(before.map)), after.map)
    assert before.map.min() < 0 <= after.map.min()
    torch.testing.assert_close(after.map.mean((2, 3)), before.pooled)
    torch.testing.assert_close(before.logits, after.logits)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_torchvisions_but_for_the_stem(name):
    from torchvision import models

    ours, theirs = build_extractor(name, 3, 10).eval(), getattr(models, name)(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x).logits, theirs(x))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="extractor"):
        build_extractor("vgg", 3, 10)
    with pytest.raises(ValueError, match="map_at"):
        build_extractor("resnet18", 3, 10, "middle")


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("photos", (3, 16, 16))])
def test_shipped_metric_networks_are_the_recorded_ones(name, shape):
    path = shipped(shipped_network_file(name))
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    network = load_metric_network(path)
    features, logits = network(torch.zeros(2, *shape))
    assert network.shape == shape and features.shape == (2, network.features) and logits.shape == (2, 10)


def test_digits_metric_network_is_as_accurate_as_recorded():
    facts = json.loads(shipped(shipped_network_file("digits")).with_suffix(".json").read_text())
    network = load_metric_network()
    measured = accuracy(network, lambda out: out[1], load_dataset("digits", "test"))
    assert measured == pytest.approx(facts["test_accuracy"], abs=0.005) and measured >= 0.98


def test_metric_network_is_another_architecture_than_every_extractor():
    kinds = lambda net: {type(m).__name__ for m in net.modules()}  # noqa: E731
    ours = kinds(load_metric_network())
    for name in EXTRACTORS:
        with torch.device("meta"):
            assert {"GroupNorm", "GELU"} <= ours - kinds(build_extractor(name, 1, 10))
    assert "BatchNorm2d" not in ours


# any network as an extractor


SHAPE = (3, 8, 8)


def plain():
    """A convolutional network that knows nothing of extractors."""
    stem = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    return nn.Sequential(stem, nn.BatchNorm2d(5), nn.GELU(), nn.Conv2d(5, 6, 3, padding=1))


def test_any_network_gives_its_map_and_its_mean():
    network = plain().eval()
    extractor, images = as_extractor(network, SHAPE), torch.randn(2, 3, 12, 12)
    features = extractor(images)
    assert isinstance(extractor, MapExtractor) and extractor.channels == 6
    assert torch.equal(features.map, network(images)) and features.logits is None
    torch.testing.assert_close(features.pooled, network(images).flatten(2).mean(2))
    assert as_extractor(nn.AvgPool2d(2), SHAPE).channels == 3  # one without parameters too
    for known in (extractor, build_extractor("small_resnet", 3, 10)):
        assert as_extractor(known, SHAPE) is known


OBJECTIVES = {
    "CFD": lambda extractor: CFD(extractor, 0.9, dual=True),
    "RDD": lambda extractor: RDD(extractor, 0.9, beta=0.5, queue_size=64, draws=16, per_image=2, weights="balanced"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_look_through_any_network(name, generator):
    network = plain()
    objective = OBJECTIVES[name](as_extractor(network, SHAPE))
    student, teacher = torch.rand(2, 4, *SHAPE, generator=generator) * 2 - 1
    before = copy.deepcopy(network)
    for _ in range(2):  # the second time with a queue
        loss = objective(student.requires_grad_(), teacher, torch.full((4,), 0.5), generator)
        objective.after_step(generator)
    loss.total.backward()
    assert loss.total.isfinite() and ("m_p2p" in loss.terms) == (name == "RDD")
    assert student.grad.isfinite().all() and (student.grad != 0).flatten(1).any(1).all()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert same(network, before)  # no statistics
    assert not {id(p) for p in network.parameters()} & {id(p) for p in objective.parameters()}


@pytest.mark.parametrize(
    "make",
    [
        lambda extractor: RCFD(extractor, 0.9, 1.0, 0.5),
        lambda extractor: CFD(extractor, 0.9, predictions=True),
        lambda extractor: RDD(extractor, 0.9, predictions=True),
    ],
)
def test_without_predictions_what_needs_them_is_refused(make):
    with pytest.raises(ValueError, match="shows a map alone, no class predictions: use CFD or RDD"):
        make(as_extractor(plain(), SHAPE))


def test_a_bare_network_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"bare module: make it one with rddlib\.as_extractor\(module"):
        CFD(plain(), 0.9)


class Returns(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)


OUTPUTS = {
    r"\[2, 192\]": lambda images: images.flatten(1),
    "tuple": lambda images: (images, images),
    r"\[1, 3, 8, 8\]": lambda images: images[:1],
}


@pytest.mark.parametrize("said", OUTPUTS)
def test_networks_of_no_map_are_refused_with_what_they_return(said):
    with pytest.raises(ValueError, match=f"the extractor returns {said} for 2 images, expected a feature map"):
        as_extractor(Returns(OUTPUTS[said]), SHAPE)


def test_a_trial_changes_nothing_of_the_network():
    network = plain().double().train()
    network[1].eval()  # batch statistics that are held
    before = copy.deepcopy(network)
    as_extractor(network, SHAPE)
    with pytest.raises(RuntimeError):
        as_extractor(network, (1, 8, 8))  # of other channels than it takes
    assert [module.training for module in network] == [True, False, True, True] and network.training
    assert same(network, before)
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float64 for p in network.parameters())
