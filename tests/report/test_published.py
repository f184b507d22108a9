"""The papers' tables and the peers' scores: unchanged since they were held to print, and in agreement with each other."""

import tomllib
from hashlib import sha256
from pathlib import Path

import pytest

from rddlib.report.published import (
    FIGURE_COLUMNS,
    PAPERS,
    PEER_COLUMNS,
    TABLE_COLUMNS,
    TABLES,
    figure_values,
    paper_rows,
    paper_table,
    peer_rows,
)
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError

TOP = Path(__file__).resolve().parents[2]
# sha256 (first 16 digits) of files that were compared with the printed tables digit by digit, and the FID of a row
CHECKED = {
    "papers/rdd_table1.csv": ("64b02cece14245f7", dict(method="RDD", steps=1), 8.16),
    "papers/rdd_table2.csv": ("634ca44879feba38", dict(method="RDD", steps=1), 11.97),
    "papers/rdd_table3.csv": ("bfde5f455daa39e7", dict(loss="CFD+IS_P2P"), 8.35),
    "papers/rcfd_table1.csv": ("f9fcc26a4f4d9cf9", dict(classifier="ResNet18", steps=1), 12.03),
    "papers/rcfd_table2.csv": ("251341d01a43e9e6", dict(loss="entropy"), 330.27),
    "papers/rcfd_table3.csv": ("17dd7eaca13c9f37", dict(classifier="DenseNet201"), 3.80),
    "papers/rdd_figures.csv": ("49ea90e5be4c2380", None, None),
    "papers/rcfd_figures.csv": ("6089778c8aa4e960", None, None),
    "peers.csv": ("bb1da8d5c1007cb8", None, None),
}


def fid(table, **wanted):
    rows = table
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, wanted
    return float(rows["fid"].iloc[0])


@pytest.mark.parametrize("name", CHECKED)
def test_files_hold_the_printed_digits(name):
    content, (digest, row, value) = (TOP / "data" / name).read_bytes(), CHECKED[name]
    assert sha256(content).hexdigest()[:16] == digest, (
        f"{name} has changed: compare it with print, then note its sha256"
    )
    assert row is None or fid(paper_table(Path(name).stem), **row) == value


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_same_columns_and_names_its_source(name):
    table, paper = paper_table(name), "Feng et al. 2024" if name.startswith("rdd") else "Sun et al. 2023"
    assert list(table.columns) == TABLE_COLUMNS
    assert set(table["source"]) == {f"Table {name[-1]}, {paper}"}
    assert (table["fid"] > 0).all() and (table["steps"] >= 1).all()
    terms = {term for loss in table["loss"] for term in loss.split("+")}
    assert terms <= {"", "PD", "LPIPS", "CFD", "entropy", "diversity", "II_P2P", "IS_P2P", "M_P2P"}


def test_tables_agree_with_each_other():
    rdd, ablation = paper_table("rdd_table1"), paper_table("rdd_table3")
    assert all(fid(ablation, method=name) == fid(rdd, method=name, steps=1) for name in ("PD", "RCFD", "RDD"))
    first, second, third = (paper_table(f"rcfd_table{n}") for n in (1, 2, 3))
    assert fid(second, loss="CFD") == fid(third, classifier="ResNet18")
    assert fid(second, method="RCFD") == fid(first, classifier="ResNet18", steps=4)
    assert fid(second, method="PD") == fid(first, method="PD", steps=4)
    assert fid(third, classifier="DenseNet201") == fid(first, classifier="DenseNet201", steps=4)
    keys = ["steps", "method", "classifier"]
    copied = rdd.merge(first, on=keys, suffixes=("", "_there"))
    assert len(copied) == 11 and copied["note"].str.contains("as in").all()
    assert (copied["fid"] == copied["fid_there"]).all() and copied["is"].equals(copied["is_there"])


def test_figures_say_what_the_text_says():
    for paper in PAPERS:
        table = figure_values(paper)
        assert list(table.columns) == FIGURE_COLUMNS and all(table["source"])
    used = figure_values("rdd").query("quantity.str.contains('used elsewhere')")
    found = {row.quantity.split(",")[0]: float(row.value) for row in used.itertuples()}
    loss = load_profile("cifar10").loss
    assert found == {"tau_IS": loss.tau_is, "tau_M": loss.tau_m, "alpha": loss.alpha, "beta": loss.beta}
    dotted = set(figure_values("rcfd").query("quantity.str.contains('line')")["value"].astype(float))
    pd, cfd = fid(paper_table("rcfd_table1"), method="PD", steps=4), fid(paper_table("rcfd_table2"), method="CFD")
    assert dotted == {pd, cfd} == {4.83, 4.42}


def test_paper_rows_hold_each_result_once():
    cifar, imagenet = paper_rows("cifar10"), paper_rows("imagenet64")
    assert len(cifar) == 20 and len(imagenet) == 16
    assert not cifar.duplicated(["steps", "method", "classifier"]).any()
    assert set(cifar["dataset"]) == {"cifar10"} and set(imagenet["dataset"]) == {"imagenet64"}
    assert cifar["is"].isna().sum() == 2  # PNDM and DPM-Solver


@pytest.mark.parametrize(
    "dataset, count, gan",
    [("cifar10", 29, {"CTM", "GDD-I", "SiD2A"}), ("imagenet64", 28, {"CTM", "GDD-I", "DMD2", "SiDA", "f-distill"})],
)
def test_peers_say_what_made_them_or_that_it_is_not_verified(dataset, count, gan):
    peers = peer_rows(dataset)
    assert list(peers.columns) == PEER_COLUMNS and len(peers) == count and all(peers["source"].str.contains("arXiv"))
    assert not peers.duplicated(["method", "steps"]).any() and set(peers["gan_loss"]) <= {"yes", "no", ""}
    assert set(peers["conditioning"]) <= {"", "unconditional" if dataset == "cifar10" else "class-conditional"}
    for row in peers.itertuples():
        known = row.network and row.conditioning and row.gan_loss and row.parameters_millions > 0
        assert known or "not verified" in row.note, row
        assert row.network or not row.parameters_millions > 0, row
    assert set(peers[peers["gan_loss"] == "yes"]["method"]) == gan
    assert (peers.dropna(subset="parameters_millions").groupby("network")["parameters_millions"].nunique() == 1).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: paper_rows("digits"), "known are cifar10, imagenet64"),
        (lambda: paper_table("rdd_table4"), "known are rdd_table1"),
        (lambda: figure_values("pd"), f"known are {', '.join(PAPERS)}"),
    ],
)
def test_unknown_names_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_all_of_it_ships():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source in ("data/papers", "data/peers.csv"):
        assert shipped[source] == f"rddlib/_shipped/{source}" and (TOP / source).exists()
    names = {path.stem for path in (TOP / "data/papers").glob("*.csv")}
    assert names == {*TABLES, "rdd_figures", "rcfd_figures"}
