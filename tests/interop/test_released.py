"""rddlib.interop.released against networks written here once more, from the tensor names of the published files alone.

The references below know torch.nn.functional and a dict of tensors, nothing of rddlib's networks, and compute in float64.
"""

import math
import os
import random
import re
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import DiscreteCosineSchedule
from rddlib.diffusion.unet import UNetConfig
from rddlib.interop.released import is_classifier, load_released_classifier, load_released_unet, read_tensors
from rddlib.utils.errors import UserError

TABLE = "time_embedding.timembedding.0.weight"
GRID = 1024
ROUNDING = 1e-5  # of float32 against float64, as a share of the largest number compared
LOADERS = {"unet": load_released_unet, "classifier": load_released_classifier}
DENSENET_LAYERS = (6, 12, 48, 32)


# --- the published files: names and shapes ---------------------------------------------------------------------------


class Spec(NamedTuple):
    """A published U-Net in the words of its own configuration: attention names levels, 0 being full resolution."""

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    attention: tuple[int, ...] = (1,)
    blocks: int = 1
    classes: int = 0
    size: int = 8
    image_channels: int = 3


TINY = Spec()
SPECS = {
    "unconditional": Spec(32, (1, 2, 2, 2), (1,), 2, 0, 32),
    "conditional": Spec(32, (1, 2, 3, 4), (2, 3), 3, 10, 64),
    "wide": Spec(64, (1, 2), (0,), 1, 0, 16),
    "one level": Spec(32, (1,), (), 1, 3, 8),
    "wider than its head": Spec(32, (2, 1, 3), (0, 2), 2, 4, 16, image_channels=1),
    "96 channels": Spec(96, (1, 1), (0, 1), 1, 0, 8, image_channels=1),
}


def layer_shapes(name, outputs, *others):
    return {f"{name}.weight": (outputs, *others), f"{name}.bias": (outputs,)}


def block_shapes(name, inputs, outputs, embedding, attends):
    shapes = {
        **layer_shapes(f"{name}.block1.0", inputs),
        **layer_shapes(f"{name}.block1.2", outputs, inputs, 3, 3),
        **layer_shapes(f"{name}.temb_proj.1", outputs, embedding),
        **layer_shapes(f"{name}.block2.0", outputs),
        **layer_shapes(f"{name}.block2.3", outputs, outputs, 3, 3),
    }
    if inputs != outputs:
        shapes |= layer_shapes(f"{name}.shortcut", outputs, inputs, 1, 1)
    if attends:
        shapes |= layer_shapes(f"{name}.attn.group_norm", outputs)
        for part in ("proj_q", "proj_k", "proj_v", "proj"):
            shapes |= layer_shapes(f"{name}.attn.{part}", outputs, outputs, 1, 1)
    return shapes


def unet_shapes(spec):
    """{name: shape} of a published U-Net, less its table of sinusoids."""
    width, embedding, last = spec.channels, 4 * spec.channels, len(spec.multipliers) - 1
    down, up, skips = [], [], [width]  # down, up: of each entry what it adds to its name and shapes
    for level, multiplier in enumerate(spec.multipliers):
        for _ in range(spec.blocks):
            down.append((width, spec.channels * multiplier, level))
            width = spec.channels * multiplier
            skips.append(width)
        if level < last:
            down.append(width)
            skips.append(width)
    middle = width
    for level, multiplier in reversed(list(enumerate(spec.multipliers))):
        for _ in range(spec.blocks + 1):
            up.append((width + skips.pop(), spec.channels * multiplier, level))
            width = spec.channels * multiplier
        if level:
            up.append(width)
    shapes = {
        **layer_shapes("time_embedding.timembedding.1", embedding, spec.channels),
        **layer_shapes("time_embedding.timembedding.3", embedding, embedding),
        **layer_shapes("head", spec.channels, spec.image_channels, 3, 3),
        **block_shapes("middleblocks.0", middle, middle, embedding, True),
        **block_shapes("middleblocks.1", middle, middle, embedding, False),
        **layer_shapes("tail.0", width),
        **layer_shapes("tail.2", spec.image_channels, width, 3, 3),
        **(layer_shapes("y_embedding", embedding, spec.classes) if spec.classes else {}),
    }
    for path, entries in (("downblocks", down), ("upblocks", up)):
        for number, entry in enumerate(entries):
            if isinstance(entry, int):
                shapes |= layer_shapes(f"{path}.{number}.main", entry, entry, 3, 3)
            else:
                inputs, outputs, level = entry
                shapes |= block_shapes(f"{path}.{number}", inputs, outputs, embedding, level in spec.attention)
    return shapes


def batch_norm_shapes(name, width):
    numbers = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,)) | {"num_batches_tracked": ()}
    return {f"{name}.{number}": shape for number, shape in numbers.items()}


def densenet_shapes(image_channels=3, classes=10):
    """{name: shape} of the published DenseNet201: growth 32, bottlenecks of 128."""
    shapes, width = {"features.conv0.weight": (64, image_channels, 3, 3), **batch_norm_shapes("features.norm0", 64)}, 64
    for block, layers in enumerate(DENSENET_LAYERS, 1):
        for layer in range(1, layers + 1):
            name = f"block{block}.denselayer{layer}"
            shapes |= batch_norm_shapes(f"{name}.norm1", width) | {f"{name}.conv1.weight": (128, width, 1, 1)}
            shapes |= batch_norm_shapes(f"{name}.norm2", 128) | {f"{name}.conv2.weight": (32, 128, 3, 3)}
            width += 32
        if block < len(DENSENET_LAYERS):
            shapes |= batch_norm_shapes(f"trans{block}.norm", width)
            shapes[f"trans{block}.conv.weight"] = (width // 2, width, 1, 1)
            width //= 2
    return shapes | batch_norm_shapes("final_norm", width) | layer_shapes("fc", classes, width)


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
    noise = torch.zeros(2, spec.image_channels, spec.size, spec.size)
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
    return torch.arange(count) % spec.classes if spec.classes else None


def test_the_descriptions_have_the_published_numbers_of_tensors():
    # counted once in the published files; their U-Nets' tables of sinusoids are extra
    counts = len(unet_shapes(SPECS["unconditional"])), len(unet_shapes(SPECS["conditional"])), len(densenet_shapes())
    assert counts == (328, 512, 1207)


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_unet_computes_what_the_published_one_does(spec, tmp_path):
    tensors = unet_tensors(spec)
    denoiser = load_released_unet(saved(tmp_path, unet_file(spec, tensors)))
    p = torch.tensor([0, 1, 300, 768, 1024])
    off_grid = torch.tensor([0.49, -0.3, 0.2, -0.49, -0.4], dtype=torch.float64)
    z, y = torch.randn(len(p), spec.image_channels, spec.size, spec.size), labels(spec, len(p))
    expected = unet_reference(tensors, z, p, y)
    assert_near(denoiser(z, p / GRID, y), expected)
    assert_near(denoiser(z, (p + off_grid) / GRID, y), expected)
    assert not denoiser.training and not any(one.requires_grad for one in denoiser.parameters())


@pytest.fixture(scope="module")
def densenet(tmp_path_factory):
    """(its tensors, the path of its file)."""
    tensors = filled(densenet_shapes())
    return tensors, saved(tmp_path_factory.mktemp("densenet"), {"model": tensors})


def assert_same_features(extractor, reference, images, map_at="relu"):
    conv_map, relu_map, pooled, logits = reference
    found = extractor(images)
    assert_near(found.map, {"conv": conv_map, "relu": relu_map}[map_at])
    assert_near(found.pooled, pooled)
    assert_near(found.logits, logits)
    assert not extractor.training and not any(one.requires_grad for one in extractor.parameters())


def test_a_classifier_computes_what_the_published_one_does(densenet):
    tensors, path = densenet
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    reference = densenet_reference(tensors, images)
    assert_same_features(load_released_classifier(path), reference, images)
    assert_same_features(load_released_classifier(path, map_at="conv"), reference, images, "conv")


def test_a_classifier_of_other_images_and_classes(tmp_path):
    tensors = filled(densenet_shapes(image_channels=1, classes=7), seed=1)
    extractor, images = load_released_classifier(saved(tmp_path, {"model": tensors})), torch.rand(3, 1, 16, 16) * 2 - 1
    assert_same_features(extractor, densenet_reference(tensors, images), images)


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps, scale, classes", [(8, 128, 0), (8, 128, 3), (1, 1024, 0), (16, 2, 3), (3, 5, 0)], ids=str
)
def test_ddim_sample_is_the_published_sampler(steps, scale, classes, tmp_path):
    spec, grid = TINY._replace(classes=classes), steps * scale
    tensors = unet_tensors(spec, grid)
    denoiser = load_released_unet(saved(tmp_path, unet_file(spec, tensors, steps, scale)))
    assert denoiser.steps == steps and denoiser.schedule == DiscreteCosineSchedule(grid) and denoiser.prediction == "x"
    noise, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), labels(spec, 4)
    expected, largest = sample_reference(tensors, noise, steps, grid, y)
    assert largest > 1.2  # or clipping would not be tested
    # in float64 the two may differ by nothing but the order of sums
    assert_near(ddim_sample(denoiser.double(), noise, steps, y=y), expected, 1e-9)


def test_ddim_sample_in_single_precision(tmp_path):
    tensors, noise = unet_tensors(TINY), torch.randn(4, 3, 8, 8)
    denoiser = load_released_unet(saved(tmp_path, unet_file(TINY, tensors)))
    found, (expected, _) = ddim_sample(denoiser, noise, 8), sample_reference(tensors, noise, 8, GRID)
    assert found.dtype == torch.float32
    assert_near(found, expected, 10 * ROUNDING)  # eight evaluations, each of what the last one rounded


def test_a_base_model_draws_in_any_number_of_steps(tmp_path):
    tensors, noise = unet_tensors(TINY, seed=1), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    file = unet_file(TINY, unet_tensors(TINY), GRID, 1, ema_model=tensors)
    denoiser = load_released_unet(saved(tmp_path, file)).double()
    assert denoiser.steps == 0 and denoiser.schedule == DiscreteCosineSchedule(GRID)
    for steps in (1, 4, 32):
        expected, _ = sample_reference(tensors, noise, steps, GRID)
        assert_near(ddim_sample(denoiser, noise, steps), expected, 1e-9)


@pytest.mark.parametrize("grid", [32, GRID])
def test_the_schedule_is_the_published_grid(grid, tmp_path):
    schedule = load_released_unet(saved(tmp_path, hollow_file(grid // 2, 2))).schedule
    bars, t = torch.tensor(alpha_bars(grid), dtype=torch.float64), torch.arange(grid + 1, dtype=torch.float64) / grid
    torch.testing.assert_close(schedule.alpha(t), bars.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - bars).sqrt(), rtol=1e-9, atol=0)
    assert schedule.sigma(0.0) > 0 and schedule.alpha(1.0) > 0  # unlike the continuous schedule's


# --- which tensors of a file are taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, scale, taken, kept", [(GRID, 1, "ema_model", 0), (8, 128, "net_model", 8)])
def test_averaged_weights_are_a_base_models_own(steps, scale, taken, kept, tmp_path):
    file = unet_file(TINY, unet_tensors(TINY), steps, scale, ema_model=unet_tensors(TINY, seed=1))
    denoiser = load_released_unet(saved(tmp_path, file))
    z, p = torch.randn(2, 3, 8, 8), torch.tensor([100, 900])
    assert denoiser.steps == kept
    assert_near(denoiser(z, p / GRID), unet_reference(file[taken], z, p))


def test_a_file_brings_its_own_time_table(tmp_path):
    tensors, z, p = unet_tensors(TINY), torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 1024])
    before = load_released_unet(saved(tmp_path, unet_file(TINY, tensors)))(z, p / GRID)
    tensors[TABLE] = torch.randn(tensors[TABLE].shape)
    after = load_released_unet(saved(tmp_path, unet_file(TINY, tensors)))(z, p / GRID)
    assert_near(after, unet_reference(tensors, z, p))
    assert ((after - before).abs().amax(dim=(1, 2, 3)) > 0.01).all()


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


@pytest.mark.parametrize("number", [int, float, torch.tensor], ids=["int", "float", "tensor"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_ways_such_files_are_written(number, legacy, tmp_path):
    tensors, z, p = unet_tensors(TINY), torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    state = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in tensors.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() leaves it
    file = unet_file(TINY, state, number(8), number(128))
    denoiser = load_released_unet(str(saved(tmp_path, file, _use_new_zipfile_serialization=not legacy)))
    assert denoiser.steps == 8 and isinstance(denoiser.steps, int)
    assert_near(denoiser(z, p / GRID), unet_reference(tensors, z, p))


def test_kinds_of_files_are_told_apart(tmp_path):
    assert not is_classifier(read_tensors(saved(tmp_path, hollow_file())))
    assert is_classifier(read_tensors(saved(tmp_path, {"model": {}})))


SPEC_STRATEGY = st.builds(
    Spec,
    channels=st.sampled_from((32, 64)),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    attention=st.sets(st.integers(0, 3)).map(sorted),
    blocks=st.integers(1, 2),
    classes=st.sampled_from((0, 3)),
    size=st.sampled_from((8, 24)),
    image_channels=st.sampled_from((1, 3)),
).map(lambda s: s._replace(attention=tuple(level for level in s.attention if level < len(s.multipliers))))


@given(spec=SPEC_STRATEGY, students=st.sampled_from(((8, 128), (4, 3))))
@settings(max_examples=30, deadline=None)
def test_the_configuration_follows_from_the_tensors(tmp_path_factory, spec, students):
    grid = students[0] * students[1]
    tensors = hollow({TABLE: (grid + 1, spec.channels), **unet_shapes(spec)})
    path = saved(tmp_path_factory.getbasetemp(), unet_file(spec, tensors, *students))
    assert load_released_unet(path).network.config == UNetConfig(
        image_size=spec.size,
        image_channels=spec.image_channels,
        channels=spec.channels,
        multipliers=spec.multipliers,
        blocks=spec.blocks,
        attention=tuple(spec.size >> level for level in spec.attention),
        groups=32,
        num_classes=spec.classes,
        time_grid=grid,
    )


def test_the_image_size_is_the_noises_or_the_callers(tmp_path):
    file = hollow_file()
    path = saved(tmp_path, file)
    assert load_released_unet(path).network.config.image_size == 8
    config = load_released_unet(path, image_size=20).network.config
    assert (config.image_size, config.attention) == (20, (10,))
    del file["x_T"]
    assert load_released_unet(saved(tmp_path, file), image_size=16).network.config.image_size == 16


# --- faults ----------------------------------------------------------------------------------------------------------


def fault(load, path, *args):
    """What a person is told: one line that names the file."""
    with pytest.raises(UserError) as caught:
        load(path, *args)
    said = str(caught.value)
    assert "\n" not in said and str(path) in said
    return said


@pytest.mark.parametrize(
    "noise",
    [{}, {"x_T": None}, {"x_T": torch.zeros(3, 8, 8)}, {"x_T": torch.zeros(1, 3, 8, 4)}],
    ids=["missing", "none", "3-D", "oblong"],
)
def test_an_unknown_image_size_is_asked_for(noise, tmp_path):
    file = {name: value for name, value in hollow_file().items() if name != "x_T"} | noise
    assert "pass image_size" in fault(load_released_unet, saved(tmp_path, file))
    assert load_released_unet(saved(tmp_path, file), 8).network.config.image_size == 8


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


TRAPPED = {
    "the file": lambda trap: trap,
    "an entry": lambda trap: {"T": trap, "time_scale": 128, "net_model": {}, "model": {}},
    "a tensor": lambda trap: {
        "net_model": {"head.weight": trap},
        "model": {"fc.bias": trap},
        "T": 8,
        "time_scale": 128,
    },
    "a key": lambda trap: {
        "net_model": {trap: torch.zeros(1)},
        "model": {trap: torch.zeros(1)},
        "T": 8,
        "time_scale": 128,
    },
    "something besides": lambda trap: hollow_file() | {"model": {}, "notes": [{"more": (trap,)}]},
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("place", TRAPPED)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_never_run(load, place, legacy, tmp_path):
    trap = tmp_path / "sprung"
    path = saved(tmp_path, TRAPPED[place](Trap(trap)), _use_new_zipfile_serialization=not legacy)
    assert "nothing of it was run" in fault(load, path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # a trap that works, then


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_files_that_were_cut_short(load, legacy, tmp_path):
    path = saved(tmp_path, unet_file(TINY, unet_tensors(TINY)), _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "damaged" in fault(load, path)


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(random.Random(2).randbytes(1000), id="random bytes"),
        pytest.param(random.Random(0).randbytes(1000), id="other random bytes"),
        pytest.param(b"<!DOCTYPE html><html><body>404: Not Found</body></html>", id="page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\nsize 12345\n", id="pointer"),
    ],
)
def test_files_of_another_kind(load, content, tmp_path):
    path = tmp_path / "ckpt.pt"
    path.write_bytes(content)
    assert "damaged" in fault(load, path)  # not: code, which there is none of


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_no_file_and_no_dict(load, tmp_path):
    assert "no file at" in fault(load, tmp_path / "missing.pt")
    assert "no file at" in fault(load, tmp_path)
    assert "holds a list" in fault(load, saved(tmp_path, [hollow_file()]))
    assert "holds a Tensor" in fault(load, saved(tmp_path, torch.zeros(3)))


@pytest.mark.parametrize(
    "name, value",
    [
        ("T", None),
        ("T", 0),
        ("T", -8),
        ("T", 8.5),
        ("T", "eight"),
        pytest.param("T", math.nan),
        pytest.param("T", math.inf),
        pytest.param("T", torch.zeros(3, 3)),
        ("time_scale", None),
        ("time_scale", 0.5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.Tensor) else str(value),
)
def test_steps_that_are_no_whole_numbers(name, value, tmp_path):
    said = fault(load_released_unet, saved(tmp_path, hollow_file() | {name: value}))
    assert f" has {name} = " in said and "whole number" in said


def test_a_number_of_steps_that_is_missing(tmp_path):
    for name in ("T", "time_scale"):
        file = hollow_file()
        del file[name]
        assert f"has {name} = None" in fault(load_released_unet, saved(tmp_path, file))


def test_a_grid_beyond_all_memory(tmp_path):
    fault(load_released_unet, saved(tmp_path, hollow_file() | {"T": 2**50}))


def test_parts_that_are_missing_or_no_tensors(tmp_path):
    base = hollow_file(GRID, 1)
    assert "has no ema_model" in fault(load_released_unet, saved(tmp_path, base))
    assert "has no net_model" in fault(load_released_unet, saved(tmp_path, {"T": 8, "time_scale": 128}))
    assert "has no net_model" in fault(load_released_unet, saved(tmp_path, hollow_file() | {"net_model": [1]}))
    assert "has no model" in fault(load_released_classifier, saved(tmp_path, {}))
    assert "has no model" in fault(load_released_classifier, saved(tmp_path, {"model": {"fc.bias": 1.0}}))


def test_each_network_given_to_the_others_loader(tmp_path):
    unet, classifier = hollow_file(), {"model": hollow(densenet_shapes())}
    assert "has T = None" in fault(load_released_unet, saved(tmp_path, classifier))
    assert "has no model" in fault(load_released_classifier, saved(tmp_path, unet))
    swapped = unet | {"net_model": classifier["model"]}
    said = fault(load_released_unet, saved(tmp_path, swapped))
    assert "holds no U-Net" in said and "lacks head.weight" in said and said.endswith(f"and {1207 - 10} more")
    said = fault(load_released_classifier, saved(tmp_path, {"model": unet["net_model"]}))
    assert "holds no DenseNet201" in said and "lacks features.conv0.weight" in said and TABLE in said


@pytest.mark.parametrize("count", [1, 10, 13])
def test_tensors_that_are_missing(count, tmp_path):
    file = hollow_file()
    gone = [name for name in file["net_model"] if name.startswith(("middle", "upblocks")) and name.endswith("bias")][
        :count
    ]
    for name in gone:
        del file["net_model"][name]
    said = fault(load_released_unet, saved(tmp_path, file))
    assert_lists(said, "it lacks", gone)
    assert "beyond its own" not in said and "another shape" not in said


@pytest.mark.parametrize("count", [1, 10, 13])
def test_tensors_that_are_too_many(count, tmp_path):
    file, more = hollow_file(), [f"more.{number}" for number in range(count)]
    file["net_model"] |= dict.fromkeys(more, torch.zeros(1))
    said = fault(load_released_unet, saved(tmp_path, file))
    assert_lists(said, "it has, beyond its own,", more)
    assert "lacks" not in said and "another shape" not in said


def assert_lists(said, what, names):
    """That said lists ten of the names at most, then the number of the others."""
    shown, _, others = re.search(rf"{what} ([\w., ]+?)( and (\d+) more)?$", said).groups()
    shown = shown.split(", ")
    assert len(shown) == len(set(shown)) == min(len(names), 10) and set(shown) <= set(names)
    assert (int(others) if others else None) == (len(names) - 10 if len(names) > 10 else None)


@pytest.mark.parametrize(
    "name, shape, own",
    [
        ("middleblocks.1.block1.2.weight", (64, 64, 1, 1), [64, 64, 3, 3]),
        ("upblocks.0.attn.proj_k.weight", (64, 32, 1, 1), [64, 64, 1, 1]),
        ("tail.2.bias", (), [3]),
        (TABLE, (100, 32), [1025, 32]),
    ],
)
def test_tensors_of_another_shape(name, shape, own, tmp_path):
    file = hollow_file()
    file["net_model"][name] = torch.zeros(shape)
    said = fault(load_released_unet, saved(tmp_path, file))
    assert said.endswith(f"it has in another shape {name} {list(shape)} for {own}")


def test_a_classifiers_faulty_tensors(tmp_path):
    tensors = hollow(densenet_shapes())
    del tensors["trans2.conv.weight"]
    tensors |= {"more": torch.zeros(1), "block4.denselayer32.conv2.weight": torch.zeros(32, 128, 1, 1)}
    said = fault(load_released_classifier, saved(tmp_path, {"model": tensors}))
    assert said.endswith(
        "it lacks trans2.conv.weight; it has, beyond its own, more; "
        "it has in another shape block4.denselayer32.conv2.weight [32, 128, 1, 1] for [32, 128, 3, 3]"
    )


@pytest.mark.parametrize(
    "name, shape, remark",
    [
        ("head.weight", (48, 3, 3, 3), "no multiples of 48"),
        ("head.weight", (16, 3, 3, 3), "cannot be built"),
        ("head.weight", (3,), "cannot be built"),
        ("downblocks.9.block1.2.weight", (1,), "cannot be built"),
        pytest.param("head.weight", (0, 3, 3, 3), ""),
        pytest.param("y_embedding.weight", (3,), ""),
        pytest.param("downblocks.0.block1.2.bias", (), ""),
        pytest.param(1, (1,), ""),
        pytest.param("a\nb", (1,), ""),
    ],
    ids=repr,
)
def test_tensors_of_which_no_unet_can_be_built(name, shape, remark, tmp_path):
    file = hollow_file()
    file["net_model"][name] = torch.zeros(shape)
    assert remark in fault(load_released_unet, saved(tmp_path, file))


@pytest.mark.parametrize("name", ["features.conv0.weight", "fc.bias"])
def test_tensors_of_which_no_classifier_can_be_built(name, tmp_path):
    tensors = hollow(densenet_shapes()) | {name: torch.zeros(())}
    fault(load_released_classifier, saved(tmp_path, {"model": tensors}))


def test_an_image_size_that_does_not_fit(tmp_path):
    assert "cannot be halved" in fault(load_released_unet, saved(tmp_path, hollow_file()), 7)


def test_tensors_that_claim_more_than_they_hold_are_refused(tmp_path):
    """A small file whose tensors are one number seen many times would fill the memory when the network is built."""
    path = tmp_path / "claims.pt"
    wide = {"head.weight": torch.zeros(()).expand(2**20, 3, 3, 3)}
    torch.save({"net_model": wide, "x_T": torch.zeros(1, 3, 32, 32), "T": 8, "time_scale": 128}, path)
    with pytest.raises(UserError, match="has no net_model, a dict of tensors") as caught:
        load_released_unet(path)
    assert "\n" not in str(caught.value)


def test_a_width_that_the_file_does_not_hold_is_refused_before_anything_is_allocated(tmp_path):
    tensors = {"head.weight": torch.zeros(32, 3, 3, 3), "downblocks.0.block1.2.bias": torch.zeros(32 * 2**17)}
    path = tmp_path / "wide.pt"
    torch.save({"net_model": tensors, "x_T": torch.zeros(1, 3, 32, 32), "T": 8, "time_scale": 128}, path)
    with pytest.raises(UserError, match="holds other tensors than its network has: it lacks"):
        load_released_unet(path)
