"""What surrounds the code: files that ship with it, the commit it is at, the machine it runs on."""

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

PACKAGE = Path(__file__).resolve().parents[1]


def top_folder() -> Path:
    """The checkout's top folder, or the current folder where rddlib is installed without one."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else Path.cwd()


def find_shipped(relative: str) -> Path | None:
    """A file that comes with the project: from the checkout's top folder, else from inside the installed package; None where
    neither has it."""
    places = (folder / relative for folder in (PACKAGE.parent, PACKAGE / "_shipped"))
    return next((path for path in places if path.exists()), None)


def shipped(relative: str) -> Path:
    """The same. Raises UserError where neither has it."""
    if found := find_shipped(relative):
        return found
    raise UserError(f"{relative} is missing from this installation: install rddlib again")


@lru_cache
def git_commit() -> str:
    """The checkout's commit, with "+changes" where files differ from it; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", PACKAGE, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(device: torch.device | str | None = None) -> str:
    """The GPU that computes, or the processor, how many threads PyTorch uses and the widest vectors; device: default a GPU if
    there is one."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    model = next(names, platform.processor() or platform.machine())
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {counted(torch.get_num_threads(), 'thread')}" + f", {instructions}" * ("AVX" in instructions)
