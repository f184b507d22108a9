"""Which stages a study has, what each needs, and which number changes the key of which."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from tiny import conditional_denoiser, refused, tiny_denoiser
from tiny_study import smoke

from rddlib.data import ImageDataset
from rddlib.diffusion.model_file import describe, load_denoiser
from rddlib.diffusion.schedule import DiscreteCosineSchedule
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import CFD, PD, RCFD, RDD
from rddlib.study.folder import study_profile
from rddlib.study.graph import Inputs, check_takes_weight, conditional_profile, guided_graph, plain_graph
from rddlib.study.stage import Workplace
from rddlib.study.study import Study, guided_study
from rddlib.training import RunConfig
from rddlib.utils.checkpoint import save_checkpoint

METHODS = ("pd", "cfd", "rcfd", "rdd")


def images(values=(0, 0, 0, 0), labels=(0, 0, 1, 1), names=()):
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    return ImageDataset("folder", pixels, torch.tensor(labels), 2, class_names=names)


def graph_of(overrides=None, guided=False, seed=0, data=None):
    profile = study_profile("smoke", overrides or {})
    profile = conditional_profile(profile, 10) if guided else profile
    place = Workplace(Path("nowhere"), RunConfig())
    return (guided_graph if guided else plain_graph)(Inputs(profile, seed, lambda split: data, place))


def stages_of(graph):
    found = {"base": graph.base, "teacher": graph.teacher(), "extractor": graph.extractor}
    return found | {method: graph.student(method, 1, 0) for method in METHODS}


def guided_stages_of(graph):
    found = {"conditional": graph.conditional, **stages_of(graph)}
    return found | {
        f"stochastic {method}": graph.stochastic(method, 8 if method == "pd" else 2, 0) for method in METHODS
    }


def changed(stages, others):
    return {name for name in stages if stages[name].key != others[name].key}


# keys

LOOKING = {"cfd", "rcfd", "rdd"}
STUDENTS = {"pd", *LOOKING}
ALL = {"base", "teacher", "extractor", *STUDENTS}


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("loss.alpha", "3", {"rdd"}),
        ("loss.rcfd_beta", "3", {"rcfd"}),
        ("loss.dual", "true", LOOKING),
        ("loss.released", "[queue_rows]", {"rdd"}),
        ("loss.watch", "3", set()),
        ("loss.debug", "true", set()),
        ("extractor.map_at", "relu", LOOKING),
        ("extractor.train.iterations", "3", {"extractor", *LOOKING}),
        ("extractor.seed", "1", {"extractor", *LOOKING}),
        ("extractor.classes", "[0, 3]", {"extractor", *LOOKING}),
        ("distill.train.batch_size", "3", STUDENTS),
        ("distill.lora", "4", STUDENTS),
        ("distill.iterations", "[9, 4, 6]", STUDENTS),  # by their ancestor of 4 steps
        ("distill.temperatures", "[1, 1, 0.5]", LOOKING),
        ("progressive.train.iterations", "9", {"teacher", *STUDENTS}),
        ("base.steps", "32", {"teacher", *STUDENTS}),
        ("base.train.iterations", "9", ALL - {"extractor"}),
        ("unet.channels", "24", ALL - {"extractor"}),
        ("data.flip", "true", ALL),
        ("run.save_every", "7", set()),
        ("evaluation.samples", "300", set()),
        ("guidance.weights", "[0, 9]", set()),
        ("guidance.label_dropout", "0.5", set()),
    ],
)
def test_a_number_changes_the_keys_of_what_depends_on_it_and_no_other(field, value, expected):
    assert changed(stages_of(graph_of()), stages_of(graph_of({field: value}))) == expected


STOCHASTIC = {f"stochastic {method}" for method in METHODS}
BELOW = {"base", "teacher", *STUDENTS, *STOCHASTIC}


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("guidance.base.iterations", "9", {"conditional", *BELOW}),
        ("guidance.label_dropout", "0.5", {"conditional", *BELOW}),
        ("guidance.weights", "[0, 6]", BELOW),
        ("guidance.train.iterations", "9", BELOW),
        ("guidance.budget", "2", {*STUDENTS, *STOCHASTIC} - {"stochastic pd"}),  # that one is of 8 steps
        ("guidance.stochastic", "9", STOCHASTIC),
        ("loss.alpha", "7", {"rdd", "stochastic rdd"}),
        ("base.train.iterations", "9", set()),
        ("guidance.at", "[1]", set()),
        ("guidance.samples", "300", set()),
    ],
)
def test_the_same_where_guidance_is_distilled(field, value, expected):
    plain, other = (guided_stages_of(graph_of(overrides, guided=True)) for overrides in ({}, {field: value}))
    assert changed(plain, other) == expected


def test_keys_follow_seeds_pixels_and_labels():
    assert changed(stages_of(graph_of()), stages_of(graph_of(seed=1))) == ALL
    one, other = (graph_of().student("pd", 1, seed).key for seed in (0, 1))
    assert one != other
    folder = {"data.name": "folder", "data.root": "anywhere", "unet.num_classes": "2"}
    first = stages_of(graph_of(folder, data=images()))
    assert changed(first, stages_of(graph_of(folder | {"data.root": "elsewhere"}, data=images()))) == set()
    for data in (images(labels=(0, 1, 0, 1)), images(values=(0, 0, 0, 9))):
        assert changed(first, stages_of(graph_of(folder, data=data))) == ALL


def test_keys_follow_captions():
    captions = {"data.name": "captions", "data.root": "anywhere", "unet.num_classes": "2"}
    one, other = (stages_of(graph_of(captions, data=images(names=("a dog", end)))) for end in ("an ox", "a yak"))
    assert changed(one, other) == ALL


def test_a_given_model_is_known_by_its_content(tiny, tmp_path):
    teacher, extractor = tiny.stages.teacher(), tiny.stages.extractor
    moved, other = tmp_path / "moved.safetensors", tiny.stages.student("pd", 4, 0)
    shutil.copy(teacher.path, moved)
    given = [
        stages_of(graph_of({"pretrained.teacher": str(path), "pretrained.extractor": str(extractor.path)}))
        for path in (teacher.path, moved)
    ]
    assert changed(*given) == set() and given[0]["base"].config is given[0]["extractor"].config is None
    assert "base" in changed(given[0], stages_of(graph_of({"pretrained.extractor": str(extractor.path)})))
    fewer = {"progressive.teacher_steps": "4", "distill.iterations": "[1, 1]", "distill.temperatures": "[1, 1]"}
    assert graph_of({"pretrained.teacher": str(other.path), **fewer}).base.key != given[0]["base"].key


def test_a_conditional_base_model_of_the_study_s_own_numbers_is_that_of_guidance(tmp_path):
    same = {"unet.num_classes": "10", "unet.label_dropout": "0.1", "base.train.batch_size": "16"}
    study = smoke(tmp_path, **same, guidance__base__batch_size="16")
    assert guided_study(study).stages.conditional.path == study.stages.base.path


def test_guidance_trains_all_of_it_for_every_seed_and_shares_the_first_one_s_extractor(tiny):
    first, second = (guided_stages_of(guided_study(tiny, seed).stages) for seed in (0, 1))
    assert changed(first, second) == set(first)
    assert first["extractor"].path == tiny.stages.extractor.path


# what there is


def names(stages):
    return [stage.name for stage in stages]


def test_an_arm_needs_its_ancestors_and_no_other():
    plain, guided = graph_of(), graph_of(guided=True)
    assert names(plain.drawer("ddim", 4, 0).lineage()) == ["base"]
    assert names(plain.drawer("pd", 8, 0).lineage()) == ["base", "pd-8"]
    assert names(plain.drawer("pd", 2, 1).lineage()) == ["base", "pd-8", "pd-4", "pd-2"]
    assert names(plain.drawer("rdd", 4, 0).lineage()) == ["base", "pd-8", "extractor", "rdd-4"]
    assert names(guided.drawer("teacher", 16, 0).lineage()) == ["base"] == names([guided.conditional])
    one = ["base", "guided-stage-one"]
    assert names(guided.drawer("stage_one", 16, 0).lineage()) == one
    halved = [*one, "guided-pd-8"]
    assert names(guided.drawer("pd", 8, 0, "stochastic").lineage()) == [*halved, "guided-pd-8-stochastic"]
    below = ["extractor", *(f"guided-rdd-{name}" for name in ("4", "2", "2-stochastic"))]
    assert names(guided.drawer("rdd", 2, 0, "stochastic").lineage()) == [*halved, *below]
    assert guided.drawer("pd", 1, 0, "stochastic") is guided.student("pd", 1, 0)  # one step is deterministic


def test_stages_have_the_iterations_and_labels_of_their_halving():
    rows = [(stage.label, stage.kind, stage.iterations) for stage in graph_of().student("rdd", 1, 0).lineage()]
    assert rows == [
        ("base model", "base", 60),
        ("PD 16 to 8 steps", "halving", 4),
        ("extractor small_resnet", "extractor", 40),
        ("RDD 8 to 4 steps", "rdd", 4),
        ("RDD 4 to 2 steps", "rdd", 4),
        ("RDD 2 to 1 steps", "rdd", 6),
    ]
    longer = graph_of({"guidance.budget": "2"}, guided=True)
    assert (longer.student("rdd", 1, 0).iterations, longer.stochastic("rdd", 2, 0).iterations) == (12, 4)


def test_halvings_are_those_between_two_steps():
    graph = graph_of({"base.steps": "64"})
    assert names(graph.halvings("pd", 64, 8)) == ["pd-32", "pd-16", "pd-8"]
    assert names(graph.halvings("rdd", 8, 2)) == ["rdd-4", "rdd-2"]
    assert graph.halvings("pd", 16, 8) == [graph.teacher()]


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda graph: graph.teacher(32), "no teacher has 32 steps: there are 16, 8"),
        (lambda graph: graph.student("rdd", 8, 0), "no student has 8 steps: the smoke profile's have 4, 2, 1"),
        (lambda graph: graph.stochastic("rdd", 8, 0), "no student has 8 steps"),
        (lambda graph: graph.stochastic("pd", 1, 0), "one stochastic step is a deterministic one"),
        (lambda graph: graph.halvings("pd", 7, 1), "choose two of 16, 8, 4, 2, 1, the larger first"),
        (lambda graph: graph.halvings("pd", 4, 8), "the larger first"),
        (lambda graph: graph.halvings("pd", 16, 1), "--from is 8, or more with --to 8 --objective pd"),
    ],
)
def test_stages_that_there_are_not(ask, words):
    assert re.search(words, refused(ask, graph_of(guided=True)))


def test_images_without_classes_have_no_extractor_and_nothing_to_guide_towards(tmp_path):
    study = smoke(tmp_path)
    study.dataset = ImageDataset("folder", torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4).long(), 0)
    assert "sort its images into a folder for each class" in refused(study.extractor)
    assert "sort them into a folder for each class" in refused(guided_study, study)


def test_guidance_is_not_distilled_into_a_student_of_few_steps(tmp_path):
    def profile(steps):
        denoiser, path = conditional_denoiser(), tmp_path / f"{steps}.safetensors"
        denoiser.steps = steps
        save_checkpoint(path, denoiser.state_dict(), {"kind": "pd", "model": describe(denoiser), "facts": {}})
        return study_profile("smoke", {"pretrained.teacher": str(path)})

    check_takes_weight(profile(0))
    assert "is a student of 8 steps, and stage one learns at all times" in refused(check_takes_weight, profile(8))


# networks


def test_who_takes_which_guidance(guided):
    conditional, stages = guided.conditional(), guided.stages
    assert conditional.unconditional and not conditional.guidance
    for stage in (stages.base, stages.teacher(), stages.student("rdd", 1, 0), stages.stochastic("pd", 8, 0)):
        denoiser = stage.get()
        assert denoiser.guidance == (0.0, 4.0) and denoiser.evaluations == 1
    networks = guided.student("pd", 4), guided.denoiser("pd", 4, 0, "stochastic")
    pairs = zip(*(network.parameters() for network in networks), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_objectives_have_the_profile_s_numbers(tiny):
    changes = {"loss.alpha": "7", "loss.draws": "33", "loss.rcfd_beta": "0.5"}
    graph = graph_of(changes)
    teacher, extractor = tiny.teacher(), tiny.extractor()
    made = {method: graph.objective(method, 1, 0, teacher, extractor) for method in METHODS}
    assert [type(made[method]) for method in METHODS] == [PD, CFD, RCFD, RDD]
    assert made["cfd"].summands["cfd"].tau == made["rdd"].summands["cfd"].tau == graph.profile.distill.temperatures[-1]
    assert made["rdd"].weights["is_p2p"] == 7 and made["rdd"].draws == 33
    assert made["rcfd"].weights["entropy"] == pytest.approx(0.5 * graph.profile.loss.rcfd_gamma)
    assert tiny.objective("pd", 4).schedule == teacher.schedule


@pytest.mark.parametrize(("method", "same"), [("rdd", True), ("cfd_is", True), ("pd", False)])
def test_processes_share_their_noise_where_the_objective_follows_the_released_code(monkeypatch, method, same):
    monkeypatch.setattr("rddlib.study.graph.distill", lambda teacher, *_, **__: teacher)
    stage = graph_of({"loss.released": "[same_seed]"}).student(method, 4, 0)
    trainer = stage.trainer()
    stage.fit(trainer, tiny_denoiser(), build_extractor("small_resnet", 1, 10))
    assert trainer.same_noise is same


def test_an_extractor_of_another_seed_or_fewer_classes_is_another_one(tiny):
    def weights(**more):
        profile = study_profile("smoke", {"extractor.train.iterations": "1", **more})
        return Study(profile, tiny.out).extractor().fc.weight

    plain = weights()
    assert not torch.equal(plain, weights(**{"extractor.seed": "1"}))
    assert not torch.equal(plain, weights(**{"extractor.classes": "[0, 3]"}))
    assert torch.equal(plain, weights(**{"extractor.map_at": "relu"}))
    some = tiny.split("extractor").of_classes((0, 3))
    assert set(some.labels.tolist()) == {0, 3}
    assert "no class 10: choose from 0 to 9" in refused(tiny.split("extractor").of_classes, (10,))


def test_a_student_is_read_back_from_its_file_alone(tiny):
    stage, z = tiny.stages.student("rdd", 1, 0), tiny.noise(3)
    denoiser, info = load_denoiser(stage.path)
    torch.testing.assert_close(denoiser(z, 1.0), tiny.denoiser("rdd", 1)(z, 1.0), rtol=1e-5, atol=1e-5)
    assert info["kind"] == "rdd-1" and info["peak_memory"] > 0
    assert "holds no denoiser but extractor" in refused(load_denoiser, tiny.stages.extractor.path)


def test_eps_prediction_on_the_released_grid_trains_draws_and_is_read_back(tiny):
    eps = {"base.prediction": "eps", "base.schedule": "discrete", "base.weight": "eps", "base.train.iterations": "2"}
    study = smoke(tiny.out, **eps)
    assert study.images("ddim", 4, study.noise(4)).isfinite().all()
    read, info = load_denoiser(study.stages.base.path)
    assert (
        study.base().schedule == read.schedule == DiscreteCosineSchedule() and info["model"]["schedule"] == "discrete"
    )
