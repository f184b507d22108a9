"""Ablations as they were measured: in a study's folder, or the published ones on digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from rddlib.study.ablations import ABLATIONS
from rddlib.study.costs import known_costs
from rddlib.study.profiles import PROFILES, Profile, changed
from rddlib.study.study import Study
from rddlib.study.sweep import ABLATIONS_FOLDER, COLUMNS, Sweep
from rddlib.utils.errors import UserError
from rddlib.utils.installation import shipped

PUBLISHED = {  # files of published rows, with what was set when they were measured
    "data/results/digits_ablations.csv": {"distill.iterations": "[75, 75, 150]"},  # half, for time's sake
    "data/results/digits_balance.csv": {"extractor.seed": "9"},  # and seed 100: neither is used for evidence
    "data/results/digits_evidence.csv": {},
    "data/results/digits_label_free.csv": {},
}
PUBLISHED_METRIC = "FID (digits metric network, 5000 samples)"


@dataclass(frozen=True)
class Measured:
    """The rows of one ablation, with the profile, the FID's full name and the file that they come from."""

    table: pd.DataFrame
    profile: Profile
    metric: str
    source: str


def measured(study: Study, name: str) -> Measured:
    """An ablation's rows from the study's own sweep, where that is whole and of the study's numbers, else the published ones.

    Raises UserError where neither has any.
    """
    own = study.out / ABLATIONS_FOLDER / f"{name}.csv"
    if own.exists() and name in ABLATIONS:
        rows = read_table(own)
        if len(rows) and set(rows["record"]) == _records(study, name, sorted(rows["seed"].unique())):
            return Measured(rows, study.profile, study.metric, f"{ABLATIONS_FOLDER}/{name}.csv")
    for source, changes in PUBLISHED.items():
        rows = published(source)
        rows = rows[rows["ablation"] == name].reset_index(drop=True)
        if len(rows):
            return Measured(rows, changed(PROFILES["digits"](), changes), PUBLISHED_METRIC, source)
    raise UserError(f"nothing of the ablation {name} has been measured: run rdd ablate {name}")


def _records(study: Study, name: str, seeds: Sequence[int]) -> set[str]:
    """The records that a whole table of this ablation has."""
    points = Sweep(
        study, [ABLATIONS[name]], [int(seed) for seed in seeds], known_costs(study.profile, study.out)
    ).points
    return {path.stem for point in points for path in point.run.paths}


@lru_cache
def published(source: str = next(iter(PUBLISHED))) -> pd.DataFrame:
    """Published ablations on digits, of one of the files of PUBLISHED, with rddlib.study.sweep.COLUMNS; their receipts lie
    beside it."""
    return read_table(shipped(source))


def search() -> pd.DataFrame:
    """What was tried on digits before the sums of the package were chosen: a row for each sum, extractor and number of steps,
    with seed 100; neither seed nor extractors are used for the evidence. Made by docs/search.py, receipts beside it."""
    return pd.read_csv(shipped("data/results/digits_search.csv"))


def by_pair(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of the ablation `evidence` as {"fid", "pfd"}: a line for each (steps, extractor, seed), a column for each method.

    What looks through no extractor has the same value beside all of them.
    """
    named = table["setting"].str.extract(r"^(?P<method>.*?)(?:, extractor (?P<extractor>\d+))?$")
    rows = table.assign(method=named["method"], extractor=pd.to_numeric(named["extractor"]))
    through = rows.dropna(subset="extractor").astype({"extractor": int})
    without = [rows[rows["extractor"].isna()].assign(extractor=seed) for seed in sorted(through["extractor"].unique())]
    rows, lines = pd.concat([through, *without]), ["steps", "extractor", "seed"]
    return {score: rows.pivot(index=lines, columns="method", values=score) for score in ("fid", "pfd")}


def read_table(path: Path) -> pd.DataFrame:
    """A sweep's table. Raises UserError where it is none."""
    try:
        table = pd.read_csv(path, dtype={"series": str})
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table: delete it, rdd ablate writes it again") from error
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}: delete it, rdd ablate writes it again")
    return table.assign(series=table["series"].fillna(""))
