"""The models that come with the package: copies from a study's folder into data/models.

python docs/pack_models.py FOLDER [--students pd,cfd,rdd,cfd_is_pd]

FOLDER holds a study of one seed or more; those of the first are taken. Base model, teacher and extractor stay in float32,
since students are trained from them; students are rounded to bfloat16.
"""

import argparse
import json
from pathlib import Path

import torch

from rddlib import open_study
from rddlib.methods import WINNER
from rddlib.study.stage import MODELS, Stage
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

BOX = Path(__file__).resolve().parents[1] / MODELS


def pack(stage: Stage, dtype: torch.dtype) -> None:
    """Copy one stage's network."""
    tensors, info = load_checkpoint(stage.path)
    rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    kept = {name: value for name, value in info.items() if name != "sha256"}
    save_checkpoint(
        BOX / stage.path.name, rounded, kept | {"shipped": True, "stored": str(dtype).removeprefix("torch.")}
    )
    print(f"{stage.path.name}: {(BOX / stage.path.name).stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--students", default=f"pd,cfd,rdd,{WINNER}")
    asked = parser.parse_args()
    study = open_study(json.loads((asked.folder / "study.json").read_text())["profile"], asked.folder)
    graph, seed = study.stages, study.profile.seeds[0]
    for stage in [*graph.teacher().lineage(), graph.extractor]:
        pack(stage, torch.float32)
    for method in asked.students.split(","):
        for steps in study.profile.student_steps:
            pack(graph.student(method, steps, seed), torch.bfloat16)


if __name__ == "__main__":
    main()
