"""A study's folder: which configuration it belongs to, so that nothing of another study is mixed in or overwritten."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.unet import UNetConfig
from rddlib.distillation.label_free import TEACHER, TORCHVISION
from rddlib.interop import load_classifier
from rddlib.study.graph import given_model
from rddlib.study.profiles import Profile, flat, load_profile
from rddlib.study.study import Study
from rddlib.utils.checkpoint import read_json, write_atomically
from rddlib.utils.distributed import join, rank, wait
from rddlib.utils.errors import UserError
from rddlib.utils.installation import top_folder

STUDY_FILE = "study.json"
SILENT_BACKENDS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")  # matplotlib's that show nothing
CHANGES_NO_NUMBER = (  # how and from where, not what
    "run.",
    "jobs",
    "data.root",
    "data.download",
    "pretrained.download",
    "extractor.download",
    "evaluation.baselines",
    "methods",
)

OF_BASE = ("unet.", "base.train.", "base.schedule", "base.prediction", "base.weight")  # what a given model brings
OF_CLASSIFIER = ("extractor.train.", "extractor.shift", "extractor.seed", "extractor.classes")
OF_TEACHER = ("extractor.level", "extractor.time")


def default_out(profile: str) -> Path:
    """runs/<profile> in the checkout's top folder, or in the current folder where rddlib is installed without one."""
    return top_folder() / "runs" / profile


def _plain(profile: Profile, seed: int) -> dict:
    return json.loads(json.dumps({**asdict(profile), "seed": seed}))


def _read_record(record: Path) -> dict:
    def whole(found: dict) -> dict:
        kinds = {"profile": str, "seed": int, "overrides": dict, "config": dict}
        if not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise TypeError
        return found

    return read_json(record, whole, "choose another --out, or delete the folder")


def _recorded(out: Path) -> dict:
    """The record of the study in a folder; {} where there is none. Raises UserError where it is damaged."""
    record = out / STUDY_FILE
    return _read_record(record) if record.exists() else {}


def recorded_overrides(out: Path) -> dict[str, str]:
    """What was set for the study in a folder; {} where there is none. Raises UserError where the record is damaged."""
    return _recorded(out).get("overrides", {})


def as_recorded(profile: str | None, out: Path | None, seed: int | None = None) -> tuple[str, Path, int]:
    """(profile, folder, seed) of a study: what is None is as the folder records it, else digits, runs/<profile> and 0.

    Raises UserError where the record is damaged."""
    folder = out or default_out(profile or "digits")
    found = {"profile": "digits", "seed": 0} | _recorded(folder)
    return profile or found["profile"], folder, found["seed"] if seed is None else seed


def prepare_folder(
    out: Path, profile: Profile, overrides: dict[str, str], seed: int, update: bool = False, look_only: bool = False
) -> None:
    """Make `out` this study's folder, or check that it is (or, look_only, could be); the first of several processes does it.

    Raises UserError where it holds something else, or a study of another configuration (unless update).
    """
    join()
    if rank() == 0:
        _prepare(out, profile, overrides, seed, update, look_only)
    wait()


def _prepare(out: Path, profile: Profile, overrides: dict[str, str], seed: int, update: bool, look_only: bool) -> None:
    config, record = _plain(profile, seed), out / STUDY_FILE
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    # listed before the record is looked for: a command beside this one may be making the folder, and writes it first
    others = [path for path in out.glob("*") if not path.name.startswith(f".{STUDY_FILE}.")]
    if record.exists():
        found = _read_record(record)
        if found["config"] == config and found["overrides"] == overrides:
            return
        # fields that an earlier version did not have yet stood at what is their default now
        before, now = flat(_plain(load_profile(profile.name), seed)) | flat(found["config"]), flat(config)
        # seeds come and go but for the first, which records name and guided models take
        before["seeds"], now["seeds"] = before["seeds"][0], now["seeds"][0]
        differences = [
            name for name in sorted(now) if before[name] != now[name] and not name.startswith(CHANGES_NO_NUMBER)
        ]
        if differences and not update:
            raise UserError(
                f"{out} was made by another configuration (it differs in {', '.join(differences[:5])}): choose another "
                "--out, or rerun here what depends on the change: rdd study with --update"
            )
    elif others:
        raise UserError(f"{out} is not empty and no study made it: choose another --out")
    text = json.dumps({"profile": profile.name, "overrides": overrides, "seed": seed, "config": config}, indent=1)
    if not look_only:
        write_atomically(record, text + "\n")


def study_profile(name: str, overrides: dict[str, str]) -> Profile:
    """The profile by name with fields replaced, fitted to the models that it is given. Raises UserError as `load_profile`, and
    where a model does not fit."""
    profile = load_profile(name, overrides)
    if profile.pretrained.teacher:
        _check_heeded(overrides, OF_BASE, "pretrained.teacher brings its own")
        profile = fitted(profile, given_model(profile.pretrained)[0])
    if profile.pretrained.extractor:
        _check_heeded(overrides, ("extractor.name", *OF_CLASSIFIER), "pretrained.extractor brings its own")
        found = load_classifier(profile.pretrained.extractor)[1]["name"]
        profile = replace(profile, extractor=replace(profile.extractor, name=found))
    if profile.extractor.name == TEACHER or profile.extractor.name.startswith(TORCHVISION):
        _check_heeded(overrides, OF_CLASSIFIER, f"extractor.name={profile.extractor.name} brings its own")
    if profile.extractor.name != TEACHER:
        _check_heeded(overrides, OF_TEACHER, f"it is for extractor.name={TEACHER} alone")
    elif "methods" not in overrides:  # it predicts no classes, as RCFD needs
        profile = replace(profile, methods=tuple(name for name in profile.methods if name != "rcfd"))
    return profile


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
        channels, *size = config.image_shape
        classes = config.num_classes
        config = UNetConfig(tuple(size), channels, 1, (1,), blocks=1, attention=(), groups=1, num_classes=classes)
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


def _check_heeded(overrides: dict[str, str], fields: tuple[str, ...], reason: str) -> None:
    """Raise UserError where an override of these fields would have no effect, for this reason."""
    if wrong := [name for name in overrides if name.startswith(fields)]:
        raise UserError(
            f"--set {wrong[0]} changes nothing, since {reason}: leave it out (another --out, where it was set before)"
        )


def open_study(profile: str = "digits", out: str | Path = "", seed: int = 0) -> Study:
    """The study in `out` (default runs/<profile>), as notebooks open it; started there if the folder is new.

    Students that come with the package are taken too, all of them unless a command started the folder (run.shipped).

    Raises UserError where the folder belongs to another profile or seed.
    """
    show_figures()
    folder = Path(out) if out else default_out(profile)
    overrides = _recorded(folder).get("overrides", {"run.shipped": "all"})
    loaded = study_profile(profile, overrides)
    prepare_folder(folder, loaded, overrides, seed)
    return Study(loaded, folder, seed)


def recorded_study(out: Path) -> Study:
    """The study in a folder, as it was last set; nothing is written. Raises UserError where the record is damaged."""
    found = _read_record(out / STUDY_FILE)
    return Study(study_profile(found["profile"], found["overrides"]), out, found["seed"])


def show_figures() -> None:
    """In a Jupyter kernel, figures appear below their cells, also where MPLBACKEND names a backend that shows none."""
    if "ipykernel" not in sys.modules or os.environ.get("MPLBACKEND", "").lower() not in SILENT_BACKENDS:
        return
    from IPython import get_ipython

    if shell := get_ipython():
        shell.run_line_magic("matplotlib", "inline")


def continue_study(
    profile: str,
    overrides: dict[str, str],
    out: Path,
    seed: int = 0,
    update: bool = False,
    check: Callable[[Study], object] = lambda study: None,
    look_only: bool = False,
) -> Study:
    """The study in `out`, with what was set when it was started and what is set now.

    check(study) may raise UserError too, before anything is written; look_only: nothing is written at all. Raises UserError
    where the folder holds something else, or something set now would change its numbers (unless update).
    """
    before = {"profile": profile, "overrides": {}} | _recorded(out)
    if before["profile"] != profile:
        raise UserError(f"{out} holds a study of the profile {before['profile']}: choose another --out")
    overrides = {**before["overrides"], **overrides}
    study = Study(study_profile(profile, overrides), out, seed)
    study.check()
    check(study)
    prepare_folder(out, study.profile, overrides, seed, update, look_only)
    return study
