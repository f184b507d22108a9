"""A study: one profile, one folder, and every network and score in it made when first asked for and found again afterwards.

Each is kept under a hash of all it depends on, so a changed number reruns what depends on it and nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from rddlib.data import ImageDataset, WrongShape, load_dataset
from rddlib.data.latents import latents_of, prompted
from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.latent_space import LatentSpace
from rddlib.diffusion.model_file import provenance
from rddlib.diffusion.samplers import TRAINING_FREE, find_sampler
from rddlib.diffusion.sampling import ddim_sample
from rddlib.diffusion.schedule import make_schedule
from rddlib.distillation.extractor import EXTRACTORS, Extractor
from rddlib.distillation.objectives import Objective
from rddlib.evaluation import (
    SCORES,
    DrawnImages,
    Network,
    Reference,
    check_classes,
    check_fit,
    check_metrics,
    evaluate,
    find_network,
    find_protocol,
    fresh_noise,
    network_of_checkpoint,
    read_record,
    row_of,
    write_record,
)
from rddlib.interop import load_classifier
from rddlib.losses.relations import check_form
from rddlib.methods import LABELS, METHODS, build_objective
from rddlib.study.engines import Outcome, on_this_machine
from rddlib.study.graph import (
    STOCHASTIC,
    Graph,
    Inputs,
    check_adapters,
    check_classes_to_learn,
    check_takes_weight,
    conditional_profile,
    extractor_to_check,
    given_model,
    guided_graph,
    map_of,
    plain_graph,
    space_to_decode,
    temperature_of,
)
from rddlib.study.profiles import Profile
from rddlib.study.stage import MODELS, Stage, Workplace, key_of
from rddlib.training import derive_seed, training_device
from rddlib.training.metrics import check_tracker
from rddlib.utils import progress
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.distributed import agreed, join, locked
from rddlib.utils.errors import UserError, check_known
from rddlib.utils.installation import find_shipped
from rddlib.utils.text import counted, joined, say

COLUMNS = ["method", "steps", "seed", "fid", "pfd", "is", "samples", "seconds"]
GUIDED_COLUMNS = ["method", "steps", "guidance", "sampler", "seed", "fid", "pfd", "is"]


class Arm(NamedTuple):
    """One row of results: who draws, in how many steps, after which seed of the last halvings; in a guided study also with
    which weight w and which sampler."""

    method: str
    steps: int
    seed: int
    guidance: float | None = None
    sampler: str = ""

    @property
    def conditions(self) -> dict:
        """What besides model and steps says how it draws, as its row records it."""
        return {} if self.guidance is None else {"guidance": self.guidance, "sampler": self.sampler}

    @property
    def name(self) -> str:
        """How its files begin."""
        return "-".join(map(str, self if self.conditions else self[:3]))

    @property
    def label(self) -> str:
        said = f"{self.method}, {counted(self.steps)}"
        return f"{said}, w = {self.guidance:g}, {self.sampler}" if self.conditions else said


def csv_of(table: pd.DataFrame) -> str:
    """A table of results as it is written."""
    return table.to_csv(index=False, float_format="%.6g")


class Study:
    """The networks, images and scores of one profile in one folder.

    Args:
        profile: its numbers.
        out: its folder.
        seed: of base model, extractor and halvings (the last halvings, in which the methods compete, take theirs from
            profile.seeds).
        scores: where in its folder scores lie.
        guided: whether it distils guidance; then profile is of `conditional_profile`. Made by `guided_study`.
        judge_seed: of the extractor that scores, where the study's own does; default `seed`.
    """

    def __init__(
        self,
        profile: Profile,
        out: Path,
        seed: int = 0,
        scores: str = "scores",
        guided: bool = False,
        judge_seed: int | None = None,
    ):
        self.profile, self.out, self.seed, self.guided = profile, Path(out), seed, guided
        self.scores, self.judge_seed = self.out / scores, seed if judge_seed is None else judge_seed
        self.device = training_device()
        join()

    def __reduce__(self):
        """Another process makes it again from its numbers, whatever it has loaded here."""
        scores = self.scores.relative_to(self.out).as_posix()
        return type(self), (self.profile, self.out, self.seed, scores, self.guided, self.judge_seed)

    def varied(self, profile: Profile, scores: str) -> "Study":
        """The study of other numbers in the same folder, sharing what does not depend on them; its scores lie apart."""
        other = Study(profile, self.out, self.seed, scores)
        if profile.data == self.profile.data and profile.unet.image_shape == self.profile.unet.image_shape:
            other.dataset = self.dataset
            if profile.evaluation.network == self.profile.evaluation.network != "extractor":
                other.metric_network = self.metric_network
        return other

    # images

    @cached_property
    def dataset(self) -> ImageDataset:
        """All the images that models are trained on and scores are measured against, on the study's device."""
        return self._read("train")

    @cached_property
    def space(self) -> LatentSpace | None:
        """Where a given latent model draws, its prompts the data set's captions; None for models of pixels."""
        space = self._given_space
        return space and prompted(space, self.dataset.class_names)

    @cached_property
    def _given_space(self) -> LatentSpace | None:
        given = self.profile.pretrained
        return given_model(given)[0].space if given.teacher else None

    def split(self, name: str) -> ImageDataset:
        """What models learn from of a split, "train", "extractor" or "test": its images, or their latents."""
        images = self.dataset if name == "train" else self._read(name)
        return latents_of(self._given_space, images, self.device).to(self.device) if self._given_space else images

    def _read(self, split: str) -> ImageDataset:
        try:
            return load_dataset(self.profile.data, split, self.image_shape).to(self.device)
        except WrongShape as error:
            if not self.profile.pretrained.teacher:
                raise
            raise UserError(
                f"{error.fault} by pretrained.teacher: name images of that shape, or have a folder's resized with "
                "data.resize=true"
            ) from error

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self._given_space.image_shape if self._given_space else self.drawn_shape

    @property
    def drawn_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what its models draw: images, or latents."""
        return self.profile.unet.image_shape

    def noise(self, count: int, seed: int = 0) -> Tensor:
        """The same standard normal [count, C, H, W] for every method."""
        generator = torch.Generator().manual_seed(derive_seed(self.profile.evaluation.seed, seed))
        return torch.randn(count, *self.drawn_shape, generator=generator).to(self.device)

    # networks

    @cached_property
    def stages(self) -> Graph:
        """What it trains: one stage for each network."""
        return self._graph(self.seed)

    def _graph(self, seed: int) -> Graph:
        place = Workplace(self.out / "checkpoints", self.profile.run)
        make = guided_graph if self.guided else plain_graph
        return make(Inputs(self.profile, seed, self.split, place, self.space))

    def conditional(self) -> Denoiser:
        """Of a guided study: the class-conditional base model, which classifier-free guidance evaluates twice."""
        return self.stages.conditional.get()

    def base(self) -> Denoiser:
        """The base model, sampled by DDIM with any number of steps; of a guided study stage one, which takes w."""
        return self.stages.base.get()

    def teacher(self, steps: int | None = None) -> Denoiser:
        """The base model progressively distilled (PD) to `steps` steps, default profile.progressive.teacher_steps."""
        return self.stages.teacher(steps).get()

    def extractor(self) -> Extractor:
        """The network whose features are distilled."""
        return self.stages.extractor.get()

    def student(self, method: str, steps: int, seed: int | None = None) -> Denoiser:
        """A student of `steps` steps by a method of rddlib.methods.OBJECTIVES; seed: one of profile.seeds, default the
        first."""
        return self.stages.student(method, steps, self._seed(seed)).get()

    def objective(self, method: str, steps: int, seed: int | None = None) -> Objective:
        """What a student of `steps` steps minimises, with the profile's numbers, queue empty."""
        extractor = self.extractor() if self.profile.method(method).looks else None
        return self.stages.objective(method, steps, self._seed(seed), self.teacher(), extractor)

    def _seed(self, seed: int | None) -> int:
        return self.profile.seeds[0] if seed is None else seed

    def denoiser(self, method: str, steps: int, seed: int | None = None, sampler: str = "") -> Denoiser:
        """Whose network draws `method`'s images in `steps` steps, as Graph.drawer says."""
        return self.stages.drawer(method, steps, self._seed(seed), sampler).get()

    def images(self, method: str, steps: int, noise: Tensor, seed: int | None = None) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] from the given noise (of classes 0, 1, 2, ... in turn where there are any)."""
        denoiser = self.denoiser(method, steps, seed)
        classes = denoiser.num_classes
        y = torch.arange(len(noise), device=noise.device) % classes if classes else None
        sample = find_sampler(method, steps) if method in TRAINING_FREE else ddim_sample
        return self._seen(sample(denoiser, noise, steps, y=y, clip=self.profile.evaluation.clip))

    def _seen(self, drawn: Tensor) -> Tensor:
        """Images of what a model drew."""
        return self.space.decode(drawn) if self.space else drawn

    def guided_images(
        self, method: str, steps: int, noise: Tensor, w: float, y: Tensor, sampler: str = "ddim"
    ) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of the classes y [N] from the given noise, guided by w, of a guided study."""
        return self.sample(self.denoiser(method, steps, None, sampler), noise, steps, w, y, sampler)

    def sample(
        self, denoiser: Denoiser, noise: Tensor, steps: int, w: float, y: Tensor, sampler: str = "ddim"
    ) -> Tensor:
        """As `guided_images`, by a given denoiser; the stochastic sampler adds the study's own noise, always the same."""
        options: dict = {"y": y, "guidance": w, "clip": self.profile.evaluation.clip}
        if sampler == STOCHASTIC:
            seed = self.profile.evaluation.seed
            options["fresh"] = lambda k: fresh_noise(self.drawn_shape, 0, len(noise), seed, k).to(noise.device)
        return self._seen(find_sampler(sampler, steps)(denoiser, noise, steps, **options))

    # scores

    @cached_property
    def judge(self) -> Stage:
        """The extractor that scores, where evaluation.network says so."""
        same = self.judge_seed == self.seed
        return self.stages.extractor if same else self._graph(self.judge_seed).extractor

    @cached_property
    def metric_network(self) -> Network:
        """The network that scores: as profile.evaluation.network says; UserError where it cannot be had."""
        choice = self.profile.evaluation.network
        if choice != "extractor":
            return find_network(choice, self.image_shape)
        self.judge.get()
        return network_of_checkpoint(self.judge.path)

    @property
    def metric(self) -> str:
        """The full name of the FID in the results, which says with which network and on how many samples."""
        return self.metric_network.metric(self.profile.evaluation.samples)

    def stage_of(self, arm: Arm) -> Stage:
        """The stage whose network draws an arm's images."""
        return self.stages.drawer(arm.method, arm.steps, arm.seed, arm.sampler)

    def arms(self) -> list[Arm]:
        """Every arm of the study's results."""
        return guided_arms(self.profile, self.seed) if self.guided else plain_arms(self.profile)

    def lineage(self) -> list[Stage]:
        """All stages that its results need, ancestors first, each once."""
        stages = [stage for arm in self.arms() for stage in self.stage_of(arm).lineage()]
        return list({stage.path: stage for stage in stages}.values())

    def check_arm(self, method: str, steps: int, *, sampler: str = "", classes: Sequence[int] = ()) -> None:
        """Raise UserError where no model of this study draws by `method` in `steps` steps, with this sampler, these
        classes."""
        others = ("teacher", "stage_one") if self.guided else TRAINING_FREE
        self.profile.method(method, "--method", others)
        check_classes(classes, self.profile.unet.num_classes)
        if method in TRAINING_FREE or self.guided:
            find_sampler(sampler or method, steps)
        self.stages.drawer(method, steps, self._seed(None), sampler)

    def at_hand(self, method: str, steps: int) -> bool:
        """Whether a student, with the first of the seeds, needs no training."""
        return self.stages.student(method, steps, self._seed(None)).at_hand

    def score_path(self, arm: Arm) -> Path:
        """Where an arm's score lies, once measured: named by a hash of all that it depends on."""
        evaluation = asdict(self.profile.evaluation)
        config = {name: evaluation[name] for name in ("samples", "seed", "clip", "metrics", "protocol")}
        own = self.profile.evaluation.network == "extractor"
        network = self.judge.key if own else self.metric_network.sha256
        stage = self.stage_of(arm)
        facts = {"model": f"{stage.key}{stage.mark}", "steps": arm.steps, "evaluation": config, "network": network}
        return self.scores / f"{arm.name}-{key_of(facts | arm.conditions)}.json"

    def drawn(self, arm: Arm, samples: int = 0, noise: int | None = None, classes: Sequence[int] = ()) -> DrawnImages:
        """An arm's images to score, drawn from common noise; samples, noise (its seed): default the profile's; classes: the
        labels to draw, default all."""
        config, stage = self.profile.evaluation, self.stage_of(arm)
        denoiser = stage.get()
        return DrawnImages(
            denoiser,
            samples or config.samples,
            arm.steps,
            seed=config.seed if noise is None else noise,
            clip=config.clip,
            shape=self.drawn_shape,
            device=self.device,
            name=f"{arm.label}, seed {arm.seed}",
            sampler=arm.sampler or (arm.method if arm.method in TRAINING_FREE else "ddim"),
            made=provenance(denoiser, stage.recorded()),
            guidance=arm.guidance,
            classes=classes,
        )

    def _measure(self, arm: Arm) -> dict:
        config, images = self.profile.evaluation, self.drawn(arm)
        result = evaluate(
            images,
            self.dataset,
            network=self.metric_network,
            metrics=config.metrics,
            protocol=config.protocol,
            batch_size=min(config.batch_size, config.samples),
            folder=self.scores,
            device=self.device,
        )
        lineage = self.stage_of(arm._replace(seed=self._seed(None))).key
        columns = {"method": arm.method, "steps": arm.steps, "seed": arm.seed, "lineage": lineage}
        return row_of(result, **columns, **arm.conditions)

    def measured(self, arm: Arm) -> dict:
        """{"row", "receipt"} of one arm: trained and measured now, or read from its file.

        row: COLUMNS, as far as profile.evaluation.metrics asks for them, and "lineage", the same for arms that differ in
        the seed alone; receipt: the fields of rddlib.evaluation.Receipt.
        """
        path = self.score_path(arm)
        with locked(path):
            if not agreed(path.exists()):
                write_record(path, self._shipped_score(arm) or self._measure(arm))
        return read_record(path)

    def _shipped_score(self, arm: Arm) -> dict | None:
        """The record of this score from the package, where it has one of the very weights and the run takes such."""
        file = self.shipped_score_file(arm)
        if self.profile.run.shipped == "none" or file is None:
            return None
        try:
            record = read_record(file)
        except UserError:
            say(f"{arm.label}: {file} is damaged, so it is measured")
            return None
        if record["receipt"].get("weights_sha256") != self.drawn(arm).provenance["weights_sha256"]:
            return None
        return record

    def shipped_score_file(self, arm: Arm) -> Path | None:
        """Where the package has this score, of the same key; None where it has none."""
        return find_shipped(f"{MODELS}/scores/{self.score_path(arm).name}")

    # all of it

    def cascade(self, method: str, seed: int) -> list[dict]:
        """Train (except samplers, which need no more) and score one method's arms of one seed; rows of results."""
        arms = [arm for arm in self.arms() if (arm.method, arm.seed) == (method, seed)]
        for arm in arms:
            self.stage_of(arm).get()
        return [self.measured(arm)["row"] for arm in arms]

    def train_all(self) -> None:
        """Train and score every cascade, profile.at_once at a time, each in a process of its own with its share of cores."""
        waiting = {(arm.method, arm.seed) for arm in self.arms() if not self.score_path(arm).exists()}
        if not waiting:
            return
        if self.profile.run.shipped != "none" and any(map(self.shipped_score_file, self.arms())):
            say("scores that come with rddlib are taken for the very same weights (run.shipped=none measures all)")
        methods = METHODS | self.profile.objectives
        self.teacher()
        if any(methods[method].looks for method, _ in waiting):
            self.extractor()
        tasks = [Cascade(self, method, seed) for method, seed in sorted(waiting)]
        most = max(task.iterations for task in tasks)  # samplers have none and may take as long
        tasks.sort(key=lambda task: (-(task.iterations or most), -methods[task.method].cost))  # the longest first
        for stage in {stage.path: stage for task in tasks for stage in task.missing if stage.ships}.values():
            stage.get()  # here, where it is said in order
        jobs = min(self.profile.at_once, len(tasks))
        if jobs == 1:
            for task in tasks:
                task.perform()
            return

        with progress.Bar(_told(tasks, jobs), sum(task.iterations for task in tasks)) as bar:

            def report(outcome: Outcome) -> None:
                if outcome.failed:  # those that run are finished, no other begins
                    raise UserError(f"{outcome.task.label}: {outcome.said}")
                bar.say(f"{outcome.task.label}: {outcome.said} ({outcome.seconds:.0f} s)")

            on_this_machine(jobs, bar.count)(tasks, report)

    def results(self) -> pd.DataFrame:
        """Every arm's score, as a table with COLUMNS (guided: GUIDED_COLUMNS); what is missing is trained. A plain study
        writes it to results.csv too."""
        self.train_all()
        table = self.scored()
        if not self.guided:
            write_atomically(self.out / "results.csv", csv_of(table))
        return table

    def scored(self) -> pd.DataFrame:
        """The rows of results that have been measured so far."""
        rows = [self.measured(arm)["row"] for arm in self.arms() if self.score_path(arm).exists()]
        columns = GUIDED_COLUMNS if self.guided else COLUMNS
        more = [name for name in SCORES if name not in columns and any(name in row for row in rows)]
        return pd.DataFrame(rows, columns=columns + more)

    # checks

    def check(self) -> None:
        """Raise UserError for numbers that each are possible but do not fit the data set or each other."""
        p, known = self.profile, self.dataset.num_classes
        check_tracker(p.run.tracker)
        classes = p.unet.num_classes
        if p.pretrained.teacher and classes not in (0, known):
            raise UserError(
                f"pretrained.teacher is conditional on {counted(classes, 'class')} and {self.dataset.name} has "
                f"{known or 'no labels'}: give it images with a folder for each of its classes"
            )
        if p.pretrained.teacher and classes:
            self._check_class_names()
        if wrong := [k for k in p.extractor.classes if k >= known]:
            raise UserError(
                f"extractor.classes has {wrong[0]}, {self.dataset.name} has classes 0 to {known - 1}: leave it out"
            )
        if classes not in (0, known):
            raise UserError(f"unet.num_classes is {classes}, {self.dataset.name} has {known}: set it to {known} or 0")
        check_adapters(p)
        untrained = extractor_to_check(p, known)
        for name in dict.fromkeys([*p.methods, *p.guidance.objectives]):
            self.check_method(name, untrained)
        if p.pretrained.extractor:
            classifier, record = load_classifier(p.pretrained.extractor)
            learnt = record.get("space", {}).get("sha256")
            if learnt and (not self._given_space or learnt != self._given_space.sha256):
                raise UserError(
                    "pretrained.extractor learnt latents of another autoencoder than pretrained.teacher's: train it anew with "
                    "rdd extractor, or name a classifier of images"
                )
            found, own = classifier.image_channels, (self.image_shape if space_to_decode(p) else self.drawn_shape)[0]
            if found != own:
                raise UserError(
                    f"pretrained.extractor takes images of {counted(found, 'channel')}, these have {own}: name another "
                    "classifier"
                )

    def _check_class_names(self) -> None:
        """Raise UserError where the given teacher's classes are others, or in another order, than the data set's."""
        _, info = given_model(self.profile.pretrained)
        theirs, own = info.get("class_names"), list(self.dataset.class_names)
        if theirs and own and theirs != own:
            k = next(k for k in range(len(own)) if theirs[k : k + 1] != own[k : k + 1])
            said = f"class {k} is {joined(theirs[k : k + 1])} to pretrained.teacher and {own[k]} in {self.dataset.name}"
            if not self._given_space:
                raise UserError(f"{said}: give its folders the teacher's names")
            say(f"{said}: classes are matched by number")  # id2label's names are words, ImageNet's folders' are not
        if not theirs and own != sorted(own):
            say(
                f"pretrained.teacher does not say which its classes are; here they are numbered {', '.join(own[:4])}, .. in "
                "natural order, while torchvision's ImageFolder would sort them as text"
            )

    def check_extractor(self) -> None:
        """Raise UserError where the extractor would have to be trained and the images have no classes to learn."""
        if self.stages.extractor.config:
            check_classes_to_learn(self.dataset, self.profile.extractor.classes)

    def check_method(self, name: str, extractor: Extractor | None = None, option: str = "method") -> None:
        """Raise UserError for an unknown method, and where it cannot be built: something that it needs is missing, or the
        extractor (an untrained one, by default the profile's) cannot give it."""
        p, method = self.profile, self.profile.method(name, option)
        method.needs()
        if method.looks:
            check_form(p.loss.impl, self.device)
        schedule = make_schedule(p.base.schedule, p.base.schedule_offset)
        seen = (extractor or extractor_to_check(p, self.dataset.num_classes)) if method.looks else None
        try:
            with torch.device("meta"):
                for steps in p.student_steps:
                    objective = build_objective(method, p.loss, temperature_of(p, steps), schedule, seen, steps)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        if getattr(objective, "queue", None) is None:
            return
        height, width = map_of(seen, self.drawn_shape).shape[2:]
        candidates = height * width * (p.distill.train.batch_size if "queue_per_batch" in p.loss.released else 1)
        if p.loss.per_image > candidates:
            raise UserError(
                f"loss.per_image is {p.loss.per_image}: the extractor's map offers {counted(candidates, 'pixel')}, lower it"
            )

    def check_scoring(self) -> None:
        """Raise UserError where results could not be scored in the end."""
        config = self.profile.evaluation
        find_protocol(config.protocol)
        for name, steps in config.baseline_arms:
            try:
                check_known("evaluation.baselines", name, TRAINING_FREE)
                find_sampler(name, steps)
            except UserError as error:
                raise UserError(f"{error}, or leave it out with --set evaluation.baselines=[]") from None
        field = "guidance.samples" if self.guided else "evaluation.samples"
        check_metrics(config.metrics)
        if "agree" in config.metrics and not (
            self.profile.unet.num_classes or (self.space and self.space.takes_prompts)
        ):
            raise UserError("evaluation.metrics: agree is for images drawn of classes or prompts, leave it out")
        if config.network == "extractor":
            if (name := self.profile.extractor.name) not in EXTRACTORS:
                raise UserError(
                    f"evaluation.network=extractor: only a classifier of the data set scores, not {name}; name another network"
                )
            self.check_extractor()
            if self._given_space and not space_to_decode(self.profile):
                raise UserError(
                    "evaluation.network=extractor looks at latents, and images are scored: name another network"
                )
            features = extractor_to_check(self.profile, self.dataset.num_classes).channels
            if config.samples <= features:
                raise UserError(f"{field} is {config.samples}: the score needs more than {features}")
            if len(self.dataset) <= features:
                raise UserError(
                    f"{self.dataset.name}: {counted(len(self.dataset), 'image')} cannot fill a covariance of {features} "
                    "features: give more, name a smaller extractor, or let rdd distill do without scores"
                )
            return
        reference, what = Reference(self.dataset, config.batch_size, self.device), f"{field}={config.samples}"
        check_fit(what, self.image_shape, config.samples, reference, self.metric_network, config.metrics)


def plain_arms(profile: Profile) -> list[Arm]:
    """Every arm of a study's results: DDIM and the baselines, the teacher, and each method's students of each seed."""
    first, teacher = profile.seeds[0], profile.progressive.teacher_steps
    ddim = [Arm("ddim", steps, first) for steps in (profile.base.steps, teacher, *profile.student_steps)]
    baselines = [Arm(name, steps, first) for name, steps in profile.evaluation.baseline_arms]
    students = [Arm(m, n, s) for m in profile.methods for s in profile.seeds for n in profile.student_steps]
    return list(dict.fromkeys([*ddim, Arm("pd", teacher, first), *baselines, *students]))


def guided_arms(profile: Profile, seed: int) -> list[Arm]:
    """Every arm of a guided study's results: at each weight w teacher and stage one at the steps that stage two starts from,
    and its students at teacher_steps (by pd), .., 1, deterministic and, but for 1, stochastic."""
    g, top, middle = profile.guidance, profile.base.steps, profile.progressive.teacher_steps
    rows = [("teacher", top, "ddim"), ("stage_one", top, "ddim")]
    for method in g.objectives:
        for steps in ((middle,) if method == "pd" and middle < top else ()) + profile.student_steps:
            rows += [(method, steps, sampler) for sampler in (("ddim", STOCHASTIC) if steps > 1 else ("ddim",))]
    return [Arm(method, steps, seed, w, sampler) for method, steps, sampler in rows for w in g.at]


def guided_study(study: Study, seed: int | None = None) -> Study:
    """The study that distils guidance, in the folder of `study`, with its data and metric network.

    seed: one of study.profile.seeds (default the first); added to the study's own, it is that of every stage, the
    conditional base model included. Raises UserError for images without classes.
    """
    check_takes_weight(study.profile)
    profile = conditional_profile(study.profile, study.dataset.num_classes)
    seed = study.seed + (study.profile.seeds[0] if seed is None else seed)
    guided = Study(replace(profile, seeds=(seed,)), study.out, seed, "guidance", True, study.seed)
    guided.dataset = study.dataset
    guided._given_space = study._given_space
    return guided


@dataclass(frozen=True)
class Cascade:
    """A task for an engine: one method's students of one seed, trained and scored."""

    study: Study
    method: str
    seed: int

    @property
    def label(self) -> str:
        return f"{LABELS[self.method]}, seed {self.seed}"

    @property
    def missing(self) -> list[Stage]:
        """What it trains or takes."""
        arms = [arm for arm in self.study.arms() if (arm.method, arm.seed) == (self.method, self.seed)]
        return list({stage.path: stage for arm in arms for stage in self.study.stage_of(arm).missing()}.values())

    @property
    def iterations(self) -> int:
        """Of all that it trains; teacher and extractor are there already."""
        shared = {stage.path for stage in self.study.stages.teacher().lineage()}
        own = [stage for stage in self.missing if stage.parents and stage.path not in shared]
        return sum(stage.iterations for stage in own if not stage.ships)

    def perform(self) -> str:
        rows = self.study.cascade(self.method, self.seed)
        if self.study.guided:  # a row for each weight, number of steps and sampler
            best = min(rows, key=lambda row: row["fid"])
            return f"lowest FID {best['fid']:.3g} ({counted(best['steps'])}, w = {best['guidance']:g})"
        return fids_by_steps((row["steps"], row["fid"]) for row in rows)


def fids_by_steps(scores: Iterable[tuple[int, float]]) -> str:
    """FID 1.89 (4 steps), 2.42 (2), 3.96 (1): scores in a line; each is (steps, FID)."""
    return "FID " + ", ".join(f"{fid:.3g} ({n if k else counted(n)})" for k, (n, fid) in enumerate(scores))


def _told(tasks: Sequence[Cascade], jobs: int) -> str:
    """What these train, in a few words: "students of 4, 2, 1 steps by 5 methods, 2 at a time"."""
    study, methods = tasks[0].study, {task.method for task in tasks if task.iterations}
    seeds = len({task.seed for task in tasks})
    students = [arm for arm in study.arms() if arm.method in methods and arm.steps in study.profile.student_steps]
    steps = dict.fromkeys(arm.steps for arm in students if not study.stage_of(arm).at_hand)
    what = f"students of {joined(steps)} step{'s' * (max(steps, default=2) > 1)} by {counted(len(methods), 'method')}"
    what = f"{'guided ' * study.guided}{what}" if methods else "scores"
    return f"{what}{f' with {seeds} seeds' * (seeds > 1)}, {jobs} at a time"
