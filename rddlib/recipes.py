"""Base model, classifiers, halvings and distillation: each a short function around the one training loop."""

import copy
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.checkpoint import save_checkpoint, write_atomically
from rddlib.data import ImageDataset, load_dataset
from rddlib.denoiser import Denoiser
from rddlib.extractor import MetricNetwork, accuracy
from rddlib.losses import truncated_snr_weight
from rddlib.objectives import Objective, microscope
from rddlib.sampling import two_step_target
from rddlib.schedule import Schedule, expand_to
from rddlib.training import Step, TrainConfig, Trainer, training_device


def add_noise(x: Tensor, t: Tensor, schedule: Schedule, generator: torch.Generator | None = None) -> Tensor:
    """z_t = alpha_t x + sigma_t eps with eps ~ N(0, I); x [N, C, H, W], t [N]."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return expand_to(schedule.alpha(t), x) * x + expand_to(schedule.sigma(t), x) * noise


def _labels(dataset: ImageDataset, rows: Tensor, denoiser: Denoiser) -> Tensor | None:
    return dataset.labels[rows] if denoiser.num_classes else None


def train_base(
    denoiser: Denoiser,
    dataset: ImageDataset,
    config: TrainConfig,
    seed: int,
    snr_max: float | None = None,
    files: Path | None = None,
) -> Denoiser:
    """Train a denoiser on data: E w_t ||x - x_theta(z_t, t)||^2, t uniform in [0, 1], w_t = clip(SNR, 1, snr_max)."""

    dataset = dataset.to(training_device())

    def loss(model: nn.Module, step: Step):
        x = dataset.floats(step.rows)
        t = torch.rand(len(x), generator=step.generator, device=x.device, dtype=torch.float64)
        prediction = model(add_noise(x, t, denoiser.schedule, step.generator), t, _labels(dataset, step.rows, denoiser))
        weight = expand_to(truncated_snr_weight(t, denoiser.schedule, maximum=snr_max), x)
        total = (weight * (prediction - x) ** 2).mean()
        return total, {"mse": ((prediction - x) ** 2).mean().detach()}

    return Trainer(config, seed, len(dataset), "base model", files).fit(denoiser, loss)


def augment(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Shift each image by up to `shift` pixels both ways, edges repeated. images [N, C, H, W]."""
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
    config: TrainConfig,
    seed: int,
    shift: int = 1,
    label: str = "classifier",
    files: Path | None = None,
) -> nn.Module:
    """Train a classifier with cross-entropy on shifted images; logits(network's output) -> [N, classes]."""

    dataset = dataset.to(training_device())

    def loss(model: nn.Module, step: Step):
        images = augment(dataset.floats(step.rows), step.generator, shift)
        total = F.cross_entropy(logits(model(images)), dataset.labels[step.rows])
        return total, {}

    return Trainer(config, seed, len(dataset), label, files).fit(network, loss)


def distill(
    teacher: Denoiser,
    dataset: ImageDataset,
    steps: int,
    objective: Objective,
    config: TrainConfig,
    seed: int,
    label: str = "",
    files: Path | None = None,
    released: Collection[str] = (),
    watch: int = 0,
    debug: bool = False,
) -> Denoiser:
    """One halving: a student of `steps` steps, started from its teacher, learns two of the 2*steps-step teacher's steps.

    t is drawn from {1/steps, ..., 1}, the only times the student will meet; z_t is a noised training image; the teacher
    is not clipped in its targets. released: of
    rddlib.objectives.RELEASED_SWITCHES, those of the loop, "head_free" and "same_seed"; watch: log each
    term's gradient at the student's image and their cosines (rddlib.objectives.microscope) every so many iterations;
    debug: stop at the first NaN or infinity that a loss is given, naming it.
    Returns the student. Raises ValueError for steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    device, origin = training_device(), teacher
    teacher, dataset = copy.deepcopy(teacher).to(device).eval().requires_grad_(False), dataset.to(device)

    def loss(model: nn.Module, step: Step):
        x = dataset.floats(step.rows)
        k = torch.randint(1, steps + 1, (len(x),), generator=step.generator, device=x.device)
        t = k.double() / steps
        z, y = add_noise(x, t, teacher.schedule, step.generator), _labels(dataset, step.rows, teacher)
        x_teacher = two_step_target(teacher, z, t, 1 / (2 * steps), y)
        x_student = model(z, t, y)
        total, terms = objective(x_student, x_teacher, t, step.shared)
        return total, {**terms, **objective.status(), **(microscope(terms, x_student) if watch and step.logged else {})}

    trainer = Trainer(
        config,
        seed,
        len(dataset),
        label or f"{2 * steps} to {steps} steps",
        files,
        log_every=watch or 25,
        same_noise="same_seed" in released,
    )
    return trainer.fit(
        origin, loss, companion=objective, companion_free="head_free" in released, debug=debug,
        after_step=lambda step: objective.after_step(step.shared),
    )  # fmt: skip


METRIC_TRAINING = TrainConfig(1500, 64, 2e-3, rate="cosine", weight_decay=1e-2)
METRIC_SEED = 2024


def train_metric_network(path: Path) -> dict:
    """Train the network that scores digits and write its checkpoint to `path`, facts beside it as JSON.

    It learns from the images of the "metric" split and is tested on "test"; the extractor sees neither. The result
    depends on the seed alone (and, in the last bits, on the machine), so it is trained once and shipped. Returns the
    facts: accuracy on the test split, images and iterations used.
    """
    with torch.random.fork_rng():
        torch.manual_seed(METRIC_SEED)
        untrained = MetricNetwork()
    network = train_classifier(
        untrained, lambda out: out[1], load_dataset("digits", "metric"), METRIC_TRAINING, METRIC_SEED,
        label="metric network",
    )  # fmt: skip
    test = load_dataset("digits", "test")
    facts = {
        "kind": "metric network",
        "trained on": "digits, split metric, 800 images, shifted by up to 1 pixel",
        "iterations": METRIC_TRAINING.iterations,
        "seed": METRIC_SEED,
        "test_images": len(test),
        "test_accuracy": accuracy(lambda images: network(images)[1], test),
    }
    save_checkpoint(path, network.state_dict(), facts)
    facts["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_atomically(path.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")
    return facts
