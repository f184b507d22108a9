"""What competes: one table of methods and samplers that figures, tables, reports, commands, notebooks and ablations read.

A new method is an objective in rddlib/distillation/objectives.py and an entry in METHODS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial

from torch import nn

from rddlib.diffusion.schedule import Schedule
from rddlib.distillation.extractor import FeatureExtractor
from rddlib.distillation.objectives import (
    CFD,
    PD,
    RCFD,
    RDD,
    RELATIONS,
    RELEASED_SWITCHES,
    WEIGHTS,
    Objective,
    PDPerceptual,
    Sum,
    Term,
    looks,
    parse_sum,
)
from rddlib.distillation.pixel_queue import check_released
from rddlib.losses import IMPLEMENTATIONS, load_lpips
from rddlib.utils.checks import above, at_least, check, one_of


@dataclass(frozen=True)
class LossConfig:
    """Weights, temperatures and variants of the objectives; which of them a method takes, its entry in METHODS says.

    Raises ValueError for a value out of range.
    """

    cfd: float = 1.0  # weight of CFD where other terms stand beside it; a term of weight 0 is left out
    alpha: float = 1.0  # weight of the relations (Eq. 10, Feng et al. 2024)
    beta: float = 0.1  # weight of M_P2P (Eq. 10, Feng et al. 2024)
    tau_is: float = 1.0  # temperature of IS_P2P or II_P2P (Eq. 6, 7)
    tau_m: float = 0.1  # temperature of M_P2P (Eq. 8, 9)
    queue_size: int = 20_000  # N_q, rows of the pixel queue
    draws: int = 2048  # V, rows drawn from it for each iteration
    per_image: int = 1  # K, pixels of each image that are pushed into it
    relation: str = "is_p2p"  # what alpha weighs: "is_p2p", across the batch's images, or "ii_p2p", within each
    impl: str = "auto"  # how the relational losses are computed, of rddlib.losses.IMPLEMENTATIONS
    rcfd_beta: float = 0.003  # weight of RCFD's regularisers (Eq. 7, Sun et al. 2023)
    rcfd_gamma: float = 0.75  # share of entropy in them, the rest is diversity
    perceptual: float = 1.0  # weight of the perceptual distance beside PD
    every: int = 8  # at how many iterations once the gradients behind shares of a sum are measured
    weights: str = "fixed"  # "fixed"; "balanced": alpha and beta say the size of the gradients as a share of CFD's
    released: tuple[str, ...] = ()  # where to follow the released code instead of the paper, of RELEASED_SWITCHES
    dual: bool = False  # CFD's temperature on both sides (Eq. 8, Sun et al. 2023)
    predictions: bool = False  # CFD on class predictions instead of features
    watch: int = 0  # log the terms' gradients every so many iterations, 0: never
    debug: bool = False  # stop at the first NaN or infinite feature

    def __post_init__(self):
        above(self, 0, "tau_is", "tau_m")
        at_least(self, 0, "cfd", "alpha", "beta", "rcfd_beta", "perceptual", "watch")
        at_least(self, 1, "queue_size", "draws", "per_image", "every")
        one_of(self, WEIGHTS, "weights")
        one_of(self, RELATIONS, "relation")
        one_of(self, IMPLEMENTATIONS, "impl")
        balanced = self.weights == "balanced"
        check(not balanced or self.cfd > 0, "weights=balanced are shares of CFD's gradient: loss.cfd must be above 0")
        check(
            self.cfd > 0 or (self.alpha > 0 and self.rcfd_beta > 0),
            "cfd is 0: alpha (for rdd) and rcfd_beta (for rcfd) must be above 0, or nothing would be learnt",
        )
        check_released(self.released, RELEASED_SWITCHES)
        check(0 <= self.rcfd_gamma <= 1, f"rcfd_gamma is {self.rcfd_gamma}, expected 0..1")


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name: as commands and files have it.
        label: as people read it.
        style: of its lines in figures, told apart without colour too.
        build: build(schedule, extractor, **arguments) -> its objective; None for what trains no student of its own.
        arguments: arguments(loss, temperature, steps) -> the keyword arguments of build for a student of `steps` steps.
            The key of a student depends on these and on no other field of LossConfig.
        looks: whether the objective looks through the extractor.
        needs: raises UserError where something that it needs is missing on this machine, before anything is trained.
        cost: rank of its cascade's time, so that the longest start first.
    """

    name: str
    label: str
    style: Mapping[str, str]
    build: Callable[..., Objective] | None = None
    arguments: Callable[[LossConfig, float, int], dict] = lambda loss, temperature, steps: {}
    looks: bool = False
    needs: Callable[[], object] = lambda: None
    cost: int = 0


def _line(color: str, marker: str, linestyle: str) -> dict[str, str]:
    return {"color": color, "marker": marker, "linestyle": linestyle}


def _pd_lpips(schedule: Schedule, extractor: nn.Module | None, **numbers) -> Objective:
    return PDPerceptual(schedule, load_lpips(), **numbers)


def _perceptual(loss: LossConfig, temperature: float, steps: int) -> dict:
    return {"weight": loss.perceptual}


def _cfd(loss: LossConfig, temperature: float, steps: int) -> dict:
    return {"temperature": temperature, "dual": loss.dual, "predictions": loss.predictions}


def _rcfd(loss: LossConfig, temperature: float, steps: int) -> dict:
    return {**_cfd(loss, temperature, steps), "cfd": loss.cfd, "beta": loss.rcfd_beta, "gamma": loss.rcfd_gamma}


_RDD_FIELDS = (
    "cfd", "alpha", "beta", "tau_is", "tau_m", "queue_size", "draws", "per_image", "relation", "impl", "weights", "released",
)  # fmt: skip


def _rdd(loss: LossConfig, temperature: float, steps: int) -> dict:
    return {**_cfd(loss, temperature, steps), **{name: getattr(loss, name) for name in _RDD_FIELDS}}


def _through_extractor(kind: type[Objective]) -> Callable[..., Objective]:
    return lambda schedule, extractor, **numbers: kind(extractor, **numbers)


def _build_sum(schedule: Schedule, extractor: nn.Module | None, terms: Sequence[dict], **numbers) -> Objective:
    return Sum([Term(**term) for term in terms], schedule, extractor, **numbers)


def _sum_numbers(text: str, loss: LossConfig, temperature: float, steps: int) -> dict:
    """The arguments of `_build_sum`; a temperature that is not said is the profile's."""
    _, terms = parse_sum(text, steps)
    usual = {"cfd": temperature, "is_p2p": loss.tau_is, "ii_p2p": loss.tau_is, "m_p2p": loss.tau_m}
    said = [replace(term, tau=usual.get(term.loss, 1.0) if term.tau is None else term.tau) for term in terms]
    names, numbers = {term.loss for term in terms}, {"terms": [asdict(term) for term in said]}
    if any(term.share is not None for term in terms):
        numbers["every"] = loss.every
    if "m_p2p" in names:
        numbers |= {"queue_size": loss.queue_size, "per_image": loss.per_image}
    if names & {"m_p2p", "frechet"}:
        numbers["draws"] = loss.draws
    if loss.impl != "auto" and names & {"is_p2p", "m_p2p"}:  # by default no part of the keys there are
        numbers["impl"] = loss.impl
    if loss.released and names & {"is_p2p", "ii_p2p", "m_p2p"}:
        numbers["released"] = loss.released
    return numbers


def _sum(name: str, label: str, style: Mapping[str, str], text: str) -> Method:
    """The method that is a sum of terms, as `parse_sum` reads it. Raises ValueError where that does."""
    _, terms = parse_sum(text)
    if any(term.loss == "lpips" for term in terms):
        raise ValueError("lpips looks through a network of its own: take the method pd_lpips, or the term stages")
    for halving in range(1, text.count("/") + 1):
        parse_sum(text, 2**halving)
    return Method(
        name, label, style, _build_sum, partial(_sum_numbers, text), any(looks(t.loss) for t in terms), cost=8
    )


OUR_CFD, OUR_IS, OUR_PD = "cfd(tau=0.5/0.6/0.4)", "is_p2p(share=1 tau=0.1)", "pd(share=1/1/3)"
_ROWS = (
    Method("ddim", "DDIM", _line("0.35", "s", ":"), cost=7),
    # students
    Method("pd", "PD", _line("#0072B2", "o", "-"), lambda schedule, extractor: PD(schedule), cost=3),
    Method("pd_lpips", "PD + LPIPS", _line("#0072B2", "P", "--"), _pd_lpips, _perceptual, needs=load_lpips, cost=8),
    Method("pd_stages", "PD + stages", _line("#0072B2", "h", "-."), PDPerceptual, _perceptual, looks=True, cost=4),
    Method("cfd", "CFD", _line("#E69F00", "^", "--"), _through_extractor(CFD), _cfd, looks=True, cost=5),
    Method("rcfd", "RCFD", _line("#009E73", "v", "-."), _through_extractor(RCFD), _rcfd, looks=True, cost=6),
    Method("rdd", "RDD", _line("#D55E00", "D", "-"), _through_extractor(RDD), _rdd, looks=True, cost=9),
    # our own sums, as found on digits (docs/search.py)
    _sum("cfd_is", "CFD + IS_P2P", _line("#7A4FBF", "<", "--"), f"cfd_is = {OUR_CFD} + {OUR_IS}"),
    _sum("cfd_pd", "CFD + PD", _line("#A61E4D", "*", "-"), "cfd_pd = cfd(tau=0.8/0.9/0.65) + pd(share=0.3/0.7/2)"),
    _sum("cfd_is_pd", "CFD + IS_P2P + PD", _line("#5B6B1E", ">", "-."), f"cfd_is_pd = {OUR_CFD} + {OUR_IS} + {OUR_PD}"),
    # other samplers of the base model, which train nothing
    Method("pndm", "PNDM", _line("#CC79A7", "p", ":")),
    Method("dpm-solver", "DPM-Solver", _line("#56B4E9", "X", ":")),
    Method("diffusers-ddim", "DDIM of diffusers", _line("0.5", "d", ":")),
    # models that guided students are compared with
    Method("teacher", "teacher", _line("0.55", "s", ":")),
    Method("stage_one", "stage one", _line("#56B4E9", "P", ":")),
)
METHODS = {method.name: method for method in _ROWS}
OBJECTIVES = tuple(name for name, method in METHODS.items() if method.build)  # methods that train students
COMPETING = ("pd", "cfd", "rcfd", "rdd")  # the papers'
SUMS = ("cfd_is", "cfd_pd", "cfd_is_pd")  # ours
WINNER = "cfd_is_pd"  # of them: rdd ablate evidence


class _Labels(dict):
    def __missing__(self, name: str) -> str:
        """Of a profile's own method: its name."""
        return name


class _Styles(dict):
    def __missing__(self, name: str) -> dict[str, str]:
        """Of a profile's own method: one that follows from its name."""
        place = sum(name.encode())
        return _line(_OWN_COLORS[place % len(_OWN_COLORS)], _OWN_MARKERS[place % len(_OWN_MARKERS)], "--")


_OWN_COLORS = ("#B5651D", "#1B7F79", "#4C72B0", "#8C564B")  # none of the table's
_OWN_MARKERS = "HX8Pdp"
LABELS = _Labels({name: method.label for name, method in METHODS.items()})
STYLES = _Styles({name: dict(method.style) for name, method in METHODS.items()})


@lru_cache
def own_methods(sums: tuple[str, ...]) -> dict[str, Method]:
    """The methods that a profile's `sums` add, each written as `parse_sum` reads it.

    Raises ValueError where one reads otherwise, or its name is taken.
    """
    found: dict[str, Method] = {}
    for text in sums:
        name, _ = parse_sum(text)
        if name in METHODS or name in found:
            raise ValueError(f"sums names {name!r}, which is taken: choose another name")
        found[name] = _sum(name, name, STYLES[name], text)
    return found


def build_objective(
    method: Method,
    loss: LossConfig,
    temperature: float,
    schedule: Schedule,
    extractor: FeatureExtractor | nn.Module | None = None,
    steps: int = 1,
) -> Objective:
    """What a student minimises.

    Args:
        method: one with an objective.
        loss: weights and temperatures.
        temperature: tau of CFD at this halving.
        schedule: the teacher's.
        extractor: the network to look through, for methods that do.
        steps: of the student.
    """
    return method.build(schedule, extractor, **method.arguments(loss, temperature, steps))
