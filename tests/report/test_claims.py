"""Claims about ablations against tables whose answer is known."""

import math

import pandas as pd
import pytest

from rddlib.report.claims import (
    CLAIMS,
    HOLDS,
    ON_AVERAGE,
    REVERSED,
    REVERSED_ON_AVERAGE,
    SAME,
    UNDECIDED,
    UNMEASURED,
    as_markdown,
    told,
    verdict,
    verdicts,
)
from rddlib.study.ablation_results import measured
from rddlib.study.ablations import ABLATIONS
from rddlib.study.profiles import load_profile
from rddlib.study.study import Study
from rddlib.study.sweep import COLUMNS, Sweep
from rddlib.utils.errors import UserError


def table_of(name, fid, pfd=lambda *_: math.nan, seeds=3, profile="digits", steps=(4,)):
    """Rows of an ablation; fid(setting, seed) and pfd(setting, seed) say the scores, at every number of steps."""
    rows = []
    for s in ABLATIONS[name].settings(load_profile(profile)):
        facts = {"ablation": name, "setting": s.name, "series": s.series, "x": s.x, "method": s.method}
        facts["peak_mib"] = 10 * (s.x or 1) * (2 if s.series == "reference" else 1)
        for seed in range(seeds):
            scores = {"seed": seed, "fid": fid(s, seed), "pfd": pfd(s, seed)}
            rows += [facts | scores | {"steps": n} for n in steps]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(
    "differences, said",
    [
        ([[-1], [-2], [-0.1]], HOLDS),
        ([[1], [2], [0.1]], REVERSED),
        ([[-1], [2], [-3]], UNDECIDED),
        ([[-1], [0.0]], UNDECIDED),
        ([[-3, 1], [-2, 1]], ON_AVERAGE),
        ([[3, -1], [2, -1]], REVERSED_ON_AVERAGE),
        ([[-3, 1], [-1, 3]], UNDECIDED),
        ([[0.0], [0.0]], SAME),
    ],
)
def test_a_verdict_needs_every_seed(differences, said):
    assert verdict(pd.DataFrame(differences)) == said


def test_a_claim_is_judged_by_pairs_of_the_same_seed():
    """Seeds differ by far more than settings do: pairing must take that out."""
    table = table_of("alpha", lambda s, seed: 10 * seed + (5 if s.name == "CFD" else 4 + (s.x or 0) / 1e3))
    (row,) = verdicts("alpha", table).itertuples()
    weights = (0.2, 0.5, 0.8, 1, 10, 100)
    assert row.verdict == HOLDS and row.pairs == "18 of 18" and row.seeds == 3
    assert row.difference == pytest.approx(sum(weights) / 6 / 1e3 - 1) and row.spread == pytest.approx(0, abs=1e-9)


def test_fid_and_pfd_are_judged_apart():
    better = table_of(
        "rcfd_losses",
        lambda s, seed: {"PD": 5, "CFD": 3}.get(s.name, 2 if "CFD +" in s.name else 90),
        lambda s, seed: {"PD": 1, "CFD": 2}.get(s.name, 3 + seed),
    )
    found = verdicts("rcfd_losses", better)
    assert list(found["verdict"]) == [HOLDS, HOLDS, HOLDS, REVERSED] and list(found["score"]) == ["FID", "pFD"] * 2
    head, _, _, last = as_markdown(found).splitlines()
    assert head == "| claim | by FID | by pFD |"
    claim = found["claim"].iloc[-1]
    assert last == f"| {claim} | **holds**: -1 ± 0 (3 of 3) | **reversed**: +2 ± 1 (0 of 3) |"


def test_the_fewest_steps_decide():
    table = table_of("losses", lambda s, seed: {"PD": 9, "CFD": 8}.get(s.name, 7), steps=(4, 2, 1))
    table.loc[table["steps"] > 1, "fid"] = 100.0 - table["fid"]
    assert verdicts("losses", table).iloc[0]["verdict"] == HOLDS


def test_memory_is_judged_by_memory():
    found = verdicts("batch", table_of("batch", lambda s, seed: 5 - s.x / 100))
    assert len(found) == 3 and (found["verdict"] == HOLDS).all()  # the claim is that the larger batch takes more
    assert found[found["score"] == "peak memory (MiB)"].iloc[0]["difference"] < 0


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_name_settings_that_exist_and_a_table_just_begun_is_no_evidence(name):
    for profile in ("digits", "cifar10"):
        table = table_of(name, lambda s, seed: 1.0 + (s.name == "PD"), profile=profile)
        found = verdicts(name, table)
        assert len(found) and not (found["verdict"] == UNMEASURED).any(), found
        for kept in (["PD"], ["CFD"], ["PD", "CFD"]):
            begun = table[table["setting"].isin(kept)].assign(x=None)  # as in a table that has no other rows yet
            about_others = verdicts(name, begun).query("claim != 'CFD is better than PD'") if len(begun) else found[:0]
            assert (about_others["verdict"] == UNMEASURED).all(), about_others


def test_what_is_missing_is_said_and_no_seed_is_invented():
    table = table_of("losses", lambda s, seed: 1.0 + seed)
    found = verdicts("losses", table[table["setting"] != "CFD + II_P2P"])
    assert (found["verdict"] == UNMEASURED).sum() == 2  # II beside CFD, and IS against II
    assert as_markdown(found).count("| not measured |") == 2
    assert set(verdicts("tau_is", table_of("tau_is", lambda s, seed: 1.0, seeds=1))["seeds"]) == {1}
    with pytest.raises(UserError, match="rdd ablate losses"):
        verdicts("losses", table[:0])


def test_entropies_are_compared_from_step_count_to_step_count():
    """The teacher's last entropy rises as steps fall, PD's falls; earlier predictions do not count."""
    last = {"teacher": {4: 0.25, 2: 0.5, 1: 1.0}, "PD": {4: 4.0, 2: 2.0, 1: 1.0}}
    rows = [
        {"setting": setting, "seed": seed, "steps": n, "t": (n - k) / n, "entropy": value if k == n - 1 else 9.0}
        for setting, values in last.items()
        for seed in (0, 1)
        for n, value in values.items()
        for k in range(n)
    ]
    found = verdicts("entropy", pd.DataFrame(rows, columns=COLUMNS))
    assert list(found["verdict"]) == [HOLDS, REVERSED]
    assert list(found["pairs"]) == ["2 of 2", "0 of 2"]  # two seeds with one model's numbers are one


def test_a_study_s_own_sweep_comes_before_the_published_one_where_it_is_whole(tmp_path):
    study = Study(load_profile("smoke"), tmp_path)
    published = measured(study, "alpha")
    assert published.source.startswith("data/results") and published.profile.name == "digits"
    assert "*Claimed:*" in told("alpha", published) and "| every weight is better than CFD |" in told(
        "alpha", published
    )
    own, file = table_of("alpha", lambda s, seed: 1.0, seeds=1, profile="smoke"), tmp_path / "ablations/alpha.csv"
    points = Sweep(study, [ABLATIONS["alpha"]], [0]).points
    own["record"] = [path.stem for point in points for path in point.run.paths]
    file.parent.mkdir()
    own.to_csv(file, index=False)
    found = measured(study, "alpha")
    assert len(found.table) == len(own) and found.profile.name == "smoke" and found.source == "ablations/alpha.csv"
    other = Study(load_profile("smoke", {"distill.train.learning_rate": "1e-4"}), tmp_path)
    assert measured(other, "alpha").source == published.source  # made with other numbers
    own[:-1].to_csv(file, index=False)
    assert measured(study, "alpha").source == published.source  # begun, not ended
