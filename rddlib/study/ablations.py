"""Every ablation of both papers and ours, as data: which profile fields vary, over which values, and what was claimed.

An ablation is a grid of axes, each over one profile field, and single settings beside it; `sweep` makes runs of it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rddlib.distillation.label_free import TEACHER
from rddlib.distillation.objectives import RELEASED_SWITCHES
from rddlib.methods import COMPETING, LABELS, METHODS, OUR_CFD, OUR_PD, SUMS, WINNER
from rddlib.study.profiles import Profile, classes_of, overrides_of, parse_value
from rddlib.study.stage import key_of
from rddlib.utils.errors import UserError, check_known, nearest

RDD_PAPER, RCFD_PAPER = "Feng et al. 2024", "Sun et al. 2023"
OVER_PROCESSES = ("local_batch", "same_seed")  # switches that change nothing in a training of one process


@dataclass(frozen=True)
class Setting:
    """One point of an ablation: method, one of METHODS, with `changes` {profile field: value as --set takes it}.

    series: the line of a figure that it belongs to; x: its place on the axis, None for a setting beside the axis.
    """

    name: str
    method: str
    changes: Mapping[str, str] = field(default_factory=dict)
    series: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Axis:
    """One profile field and its values, fixed or made from the profile; label: as figures call it; names: of the values
    where they are no numbers."""

    label: str
    field: str
    values: Sequence | Callable[[Profile], Sequence]
    names: tuple[str, ...] = ()

    def of(self, profile: Profile) -> list:
        return list(self.values(profile) if callable(self.values) else self.values)

    def name(self, index: int, value) -> str:
        if index < len(self.names):
            return self.names[index]
        return f"{value:g}" if isinstance(value, float) else str(value)


Alone = tuple[str, str, dict[str, object]] | tuple[str, str, dict[str, object], str]
PD, CFD = ("PD", "pd", {}), ("CFD", "cfd", {})


@dataclass(frozen=True)
class Ablation:
    """name; source: where in which paper; title; claim: what is said there, to be checked.

    method and fixed {field: value}: of every point of the grid that `axes` span, the first of which is a figure's x axis and
    the second tells its lines apart; beside: settings that stand alone, as (name, method, {field: value}, series if it has
    one), or what makes them of (profile, costs). whole: down to one step instead of the first halving only, on which the
    papers' figures are. measures: "scores" or "entropy". timed: whether settings follow from costs.
    """

    name: str
    source: str
    title: str
    claim: str
    method: str = "rdd"
    fixed: Mapping[str, object] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    beside: Sequence[Alone] | Callable[[Profile, Mapping[str, float]], Sequence[Alone]] = ()
    whole: bool = False
    measures: str = "scores"
    timed: bool = False

    @property
    def files(self) -> str:
        """How its files begin: with its name, and where its grid is not ABLATIONS' with a hash of it, so that no table takes
        another's place."""
        if self == ABLATIONS.get(self.name):
            return self.name
        values = [(axis.field, None if callable(axis.values) else axis.values) for axis in self.axes]
        return f"{self.name}-{key_of({'axes': values, 'method': self.method, 'whole': self.whole})[:6]}"

    def settings(self, profile: Profile, costs: Mapping[str, float] | None = None) -> list[Setting]:
        """All of them for a profile. costs: seconds of an iteration by method, where known.

        Raises UserError where an axis has no value.
        """
        beside = self.beside(profile, costs or {}) if callable(self.beside) else self.beside
        alone = [Setting(name, by, overrides_of(profile, changes), *series) for name, by, changes, *series in beside]
        return (self._grid(profile) if self.axes else []) + alone

    def _grid(self, profile: Profile) -> list[Setting]:
        values = [axis.of(profile) for axis in self.axes]
        if empty := [axis.field for axis, found in zip(self.axes, values, strict=True) if not found]:
            raise UserError(f"{self.name} has an empty grid: give --axis {empty[0]} at least one value")
        return [self._point(profile, [*point]) for point in itertools.product(*(enumerate(found) for found in values))]

    def _point(self, profile: Profile, point: list[tuple[int, object]]) -> Setting:
        changes, words = dict(self.fixed), []
        for axis, (index, value) in zip(self.axes, point, strict=True):
            changes[axis.field] = value
            words.append(axis.name(index, value))
        (first, x), *rest = zip(words, (value for _, value in point), strict=True)
        numeric = isinstance(x, (int, float)) and not isinstance(x, bool)
        name, series = f"{self.axes[0].label} = {first}", ", ".join(word for word, _ in rest)
        name += f", {series}" if series else ""
        return Setting(name, self.method, overrides_of(profile, changes), series, float(x) if numeric else None)

    def with_axes(self, given: Mapping[str, str], profile: Profile) -> "Ablation":
        """The same over other values: {"loss.tau_is": "0.1,0.5"}.

        Raises UserError for a field that is no axis of it, a value of the wrong type and an empty grid.
        """
        known = {axis.field: axis for axis in self.axes}
        for name in given:
            if name not in known:
                has = f"its axes are {', '.join(known)}" if known else "it has none"
                raise UserError(f"--axis {name}: no axis of {self.name}{nearest(name, known)}; {has}")
        values = {name: _values(name, text, profile) for name, text in given.items()}
        axes = [replace(a, values=values[a.field], names=()) if a.field in values else a for a in self.axes]
        return replace(self, axes=tuple(axes))


def _values(name: str, text: str, profile: Profile) -> list:
    words = [word.strip() for word in text.strip().strip("[]").split(",") if word.strip()]
    if not words:
        raise UserError(f"--axis {name}={text}: the grid is empty; write values as {name}=1,2")
    found = [parse_value(profile, name, word) for word in words]
    if len(set(found)) < len(found):
        raise UserError(
            f"--axis {name}={text}: a value stands there twice (one value is taken for all of a field of several)"
        )
    return [value[0] if isinstance(value, tuple) else value for value in found]


def custom(given: Mapping[str, str], profile: Profile, method: str = "rdd", whole: bool = True) -> Ablation:
    """A grid over any profile fields, for questions that no paper asked.

    Raises UserError for an unknown method or field, a value of the wrong type and an empty grid.
    """
    profile.method(method, "--method")
    if not given:
        raise UserError("custom has an empty grid: give it at least one --axis FIELD=VALUE,VALUE")
    axes = tuple(Axis(name, name, _values(name, text, profile)) for name, text in given.items())
    return Ablation("custom", "", "A grid of your own", "", method=method, axes=axes, whole=whole)


# settings that stand beside grids


def _longer(profile: Profile, costs: Mapping[str, float], name: str, than: str) -> dict:
    """As many iterations of one method as take the time of another's, by the measured costs of one."""
    ratio = max(1.0, round(costs[than] / costs[name], 2)) if than in costs else 1.0
    return {"distill.iterations": tuple(round(n * ratio) for n in profile.distill.iterations)}


def _classifiers(profile: Profile, costs: Mapping[str, float]) -> list[Alone]:
    own = profile.extractor.name
    kinds = [own, "resnet18"] if profile.data.name == "digits" else ["resnet18", "resnet50", "densenet201"]
    through: dict = {kind: {"extractor.name": kind} for kind in (*kinds, own)}
    through |= {f"{own}, trained anew ({seed})": {"extractor.seed": seed} for seed in (1, 2)}
    if (half := classes_of(profile) // 2) > 1:
        through[f"{own}, half the classes"] = {"extractor.classes": tuple(range(half))}
    # some maps have one pixel
    return [PD, *((name, "cfd", changes | {"loss.per_image": 1}) for name, changes in through.items())]


def _label_free(profile: Profile, costs: Mapping[str, float]) -> list[Alone]:
    names = ("cfd", "rdd", WINNER)  # without RCFD, which needs predictions
    own = {"extractor.name": TEACHER, "methods": ("pd", *names)}
    through = (("", {}), (", the teacher's features", own))
    return [PD, *((LABELS[name] + more, name, changes) for more, changes in through for name in names)]


RELEASED_BESIDE_SWITCHES = {
    "map after ReLU": {"extractor.map_at": "relu"},
    "attention": lambda p: {"unet.attention": tuple(min(2 * size, p.unet.image_shape[1]) for size in p.unet.attention)},
    "discrete schedule": {"base.schedule": "discrete"},
}
SCORED_OTHERWISE = {
    "x not clipped": {"evaluation.clip": False},
    "scored unrounded": {"evaluation.protocol": "released"},
}


def _switched(profile: Profile, switch: str) -> dict:
    """A switch of the loss with the numbers that go with it: the released K is 128 a batch, its V twice the paper's."""
    together = {"queue_per_batch": {"loss.per_image": 128}, "queue_draw": {"loss.draws": 2 * profile.loss.draws}}
    return {"loss.released": (switch,), **together.get(switch, {})}


def _released(profile: Profile, costs: Mapping[str, float]) -> list[Alone]:
    switches = [name for name in RELEASED_SWITCHES if name not in OVER_PROCESSES]
    alone = {name: _switched(profile, name) for name in switches}
    alone |= {name: made(profile) if callable(made) else made for name, made in RELEASED_BESIDE_SWITCHES.items()}
    if profile.loss.alpha != 1:  # on ImageNet
        alone["alpha fixed at 1"] = {"loss.alpha": 1.0}
    together = dict(itertools.chain.from_iterable(changes.items() for changes in alone.values()))
    alone |= SCORED_OTHERWISE
    alone["all together"] = together | {"loss.released": tuple(switches), "evaluation.protocol": "released"}
    return [CFD, ("as in the paper", "rdd", {}), *((name, "rdd", changes) for name, changes in alone.items())]


def _budget(profile: Profile, costs: Mapping[str, float]) -> list[Alone]:
    """RDD's time spent by the cheaper methods on more iterations."""
    equal = [(f"{name.upper()}, equal iterations", name, {}, "equal iterations") for name in ("pd", "cfd", "rdd")]
    longer = {name: _longer(profile, costs, name, "rdd") for name in ("pd", "cfd")}
    return equal + [(f"{name.upper()}, equal time", name, more, "equal time") for name, more in longer.items()]


_BALANCES = {  # sums of terms whose gradients are held at a share of CFD's
    "IS_P2P, share 0.3": "cfd + is_p2p(share=0.3 tau=0.1)",
    "IS_P2P, share 1": "cfd + is_p2p(share=1 tau=0.1)",
    "IS_P2P, share 3": "cfd + is_p2p(share=3 tau=0.1)",
    "IS_P2P, share 1, tau 1": "cfd + is_p2p(share=1 tau=1)",
    "IS_P2P, share 1, tau 0.3": "cfd + is_p2p(share=1 tau=0.3)",
    "IS_P2P, share 1, tau 0.05": "cfd + is_p2p(share=1 tau=0.05)",
    "II_P2P, share 1": "cfd + ii_p2p(share=1 tau=0.1)",
    "M_P2P, share 1, paper's head": "cfd + m_p2p(share=1 tau=0.1)",
    "M_P2P, share 1, identity head": "cfd + m_p2p(share=1 tau=0.1 head=identity)",
    "M_P2P, share 1, no head": "cfd + m_p2p(share=1 tau=0.1 head=none)",
    "PD, share 0.1": "cfd + pd(share=0.1)",
    "PD, share 0.3": "cfd + pd(share=0.3)",
    "PD, share 1": "cfd + pd(share=1)",
    "PD, share 0.3, CFD's tau 1": "cfd(tau=1) + pd(share=0.3)",
    "IS_P2P, share 0.3, PD, share 0.3": "cfd + is_p2p(share=0.3 tau=0.1) + pd(share=0.3)",
    "IS_P2P, share 1, PD, share 0.3": "cfd + is_p2p(share=1 tau=0.1) + pd(share=0.3)",
    "IS_P2P, share 1, PD, share 0.1": "cfd + is_p2p(share=1 tau=0.1) + pd(share=0.1)",
    "Fréchet, share 0.3": "cfd + frechet(share=0.3)",
    "Fréchet, share 0.3, PD, share 0.3": "cfd + frechet(share=0.3) + pd(share=0.3)",
    "kernel, share 0.3": "cfd + kernel(share=0.3)",
    "kernel, share 0.3, PD, share 0.3": "cfd + kernel(share=0.3) + pd(share=0.3)",
}


EXTRACTOR_SEEDS = (0, 1, 2)  # of the evidence; the search saw another


def _evidence(profile: Profile, costs: Mapping[str, float]) -> list[Alone]:
    """Every method through extractors of several seeds; WINNER without each of its terms; PD and CFD also with as much time as
    it takes."""
    numbers = [METHODS[WINNER].arguments(profile.loss, 1.0, steps)["terms"] for steps in profile.student_steps]
    taus = {"distill.temperatures": tuple(term["tau"] for terms in numbers for term in terms if term["loss"] == "cfd")}

    held = {"sums": (f"held = {OUR_CFD} + {OUR_PD}",)}
    variants = [
        *((LABELS[name], name, {}) for name in (*COMPETING, *SUMS)),
        ("CFD, low tau", "cfd", taus),
        ("CFD + PD, low tau", "held", held),
        *((f"{LABELS[name]}, equal time", name, _longer(profile, costs, name, WINNER)) for name in ("pd", "cfd")),
    ]
    found = {}
    for seed in EXTRACTOR_SEEDS:
        for label, name, changes in variants:
            title = label if name == "pd" else f"{label}, extractor {seed}"  # PD looks through none
            found[title] = (title, name, {**changes, **({} if name == "pd" else {"extractor.seed": seed})})
    return list(found.values())


def _of(name: str, *shares: float) -> Callable[[Profile], list[int]]:
    """Shares of the profile's own number of that name."""
    return lambda profile: [max(1, round(share * getattr(profile.loss, name))) for share in shares]


_FEATURES = Axis("aligned", "loss.predictions", (False, True), ("features", "predictions"))

ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "losses",
            f"Table 3, {RDD_PAPER}",
            "Which terms of the loss matter",
            "Each relational term improves CFD's one-step FID, across images more than within, and all together most.",
            beside=(
                PD,
                CFD,
                ("CFD + II_P2P", "rdd", {"loss.relation": "ii_p2p", "loss.beta": 0.0}),
                ("CFD + IS_P2P", "rdd", {"loss.beta": 0.0}),
                ("CFD + M_P2P", "rdd", {"loss.alpha": 0.0}),
                ("CFD + IS_P2P + M_P2P", "rdd", {}),
            ),
            whole=True,
        ),
        Ablation(
            "batch",
            f"Fig. 6, {RDD_PAPER}",
            "Batch size and IS_P2P",
            "A larger batch gives IS_P2P a better FID and takes much more memory.",
            fixed={"loss.beta": 0.0},
            axes=(
                Axis(
                    "batch size",
                    "distill.train.batch_size",
                    lambda p: [round(p.distill.train.batch_size * s) for s in (0.25, 0.5, 1, 2)],
                ),
                Axis("form", "loss.impl", ("reference", "chunked")),
            ),
        ),
        Ablation(
            "tau_is",
            f"Fig. 7a, {RDD_PAPER}",
            "Temperature of IS_P2P",
            "FID is below CFD's at every temperature, best at 0.7 and 0.9.",
            fixed={"loss.beta": 0.0},
            axes=(Axis("tau_IS", "loss.tau_is", (0.1, 0.4, 0.7, 0.9, 1.0)),),
            beside=(CFD,),
        ),
        Ablation(
            "tau_m",
            f"Fig. 7b, {RDD_PAPER}",
            "Temperature of M_P2P",
            "FID is below CFD's at every temperature, best at 0.4.",
            fixed={"loss.alpha": 0.0},
            axes=(Axis("tau_M", "loss.tau_m", (0.05, 0.1, 0.2, 0.4, 0.7)),),
            beside=(CFD,),
        ),
        Ablation(
            "queue_size",
            f"Fig. 8a, {RDD_PAPER}",
            "Rows of the pixel queue",
            "FID falls with the queue up to 20,000 rows and rises beyond.",
            fixed={"loss.alpha": 0.0},
            axes=(Axis("N_q", "loss.queue_size", _of("queue_size", 0.05, 0.25, 0.5, 1, 2)),),
            beside=(CFD,),
        ),
        Ablation(
            "queue_draws",
            f"Fig. 8b, {RDD_PAPER}",
            "Rows drawn from the queue",
            "FID falls with the number drawn and saturates at 2048.",
            fixed={"loss.alpha": 0.0},
            axes=(Axis("V", "loss.draws", _of("draws", 0.125, 0.25, 0.5, 1, 2)),),
            beside=(CFD,),
        ),
        Ablation(
            "alpha",
            f"Fig. 9a, {RDD_PAPER}",
            "Weight of IS_P2P",
            "FID is below CFD's at every weight, best at 0.8; 100 is the weight used on ImageNet.",
            axes=(Axis("alpha", "loss.alpha", (0.2, 0.5, 0.8, 1.0, 10.0, 100.0)),),
            beside=(CFD,),
        ),
        Ablation(
            "beta",
            f"Fig. 9b, {RDD_PAPER}",
            "Weight of M_P2P",
            "FID is below CFD's at every weight, best at 0.3.",
            axes=(Axis("beta", "loss.beta", (0.05, 0.1, 0.3, 0.5, 1.0)),),
            beside=(CFD,),
        ),
        Ablation(
            "rcfd_losses",
            f"Table 2, {RCFD_PAPER}",
            "Terms of RCFD",
            "Entropy and diversity are useless without CFD and improve it where they stand beside it.",
            beside=(
                PD,
                CFD,
                ("entropy", "rcfd", {"loss.cfd": 0.0, "loss.rcfd_gamma": 1.0}),
                ("diversity", "rcfd", {"loss.cfd": 0.0, "loss.rcfd_gamma": 0.0}),
                ("entropy + diversity", "rcfd", {"loss.cfd": 0.0}),
                ("CFD + entropy + diversity", "rcfd", {}),
            ),
        ),
        Ablation(
            "classifier",
            f"Table 3, {RCFD_PAPER}",
            "Which classifier",
            "Every classifier beats PD, a stronger one more, and one that never saw the classes still does.",
            beside=_classifiers,
        ),
        Ablation(
            "cfd_tau",
            f"Fig. 4, {RCFD_PAPER}",
            "Temperature of CFD, on features and on predictions",
            "Features beat predictions almost always, and beat PD from 0.9 to 1.",
            method="cfd",
            axes=(Axis("tau", "distill.temperatures", (0.7, 0.8, 0.9, 1.0, 1.2)), _FEATURES),
            beside=(PD,),
        ),
        Ablation(
            "cfd_tau_dual",
            f"Fig. 5, {RCFD_PAPER}",
            "Temperature on both sides of CFD",
            "Over a wide range both beat PD, and neither beats a temperature on the teacher alone.",
            method="cfd",
            fixed={"loss.dual": True},
            axes=(Axis("tau", "distill.temperatures", (0.5, 1.0, 2.0, 4.0)), _FEATURES),
            beside=(PD, CFD),
        ),
        Ablation(
            "entropy",
            f"Fig. 2, {RCFD_PAPER}",
            "How sure a classifier is of the predicted images",
            "A sampler run with fewer steps draws images of larger entropy.",
            beside=(("teacher", "teacher", {}), PD, CFD, ("RCFD", "rcfd", {})),
            whole=True,
            measures="entropy",
        ),
        Ablation(
            "released",
            f"the code released with {RDD_PAPER}",
            "Paper against released code",
            "Nothing is claimed: the code departs from its paper in many places, each of which is switched on alone.",
            beside=_released,
        ),
        Ablation(
            "balance",
            "ours",
            "Relations and pixels at a set share of CFD's gradient",
            "Nothing is claimed: at the paper's weights IS_P2P's gradient is a hundredth of CFD's.",
            beside=(
                PD,
                CFD,
                ("RDD, the paper's weights", "rdd", {}),
                *((f"CFD + {name}", "balanced", {"sums": (f"balanced = {sum}",)}) for name, sum in _BALANCES.items()),
            ),
            whole=True,
        ),
        Ablation(
            "evidence",
            "ours",
            "Sums of terms through three extractors",
            "Nothing is claimed in a paper: ours are the sums beside the papers' methods.",
            beside=_evidence,
            whole=True,
            timed=True,
        ),
        Ablation(
            "label_free",
            "ours",
            "A classifier against the teacher's own features",
            "Nothing is claimed: the papers look through classifiers, which need labels.",
            beside=_label_free,
        ),
        Ablation(
            "budget",
            "ours",
            "Equal iterations against equal time",
            "Nothing is claimed: an iteration of RDD costs more than one of PD or CFD.",
            beside=_budget,
            whole=True,
            timed=True,
        ),
    )
}


def find_ablation(name: str) -> Ablation:
    """One of ABLATIONS. Raises UserError for an unknown name, naming the nearest."""
    if name not in ABLATIONS:
        check_known("ablation", name, (*ABLATIONS, "custom", "all"))
    return ABLATIONS[name]
