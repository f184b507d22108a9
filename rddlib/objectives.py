"""What a student minimises: named sums of losses between its image x^S and the teacher's x^T."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rddlib.distributed import all_gather_grad
from rddlib.extractor import FeatureExtractor
from rddlib.losses import cfd_loss, diversity_loss, entropy_loss, is_p2p_loss, m_p2p_loss, pd_loss
from rddlib.pixel_queue import PixelQueue
from rddlib.schedule import Schedule


class Loss(NamedTuple):
    """total: scalar to minimise; terms: each loss before its weight, by name."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """A weighted sum of losses.

    Subclasses return their terms from `terms(x_student, x_teacher, t, generator)`: images [N, C, H, W] in [-1, 1], t [N],
    a generator that is the same on every rank. Calling the objective gives Loss(total, terms); `after_step(generator)`
    runs once the student has been updated. Trainable parameters of an objective are trained along with the student.
    """

    weights: dict[str, float]

    def terms(self, x_student: Tensor, x_teacher: Tensor, t: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, x_student: Tensor, x_teacher: Tensor, t: Tensor, generator: torch.Generator) -> Loss:
        terms = self.terms(x_student, x_teacher, t, generator)
        return Loss(sum(self.weights[name] * value for name, value in terms.items()), terms)

    def after_step(self, generator: torch.Generator) -> None:
        """Nothing to do, unless the objective keeps a memory."""


class PD(Objective):
    """Progressive distillation: w_t ||x^T - x^S||^2, w_t = max(alpha^2/sigma^2, 1)  (Eq. 2, Feng et al. 2024)."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule, self.weights = schedule, {"pd": 1.0}

    def terms(self, x_student, x_teacher, t, generator):
        return {"pd": pd_loss(x_student, x_teacher, t, self.schedule)}


class _FeatureObjective(Objective):
    """Objectives that look at images through a frozen extractor."""

    def __init__(self, extractor: FeatureExtractor):
        super().__init__()
        # Held outside the module tree: a frozen extractor is no part of the state that training changes.
        object.__setattr__(self, "extractor", extractor.eval().requires_grad_(False))

    def features(self, x_student: Tensor, x_teacher: Tensor):
        with torch.no_grad():
            teacher = self.extractor(x_teacher)
        return self.extractor(x_student), teacher


class CFD(_FeatureObjective):
    """Classifier-based feature distillation: KL(softmax(F^T/tau) || softmax(F^S)) on pooled features (Eq. 4, Feng et al.)."""

    def __init__(self, extractor: FeatureExtractor, temperature: float):
        super().__init__(extractor)
        self.temperature, self.weights = temperature, {"cfd": 1.0}

    def terms(self, x_student, x_teacher, t, generator):
        student, teacher = self.features(x_student, x_teacher)
        return {"cfd": cfd_loss(student.pooled, teacher.pooled, self.temperature)}


class RCFD(CFD):
    """CFD + beta [gamma entropy + (1 - gamma) diversity] of the student's predictions (Eq. 7, Sun et al. 2023)."""

    def __init__(self, extractor: FeatureExtractor, temperature: float, beta: float, gamma: float):
        super().__init__(extractor, temperature)
        self.weights = {"cfd": 1.0, "entropy": beta * gamma, "diversity": beta * (1 - gamma)}

    def terms(self, x_student, x_teacher, t, generator):
        student, teacher = self.features(x_student, x_teacher)
        return {
            "cfd": cfd_loss(student.pooled, teacher.pooled, self.temperature),
            "entropy": entropy_loss(student.logits),
            "diversity": diversity_loss(all_gather_grad(student.logits)),
        }


def projection_head(channels: int) -> nn.Sequential:
    """Two 1x1 convolutions with batch normalisation and ReLU between (Section 4.3, Feng et al. 2024)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )


class RDD(_FeatureObjective):
    """Relational Diffusion Distillation: L_CFD + alpha L_IS_P2P + beta L_M_P2P  (Eq. 10, Feng et al. 2024).

    alpha, beta: weights; temperature: tau of CFD; tau_is, tau_m: of the relations; queue_size: N_q rows; draws: V rows
    compared with; per_image: K pixels pushed of each map. The queue is filled after each update, so the first iteration
    has none and leaves M_P2P out. Over several processes the relations span all of them.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        temperature: float,
        *,
        alpha: float = 1.0,
        beta: float = 0.1,
        tau_is: float = 1.0,
        tau_m: float = 0.1,
        queue_size: int = 20_000,
        draws: int = 2048,
        per_image: int = 1,
    ):
        super().__init__(extractor)
        self.temperature, self.tau_is, self.tau_m = temperature, tau_is, tau_m
        self.draws, self.per_image = draws, per_image
        self.weights = {"cfd": 1.0, "is_p2p": alpha, "m_p2p": beta}
        self.head = projection_head(extractor.channels)
        self.queue = PixelQueue(queue_size, extractor.channels)
        self._map_teacher: Tensor | None = None

    def terms(self, x_student, x_teacher, t, generator):
        student, teacher = self.features(x_student, x_teacher)
        map_student, map_teacher = all_gather_grad(student.map), all_gather_grad(teacher.map)
        terms = {
            "cfd": cfd_loss(student.pooled, teacher.pooled, self.temperature),
            "is_p2p": is_p2p_loss(map_student, map_teacher, self.tau_is),
        }
        if len(self.queue):
            embeddings = self.queue.sample(self.draws, generator)  # [V, C]
            terms["m_p2p"] = m_p2p_loss(self.head(map_student), map_teacher, embeddings, self.tau_m)
        self._map_teacher = map_teacher
        return terms

    def after_step(self, generator: torch.Generator) -> None:
        """Push the teacher's pixels of the iteration just done: the queue is filled after it was used (Section 4.2)."""
        if self._map_teacher is not None:
            self.queue.push(self._map_teacher, self.per_image, generator)
            self._map_teacher = None
