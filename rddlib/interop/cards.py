"""Model cards in Markdown: what an exported model is, where it comes from and how it scores."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.model_file import summary
from rddlib.diffusion.schedule import BetaSchedule, CosineSchedule
from rddlib.evaluation import SCORES, read_record, which_is_better
from rddlib.utils.errors import UserError
from rddlib.utils.installation import git_commit
from rddlib.utils.text import counted, one_line

UNKNOWN = "not recorded"
SCORE_FOLDERS = ("scores", "guidance", "evaluations", "ablations/scores")  # of a study
COLUMNS = ("steps", "sampler", "guidance", "clip", "samples", "protocol")  # of a receipt: how the images were drawn
RECEIPT_FIELDS = ("metric", "reference", "noise_seed", "git_commit", "written")


def card_of(denoiser: Denoiser, checkpoint: Path, info: dict, **options) -> str:
    """The card of a checkpoint's model, with its ancestors and scores as found in the study's folder around it.

    info: the checkpoint's record; options: of `model_card`.
    """
    folder = Path(checkpoint).parent
    records = _records(folder.parent, info.get("sha256"))
    return model_card(denoiser, lineage=_lineage(folder, info), records=records, **options)


def model_card(
    denoiser: Denoiser,
    *,
    title: str,
    steps: int = 0,
    guidance: float | None = None,
    clip: bool = True,
    usage: str = "",
    lineage: Sequence[dict] = (),
    records: Sequence[tuple[Path, dict]] = (),
) -> str:
    """A model card in Markdown.

    steps: of the exported sampler, 0 for any number; guidance: the fixed weight w of what is exported, if any; clip: whether
    x is clamped to [-1, 1]; usage: lines of Python that draw with it; lineage: the records in the checkpoints of the model
    and its ancestors, the model first; records: (file, {"row", "receipt"}) of its scores.
    """
    student = lineage[0] if lineage else {}
    rows = {
        "network": summary(denoiser),
        "images": _images(denoiser, lineage),
        "sampling": f"DDIM, {counted(steps) if steps else 'any number of steps'}, "
        f"x {'held in [-1, 1]' if clip and denoiser.space is None else 'not clipped'}",
        **({} if guidance is None else {"guidance": f"w = {guidance:g}, fixed"}),
        "noise schedule": _schedule(denoiser),
        "data": _data(lineage),
        "teacher": _line(lineage[1]) if len(lineage) > 1 else UNKNOWN,
        "objective": _objective(student),
        "training": _training(student),
        "checkpoint (sha256)": student.get("sha256", UNKNOWN),
        "written by": f"rddlib, commit {git_commit()}",
    }
    table = ["| | |", "|---|---|", *(f"| {name} | {one_line(value, 500)} |" for name, value in rows.items())]
    parts = [f"# {title}", "\n".join(table)]
    if len(lineage) > 1:
        ancestors = [f"{k}. {_line(info)}" for k, info in enumerate(reversed(lineage), 1)]
        parts += ["## How it came about", "\n".join(ancestors)]
    if usage:
        parts += ["## Use", f"```python\n{usage}\n```"]
    parts += [
        "## What was measured",
        _numbers(records),
        "## Licence",
        "To be filled in by whoever publishes this model. The licences of its teacher and of its data bind it too."
        + _licence(lineage),
    ]
    return "\n\n".join(parts) + "\n"


def _licence(lineage: Sequence[dict]) -> str:
    """Of the model that it came from, where that is known."""
    source = _dict(lineage[-1], "source") if lineage else {}
    return f" That of {source['name']}: {source['licence']}." if source.get("licence") else ""


def _dict(found: dict, name: str) -> dict:
    """found[name] if it is a dict, else {}: records may be of other versions."""
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _facts(info: dict) -> dict:
    return _dict(info, "facts")


def _data(lineage: Sequence[dict]) -> str:
    """The data it was trained on. A given model's record names the data of its students, which it may never have seen."""
    if lineage and "pretrained" in _facts(lineage[0]) and "train" not in _facts(lineage[0]):
        return UNKNOWN
    found = [_dict(_facts(info), "data") for info in lineage]
    return next((str(data["name"]) for data in found if "name" in data), UNKNOWN)


def _images(denoiser: Denoiser, lineage: Sequence[dict]) -> str:
    config = getattr(denoiser.network, "config", None)
    if not hasattr(config, "image_shape"):
        return UNKNOWN
    classes = f", of {counted(denoiser.num_classes, 'class')}" if denoiser.num_classes else ""
    if denoiser.space:
        channels, height, width = denoiser.space.image_shape
        shown = ", of prompts" if denoiser.space.takes_prompts else classes
        latents = " x ".join(map(str, denoiser.space.latent_shape))
        return f"{channels} x {height} x {width}{shown}, drawn as latents {latents}"
    names = next((info["class_names"] for info in lineage if info.get("class_names")), []) if classes else []
    named = f" ({', '.join(names)})" if names else ""
    return f"{' x '.join(map(str, config.image_shape))}, in [-1, 1]{classes}{named}"


def _schedule(denoiser: Denoiser) -> str:
    schedule = denoiser.schedule
    if isinstance(schedule, CosineSchedule):
        return f"cosine, continuous, offset {schedule.offset:g}"
    return f"{'betas of its own' if isinstance(schedule, BetaSchedule) else 'cosine'}, {schedule.steps} steps"


def _kind(info: dict) -> str:
    facts = _facts(info)
    if "pretrained" in facts or "source" in info:
        source = _dict(info, "source")
        learnt = ", which has learnt to predict v" if "train" in facts else ""
        return f"{source.get('name', 'a model')} ({source.get('made_by', UNKNOWN)}){learnt}"
    steps = facts.get("steps", UNKNOWN)
    plural = "s" * (steps != 1)
    if "method" in facts:
        sampler = " stochastic" if "stochastic" in facts else ""
        return f"{str(facts['method']).upper()} student of {steps}{sampler} step{plural}"
    if "steps" in facts:
        return f"PD teacher of {steps} step{plural}"
    return "one network that takes guidance" if "guidance" in facts else info.get("label", "base model")


def _line(info: dict) -> str:
    trained = _training(info)
    return _kind(info) + (f": {trained}" if trained != UNKNOWN else "")


def _objective(info: dict) -> str:
    facts = _facts(info)
    if "method" not in facts:
        return "PD" if "steps" in facts else UNKNOWN
    numbers = _dict(facts, "numbers").items()
    said = ", ".join(f"{name} {value}" for name, value in numbers if value is not False and value != [])
    return f"{str(facts['method']).upper()}{f' ({said})' if said else ''}"


def _training(info: dict) -> str:
    facts = _facts(info)
    train = facts.get("train", _dict(facts, "base").get("train"))
    if not isinstance(train, dict):
        return UNKNOWN
    iterations = facts.get("iterations", train.get("iterations", UNKNOWN))
    said = {"batch": train.get("batch_size"), "learning rate": train.get("learning_rate"), "seed": facts.get("seed")}
    said |= {"adapters of rank": facts.get("lora")}
    numbers = [f"{name} {value}" for name, value in said.items() if value is not None]
    length = counted(iterations, "iteration", ",") if isinstance(iterations, int) else f"{iterations} iterations"
    return ", ".join([length, *numbers, info.get("precision", UNKNOWN)])


def _lineage(folder: Path, info: dict) -> list[dict]:
    """The records of a model and of its ancestors, up to the first that its folder lacks."""
    found, seen = [info], set()
    while (parent := _parent(found[-1])) and parent not in seen:
        seen.add(parent)
        try:
            record = json.loads(next(iter(sorted(folder.glob(f"*-{parent}.json")))).read_text(encoding="utf-8"))
        except (OSError, ValueError, StopIteration):
            break
        if not isinstance(record, dict) or not _facts(record):
            break
        found.append(record)
    return found


def _parent(info: dict) -> str | None:
    """The key of the model that this one started from."""
    parent = _facts(info).get("parent")
    return parent if isinstance(parent, str) and re.fullmatch("[0-9a-f]+", parent) else None


def _records(study: Path, sha256: str | None) -> list[tuple[Path, dict]]:
    """(file, {"row", "receipt"}) of the scores in a study's folder of images that this checkpoint's model drew."""
    found = []
    for path in (path for name in SCORE_FOLDERS for path in sorted((study / name).glob("*.json"))):
        try:
            record = read_record(path)
        except UserError:
            continue  # another kind of file, or a damaged one
        if sha256 and record["receipt"].get("checkpoint_sha256") == sha256:
            found.append((path.relative_to(study), record))
    return found


def _numbers(records: Sequence[tuple[Path, dict]]) -> str:
    if not records:
        return "Nothing yet, or not beside the checkpoint: `rdd evaluate` scores it and writes a receipt."
    values = [name for name in SCORES if any(name in record["row"] for _, record in records)]
    table = [f"| {' | '.join((*COLUMNS, *values))} | receipt |", "|---" * (len(COLUMNS) + len(values) + 1) + "|"]
    receipts = []
    for number, (path, record) in enumerate(records, start=1):
        row, receipt = record["row"], record["receipt"]
        cells = [one_line({**row, **receipt}.get(name, UNKNOWN)) for name in COLUMNS]
        cells += [f"{row[name]:.5g}" if isinstance(row.get(name), (int, float)) else "" for name in values]
        table.append(f"| {' | '.join(cells)} | {number} |")
        said = "; ".join(f"{field} {receipt[field]}" for field in RECEIPT_FIELDS if field in receipt)
        receipts.append(f"{number}. `{path}`: {one_line(said, 500)}")
    intro = f"{which_is_better(values)} Scores compare only where metric, protocol and reference are the same."
    return "\n".join([intro, "", *table, "", "Receipts:", "", *receipts])
