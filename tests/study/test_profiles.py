import ast
import inspect
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from rddlib.study.assembly import build_denoiser, build_extractor, build_objective

import rddlib
from rddlib.data import ImageDataset
from rddlib.distillation.objectives import CFD, PD, RCFD, RDD
from rddlib.distillation.train import distill, train_base, train_classifier
from rddlib.study.profiles import METHODS, PROFILES, as_dict, changed, load_profile, overrides_of, set_apart
from rddlib.study.study import Study
from rddlib.utils.errors import UserError


def sections(config, seen=None):
    seen = {} if seen is None else seen
    seen[type(config)] = [f.name for f in fields(config)]
    for f in fields(config):
        if is_dataclass(getattr(config, f.name)):
            sections(getattr(config, f.name), seen)
    return seen


def loads(tree):
    """Names read as attributes, outside the checks in __post_init__."""
    if isinstance(tree, ast.FunctionDef) and tree.name == "__post_init__":
        return
    if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load):
        yield tree.attr
    for child in ast.iter_child_nodes(tree):
        yield from loads(child)


def test_every_field_is_read_somewhere():
    """A number nobody reads would be a lie in the profile: each field must be used, not only checked."""
    read = {name for file in Path(rddlib.__file__).parent.rglob("*.py") for name in loads(ast.parse(file.read_text()))}
    read |= set(inspect.signature(RDD).parameters)  # handed over together, as keyword arguments
    for kind, names in sections(PROFILES["digits"]()).items():
        assert set(names) <= read, f"{kind.__name__}: {set(names) - read}"


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_whole_and_named(name):
    profile = load_profile(name)
    assert profile.name == name and profile.student_steps == (4, 2, 1)
    assert hash(profile) == hash(load_profile(name)) and as_dict(profile)["unet"]["image_size"] >= 8


def test_papers_numbers():
    p = load_profile("cifar10")
    assert (p.base.train.iterations, p.base.train.learning_rate, p.base.train.ema) == (800_000, 2e-4, 0.9999)
    assert p.distill.iterations == (20_000, 20_000, 40_000) and p.distill.train.learning_rate == 5e-5
    assert p.distill.temperatures == (0.9, 1.0, 0.85)
    assert (p.loss.alpha, p.loss.beta, p.loss.tau_is, p.loss.tau_m) == (1, 0.1, 1, 0.1)
    assert (p.loss.queue_size, p.loss.draws) == (20_000, 2048)
    q = load_profile("imagenet64")
    assert q.loss.alpha == 100 and q.distill.iterations == (50_000, 50_000, 100_000) and q.unet.num_classes == 1000


def test_overrides_reach_any_depth():
    p = load_profile(
        "digits",
        {
            "distill.train.learning_rate": "1e-3",
            "distill.iterations": "[5, 6, 7]",
            "seeds": "3",
            "extractor.map_at": "relu",
            "evaluation.clip": "false",
            "loss.alpha": "100",
        },
    )
    assert p.distill.train.learning_rate == 1e-3 and p.distill.iterations == (5, 6, 7) and p.seeds == (3,)
    assert p.extractor.map_at == "relu" and p.evaluation.clip is False and p.loss.alpha == 100.0
    assert load_profile("digits").loss.alpha == 1.0


def test_fields_that_depend_on_each_other_change_together():
    p = load_profile(
        "digits",
        {
            "progressive.teacher_steps": "4",
            "distill.iterations": "[1, 2]",
            "distill.temperatures": "[1, 1]",
            "unet.channels": "30",
            "unet.groups": "10",
        },
    )
    assert p.student_steps == (2, 1) and (p.unet.channels, p.unet.groups) == (30, 10)


@pytest.mark.parametrize(
    "name, key, value, words",
    [
        ("digit", None, None, "did you mean 'digits'"),
        ("digits", "distil.train.batch_size", "3", "did you mean 'distill'"),
        ("digits", "distill.train.batchsize", "3", "did you mean 'batch_size'"),
        ("digits", "distill", "3", "is a section"),
        ("digits", "loss.alpha.x", "3", "has no fields"),
        ("digits", "loss.alpha", "big", "is no float"),
        ("digits", "distill.train.batch_size", "3.5", "is no int"),
        ("digits", "distill.train.batch_size", "true", "is no int"),
        ("digits", "distill.train.batch_size", "0", "at least 1"),
        ("digits", "loss.tau_is", "0", "above 0"),
        ("digits", "base.steps", "60", "power of two"),
        ("digits", "distill.iterations", "[1, 2]", "same length"),
        ("digits", "extractor.name", "vgg", "expected one of"),
        ("digits", "unet.channels", "30", "groups"),
        ("digits", "seeds", "[]", "at least one"),
        ("digits", "name", "other", "no field 'name'"),
        ("digits", "unet.blocks", "0", "at least 1"),
        ("digits", "loss.weights", "equal", "expected one of"),
        ("digits", "loss.released", "[queue]", "known are queue_rows"),
    ],
)
def test_bad_numbers_are_one_line(name, key, value, words):
    with pytest.raises(UserError, match=words) as caught:
        load_profile(name, {key: value} if key else None)
    assert "\n" not in str(caught.value)


def test_objectives_carry_the_profiles_numbers(tmp_path, monkeypatch):
    from rddlib.distillation.extractor import build_extractor

    study = Study(load_profile("smoke", {"loss.alpha": "7", "loss.draws": "33", "loss.rcfd_beta": "0.5"}), tmp_path)
    monkeypatch.setattr(study, "extractor", lambda: build_extractor("small_resnet", 1, 10))
    kinds = dict(zip(METHODS, (PD, CFD, RCFD, RDD), strict=True))
    made = {method: study.objective(method, 1) for method in METHODS}
    assert all(type(made[m]) is kinds[m] for m in METHODS)
    assert made["cfd"].temperature == made["rdd"].temperature == study.profile.distill.temperatures[-1]
    assert made["rdd"].weights["is_p2p"] == 7 and made["rdd"].draws == 33
    assert made["rcfd"].weights["entropy"] == pytest.approx(0.5 * study.profile.loss.rcfd_gamma)


@pytest.mark.parametrize(
    "name, shrink",
    [
        ("smoke", {}),
        ("digits", {}),
        ("cifar10_small", {}),
        ("cifar10", {}),
        ("imagenet64", {"unet.channels": "32"}),  # 116M parameters with Adam's moments would take 2 GB
    ],
)
def test_every_profile_takes_a_step_of_each_kind(name, shrink):
    """Model, extractor and objective are built as they stand and trained for one step on random images."""
    profile = load_profile(name, {**shrink, "loss.queue_size": "64", "loss.draws": "8"})
    u, classes = profile.unet, profile.unet.num_classes or 10
    images = torch.randint(0, 256, (4, u.image_channels, u.image_size, u.image_size), dtype=torch.uint8)
    data = ImageDataset("random", images, torch.arange(4) % classes, classes, flip=profile.data.flip)

    def once(config):
        return replace(config, iterations=1, batch_size=2)

    base = train_base(build_denoiser(profile), data, once(profile.base.train), 0, profile.base.snr_max or None)
    extractor = build_extractor(profile, classes)  # one step of SGD leaves DenseNet's features dead: fresh ones below
    train_classifier(
        extractor,
        lambda out: out.logits,
        data,
        once(profile.extractor.train),
        0,
        shift=profile.extractor.shift,
    )
    objective = build_objective(profile, "rdd", 4, extractor)
    student = distill(base, data, 4, objective, once(profile.distill.train), 0)
    assert len(objective.queue) == 2 * profile.loss.per_image
    changed = [not torch.equal(a, b) for a, b in zip(base.parameters(), student.parameters(), strict=True)]
    assert any(changed) and all(torch.isfinite(p).all() for p in student.parameters())


def test_overrides_tell_a_profile_apart_from_the_one_of_its_name():
    texts = {
        "loss.alpha": "7",
        "distill.temperatures": "[1, 0.5, 1]",
        "data.flip": "true",
        "loss.released": "[queue_draw]",
        "base.schedule": "discrete",
        "extractor.classes": "[1, 2]",
    }
    profile = load_profile("digits", texts)
    assert set_apart(profile).keys() == texts.keys() and load_profile("digits", set_apart(profile)) == profile
    assert set_apart(load_profile("cifar10")) == {}


def test_one_value_stands_for_all_of_a_field_of_several():
    profile = load_profile("digits")
    made = overrides_of(profile, {"distill.temperatures": 0.5, "loss.released": ("queue_rows",), "unet.attention": 8})
    assert changed(profile, made).distill.temperatures == (0.5, 0.5, 0.5)
    assert changed(profile, made).loss.released == ("queue_rows",) and changed(profile, made).unet.attention == (8,)


@pytest.mark.parametrize(
    "key, text, words",
    [
        ("loss.relation", "across", "expected one of ('is_p2p', 'ii_p2p')"),
        ("loss.impl", "fast", "expected one of"),
        ("base.schedule", "linear", "continuous, discrete"),
        ("extractor.classes", "[1, 1]", "expected different ones"),
        ("loss.cfd", "-1", "expected at least 0"),
        ("loss", {"loss.cfd": "0", "loss.alpha": "0"}, "nothing would be learnt"),
    ],
)
def test_ablations_fields_are_checked(key, text, words):
    with pytest.raises(UserError) as refused:
        load_profile("digits", text if isinstance(text, dict) else {key: text})
    assert words in str(refused.value)
    with pytest.raises(UserError, match="cfd must be above 0"):
        load_profile("digits", {"loss.cfd": "0", "loss.weights": "balanced"})
