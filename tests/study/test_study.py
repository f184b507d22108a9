import base64
import html.parser
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from rddlib.diffusion.schedule import DiscreteCosineSchedule
from rddlib.evaluation import summarise
from rddlib.report.notebooks import (
    _alone_in,
    check_parameters,
    collapse_carriage_returns,
    notebook_files,
    run_study,
    selected,
)
from rddlib.report.pages import put_formulas, take_formulas
from rddlib.study.profiles import load_profile
from rddlib.study.study import COLUMNS, Study, continue_study, open_study, prepare_folder
from rddlib.utils.errors import UserError


def test_smoke_study_leaves_all_it_promises(smoke_run):
    out, page = smoke_run
    assert page == out / "index.html"
    header = (out / "results.csv").read_text().splitlines()[0]
    assert header == "method,steps,seed,fid,pfd,is,samples,seconds"
    results = pd.read_csv(out / "results.csv")
    assert (
        set(results["method"]) == {"ddim", "pndm", "dpm-solver", "pd", "cfd", "rcfd", "rdd"}
        and results[COLUMNS].notna().all().all()
    )
    for name in ("pd", "cfd", "rcfd", "rdd"):
        assert {4, 2, 1} <= set(results[results["method"] == name]["steps"])
    assert (out / "grid.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (
        len(list((out / "checkpoints").glob("*.safetensors"))) == 3 + 12 + 1 + 3 + 11
    )  # base, extractor, PD to 8; 4 x 3 students; notebook 07's; two base models and PD to 8, 6 students, 5 stochastic: 08's
    assert len(list((out / "notebooks").glob("*.ipynb"))) == len(notebook_files()) == 8
    receipts = [json.loads(p.read_text()) for p in (out / "scores").glob("*.json")]
    assert len(receipts) == len(results) and all(len(r["receipt"]["checkpoint_sha256"]) == 64 for r in receipts)


def test_executed_notebooks_ran_every_cell_without_errors(smoke_run):
    out, _ = smoke_run
    for file in (out / "notebooks").glob("*.ipynb"):
        cells = [c for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
        assert all(c["execution_count"] for c in cells)
        assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
        assert any("image/png" in o.get("data", {}) for c in cells for o in c["outputs"]), (
            f"{file.name} shows no picture"
        )


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src")]
        self.ids += [value for name, value in attributes if name == "id"]


def test_report_is_self_contained_and_its_links_lead_somewhere(smoke_run):
    out, page = smoke_run
    parser = Links()
    parser.feed(page.read_text())
    sections = [link[1:] for link in parser.found if link.startswith("#")]
    assert sections == ["samples", "scores", "times", "receipts", "guidance", "notebooks"] and set(sections) <= set(
        parser.ids
    )
    local = [link for link in parser.found if not link.startswith(("data:", "#"))]
    assert local and all((out / link).exists() for link in local), [x for x in local if not (out / x).exists()]
    assert not [link for link in local if re.match(r"\w+:|/", link)]
    pictures = [base64.b64decode(link.split(",", 1)[1]) for link in parser.found if link.startswith("data:image/png")]
    assert len(pictures) == 3 and all(p[:4] == b"\x89PNG" for p in pictures)
    assert "<td>all training</td>" in page.read_text() and re.search(r"All together \d+ s", page.read_text())


def test_notebook_pages_need_no_network_and_no_script(smoke_run):
    out, _ = smoke_run
    for page in (out / "notebooks").glob("*.html"):
        text, parser = page.read_text(), Links()
        parser.feed(text)
        assert "<script" not in text and "<math" in text and "$$" not in text, page.name
        assert not [link for link in parser.found if link.startswith(("http", "//"))], page.name
        assert sum(link.startswith("data:image/png") for link in parser.found) >= 3


def test_formulas_become_mathml_and_code_stays():
    formulas: list[str] = []
    text = take_formulas("so $a_b$ and `$x$` and\n```\n$y$\n```\n$$\\frac{1}{2}\\big\\|$$", formulas)
    text = put_formulas(text, formulas)
    assert text.count("<math") == 2 and "<msub>" in text and "<mfrac>" in text and "`$x$`" in text and "\n$y$\n" in text


def test_second_run_does_nothing_again(smoke_run):
    out, _ = smoke_run
    before = {
        p: p.stat().st_mtime_ns
        for folder in ("checkpoints", "scores", "notebooks")
        for p in (out / folder).iterdir()
        if p.is_file() and p.suffix != ".html"
    }
    run_study("smoke", {"run.keep": "3"}, out)  # how it runs is no reason to run it again
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_another_configuration_is_refused_and_nothing_changes(smoke_run):
    out, _ = smoke_run
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(UserError, match=r"another configuration \(it differs in loss.alpha\)"):
        run_study("smoke", {"loss.alpha": "3"}, out)
    with pytest.raises(UserError, match="another configuration"):
        open_study("digits", out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_changed_number_reruns_what_depends_on_it_and_nothing_else():
    def keys(**overrides):
        study = Study(load_profile("smoke", {k.replace("__", "."): v for k, v in overrides.items()}), Path("unused"))
        students = {m: study._student_facts(m, 1, 0) for m in ("pd", "cfd", "rcfd", "rdd")}
        return {
            "base": study._base_facts(),
            "teacher": study._teacher_facts(8),
            "extractor": study._extractor_facts(),
            **students,
        }

    def changed(**overrides):
        plain, other = keys(), keys(**overrides)
        return {name for name in plain if plain[name] != other[name]}

    assert changed(loss__alpha="3") == {"rdd"}
    assert changed(loss__rcfd_beta="3") == {"rcfd"}
    assert changed(extractor__map_at="relu") == {"cfd", "rcfd", "rdd"}
    assert changed(extractor__train__iterations="3") == {"extractor", "cfd", "rcfd", "rdd"}
    assert changed(distill__train__batch_size="3") == {"pd", "cfd", "rcfd", "rdd"}
    assert changed(distill__temperatures="[1, 1, 0.5]") == {"cfd", "rcfd", "rdd"}
    assert changed(halving__train__iterations="9") == {"teacher", "pd", "cfd", "rcfd", "rdd"}
    assert changed(base__train__iterations="9") == {"base", "teacher", "pd", "cfd", "rcfd", "rdd"}
    assert changed(evaluation__samples="300") == set()


def test_a_notebook_alone_opens_the_same_study(smoke_run):
    out, _ = smoke_run
    study = open_study("smoke", out)
    a, b = study.images("rdd", 1, study.noise(3)), study.images("rdd", 1, study.noise(3))
    assert torch.equal(a, b) and a.shape == (3, 1, 8, 8)


def test_a_damaged_checkpoint_is_named(smoke_run, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(smoke_run[0], out)
    file = open_study("smoke", out).path_of("base")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{file.name} is damaged.*delete it"):
        open_study("smoke", out).base()


def test_folders_that_are_not_a_studys_are_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not empty and no study made it"):
        prepare_folder(tmp_path, load_profile("smoke"), {}, 0)
    with pytest.raises(UserError, match="is a file"):
        prepare_folder(tmp_path / "letter.txt", load_profile("smoke"), {}, 0)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_one_study_at_a_time_in_a_folder(smoke_run):
    from filelock import FileLock

    out, _ = smoke_run
    with FileLock(out / ".running"), pytest.raises(UserError, match="another process"):
        run_study("smoke", {}, out)


def test_killed_study_goes_on_where_it_stopped(tmp_path):
    """kill -9 once the base model is made: the next run finds it, and the folder is not left locked."""
    command = [
        sys.executable,
        "-m",
        "rddlib.cli",
        "study",
        "--profile",
        "smoke",
        "--only",
        "02",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (made := list((tmp_path / "checkpoints").glob("base-*.safetensors"))):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    before = made[0].stat().st_mtime_ns
    study = open_study("smoke", tmp_path)
    study.teacher()
    assert made[0].stat().st_mtime_ns == before and not list(tmp_path.glob("checkpoints/.*.safetensors.*"))
    with _alone_in(tmp_path):
        pass


def test_update_lets_a_folder_take_a_change(tmp_path):
    prepare_folder(tmp_path / "a", load_profile("smoke"), {}, 0)
    changed = load_profile("smoke", {"loss.alpha": "3"})
    prepare_folder(tmp_path / "a", changed, {"loss.alpha": "3"}, 0, update=True)
    assert open_study("smoke", tmp_path / "a").profile.loss.alpha == 3


def test_summary_is_mean_spread_and_minimum():
    rows = [("rdd", 1, s, fid, 1.0, 9.0, 10, 0.1) for s, fid in ((0, 2.0), (1, 4.0), (2, 6.0))]
    summary = summarise(pd.DataFrame(rows, columns=COLUMNS)).iloc[0]
    assert (summary["seeds"], summary["fid_mean"], summary["fid_spread"], summary["fid_min"]) == (3, 4.0, 2.0, 2.0)


def test_selection_of_notebooks():
    assert [p.name[:2] for p in selected("3,05")] == ["03", "05"]
    assert [p.name[:2] for p in selected(start="5")] == ["05", "06", "07", "08"]
    for arguments in (("9",), ("", "12"), ("x",)):
        with pytest.raises(UserError, match="there are 01"):
            selected(*arguments)


def test_unknown_notebook_parameters_are_refused():
    with pytest.raises(UserError, match="has no parameter sead: known are profile, seed, out"):
        check_parameters(notebook_files()[0], {"sead": 1})


def test_bars_collapse_to_their_last_state():
    assert collapse_carriage_returns("a\r10%\r50%\r100%\nend\r\n") == "100%\nend\n"


def test_a_student_is_read_back_from_its_file_alone(smoke_run):
    from rddlib.diffusion.model_file import load_denoiser

    study = open_study("smoke", smoke_run[0])
    denoiser, info = load_denoiser(study.path_of("student", "rdd", 1, 0))
    z = study.noise(3)
    torch.testing.assert_close(denoiser(z, 1.0), study.denoiser("rdd", 1)(z, 1.0), rtol=1e-5, atol=1e-5)
    assert info["kind"] == "rdd-1"
    assert json.loads(study.path_of("base").with_suffix(".json").read_text())["kind"] == "base"
    with pytest.raises(UserError, match="holds no denoiser but extractor"):
        load_denoiser(study.path_of("extractor"))


def test_how_a_study_runs_may_change_where_its_numbers_may_not(tmp_path):
    plain, other = load_profile("smoke"), {"run.save_every": "5", "jobs": "1"}
    prepare_folder(tmp_path / "a", plain, {}, 0)
    prepare_folder(tmp_path / "a", load_profile("smoke", other), other, 0)
    assert open_study("smoke", tmp_path / "a").profile.run.save_every == 5


def test_a_later_command_keeps_what_was_set_before(tmp_path):
    continue_study("smoke", {"loss.alpha": "3"}, tmp_path / "a")
    assert continue_study("smoke", {"run.keep": "5"}, tmp_path / "a").profile.loss.alpha == 3
    with pytest.raises(UserError, match="differs in loss.alpha"):
        continue_study("smoke", {"loss.alpha": "4"}, tmp_path / "a")
    with pytest.raises(UserError, match="holds a study of the profile smoke"):
        continue_study("digits", {}, tmp_path / "a")


def test_an_extractor_s_seed_and_classes_make_another_one(tmp_path):
    tiny = {"extractor.train.iterations": "2"}
    plain, seeded, partial = (
        Study(load_profile("smoke", tiny | more), tmp_path)
        for more in ({}, {"extractor.seed": "1"}, {"extractor.classes": "[0, 3]"})
    )
    weights = [study.extractor().fc.weight for study in (plain, seeded, partial)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    split = plain._split("extractor").of_classes((0, 3))
    assert set(split.labels.tolist()) == {0, 3} and len(split) == sum(
        label in (0, 3) for label in plain._split("extractor").labels.tolist()
    )
    with pytest.raises(UserError, match="no class 10: choose from 0 to 9"):
        plain._split("extractor").of_classes((10,))
    with pytest.raises(UserError, match="extractor.classes has 10, digits has classes 0 to 9"):
        Study(load_profile("smoke", tiny | {"extractor.classes": "[10]"}), tmp_path).check()


def test_a_model_on_the_released_grid_is_read_back_on_it(tmp_path):
    from rddlib.diffusion.model_file import load_denoiser

    study = Study(load_profile("smoke", {"base.schedule": "discrete", "base.train.iterations": "1"}), tmp_path)
    base = study.base()
    read, info = load_denoiser(study.path_of("base"))
    assert base.schedule == read.schedule == DiscreteCosineSchedule() and info["model"]["schedule"] == "discrete"
    assert study.objective("pd", 4).schedule == DiscreteCosineSchedule()
    assert info["peak_memory"] > 0


def test_the_lineage_of_an_arm_is_all_that_it_needs(tmp_path):
    study = Study(load_profile("smoke"), tmp_path)
    halved = [("base",), ("teacher", 8)]
    assert study.lineage("ddim", 4, 0) == [("base",)] and study.lineage("pd", 8, 0) == halved
    assert study.lineage("pd", 2, 1) == [*halved, ("student", "pd", 4, 1), ("student", "pd", 2, 1)]
    assert study.lineage("rdd", 4, 0) == [*halved, ("extractor",), ("student", "rdd", 4, 0)]
    assert study.training("student", "rdd", 1, 0).iterations == 6 and study.training("base").iterations == 60


def test_another_process_makes_the_same_study_again(tmp_path):
    study = Study(load_profile("smoke", {"loss.alpha": "3"}), tmp_path, 2, "ablations/scores")
    kind, arguments = study.__reduce__()
    again = kind(*arguments)
    assert (again.profile, again.out, again.seed, again.scores) == (
        study.profile,
        study.out,
        2,
        tmp_path / "ablations/scores",
    )
