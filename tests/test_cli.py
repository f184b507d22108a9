import os
import subprocess
import sys

import pytest


def rdd(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "rddlib.cli", *arguments], capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize("arguments, words", [
    (["study", "--profile", "digts"], "did you mean 'digits'"),
    (["study", "--set", "loss.alpa=1"], "did you mean 'alpha'"),
    (["study", "--set", "loss.alpha"], "section.field=value"),
    (["study", "--set", "loss.tau_m=-1"], "above 0"),
    (["study", "--profil", "digits"], "No such option"),
    (["study", "--seed", "one"], "not a valid int"),
    (["study", "--only", "17"], "no notebook 17"),
    (["stduy"], "No such command"),
])  # fmt: skip
def test_bad_input_is_one_line_and_status_2(arguments, words, tmp_path):
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "study" else []
    done = rdd(*arguments, *out)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    done = rdd("study", "--profile", "smoke", "--out", str(tmp_path / "file" / "out"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr, done.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_the_metric_network_is_never_overwritten(tmp_path):
    (tmp_path / "net").write_text("old")
    done = rdd("metric-network", "--out", str(tmp_path / "net"))
    assert done.returncode == 2 and "exists" in done.stderr and (tmp_path / "net").read_text() == "old"


@pytest.mark.parametrize("arguments", [["--help"], ["study", "--help"], ["metric-network", "--help"]])
def test_help_is_readable(arguments):
    done = rdd(*arguments, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0 and "Usage: rdd" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100


def test_importing_the_core_needs_no_extra():
    """Training runs where jupyter, papermill, diffusers, lpips and ipywidgets are not installed."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"papermill", "ipywidgets", "IPython", "diffusers", "lpips", "nbconvert", "jupyterlab"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import rddlib.study, rddlib.recipes, rddlib.cli, rddlib.runner, rddlib.report, rddlib.plots, rddlib.bench
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
