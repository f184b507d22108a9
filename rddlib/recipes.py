"""Base model, classifiers, halvings and distillation: each a short function around the one training loop."""

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from rddlib.data import ImageDataset, load_dataset
from rddlib.denoiser import Denoiser
from rddlib.errors import UserError
from rddlib.extractor import MetricNetwork, accuracy
from rddlib.losses import truncated_snr_weight
from rddlib.objectives import Objective, microscope
from rddlib.sampling import ddim_sample, two_step_target
from rddlib.schedule import Schedule, expand_to, make_schedule, name_of
from rddlib.training import RunConfig, Step, TrainConfig, Trainer, prepared, stream, training_device
from rddlib.unet import UNet, UNetConfig

Clock = Callable[[str], contextlib.AbstractContextManager]  # clock("teacher"): around the work of that part of a step


def untimed(part: str) -> contextlib.AbstractContextManager:
    """The clock that measures nothing."""
    return contextlib.nullcontext()


def add_noise(x: Tensor, t: Tensor, schedule: Schedule, generator: torch.Generator | None = None) -> Tensor:
    """z_t = alpha_t x + sigma_t eps with eps ~ N(0, I); x [N, C, H, W], t [N]."""
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return expand_to(schedule.alpha(t), x) * x + expand_to(schedule.sigma(t), x) * noise


def describe(denoiser: Denoiser) -> dict:
    """What `load_denoiser` needs to know besides the tensors."""
    network = denoiser.network
    return {"unet": dataclasses.asdict(network.config), "prediction": denoiser.prediction,
            "schedule": name_of(denoiser.schedule), "schedule_offset": denoiser.schedule.offset}  # fmt: skip


def load_denoiser(path: Path) -> tuple[Denoiser, dict]:
    """A base model, teacher or student from its checkpoint -> (denoiser in eval mode, what is recorded of it).

    Raises UserError where the file is missing, damaged or holds something else.
    """
    tensors, info = load_checkpoint(path)
    if "model" not in info:
        raise UserError(f"{path} holds no denoiser but {info.get('kind', 'something else')}: name a base-, pd-, or student's "
                        "file")  # fmt: skip
    model = info["model"]
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in model["unet"].items()}
    schedule = make_schedule(model.get("schedule", "continuous"), model["schedule_offset"])
    denoiser = Denoiser(UNet(UNetConfig(**config)), schedule, model["prediction"])
    try:
        denoiser.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} holds other tensors than its own description says: make it again") from error
    return denoiser.eval().requires_grad_(False), info


def provenance(denoiser: Denoiser, info: dict) -> dict[str, str]:
    """What a receipt says of a trained model: its size and checkpoint, whether it is an average (EMA), how it was trained.

    info: what its checkpoint records.
    """
    facts = info.get("facts", {})
    ema = facts.get("base", facts).get("train", {}).get("ema", "not known")
    config, size = denoiser.network.config, sum(p.numel() for p in denoiser.parameters()) / 1e6
    model = f"U-Net, {config.channels} channels, {size:.2f}M parameters, {denoiser.prediction} prediction"
    return {
        "model": model,
        "checkpoint_sha256": info.get("sha256", "not known"),
        "ema": "none" if ema == 0 else str(ema),
        "training_precision": info.get("precision", "not known"),
        "training_seed": facts.get("seed", "not known"),
    }


def _labels(dataset: ImageDataset, rows: Tensor, denoiser: Denoiser) -> Tensor | None:
    return dataset.labels[rows.to(dataset.labels.device)] if denoiser.num_classes else None


def _preview(dataset: ImageDataset, steps: int, seed: int, count: int = 64) -> Callable[[Denoiser], Tensor]:
    """denoiser -> images drawn from the same noise each time, of the first images' classes where there are any."""
    noise = torch.randn(count, *dataset.images.shape[1:], generator=torch.Generator().manual_seed(stream(seed, 8)))
    noise, rows = noise.to(training_device()), torch.arange(count) % len(dataset)
    return lambda denoiser: ddim_sample(denoiser, noise, steps, y=_labels(dataset, rows, denoiser))


def train_base(
    denoiser: Denoiser,
    dataset: ImageDataset,
    config: TrainConfig,
    seed: int,
    snr_max: float | None = None,
    files: Path | None = None,
    run: RunConfig | None = None,
    preview_steps: int = 32,
    clock: Clock = untimed,
) -> Denoiser:
    """Train a denoiser on data: E w_t ||x - x_theta(z_t, t)||^2, t uniform in [0, 1], w_t = clip(SNR, 1, snr_max).

    files, run: of rddlib.training.Trainer; preview_steps: of the sampler that draws run.sample_every's grids; clock: sees
    the parts "data" and "student" of each step.
    """
    dataset = dataset.to(training_device())

    def loss(model: nn.Module, step: Step):
        with clock("data"):
            x = dataset.batch(step.rows, step.generator)
            t = torch.rand(len(x), generator=step.generator, device=x.device, dtype=torch.float64)
            z, y = add_noise(x, t, denoiser.schedule, step.generator), _labels(dataset, step.rows, denoiser)
        with clock("student"):
            prediction = model(z, t, y)
        weight = expand_to(truncated_snr_weight(t, denoiser.schedule, maximum=snr_max), x)
        total = (weight * (prediction - x) ** 2).mean()
        return total, {"mse": ((prediction - x) ** 2).mean().detach()}

    trainer = Trainer(config, seed, len(dataset), "base model", files, run or RunConfig())
    return trainer.fit(denoiser, loss, preview=_preview(dataset, preview_steps, seed))


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
    run: RunConfig | None = None,
) -> nn.Module:
    """Train a classifier with cross-entropy on shifted images; logits(network's output) -> [N, classes].

    files, run: of rddlib.training.Trainer.
    """

    dataset = dataset.to(training_device())

    def loss(model: nn.Module, step: Step):
        images = augment(dataset.batch(step.rows, step.generator), step.generator, shift)
        total = F.cross_entropy(logits(model(images)), dataset.labels[step.rows.to(images.device)])
        return total, {}

    return Trainer(config, seed, len(dataset), label, files, run or RunConfig()).fit(network, loss)


def _without_dropout(denoiser: Denoiser) -> Denoiser:
    student = copy.deepcopy(denoiser)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return student


def distill(
    teacher: Denoiser,
    dataset: ImageDataset,
    steps: int,
    objective: Objective,
    config: TrainConfig,
    seed: int,
    label: str = "",
    files: Path | None = None,
    run: RunConfig | None = None,
    released: Collection[str] = (),
    watch: int = 0,
    debug: bool = False,
    clock: Clock = untimed,
) -> Denoiser:
    """One halving: a student of `steps` steps, started from its teacher, learns two of the 2*steps-step teacher's steps.

    t is drawn from {1/steps, ..., 1}, the only times the student will meet; z_t is a noised training image; the teacher
    is not clipped in its targets, and the student learns without dropout (Salimans & Ho 2022; the papers say nothing).
    files, run: of rddlib.training.Trainer. released: of
    rddlib.objectives.RELEASED_SWITCHES, those of the loop, "head_free" and "same_seed"; watch: log each
    term's gradient at the student's image and their cosines (rddlib.objectives.microscope) every so many iterations;
    debug: stop at the first NaN or infinity that a loss is given, naming it; clock: sees the parts "data", "teacher" and
    "student" of each step.
    Returns the student. Raises ValueError for steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    run, device, student = run or RunConfig(), training_device(), _without_dropout(teacher)
    teacher, dataset = copy.deepcopy(teacher).to(device).eval().requires_grad_(False), dataset.to(device)
    objective.to(device)
    for frozen in (teacher, *objective.frozen()):
        prepared(frozen, run, config.precision)

    def loss(model: nn.Module, step: Step):
        with clock("data"):
            x = dataset.batch(step.rows, step.generator)
            k = torch.randint(1, steps + 1, (len(x),), generator=step.generator, device=x.device)
            t = k.double() / steps
            z, y = add_noise(x, t, teacher.schedule, step.generator), _labels(dataset, step.rows, teacher)
        with clock("teacher"):
            x_teacher = two_step_target(teacher, z, t, 1 / (2 * steps), y)
        with clock("student"):
            x_student = model(z, t, y)
        total, terms = objective(x_student, x_teacher, t, step.shared)
        return total, {**terms, **objective.status(), **(microscope(terms, x_student) if watch and step.logged else {})}

    trainer = Trainer(
        config,
        seed,
        len(dataset),
        label or f"{2 * steps} to {steps} steps",
        files,
        dataclasses.replace(run, log_every=watch or run.log_every),
        same_noise="same_seed" in released,
    )
    return trainer.fit(
        student, loss, companion=objective, companion_free="head_free" in released, debug=debug,
        after_step=lambda step: objective.after_step(step.shared), preview=_preview(dataset, steps, seed),
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
