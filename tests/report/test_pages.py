"""What a study's page says of its scores, in words and in its figure."""

import re

import pandas as pd
import pytest

from rddlib.report.figures import scores_figure
from rddlib.report.pages import _stages, lowest
from rddlib.study.profiles import load_profile
from rddlib.study.stage import Stage

STUDENTS = {"pd": {4: 2.0, 2: 3.0, 1: 5.0}, "rdd": {4: 1.5, 2: 3.5, 1: 4.0}}


def results(ddim, seeds=(0,)):
    """A table in which each further seed is worse by 1; ddim: {steps: FID}."""
    fids = {**STUDENTS, "ddim": ddim}
    rows = [(name, steps, seed, fid + seed) for name, ns in fids.items() for steps, fid in ns.items() for seed in seeds]
    return pd.DataFrame(rows, columns=["method", "steps", "seed", "fid"]).assign(pfd=float("nan"))


def test_the_lowest_at_each_number_of_steps_is_named_with_the_next():
    profile = load_profile("digits", {"methods": "[pd,rdd]", "seeds": "[0,1]"})
    said = lowest(results({4: 0.1, 1: 520.0}, (0, 1)), profile)
    assert said == (
        "Lowest FID* with 2 seeds: at 4 steps RDD (2.00), then PD (2.50); at 2 steps PD (3.50), then RDD (4.00); "
        "at 1 step RDD (4.50), then PD (5.50)."
    )
    alone = load_profile("digits", {"methods": "[pd]"})
    assert lowest(results({}), alone).endswith("at 1 step PD (5.00). One seed decides nothing close.")


def test_times_count_the_guided_stages_and_say_what_came_with_the_package(tiny, monkeypatch):
    def recorded(stage):
        ships = stage.name in ("base", "pd-8")
        return {"shipped": True, "seconds": 0.0} if ships else {"seconds": 10.0}

    monkeypatch.setattr(Stage, "recorded", recorded)
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", _stages(tiny))
    assert rows[:2] == [("base model", "", "comes with rddlib"), ("PD 16 to 8 steps", "", "comes with rddlib")]
    assert ("RDD 8 to 4 steps", "0", "10") in rows and ("guided: guidance, stage one", "0", "10") in rows
    trained = [row for row in rows if row[2] == "10"]
    assert rows[-1] == ("all training", "", str(10 * len(trained)))


@pytest.mark.parametrize(
    "ddim, beyond, highest",
    [
        ({64: 1.0, 2: 31.5, 1: 1520.0}, {1: "1,520", 2: "31.5"}, 10.0),
        ({64: 1.0, 1: 14.0}, {}, None),
    ],
)
def test_ddim_does_not_squeeze_what_was_trained(ddim, beyond, highest):
    (ax,) = scores_figure(results(ddim), "FID").axes
    assert "lower is better" in ax.get_title()
    assert {text.xy[0]: text.get_text().split("\n")[-1] for text in ax.texts} == beyond
    assert ax.get_ylim()[1] == pytest.approx(highest) if highest else ax.get_ylim()[1] > 14
