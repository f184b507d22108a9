"""The papers' tables and the peers' scores, held to the printed numbers and to each other."""

import csv
import tomllib
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
from rddlib.utils.errors import UserError

TOP = Path(__file__).resolve().parents[2]
# FID / IS as printed in Feng et al. 2024, Tables 1 and 2
RDD_TABLES = {
    "rdd_table1": {
        1: {"PD": "15.06/7.88", "PD+LPIPS": "8.95/8.51", "RCFD": "8.92/8.87", "RDD": "8.16/8.95"},
        2: {"PD": "7.42/8.70", "PD+LPIPS": "5.70/8.90", "RCFD": "5.07/9.19", "RDD": "4.78/9.17"},
        4: {"PD": "4.83/9.04", "PD+LPIPS": "4.45/9.11", "RCFD": "3.80/9.34", "RDD": "3.73/9.35"},
        8: {"PD": "4.14/9.14", "DDIM": "20.97/8.14"},
        10: {"PNDM": "7.05/"},
        12: {"DPM-Solver": "4.65/"},
        1024: {"DDIM": "3.78/9.21"},
    },
    "rdd_table2": {
        1: {"PD": "16.88/18.87", "PD+LPIPS": "14.59/19.63", "RCFD": "13.44/22.88", "RDD": "11.97/23.12"},
        2: {"PD": "12.81/19.94", "PD+LPIPS": "11.23/20.49", "RCFD": "9.54/23.20", "RDD": "8.90/23.23"},
        4: {"PD": "9.44/21.09", "PD+LPIPS": "9.46/21.13", "RCFD": "8.08/22.63", "RDD": "7.92/22.81"},
        8: {"PD": "8.80/21.39", "DDIM": "20.72/19.35"},
        128: {"DDIM": "8.95/21.02"},
        1024: {"DDIM": "8.46/21.65"},
    },
}
PEERS = {
    "cifar10": {
        "PD": "8.34/5.58/3.00",
        "CD-LPIPS": "3.55/2.93",
        "TRACT": "3.78/3.32",
        "iCT-deep": "2.51/2.24",
        "ECT": "3.60/2.11",
        "CTM": "1.98/1.87",
        "DMD": "3.77",
        "SiD": "1.92",
        "sCT": "2.85/2.06",
        "IMM": "3.20/1.98",
        "MeanFlow": "2.92",
        "GDD-I": "1.54",
    },
    "imagenet64": {
        "PD": "15.39/8.95/6.77",
        "PD+LPIPS": "7.88/5.74/4.92",
        "CD-LPIPS": "6.20/4.70",
        "TRACT": "7.43/4.97",
        "iCT-deep": "3.25/2.77",
        "ECT": "2.49/1.67",
        "CTM": "1.92/1.73",
        "DMD2": "1.28",
        "SiD": "1.52",
        "sCT": "2.04/1.48",
        "GDD-I": "1.16",
    },
}


def printed(name):
    """The rows of a CSV file as text, digit for digit."""
    with (TOP / "data" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def pairs(rows):
    """{(steps, method and classifier): "FID/IS"}."""
    return {(int(r["steps"]), r["method"], r["classifier"]): f"{r['fid']}/{r['is']}" for r in rows}


def fid(table, **wanted):
    rows = table
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1, wanted
    return float(rows["fid"].iloc[0])


@pytest.mark.parametrize("name", RDD_TABLES)
def test_rdds_tables_hold_the_printed_digits(name):
    found = {(steps, method): scores for (steps, method, _), scores in pairs(printed(f"papers/{name}.csv")).items()}
    expected = {(steps, method): s for steps, row in RDD_TABLES[name].items() for method, s in row.items()}
    assert found == expected and len(printed(f"papers/{name}.csv")) == len(expected)


def test_rdds_loss_ablation_follows_its_prose():
    rows = printed("papers/rdd_table3.csv")
    assert [(r["loss"], r["fid"]) for r in rows] == [
        ("PD", "15.06"),
        ("CFD", "8.92"),
        ("CFD+II_P2P", "8.45"),
        ("CFD+IS_P2P", "8.35"),
        ("CFD+M_P2P", "8.47"),
        ("CFD+IS_P2P+M_P2P", "8.16"),
    ]
    gains = [round(8.92 - float(r["fid"]), 2) for r in rows[2:]]
    assert gains == [0.47, 0.57, 0.45, 0.76]  # section 5.3
    first, table1 = paper_table("rdd_table3"), paper_table("rdd_table1")
    for method in ("PD", "RCFD", "RDD"):
        assert fid(first, method=method) == fid(table1, method=method, steps=1)


def test_rcfds_tables_hold_the_printed_digits():
    assert pairs(printed("papers/rcfd_table1.csv")) == {
        (1, "RCFD", "DenseNet201"): "8.92/8.87",
        (1, "RCFD", "ResNet18"): "12.03/8.56",
        (1, "PD", ""): "15.06/7.88",
        (2, "RCFD", "DenseNet201"): "5.07/9.19",
        (2, "RCFD", "ResNet18"): "6.12/9.09",
        (2, "PD", ""): "7.42/8.70",
        (4, "RCFD", "DenseNet201"): "3.80/9.34",
        (4, "RCFD", "ResNet18"): "4.24/9.24",
        (4, "PD", ""): "4.83/9.04",
        (8, "PD", ""): "4.14/9.14",
        (8, "DDIM", ""): "20.97/8.14",
        (10, "PNDM", ""): "7.05/",
        (12, "DPM-Solver", ""): "4.65/",
        (1024, "DDIM", ""): "3.78/9.21",
    }
    assert {r["loss"]: f"{r['fid']}/{r['is']}" for r in printed("papers/rcfd_table2.csv")} == {
        "CFD": "4.42/9.14",
        "entropy": "330.27/2.18",
        "diversity": "308.61/1.22",
        "entropy+diversity": "92.07/5.87",
        "CFD+entropy+diversity": "4.24/9.24",
        "PD": "4.83/9.04",
    }
    table3 = {
        (r["classifier"], r["classifier_data"]): f"{r['fid']}/{r['is']}" for r in printed("papers/rcfd_table3.csv")
    }
    assert table3 == {
        ("ResNet18", "CIFAR-10"): "4.42/9.14",
        ("ResNet50", "CIFAR-10"): "4.24/9.16",
        ("DenseNet201", "CIFAR-10"): "3.80/9.34",
        ("ResNet50", "ImageNet"): "4.62/9.05",
    }


def test_rdds_table_1_copies_rcfds():
    rdd, rcfd = pairs(printed("papers/rdd_table1.csv")), pairs(printed("papers/rcfd_table1.csv"))
    shared = rdd.keys() & rcfd.keys()
    assert {key[1] for key in shared} == {"PD", "RCFD", "DDIM", "PNDM", "DPM-Solver"} and len(shared) == 11
    assert {key: rdd[key] for key in shared} == {key: rcfd[key] for key in shared}
    copies = {
        (int(r["steps"]), r["method"], r["classifier"])
        for r in printed("papers/rdd_table1.csv")
        if "as in" in r["note"]
    }
    assert copies == shared


def test_rcfds_tables_agree_with_each_other():
    first, second, third = (paper_table(f"rcfd_table{n}") for n in (1, 2, 3))
    assert fid(second, loss="CFD") == fid(third, classifier="ResNet18")
    assert fid(second, method="RCFD") == fid(first, classifier="ResNet18", steps=4)
    assert fid(second, method="PD") == fid(first, method="PD", steps=4)
    assert fid(third, classifier="DenseNet201") == fid(first, classifier="DenseNet201", steps=4)


@pytest.mark.parametrize(
    "table, worse, better, gains",
    [
        ("rdd_table1", "RCFD", "RDD", [0.76, 0.29, 0.07]),  # section 5.2, Feng et al. 2024
        ("rdd_table2", "RCFD", "RDD", [1.47, 0.64, 0.16]),
        ("rcfd_table1", "PD", "RCFD", [6.14, 2.35, 1.03]),  # section 4.2, Sun et al. 2023
    ],
)
def test_gains_are_those_that_the_prose_states(table, worse, better, gains):
    rows = paper_table(table)
    dense = rows[rows["classifier"] != "ResNet18"]
    found = [fid(dense, method=worse, steps=n) - fid(dense, method=better, steps=n) for n in (1, 2, 4)]
    assert [round(gain, 2) for gain in found] == gains


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_same_columns_and_names_its_source(name):
    table, paper = paper_table(name), "Feng et al. 2024" if name.startswith("rdd") else "Sun et al. 2023"
    assert list(table.columns) == TABLE_COLUMNS
    assert set(table["source"]) == {f"Table {name[-1]}, {paper}"}
    assert (table["fid"] > 0).all() and (table["steps"] >= 1).all()
    terms = {term for loss in table["loss"] for term in loss.split("+")}
    assert terms <= {"", "PD", "LPIPS", "CFD", "entropy", "diversity", "II_P2P", "IS_P2P", "M_P2P"}


@pytest.mark.parametrize(
    "paper, figure, quantity, values",
    [
        ("rdd", "7a", "tau_IS, best", ["0.7", "0.9"]),
        ("rdd", "7b", "tau_M, best", ["0.4"]),
        ("rdd", "8a", "N_q, best", ["20000"]),
        ("rdd", "8b", "V, best", ["2048"]),
        ("rdd", "9a", "alpha, best", ["0.8"]),
        ("rdd", "9b", "beta, best", ["0.3"]),
        ("rcfd", "2", "images averaged", ["4096"]),
        ("rcfd", "2", "steps of the sampler", ["8"]),
        ("rcfd", "4", "tau better than PD, from", ["0.9"]),
        ("rcfd", "4", "tau better than PD, to", ["1"]),
    ],
)
def test_figures_values_are_those_of_the_text(paper, figure, quantity, values):
    table = figure_values(paper)
    assert list(table.columns) == FIGURE_COLUMNS and all(table["source"])
    assert list(table[(table["figure"] == figure) & (table["quantity"] == quantity)]["value"]) == values


def test_what_figures_call_used_elsewhere_is_the_profiles_value():
    from rddlib.study.profiles import load_profile

    used = figure_values("rdd").query("quantity.str.contains('used elsewhere')")
    found = {row.quantity.split(",")[0]: float(row.value) for row in used.itertuples()}
    loss = load_profile("cifar10").loss
    assert found == {"tau_IS": loss.tau_is, "tau_M": loss.tau_m, "alpha": loss.alpha, "beta": loss.beta}


def test_dotted_lines_of_rcfds_figures_are_its_tables():
    lines = figure_values("rcfd").query("quantity.str.contains('line')")
    assert set(lines["value"]) == {"4.83", "4.42"}
    assert fid(paper_table("rcfd_table1"), method="PD", steps=4) == 4.83
    assert fid(paper_table("rcfd_table2"), method="CFD") == 4.42


def test_paper_rows_hold_each_result_once():
    cifar, imagenet = paper_rows("cifar10"), paper_rows("imagenet64")
    assert len(cifar) == 20 and len(imagenet) == 16
    assert not cifar.duplicated(["steps", "method", "classifier"]).any()
    assert set(cifar["dataset"]) == {"cifar10"} and set(imagenet["dataset"]) == {"imagenet64"}
    assert fid(cifar, classifier="ResNet18", steps=1) == 12.03
    assert cifar["is"].isna().sum() == 2  # PNDM and DPM-Solver


@pytest.mark.parametrize("dataset", PEERS)
def test_peers_scores_are_the_recorded_ones(dataset):
    rows = [row for row in printed("peers.csv") if row["dataset"] == dataset]
    found = {(row["method"], int(row["steps"])): row["fid"] for row in rows}
    expected = {
        (method, steps): fid
        for method, fids in PEERS[dataset].items()
        for steps, fid in zip((1, 2, 4), fids.split("/"), strict=False)
    }
    assert found == expected and len(rows) == len(expected)


@pytest.mark.parametrize("dataset", PEERS)
def test_peers_say_what_made_them_or_that_it_is_not_verified(dataset):
    peers = peer_rows(dataset)
    assert list(peers.columns) == PEER_COLUMNS and all(peers["source"].str.contains("arXiv"))
    assert set(peers["gan_loss"]) <= {"yes", "no"}
    assert set(peers["conditioning"]) <= {"", "unconditional" if dataset == "cifar10" else "class-conditional"}
    for row in peers.itertuples():
        known = row.network and row.conditioning and row.parameters_millions > 0
        assert known or "not verified" in row.note, row
        assert row.network or not row.parameters_millions > 0, row
    assert set(peers[peers["gan_loss"] == "yes"]["method"]) == {"CTM", "GDD-I"} | (
        {"DMD2"} if dataset == "imagenet64" else set()
    )


def test_peers_of_one_network_have_one_size():
    peers = [*peer_rows("cifar10").itertuples(), *peer_rows("imagenet64").itertuples()]
    sizes = {(row.network, row.parameters_millions) for row in peers if row.parameters_millions > 0}
    assert sizes == {
        ("NCSN++", 56.4),
        ("DDPM++", 55.7),
        ("ADM", 295.9),
        ("EDM2-XL", 1119.4),
        ("EDM2-XL, modified", 1119.4),
    }


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: paper_rows("digits"), "choose one of cifar10, imagenet64"),
        (lambda: peer_rows("imagenet"), "choose one of cifar10, imagenet64"),
        (lambda: paper_table("rdd_table4"), "known are rdd_table1"),
        (lambda: figure_values("pd"), f"known are {', '.join(PAPERS)}"),
    ],
)
def test_unknown_names_are_refused_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_all_of_it_ships():
    shipped = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "force-include"
    ]
    for source in ("data/papers", "data/peers.csv"):
        assert shipped[source] == f"rddlib/_shipped/{source}" and (TOP / source).exists()
    names = {path.stem for path in (TOP / "data/papers").glob("*.csv")}
    assert names == {*TABLES, "rdd_figures", "rcfd_figures"}
