"""What scores are measured against, and what is kept of them: references, receipts, result files."""

import contextlib
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch_fidelity
from tiny import Bomb, refused
from two_processes import launched

from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.evaluation import (
    PROTOCOLS,
    SCORES,
    DrawnImages,
    Reference,
    differing_protocols,
    evaluate,
    open_images,
    recorded,
    shipped_network,
    summarise,
)
from rddlib.evaluation.images import GivenImages
from rddlib.evaluation.statistics import read_statistics
from rddlib.utils.errors import UserError


def grey(count=100):
    return torch.randint(0, 255, (count, 1, 8, 8), dtype=torch.uint8)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def score(folder, data):
    """Score 500 drawn images into a folder, under all metrics."""
    denoiser = as_denoiser(lambda z, t: (0.5 * z).clamp(-1, 1), CosineSchedule())
    images = DrawnImages(denoiser, 500, 1, seed=0, shape=(1, 8, 8), made={"weights_sha256": "given"})
    options = dict(metrics=("fid", "is", "kid", "pr", "pfd"), protocols=("torch-fidelity",), kid_subset=200)
    with contextlib.closing(Reference(data, 90, "cpu")) as reference:
        columns = {"method": "m", "steps": 1, "seed": 0}
        ((_, found),) = recorded(
            folder, "x", columns, images, reference, shipped_network("digits"), batch_size=90, **options
        )
    return found


@pytest.mark.ci
def test_two_processes_share_the_work_and_find_the_same(few, tmp_path):
    both = launched(__file__, tmp_path)
    assert both.returncode == 0, both.stderr[-3000:]
    lines = [json.loads(line) for line in both.stdout.splitlines() if line.startswith("{")]
    found = json.loads(next(tmp_path.glob("*.json")).read_text())
    alone = score(tmp_path / "alone", few)
    assert len(lines) == 2 and all(line["row"] == found["row"] for line in lines)
    assert (alone["receipt"]["processes"], found["receipt"]["processes"]) == (1, 2)
    scores = [name for name in SCORES if name != "agree"]  # for which these have no classes
    assert [alone["row"][name] for name in scores] == pytest.approx([found["row"][name] for name in scores], rel=1e-6)


# references


def test_reference_statistics_of_a_file(few, noisy, tmp_path):
    features = shipped_network("digits").module(few.images)[0]
    mu, sigma = features.mean(0).numpy(), features.T.cov().numpy()
    npz(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    npz(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=np.zeros(3), sigma_s=np.eye(3))
    expected = evaluate(noisy, few)
    for name in ("edm.npz", "adm.npz"):
        found = evaluate(noisy, tmp_path / name)
        assert found.values["fid"] == pytest.approx(expected.values["fid"], rel=1e-9)
        assert found.receipt.reference == f"statistics {name}"
        assert found.receipt.reference_sha256 != expected.receipt.reference_sha256
    assert np.array_equal(read_statistics(tmp_path / "edm.npz").sigma, sigma)


def test_of_a_long_reference_statistics_and_features_are_kept_and_used_again_and_pixels_are_not(
    few, noisy, tmp_path, monkeypatch
):
    monkeypatch.setenv("RDD_DATA", str(tmp_path))
    monkeypatch.setattr("rddlib.evaluation.reference.WORTH_KEEPING", 100)
    first = evaluate(noisy, few).values
    kept = list((tmp_path / "cache" / "features").glob("*.npz"))
    assert len(kept) == 1 and not [p for p in kept[0].parent.iterdir() if p.is_dir() and p.name != ".locks"]
    with monkeypatch.context() as patch:
        patch.setattr("rddlib.evaluation.reference.extract", None)
        assert evaluate(noisy, few).values == first
    kept[0].write_bytes(b"damaged")
    assert evaluate(noisy, few).values == first  # made again
    evaluate(noisy, few, metrics=("fid", "kid", "pfd"), kid_subset=100)
    kept = {name for path in (tmp_path / "cache/features").glob("*/0*.npz") for name in np.load(path)}
    assert "torch-fidelity.features" in kept and "torch-fidelity.pixels" not in kept


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        (dict(mu=np.zeros(5), sigma=np.eye(5)), {}, "has 5 dimensions, the digits metric network has 64"),
        (dict(mu=np.zeros(64), sigma=np.eye(5)), {}, r"expected finite \[D\] and \[D, D\]"),
        (dict(mu=np.full(64, np.nan), sigma=np.eye(64)), {}, "expected finite"),
        (dict(mu=np.zeros(64)), {}, "lacks 'sigma"),
        (dict(mu=np.zeros(64), sigma=np.eye(64)), dict(metrics=("fid", "kid")), "kid needs images"),
        (dict(arr_0=np.zeros((0, 8, 8, 1), np.uint8)), {}, "reference .*: 0 images cannot"),
        (dict(arr_0=np.zeros((10, 8, 8, 1), np.uint8)), {}, "reference images of r.npz: 10 images cannot fill"),
    ],
)
def test_bad_references_are_refused(tmp_path, arrays, options, words):
    assert re.search(words, refused(evaluate, grey(), npz(tmp_path / "r.npz", **arrays), **options))


def test_a_reference_of_another_size_is_refused(few):
    network = dataclasses.replace(shipped_network("digits"), shape=(1, 0, 0))
    with pytest.raises(UserError, match="give both the same size"):
        evaluate(torch.zeros(100, 1, 9, 9, dtype=torch.uint8), few, network=network)


@pytest.mark.parametrize("kind", ["images", "statistics"])
def test_a_damaged_reference_is_refused(tmp_path, kind):
    images, statistics = grey(2000).permute(0, 2, 3, 1).numpy(), np.random.default_rng(0).random((65, 64))
    arrays = dict(arr_0=images) if kind == "images" else dict(mu=statistics[0], sigma=statistics[1:])
    np.savez_compressed(tmp_path / "r.npz", **arrays)
    content = bytearray((tmp_path / "r.npz").read_bytes())
    content[3000:3100] = bytes(100)
    (tmp_path / "r.npz").write_bytes(content)
    assert re.search("r.npz (is damaged|cannot be read)", refused(evaluate, grey(), tmp_path / "r.npz"))


def test_an_npz_with_python_objects_runs_nothing(few, tmp_path):
    bomb = np.array([Bomb(tmp_path / "sprung")], dtype=object)
    npz(tmp_path / "a.npz", arr_0=bomb)
    npz(tmp_path / "b.npz", mu=bomb, sigma=np.eye(1))
    for arguments in ((tmp_path / "a.npz", few), (grey(), tmp_path / "b.npz")):
        with pytest.raises(UserError):
            evaluate(*arguments)
    assert not (tmp_path / "sprung").exists()


# receipts and result files


def test_receipts_say_everything(few, unet):
    made = {"model": "U-Net", "ema": "0.998", "checkpoint_sha256": "abc", "training_precision": "float32"}
    denoiser = unet(10, label_dropout=0.1)
    images = DrawnImages(denoiser, 200, 4, seed=7, made=made, guidance=0.5, classes=(2, 0))
    receipt = dataclasses.asdict(evaluate(images, few).receipt)
    assert all(value not in ("", None) for value in receipt.values())
    assert receipt["reference_sha256"] == few.sha256 and len(receipt["network_sha256"]) == 64
    expected = {
        "metric": "FID (digits metric network, 200 samples)",
        "tool": f"torch-fidelity {torch_fidelity.__version__}",
        "protocol": "torch-fidelity",
        "rounding": "uint8",
        "resize": "none",
        "samples": 200,
        "sampler": "ddim",
        "steps": 4,
        "evaluations": 8,
        "guidance": 0.5,
        "clip": True,
        "noise_seed": 7,
        "labels": "2, 0 in turn",
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


def test_results_on_file_are_found_again(few, noisy, tmp_path, monkeypatch):
    columns, images = {"method": "noisy", "steps": 0, "seed": 0}, open_images(noisy)

    def measured(metrics=("fid",)):
        reference, options = Reference(few, 100, "cpu"), dict(metrics=metrics, protocols=PROTOCOLS, batch_size=100)
        return recorded(tmp_path, "noisy", columns, images, reference, shipped_network("digits"), **options)

    first = measured()
    assert len(first) == 2 and {record["receipt"]["protocol"] for _, record in first} == set(PROTOCOLS)
    assert images.sha256
    with monkeypatch.context() as patch:
        patch.setattr(GivenImages, "batch", None)  # no image is looked at again
        assert measured() == first
    assert {path for path, _ in measured(("fid", "is"))}.isdisjoint({path for path, _ in first})
    first[0][0].write_text("{")
    assert "is damaged: delete it" in refused(measured)


def test_summaries_are_over_seeds():
    fids = [1.0, 2.0, 6.0, 5.0]
    rows = [("rdd", 1, fid) for fid in fids[:3]] + [("pd", 1, fids[3])]
    table = pd.DataFrame([dict(zip(("method", "steps", "fid"), row, strict=True)) for row in rows])
    summary = summarise(table, ("fid",))
    assert summary["method"].tolist() == ["rdd", "pd"] and summary["seeds"].tolist() == [3, 1]
    rdd = summary.iloc[0]
    assert (rdd["fid_mean"], rdd["fid_min"]) == (3, 1) and rdd["fid_spread"] == pytest.approx(7**0.5)


if __name__ == "__main__":  # one of two processes
    torch.set_num_threads(1)
    print(json.dumps(score(Path(sys.argv[1]), load_dataset("digits", "test"))), flush=True)
    torch.distributed.destroy_process_group()
