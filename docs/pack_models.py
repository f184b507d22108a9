"""The models that come with the package: copies from a study's folder into data/models.

python docs/pack_models.py FOLDER float32 base pd-8 extractor
python docs/pack_models.py FOLDER float16 pd-1 rdd-4

Names are those that the files begin with; where a study has several seeds, students of the first are taken.
"""

import argparse
import json
from pathlib import Path

import torch

from rddlib import open_study
from rddlib.study.graph import Graph
from rddlib.study.stage import MODELS, Stage
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint

BOX = Path(__file__).resolve().parents[1] / MODELS


def find(graph: Graph, name: str, seed: int) -> Stage:
    """The stage whose file's name begins so."""
    method, _, steps = name.rpartition("-")
    if method == "pd" and int(steps) >= graph.profile.progressive.teacher_steps:
        return graph.teacher(int(steps))
    if not method:
        return graph.extractor if name == "extractor" else graph.base
    return graph.drawer(method, int(steps), seed)


def pack(stage: Stage, dtype: torch.dtype) -> None:
    """Copy one stage's network, wholly trained in its study: what came with rddlib, or was trained from that, stays there."""
    if stage.mark:
        raise SystemExit(f"{stage.path.name} was not wholly trained here: pack a study of --set run.shipped=start")
    tensors, info = load_checkpoint(stage.path)
    rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    kept = {name: value for name, value in info.items() if name != "sha256"}
    kept |= {"shipped": True, "stored": str(dtype).removeprefix("torch.")}
    target = BOX / f"{stage.name}-{stage.key}.safetensors"
    save_checkpoint(target, rounded, kept)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype", choices=("float32", "float16"))
    parser.add_argument("names", nargs="+")
    asked = parser.parse_args()
    study = open_study(json.loads((asked.folder / "study.json").read_text(encoding="utf-8"))["profile"], asked.folder)
    for name in asked.names:
        pack(find(study.stages, name, study.profile.seeds[0]), getattr(torch, asked.dtype))


if __name__ == "__main__":
    main()
