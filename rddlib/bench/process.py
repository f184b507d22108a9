"""A measurement in a fresh interpreter of its own, its memory, and its figures as a table; `rdd bench` and `rdd plan`.

`python -m rddlib.bench MODULE:FUNCTION '{...}'` is that fresh interpreter: it prints what the function makes of the job.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable

MIB = 2**20


def in_child(function: Callable[[dict], dict], job: dict, *, threads: int, timeout: float) -> dict:
    """function(job) computed in a process of its own; {"note"} with the reason where there is no result.

    function: of a module's top level; job and result: as JSON.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "RDD_PROGRESS": "line"}
    name = f"{function.__module__}:{function.__name__}"
    command = [sys.executable, "-m", "rddlib.bench", name, json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return {"note": f"not done in {timeout:.0f} s"}
    if done.returncode < 0:
        return {"note": f"ended by signal {-done.returncode}, out of memory by the look of it"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["failed without a word"])[-1]
        return {"note": last.removeprefix("rddlib.utils.errors.UserError: ")}
    return json.loads(done.stdout.splitlines()[-1])
