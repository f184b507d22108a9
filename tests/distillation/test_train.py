import copy
import dataclasses
import math

import pytest
import torch

from rddlib.data import load_dataset
from rddlib.diffusion.denoiser import Denoiser, as_denoiser
from rddlib.diffusion.sampling import ddim_sample, two_step_target
from rddlib.diffusion.schedule import CosineSchedule, DiscreteCosineSchedule
from rddlib.diffusion.unet import NO_CLASS, UNet, UNetConfig
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import PD, RDD
from rddlib.distillation.train import (
    add_noise,
    augment,
    distill,
    distill_guidance,
    draw_guidance,
    drop_labels,
    reparametrise,
    takes_guidance,
    train_base,
)
from rddlib.evaluation import DrawnImages, evaluate
from rddlib.losses import NonFiniteError
from rddlib.study.profiles import digits
from rddlib.training import Checkpoints, RunConfig, TrainConfig
from rddlib.utils.errors import UserError


def untrained():
    return Denoiser(UNet(digits().unet), CosineSchedule(), "v")


@pytest.fixture(scope="module")
def base():
    """The digits network after 800 iterations."""
    torch.manual_seed(0)
    config = TrainConfig(800, 32, 2e-3, lr_schedule="cosine", warmup=50, ema=0.99)
    return train_base(untrained(), load_dataset("digits"), config, seed=0, snr_max=1e3)


def test_800_iterations_beat_noise_by_far(base):
    """Pure noise scores an FID of several hundred; a base model of 800 iterations stays below a tenth of that."""
    data = load_dataset("digits")
    g = torch.Generator().manual_seed(0)
    metrics = ("fid", "is", "pfd")
    noise = evaluate(
        torch.randint(0, 256, (1000, 1, 8, 8), generator=g, dtype=torch.uint8), data, metrics=metrics
    ).values
    drawn = evaluate(DrawnImages(base, 1000, 16, seed=0), data, metrics=metrics).values
    assert drawn["fid"] < 0.1 * noise["fid"] and drawn["pfd"] < 0.1 * noise["pfd"], (drawn, noise)
    assert drawn["is"] > 7


def test_progressive_distillation_follows_its_teacher(base):
    """A 4-step student ends nearer to its 8-step teacher's images than the teacher's own 4 steps do."""
    data, config = load_dataset("digits"), TrainConfig(120, 64, 3e-4, lr_schedule="cosine")
    student = distill(base, data, 4, PD(base.schedule), config, seed=0)
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    target = ddim_sample(base, noise, 8)
    ours = (ddim_sample(student, noise, 4) - target).square().mean()
    plain = (ddim_sample(base, noise, 4) - target).square().mean()
    assert ours < 0.5 * plain, (float(ours), float(plain))


def test_a_student_starts_from_its_teacher(base):
    student = distill(base, load_dataset("digits"), 4, PD(base.schedule), TrainConfig(1, 4, 0.0), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), base.parameters(), strict=True))


def test_students_meet_only_the_times_they_sample_at(monkeypatch):
    seen = []
    original = Denoiser.forward

    def spy(self, z, t, *conditions):
        if self.training:
            seen.extend(t.tolist())
        return original(self, z, t, *conditions)

    monkeypatch.setattr(Denoiser, "forward", spy)
    teacher = untrained()
    distill(teacher, load_dataset("digits"), 4, PD(teacher.schedule), TrainConfig(12, 16, 1e-4), seed=0)
    assert set(seen) == {0.25, 0.5, 0.75, 1.0}


def test_noise_has_the_rates_of_its_time(generator):
    x, t = torch.ones(20_000, 1, 1, 1), torch.full((20_000,), 0.3, dtype=torch.float64)
    z = add_noise(x, t, CosineSchedule(), generator)
    assert float(z.mean()) == pytest.approx(float(CosineSchedule().alpha(0.3)), abs=0.01)
    assert float(z.std()) == pytest.approx(float(CosineSchedule().sigma(0.3)), abs=0.01)


def test_augmentation_shifts_whole_images(generator):
    images = torch.arange(64.0).reshape(1, 1, 8, 8).expand(200, 1, 8, 8)
    shifted = augment(images, generator, 1)
    corners = {tuple(int(v) for v in s[0, 3:5, 3]) for s in shifted}
    # pixel (3, 3) holds 27; shifts by -1..1 both ways bring one of nine neighbours there, the row below 8 more
    assert corners == {(27 + 8 * a + b, 35 + 8 * a + b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert augment(images, generator, 0) is images
    assert math.isclose(float(augment(torch.ones(2, 3, 8, 8), generator, 2).min()), 1.0)


def test_zero_steps_are_refused():
    with pytest.raises(ValueError, match="steps"):
        distill(untrained(), load_dataset("digits"), 0, PD(CosineSchedule()), TrainConfig(1, 1, 1e-3), 0)


class Interrupted(Exception):
    pass


def test_an_interrupted_distillation_with_queue_and_head_ends_with_the_same_bits(tmp_path, monkeypatch):
    data, config = load_dataset("digits"), TrainConfig(8, 8, 1e-3, lr_schedule="cosine")
    torch.manual_seed(0)
    teacher = Denoiser(UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4)), CosineSchedule(), "v")
    extractor = build_extractor("small_resnet", 1, 10)

    def objective():
        torch.manual_seed(1)
        return RDD(extractor, 0.9, queue_size=50, draws=16, per_image=2)

    def state(student, objective):
        return torch.cat([v.flatten().double() for m in (student, objective) for v in m.state_dict().values()])

    whole = objective()
    expected = state(distill(teacher, data, 2, whole, config, seed=0), whole)

    stopped, original = objective(), RDD.after_step

    def stop(self, generator):
        original(self, generator)
        if self.queue.pushed == 5 * 16:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(RDD, "after_step", stop)
        with pytest.raises(Interrupted):
            distill(teacher, data, 2, stopped, config, seed=0, files=tmp_path / "run", run=RunConfig(save_every=0))
    assert Checkpoints(tmp_path / "run").steps() == [4, 3]
    resumed = objective()
    student = distill(teacher, data, 2, resumed, config, seed=0, files=tmp_path / "run")
    assert resumed.queue.pushed == 8 * 16 and torch.equal(state(student, resumed), expected)


def test_debug_names_what_is_not_finite():
    teacher, data = untrained(), load_dataset("digits")
    with torch.no_grad():
        teacher.network.tail[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="x_student|x_teacher"):
        distill(teacher, data, 4, PD(teacher.schedule), TrainConfig(2, 8, 1e-3), seed=0, debug=True)
    with pytest.raises(UserError, match="diverged at iteration 0 .loss"):
        distill(teacher, data, 4, PD(teacher.schedule), TrainConfig(2, 8, 1e-3), seed=0)


def test_a_class_conditional_model_is_trained_distilled_and_sampled():
    data, config = load_dataset("digits"), TrainConfig(2, 8, 1e-3)
    network = UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, num_classes=10))
    base = train_base(Denoiser(network, CosineSchedule(), "v"), data, config, seed=0, snr_max=1e3)
    student = distill(base, data, 2, PD(base.schedule), config, seed=0)
    images = DrawnImages(student, 20, 2, seed=0)
    a = images.batch(0, 20)
    assert a.shape == (20, 1, 8, 8) and torch.allclose(a[7:14], images.batch(7, 14), atol=1e-5)


def test_a_student_learns_without_dropout_and_the_teacher_keeps_its_own():
    torch.manual_seed(0)
    teacher = Denoiser(UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, dropout=0.5)), CosineSchedule(), "v")
    with torch.no_grad():
        teacher.network.tail[-1].weight.normal_()
    calls = []

    class Spy(PD):
        def terms(self, x_student, x_teacher, t, generator):
            calls.append(float((x_student - x_teacher).detach().abs().max()))
            return super().terms(x_student, x_teacher, t, generator)

    # the same images whatever the rate of dropout: the student's are not dropped from
    data, config = load_dataset("digits"), TrainConfig(2, 8, 0.0)
    distill(teacher, data, 1, Spy(teacher.schedule), config, seed=0)
    first = list(calls)
    teacher.network = copy.deepcopy(teacher.network)
    for module in teacher.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    calls.clear()
    distill(teacher, data, 1, Spy(teacher.schedule), config, seed=0)
    assert calls == first and all(m.p == 0.9 for m in teacher.network.modules() if isinstance(m, torch.nn.Dropout))


# Classes and guidance


def tiny(**options):
    """A conditional network that has something to say about time and class, untrained as it is."""
    torch.manual_seed(0)
    options = {"num_classes": 10, "label_dropout": 0.1, **options}
    network = UNet(UNetConfig(8, 1, 8, (1,), 1, attention=(), groups=4, **options))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):  # the last ones of blocks and of the network begin as zeros
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        if network.label_embedding is not None:
            network.label_embedding.weight.normal_()
    return Denoiser(network, CosineSchedule(), "v").eval().requires_grad_(False)


def questions(count=64):
    """z, t, y, w: digits with noise and weights that no training has seen."""
    g, data = torch.Generator().manual_seed(99), load_dataset("digits")
    t, w = torch.rand(2, count, generator=g, dtype=torch.float64)
    rows = torch.arange(count)
    return add_noise(data.batch(rows, g), t, CosineSchedule(), g), t, data.labels[rows], 4 * w


def test_a_share_of_the_labels_is_dropped(generator):
    y = torch.arange(20_000) % 10
    for share in (0.1, 0.4):
        shown = drop_labels(y, tiny(label_dropout=share), generator)
        dropped = shown == NO_CLASS
        assert float(dropped.double().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)
        assert torch.equal(shown[~dropped], y[~dropped])
        assert torch.bincount(y[dropped]).min() > 0.8 * 2000 * share  # of every class alike
    assert torch.equal(y, torch.arange(20_000) % 10)


def test_without_label_dropout_labels_are_left_alone(generator):
    y, state = torch.arange(100) % 10, generator.get_state()
    assert drop_labels(y, tiny(label_dropout=0.0), generator) is y
    assert drop_labels(None, untrained(), generator) is None
    assert torch.equal(generator.get_state(), state)  # so that older trainings come out as they did


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_base_training_shows_no_class_as_often_as_asked(monkeypatch, share):
    seen, data = [], load_dataset("digits")
    original = Denoiser.forward

    def spy(self, z, t, y=None, w=None):
        seen.append(y)
        assert w is None
        return original(self, z, t, y, w)

    monkeypatch.setattr(Denoiser, "forward", spy)
    train_base(tiny(label_dropout=share), data, TrainConfig(20, 64, 1e-3), seed=0, snr_max=1e3)
    labels = torch.cat(seen)
    assert float((labels == NO_CLASS).double().mean()) == pytest.approx(share, abs=0.05)
    assert set(labels.tolist()) == set(range(NO_CLASS if share else 0, 10))


def test_a_student_of_a_teacher_with_label_dropout_is_shown_no_class_as_often(monkeypatch):
    seen, original = [], Denoiser.forward

    def spy(self, z, t, y=None, w=None):
        seen.append(y)
        return original(self, z, t, y, w)

    teacher = tiny(label_dropout=0.25)
    monkeypatch.setattr(Denoiser, "forward", spy)
    student = distill(teacher, load_dataset("digits"), 2, PD(teacher.schedule), TrainConfig(20, 64, 1e-4), seed=0)
    assert float((torch.cat(seen) == NO_CLASS).double().mean()) == pytest.approx(0.25, abs=0.05)
    student.check_guidable()  # it learned what it claims to know


def test_weights_are_drawn_over_the_whole_range(generator):
    denoiser = Denoiser(lambda z, t, y, w: z, CosineSchedule(), num_classes=2, guidance=(-0.5, 3.5))
    w = draw_guidance(denoiser, 4000, generator, torch.device("cpu"))
    assert w.shape == (4000,) and w.dtype == torch.float64
    assert -0.5 <= w.min() < -0.48 and 3.48 < w.max() <= 3.5
    counts = torch.histc(w, 8, -0.5, 3.5)
    assert (counts - 500).abs().max() < 4 * (500 * 7 / 8) ** 0.5  # uniform: each eighth its share
    assert draw_guidance(untrained(), 4000, generator, torch.device("cpu")) is None


def test_a_stage_one_student_starts_as_its_teacher_whatever_the_weight():
    teacher, (z, t, y, w) = tiny(dropout=0.3), questions()
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
    data, config = load_dataset("digits"), TrainConfig(1, 4, 1e-3)
    for teacher, words in ((untrained(), "unconditional"), (tiny(label_dropout=0.0), "without label dropout")):
        with pytest.raises(ValueError, match=f"{words}.* cannot be guided"):
            takes_guidance(teacher, (0.0, 4.0))
        with pytest.raises(ValueError, match=f"{words}.* cannot be guided"):
            distill_guidance(teacher, takes_guidance(tiny(), (0.0, 4.0)), data, config, seed=0)
    with pytest.raises(ValueError, match="w_min and w_max"):
        takes_guidance(tiny(), (4.0, 0.0))
    no_unet = as_denoiser(lambda z, t, y: z, CosineSchedule(), num_classes=10)
    for teacher, weights in ((tiny(), ()), (takes_guidance(tiny(), (0.0, 1.0)), (0.0, 4.0)), (no_unet, (0.0, 4.0))):
        with pytest.raises(ValueError, match="expected a U-Net that takes no guidance weight yet, and a range"):
            takes_guidance(teacher, weights)
    with pytest.raises(ValueError, match=r"takes no guidance weights: make it with takes_guidance"):
        distill_guidance(tiny(), tiny(), data, config, seed=0)


def test_stage_one_learns_what_two_evaluations_say():
    data, teacher, (z, t, y, w) = load_dataset("digits"), tiny(), questions(256)
    torch.manual_seed(1)
    start = takes_guidance(teacher, (0.0, 4.0)).requires_grad_(False)
    config = TrainConfig(60, 16, 3e-3, lr_schedule="cosine", precision="float32")
    student = distill_guidance(teacher, start, data, config, seed=0, weight="x")
    before, after = (float((model(z, t, y, w) - teacher(z, t, y, w)).square().mean()) for model in (start, student))
    assert after < 0.7 * before, (before, after)
    # and more weight has begun to move its images as it moves the teacher's, not to the mean of all weights alone
    moves = [(model(z, t, y, 4.0) - model(z, t, y, 0.0)).flatten() for model in (student, teacher)]
    assert torch.cosine_similarity(*moves, dim=0) > 0.1


def test_stage_one_is_the_seed_s():
    data, teacher, config = load_dataset("digits"), tiny(), TrainConfig(4, 8, 1e-3, precision="float32")
    before = [p.clone() for p in teacher.parameters()]

    def run(seed):
        torch.manual_seed(1)
        student = distill_guidance(teacher, takes_guidance(teacher, (0.0, 4.0)), data, config, seed=seed)
        return torch.cat([p.flatten() for p in student.parameters()])

    first = run(0)
    assert torch.equal(first, run(0)) and not torch.equal(first, run(1))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def heeding(guidance=(0.0, 4.0)):
    """A network that takes a weight and heeds it."""
    student = takes_guidance(tiny(), guidance)
    with torch.no_grad():
        student.network.guidance_embedding[-1].weight.normal_(std=0.5)
    return student.eval()


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_student_of_a_guided_teacher_is_shown_labels_and_weights_and_takes_them(monkeypatch, stochastic):
    seen, teacher, data = {True: [], False: []}, heeding((0.5, 3.0)), load_dataset("digits")
    original = Denoiser.forward

    def spy(self, z, t, y=None, w=None):
        seen[self.training].append((y, w))
        return original(self, z, t, y, w)

    monkeypatch.setattr(Denoiser, "forward", spy)
    student = distill(teacher, data, 2, PD(teacher.schedule), TrainConfig(6, 32, 1e-3), seed=0, stochastic=stochastic)
    assert student.guidance == (0.5, 3.0) and student.network.config == teacher.network.config
    assert len(seen[True]) == 6 and len(seen[False]) == 12  # two steps of the teacher for one of the student
    for k, (y, w) in enumerate(seen[True]):
        for labels, weights in seen[False][2 * k : 2 * k + 2]:
            assert torch.equal(labels, y) and torch.equal(weights, w)
    labels, weights = (torch.cat(column) for column in zip(*seen[True], strict=True))
    assert set(labels.tolist()) == set(range(10))  # none dropped
    assert 0.5 <= weights.min() < 0.6 and 2.9 < weights.max() <= 3.0


@pytest.mark.parametrize("guided", [False, True])
def test_stochastic_students_learn_double_steps_and_a_single_last_one(monkeypatch, guided):
    teacher, data, asked, told = heeding() if guided else tiny(), load_dataset("digits"), [], []
    original = Denoiser.forward

    def spy(self, *question):
        if self.training:
            asked.append(question)
        return original(self, *question)

    class Spy(PD):
        def terms(self, x_student, x_teacher, t, generator):
            told.append((x_teacher, t))
            return super().terms(x_student, x_teacher, t, generator)

    steps, config = 3, TrainConfig(3, 32, 1e-3, precision="float32")
    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", spy)
        distill(teacher, data, steps, Spy(teacher.schedule), config, seed=0, stochastic=True)
    assert len(asked) == len(told) == 3
    for (z, t, y, w), (x_teacher, times) in zip(asked, told, strict=True):
        assert torch.equal(t, times) and set(t.tolist()) == {1 / 3, 2 / 3, 1.0} and (w is None) != guided
        last = t == 1 / 3
        rows = [z[last], t[last], y[last], w[last] if guided else None]
        torch.testing.assert_close(x_teacher[last], teacher(*rows), rtol=1e-4, atol=1e-4)
        z, t, y, w = z[~last], t[~last], y[~last], w[~last] if guided else None
        expected = two_step_target(teacher, z, t, 1 / steps, y, w)
        torch.testing.assert_close(x_teacher[~last], expected, rtol=1e-4, atol=1e-4)
        halving = two_step_target(teacher, z, t, 1 / (2 * steps), y, w)
        assert not torch.allclose(x_teacher[~last], halving, rtol=1e-2, atol=1e-2)  # twice as long as a halving's


def test_a_model_says_for_how_many_steps_it_was_distilled(base):
    config = TrainConfig(1, 4, 1e-4)
    student = distill(base, load_dataset("digits"), 4, PD(base.schedule), config, seed=0)
    assert (base.steps, student.steps) == (0, 4)
    assert distill(student, load_dataset("digits"), 2, PD(base.schedule), config, seed=0).steps == 2


def test_a_function_teaches_a_student_of_its_own(base):
    """A callable without parameters can teach; the student starts as another network."""
    data, config = load_dataset("digits"), TrainConfig(3, 8, 1e-3)
    plain = RunConfig(channels_last="never")  # as the function is left, so that sums are taken in the same order
    teacher = as_denoiser(lambda z, t: base(z, t), base.schedule)
    with pytest.raises(ValueError, match="no parameters to train.*student="):
        distill(teacher, data, 4, PD(base.schedule), config, seed=0)
    other = as_denoiser(lambda z, t: base(z, t), CosineSchedule(0.1))
    with pytest.raises(ValueError, match="different schedules"):
        distill(other, data, 4, PD(base.schedule), config, seed=0, student=untrained())
    student = distill(teacher, data, 4, PD(base.schedule), config, seed=0, student=base, run=plain)
    same = distill(base, data, 4, PD(base.schedule), config, seed=0, run=plain)
    assert student.steps == 4 and base.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(student.parameters(), base.parameters(), strict=True))


class LinearEps(torch.nn.Module):
    """eps of one Gaussian N(0, s^2) per pixel, E[eps | z] = sigma z / (alpha^2 s^2 + sigma^2), off by a factor."""

    def __init__(self, schedule, s=0.5, error=1.0):
        super().__init__()
        self.schedule, self.s = schedule, s
        self.factor = torch.nn.Parameter(torch.tensor(error))

    def forward(self, z, t):
        alpha, sigma = (f(t)[:, None, None, None].to(z.dtype) for f in (self.schedule.alpha, self.schedule.sigma))
        return self.factor * sigma * z / (alpha**2 * self.s**2 + sigma**2)


def test_what_learns_to_predict_v_denoises_as_its_teacher(base):
    """From a network that predicts eps: the same x within [-1, 1], from a network that now says v."""
    data = load_dataset("digits")
    teacher = Denoiser(base.network, base.schedule, "v")
    student = reparametrise(teacher, "x", data, TrainConfig(150, 64, 1e-3, lr_schedule="cosine"), seed=0, snr_max=1e3)
    untaught = Denoiser(base.network, base.schedule, "x")
    assert student.prediction == "x" and student.schedule == base.schedule and not student.training
    g = torch.Generator().manual_seed(0)
    x, t = data.floats(torch.arange(256)), torch.rand(256, generator=g, dtype=torch.float64)
    z = add_noise(x, t, base.schedule, g)
    target = teacher(z, t).clamp(-1, 1)
    before, after = ((d(z, t) - target).square().mean() for d in (untaught, student))
    assert after < 0.1 * before, (float(before), float(after))
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), base.parameters(), strict=True))


def test_targets_of_an_eps_teacher_are_held_where_they_blow_up(monkeypatch):
    """A teacher whose eps is 10 % off has an x of hundreds at t near 1; what v is taught stays in [-1, 1]."""
    import rddlib.distillation.train

    schedule, seen = DiscreteCosineSchedule(1024), []
    teacher = Denoiser(LinearEps(schedule, error=0.9), schedule, "eps")
    with torch.no_grad():
        assert teacher(torch.ones(1, 1, 8, 8), 1.0).abs().max() > 100
    original = rddlib.distillation.train.weighted_error

    def spy(prediction, x, weight):
        seen.append(float(x.abs().max()))
        return original(prediction, x, weight)

    monkeypatch.setattr(rddlib.distillation.train, "weighted_error", spy)
    reparametrise(teacher, "v", load_dataset("digits"), TrainConfig(3, 64, 0.0), seed=0, snr_max=1e3)
    assert len(seen) == 3 and max(seen) <= 1


def test_labels_are_dropped_while_another_prediction_is_learnt(monkeypatch):
    import rddlib.distillation.train

    seen, original = [], rddlib.distillation.train.drop_labels
    monkeypatch.setattr(
        rddlib.distillation.train, "drop_labels", lambda y, *rest: seen.append(original(y, *rest)) or seen[-1]
    )
    config = dataclasses.replace(digits().unet, num_classes=10, label_dropout=0.5)
    teacher = Denoiser(UNet(config), DiscreteCosineSchedule(1024), "eps")
    student = reparametrise(teacher, "v", load_dataset("digits"), TrainConfig(1, 64, 1e-3), seed=0)
    assert student.unconditional and student.num_classes == 10
    assert 10 < int((seen[0] == NO_CLASS).sum()) < 54
