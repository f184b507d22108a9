"""Benchmarks run, say what they could not run, and their tables and files hold what they measured. No timed assertions."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks import losses, sliders
from benchmarks.losses import Size, bench_losses, columns, shortage
from benchmarks.process import format_rows, in_child
from rddlib.utils.errors import UserError

TOP = Path(__file__).resolve().parents[2]
TINY = Size("tiny", N=24, A=16, C=8)


def small_products(function, job, **options):
    """`in_child`, where the products that tell what a machine can do at most are small."""
    return in_child(function, job | ({"size": 64} if "size" in job else {}), **options)


@pytest.mark.ci
def test_a_row_holds_both_forms_and_their_ratios(monkeypatch):
    monkeypatch.setattr(losses, "in_child", small_products)
    seen = []
    rows = bench_losses([TINY], dtypes=["float32"], repetitions=1, threads=1, progress=seen.append)
    (row,) = rows
    assert seen == rows and row["note"] == "" and row["N"] == 24 and row["dtype"] == "float32" and row["threads"] == 1
    assert (
        row["of_peak"] > 0
        and row["time_ratio"] > 0
        and row["time_ratio"] == pytest.approx(row["chunked_s"] / row["reference_s"])
    )


def test_a_reference_that_would_not_fit_is_not_started(monkeypatch):
    job = {"N": 256, "A": 64, "C": 1920, "loss": "is_p2p", "dtype": "float32", "device": "cpu", "impl": "reference"}
    assert shortage(job, 2**30) == "needs about 8.0 GiB, 1.0 GiB are free"
    assert not shortage(job, 2**34) and not shortage(job, None) and not shortage(job | {"impl": "chunked"}, 2**30)
    monkeypatch.setattr(losses, "free_memory", lambda device: 2**30)
    assert losses.measure(job | {"threads": 1}) == {"note": "needs about 8.0 GiB, 1.0 GiB are free"}


def test_missing_figures_are_dashes_with_a_note(monkeypatch):
    found = {"reference": {"note": "too big"}, "chunked": {"mib": 5.0, "s": 0.5}}
    monkeypatch.setattr(losses, "in_child", lambda function, job, **_: found.get(job.get("impl"), {"note": "failed"}))
    rows = bench_losses([TINY], dtypes=["float32"])
    line = format_rows(rows, columns(rows)).splitlines()[1]
    assert " ".join(line.split()) == "tiny 24 16 8 float32 - 5 - - 0.500 - - reference: too big"


def test_on_cuda_the_fused_form_stands_beside_the_others(monkeypatch):
    found = {"reference": {"mib": 8.0, "s": 1.0}, "chunked": {"mib": 4.0, "s": 0.5}, "fused": {"mib": 2.0, "s": 0.25}}
    flops = 8 * 8 * (24 * 16) ** 2  # each of two relations once, one of them twice more backward: 2 C (N A)^2 each
    found[None] = {"peaks": {"float32": flops}}
    monkeypatch.setattr(losses, "in_child", lambda function, job, **_: found[job.get("impl")])
    rows = bench_losses([TINY], dtypes=["float32"], device="cuda")
    assert rows[0]["flops"] == flops and rows[0]["of_peak"] == 4.0  # done in a quarter of a second
    heads, line = format_rows(rows, columns(rows)).splitlines()
    assert " ".join(heads.split()).count("fused") == 2 and (rows[0]["fused_mib"], rows[0]["fused_s"]) == (2.0, 0.25)
    assert " ".join(line.split()) == "tiny 24 16 8 float32 8 4 0.500 2 1.000 0.500 0.50 0.2500 400%"


@pytest.mark.ci
def test_a_process_that_fails_or_hangs_leaves_a_note():
    job = {"N": 1, "A": 1, "C": 1, "loss": "is_p2p", "dtype": "nonsense", "device": "cpu", "threads": 1}
    job |= {"impl": "chunked", "chunk": None, "repetitions": 1}
    assert "nonsense" in in_child(losses.measure, job, threads=1, timeout=120)["note"]
    assert in_child(losses.measure, job, threads=1, timeout=0.01) == {"note": "not done in 0 s"}


@pytest.mark.parametrize(
    "wrong, words", [({"loss": "cfd"}, "is 'cfd'"), ({"repetitions": 0}, "is 0"), ({"dtypes": ["int8"]}, "is 'int8'")]
)
def test_bad_arguments(wrong, words):
    with pytest.raises(ValueError, match=words):
        bench_losses([TINY], **wrong)
    with pytest.raises(ValueError, match="a square number"):
        Size("odd", N=1, A=5)


def test_exports_are_compared_with_the_teacher_and_written_as_shown(done, refusal, tmp_path):
    out = tmp_path / "new" / "export.json"
    options = ["--profile", "smoke", "--set", "unet.num_classes=10", "--repetitions", "1", "--out", str(out)]
    said = done("bench", "export", *options, "--batch", "1,2")
    report = json.loads(out.read_text())
    assert f"Wrote {out}" in said and list(out.parent.iterdir()) == [out]
    samplers = [("teacher, Python", 8), ("student, Python", 1), ("student, TorchScript", 1)]
    assert [(row["sampler"], row["steps"]) for row in report["rows"]] == 2 * samplers
    for row in report["rows"]:
        teacher = next(other for other in report["rows"] if other["batch"] == row["batch"])
        assert row["speed"] == pytest.approx(teacher["seconds"] / row["seconds"])
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["sampler"] in said
    assert 0 <= report["difference"] < 1e-4 and report["git_commit"] and report["threads"] >= 1
    for batch, words in (("one", "--batch one: expected whole numbers"), ("0", "at least 1")):
        assert words in refusal("bench", "export", *options, "--batch", batch)


def test_every_move_of_a_slider_draws_a_setting_that_was_not_drawn_before():
    drawn = []

    def bars(height=2, colour="gray"):
        drawn.append((height, colour))
        return Figure(figsize=(1, 1))

    rows = sliders.moved(bars, {"height": range(1, 9), "colour": ("gray", "black")}, 3)
    assert drawn.pop(0) == drawn[0] == (2, "gray")  # once for its size, once by the widget
    assert len(drawn) == len(set(drawn)) == 1 + 3 + 1
    assert [(row["control"], row["moves"]) for row in rows] == [("height", 3), ("colour", 1)]
    for row in rows:
        assert row["slowest_ms"] >= row["median_ms"] and row["ratio"] == row["median_ms"] / row["empty_ms"]
    with pytest.raises(UserError, match="--moves 0"):
        sliders.bench_sliders(0)


@pytest.mark.ci
def test_an_installed_package_measures_its_sliders_from_any_folder(tmp_path):
    """A wheel's files, and a current folder with a package of the same name as ours."""
    wheel = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    site, here, out = tmp_path / "site", tmp_path / "here", tmp_path / "sliders.json"
    for source, target in {"rddlib": "rddlib", **wheel["force-include"]}.items():
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (TOP / source).is_dir() else shutil.copy)(TOP / source, site / target)
    (here / "benchmarks").mkdir(parents=True)
    (here / "benchmarks" / "__init__.py").write_text("raise RuntimeError('not ours')")
    command = [sys.executable, "-m", "rddlib.cli", "bench", "sliders", "--moves", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=here, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["git_commit"] == "unknown" and report["threads"] == 1  # it was no checkout's
    assert list(dict.fromkeys(row["explorer"] for row in report["rows"])) == list(sliders.EXPLORERS)
    assert all(row["moves"] == 1 and row["median_ms"] > 0 for row in report["rows"])
