"""Ablations as runs: which are the same, what they share, the tables they leave, and what a failure leaves."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import refused
from tiny_study import smoke

from rddlib.evaluation import common_noise
from rddlib.evaluation.entropy import entropy_by_step
from rddlib.report.ablations import run_sweep, shard_of
from rddlib.study import entropy
from rddlib.study.ablation_results import measured
from rddlib.study.ablations import ABLATIONS, CFD, Ablation, Axis
from rddlib.study.engines import in_turn
from rddlib.study.entropy import entropy_record
from rddlib.study.stage import Stage
from rddlib.study.study import Arm, Study
from rddlib.study.sweep import COLUMNS, Sweep, _training
from rddlib.utils.errors import UserError

PAIR = Ablation(
    "pair",
    "a test",
    "Two weights",
    "",
    axes=(Axis("alpha", "loss.alpha", (0.5, 2.0)),),
    beside=(CFD,),
)


def weights(name, *values):
    return replace(PAIR, name=name, axes=(Axis("alpha", "loss.alpha", values),), beside=())


# runs and keys


def test_what_does_not_change_a_number_does_not_make_another_run(tmp_path):
    sweep = Sweep(smoke(tmp_path), [ABLATIONS["alpha"], ABLATIONS["beta"]], [0, 1])
    keys = {(p.ablation.name, p.setting.name, p.run.seed): p.run.key for p in sweep.points}
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
    found = [
        (a.kind, a.study.profile.extractor.name, a.study.profile.extractor.seed)
        for a in sweep.ancestors(sweep.runs.values())
    ]
    assert found.count(("teacher", "small_resnet", 0)) == 1 and len({a for a in found if a[0] == "teacher"}) == 1
    extractors = sorted(
        a[1:] for a in found if a[0] == "extractor"
    )  # the second (small_resnet, 0) saw half the classes
    assert extractors == [("resnet18", 0), *(("small_resnet", seed) for seed in (0, 0, 1, 2))]


def test_a_change_that_does_not_touch_a_model_leaves_its_numbers_the_study_s_own(tmp_path):
    study = smoke(tmp_path)
    points = Sweep(study, [ABLATIONS["classifier"], ABLATIONS["losses"]], [0, 1]).points
    own = {(p.setting.name, p.run.seed): p.run.study.scores == study.scores for p in points}
    assert own["small_resnet", 0] and own["PD", 0]  # K is no number of CFD's
    assert not own["resnet18", 0] and not own["PD", 1]  # the profile's seeds are (0,)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_shards_are_all_runs_and_none_twice(parts):
    tasks = [f"run {k}" for k in range(20)]
    shares = [shard_of(tasks, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(sum(shares, [])) == sorted(tasks) and max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/2/3", "-1/2"])
def test_a_wrong_shard_is_refused(text):
    assert "write it as 1/4" in refused(shard_of, [], text)


def test_sweeps_that_there_are_not(tmp_path):
    assert "nothing to run" in refused(Sweep, smoke(tmp_path), [PAIR], [])
    with pytest.raises(UserError, match="leave pretrained.teacher and pretrained.extractor out"):
        Sweep(smoke(tmp_path, **{"pretrained.extractor": "theirs.pt"}), [PAIR], [0])


@pytest.mark.parametrize(
    "name, words", [("entropy", "entropy measures class predictions"), ("rcfd_losses", "rcfd: .*no class predictions")]
)
def test_what_needs_class_predictions_is_not_begun_with_the_teachers_features(tmp_path, name, words):
    study = smoke(tmp_path, **{"extractor.name": "teacher", "methods": "[pd, cfd]"})
    with pytest.raises(UserError, match=words):
        Sweep(study, [ABLATIONS[name]], [0]).points  # noqa: B018
    assert Sweep(study, [PAIR], [0]).points


# done for real, tiny


def table_of(study, name):
    (path,) = (path for path in (study.out / "ablations").glob(f"{name}*.csv") if not path.stem.endswith("receipts"))
    return pd.read_csv(path)


def test_a_student_that_came_with_the_package_took_no_time_to_tell(tmp_path, monkeypatch):
    (point, *_) = Sweep(smoke(tmp_path), [PAIR], [0]).points
    for shipped, told in ((False, (2.0, 3.0)), (True, (None, None))):
        noted = {"seconds": 2.0, "peak_memory": 3 * 2**20} | ({"shipped": True} if shipped else {})
        monkeypatch.setattr(Stage, "noted", lambda stage, noted=noted: noted)
        found = _training(point.run, 4)
        assert (found["train_seconds"], found["peak_mib"]) == told


@pytest.mark.ci
def test_a_sweep_measures_all_its_points_once_and_leaves_a_tidy_table(tiny):
    performed = []

    def engine(tasks, report):
        performed.extend(task.label for task in tasks)
        in_turn(tasks, report)

    sweep = Sweep(tiny, [PAIR], [0, 1])
    assert run_sweep(sweep, engine) == [] and len(performed) == 6 and not sweep.waiting()
    table = table_of(tiny, "pair")
    assert list(table) == COLUMNS and len(table) == 6
    assert set(table["setting"]) == {"alpha = 0.5", "alpha = 2", "CFD"} and set(table["steps"]) == {4}
    assert table[["fid", "pfd", "is", "iterations", "batch", "train_seconds", "peak_mib"]].notna().all().all()
    assert (tiny.out / f"ablations/{PAIR.files}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    receipts = json.loads((tiny.out / f"ablations/{PAIR.files}_receipts.json").read_text())
    assert set(table["record"]) == set(receipts) and all(r["samples"] == 80 for r in receipts.values())
    row = table.query("setting == 'CFD' and seed == 1").iloc[0]
    assert row["fid"] == pytest.approx(tiny.measured(Arm("cfd", 4, 1))["row"]["fid"], rel=1e-4)  # the study's number
    assert run_sweep(Sweep(tiny, [PAIR], [0, 1]), engine) == [] and len(performed) == 6  # nothing twice
    longer = replace(PAIR, axes=(Axis("alpha", "loss.alpha", (0.5, 2.0, 3.0)),))
    run_sweep(Sweep(tiny, [longer], [0, 1]), engine)
    assert len(performed) == 8  # what is new


def test_a_run_that_fails_leaves_the_others_and_is_tried_again(tiny, monkeypatch):
    measure = Study.measured

    def fails_at_8(self, arm):
        if self.profile.loss.alpha == 8:
            raise RuntimeError("no luck")
        return measure(self, arm)

    sweep = Sweep(tiny, [weights("broken", 7.0, 8.0, 9.0)], [0])
    with monkeypatch.context() as patch:
        patch.setattr(Study, "measured", fails_at_8)
        (failed,) = run_sweep(sweep, in_turn)
    assert failed.failed and failed.said == "RuntimeError: no luck" and "alpha = 8" in failed.task.label
    assert list(table_of(tiny, "broken")["x"]) == [7.0, 9.0]
    assert run_sweep(sweep, in_turn) == []
    assert list(table_of(tiny, "broken")["x"]) == [7.0, 8.0, 9.0]


def test_what_needs_something_that_could_not_be_made_is_not_tried(tiny, tmp_path, monkeypatch):
    made, get = [], Stage.get

    def fails(self):
        if self.kind == "extractor":
            raise RuntimeError("no classifier today")
        made.append(self.name)
        return get(self)

    monkeypatch.setattr(Stage, "get", fails)
    failed = run_sweep(Sweep(Study(tiny.profile, tmp_path / "new"), [ABLATIONS["rcfd_losses"]], [0]), in_turn)
    said = [outcome.said for outcome in failed]
    assert said == ["RuntimeError: no classifier today", *["what it needs could not be made"] * 5]
    assert not [name for name in made if "cfd" in name] and "pd-4" in made  # which needs none


def test_stopped_it_leaves_the_table_of_what_was_done(tiny):
    def engine(tasks, report):
        raise KeyboardInterrupt

    run_sweep(Sweep(tiny, [weights("first", 0.5)], [0]), in_turn)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(Sweep(tiny, [weights("stopped", 0.5, 44.0)], [0]), engine)
    assert set(table_of(tiny, "stopped")["setting"]) == {"alpha = 0.5"}


def test_a_table_keeps_the_seeds_that_it_has(tiny):
    sweeps = [Sweep(tiny, [weights("kept", 0.5)], seeds) for seeds in ([0, 1], [2], [0])]
    for sweep, seeds in zip(sweeps, ({0, 1}, {0, 1, 2}, {0, 1, 2}), strict=True):
        run_sweep(sweep, in_turn)
        assert set(table_of(tiny, "kept")["seed"]) == seeds


def test_a_whole_sweep_of_one_s_own_is_shown_instead_of_the_published(tiny, monkeypatch):
    monkeypatch.setitem(ABLATIONS, "alpha", weights("alpha", 0.5, 2.0))
    run_sweep(Sweep(tiny, [weights("alpha", 0.5)], [0]), in_turn)
    assert measured(tiny, "alpha").source != "ablations/alpha.csv"  # half of it
    run_sweep(Sweep(tiny, [ABLATIONS["alpha"]], [0]), in_turn)
    found = measured(tiny, "alpha")
    assert (found.source, found.metric, len(found.table)) == ("ablations/alpha.csv", tiny.metric, 2)


def test_entropies_are_those_of_the_sampler_s_predictions(tiny, monkeypatch):
    run_sweep(Sweep(tiny, [ABLATIONS["entropy"]], [0]), in_turn)
    table = table_of(tiny, "entropy")
    assert set(table["setting"]) == {"teacher", "PD", "CFD", "RCFD"} and table["fid"].isna().all()
    noise = common_noise(tiny.image_shape, 0, 80, tiny.profile.evaluation.seed)
    extractor = tiny.extractor()
    for setting, steps, denoiser in (("teacher", 2, tiny.teacher()), ("CFD", 4, tiny.student("cfd", 4))):
        rows = table[(table["setting"] == setting) & (table["steps"] == steps)]
        expected = entropy_by_step(denoiser, lambda x: extractor(x).logits, noise, steps)
        assert list(rows["t"]) == [1 - k / steps for k in range(steps)]
        torch.testing.assert_close(torch.tensor(rows["entropy"].values), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(entropy, "_measured", None)  # found, not measured again
    receipt = entropy_record(tiny, Arm("cfd", 4, 0))["receipt"]
    student = tiny.stages.student("cfd", 4, 0).recorded()
    assert receipt["checkpoint_sha256"] == student["sha256"] and receipt["samples"] == 80


def test_entropies_of_a_rounded_student_pass_for_no_trained_ones(tmp_path, monkeypatch):
    trained = entropy.entropy_path(smoke(tmp_path), Arm("cfd", 4, 0))
    monkeypatch.setattr(Stage, "_shipped", ({}, {}))
    assert entropy.entropy_path(smoke(tmp_path), Arm("cfd", 4, 0)) != trained


def test_an_extractor_that_scores_must_not_vary(tmp_path):
    study = smoke(tmp_path, evaluation__network="extractor")
    varied = Sweep(study, [ABLATIONS["evidence"]], [0])
    assert "CFD, extractor 1, seed 0 changes the extractor, which scores" in refused(lambda: varied.points)
    assert Sweep(study, [ABLATIONS["alpha"]], [0]).points
