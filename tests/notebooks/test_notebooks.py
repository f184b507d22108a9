"""The notebooks as a reader meets them, and the links of everything written in Markdown."""

import ast
import base64
import io
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from figure_faults import faults
from PIL import Image

from rddlib.report.notebooks import LATENT

TOP = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((TOP / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
IN_A_STUDY = [path for path in NOTEBOOKS if path.name[:2] != LATENT]  # test_latent_notebook.py executes that one
each_executed_notebook = pytest.mark.parametrize("notebook", IN_A_STUDY, ids=lambda path: path.stem)


def cells_of(notebook: Path) -> list:
    return nbformat.read(notebook, as_version=4).cells


def code_of(cells: list) -> list[str]:
    return [cell.source for cell in cells if cell.cell_type == "code"]


def prose_of(cells: list) -> str:
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


# --- sources ---


@each_notebook
def test_a_notebook_is_clean_and_opens_with_a_question_and_its_parameters(notebook):
    read = nbformat.read(notebook, as_version=4)
    code = [cell for cell in read.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert read.metadata.kernelspec.name == "python3"  # else JupyterLab asks for one
    first = read.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(rf"# {notebook.name[:2]} · .+\n\n\*\*Question\.\*\* [^\n]*\?", first.source), first.source[:200]
    (tagged,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged is code[0]
    assert re.findall(r"^(\w+) =", tagged.source, flags=re.M) == ["profile", "seed", "out"]


@each_notebook
def test_no_cell_is_longer_than_25_lines(notebook):
    long = [source.splitlines() for source in code_of(cells_of(notebook)) if len(source.splitlines()) > 25]
    assert not long, [f"{len(lines)} lines from: {lines[0]}" for lines in long]


@each_notebook
def test_equations_are_cited_by_number_and_source(notebook):
    prose = prose_of(cells_of(notebook))
    assert re.search(r"\bEq\. \d", prose) and re.search(r"Feng et al\. 2024|Sun et al\. 2023", prose)


@each_notebook
def test_three_exercises_hide_their_solutions(notebook):
    from nbconvert.filters import markdown2html_mistune

    exercises = prose_of(cells_of(notebook)).split("\n## Exercises\n")[1]
    numbers = re.findall(r"^(\d+)\. \*\*", exercises, flags=re.M)
    assert numbers == ["1", "2", "3"]
    page = markdown2html_mistune(exercises)
    hidden = re.findall(r"<details>\s*<summary>Solution</summary>(.*?)</details>", page, flags=re.S)
    assert len(hidden) == len(numbers)
    # Without an empty line above <details> it opens inside the list, closes with it, and shows the solution to all.
    assert all(solution.count("</li>") == solution.count("<li") for solution in hidden), "an empty line above <details>"
    assert all(len(re.sub(r"<[^>]+>|\s", "", solution)) > 20 for solution in hidden)


@each_notebook
def test_widgets_stand_below_the_static_figure_of_the_same_function(notebook):
    code = code_of(cells_of(notebook))
    for place, source in enumerate(code):
        if not re.search(r"^explore\(", source, flags=re.M):
            continue
        call = ast.parse(source).body[-1].value
        function = call.args[0].id
        last = ast.parse(code[place - 1]).body[-1]
        above = last.value.func if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) else None
        assert call.func.id == "explore", f"explore(...) is the last line of its cell: {source}"
        assert isinstance(above, ast.Name) and above.id == function, f"no {function}(...); right above: {source}"


# --- what the smoke study drew ---


@each_executed_notebook
def test_executed_notebooks_show_pictures_that_are_not_blank(notebook, smoke_run):
    outputs = [
        (cell.source, output)
        for cell in cells_of(smoke_run[0] / "notebooks" / notebook.name)
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert not [source for source, output in outputs if output.output_type == "error"]
    pictures = [(source, o.data["image/png"]) for source, o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    for source, data in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
        assert pixels.min() < 100 and pixels.max() > 200 and min(pixels.shape) > 50, source


@each_executed_notebook
def test_pages_hide_the_solutions(notebook, smoke_run):
    page = (smoke_run[0] / "notebooks" / notebook.with_suffix(".html").name).read_text()
    hidden = re.findall(r"<details>\s*<summary>Solution</summary>(.*?)</details>", page, flags=re.S)
    assert len(hidden) == 3 and all(len(re.sub(r"<[^>]+>|\s", "", solution)) > 20 for solution in hidden)


@each_executed_notebook
def test_figures_have_titles_labels_and_units_and_are_readable_in_gray(notebook, smoke_run, smoke_figures):
    own = code_of(cells_of(notebook))
    drawn = [figure for figure in smoke_figures if figure["cell"] in own]
    shown = sum(
        "image/png" in output.get("data", {})
        for cell in cells_of(smoke_run[0] / "notebooks" / notebook.name)
        for output in cell.get("outputs", [])
    )
    assert len(drawn) >= shown > 0
    missing = [f"{figure['cell'].splitlines()[-1]}: {fault}" for figure in drawn for fault in figure["faults"]]
    assert not missing, "\n".join(missing)


def test_the_reports_figures_have_titles_labels_and_units_and_are_readable_in_gray(smoke_run):
    import pandas as pd

    from rddlib.report.figures import comparison_figure, scores_figure
    from rddlib.report.tables import comparison, panels, read_measurements

    tables = comparison(read_measurements([smoke_run[0]]), "all", True)
    assert faults(comparison_figure(panels(tables))) == []
    assert faults(scores_figure(pd.read_csv(smoke_run[0] / "results.csv"), "FID (digits metric network)")) == []
    plt.close("all")


@pytest.mark.parametrize(
    "draw, fault",
    [
        (lambda ax: ax.set(title=""), "has a title"),
        (lambda ax: ax.set(ylabel=""), "no label on the y axis"),
        (lambda ax: ax.set(ylabel="entropy (something)"), "in nats"),
        (lambda ax: ax.set(ylabel="speed"), "no unit"),
        (lambda ax: ax.plot([1, 3], label="b", color="0.25"), "look alike in gray"),
        (lambda ax: ax.errorbar([0], [1], yerr=[1], label="b", color="#00449f"), "look alike in gray"),
        (lambda ax: ax.scatter([0], [1], c=[1.0], cmap="jet"), "jet"),
        (lambda ax: ax.imshow([[0, 1]], cmap="RdBu"), "RdBu"),
        (lambda ax: [ax.hist([1, 2], histtype="step", label=n, color="0.2") for n in "bc"], "'b' and 'c' look alike"),
        (lambda ax: [ax.scatter([0], [i], label=i, color=c) for i, c in (("b", "red"), ("c", "green"))], "look alike"),
    ],
)
def test_a_fault_in_a_figure_is_found(draw, fault):
    figure, ax = plt.subplots()
    ax.plot([1, 2], label="a", color="0.2")
    ax.plot([2, 2], label="other dash", color="0.2", linestyle="--")
    ax.plot([2, 1], label="other gray", color="0.6")
    ax.set(title="title", xlabel="time t", ylabel="loss (nats)")
    assert faults(figure) == []
    draw(ax)
    found = faults(figure)
    plt.close(figure)
    assert len(found) == 1 and fault in found[0], found


# --- links ---

DOCUMENTS = [*sorted(TOP.glob("*.md")), *sorted(TOP.glob("docs/*.md")), TOP / "data/models/README.md", *NOTEBOOKS]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def anchors(text: str) -> set[str]:
    """What headings can be linked as: on GitHub (lower case, no punctuation) and in JupyterLab (spaces as dashes)."""
    headings = re.findall(r"^#+ +(.+?) *#*$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    github = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return github | {heading.replace(" ", "-") for heading in headings} | set(re.findall(r'id="([^"]+)"', text))


def read(document: Path) -> str:
    return prose_of(cells_of(document)) if document.suffix == ".ipynb" else document.read_text()


def broken_links(document: Path) -> list[str]:
    """Links and pictures of a document that lead nowhere; addresses outside are looked at, not asked."""
    text, broken = read(document), []
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", without_code(text))
    named = re.findall(r"^\[[^\]]+\]:\s*(\S+)", without_code(text), flags=re.M)
    marked = re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=\"([^\"]+)\"", without_code(text))
    for link in [*inline, *named, *marked]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme not in ("https", "mailto") or (parts.scheme == "https" and "." not in parts.netloc):
                broken.append(link)
            continue
        target = document.parent / unquote(parts.path) if parts.path else document
        if not target.exists() or (parts.fragment and parts.fragment not in anchors(read(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_links_lead_somewhere(document):
    assert broken_links(document) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "there.md").write_text("# It's here\n")
    good = ["there.md", "there.md#its-here", "#top", "https://doi.org/10.1145/3664647", "mailto:a@b.de"]
    bad = ["gone.md", "there.md#gone", "#gone", "http://plain.org", "https:/typo", "file:///etc/hosts"]
    text = "# Top\n```\n[x](in-code.md)\n```\n`[x](in-code.md)`\n" + "\n".join(f"[x]({link})" for link in good + bad)
    (tmp_path / "a.md").write_text(text + '\n<img src="gone.png">\n')
    assert broken_links(tmp_path / "a.md") == [*bad, "gone.png"]
