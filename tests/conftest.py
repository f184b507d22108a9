"""Fixtures shared by the tests: a seeded generator, and a smoke and a tiny study made once for all of them."""

import gc
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tiny_study import TINY

from rddlib.cli import main

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


LONG = [  # files of minutes, begun first, so that no process is left alone with one
    *("notebooks/test_latent_notebook.py", "cli/test_commands.py", "interop/test_exchange.py", "study/test_on_meta.py"),
    *("cli/test_own_images.py", "report/test_background.py", "interop/test_round_trips.py"),
    *("report/test_diagnosis.py", "study/test_engines.py"),
    *("training/test_distributed_training.py", "training/test_interruptions.py", "study/test_fake_cuda.py"),
    *("distillation/test_train.py", "diffusion/test_samplers.py", "cli/test_refusals.py", "study/test_sweep.py"),
]


def pytest_collection_modifyitems(items):
    """What looks at a whole study with its notebooks is left to CI. One file begins with making it, meanwhile the others do
    what needs none."""
    waiting = {item.path for item in items if "smoke_run" in item.fixturenames}
    for item in items:
        if "smoke_run" in item.fixturenames and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.ci)
    maker, tests = min(waiting, default=None), Path(__file__).parent
    turn = {tests / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (item.path != maker, item.path in waiting, turn.get(item.path, len(LONG))))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]


@pytest.fixture(params=DEVICES)
def device(request):
    """The CPU, and CUDA where there is some; `-m gpu` is the second alone."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    threads = max(1, min(2, torch.get_num_threads() // WORKERS))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of what tests start


@pytest.fixture(scope="session", autouse=True)
def _imports_stay():
    """What was imported is no garbage: each stage collects that before it trains, which took a third of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all of pytest's processes see."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if WORKERS > 1 else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def watched_kernels(shared):
    """An IPython folder whose kernels note what is missing in the figures they draw: (it, the folder with the notes)."""
    ipython, notes = shared / "ipython", shared / "figures"
    startup = ipython / "profile_default/startup"
    for folder in (startup, notes):
        folder.mkdir(parents=True, exist_ok=True)
    here = str(Path(__file__).parent)
    lines = ["import sys", f"sys.path.append({here!r})", "import figure_faults", f"figure_faults.watch({str(notes)!r})"]
    (startup / "watch.py").write_text("\n".join([*lines, "del sys, figure_faults"]) + "\n")
    return ipython, notes


@pytest.fixture(scope="session")
def smoke_run(shared, tmp_path_factory, watched_kernels):
    """The whole smoke study through papermill, made once: (a copy of its folder for this process, the report's path).

    It is made in, and stays in, the folder that the variable RDD_SMOKE names, if there is one.
    """
    from rddlib.report.notebooks import run_study

    made = Path(os.environ.get("RDD_SMOKE") or shared / "smoke").resolve()
    out = tmp_path_factory.mktemp("runs") / "smoke"
    with FileLock(shared / "smoke.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(watched_kernels[0]))
        patch.setenv("MPLBACKEND", "Agg")  # as on many servers: pictures appear all the same
        if not (made / "index.html").exists():
            run_study("smoke", {}, made, only="00,01,02,03,04,05,06,07,08")
    shutil.copytree(made, out)
    return out, out / "index.html"


@pytest.fixture(scope="session")
def smoke_figures(smoke_run, watched_kernels):
    """One {"cell": source, "faults": [line, ...]} for each figure that the smoke study's notebooks drew."""
    return [json.loads(line) for file in watched_kernels[1].iterdir() for line in file.read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_folder(shared):
    """Of the tiny study, all its results and all that its guided study trains; to be read only."""
    from rddlib.study.folder import continue_study
    from rddlib.study.study import guided_study

    with FileLock(shared / "tiny.lock"):
        study = continue_study("smoke", TINY, shared / "tiny")
        study.results()
        for stage in guided_study(study).lineage():
            stage.get()
    return shared / "tiny"


@pytest.fixture
def tiny(tiny_folder, tmp_path):
    """The tiny study in a copy of its folder, to write in."""
    from rddlib.study.folder import open_study

    return open_study("smoke", shutil.copytree(tiny_folder, tmp_path / "tiny"))


@pytest.fixture
def guided(tiny):
    from rddlib.study.study import guided_study

    return guided_study(tiny)


@pytest.fixture
def rdd(capsys, monkeypatch):
    """Run the command in this process: rdd("study", ...) -> (exit status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        capsys.readouterr()
        try:
            main(list(arguments))
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def done(rdd):
    """done("study", ...) -> what a command prints that succeeds."""

    def run(*command):
        status, printed, errors = rdd(*map(str, command))
        assert status == 0, errors
        return printed

    return run


@pytest.fixture
def refusal(rdd):
    """refusal("study", ...) -> the one line that a command of bad input says, or the last one where it has begun to work."""

    def refused(*command, begun=False):
        status, printed, errors = rdd(*map(str, command))
        line = errors.splitlines(keepends=True)[-1] if begun else errors
        assert status == 2 and line.startswith("rdd: ") and line.count("\n") == 1 and (begun or not printed), errors
        return line

    return refused
