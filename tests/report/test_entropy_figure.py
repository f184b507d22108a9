"""The figure of entropies: curves, scales and what it refuses."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from rddlib.report.entropy_figure import entropy_figure
from rddlib.report.figures import to_png
from rddlib.utils.errors import UserError


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def runs(scale=1.0):
    return {n: [scale * (2 - k / n) for k in range(n)] for n in (1, 2, 4, 8)}


def test_figure_draws_each_run_at_its_times_under_the_log_of_the_classes():
    figure = entropy_figure({n: torch.tensor(values) for n, values in runs().items()}, 10, 4096)
    (ax,) = figure.axes
    *curves, limit = ax.lines
    assert [len(curve.get_xdata()) for curve in curves] == [8, 4, 2, 1]
    assert list(curves[1].get_xdata()) == [1, 0.75, 0.5, 0.25] and list(curves[1].get_ydata()) == runs()[4]
    assert set(limit.get_ydata()) == {math.log(10)} and "log 10 = 2.30" in ax.texts[0].get_text()
    assert "nats" in ax.get_ylabel() and "t" in ax.get_xlabel() and "4,096 images" in ax.get_title()
    assert len({(c.get_marker(), c.get_linestyle()) for c in curves}) == 4
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # time runs from noise to the image
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["8: 1.12", "4: 1.25", "2: 1.50", "1: 2.00"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_figure_of_small_entropies_has_a_logarithmic_axis_that_holds_them():
    (ax,) = entropy_figure(runs(0.01), 10, 8).axes
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "log" and 0 < low < 0.01 and high > math.log(10)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_figure_of_large_or_no_entropies_has_a_linear_axis_from_zero(scale):
    (ax,) = entropy_figure(runs(scale), 10, 8).axes
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > math.log(10)


def test_figure_refuses_a_run_with_another_number_of_values_and_none_at_all():
    with pytest.raises(UserError, match="run of 4 steps has 3 entropies: pass one for each step"):
        entropy_figure({4: [1, 1, 1]}, 10, 8)
    with pytest.raises(UserError, match="no run to draw"):
        entropy_figure({}, 10, 8)
