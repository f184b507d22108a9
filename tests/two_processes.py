"""A test's own file run on two processes: each leaves what it found as JSON, and the test compares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from rddlib.utils.distributed import rank

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def environment():
    """Of the processes: on the CPU, one thread each, with this folder's modules at hand."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def launched(*words):
    """python `words` on two processes, done."""
    return subprocess.run([*LAUNCH, *words], capture_output=True, text=True, timeout=240, env=environment())


def found_by_two(file, folder):
    """What both processes leave when `file` is run with `folder` as its argument."""
    done = launched(file, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


def leave(found, folder):
    """In a process: write what was found and go."""
    Path(folder, f"{rank()}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # at once: gloo's threads sometimes abort a process that tears itself down in the ordinary way
