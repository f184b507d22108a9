"""What `from rddlib import ...` gives."""

import subprocess
import sys

import pytest
from tiny import without

import rddlib

EXTRAS = (
    "IPython",
    "jupyter",
    "jupyterlab",
    "ipywidgets",
    "papermill",
    "nbconvert",
    "diffusers",
    "lpips",
    "distributed",
)
USE = """
import rddlib
for name in rddlib.__all__:
    exec(f"from rddlib import {name}")
    assert getattr(rddlib, name).__name__ == name and name in dir(rddlib), name
"""


def test_every_name_comes_without_the_optional_packages():
    done = subprocess.run([sys.executable, "-c", without(EXTRAS) + USE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'rddlib' has no attribute 'RDDD'"):
        rddlib.RDDD  # noqa: B018
