"""Training and drawing forward on fake CUDA tensors, without a GPU."""

import subprocess
import sys
from pathlib import Path

from rddlib.distillation.extractor import EXTRACTORS
from rddlib.study.profiles import PROFILES

NAMES = [
    name for name in PROFILES if PROFILES[name]().extractor.name in EXTRACTORS
]  # others look through a given teacher


def test_every_profile_keeps_to_its_device():
    command = [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == NAMES, done.stderr[-3000:]
