"""rddlib.interop.released against networks written here once more, from the tensor names of the published files alone.

The references below know torch.nn.functional and a dict of tensors, nothing of rddlib's networks, and compute in float64.
"""

import math
import random
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import released_tensors
from tiny import Bomb, refused

from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import DiscreteCosineSchedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.interop.released import (
    DENSENET_NAMES,
    UNET_NAMES,
    is_classifier,
    load_released_classifier,
    load_released_unet,
    read_tensors,
)

TABLE = "time_embedding.timembedding.0.weight"
DIGESTS = ["ef7242407d881812", "22048f28090c0d46", "8119827969340337"]
GRID = 1024
ROUNDING = 1e-5  # of float32 against float64, as a share of the largest number compared
DENSENET_LAYERS = (6, 12, 48, 32)


# --- the published files: names and shapes ---------------------------------------------------------------------------


TINY = UNetConfig(8, 3, 32, (1, 2), 1, (4,), groups=32)
SPECS = {
    "unconditional": replace(TINY, image_size=32, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,)),
    "conditional": replace(TINY, image_size=64, multipliers=(1, 2, 3, 4), blocks=3, attention=(16, 8), num_classes=10),
    "wide": replace(TINY, image_size=16, channels=64, attention=(16,)),
    "one level": replace(TINY, multipliers=(1,), attention=(), num_classes=3),
    "wider than its head": UNetConfig(16, 1, 32, (2, 1, 3), 2, (16, 4), groups=32, num_classes=4),
    "96 channels": UNetConfig(8, 1, 96, (1, 1), 1, (8, 4), groups=32),
}


def shapes_of(make, rules):
    """{released name: shape} of a network's tensors, by the inverse of the names."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in released_tensors(make(), rules).items()}


def unet_shapes(spec):
    """Less its table of sinusoids."""
    return shapes_of(lambda: UNet(spec), UNET_NAMES)


def densenet_shapes(image_channels=3, classes=10):
    return shapes_of(lambda: build_extractor("densenet201", image_channels, classes), DENSENET_NAMES)


# --- the published files: numbers ------------------------------------------------------------------------------------


def filled(shapes, seed=0):
    """Random tensors of these names and shapes that keep activations near 1, none of them at its usual initial value."""
    generator = torch.Generator().manual_seed(seed)

    def fill(name, shape):
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if name.endswith("running_var"):
            return 0.7 + 0.3 * noise.abs()
        if len(shape) == 1:  # the weights of norms about 1, what is added about 0
            return 0.2 * noise + (1 if name.endswith("weight") else 0)
        return noise / math.prod(shape[1:]) ** 0.5

    return {name: fill(name, shape) for name, shape in shapes.items()}


def hollow(shapes):
    """Zeros of these names and shapes."""
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def sinusoid_table(rows, channels):
    """Row p: sin(p w_0), cos(p w_0), sin(p w_1), ..., w_i = 10000^(-2i/channels)."""
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(rows, channels).float()


def unet_tensors(spec, grid=GRID, seed=0):
    return {TABLE: sinusoid_table(grid + 1, spec.channels), **filled(unet_shapes(spec), seed)}


def unet_file(spec, tensors, steps=8, scale=128, **more):
    noise = torch.zeros(2, spec.image_channels, spec.image_size, spec.image_size)
    return {"net_model": tensors, "x_T": noise, "T": steps, "time_scale": scale, **more}


def hollow_file(steps=8, scale=128):
    shapes = {TABLE: (steps * scale + 1, TINY.channels), **unet_shapes(TINY)}
    return unet_file(TINY, hollow(shapes), steps, scale)


def saved(folder, file, **options):
    path = folder / "ckpt.pt"
    torch.save(file, path, **options)
    return path


# --- the published networks ------------------------------------------------------------------------------------------


def conv(w, name, h, padding=0, stride=1):
    return F.conv2d(h, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)


def linear(w, name, h):
    return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])


def norm_silu_conv(w, norm, convolution, h):
    return conv(w, convolution, F.silu(group_norm(w, norm, h)), padding=1)


def group_norm(w, name, h):
    return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"])


def attend(w, name, h):
    q, k, v = (conv(w, f"{name}.proj_{part}", group_norm(w, f"{name}.group_norm", h)).flatten(2) for part in "qkv")
    weights = (q.mT @ k * q.shape[1] ** -0.5).softmax(dim=2)  # [N, H*W of q, H*W of k]
    return h + conv(w, f"{name}.proj", (v @ weights.mT).reshape(h.shape))


def block(w, name, h, embedding):
    out = norm_silu_conv(w, f"{name}.block1.0", f"{name}.block1.2", h)
    out = out + linear(w, f"{name}.temb_proj.1", F.silu(embedding))[:, :, None, None]
    out = norm_silu_conv(w, f"{name}.block2.0", f"{name}.block2.3", out)
    out = out + (conv(w, f"{name}.shortcut", h) if f"{name}.shortcut.weight" in w else h)
    return attend(w, f"{name}.attn", out) if f"{name}.attn.proj.weight" in w else out


def entries(w, path):
    """The names path.0, path.1, ... that there are, and of each whether it is a resampling convolution."""
    number = 0
    while any(name.startswith(f"{path}.{number}.") for name in w):
        yield f"{path}.{number}", f"{path}.{number}.main.weight" in w
        number += 1


def unet_reference(tensors, z, p, y=None):
    """The published U-Net's x at the grid's indices p [N], in float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    embedding = F.silu(linear(w, "time_embedding.timembedding.1", w[TABLE][p]))
    embedding = linear(w, "time_embedding.timembedding.3", embedding)
    if y is not None:
        embedding = embedding + linear(w, "y_embedding", F.one_hot(y, w["y_embedding.weight"].shape[1]).double())
    h = conv(w, "head", z.double(), padding=1)
    skips = [h]
    for name, resamples in entries(w, "downblocks"):
        h = conv(w, f"{name}.main", h, padding=1, stride=2) if resamples else block(w, name, h, embedding)
        skips.append(h)
    for name, _ in entries(w, "middleblocks"):
        h = block(w, name, h, embedding)
    for name, resamples in entries(w, "upblocks"):
        if resamples:
            h = conv(w, f"{name}.main", h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), padding=1)
        else:
            h = block(w, name, torch.cat([h, skips.pop()], dim=1), embedding)
    return norm_silu_conv(w, "tail.0", "tail.2", h)


def norm_relu(w, name, h):
    numbers = (w[f"{name}.{number}"] for number in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(h, *numbers))


def densenet_reference(tensors, images):
    """(the map before the final norm, the map after its ReLU, pooled, logits), in float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    h = norm_relu(w, "features.norm0", conv(w, "features.conv0", images.double(), padding=1))
    for number, layers in enumerate(DENSENET_LAYERS, 1):
        for layer in range(1, layers + 1):
            name = f"block{number}.denselayer{layer}"
            new = conv(w, f"{name}.conv1", norm_relu(w, f"{name}.norm1", h))
            new = conv(w, f"{name}.conv2", norm_relu(w, f"{name}.norm2", new), padding=1)
            h = torch.cat([h, new], dim=1)
        if number < len(DENSENET_LAYERS):
            h = F.avg_pool2d(conv(w, f"trans{number}.conv", norm_relu(w, f"trans{number}.norm", h)), 2)
    relu = norm_relu(w, "final_norm", h)
    pooled = relu.mean(dim=(2, 3))
    return h, relu, pooled, linear(w, "fc", pooled)


def alpha_bars(grid):
    """alpha_p^2 for p = 0, ..., grid: the betas of a cosine on grid + 1 steps, capped at 0.999."""

    def f(k):
        return math.cos((k / (grid + 1) + 0.008) / 1.008 * math.pi / 2) ** 2

    bars = [1.0]
    for k in range(grid + 1):
        bars.append(bars[-1] * (1 - min(1 - f(k + 1) / f(k), 0.999)))
    return bars[1:]


def sample_reference(tensors, noise, steps, grid, y=None):
    """The published sampler in float64, and the largest |x| that it clipped."""
    bars, stride, z, largest = alpha_bars(grid), grid // steps, noise.double(), 0.0
    for p in range(grid, 0, -stride):
        x = unet_reference(tensors, z, torch.full((len(z),), p), y)
        largest, x = max(largest, x.abs().max().item()), x.clamp(-1, 1)
        eps = (z - bars[p] ** 0.5 * x) / (1 - bars[p]) ** 0.5
        z = bars[p - stride] ** 0.5 * x + (1 - bars[p - stride]) ** 0.5 * eps
    return z.clamp(-1, 1), largest


def assert_near(found, expected, share=ROUNDING):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.abs().max()


def labels(spec, count):
    return torch.arange(count) % spec.num_classes if spec.num_classes else None


def test_names_and_shapes_are_the_published_ones():
    # counted once in the published files, whose U-Nets' tables of sinusoids are extra; digests of a description by hand
    published = [unet_shapes(SPECS["unconditional"]), unet_shapes(SPECS["conditional"]), densenet_shapes()]
    digests = [sha256(str(sorted(shapes.items())).encode()).hexdigest()[:16] for shapes in published]
    assert [len(shapes) for shapes in published] == [328, 512, 1207]
    assert digests == DIGESTS


# --- parity ----------------------------------------------------------------------------------------------------------


SMALLER = {"conditional": replace(SPECS["conditional"], image_size=32, attention=(8, 4))}  # of the same tensors


@pytest.mark.parametrize("spec", (SPECS | SMALLER).values(), ids=SPECS)
def test_a_unet_computes_what_the_published_one_does(spec, tmp_path):
    tensors = unet_tensors(spec)
    denoiser = load_released_unet(saved(tmp_path, unet_file(spec, tensors)))
    p = torch.tensor([0, 1, 300, 768, 1024])
    off_grid = torch.tensor([0.49, -0.3, 0.2, -0.49, -0.4], dtype=torch.float64)
    z, y = torch.randn(len(p), spec.image_channels, spec.image_size, spec.image_size), labels(spec, len(p))
    expected = unet_reference(tensors, z, p, y)
    assert_near(denoiser(z, p / GRID, y), expected)
    assert_near(denoiser(z, (p + off_grid) / GRID, y), expected)
    assert not denoiser.training and not any(one.requires_grad for one in denoiser.parameters())


@pytest.mark.parametrize("map_at, channels, classes", [("relu", 3, 10), ("conv", 1, 7)])
def test_a_classifier_computes_what_the_published_one_does(map_at, channels, classes, tmp_path):
    tensors, images = filled(densenet_shapes(channels, classes)), torch.rand(2, channels, 32, 32) * 2 - 1
    extractor = load_released_classifier(saved(tmp_path, {"model": tensors}), map_at)
    conv_map, relu_map, pooled, logits = densenet_reference(tensors, images)
    found = extractor(images)
    assert_near(found.map, {"conv": conv_map, "relu": relu_map}[map_at])
    assert_near(found.pooled, pooled)
    assert_near(found.logits, logits)
    assert not extractor.training and not any(one.requires_grad for one in extractor.parameters())


@pytest.mark.parametrize(
    "steps, scale, classes", [(8, 128, 0), (8, 128, 3), (1, 1024, 0), (16, 2, 3), (3, 5, 0)], ids=str
)
def test_ddim_sample_is_the_published_sampler(steps, scale, classes, tmp_path):
    spec, grid = replace(TINY, num_classes=classes), steps * scale
    tensors = unet_tensors(spec, grid)
    file = unet_file(spec, tensors, steps, scale, ema_model=unet_tensors(spec, grid, seed=1))  # not a student's own
    denoiser = load_released_unet(saved(tmp_path, file))
    assert denoiser.steps == steps and denoiser.schedule == DiscreteCosineSchedule(grid) and denoiser.prediction == "x"
    noise, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), labels(spec, 4)
    expected, largest = sample_reference(tensors, noise, steps, grid, y)
    assert largest > 1.2  # or clipping would not be tested
    # in float64 the two may differ by nothing but the order of sums
    assert_near(ddim_sample(denoiser.double(), noise, steps, y=y), expected, 1e-9)


def test_a_base_model_draws_with_its_averaged_weights_in_any_number_of_steps(tmp_path):
    tensors, noise = unet_tensors(TINY, seed=1), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    file = unet_file(TINY, unet_tensors(TINY), GRID, 1, ema_model=tensors)
    denoiser = load_released_unet(saved(tmp_path, file)).double()
    assert denoiser.steps == 0 and denoiser.schedule == DiscreteCosineSchedule(GRID)
    for steps in (1, 4, 32):
        expected, _ = sample_reference(tensors, noise, steps, GRID)
        assert_near(ddim_sample(denoiser, noise, steps), expected, 1e-9)


def test_a_file_brings_its_own_time_table(tmp_path):
    tensors, z, p = unet_tensors(TINY), torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 1024])
    tensors[TABLE] = torch.randn(tensors[TABLE].shape)
    denoiser = load_released_unet(saved(tmp_path, unet_file(TINY, tensors)))
    assert_near(denoiser(z, p / GRID), unet_reference(tensors, z, p))


@pytest.mark.parametrize("steps, scale", [(8, 128), (16, 2)])
def test_a_file_without_time_table_gets_the_sinusoids(steps, scale, tmp_path):
    grid = steps * scale
    tensors, z, p = unet_tensors(TINY, grid), torch.randn(3, 3, 8, 8), torch.tensor([0, grid // 3, grid])
    expected = unet_reference(tensors, z, p)
    del tensors[TABLE]
    denoiser = load_released_unet(saved(tmp_path, unet_file(TINY, tensors, steps, scale)))
    # float32 holds the angle 1024 to 6e-5 only
    torch.testing.assert_close(denoiser.network.time_table, sinusoid_table(grid + 1, 32), rtol=0, atol=1e-4)
    assert_near(denoiser(z, p / grid), expected, 1e-4)


@pytest.mark.parametrize("number, legacy", [(float, True), (torch.tensor, False)], ids=["legacy", "zip"])
def test_the_ways_such_files_are_written(number, legacy, tmp_path):
    tensors, z, p = unet_tensors(TINY), torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    state = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in tensors.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() leaves it
    file = unet_file(TINY, state, number(8), number(128))
    denoiser = load_released_unet(str(saved(tmp_path, file, _use_new_zipfile_serialization=not legacy)))
    assert denoiser.steps == 8 and isinstance(denoiser.steps, int)
    assert_near(denoiser(z, p / GRID), unet_reference(tensors, z, p))


SPEC_STRATEGY = st.builds(
    lambda size, levels, channels, **numbers: UNetConfig(
        size,
        channels=channels,
        attention=tuple(size >> level for level, (_, attends) in enumerate(levels) if attends),
        multipliers=tuple(multiplier for multiplier, _ in levels),
        groups=32,
        **numbers,
    ),
    size=st.sampled_from((8, 24)),
    levels=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=4),
    channels=st.sampled_from((32, 64)),
    blocks=st.integers(1, 2),
    num_classes=st.sampled_from((0, 3)),
    image_channels=st.sampled_from((1, 3)),
)


@given(spec=SPEC_STRATEGY, students=st.sampled_from(((8, 128), (4, 3))))
@settings(max_examples=8, deadline=None)
def test_the_configuration_follows_from_the_tensors(tmp_path_factory, spec, students):
    grid = students[0] * students[1]
    tensors = hollow({TABLE: (grid + 1, spec.channels), **unet_shapes(spec)})
    path = saved(tmp_path_factory.getbasetemp(), unet_file(spec, tensors, *students))
    assert load_released_unet(path).network.config == replace(spec, time_grid=grid)


@pytest.mark.parametrize(
    "noise", [{}, {"x_T": torch.zeros(3, 8, 8)}, {"x_T": torch.zeros(1, 3, 8, 4)}], ids=["missing", "3-D", "oblong"]
)
def test_the_image_size_is_the_callers_or_that_of_square_noise(noise, tmp_path):
    config = load_released_unet(saved(tmp_path, hollow_file()), image_size=20).network.config
    assert (config.image_size, config.attention) == (20, (10,))
    path = saved(tmp_path, {name: value for name, value in hollow_file().items() if name != "x_T"} | noise)
    assert "pass image_size" in fault(load_released_unet, path)
    assert load_released_unet(path, 8).network.config.image_size == 8
    assert "cannot be halved" in fault(load_released_unet, path, 7)


# --- faults ----------------------------------------------------------------------------------------------------------


def fault(load, path, *args):
    """What a person is told: one line that names the file."""
    said = refused(load, path, *args)
    assert str(path) in said
    return said


TRAPPED = {
    "the file": lambda trap: trap,
    "an entry": lambda trap: {"T": trap, "net_model": {}},
    "a tensor": lambda trap: {"net_model": {"head.weight": trap}},
    "a key": lambda trap: {"net_model": {trap: torch.zeros(1)}},
    "something besides": lambda trap: hollow_file() | {"notes": [{"more": (trap,)}]},
}


@pytest.mark.parametrize("place", TRAPPED)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_never_run(place, legacy, tmp_path):
    trap = tmp_path / "sprung"
    path = saved(tmp_path, TRAPPED[place](Bomb(trap)), _use_new_zipfile_serialization=not legacy)
    assert "nothing of it was run" in fault(read_tensors, path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # a trap that works, then


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_files_that_were_cut_short(legacy, tmp_path):
    path = saved(tmp_path, unet_file(TINY, unet_tensors(TINY)), _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "damaged" in fault(read_tensors, path)


def test_what_is_no_dict_in_a_torch_file(tmp_path):
    path = tmp_path / "ckpt.pt"
    for content in (random.Random(2).randbytes(1000), b"<!DOCTYPE html><html>404: Not Found</html>", b"version 1\n"):
        path.write_bytes(content)
        assert "damaged" in fault(read_tensors, path)  # not: code, which there is none of
    for place in (tmp_path / "missing.pt", tmp_path):
        assert "no file at" in fault(read_tensors, place)
    assert "holds a list" in fault(read_tensors, saved(tmp_path, [hollow_file()]))
    assert is_classifier(read_tensors(saved(tmp_path, {"model": {}})))
    assert not is_classifier(read_tensors(saved(tmp_path, hollow_file())))


def put(name, shape):
    return lambda file: file["net_model"].update({name: torch.zeros(shape)})


FAULTS = {  # what is done to a U-Net's file, and what is said of it
    "no steps": (lambda f: f.pop("T"), "has T = None, expected a whole number"),
    "half a step": (lambda f: f.update(T=8.5), "has T = 8.5"),
    "steps in words": (lambda f: f.update(T="eight"), "has T = eight"),
    "many numbers of steps": (lambda f: f.update(T=torch.zeros(3, 3)), "has T = tensor"),
    "a grid beyond all memory": (lambda f: f.update(T=1000, time_scale=1000), "has a grid of T * time_scale = 1000000"),
    "a base model without averages": (lambda f: f.update(T=GRID, time_scale=1), "has no ema_model"),
    "no network": (lambda f: f.pop("net_model"), "has no net_model, a dict of tensors: it holds"),
    "a list for a network": (lambda f: f.update(net_model=[1]), "has no net_model"),
    "a number for a tensor": (lambda f: f["net_model"].update({"tail.2.bias": 1.0}), "has no net_model"),
    "a number for a name": (put(1, 1), "has no net_model"),
    "a tensor that claims more than it holds": (
        lambda f: f["net_model"].update({"head.weight": torch.zeros(()).expand(2**20, 3, 3, 3)}),
        "has no net_model",
    ),
    "no head": (lambda f: f["net_model"].pop("head.weight"), "holds no U-Net of RCFD or RDD: it lacks head.weight"),
    "no widths": (
        lambda f: [f["net_model"].pop(name) for name in list(f["net_model"]) if name.startswith("downblocks.0.")],
        "holds no U-Net of RCFD or RDD: it lacks downblocks.0.block1.2.weight",
    ),
    "one tensor less": (lambda f: f["net_model"].pop("tail.2.bias"), "than its network has: it lacks tail.2.bias"),
    "a name of two lines": (put("a\nb", 1), "it has, beyond its own, a b"),
    "another kernel": (
        put("middleblocks.1.block1.2.weight", (64, 64, 1, 1)),
        "it has in another shape middleblocks.1.block1.2.weight [64, 64, 1, 1] for [64, 64, 3, 3]",
    ),
    "another time table": (put(TABLE, (100, 32)), f"it has in another shape {TABLE} [100, 32] for [1025, 32]"),
    "a width of no multiple": (put("head.weight", (48, 3, 3, 3)), "no multiples of 48"),
    "groups of no width": (put("head.weight", (16, 3, 3, 3)), "cannot be built"),
    "a head of one dimension": (put("head.weight", 3), "cannot be built"),
    "an empty head": (put("head.weight", (0, 3, 3, 3)), "cannot be built"),
    "an empty level": (put("downblocks.2.main.weight", 1), "it has a level without residual blocks"),
    "classes of one dimension": (put("y_embedding.weight", 3), "cannot be built"),
    "a width beyond all memory": (
        put("downblocks.0.block1.2.bias", 32 * 2**17),
        "holds other tensors than its network has",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_unets_file(name, tmp_path):
    damage, said = FAULTS[name]
    file = hollow_file()
    damage(file)
    assert said in fault(load_released_unet, saved(tmp_path, file))


def test_faults_of_a_classifiers_file(tmp_path):
    tensors, unet = hollow(densenet_shapes()), hollow_file()
    said = fault(load_released_unet, saved(tmp_path, unet | {"net_model": tensors}))
    assert "holds no U-Net" in said and "lacks head.weight" in said and said.endswith(f"and {1207 - 10} more")
    assert "has no model, a dict of tensors: it is empty" in fault(load_released_classifier, saved(tmp_path, {}))
    said = fault(load_released_classifier, saved(tmp_path, {"model": unet["net_model"]}))
    assert "holds no DenseNet201" in said and "lacks features.conv0.weight" in said and TABLE in said
    path = saved(tmp_path, {"model": tensors | {"fc.bias": torch.zeros(())}})
    assert "holds a DenseNet201 that cannot be built" in fault(load_released_classifier, path)
    del tensors["trans2.conv.weight"]
    tensors |= {"more": torch.zeros(1), "block4.denselayer32.conv2.weight": torch.zeros(32, 128, 1, 1)}
    assert fault(load_released_classifier, saved(tmp_path, {"model": tensors})).endswith(
        "it lacks trans2.conv.weight; it has, beyond its own, more; "
        "it has in another shape block4.denselayer32.conv2.weight [32, 128, 1, 1] for [32, 128, 3, 3]"
    )
