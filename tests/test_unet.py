import pytest
import torch

from rddlib.profiles import PROFILES
from rddlib.unet import UNet, UNetConfig, sinusoids

PARAMETERS = {"cifar10": 35.75e6, "imagenet64": 116e6}  # the papers' networks


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_maps_images_to_their_shape(name):
    config = PROFILES[name]().unet
    with torch.device("meta"):
        net = UNet(config)
        z = torch.empty(2, config.image_channels, config.image_size, config.image_size)
        y = torch.zeros(2, dtype=torch.long) if config.num_classes else None
        assert net(z, torch.empty(2), y).shape == z.shape
    count = sum(p.numel() for p in net.parameters())
    assert count == pytest.approx(PARAMETERS.get(name, count), rel=0.005)


@pytest.mark.parametrize(
    "size, multipliers, blocks", [(8, (1,), 1), (12, (1, 2), 1), (16, (1, 1, 2, 2), 2), (24, (2, 1, 3), 3)]
)
def test_any_number_of_resolutions(size, multipliers, blocks):
    net = UNet(UNetConfig(size, 2, 8, multipliers, blocks, attention=(size,), groups=4))
    assert net(torch.randn(3, 2, size, size), torch.rand(3)).shape == (3, 2, size, size)


def test_attention_sits_at_the_named_resolutions_and_in_the_middle():
    net = UNet(UNetConfig(16, 1, 8, (1, 2, 2), 1, attention=(8,), groups=4))
    seen = {}
    for name, module in net.named_modules():
        if name.endswith("attention") and type(module).__name__ == "SelfAttention":
            module.register_forward_hook(
                lambda m, i, o, name=name: seen.setdefault(name.split(".")[0], []).append(o.shape[-1])
            )
    net(torch.randn(1, 1, 16, 16), torch.rand(1))
    assert seen == {"down": [8], "middle": [4], "up": [8, 8]}


def randomised(config):
    """A network without the zeros that a new one starts with."""
    net = UNet(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_starts_at_zero_and_depends_on_time_once_trained():
    net = UNet(UNetConfig(8, 1, 8, (1, 2), 1, attention=(4,), groups=4))
    z = torch.randn(2, 1, 8, 8)
    assert (net(z, torch.rand(2)) == 0).all()
    net = randomised(net.config)
    assert not torch.allclose(net(z, torch.tensor([0.1, 0.1])), net(z, torch.tensor([0.9, 0.9])))


def test_labels_are_asked_for_and_matter():
    config = UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, num_classes=3)
    net, z, t = randomised(config), torch.randn(2, 1, 8, 8), torch.rand(2)
    assert not torch.allclose(net(z, t, torch.tensor([0, 0])), net(z, t, torch.tensor([1, 2])))
    with pytest.raises(ValueError, match="pass labels"):
        net(z, t)
    with pytest.raises(ValueError, match="takes no labels"):
        UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4))(z, t, torch.tensor([0, 0]))


def test_sinusoids_interleave_sine_and_cosine():
    table = sinusoids(torch.tensor([0.0, 3.0]), 4)
    assert table[0].tolist() == [0, 1, 0, 1]
    expected = (
        torch.tensor([3.0]).sin(),
        torch.tensor([3.0]).cos(),
        torch.tensor([0.03]).sin(),
        torch.tensor([0.03]).cos(),
    )
    torch.testing.assert_close(table[1], torch.cat(expected))


@pytest.mark.parametrize("change, message", [
    (dict(image_size=10), "halved"), (dict(attention=(5,)), "attention"), (dict(groups=7), "groups"), (dict(dropout=1.0), "dropout"),
])  # fmt: skip
def test_impossible_networks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{**dict(image_size=32), **change})
