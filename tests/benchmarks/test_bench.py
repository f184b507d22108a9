"""The benchmark runs, says what it could not run, and its table and file hold what it measured. No timed assertions."""

import json

import pytest
from rddlib.bench import Size, bench_losses, format_table, losses, write_json
from rddlib.bench.export import bench_export, format_export

from rddlib.utils.errors import UserError

TINY = Size("tiny", N=24, A=16, C=8)


def test_a_row_holds_both_forms_and_their_ratios(tmp_path):
    seen = []
    rows = bench_losses([TINY], dtypes=["float32"], repetitions=1, threads=1, progress=seen.append)
    assert seen == rows and len(rows) == 1
    (row,) = rows
    assert row["note"] == "" and row["N"] == 24 and row["dtype"] == "float32" and row["threads"] == 1
    assert row["reference_s"] > 0 and row["chunked_s"] > 0
    assert row["time_ratio"] == pytest.approx(row["chunked_s"] / row["reference_s"])
    assert "tiny" in format_table(rows) and len(format_table(rows).splitlines()) == 2
    write_json(rows, tmp_path / "new" / "bench.json")
    assert json.loads((tmp_path / "new" / "bench.json").read_text()) == rows
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_reference_that_would_not_fit_is_not_started(monkeypatch):
    job = {"N": 256, "A": 64, "C": 1920, "loss": "is_p2p", "dtype": "float32", "device": "cpu", "impl": "reference"}
    monkeypatch.setattr(losses, "free_memory", lambda device: 2**30)
    assert losses._shortage(job) == "needs about 8.0 GiB, 1.0 GiB are free"
    assert losses._shortage(job | {"impl": "chunked"}) is None
    monkeypatch.setattr(losses, "free_memory", lambda device: None)
    assert losses._shortage(job) is None


def test_missing_figures_are_dashes_with_a_note(monkeypatch):
    monkeypatch.setattr(
        losses,
        "_run",
        lambda job, timeout: {"note": "too big"} if job["impl"] == "reference" else {"mib": 5.0, "s": 0.5},
    )
    (row,) = bench_losses([TINY], dtypes=["float32"])
    assert row["memory_ratio"] is None and row["chunked_mib"] == 5.0
    assert format_table([row]).endswith("reference: too big")


def test_a_process_that_fails_or_hangs_leaves_a_note():
    job = {
        "N": 1,
        "A": 1,
        "C": 1,
        "loss": "is_p2p",
        "dtype": "nonsense",
        "device": "cpu",
        "impl": "chunked",
        "chunk": None,
    }
    job |= {"threads": 1, "repetitions": 1}
    assert "nonsense" in losses._run(job, timeout=120)["note"]
    assert losses._run(job, timeout=0.01) == {"note": "not done in 0 s"}


def test_bad_arguments():
    with pytest.raises(ValueError, match="loss is 'cfd'"):
        bench_losses([TINY], loss="cfd")
    with pytest.raises(ValueError, match="repetitions is 0"):
        bench_losses([TINY], repetitions=0)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        bench_losses([TINY], dtypes=["int8"])
    with pytest.raises(ValueError, match="square"):
        Size("odd", N=1, A=5)


def test_exports_are_compared_with_the_teacher_in_one_run(tmp_path):
    report = bench_export("smoke", {}, batches=(1, 2), repetitions=1)
    assert [(row["sampler"], row["steps"], row["batch"]) for row in report["rows"]] == [
        (name, steps, batch)
        for batch in (1, 2)
        for name, steps in (("teacher, Python", 8), ("student, Python", 1), ("student, TorchScript", 1))
    ]
    for row in report["rows"]:
        teacher = next(other for other in report["rows"] if other["batch"] == row["batch"])
        assert row["speed"] == pytest.approx(teacher["seconds"] / row["seconds"])
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
    assert 0 <= report["difference"] < 1e-4 and report["git_commit"] and report["threads"] >= 1
    assert len(format_export(report).splitlines()) == 7
    with pytest.raises(UserError, match="at least 1"):
        bench_export("smoke", {}, batches=(0,))
    conditional = bench_export("smoke", {"unet.num_classes": "10"}, batches=(3,), repetitions=1)
    assert len(conditional["rows"]) == 3


def test_the_command_writes_what_it_shows(rdd, tmp_path):
    status, said, _ = rdd(
        "bench", "export", "--profile", "smoke", "--batch", "1", "--repetitions", "1", "--out", str(tmp_path / "e.json")
    )
    assert status == 0 and "student, TorchScript" in said and json.loads((tmp_path / "e.json").read_text())["rows"]
    status, _, error = rdd("bench", "export", "--batch", "one")
    assert status == 2 and "--batch one: expected whole numbers" in error
