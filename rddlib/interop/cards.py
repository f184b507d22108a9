"""Model cards: what a model is, where it comes from and what was measured of it, as Markdown beside what is exported."""

import json
from pathlib import Path

from rddlib.denoiser import Denoiser
from rddlib.errors import UserError
from rddlib.evaluation import VALUES, read_record
from rddlib.installation import git_commit
from rddlib.model_file import summary
from rddlib.schedule import BetaSchedule, CosineSchedule

UNKNOWN = "not recorded"
SCORE_FOLDERS = ("scores", "guidance", "evaluations", "ablations/scores")  # of a study
RECEIPT_FIELDS = (
    "metric",
    "protocol",
    "reference",
    "sampler",
    "noise_seed",
    "guidance",
    "clip",
    "git_commit",
    "written",
)


def card_of(denoiser: Denoiser, checkpoint: Path, info: dict, *, title: str, steps: int, usage: str) -> str:
    """The card of a model that a checkpoint holds: its ancestors and scores are looked up in the study around it."""
    folder = Path(checkpoint).parent
    lineage = _lineage(folder, info)
    return model_card(
        denoiser, title=title, steps=steps, usage=usage, lineage=lineage, records=_records(folder.parent, info.get("sha256"))
    )  # fmt: skip


def model_card(
    denoiser: Denoiser, *, title: str, steps: int = 0, usage: str = "", lineage: list[dict] = (), records: list = (),
) -> str:  # fmt: skip
    """Markdown. lineage: what checkpoints record of the model and its ancestors, itself first; records: (file, {"row",
    "receipt"}) of its scores; usage: lines of Python that draw with it; steps: 0 for any number of them."""
    student = lineage[0] if lineage else {}
    data = next((info["facts"]["data"]["name"] for info in lineage if "data" in info.get("facts", {})), UNKNOWN)
    rows = {
        "network": summary(denoiser),
        "images": _images(denoiser),
        "sampling steps": f"{steps}, by DDIM" if steps else "any number, by DDIM",
        "noise schedule": _schedule(denoiser),
        "data": data,
        "teacher": _line(lineage[1]) if len(lineage) > 1 else UNKNOWN,
        "objective": _objective(student),
        "training": _training(student),
        "checkpoint (sha256)": student.get("sha256", UNKNOWN),
        "written by": f"rddlib, commit {git_commit()}",
    }
    parts = [
        f"# {title}",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]),
        *(["## How it came about", "\n".join(f"{k}. {_line(info)}" for k, info in enumerate(reversed(lineage), 1))]
          if len(lineage) > 1 else []),
        *(["## Use", f"```python\n{usage}\n```"] if usage else []),
        "## What was measured",
        _numbers(records),
        "## Licence",
        "To be filled in by whoever publishes this model. The licences of its teacher and of its data bind it too.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _images(denoiser: Denoiser) -> str:
    config = getattr(denoiser.network, "config", None)
    if not hasattr(config, "image_size"):
        return UNKNOWN
    classes = f", of {denoiser.num_classes} classes" if denoiser.num_classes else ""
    return f"{config.image_channels} x {config.image_size} x {config.image_size}, in [-1, 1]{classes}"


def _schedule(denoiser: Denoiser) -> str:
    schedule = denoiser.schedule
    if isinstance(schedule, CosineSchedule):
        return f"cosine, continuous, offset {schedule.offset:g}"
    return f"{'betas of its own' if isinstance(schedule, BetaSchedule) else 'cosine'}, {schedule.steps} steps"


def _kind(info: dict) -> str:
    facts = info.get("facts", {})
    if "given" in facts or "source" in info:
        source = facts.get("source", info.get("source", {}))
        learnt = ", which has learnt to predict v" if "train" in facts else ""
        return f"{source.get('name', 'a model')} ({source.get('made_by', UNKNOWN)}){learnt}"
    if "stochastic" in facts:
        return f"{facts['method'].upper()} student of {facts['steps']} stochastic steps"
    if "method" in facts:
        return f"{facts['method'].upper()} student of {facts['steps']} step{'s' * (facts['steps'] > 1)}"
    if "steps" in facts:
        return f"PD teacher of {facts['steps']} steps"
    return "one network that takes guidance" if "guidance" in facts else "base model"


def _line(info: dict) -> str:
    trained = _training(info)
    return _kind(info) + (f": {trained}" if trained != UNKNOWN else "")


def _objective(info: dict) -> str:
    facts = info.get("facts", {})
    if "method" not in facts:
        return "PD" if "steps" in facts else UNKNOWN
    numbers = ", ".join(f"{name} {value}" for name, value in facts["numbers"].items() if value not in (False, []))
    return f"{facts['method'].upper()}{f' ({numbers})' if numbers else ''}"


def _training(info: dict) -> str:
    facts = info.get("facts", {})
    train = facts.get("train", facts.get("base", {}).get("train"))
    if not train:
        return UNKNOWN
    iterations = facts.get("iterations", train["iterations"])
    return (f"{iterations:,} iterations, batch {train['batch_size']}, learning rate {train['learning_rate']:g}, "
            f"seed {facts.get('seed', UNKNOWN)}, {info.get('precision', UNKNOWN)}")  # fmt: skip


def _lineage(folder: Path, info: dict) -> list[dict]:
    """What is recorded of a model and of its ancestors, as far as their records lie in its folder."""
    found = [info]
    while parent := found[-1].get("facts", {}).get("parent"):
        record = next(iter(sorted(folder.glob(f"*-{parent}.json"))), None)
        try:
            found.append(json.loads(record.read_text()) if record else {})
        except (OSError, ValueError):
            found.append({})
        if not found[-1].get("facts"):
            found.pop()
            break
    return found


def _records(study: Path, sha256: str | None) -> list[tuple[Path, dict]]:
    """(file, {"row", "receipt"}) of the scores in a study's folder whose images this checkpoint's model drew."""
    found = []
    for path in (path for name in SCORE_FOLDERS for path in sorted((study / name).glob("*.json"))):
        try:
            record = read_record(path)
        except UserError:
            continue  # another kind of file, or a damaged one
        if sha256 and record["receipt"].get("checkpoint_sha256") == sha256:
            found.append((path.relative_to(study), record))
    return found


def _numbers(records: list[tuple[Path, dict]]) -> str:
    if not records:
        return "Nothing yet, or not beside the checkpoint: `rdd evaluate` scores it and writes a receipt."
    values = [name for name in VALUES if any(name in record["row"] for _, record in records)]
    lines = ["Lower is better for FID, KID and pFD, higher for the inception score (is), precision and recall. Scores compare "
             "only where metric, protocol and reference are the same.", ""]  # fmt: skip
    lines += [f"| steps | {' | '.join(values)} | receipt |", "|---" * (len(values) + 2) + "|"]
    for path, record in records:
        row = record["row"]
        cells = [f"{row[name]:.5g}" if name in row else "" for name in values]
        lines.append(f"| {row['steps']} | {' | '.join(cells)} | {path.name} |")
    lines += ["", "Receipts:", ""]
    for path, record in records:
        said = "; ".join(
            f"{field} {record['receipt'][field]}" for field in RECEIPT_FIELDS if field in record["receipt"]
        )
        lines.append(f"- `{path}`: {said}")
    return "\n".join(lines)
