"""Fixtures shared by the tests: a seeded generator and a smoke study made once for all of them."""

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
def smoke_run(tmp_path_factory):
    """The whole smoke study through papermill, once: (its folder, the report's path)."""
    from rddlib.runner import run_study

    out = tmp_path_factory.mktemp("runs") / "smoke"
    return out, run_study("smoke", {}, out)
