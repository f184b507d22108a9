"""`rdd app`: which cells become pages, what is started, and what is refused."""

import os
import socket

import nbformat

from rddlib.report import app
from rddlib.report.notebooks import notebook_files
from rddlib.study.profiles import load_profile
from rddlib.study.study import Study


def explorers(file):
    cells = nbformat.read(file, as_version=4).cells
    return [line for cell in cells for line in cell.source.splitlines() if line.startswith("explore(")]


def test_every_explorer_of_notebooks_02_to_06_has_its_place_on_a_page(tmp_path):
    pages = app.write_pages(Study(load_profile("digits"), tmp_path, 3))
    files = [file for file in notebook_files() if "02" <= file.name[:2] <= "06"]
    assert [page.name[:2] for page in pages] == [file.name[:2] for file in files]
    for page, file in zip(pages, files, strict=True):
        assert explorers(page) == explorers(file) != []
        title, parameters, setup, *_ = nbformat.read(page, as_version=4).cells
        assert title.source.count("**Question.**") == 1 and "Covered" not in title.source
        assert parameters.source == f"profile, seed, out = ('digits', 3, {str(tmp_path)!r})"
        assert setup.source.startswith("%%capture\nimport ")


def test_what_cannot_be_served_is_one_line_and_writes_nothing(refusal, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = refusal("app", "--out", out, "--port", port)
        assert f"port {port}" in said and "--port" in said
    refusal("app", "--out", out, "--port", "99999")
    # models that would have to be trained
    assert "rdd study --profile smoke" in refusal("app", "--profile", "smoke", "--out", out, "--port", "0")
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: None)
    said = refusal("app", "--out", out, "--port", "0")
    assert said == "rdd: the app needs an extra: pip install 'rddlib[app]'\n" and not out.exists()


def test_voila_is_started_on_the_loopback_interface_with_code_hidden(done, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    said = done("app", "--out", tmp_path / "out", "--port", "0")
    assert started[0][1:3] == ["-m", "voila"] and "--Voila.ip=127.0.0.1" in started[0]
    assert "--VoilaConfiguration.strip_sources=True" in started[0]
    assert "http://127.0.0.1:" in said
