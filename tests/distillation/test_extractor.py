import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rddlib.data import load_dataset
from rddlib.distillation.extractor import EXTRACTORS, MapExtractor, accuracy, as_extractor, build_extractor
from rddlib.distillation.objectives import CFD, RCFD, RDD
from rddlib.evaluation import load_metric_network
from rddlib.study.profiles import PROFILES

SHAPES = {"smoke": (96, 4), "digits": (96, 4), "cifar10_small": (512, 4), "cifar10": (1920, 4), "imagenet64": (1920, 8)}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_builds_its_extractor(name):
    profile, (channels, side) = PROFILES[name](), SHAPES[name]
    with torch.device("meta"):
        extractor = build_extractor(profile.extractor.name, profile.unet.image_channels, 10).eval()
        u = profile.unet
        features = extractor(torch.empty(2, u.image_channels, u.image_size, u.image_size))
    assert features.map.shape == (2, channels, side, side)
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
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x).logits, theirs(x))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="extractor"):
        build_extractor("vgg", 3, 10)
    with pytest.raises(ValueError, match="map_at"):
        build_extractor("resnet18", 3, 10, "middle")


def test_shipped_metric_network_is_as_accurate_as_recorded():
    import hashlib
    import json

    from rddlib.evaluation import DIGITS_NETWORK
    from rddlib.utils.installation import shipped

    path = shipped(f"data/{DIGITS_NETWORK}")
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size < 1_000_000
    network = load_metric_network()
    measured = accuracy(lambda images: network(images)[1], load_dataset("digits", "test"))
    assert measured == pytest.approx(facts["test_accuracy"], abs=0.005) and measured >= 0.98


def test_metric_network_is_another_architecture_than_every_extractor():
    kinds = lambda net: {type(m).__name__ for m in net.modules()}  # noqa: E731
    ours = kinds(load_metric_network())
    for name in EXTRACTORS:
        with torch.device("meta"):
            assert {"GroupNorm", "GELU"} <= ours - kinds(build_extractor(name, 1, 10))
    assert "BatchNorm2d" not in ours


# Any network as an extractor


def plain(channels=6):
    """A convolutional network that knows nothing of extractors."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.GELU(), nn.Conv2d(5, channels, 3, padding=1)
    )


def pair():
    """A student's images, which want a gradient, and a teacher's."""
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(2, 4, 3, 8, 8, generator=g) * 2 - 1
    return student.requires_grad_(), teacher


def test_any_network_gives_its_map_and_its_mean():
    network = plain().eval()
    extractor, images = as_extractor(network, (3, 8, 8)), torch.randn(2, 3, 12, 12)
    features = extractor(images)
    assert isinstance(extractor, MapExtractor) and extractor.channels == 6
    assert torch.equal(features.map, network(images)) and features.logits is None
    torch.testing.assert_close(features.pooled, network(images).flatten(2).mean(2))


OBJECTIVES = {
    "CFD": lambda extractor: CFD(extractor, 0.9),
    "CFD, dual": lambda extractor: CFD(extractor, 0.5, dual=True),
    "RDD": lambda extractor: RDD(extractor, 0.9, beta=0.5, queue_size=64, draws=16, per_image=2),
    "RDD, balanced": lambda extractor: RDD(extractor, 0.9, queue_size=64, draws=16, weights="balanced"),
    "RDD of images": lambda extractor: RDD(extractor, 0.9, relation="ii_p2p", beta=0.0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_look_through_any_network(name):
    network = plain()
    objective = OBJECTIVES[name](as_extractor(network, (3, 8, 8)))
    student, teacher = pair()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(2):  # the second time with a queue
        loss = objective(student, teacher, torch.full((4,), 0.5), torch.Generator().manual_seed(0))
        objective.after_step(torch.Generator().manual_seed(0))
    loss.total.backward()
    assert loss.total.isfinite() and all(term.isfinite() for term in loss.terms.values())
    assert ("m_p2p" in loss.terms) == (name in ("RDD", "RDD, balanced"))
    assert student.grad.isfinite().all() and (student.grad != 0).flatten(1).any(1).all()
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()
    )  # no batch statistics
    assert not any(p is q for p in network.parameters() for q in objective.parameters())


def test_cfd_through_any_network_is_that_of_its_mean():
    network, (student, teacher) = plain().eval(), pair()
    loss = CFD(as_extractor(network, (3, 8, 8)), 0.7)(student, teacher, torch.full((4,), 0.5), torch.Generator())
    p, q = ((network(x).mean((2, 3)) / tau).softmax(1) for x, tau in ((teacher, 0.7), (student, 1.0)))
    torch.testing.assert_close(loss.total, (p * (p / q).log()).sum(1).mean())


def test_an_image_like_the_teacher_s_has_no_loss_and_another_has_one():
    extractor, (student, teacher) = as_extractor(plain(), (3, 8, 8)), pair()
    objective = RDD(extractor, 1.0, beta=0.0)
    total = lambda images: float(objective(images, teacher, torch.full((4,), 0.5), torch.Generator()).total)  # noqa: E731
    assert total(teacher.clone()) == pytest.approx(0, abs=1e-6) and total(student.detach()) > 1e-4


def test_without_predictions_what_needs_them_is_refused():
    extractor = as_extractor(plain(), (3, 8, 8))
    makers = [
        lambda: RCFD(extractor, 0.9, 1.0, 0.5),
        lambda: CFD(extractor, 0.9, predictions=True),
        lambda: RDD(extractor, 0.9, predictions=True),
    ]
    for make in makers:
        with pytest.raises(ValueError, match="returns a map alone, no class predictions: use CFD or RDD"):
            make()


def test_a_bare_network_is_refused_with_the_remedy():
    for make in (lambda network: CFD(network, 0.9), lambda network: RDD(network, 0.9)):
        with pytest.raises(ValueError, match=r"bare module: make it one with rddlib\.as_extractor\(module"):
            make(plain())


class Pair(nn.Module):
    def forward(self, images):
        return images, images


class Halved(nn.Module):
    def forward(self, images):
        return images[:1]


OUTPUTS = {
    "a vector": (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), r"returns \[2, 10\] for 2 images"),
    "a tuple": (Pair(), "returns tuple for 2 images"),
    "a sequence": (nn.Flatten(2), r"returns \[2, 3, 64\] for 2 images"),
    "one map of two images": (Halved(), r"returns \[1, 3, 8, 8\] for 2 images"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_networks_of_no_map_are_refused_with_what_they_return(name):
    network, said = OUTPUTS[name]
    with pytest.raises(ValueError, match=f"the extractor {said}, expected a feature map"):
        as_extractor(network.train(), (3, 8, 8))
    assert network.training


def test_features_with_logits_are_taken_as_they_are():
    network = build_extractor("small_resnet", 3, 10)
    assert as_extractor(network, (3, 8, 8)) is network
    wrapped = as_extractor(plain(), (3, 8, 8))
    assert as_extractor(wrapped, (3, 8, 8)) is wrapped


@pytest.mark.parametrize("training", [True, False])
def test_a_trial_changes_nothing_of_the_network(training):
    network = plain().double().train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    as_extractor(network, (3, 8, 8))
    assert all(module.training == training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float64 for p in network.parameters())


def test_each_part_of_a_network_keeps_its_mode():
    network = plain().train()
    network[1].eval()  # batch statistics that are held
    as_extractor(network, (3, 8, 8))
    assert [module.training for module in network] == [True, False, True, True] and network.training
    with pytest.raises(RuntimeError):
        as_extractor(network, (1, 8, 8))  # of other channels than it takes
    assert [module.training for module in network] == [True, False, True, True] and network.training


def test_networks_without_parameters_are_tried_too():
    assert as_extractor(nn.AvgPool2d(2), (3, 8, 8)).channels == 3
