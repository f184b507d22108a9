"""Fixtures shared by the tests of interop."""

import importlib.util
import sys

import pytest
from small_models import ddpm


@pytest.fixture(autouse=True)
def _own_modules_folder(tmp_path, monkeypatch):
    """Where diffusers copies the modules of pipelines that have some of their own."""
    if importlib.util.find_spec("diffusers") is not None:
        from diffusers.utils import dynamic_modules_utils

        monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "hf_modules"))
        monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def folder(tmp_path):
    """A whole pipeline's folder, to be damaged."""
    return ddpm(tmp_path / "ddpm")
