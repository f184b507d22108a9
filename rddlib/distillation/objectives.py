"""What a student minimises: named sums of losses between its image x^S and the teacher's x^T."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rddlib.diffusion.schedule import Schedule
from rddlib.distillation.extractor import FeatureExtractor, Features, MapExtractor
from rddlib.distillation.pixel_queue import RELEASED_RULES, PixelQueue, check_released
from rddlib.losses import (
    cfd_loss,
    diversity_loss,
    entropy_loss,
    ii_p2p_loss,
    is_p2p_loss,
    m_p2p_loss,
    pd_loss,
    perceptual_loss,
    stage_perceptual_loss,
)
from rddlib.utils.distributed import all_gather_grad, sum_over_ranks, world_size

RELEASED_SWITCHES = {
    **RELEASED_RULES,
    "queue_push": "the teacher's pixels are pushed before the loss, not after the iteration",
    "local_batch": "IS_P2P relates the images of each process only, not those of all",
    "same_seed": "every process draws the same noise and times (for its own images)",
    "head_free": "the projection head learns at a constant rate and unclipped, while the student has a schedule and clipping",
}
WEIGHTS = ("fixed", "balanced")
RELATIONS = ("is_p2p", "ii_p2p")


class Loss(NamedTuple):
    """total: scalar to minimise; terms: each loss before its weight, by name."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A weighted sum of losses between a student's image and its teacher's.

    Subclasses set `weights` and return their losses from `terms`. Trainable parameters of an objective, such as a
    projection head, are trained along with the student.

    Attributes:
        weights: of each term by name.
        shares: instead of fixed weights, the size that a term's gradient at the student's image should have, as a share
            of the first term's; terms without a share keep their weight. One more backward pass through the network for
            each balanced term.
        released: of RELEASED_SWITCHES, where it follows the released code; `distill` heeds "head_free".
    """

    weights: dict[str, float]
    shares: Mapping[str, float] = {}
    released: Collection[str] = frozenset()
    _frozen: tuple[nn.Module, ...] = ()

    def look_through(self, network: nn.Module) -> None:
        """Freeze a network to compare images through: it moves along with the objective and is no part of its state."""
        self._frozen = (network.eval().requires_grad_(False),)  # in a tuple nn.Module does not see it

    def wants(self, name: str) -> bool:
        """Whether a term counts: one of weight 0 need not be computed."""
        return self.weights[name] != 0

    @abstractmethod
    def terms(self, x_student: Tensor, x_teacher: Tensor, t: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Each loss before its weight, a scalar, by name. Arguments as in `forward`."""

    def forward(self, x_student: Tensor, x_teacher: Tensor, t: Tensor, generator: torch.Generator) -> Loss:
        """The losses and their weighted sum.

        Args:
            x_student: images [N, C, H, W] in [-1, 1], differentiable.
            x_teacher: the teacher's, of the same shape, without gradient.
            t: [N] in [0, 1], the time of the noised image that both denoised.
            generator: for random draws; in the same state on every process.
        """
        terms = self.terms(x_student, x_teacher, t, generator)
        weights = {**self.weights, **self._balanced(terms, x_student)}
        return Loss(sum(weights[name] * value for name, value in terms.items()), terms)

    def _balanced(self, terms: dict[str, Tensor], x_student: Tensor) -> dict[str, Tensor]:
        """The weights that give terms with a share its size."""
        wanted = [name for name in terms if name in self.shares]
        if not wanted or not x_student.requires_grad:
            return {}
        first = next(iter(terms))
        # In one order on every rank: each norm is a collective.
        norms = {name: _global_norm(_gradient(terms[name], x_student)) for name in dict.fromkeys([first, *wanted])}
        tiny = torch.finfo(x_student.dtype).tiny
        return {name: self.shares[name] * norms[first] / norms[name].clamp(min=tiny) for name in wanted}

    def after_step(self, generator: torch.Generator) -> None:
        """Called once the gradient has been taken; generator as in `forward`. For objectives that keep a memory."""

    def status(self) -> dict[str, Tensor]:
        """Scalars to log beside the terms."""
        return {}

    def frozen(self) -> tuple[nn.Module, ...]:
        """The networks it looks through, which training leaves as they are."""
        return self._frozen

    def _apply(self, fn, *arguments, **options):  # what .to(), .double() and the like go through
        for network in self._frozen:
            network._apply(fn, *arguments, **options)
        return super()._apply(fn, *arguments, **options)


def _gradient(term: Tensor, x_student: Tensor) -> Tensor:
    """This rank's part of the gradient of the term's mean over ranks: what DistributedDataParallel would make of it."""
    (gradient,) = torch.autograd.grad(term, x_student, retain_graph=True)
    return gradient / world_size()


def _global_dot(a: Tensor, b: Tensor) -> Tensor:
    return sum_over_ranks((a * b).sum())


def _global_norm(gradient: Tensor) -> Tensor:
    return _global_dot(gradient, gradient).sqrt()


def gradient_report(terms: Mapping[str, Tensor], x_student: Tensor) -> dict[str, Tensor]:
    """Look at each term's gradient at the student's image, before any weight.

    terms: scalars by name, with their graph; x_student: [N, C, H, W], requires a gradient; all ranks call it together
    and see the whole batch. Returns "gradient/a", the norm of d a/d x_student, and "cosine/a,b" for each pair.
    """
    gradients = {name: _gradient(term, x_student) for name, term in terms.items()}
    norms = {name: _global_norm(gradient) for name, gradient in gradients.items()}
    report = {f"gradient/{name}": norm for name, norm in norms.items()}
    for a, b in itertools.combinations(gradients, 2):
        tiny = torch.finfo(x_student.dtype).tiny
        report[f"cosine/{a},{b}"] = _global_dot(gradients[a], gradients[b]) / (norms[a] * norms[b]).clamp(min=tiny)
    return report


class PD(Objective):
    """Progressive distillation: w_t ||x^T - x^S||^2, w_t = max(alpha^2/sigma^2, 1)  (Eq. 2, Feng et al. 2024)."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule, self.weights = schedule, {"pd": 1.0}

    def terms(self, x_student, x_teacher, t, generator):
        return {"pd": pd_loss(x_student, x_teacher, t, self.schedule)}


class PDPerceptual(PD):
    """PD with a perceptual distance beside it: "PD + LPIPS" of Tables 1 and 2, Feng et al. 2024.

    network: LPIPS, from `rddlib.losses.load_lpips()`; or a FeatureExtractor, whose stages are then compared in LPIPS's
    form, for images that VGG makes no sense of. The term is called "lpips" or "stages" accordingly: the second is not
    LPIPS. weight: of that term.
    """

    def __init__(self, schedule: Schedule, network: nn.Module, weight: float = 1.0):
        super().__init__(schedule)
        self.look_through(network)
        self.name = "stages" if isinstance(network, FeatureExtractor) else "lpips"
        self.weights = {"pd": 1.0, self.name: weight}

    def _distance(self, x_student: Tensor, x_teacher: Tensor) -> Tensor:
        (network,) = self.frozen()
        if self.name == "lpips":
            return perceptual_loss(x_student, x_teacher, network)
        with torch.no_grad():
            stages_teacher = network.stages(x_teacher)
        return stage_perceptual_loss(network.stages(x_student), stages_teacher)

    def terms(self, x_student, x_teacher, t, generator):
        pd = super().terms(x_student, x_teacher, t, generator)
        return {**pd, self.name: self._distance(x_student, x_teacher)}


def check_predicts(extractor: nn.Module) -> None:
    """Raise ValueError where the extractor predicts no classes."""
    if isinstance(extractor, MapExtractor):
        raise ValueError(
            "this extractor returns a map alone, no class predictions: use CFD or RDD, without predictions"
        )


class CFD(Objective):
    """Classifier-based feature distillation: KL(softmax(F^T/tau) || softmax(F^S))  (Eq. 4, Feng et al. 2024).

    Args:
        extractor: a FeatureExtractor, or any network through as_extractor.
        temperature: tau of the teacher's features, in (0, 1] as the papers have it.
        dual: tau on both sides, times tau^2 (Eq. 8, Sun et al. 2023).
        predictions: compare the classifier's logits instead of its pooled features (Figures 4 and 5 there).
        cfd: weight, for subclasses with more terms.

    Raises ValueError for a bare module, and for predictions of an extractor that makes none.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | MapExtractor,
        temperature: float,
        *,
        dual: bool = False,
        predictions: bool = False,
        cfd: float = 1.0,
    ):
        if not hasattr(extractor, "channels"):
            raise ValueError(
                "the extractor is a bare module: make it one with rddlib.as_extractor(module, image_shape)"
            )
        if predictions:
            check_predicts(extractor)
        super().__init__()
        self.look_through(extractor)
        self.temperature, self.dual, self.predictions = temperature, dual, predictions
        self.weights = {"cfd": cfd}

    @property
    def extractor(self) -> FeatureExtractor | MapExtractor:
        """What it looks through."""
        return self.frozen()[0]

    def features(self, x_student: Tensor, x_teacher: Tensor) -> tuple[Features, Features]:
        """The student's features, differentiable, and the teacher's."""
        with torch.no_grad():
            teacher = self.extractor(x_teacher)
        return self.extractor(x_student), teacher

    def terms(self, x_student, x_teacher, t, generator):
        return self.compare(*self.features(x_student, x_teacher), generator)

    def compare(self, student: Features, teacher: Features, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms that count, of the features of both images."""
        if not self.wants("cfd"):
            return {}
        chosen = "logits" if self.predictions else "pooled"
        cfd = cfd_loss(getattr(student, chosen), getattr(teacher, chosen), self.temperature, dual=self.dual)
        return {"cfd": cfd}


class RCFD(CFD):
    """CFD + beta [gamma entropy + (1 - gamma) diversity] of the student's predictions (Eq. 7, Sun et al. 2023).

    Raises ValueError for an extractor without predictions, and where all weights are 0.
    """

    def __init__(self, extractor: FeatureExtractor, temperature: float, beta: float, gamma: float, **options):
        check_predicts(extractor)
        super().__init__(extractor, temperature, **options)
        self.weights |= {"entropy": beta * gamma, "diversity": beta * (1 - gamma)}
        if not any(self.weights.values()):
            raise ValueError("all weights are 0: nothing would be learnt")

    def compare(self, student, teacher, generator):
        terms = super().compare(student, teacher, generator)
        if self.wants("entropy"):
            terms["entropy"] = entropy_loss(student.logits)
        if self.wants("diversity"):
            terms["diversity"] = diversity_loss(all_gather_grad(student.logits))
        return terms


def projection_head(channels: int) -> nn.Sequential:
    """Two 1x1 convolutions with batch normalisation and ReLU between, [N, channels, H, W] to the same shape.

    Section 4.3, Feng et al. 2024.
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )


class RDD(CFD):
    """Relational Diffusion Distillation: L_CFD + alpha L_IS_P2P + beta L_M_P2P  (Eq. 10, Feng et al. 2024).

    The queue is filled after each update, so the first iteration has none and leaves M_P2P out. Over several processes
    the relations span all of them. A term of weight 0 is left out, and without M_P2P there is neither projection head
    nor queue.

    Args:
        extractor, temperature, options: of CFD.
        alpha, beta: weights of IS_P2P and M_P2P.
        tau_is, tau_m: temperatures of the relations.
        queue_size: N_q, rows of the pixel queue.
        draws: V, rows compared with in each iteration.
        per_image: K, pixels of each of the teacher's maps that are pushed.
        relation: "is_p2p", or "ii_p2p" for L_II_P2P (Eq. 6) in its place.
        impl: how the relations are computed, of rddlib.losses.is_p2p_loss.
        weights: "fixed", alpha and beta multiply the losses; "balanced", they say how large the gradients of IS_P2P and
            M_P2P at the student's image should be as a share of CFD's.
        released: names of RELEASED_SWITCHES to follow instead of the paper.

    Raises ValueError for unknown names of the last four, and for weights with which nothing would be learnt.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | MapExtractor,
        temperature: float,
        *,
        alpha: float = 1.0,
        beta: float = 0.1,
        tau_is: float = 1.0,
        tau_m: float = 0.1,
        queue_size: int = 20_000,
        draws: int = 2048,
        per_image: int = 1,
        relation: str = "is_p2p",
        impl: str = "auto",
        weights: str = "fixed",
        released: Collection[str] = (),
        **options,
    ):
        super().__init__(extractor, temperature, **options)
        for name, value, known in (("weights", weights, WEIGHTS), ("relation", relation, RELATIONS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}")
        self.tau_is, self.tau_m, self.draws, self.per_image = tau_is, tau_m, draws, per_image
        self.relation, self.impl, self.released = relation, impl, check_released(released, RELEASED_SWITCHES)
        relational = {relation: alpha, "m_p2p": beta}
        self.weights |= relational
        if not self.weights["cfd"] and not alpha:
            raise ValueError("cfd and alpha are 0: M_P2P alone has nothing to compare with while the queue is empty")
        self.shares = {name: share for name, share in relational.items() if share} if weights == "balanced" else {}
        self.head, self.queue = None, None
        if self.wants("m_p2p"):
            self.head = projection_head(extractor.channels)
            self.queue = PixelQueue(queue_size, extractor.channels, self.released & RELEASED_RULES.keys())
        self._map_teacher: Tensor | None = None

    def compare(self, student, teacher, generator):
        terms = super().compare(student, teacher, generator)
        # The head too sees every rank's maps: one batch statistic, and the same gradient for its weights everywhere.
        map_student, map_teacher = all_gather_grad(student.map), all_gather_grad(teacher.map)
        if self.wants(self.relation):
            local = "local_batch" in self.released
            related = (student.map, teacher.map) if local else (map_student, map_teacher)
            terms[self.relation] = self._relations(*related)
        if self.queue is None:
            return terms
        self._map_teacher = map_teacher
        if "queue_push" in self.released:
            self.after_step(generator)
        if len(self.queue):
            embeddings = self.queue.sample(self.draws, generator)  # [V, C]
            terms["m_p2p"] = m_p2p_loss(self.head(map_student), map_teacher, embeddings, self.tau_m, impl=self.impl)
        return terms

    def _relations(self, map_student: Tensor, map_teacher: Tensor) -> Tensor:
        if self.relation == "ii_p2p":
            return ii_p2p_loss(map_student, map_teacher, self.tau_is)
        return is_p2p_loss(map_student, map_teacher, self.tau_is, impl=self.impl)

    def after_step(self, generator: torch.Generator) -> None:
        """Push the teacher's pixels of the iteration just done: the queue is filled after it was used (Section 4.2)."""
        if self._map_teacher is not None:
            self.queue.push(self._map_teacher, self.per_image, generator)
            self._map_teacher = None

    def status(self) -> dict[str, Tensor]:
        """Rows in the queue when the terms were made: 0 says why they lack M_P2P."""
        return {} if self.queue is None else {"queue_rows": torch.tensor(float(len(self.queue)))}
