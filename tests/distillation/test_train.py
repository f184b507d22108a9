"""The recipes: what base training, stage one, halvings and reparametrisation show a student and teach it."""

import copy
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny import QUEUE, conditional_denoiser, refused, same, tiny_denoiser

from rddlib.data import ImageDataset, load_dataset
from rddlib.diffusion.denoiser import Denoiser, add_noise, as_denoiser
from rddlib.diffusion.sampling import ddim_sample, two_step_target
from rddlib.diffusion.schedule import CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import NO_CLASS
from rddlib.distillation import train as recipes
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import PD, RDD
from rddlib.distillation.train import distill, distill_guidance, reparametrise, takes_guidance, train_base
from rddlib.evaluation import DrawnImages, evaluate
from rddlib.losses import NonFiniteError
from rddlib.training import RunConfig, TrainConfig, Trainer
from rddlib.utils.checkpoint import load_checkpoint
from rddlib.utils.errors import UserError

DIGITS = load_dataset("digits")


def trainer(iterations=3, batch_size=8, learning_rate=1e-3, run=None, **options):
    return Trainer(TrainConfig(iterations, batch_size, learning_rate, **options), run=run or RunConfig())


def halve(teacher, steps, trainer, objective=None, **options):
    return distill(teacher, DIGITS, steps, objective or PD(teacher.schedule), trainer, **options)


@pytest.fixture(scope="module")
def base():
    """A small network after 400 iterations."""
    learning = trainer(400, 32, 5e-3, lr_schedule="cosine", warmup=50, ema=0.97)
    return train_base(tiny_denoiser(width=16), DIGITS, learning, snr_max=1e3)


@pytest.fixture
def asked(monkeypatch):
    """What networks are asked in training mode: a list of (z, t, y, w)."""
    seen, original = [], Denoiser.forward

    def spy(self, z, t, y=None, w=None):
        if self.training:
            seen.append((z, t, y, w))
        return original(self, z, t, y, w)

    monkeypatch.setattr(Denoiser, "forward", spy)
    return seen


class Told(PD):
    """PD that keeps what it is given: a list of (x_student, x_teacher, t)."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self.seen = []

    def terms(self, x_student, x_teacher, t, generator):
        self.seen.append((x_student.detach(), x_teacher, t))
        return super().terms(x_student, x_teacher, t, generator)


def test_400_iterations_beat_noise_by_far(base):
    metrics = ("fid", "is", "pfd")
    noise = torch.randint(0, 256, (1000, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = evaluate(noise, DIGITS, metrics=metrics).values
    drawn = evaluate(DrawnImages(base, 1000, 16, seed=0), DIGITS, metrics=metrics).values
    assert drawn["fid"] < noise["fid"] / 4 and drawn["pfd"] < noise["pfd"] / 10, (drawn, noise)
    assert drawn["is"] > 5.5 > noise["is"]


def test_progressive_distillation_follows_its_teacher(base):
    """A 4-step student ends nearer to its 8-step teacher's images than the teacher's own 4 steps do."""
    student = halve(base, 4, trainer(60, 32, 5e-4, lr_schedule="cosine"))
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    target = ddim_sample(base, noise, 8)
    ours, plain = ((ddim_sample(model, noise, 4) - target).square().mean() for model in (student, base))
    assert ours < 0.5 * plain, (float(ours), float(plain))


def test_a_student_starts_as_its_teacher_and_says_for_how_many_steps_it_is(base):
    student = halve(base, 4, trainer(1, 4, 0.0))
    assert same(student, base) and (base.steps, student.steps) == (0, 4)
    assert halve(student, 2, trainer(1)).steps == 2


@pytest.mark.parametrize("changes", [{"steps": 2}, {"objective": Told(CosineSchedule())}, {"stochastic": True}])
def test_another_student_under_the_same_file_name_is_refused(tmp_path, changes):
    def student(**changes):
        learning = trainer(1)
        learning.files = tmp_path / "student"
        return halve(tiny_denoiser(), trainer=learning, **{"steps": 4} | changes)

    first = student()
    assert "belongs to another run" in refused(student, **changes)
    assert same(student(), first)


def test_students_learn_without_dropout_and_the_teacher_keeps_its_own():
    seen = []
    for rate in (0.5, 0.9):
        teacher = conditional_denoiser(dropout=rate)
        objective = Told(teacher.schedule)
        halve(teacher, 1, trainer(2, 8, 0.0), objective)
        seen.append([x_student for x_student, *_ in objective.seen])
        assert {m.p for m in teacher.modules() if isinstance(m, torch.nn.Dropout)} == {rate}
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("stochastic", [False, True])
def test_students_learn_two_steps_of_their_teacher_at_the_times_they_sample_at(asked, guided, stochastic):
    """A halving two of half the length; a stochastic student two of its own, but for its last, which is one."""
    teacher, steps = heeding((0.5, 3.0)) if guided else conditional_denoiser(label_dropout=0.0), 3
    objective = Told(teacher.schedule)
    student = halve(teacher, steps, trainer(4, 32, precision="float32"), objective, stochastic=stochastic)
    assert student.network.config == teacher.network.config and student.guidance == teacher.guidance
    z, t, y, *w = (torch.cat(column) for column in zip(*asked, strict=True) if column[0] is not None)
    _, x_teacher, times = (torch.cat(column) for column in zip(*objective.seen, strict=True))
    assert len(asked) == 4 and len(w) == guided
    assert torch.equal(t, times) and set(t.tolist()) == {1 / 3, 2 / 3, 1.0}
    assert set(y.tolist()) == set(range(10))  # none dropped
    assert not guided or (0.5 <= w[0].min() < 0.6 and 2.9 < w[0].max() <= 3.0)

    expected = two_step_target(teacher, z, t, 1 / (2 * steps), y, *w)
    if stochastic:
        last = t == 1 / 3
        expected[last] = teacher(*(column[last] for column in (z, t, y, *w)))
        earlier = [column[~last] for column in (z, t, y, *w)]
        expected[~last] = two_step_target(teacher, *earlier[:2], 1 / steps, *earlier[2:])
    torch.testing.assert_close(x_teacher, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("released, rate", [((), 1e-4), (("head_free",), 1e-3)])
def test_the_released_head_learns_without_the_student_s_schedule(released, rate):
    """Adam's first step has the size of the rate, whatever the gradient; the warm-up begins at a tenth of it."""
    objective = RDD(build_extractor("small_resnet", 1, 10), 0.9, **QUEUE, released=("queue_push", *released))
    before = objective.head[-1].weight.detach().clone()
    halve(tiny_denoiser(), 2, trainer(1, warmup=10, precision="float32"), objective)
    moved = (objective.head[-1].weight.detach() - before).abs().max()
    assert float(moved) == pytest.approx(rate, rel=1e-2)


def test_noise_has_the_rates_of_its_time(generator):
    x, t = torch.ones(20_000, 1, 1, 1), torch.full((20_000,), 0.3, dtype=torch.float64)
    z = add_noise(x, t, CosineSchedule(), generator)
    assert float(z.mean()) == pytest.approx(float(CosineSchedule().alpha(0.3)), abs=0.01)
    assert float(z.std()) == pytest.approx(float(CosineSchedule().sigma(0.3)), abs=0.01)


def test_augmentation_shifts_whole_images(generator):
    images = torch.arange(64.0).reshape(1, 1, 8, 8).expand(200, 1, 8, 8)
    shifted = recipes.augment(images, generator, 1)
    corners = {tuple(int(v) for v in s[0, 3:5, 3]) for s in shifted}
    # pixel (3, 3) holds 27; shifts by -1..1 both ways bring one of nine neighbours there, the row below 8 more
    assert corners == {(27 + 8 * a + b, 35 + 8 * a + b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert recipes.augment(images, generator, 0) is images
    assert math.isclose(float(recipes.augment(torch.ones(2, 3, 8, 8), generator, 2).min()), 1.0)


def test_debug_names_what_is_not_finite():
    teacher = tiny_denoiser()
    with torch.no_grad():
        teacher.network.tail[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="x_student|x_teacher"):
        halve(teacher, 4, trainer(), debug=True)
    assert re.search("diverged at iteration 0 .loss", refused(halve, teacher, 4, trainer()))


def test_a_function_teaches_a_student_of_its_own(base):
    """A callable without parameters can teach; the student starts as another network."""
    run = RunConfig(channels_last="never")  # as the function is left, so that sums are taken in the same order
    teacher = as_denoiser(lambda z, t: base(z, t), base.schedule)
    with pytest.raises(ValueError, match="no parameters to train.*student="):
        halve(teacher, 4, trainer())
    with pytest.raises(ValueError, match="different schedules"):
        halve(as_denoiser(lambda z, t: base(z, t), CosineSchedule(0.1)), 4, trainer(), student=base)
    with pytest.raises(ValueError, match="steps is 0"):
        halve(base, 0, trainer())
    student = halve(teacher, 4, trainer(run=run), student=base)
    assert student.steps == 4 and base.steps == 0
    assert same(student, halve(base, 4, trainer(run=run))) and not same(student, base)


def test_grids_are_drawn_from_the_same_noise_by_the_student_s_sampler(tmp_path):
    drawn = {}
    for stochastic in (False, True):
        learning = trainer(2, 8, 0.0, run=RunConfig(sample_every=1))
        learning.files = tmp_path / f"{stochastic}"
        halve(heeding(), 2, learning, stochastic=stochastic)
        first, second = (file.read_bytes() for file in sorted(tmp_path.glob(f"{stochastic}.samples/*.png")))
        assert first == second
        drawn[stochastic] = first
    assert drawn[False] != drawn[True]


@pytest.mark.parametrize("stochastic", [False, True])
def test_grids_of_a_latent_model_show_decoded_images(stochastic):
    latent, latents = tiny_denoiser(channels=4), torch.zeros(4, 4, 8, 8)
    latent.network.space = SimpleNamespace(decode=lambda z: z[:, :3].repeat_interleave(2, dim=3))
    dataset = ImageDataset("latents", latents, torch.zeros(4).long(), 0)
    assert recipes._preview(dataset, 2, 0, stochastic, count=5)(latent).shape == (5, 3, 8, 16)


def test_the_metric_network_comes_with_its_facts(tmp_path):
    recipe = replace(recipes.METRIC_RECIPES["digits"], train=TrainConfig(2, 8, 1e-3))
    facts = recipes.train_metric_network(tmp_path / "net.safetensors", recipe)
    assert json.loads((tmp_path / "net.json").read_text()) == facts and facts["iterations"] == 2
    assert 0 <= load_checkpoint(tmp_path / "net.safetensors")[1]["test_accuracy"] == facts["test_accuracy"] <= 1


def test_a_metric_network_sees_no_image_of_a_base_model(tmp_path):
    for part in ("train", "test"):
        for k in range(10):
            (tmp_path / part / str(k)).mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (32, 32), (20 * k, 100 * n, 0)).save(tmp_path / part / str(k) / f"{n}.png")
    recipe = replace(recipes.METRIC_RECIPES["photos"], train=TrainConfig(2, 8, 1e-3))
    data = replace(recipe.data, root=str(tmp_path))
    facts = recipes.train_metric_network(tmp_path / "net.safetensors", replace(recipe, data=data))
    assert (
        "[test], 16x16, 16 images, shifted by up to 2 px, flipped" in facts["trained on"] and facts["test_images"] == 4
    )
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    (tmp_path / "alone").mkdir()
    (tmp_path / "train").rename(tmp_path / "alone/train")
    with pytest.raises(UserError, match="give a copy with test/ beside train/"):
        recipes.train_metric_network(tmp_path / "x", replace(recipe, data=replace(data, root=str(tmp_path / "alone"))))


# classes and guidance


def questions(count=64):
    """z, t, y, w: digits with noise and weights that no training has seen."""
    g, rows = torch.Generator().manual_seed(99), torch.arange(count)
    t, w = torch.rand(2, count, generator=g, dtype=torch.float64)
    return add_noise(DIGITS.batch(rows, g), t, CosineSchedule(), g), t, DIGITS.labels[rows], 4 * w


def heeding(guidance=(0.0, 4.0)):
    """A network that takes a weight and heeds it."""
    student = takes_guidance(conditional_denoiser(), guidance)
    with torch.no_grad():
        student.network.guidance_embedding[-1].weight.normal_(std=0.5)
    return student.eval()


def test_a_share_of_the_labels_is_dropped(generator):
    y = torch.arange(20_000) % 10
    for share in (0.1, 0.4):
        shown = recipes.drop_labels(y, conditional_denoiser(label_dropout=share), generator)
        dropped = shown == NO_CLASS
        assert float(dropped.double().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)
        assert torch.equal(shown[~dropped], y[~dropped])
        assert torch.bincount(y[dropped]).min() > 0.8 * 2000 * share  # of every class alike
    state = generator.get_state()
    assert recipes.drop_labels(y, conditional_denoiser(label_dropout=0.0), generator) is y
    assert recipes.drop_labels(None, tiny_denoiser(), generator) is None
    assert torch.equal(generator.get_state(), state)  # so that older trainings come out as they did


LEARNERS = {
    "base": lambda model, t: train_base(model, DIGITS, t, snr_max=1e3),
    "halving": lambda model, t: halve(model, 2, t),
    "reparametrisation": lambda model, t: reparametrise(model, "x", DIGITS, t),
}


@pytest.mark.parametrize("recipe, share", [*((recipe, 0.25) for recipe in LEARNERS), ("base", 0.0)])
def test_trainings_show_no_class_as_often_as_the_network_says(asked, recipe, share):
    student = LEARNERS[recipe](conditional_denoiser(label_dropout=share), trainer(20, 64, 1e-4))
    labels = torch.cat([y for _, _, y, _ in asked])
    assert float((labels == NO_CLASS).double().mean()) == pytest.approx(share, abs=0.05)
    assert set(labels.tolist()) == set(range(NO_CLASS if share else 0, 10))
    assert student.unconditional == (share > 0) and student.num_classes == 10  # it learned what it claims to know


def test_weights_are_drawn_over_the_whole_range(generator):
    denoiser = Denoiser(lambda z, t, y, w: z, CosineSchedule(), num_classes=2, guidance=(-0.5, 3.5))
    w = recipes.draw_guidance(denoiser, 4000, generator, torch.device("cpu"))
    assert w.dtype == torch.float64 and -0.5 <= w.min() < -0.48 and 3.48 < w.max() <= 3.5
    counts = torch.histc(w, 8, -0.5, 3.5)
    assert (counts - 500).abs().max() < 4 * (500 * 7 / 8) ** 0.5  # uniform: each eighth its share
    assert recipes.draw_guidance(tiny_denoiser(), 4000, generator, torch.device("cpu")) is None


def test_a_stage_one_student_starts_as_its_teacher_whatever_the_weight():
    teacher, (z, t, y, w) = conditional_denoiser(dropout=0.3), questions()
    student = takes_guidance(teacher, (0.0, 4.0))
    assert student.guidance == (0.0, 4.0) and student.evaluations == 1 and student.num_classes == 10
    expected = teacher(z, t, y)
    assert not torch.allclose(expected, teacher(z, t, torch.full_like(y, NO_CLASS)), atol=0.1)
    student.train()  # without dropout, so this changes nothing
    for weight in (0.0, 0.5, 4.0, w):
        assert torch.equal(student(z, t, y, weight), expected)
    with torch.no_grad():
        student.network.head.weight.zero_()  # a copy: training it leaves the teacher as it was
    assert torch.equal(teacher(z, t, y), expected)


def test_only_a_model_that_can_be_guided_has_a_stage_one():
    guidable, student = conditional_denoiser(), takes_guidance(conditional_denoiser(), (0.0, 4.0))
    with pytest.raises(ValueError, match="unconditional.* cannot be guided"):
        takes_guidance(tiny_denoiser(), (0.0, 4.0))
    with pytest.raises(ValueError, match="without label dropout.* cannot be guided"):
        distill_guidance(conditional_denoiser(label_dropout=0.0), student, DIGITS, trainer())
    with pytest.raises(ValueError, match="w_min and w_max"):
        takes_guidance(guidable, (4.0, 0.0))
    no_unet = as_denoiser(lambda z, t, y: z, CosineSchedule(), num_classes=10)
    for teacher, weights in ((guidable, ()), (student, (0.0, 4.0)), (no_unet, (0.0, 4.0))):
        with pytest.raises(ValueError, match="expected a U-Net that takes no guidance weight yet, and a range"):
            takes_guidance(teacher, weights)
    with pytest.raises(ValueError, match=r"takes no guidance weights: make it with takes_guidance"):
        distill_guidance(guidable, guidable, DIGITS, trainer())


def test_stage_one_learns_what_two_evaluations_say():
    teacher, (z, t, y, w) = conditional_denoiser(), questions(256)
    torch.manual_seed(1)
    start = takes_guidance(teacher, (0.0, 4.0)).requires_grad_(False)
    learning = trainer(60, 16, 3e-3, lr_schedule="cosine", precision="float32")
    student = distill_guidance(teacher, start, DIGITS, learning, weight="x")
    before, after = (float((model(z, t, y, w) - teacher(z, t, y, w)).square().mean()) for model in (start, student))
    assert after < 0.7 * before, (before, after)
    # and more weight has begun to move its images as it moves the teacher's, not to the mean of all weights alone
    moves = [(model(z, t, y, 4.0) - model(z, t, y, 0.0)).flatten() for model in (student, teacher)]
    assert torch.cosine_similarity(*moves, dim=0) > 0.1


# another prediction


def test_what_learns_to_predict_another_thing_denoises_as_its_teacher(base):
    """The same x within [-1, 1], from a network that said v and now says x."""
    before, untaught = copy.deepcopy(base), Denoiser(base.network, base.schedule, "x")
    student = reparametrise(base, "x", DIGITS, trainer(80, 32, 2e-3, lr_schedule="cosine"), snr_max=1e3)
    assert student.prediction == "x" and student.schedule == base.schedule and not student.training
    g = torch.Generator().manual_seed(0)
    t = torch.rand(256, generator=g, dtype=torch.float64)
    z = add_noise(DIGITS.floats(torch.arange(256)), t, base.schedule, g)
    target = base(z, t).clamp(-1, 1)
    unlike, like = ((model(z, t) - target).square().mean() for model in (untaught, student))
    assert like < 0.1 * unlike, (float(unlike), float(like))
    assert same(base, before)


class LinearEps(torch.nn.Module):
    """eps of one Gaussian N(0, s^2) per pixel, E[eps | z] = sigma z / (alpha^2 s^2 + sigma^2), off by a factor."""

    def __init__(self, schedule, s=0.5, error=1.0):
        super().__init__()
        self.schedule, self.s = schedule, s
        self.factor = torch.nn.Parameter(torch.tensor(error))

    def forward(self, z, t):
        alpha, sigma = (f(t)[:, None, None, None].to(z.dtype) for f in (self.schedule.alpha, self.schedule.sigma))
        return self.factor * sigma * z / (alpha**2 * self.s**2 + sigma**2)


def test_targets_of_an_eps_teacher_are_held_where_they_blow_up(monkeypatch):
    """A teacher whose eps is 10 % off has an x of hundreds at t near 1; what v is taught stays in [-1, 1]."""
    schedule, seen, original = DiscreteCosineSchedule(1024), [], recipes.weighted_error
    teacher = Denoiser(LinearEps(schedule, error=0.9), schedule, "eps")
    with torch.no_grad():
        assert teacher(torch.ones(1, 1, 8, 8), 1.0).abs().max() > 100

    def spy(prediction, x, weight):
        seen.append(float(x.abs().max()))
        return original(prediction, x, weight)

    monkeypatch.setattr(recipes, "weighted_error", spy)
    reparametrise(teacher, "v", DIGITS, trainer(3, 64, 0.0), snr_max=1e3)
    assert len(seen) == 3 and max(seen) <= 1
