"""Training and drawing forward on fake CUDA tensors, without a GPU."""

import subprocess
import sys
from pathlib import Path

from rddlib.study.profiles import PROFILES


def test_every_profile_keeps_to_its_device():
    command = [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), *PROFILES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == list(PROFILES), done.stderr[-3000:]
