"""The U-Net: shapes, where attention and conditions enter, and configurations that cannot be built."""

import copy
import dataclasses

import pytest
import torch
from tiny import randomised

from rddlib.diffusion.unet import NO_CLASS, UNet, UNetConfig, sinusoids
from rddlib.study.profiles import PROFILES

PARAMETERS = {"cifar10": 35.75e6, "imagenet64": 116e6}  # the papers' networks


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_maps_images_to_their_shape(name):
    config = PROFILES[name]().unet
    with torch.device("meta"):
        net = UNet(config)
        z = torch.empty(2, *config.image_shape)
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


def test_a_square_image_size_has_one_form_and_any_other_names_height_and_width():
    """So a square network's key, file and configuration are what they were before there were others."""
    assert UNetConfig((8, 8), 1, multipliers=(1, 2)) == UNetConfig(8, 1, multipliers=(1, 2))
    assert dataclasses.asdict(UNetConfig((32, 32)))["image_size"] == 32 and UNetConfig(32).image_shape == (3, 32, 32)
    assert UNetConfig((8, 16), 1).image_shape == (1, 8, 16)


def test_a_turned_network_makes_turned_images_of_turned_noise():
    """Height and width are alike but for the heights that say where attention sits."""
    wide = randomised(UNet(UNetConfig((8, 12), 2, 8, (1, 2), 1, attention=(8,), groups=4)), 0.3).double()
    tall = UNet(dataclasses.replace(wide.config, image_size=(12, 8), attention=(12,))).double()
    turned = {name: w.transpose(2, 3) if w.ndim == 4 else w for name, w in wide.state_dict().items()}
    tall.load_state_dict(turned)
    z, t = torch.randn(2, 2, 8, 12, dtype=torch.float64), torch.rand(2)
    torch.testing.assert_close(tall(z.transpose(2, 3), t), wide(z, t).transpose(2, 3))


def test_starts_at_zero_and_depends_on_time_once_trained():
    net = UNet(UNetConfig(8, 1, 8, (1, 2), 1, attention=(4,), groups=4))
    z = torch.randn(2, 1, 8, 8)
    assert (net(z, torch.rand(2)) == 0).all()
    net = randomised(UNet(net.config), 0.3)
    assert not torch.allclose(net(z, torch.tensor([0.1, 0.1])), net(z, torch.tensor([0.9, 0.9])))


CONDITIONAL = UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, num_classes=3)
GUIDED = dataclasses.replace(CONDITIONAL, guidance=(0.0, 4.0))


def test_labels_are_asked_for_and_matter():
    net, z, t = randomised(UNet(CONDITIONAL), 0.3), torch.randn(2, 1, 8, 8), torch.rand(2)
    assert not torch.allclose(net(z, t, torch.tensor([0, 0])), net(z, t, torch.tensor([1, 2])))
    with pytest.raises(ValueError, match="pass labels"):
        net(z, t)
    with pytest.raises(ValueError, match="takes no labels"):
        UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4))(z, t, torch.tensor([0, 0]))


def test_no_class_is_the_bias_of_the_label_embedding_alone():
    net, z, t = randomised(UNet(CONDITIONAL), 0.3), torch.randn(4, 1, 8, 8), torch.rand(4)
    y = torch.tensor([NO_CLASS, 0, 2, NO_CLASS])
    with torch.no_grad():
        time = net.time_embedding(sinusoids(t * 1024, 8))
        weight, bias = net.label_embedding.weight, net.label_embedding.bias
        columns = torch.stack([0 * bias, weight[:, 0], weight[:, 2], 0 * bias])
        torch.testing.assert_close(net.embed(t, y), time + columns + bias)
        # what remains of a network that has forgotten its classes, whatever the label
        without = copy.deepcopy(net)
        without.label_embedding.weight.zero_()
        nobody = torch.full((4,), NO_CLASS)
        torch.testing.assert_close(net(z, t, nobody), without(z, t, torch.tensor([0, 1, 2, 0])))
        assert not torch.allclose(net(z, t, nobody), net(z, t, torch.tensor([0, 1, 2, 0])))


def test_labels_beyond_the_classes_are_refused():
    net, z, t = UNet(CONDITIONAL), torch.randn(2, 1, 8, 8), torch.rand(2)
    for wrong in (3, NO_CLASS - 1):
        with pytest.raises(RuntimeError, match="[Cc]lass values"):
            net(z, t, torch.tensor([0, wrong]))


def guided_twin(net):
    """The same network with a new guidance branch."""
    twin = UNet(dataclasses.replace(net.config, guidance=(0.0, 4.0)))
    missing, unexpected = twin.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"guidance_embedding"}
    return twin


def test_a_guidance_branch_changes_nothing_until_it_is_trained_and_then_tells_weights_apart():
    plain, z, t, y = randomised(UNet(CONDITIONAL), 0.3), torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    net = guided_twin(plain)
    out = net(z, t, y, torch.tensor([-1.0, 4.0]))
    assert torch.equal(out, plain(z, t, y))
    out.sum().backward()
    assert net.guidance_embedding[-1].weight.grad.abs().max() > 0  # zeros, but no dead end
    torch.nn.init.normal_(net.guidance_embedding[-1].weight, std=0.3)
    out = torch.stack([net(z, t, y, torch.full((2,), w)) for w in (0.0, 0.01, 1.0, 1.01, 4.0)])
    apart = (out[:, None] - out[None]).abs().amax((2, 3, 4, 5))
    assert apart[~torch.eye(5, dtype=torch.bool)].min() > 1e-3
    # each image by its own weight
    both = net(z, t, y, torch.tensor([0.0, 4.0]))
    torch.testing.assert_close(both, torch.stack([out[0, 0], out[4, 1]]))


def test_weights_are_asked_for_and_refused():
    z, t, y, w = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1]), torch.ones(2)
    with pytest.raises(ValueError, match="takes guidance weights w: pass them"):
        UNet(GUIDED)(z, t, y)
    with pytest.raises(ValueError, match="takes no guidance weights w"):
        UNet(CONDITIONAL)(z, t, y, w)
    with pytest.raises(ValueError, match="pass labels"):
        UNet(GUIDED)(z, t, None, w)


def test_sinusoids_interleave_sine_and_cosine():
    table = sinusoids(torch.tensor([0.0, 3.0]), 4)
    assert table[0].tolist() == [0, 1, 0, 1]
    angles = torch.tensor([3.0, 0.03])
    torch.testing.assert_close(table[1], torch.stack([angles.sin(), angles.cos()], dim=1).flatten())


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(channels=0), "channels is 0"),
        (dict(num_classes=-1), "num_classes is -1"),
        (dict(image_size=10), "halved"),
        (dict(image_size=(32, 20)), "image_size 32x20 cannot be halved 3 times"),
        (dict(image_size=(32,)), "image_size lists 32, expected a number, or height and width"),
        (dict(image_size=(32, 0)), "image_size is 32x0, expected at least 1"),
        (dict(attention=(5,)), "attention"),
        (dict(groups=7), "groups"),
        (dict(channels=4, multipliers=(2, 4), groups=8, attention=()), "groups 8 does not divide channels 4, or them"),
        (dict(dropout=1.0), "dropout"),
    ],
)
def test_impossible_networks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{**dict(image_size=32), **change})


def test_guidance_and_label_dropout_are_for_networks_with_classes():
    for change in (dict(label_dropout=0.1), dict(guidance=(0.0, 4.0))):
        with pytest.raises(ValueError, match="class-conditional networks: set num_classes"):
            UNetConfig(**change)
        UNetConfig(num_classes=10, **change)
    with pytest.raises(ValueError, match=r"label_dropout .* outside \[0, 1\)"):
        UNetConfig(num_classes=10, label_dropout=1.0)
    for guidance in ((1.0,), (4.0, 0.0), (-1.5, 4.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="expected nothing, or w_min and w_max with -1 <= w_min < w_max"):
            UNetConfig(num_classes=10, guidance=guidance)
    assert UNetConfig(num_classes=10, guidance=(-1.0, 0.5)).guidance == (-1.0, 0.5)  # -1: unconditional, the least
