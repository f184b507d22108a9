"""What others have published, as data: every table of the two papers, and the scores of peers; each row names its source.

The files are data/papers/*.csv and data/peers.csv. Nothing here was measured by this project. steps are sampling steps; is
and fid as printed, NaN where a table has none; the rest is text, empty where not stated.
"""

import pandas as pd

from rddlib.utils.errors import check_known
from rddlib.utils.installation import shipped

DATASETS = ("cifar10", "imagenet64")
PAPERS = ("rdd", "rcfd")  # Feng et al. 2024 (10.1145/3664647.3680768), Sun et al. 2023 (arXiv 2211.12039)
TABLES = tuple(f"{paper}_table{number}" for paper in PAPERS for number in (1, 2, 3))
TABLE_COLUMNS = ["dataset", "steps", "method", "classifier", "classifier_data", "loss", "is", "fid", "source", "note"]
FIGURE_COLUMNS = ["figure", "dataset", "steps", "method", "quantity", "value", "source", "note"]
PEER_FACTS = ["network", "parameters_millions", "conditioning", "gan_loss"]
PEER_COLUMNS = ["dataset", "method", "steps", "fid", *PEER_FACTS, "source", "note"]


def paper_table(name: str) -> pd.DataFrame:
    """One table of the papers, by name ("rdd_table1" .. "rcfd_table3"), with TABLE_COLUMNS.

    classifier_data: what the classifier was trained on; loss: the terms that a student minimised. UserError for an
    unknown name.
    """
    check_known("table", name, TABLES)
    return _read(f"data/papers/{name}.csv")


def figure_values(paper: str) -> pd.DataFrame:
    """What the text of a paper ("rdd" or "rcfd") states about its figures, with FIGURE_COLUMNS.

    value is text: a number, or a word where the text gives none. UserError for an unknown paper.
    """
    check_known("paper", paper, PAPERS)
    return _read(f"data/papers/{paper}_figures.csv")


def paper_rows(dataset: str) -> pd.DataFrame:
    """The papers' results on one of DATASETS, with TABLE_COLUMNS, each once. UserError for another data set.

    RDD's Table 1 or 2; on CIFAR-10 then RCFD with ResNet18, which RDD's table does not repeat.
    """
    check_known("published data set", dataset, DATASETS)
    if dataset == "imagenet64":
        return paper_table("rdd_table2")
    other = paper_table("rcfd_table1").query("classifier == 'ResNet18'")
    return pd.concat([paper_table("rdd_table1"), other], ignore_index=True)


def peer_rows(dataset: str) -> pd.DataFrame:
    """Peers' results on one of DATASETS, with PEER_COLUMNS. UserError for another data set.

    They are of other networks at other budgets. network, parameters_millions (NaN), conditioning and gan_loss ("yes",
    "no") are empty where they could not be verified; note says how they were.
    """
    check_known("published data set", dataset, DATASETS)
    return _read("data/peers.csv").query("dataset == @dataset").reset_index(drop=True)


def _read(file: str) -> pd.DataFrame:
    """A CSV file that ships with the project: numbers as numbers, the rest as text, "" for an empty cell."""
    table = pd.read_csv(shipped(file), dtype=str, keep_default_na=False)
    table["steps"] = table["steps"].astype(int)
    for column in table.columns.intersection(["is", "fid", "parameters_millions"]):
        table[column] = pd.to_numeric(table[column])
    return table
