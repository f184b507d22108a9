"""The numbers of every profile: complete, read somewhere, changed by name, and refused in one line where they cannot be."""

import ast
import inspect
import re
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from tiny import refused, same

import rddlib
from rddlib.data import ImageDataset
from rddlib.distillation.objectives import RDD
from rddlib.study import profiles
from rddlib.study.graph import Inputs, new_extractor, plain_graph
from rddlib.study.profiles import PROFILES, changed, load_profile, overrides_of, parse_value
from rddlib.study.stage import Workplace
from rddlib.training import RunConfig


@pytest.mark.parametrize(
    "number, run, jobs, at_once", [(2, 1, 0, 2), (32, 1, 0, 8), (1, 2, 0, 1), (4, 0, 0, 2), (2, 1, 5, 5)]
)
def test_how_many_are_trained_at_once(number, run, jobs, at_once, monkeypatch):
    """As many as there are cores where each takes one; never none; what the profile says wins."""
    monkeypatch.setattr(profiles, "cores", lambda: number)
    assert load_profile("digits", {"run.threads": str(run), "jobs": str(jobs)}).at_once == at_once


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
    assert hash(profile) == hash(load_profile(name)) and asdict(profile)["unet"]["image_size"] >= 8


def test_papers_numbers():
    p = load_profile("cifar10")
    assert (p.base.train.iterations, p.base.train.learning_rate, p.base.train.ema) == (800_000, 2e-4, 0.9999)
    assert p.distill.iterations == (20_000, 20_000, 40_000) and p.distill.train.learning_rate == 5e-5
    assert p.distill.temperatures == (0.9, 1.0, 0.85)
    assert (p.loss.alpha, p.loss.beta, p.loss.tau_is, p.loss.tau_m) == (1, 0.1, 1, 0.1)
    assert (p.loss.queue_size, p.loss.draws) == (20_000, 2048)
    q = load_profile("imagenet64")
    assert q.loss.alpha == 100 and q.distill.iterations == (50_000, 50_000, 100_000) and q.unet.num_classes == 1000


def test_overrides_reach_any_depth_in_the_field_s_type():
    texts = {
        "distill.train.learning_rate": "1e-3",
        "distill.iterations": "[5, 6, 7]",
        "seeds": "3",
        "extractor.map_at": "relu",
        "evaluation.clip": "false",
        "loss.alpha": "100",
        "methods": "[pd, rdd]",
    }
    p = load_profile("digits", texts)
    assert p.distill.train.learning_rate == 1e-3 and p.distill.iterations == (5, 6, 7) and p.seeds == (3,)
    assert p.extractor.map_at == "relu" and p.evaluation.clip is False and p.methods == ("pd", "rdd")
    sizes = [load_profile("digits", {"unet.image_size": text}).unet.image_size for text in ("8", "[8, 12]", "[8, 8]")]
    assert sizes == [8, (8, 12), 8]
    assert type(p.loss.alpha) is float and parse_value(p, "loss.alpha", "7") == 7.0
    assert load_profile("digits").loss.alpha == 1.0


def test_fields_that_depend_on_each_other_change_together():
    fewer = {"progressive.teacher_steps": "4", "distill.iterations": "[1, 2]", "distill.temperatures": "[1, 1]"}
    p = load_profile("digits", fewer | {"unet.channels": "30", "unet.groups": "10"})
    assert p.student_steps == (2, 1) and (p.unet.channels, p.unet.groups) == (30, 10)


def test_one_value_stands_for_all_of_a_field_of_several():
    profile = load_profile("digits")
    made = overrides_of(profile, {"distill.temperatures": 0.5, "loss.released": ("queue_rows",), "unet.attention": 8})
    assert changed(profile, made).distill.temperatures == (0.5, 0.5, 0.5)
    assert changed(profile, made).loss.released == ("queue_rows",) and changed(profile, made).unet.attention == (8,)


@pytest.mark.parametrize(
    "key, text, words",
    [  # names and types
        ("distil.train.batch_size", "3", "did you mean 'distill'"),
        ("distill.train.batchsize", "3", "did you mean 'batch_size'"),
        (
            "batch_size",
            "3",
            r"no field 'batch_size' by itself; did you mean base.train.batch_size, .*distill.train.batch_s",
        ),
        ("train.ema", "3", "no field 'train.ema' by itself; did you mean base.train.ema, "),
        ("distill", "3", "is a section"),
        ("loss.alpha.x", "3", "has no fields"),
        ("name", "other", "no field 'name'"),
        ("loss.alpha", "big", "is no number"),
        ("distill.train.batch_size", "3.5", "is no whole number"),
        ("distill.train.batch_size", "true", "is no whole number"),
        # what each section asks of its numbers
        ("base.steps", "60", "power of two"),
        ("base.prediction", "eps", "needs schedule discrete"),
        ("base.weight", "snr", "expected one of"),
        ("base.snr_max", "0.5", r"expected 0 \(none\) or at least 1"),
        ("base.train.learning_rate", ".nan", "learning_rate"),
        ("base.train.accumulate", "3", "divisor of batch_size"),
        ("progressive.teacher_steps", "4", "needs 2 halvings to 1 step, distill.iterations lists 3"),
        ("distill.iterations", "[1, 2]", "same length"),
        ("distill.temperatures", "[1, 0, 1]", "above 0"),
        ("extractor.name", "vgg", "expected one of"),
        ("extractor.classes", "[1, 1]", "different"),
        ("unet.channels", "30", "groups"),
        ("unet.image_size", "[8, 9]", r"image_size 8x9 cannot be halved"),
        ("unet.image_size", "[8, x]", "'x' is no whole number"),
        ("unet.image_size", "8x12", "'8x12' is no whole number"),
        ("loss.tau_is", "0", "above 0"),
        ("loss.relation", "across", "expected one of"),
        ("loss.released", "[queue]", "expected some of queue_rows"),
        ("evaluation.baselines", "[pndm]", "such as pndm-10"),
        ("evaluation.metrics", "[fid]", "expected fid and is among them"),
        ("seeds", "[]", "at least one"),
        ("methods", "[pdd]", r"methods has 'pdd' \(did you mean 'pd'\?\), known are pd,"),
        ("methods", "[pd, pd]", "expected different ones"),
        ("guidance.weights", "[4, 0]", "w_min < w_max"),
        ("guidance.weights", "[4]", "expected w_min and w_max"),
        ("guidance.at", "[0, 5]", "between 0 and 4"),
        ("guidance.label_dropout", "0", "label_dropout is 0"),
        ("guidance.steps", "12", "guidance.steps 12 must be"),
        ("guidance.budget", "0", "budget is 0"),
        ("guidance.objectives", "[lpips]", "objectives has 'lpips'"),
    ],
)
def test_a_number_that_cannot_be_is_one_line(key, text, words):
    said = refused(load_profile, "digits", {key: text})
    assert re.search(words, said) and said.startswith("--set ")


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"loss.cfd": "0", "loss.weights": "balanced"}, "cfd must be above 0"),
        ({"loss.cfd": "0", "loss.alpha": "0"}, "nothing would be learnt"),
        ({"unet.guidance": "[0, 4]", "unet.num_classes": "10"}, "follows from guidance.weights"),
    ],
)
def test_numbers_that_cannot_stand_together(overrides, words):
    assert words in refused(load_profile, "digits", overrides)


@pytest.mark.parametrize(
    "name, shrink",
    [
        ("smoke", {}),
        ("digits", {"unet.image_size": "[8, 12]"}),
        ("own", {"unet.image_size": "[64, 96]", "unet.channels": "32"}),
        ("cifar10_small", {}),
        ("cifar10", {"unet.channels": "32"}),  # whole on the meta device, see test_on_meta
        ("imagenet64", {"unet.channels": "32"}),
    ],
)
def test_every_profile_takes_a_step_of_each_kind(name, shrink):
    """Model, extractor and objective as they stand, trained for one step on random images."""
    profile = load_profile(name, {**shrink, "loss.queue_size": "64", "loss.draws": "8"})
    classes = profile.unet.num_classes or 10
    images = torch.randint(0, 256, (4, *profile.unet.image_shape), dtype=torch.uint8)
    data = ImageDataset("random", images, torch.arange(4) % classes, classes, flip=profile.data.flip)
    graph = plain_graph(Inputs(profile, 0, lambda split: data, Workplace(Path("nowhere"), RunConfig())))

    def once(stage, *networks):
        return stage.fit(stage.trainer(replace(stage.config, iterations=1, batch_size=2, accumulate=1)), *networks)[0]

    base = once(graph.base)
    extractor = new_extractor(profile, classes)  # one step of SGD leaves DenseNet's features dead: fresh ones here
    if graph.extractor.config:  # else it shows the base model's own features
        once(graph.extractor)
    student = once(graph.student("rdd", 4, 0), base, extractor)
    assert not same(base, student) and all(torch.isfinite(p).all() for p in student.parameters())


@pytest.mark.parametrize("word", ["2024", "no", "2024-05-01", "1e3", "", "set #2", " a "])
def test_a_name_that_looks_like_something_else_stays_a_name(word):
    for text in (word, f"'{word}'", f'"{word}"'):  # quoted as YAML has it
        assert load_profile("smoke", {"data.root": text, "data.name": "folder"}).data.root == word
