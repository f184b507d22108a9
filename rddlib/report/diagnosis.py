"""Why a student is worse than it should be: what its log, its weights and its teacher say; for `rdd diagnose`."""

import copy
import json
import re
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from rddlib.diffusion.denoiser import Denoiser, add_noise
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.sampling import ddim_sample, two_step_target
from rddlib.distillation.objectives import Objective, gradient_report
from rddlib.distillation.train import draw_guidance, labels_of
from rddlib.evaluation import evaluate
from rddlib.report.figures import IN_TURN, image_rows
from rddlib.study.profiles import Profile
from rddlib.study.stage import Stage
from rddlib.study.study import Study, guided_study
from rddlib.training import Checkpoints
from rddlib.training.adapters import adapted, merged, sharing
from rddlib.utils.checkpoint import load_checkpoint
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

IMAGES, SAMPLES = 256, 500  # that are looked at; that are drawn for a score along the training
FILE = re.compile(r"(guided-)?(\w+)-(\d+)(?:-after-shipped)?-[0-9a-f]{12}\.metrics\.jsonl")
RELATIONS = ("is_p2p", "ii_p2p", "m_p2p")
# Where a cause begins to fit: found on smoke students spoilt on purpose, of other seeds than the tests'.
STILL = 0.2  # of the way to its targets that a student has gone
KEPT = 0.2  # share of the first weights in averaged ones
WEAK = 0.05  # the relations' gradient over the largest of all terms
FEW = 2.0  # channels on which the softmax of CFD's teacher rests
IN_A_SUM = '--set "sums=mine = {}" --objective mine'
CLIPPED = 0.9  # how the loss to clipped targets changed over how that to the targets did


@dataclass(frozen=True)
class Seen:
    """A student beside its teacher, on noised training images at its own times.

    t: [N]; target, student, before: [N, C, H, W], the teacher's x^T, the student's x, and what it was before training; bound:
    of the images; alpha: of the schedule at t = 1; log: records of its training; loss, clipped, shares: before and after it,
    the loss to the targets, that to targets held within the bound, and {term: its weighted gradient at the student's image
    over the largest}; channels: exp(entropy) of CFD's softmax of the teacher; scores: {iteration: {"fid", "pfd"}}; profile: of
    its study; space: of latents.
    """

    stage: Stage
    steps: int
    prediction: str
    alpha: float
    bound: float
    t: Tensor
    target: Tensor
    student: Tensor
    before: Tensor
    log: list[dict]
    loss: tuple[float, float]
    clipped: tuple[float, float]
    shares: tuple[dict[str, float], dict[str, float]]
    channels: float | None
    scores: dict[int, dict[str, float]]
    profile: Profile
    space: LatentSpace | None

    @property
    def gone(self) -> float:
        """How far the student has gone from where it began, over the distance to its targets."""
        return _rms(self.student - self.before) / max(_rms(self.target - self.before), 1e-12)

    @property
    def kept(self) -> float:
        """The share that the weights after the first iteration have in averaged ones."""
        return self.stage.config.ema ** (self.stage.iterations - 1) if self.stage.config.ema else 0.0

    @property
    def relations(self) -> float | None:
        """The relations' gradient over the largest, at its best; None without relations."""
        sums = [sum(shares[name] for name in RELATIONS if name in shares) for shares in self.shares]
        return max(sums) if self.shares[0].keys() & set(RELATIONS) else None


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# looking


def newest_student(study: Study) -> tuple[Study, Stage, int]:
    """(the study, plain or guided, that has it; the student that was trained last; its steps).

    Raises UserError where no student of the study has left a log and weights.
    """
    logs = sorted((study.out / "checkpoints").glob("*.metrics.jsonl"), key=lambda path: -path.stat().st_mtime)
    for found in filter(None, (FILE.fullmatch(path.name) for path in logs)):
        guided, method, steps = found.groups()
        if method not in study.profile.objectives or int(steps) not in study.profile.student_steps:
            continue
        for seed in study.profile.seeds:
            owner = guided_study(study, seed) if guided else study
            stage = owner.stages.student(method, int(steps), owner.seed if guided else seed)
            its_own = f"{stage.files.name}.metrics.jsonl" == found.string
            if its_own and (stage.done or Checkpoints(stage.files).steps()):
                return owner, stage, int(steps)
    why = "no student of its configuration with weights" if logs else "no metrics (checkpoints/*.metrics.jsonl)"
    raise UserError(f"{study.out} holds {why}: name a study's folder in which rdd distill or rdd study has run")


def look(study: Study) -> Seen:
    """The newest student of a study beside its teacher. Raises UserError as `newest_student` does."""
    owner, stage, steps = newest_student(study)
    teacher, *extractor = [parent.get() for parent in stage.parents]
    along = _along(stage, teacher, steps, study.profile.distill.lora)
    student, dataset = along[max(along)], owner.split("train")
    generator = torch.Generator(owner.device).manual_seed(0)
    rows = torch.arange(IMAGES) % len(dataset)
    x, y = dataset.floats(rows).to(owner.device), labels_of(dataset, rows, teacher)
    t = (torch.arange(IMAGES, device=x.device) % steps + 1).double() / steps
    z, w = add_noise(x, t, teacher.schedule, generator), draw_guidance(teacher, len(x), generator, x.device)
    with torch.no_grad():
        target = two_step_target(teacher, z, t, 1 / (2 * steps), y, w)
        own, before = student(z, t, y, w), teacher(z, t, y, w)
    objective = owner.stages.objective(stage.kind, steps, study.profile.seeds[0], teacher, (extractor or [None])[0])
    objective(before, target, t, generator)
    objective.after_step(generator)  # M_P2P needs a filled queue
    judged = [_judged(objective, x, target, dataset.bound, t, generator) for x in (before, own)]
    return Seen(
        *(stage, steps, student.prediction, float(teacher.schedule.alpha(1.0)), dataset.bound),
        *(tensor.cpu() for tensor in (t, target, own, before)),
        [json.loads(line) for line in open(f"{stage.files}.metrics.jsonl", encoding="utf-8")],
        *zip(*judged, strict=True),
        _channels(objective, target),
        {} if owner.guided else {step: _scores(owner, denoiser, steps) for step, denoiser in along.items()},
        study.profile,
        owner.space,
    )


def _along(stage: Stage, teacher: Denoiser, steps: int, lora: int) -> dict[int, Denoiser]:
    """{iterations: student} at each checkpoint that a training has kept, and of one that is done the student itself."""
    found = {}
    for step in Checkpoints(stage.files).steps():
        tensors = load_checkpoint(Checkpoints(stage.files).path(step))[0]
        student = adapted(sharing(teacher), lora) if lora else copy.deepcopy(teacher)
        prefix = "average/module." if stage.config.ema else "model/"
        student.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        student = merged(student) if lora else student
        student.steps = steps
        found[step] = student
    return found | ({stage.iterations: stage.get()} if stage.done else {})


def _judged(objective: Objective, image: Tensor, target: Tensor, bound: float, t: Tensor, generator) -> tuple:
    """(loss, loss to targets held within the bound, {term: weighted gradient at the image over the largest})."""
    image = image.detach().requires_grad_()
    with torch.enable_grad():
        terms = objective.terms(image, target, t, generator)
        balanced = objective.balance(terms, image) if objective.balance is not None else {}
        norms = gradient_report(terms, image)
    weights = {name: float(value) for name, value in {**objective.weights, **balanced}.items()}
    with torch.no_grad():
        inside = objective.terms(image, target.clamp(-bound, bound), t, generator)
    losses = [sum(weights[name] * float(value.detach()) for name, value in some.items()) for some in (terms, inside)]
    sizes = {name: weights[name] * float(norms[f"gradient/{name}"]) for name in terms}
    return *losses, {name: size / max(*sizes.values(), 1e-12) for name, size in sizes.items()}


@torch.no_grad()
def _channels(objective: nn.Module, target: Tensor) -> float | None:
    cfd = getattr(objective, "summands", {}).get("cfd")
    if cfd is None:
        return None
    features = objective.extractor(target)
    logs = torch.log_softmax((features.logits if cfd.predictions else features.pooled).float() / cfd.tau, dim=1)
    return float((-(logs.exp() * logs).sum(1)).exp().median())


def _scores(study: Study, denoiser: Denoiser, steps: int) -> dict[str, float]:
    """FID and pFD of a few samples, {} where they cannot be measured."""
    count, classes = min(SAMPLES, study.profile.evaluation.samples), denoiser.num_classes
    noise = study.noise(count)
    y = torch.arange(count, device=noise.device) % classes if classes else None
    with torch.no_grad():
        drawn = ddim_sample(denoiser, noise, steps, y=y, clip=study.profile.evaluation.clip)
    drawn = study.space.decode(drawn) if study.space else drawn
    try:
        how = dict(network=study.metric_network, metrics=("fid", "is", "pfd"), device=study.device)
        found = evaluate(drawn, study.dataset, **how)
    except UserError:  # its network is not here, or the images are too few
        return {}
    return {"fid": found.values["fid"], "pfd": found.values["pfd"]}


# saying


class Cause(NamedTuple):
    """A known cause that fits: its name, what shows it, the settings to try, beginning with "--", or what else."""

    name: str
    shown: str
    remedy: str


def causes(seen: Seen) -> list[Cause]:
    """The known causes that fit, the surest first."""
    config = seen.stage.config
    changed, changed_inside = (after / max(before, 1e-12) for before, after in (seen.loss, seen.clipped))
    slow, still = seen.kept > KEPT, seen.gone < STILL
    ones = ",".join("1" * len(seen.profile.distill.iterations))
    written = "terms" in seen.profile.method(seen.stage.kind).arguments(seen.profile.loss, 1.0, seen.steps)
    clipped = changed_inside < min(1.0, CLIPPED * changed)
    known = {  # and whether it fits
        Cause(
            "epsilon prediction at t = 1",
            f"x = (z - sigma eps)/alpha, with alpha = {seen.alpha:.1g} at t = 1, makes an error of eps "
            f"{1 / max(seen.alpha, 1e-9):,.0f} times as large where few-step students stand",
            "--set base.prediction=v --update",
        ): seen.prediction == "eps" and seen.alpha < 0.1,
        Cause(
            "temperature too sharp",
            f"the softmax of CFD's teacher rests on {seen.channels or 0:.1f} channels and ignores all others",
            "a larger tau of cfd in its sum, as in " + IN_A_SUM.format("cfd(tau=1) + pd(share=0.3)")
            if written
            else f"--set distill.temperatures=[{ones}] --update",
        ): seen.channels is not None and seen.channels < FEW,
        Cause(
            "EMA too slow",
            f"after {counted(seen.stage.iterations, 'iteration')} its average at {config.ema:g} still holds "
            f"{seen.kept:.0%} of the first",
            "--set distill.train.ema=0 --update",
        ): slow,
        Cause(
            "clipped targets",
            f"training made its loss to the teacher's x held in the range {changed_inside:.2f} times what it was, and that to "
            f"the teacher's x {changed:.2f} times",
            "--set run.shipped=none --update, with nothing that clamps what two_step_target returns",
        ): clipped and not slow and not still,
        Cause(
            "learning rate too high",
            f"its loss is {seen.loss[1]:.3g}, before training it was {seen.loss[0]:.3g}",
            f"--set distill.train.learning_rate={config.learning_rate / 10:g} --update",
        ): not clipped and not slow and not still and not changed < 1,
        Cause(
            "learning rate too low",
            f"it has gone {seen.gone:.0%} of the way from its teacher's x to its targets",
            f"--set distill.train.learning_rate={config.learning_rate * 10:g} --update",
        ): still and not slow,
        Cause(
            "relations too weak",
            f"their gradient at the student's image is {seen.relations or 0:.1%} of the largest term's",
            "a share for them in its sum, as in " + IN_A_SUM.format("cfd + is_p2p(share=1 tau=0.1)")
            if written
            else "--set loss.weights=balanced --set loss.tau_is=0.1 --update",
        ): seen.relations is not None and seen.relations < WEAK,
    }
    return [cause for cause, fits in known.items() if fits]


def curves_figure(seen: Seen) -> Figure:
    """Loss terms, gradients and scores along the training; x against the teacher's at each t, and its statistics."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
    (terms, gradients, scores), (errors, colour, outside) = axes
    log = pd.DataFrame(seen.log).set_index("step")
    norms = log.filter(like="gradient/")
    names = [name for name in seen.shares[0] if name in log]
    for name, style in zip(names, IN_TURN[1:], strict=False):
        terms.plot(log[name], **style, label=name, markersize=4)
        own = f"gradient/{name}"
        logged = norms[norms[own] > 0] if own in norms else norms[:0]
        if len(logged):
            gradients.plot(logged[own] / logged.max(axis=1), **style, label=name)
        else:
            ends = [shares[name] for shares in seen.shares]
            gradients.plot([0, max(log.index[-1], 1)], ends, **style, label=name)
    terms.set(yscale="log" if (log[names].fillna(1) > 0).all(axis=None) else "linear", ylabel="loss before its weight")
    unweighed = any(f"gradient/{name}" in norms for name in names)
    gradients.set(ylabel=f"gradient / largest ({'before' if unweighed else 'with'} weights)", ylim=(0, 1.05))
    for key, axis, style in (("fid", scores, IN_TURN[1]), ("pfd", scores.twinx(), IN_TURN[4])):
        points = [(step, found[key]) for step, found in sorted(seen.scores.items()) if found]
        axis.plot(*(zip(*points, strict=True) if points else ([], [])), **style)
        axis.set_ylabel(f"{'FID' if key == 'fid' else 'pFD'} ({style['marker']})")
    if not any(seen.scores.values()):
        scores.text(0.5, 0.5, "no checkpoint can be scored here", ha="center", transform=scores.transAxes, fontsize=8)
    times = seen.t.unique()
    for label, x, style in (
        ("this student", seen.student, IN_TURN[4]),
        ("before its training", seen.before, IN_TURN[0]),
    ):
        errors.plot(times, [_rms((x - seen.target)[seen.t == t]) for t in times], **style, label=label)
    errors.set(xlabel="time t", ylabel="RMS distance from the teacher's x", ylim=(0, None))
    for label, x, style in (
        ("the teacher's x", seen.target, IN_TURN[1]),
        ("the student's x", seen.student, IN_TURN[4]),
    ):
        dots = dict(style, linestyle="", capsize=3, label=label)
        colour.errorbar(range(x.shape[1]), x.mean((0, 2, 3)), x.std((0, 2, 3)), **dots)
        beyond = [float((x[seen.t == t].abs() > seen.bound).float().mean()) for t in times]
        outside.plot(times, beyond, **style, label=label)
    colour.set(xlabel="channel", ylabel="mean, and one standard deviation", xticks=range(seen.target.shape[1]))
    outside.set(xlabel="time t", ylabel="share of pixels beyond the range", ylim=(0, None))
    titles = (
        *("Terms of its loss", "Gradients at its image", f"Scores of at most {SAMPLES} images"),
        *("Against the teacher", "Colours", "Saturation"),
    )
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set_title(title, fontsize=10)
    for ax in axes[0]:
        ax.set_xlabel("iteration")
    for ax in (terms, gradients, errors, colour, outside):
        ax.legend(fontsize=8)
    figure.suptitle(seen.stage.label, fontsize=11)
    return figure


def images_figure(seen: Seen, count: int = 12) -> Figure:
    """What teacher and student make of the same noised images, at each of the student's times."""
    rows = {}
    for t in reversed(seen.t.unique().tolist()):
        for name, x in (("teacher", seen.target), ("student", seen.student)):
            shown = x[seen.t == t][:count]
            rows[f"{name}, t = {t:g}"] = seen.space.decode(shown) if seen.space else shown / seen.bound
    return image_rows(rows, f"{seen.stage.label}: x of the same noised images")
