"""A study: one profile, one folder, and every artefact in it made when first asked for and found again afterwards.

Each stage is keyed by a hash of all it depends on, so a changed number reruns what depends on it and nothing else.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import rddlib
from rddlib.data import ImageDataset, WrongShape, load_dataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.model_file import build_described, describe, provenance
from rddlib.diffusion.samplers import TRAINING_FREE, find_sampler
from rddlib.diffusion.sampling import ddim_sample
from rddlib.distillation.extractor import FeatureExtractor, accuracy, extractor_of
from rddlib.distillation.objectives import PD, Objective
from rddlib.distillation.train import distill, reparametrise, train_base, train_classifier
from rddlib.evaluation import (
    DrawnImages,
    Network,
    Reference,
    check_classes,
    check_fit,
    evaluate,
    find_network,
    find_protocol,
    network_of_checkpoint,
    read_record,
    row_of,
    write_record,
)
from rddlib.interop import load_classifier, load_model
from rddlib.study.assembly import (
    build_denoiser,
    build_extractor,
    build_objective,
    fitted,
    halving_of,
    objective_numbers,
)
from rddlib.study.profiles import METHODS, Profile, as_dict, load_profile
from rddlib.training import Checkpoints, TrainConfig, chosen_precision, derive_seed, prepared, training_device
from rddlib.training.hardware import peak_memory, release_memory, reset_peak
from rddlib.utils import progress
from rddlib.utils.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from rddlib.utils.distributed import agreed, join, locked, rank, wait
from rddlib.utils.errors import Interrupted, UserError
from rddlib.utils.installation import top_folder

COLUMNS = ["method", "steps", "seed", "fid", "pfd", "is", "samples", "seconds"]
STUDY_FILE = "study.json"
CHANGES_NO_NUMBER = (
    "run.",
    "jobs",
    "data.root",
    "data.download",
    "evaluation.baselines",
)  # how and from where, not what


def key_of(facts: dict) -> str:
    """A short name for a configuration: the first 12 hexadecimal digits of the sha256 of its JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def default_out(profile: str) -> Path:
    """runs/<profile> in the checkout's top folder, or in the current folder where rddlib is installed without one."""
    return top_folder() / "runs" / profile


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names whose values differ."""
    names = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            names.append(prefix + name)
    return names


def _filled(old: dict, defaults: dict) -> dict:
    """An earlier version's configuration: fields that it did not have yet stood at what is their default now."""
    known = {
        name: _filled(old[name], value)
        if isinstance(value, dict) and isinstance(old.get(name), dict)
        else old.get(name, value)
        for name, value in defaults.items()
    }
    return known


def _plain(profile: Profile, seed: int) -> dict:
    return json.loads(json.dumps({**as_dict(profile), "seed": seed}))


def _read_record(record: Path) -> dict:
    try:
        found = json.loads(record.read_text())
        if not (isinstance(found["config"], dict) and isinstance(found["overrides"], dict)):
            raise TypeError
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} is damaged: choose another --out, or delete the folder") from error


def csv_of(table: pd.DataFrame) -> str:
    """A table of results as it is written."""
    return table.to_csv(index=False, float_format="%.6g")


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
    if record.exists():
        found = _read_record(record)
        if found["config"] == config and found["overrides"] == overrides:
            return
        defaults = _plain(load_profile(profile.name), seed)
        differences = _differences(_filled(found["config"], defaults), config)
        differences = [name for name in differences if not name.startswith(CHANGES_NO_NUMBER)]
        if differences and not update:
            raise UserError(
                f"{out} was made by another configuration (it differs in {', '.join(differences[:5])}): choose another "
                "--out, or add --update to rerun here what depends on the change"
            )
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and no study made it: choose another --out")
    text = json.dumps({"profile": profile.name, "overrides": overrides, "seed": seed, "config": config}, indent=1)
    if not look_only:
        write_atomically(record, text + "\n")


def study_profile(name: str, overrides: dict[str, str]) -> Profile:
    """The profile by name with fields replaced, fitted to the models that it is given. Raises UserError as `load_profile`, and
    where a model does not fit."""
    profile = load_profile(name, overrides)
    if profile.pretrained.teacher:
        _check_brought(
            "pretrained.teacher", overrides, ("unet.", "base.train.", "base.schedule", "base.prediction", "base.weight")
        )
        profile = fitted(profile, load_model(profile.pretrained.teacher)[0])
    if profile.pretrained.extractor:
        _check_brought(
            "pretrained.extractor",
            overrides,
            ("extractor.name", "extractor.train.", "extractor.shift", "extractor.seed", "extractor.classes"),
        )
        found = load_classifier(profile.pretrained.extractor)[1]["name"]
        profile = replace(profile, extractor=replace(profile.extractor, name=found))
    return profile


def _check_brought(given: str, overrides: dict[str, str], fields: tuple[str, ...]) -> None:
    """Raise UserError where an override would have no effect, since a given model brings its own."""
    if wrong := [name for name in overrides if name.startswith(fields)]:
        raise UserError(f"--set {wrong[0]} changes nothing, since {given} brings its own: leave it out")


def open_study(profile: str = "digits", out: str | Path = "", seed: int = 0) -> "Study":
    """The study in `out` (default runs/<profile>), as notebooks open it; started there if the folder is new.

    Raises UserError where the folder belongs to another profile or seed.
    """
    folder = Path(out) if out else default_out(profile)
    record = folder / STUDY_FILE
    overrides = _read_record(record)["overrides"] if record.exists() else {}
    loaded = study_profile(profile, overrides)
    prepare_folder(folder, loaded, overrides, seed)
    return Study(loaded, folder, seed)


def continue_study(
    profile: str,
    overrides: dict[str, str],
    out: Path,
    seed: int = 0,
    update: bool = False,
    check: Callable[["Study"], object] = lambda study: None,
    look_only: bool = False,
) -> "Study":
    """The study in `out`, with what was set when it was started and what is set now.

    check(study) may raise UserError too, before anything is written; look_only: nothing is written at all. Raises UserError
    where the folder holds something else, or something set now would change its numbers (unless update).
    """
    record = out / STUDY_FILE
    before = _read_record(record) if record.exists() else {"overrides": {}}
    if before.get("profile", profile) != profile:
        raise UserError(f"{out} holds a study of the profile {before['profile']}: choose another --out")
    overrides = {**before["overrides"], **overrides}
    study = Study(study_profile(profile, overrides), out, seed)
    study.check()
    check(study)
    prepare_folder(out, study.profile, overrides, seed, update, look_only)
    return study


class Study:
    """profile: its numbers; out: its folder; seed: of base model, extractor and halvings (the last halvings, in which
    the methods compete, take theirs from profile.seeds); scores: where in its folder scores lie."""

    columns = COLUMNS  # of its results
    samples_field = "evaluation.samples"  # of the profile, that says how many images are scored

    def __init__(self, profile: Profile, out: Path, seed: int = 0, scores: str = "scores"):
        self.profile, self.out, self.seed, self.scores = profile, Path(out), seed, Path(out) / scores
        self.device = training_device()
        join()

    def __reduce__(self):
        """Another process makes it again from its numbers, whatever it has loaded here."""
        return type(self), (self.profile, self.out, self.seed, self.scores.relative_to(self.out).as_posix())

    def varied(self, profile: Profile, scores: str) -> "Study":
        """The study of other numbers in the same folder, sharing what does not depend on them; its scores lie apart."""
        other = Study(profile, self.out, self.seed, scores)
        if profile.data == self.profile.data and profile.unet.image_size == self.profile.unet.image_size:
            other.dataset = self.dataset
            if profile.evaluation.network == self.profile.evaluation.network != "extractor":
                other.metric_network = self.metric_network
        return other

    # data and fixed parts

    @cached_property
    def dataset(self) -> ImageDataset:
        """All the images that models are trained on and scores are measured against, on the study's device."""
        return self._split("train")

    def _split(self, split: str) -> ImageDataset:
        try:
            return load_dataset(self.profile.data, split, self.image_shape).to(self.device)
        except WrongShape as error:
            if not self.profile.pretrained.teacher:
                raise
            raise UserError(
                f"{error.fault} by pretrained.teacher: name images of that shape, or have a folder's resized with "
                "data.resize=true"
            ) from error

    def _data_facts(self) -> dict:
        """Which images and labels: by their content, not by where they lie."""
        data = self.profile.data
        facts = {"name": data.name, "flip": data.flip, "resize": data.resize}
        if data.name == "digits":
            return facts
        return {**facts, "sha256": self.dataset.sha256, "labels": self.dataset.labels_sha256}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        u = self.profile.unet
        return (u.image_channels, u.image_size, u.image_size)

    def noise(self, count: int, seed: int = 0) -> Tensor:
        """The same standard normal [count, C, H, W] for every method."""
        generator = torch.Generator().manual_seed(derive_seed(self.profile.evaluation.seed, seed))
        return torch.randn(count, *self.image_shape, generator=generator).to(self.device)

    # artefacts

    def _path(self, stage: str, facts: dict) -> Path:
        return self.out / "checkpoints" / f"{stage}-{key_of(facts)}.safetensors"

    def _made(self, stage: str, facts: dict, make: Callable[[Path], tuple[nn.Module, dict]]) -> tuple[dict, dict]:
        """(tensors, info) of an artefact: from its file, or made now by all processes of this run together.

        Two runs never make the same one. Beside it lie its facts as JSON and the log of its training.
        """
        path = self._path(stage, facts)
        with locked(path):
            if not agreed(path.exists()):
                files = path.with_suffix("")
                module, extra = make(files)
                if rank() == 0:
                    info = {"kind": stage, "facts": facts, **extra}
                    save_checkpoint(path, module.state_dict(), info)
                    write_atomically(path.with_suffix(".json"), json.dumps(info, indent=1) + "\n")
                    Checkpoints(files).clear()
                wait()
            return load_checkpoint(path)

    @staticmethod
    def _timed(config: TrainConfig, train: Callable[[], nn.Module]) -> tuple[nn.Module, dict]:
        """(trained module, facts): how long this took, in which precision, and the bytes that it held at most beside what
        was held before (of a resumed run, its last stretch)."""
        device = training_device()
        release_memory()
        before, began = reset_peak(str(device)), time.perf_counter()
        module = train()
        precision = str(chosen_precision(config.precision, device)).removeprefix("torch.")
        facts = {
            "seconds": time.perf_counter() - began,
            "precision": precision,
            "peak_memory": peak_memory(device) - before,
        }
        return module, facts | ({"model": describe(module)} if isinstance(module, Denoiser) else {})

    def _ready(self, denoiser: Denoiser) -> Denoiser:
        """On this study's device, as its machine likes it, not to be trained."""
        denoiser = denoiser.to(self.device).eval().requires_grad_(False)
        return prepared(denoiser, replace(self.profile.run, compile="never"), "float32")

    def _denoiser(self, made: tuple[dict, dict]) -> Denoiser:
        """The model of an artefact, as `_made` returns it."""
        tensors, info = made
        denoiser = build_described(info["model"])
        denoiser.load_state_dict(tensors)
        return self._ready(denoiser)

    def _base_facts(self) -> dict:
        p = self.profile
        if p.pretrained.teacher:
            return self._given_base_facts()
        base = {k: v for k, v in as_dict(p.base).items() if k != "steps"}
        return {
            "data": self._data_facts(),
            "unet": as_dict(p.unet),
            "base": base,
            "seed": self.seed,
            "version": rddlib.__version__,
        }

    def _seeded(self, make: Callable[[], nn.Module], *numbers: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, *numbers))
            return make()

    def base(self) -> Denoiser:
        """The base model, sampled by DDIM with any number of steps: trained on data, or the one that is given."""
        return self._given_base() if self.profile.pretrained.teacher else self._trained_base(self._base_facts())

    @cached_property
    def _given_teacher(self) -> tuple[Denoiser, dict]:
        return load_model(self.profile.pretrained.teacher)

    def _given_base_facts(self) -> dict:
        p, (denoiser, info) = self.profile, self._given_teacher
        facts = {"pretrained": info["sha256"], "data": self._data_facts()}
        if denoiser.prediction != "eps":
            return facts
        return {
            **facts,
            "train": as_dict(p.pretrained.convert),
            "snr_max": p.base.snr_max,
            "seed": self.seed,
            "version": rddlib.__version__,
        }

    def _given_base(self) -> Denoiser:
        """The given teacher; one that predicts eps has learnt to predict v first, or few-step students would learn nothing."""
        p, facts = self.profile, self._base_facts()

        def make(files: Path):
            given, info = self._given_teacher
            source = info.get("source", {"name": Path(p.pretrained.teacher).name, "made_by": "rddlib"})
            if given.prediction != "eps":
                precision = info.get("precision", "not known")
                return given, {"seconds": 0.0, "precision": precision, "model": describe(given), "source": source}
            student, made = self._timed(
                p.pretrained.convert,
                lambda: reparametrise(
                    given,
                    "v",
                    self.dataset,
                    p.pretrained.convert,
                    derive_seed(self.seed, 12),
                    snr_max=p.base.snr_max or None,
                    files=files,
                    run=p.run,
                    preview_steps=min(p.base.steps, 32),
                ),
            )
            return student, {**made, "source": source}

        return self._denoiser(self._made("base", facts, make))

    def _trained_base(self, facts: dict) -> Denoiser:
        config = self.profile.base

        def make(files: Path):
            untrained = self._seeded(lambda: self._ready(build_denoiser(self.profile)), 1)
            return self._timed(
                config.train,
                lambda: train_base(
                    untrained,
                    self.dataset,
                    config.train,
                    derive_seed(self.seed, 2),
                    snr_max=config.snr_max or None,
                    files=files,
                    run=self.profile.run,
                    preview_steps=min(config.steps, 32),
                    weight=config.weight,
                ),
            )

        return self._denoiser(self._made("base", facts, make))

    def _teacher_facts(self, steps: int) -> dict:
        known = self._halved(self.profile.base.steps, self.profile.progressive.teacher_steps)
        if steps not in known:
            raise UserError(f"no teacher has {steps} steps: there are {', '.join(map(str, known))}")
        if steps == self.profile.base.steps:
            return self._base_facts()
        train = as_dict(self.profile.progressive.train)
        return {"parent": key_of(self._teacher_facts(2 * steps)), "steps": steps, "train": train, "seed": self.seed}

    def teacher(self, steps: int | None = None) -> Denoiser:
        """The base model progressively distilled (PD) to `steps` steps, default profile.progressive.teacher_steps."""
        steps = steps or self.profile.progressive.teacher_steps
        if steps == self.profile.base.steps:
            return self.base()

        def make(files: Path):
            parent, config = self.teacher(2 * steps), self.profile.progressive.train
            return self._timed(
                config,
                lambda: distill(
                    parent,
                    self.dataset,
                    steps,
                    PD(parent.schedule),
                    config,
                    derive_seed(self.seed, 3, steps),
                    label=f"PD {2 * steps} to {steps} steps",
                    files=files,
                    run=self.profile.run,
                ),
            )

        return self._denoiser(self._made(self._name_of("teacher", steps), self._teacher_facts(steps), make))

    @cached_property
    def _given_extractor(self) -> tuple[FeatureExtractor, dict]:
        return load_classifier(self.profile.pretrained.extractor, self.profile.extractor.map_at)

    def _extractor_facts(self) -> dict:
        if self.profile.pretrained.extractor:
            found = self._given_extractor[1]
            return {"pretrained": found["sha256"], "extractor": {"name": found["name"]}}
        config = {k: v for k, v in as_dict(self.profile.extractor).items() if k != "map_at"}  # does not change weights
        return {
            "data": self._data_facts(),
            "extractor": config,
            "seed": self.seed,
            "version": rddlib.__version__,
        }

    def _new_extractor(self) -> FeatureExtractor:
        return build_extractor(self.profile, self.dataset.num_classes)

    def extractor(self) -> FeatureExtractor:
        """The classifier whose features are distilled, trained on the data set's "extractor" split."""
        config = self.profile.extractor

        def make(files: Path):
            if self.profile.pretrained.extractor:
                return self._given_extractor[0], {"seconds": 0.0, "precision": "not known"}
            if not self.dataset.num_classes:
                raise UserError(
                    f"{self.dataset.name} has no classes to train an extractor with: sort its images into "
                    "a folder for each class"
                )
            other = (config.seed,) if config.seed else ()
            untrained, test = self._seeded(self._new_extractor, 4, *other), self._split("test")
            split = self._split("extractor").of_classes(config.classes)
            network, facts = self._timed(
                config.train,
                lambda: train_classifier(
                    untrained.to(self.device),
                    lambda out: out.logits,
                    split,
                    config.train,
                    derive_seed(self.seed, 5, *other),
                    shift=config.shift,
                    label=f"extractor {config.name}",
                    files=files,
                    run=self.profile.run,
                ),
            )
            return network, {**facts, "test_accuracy": accuracy(lambda images: network(images).logits, test)}

        facts = self._extractor_facts()
        tensors, _ = self._made("extractor", facts, make)
        return extractor_of(facts["extractor"]["name"], tensors, config.map_at).to(self.device)

    def _facts_of(self, stage: str, *arguments) -> dict:
        return {
            "base": self._base_facts,
            "teacher": self._teacher_facts,
            "extractor": self._extractor_facts,
            "student": self._student_facts,
        }[stage](*arguments)

    def path_of(self, stage: str, *arguments) -> Path:
        """Where an artefact lies: path_of("extractor"), path_of("teacher", 8), path_of("student", "rdd", 1, 0)."""
        return self._path(self._name_of(stage, *arguments), self._facts_of(stage, *arguments))

    def _name_of(self, stage: str, *arguments) -> str:
        """How the file of an artefact begins."""
        if stage == "student":
            return f"{arguments[0]}-{arguments[1]}"
        if stage == "teacher":
            return "base" if arguments[0] == self.profile.base.steps else f"pd-{arguments[0]}"
        return stage

    def facts(self, stage: str, *arguments) -> dict:
        """What is recorded in an artefact: facts("extractor")["test_accuracy"]."""
        return load_checkpoint(self.path_of(stage, *arguments))[1]

    def halvings(self, objective: str, start: int, stop: int) -> list[tuple]:
        """The stages, as arguments of `facts`, from a teacher of `start` steps to a student of `stop` steps.

        Raises UserError where the profile has no such halvings.
        """
        profile, middle = self.profile, self.profile.progressive.teacher_steps
        known = self._halved(profile.base.steps, 1)
        if objective not in METHODS:
            raise UserError(f"unknown --objective {objective}: known are {', '.join(METHODS)}")
        if start not in known[:-1] or stop not in known or stop >= start:
            raise UserError(f"--from {start} --to {stop}: choose two of {', '.join(map(str, known))}, the larger first")
        if start != middle and (start < middle or objective != "pd" or stop < middle):
            raise UserError(
                f"--from {start} --to {stop} --objective {objective}: the {profile.name} profile halves by pd from "
                f"{profile.base.steps} to {middle} steps and by the objective from {middle} to 1, so --from is {middle}, or "
                f"more with --to {middle} --objective pd; progressive.teacher_steps changes where they meet"
            )
        wanted = [steps for steps in known if stop <= steps < start]
        seed = profile.seeds[0]
        return [("teacher", n) if n >= middle else ("student", objective, n, seed) for n in wanted]

    # the methods' own halvings

    def objective(self, method: str, steps: int, seed: int = 0) -> Objective:
        """What a student of `steps` steps minimises: one of METHODS, with the profile's numbers, queue empty.

        seed: of the distillation, from which the projection head starts.
        """
        extractor = None if method == "pd" else self.extractor()
        schedule = self._given_teacher[0].schedule if self.profile.pretrained.teacher else None
        objective = self._seeded(
            lambda: build_objective(self.profile, method, steps, extractor, schedule), 6, steps, seed
        )
        return objective.to(self.device)

    def _student_facts(self, method: str, steps: int, seed: int) -> dict:
        halving, config = halving_of(self.profile, steps), self.profile.distill
        parent = self._student_facts(method, 2 * steps, seed) if halving else self._teacher_facts(2 * steps)
        return {
            "method": method,
            "steps": steps,
            "seed": seed,
            "iterations": config.iterations[halving],
            "parent": key_of(parent),
            "train": as_dict(replace(config.train, iterations=1)),
            **self._objective_facts(method, steps),
        }

    def _objective_facts(self, method: str, steps: int) -> dict:
        """What `objective` depends on."""
        numbers = {"numbers": objective_numbers(self.profile, method, steps)}
        if method == "pd":
            return numbers
        return numbers | {"extractor": key_of(self._extractor_facts()), "map_at": self.profile.extractor.map_at}

    def student(self, method: str, steps: int, seed: int | None = None) -> Denoiser:
        """A student of `steps` steps: teacher -> ... -> steps by halvings, every one with this method's objective.

        seed: one of profile.seeds (default the first). Every method gets the same images, times and noise.
        """
        seed = self.profile.seeds[0] if seed is None else seed
        halving = halving_of(self.profile, steps)

        def make(files: Path):
            parent = self.student(method, 2 * steps, seed) if halving else self.teacher()
            config = replace(self.profile.distill.train, iterations=self.profile.distill.iterations[halving])
            label = f"{method.upper()} {2 * steps} to {steps} steps"
            loss, objective = self.profile.loss, self.objective(method, steps, seed)
            return self._timed(
                config,
                lambda: distill(
                    parent,
                    self.dataset,
                    steps,
                    objective,
                    config,
                    derive_seed(seed, 7, steps),
                    label=label,
                    files=files,
                    run=self.profile.run,
                    released=loss.released,
                    watch=loss.watch,
                    debug=loss.debug,
                ),
            )

        name = self._name_of("student", method, steps, seed)
        return self._denoiser(self._made(name, self._student_facts(method, steps, seed), make))

    def denoiser(self, method: str, steps: int, seed: int | None = None) -> Denoiser:
        """Who draws `method`'s images in `steps` steps: samplers (TRAINING_FREE) draw with the base model,
        "pd" at teacher_steps is the teacher."""
        if method in TRAINING_FREE:
            return self.base()
        if method == "pd" and steps == self.profile.progressive.teacher_steps:
            return self.teacher()
        return self.student(method, steps, seed)

    def images(self, method: str, steps: int, noise: Tensor, seed: int | None = None) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] from the given noise (of classes 0, 1, 2, ... in turn where there are any)."""
        classes = self.profile.unet.num_classes
        y = torch.arange(len(noise), device=noise.device) % classes if classes else None
        sample = find_sampler(method, steps) if method in TRAINING_FREE else ddim_sample
        return sample(self.denoiser(method, steps, seed), noise, steps, y=y, clip=self.profile.evaluation.clip)

    # scores

    def lineage(self, method: str, steps: int, seed: int) -> list[tuple]:
        """The artefacts that an arm needs, ancestors first, as arguments of `facts`."""
        p, top = self.profile, self.profile.base.steps
        last = p.progressive.teacher_steps if method in METHODS else top
        teachers = [("teacher", n) for n in self._halved(top // 2, max(last, steps if method == "pd" else last))]
        students = [("student", method, n, seed) for n in self._halved(last // 2, steps)] if method in METHODS else []
        extractor = [("extractor",)] if students and method != "pd" else []
        return [("base",), *teachers, *extractor, *students]

    @staticmethod
    def _halved(first: int, last: int) -> list[int]:
        """first, first/2, ..., last."""
        return [first >> k for k in range(first.bit_length()) if first >> k >= last]

    def training(self, stage: str, *arguments) -> TrainConfig:
        """How an artefact, given as to `facts`, is trained."""
        p = self.profile
        if stage == "base" and p.pretrained.teacher:
            return p.pretrained.convert
        if stage == "student":
            return replace(p.distill.train, iterations=p.distill.iterations[halving_of(p, arguments[1])])
        return {"base": p.base, "teacher": p.progressive, "extractor": p.extractor}[stage].train

    def make(self, stage: str, *arguments) -> None:
        """Make an artefact, given as to `facts`, unless it is there."""
        {"base": self.base, "teacher": self.teacher, "extractor": self.extractor, "student": self.student}[stage](
            *arguments
        )

    def model(self, method: str, steps: int, seed: int) -> tuple:
        """Which artefact draws an arm's images, as arguments of `facts`."""
        if method in TRAINING_FREE:
            return ("base",)
        teacher = method == "pd" and steps == self.profile.progressive.teacher_steps
        return ("teacher", steps) if teacher else ("student", method, steps, seed)

    def model_key(self, *arm) -> str:
        """A hash of all that the arm's model depends on, known before it is trained."""
        return key_of(self._facts_of(*self.model(*arm)))

    def check_arm(self, method: str, steps: int, *, classes: Sequence[int] = ()) -> None:
        """Raise UserError where no model of this study draws by `method` in `steps` steps, or none draws these classes."""
        check_classes(classes, self.profile.unet.num_classes)
        if method in TRAINING_FREE:
            find_sampler(method, steps)
        elif method not in METHODS:
            raise UserError(
                f"unknown --method {method}: known are {', '.join(dict.fromkeys((*TRAINING_FREE, *METHODS)))}"
            )
        self._facts_of(*self.model(method, steps, self.profile.seeds[0]))

    @cached_property
    def metric_network(self) -> Network:
        """The network that scores: as profile.evaluation.network says; UserError where it cannot be had."""
        choice = self.profile.evaluation.network
        if choice != "extractor":
            return find_network(choice, self.image_shape)
        self.extractor()
        return network_of_checkpoint(self.path_of("extractor"))

    @property
    def metric(self) -> str:
        """The full name of the FID in the results, which says with which network and on how many samples."""
        return self.metric_network.metric(self.profile.evaluation.samples)

    @cached_property
    def _network_key(self) -> str:
        """Which network that is, known before an extractor is trained."""
        own = self.profile.evaluation.network == "extractor"
        return key_of(self._extractor_facts()) if own else self.metric_network.sha256

    def score_path(self, *arm) -> Path:
        """Where an arm's score lies, once measured: named by a hash of all that it depends on.

        arm: of `arms`, (method, steps, seed).
        """
        evaluation = as_dict(self.profile.evaluation)
        config = {name: evaluation[name] for name in ("samples", "seed", "clip", "metrics", "protocol")}
        facts = {"model": self.model_key(*arm), "steps": arm[1], "evaluation": config, "network": self._network_key}
        return self.scores / f"{'-'.join(map(str, arm))}-{key_of(facts | self._conditions(*arm))}.json"

    def _conditions(self, *arm) -> dict:
        """What besides the model and its steps says how an arm draws: as it is recorded in its row."""
        return {}

    def _measured(self, *arm) -> dict:
        """{"row", "receipt"} of one arm: measured now, or read from scores/. Arms that differ in the seed alone have one
        "lineage"."""
        path = self.score_path(*arm)
        with locked(path):
            if not agreed(path.exists()):
                write_record(path, self._measure(path.parent, *arm))
        return read_record(path)

    def drawn(
        self,
        *arm,
        samples: int = 0,
        noise: int | None = None,
        classes: Sequence[int] = (),
        sampler: str = "",
        guidance=None,
    ) -> DrawnImages:
        """An arm's images to score, drawn from common noise; samples, noise (its seed): default the profile's; classes: the
        labels to draw, default all; sampler, guidance: of DrawnImages."""
        (method, steps, seed), config, denoiser = arm[:3], self.profile.evaluation, self.denoiser(*arm)
        made = provenance(denoiser, self.facts(*self.model(*arm)))
        return DrawnImages(
            denoiser,
            samples or config.samples,
            steps,
            seed=config.seed if noise is None else noise,
            clip=config.clip,
            shape=self.image_shape,
            device=self.device,
            name=f"{method}, {steps} step{'s' * (steps > 1)}, seed {seed}",
            sampler=sampler or (method if method in TRAINING_FREE else "ddim"),
            made=made,
            guidance=guidance,
            classes=classes,
        )

    def _measure(self, folder: Path, *arm) -> dict:
        method, steps, seed = arm[:3]
        config, images = self.profile.evaluation, self.drawn(*arm)
        result = evaluate(
            images,
            self.dataset,
            network=self.metric_network,
            metrics=config.metrics,
            protocol=config.protocol,
            batch_size=min(config.batch_size, config.samples),
            folder=folder,
            device=self.device,
        )
        lineage = self.model_key(method, steps, self.profile.seeds[0], *arm[3:])
        return row_of(result, method=method, steps=steps, seed=seed, lineage=lineage, **self._conditions(*arm))

    def score(self, *arm) -> dict:
        """One row of results: a dict with COLUMNS (as far as profile.evaluation.metrics asks for them)."""
        return self._measured(*arm)["row"]

    def receipt(self, *arm) -> dict:
        """How that row was measured: the fields of rddlib.evaluation.Receipt."""
        return self._measured(*arm)["receipt"]

    def arms(self) -> list[tuple[str, int, int]]:
        """Every (method, steps, seed) of the study's results."""
        p, first = self.profile, self.profile.seeds[0]
        teacher = p.progressive.teacher_steps
        shared = [("ddim", n, first) for n in (p.base.steps, teacher, *p.student_steps)] + [("pd", teacher, first)]
        baselines = [(name, steps, first) for name, steps in p.evaluation.baseline_arms]
        students = [(m, n, s) for m in METHODS for s in p.seeds for n in p.student_steps]
        return list(dict.fromkeys(shared + baselines + students))

    def cascade(self, method: str, seed: int) -> list[dict]:
        """Train (except DDIM, which needs no more) and score one method's arms of one seed; rows of results."""
        if method in METHODS:
            self.student(method, 1, seed)
        return [self.score(*arm) for arm in self.arms() if arm[0] == method and arm[2] == seed]

    def train_all(self) -> None:
        """Train and score every cascade, profile.jobs at a time, each in a process of its own with its share of cores."""
        cascades = {(arm[0], arm[2]) for arm in self.arms()}
        longest_first = ["rdd", "ddim", "rcfd", "cfd", "pd"]
        rank_of = {method: number for number, method in enumerate(longest_first)}
        waiting = sorted((c for c in cascades if not self._done(*c)), key=lambda c: (rank_of.get(c[0], 9), *c))
        if not waiting:
            return
        self.teacher(), self.extractor()
        jobs = min(self.profile.jobs, len(waiting))
        if jobs == 1:
            for method, seed in waiting:
                self.cascade(method, seed)
            return
        total = sum(self._iterations(method) for method, _ in waiting)
        label = f"{len(waiting)} cascades, {jobs} at a time"
        context = multiprocessing.get_context("spawn")
        count, threads, began = context.Value("q", 0), max(1, torch.get_num_threads() // jobs), time.perf_counter()
        with (
            concurrent.futures.ProcessPoolExecutor(jobs, context, _start_worker, (count, threads)) as pool,
            progress.make_bar(label, total) as bar,
            stopped_with(pool),
        ):
            bar.set_postfix_str("processes are starting")
            running = {pool.submit(_run_cascade, self, *arm) for arm in waiting}
            while running:
                done, running = concurrent.futures.wait(running, timeout=0.5)
                if count.value > bar.n:
                    bar.set_postfix_str("", refresh=False)
                    bar.update(count.value - bar.n)
                if failed := [finished for finished in done if finished.exception()]:
                    pool.shutdown(wait=False, cancel_futures=True)  # what has not started yet need not
                    failed[0].result()
        if progress.mode() == "line":
            print(f"{label}: {count.value} it in {time.perf_counter() - began:.1f} s", flush=True)

    def _iterations(self, method: str) -> int:
        """Of all that one cascade trains."""
        return sum(self.profile.distill.iterations) if method in METHODS else 0

    def _done(self, method: str, seed: int) -> bool:
        return all(self.score_path(*arm).exists() for arm in self.arms() if arm[0] == method and arm[2] == seed)

    def results(self) -> pd.DataFrame:
        """Every arm's score, as a table with COLUMNS, also written to results.csv; what is missing is trained."""
        self.train_all()
        table = self.scored()
        write_atomically(self.out / "results.csv", csv_of(table))
        return table

    def scored(self) -> pd.DataFrame:
        """The rows of results that have been measured so far."""
        done = [arm for arm in self.arms() if self.score_path(*arm).exists()]
        return pd.DataFrame([self.score(*arm) for arm in done], columns=self.columns)

    def check(self) -> None:
        """Raise UserError for numbers that each are possible but do not fit the data set or each other."""
        classes, known = self.profile.unet.num_classes, self.dataset.num_classes
        if self.profile.pretrained.teacher and classes not in (0, known):
            raise UserError(
                f"pretrained.teacher is conditional on {classes} classes and {self.dataset.name} has "
                f"{known or 'no labels'}: give it images with a folder for each of its classes"
            )
        if wrong := [k for k in self.profile.extractor.classes if k >= known]:
            raise UserError(
                f"extractor.classes has {wrong[0]}, {self.dataset.name} has classes 0 to {known - 1}: leave it out"
            )
        if classes not in (0, known):
            raise UserError(f"unet.num_classes is {classes}, {self.dataset.name} has {known}: set it to {known} or 0")
        if self.profile.pretrained.extractor:
            found, own = self._given_extractor[0].image_channels, self.image_shape[0]
            if found != own:
                raise UserError(
                    f"pretrained.extractor takes images of {found} channels, these have {own}: name another classifier"
                )
        with torch.device("meta"):
            height, width = self._new_extractor().eval()(torch.empty(1, *self.image_shape)).map.shape[2:]
        candidates = (
            height
            * width
            * (self.profile.distill.train.batch_size if "queue_per_batch" in self.profile.loss.released else 1)
        )
        if self.profile.loss.per_image > candidates:
            raise UserError(
                f"loss.per_image is {self.profile.loss.per_image}: the extractor's map offers {candidates} pixels"
            )

    def check_scoring(self) -> None:
        """Raise UserError where results could not be scored in the end."""
        config = self.profile.evaluation
        find_protocol(config.protocol)
        for name, steps in config.baseline_arms:
            try:
                if name not in TRAINING_FREE:
                    raise UserError(f"evaluation.baselines names {name!r}: choose of {', '.join(TRAINING_FREE)}")
                find_sampler(name, steps)
            except UserError as error:
                raise UserError(f"{error}, or leave it out with --set evaluation.baselines=[]") from None
        if config.network == "extractor":
            features = self._new_extractor().channels
            if config.samples <= features:
                raise UserError(f"{self.samples_field} is {config.samples}: the score needs more than {features}")
            return
        reference = Reference(self.dataset, config.batch_size, self.device)
        name = f"{self.samples_field}={config.samples}"
        check_fit(name, self.image_shape, config.samples, reference, self.metric_network, config.metrics)


@contextlib.contextmanager
def stopped_with(pool: concurrent.futures.ProcessPoolExecutor):
    """Where this process is told to stop, its workers are too: each saves a checkpoint first."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        for worker in multiprocessing.active_children():
            worker.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _start_worker(count, threads: int) -> None:
    torch.set_num_threads(threads)
    progress.report_to(count)


def _run_cascade(study: Study, method: str, seed: int) -> None:
    study.cascade(method, seed)
