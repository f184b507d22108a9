"""What the benchmarks share: a fresh interpreter for a measurement, a clock, facts of this machine, rows as a table.

`python -m benchmarks.process MODULE:FUNCTION '{...}'` is that interpreter: it prints what the function makes of the job.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

import rddlib
from rddlib.training.hardware import tf32_context
from rddlib.utils.installation import git_commit, hardware
from rddlib.utils.text import aligned, number

MIB = 2**20


def in_child(function: Callable[[dict], dict], job: dict, *, threads: int, timeout: float) -> dict:
    """function(job) computed in a process of its own; {"note"} with the reason where there is no result.

    function: of a module's top level; job and result: as JSON.
    """
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # the same modules, whatever the current folder holds
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "RDD_PROGRESS": "line", "PYTHONPATH": path}
    name = f"{function.__module__}:{function.__name__}"
    command = [sys.executable, "-P", "-m", "benchmarks.process", name, json.dumps(job)]
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


def now(device: str = "cpu") -> float:
    """Seconds, once the device has done all that it was asked for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Callable[[], object], device: str = "cpu") -> float:
    """What a call takes."""
    began = now(device)
    call()
    return now(device) - began


def measure_products(job: dict) -> dict:
    """{"peaks": FLOPs a second of the fastest of a few square products, job["size"] and half of it wide, by precision}."""
    device, peaks = torch.device(job["device"]), {}
    for name in ("float32", *["tf32"] * (device.type == "cuda"), "bfloat16"):
        speeds, dtype = [], torch.bfloat16 if name == "bfloat16" else torch.float32
        with tf32_context(name, device):
            for n in (job["size"] // 2, job["size"]):
                a = torch.randn(n, n, device=device).to(dtype)
                seconds = [seconds_of(lambda a=a: a @ a, job["device"]) for _ in range(4)]
                speeds.append(2 * n**3 / min(seconds[1:]))
        peaks[name] = max(speeds)
    return {"peaks": peaks}


def machine(device: str | None = None) -> dict:
    """What figures depend on besides the code measured: hardware, threads, versions, when."""
    return {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "library": f"rddlib {rddlib.__version__}",
        "git_commit": git_commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def format_rows(rows: Sequence[dict], columns: Sequence[tuple[str, str, str]]) -> str:
    """Rows as a table in plain text; columns: (head, name in the row, format of a number or "" for words)."""
    body = [[number(row[name], form) if form else row[name] for _, name, form in columns] for row in rows]
    words = [k for k, (_, _, form) in enumerate(columns) if not form]
    return aligned([head for head, _, _ in columns], body, words)


if __name__ == "__main__":
    _module, _, _function = sys.argv[1].partition(":")
    print(json.dumps(getattr(importlib.import_module(_module), _function)(json.loads(sys.argv[2]))))
