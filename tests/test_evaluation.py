import dataclasses

import pytest
import torch

from rddlib.data import ImageDataset, load_dataset
from rddlib.denoiser import Denoiser, as_denoiser
from rddlib.errors import UserError
from rddlib.evaluation import Receipt, load_metric_network, sample_images, score
from rddlib.schedule import CosineSchedule
from rddlib.unet import UNet, UNetConfig


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


def test_a_set_scores_zero_against_itself(data):
    s = score(data.images, data)
    assert abs(s.fid) < 1e-6 and abs(s.pfd) < 1e-6 and 9 < s.inception_score <= 10


def frechet(a, b):
    """Closed form, by symmetric square roots, independent of torch-fidelity's eigenvalues of a product."""

    def root(m):
        values, vectors = torch.linalg.eigh(m)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    cov_a, cov_b = a.T.cov(), b.T.cov()
    cross = root(root(cov_a) @ cov_b @ root(cov_a))
    return float((a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b - 2 * cross).trace())


def test_scores_equal_the_closed_form(data):
    a, b = data.images[:900], ImageDataset("rest", data.images[900:], data.labels[900:], 10)
    s, network = score(a, b), load_metric_network()
    pixels = [x.double().flatten(1) / 127.5 - 1 for x in (a, b.images)]
    features = [network(x.float() / 127.5 - 1)[0].double() for x in (a, b.images)]
    assert s.pfd == pytest.approx(frechet(*pixels), rel=1e-6)
    assert s.fid == pytest.approx(frechet(*features), rel=1e-6)


def test_scores_do_not_depend_on_the_batch_size(data):
    a, b = score(data.images[:300], data, batch_size=300), score(data.images[:300], data, batch_size=7)
    assert a.fid == pytest.approx(b.fid, rel=1e-5) and a.pfd == pytest.approx(b.pfd, rel=1e-9)


def test_worse_images_score_worse(data):
    g = torch.Generator().manual_seed(0)
    noisy = [(data.images + torch.randint(-k, k + 1, data.images.shape, generator=g)).clamp(0, 255).to(torch.uint8)
             for k in (10, 40, 120)]  # fmt: skip
    scores = [score(x, data) for x in noisy]
    assert scores[0].fid < scores[1].fid < scores[2].fid and scores[0].pfd < scores[1].pfd < scores[2].pfd


def test_same_seed_same_noise_whatever_the_batch_size():
    denoiser = as_denoiser(lambda z, t: z.clamp(-1, 1), CosineSchedule())
    a = sample_images(denoiser, (1, 2, 2), 10, 2, seed=4, batch_size=10)
    b = sample_images(denoiser, (1, 2, 2), 10, 2, seed=4, batch_size=3)
    assert torch.equal(a, b) and a.dtype == torch.uint8 and a.shape == (10, 1, 2, 2)
    assert not torch.equal(a, sample_images(denoiser, (1, 2, 2), 10, 2, seed=5))


@pytest.mark.parametrize("images, words", [
    (torch.zeros(100, 1, 8, 8), "uint8"),
    (torch.zeros(100, 3, 8, 8, dtype=torch.uint8), "match the shape"),
    (torch.zeros(10, 1, 8, 8, dtype=torch.uint8), "at least 65"),
])  # fmt: skip
def test_bad_images_are_refused(data, images, words):
    with pytest.raises(UserError, match=words):
        score(images, data)


def test_a_foreign_checkpoint_is_no_metric_network(tmp_path):
    from rddlib.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "x", {}, {"kind": "base"})
    with pytest.raises(UserError, match="no metric network"):
        load_metric_network(tmp_path / "x")


def test_receipts_say_everything(data):
    receipt = Receipt.make(
        data, samples=500, steps=4, clip=True, noise_seed=1, checkpoint="abc", training_precision="float32"
    )
    values = dataclasses.asdict(receipt)
    assert all(value not in ("", None) for value in values.values())
    assert values["metric"] == "FID (digits metric network, 500 samples)" and values["tool"].startswith(
        "torch-fidelity "
    )
    assert values["reference_sha256"] == data.sha256 and len(values["network_sha256"]) == 64


def test_drawing_to_a_file_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    import numpy as np

    from rddlib import evaluation

    torch.manual_seed(0)
    network = UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, num_classes=10))
    denoiser = Denoiser(network, CosineSchedule(), "v").eval()
    evaluation.draw_to_file(denoiser, tmp_path / "whole.npz", 25, 2, seed=3, batch_size=10)
    real, calls = evaluation.ddim_sample, []

    def stop(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluation, "ddim_sample", stop)
        evaluation.draw_to_file(denoiser, tmp_path / "again.npz", 25, 2, seed=3, batch_size=10)
    assert len(list((tmp_path / "again.parts").iterdir())) == 2 and not (tmp_path / "again.npz").exists()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "ddim_sample", lambda *a, **o: calls.append(a) or real(*a, **o))
        picture = evaluation.draw_to_file(denoiser, tmp_path / "again.npz", 25, 2, seed=3, batch_size=10)
    assert len(calls) == 4 and picture.read_bytes()[:4] == b"\x89PNG" and not (tmp_path / "again.parts").exists()
    a, b = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "again"))
    assert a["arr_0"].shape == (25, 8, 8, 1) and a["arr_0"].dtype == np.uint8 and set(a["arr_1"]) <= set(range(10))
    assert (a["arr_0"] == b["arr_0"]).all() and (a["arr_1"] == b["arr_1"]).all()
