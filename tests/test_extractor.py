import pytest
import torch
import torch.nn.functional as F

from rddlib.data import load_dataset
from rddlib.evaluation import load_metric_network
from rddlib.extractor import EXTRACTORS, accuracy, build_extractor
from rddlib.profiles import PROFILES

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
    from rddlib.installation import shipped

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
