"""Every number of a study in one place: frozen dataclasses, a profile each for tests, a laptop, one GPU and the papers."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass, replace

import yaml

from rddlib.data import SOURCES, DataConfig
from rddlib.data.folder import class_names
from rddlib.diffusion.denoiser import PREDICTIONS
from rddlib.diffusion.schedule import SCHEDULES
from rddlib.diffusion.unet import UNetConfig, check_guidance_range
from rddlib.distillation.extractor import EXTRACTORS, MAPS
from rddlib.distillation.label_free import TEACHER, TORCHVISION
from rddlib.losses import LOSS_WEIGHTS
from rddlib.methods import COMPETING, METHODS, OBJECTIVES, WINNER, LossConfig, Method, own_methods
from rddlib.training import RunConfig, TrainConfig
from rddlib.utils.checks import above, at_least, check, different, one_of
from rddlib.utils.errors import UserError, check_known, nearest
from rddlib.utils.installation import cores
from rddlib.utils.text import counted, joined


def _check_prediction(config, schedule: str) -> None:
    one_of(config, PREDICTIONS, "prediction")
    check(
        config.prediction != "eps" or schedule != "continuous",
        "prediction eps needs schedule discrete: the continuous one has alpha(1) = 0, by which it divides",
    )


@dataclass(frozen=True)
class BaseConfig:
    """The base model: how it is trained, and on which grid its teacher role starts."""

    train: TrainConfig
    prediction: str = "x"  # what the network outputs: "x", "eps" or "v"
    weight: str = "truncated"  # of the squared error of x, of rddlib.losses.LOSS_WEIGHTS
    snr_max: float = 0.0  # upper bound of that weight, 0: none
    steps: int = 1024  # of the DDIM sampler that progressive distillation starts from
    schedule: str = "continuous"  # "continuous" as in the papers, "discrete" as in the released code
    schedule_offset: float = 0.008  # s of the cosine

    def __post_init__(self):
        _check_prediction(self, self.schedule)
        one_of(self, LOSS_WEIGHTS, "weight")
        one_of(self, SCHEDULES, "schedule")
        check(self.snr_max == 0 or self.snr_max >= 1, f"snr_max is {self.snr_max}, expected 0 (none) or at least 1")
        at_least(self, 2, "steps")
        at_least(self, 0, "schedule_offset")


@dataclass(frozen=True)
class ProgressiveConfig:
    """Progressive distillation (PD) from base.steps down to teacher_steps."""

    train: TrainConfig  # of each halving
    teacher_steps: int = 8  # where it ends, and what the methods start from

    def __post_init__(self):
        at_least(self, 2, "teacher_steps")


@dataclass(frozen=True)
class ExtractorConfig:
    """The network whose features are distilled: a classifier that is trained, or one that needs no labels."""

    train: TrainConfig
    name: str = "densenet201"  # "teacher", e.g. "torchvision:resnet50", or of rddlib.distillation.extractor.EXTRACTORS
    shift: int = 1  # pixels by which its images are shifted at most
    map_at: str = "conv"  # which map relations see, of MAPS
    seed: int = 0  # another one gives another classifier of the same kind
    classes: tuple[int, ...] = ()  # it is shown no images of others; empty: all
    level: int = 1  # of name=teacher: how often the map's sides are halved
    time: float = 0.3  # of name=teacher: t at which images are shown to its network, in (0, 1)
    download: bool = False  # of name=torchvision:..: fetch the weights where torch's cache lacks them

    def __post_init__(self):
        if not self.name.startswith(TORCHVISION):
            one_of(self, (*EXTRACTORS, TEACHER), "name")
        at_least(self, 1, "level")
        check(0 < self.time < 1, f"time is {self.time}, expected above 0 and below 1")
        one_of(self, MAPS, "map_at")
        at_least(self, 0, "shift")
        different(self, "classes")
        check(min(self.classes, default=0) >= 0, f"classes is {joined(self.classes)}, expected whole numbers from 0 on")


@dataclass(frozen=True)
class DistillConfig:
    """The last halvings, which the methods compete in, all with the same budget; one entry for each from teacher_steps to 1."""

    train: TrainConfig  # of a halving, but for its iterations
    iterations: tuple[int, ...]  # of each halving
    temperatures: tuple[float, ...]  # tau of CFD
    lora: int = 0  # rank of the adapters of attention (peft) that students learn in the place of all weights, 0: none

    def __post_init__(self):
        at_least(self, 0, "lora")
        check(len(self.iterations) == len(self.temperatures), "iterations and temperatures must have the same length")
        check(min(self.iterations) >= 1, f"iterations is {joined(self.iterations)}, expected at least 1 each")
        check(min(self.temperatures) > 0, f"temperatures is {joined(self.temperatures)}, expected above 0")


@dataclass(frozen=True)
class GuidanceConfig:
    """Distilling classifier-free guidance, with a class-conditional base model of its own (Meng et al. 2022).

    Stage two ends at 1 step, as the profile's halvings do: by pd down to progressive.teacher_steps, below by each objective.
    """

    base: TrainConfig  # of the conditional base model
    train: TrainConfig  # of stage one
    stochastic: int  # iterations of each student for the stochastic sampler
    budget: float = 1.0  # iterations of the last halvings, as a multiple of distill.iterations
    label_dropout: float = 0.1  # share of labels that base training leaves out
    weights: tuple[float, ...] = (0.0, 4.0)  # w_min and w_max that stage one learns
    prediction: str = "v"  # what the networks output: "x", "eps" or "v"
    steps: int = 1024  # of the DDIM sampler that stage two starts from
    objectives: tuple[str, ...] = ("pd", "rdd")  # those that are scored
    at: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)  # the weights w they are scored at
    samples: int = 5000  # for each score

    def __post_init__(self):
        check(0 < self.label_dropout < 1, f"label_dropout is {self.label_dropout}, expected above 0 and below 1")
        check(len(self.weights) == 2, f"weights is {joined(self.weights)}, expected w_min and w_max")
        check_guidance_range(self.weights)
        low, high = self.weights
        inside = bool(self.at) and all(low <= w <= high for w in self.at)
        check(inside, f"at is {joined(self.at)}, expected weights between {low:g} and {high:g}")
        at_least(self, 1, "stochastic")
        at_least(self, 2, "samples")
        above(self, 0, "budget")
        different(self, "at")


@dataclass(frozen=True)
class PretrainedConfig:
    """Models made elsewhere, in the place of those that a study trains; "": none."""

    convert: TrainConfig  # how a teacher that predicts eps learns to predict v first (train.reparametrise)
    # a file, folder or hub name for rddlib.interop.load_model; it brings network, schedule, classes and steps
    teacher: str = ""
    extractor: str = ""  # of any file that rddlib.interop.load_classifier reads
    download: bool = False  # fetch a teacher that is named on the hub where its cache lacks it


@dataclass(frozen=True)
class EvaluationConfig:
    """How results are scored."""

    samples: int = 5000  # for each score
    batch_size: int = 500  # of sampling
    seed: int = 1234  # of the common noise, the same for every method
    clip: bool = True  # hold x in [-1, 1] at each sampling step
    # "": by the images' shape, a network of the package or Inception; "extractor": the profile's; or a file
    network: str = ""
    metrics: tuple[str, ...] = ("fid", "is")  # of rddlib.evaluation.METRICS
    protocol: str = "torch-fidelity"  # of rddlib.evaluation.PROTOCOLS
    baselines: tuple[str, ...] = ("pndm-10", "dpm-solver-12")  # samplers and their steps: Table 1 of the RDD paper

    def __post_init__(self):
        at_least(self, 2, "samples")
        at_least(self, 1, "batch_size")
        check({"fid", "is"} <= set(self.metrics), f"metrics is {joined(self.metrics)}, expected fid and is among them")
        for baseline in self.baselines:
            name, _, steps = baseline.rpartition("-")
            whole = bool(name) and steps.isdigit() and int(steps) > 0
            check(whole, f"baselines has {baseline!r}, expected a sampler and its steps, such as pndm-10")

    @property
    def baseline_arms(self) -> tuple[tuple[str, int], ...]:
        """(sampler, steps) of each baseline."""
        split = (baseline.rpartition("-") for baseline in self.baselines)
        return tuple((name, int(steps)) for name, _, steps in split)


def _check_halvings(name: str, steps: int, teacher: int) -> None:
    ratio = steps / teacher
    powers = ratio >= 1 and ratio.is_integer() and int(ratio).bit_count() == 1
    check(powers, f"{name} {steps} must be progressive.teacher_steps {teacher} times a power of two")


def _check_methods(field: str, names: tuple[str, ...], known: Collection[str]) -> None:
    check(len(set(names)) == len(names) > 0, f"{field} is {joined(names)}, expected different ones")
    for name in names:
        check(name in known, f"{field} has {name!r}{nearest(name, known)}, known are {', '.join(known)}")


@dataclass(frozen=True)
class Profile:
    """A whole study. Each field is a section; `rdd study --set section.field=value` changes one number."""

    name: str
    data: DataConfig
    unet: UNetConfig
    base: BaseConfig
    progressive: ProgressiveConfig
    extractor: ExtractorConfig
    distill: DistillConfig
    guidance: GuidanceConfig
    pretrained: PretrainedConfig
    loss: LossConfig = field(default_factory=LossConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)  # how this machine trains: checkpoints, logs, compilation
    # which compete, of rddlib.methods.OBJECTIVES and those that `sums` adds; cfd_is_pd is ours, chosen on digits
    methods: tuple[str, ...] = (*COMPETING, WINNER)
    sums: tuple[str, ...] = ()  # methods of one's own, such as "ours = cfd + is_p2p(share=1 tau=0.1)"
    seeds: tuple[int, ...] = (0,)  # of the last halvings, one cascade for each, and of all that guidance distils
    # cascades trained at a time, a process and an equal share of the cores each; 0: as many as run.threads lets, at most 8
    jobs: int = 0

    def __post_init__(self):
        teacher, halvings = self.progressive.teacher_steps, self.distill.iterations
        _check_halvings("base.steps", self.base.steps, teacher)
        _check_halvings("guidance.steps", self.guidance.steps, teacher)
        check(
            teacher == 2 ** len(halvings),
            f"progressive.teacher_steps {teacher} needs {counted(teacher.bit_length() - 1, 'halving')} to 1 step, "
            f"distill.iterations lists {len(halvings)}",
        )
        check(len(self.seeds) >= 1, f"seeds is {joined(self.seeds)}, expected at least one")
        different(self, "seeds")
        _check_methods("methods", self.methods, self.objectives)
        _check_methods("guidance.objectives", self.guidance.objectives, self.objectives)
        at_least(self, 0, "jobs")
        check(not self.unet.guidance, "unet.guidance follows from guidance.weights: set that instead")
        _check_prediction(self.guidance, self.base.schedule)

    @property
    def at_once(self) -> int:
        """Cascades that this machine trains at a time."""
        fitting = cores() // self.run.threads if self.run.threads else 2
        return self.jobs or min(max(fitting, 1), 8)

    @property
    def objectives(self) -> dict[str, Method]:
        """The methods that train students: the table's and those of `sums`."""
        return {name: METHODS[name] for name in OBJECTIVES} | own_methods(self.sums)

    def method(self, name: str, option: str = "method", others: Collection[str] = ()) -> Method:
        """One of `objectives`, or of `others` in the table. Raises UserError for another name, naming the option that it was
        given as."""
        check_known(option, name, [*others, *self.objectives])
        return self.objectives.get(name) or METHODS[name]

    @property
    def student_steps(self) -> tuple[int, ...]:
        """Steps of the students, most first: (4, 2, 1) for an 8-step teacher."""
        return tuple(self.progressive.teacher_steps >> k for k in range(1, len(self.distill.iterations) + 1))


def classes_of(profile: Profile) -> int:
    """Classes of the profile's images, without reading them: of a folder that is not there 10, which `make_plan` says."""
    data = profile.data
    if not profile.unet.num_classes and data.name == "folder" and data.folder.is_dir():
        return len(class_names(data.folder))
    return profile.unet.num_classes or SOURCES[data.name].classes or 10


def _but(config, **changes):
    """A profile or section with fields replaced; a dict in the place of a section replaces fields of it."""
    inner = {name: _but(getattr(config, name), **c) if isinstance(c, dict) else c for name, c in changes.items()}
    return replace(config, **inner)


def digits() -> Profile:
    """Real 8x8 digits on a laptop, in minutes on 2 cores."""
    return Profile(
        name="digits",
        data=DataConfig("digits"),
        unet=UNetConfig(8, 1, channels=24, multipliers=(1, 2), blocks=1, attention=(4,), groups=8),
        base=BaseConfig(
            TrainConfig(2500, 64, 2e-3, lr_schedule="cosine", warmup=100, ema=0.998),
            prediction="v",
            snr_max=1e3,
            steps=64,
        ),
        progressive=ProgressiveConfig(TrainConfig(100, 64, 3e-4, lr_schedule="cosine")),
        extractor=ExtractorConfig(
            TrainConfig(400, 64, 2e-3, lr_schedule="cosine", weight_decay=1e-2), name="small_resnet"
        ),
        distill=DistillConfig(
            TrainConfig(1, 64, 3e-4, lr_schedule="cosine"), iterations=(150, 150, 300), temperatures=(0.9, 1.0, 0.85)
        ),
        guidance=GuidanceConfig(
            base=TrainConfig(1000, 64, 2e-3, lr_schedule="cosine", warmup=100, ema=0.998),
            train=TrainConfig(300, 64, 2e-3, lr_schedule="cosine", warmup=20),
            stochastic=75,
            budget=0.5,
            steps=16,
            at=(0.0, 0.5, 1.0, 4.0),
            samples=600,
        ),
        pretrained=PretrainedConfig(TrainConfig(800, 64, 2e-3, lr_schedule="cosine", warmup=20, ema=0.998)),
        loss=LossConfig(draws=1024, per_image=4),
        evaluation=EvaluationConfig(metrics=("fid", "is", "pfd")),
        methods=("pd", "cfd", "rdd", WINNER),  # without RCFD, whose scores here are CFD's
        run=RunConfig(threads=1),  # the same sums whatever the number of cores; methods train side by side instead
    )


def smoke() -> Profile:
    """The digits study shrunk until the tests can run all of it; its numbers mean nothing."""
    return _but(
        digits(),
        name="smoke",
        unet=dict(channels=16),
        base=dict(train=dict(iterations=60, batch_size=32), steps=16),
        progressive=dict(train=dict(iterations=4, batch_size=16)),
        extractor=dict(train=dict(iterations=40)),
        distill=dict(train=dict(batch_size=16), iterations=(4, 4, 6)),
        guidance=dict(
            base=dict(iterations=60, batch_size=32),
            train=dict(iterations=10, batch_size=16),
            stochastic=4,
            budget=1.0,
            at=(0.0, 2.0),
            samples=200,
        ),
        pretrained=dict(convert=dict(iterations=10, batch_size=16)),
        loss=dict(queue_size=500, draws=64),
        evaluation=dict(samples=200, batch_size=100),
        methods=COMPETING,
    )


def cifar10() -> Profile:
    """CIFAR-10 as in the papers; the source of each number stands beside it."""
    return Profile(
        name="cifar10",
        data=DataConfig("cifar10", flip=True),  # flips: ours; the papers do not say, DDPM (Ho et al. 2020) flips
        unet=UNetConfig(32, 3, 128, (1, 2, 2, 2), blocks=2, attention=(8,), dropout=0.1),  # RDD A.1, A.2
        base=BaseConfig(TrainConfig(800_000, 128, 2e-4, warmup=5000, ema=0.9999)),  # RDD A.2
        progressive=ProgressiveConfig(TrainConfig(10_000, 128, 5e-5, lr_schedule="cosine")),  # RCFD C.4
        extractor=ExtractorConfig(  # DenseNet201: RDD 5.1; its training is ours, the papers do not state theirs
            TrainConfig(
                78_000, 128, 0.05, lr_schedule="cosine", warmup=500, clip=0.0, optimizer="sgd", weight_decay=5e-4
            ),
            shift=4,
        ),
        distill=DistillConfig(
            TrainConfig(1, 128, 5e-5, lr_schedule="cosine"),  # RDD A.2
            iterations=(20_000, 20_000, 40_000),  # RDD A.2
            temperatures=(0.9, 1.0, 0.85),  # RCFD C.4, DenseNet201
        ),
        guidance=GuidanceConfig(  # w in [0, 4], v, 1024 steps: notes on Meng et al., 4.1; all else is ours
            base=TrainConfig(800_000, 128, 2e-4, warmup=5000, ema=0.9999),  # as the unconditional one
            train=TrainConfig(50_000, 128, 5e-5, lr_schedule="cosine", warmup=1000),
            stochastic=20_000,
            samples=10_000,
        ),
        pretrained=PretrainedConfig(
            TrainConfig(50_000, 128, 1e-4, lr_schedule="cosine", warmup=1000, ema=0.9999)
        ),  # ours
        evaluation=EvaluationConfig(samples=50_000, batch_size=500),  # the released code
        run=RunConfig(save_every=300, log_every=100, sample_every=5000),
    )


def text() -> Profile:
    """A small text-guided latent model on a folder of captioned images, such as examples/text_guided.py makes; it is given."""
    return _but(
        digits(),
        name="text",
        data=DataConfig("captions"),
        unet=dict(image_channels=4),  # of the latents; the given model brings its own
        base=dict(steps=32),
        progressive=dict(train=dict(iterations=150)),
        extractor=dict(name=TEACHER),
        distill=dict(iterations=(200, 200, 400)),
        guidance=dict(
            train=dict(iterations=600, learning_rate=1e-3),
            budget=1.0,
            weights=(0.0, 6.0),  # the notes on Meng et al., 4.2: 2 to 14 for a large model of text
            steps=32,
            objectives=("pd", "cfd", WINNER),
            at=(0.0, 1.0, 2.0, 4.0),
        ),
        evaluation=dict(metrics=("fid", "is", "agree"), baselines=()),
    )


def imagenet64() -> Profile:
    """ImageNet 64x64, class-conditional, as in the RDD paper; the source of each number stands beside it."""
    return _but(
        cifar10(),
        name="imagenet64",
        data=dict(name="imagenet64"),  # with CIFAR-10's flips: ours
        unet=UNetConfig(64, 3, 128, (1, 2, 3, 4), blocks=3, attention=(16, 8), num_classes=1000),  # RDD A.1
        base=dict(train=dict(iterations=1_000_000, batch_size=512, learning_rate=1e-4)),  # RDD A.2
        progressive=dict(
            train=dict(iterations=50_000, batch_size=256, learning_rate=1e-4)
        ),  # not stated; as the next stages
        extractor=dict(  # ours: 40 epochs
            train=dict(iterations=200_000, batch_size=256, learning_rate=0.1, warmup=5000, weight_decay=1e-4)
        ),
        distill=dict(
            train=dict(batch_size=256, learning_rate=1e-4),  # RDD A.2
            iterations=(50_000, 50_000, 100_000),  # RDD A.2
            temperatures=(0.85, 0.85, 0.85),  # RDD 5.1
        ),
        guidance=dict(  # sources as for CIFAR-10
            base=dict(iterations=1_000_000, batch_size=512, learning_rate=1e-4),
            train=dict(batch_size=256, learning_rate=1e-4),
            stochastic=50_000,
        ),
        pretrained=dict(convert=dict(batch_size=256)),  # ours
        loss=dict(alpha=100.0),  # RDD 5.1
    )


def cifar10_small() -> Profile:
    """CIFAR-10 with a 64-channel U-Net, for half an hour on one GPU (planned from rates measured on an H200)."""
    return _but(
        cifar10(),
        name="cifar10_small",
        unet=dict(channels=64, dropout=0.0),
        base=dict(train=dict(iterations=20_000, ema=0.999), prediction="v", snr_max=1e3, steps=64),
        progressive=dict(train=dict(iterations=500, learning_rate=1e-4)),
        extractor=dict(name="resnet18", train=dict(iterations=8000)),
        distill=dict(train=dict(learning_rate=1e-4), iterations=(750, 750, 1500)),
        guidance=dict(
            base=dict(iterations=20_000, ema=0.999),
            train=dict(iterations=3000, learning_rate=1e-4),
            stochastic=1000,
            steps=64,
            samples=5000,
        ),
        pretrained=dict(convert=dict(iterations=5000, ema=0.999)),
        evaluation=dict(samples=10_000),
        run=dict(save_every=60, log_every=25, sample_every=1000),
        jobs=4,  # as measured on an H200 (docs/performance.md)
    )


def photos() -> Profile:
    """CIFAR-10 halved to 16x16, for a laptop: some hours on 2 cores where every model is trained anew."""
    return _but(
        digits(),
        name="photos",
        data=DataConfig("cifar10", flip=True, halve=1),
        unet=UNetConfig(16, 3, channels=32, multipliers=(1, 2, 2), blocks=1, attention=(8,), groups=8),
        base=dict(train=dict(iterations=24_000, learning_rate=1e-3, warmup=500, ema=0.999)),  # 1.5 million images
        progressive=dict(train=dict(iterations=400)),
        extractor=dict(
            train=dict(iterations=3000, batch_size=128, warmup=100, weight_decay=5e-2), name="medium_resnet", shift=2
        ),
        distill=dict(iterations=(400, 400, 800)),
        guidance=dict(  # a conditional teacher of a quarter of the base model's training, for notebook 08
            base=dict(iterations=6000, learning_rate=1e-3, warmup=500, ema=0.999),
            train=dict(iterations=400, learning_rate=1e-3),
            stochastic=200,
        ),
        methods=(*COMPETING, WINNER),
    )


def own() -> Profile:
    """A folder of one's own images, 64 to 256 pixels a side, and a given teacher that is fine-tuned in few iterations.

    Nothing needs labels. The numbers are ours and untested at this scale; without a teacher a U-Net for 64x64 is trained.
    """
    train = TrainConfig(200, 16, 5e-5, lr_schedule="cosine")  # rdd plan says which batch memory allows
    return _but(
        cifar10_small(),
        name="own",
        data=DataConfig("folder"),
        unet=UNetConfig(64, 3, 64, (1, 2, 3, 4), blocks=2, attention=(16, 8)),
        base=dict(train=dict(batch_size=16, learning_rate=1e-4), steps=32),
        progressive=dict(train=train),
        extractor=dict(name=TEACHER, level=2),  # relations of maps of 16 to 64 pixels a side
        distill=dict(train=replace(train, iterations=1), iterations=(200, 200, 400)),
        pretrained=dict(convert=replace(train, iterations=1000, warmup=100, ema=0.99)),
        evaluation=dict(samples=2500, batch_size=50, baselines=()),
        run=dict(sample_every=0),  # 64 large images at a time
        methods=("pd", WINNER),
        jobs=1,
    )


PROFILES = {make.__name__: make for make in (smoke, digits, photos, own, text, cifar10_small, cifar10, imagenet64)}


def load_profile(name: str, overrides: dict[str, str] | None = None) -> Profile:
    """A profile by name, with fields replaced: overrides {"distill.train.batch_size": "32"}, values written as YAML.

    Raises UserError for an unknown profile or field (naming the nearest), a value of the wrong type or out of range.
    """
    check_known("profile", name, PROFILES)
    return changed(PROFILES[name](), overrides or {})


def changed(profile: Profile, overrides: dict[str, str]) -> Profile:
    """The profile with fields replaced, all at once, since they may depend on each other. Raises as `load_profile`."""
    changes: dict = {}
    for key, text in overrides.items():
        *sections, name = key.split(".")
        value = parse_value(profile, key, text)
        functools.reduce(lambda inner, section: inner.setdefault(section, {}), sections, changes)[name] = value
    try:
        return _but(profile, **changes)
    except ValueError as error:
        given = " ".join(f"{key}={text}" for key, text in overrides.items())
        raise UserError(f"--set {given}: {error}") from error


def parse_value(profile: Profile, key: str, text: str):
    """What `text` means for the field "section.field", in that field's type. Raises UserError as `load_profile` does."""
    config, path = profile, key.split(".")
    for depth, head in enumerate(path, 1):
        known = [f.name for f in fields(config) if f.name != "name" or config is not profile]
        if head not in known:
            if meant := [path for path in flat(dataclasses.asdict(profile)) if path.endswith(f".{key}")]:
                raise UserError(f"--set {key}: no field {key!r} by itself; did you mean {joined(meant)}?")
            raise UserError(f"--set {key}: no field {head!r}{nearest(head, known)}; known are {', '.join(known)}")
        kind, config = typing.get_type_hints(type(config))[head], getattr(config, head)
        if is_dataclass(config) and depth == len(path):
            inner = ", ".join(f.name for f in fields(config))
            raise UserError(f"--set {key}: {head!r} is a section, name one of {inner}")
        if not is_dataclass(config) and depth < len(path):
            raise UserError(f"--set {key}: {head!r} has no fields")
    return _parsed(text, kind, key)


def flat(config: dict, prefix: str = "") -> dict:
    """Every field as it is written after --set: {"distill.train.batch_size": value}."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def overrides_of(profile: Profile, changes: dict[str, object]) -> dict[str, str]:
    """{"section.field": value} as `load_profile` takes it; one value for a field of several stands for all of them."""
    texts = {}
    for key, value in changes.items():
        current = functools.reduce(getattr, key.split("."), profile)
        if isinstance(current, tuple) and not isinstance(value, tuple):
            value = (value,) * max(1, len(current))
        texts[key] = json.dumps(value)
    return texts


def _parsed(text: str, kind, key: str):
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(kind, types.UnionType):  # int | tuple[int, int]
        kind = typing.get_args(kind)[isinstance(value, list)]
    if isinstance(kind, types.GenericAlias):  # tuple[int, ...]
        items = value if isinstance(value, list) else [value]
        return tuple(_typed(item, typing.get_args(kind)[0], key) for item in items)
    if kind is str and (not isinstance(value, str) or text[:1] not in "'\""):  # a folder may be called 2024, no or a #1
        value = text
    return _typed(value, kind, key)


KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def _typed(value, kind: type, key: str):
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-3 as a word
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"--set {key}: {value!r} is no {KINDS.get(kind, kind.__name__)}")
    return value
