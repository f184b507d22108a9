"""The study of a profile's section `guidance`, in the folder of the profile's own study.

conditional() is the teacher, evaluated twice a step; base() is stage one, one network that takes w; from there on all is as
in any study, with w drawn for each image: teacher(n) halves it by pd, student(method, n) by any objective, and
stochastic(method, n) is for the stochastic sampler.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from torch import Tensor

from rddlib.diffusion.denoiser import Denoiser
from rddlib.diffusion.samplers import find_sampler
from rddlib.distillation.train import distill, distill_guidance, takes_guidance
from rddlib.evaluation import DrawnImages, Network, check_classes, fresh_noise
from rddlib.study.assembly import conditional_profile
from rddlib.study.profiles import METHODS, Profile, as_dict
from rddlib.study.study import Study, key_of
from rddlib.training import TrainConfig, derive_seed
from rddlib.utils.errors import UserError

GUIDED_METHODS = ("teacher", "stage_one", *METHODS)
GUIDED_COLUMNS = ["method", "steps", "guidance", "sampler", "seed", "fid", "pfd", "is"]
STOCHASTIC = "stochastic"


class GuidedStudy(Study):
    """profile: of conditional_profile, with one seed: every stage, the conditional base model included, is
    trained with `seed`; judge: the seed of the study whose metric network scores, where that is trained too. Made by
    `guided_study`. Arms are (method, steps, seed, w, sampler)."""

    columns = GUIDED_COLUMNS
    samples_field = "guidance.samples"

    def __init__(self, profile: Profile, out: Path, seed: int = 0, scores: str = "guidance", judge: int | None = None):
        super().__init__(replace(profile, seeds=(seed,)), out, seed, scores)
        self._judge = Study(profile, out, seed if judge is None else judge)

    def __reduce__(self):
        kind, arguments = super().__reduce__()
        return kind, (*arguments, self._judge.seed)

    @cached_property
    def metric_network(self) -> Network:
        """One for all seeds."""
        return self._judge.metric_network

    @cached_property
    def _network_key(self) -> str:
        return self._judge._network_key

    # networks

    def conditional(self) -> Denoiser:
        """The class-conditional base model, trained with label dropout: what classifier-free guidance evaluates twice."""
        return self._trained_base(super()._base_facts())

    def _base_facts(self) -> dict:
        g = self.profile.guidance
        return {
            "parent": key_of(super()._base_facts()),
            "guidance": list(g.weights),
            "train": as_dict(g.train),
            "seed": self.seed,
        }

    def base(self) -> Denoiser:
        """Stage one: the network that takes w and learns what guidance makes of two evaluations."""
        p, config = self.profile, self.profile.guidance.train

        def make(files: Path):
            teacher = self.conditional()
            student = self._seeded(lambda: takes_guidance(teacher, p.guidance.weights), 9)
            return self._timed(
                config,
                lambda: distill_guidance(
                    teacher,
                    student,
                    self.dataset,
                    config,
                    derive_seed(self.seed, 10),
                    snr_max=p.base.snr_max or None,
                    files=files,
                    run=p.run,
                    preview_steps=min(p.base.steps, 32),
                    weight=p.base.weight,
                ),
            )

        return self._denoiser(self._made(self._name_of("base"), self._base_facts(), make))

    def _stochastic_facts(self, method: str, steps: int, seed: int) -> dict:
        if steps == 1:
            raise UserError("one stochastic step is a deterministic one: there is no student of its own")
        parent = self._facts_of(*super().model(method, steps, seed))
        return {
            "method": method,
            "steps": steps,
            "seed": seed,
            "stochastic": True,
            "parent": key_of(parent),
            "train": as_dict(self.training(STOCHASTIC)),
            **self._objective_facts(method, steps),
        }

    def stochastic(self, method: str, steps: int, seed: int | None = None) -> Denoiser:
        """The student for `stochastic_sample` of `steps` steps: from the deterministic one of as many, by the same objective.

        Raises UserError for one step, where both samplers are the same, and for steps that no such student has.
        """
        seed = self.seed if seed is None else seed
        facts, config, loss = self._stochastic_facts(method, steps, seed), self.training(STOCHASTIC), self.profile.loss

        def make(files: Path):
            teacher = super(GuidedStudy, self).denoiser(method, steps, seed)
            objective = self.objective(method, steps, seed)
            return self._timed(
                config,
                lambda: distill(
                    teacher,
                    self.dataset,
                    steps,
                    objective,
                    config,
                    derive_seed(seed, 11, steps),
                    files=files,
                    run=self.profile.run,
                    label=f"{method.upper()} {steps} stochastic steps",
                    released=loss.released,
                    watch=loss.watch,
                    debug=loss.debug,
                    stochastic=True,
                ),
            )

        return self._denoiser(self._made(self._name_of(STOCHASTIC, method, steps, seed), facts, make))

    # artefacts by name, as in Study

    def _facts_of(self, stage: str, *arguments) -> dict:
        own = {"conditional": super()._base_facts, STOCHASTIC: self._stochastic_facts}
        return own[stage](*arguments) if stage in own else super()._facts_of(stage, *arguments)

    def _name_of(self, stage: str, *arguments) -> str:
        if stage in ("conditional", "extractor"):  # no guidance in them: any study's
            return "base" if stage == "conditional" else stage
        if stage == STOCHASTIC:
            return f"{self._name_of('student', *arguments)}-{STOCHASTIC}"
        name = super()._name_of(stage, *arguments)
        return f"guided-{'stage-one' if name == 'base' else name}"

    def training(self, stage: str, *arguments) -> TrainConfig:
        p = self.profile
        if stage == STOCHASTIC:
            return replace(p.distill.train, iterations=p.guidance.stochastic)
        own = {"conditional": p.base.train, "base": p.guidance.train}
        return own[stage] if stage in own else super().training(stage, *arguments)

    def make(self, stage: str, *arguments) -> None:
        own = {"conditional": self.conditional, STOCHASTIC: self.stochastic}
        return own[stage](*arguments) if stage in own else super().make(stage, *arguments)

    # who draws

    def model(self, method: str, steps: int, seed: int, w: float = 0.0, sampler: str = "ddim") -> tuple:
        """Which artefact draws an arm's images, as arguments of `facts`; w changes none."""
        if method in ("teacher", "stage_one"):
            return ("conditional",) if method == "teacher" else ("base",)
        if sampler == STOCHASTIC and steps > 1:
            return (STOCHASTIC, method, steps, seed)
        return super().model(method, steps, seed)

    def denoiser(
        self, method: str, steps: int, seed: int | None = None, w: float = 0.0, sampler: str = "ddim"
    ) -> Denoiser:
        """Who draws `method`'s images: of GUIDED_METHODS, "teacher" and "stage_one" in any number of steps."""
        stage, *arguments = self.model(method, steps, self.seed if seed is None else seed, w, sampler)
        return getattr(self, stage)(*arguments)

    def check_arm(self, method: str, steps: int, *, sampler: str = "ddim", classes: Sequence[int] = ()) -> None:
        """Raise UserError where no model of this study draws by `method` in `steps` steps, with this sampler, these classes."""
        if method not in GUIDED_METHODS:
            raise UserError(f"unknown --method {method} with guidance: known are {', '.join(GUIDED_METHODS)}")
        find_sampler(sampler, steps)
        check_classes(classes, self.profile.unet.num_classes)
        self._facts_of(*self.model(method, steps, self.seed, 0.0, sampler))

    def guided_images(
        self, method: str, steps: int, noise: Tensor, w: float, y: Tensor, sampler: str = "ddim"
    ) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of the classes y [N] from the given noise, guided by w."""
        return self.sample(self.denoiser(method, steps, None, w, sampler), noise, steps, w, y, sampler)

    def sample(
        self, denoiser: Denoiser, noise: Tensor, steps: int, w: float, y: Tensor, sampler: str = "ddim"
    ) -> Tensor:
        """As `guided_images`, of a given denoiser; the stochastic sampler adds the study's own noise, always the same."""
        options: dict = {"y": y, "guidance": w, "clip": self.profile.evaluation.clip}
        if sampler == STOCHASTIC:
            seed = self.profile.evaluation.seed
            options["fresh"] = lambda k: fresh_noise(self.image_shape, 0, len(noise), seed, k).to(noise.device)
        return find_sampler(sampler, steps)(denoiser, noise, steps, **options)

    def lineage(self, method: str, steps: int, seed: int, w: float = 0.0, sampler: str = "ddim") -> list[tuple]:
        """The artefacts that an arm needs, ancestors first, as arguments of `facts`."""
        if method in ("teacher", "stage_one"):
            return [("conditional",), ("base",)][: 1 + (method == "stage_one")]
        own = self.model(method, steps, seed, w, sampler)
        return [("conditional",), *super().lineage(method, steps, seed), *([own] if own[0] == STOCHASTIC else [])]

    # scores

    def results(self) -> pd.DataFrame:
        """Every arm's score, with GUIDED_COLUMNS; what is missing is trained. `guided_results` writes those of all seeds."""
        self.train_all()
        return self.scored()

    def arms(self) -> list[tuple[str, int, int, float, str]]:
        """Every (method, steps, seed, w, sampler) of the study's results: at each weight, teacher and stage one at the steps
        that stage two starts from; its students at teacher_steps (by pd), .., 1, deterministic and, but for 1, stochastic."""
        p, g = self.profile, self.profile.guidance
        top, middle = p.base.steps, p.progressive.teacher_steps
        rows = [("teacher", top, "ddim"), ("stage_one", top, "ddim")]
        for method in g.objectives:
            for steps in ((middle,) if method == "pd" and middle < top else ()) + p.student_steps:
                rows += [(method, steps, sampler) for sampler in (("ddim", STOCHASTIC) if steps > 1 else ("ddim",))]
        return [(method, steps, self.seed, w, sampler) for method, steps, sampler in rows for w in g.at]

    def _conditions(self, method: str, steps: int, seed: int, w: float, sampler: str) -> dict:
        return {"guidance": w, "sampler": sampler}

    def drawn(self, *arm, **options) -> DrawnImages:
        """An arm's images to score; options: of Study.drawn."""
        method, steps, seed, w, sampler = arm
        images = super().drawn(*arm, **{"guidance": w, "sampler": sampler, **options})
        images.name = f"{method}, {steps} step{'s' * (steps > 1)}, w = {w:g}, {sampler}, seed {seed}"
        return images

    def _iterations(self, method: str) -> int:
        stochastic = {arm[:3] for arm in self.arms() if arm[0] == method and arm[4] == STOCHASTIC}
        return super()._iterations(method) + len(stochastic) * self.profile.guidance.stochastic


def guided_study(study: Study, seed: int | None = None) -> GuidedStudy:
    """The study that distils guidance, in the folder of `study`, with its data and extractor.

    seed: one of study.profile.seeds (default the first); added to the study's own, it is that of every stage. Raises
    UserError for images without classes.
    """
    if study.profile.pretrained.teacher:
        raise UserError(
            "pretrained.teacher is distilled as it is: guidance has a base model of its own, so leave one of them out"
        )
    profile = conditional_profile(study.profile, study.dataset.num_classes)
    seed = study.profile.seeds[0] if seed is None else seed
    guided = GuidedStudy(profile, study.out, study.seed + seed, judge=study.seed)
    guided.dataset, guided._judge = study.dataset, study
    return guided
