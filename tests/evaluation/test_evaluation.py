import dataclasses
import io
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rddlib.data import ImageDataset, load_dataset, to_uint8
from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.unet import NO_CLASS, UNet, UNetConfig
from rddlib.evaluation import (
    PROTOCOLS,
    DrawnImages,
    common_noise,
    differing_protocols,
    digits_network,
    draw_to_file,
    evaluate,
    evaluate_all,
    find_network,
    frechet_distance,
    fresh_noise,
    inception_network,
    load_metric_network,
    open_images,
    recorded,
    write_pngs,
)
from rddlib.evaluation.drawing import common_labels
from rddlib.evaluation.features import Shards, complete
from rddlib.evaluation.networks import inception_weights
from rddlib.evaluation.reference import Reference
from rddlib.evaluation.statistics import Gaussian, InceptionScore, Moments, read_statistics, write_statistics
from rddlib.utils.errors import GuidanceWarning, UserError

EVERYTHING = ("fid", "is", "kid", "pr", "pfd")


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def noisy(data):
    g = torch.Generator().manual_seed(0)
    return (
        (data.images[:700] + torch.randint(-40, 41, data.images[:700].shape, generator=g)).clamp(0, 255).to(torch.uint8)
    )


class Bare(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


# against truth


def symmetric_root(m):
    values, vectors = torch.linalg.eigh(m)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def closed_form(mu_a, sigma_a, mu_b, sigma_b):
    """By symmetric square roots, independent of torch-fidelity's eigenvalues of a product."""
    root = symmetric_root(sigma_a)
    cross = symmetric_root(root @ sigma_b @ root)
    return float((mu_a - mu_b).square().sum() + (sigma_a + sigma_b - 2 * cross).trace())


def test_a_set_has_no_distance_from_itself(data):
    result = evaluate(data.images, data, metrics=EVERYTHING).values
    trace = float(digits_network().module(data.images)[0].T.cov().trace())
    assert abs(result["fid"]) < 1e-6 * trace and abs(result["pfd"]) < 1e-6
    assert result["precision"] == result["recall"] == 1 and result["kid"] < 0  # unbiased: below 0 for the same set
    assert 9 < result["is"] <= 10


def test_distance_of_two_gaussians_is_the_closed_form():
    g = torch.Generator().manual_seed(3)
    mu = torch.randn(2, 12, generator=g, dtype=torch.float64)
    factors = torch.randn(2, 12, 12, generator=g, dtype=torch.float64)
    sigma = factors @ factors.mT
    gaussians = [Gaussian(mu[i].numpy(), sigma[i].numpy()) for i in range(2)]
    assert frechet_distance(*gaussians) == pytest.approx(closed_form(mu[0], sigma[0], mu[1], sigma[1]), rel=1e-9)
    scaled = Gaussian(gaussians[0].mu, 4 * gaussians[0].sigma)  # commuting: tr(S + 4S - 2*2S) = tr S
    assert frechet_distance(gaussians[0], scaled) == pytest.approx(float(sigma[0].trace()), rel=1e-9)


def test_samples_of_two_gaussians_come_near_the_closed_form():
    """Pixels as features: pfd of two clouds of gray levels around known means with known spreads."""
    g = torch.Generator().manual_seed(5)
    a = (torch.randn(20_000, 1, 2, 2, generator=g) * 0.10 - 0.2).clamp(-1, 1)
    b = (torch.randn(20_000, 1, 2, 2, generator=g) * 0.15 + 0.1).clamp(-1, 1)
    truth = 4 * (0.3**2 + 0.05**2)
    result = evaluate(a, b, metrics=("pfd",), protocol="released", network=digits_sized(2))
    assert result.values["pfd"] == pytest.approx(truth, rel=0.02)


def digits_sized(size):
    """The digits network's record with another image size, for metrics that do not look through it."""
    return dataclasses.replace(digits_network(), shape=(1, size, size))


def test_scores_equal_the_closed_form_on_features(data):
    a, b = data.images[:900], ImageDataset("rest", data.images[900:], data.labels[900:], 10)
    found, network = evaluate(a, b, metrics=("fid", "pfd")).values, load_metric_network().double()
    for name, features in (("pfd", lambda x: x.flatten(1)), ("fid", lambda x: network(x)[0])):
        rows = [features(x.double() / 127.5 - 1) for x in (a, b.images)]
        moments = [m for r in rows for m in (r.mean(0), r.T.cov())]
        assert found[name] == pytest.approx(closed_form(*moments), rel=1e-7)


def test_a_perfect_classifier_on_balanced_classes_scores_the_number_of_classes():
    labels = torch.arange(10).repeat(50)
    logits = torch.nn.functional.one_hot(labels, 10).double() * 200
    score = InceptionScore(500, shuffled=False)
    for start in range(0, 500, 130):
        score.add(start, logits[start : start + 130])
    assert score.score() == pytest.approx((10.0, 0.0), abs=1e-9)
    blind = InceptionScore(500, shuffled=True)
    blind.add(0, torch.zeros(500, 10))
    assert blind.score() == pytest.approx((1.0, 0.0), abs=1e-12)


@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_moments_do_not_depend_on_the_parts(seed, sizes):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 5, generator=g, dtype=torch.float64) + 1000  # far from 0: nothing may cancel
    moments = Moments(5)
    for part in rows.split(sizes):
        moments.add(part)
    found = moments.gaussian()
    assert np.allclose(found.mu, rows.mean(0), rtol=1e-12)
    assert np.allclose(found.sigma, np.atleast_2d(np.cov(rows.numpy(), rowvar=False)), rtol=1e-9, atol=1e-9)


# against torch-fidelity itself


def test_all_metrics_equal_torch_fidelity_s_own(data, noisy):
    found = evaluate(noisy, data, metrics=EVERYTHING, kid_subset=300, batch_size=90).values
    theirs = torch_fidelity.calculate_metrics(
        input1=Bare(noisy),
        input2=Bare(data.images),
        feature_extractor="rddlib-network",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=300,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    names = {
        "fid": "frechet_inception_distance",
        "is": "inception_score_mean",
        "is_std": "inception_score_std",
        "kid": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, name in names.items():
        assert found[ours] == pytest.approx(theirs[name], rel=1e-9), name


@pytest.fixture(scope="module")
def untrained_inception(tmp_path_factory):
    """A file of Inception weights as torch-fidelity reads it, random: the published ones cannot be had in tests."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "random.pth"

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, **_):
            pass

    with torch.random.fork_rng():
        torch.manual_seed(1)
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        module = Blank("blank", ["2048"], feature_extractor_weights_path=empty)
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)  # so that something arrives at the end
    torch.save(module.state_dict(), path)
    return path


def smooth_images(count, seed, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=g) * 0.4 + shift
    return to_uint8(torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic"))


@pytest.mark.slow
def test_torch_fidelity_s_command_line_gives_the_same_fid_on_exported_pngs(tmp_path, untrained_inception):
    """Images drawn by a model: streamed here, and read from the PNG files that were exported, by the other program."""

    def coarse(z, t):
        return torch.nn.functional.interpolate(z[:, :, ::8, ::8], size=(32, 32), mode="bilinear").clamp(-1, 1)

    drawn, b = (
        DrawnImages(as_denoiser(coarse, CosineSchedule()), 90, 1, seed=1, shape=(3, 32, 32)),
        smooth_images(80, 2, 0.2),
    )
    draw_to_file(drawn, tmp_path / "a.npz")
    for name, images in (("a", tmp_path / "a.npz"), ("b", b)):
        write_pngs(open_images(images), tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "torch_fidelity.fidelity",
        "--cpu",
        "--fid",
        "--json",
        "--silent",
        "--no-cache",
        "--save-cpu-ram",
        "--input1",
        tmp_path / "a",
        "--input2",
        tmp_path / "b",
        "--batch-size",
        "16",
        "--feature-extractor",
        "inception-v3-compat",
        "--feature-layer-fid",
        "64",
        "--feature-extractor-weights-path",
        untrained_inception,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = json.loads(said)["frechet_inception_distance"]
    network = inception_network(untrained_inception, layer="64", logits=False)
    streamed = evaluate(drawn, b, network=network, metrics=("fid",), batch_size=25).values["fid"]
    folders = evaluate(tmp_path / "a", tmp_path / "b", network=network, metrics=("fid",)).values["fid"]
    assert streamed == pytest.approx(theirs, rel=1e-3) and folders == pytest.approx(streamed, rel=1e-6)
    with pytest.raises(UserError, match="released has no layer 64"):
        evaluate(drawn, b, network=network, metrics=("fid",), protocol="released")


def test_inception_under_both_protocols(untrained_inception):
    """uint8: torch-fidelity's own forward pass; floats: half-pixel resize, written out here a second time."""
    network = inception_network(untrained_inception)
    images, whole = smooth_images(3, 4), PROTOCOLS["torch-fidelity"]
    features, logits = network.module(whole.levels(images))
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    with torch.no_grad():
        x = (
            torch.nn.functional.interpolate(images / 255.0, size=(299, 299), mode="bilinear", align_corners=False) * 2
            - 1
        )
        trunk = [layer for name, layer in network.module.named_children() if name != "fc"]
        theirs = torch.nn.Sequential(*trunk)(x).flatten(1)
        floats, ours = images.float() / 127.5 - 1, PROTOCOLS["released"]
        found = network.module(ours.levels(floats))
    assert torch.allclose(found[0], theirs, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found[1], theirs @ network.module.fc.weight.T, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], features, rtol=1e-3)  # the resize differs, so the numbers do
    assert network.name == "Inception v3, other weights than FID's" and "other weights" in network.metric(10)


# the same numbers whatever the batches, shards and processes


def denoiser_of_classes(classes=0):
    torch.manual_seed(0)
    network = UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, num_classes=classes))
    with torch.no_grad():
        network.tail[-1].weight.normal_(std=0.3)
    return Denoiser(network, CosineSchedule(), "v").eval().requires_grad_(False)


def test_scores_do_not_depend_on_batches_or_shards(data, noisy):
    whole, parts = (evaluate(noisy, data, metrics=EVERYTHING, kid_subset=300, batch_size=n).values for n in (700, 64))
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-6), name


def test_drawn_scores_do_not_depend_on_batches(data):
    """Floats, so that no gray level hangs on the last bit of a convolution."""
    model = denoiser_of_classes().double()
    denoiser = as_denoiser(lambda z, t: model(z.double(), t).float(), CosineSchedule())
    results = [
        evaluate(DrawnImages(denoiser, 400, 2, seed=3, shape=(1, 8, 8)), data, protocol="released", batch_size=n).values
        for n in (400, 37)
    ]
    assert results[0]["fid"] == pytest.approx(results[1]["fid"], rel=1e-6)


def test_one_set_of_samples_under_both_protocols(data):
    calls, denoiser = [], as_denoiser(lambda z, t: calls.append(t) or (0.5 * z).clamp(-1, 1), CosineSchedule())
    images = DrawnImages(denoiser, 300, 1, seed=2, shape=(1, 8, 8))
    whole, floats = evaluate_all(images, data, protocols=("torch-fidelity", "released"), batch_size=100)
    assert len(calls) == 3  # drawn once
    assert whole.values["fid"] != floats.values["fid"] == pytest.approx(whole.values["fid"], rel=1e-2)
    again = evaluate(to_uint8(torch.cat([images.batch(k, k + 100) for k in (0, 100, 200)])), data)
    assert again.values["fid"] == pytest.approx(whole.values["fid"], rel=1e-12)
    assert differing_protocols([vars(whole.receipt), vars(floats.receipt)]) == ["protocol", "rounding", "shuffled"]


def test_unshuffled_splits_are_the_released_ones(data):
    """Sorted by class, each split sees one class: the released way scores 1, the shuffled one about 10."""
    order = data.labels.argsort()[: 10 * (len(data) // 10)]
    images = data.images[order]
    shuffled, released = (evaluate(images, data, metrics=("is",), protocol=p).values["is"] for p in PROTOCOLS)
    assert shuffled > 9 and released < 2.5


def test_common_noise_is_the_same_for_every_method_and_batch():
    whole = common_noise((1, 2, 2), 0, 250, seed=4)
    parts = torch.cat([common_noise((1, 2, 2), k, min(k + 33, 250), seed=4) for k in range(0, 250, 33)])
    assert torch.equal(whole, parts) and len(whole.flatten(1).unique(dim=0)) == 250
    assert not torch.equal(whole, common_noise((1, 2, 2), 0, 250, seed=5))
    assert abs(float(common_noise((1, 8, 8), 0, 2000, seed=0).std()) - 1) < 0.01


def test_fresh_noise_is_the_same_for_every_batch_and_another_for_every_step():
    steps = []
    for step in range(3):
        whole = fresh_noise((1, 2, 2), 0, 250, seed=4, step=step)
        parts = [fresh_noise((1, 2, 2), k, min(k + 33, 250), seed=4, step=step) for k in range(0, 250, 33)]
        assert torch.equal(whole, torch.cat(parts))
        steps.append(whole)
    rows = torch.cat([*steps, common_noise((1, 2, 2), 0, 250, seed=4), fresh_noise((1, 2, 2), 0, 250, seed=5, step=0)])
    assert len(rows.flatten(1).unique(dim=0)) == 5 * 250


# guidance and classes


def pulled_to_classes(asked=None, scale=1.0):
    """Images tell which noise and classes they were drawn with: a quarter of z, and a gray level of 0.2, 0.4 or 0.6."""

    def network(z, t, y):
        if asked is not None:
            asked.append(y)
        return scale * (z / 4 + 0.2 * (y - NO_CLASS)[:, None, None, None])  # no class: 0

    return as_denoiser(network, CosineSchedule(), num_classes=3)


def weighing():
    """A network that takes its weight itself: x = w/4 on every pixel."""
    network = lambda z, t, y, w: (w.to(z.dtype) / 4)[:, None, None, None].expand_as(z)  # noqa: E731
    return Denoiser(network, CosineSchedule(), num_classes=3, guidance=(0.0, 4.0))


@pytest.mark.parametrize("classes", [(), (2, 0)])
@pytest.mark.parametrize("guidance", [None, 0.7])
@pytest.mark.parametrize("sampler", ["ddim", "stochastic"])
def test_drawn_images_do_not_depend_on_their_batches(sampler, guidance, classes):
    def images():
        return DrawnImages(
            pulled_to_classes(scale=0.3),
            230,
            3,
            seed=5,
            shape=(1, 8, 8),
            sampler=sampler,
            guidance=guidance,
            classes=classes,
        )

    torch.manual_seed(1)
    whole = images().batch(0, 230)
    torch.manual_seed(2)  # nothing comes from the global generator
    parts = images()
    found = torch.cat([parts.batch(k, min(k + 37, 230)) for k in range(0, 230, 37)])
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    assert len(whole.flatten(1).unique(dim=0)) == 230


def test_the_stochastic_sampler_adds_noise_to_what_ddim_draws():
    ddim, stochastic = (
        DrawnImages(pulled_to_classes(), 20, 3, seed=5, shape=(1, 8, 8), sampler=name).batch(0, 20)
        for name in ("ddim", "stochastic")
    )
    assert (ddim - stochastic).abs().amax((1, 2, 3)).min() > 0.05


def test_chosen_classes_are_drawn_in_turn():
    asked = []
    images = DrawnImages(pulled_to_classes(asked), 8, 2, seed=5, shape=(1, 8, 8), classes=(2, 0, 1))
    assert images.labels(0, 8).tolist() == [2, 0, 1, 2, 0, 1, 2, 0] and images.labels(4, 7).tolist() == [0, 1, 2]
    images.batch(4, 7)
    assert [y.tolist() for y in asked] == [[0, 1, 2]] * 2
    free = DrawnImages(pulled_to_classes(), 8, 2, seed=5, shape=(1, 8, 8))
    assert torch.equal(free.labels(2, 8), common_labels(3, 2, 8, seed=5))
    assert DrawnImages(denoiser_of_classes(), 8, 2, seed=5).labels(0, 8) is None


def test_drawn_images_follow_the_weight():
    def drawn(guidance):
        denoiser = pulled_to_classes(scale=0.1)
        return DrawnImages(denoiser, 50, 2, seed=5, shape=(1, 8, 8), classes=(1,), guidance=guidance).batch(0, 50)

    plain, same, without, guided = (drawn(w) for w in (None, 0.0, -1.0, 0.5))
    assert torch.equal(same, plain) and (plain - without).min() > 0.01 and guided.abs().max() < 1
    # this network is linear in what it knows of the class, so the images are linear in the weight
    torch.testing.assert_close(guided - without, 1.5 * (plain - without), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "stochastic"])
def test_provenance_says_guidance_labels_and_what_they_cost(sampler):
    asked = []
    denoiser = pulled_to_classes(asked)

    def provenance(denoiser, **options):
        images = DrawnImages(denoiser, 5, 4, seed=5, shape=(1, 8, 8), sampler=sampler, **options)
        asked.clear()
        images.batch(0, 5)
        return [images.provenance[name] for name in ("guidance", "labels", "evaluations")]

    assert provenance(denoiser) == ["none", "drawn at random, all classes alike", 4] and len(asked) == 4
    assert provenance(denoiser, guidance=1.5, classes=(2, 0)) == [1.5, "2, 0 in turn", 8] and len(asked) == 8
    assert provenance(weighing(), guidance=1.5) == [1.5, "drawn at random, all classes alike", 4]
    assert provenance(as_denoiser(lambda z, t: z, CosineSchedule())) == ["none", "none", 4]


def test_receipts_and_identities_tell_guided_images_from_others(data):
    torch.manual_seed(0)
    network = UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, num_classes=10, label_dropout=0.1))
    denoiser = Denoiser(network, CosineSchedule(), "v").eval().requires_grad_(False)
    settings = [
        {},
        {"guidance": 0.0},
        {"guidance": 1.0},
        {"classes": (1,)},
        {"classes": (1, 2)},
        {"sampler": "stochastic"},
    ]
    assert len({DrawnImages(denoiser, 9, 2, seed=0, **options).identity for options in settings}) == len(settings)
    images = DrawnImages(pulled_to_classes(), 100, 2, seed=5, shape=(1, 8, 8), guidance=0.5, classes=(2, 0))
    receipt = dataclasses.asdict(evaluate(images, data).receipt)
    assert (receipt["guidance"], receipt["labels"], receipt["evaluations"]) == (0.5, "2, 0 in turn", 4)


@pytest.mark.parametrize(
    "denoiser, options, words",
    [
        (pulled_to_classes, dict(classes=(0, 3, 7)), "unknown classes 3, 7: choose from 0 to 2"),
        (pulled_to_classes, dict(classes=(NO_CLASS,)), "unknown classes -1: choose from 0 to 2"),
        (denoiser_of_classes, dict(classes=(0,)), "unconditional and draws no chosen classes: leave the classes out"),
        (denoiser_of_classes, dict(guidance=1.0), "unconditional and cannot be guided"),
        (lambda: denoiser_of_classes(10), dict(guidance=1.0), "without label dropout and cannot be guided"),
        (weighing, {}, "takes a guidance weight: give one of 0 to 4"),
        (weighing, dict(guidance=math.inf), "guidance inf: expected a number"),
        (weighing, dict(guidance=math.nan), "guidance nan: expected a number"),
    ],
)
def test_what_a_model_cannot_draw_is_refused_at_once(denoiser, options, words):
    with pytest.raises(UserError, match=words) as error:
        DrawnImages(denoiser(), 10, 2, seed=0, shape=(1, 8, 8), **options)
    assert "\n" not in str(error.value)


def test_guidance_beyond_the_range_is_warned_of_and_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DrawnImages(weighing(), 3, 2, seed=0, shape=(1, 8, 8), guidance=4.0).batch(0, 3)
        images = DrawnImages(weighing(), 3, 2, seed=0, shape=(1, 8, 8), guidance=8.0)
    with pytest.warns(GuidanceWarning, match="guidance 8 is outside .*, 0 to 4"):
        assert (images.batch(0, 3) == 1).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples():
    """Peak memory of a process that scores 2,000 images and of one that scores 60,000."""
    program = """
import sys
from rddlib.data import load_dataset
from rddlib.evaluation import DrawnImages, evaluate
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.training.hardware import peak_memory
images = DrawnImages(as_denoiser(lambda z, t: z.clamp(-1, 1), CosineSchedule()), int(sys.argv[1]), 1, seed=0, shape=(1, 8, 8))
evaluate(images, load_dataset("digits"), batch_size=500, metrics=("fid", "is", "pfd"))
print(peak_memory("cpu"))
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", program, str(n)], capture_output=True, text=True, check=True).stdout)
        for n in (2000, 60_000)
    ]
    held = 58_000 * (64 + 10 + 64) * 8  # what features, logits and pixels would take
    assert peaks[1] - peaks[0] < held / 2, peaks


def test_a_stopped_evaluation_goes_on(data, tmp_path):
    class Stopping(DrawnImages):
        calls = 0

        def batch(self, start, stop):
            type(self).calls += 1
            if type(self).calls == 3:
                raise KeyboardInterrupt
            return super().batch(start, stop)

    denoiser, options = denoiser_of_classes(), dict(folder=tmp_path / "work", batch_size=100)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "kept").write_text("somebody's")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopping(denoiser, 500, 1, seed=0), data, **options)
    assert len(list((tmp_path / "work").glob("*/*.npz"))) == 2
    damaged = next((tmp_path / "work").glob("*/000000000*"))
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert not complete(damaged) and not damaged.exists()  # a damaged one is drawn again
    resumed = Stopping(denoiser, 500, 1, seed=0)
    result = evaluate(resumed, data, **options)
    assert Stopping.calls == 3 + 4 and [p.name for p in (tmp_path / "work").iterdir()] == ["kept"]
    assert result.values == evaluate(DrawnImages(denoiser, 500, 1, seed=0), data, batch_size=100).values


def test_batches_of_other_work_are_not_taken(data, tmp_path):
    """Stopped, then another batch size, protocol, metric or model in the same folder: as if nothing were there."""

    class Stopping(DrawnImages):
        def batch(self, start, stop):
            if start >= 200:
                raise KeyboardInterrupt
            return super().batch(start, stop)

    denoiser, other = denoiser_of_classes(), denoiser_of_classes()
    with torch.no_grad():
        other.network.tail[-1].bias += 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopping(denoiser, 300, 1, seed=0), data, folder=tmp_path, batch_size=100)
    for model, options in (
        (denoiser, dict(batch_size=120)),
        (denoiser, dict(protocol="released")),
        (other, {}),
        (denoiser, dict(metrics=("fid", "pfd"))),
    ):
        options = {"batch_size": 100, **options}
        found = evaluate(DrawnImages(model, 300, 1, seed=0), data, folder=tmp_path, **options)
        assert found.values == evaluate(DrawnImages(model, 300, 1, seed=0), data, **options).values


def test_models_without_weights_are_not_kept_on_file(data, tmp_path):
    images = DrawnImages(as_denoiser(lambda z, t: z, CosineSchedule()), 100, 1, seed=0, shape=(1, 8, 8))
    with pytest.raises(UserError, match="cannot be told from another"):
        evaluate(images, data, folder=tmp_path)
    with pytest.raises(UserError, match="is drawn: a reference needs given images"):
        evaluate(grey(), images)


PROCESS = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rddlib.data import load_dataset
from rddlib.utils.distributed import rank, world_size
from rddlib.evaluation import DrawnImages, Reference, recorded, find_network
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.diffusion.denoiser import as_denoiser
data = load_dataset("digits")
images = DrawnImages(as_denoiser(lambda z, t: (0.5 * z).clamp(-1, 1), CosineSchedule()), 500, 1, seed=0, shape=(1, 8, 8), made={"weights_sha256": "progressive"})
import contextlib
with contextlib.closing(Reference(data, 90, "cpu")) as reference:
    (path, found), = recorded(Path(sys.argv[1]), "x", {"method": "m", "steps": 1, "seed": 0}, images, reference,
                              find_network("", (1, 8, 8)), metrics=("fid", "is", "kid", "pr", "pfd"), protocols=("torch-fidelity",),
                              batch_size=90, kid_subset=200)
print("rank", rank(), found["row"]["fid"], found["receipt"]["processes"], flush=True)
torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
"""


def test_two_processes_share_the_work_and_find_the_same(tmp_path):
    (tmp_path / "score.py").write_text(PROCESS)
    alone = subprocess.run(
        [sys.executable, tmp_path / "score.py", tmp_path / "one"], capture_output=True, text=True, check=True
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both = subprocess.run(
        [*launch, tmp_path / "score.py", tmp_path / "two"], capture_output=True, text=True, check=True
    )
    lines = sorted(line for line in both.stdout.splitlines() if line.startswith("rank"))
    assert [line.split()[1] for line in lines] == ["0", "1"] and "rank 0" in alone.stdout
    rows = [json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("one", "two")]
    assert [row["receipt"]["processes"] for row in rows] == [1, 2]
    for name in ("fid", "is", "kid", "precision", "recall", "pfd"):
        assert rows[0]["row"][name] == pytest.approx(rows[1]["row"][name], rel=1e-6), name


# where images come from


def test_all_sources_give_the_same_scores(data, noisy, tmp_path):
    write_pngs(open_images(noisy), tmp_path / "pngs")
    np.savez(tmp_path / "stored.npz", arr_0=noisy.permute(0, 2, 3, 1).numpy())
    np.savez_compressed(tmp_path / "packed.npz", arr_0=noisy.permute(0, 2, 3, 1).numpy())
    expected = evaluate(noisy, data, batch_size=300)
    for source in ("pngs", "stored.npz", "packed.npz"):
        found = evaluate(tmp_path / source, data, batch_size=300)
        assert found.values == expected.values and found.receipt.images_sha256 == expected.receipt.images_sha256
        assert found.receipt.images != expected.receipt.images and found.receipt.sampler == "none: given images"
    floats = evaluate(noisy.float() / 127.5 - 1, data, batch_size=300)
    assert floats.values == expected.values


def test_an_npz_is_read_a_batch_at_a_time(noisy, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", arr_0=noisy.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(len(noisy)))
    images = open_images(tmp_path / "a.npz")
    monkeypatch.setattr(np, "load", None)  # which would read all of it
    assert len(images) == 700 and images.shape == (1, 8, 8)
    for start, stop in ((300, 450), (0, 10), (690, 700)):  # forwards and back again
        assert torch.equal(images.batch(start, stop), noisy[start:stop])


def test_reference_statistics_of_a_file(data, noisy, tmp_path):
    features = digits_network().module(data.images)[0]
    mu, sigma = features.mean(0).numpy(), features.T.cov().numpy()
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=np.zeros(3), sigma_s=np.eye(3))
    expected = evaluate(noisy, data)
    for name in ("edm.npz", "adm.npz"):
        found = evaluate(noisy, tmp_path / name)
        assert found.values["fid"] == pytest.approx(expected.values["fid"], rel=1e-9)
        assert found.receipt.reference == f"statistics {name}"
        assert found.receipt.reference_sha256 != expected.receipt.reference_sha256
    write_statistics(tmp_path / "again.npz", read_statistics(tmp_path / "edm.npz"))
    assert np.array_equal(read_statistics(tmp_path / "again.npz").sigma, sigma)


def test_long_reference_statistics_are_kept_and_used_again(data, noisy, tmp_path, monkeypatch):
    monkeypatch.setenv("RDD_DATA", str(tmp_path))
    monkeypatch.setattr("rddlib.evaluation.reference.WORTH_KEEPING", 100)
    first = evaluate(noisy, data).values
    kept = list((tmp_path / "cache" / "features").glob("*.npz"))
    assert len(kept) == 1 and not [p for p in kept[0].parent.iterdir() if p.is_dir() and p.name != ".locks"]
    seen = []
    monkeypatch.setattr("rddlib.evaluation.reference.extract", lambda *a: seen.append(a))
    assert evaluate(noisy, data).values == first and not seen
    monkeypatch.undo()
    monkeypatch.setenv("RDD_DATA", str(tmp_path))
    monkeypatch.setattr("rddlib.evaluation.reference.WORTH_KEEPING", 100)
    kept[0].write_bytes(b"damaged")
    assert evaluate(noisy, data).values == first  # made again


def test_a_profile_s_own_extractor_can_score(data, tmp_path):
    from rddlib.distillation.extractor import build_extractor
    from rddlib.utils.checkpoint import save_checkpoint

    for name, channels in (("small_resnet", 1), ("resnet18", 3), ("densenet201", 3)):
        torch.manual_seed(0)
        extractor = build_extractor(name, channels, 7).eval()
        info = {"kind": "extractor", "facts": {"extractor": {"name": name}}, "test_accuracy": 0.5}
        save_checkpoint(tmp_path / name, extractor.state_dict(), info)
        network = find_network(str(tmp_path / name), (channels, 32, 32))
        images = to_uint8(torch.rand(2, channels, 32, 32))
        features, logits = network.module(images)
        expected = extractor(images.float() / 127.5 - 1)
        assert torch.allclose(features, expected.pooled, atol=1e-5) and torch.allclose(
            logits, expected.logits, atol=1e-4
        )
        assert network.features == extractor.channels and network.name == f"extractor {name}, 50.0% right"


# refused in one line


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def grey(count=100):
    return torch.randint(0, 255, (count, 1, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize(
    "images, options, words",
    [
        (lambda p: grey(10), {}, "10 images cannot fill a covariance of 64 features"),
        (lambda p: grey(100), dict(metrics=("kid",)), "100 images cannot make subsets of 1000"),
        (lambda p: grey(9), dict(metrics=("is",)), "9 images cannot make 10 splits"),
        (lambda p: grey(), dict(metrics=("kit",)), "unknown metrics kit: known are fid, is, kid, pr, pfd"),
        (lambda p: grey(), dict(metrics=()), "unknown metrics"),
        (
            lambda p: grey(),
            dict(protocol="clean-fid"),
            "unknown protocol 'clean-fid': known are torch-fidelity, released",
        ),
        (
            lambda p: torch.zeros(100, 3, 8, 8, dtype=torch.uint8),
            dict(network="digits"),
            "colour images, but the digits",
        ),
        (lambda p: torch.zeros(100, 1, 9, 9, dtype=torch.uint8), dict(network="digits"), "9x9 pixels"),
        (lambda p: torch.rand(100, 1, 8, 8), {}, r"floats from 0.*, expected \[-1, 1\]: rescale"),
        (lambda p: torch.rand(100, 1, 8, 8) * 255, {}, r"expected \[-1, 1\]: rescale"),
        (lambda p: (torch.rand(100, 1, 8, 8) > 0.5).to(torch.uint8), {}, "uint8 values from 0 to 1, expected 0..255"),
        (lambda p: torch.zeros(100, 1, 8, 8, dtype=torch.int64), {}, "torch.int64, expected uint8"),
        (
            lambda p: npz(p / "a.npz", arr_0=np.zeros((100, 8, 8, 1), np.float32)),
            {},
            r"float32: expected \[N, H, W, C\] uint8",
        ),
        (lambda p: npz(p / "a.npz", arr_0=np.zeros((100, 3, 8, 8), np.uint8)), {}, "expected .N, H, W, C. uint8"),
        (lambda p: npz(p / "a.npz", samples=np.zeros(3)), {}, "cannot be read as an .npz with arr_0"),
        (lambda p: p / "nowhere", {}, "does not exist"),
        (lambda p: p, {}, "holds no images"),
        (lambda p: grey(), dict(batch_size=0), "expected at least 1"),
        (lambda p: npz(p / "a.npz", arr_0=np.zeros((0, 8, 8, 1), np.uint8)), {}, "0 images cannot"),
    ],
)
def test_bad_images_are_refused(data, tmp_path, images, options, words):
    if options.get("network"):
        options = {**options, "network": digits_network()}
    with pytest.raises(UserError, match=words) as error:
        evaluate(images(tmp_path), data, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_an_unreadable_npz_is_refused(data, tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    for arguments in ((tmp_path / "a.npz", data), (grey(), tmp_path / "a.npz")):
        with pytest.raises(UserError, match="a.npz cannot be read"):
            evaluate(*arguments)


def test_an_npz_with_python_objects_runs_nothing(data, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.savez(tmp_path / "a.npz", arr_0=np.array([Trap()], dtype=object))
    np.savez(tmp_path / "b.npz", mu=np.array([Trap()], dtype=object), sigma=np.eye(1))
    (tmp_path / "sprung").unlink(missing_ok=True)  # a pickled Trap opens the file when it is made, too
    for arguments in ((tmp_path / "a.npz", data), (grey(), tmp_path / "b.npz")):
        with pytest.raises(UserError):
            evaluate(*arguments)
    assert not (tmp_path / "sprung").exists()


def test_an_empty_or_damaged_reference_is_refused(tmp_path):
    with pytest.raises(UserError, match="reference .*: 0 images cannot"):
        evaluate(grey(), npz(tmp_path / "none.npz", arr_0=np.zeros((0, 8, 8, 1), np.uint8)))
    for name, arrays in (
        ("images", dict(arr_0=grey(2000).permute(0, 2, 3, 1).numpy())),
        ("statistics", dict(mu=np.random.rand(64), sigma=np.random.rand(64, 64))),
    ):
        np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
        content = bytearray((tmp_path / f"{name}.npz").read_bytes())
        content[3000:3100] = bytes(100)
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.npz (is damaged|cannot be read)"):
            evaluate(grey(), tmp_path / f"{name}.npz")


def test_truncated_npz_is_refused(data, tmp_path):
    path = npz(tmp_path / "a.npz", arr_0=np.zeros((900, 8, 8, 1), np.uint8))
    images = open_images(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="a.npz is damaged"):
        images.batch(800, 900)


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        (dict(mu=np.zeros(5), sigma=np.eye(5)), {}, "has 5 dimensions, the digits metric network has 64"),
        (dict(mu=np.zeros(64), sigma=np.eye(5)), {}, r"expected finite \[D\] and \[D, D\]"),
        (dict(mu=np.full(64, np.nan), sigma=np.eye(64)), {}, "expected finite"),
        (dict(mu=np.zeros(64)), {}, "lacks 'sigma"),
        (dict(mu=np.zeros(64), sigma=np.eye(64)), dict(metrics=("fid", "kid")), "kid needs images"),
    ],
)
def test_bad_reference_statistics_are_refused(tmp_path, arrays, options, words):
    with pytest.raises(UserError, match=words):
        evaluate(grey(2000), npz(tmp_path / "r.npz", **arrays), **options)


def test_a_reference_of_another_size_or_too_few_images_is_refused(data):
    with pytest.raises(UserError, match="give both the same size|pixels"):
        evaluate(grey(), torch.zeros(100, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(UserError, match="reference given images: 10 images cannot fill"):
        evaluate(grey(), grey(10))


def test_mixed_folders_are_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="b.png is RGB, 8x8, the first image L, 8x8"):
        open_images(tmp_path).batch(0, 2)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="b.png cannot be read"):
        open_images(tmp_path).batch(0, 2)


def test_grayscale_where_colour_is_needed(tmp_path, untrained_inception):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="grayscale images, but the Inception v3.* takes colour"):
        evaluate(tmp_path, tmp_path, network=inception_network(untrained_inception))
    with pytest.raises(UserError, match="grayscale images cannot be scored by Inception"):
        find_network("inception", (1, 8, 8))


def test_models_that_draw_nan_are_refused(data):
    denoiser = as_denoiser(lambda z, t: z * float("nan"), CosineSchedule())
    with pytest.raises(UserError, match="NaN or infinity"):
        evaluate(DrawnImages(denoiser, 100, 1, seed=0, shape=(1, 8, 8), name="broken"), data)


# weights


def test_missing_inception_weights_end_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError, match="missing: put .* at .*, or score with the profile's own network") as error:
        inception_weights(download=False)
    assert "\n" not in str(error.value) and "--metric-network" in str(error.value)

    def unreachable(address, timeout):
        assert timeout == 30
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match="cannot download .*timed out.*by hand, or score with the profile's own"):
        inception_weights()
    monkeypatch.setattr("urllib.request.urlopen", lambda address, timeout: io.BytesIO(b"something else"))
    with pytest.raises(UserError, match="is damaged"):
        inception_weights()
    assert not list((tmp_path / "checkpoints").glob("*"))  # nothing half is left


def test_inception_weights_are_found_in_both_names_and_places(tmp_path, monkeypatch):
    from hashlib import sha256

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("RDD_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("rddlib.evaluation.networks.INCEPTION_SHA256", sha256(b"weights").hexdigest())
    for place in (
        "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth",
        "data/weights-inception-2015-12-05-6726825d.pth",
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        assert inception_weights(download=False) == path
        path.write_bytes(b"other")
        with pytest.raises(UserError, match="is damaged"):
            inception_weights(download=False)
        path.unlink()


def test_a_pickle_with_code_is_no_inception(tmp_path):
    class Trap:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    torch.save({"a": Trap()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no Inception"):
        inception_network(tmp_path / "w.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no Inception"):
        inception_network(tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_other_checkpoints_are_no_metric_network(tmp_path):
    from rddlib.utils.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "x", {}, {"kind": "base"})
    with pytest.raises(UserError, match="no metric network"):
        load_metric_network(tmp_path / "x")
    with pytest.raises(UserError, match="no network that scores"):
        find_network(str(tmp_path / "x"), (1, 8, 8))
    with pytest.raises(UserError, match="no such file; known are digits, inception"):
        find_network("nowhere", (1, 8, 8))


# receipts and files


def test_receipts_say_everything(data):
    made = {"model": "U-Net", "ema": "0.998", "checkpoint_sha256": "abc", "training_precision": "float32"}
    images = DrawnImages(denoiser_of_classes(), 200, 4, seed=7, made=made)
    receipt = dataclasses.asdict(evaluate(images, data).receipt)
    assert all(value not in ("", None) for value in receipt.values())
    assert receipt["metric"] == "FID (digits metric network, 200 samples)"
    assert receipt["tool"] == f"torch-fidelity {torch_fidelity.__version__}"
    assert receipt["reference_sha256"] == data.sha256 and len(receipt["network_sha256"]) == 64
    expected = {
        "protocol": "torch-fidelity",
        "rounding": "uint8",
        "resize": "none",
        "samples": 200,
        "sampler": "ddim",
        "steps": 4,
        "evaluations": 4,
        "clip": True,
        "noise_seed": 7,
        "labels": "none",
        "precision": "float32",
        "network_precision": "float64",
        "processes": 1,
        **made,
    }
    assert {name: receipt[name] for name in expected} == expected


def test_different_protocols_do_not_compare():
    receipts = [{"metric": "FID", "protocol": "torch-fidelity", "samples": 10}, {"metric": "FID", "samples": 10}]
    assert differing_protocols(receipts[:1] * 2) == [] and differing_protocols(receipts) == ["protocol"]
    subsets = [{"metric": "FID", "kid_subset": n} for n in (0, 1000, 50)]  # 0: without kid
    assert differing_protocols(subsets[:2]) == [] and differing_protocols(subsets) == ["kid_subset"]


def test_results_on_file_are_found_again(data, noisy, tmp_path, monkeypatch):
    def measured(metrics=("fid",)):
        reference = Reference(data, 100, "cpu")
        return recorded(
            tmp_path,
            "noisy",
            {"method": "noisy", "steps": 0, "seed": 0},
            open_images(noisy),
            reference,
            digits_network(),
            metrics=metrics,
            protocols=("torch-fidelity", "released"),
            batch_size=100,
        )

    first = measured()
    assert len(first) == 2 and {record["receipt"]["protocol"] for _, record in first} == set(PROTOCOLS)
    monkeypatch.setattr("rddlib.evaluation.evaluate.evaluate_all", None)
    assert measured() == first
    monkeypatch.undo()
    assert {path for path, _ in measured(("fid", "is"))}.isdisjoint({path for path, _ in first})
    first[0][0].write_text("{")
    with pytest.raises(UserError, match="is damaged: delete it"):
        measured()


def test_drawing_to_a_file_goes_on_where_it_was_stopped(tmp_path):
    class Stopping(DrawnImages):
        calls, limit = 0, 99

        def batch(self, start, stop):
            self.calls += 1
            if self.calls == self.limit:
                raise KeyboardInterrupt
            return super().batch(start, stop)

    def images():
        return Stopping(denoiser_of_classes(10), 25, 2, seed=3)

    draw_to_file(images(), tmp_path / "whole.npz", batch_size=10)
    stopped = images()
    stopped.limit = 3
    with pytest.raises(KeyboardInterrupt):
        draw_to_file(stopped, tmp_path / "again.npz", batch_size=10)
    assert len(list((tmp_path / "again.parts").iterdir())) == 2 and not (tmp_path / "again.npz").exists()
    resumed = images()
    picture = draw_to_file(resumed, tmp_path / "again.npz", batch_size=10)
    assert resumed.calls == 1 and picture.read_bytes()[:4] == b"\x89PNG" and not (tmp_path / "again.parts").exists()
    a, b = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "again"))
    assert a["arr_0"].shape == (25, 8, 8, 1) and a["arr_0"].dtype == np.uint8 and set(a["arr_1"]) <= set(range(10))
    assert (a["arr_0"] == b["arr_0"]).all() and (a["arr_1"] == b["arr_1"]).all()


def test_shards_cover_every_image_once(tmp_path):
    shards = Shards(tmp_path, 25, 10, ("features",))
    assert len(shards) == 3 and [shards.rows(k) for k in range(3)] == [(0, 10), (10, 20), (20, 25)]
