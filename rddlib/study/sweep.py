"""Ablations as runs: settings times seeds, each keyed by all that its numbers depend on, and the tables they become.

Everything lies in a study's folder: models and scores beside the study's own, which they share, tables in ablations/.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import rddlib
from rddlib.distillation.label_free import TEACHER
from rddlib.evaluation import read_record
from rddlib.study.ablations import Ablation, Setting
from rddlib.study.entropy import entropy_path, entropy_record
from rddlib.study.profiles import changed
from rddlib.study.stage import Stage, key_of
from rddlib.study.study import Arm, Study, csv_of, fids_by_steps
from rddlib.utils.checkpoint import read_json, write_atomically
from rddlib.utils.errors import UserError

COLUMNS = [
    *("ablation", "setting", "series", "x", "method", "seed", "steps"),  # what was measured
    *("fid", "pfd", "is", "t", "entropy", "samples"),  # its scores
    *("iterations", "batch", "train_seconds", "peak_mib"),  # what its training took
    "record",
]
ABLATIONS_FOLDER = "ablations"
SCORES_APART = f"{ABLATIONS_FOLDER}/scores"  # of changed numbers: rdd report shows the study's own alone
VERSION_FILE = "sweep.json"


@dataclass(frozen=True)
class Run:
    """One setting with one seed, as a task: its cascade down to the last of `steps`, scored at each of them.

    study: of the setting's numbers; measures: "scores" or "entropy". Runs of the same `key` are the same, whichever ablations
    ask for them.
    """

    study: Study
    method: str
    steps: tuple[int, ...]
    seed: int
    measures: str = "scores"
    label: str = ""

    @property
    def arms(self) -> list[Arm]:
        return [Arm(self.method, steps, self.seed) for steps in self.steps]

    @property
    def paths(self) -> list[Path]:
        """The files of its numbers."""
        path = entropy_path if self.measures == "entropy" else Study.score_path
        return [path(self.study, arm) for arm in self.arms]

    @cached_property
    def key(self) -> str:
        return key_of({"files": [path.name for path in self.paths]})

    @property
    def done(self) -> bool:
        return all(path.exists() for path in self.paths)

    def missing(self) -> list[Stage]:
        """The stages that it needs and that are not there, ancestors first."""
        stages = [stage for arm in self.arms for stage in self.study.stage_of(arm).missing()]
        extractor = self.study.stages.extractor.missing() if self.measures == "entropy" else []
        return list(dict.fromkeys(stages + extractor))

    def perform(self) -> str:
        """Train and measure what is missing; in a few words what came out."""
        if self.measures == "entropy":
            last = [entropy_record(self.study, arm)["row"]["entropy"][-1] for arm in self.arms]
            return "last entropies " + ", ".join(f"{value:.3f}" for value in last)
        return fids_by_steps((arm.steps, self.study.measured(arm)["row"]["fid"]) for arm in self.arms)


@dataclass(frozen=True)
class Ancestor:
    """A study's teacher or extractor that several runs need, as a task to be done before them."""

    study: Study
    kind: str
    label: str = ""

    def stage(self) -> Stage:
        return self.study.stages.extractor if self.kind == "extractor" else self.study.stages.teacher()

    def perform(self) -> str:
        self.stage().get()
        return "trained"


class Point(NamedTuple):
    """A setting of an ablation with one of the seeds, and the run that measures it."""

    ablation: Ablation
    setting: Setting
    run: Run


class Sweep:
    """study: whose numbers the settings change and whose folder is used; seeds: of the last halvings; costs: seconds of an
    iteration by method, where an ablation asks for them."""

    def __init__(
        self,
        study: Study,
        ablations: Sequence[Ablation],
        seeds: Sequence[int],
        costs: Mapping[str, float] | None = None,
    ):
        if not seeds or not ablations:
            raise UserError("there is nothing to run: give at least one ablation and --seeds 1")
        if study.profile.pretrained.teacher or study.profile.pretrained.extractor:
            raise UserError(
                "ablations vary what a given model fixes: leave pretrained.teacher and pretrained.extractor out"
            )
        self.base, self.ablations, self.seeds = study, list(ablations), list(seeds)
        self.costs, self._studies = costs, {}
        self.folder = study.out / ABLATIONS_FOLDER

    # expansion

    @cached_property
    def points(self) -> list[Point]:
        """Every setting with every seed, in order. Raises UserError where a setting does not fit the profile."""
        return [
            self._point(ablation, setting, seed)
            for ablation in self.ablations
            for setting in ablation.settings(self.base.profile, self.costs)
            for seed in self.seeds
        ]

    def _point(self, ablation: Ablation, setting: Setting, seed: int) -> Point:
        study, label = self._study(setting), f"{ablation.name}: {setting.name}, seed {seed}"
        self._check(study, ablation, setting)
        if study.profile.evaluation.network == "extractor" and study.judge.key != self.base.judge.key:
            raise UserError(
                f"{label} changes the extractor, which scores here too: name another evaluation.network to compare"
            )
        steps = study.profile.student_steps if ablation.whole else study.profile.student_steps[:1]
        if ablation.measures == "entropy" and setting.method in ("teacher", "pd"):
            steps = (study.profile.progressive.teacher_steps, *steps)
        run = Run(study, setting.method, steps, seed, ablation.measures, label)
        if study is not self.base and "sums" not in setting.changes:
            own = replace(run, study=self.base)  # what the change does not touch has the study's own numbers
            run = own if own.key == run.key else run
        if run.study is self.base and seed not in self.base.profile.seeds:  # the study's tables are of its own seeds
            run = replace(run, study=self._apart)
        return Point(ablation, setting, run)

    def _study(self, setting: Setting) -> Study:
        changes = tuple(setting.changes.items())
        if changes not in self._studies:
            profile = changed(self.base.profile, dict(setting.changes))
            same = profile == self.base.profile
            self._studies[changes] = self.base if same else self.base.varied(profile, SCORES_APART)
            self._studies[changes].check()
        return self._studies[changes]

    def _check(self, study: Study, ablation: Ablation, setting: Setting) -> None:
        """Raise UserError where the ablation needs class predictions and the extractor makes none."""
        if study.profile.extractor.name != TEACHER:
            return
        if ablation.measures == "entropy":
            raise UserError(
                f"{ablation.name} measures class predictions, which {TEACHER}'s features are not: leave it out"
            )
        if setting.method in study.profile.objectives:
            study.check_method(setting.method)

    @cached_property
    def _apart(self) -> Study:
        """The study itself, but for where its scores lie."""
        return self.base.varied(self.base.profile, SCORES_APART)

    @cached_property
    def runs(self) -> dict[str, Run]:
        """{key: run}, each once."""
        found: dict[str, Run] = {}
        for point in self.points:
            found.setdefault(point.run.key, point.run)
        return found

    def waiting(self) -> dict[str, Run]:
        """The runs of `runs` that are not done yet."""
        return {key: run for key, run in self.runs.items() if not run.done}

    def missing(self, runs: Iterable[Run]) -> dict[Path, tuple[Run, Stage]]:
        """{path: (a run that needs it, stage)} of what these runs need and is not trained, ancestors first."""
        found: dict[Path, tuple[Run, Stage]] = {}
        for run in runs:
            for stage in run.missing():
                found.setdefault(stage.path, (run, stage))
        return found

    def ancestors(self, runs: Iterable[Run]) -> list[Ancestor]:
        """The teachers and extractors among the missing, for runs to share: what a teacher comes from is made with it."""
        wanted = [
            (Ancestor(run.study, kind, f"{kind} for {run.label}"), stage)
            for run, stage in self.missing(runs).values()
            for kind in ("extractor", "teacher")
        ]
        return [ancestor for ancestor, stage in wanted if ancestor.stage() is stage]

    def needing(self, ancestor: Ancestor, runs: Iterable[Run]) -> list[Run]:
        """Those of the runs that need this stage."""
        path = ancestor.stage().path
        return [run for run in runs if path in {stage.path for stage in run.missing()}]

    # results

    def widened(self) -> "Sweep":
        """With the seeds that its tables have already, so that what was measured stays in them."""
        seeds = set(self.seeds)
        for table in (self.folder / f"{ablation.files}.csv" for ablation in self.ablations):
            with contextlib.suppress(OSError, ValueError, KeyError):  # none yet, or none of ours
                seeds |= {int(seed) for seed in pd.read_csv(table)["seed"]}
        return Sweep(self.base, self.ablations, sorted(seeds), self.costs)

    def _measured(self, ablation: str) -> list[Point]:
        return [point for point in self.points if ablation in ("", point.ablation.name) and point.run.done]

    def table(self, ablation: str = "") -> pd.DataFrame:
        """What has been measured so far, of one ablation or all, tidy, with COLUMNS: a row for each setting, seed and number
        of steps; for entropies also for each time t."""
        return pd.DataFrame([row for point in self._measured(ablation) for row in self._rows(point)], columns=COLUMNS)

    def _rows(self, point: Point) -> list[dict]:
        run, setting = point.run, point.setting
        rows = []
        for steps, path in zip(run.steps, run.paths, strict=True):
            row = {
                "ablation": point.ablation.files,
                "setting": setting.name,
                "series": setting.series,
                "x": setting.x,
                "method": setting.method,
                "seed": run.seed,
                "steps": steps,
                "record": path.stem,
                **_training(run, steps),
            }
            scores = read_record(path)["row"]
            if run.measures == "entropy":
                row["samples"], times = scores["samples"], [(steps - k) / steps for k in range(steps)]
                seen = zip(times, scores["entropy"], strict=True)
                rows += [{**row, "t": t, "entropy": value} for t, value in seen]
            else:
                rows.append(row | {name: scores[name] for name in ("fid", "pfd", "is", "samples") if name in scores})
        return rows

    def receipts(self, ablation: str = "") -> dict[str, dict]:
        """{record: receipt} of the rows in that table."""
        paths = {path for point in self._measured(ablation) for path in point.run.paths}
        return {path.stem: read_record(path)["receipt"] for path in sorted(paths)}

    def write(self, name: str, ablation: str = "") -> Path:
        """The table as NAME.csv and its receipts as NAME_receipts.json in ablations/; returns the table's path."""
        path, receipts = self.folder / f"{name}.csv", self.receipts(ablation)
        write_atomically(path, csv_of(self.table(ablation)))
        write_atomically(path.with_name(f"{name}_receipts.json"), json.dumps(receipts, indent=1) + "\n")
        return path


def _training(run: Run, steps: int) -> dict:
    """What the halvings from the teacher to this student took."""
    study = run.study
    if run.method not in study.profile.objectives:
        return {}
    shared = {*study.stages.teacher().lineage(), study.stages.extractor}
    lineage = study.stage_of(Arm(run.method, steps, run.seed)).lineage()
    if not (stages := [stage for stage in lineage if stage not in shared]):
        return {}
    facts = [stage.noted() for stage in stages]
    whole = not any(fact.get("shipped") for fact in facts)  # all of it was trained here
    seconds = [fact["seconds"] for fact in facts if "seconds" in fact]
    peaks = [fact["peak_memory"] / 2**20 for fact in facts if "peak_memory" in fact]
    return {
        "iterations": sum(stage.iterations for stage in stages),
        "batch": study.profile.distill.train.batch_size,
        "train_seconds": round(sum(seconds), 2) if whole and len(seconds) == len(stages) else None,
        "peak_mib": round(max(peaks), 1) if whole and peaks else None,
    }


def check_version(out: Path) -> None:
    """Raise UserError where `out` holds the sweeps of another version, whose runs would not be found again."""
    record = out / ABLATIONS_FOLDER / VERSION_FILE
    if not record.exists():
        return
    version = read_json(record, lambda found: found["version"], "choose another --out, or delete the file")
    if version != rddlib.__version__:
        raise UserError(
            f"{out} holds ablations of rddlib {version}, this is {rddlib.__version__}: choose another --out"
        )


def mark_version(out: Path) -> None:
    """Say in `out` which version's sweeps it holds."""
    write_atomically(out / ABLATIONS_FOLDER / VERSION_FILE, json.dumps({"version": rddlib.__version__}) + "\n")
