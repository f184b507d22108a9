"""Sliders under the notebooks' figures: each redraws its figure by the very function that drew the static one above."""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache

import ipywidgets
from IPython import get_ipython
from IPython.display import Markdown
from matplotlib.figure import Figure

from rddlib.plots import to_png

NOTE = "*In JupyterLab, sliders for {names} appear here and redraw the figure above.*"


def explore(figure: Callable[..., Figure], **controls: Sequence) -> ipywidgets.VBox | Markdown:
    """A control for each named argument of figure(...), over the picture that it draws; moving one redraws it.

    controls: the values an argument may take, `N=range(1, 65)` or `tau=(0.5, 1.0)`; words become a menu, all else a
    slider. Each starts at the argument's default. Pictures are kept, so going back to one is immediate. A notebook that
    a program executes gets a line of text instead, since nobody is there to move anything.
    Raises ValueError where figure has no such argument, or its default is none of the values.
    """
    if _nobody_watches():
        return Markdown(NOTE.format(names=", ".join(controls)))
    named = {name: _control(figure, name, values) for name, values in controls.items()}
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", object_fit="contain"))

    @lru_cache(maxsize=256)
    def drawn(*values) -> bytes:
        return to_png(figure(**dict(zip(named, values, strict=True))), dpi=100)

    def redraw(_change=None) -> None:
        picture.value = drawn(*(control.value for control in named.values()))

    for control in named.values():
        control.observe(redraw, names="value")
    redraw()
    box = ipywidgets.Layout(align_items="flex-start")  # else the picture is stretched to the page's width
    return ipywidgets.VBox([*named.values(), picture], layout=box)


def _control(figure: Callable[..., Figure], name: str, values: Sequence) -> ipywidgets.Widget:
    argument = inspect.signature(figure).parameters.get(name)
    options = list(values)
    if argument is None or argument.default not in options:
        raise ValueError(f"{name} needs a default among {options} in {figure.__name__}{inspect.signature(figure)}")
    if all(isinstance(value, str) for value in options):
        return ipywidgets.Dropdown(options=options, value=argument.default, description=name)
    return ipywidgets.SelectionSlider(options=options, value=argument.default, description=name)


def _nobody_watches() -> bool:
    """Whether papermill or nbconvert executes the notebook: unlike in JupyterLab, such a kernel cannot ask for input."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and not getattr(kernel, "_allow_stdin", True)
