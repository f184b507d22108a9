import subprocess
import sys

import pytest

from rddlib.study.folder import open_study


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["study", "--profile", "digts"], "did you mean 'digits'"),
        (["study", "--set", "loss.alpa=1"], "did you mean 'alpha'"),
        (["study", "--set", "loss.alpha"], "section.field=value"),
        (["study", "--set", "loss.tau_m=-1"], "above 0"),
        (["study", "--profil", "digits"], "No such option"),
        (["study", "--seed", "one"], "valid integer"),
        (["study", "--only", "17"], "no notebook 17"),
        (["study", "--profile", "cifar10"], "no CIFAR-10 in"),
        (["stduy"], "No such command"),
        (["train", "--profile", "imagenet64"], "data.root"),
        (["train", "--set", "data.name=cifar"], "did you mean 'cifar10'"),
        (["train", "--set", "unet.num_classes=7"], "has 10: set it to 10 or 0"),
        (["distill", "--objective", "rdf"], "known are pd, pd_lpips, pd_stages, cfd, rcfd, rdd"),
        (["distill", "--from", "7"], "choose two of 64, 32"),
        (["distill", "--from", "4", "--to", "8"], "the larger first"),
        (["distill", "--from", "64", "--to", "1"], "--from is 8, or more with --to 8 --objective pd"),
        (["sample", "--method", "gan"], "unknown --method 'gan': known are ddim"),
        (["sample", "--steps", "3"], "no student has 3 steps"),
        (["sample", "--sampler", "pndm"], "--sampler pndm is for a --checkpoint"),
        (["evaluate", "--method", "pndm", "--steps", "3"], "pndm got 3 steps: choose at least 4"),
        (["evaluate", "--method", "gan"], "unknown --method 'gan'"),
        (["evaluate", "--metrics", "fid,kit"], "unknown metrics kit"),
        (["evaluate", "--metrics", ","], "--metrics names nothing"),
        (["evaluate", "--protocol", ","], "--protocol names nothing"),
        (["evaluate", "--protocol", "clean"], "unknown protocol 'clean'"),
        (["evaluate", "--noise", "1.5"], "--noise 1.5: expected whole numbers"),
        (["evaluate", "--noise", "²"], "expected whole numbers"),
        (["evaluate", "--samples", "20"], "20 images cannot fill a covariance of 64"),
        (["evaluate", "--metrics", "kid", "--samples", "200"], "200 images cannot make subsets of 1000"),
        (["evaluate", "--metric-network", "nowhere.pth"], "no such file; known are digits, inception"),
        (["evaluate", "--metric-network", "inception"], "grayscale images cannot be scored by Inception"),
        (["evaluate", "--images", "nowhere"], "nowhere does not exist"),
        (["evaluate", "--images", "a", "--samples", "100"], "--images are given as they are"),
        (["evaluate", "--checkpoint", "nowhere"], "no model at nowhere"),
        (["evaluate", "--reference", "nowhere"], "nowhere does not exist"),
        (["study", "--set", "evaluation.protocol=clean"], "unknown protocol 'clean'"),
        (["study", "--set", "evaluation.baselines=[pndm]"], "such as pndm-10"),
        (["study", "--set", "evaluation.baselines=[gan-3]"], "leave it out with --set evaluation.baselines=[]"),
        (["study", "--set", "evaluation.metrics=[fid,is,kit]"], "unknown metrics kit"),
        (["sample", "--checkpoint", "nowhere"], "no model at nowhere"),
        (["train", "--set", "run.compile=true"], "is no str"),
        (["train", "--set", "base.train.accumulate=3"], "divisor of batch_size"),
        (["bench", "losses", "--size", "huge"], "known are all, cifar10"),
        (["bench", "losses", "--device", "abacus"], "this machine has cpu"),
        (["study", "--only", "03", "--from", "02"], "exclude each other"),
        (["study", "--set", "evaluation.samples=10"], "10 images cannot fill a covariance of 64"),
        (["study", "--set", "loss.per_image=17"], "offers 16 pixels"),
        (["study", "--set", "unet.image_size=16", "--set", "unet.attention=[8]"], "change unet.image_size"),
        (["study", "--set", "unet.groups=0"], "at least 1"),
        (["study", "--set", "base.train.learning_rate=.nan"], "learning_rate"),
        (["bench", "losses", "--dtype", "int8"], "expected 'float32'"),
        (["ablate"], "which ablation?"),
        (["ablate", "tau_si"], "did you mean 'tau_is'"),
        (["ablate", "losses", "--axis", "loss.alpha=1"], "no axis of losses; it has none"),
        (["ablate", "alpha", "--axis", "loss.beta=1"], "its axes are loss.alpha"),
        (["ablate", "alpha", "--axis", "loss.alpha="], "the grid is empty"),
        (["ablate", "alpha", "--axis", "loss.alpha=[]"], "the grid is empty"),
        (["ablate", "alpha", "--axis", "loss.alpha"], "section.field=value,value"),
        (["ablate", "alpha", "--axis", "loss.alpha=loud"], "'loud' is no float"),
        (["ablate", "alpha", "--axis", "loss.alpha=-1"], "expected at least 0"),
        (["ablate", "alpha", "beta", "--axis", "loss.alpha=1"], "give it with one"),
        (["ablate", "all", "tau_si"], "did you mean 'tau_is'"),
        (["ablate", "alpha", "--axis", "loss.alpha=1", "--axis", "loss.alpha=2"], "is given twice"),
        (["ablate", "custom", "--axis", "distill.iterations=[75,75,150]"], "a value stands there twice"),
        (["ablate", "alpha", "--scheduler", "tcp://127.0.0.1:9"], "no dask scheduler at tcp://127.0.0.1:9"),
        (["ablate", "custom"], "custom has an empty grid"),
        (["ablate", "custom", "--axis", "loss.alpa=1"], "did you mean 'alpha'"),
        (
            ["ablate", "custom", "--axis", "loss.alpha=1", "--method", "rdf"],
            "unknown --method 'rdf' (did you mean 'rdd'?)",
        ),
        (["ablate", "custom", "losses"], "custom stands alone"),
        (["ablate", "alpha", "--seeds", "0"], "--seeds 0: give at least 1"),
        (["ablate", "alpha", "--jobs", "0"], "--jobs 0: give at least 1"),
        (["ablate", "alpha", "--shard", "3/2"], "write it as 1/4"),
        (["ablate", "alpha", "--profile", "cifar10"], "no CIFAR-10 in"),
        (["ablate", "alpha", "--set", "evaluation.samples=20"], "20 images cannot fill a covariance of 64"),
    ],
)
def test_bad_input_is_one_line_and_status_2(rdd, arguments, words, tmp_path):
    out = ["--out", str(tmp_path / "out")] if arguments[0] not in ("bench", "stduy") else []
    status, printed, errors = rdd(*arguments, *out)
    assert status == 2 and words in errors and errors.count("\n") == 1 and errors.startswith("rdd: ") and not printed
    assert not (tmp_path / "out").exists()


def test_the_installed_command_does_the_same(tmp_path):
    command = [sys.executable, "-m", "rddlib.cli", "study", "--profile", "digts", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr + done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(rdd, tmp_path):
    (tmp_path / "file").write_text("kept")
    status, _, errors = rdd("study", "--profile", "smoke", "--out", str(tmp_path / "file" / "out"))
    assert status == 2 and errors.count("\n") == 1 and "cannot write" in errors, errors
    assert (tmp_path / "file").read_text() == "kept"


def test_a_read_only_folder_is_one_line(rdd, tmp_path, monkeypatch):
    from filelock import FileLock

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".running"))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    status, _, errors = rdd("study", "--profile", "smoke", "--out", str(tmp_path / "a"))
    assert status == 2 and errors.count("\n") == 1 and "Permission denied" in errors


def test_the_metric_network_is_never_overwritten(rdd, tmp_path):
    (tmp_path / "net").write_text("old")
    status, _, errors = rdd("metric-network", "--out", str(tmp_path / "net"))
    assert status == 2 and "exists" in errors and (tmp_path / "net").read_text() == "old"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["study", "--help"],
        ["metric-network", "--help"],
        ["train", "--help"],
        ["extractor", "--help"],
        ["distill", "--help"],
        ["sample", "--help"],
        ["plan", "--help"],
        ["bench", "losses", "--help"],
        ["bench", "step", "--help"],
        ["bench", "export", "--help"],
        ["bench", "sliders", "--help"],
        [],
    ],
)
def test_help_is_readable(rdd, arguments):
    status, printed, _ = rdd(*arguments)
    assert status == 0 and "Usage: rdd" in printed and max(map(len, printed.splitlines())) <= 100


def test_importing_the_core_needs_no_extra():
    """Training runs where jupyter, papermill, diffusers, lpips and ipywidgets are not installed."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"papermill", "ipywidgets", "IPython", "diffusers", "lpips", "nbconvert", "jupyterlab"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import rddlib.distillation.train, rddlib.cli, rddlib.report.notebooks, rddlib.report.pages, rddlib.report.figures
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_evaluating_a_study_s_model(rdd, tmp_path):
    """Twice: the second time reads the receipts; then with a third seed of noise, and its samples as given images."""
    import json

    out = tmp_path / "out"
    command = [
        "evaluate",
        "--profile",
        "smoke",
        "--out",
        str(out),
        "--method",
        "ddim",
        "--steps",
        "2",
        "--samples",
        "150",
        "--protocol",
        "torch-fidelity,released",
    ]
    status, printed, errors = rdd(*command, "--noise", "1,2")
    assert status == 0 and "FID (digits metric network, 150 samples), protocol released" in printed, errors
    assert printed.count("receipt: ") == 4 and printed.count("spread") == 2
    files = {path: path.read_bytes() for path in (out / "evaluations").glob("*.json")}
    records = [json.loads(content) for content in files.values()]
    assert {record["receipt"]["noise_seed"] for record in records} == {1, 2} and len(records) == 4
    (model,) = {record["receipt"]["checkpoint_sha256"] for record in records}
    assert len(model) == 64 and {record["receipt"]["training_seed"] for record in records} == {0}
    assert rdd(*command, "--noise", "1,2")[1].count("receipt: ") == 4
    assert rdd(*command, "--noise", "3")[0] == 0
    assert files.items() <= {path: path.read_bytes() for path in (out / "evaluations").glob("*.json")}.items()

    samples = [
        "--profile",
        "smoke",
        "--out",
        str(out),
        "--method",
        "ddim",
        "--steps",
        "2",
        "--count",
        "150",
        "--noise",
        "1",
    ]
    assert rdd("sample", *samples, "--png")[0] == 0
    (drawn,) = (out / "samples").glob("*.npz")
    first = next(
        record
        for record in records
        if record["receipt"]["noise_seed"] == 1
        and record["row"]["seed"] == 1
        and record["receipt"]["protocol"] == "torch-fidelity"
    )
    for images in (drawn, drawn.with_suffix("")):
        status, printed, errors = rdd(
            "evaluate", "--profile", "smoke", "--images", str(images), "--out", str(tmp_path / "given")
        )
        assert status == 0, errors
    for path in (tmp_path / "given" / "evaluations").glob("*.json"):
        assert json.loads(path.read_text())["row"]["fid"] == pytest.approx(first["row"]["fid"], rel=1e-9)
    status, printed, errors = rdd("report", str(out), "--protocol", "released", "--out", str(tmp_path / "report"))
    assert status == 0 and "3 noises" in printed and (tmp_path / "report" / "comparison.csv").exists(), errors


def test_evaluating_a_checkpoint_by_another_sampler(rdd, smoke_run, tmp_path):
    base = open_study("smoke", smoke_run[0]).stages.base.path
    command = ["evaluate", "--profile", "smoke", "--checkpoint", str(base), "--samples", "100", "--out", str(tmp_path)]
    status, printed, errors = rdd(*command, "--sampler", "dpm-solver", "--steps", "5")
    assert status == 0 and "base-" in printed, errors
    status, printed, errors = rdd(*command, "--sampler", "pndm", "--steps", "3")
    assert status == 2 and "choose at least 4" in errors and errors.count("\n") == 1
