"""Figure functions of the explorers: each view computes its heavy parts once and returns a function of the controls."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from rddlib.diffusion.denoiser import as_denoiser
from rddlib.diffusion.gaussian_mixture import GaussianMixture
from rddlib.diffusion.samplers import TRAINING_FREE, find_sampler
from rddlib.diffusion.sampling import ddim_sample, ddim_step
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.report import figures as plots
from rddlib.report.ablation_figures import ablation_figure
from rddlib.study.ablation_results import Measured
from rddlib.study.ablations import ABLATIONS
from rddlib.study.study import Study


def paths_view(mixture: GaussianMixture, starts: Tensor, data: Tensor, offset: float) -> Callable[..., Figure]:
    """DDIM's paths on a Gaussian mixture, from the noises `starts` [M, 2], over its samples `data` [n, 2].

    Returns paths(N, t, offset): N steps, gone down to time t, with the cosine schedule of that offset.
    """

    @lru_cache
    def walked(N: int, offset: float) -> tuple[CosineSchedule, list[Tensor], list[Tensor]]:
        """The schedule, z at the times 1, 1 - 1/N, ..., 0, and the estimate x at each but the last."""
        schedule, zs, xs = CosineSchedule(offset), [], []
        denoiser = as_denoiser(lambda z, t: mixture.denoise(z, t, schedule), schedule)
        end = ddim_sample(denoiser, starts, N, clip=False, callback=lambda k, t, z, x: (zs.append(z), xs.append(x)))
        return schedule, [*zs, end], xs

    def paths(N: int = 8, t: float = 0.0, offset: float = offset) -> Figure:
        schedule, zs, xs = walked(N, offset)
        k = min(math.floor((1 - t) * N + 1e-9), N - 1)  # the step that t lies in; each step is a move along its x
        z = ddim_step(zs[k], xs[k], 1 - k / N, t, schedule)
        return plots.ddim_figure(schedule, N, t, torch.stack([*zs[: k + 1], z]), data)

    return paths


def relations_view(images: Tensor, map_teacher: Tensor, map_student: Tensor) -> Callable[..., Figure]:
    """How a pixel of one image relates to the pixels of another, for images [N, C, H, W] and their maps [N, D, h, w].

    Returns relations(i, j, row, column, tau): the softmax at temperature tau of the cosines of image i's pixel
    (row, column) to the pixels of image j, by the teacher and by the student.
    """
    images = images.detach().cpu()
    height, width = map_teacher.shape[2:]
    F_T, F_S = (
        F.normalize(m.detach().double().cpu().flatten(2), dim=1) for m in (map_teacher, map_student)
    )  # [N, D, A]

    def relations(i: int = 5, j: int = 9, row: int = 1, column: int = 1, tau: float = 0.1) -> Figure:
        a = row * width + column
        log_q, log_p = ((features[i, :, a] @ features[j] / tau).log_softmax(dim=0) for features in (F_T, F_S))
        q, p = log_q.exp(), log_p.exp()
        loss = (q * (log_q - log_p)).sum().item()
        title = f"Pixel ({row}, {column}) of image {i} against image {j}, tau = {tau:g}: KL = {loss:.2e} nats"
        maps = (share.reshape(height, width) for share in (q, p))
        return plots.relation_figure(images[[i, j]], (row, column), *maps, title)

    return relations


def nearest_drawn(rows: Tensor, drawn: Tensor) -> Tensor:
    """Cosine [n] of each unit vector of rows [n, C] to the nearest of those drawn [n] (bool)."""
    return (rows @ rows[drawn].T).max(dim=1).values.clamp(max=1)


def queue_view(rows: Tensor, classes: Tensor, per_push: int, ranks: Tensor) -> Callable[..., Figure]:
    """A queue of unit vectors while it is filled with rows [n, C], oldest first, `per_push` at a time.

    classes [n]: of the image that each row comes from; ranks [n]: a permutation, the V lowest of those held are drawn.
    Returns queue(N_q, pushes, V, colour): N_q rows long, after that many pushes; colour: "class", "age" or "nearest".
    """
    rows, classes, ranks = rows.detach().float().cpu(), classes.cpu(), ranks.cpu()
    total = len(rows)
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:2]  # the same axes for every setting
    points = (rows - rows.mean(0)) @ axes.T

    @lru_cache
    def state(N_q: int, pushes: int, V: int) -> tuple[slice, Tensor, Tensor]:
        """Which rows are held, which of these are drawn [held], and the cosine of each to the nearest drawn."""
        pushed = min(pushes * per_push, total)
        held = slice(max(0, pushed - N_q), pushed)
        drawn = torch.zeros(pushed - held.start, dtype=torch.bool)
        drawn[ranks[held].argsort()[:V]] = True
        return held, drawn, nearest_drawn(rows[held], drawn)

    def queue(N_q: int = total, pushes: int = -(-total // per_push), V: int = 64, colour: str = "class") -> Figure:
        held, drawn, nearest = state(N_q, pushes, V)
        arrival = torch.arange(held.start, held.stop)
        age = pushes - 1 - arrival // per_push
        slots = torch.full((N_q,), math.nan)
        slots[arrival % N_q] = age.float()
        shade = {"class": None, "age": age, "nearest": nearest}[colour]
        name = {"class": "", "age": "age in pushes", "nearest": "cosine to the nearest drawn row"}[colour]
        title = (
            f"{len(arrival)} of {N_q} rows after {pushes} pushes; mean cosine to the nearest of V = {int(drawn.sum())}"
        )
        title = f"{title} drawn: {nearest.mean():.3f}"
        return plots.queue_figure(points, held, classes[held], shade, name, drawn, slots, title)

    return queue


def between(first: Tensor, second: Tensor, count: int) -> Tensor:
    """[count, C, H, W] from one noise [C, H, W] to another: cos(a) first + sin(a) second, a = 0 .. 90 degrees.

    cos^2 + sin^2 = 1, so from two independent standard normal noises each is again standard normal, unlike on the
    straight line between them, whose middle has half the variance.
    """
    angle = torch.linspace(0, math.pi / 2, count, dtype=first.dtype, device=first.device)[:, None, None, None]
    return angle.cos() * first + angle.sin() * second


def same_noise_view(study: Study, count: int = 12, pool: int = 48) -> Callable[..., Figure]:
    """What the teacher and a method's student make of the same noises, on the way from one noise to another.

    Returns same_noise(method, steps, first, second): of the study's first `pool` noises, numbered from 0; where the models
    take a class, all images get that of `first`.
    """
    noises, clip = study.noise(pool), study.profile.evaluation.clip
    classes, teacher = study.profile.unet.num_classes, study.profile.progressive.teacher_steps
    denoiser = lru_cache(study.denoiser)

    @lru_cache(maxsize=512)
    def drawn(method: str, steps: int, first: int, second: int) -> Tensor:
        noise = way(first, second)
        y = torch.full((count,), first % classes, device=noise.device) if classes else None
        sample = find_sampler(method, steps) if method in TRAINING_FREE else ddim_sample
        return sample(denoiser(method, steps), noise, steps, y=y, clip=clip).cpu()

    def way(first: int, second: int) -> Tensor:
        return (
            noises[first].expand(count, -1, -1, -1)
            if first == second
            else between(noises[first], noises[second], count)
        )

    def same_noise(method: str = "rdd", steps: int = 1, first: int = 0, second: int = 1) -> Figure:
        theirs, ours = drawn("pd", teacher, first, second), drawn(method, steps, first, second)
        apart = (theirs - ours).square().mean().sqrt()
        name = f"{plots.NAMES[method]}, {steps} step{'s' * (steps > 1)}"
        rows = {"noise / 3": way(first, second) / 3, f"teacher, {teacher} steps": theirs, name: ours}
        title = (
            f"From noise {first} (left) to noise {second} (right); RMS distance of the two models {apart:.2f} (range 2)"
        )
        return plots.image_rows(rows, title)

    return same_noise


def guidance_view(guided: Study, count: int = 12) -> Callable[..., Figure]:
    """What guidance makes of the same noises: the teacher, stage one, and stage two's students.

    Returns guidance(w, steps, label): all images of class `label`, the students in `steps` steps (those that there are).
    """
    noise, profile = guided.noise(count), guided.profile
    top, known = profile.base.steps, {(arm.method, arm.steps, arm.sampler) for arm in guided.arms()}
    denoiser = lru_cache(guided.denoiser)

    @lru_cache(maxsize=512)
    def drawn(method: str, steps: int, sampler: str, w: float, label: int) -> Tensor:
        y = torch.full((count,), label, device=noise.device)
        model = denoiser(method, steps, None, sampler)
        return guided.sample(model, noise, steps, w, y, sampler).cpu()

    first, near_one = min(3, profile.unet.num_classes - 1), min(profile.guidance.at, key=lambda w: abs(w - 1))

    def guidance(w: float = near_one, steps: int = profile.student_steps[0], label: int = first) -> Figure:
        rows = {
            f"teacher, 2 x {top}": drawn("teacher", top, "ddim", w, label),
            f"stage one, {top}": drawn("stage_one", top, "ddim", w, label),
        }
        for method in profile.guidance.objectives:
            for sampler, words in (("ddim", ""), ("stochastic", " stochastic")):
                if (method, steps, sampler) in known:
                    rows[f"{plots.NAMES[method]}{words}, {steps}"] = drawn(method, steps, sampler, w, label)
        return plots.image_rows(rows, f"Class {label}, guidance weight w = {w:g}; a column is one noise")

    return guidance


def ablation_view(found: Mapping[str, Measured]) -> Callable[..., Figure]:
    """Ablations as they were measured, {name: measured(...)}; returns ablation(name), one's figure."""

    def ablation(name: str = next(iter(found))) -> Figure:
        one = found[name]
        return ablation_figure(ABLATIONS[name], one.table, one.profile, one.metric)

    return ablation


def scores_view(panels: Sequence[tuple[str, str, pd.DataFrame]]) -> Callable[..., Figure]:
    """FID against sampling steps; panels: (title, name of the FID, rows) as rddlib.report.tables.panels gives them.

    Returns scores(table, rows, method): a panel by its title, what kind of rows (KINDS), and a method that is
    brought out of the others.
    """
    titles = [title for title, _, _ in panels]

    def scores(table: str = titles[0], rows: str = "all rows", method: str = "all methods") -> Figure:
        return plots.scores_explorer_figure(panels, titles.index(table), rows, method)

    return scores
