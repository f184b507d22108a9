"""Comparison tables: what the papers report, what peers report and what was measured here, three kinds of rows kept apart.

Two numbers stand in one table only if they were measured alike: same metric, protocol, network, reference and number of
samples, as their receipts say. Where that is overruled, footnotes say how each was measured.
"""

import hashlib
import json
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from rddlib.evaluation import (
    PROTOCOL_FIELDS,
    PROTOCOLS,
    SCORES,
    differing_protocols,
    find_protocol,
    read_record,
    which_is_better,
)
from rddlib.evaluation.networks import INCEPTION_SHA256
from rddlib.methods import LABELS
from rddlib.report.figures import Panel
from rddlib.report.published import DATASETS, PEER_FACTS, paper_rows, peer_rows
from rddlib.utils.errors import UserError
from rddlib.utils.text import aligned, counted, markdown_table

UNKNOWN = "not recorded"  # what an older receipt leaves out
DATASET_LABELS = {"cifar10": "CIFAR-10", "imagenet64": "ImageNet 64x64"}
CHOICES = {"1": ("cifar10",), "2": ("imagenet64",), "all": DATASETS}
HEADINGS = {"paper": "From the papers", "peer": "Peers", "measured": "Measured here"}
_ARM = ("table", "kind", "dataset", "steps", "method", "classifier")
_MEASURED = (*(f"{score}{how}" for score in SCORES for how in ("", "_spread", "_min")), "over", "folder")
COLUMNS = [*_ARM, *_MEASURED, *PEER_FACTS, "footnote", "protocol", "receipt", "receipt_path", "source", "note"]
_NUMBER = {"cifar10": "Table 1", "imagenet64": "Table 2"}
_TRAINING_IMAGES = {"cifar10": "cifar10, 50000 images", "imagenet64": "imagenet64, 1281167 images"}
_PAPERS_WAY = (
    "The papers' numbers: Inception's features, 50,000 images against the training images, as the released code scores "
    "(protocol released)."
)
_PEERS_NOTE = (
    "Other networks and budgets. params: millions of parameters (the papers' networks: 35.7 on CIFAR-10, 116 on ImageNet "
    "64x64); ?: not verified."
)


# results on file


@dataclass(frozen=True)
class Measurement:
    """One result on file.

    Args:
        row: method, steps, seed and scores.
        receipt: how they were measured.
        path: of the file.
        folder: the study's.
        others: results of the same images whose scores stand in row too.
    """

    row: dict
    receipt: dict
    path: Path
    folder: Path
    others: tuple["Measurement", ...] = ()

    def facts(self, *names: str) -> tuple[str, ...]:
        """What the receipt says of these."""
        return tuple(str(self.receipt.get(name)) for name in names)

    @property
    def part(self) -> str:
        """ "scores" (a study's) or "evaluations" (asked for one by one)."""
        return self.path.parent.name

    @property
    def id(self) -> str:
        """The receipt's name: the first 8 hexadecimal digits of the sha256 of its JSON."""
        return hashlib.sha256(json.dumps(self.receipt, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def dataset(self) -> str:
        """What the images were scored against, as far as the receipt says."""
        return str(self.receipt.get("reference", UNKNOWN)).split(",")[0]

    @property
    def series(self) -> tuple:
        """Results that agree in all of this are averaged over their seeds, or noises."""
        drawn = self.facts("sampler", "clip", *(() if self.part == "scores" else ("weights_sha256", "images_sha256")))
        return (self.folder, self.part, self.protocol, self.row["method"], self.row["steps"], *drawn)

    @property
    def draw(self) -> tuple:
        """Which images were scored: the model and its noise, or the images themselves."""
        drawn = self.facts("weights_sha256", "noise_seed", "images_sha256", "sampler", "clip", "labels")
        return (self.folder, self.protocol, self.row["method"], self.row["steps"], *drawn)

    @property
    def protocol(self) -> tuple[str, ...]:
        return self.facts(*PROTOCOL_FIELDS)

    @property
    def scores(self) -> dict[str, float]:
        return {score: self.row[score] for score in SCORES if self.row.get(score) is not None}


def read_measurements(folders: Sequence[Path]) -> list[Measurement]:
    """Every result in FOLDER/scores and FOLDER/evaluations, each measured state of an arm once.

    Of results of one arm the one written last counts; an evaluation that repeats a study's score is left out, and
    evaluations of the same images that hold different scores are joined. UserError for a missing folder, one without
    results, and a damaged file.
    """
    found = []
    for folder in {Path(folder).resolve(): Path(folder) for folder in folders}.values():
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name the folder of a study, such as runs/digits")
        if not (files := _files(folder)):
            raise UserError(f"{folder} holds no scores: run `rdd study` or `rdd evaluate` with --out {folder} first")
        found += [_read(file, folder) for file in files]
    return _latest(_joined(sorted(found, key=_time)))


def count_results(folder: Path) -> int:
    """How many results lie in a folder: 0 too where there is none."""
    return len(_files(folder))


def measured_under(found: Sequence[Measurement], protocol: str) -> list[Measurement]:
    """Those measured under a protocol. UserError for an unknown one, or where there is none of it."""
    kept = [one for one in found if one.receipt.get("protocol") == find_protocol(protocol).name]
    if not kept:
        command = f"rdd evaluate --protocol {protocol}"
        raise UserError(f"nothing was measured under the protocol {protocol}: run `{command}` first")
    return kept


def _files(folder: Path) -> list[Path]:
    return [file for part in ("scores", "evaluations") for file in sorted((folder / part).glob("*.json"))]


def _read(path: Path, folder: Path) -> Measurement:
    found = read_record(path)
    row, receipt = found["row"], found["receipt"]
    try:
        row["method"], row["steps"] = str(row["method"]), int(row["steps"])
        if receipt.get("guidance", "none") != "none":  # another weight is another model's image
            row["method"] = f"{LABELS.get(row['method'], row['method'])}, w = {receipt['guidance']:g}"
        if not all(math.isfinite(row[score]) for score in SCORES if row.get(score) is not None):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, and what wrote it measures it again") from error
    return Measurement(row, receipt, path, folder)


def _time(one: Measurement) -> str:
    return str(one.receipt.get("written", ""))


def _joined(found: Sequence[Measurement]) -> list[Measurement]:
    """Without evaluations that add nothing to a study's scores; evaluations of the same images in one."""
    scored = [one for one in found if one.part == "scores"]
    held: dict[tuple, set[str]] = {}
    for one in scored:
        held.setdefault(one.draw, set()).update(one.scores)
    joined: dict[tuple, Measurement] = {}
    for one in found:
        if one.part == "scores" or one.scores.keys() <= held.get(one.draw, set()):
            continue
        if before := joined.get(one.draw):
            one = replace(before, row={**before.row, **one.scores}, others=(*before.others, one))
        joined[one.draw] = one
    return scored + list(joined.values())


def _latest(found: Sequence[Measurement]) -> list[Measurement]:
    """Of the results of one arm the one written last, and with it those seeds alone that were trained alike."""
    kept: dict[tuple, Measurement] = {}
    for one in sorted(found, key=_time):
        arm = (one.series, one.row.get("seed"))
        kept.pop(arm, None)
        kept[arm] = one
    newest = {one.series: one.row.get("lineage") for one in kept.values()}
    return [one for one in kept.values() if one.row.get("lineage") == newest[one.series]]


# which rows stand in which table


@dataclass
class Table:
    """Rows that may be compared.

    Args:
        title: of the table.
        metric: what its FID is called.
        lines: what to know before the rows.
        rows: with COLUMNS.
        footnotes: texts, the first is number 1.
    """

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
    by_dataset = defaultdict(list)
    for one in found:
        if choice == "all" or one.dataset in CHOICES[choice]:
            by_dataset[one.dataset].append(one)
    for dataset, group in by_dataset.items():
        differing = differing_protocols([one.receipt for one in group])
        if differing and not mix:
            raise UserError(
                f"results for {dataset} were measured differently (they differ in {', '.join(differing)}): choose folders "
                "measured alike, or one way with --protocol, or add --mix for a table with footnotes"
            )
    tables, apart = [], []
    for dataset in CHOICES[choice]:
        ours = by_dataset.pop(dataset, [])
        beside = [one for one in ours if _inception(one) and (mix or not _differences(dataset, one))]
        rest = [one for one in ours if one not in beside]
        tables.append(_paper_table(dataset, beside))
        apart += [_own_table(dataset, rest)] if rest else []
    return tables + apart + [_own_table(dataset, group) for dataset, group in by_dataset.items()]


def describe(receipt: dict) -> str:
    """How a number was measured, in words; what the receipt leaves out is "not recorded"."""
    known = defaultdict(lambda: UNKNOWN, receipt)
    order = {True: "shuffled", False: "in order"}.get(receipt.get("shuffled"), UNKNOWN)
    return (
        f"{known['metric']}, protocol {known['protocol']}, network {known['network']} ({known['network_sha256']!s:.12}), "
        f"resize {known['resize']}, rounding {known['rounding']}, IS splits {order}, against {known['reference']} "
        f"({known['reference_sha256']!s:.12}), {known['tool']}"
    )


def _inception(one: Measurement) -> bool:
    return one.receipt.get("network_sha256") == INCEPTION_SHA256


def _differences(dataset: str, one: Measurement) -> list[str]:
    """In what a result differs from the way the papers' numbers were measured (released code: score/both.py)."""
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
    title = f"{_NUMBER[dataset]}: {DATASET_LABELS[dataset]}"
    table = Table(title, "FID (Inception, 50,000 samples)", [_PAPERS_WAY], [])
    for kind, rows in (("paper", paper_rows(dataset)), ("peer", peer_rows(dataset))):
        known = rows[rows.columns.intersection(COLUMNS)].sort_values("steps", kind="stable")
        table.rows += [{"table": title, "kind": kind, **row} for row in known.to_dict("records")]
    table.rows += _measured(beside, table, marked=lambda one: bool(_differences(dataset, one)))
    table.lines += [_places(beside)] if beside else []
    if table.footnotes:
        marks = ", ".join(f"[{number}]" for number in range(1, len(table.footnotes) + 1))
        table.lines.insert(0, f"Rows marked {marks} were measured differently: they do not compare with the others.")
    return table


def _own_table(dataset: str, group: Sequence[Measurement]) -> Table:
    """A table of measured rows alone, and why they stand alone."""
    receipt, label = group[0].receipt, DATASET_LABELS.get(dataset, dataset)
    metric = str(receipt.get("metric", f"FID ({UNKNOWN})"))
    if dataset not in DATASETS:
        why = f"No row of Table 1 or 2: those are scores on CIFAR-10 and ImageNet 64x64, these on {label}, in {metric}."
    elif not _inception(group[0]):
        why = f"No row of {_NUMBER[dataset]}: its FIDs are of Inception's features, here it is {metric}."
    else:
        fields = ", ".join(_differences(dataset, group[0]))
        why = f"No row of {_NUMBER[dataset]}: its numbers were measured differently ({fields}); --mix puts both in one table."
    table = Table(f"Measured here: {label}", metric, [why], [])
    if differing := ", ".join(differing_protocols([one.receipt for one in group])):
        table.metric = "FID, measured in several ways"
        table.lines.insert(0, f"These rows do not compare: they differ in {differing}; the footnotes say how.")
    else:
        table.lines.append(f"Measured as: {describe(receipt)}.")
    table.lines.append(_places(group))
    table.rows = _measured(group, table, marked=lambda one: bool(differing))
    return table


def _places(group: Sequence[Measurement]) -> str:
    """Where results lie: the study's folder tells its network and budget."""
    return f"Measured in {', '.join(dict.fromkeys(str(one.folder) for one in group))}."


def _measured(group: Sequence[Measurement], table: Table, marked: Callable[[Measurement], bool]) -> list[dict]:
    """One row for each arm: mean, spread and minimum over its seeds (or noises); marked(one): whether it needs a footnote."""
    arms, rows = defaultdict(list), []
    for one in group:
        arms[one.series].append(one)
    for runs in arms.values():
        first, files = runs[0], [file for run in runs for file in (run, *run.others)]
        row = {"table": table.title, "kind": "measured", "dataset": first.dataset, "steps": first.row["steps"]}
        row |= {"method": LABELS.get(first.row["method"], first.row["method"]), **_summary(runs)}
        row |= {"over": _over(runs), "folder": str(first.folder), "protocol": describe(first.receipt), "footnote": ""}
        if marked(first):
            table.footnotes += [row["protocol"]] * (row["protocol"] not in table.footnotes)
            row["footnote"] = table.footnotes.index(row["protocol"]) + 1
        row["receipt"] = " ".join(file.id for file in files)
        row["receipt_path"] = "\n".join(str(file.path) for file in files)
        rows.append(row)
    place = {name: number for number, name in enumerate(LABELS.values())}
    return sorted(rows, key=lambda row: (row["steps"], place.get(row["method"], len(place))))


def _summary(runs: Sequence[Measurement]) -> dict[str, float]:
    """Each score that every run has: mean, spread (standard deviation, of several) and minimum."""
    values, summary = pd.DataFrame([run.scores for run in runs]).dropna(axis="columns"), {}
    for score in values.columns:
        summary |= {score: values[score].mean(), f"{score}_min": values[score].min()}
        summary |= {f"{score}_spread": values[score].std()} if len(runs) > 1 else {}
    return summary


def _over(runs: Sequence[Measurement]) -> str:
    """What the mean is over: seeds of training, noises that one model drew from, or sets of images."""
    drawn = "noise" if isinstance(runs[0].receipt.get("noise_seed"), int) else "set"
    return counted(len(runs), "seed" if runs[0].part == "scores" else drawn)


# for programs and people


def as_frame(tables: Sequence[Table]) -> pd.DataFrame:
    """All rows of all tables, with COLUMNS."""
    return pd.DataFrame([row for table in tables for row in table.rows], columns=COLUMNS)


def panels(tables: Sequence[Table]) -> list[Panel]:
    """(title, name of the FID, rows with the column curve) of each table, for rddlib.report.figures.comparison_figure."""
    found = []
    for table in tables:
        frame = as_frame([table])[["kind", "method", "steps", "fid", "fid_spread"]]
        frame["curve"] = [_curve(row, table) for row in table.rows]
        found.append((table.title, table.metric, frame.astype({"steps": int, "fid": float, "fid_spread": float})))
    return found


def _curve(row: dict, table: Table) -> str:
    """What tells a row's line from others: its classifier; its footnote, its folder and whether its mean is over noises."""
    if row["kind"] == "paper":
        return f"{row['method']}, {row['classifier']}" if row["classifier"] == "ResNet18" else row["method"]
    if row["kind"] == "peer":
        return row["method"]
    alike = [other for other in table.rows if other["kind"] == "measured" and other["method"] == row["method"]]
    words = [Path(row["folder"]).name] if _several(alike) else []
    words += ["noises"] if len({"seed" in other["over"] for other in alike}) > 1 and "seed" not in row["over"] else []
    return ", ".join([row["method"], *words]) + _mark(row)


def as_text(tables: Sequence[Table]) -> str:
    """The tables as aligned text of at most 100 columns."""
    return "\n\n".join("\n".join(_table_text(table)) for table in tables) + "\n"


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables in Markdown, with sources, notes and the file of each receipt."""
    parts = ["# Comparison", f"Mean ± standard deviation. {which_is_better()}"]
    for table in tables:
        parts += [f"## {table.title}", *table.lines]
        for kind, rows in _kinds(table).items():
            parts += [f"### {HEADINGS[kind]}", *[_PEERS_NOTE] * (kind == "peer")]
            parts += [markdown_table(*_cells(kind, rows, wide=True))]
        parts += [f"[{number}] {text}" for number, text in enumerate(table.footnotes, 1)]
    measured = [row for table in tables for row in table.rows if row["kind"] == "measured"]
    pairs = [zip(row["receipt"].split(), row["receipt_path"].split("\n"), strict=True) for row in measured]
    if files := [[name, f"`{path}`"] for pair in pairs for name, path in pair]:
        parts += ["## Receipts", markdown_table(["receipt", "file"], files)]
    return "\n\n".join(parts) + "\n"


def _kinds(table: Table) -> dict[str, list[dict]]:
    """{kind: its rows} of a table, in order."""
    rows = {kind: [row for row in table.rows if row["kind"] == kind] for kind in HEADINGS}
    return {kind: found for kind, found in rows.items() if found}


def _table_text(table: Table) -> list[str]:
    lines, kinds = [table.title, "=" * len(table.title)], _kinds(table)
    for line in table.lines:
        lines += _wrapped(line)
    for kind, rows in kinds.items():
        lines += ["", *[HEADINGS[kind]] * (len(kinds) > 1), _aligned(*_cells(kind, rows))]
        lines += _wrapped(_PEERS_NOTE) if kind == "peer" else []
        if kind == "measured" and (more := [score for score in _present(rows) if score not in _beside(rows)]):
            lines += ["", "Further scores", _aligned(*_further(rows, more))]
    if "measured" not in kinds:
        lines += ["", f"{HEADINGS['measured']}: nothing in the papers' way yet."]
    for number, text in enumerate(table.footnotes, 1):
        lines += _wrapped(f"[{number}] {text}", "    ")
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def _aligned(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Lines of a table: numbers to the right, words to the left."""
    columns = enumerate(zip(*body, strict=True))
    words = [k for k, cells in columns if not all(re.fullmatch(r"[-?\d.]*( ± [\d.]+)?", cell) for cell in cells)]
    return aligned(heads, body, words)


def _cells(kind: str, rows: Sequence[dict], wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the rows of one kind; wide: nothing is shortened, notes, receipts and folders stand too."""
    further = (_present(rows) if wide else _beside(rows)) if kind == "measured" else []
    body = []
    for row in rows:
        arm, cells = _arm(row, wide), {"FID": _score(row, "fid")}
        if kind == "paper":
            cells = {"classifier": row["classifier"]} | cells | {"IS": _score(row, "is"), "source": row["source"]}
        elif kind == "peer":
            facts = row["network"], _plain(row["parameters_millions"]), row["conditioning"], row["gan_loss"]
            heads = ("network", "params", "conditioning", "GAN")
            cells |= {head: fact or "?" for head, fact in zip(heads, facts, strict=True)}
            cells["source"] = row["source"] if wide else _arxiv(row["source"])
        else:
            cells["min"] = _plain(row.get("fid_min"), ".2f")
            cells |= {SCORES[score].label: _score(row, score) for score in further if score != "fid"}
            cells["over"] = row["over"]
            first, *more = row["receipt"].split()
            if wide:
                cells |= {"receipts": row["receipt"], "folder": row["folder"]}
            else:
                cells["receipt"] = first + f" +{len(more)}" * bool(more)
                cells |= {"folder": _short(Path(row["folder"]).name, 14)} if _several(rows) else {}
        cells |= {"note": row["note"]} if wide and kind != "measured" else {}
        body.append([*arm, *cells.values()])
    return ["steps", "method", *cells], body


def _further(rows: Sequence[dict], scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Scores that do not fit beside the others, of the rows that have any."""
    rows = [row for row in rows if any(score in row for score in scores)]
    cells = [[*_arm(row), *(_score(row, score) for score in scores), row["over"]] for row in rows]
    return ["steps", "method", *(SCORES[score].label for score in scores), "over"], cells


def _present(rows: Sequence[dict]) -> list[str]:
    """The scores that some row has."""
    return [score for score in SCORES if any(score in row for row in rows)]


def _several(rows: Sequence[dict]) -> bool:
    return len({row["folder"] for row in rows}) > 1


def _beside(rows: Sequence[dict]) -> list[str]:
    """The scores that fit beside one another in 100 columns."""
    return [score for score in _present(rows) if score in [*SCORES][: 2 if _several(rows) else 3]]


def _mark(row: dict) -> str:
    return f" [{row['footnote']}]" if row.get("footnote") else ""


def _arm(row: dict, wide: bool = False) -> list[str]:
    """Steps and method, with the mark of its footnote."""
    return [str(row["steps"] or "-"), (row["method"] if wide else _short(row["method"], 14)) + _mark(row)]


def _score(row: dict, score: str) -> str:
    """Mean and, of several runs, spread; empty where not measured."""
    form = SCORES[score].form
    spread = _plain(row.get(f"{score}_spread"), form)
    return _plain(row.get(score), form) + (f" ± {spread}" if spread else "")


def _plain(value: float | None, form: str = ".1f") -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _arxiv(source: str) -> str:
    found = re.search(r"arXiv [\d.]+", source)
    return found[0] if found else _short(source, 20)
