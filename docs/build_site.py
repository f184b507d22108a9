"""`make docs`: the site in site/, from the README, docs/, the docstrings, data/ and a study's executed notebooks.

python docs/build_site.py runs/digits [runs/text ...]    # of several folders with one notebook the first is shown

Nothing is trained, executed or fetched. After a warning of Sphinx, such as a broken link, the exit status is 1. It is 2 where
there is no study to show, and for a public name without a docstring. In both cases the site that was there stays.
"""

import argparse
import inspect
import re
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import nbformat
import pandas as pd
from settings import settings_page

import rddlib
from rddlib.report.notebooks import executed_notebooks, notebook_files
from rddlib.utils.errors import UserError

TOP = Path(__file__).resolve().parents[1]
PACKAGES = ("losses", "diffusion", "distillation", "evaluation", "interop")
PROJECT = ["CONTRIBUTING.md", "CHANGELOG.md", "data/models/README.md"]
TOCTREE = "\n```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n"


def names_of(package: str) -> list[str]:
    """What a package offers, as "module::name": its own names, or those of its modules where it has none."""
    home = import_module(f"rddlib.{package}")
    offered = [name for name, value in vars(home).items() if name[0] != "_" and callable(value)]
    if offered:
        return [f"{home.__name__}::{name}" for name in sorted(offered, key=str.lower)]
    modules = [import_module(f"{home.__name__}.{module.name}") for module in iter_modules(home.__path__)]
    own = [(m.__name__, name) for m in modules for name, value in vars(m).items() if _own(m.__name__, name, value)]
    return [f"{module}::{name}" for module, name in own]


def _own(module: str, name: str, value) -> bool:
    return name[0] != "_" and (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module


def documented(name: str):
    """What stands under "module::name"; UserError where it has no docstring of its own (a dataclass is given one)."""
    module, attribute = name.split("::")
    value = getattr(import_module(module), attribute)
    text = value.__doc__ or ""
    if not text.strip() or text.startswith(f"{value.__name__}("):
        raise UserError(f"{name.replace('::', '.')} has no docstring: give it one")
    return value


def _described(names: list[str]) -> str:
    kinds = {name: "class" if inspect.isclass(documented(name)) else "function" for name in names}
    return "\n".join(f"```{{eval-rst}}\n.. auto{kind}:: {name}\n```" for name, kind in kinds.items())


def reference() -> dict[str, str]:
    """The pages on public names, by their file's name."""
    pages, shown = {}, {}
    for package in PACKAGES:
        names = names_of(package)
        shown |= {documented(name): name.replace("::", ".") for name in names}
        home = import_module(f"rddlib.{package}")
        pages[package] = f"# rddlib.{package}\n{home.__doc__}\n{_described(names)}\n"
    homes = {name: f"rddlib.{home}::{name}" for name, home in rddlib._HOME_OF.items()}
    rest = [name for name in homes.values() if documented(name) not in shown]
    shown |= {documented(name): name.replace("::", ".") for name in rest}
    values = {name: getattr(rddlib, name) for name in rddlib.__all__}
    lines = [f"| {{py:obj}}`{name} <{shown[value]}>` | {_first(value.__doc__)} |" for name, value in values.items()]
    table = "\n".join(["| name | what |", "|---|---|", *lines])
    first = f"# rddlib\n{rddlib.__doc__}\n{table}\n\n## Described here\n{_described(rest)}\n"
    return {"rddlib": first, **pages, "settings": settings_page(), "equations": _equations(), "published": _published()}


def _first(text: str) -> str:
    """A text's first sentence, fit for a table's cell."""
    sentence = re.split(r"(?<!Eq)(?<!al)\.\s", " ".join(text.split("\n\n")[0].split()) + " ")[0]
    return sentence.replace("|", r"\|").rstrip(",: ")


def _equations() -> str:
    """CONTRIBUTING.md's table, each function a link to its description."""
    contributing = (TOP / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| equation \| function \|\n(?:\|.*\n)+", contributing, flags=re.M)
    return "# Which equation is which function\n\n" + re.sub(r"`(rddlib[.\w]+)`", r"{py:obj}`\1`", table)


def _published() -> str:
    """The papers' tables and the peers' scores, digits as printed, conditional and unconditional peers apart."""
    text = "# What others have published\n\nNothing on this page was measured by this project.\n"
    for paper, title in (("rdd", "RDD, Feng et al. 2024"), ("rcfd", "RCFD, Sun et al. 2023")):
        for file in sorted((TOP / "data/papers").glob(f"{paper}_*.csv")):
            what = (
                file.stem.removeprefix(f"{paper}_")
                .replace("table", "Table ")
                .replace("figures", "what its figures show")
            )
            text += f"\n## {title}: {what}\n\n{_table(_csv(file))}\n"
    for (dataset, conditioning), rows in _csv(TOP / "data/peers.csv").groupby(["dataset", "conditioning"]):
        kind = conditioning or "conditioning not verified"
        text += f"\n## Peers: {dataset}, {kind}\n\n{_table(rows.drop(columns=['dataset', 'conditioning']))}\n"
    return text


def _csv(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str, keep_default_na=False)


def _table(rows: pd.DataFrame) -> str:
    """A table of the columns that say something; below it where its rows come from, and what is to be known of them."""
    shown = rows.drop(columns=["source", "note"]).loc[:, lambda frame: (frame != "").any()]
    heads = [name.replace("_", " ") for name in shown]
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *shown.itertuples(index=False))]
    lines += ["", f"Source: {'; '.join(dict.fromkeys(rows['source']))}.", ""]
    for note, noted in rows[rows["note"] != ""].groupby("note", sort=False):
        methods = noted.groupby("method", sort=False)["steps"].agg(lambda steps: ", ".join(dict.fromkeys(steps)))
        lines.append(f"- {'; '.join(f'{method} at {steps}' for method, steps in methods.items())}: {note}")
    return "\n".join(lines)


def stage(folder: Path, studies: list[Path]) -> None:
    """Write what Sphinx reads into a new folder, laid out as the project is, so that links in pages hold.

    UserError where no study has executed notebooks, and for a public name without a docstring.
    """
    executed = {done.path.name: done.path for study in reversed(studies) for done in executed_notebooks(study)}
    if not executed:
        first = studies[0]
        raise UserError(f"no executed notebooks in {first}: make them with rdd study --profile digits --out {first}")
    folder.mkdir()
    unpublished = shutil.ignore_patterns("*.safetensors", "cache", "downloads", "cifar10", "imagenet64")
    shutil.copytree(TOP / "data", folder / "data", ignore=unpublished)
    for file in ("LICENSE", "CITATION.cff"):
        shutil.copy(TOP / file, folder)
    pages = {f"docs/{page.name}": page.read_text(encoding="utf-8") for page in sorted((TOP / "docs").glob("*.md"))}
    pages |= {name: (TOP / name).read_text(encoding="utf-8") for name in PROJECT}
    pages |= {f"reference/{name}.md": text for name, text in reference().items()}
    for notebook in notebook_files():
        shown = executed.get(notebook.name, notebook)
        read = nbformat.read(shown, as_version=4)
        if notebook.name not in executed:
            read.cells.insert(1, nbformat.v4.new_markdown_cell("*Shown without outputs: this study has not run it.*"))
        where = str(shown.parents[1].resolve())
        pages[f"notebooks/{notebook.name}"] = nbformat.writes(read).replace(where, f"runs/{Path(where).name}")
    contents = {
        "Guides": [name for name in pages if name.startswith("docs/")],
        "Notebooks": [name for name in pages if name.startswith("notebooks/")],
        "Reference": [name for name in pages if name.startswith("reference/")],
        "Project": PROJECT,
    }
    trees = "".join(TOCTREE.format(title, "\n".join(names)) for title, names in contents.items())
    pages["index.md"] = (TOP / "README.md").read_text(encoding="utf-8") + trees
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("README.md#", "index.md#"), encoding="utf-8")
    (folder / "llms.txt").write_text(_for_language_models(pages, contents), encoding="utf-8")


def _for_language_models(pages: dict[str, str], contents: dict[str, list[str]]) -> str:
    """llms.txt: what there is and where, in Markdown."""
    lines = ["# rddlib", "", f"> {_first(rddlib.__doc__)}", "", "- [Home](_sources/index.md)"]
    for title, names in contents.items():
        lines += ["", f"## {title}"]
        for name in names:
            heading = re.search(r"# (.+?)(?:\\n)?[\",]*$", pages[name], flags=re.M)[1]
            plain = name.startswith(("docs/", *PROJECT))
            lines.append(f"- [{heading}]({f'_sources/{name}' if plain else Path(name).with_suffix('.html')})")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="folders of rdd study")
    parser.add_argument("--out", type=Path, default=TOP / "site", help="where the site goes (default: site/)")
    options = parser.parse_args(arguments)
    try:
        from sphinx.cmd.build import main as sphinx
    except ModuleNotFoundError:
        print("the site needs an extra: pip install 'rddlib[docs]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        source, built = Path(temporary, "source"), Path(temporary, "site")
        try:
            stage(source, options.studies)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        if status := sphinx(["-q", "-W", "--keep-going", "-c", str(TOP / "docs"), str(source), str(built)]):
            return status
        shutil.copy(source / "llms.txt", built)
        shutil.rmtree(built / ".doctrees")
        shutil.rmtree(options.out, ignore_errors=True)
        shutil.move(built, options.out)
    print(f"Open {options.out / 'index.html'} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
