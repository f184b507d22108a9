"""Fixtures shared by the tests: a seeded generator and a smoke study made once for all of them."""

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def watched_kernels(tmp_path_factory):
    """An IPython folder whose kernels note what is missing in the figures they draw: (it, the folder with the notes)."""
    ipython, notes = tmp_path_factory.mktemp("ipython"), tmp_path_factory.mktemp("figures")
    startup = ipython / "profile_default/startup"
    startup.mkdir(parents=True)
    here = str(Path(__file__).parent)
    lines = ["import sys", f"sys.path.append({here!r})", "import figure_faults", f"figure_faults.watch({str(notes)!r})"]
    (startup / "watch.py").write_text("\n".join([*lines, "del sys, figure_faults"]) + "\n")
    return ipython, notes


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, watched_kernels):
    """The whole smoke study through papermill, once: (its folder, the report's path)."""
    from rddlib.runner import run_study

    out = tmp_path_factory.mktemp("runs") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(watched_kernels[0]))
        return out, run_study("smoke", {}, out)


@pytest.fixture(scope="session")
def smoke_figures(smoke_run, watched_kernels):
    """One {"cell": source, "faults": [line, ...]} for each figure that the smoke study's notebooks drew."""
    return [json.loads(line) for file in watched_kernels[1].iterdir() for line in file.read_text().splitlines()]
