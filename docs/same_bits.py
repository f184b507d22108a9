"""The bits of a few iterations of every method on digits, to compare CPUs: python docs/same_bits.py [NAME]

Prints, as JSON, a hash of each student's weights and of what it draws. On an emulated CPU (Debian's qemu-user):
qemu-x86_64 -cpu Haswell .venv/bin/python docs/same_bits.py "emulated Intel Haswell"
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rddlib.diffusion.sampling import ddim_sample
from rddlib.methods import COMPETING, WINNER
from rddlib.study.profiles import load_profile
from rddlib.study.study import Study
from rddlib.utils.installation import git_commit, hardware

ITERATIONS, IMAGES = 3, 64


def digest(tensors: Iterable[Tensor]) -> str:
    """16 digits of the sha256 of their bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def main(name: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(load_profile("digits"), Path(folder))
        found, noise = {}, study.noise(IMAGES)
        for method in (*COMPETING, WINNER):
            stage = study.stages.student(method, 4, 0)
            trainer = stage.trainer(replace(stage.config, iterations=ITERATIONS))
            student, _ = stage.fit(trainer, *(parent.get() for parent in stage.parents))
            drawn = ddim_sample(student, noise, 4, clip=True)
            found[method] = {"weights": digest(student.state_dict().values()), "images": digest([drawn])}
    where = {"cpu": name or hardware(), "torch": torch.__version__, "git_commit": git_commit()}
    print(json.dumps({**where, "iterations": ITERATIONS, "methods": found}))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
