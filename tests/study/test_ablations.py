"""What the ablations vary, how they become runs with keys, and the tables they leave."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from rddlib.study.assembly import build_extractor, build_objective
from rddlib.study.run_sweep import run_sweep, shard_of

from rddlib.distillation.objectives import RELEASED_SWITCHES
from rddlib.evaluation import common_noise
from rddlib.evaluation.entropy import entropy_by_step
from rddlib.study.ablations import (
    ABLATIONS,
    OVER_PROCESSES,
    RELEASED_BESIDE_SWITCHES,
    SCORED_OTHERWISE,
    Ablation,
    Axis,
    Setting,
    custom,
    find_ablation,
)
from rddlib.study.costs import catalogue, format_plan, measured_costs, plan_of
from rddlib.study.engines import in_turn
from rddlib.study.entropy import entropy_record
from rddlib.study.profiles import PROFILES, changed, load_profile
from rddlib.study.study import Study, continue_study
from rddlib.study.sweep import COLUMNS, Sweep
from rddlib.utils.errors import UserError

# A study whose every training takes a second at most; its numbers mean nothing.
TINY = {
    "base.train.iterations": "2",
    "base.steps": "16",
    "progressive.train.iterations": "1",
    "extractor.train.iterations": "2",
    "distill.iterations": "[1, 1, 1]",
    "evaluation.samples": "80",
    "evaluation.batch_size": "80",
}
PAIR = Ablation(
    "pair",
    "a test",
    "Two weights",
    "",
    axes=(Axis("alpha", "loss.alpha", (0.5, 2.0)),),
    beside=lambda p, c: [Setting("CFD", "cfd")],
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny study with its teacher and extractor."""
    study = continue_study("smoke", TINY, tmp_path_factory.mktemp("tiny") / "study")
    study.teacher(), study.extractor()
    return study


def smoke(tmp_path, **changes):
    return Study(changed(load_profile("smoke"), changes), tmp_path)


# the catalogue


def test_every_table_and_figure_of_both_papers_is_there_and_ours():
    named = {
        "losses",
        "batch",
        "tau_is",
        "tau_m",
        "queue_size",
        "queue_draws",
        "alpha",
        "beta",
        "rcfd_losses",
        "classifier",
        "cfd_tau",
        "cfd_tau_dual",
        "entropy",
        "released",
        "budget",
    }
    assert set(ABLATIONS) == named and all(ablation.name == name for name, ablation in ABLATIONS.items())
    sources = [ablation.source for ablation in ABLATIONS.values()]
    for paper, numbers in (
        ("Feng", ("Table 3", "6", "7a", "7b", "8a", "8b", "9a", "9b")),
        ("Sun", ("Table 2", "Table 3", "2", "4", "5")),
    ):
        for number in numbers:
            assert [s for s in sources if paper in s and re.search(rf"\b{number},", s)], (paper, number)


@pytest.mark.parametrize("name", PROFILES)
def test_every_setting_is_a_profile_of_its_own_name_and_says_what_it_is(name):
    profile = load_profile(name)
    for ablation in ABLATIONS.values():
        settings = ablation.settings(profile, {"pd": 1.0, "cfd": 1.3, "rdd": 1.7})
        assert len({s.name for s in settings}) == len(settings) > 1, ablation.name
        changes = [changed(profile, dict(s.changes)) for s in settings]
        distinct = {
            (s.method, c, s.name if s.method == "teacher" else "") for s, c in zip(settings, changes, strict=True)
        }
        assert len(distinct) == len(settings), f"{ablation.name} at {name} repeats itself"
        assert all(c.name == name for c in changes)


@pytest.mark.parametrize("name", ["tau_is", "tau_m", "queue_size", "queue_draws", "alpha", "beta", "batch"])
def test_an_axis_passes_through_the_profile_s_own_number(name):
    profile = load_profile("cifar10")
    assert any(
        changed(profile, dict(setting.changes)).loss == replace(profile.loss, **_fixed(ABLATIONS[name], setting))
        and changed(profile, dict(setting.changes)).distill == profile.distill
        for setting in ABLATIONS[name].settings(profile)
        if setting.x is not None
    )


def _fixed(ablation, setting):
    kept = dict(ablation.fixed) | ({"loss.impl": setting.series} if setting.series else {})
    return {key.removeprefix("loss."): value for key, value in kept.items()}


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "losses",
            [("pd",), ("cfd",), ("cfd", "ii_p2p"), ("cfd", "is_p2p"), ("cfd", "m_p2p"), ("cfd", "is_p2p", "m_p2p")],
        ),
        (
            "rcfd_losses",
            [
                ("pd",),
                ("cfd",),
                ("entropy",),
                ("diversity",),
                ("entropy", "diversity"),
                ("cfd", "entropy", "diversity"),
            ],
        ),
    ],
)
def test_a_setting_s_objective_has_the_terms_it_names(name, expected):
    profile = load_profile("smoke")
    extractor, x = build_extractor(profile, 10).eval(), torch.rand(2, 4, 1, 8, 8) * 2 - 1
    for setting, terms in zip(ABLATIONS[name].settings(profile), expected, strict=True):
        objective = build_objective(changed(profile, dict(setting.changes)), setting.method, 4, extractor)
        for _ in range(2):  # the first fills the queue
            found = objective(*x, torch.ones(4), torch.Generator()).terms
            objective.after_step(torch.Generator())
        assert tuple(found) == terms, setting.name


def test_released_has_each_switch_alone_and_all_together():
    profile = load_profile("digits")
    settings = {s.name: changed(profile, dict(s.changes)) for s in ABLATIONS["released"].settings(profile)}
    switches = set(RELEASED_SWITCHES) - set(OVER_PROCESSES)
    assert set(settings) == {
        "CFD",
        "as in the paper",
        "all together",
        *switches,
        *RELEASED_BESIDE_SWITCHES,
        *SCORED_OTHERWISE,
    }
    assert all(settings[name].loss.released == (name,) for name in switches)
    assert settings["as in the paper"] == profile
    together = settings["all together"]
    assert set(together.loss.released) == switches and together.loss.draws == 2 * profile.loss.draws
    assert together.loss.per_image == 128 and together.extractor.map_at == "relu"
    assert together.base.schedule == "discrete" and together.unet.attention == (8,)
    assert together.evaluation.protocol == "released" and together.evaluation.clip


def test_released_on_imagenet_has_its_own_weight():
    settings = ABLATIONS["released"].settings(load_profile("imagenet64"))
    (fixed,) = [s for s in settings if s.name == "alpha fixed at 1"]
    assert changed(load_profile("imagenet64"), dict(fixed.changes)).loss.alpha == 1


def test_equal_time_is_more_iterations_in_proportion_to_what_one_costs():
    profile = load_profile("digits")
    settings = {s.name: s for s in ABLATIONS["budget"].settings(profile, {"pd": 0.1, "cfd": 0.15, "rdd": 0.2})}
    longer = {name: changed(profile, dict(s.changes)).distill.iterations for name, s in settings.items()}
    assert longer["PD, equal time"] == (300, 300, 600) and longer["CFD, equal time"] == (200, 200, 399)
    assert longer["RDD, equal iterations"] == longer["PD, equal iterations"] == (150, 150, 300)


def test_an_axis_takes_other_values():
    profile = load_profile("digits")
    ablation = ABLATIONS["cfd_tau"].with_axes({"distill.temperatures": "0.5, 2", "loss.predictions": "true"}, profile)
    first, second, *beside = ablation.settings(profile)
    assert (first.x, second.x) == (0.5, 2.0) and [s.name for s in beside] == ["PD"]
    assert changed(profile, dict(second.changes)).distill.temperatures == (2.0, 2.0, 2.0)
    assert changed(profile, dict(second.changes)).loss.predictions


def test_a_grid_of_one_s_own_spans_any_fields():
    profile = load_profile("digits")
    grid = custom({"loss.alpha": "1,100", "loss.tau_is": "[0.1, 1]"}, profile)
    points = [changed(profile, dict(s.changes)).loss for s in grid.settings(profile)]
    assert [(p.alpha, p.tau_is) for p in points] == [(1, 0.1), (1, 1), (100, 0.1), (100, 1)]
    assert [s.series for s in grid.settings(profile)] == ["0.1", "1", "0.1", "1"]
    names = [
        custom(axes, profile, method).name
        for axes in ({"loss.alpha": "1,2"}, {"loss.alpha": "1,3"})
        for method in ("rdd", "cfd")
    ]
    assert len(set(names)) == 4 and all(re.fullmatch("custom-[0-9a-f]{6}", name) for name in names)  # one table each


# runs and keys


def test_what_does_not_change_a_number_does_not_make_another_run(tmp_path):
    sweep = Sweep(smoke(tmp_path), [ABLATIONS["alpha"], ABLATIONS["beta"]], [0, 1])
    keys = {(p.ablation.name, p.setting.name, p.run.seed): p.key for p in sweep.points}
    assert keys["alpha", "alpha = 1", 0] == keys["beta", "beta = 0.1", 0]  # both are the paper's RDD
    assert keys["alpha", "CFD", 1] == keys["beta", "CFD", 1] != keys["beta", "CFD", 0]
    assert len(sweep.runs) == len(set(keys.values())) == 2 * (6 + 5 - 1 + 1)
    again = Sweep(smoke(tmp_path, **{"run.save_every": "7", "jobs": "5"}), sweep.ablations, [0, 1])
    assert list(again.runs) == list(sweep.runs)
    other = Sweep(smoke(tmp_path, **{"evaluation.samples": "150"}), sweep.ablations, [0, 1])
    assert not set(other.runs) & set(sweep.runs)


def test_a_whole_ablation_goes_down_to_one_step_and_the_others_to_the_figures(tmp_path):
    runs = {p.ablation.name: p.run for p in Sweep(smoke(tmp_path), list(ABLATIONS.values()), [0]).points}
    assert runs["losses"].steps == (4, 2, 1) and runs["tau_is"].steps == (4,)


def test_runs_share_teacher_and_extractor_which_are_made_first(tmp_path):
    sweep = Sweep(smoke(tmp_path), [ABLATIONS["losses"], ABLATIONS["classifier"]], [0, 1])
    stages = [
        (a.stage, a.profile.extractor.name, a.profile.extractor.seed) for a in sweep.ancestors(sweep.runs.values())
    ]
    assert sorted(stages) == sorted(
        [
            (("teacher", 8), "small_resnet", 0),
            (("extractor",), "small_resnet", 0),
            (("extractor",), "resnet18", 0),
            (("extractor",), "small_resnet", 1),
            (("extractor",), "small_resnet", 2),
            (("extractor",), "small_resnet", 0),
        ]
    )
    # the last of them saw half of the classes


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_shards_are_all_runs_and_none_twice(parts):
    tasks = [f"run {k}" for k in range(20)]
    shares = [shard_of(tasks, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(sum(shares, [])) == sorted(tasks) and max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/2/3", "-1/2"])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(UserError, match="write it as 1/4"):
        shard_of([], text)


def test_a_change_that_does_not_touch_a_model_leaves_its_numbers_the_study_s_own(tmp_path):
    study = smoke(tmp_path)
    points = {p.setting.name: p for p in Sweep(study, [ABLATIONS["classifier"], ABLATIONS["losses"]], [0]).points}
    assert points["small_resnet"].study is study and points["PD"].study is study  # K is no number of CFD's
    folders = {
        name: {path.parent.relative_to(tmp_path).as_posix() for path in point.run.paths(point.study)}
        for name, point in points.items()
    }
    assert folders["small_resnet"] == {"scores"} and folders["resnet18"] == {"ablations/scores"}


# done for real, tiny


def test_a_sweep_measures_all_its_points_once_and_leaves_a_tidy_table(tiny, capsys):
    performed = []

    def engine(tasks, report):
        performed.extend(task.label for task in tasks)
        in_turn(tasks, report)

    sweep = Sweep(tiny, [PAIR], [0, 1])
    assert run_sweep(sweep, engine) == [] and len(performed) == 6
    table = pd.read_csv(tiny.out / "ablations/pair.csv")
    assert list(table) == COLUMNS and len(table) == 6
    assert set(table["setting"]) == {"alpha = 0.5", "alpha = 2", "CFD"} and set(table["steps"]) == {4}
    assert table[["fid", "pfd", "is", "iterations", "batch", "train_seconds", "peak_mib"]].notna().all().all()
    assert (tiny.out / "ablations/pair.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    receipts = json.loads((tiny.out / "ablations/pair_receipts.json").read_text())
    assert set(table["record"]) == set(receipts) and all(r["samples"] == 80 for r in receipts.values())
    row = table.query("setting == 'CFD' and seed == 1").iloc[0]
    assert row["fid"] == pytest.approx(tiny.score("cfd", 4, 1)["fid"], rel=1e-4)  # the study's own number
    assert run_sweep(Sweep(tiny, [PAIR], [0, 1]), engine) == [] and len(performed) == 6  # nothing twice
    longer = replace(PAIR, axes=(Axis("alpha", "loss.alpha", (0.5, 2.0, 3.0)),))
    run_sweep(Sweep(tiny, [longer], [0, 1]), engine)
    assert len(performed) == 8  # what is new


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(tiny, monkeypatch, capsys):
    broken = replace(PAIR, name="broken", axes=(Axis("alpha", "loss.alpha", (7.0, 8.0, 9.0)),), beside=lambda p, c: [])
    score = Study.score

    def fails_at_8(self, *arm):
        if self.profile.loss.alpha == 8:
            raise RuntimeError("no luck")
        return score(self, *arm)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "score", fails_at_8)
        (failed,) = run_sweep(Sweep(tiny, [broken], [0]), in_turn)
    assert failed.failed and failed.said == "RuntimeError: no luck" and "alpha = 8" in failed.task.label
    assert list(pd.read_csv(tiny.out / "ablations/broken.csv")["x"]) == [7.0, 9.0]
    assert run_sweep(Sweep(tiny, [broken], [0]), in_turn) == []
    assert list(pd.read_csv(tiny.out / "ablations/broken.csv")["x"]) == [7.0, 8.0, 9.0]


def test_what_needs_something_that_could_not_be_made_is_not_tried(tiny, tmp_path, monkeypatch, capsys):
    fresh, tried = Study(tiny.profile, tmp_path), []

    def fails(self):
        raise RuntimeError("no classifier today")

    monkeypatch.setattr(Study, "extractor", fails)
    monkeypatch.setattr(Study, "teacher", lambda self, steps=None: None)
    monkeypatch.setattr(Study, "score", lambda self, *arm: tried.append(arm) or {"fid": 1.0})
    failed = run_sweep(Sweep(fresh, [ABLATIONS["rcfd_losses"]], [0]), in_turn)
    assert [outcome.said for outcome in failed] == [
        "RuntimeError: no classifier today",
        *["what it needs could not be made"] * 5,
    ]
    assert tried == [("pd", 4, 0)]  # which needs none


def test_seeds_that_are_not_the_study_s_own_lie_apart(tmp_path):
    study = smoke(tmp_path)
    points = Sweep(study, [ABLATIONS["losses"]], [0, 1]).points
    folders = {(p.setting.name, p.run.seed): p.run.scores for p in points}
    assert folders["CFD", 0] == "scores" and folders["CFD", 1] == "ablations/scores"  # the profile's seeds are (0,)


def test_stopped_it_leaves_the_table_of_what_was_done(tiny):
    stopped = replace(PAIR, name="stopped", axes=(Axis("alpha", "loss.alpha", (0.5, 44.0)),))

    def engine(tasks, report):
        raise KeyboardInterrupt

    run_sweep(Sweep(tiny, [PAIR], [0]), in_turn)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(Sweep(tiny, [stopped], [0]), engine)
    assert set(pd.read_csv(tiny.out / "ablations/stopped.csv")["setting"]) == {"alpha = 0.5", "CFD"}


def test_entropies_are_those_of_the_sampler_s_predictions(tiny):
    run_sweep(Sweep(tiny, [ABLATIONS["entropy"]], [0]), in_turn)
    table = pd.read_csv(tiny.out / "ablations/entropy.csv")
    assert set(table["setting"]) == {"teacher", "PD", "CFD", "RCFD"} and table["fid"].isna().all()
    noise = common_noise(tiny.image_shape, 0, 80, tiny.profile.evaluation.seed)
    extractor = tiny.extractor()
    for setting, steps, denoiser in (("teacher", 2, tiny.teacher()), ("CFD", 4, tiny.student("cfd", 4))):
        rows = table[(table["setting"] == setting) & (table["steps"] == steps)]
        expected = entropy_by_step(denoiser, lambda x: extractor(x).logits, noise, steps)
        assert list(rows["t"]) == [1 - k / steps for k in range(steps)]
        torch.testing.assert_close(torch.tensor(rows["entropy"].values), expected, rtol=1e-4, atol=1e-5)
    receipt = entropy_record(tiny, "cfd", 4, 0)["receipt"]
    assert receipt["checkpoint_sha256"] == tiny.facts("student", "cfd", 4, 0)["sha256"] and receipt["samples"] == 80


def test_the_plan_counts_what_is_left_and_shared_work_once(tiny, tmp_path):
    fresh = Study(tiny.profile, tmp_path)
    first, second = plan_of(Sweep(fresh, [PAIR, replace(PAIR, name="twin")], [0, 1]))
    assert (first["settings"], first["runs"], first["done"], first["left"]) == (3, 6, 0, 6)
    assert (second["runs"], second["left"], sum(second["work"].values())) == (6, 0, 0)
    work = first["work"]  # base, one halving to 8 steps, extractor; students to 4 steps, a run each
    assert (work["base"], work["progressive"], work["extractor"], work["rdd"], work["cfd"]) == (2, 1, 2, 4, 2)
    costs = dict.fromkeys(("base", "progressive", "extractor", "pd", "cfd", "rcfd", "rdd", "sampling"), 10.0)
    text = format_plan([first], costs, jobs=2)
    assert "pair" in text and f"{(2 + 1 + 2 + 4 + 2 + 6 * 4) * 10 / 2 / 60:.0f} min" in text.splitlines()[-1]


def test_costs_are_measured_once_for_a_folder(tiny, tmp_path, monkeypatch):
    from rddlib.study.plan import Row

    asked = []

    def probed(job, profile, overrides, seconds, threads):
        asked.append(job.kind)
        assert overrides["base.train.iterations"] == "2" and threads == 1
        return Row(job, seconds=0.25 + abs(len(asked) - 12))

    monkeypatch.setattr("rddlib.study.costs.probed", probed)
    measured_costs(tiny.profile, tmp_path, lambda line: None)
    assert not list(tmp_path.iterdir())  # no study's folder: a look leaves nothing
    asked.clear()
    (tmp_path / "study.json").write_text("{}")
    costs = measured_costs(tiny.profile, tmp_path, lambda line: None)
    assert set(costs) == set(asked) == {"base", "progressive", "extractor", "pd", "cfd", "rcfd", "rdd", "sampling"}
    assert measured_costs(tiny.profile, tmp_path, lambda line: None) == costs and len(asked) == 8 * 3
    assert costs["rdd"] == min(0.25 + abs(n - 12) for n in (7, 15, 23))  # of three rounds the least disturbed
    (tmp_path / "ablations/costs.json").write_text("{}")
    with pytest.raises(UserError, match="costs.json is damaged: delete it"):
        measured_costs(tiny.profile, tmp_path, lambda line: None)


def test_the_list_names_every_ablation_with_its_paper_and_its_costs():
    text = catalogue(3)
    for name, ablation in ABLATIONS.items():
        assert f"{name}: {ablation.title} ({ablation.source})" in text and ablation.claim in text
    (line,) = [line for line in text.splitlines() if line.startswith("tau_is ")]
    cells = re.split(r" {2,}", line)
    assert cells == ["tau_is", "18, 72", "18, 2.7k", "18, 18k", "18, 360k", "18, 900k"]  # 6 settings, 3 seeds


# the command


def test_a_dry_run_says_the_plan_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    from rddlib.cli import main

    costs = dict.fromkeys(("base", "progressive", "extractor", "pd", "cfd", "rcfd", "rdd", "sampling"), 1.0)
    monkeypatch.setattr("rddlib.study.costs.measured_costs", lambda *_: costs)
    main(["ablate", "losses", "budget", "--profile", "smoke", "--dry-run", "--out", str(tmp_path / "study")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ablation", "paper", "settings", "runs", "done", "to", "do", "iterations", "time"]
    assert re.match(r"losses +Table 3, Feng et al. 2024 +6 +18 +0 +18 ", lines[1])
    assert re.match(r"budget +ours +5 +9 +0 +0 ", lines[2])  # all costs alike: equal time is equal iterations
    assert lines[3].startswith("total") and not (tmp_path / "study").exists()


def test_unknown_ablations_are_named_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'tau_is'"):
        find_ablation("tau_si")


def test_another_version_s_sweep_and_a_damaged_record_are_refused(tmp_path, capsys):
    from rddlib.cli import main

    folder = tmp_path / "study"
    (folder / "ablations").mkdir(parents=True)
    for text, words in (
        (json.dumps({"version": "0.0.1"}), "holds ablations of rddlib 0.0.1, this is"),
        ("{", "is damaged"),
    ):
        (folder / "ablations/sweep.json").write_text(text)
        with pytest.raises(SystemExit) as left:
            main(["ablate", "alpha", "--profile", "smoke", "--out", str(folder)])
        errors = capsys.readouterr().err
        assert left.value.code == 2 and words in errors and errors.count("\n") == 1
        assert sorted(p.name for p in folder.rglob("*")) == ["ablations", "sweep.json"]
