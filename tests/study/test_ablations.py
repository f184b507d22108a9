"""What the ablations vary: every table and figure of both papers, as settings that are profiles."""

import re
from dataclasses import replace

import pytest
import torch
from tiny import gray_images, refused

from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.label_free import TEACHER
from rddlib.distillation.objectives import RELEASED_SWITCHES
from rddlib.methods import build_objective
from rddlib.study.ablation_results import PUBLISHED_METRIC, measured, published, read_table
from rddlib.study.ablations import (
    ABLATIONS,
    EXTRACTOR_SEEDS,
    OVER_PROCESSES,
    RELEASED_BESIDE_SWITCHES,
    SCORED_OTHERWISE,
    custom,
    find_ablation,
)
from rddlib.study.graph import new_extractor, temperature_of
from rddlib.study.profiles import PROFILES, changed, load_profile
from rddlib.study.sweep import COLUMNS
from rddlib.utils.errors import UserError


def made(profile, setting):
    return changed(profile, dict(setting.changes))


def test_every_table_and_figure_of_both_papers_is_there():
    assert all(ablation.name == name for name, ablation in ABLATIONS.items())
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
        if ablation.name == "label_free" and profile.extractor.name == TEACHER:
            continue  # it sets beside a classifier what the profile does anyway
        settings = ablation.settings(profile, {"pd": 1.0, "cfd": 1.3, "rdd": 1.7, "cfd_is_pd": 1.5})
        assert len({setting.name for setting in settings}) == len(settings) > 1, ablation.name
        distinct = {(s.method, made(profile, s), s.name if s.method == "teacher" else "") for s in settings}
        assert len(distinct) == len(settings), f"{ablation.name} at {name} repeats itself"
        assert all(made(profile, setting).name == name for setting in settings)


@pytest.mark.parametrize("name", ["tau_is", "tau_m", "queue_size", "queue_draws", "alpha", "beta", "batch"])
def test_an_axis_passes_through_the_profile_s_own_number(name):
    profile, ablation = load_profile("cifar10"), ABLATIONS[name]
    own = changed(profile, {key: str(value) for key, value in ablation.fixed.items()})
    points = [made(profile, setting) for setting in ablation.settings(profile) if setting.x is not None]
    assert own in [replace(point, loss=replace(point.loss, impl=own.loss.impl)) for point in points]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("losses", ["pd", "cfd", "cfd ii_p2p", "cfd is_p2p", "cfd m_p2p", "cfd is_p2p m_p2p"]),
        ("rcfd_losses", ["pd", "cfd", "entropy", "diversity", "entropy diversity", "cfd entropy diversity"]),
    ],
)
def test_a_setting_s_objective_has_the_terms_it_names(name, expected):
    profile = load_profile("smoke")
    extractor, x = new_extractor(profile, 10).eval(), torch.rand(2, 4, 1, 8, 8) * 2 - 1
    for setting, terms in zip(ABLATIONS[name].settings(profile), expected, strict=True):
        p = made(profile, setting)
        objective = build_objective(p.method(setting.method), p.loss, temperature_of(p, 4), CosineSchedule(), extractor)
        for _ in range(2):  # the first fills the queue
            found = objective(*x, torch.ones(4), torch.Generator()).terms
            objective.after_step(torch.Generator())
        assert " ".join(found) == terms, setting.name


def test_released_has_each_switch_alone_and_all_together():
    profile = load_profile("digits")
    settings = {setting.name: made(profile, setting) for setting in ABLATIONS["released"].settings(profile)}
    switches = set(RELEASED_SWITCHES) - set(OVER_PROCESSES)
    others = {"CFD", "as in the paper", "all together", *RELEASED_BESIDE_SWITCHES, *SCORED_OTHERWISE}
    assert set(settings) == switches | others and settings["as in the paper"] == profile
    assert all(settings[name].loss.released == (name,) for name in switches)
    together = settings["all together"]
    assert set(together.loss.released) == switches and together.loss.draws == 2 * profile.loss.draws
    assert together.loss.per_image == 128 and together.extractor.map_at == "relu"
    assert together.base.schedule == "discrete" and together.unet.attention == (8,)
    assert together.evaluation.protocol == "released" and together.evaluation.clip
    imagenet = load_profile("imagenet64")
    (fixed,) = [s for s in ABLATIONS["released"].settings(imagenet) if s.name == "alpha fixed at 1"]
    assert made(imagenet, fixed).loss.alpha == 1 != imagenet.loss.alpha


def test_equal_time_is_more_iterations_in_proportion_to_what_one_costs():
    profile = load_profile("digits")
    settings = ABLATIONS["budget"].settings(profile, {"pd": 0.1, "cfd": 0.15, "rdd": 0.2})
    longer = {setting.name: made(profile, setting).distill.iterations for setting in settings}
    assert longer["PD, equal time"] == (300, 300, 600) and longer["CFD, equal time"] == (200, 200, 399)
    assert longer["RDD, equal iterations"] == longer["PD, equal iterations"] == (150, 150, 300)


def test_the_evidence_gives_pd_and_cfd_the_time_of_the_winner():
    profile = load_profile("digits")
    costs = {"pd": 0.1, "cfd": 0.15, "cfd_is_pd": 0.18}
    settings = {setting.name: made(profile, setting) for setting in ABLATIONS["evidence"].settings(profile, costs)}
    assert settings["PD, equal time"].distill.iterations == (270, 270, 540)
    for seed in EXTRACTOR_SEEDS:
        longer, own = settings[f"CFD, equal time, extractor {seed}"], settings[f"CFD + IS_P2P + PD, extractor {seed}"]
        assert longer.distill.iterations == (180, 180, 360) and own.distill.iterations == (150, 150, 300)
        assert longer.extractor.seed == own.extractor.seed == seed


def test_an_axis_takes_other_values():
    profile = load_profile("digits")
    ablation = ABLATIONS["cfd_tau"].with_axes({"distill.temperatures": "0.5, 2", "loss.predictions": "true"}, profile)
    first, second, *beside = ablation.settings(profile)
    assert (first.x, second.x) == (0.5, 2.0) and [setting.name for setting in beside] == ["PD"]
    assert made(profile, second).distill.temperatures == (2.0, 2.0, 2.0) and made(profile, second).loss.predictions


def test_a_grid_of_one_s_own_spans_any_fields():
    profile = load_profile("digits")
    settings = custom({"loss.alpha": "1,100", "loss.tau_is": "[0.1, 1]"}, profile).settings(profile)
    points = [made(profile, setting).loss for setting in settings]
    assert [(point.alpha, point.tau_is) for point in points] == [(1, 0.1), (1, 1), (100, 0.1), (100, 1)]
    assert [setting.series for setting in settings] == ["0.1", "1", "0.1", "1"]
    grids = [(axes, method) for axes in ({"loss.alpha": "1,2"}, {"loss.alpha": "1,3"}) for method in ("rdd", "cfd")]
    files = [custom(axes, profile, method).files for axes, method in grids]
    assert len(set(files)) == 4 and all(re.fullmatch("custom-[0-9a-f]{6}", name) for name in files)  # one table each


def test_a_grid_of_other_values_takes_no_table_s_place():
    alpha, profile = ABLATIONS["alpha"], load_profile("digits")
    others = [alpha.with_axes({"loss.alpha": values}, profile) for values in ("1,2", "1,3")]
    files = [ablation.files for ablation in (*ABLATIONS.values(), *others, replace(alpha, whole=not alpha.whole))]
    assert files[: len(ABLATIONS)] == list(ABLATIONS) and len(set(files)) == len(files)
    assert all(re.fullmatch("alpha-[0-9a-f]{6}", name) for name in files[len(ABLATIONS) :])


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda p: find_ablation("tau_si"), "did you mean 'tau_is'"),
        (lambda p: ABLATIONS["losses"].with_axes({"loss.alpha": "1"}, p), "no axis of losses; it has none"),
        (lambda p: ABLATIONS["alpha"].with_axes({"loss.beta": "1"}, p), "its axes are loss.alpha"),
        (lambda p: ABLATIONS["alpha"].with_axes({"loss.alpha": "[]"}, p), "the grid is empty"),
        (lambda p: ABLATIONS["alpha"].with_axes({"loss.alpha": "loud"}, p), "'loud' is no number"),
        (lambda p: custom({}, p), "custom has an empty grid"),
        (lambda p: custom({"loss.alpa": "1"}, p), "did you mean 'alpha'"),
        (lambda p: custom({"loss.alpha": "1"}, p, "rdf"), r"unknown --method 'rdf' \(did you mean 'rdd'\?\)"),
        (lambda p: custom({"distill.iterations": "[75,75,150]"}, p), "a value stands there twice"),
    ],
)
def test_grids_that_cannot_be(ask, words):
    assert re.search(words, refused(ask, load_profile("digits")))


# as they were measured


def test_published_rows_stand_in_for_what_a_study_has_not_measured(tiny):
    table = published()
    assert list(table.columns) == COLUMNS and "alpha" in set(table["ablation"])
    found = measured(tiny, "alpha")
    assert found.metric == PUBLISHED_METRIC and found.profile.name == "digits" and found.source.endswith(".csv")
    assert set(found.table["ablation"]) == {"alpha"} and found.profile.distill.iterations == (75, 75, 150)
    assert "nothing of the ablation gamma has been measured" in refused(measured, tiny, "gamma")


@pytest.mark.parametrize("content, words", [(b"\x00\xff", "cannot be read"), (b"ablation,x\n", "lacks the columns")])
def test_a_damaged_table_is_named(tmp_path, content, words):
    (tmp_path / "alpha.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"alpha.csv {words}.*delete it, rdd ablate writes it again"):
        read_table(tmp_path / "alpha.csv")


@pytest.mark.parametrize("classes, half", [(40, 20), (4, 2), (3, 0)])
def test_half_of_the_classes_is_half_of_the_images_own(tmp_path, classes, half):
    for k in range(classes):
        gray_images(tmp_path / f"class {k}", 1, 0)
    profile = load_profile("smoke", {"data.name": "folder", "data.root": str(tmp_path)})
    settings = {one.name: one.changes for one in ABLATIONS["classifier"].settings(profile)}
    found = settings.get("small_resnet, half the classes", {}).get("extractor.classes", "[]")
    assert found == str(list(range(half)))
