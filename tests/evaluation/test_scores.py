"""Scores against closed forms and torch-fidelity, and the same scores whatever the batches, files and protocols."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_fidelity
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import refused

from rddlib.data import ImageDataset, to_uint8
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.evaluation import (
    PROTOCOLS,
    DrawnImages,
    differing_protocols,
    evaluate,
    evaluate_all,
    frechet_distance,
    load_metric_network,
    shipped_network,
)
from rddlib.evaluation.features import complete
from rddlib.evaluation.statistics import Gaussian, gaussian_of, inception_score
from rddlib.utils.errors import UserError

EVERYTHING = ("fid", "is", "kid", "pr", "pfd")


def grey(count=100):
    return torch.randint(0, 255, (count, 1, 8, 8), dtype=torch.uint8)


def closed_form(mu_a, sigma_a, mu_b, sigma_b):
    """By symmetric square roots, independent of torch-fidelity's eigenvalues of a product."""

    def root(m):
        values, vectors = torch.linalg.eigh(m)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    cross = root(root(sigma_a) @ sigma_b @ root(sigma_a))
    return float((mu_a - mu_b).square().sum() + (sigma_a + sigma_b - 2 * cross).trace())


def test_a_set_has_no_distance_from_itself(data):
    images = data.images[:600]
    result = evaluate(images, images, metrics=EVERYTHING, kid_subset=300).values
    trace = float(shipped_network("digits").module(images)[0].T.cov().trace())
    assert abs(result["fid"]) < 1e-6 * trace and abs(result["pfd"]) < 1e-6
    assert result["precision"] == result["recall"] == 1 and result["kid"] < 0  # unbiased: below 0 for the same set
    assert 8 < result["is"] <= 10


def test_distance_of_two_gaussians_is_the_closed_form():
    g = torch.Generator().manual_seed(3)
    mu = torch.randn(2, 12, generator=g, dtype=torch.float64)
    factors = torch.randn(2, 12, 12, generator=g, dtype=torch.float64)
    sigma = factors @ factors.mT
    gaussians = [Gaussian(mu[i].numpy(), sigma[i].numpy()) for i in range(2)]
    assert frechet_distance(*gaussians) == pytest.approx(closed_form(mu[0], sigma[0], mu[1], sigma[1]), rel=1e-9)
    scaled = Gaussian(gaussians[0].mu, 4 * gaussians[0].sigma)  # commuting: tr(S + 4S - 2*2S) = tr S
    assert frechet_distance(gaussians[0], scaled) == pytest.approx(float(sigma[0].trace()), rel=1e-9)


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
    parts = [(start, logits[start : start + 130]) for start in range(0, 500, 130)]
    assert inception_score(parts, 500, shuffled=False) == pytest.approx((10.0, 0.0), abs=1e-9)
    blind = [(0, torch.zeros(500, 10))]
    assert inception_score(blind, 500, shuffled=True) == pytest.approx((1.0, 0.0), abs=1e-12)


@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_moments_do_not_depend_on_the_parts(seed, sizes):
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(sizes), 5, generator=g, dtype=torch.float64) + 1000  # far from 0: nothing may cancel
    found = gaussian_of((0, part) for part in rows.split(sizes))
    assert np.allclose(found.mu, rows.mean(0), rtol=1e-12)
    assert np.allclose(found.sigma, np.atleast_2d(np.cov(rows.numpy(), rowvar=False)), rtol=1e-9, atol=1e-9)


class Bare(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class DigitsNetwork(torch_fidelity.FeatureExtractorBase):
    """The digits network as torch-fidelity takes it."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.module = shipped_network("digits").module

    def forward(self, levels):
        found = dict(zip(self.get_provided_features_list(), self.module(levels), strict=True))
        return tuple(found[name] for name in self.features_list)

    get_provided_features_list = staticmethod(lambda: ("features", "logits"))
    get_default_feature_layer_for_metric = staticmethod(lambda metric: "logits" if metric == "isc" else "features")
    can_be_compiled = staticmethod(lambda: False)


def test_all_metrics_equal_torch_fidelity_s_own_whatever_the_batches(few, noisy):
    torch_fidelity.register_feature_extractor("digits-network", DigitsNetwork)
    sets = dict(input1=Bare(noisy), input2=Bare(few.images), feature_extractor="digits-network")
    asked = dict(isc=True, fid=True, kid=True, prc=True, kid_subset_size=200)
    theirs = torch_fidelity.calculate_metrics(
        **sets, **asked, cuda=False, cache=False, save_cpu_ram=True, verbose=False
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
    parts, whole = (
        evaluate(noisy, few, metrics=EVERYTHING, kid_subset=200, batch_size=size).values for size in (90, 2000)
    )
    for ours, name in names.items():
        assert parts[ours] == pytest.approx(theirs[name], rel=1e-9), name
    assert whole == pytest.approx(parts, rel=1e-6)


def test_one_set_of_samples_under_both_protocols(few):
    calls, denoiser = [], as_denoiser(lambda z, t: calls.append(t) or (0.5 * z).clamp(-1, 1), CosineSchedule())
    images = DrawnImages(denoiser, 300, 1, seed=2, shape=(1, 8, 8))
    whole, floats = evaluate_all(images, few, protocols=("torch-fidelity", "released"), batch_size=100)
    assert len(calls) == 3  # drawn once
    assert whole.values["fid"] != floats.values["fid"] == pytest.approx(whole.values["fid"], rel=1e-2)
    again = evaluate(to_uint8(images.batch(0, 300)), few)
    assert again.values["fid"] == pytest.approx(whole.values["fid"], rel=1e-12)
    assert differing_protocols([vars(whole.receipt), vars(floats.receipt)]) == ["protocol", "rounding", "shuffled"]


def test_unshuffled_splits_are_the_released_ones(data):
    """Sorted by class, each split sees one class: the released way scores 1, the shuffled one about 10."""
    images = data.images[data.labels.argsort()[: 10 * (len(data) // 10)]]
    shuffled, released = (evaluate(images, data, metrics=("is",), protocol=p).values["is"] for p in PROTOCOLS)
    assert shuffled > 9 and released < 2.5


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


class Stopping(DrawnImages):
    """Counts its batches and is interrupted at the third."""

    calls = 0

    def batch(self, start, stop):
        type(self).calls += 1
        if type(self).calls == 3:
            raise KeyboardInterrupt
        return super().batch(start, stop)


@pytest.fixture
def stopped(few, unet, tmp_path, monkeypatch):
    """A denoiser whose evaluation in tmp_path was stopped after two batches of 100 of 300 images."""
    denoiser = unet()
    monkeypatch.setattr(Stopping, "calls", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stopping(denoiser, 300, 1, seed=0), few, folder=tmp_path, batch_size=100)
    assert len(list(tmp_path.glob("*/*.npz"))) == 2
    return denoiser


def test_a_stopped_evaluation_goes_on(few, stopped, tmp_path):
    (tmp_path / "kept").write_text("somebody's")
    damaged = next(tmp_path.glob("*/000000000*"))
    damaged.write_bytes(damaged.read_bytes()[:-200])
    assert not complete(damaged) and not damaged.exists()  # a damaged one is drawn again
    result = evaluate(Stopping(stopped, 300, 1, seed=0), few, folder=tmp_path, batch_size=100)
    assert Stopping.calls == 3 + 2 and [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert result.values == evaluate(DrawnImages(stopped, 300, 1, seed=0), few, batch_size=100).values


@pytest.mark.parametrize(
    "options", [{"batch_size": 120}, {"protocol": "released"}, {"metrics": ("fid", "pfd")}, {"bias": 1}], ids=str
)
def test_batches_of_other_work_are_not_taken(few, stopped, tmp_path, options):
    """Another batch size, protocol, metric or model: all images are drawn, as if nothing were there."""
    options = {"batch_size": 100, **options}
    with torch.no_grad():
        stopped.network.tail[-1].bias += options.pop("bias", 0)
    evaluate(Stopping(stopped, 300, 1, seed=0), few, folder=tmp_path, **options)
    assert Stopping.calls == 3 + 3


def test_models_without_weights_are_not_kept_on_file(few, tmp_path):
    images = DrawnImages(as_denoiser(lambda z, t: z, CosineSchedule()), 100, 1, seed=0, shape=(1, 8, 8))
    assert "cannot be told from another" in refused(evaluate, images, few, folder=tmp_path)
    assert "is drawn: a reference needs given images" in refused(evaluate, grey(), images)


@pytest.mark.parametrize(
    "images, options, words",
    [
        (grey(10), {}, "10 images cannot fill a covariance of 64 features"),
        (grey(), dict(metrics=("kid",)), "100 images cannot make subsets of 1000"),
        (grey(), dict(metrics=("kid",), kid_subset=1), "kid subset of 1: expected at least 2"),
        (grey(9), dict(metrics=("is",)), "9 images cannot make 10 splits"),
        (grey(), dict(metrics=("kit",)), "unknown metrics kit: known are fid, is, kid, pr, pfd"),
        (grey(), dict(metrics=()), "unknown metrics"),
        (grey(), dict(protocol="clean-fid"), "unknown protocol 'clean-fid': known are torch-fidelity, released"),
        (grey(), dict(batch_size=0), "expected at least 1"),
        (torch.rand(100, 1, 8, 8), {}, r"floats from 0.*, expected \[-1, 1\]: rescale"),
        (torch.rand(100, 1, 8, 8) * 255, {}, r"expected \[-1, 1\]: rescale"),
        (grey() % 2, {}, "uint8 values from 0 to 1, expected 0..255"),
        (grey().long(), {}, "torch.int64, expected uint8"),
        (grey().repeat(1, 3, 1, 1), dict(network=shipped_network("digits")), "colour images, but the digits"),
        (torch.zeros(100, 1, 9, 9, dtype=torch.uint8), dict(network=shipped_network("digits")), "9x9 pixels"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(few, images, options, words):
    assert re.search(words, refused(evaluate, images, few, **options))


def test_models_that_draw_nan_are_refused(few):
    denoiser = as_denoiser(lambda z, t: z * float("nan"), CosineSchedule())
    with pytest.raises(UserError, match="NaN or infinity"):
        evaluate(DrawnImages(denoiser, 100, 1, seed=0, shape=(1, 8, 8), name="broken"), few)
