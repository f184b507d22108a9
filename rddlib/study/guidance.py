"""Guidance distilled, as measured: scores against its weight, of a study's folder or the published ones on digits."""

import json
from functools import lru_cache

import pandas as pd

from rddlib.study.study import GUIDED_COLUMNS, Study, csv_of, guided_study
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError
from rddlib.utils.installation import shipped

GUIDED_FILE = "guided.csv"
RECEIPTS_FILE = "guided_receipts.json"
PUBLISHED, PUBLISHED_RECEIPTS = "data/results/digits_guided.csv", "data/results/digits_guided_receipts.json"


def guided_results(study: Study) -> pd.DataFrame:
    """Every arm of every seed, with GUIDED_COLUMNS (pfd empty where the profile does not measure it), also written to
    guided.csv, its receipts beside it; what is missing is trained."""
    studies = [guided_study(study, seed) for seed in study.profile.seeds]
    table = pd.concat([guided.results() for guided in studies], ignore_index=True)
    receipts = {
        guided.score_path(arm).stem: guided.measured(arm)["receipt"] for guided in studies for arm in guided.arms()
    }
    write_atomically(study.out / GUIDED_FILE, csv_of(table))
    write_atomically(study.out / RECEIPTS_FILE, json.dumps(receipts, indent=1) + "\n")
    return table


def guided_done(study: Study) -> bool:
    """Whether every arm has been measured."""
    studies = guided_studies(study)
    return bool(studies) and all(guided.score_path(arm).exists() for guided in studies for arm in guided.arms())


def guided_studies(study: Study) -> list[Study]:
    """One for each seed; none where there is nothing to guide."""
    try:
        return [guided_study(study, seed) for seed in study.profile.seeds]
    except UserError:  # no classes, or a given teacher without a place for the weight
        return []


@lru_cache
def published() -> tuple[pd.DataFrame, str]:
    """What was measured on digits with several seeds: (rows with GUIDED_COLUMNS, the FID's full name by their receipts)."""
    receipts = json.loads(shipped(PUBLISHED_RECEIPTS).read_text(encoding="utf-8"))
    return pd.read_csv(shipped(PUBLISHED))[GUIDED_COLUMNS], next(iter(receipts.values()))["metric"]
