"""Results on file: read, checked, and each measured state of an arm once."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rddlib.evaluation import find_protocol, read_record
from rddlib.report.figures import NAMES
from rddlib.utils.errors import UserError

SCORES = ("fid", "is", "pfd", "kid", "precision", "recall")
UNKNOWN = "not recorded"  # what an older receipt leaves out


@dataclass(frozen=True)
class Measurement:
    """One result on file. row: method, steps, seed and scores; receipt: how they were measured; folder: the study's;
    others: results of the same images whose scores stand in row too."""

    row: dict
    receipt: dict
    path: Path
    folder: Path
    others: tuple["Measurement", ...] = ()

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
    def arm(self) -> tuple:
        """Results that differ in nothing of this are one result, measured again after a change."""
        row = self.row
        seed = row.get("seed")
        return (self.folder, self.part, self.protocol, row["method"], row["steps"], *self.drawn_alike, seed)

    @property
    def drawn_alike(self) -> tuple:
        """What else must agree before results of several seeds are averaged: how was drawn, and by evaluations what."""
        names = ("sampler", "clip") + (() if self.part == "scores" else ("weights_sha256", "images_sha256"))
        return tuple(str(self.receipt.get(name)) for name in names)

    @property
    def draw(self) -> tuple:
        """Which images were scored: the model and its noise, or the images themselves."""
        names = ("weights_sha256", "noise_seed", "images_sha256", "sampler", "clip", "labels")
        return (self.row["method"], self.row["steps"], *(str(self.receipt.get(name)) for name in names))

    @property
    def protocol(self) -> tuple:
        from rddlib.evaluation import PROTOCOL_FIELDS

        return tuple(str(self.receipt.get(name)) for name in PROTOCOL_FIELDS)

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
        files = _files(folder)
        if not files:
            raise UserError(f"{folder} holds no scores: run `rdd study` or `rdd evaluate` with --out {folder} first")
        found += [_read(file, folder) for file in files]
    return _latest(_joined(found))


def count_results(folder: Path) -> int:
    """How many results lie in a folder: 0 too where there is none."""
    return len(_files(folder))


def _files(folder: Path) -> list[Path]:
    return [file for part in ("scores", "evaluations") for file in sorted((folder / part).glob("*.json"))]


def _read(path: Path, folder: Path) -> Measurement:
    found = read_record(path)
    row, receipt = found["row"], found["receipt"]
    try:
        row["method"], row["steps"] = str(row["method"]), int(row["steps"])
        if receipt.get("guidance", "none") != "none":  # another weight is another model's image
            row["method"] = f"{NAMES.get(row['method'], row['method'])}, w = {receipt['guidance']:g}"
        for score in SCORES:
            if row.get(score) is not None and not math.isfinite(row[score]):
                raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, and what wrote it measures it again") from error
    return Measurement(row, receipt, path, folder)


def _joined(found: Sequence[Measurement]) -> list[Measurement]:
    """Without evaluations that add nothing to a study's scores; evaluations of the same images in one."""
    scored = [one for one in found if one.part == "scores"]
    held: dict[tuple, set[str]] = {}
    for one in scored:
        held.setdefault((one.folder, one.protocol, one.draw), set()).update(one.scores)
    joined: dict[tuple, Measurement] = {}
    for one in sorted(found, key=lambda one: str(one.receipt.get("written", ""))):
        key = (one.folder, one.protocol, one.draw)
        if one.part == "scores" or one.scores.keys() <= held.get(key, set()):
            continue
        if before := joined.get(key):
            joined[key] = replace(before, row={**before.row, **one.scores}, others=(*before.others, one))
        else:
            joined[key] = one
    return scored + list(joined.values())


def _latest(found: Sequence[Measurement]) -> list[Measurement]:
    """Of the results of one arm the one written last, and with it those seeds alone that were trained alike."""
    kept: dict[tuple, Measurement] = {}
    for one in sorted(found, key=lambda one: str(one.receipt.get("written", ""))):
        kept.pop(one.arm, None)
        kept[one.arm] = one
    newest = {
        one.arm[:-1]: one.row.get("lineage") for one in kept.values()
    }  # of seeds, only those of one configuration
    return [one for one in kept.values() if one.row.get("lineage") == newest[one.arm[:-1]]]


def measured_under(found: Sequence[Measurement], protocol: str) -> list[Measurement]:
    """Those measured under a protocol. UserError for an unknown one, or where there is none of it."""
    kept = [one for one in found if one.receipt.get("protocol") == find_protocol(protocol).name]
    if not kept:
        raise UserError(
            f"nothing was measured under the protocol {protocol}: run `rdd evaluate --protocol {protocol}` first"
        )
    return kept
