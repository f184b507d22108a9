"""From a profile's numbers to networks and objectives, untrained: `profiles -> assembly -> study, plan, bench`."""

from dataclasses import replace

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.schedule import Schedule, make_schedule
from rddlib.diffusion.unet import UNet, UNetConfig
from rddlib.distillation.extractor import FeatureExtractor
from rddlib.distillation.extractor import build_extractor as build_extractor_by_name
from rddlib.distillation.objectives import CFD, PD, RCFD, RDD, Objective
from rddlib.study.profiles import METHODS, Profile, as_dict
from rddlib.utils.errors import UserError


def build_denoiser(profile: Profile) -> Denoiser:
    """The profile's U-Net with its parametrisation and schedule."""
    base = profile.base
    return Denoiser(UNet(profile.unet), make_schedule(base.schedule, base.schedule_offset), base.prediction)


def conditional_profile(profile: Profile, num_classes: int) -> Profile:
    """The profile of the study that distils guidance: class-conditional, with the budgets of its section `guidance`.

    Raises UserError for images without classes.
    """
    if not num_classes:
        raise UserError(
            "guidance is towards a class, and these images have none: sort them into a folder for each class"
        )
    g = profile.guidance
    return replace(
        profile,
        unet=replace(profile.unet, num_classes=num_classes, label_dropout=g.label_dropout),
        base=replace(profile.base, train=g.base, steps=g.steps, prediction=g.prediction),
        distill=replace(
            profile.distill, iterations=tuple(max(1, round(g.budget * n)) for n in profile.distill.iterations)
        ),
        evaluation=replace(profile.evaluation, samples=g.samples, baselines=()),
    )


def fitted(profile: Profile, teacher: Denoiser) -> Profile:
    """The profile of a study whose base model is this one: its images' shape, classes and steps are the model's.

    unet is its network's configuration, or for a network of another kind than ours a UNetConfig that says the images' shape
    and classes and nothing else. Raises UserError where its steps do not fit the profile's halvings.
    """
    if teacher.guidance:
        raise UserError(
            "pretrained.teacher takes a guidance weight: rdd distill --guided halves such models, in the study that made them"
        )
    config = teacher.network.config
    if not isinstance(config, UNetConfig):
        config = UNetConfig(
            config.image_size,
            config.image_channels,
            channels=1,
            multipliers=(1,),
            blocks=1,
            attention=(),
            groups=1,
            num_classes=config.num_classes,
        )
    steps = teacher.steps or profile.base.steps
    if steps < profile.progressive.teacher_steps:
        if steps == 1:
            raise UserError("pretrained.teacher is a 1-step model: there is nothing left to halve")
        raise UserError(
            f"pretrained.teacher is a {steps}-step model: set progressive.teacher_steps={steps}, and in distill.iterations "
            "and distill.temperatures a number for each of its halvings"
        )
    try:
        return replace(profile, unet=config, base=replace(profile.base, steps=steps))
    except ValueError as error:
        raise UserError(f"pretrained.teacher does not fit the profile: {error}") from error


def build_extractor(profile: Profile, num_classes: int) -> FeatureExtractor:
    """The classifier for this profile's images."""
    config = profile.extractor
    return build_extractor_by_name(config.name, profile.unet.image_channels, num_classes, config.map_at)


def halving_of(profile: Profile, steps: int) -> int:
    """Which of the last halvings ends at `steps`: 0 for teacher_steps/2. Raises UserError where none does."""
    if steps not in profile.student_steps:
        raise UserError(
            f"no student has {steps} steps: the {profile.name} profile's have "
            f"{', '.join(map(str, profile.student_steps))}"
        )
    return profile.student_steps.index(steps)


def objective_numbers(profile: Profile, method: str, steps: int) -> dict:
    """What `method`'s objective is built with for a student of `steps` steps, as keyword arguments."""
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
    if method == "pd":
        return {}
    loss = profile.loss
    cfd = {
        "temperature": profile.distill.temperatures[halving_of(profile, steps)],
        "dual": loss.dual,
        "predictions": loss.predictions,
    }
    weighted = {**cfd, "cfd": loss.cfd}
    others = {"rcfd_beta", "rcfd_gamma", "watch", "debug", *weighted}
    return {
        "cfd": cfd,
        "rcfd": {**weighted, "beta": loss.rcfd_beta, "gamma": loss.rcfd_gamma},
        "rdd": {**weighted, **{name: value for name, value in as_dict(loss).items() if name not in others}},
    }[method]


def build_objective(
    profile: Profile,
    method: str,
    steps: int,
    extractor: FeatureExtractor | None = None,
    schedule: Schedule | None = None,
) -> Objective:
    """What a student of `steps` steps minimises by `method`, one of METHODS; all but "pd" need the extractor. schedule: the
    teacher's, by default the profile's."""
    numbers = objective_numbers(profile, method, steps)
    if method == "pd":
        return PD(schedule or make_schedule(profile.base.schedule, profile.base.schedule_offset))
    return {"cfd": CFD, "rcfd": RCFD, "rdd": RDD}[method](extractor, **numbers)
