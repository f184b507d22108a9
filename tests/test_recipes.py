import copy
import math

import pytest
import torch

from rddlib.data import load_dataset
from rddlib.denoiser import Denoiser
from rddlib.errors import UserError
from rddlib.evaluation import DrawnImages, evaluate
from rddlib.extractor import build_extractor
from rddlib.losses import NonFiniteError
from rddlib.objectives import PD, RDD
from rddlib.profiles import digits
from rddlib.recipes import add_noise, augment, distill, train_base
from rddlib.sampling import ddim_sample
from rddlib.schedule import CosineSchedule
from rddlib.training import Checkpoints, RunConfig, TrainConfig
from rddlib.unet import UNet, UNetConfig


def untrained():
    return Denoiser(UNet(digits().unet), CosineSchedule(), "v")


@pytest.fixture(scope="module")
def base():
    """The digits network after 800 iterations."""
    torch.manual_seed(0)
    config = TrainConfig(800, 32, 2e-3, rate="cosine", warmup=50, ema=0.99)
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
    data, config = load_dataset("digits"), TrainConfig(120, 64, 3e-4, rate="cosine")
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

    def spy(self, z, t, y=None):
        if self.training:
            seen.extend(t.tolist())
        return original(self, z, t, y)

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
    data, config = load_dataset("digits"), TrainConfig(8, 8, 1e-3, rate="cosine")
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
