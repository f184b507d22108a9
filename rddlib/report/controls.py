"""Controls under the notebooks' figures: each redraws its figure by the very function that drew the static one above."""

import gc
import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import lru_cache

import ipywidgets
from IPython import get_ipython
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from rddlib.report.figures import to_png

NOTE = "*In JupyterLab, sliders for {names} appear here and redraw the figure above.*"

# A saved notebook keeps an output that names a widget by its id, but the widget is gone with its kernel, and JupyterLab
# prints an error in its place. The output below is saved right before that one: its style hides a view without a widget in
# it, and the line of text shows only where the view is hidden.
GONE = """<style>
.jp-OutputArea-child:has(.rdd-gone) + .jp-OutputArea-child:not(:has(.jupyter-widgets > *)),
.jp-OutputArea-child:has(.rdd-gone):has(+ .jp-OutputArea-child .jupyter-widgets > *) {{ display: none }}
</style><em class="rdd-gone">{words}</em>"""


class Live(ipywidgets.VBox):
    """Widgets in a column. In a saved notebook a line of text, `gone`, takes their place until the cell runs again."""

    gone = "Run this cell to see what it shows."

    def _ipython_display_(self) -> None:
        display(HTML(GONE.format(words=self.gone)))
        view = self._repr_mimebundle_()
        display(view | {"text/plain": ""}, raw=True)  # where no widget can be shown, the line above says enough


def explore(figure: Callable[..., Figure], **controls: Sequence) -> Live | Markdown:
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
        return to_png(figure(**dict(zip(named, values, strict=True))), dpi=100, quick=True)

    def redraw(_change=None) -> None:
        with _uncollected():
            picture.value = drawn(*(control.value for control in named.values()))

    for control in named.values():
        control.observe(redraw, names="value")
    redraw()
    box = ipywidgets.Layout(align_items="flex-start")  # else the picture is stretched to the page's width
    column = Live([*named.values(), picture], layout=box)
    column.gone = f"Run this cell for sliders ({', '.join(named)}) that redraw the figure above."
    return column


@contextmanager
def _uncollected():
    """Garbage collection waits: with torch loaded a full one takes longer than a picture, so it comes after the answer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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
