"""Base model, classifiers, halvings and distillation: each a short function around the one training loop."""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.data import DataConfig, ImageDataset, load_dataset
from rddlib.diffusion.denoiser import Denoiser, add_noise
from rddlib.diffusion.sampling import ddim_sample, stochastic_sample, stochastic_target, two_step_target
from rddlib.diffusion.schedule import expand_to
from rddlib.diffusion.unet import NO_CLASS
from rddlib.distillation.extractor import FeatureExtractor, MetricNetwork, accuracy
from rddlib.distillation.objectives import Objective, gradient_report
from rddlib.losses import loss_weight
from rddlib.training import Step, TrainConfig, Trainer, derive_seed, prepared, training_device
from rddlib.training.adapters import sharing
from rddlib.training.graphs import recorded, recording
from rddlib.utils.checkpoint import digest, save_checkpoint, write_atomically
from rddlib.utils.errors import UserError


def labels_of(dataset: ImageDataset, rows: Tensor, denoiser: Denoiser) -> Tensor | None:
    """Labels [len(rows)] of these rows, None where the denoiser takes none."""
    return dataset.labels_of(rows) if denoiser.num_classes else None


def drop_labels(y: Tensor | None, denoiser: Denoiser, generator: torch.Generator) -> Tensor | None:
    """Labels [N] with a share of network.config.label_dropout replaced by NO_CLASS, as training shows them."""
    share = getattr(getattr(denoiser.network, "config", None), "label_dropout", 0.0)
    if y is None or not share:
        return y
    dropped = torch.rand(len(y), generator=generator, device=y.device) < share
    return y.masked_fill(dropped, NO_CLASS)


def draw_guidance(denoiser: Denoiser, count: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """w [count] uniform over the range that the denoiser takes, float64; None where it takes none."""
    if not denoiser.guidance:
        return None
    low, high = denoiser.guidance
    return low + (high - low) * torch.rand(count, generator=generator, device=device, dtype=torch.float64)


def weighted_error(prediction: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(mean of weight [N] times the squared error of images [N, C, H, W], {"mse": without the weight})."""
    squared = (prediction - x) ** 2
    return (expand_to(weight, x) * squared).mean(), {"mse": squared.mean().detach()}


def _preview(
    dataset: ImageDataset, steps: int, seed: int, stochastic: bool = False, count: int = 64
) -> Callable[[Denoiser], Tensor]:
    """A function denoiser -> `count` images, drawn in `steps` steps from the same noise each time.

    They are of the first images' classes where there are any, guided by the middle of the range that a denoiser takes.
    """

    def noise(*number: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, 8, *number))
        return torch.randn(count, *dataset.images.shape[1:], generator=generator).to(training_device())

    def images(denoiser: Denoiser) -> Tensor:
        y = labels_of(dataset, torch.arange(count) % len(dataset), denoiser)
        middle = sum(denoiser.guidance) / 2 if denoiser.guidance else None
        if stochastic:
            drawn = stochastic_sample(denoiser, start, steps, y=y, guidance=middle, fresh=noise)
        else:
            drawn = ddim_sample(denoiser, start, steps, y=y, guidance=middle)
        return denoiser.space.decode(drawn) if denoiser.space else drawn

    start = noise()
    return images


def _fit_denoiser(
    denoiser: Denoiser,
    target: Callable[..., Tensor],
    dataset: ImageDataset,
    trainer: Trainer,
    snr_max: float | None,
    weight: str,
    preview_steps: int,
) -> Denoiser:
    """Train a denoiser towards target(x, z_t, t, y, w): E w_t ||target - x_theta(z_t, t, y, w)||^2, t uniform in [0, 1].

    w is uniform in the range that the denoiser takes, None where it takes none.
    """
    dataset = dataset.to(training_device())

    def loss(model: nn.Module, step: Step):
        x = dataset.batch(step.rows, step.generator)
        t = torch.rand(len(x), generator=step.generator, device=x.device, dtype=torch.float64)
        w = draw_guidance(denoiser, len(x), step.generator, x.device)
        z, y = add_noise(x, t, denoiser.schedule, step.generator), labels_of(dataset, step.rows, denoiser)
        y = drop_labels(y, denoiser, step.generator)
        with torch.no_grad():
            wanted = target(x, z, t, y, w)
        return weighted_error(model(z, t, y, w), wanted, loss_weight(weight, t, denoiser.schedule, maximum=snr_max))

    return trainer.fit(denoiser, loss, len(dataset), preview=_preview(dataset, preview_steps, trainer.seed))


def train_base(
    denoiser: Denoiser,
    dataset: ImageDataset,
    trainer: Trainer,
    *,
    snr_max: float | None = None,
    weight: str = "truncated",
    preview_steps: int = 32,
) -> Denoiser:
    """Train a denoiser on data: E w_t ||x - x_theta(z_t, t, y)||^2, t uniform in [0, 1].

    Labels are dropped as denoiser.network.config.label_dropout says.

    Args:
        weight: w_t, of rddlib.losses.LOSS_WEIGHTS ("truncated": max(SNR, 1)).
        snr_max: upper bound of w_t; None: none.
        preview_steps: of the sampler that draws run.sample_every's grids.
    """
    return _fit_denoiser(denoiser, lambda x, *_: x, dataset, trainer, snr_max, weight, preview_steps)


def _as_teacher(denoiser: Denoiser, trainer: Trainer) -> Denoiser:
    """A copy on the training device, in eval mode, without gradients, laid out and compiled as the trainer's run says."""
    teacher = copy.deepcopy(denoiser).to(training_device()).eval().requires_grad_(False)
    return recorded(prepared(teacher, trainer.run, trainer.config.precision), trainer.run)


def takes_guidance(teacher: Denoiser, guidance: tuple[float, float]) -> Denoiser:
    """A copy of a conditional denoiser whose network takes w of [w_min, w_max] as well, but does not heed it yet.

    Whatever w, its output is the teacher's for the same label (`with_guidance` of its network). Raises ValueError where the
    teacher's network cannot take w, or knows no classes or no NO_CLASS, or the range is wrong.
    """
    if not hasattr(teacher.network, "with_guidance") or teacher.guidance or not guidance:
        raise ValueError("expected a U-Net that takes no guidance weight yet, and a range (w_min, w_max)")
    teacher.check_guidable()
    network = teacher.network.with_guidance(guidance)
    device = next(teacher.parameters()).device
    return Denoiser(network, teacher.schedule, teacher.prediction).to(device)


def distill_guidance(
    teacher: Denoiser,
    student: Denoiser,
    dataset: ImageDataset,
    trainer: Trainer,
    *,
    snr_max: float | None = None,
    weight: str = "truncated",
    preview_steps: int = 32,
) -> Denoiser:
    """Stage one (Meng et al. 2022): one network that takes w learns what guidance makes of two evaluations of the teacher,

        E w_t ||x_student(z_t, t, y, w) - [(1 + w) x_teacher(z_t, t, y) - w x_teacher(z_t, t, none)]||^2,

    t uniform in [0, 1], w uniform in the student's range, z_t a noised image of class y; the teacher's x is not clipped.
    student: made by `takes_guidance`. The rest is as in `train_base`. Returns the student.
    Raises ValueError for a teacher that cannot be guided, or a student that takes no w.
    """
    teacher.check_guidable()
    if not student.guidance:
        raise ValueError("the student takes no guidance weights: make it with takes_guidance(teacher, (w_min, w_max))")
    teacher = _as_teacher(teacher, trainer)
    return _fit_denoiser(
        student, lambda x, z, t, y, w: teacher(z, t, y, w), dataset, trainer, snr_max, weight, preview_steps
    )


def reparametrise(
    teacher: Denoiser,
    prediction: str,
    dataset: ImageDataset,
    trainer: Trainer,
    *,
    snr_max: float | None = None,
    preview_steps: int = 32,
) -> Denoiser:
    """A denoiser like the teacher whose network, which starts as the teacher's, has learnt to predict another thing,

        E w_t ||x_student(z_t, t, y) - clip(x_teacher(z_t, t, y))||^2,    w_t = max(SNR, 1), at most snr_max.

    For teachers that predict eps: x = (z - sigma eps)/alpha blows up every error of theirs where alpha is small, and few-step
    students stand just there (Salimans & Ho 2022, Section 4). For the same reason the teacher's x is held in [-1, 1], as its
    own samplers do: unbounded, its errors at the noisy end would be all that is learnt. Latents are held within the largest of
    the data set's instead. prediction: "x" or "v". The rest is as in `train_base`.
    """
    bound = dataset.bound
    student = Denoiser(
        _without_dropout(teacher).network,
        teacher.schedule,
        prediction,
        num_classes=teacher.num_classes,
        unconditional=teacher.unconditional,
        guidance=teacher.guidance,
        steps=teacher.steps,
    )
    teacher = _as_teacher(teacher, trainer)
    target = lambda x, z, t, y, w: teacher(z, t, y, w).clamp(-bound, bound)  # noqa: E731
    return _fit_denoiser(student, target, dataset, trainer, snr_max, "truncated", preview_steps)


def augment(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Shift each image [C, H, W] of [N, C, H, W] by up to `shift` pixels both ways, edges repeated."""
    if shift == 0:
        return images
    n, _, h, w = images.shape
    padded = F.pad(images, [shift] * 4, mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator, device=images.device)
    rows = offsets[0] + torch.arange(h, device=images.device)  # [N, H]
    columns = offsets[1] + torch.arange(w, device=images.device)  # [N, W]
    batch = torch.arange(n, device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train_classifier(
    network: nn.Module,
    logits: Callable[[object], Tensor],
    dataset: ImageDataset,
    trainer: Trainer,
    *,
    shift: int = 1,
) -> nn.Module:
    """Train a classifier with cross-entropy on shifted images; logits(network's output) -> [N, classes]."""
    dataset = dataset.to(training_device())

    def loss(model: nn.Module, step: Step):
        images = augment(dataset.batch(step.rows, step.generator), step.generator, shift)
        return F.cross_entropy(logits(model(images)), dataset.labels_of(step.rows)), {}

    return trainer.fit(network, loss, len(dataset))


def _without_dropout(denoiser: Denoiser, copied: Callable[[nn.Module], nn.Module] = copy.deepcopy) -> Denoiser:
    student = copied(denoiser)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return student


def distill(
    teacher: Denoiser,
    dataset: ImageDataset,
    steps: int,
    objective: Objective,
    trainer: Trainer,
    *,
    student: Denoiser | None = None,
    stochastic: bool = False,
    watch: bool = False,
    debug: bool = False,
) -> Denoiser:
    """One halving: a student of `steps` steps, started from its teacher, learns two of the 2*steps-step teacher's steps.

    t is drawn from {1/steps, ..., 1}, the only times the student will meet; z_t is a noised training image; the teacher
    is not clipped in its targets, and the student learns without dropout (Salimans & Ho 2022; the papers say nothing).
    A teacher that was trained with label dropout has a student that knows NO_CLASS too, since its labels are dropped as often
    (as the student's network.config says, where the teacher is a function that knows NO_CLASS).
    A teacher that takes guidance has a student that does, and w is drawn for each image (stage two of Meng et al. 2022).
    With trainer.lora the student has the teacher's weights, held once, and learns adapters alone.

    Args:
        student: what the student starts as instead, on the teacher's schedule; needed for a teacher that is a function
            without parameters of its own.
        stochastic: no halving, but a student for `stochastic_sample` of `steps` steps, from a teacher of as many.
        watch: log each term's gradient at the student's image and their cosines too
            (rddlib.distillation.objectives.gradient_report), at every run.log_every-th iteration.
        debug: stop at the first NaN or infinity that a loss is given, naming it.

    Returns the student. Raises ValueError for steps < 1 and for a student that has no parameters or another schedule.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    frozen = _as_teacher(teacher, trainer)
    student = _without_dropout(student or frozen, sharing) if trainer.lora else _without_dropout(student or teacher)
    if not any(True for _ in student.parameters()):
        raise ValueError("the student has no parameters to train: make the network an nn.Module, or pass student=")
    if student.schedule != teacher.schedule:
        raise ValueError("student and teacher have different schedules: give the student the teacher's")
    student.steps = steps
    teacher, dataset = frozen, dataset.to(training_device())
    objective.to(training_device())
    for network in objective.frozen():
        prepared(network, trainer.run, trainer.config.precision)
    dropping = student if getattr(teacher.network, "config", None) is None and teacher.unconditional else teacher
    target, teacher_step = (stochastic_target, 1 / steps) if stochastic else (two_step_target, 1 / (2 * steps))

    def loss(model: nn.Module, step: Step):
        x = dataset.batch(step.rows, step.generator)
        k = torch.randint(1, steps + 1, (len(x),), generator=step.generator, device=x.device)
        t = k.double() / steps
        z, y = add_noise(x, t, teacher.schedule, step.generator), labels_of(dataset, step.rows, teacher)
        y = drop_labels(y, dropping, step.generator)
        w = draw_guidance(teacher, len(x), step.generator, x.device)
        x_teacher = target(teacher, z, t, teacher_step, y, w)
        x_student = model(z, t, y, w)
        total, terms = objective(x_student, x_teacher, t, step.shared)
        gradients = gradient_report(terms, x_student) if watch and step.logged else {}
        return total, {**terms, **objective.status(), **gradients}

    with recording([network for network in objective.frozen() if isinstance(network, FeatureExtractor)], trainer.run):
        return trainer.fit(
            student,
            loss,
            len(dataset),
            auxiliary=objective,
            auxiliary_free="head_free" in objective.released,
            debug=debug,
            after_step=lambda step: objective.after_step(step.shared),
            preview=_preview(dataset, steps, trainer.seed, stochastic),
            about=_identity(teacher, objective, steps, stochastic) if trainer.files else "",
        )


def _identity(teacher: Denoiser, objective: Objective, steps: int, stochastic: bool) -> str:
    """What tells one student's training from another's that has the same configuration and file name."""
    terms = getattr(objective, "summands", objective.weights)
    return digest(teacher.state_dict(), f"{type(objective).__name__}, {terms}, {steps}, {stochastic}")


@dataclass(frozen=True)
class MetricRecipe:
    """How a network that scores is made: its images, sizes and training."""

    data: DataConfig
    network: dict
    train: TrainConfig
    shift: int = 1  # pixels by which images are shifted at most


METRIC_RECIPES = {
    "digits": MetricRecipe(
        DataConfig("digits"), {}, TrainConfig(1500, 64, 2e-3, lr_schedule="cosine", weight_decay=1e-2)
    ),
    "photos": MetricRecipe(
        DataConfig("cifar10", flip=True, halve=1),
        {"image_channels": 3, "image_size": 16, "width": 64},
        TrainConfig(4000, 128, 2e-3, lr_schedule="cosine", warmup=100, weight_decay=5e-2),
        shift=2,
    ),
    "cifar10_small": MetricRecipe(  # none ships: a minute on a GPU, an hour on a CPU
        DataConfig("cifar10", flip=True),
        {"image_channels": 3, "image_size": 32, "width": 128},
        TrainConfig(4000, 128, 2e-3, lr_schedule="cosine", warmup=100, weight_decay=5e-2),
        shift=4,
    ),
}
METRIC_SEED = 2024


def _metric_images(data: DataConfig) -> tuple[ImageDataset, ImageDataset]:
    """(images to learn from, images to be tested on) that no base model and no extractor learns from: splits "metric" and
    "test" of digits, else four fifths and a fifth of "test"."""
    test = load_dataset(data, "test")
    if data.name == "digits":
        return load_dataset(data, "metric"), test
    if len(load_dataset(data, "extractor")) < len(load_dataset(data, "train")):
        raise UserError(
            f"{test.name} is a part of the images that base models learn from: give a copy with test/ beside train/"
        )
    order, kept = torch.randperm(len(test), generator=torch.Generator().manual_seed(METRIC_SEED)), len(test) * 4 // 5
    return test.rows(order[:kept]), test.rows(order[kept:])


def train_metric_network(path: Path, recipe: MetricRecipe = METRIC_RECIPES["digits"]) -> dict:
    """Train a network that scores and write its checkpoint to `path`, facts beside it as JSON.

    Students, base models and extractors see none of its images (digits' base models see all). The result depends on the
    seed alone (and, in the last bits, on the machine), so it is trained once and shipped. Returns the facts: accuracy on
    images it has not seen, images and iterations used.
    """
    shown, test = _metric_images(recipe.data)
    with torch.random.fork_rng():
        torch.manual_seed(METRIC_SEED)
        untrained = MetricNetwork(num_classes=shown.num_classes, **recipe.network)
    trainer = Trainer(recipe.train, METRIC_SEED, label="metric network")
    network = train_classifier(untrained, lambda out: out[1], shown, trainer, shift=recipe.shift)
    changed = f"shifted by up to {recipe.shift} px" + ", flipped" * recipe.data.flip
    facts = {
        "kind": "metric network",
        "trained on": f"{shown.name}, {len(shown)} images, {changed}",
        "iterations": recipe.train.iterations,
        "seed": METRIC_SEED,
        "test_images": len(test),
        "test_accuracy": accuracy(network, lambda out: out[1], test),
    }
    save_checkpoint(path, network.state_dict(), facts)
    facts["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_atomically(path.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    return facts
