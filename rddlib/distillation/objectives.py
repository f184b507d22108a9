"""What a student minimises: sums of named terms between its image x^S and the teacher's x^T.

The published methods are entries of one class, `Sum`; a new method is another list of `Term`s.
"""

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rddlib.diffusion.schedule import Schedule
from rddlib.distillation.extractor import Extractor, FeatureExtractor, Features
from rddlib.distillation.pixel_queue import RELEASED_RULES, PixelQueue, Ring, check_released
from rddlib.losses import (
    cfd_loss,
    diversity_loss,
    entropy_loss,
    frechet_loss,
    ii_p2p_loss,
    is_p2p_loss,
    kernel_loss,
    m_p2p_loss,
    pd_loss,
    perceptual_loss,
    stage_perceptual_loss,
)
from rddlib.utils.distributed import all_gather_grad, sum_over_ranks, world_size
from rddlib.utils.errors import nearest
from rddlib.utils.text import joined

RELEASED_SWITCHES = {
    **RELEASED_RULES,
    "queue_push": "the teacher's pixels are pushed before the loss, not after the iteration",
    "local_batch": "IS_P2P relates the images of each process only, not those of all",
    "same_seed": "every process draws the same noise and times (for its own images)",
    "head_free": "the projection head learns at a constant rate and unclipped, while the student has a schedule and clipping",
}
WEIGHTS = ("fixed", "balanced")
RELATIONS = ("is_p2p", "ii_p2p")
HEADS = ("paper", "identity", "none")
SMOOTHING = 0.5  # of measured gradients, where they are not measured at each iteration


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
        balance: weighs terms by their gradients instead, where some have a share; terms without one keep their weight.
        released: of RELEASED_SWITCHES, where it follows the released code; `distill` heeds "head_free".
    """

    weights: dict[str, float]
    released: Collection[str] = frozenset()
    _frozen: tuple[nn.Module, ...] = ()  # networks to compare images through; in a tuple nn.Module does not see them

    def __init__(self):
        super().__init__()
        self.balance: Balance | None = None

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
        balanced = self.balance(terms, x_student) if self.balance is not None and x_student.requires_grad else {}
        weights = {**self.weights, **balanced}
        return Loss(sum(weights[name] * value for name, value in terms.items()), terms)

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


class Balance(nn.Module):
    """Weights that give terms' gradients at the student's image a share of another term's.

    Args:
        shares: of each balanced term, the size of its gradient over that of `reference`, a term of fixed weight.
        reference: its name.
        every: at how many calls once gradients are measured, each by one more backward pass through the network that the
            terms look through; between, the last measurements hold, smoothed where every > 1. A term that was not there
            before is measured at once.
    """

    def __init__(self, shares: Mapping[str, float], reference: str, every: int):
        super().__init__()
        self.shares, self.reference, self.every = dict(shares), reference, every
        self.count, self.norms = 0, {}

    def forward(self, terms: Mapping[str, Tensor], x_student: Tensor) -> dict[str, Tensor]:
        """{name: weight} of the balanced terms; all ranks call it together.

        terms: scalars by name, with their graph; x_student: [N, C, H, W], requires a gradient.
        """
        wanted = [name for name in terms if name in self.shares]
        if not wanted:
            return {}
        names = dict.fromkeys([self.reference, *wanted])
        if self.count % self.every == 0 or not names.keys() <= self.norms.keys():
            self._measure({name: terms[name] for name in names}, x_student)
        self.count += 1
        reference, tiny = self.norms[self.reference], torch.finfo(x_student.dtype).tiny
        return {name: self.shares[name] * reference / self.norms[name].clamp(min=tiny) for name in wanted}

    def _measure(self, terms: Mapping[str, Tensor], x_student: Tensor) -> None:
        for name, term in terms.items():  # in one order on every rank: each norm is a collective
            norm, before = _global_norm(_gradient(term, x_student)), self.norms.get(name)
            smooth = before is not None and self.every > 1
            self.norms[name] = torch.lerp(norm, before.to(norm), SMOOTHING) if smooth else norm

    def get_extra_state(self) -> Tensor:
        """How often it was called, then the norm of the reference and of each balanced term, -1 for one not measured yet."""
        norms = [self.norms.get(name) for name in (self.reference, *self.shares)]
        return torch.tensor([float(self.count), *(-1.0 if norm is None else float(norm) for norm in norms)]).double()

    def set_extra_state(self, state: Tensor) -> None:
        self.count = int(state[0])
        known = zip((self.reference, *self.shares), state[1:].float(), strict=True)
        self.norms = {name: norm for name, norm in known if norm >= 0}


# terms


@dataclass(frozen=True)
class Term:
    """One summand of a `Sum`.

    Args:
        loss: which, of TERMS; a sum has each once.
        weight: fixed factor; 0 leaves the term out.
        share: instead of a fixed factor, the size of its gradient at the student's image as a share of that of the first
            term with a fixed factor.
        tau: temperature (of kernel: bandwidth), where the loss has one.
        head: of m_p2p, on the student's map: "paper", two 1x1 convolutions that start at random; "identity", the same
            beside a shortcut, starting as nothing; "none".
        dual, predictions: of cfd: tau on both sides; class predictions instead of features.
    """

    loss: str
    weight: float = 1.0
    share: float | None = None
    tau: float = 1.0
    head: str = "paper"
    dual: bool = False
    predictions: bool = False


class View:
    """What terms look at in one iteration; each thing is made once, when the first term asks for it."""

    def __init__(self, owner: "Sum", x_student: Tensor, x_teacher: Tensor, t: Tensor, generator: torch.Generator):
        self.owner, self.x_student, self.x_teacher, self.t, self.generator = owner, x_student, x_teacher, t, generator

    @cached_property
    def features(self) -> tuple[Features, Features]:
        """The student's, differentiable, and the teacher's."""
        with torch.no_grad():
            teacher = self.owner.extractor(self.x_teacher)
        return self.owner.extractor(self.x_student), teacher

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's maps of all ranks [N, C, H, W]: the head too sees them, so that there is one batch
        statistic, and the same gradient for its weights everywhere."""
        student, teacher = self.features
        return all_gather_grad(student.map), all_gather_grad(teacher.map)

    @cached_property
    def pooled(self) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's pooled features of all ranks [N, C]."""
        student, teacher = self.features
        return all_gather_grad(student.pooled), all_gather_grad(teacher.pooled)

    @property
    def related(self) -> tuple[Tensor, Tensor]:
        """The maps that IS_P2P and II_P2P relate."""
        student, teacher = self.features
        return (student.map, teacher.map) if "local_batch" in self.owner.released else self.maps


def _pd(view: View, term: Term) -> Tensor:
    return pd_loss(view.x_student, view.x_teacher, view.t, view.owner.schedule)


def _lpips(view: View, term: Term) -> Tensor:
    return perceptual_loss(view.x_student, view.x_teacher, view.owner.extractor)


def _stages(view: View, term: Term) -> Tensor:
    with torch.no_grad():
        stages_teacher = view.owner.extractor.stages(view.x_teacher)
    return stage_perceptual_loss(view.owner.extractor.stages(view.x_student), stages_teacher)


def _cfd(view: View, term: Term) -> Tensor:
    chosen = "logits" if term.predictions else "pooled"
    student, teacher = (getattr(features, chosen) for features in view.features)
    return cfd_loss(student, teacher, term.tau, dual=term.dual)


def _entropy(view: View, term: Term) -> Tensor:
    return entropy_loss(view.features[0].logits)


def _diversity(view: View, term: Term) -> Tensor:
    return diversity_loss(all_gather_grad(view.features[0].logits))


def _is_p2p(view: View, term: Term) -> Tensor:
    return is_p2p_loss(*view.related, term.tau, impl=view.owner.impl)


def _ii_p2p(view: View, term: Term) -> Tensor:
    return ii_p2p_loss(*view.related, term.tau)


def _m_p2p(view: View, term: Term) -> Tensor | None:
    owner = view.owner
    map_student, owner.map_teacher = view.maps
    if "queue_push" in owner.released:
        owner.after_step(view.generator)
    if not len(owner.queue):
        return None
    embeddings = owner.queue.sample(owner.draws, view.generator)  # [V, C]
    return m_p2p_loss(owner.head(map_student), view.maps[1], embeddings, term.tau, impl=owner.impl)


def _frechet(view: View, term: Term) -> Tensor:
    pair, memory = view.pooled, view.owner.memory
    loss = frechet_loss(*pair, *memory.rows[: len(memory)].unbind(1))
    memory.append(torch.stack(pair, dim=1))
    return loss


def _kernel(view: View, term: Term) -> Tensor:
    return kernel_loss(*view.pooled, term.tau)


class Kind(NamedTuple):
    """make(view, term) -> the loss, a scalar, or None where there is nothing to compare with yet; sees: "pixels", the
    extractor's "features", or its class "predictions" too; heeds: the options that it reads, beside weight and share."""

    make: Callable[[View, Term], Tensor | None]
    sees: str
    heeds: tuple[str, ...] = ()


TERMS = {
    "pd": Kind(_pd, "pixels"),
    "lpips": Kind(_lpips, "pixels"),
    "stages": Kind(_stages, "features"),
    "cfd": Kind(_cfd, "features", ("tau", "dual", "predictions")),
    "is_p2p": Kind(_is_p2p, "features", ("tau",)),
    "ii_p2p": Kind(_ii_p2p, "features", ("tau",)),
    "entropy": Kind(_entropy, "predictions"),
    "diversity": Kind(_diversity, "predictions"),
    "m_p2p": Kind(_m_p2p, "features", ("tau", "head")),
    "frechet": Kind(_frechet, "features"),
    "kernel": Kind(_kernel, "features", ("tau",)),
}


def looks(name: str) -> bool:
    """Whether the term looks through the extractor."""
    return TERMS[name].sees != "pixels"


def check_terms(terms: Sequence[Term]) -> None:
    """Raise ValueError for unknown or repeated losses, heads or temperatures out of range, and shares of nothing."""
    if not terms:
        raise ValueError("a sum needs at least one term")
    names = [term.loss for term in terms]
    for term in terms:
        if term.loss not in TERMS:
            raise ValueError(f"unknown term {term.loss!r}{nearest(term.loss, TERMS)}: known are {', '.join(TERMS)}")
        if term.head not in HEADS:
            raise ValueError(f"{term.loss}: head is {term.head!r}, expected one of {', '.join(HEADS)}")
        shared = 0 if term.share is None else term.share
        if not (0 < term.tau < math.inf and 0 <= term.weight < math.inf and 0 <= shared < math.inf):
            raise ValueError(f"{term.loss}: tau must be above 0, weight and share at least 0, all of them finite")
    if "lpips" in names and any(map(looks, names)):
        raise ValueError("lpips looks through a network of its own: beside terms on the extractor use stages")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"the term {twice.pop()} stands twice: give each once")
    fixed = [term for term in terms if term.share is None and term.weight > 0]
    if any(term.share is not None for term in terms) and not fixed:
        raise ValueError("shares need a term with a fixed weight to be shares of: give one term no share")
    if not any(term.weight if term.share is None else term.share for term in terms):
        raise ValueError("all weights are 0: nothing would be learnt")
    if [term.loss for term in fixed] == ["m_p2p"]:
        raise ValueError("M_P2P alone has nothing to compare with while the queue is empty: add another term")
    if any(term.share is not None for term in terms) and fixed[0].loss == "m_p2p":
        raise ValueError(
            "shares would be of M_P2P, which the first iteration lacks: put another term with a weight first"
        )


class Sum(Objective):
    """A sum of terms, each with a fixed weight or a share of the first fixed term's gradient.

    Over several processes relations span all of them. The pixel queue is filled after each update, so the first iteration
    has none and leaves M_P2P out; without M_P2P there is neither projection head nor queue.

    Args:
        terms: each loss once, in the order in which they are summed.
        schedule: of the teacher, for pd.
        extractor: a FeatureExtractor, or any network through as_extractor, for all terms but pd and lpips; frozen here, and
            no part of this module's state. For lpips the LPIPS network.
        queue_size: N_q, rows of the pixel queue.
        draws: V, rows of it that M_P2P compares with.
        per_image: K, pixels of each of the teacher's maps that are pushed.
        impl: of rddlib.losses.is_p2p_loss.
        every: at how many iterations once the gradients behind shares are measured.
        released: names of RELEASED_SWITCHES to follow instead of the paper.

    Raises ValueError where `check_terms` does, where schedule or extractor is missing or cannot give what a term needs, and
    for unknown switches.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        schedule: Schedule | None = None,
        extractor: nn.Module | None = None,
        *,
        queue_size: int = 20_000,
        draws: int = 2048,
        per_image: int = 1,
        impl: str = "auto",
        every: int = 8,
        released: Collection[str] = (),
    ):
        super().__init__()
        check_terms(terms)
        check_released(released, RELEASED_SWITCHES)
        self.schedule, self.draws, self.per_image, self.impl = schedule, draws, per_image, impl
        self.released = frozenset(released)
        self.summands = {term.loss: term for term in terms if (term.weight if term.share is None else term.share)}
        self.weights = {term.loss: term.weight for term in terms}
        shares = {name: term.share for name, term in self.summands.items() if term.share is not None}
        if shares:
            reference = next(name for name, term in self.summands.items() if term.share is None)
            self.balance = Balance(shares, reference, every)
        self._check_network(extractor)
        self.head, self.queue, self.map_teacher = None, None, None
        if m_p2p := self.summands.get("m_p2p"):
            self.head = projection_head(extractor.channels, m_p2p.head)
            self.queue = PixelQueue(queue_size, extractor.channels, self.released & RELEASED_RULES.keys())
        self.memory = Ring(draws, 2, extractor.channels) if "frechet" in self.summands else None  # of both networks

    def _check_network(self, extractor: nn.Module | None) -> None:
        """Look through the network, once it is one that can give the terms what they need."""
        if "pd" in self.summands and self.schedule is None:
            raise ValueError("pd weighs by the schedule: pass schedule=teacher.schedule")
        needing = [name for name in self.weights if looks(name)]
        if (needing or "lpips" in self.weights) and extractor is None:
            raise ValueError(f"{(needing or ['lpips'])[0]} looks through an extractor: pass extractor=")
        if extractor is None:
            return
        if "stages" in self.summands and not hasattr(extractor, "stages"):
            raise ValueError(
                "stages are a trained classifier's, and this extractor shows its last map alone: name another"
            )
        if needing and not hasattr(extractor, "channels"):
            raise ValueError(
                "the extractor is a bare module: make it one with rddlib.as_extractor(module, image_shape)"
            )
        predicting = any(TERMS[name].sees == "predictions" for name in self.weights)
        predicting = predicting or any(term.predictions for term in self.summands.values())
        if predicting and not getattr(extractor, "predicts", True):
            raise ValueError(
                "this extractor shows a map alone, no class predictions: use CFD or RDD, without predictions"
            )
        self._frozen = (extractor.eval().requires_grad_(False),)

    @property
    def extractor(self) -> nn.Module:
        """The network that it looks through."""
        return self._frozen[0]

    def terms(self, x_student, x_teacher, t, generator):
        view = View(self, x_student, x_teacher, t, generator)
        made = {name: TERMS[name].make(view, term) for name, term in self.summands.items()}
        return {name: value for name, value in made.items() if value is not None}

    def after_step(self, generator: torch.Generator) -> None:
        """Push pixels of the teacher's map of this iteration, once: the queue is filled after it was used (Section 4.2)."""
        if self.map_teacher is not None:
            self.queue.push(self.map_teacher, self.per_image, generator)
            self.map_teacher = None

    def status(self) -> dict[str, Tensor]:
        """Rows in the queue when the terms were made: 0 says why they lack M_P2P."""
        return {} if self.queue is None else {"queue_rows": torch.tensor(float(len(self.queue)))}


class Residual(nn.Module):
    """x + branch(x), the branch's last layer starting at zero."""

    def __init__(self, branch: nn.Sequential):
        super().__init__()
        self.branch = branch
        nn.init.zeros_(branch[-1].weight)
        nn.init.zeros_(branch[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return x + self.branch(x)


def projection_head(channels: int, kind: str = "paper") -> nn.Module:
    """Two 1x1 convolutions with batch normalisation and ReLU between (Section 4.3, Feng et al. 2024).

    kind: "paper"; "identity", the same beside a shortcut, starting as the identity; "none", nothing at all.
    """
    if kind == "none":
        return nn.Identity()
    head = nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )
    return Residual(head) if kind == "identity" else head


# the published methods


class PD(Sum):
    """Progressive distillation: w_t ||x^T - x^S||^2, w_t = max(alpha^2/sigma^2, 1)  (Eq. 2, Feng et al. 2024)."""

    def __init__(self, schedule: Schedule):
        super().__init__([Term("pd")], schedule)


class PDPerceptual(Sum):
    """PD with a perceptual distance beside it: "PD + LPIPS" of Tables 1 and 2, Feng et al. 2024.

    network: LPIPS, from `rddlib.losses.load_lpips()`; or a FeatureExtractor, whose stages are then compared in LPIPS's
    form, for images that VGG makes no sense of. The term is called "lpips" or "stages" accordingly: the second is not
    LPIPS. weight: of that term.
    """

    def __init__(self, schedule: Schedule, network: nn.Module, weight: float = 1.0):
        name = "stages" if isinstance(network, Extractor) else "lpips"
        super().__init__([Term("pd"), Term(name, weight)], schedule, network)


class CFD(Sum):
    """Classifier-based feature distillation: KL(softmax(F^T/tau) || softmax(F^S))  (Eq. 4, Feng et al. 2024).

    temperature: tau of the teacher's features, in (0, 1] as the papers have it; dual: tau on both sides, times tau^2 (Eq. 8,
    Sun et al. 2023); predictions: compare the classifier's logits instead of its pooled features (Figures 4 and 5 there).
    """

    def __init__(
        self, extractor: FeatureExtractor, temperature: float, *, dual: bool = False, predictions: bool = False
    ):
        super().__init__([Term("cfd", tau=temperature, dual=dual, predictions=predictions)], extractor=extractor)


class RCFD(Sum):
    """CFD + beta [gamma entropy + (1 - gamma) diversity] of the student's predictions (Eq. 7, Sun et al. 2023).

    cfd: weight of CFD; dual, predictions: of CFD.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        temperature: float,
        beta: float,
        gamma: float,
        *,
        cfd: float = 1.0,
        dual: bool = False,
        predictions: bool = False,
    ):
        terms = [
            Term("cfd", cfd, tau=temperature, dual=dual, predictions=predictions),
            Term("entropy", beta * gamma),
            Term("diversity", beta * (1 - gamma)),
        ]
        super().__init__(terms, extractor=extractor)


class RDD(Sum):
    """Relational Diffusion Distillation: L_CFD + alpha L_IS_P2P + beta L_M_P2P  (Eq. 10, Feng et al. 2024).

    Args:
        extractor, temperature, dual, predictions: of CFD.
        cfd, alpha, beta: weights.
        tau_is, tau_m: temperatures of the relations.
        relation: "ii_p2p" puts L_II_P2P (Eq. 6) in the place of L_IS_P2P.
        weights: "fixed"; or "balanced", for alpha and beta to say how large the gradients of the relations at the student's
            image should be as a share of CFD's, measured at each iteration.
        options: of `Sum`: queue_size, draws, per_image, impl, released.

    Raises ValueError for unknown names, and where cfd and alpha are 0.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        temperature: float,
        *,
        cfd: float = 1.0,
        alpha: float = 1.0,
        beta: float = 0.1,
        tau_is: float = 1.0,
        tau_m: float = 0.1,
        relation: str = "is_p2p",
        weights: str = "fixed",
        dual: bool = False,
        predictions: bool = False,
        **options,
    ):
        for name, value, known in (("weights", weights, WEIGHTS), ("relation", relation, RELATIONS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {joined(known)}")
        if not cfd and not alpha:
            raise ValueError("cfd and alpha are 0: M_P2P alone has nothing to compare with while the queue is empty")
        balanced = weights == "balanced"
        terms = [
            Term("cfd", cfd, tau=temperature, dual=dual, predictions=predictions),
            Term(relation, alpha, alpha if balanced else None, tau_is),
            Term("m_p2p", beta, beta if balanced else None, tau_m),
        ]
        super().__init__(terms, extractor=extractor, every=1, **options)


# sums as people write them

_SWITCH = {"true": True, "false": False}
_TERM = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")


def parse_sum(text: str, steps: int = 1) -> tuple[str, tuple[Term, ...]]:
    """ "ours = cfd + is_p2p(share=1 tau=0.1)" as (name, terms) for a student of `steps` steps.

    NAME = TERM + TERM ..., each TERM the name of a loss of TERMS with options of `Term` in brackets: weight, share, tau,
    head, dual, predictions. A tau that is not said is None. share=0.1/0.3 is 0.3 for the student of one step and 0.1 for
    those of more; share=0.1/0.2/0.3 tells two steps from more, and so on. Raises ValueError where it reads otherwise.
    """
    name, equals, right = text.partition("=")
    name = name.strip()
    if not equals or not re.fullmatch(r"[a-z]\w*", name):
        raise ValueError(f"{text!r} is no sum: write it as name = cfd + is_p2p(share=1 tau=0.1)")
    terms = tuple(_parse_term(word, steps) for word in re.split(r"\+(?![^()]*\))", right))  # 1e+2 is a number
    check_terms([term if term.tau is not None else replace(term, tau=1.0) for term in terms])
    return name, terms


def _parse_term(word: str, steps: int) -> Term:
    found = _TERM.fullmatch(word)
    if not found:
        raise ValueError(f"{word.strip()!r} is no term: write it as is_p2p(share=1 tau=0.1)")
    options: dict = {}
    kinds = {field.name: field.type for field in fields(Term) if field.name != "loss"}
    for option in (found[2] or "").replace(",", " ").split():
        key, _, value = option.partition("=")
        if key not in kinds:
            raise ValueError(f"{found[1]} has no option {key!r}{nearest(key, kinds)}: known are {', '.join(kinds)}")
        if key in options:
            raise ValueError(f"{found[1]} has {key} twice: give it once")
        if found[1] in TERMS and key not in ("weight", "share", *TERMS[found[1]].heeds):
            raise ValueError(f"{found[1]} has no use for {key}: leave it out")
        try:
            options[key] = (
                value if key == "head" else _SWITCH[value] if kinds[key] is bool else _number_at(value, steps)
            )
        except (ValueError, KeyError):
            wanted = "neither true nor false" if kinds[key] is bool else "no number"
            raise ValueError(f"{found[1]}({option}): {value!r} is {wanted}") from None
    if {"weight", "share"} <= options.keys():
        raise ValueError(f"{found[1]} has a weight and a share, which takes its place: give one of them")
    return Term(found[1], **{"tau": None, **options})


def _number_at(text: str, steps: int) -> float:
    """Of numbers with slashes between, the last at one step, the one before at two, ..., the first at all that are more."""
    numbers = [float(word) for word in text.split("/")]
    return numbers[max(0, len(numbers) - steps.bit_length())]
