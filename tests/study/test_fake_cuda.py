"""Training and drawing forward on fake CUDA tensors, without a GPU."""

import subprocess
import sys
from pathlib import Path

NAMES = ["digits", "cifar10_small", "imagenet64"]  # with each kind of extractor, with classes and without


def test_profiles_keep_to_their_device():
    command = [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == NAMES, done.stderr[-3000:]
