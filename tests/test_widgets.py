"""The one widget helper: controls start at the function's defaults and redraw through the function itself."""

import matplotlib.pyplot as plt
import pytest
from ipywidgets import Dropdown, SelectionSlider
from matplotlib.figure import Figure

from rddlib.widgets import explore


def counted():
    """A figure function and the list of arguments it was called with."""
    calls = []

    def bars(height=2, colour="gray"):
        calls.append((height, colour))
        figure = Figure(figsize=(1, 1))
        figure.subplots().bar([0], [height], color=colour)
        return figure

    return bars, calls


def test_a_moved_control_redraws_through_the_function():
    bars, calls = counted()
    *controls, picture = explore(bars, height=range(1, 5), colour=("gray", "black")).children
    assert [type(control) for control in controls] == [SelectionSlider, Dropdown]
    assert calls == [(2, "gray")]
    first = picture.value
    assert bytes(first).startswith(b"\x89PNG")
    controls[0].value = 4
    controls[1].value = "black"
    assert calls == [(2, "gray"), (4, "gray"), (4, "black")]
    assert picture.value != first


def test_going_back_draws_nothing_anew_and_no_figure_stays_open():
    bars, calls = counted()
    control, picture = explore(bars, height=(2, 3)).children
    first = picture.value
    control.value = 3
    control.value = 2
    assert picture.value == first
    assert len(calls) == 2
    assert plt.get_fignums() == []


@pytest.mark.parametrize("controls", [{"width": (1, 2)}, {"height": (5, 6)}])
def test_an_argument_without_a_fitting_default_is_refused(controls):
    with pytest.raises(ValueError, match="needs a default among"):
        explore(counted()[0], **controls)


def test_a_program_gets_a_line_of_text(monkeypatch):
    class Shell:
        class kernel:
            _allow_stdin = False

    monkeypatch.setattr("rddlib.widgets.get_ipython", Shell)
    bars, calls = counted()
    assert "height" in explore(bars, height=(2, 3)).data
    assert calls == []
