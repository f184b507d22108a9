"""Extractors that need no labels: a teacher's own features, and torchvision's classifiers."""

import re

import pytest
import torch
import torch.nn.functional as F
from tiny import randomised, refused
from torchvision import models

from rddlib import RDD, CosineSchedule, Denoiser, UNet, UNetConfig, as_denoiser
from rddlib.diffusion.unet import NO_CLASS
from rddlib.distillation import label_free
from rddlib.distillation.label_free import TeacherFeatures, torchvision_features
from rddlib.distillation.objectives import PDPerceptual, Sum, Term
from rddlib.utils.errors import UserError

SHAPE = (3, 16, 16)


def denoiser(**options) -> Denoiser:
    network = UNet(UNetConfig(16, 3, 8, (1, 2, 2), blocks=1, attention=(), groups=4, **options))
    return Denoiser(randomised(network, 0.1).eval(), CosineSchedule(), "v")


@pytest.mark.parametrize(("level", "block"), [(1, 4), (2, 1)])  # of the way up, the last at 8x8 and at 4x4
def test_a_teachers_features_are_what_its_network_computes_on_the_way_up(level, block, generator):
    teacher, images = denoiser(), torch.randn(2, *SHAPE, generator=generator)
    seen, t = [], torch.full((2,), 0.2, dtype=torch.float64)
    features = TeacherFeatures(teacher, SHAPE, level, 0.2)
    with torch.no_grad():
        found = features(images)
        teacher.network.up[block].register_forward_hook(lambda module, inputs, output: seen.append(output))
        teacher.network((images * teacher.schedule.alpha(t).float().view(2, 1, 1, 1)), t)
    assert torch.equal(found.map, seen[-1]) and found.map.shape[1:] == (features.channels, 16 >> level, 16 >> level)
    assert torch.allclose(found.pooled, F.layer_norm(seen[-1].mean((2, 3)), (features.channels,)))
    assert found.logits is None and not features.predicts


def test_the_relations_reach_the_image_through_a_teachers_features(generator):
    images = torch.randn(4, *SHAPE, generator=generator, requires_grad=True)
    objective = RDD(TeacherFeatures(denoiser(), SHAPE), 1.0)
    loss = objective(images, images.detach() + 0.1, torch.full((4,), 0.5), generator).total
    loss.backward()
    assert loss > 0 and images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda features: PDPerceptual(CosineSchedule(), features),
        lambda features: Sum([Term("pd"), Term("stages")], CosineSchedule(), features),
    ],
)
def test_a_teachers_features_have_no_stages(make):
    with pytest.raises(ValueError, match="stages are a trained classifier's.*name another"):
        make(TeacherFeatures(denoiser(), SHAPE))


def test_conditional_teachers_are_asked_for_no_class(generator):
    teacher, images = denoiser(num_classes=3, label_dropout=0.1), torch.randn(2, *SHAPE, generator=generator)
    asked = []
    teacher.network.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[2]))
    TeacherFeatures(teacher, SHAPE)(images)
    assert all((y == NO_CLASS).all() for y in asked) and len(asked) == 2
    with pytest.raises(ValueError, match="without label dropout needs labels"):
        TeacherFeatures(denoiser(num_classes=3), SHAPE)


def test_a_level_that_the_network_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"no map of 2x2 pixels \(level 3\): it has 8x8, 4x4"):
        TeacherFeatures(denoiser(), SHAPE, level=3)
    with pytest.raises(ValueError, match="it has none smaller than the image"):
        TeacherFeatures(as_denoiser(lambda z, t: z, CosineSchedule()), SHAPE)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of torch with random weights of a small classifier, and that classifier."""
    name = "mobilenet_v3_small"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network, weights = models.get_model(name, weights=None).eval(), models.get_model_weights(name).DEFAULT
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / weights.url.rsplit("/")[-1]
    torch.save(network.state_dict(), file)
    return name, network, weights.transforms(), file


@torch.no_grad()
def test_a_classifier_of_torchvision_sees_images_as_it_was_trained_on_them(hub, generator):
    name, network, kept, _ = hub
    features, sha256 = torchvision_features(name)
    images = torch.rand(2, 3, 20, 20, generator=generator) * 2 - 1
    x = F.interpolate(images, size=kept.crop_size * 2, mode="bilinear", antialias=True)
    x = (x.add(1).div(2) - torch.tensor(kept.mean).view(3, 1, 1)) / torch.tensor(kept.std).view(3, 1, 1)
    found = features(images)
    assert torch.allclose(found.logits, network(x), atol=1e-5) and found.map.shape == (2, 576, 7, 7)
    assert torch.allclose(found.pooled, network.avgpool(network.features(x)).flatten(1), atol=1e-5)
    assert features.channels == 576 and len(sha256) == 64
    grey = images[:, :1]
    assert torch.equal(features(grey).pooled, features(grey.expand(-1, 3, -1, -1)).pooled)


@pytest.mark.parametrize("name", ["densenet121", "vgg11", "alexnet", "resnet18", "efficientnet_b0", "regnet_y_400mf"])
def test_families_show_the_map_before_its_pooling(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # shapes alone, but a RegNet computes its widths
        features = label_free.untrained_torchvision_features(name)
        found = features(torch.zeros(1, 3, 8, 8))
    assert found.map.ndim == 4 and found.map.shape[2] > 1 and found.logits.shape == (1, 1000)


def test_weights_that_are_missing_or_damaged_and_unknown_names_are_refused(hub, monkeypatch):
    name, *_, file = hub
    file.write_bytes(file.read_bytes()[:1000])
    assert re.search(f"does not hold the weights of {name}: delete it", refused(torchvision_features, name))
    file.unlink()
    with pytest.raises(
        UserError, match=f"torchvision:{name} needs its weights: put https.* at .*extractor.download=true"
    ):
        torchvision_features(name)
    fetched = []
    monkeypatch.setattr(label_free, "fetch", lambda *call: fetched.append(call))
    assert "does not hold" in refused(torchvision_features, name, download=True)
    assert fetched[0][1] == file and fetched[0][2] == file.stem.rsplit("-")[-1]
    with pytest.raises(UserError, match=r"unknown classifier of torchvision 'resnet500' \(did you mean 'resnet50'\?\)"):
        torchvision_features("resnet500")
