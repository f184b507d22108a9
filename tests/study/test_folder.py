"""A folder belongs to one study: what may change there, what is refused, and that nothing foreign is touched."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import refused

from rddlib.study.folder import (
    STUDY_FILE,
    continue_study,
    default_out,
    fitted,
    open_study,
    prepare_folder,
    study_profile,
)
from rddlib.study.graph import build_denoiser
from rddlib.study.profiles import load_profile
from rddlib.utils.errors import UserError


def test_the_usual_folder_is_named_by_the_profile():
    assert default_out("smoke").parts[-2:] == ("runs", "smoke")


def test_commands_that_begin_together_share_a_new_folder(tmp_path):
    """rdd train beside rdd extractor, say: neither takes the other's beginnings for a stranger's."""
    smoke = load_profile("smoke")
    with ThreadPoolExecutor(8) as pool:
        for folder in (tmp_path / str(number) for number in range(10)):
            list(pool.map(lambda _, folder=folder: prepare_folder(folder, smoke, {}, 0), range(8)))
            assert os.listdir(folder) == [STUDY_FILE]


def test_another_configuration_is_refused_by_what_differs_and_nothing_changes(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.out.rglob("*")}
    with pytest.raises(UserError, match=r"another configuration \(it differs in loss.alpha\).*--update"):
        continue_study("smoke", {"loss.alpha": "3"}, tiny.out)
    assert re.search(r"differs in seed\)", refused(open_study, "smoke", tiny.out, seed=1))
    assert "holds a study of the profile smoke: choose another --out" in refused(continue_study, "digits", {}, tiny.out)
    assert "another configuration" in refused(open_study, "digits", tiny.out)
    assert {path: path.stat().st_mtime_ns for path in tiny.out.rglob("*")} == before


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"config": {}, "overrides": {}}', '{"profile": 3, "seed": 0, "config": {}, "overrides": {}}']
)
def test_a_damaged_record_is_named(tiny, text):
    (tiny.out / STUDY_FILE).write_text(text)
    with pytest.raises(UserError, match="study.json is damaged: choose another --out, or delete the folder"):
        open_study("smoke", tiny.out)


def test_how_a_study_runs_may_change_where_its_numbers_may_not(tiny):
    changes = {"run.save_every": "5", "jobs": "3", "methods": "[pd, rdd, cfd]", "evaluation.baselines": "[]"}
    continue_study("smoke", changes, tiny.out)
    found = open_study("smoke", tiny.out).profile
    assert (found.run.save_every, found.jobs, found.methods) == (5, 3, ("pd", "rdd", "cfd"))


def test_seeds_come_and_go_but_for_the_first(tiny):
    scores = [tiny.score_path(arm) for arm in tiny.arms()]
    more = continue_study("smoke", {"seeds": "[0, 2, 1]"}, tiny.out)
    assert [more.score_path(arm) for arm in tiny.arms()] == scores and {arm.seed for arm in more.arms()} == {0, 1, 2}
    assert continue_study("smoke", {"seeds": "[0, 1]"}, tiny.out).profile.seeds == (0, 1)
    assert re.search(r"differs in seeds\)", refused(continue_study, "smoke", {"seeds": "[1, 0]"}, tiny.out))


def test_a_later_command_keeps_what_was_set_before_and_update_lets_it_change(tmp_path):
    continue_study("smoke", {"loss.alpha": "3"}, tmp_path / "a")
    assert continue_study("smoke", {"run.keep": "5"}, tmp_path / "a").profile.loss.alpha == 3
    continue_study("smoke", {"loss.alpha": "4"}, tmp_path / "a", update=True)
    assert open_study("smoke", tmp_path / "a").profile.loss.alpha == 4


def test_a_study_of_an_earlier_version_had_today_s_default_where_it_lacked_a_field(tmp_path):
    continue_study("smoke", {}, tmp_path / "a")
    record = json.loads((tmp_path / "a" / STUDY_FILE).read_text())
    del record["config"]["loss"]["dual"]
    (tmp_path / "a" / STUDY_FILE).write_text(json.dumps(record))
    assert open_study("smoke", tmp_path / "a").profile.loss.dual is False
    (tmp_path / "a" / STUDY_FILE).write_text(json.dumps(record))
    assert re.search(r"differs in loss.dual\)", refused(continue_study, "smoke", {"loss.dual": "true"}, tmp_path / "a"))


def test_what_is_refused_leaves_no_folder(tmp_path):
    def refuse(study):
        raise UserError("no")

    assert "no" in refused(continue_study, "smoke", {}, tmp_path / "a", check=refuse)
    assert "16 pixels" in refused(continue_study, "smoke", {"loss.per_image": "17"}, tmp_path / "a")
    assert continue_study("smoke", {}, tmp_path / "a", look_only=True).out == tmp_path / "a"
    assert not (tmp_path / "a").exists()


# models from elsewhere


def test_a_given_model_brings_its_own_numbers(tiny):
    given = {"pretrained.teacher": str(tiny.stages.student("pd", 4, 0).path)}
    with pytest.raises(UserError, match="pretrained.teacher is a 4-step model: set progressive.teacher_steps=4"):
        study_profile("smoke", given)
    fewer = {"progressive.teacher_steps": "4", "distill.iterations": "[1, 1]", "distill.temperatures": "[1, 1]"}
    assert study_profile("smoke", given | fewer).base.steps == 4
    with pytest.raises(UserError, match="--set unet.channels changes nothing, since pretrained.teacher brings its own"):
        study_profile("smoke", given | fewer | {"unet.channels": "8"})
    extractor = {"pretrained.extractor": str(tiny.stages.extractor.path)}
    assert study_profile("digits", extractor).extractor.name == "small_resnet"
    with pytest.raises(UserError, match="--set extractor.shift changes nothing"):
        study_profile("digits", extractor | {"extractor.shift": "0"})


def test_how_a_teacher_s_features_are_shown_is_no_setting_of_a_classifier(tiny):
    shown = {"extractor.level": "3", "extractor.time": "0.5"}
    extractor = study_profile("own", shown).extractor
    assert (extractor.name, extractor.level, extractor.time) == ("teacher", 3, 0.5)
    assert study_profile("own", {"extractor.name": "resnet18"}).extractor.level == 2  # the profile's own is no fault
    given = {"pretrained.extractor": str(tiny.stages.extractor.path)}
    for field, value in shown.items():
        for changes in ({}, {"extractor.name": "torchvision:resnet18"}, given):
            said = refused(study_profile, "smoke", {**changes, field: value})
            assert (
                said
                == f"--set {field} changes nothing, since it is for extractor.name=teacher alone: leave it out (another --out, where it was set before)"
            )


def test_models_that_a_study_cannot_start_from(guided):
    profile = load_profile("smoke")
    assert "takes a guidance weight: rdd distill --guided halves such models" in refused(fitted, profile, guided.base())
    one_step, twelve = build_denoiser(profile), build_denoiser(profile)
    one_step.steps, twelve.steps = 1, 12
    assert "nothing left to halve" in refused(fitted, profile, one_step)
    assert re.search("does not fit the profile: base.steps 12 must be", refused(fitted, profile, twelve))
