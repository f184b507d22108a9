"""The site: what is staged for Sphinx is whole, and faults stop the build."""

import json
import re
import runpy
import sys
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

import rddlib
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "docs"))  # where Python finds what a script of docs/ imports
SITE = runpy.run_path(str(TOP / "docs/build_site.py"))
SHOWN = "00_start_here"


@pytest.fixture
def study(tmp_path):
    """A folder in which one notebook has been executed."""
    notebooks = tmp_path / "home/study/notebooks"
    notebooks.mkdir(parents=True)
    executed = nbformat.read(TOP / f"notebooks/{SHOWN}.ipynb", as_version=4)
    executed.cells.append(nbformat.v4.new_markdown_cell(f"seen in {notebooks.parent}/grid.png"))
    nbformat.write(executed, notebooks / f"{SHOWN}.ipynb")
    (notebooks / f".{SHOWN}.json").write_text(json.dumps({"key": "", "seconds": 1.0}))
    return notebooks.parent


def test_every_page_stands_once_in_the_contents(study, tmp_path):
    SITE["stage"](tmp_path / "source", [study])
    files = [str(path.relative_to(tmp_path / "source")) for path in (tmp_path / "source").rglob("*.*")]
    trees = re.findall(
        r"```\{toctree\}\n:hidden:\n:caption: \w+\n\n(.*?)\n```", (tmp_path / "source/index.md").read_text(), re.S
    )
    listed = "\n".join(trees).split("\n")
    assert sorted([*listed, "index.md"]) == sorted(name for name in files if name.endswith((".md", ".ipynb")))
    assert {f"docs/{page.name}" for page in (TOP / "docs").glob("*.md")} < set(listed)
    links = re.findall(r"\]\((.*)\)", (tmp_path / "source/llms.txt").read_text())
    assert len(links) == len(listed) + 1


def test_notebooks_are_the_studys_and_name_no_folder_of_this_machine(study, tmp_path):
    SITE["stage"](tmp_path / "source", [study])
    texts = {path.stem: path.read_text() for path in (tmp_path / "source/notebooks").iterdir()}
    assert "seen in runs/study/grid.png" in texts[SHOWN]
    assert [name for name, text in texts.items() if "this study has not run it" not in text] == [SHOWN]


def test_every_field_of_a_profile_is_on_the_page_of_settings_with_words_and_values():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", SITE["reference"]()["settings"], re.M))
    profile = load_profile("digits")
    sections = {field.name: getattr(profile, field.name) for field in fields(profile)}
    of_sections = [
        f"{name}.{field.name}"
        for name, section in sections.items()
        if is_dataclass(section)
        for field in fields(section)
        if not is_dataclass(getattr(section, field.name))
    ]
    assert set(of_sections) | {"methods", "sums", "seeds", "jobs"} <= rows.keys()
    assert rows["loss.tau_m"] == "temperature of M_P2P (Eq. 8, 9) | 0.1 | 0.1 | 0.1 | 0.1"
    assert rows["distill.train.learning_rate"].endswith("| 0.0003 | 0.0003 | 5e-05 | 0.0001")
    assert all(words.split(" | ")[0] not in ("", '""') for words in rows.values())


def test_a_field_without_words_stops_the_build():
    @dataclass
    class Silent:
        loud: int = 1  # it says something
        quiet: int = 2

    with pytest.raises(UserError, match="Silent says nothing of quiet"):
        sys.modules["settings"].said(Silent)


def test_every_public_name_is_described_once():
    pages = SITE["reference"]()
    names = re.findall(r"auto(?:class|function):: ([\w.]+)::(\w+)", "".join(pages.values()))
    values = [getattr(import_module(module), name) for module, name in names]
    assert len(set(names)) == len(names)
    offered = [rddlib, *(import_module(f"rddlib.{name}") for name in ("losses", "interop"))]
    public = {getattr(home, name) for home in offered for name in home.__all__ if callable(getattr(home, name))}
    assert public <= set(values) and rddlib.evaluation.Receipt in values
    assert all(f"`{name} <rddlib." in pages["rddlib"] for name in rddlib.__all__)
    described = {f"{module}.{name}" for module, name in names}
    assert set(re.findall(r"\{py:obj\}`([\w.]+)`", pages["equations"])) <= described


def test_a_public_name_without_a_docstring_is_a_fault(monkeypatch):
    monkeypatch.setattr(rddlib.losses.pd_loss, "__doc__", None)
    with pytest.raises(UserError, match=r"rddlib\.losses\.pd_loss has no docstring"):
        SITE["reference"]()


def test_conditional_and_unconditional_peers_share_no_table():
    sections = SITE["reference"]()["published"].split("\n## Peers: ")[1:]
    assert [section.splitlines()[0] for section in sections] == [
        "cifar10, unconditional",
        "imagenet64, conditioning not verified",
        "imagenet64, class-conditional",
    ]


def test_without_a_study_one_line_says_what_makes_one(tmp_path, capsys):
    pytest.importorskip("sphinx", reason="the site needs Sphinx: pip install 'rddlib[docs]'")
    assert SITE["main"]([str(tmp_path / "none"), "--out", str(tmp_path / "site")]) == 2
    told = capsys.readouterr().err
    assert "rdd study" in told and told.count("\n") == 1 and not (tmp_path / "site").exists()


@pytest.mark.slow
def test_the_site_is_built_and_a_broken_link_keeps_the_one_before(smoke_run, tmp_path, monkeypatch, capfd):
    site = tmp_path / "site"
    arguments = [str(smoke_run[0]), "--out", str(site)]
    assert SITE["main"](arguments) == 0
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    outside = r'(?:src|link[^>]*href)="(?:https?:)?//[^"]*'
    assert not [address for text in pages.values() for address in re.findall(outside, text)]
    links = re.findall(r"\]\((.*)\)", (site / "llms.txt").read_text())
    assert links and not [link for link in links if not (site / link).exists()] and (site / "searchindex.js").exists()
    assert 'class="math' in pages[site / "notebooks/01_ddim_derivation.html"]
    monkeypatch.setattr(rddlib.losses, "__doc__", "See [it](gone.md).")
    assert SITE["main"](arguments) == 1 and "gone.md" in capfd.readouterr().err
    assert pages == {path: path.read_text() for path in site.rglob("*.html")}
