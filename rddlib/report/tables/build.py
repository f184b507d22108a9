"""Which rows stand in which table: papers', peers' and measured ones, together only where they were measured alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from rddlib.report.figures import NAMES
from rddlib.report.published import DATASETS, paper_rows, peer_rows
from rddlib.report.tables.measurements import SCORES, UNKNOWN, Measurement
from rddlib.utils.errors import UserError

COLUMNS = [
    "table",
    "kind",
    "dataset",
    "steps",
    "method",
    "classifier",
    *(f"{score}{how}" for score in SCORES for how in ("", "_spread", "_min")),
    "over",
    "folder",
    "network",
    "parameters_millions",
    "conditioning",
    "gan_loss",
    "footnote",
    "protocol",
    "receipt",
    "receipt_path",
    "source",
    "note",
]
LABELS = {"cifar10": "CIFAR-10", "imagenet64": "ImageNet 64x64"}
CHOICES = {"1": ("cifar10",), "2": ("imagenet64",), "all": DATASETS}
_NUMBER = {"cifar10": "Table 1", "imagenet64": "Table 2"}
_TRAINING_IMAGES = {"cifar10": "cifar10, 50000 images", "imagenet64": "imagenet64, 1281167 images"}
_PAPERS_WAY = (
    "The papers' numbers: Inception's features, 50,000 images against the training images, as the released code scores "
    "(protocol released)."
)


@dataclass
class Table:
    """key: its data set; title; lines: what to know before the rows; rows: with COLUMNS; metric: what its FID is called;
    footnotes: texts, the first is number 1."""

    key: str
    title: str
    metric: str
    lines: list[str]
    rows: list[dict]
    footnotes: list[str] = field(default_factory=list)


def comparison(found: Sequence[Measurement], choice: str = "all", mix: bool = False) -> list[Table]:
    """The tables: the papers' with their peers and what was measured alike, then one for each other data set or way.

    choice: "1" (CIFAR-10), "2" (ImageNet 64x64) or "all"; mix: let differently measured rows stand in one table, each
    with a footnote. UserError for another choice, and for differently measured results of one data set unless mix.
    """
    if choice not in CHOICES:
        raise UserError(f"there is no table {choice}: choose 1 (CIFAR-10), 2 (ImageNet 64x64) or all")
    by_dataset: dict[str, list[Measurement]] = {}
    for one in found:
        by_dataset.setdefault(one.dataset, []).append(one)
    if choice != "all":
        by_dataset = {name: by_dataset[name] for name in CHOICES[choice] if name in by_dataset}
    for dataset, group in by_dataset.items():
        _check_alike(dataset, group, mix)
    tables, apart = [], []
    for dataset in CHOICES[choice]:
        ours = by_dataset.pop(dataset, [])
        beside = [one for one in ours if _inception(one) and (mix or not _differences(dataset, one))]
        rest = [one for one in ours if one not in beside]
        tables.append(_paper_table(dataset, beside))
        apart += [_own_table(dataset, rest)] if rest else []
    return tables + apart + [_own_table(dataset, group) for dataset, group in by_dataset.items()]


def _check_alike(dataset: str, group: Sequence[Measurement], mix: bool) -> None:
    from rddlib.evaluation import differing_protocols

    differing = differing_protocols([one.receipt for one in group])
    if differing and not mix:
        raise UserError(
            f"results for {dataset} were measured differently (they differ in {', '.join(differing)}): choose folders "
            "measured alike, or one way with --protocol, or add --mix for a table with footnotes"
        )


def _inception(one: Measurement) -> bool:
    from rddlib.evaluation.networks import INCEPTION_SHA256

    return one.receipt.get("network_sha256") == INCEPTION_SHA256


def _differences(dataset: str, one: Measurement) -> list[str]:
    """In what a result differs from the way the papers' numbers were measured (released code: score/both.py)."""
    from rddlib.evaluation import PROTOCOLS, differing_protocols
    from rddlib.evaluation.networks import INCEPTION_SHA256

    way, training = PROTOCOLS["released"], one.receipt.get("reference") == _TRAINING_IMAGES[dataset]
    papers = {
        "metric": "FID (50000 samples)",
        "protocol": way.name,
        "network_sha256": INCEPTION_SHA256,
        "resize": way.resize,
        "rounding": way.rounding,
        "shuffled": way.shuffled,
        "samples": 50_000,
        "reference_sha256": one.receipt.get("reference_sha256") if training else "the training images",
    }
    return differing_protocols([papers, one.receipt])


def _paper_table(dataset: str, beside: Sequence[Measurement]) -> Table:
    """The papers' rows, then the peers', then what was measured here in the same way, or with footnotes."""
    title = f"{_NUMBER[dataset]}: {LABELS[dataset]}"
    table = Table(dataset, title, "FID (Inception, 50,000 samples)", [_PAPERS_WAY], _published(dataset, title))
    table.rows += _measured(beside, table, marked=lambda one: bool(_differences(dataset, one)))
    table.lines += [_places(beside)] if beside else []
    if table.footnotes:
        marks = ", ".join(f"[{number}]" for number in range(1, len(table.footnotes) + 1))
        table.lines.insert(0, f"Rows marked {marks} were measured differently: they do not compare with the others.")
    return table


def _published(dataset: str, title: str) -> list[dict]:
    rows = []
    for kind, part in (("paper", paper_rows(dataset)), ("peer", peer_rows(dataset))):
        known = part[part.columns.intersection(COLUMNS)].sort_values("steps", kind="stable")
        rows += [{"table": title, "kind": kind, **row} for row in known.to_dict("records")]
    return rows


def _own_table(dataset: str, group: Sequence[Measurement]) -> Table:
    """A table of measured rows alone, and why they stand alone."""
    from rddlib.evaluation import differing_protocols

    receipt, label = group[0].receipt, LABELS.get(dataset, dataset)
    metric = str(receipt.get("metric", f"FID ({UNKNOWN})"))
    if dataset not in DATASETS:
        why = f"No row of Table 1 or 2: those are scores on CIFAR-10 and ImageNet 64x64, these on {label}, in {metric}."
    elif not _inception(group[0]):
        why = f"No row of {_NUMBER[dataset]}: its FIDs are of Inception's features, here it is {metric}."
    else:
        fields = ", ".join(_differences(dataset, group[0]))
        why = f"No row of {_NUMBER[dataset]}: its numbers were measured differently ({fields}); --mix puts both in one table."
    table = Table(dataset, f"Measured here: {label}", metric, [why], [])
    differing = differing_protocols([one.receipt for one in group])
    if differing:
        table.metric = "FID, measured in several ways"
        fields = ", ".join(differing)
        table.lines.insert(0, f"These rows do not compare: they differ in {fields}; the footnotes say how.")
    else:
        table.lines.append(f"Measured as: {describe(receipt)}.")
    table.lines.append(_places(group))
    table.rows = _measured(group, table, marked=lambda one: bool(differing))
    return table


def _places(group: Sequence[Measurement]) -> str:
    """Where results lie: the study's folder tells its network and budget."""
    return f"Measured in {', '.join(dict.fromkeys(str(one.folder) for one in group))}."


def describe(receipt: dict) -> str:
    """How a number was measured, in words; what the receipt leaves out is "not recorded"."""
    names = ("metric", "protocol", "network", "resize", "rounding", "reference", "tool")
    known = {name: receipt.get(name, UNKNOWN) for name in names}
    order = {True: "shuffled", False: "in order"}.get(receipt.get("shuffled"), UNKNOWN)
    network, reference = (str(receipt.get(name, UNKNOWN))[:12] for name in ("network_sha256", "reference_sha256"))
    return (
        f"{known['metric']}, protocol {known['protocol']}, network {known['network']} ({network}), resize "
        f"{known['resize']}, rounding {known['rounding']}, IS splits {order}, against {known['reference']} ({reference}), "
        f"{known['tool']}"
    )


def _measured(group: Sequence[Measurement], table: Table, marked: Callable[[Measurement], bool]) -> list[dict]:
    """One row for each arm: mean, spread and minimum over its seeds (or noises); marked(one): whether it needs a footnote."""
    arms: dict[tuple, list[Measurement]] = {}
    for one in group:
        arms.setdefault(one.arm[:-1], []).append(one)
    rows = []
    for runs in arms.values():
        first, files = runs[0], [file for run in runs for file in (run, *run.others)]
        note = _footnote(table, describe(first.receipt)) if marked(first) else ""
        rows.append(
            {
                "table": table.title,
                "kind": "measured",
                "dataset": first.dataset,
                "steps": first.row["steps"],
                "method": NAMES.get(first.row["method"], first.row["method"]),
                **_summary(runs),
                "over": _over(runs),
                "folder": str(first.folder),
                "footnote": note,
                "protocol": describe(first.receipt),
                "receipt": " ".join(file.id for file in files),
                "receipt_path": "\n".join(str(file.path) for file in files),
            }
        )
    place = {name: number for number, name in enumerate(NAMES.values())}
    return sorted(rows, key=lambda row: (row["steps"], place.get(row["method"], len(place))))


def _footnote(table: Table, text: str) -> int:
    if text not in table.footnotes:
        table.footnotes.append(text)
    return table.footnotes.index(text) + 1


def _summary(runs: Sequence[Measurement]) -> dict[str, float]:
    """Each score that every run has: mean, spread (standard deviation, of several) and minimum."""
    values = pd.DataFrame([run.scores for run in runs]).dropna(axis="columns")
    summary = {}
    for score in values.columns:
        summary |= {score: values[score].mean(), f"{score}_min": values[score].min()}
        summary |= {f"{score}_spread": values[score].std()} if len(runs) > 1 else {}
    return summary


def _over(runs: Sequence[Measurement]) -> str:
    """What the mean is over: seeds of training, noises that one model drew from, or sets of images."""
    drawn = "noise" if isinstance(runs[0].receipt.get("noise_seed"), int) else "set"
    what = "seed" if runs[0].part == "scores" else drawn
    return f"{len(runs)} {what}{'s' * (len(runs) > 1)}"
