"""From a profile to a graph of stages: base model -> teachers -> students, beside the extractor they are taught through.

A plain study starts from a base model that it trains or is given, a guided one from stage one of Meng et al. (2022);
everything below is the same code. Nothing is trained or read before a stage is asked for its network or its key.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

import rddlib
from rddlib.data import ImageDataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.model_file import build_described, describe
from rddlib.diffusion.samplers import TRAINING_FREE
from rddlib.diffusion.schedule import make_schedule
from rddlib.diffusion.unet import UNet
from rddlib.distillation.extractor import DecodedFeatures, Extractor, accuracy, build_extractor, extractor_of
from rddlib.distillation.label_free import (
    TEACHER,
    TORCHVISION,
    TeacherFeatures,
    torchvision_features,
    untrained_torchvision_features,
)
from rddlib.distillation.objectives import PD, Objective
from rddlib.distillation.train import (
    distill,
    distill_guidance,
    reparametrise,
    takes_guidance,
    train_base,
    train_classifier,
)
from rddlib.interop import load_classifier, load_model
from rddlib.methods import build_objective
from rddlib.study.profiles import PretrainedConfig, Profile
from rddlib.study.stage import Stage, Workplace, key_of
from rddlib.training import RunConfig, TrainConfig, Trainer, derive_seed, prepared, training_device
from rddlib.training.adapters import adapted, sharing
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, say

STOCHASTIC = "stochastic"


@dataclass(frozen=True)
class Inputs:
    """What a graph is made from: a profile's numbers, the seed of all but the last halvings, split("train" | "extractor" |
    "test") -> images (or latents, in the latent space), and where stages are made."""

    profile: Profile
    seed: int
    split: Callable[[str], ImageDataset]
    place: Workplace
    space: LatentSpace | None = None

    def seeded(self, make: Callable[[], nn.Module], *numbers: int) -> nn.Module:
        """make(), its random weights following from the seed and these numbers."""
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, *numbers))
            return make()

    def data_facts(self) -> dict:
        """Which images and labels: by their content, not by where they lie."""
        data = self.profile.data
        facts = {"name": data.name, "flip": data.flip, "resize": data.resize}
        if data.halve:
            facts["halve"] = data.halve
        if data.name == "digits":
            return facts
        images = self.split("train")
        if data.name == "captions":
            facts["captions"] = key_of(list(images.class_names))
        return {**facts, "sha256": images.sha256, "labels": images.labels_sha256}

    def stage(self, name, kind, label, parents, config, seed, facts, fit, load=None, **role: bool) -> Stage:
        """A Stage made here, of a denoiser unless `load` says otherwise; fit may return the trained network alone."""

        def fitted(trainer: Trainer | None, *networks: nn.Module) -> tuple[nn.Module, dict]:
            made = fit(trainer, *networks)
            network, extra = made if isinstance(made, tuple) else (made, {})
            model = {"model": describe(network)} if isinstance(network, Denoiser) else {}
            model |= {"space": self.space.facts} if model and self.space else {}
            knows_classes = kind == "extractor" or (isinstance(network, Denoiser) and network.num_classes)
            if trainer and knows_classes and (names := self.split("train").class_names):
                model["class_names"] = list(names)
            return network, model | extra

        load = load or self._load_denoiser
        return Stage(name, kind, label, parents, config, seed, facts, fitted, load, self.place, **role)

    def _load_denoiser(self, tensors: dict, info: dict) -> Denoiser:
        denoiser = build_described(info["model"])
        denoiser.load_state_dict(tensors)
        return ready(denoiser.within(self.space), self.place.run)


def ready(denoiser: Denoiser, run: RunConfig) -> Denoiser:
    """Move to the training device, set the memory format, freeze."""
    denoiser = denoiser.to(training_device()).eval().requires_grad_(False)
    return prepared(denoiser, replace(run, compile="never"), "float32")


def given_model(pretrained: PretrainedConfig) -> tuple[Denoiser, dict]:
    """pretrained.teacher and its record, read once: nobody may change it. Raises UserError as `load_model` does."""
    path = Path(pretrained.teacher).expanduser()
    files = [path, *path.rglob("*")] if path.exists() else []
    return _given_model(pretrained.teacher, pretrained.download, max((f.stat().st_ctime_ns for f in files), default=0))


@lru_cache(maxsize=1)
def _given_model(teacher: str, download: bool, changed: int) -> tuple[Denoiser, dict]:
    return load_model(teacher, download=download)


def build_denoiser(profile: Profile) -> Denoiser:
    """The profile's U-Net, untrained, with its parametrisation and schedule."""
    base = profile.base
    return Denoiser(UNet(profile.unet), make_schedule(base.schedule, base.schedule_offset), base.prediction)


def new_extractor(profile: Profile, num_classes: int) -> Extractor:
    """The profile's extractor, untrained, or as it is given (on the CPU).

    Raises ValueError where the teacher has no such features to show.
    """
    config = profile.extractor
    if config.name == TEACHER:
        if not profile.pretrained.teacher:
            return _features_of(build_denoiser(profile), profile)
        with torch.device("cpu"):
            return _features_of(given_model(profile.pretrained)[0], profile)
    space = space_to_decode(profile)
    if config.name.startswith(TORCHVISION):
        network = untrained_torchvision_features(config.name.removeprefix(TORCHVISION))
    else:
        channels = space.image_shape[0] if space else profile.unet.image_channels
        network = build_extractor(config.name, channels, num_classes, config.map_at)
    return DecodedFeatures(network, space) if space else network


def space_to_decode(profile: Profile) -> LatentSpace | None:
    """Of a latent model that learns through a given extractor of images: the space that its latents are decoded by."""
    given, config = profile.pretrained, profile.extractor
    if not given.teacher or not (given.extractor or config.name.startswith(TORCHVISION)):
        return None
    with torch.device("cpu"):  # whoever asks may be on the meta device
        of_latents = given.extractor and "space" in load_classifier(given.extractor)[1]
        return None if of_latents else given_model(given)[0].space


def extractor_to_check(profile: Profile, num_classes: int) -> Extractor:
    """The profile's extractor without weights, or as it is given (on the CPU): to check numbers against.

    Raises UserError where the teacher has no such features to show.
    """
    try:
        with torch.device("meta"):
            return new_extractor(profile, num_classes or 1)  # torch complains of a layer without rows
    except ValueError as error:
        raise UserError(f"extractor.name={profile.extractor.name}: {error}") from None


def map_of(extractor: Extractor, shape: tuple[int, int, int]) -> Tensor:
    """The map [1, C', h, w] of an image (C, H, W), by an extractor that has no weights (`extractor_to_check`)."""
    return extractor.eval()(torch.zeros(1, *shape, device=next(extractor.parameters()).device)).map


def check_adapters(profile: Profile) -> None:
    """Raise UserError where students are to learn adapters (distill.lora) that their network or this machine cannot have."""
    if not profile.distill.lora:
        return
    if profile.pretrained.teacher:
        adapted(sharing(given_model(profile.pretrained)[0]), profile.distill.lora)
    else:
        with torch.device("meta"):
            adapted(build_denoiser(profile), profile.distill.lora)


def halved(first: int, last: int) -> list[int]:
    """first, first/2, ..., last."""
    return [first >> k for k in range(first.bit_length()) if first >> k >= last]


# the stages that a graph begins with


def base_stage(inputs: Inputs) -> Stage:
    """The base model, trained on data; sampled by DDIM in any number of steps."""
    p, config = inputs.profile, inputs.profile.base

    def facts() -> dict:
        base = {name: value for name, value in asdict(config).items() if name != "steps"}
        made_by = {"seed": inputs.seed, "version": rddlib.__version__}
        return {"data": inputs.data_facts(), "unet": asdict(p.unet), "base": base, **made_by}

    def fit(trainer: Trainer) -> Denoiser:
        untrained = inputs.seeded(lambda: ready(build_denoiser(p), p.run), 1)
        return train_base(untrained, inputs.split("train"), trainer, **_as_base(p))

    return inputs.stage("base", "base", "base model", (), config.train, derive_seed(inputs.seed, 2), facts, fit)


def _as_base(p: Profile) -> dict:
    """How the error of a model that draws in any number of steps is weighted, and how its previews are drawn."""
    return {"snr_max": p.base.snr_max or None, "weight": p.base.weight, "preview_steps": min(p.base.steps, 32)}


def pretrained_stage(inputs: Inputs) -> Stage:
    """The model of pretrained.teacher as base model; one that predicts eps learns to predict v first, or few-step students
    would learn nothing."""
    p = inputs.profile
    denoiser, info = given_model(p.pretrained)
    denoiser, converts = denoiser.within(inputs.space), denoiser.prediction == "eps"

    def facts() -> dict:
        given = {"pretrained": info["sha256"], "data": inputs.data_facts()}
        how = {"train": asdict(p.pretrained.convert), "snr_max": p.base.snr_max, "seed": inputs.seed}
        return {**given, **how, "version": rddlib.__version__} if converts else given

    def fit(trainer: Trainer | None) -> tuple[Denoiser, dict]:
        source = {"source": info.get("source", {"name": Path(p.pretrained.teacher).name, "made_by": "rddlib"})}
        source |= {"class_names": info["class_names"]} if "class_names" in info else {}
        if trainer is None:
            return denoiser, {"seconds": 0.0, "precision": info.get("precision", "not known"), **source}
        options = {"snr_max": p.base.snr_max or None, "preview_steps": min(p.base.steps, 32)}
        return reparametrise(denoiser, "v", inputs.split("train"), trainer, **options), source

    config = p.pretrained.convert if converts else None
    return inputs.stage("base", "convert", "predicting v", (), config, derive_seed(inputs.seed, 12), facts, fit)


def first_stage(inputs: Inputs) -> Stage:
    """The base model: trained on data, or the one that is given."""
    return pretrained_stage(inputs) if inputs.profile.pretrained.teacher else base_stage(inputs)


def check_takes_weight(profile: Profile) -> None:
    """Raise UserError for a given teacher from which stage one cannot start."""
    if not profile.pretrained.teacher:
        return
    teacher = given_model(profile.pretrained)[0]
    if not hasattr(teacher.network, "with_guidance"):
        raise UserError(
            f"pretrained.teacher is a {type(teacher.network).__name__}, which has no place for a guidance weight: its network "
            "must be ours, a UNet2DConditionModel or a DiTTransformer2DModel"
        )
    if not (teacher.unconditional and (teacher.num_classes or teacher.space)):
        raise UserError("pretrained.teacher has no classes or no NO_CLASS, so there is nothing to guide: leave it out")
    if teacher.steps:
        raise UserError(
            f"pretrained.teacher is a student of {counted(teacher.steps)}, and stage one learns at all times: name a model of "
            "any number of steps"
        )


def stage_one(inputs: Inputs, conditional: Stage) -> Stage:
    """Guidance distilled into one network that takes its weight w (stage one of Meng et al. 2022)."""
    p, g = inputs.profile, inputs.profile.guidance

    def facts() -> dict:
        train = asdict(g.train)
        return {"parent": conditional.key, "guidance": list(g.weights), "train": train, "seed": inputs.seed}

    def fit(trainer: Trainer, teacher: Denoiser) -> Denoiser:
        student = inputs.seeded(lambda: takes_guidance(teacher, g.weights), 9)
        return distill_guidance(teacher, student, inputs.split("train"), trainer, **_as_base(p))

    seed, label = derive_seed(inputs.seed, 10), "guidance, stage one"
    return inputs.stage("guided-stage-one", "guidance", label, (conditional,), g.train, seed, facts, fit)


def check_classes_to_learn(images: ImageDataset, chosen: Sequence[int] = ()) -> None:
    """Raise UserError where a classifier would have nothing to tell apart; chosen: the classes it is to learn, () for all."""
    classes = len(set(chosen)) or images.num_classes
    if classes < 2:
        raise UserError(
            f"{images.name} has {('no classes', 'one class')[classes]} for an extractor to learn: sort its images into a "
            "folder for each class, or distil with --extractor teacher or --objective pd"
        )


def _features_of(denoiser: Denoiser, profile: Profile) -> TeacherFeatures:
    config = profile.extractor
    return TeacherFeatures(denoiser, profile.unet.image_shape, config.level, config.time).eval().requires_grad_(False)


def _teacher_features_stage(inputs: Inputs, base: Stage) -> Stage:
    """The features of the base model's own network; nothing is trained."""
    p, config = inputs.profile, inputs.profile.extractor

    def facts() -> dict:
        return {"parent": base.key, "extractor": {"name": TEACHER, "level": config.level, "time": config.time}}

    def fit(trainer: None, denoiser: Denoiser) -> tuple[TeacherFeatures, dict]:
        return _features_of(denoiser, p), {"model": describe(denoiser), "seconds": 0.0, "precision": "not known"}

    def load(tensors: dict, info: dict) -> TeacherFeatures:
        network = _features_of(build_described(info["model"]).within(inputs.space), p)
        network.load_state_dict(tensors)
        return network.to(training_device())

    return inputs.stage("extractor", "extractor", "the teacher's features", (base,), None, 0, facts, fit, load)


def _given_classifier(profile: Profile) -> tuple[Extractor, dict] | None:
    """(a classifier that is not trained here, its name and sha256), None where one is trained."""
    config = profile.extractor
    if profile.pretrained.extractor:
        return load_classifier(profile.pretrained.extractor, config.map_at)
    if config.name.startswith(TORCHVISION):
        network, sha256 = torchvision_features(config.name.removeprefix(TORCHVISION), config.download)
        return network, {"name": config.name, "sha256": sha256}
    return None


def extractor_stage(inputs: Inputs, base: Stage) -> Stage:
    """The network whose features are distilled: a classifier trained on the data set's "extractor" split, one that is given,
    or the base model's own."""
    p, config = inputs.profile, inputs.profile.extractor
    if config.name == TEACHER:
        return _teacher_features_stage(inputs, base)
    given, space = _given_classifier(p), space_to_decode(p)
    other = (config.seed,) if config.seed else ()

    def facts() -> dict:
        if given:
            decoded = {"decoded": space.sha256} if space else {}
            return {"pretrained": given[1]["sha256"], "extractor": {"name": given[1]["name"]}, **decoded}
        no_weight = ("map_at", "level", "time", "download")  # fields that change none
        trained = {name: value for name, value in asdict(config).items() if name not in no_weight}
        made_by = {"seed": inputs.seed, "version": rddlib.__version__}
        return {"data": inputs.data_facts(), "extractor": trained, **made_by}

    def fit(trainer: Trainer | None) -> tuple[Extractor, dict]:
        if given:
            return given[0], {"seconds": 0.0, "precision": "not known"}
        images = inputs.split("train")
        check_classes_to_learn(images, config.classes)
        untrained = inputs.seeded(lambda: new_extractor(p, images.num_classes), 4, *other).to(training_device())
        shown, test = inputs.split("extractor").of_classes(config.classes), inputs.split("test")
        network = train_classifier(untrained, lambda out: out.logits, shown, trainer, shift=config.shift)
        right = accuracy(network, lambda out: out.logits, test)
        guessed = float(test.labels.bincount().max()) / len(test)
        if right <= guessed and trainer.files:
            say(
                f"the extractor is right in {right:.1%} of cases, always naming the most frequent class in {guessed:.1%}: it "
                "has learnt nothing that shows; train it for longer (extractor.train) before you distil through it"
            )
        return network, {"test_accuracy": right} | ({"space": inputs.space.facts} if inputs.space else {})

    def load(tensors: dict, info: dict) -> Extractor:
        name = info["facts"]["extractor"]["name"]
        if name.startswith(TORCHVISION):
            network = untrained_torchvision_features(name.removeprefix(TORCHVISION))
            network.load_state_dict(tensors)
        else:
            network = extractor_of(name, tensors, config.map_at)
        network = network.to(training_device())
        return DecodedFeatures(network, space).eval() if space else network

    seed = derive_seed(inputs.seed, 5, *other)
    train = None if given else config.train
    return inputs.stage("extractor", "extractor", f"extractor {config.name}", (), train, seed, facts, fit, load)


class Graph:
    """The stages of a study below its base model; each is one object, however often it is asked for.

    Args:
        inputs: what it is made from.
        base: what progressive distillation starts from.
        prefix: how the names of its files begin.
        conditional: the teacher of stage one, in a guided graph.
    """

    def __init__(self, inputs: Inputs, base: Stage, prefix: str = "", conditional: Stage | None = None):
        self.inputs, self.profile, self.prefix = inputs, inputs.profile, prefix
        self.base, self.conditional = base, conditional
        self._stages: dict[tuple, Stage] = {}

    @cached_property
    def extractor(self) -> Stage:
        return extractor_stage(self.inputs, self.conditional or self.base)

    def teacher(self, steps: int | None = None) -> Stage:
        """The base model halved by PD to `steps` steps, default progressive.teacher_steps.

        Raises UserError for a number of steps that no teacher has.
        """
        steps = steps or self.profile.progressive.teacher_steps
        known = halved(self.profile.base.steps, self.profile.progressive.teacher_steps)
        if steps not in known:
            raise UserError(f"no teacher has {counted(steps)}: there are {', '.join(map(str, known))}")
        if steps == self.profile.base.steps:
            return self.base
        return self._once(("teacher", steps), lambda: self._teacher(steps))

    def _teacher(self, steps: int) -> Stage:
        parent, config, seed = self.teacher(2 * steps), self.profile.progressive.train, self.inputs.seed

        def facts() -> dict:
            return {"parent": parent.key, "steps": steps, "train": asdict(config), "seed": seed}

        def fit(trainer: Trainer, teacher: Denoiser) -> Denoiser:
            return distill(teacher, self.inputs.split("train"), steps, PD(teacher.schedule), trainer)

        label = f"PD {2 * steps} to {steps} steps"
        name = f"{self.prefix}pd-{steps}"
        return self.inputs.stage(name, "halving", label, (parent,), config, derive_seed(seed, 3, steps), facts, fit)

    def student(self, method: str, steps: int, seed: int) -> Stage:
        """The student of `steps` steps: teacher -> ... -> steps by halvings, every one with this method's objective.

        Every method gets the same images, times and noise for the same seed. Raises UserError where there is none.
        """
        return self._once((method, steps, seed), lambda: self._student(method, steps, seed))

    def _student(self, method: str, steps: int, seed: int) -> Stage:
        p, halving = self.profile, halving_of(self.profile, steps)
        parent = self.student(method, 2 * steps, seed) if halving else self.teacher()
        config = replace(p.distill.train, iterations=p.distill.iterations[halving])
        facts = {"method": method, "steps": steps, "seed": seed, "iterations": config.iterations}
        label, seeded = f"{p.method(method).label} {2 * steps} to {steps} steps", derive_seed(seed, 7, steps)
        return self._distilled(f"{method}-{steps}", label, parent, config, seeded, facts)

    def stochastic(self, method: str, steps: int, seed: int) -> Stage:
        """The student for `stochastic_sample` of `steps` steps: from the deterministic one of as many, same objective.

        Raises UserError for one step, where both samplers are the same, and for steps that no such student has.
        """
        if steps == 1:
            raise UserError("one stochastic step is a deterministic one: there is no student of its own")
        return self._once((method, steps, seed, STOCHASTIC), lambda: self._stochastic(method, steps, seed))

    def _stochastic(self, method: str, steps: int, seed: int) -> Stage:
        p, parent = self.profile, self.drawer(method, steps, seed)
        config = replace(p.distill.train, iterations=p.guidance.stochastic)
        facts = {"method": method, "steps": steps, "seed": seed, "stochastic": True, "train": asdict(config)}
        label, seeded = f"{p.method(method).label} {counted(steps, 'stochastic step')}", derive_seed(seed, 11, steps)
        return self._distilled(f"{method}-{steps}-{STOCHASTIC}", label, parent, config, seeded, facts)

    def _distilled(
        self, name: str, label: str, parent: Stage, config: TrainConfig, training_seed: int, own: dict
    ) -> Stage:
        """A stage whose student minimises own["method"]'s objective."""
        p, loss, method = self.profile, self.profile.loss, self.profile.method(own["method"])
        steps, seed, stochastic = own["steps"], own["seed"], own.get("stochastic", False)
        parents = (parent, self.extractor) if method.looks else (parent,)

        def facts() -> dict:
            numbers = {"numbers": method.arguments(loss, temperature_of(p, steps), steps)}
            seen = {"extractor": self.extractor.key, "map_at": p.extractor.map_at} if method.looks else {}
            train = {"train": asdict(replace(p.distill.train, iterations=1))}
            train |= {"lora": p.distill.lora} if p.distill.lora else {}
            return {"parent": parent.key, **train, **own, **numbers, **seen}

        def fit(trainer: Trainer, teacher: Denoiser, extractor: Extractor | None = None) -> Denoiser:
            objective = self.objective(method.name, steps, seed, teacher, extractor)
            trainer.lora, trainer.same_noise = p.distill.lora, "same_seed" in objective.released
            if loss.watch:
                trainer.run = replace(trainer.run, log_every=loss.watch)
            options = {"watch": loss.watch > 0, "debug": loss.debug, "stochastic": stochastic}
            return distill(teacher, self.inputs.split("train"), steps, objective, trainer, **options)

        name = f"{self.prefix}{name}"
        role = {"student": True, "last": steps == min(p.student_steps)}
        return self.inputs.stage(name, method.name, label, parents, config, training_seed, facts, fit, **role)

    def objective(
        self, method: str, steps: int, seed: int, teacher: Denoiser, extractor: Extractor | None
    ) -> Objective:
        """What a student of `steps` steps minimises, with the profile's numbers, queue empty, its head started by `seed`."""
        p, tau = self.profile, temperature_of(self.profile, steps)

        def make() -> Objective:
            return build_objective(p.method(method), p.loss, tau, teacher.schedule, extractor, steps)

        return self.inputs.seeded(make, 6, steps, seed).to(training_device())

    def drawer(self, method: str, steps: int, seed: int, sampler: str = "") -> Stage:
        """Whose network draws `method`'s images in `steps` steps.

        Samplers (of TRAINING_FREE) draw with the base model; "pd" at teacher_steps is the teacher, "teacher" is it
        whatever the steps; in a guided graph "teacher" is the conditional base model and "stage_one" the base. Raises
        UserError where there is none.
        """
        if method in TRAINING_FREE or method == "stage_one":
            return self.base
        if method == "teacher":
            return self.conditional or self.teacher()
        if sampler == STOCHASTIC and steps > 1:
            return self.stochastic(method, steps, seed)
        if method == "pd" and steps == self.profile.progressive.teacher_steps:
            return self.teacher()
        return self.student(method, steps, seed)

    def halvings(self, method: str, start: int, stop: int) -> list[Stage]:
        """The stages from a teacher of `start` steps to a student of `stop` steps, with the first of profile.seeds.

        Raises UserError where the profile has no such halvings.
        """
        p, middle, known = self.profile, self.profile.progressive.teacher_steps, halved(self.profile.base.steps, 1)
        if start not in known[:-1] or stop not in known or stop >= start:
            raise UserError(f"--from {start} --to {stop}: choose two of {', '.join(map(str, known))}, the larger first")
        if start != middle and (start < middle or method != "pd" or stop < middle):
            raise UserError(
                f"--from {start} --to {stop} --objective {method}: the {p.name} profile halves by pd from {p.base.steps} "
                f"to {middle} steps and by the objective from {middle} to 1, so --from is {middle}, or more with "
                f"--to {middle} --objective pd; progressive.teacher_steps changes where they meet"
            )
        wanted = [steps for steps in known if stop <= steps < start]
        return [self.teacher(n) if n >= middle else self.student(method, n, p.seeds[0]) for n in wanted]

    def _once(self, key: tuple, make: Callable[[], Stage]) -> Stage:
        if key not in self._stages:
            self._stages[key] = make()
        return self._stages[key]


def halving_of(profile: Profile, steps: int) -> int:
    """Which of the last halvings ends at `steps`: 0 for teacher_steps/2. Raises UserError where none does."""
    if steps not in profile.student_steps:
        known = ", ".join(map(str, profile.student_steps))
        raise UserError(f"no student has {counted(steps)}: the {profile.name} profile's have {known}")
    return profile.student_steps.index(steps)


def temperature_of(profile: Profile, steps: int) -> float:
    """tau of CFD for a student of `steps` steps; 1 for a teacher, which PD made without one."""
    return profile.distill.temperatures[halving_of(profile, steps)] if steps in profile.student_steps else 1.0


def plain_graph(inputs: Inputs) -> Graph:
    """Of a study whose base model is trained, or given (pretrained.teacher)."""
    return Graph(inputs, first_stage(inputs))


def guided_graph(inputs: Inputs) -> Graph:
    """Of a study whose base model is stage one of distilled guidance; profile: of `conditional_profile`.

    The conditional model that is guided is trained, or given.
    """
    conditional = first_stage(inputs)
    return Graph(inputs, stage_one(inputs, conditional), "guided-", conditional)


def conditional_profile(profile: Profile, num_classes: int) -> Profile:
    """The profile of a guided study: class-conditional, with the budgets of its section `guidance`.

    Raises UserError for images without classes.
    """
    if not num_classes:
        raise UserError(
            "guidance is towards a class, and these images have none: sort them into a folder for each class"
        )
    g, unet = profile.guidance, profile.unet
    if not profile.pretrained.teacher:  # which brings its own
        unet = replace(unet, num_classes=num_classes, label_dropout=g.label_dropout)
    iterations = tuple(max(1, round(g.budget * n)) for n in profile.distill.iterations)
    return replace(
        profile,
        unet=unet,
        base=replace(profile.base, train=g.base, steps=g.steps, prediction=g.prediction),
        distill=replace(profile.distill, iterations=iterations),
        evaluation=replace(profile.evaluation, samples=g.samples, baselines=()),
    )
