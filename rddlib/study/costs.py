"""What a sweep would take: its runs counted, and their time on this machine from a short measurement of each kind."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from rddlib.study.ablations import ABLATIONS, Ablation
from rddlib.study.plan import SAMPLING, Job, probed
from rddlib.study.profiles import METHODS, PROFILES, Profile, changed, set_apart
from rddlib.study.study import STUDY_FILE
from rddlib.study.sweep import ABLATIONS_FOLDER, Sweep
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.distributed import locked
from rddlib.utils.errors import UserError
from rddlib.utils.installation import git_commit, hardware
from rddlib.utils.text import aligned, human_time

COSTS_FILE = "costs.json"
KINDS = {
    "base": "base",
    "teacher": "progressive",
    "extractor": "extractor",
}  # of artefacts; students' kind is their method
SECONDS = 2.0  # of measuring, for each kind in each round
ROUNDS = 3


def measured_costs(profile: Profile, out: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of an iteration by kind (base, halving, extractor, METHODS, sampling), at the profile's own numbers.

    Measured once for a study's folder, with one thread in a process of its own, and kept there: a sweep that depends on them
    then does not change when it goes on. On a GPU, of that GPU. Raises UserError where a kind could not be measured.
    """
    if not (out / STUDY_FILE).exists():
        return _measure(profile, say)["seconds"]
    path = out / ABLATIONS_FOLDER / COSTS_FILE
    with locked(path):  # shards that start together share one measurement
        if not path.exists():
            write_atomically(path, json.dumps(_measure(profile, say), indent=1) + "\n")
    return known_costs(out)


def known_costs(out: Path) -> dict[str, float] | None:
    """What was measured for a folder, None where nothing was. Raises UserError where the file is damaged."""
    path = out / ABLATIONS_FOLDER / COSTS_FILE
    if not path.exists():
        return None
    try:
        return {str(kind): float(seconds) for kind, seconds in json.loads(path.read_text())["seconds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete it, the next run measures it again") from error


def _measure(profile: Profile, say: Callable[[str], None]) -> dict:
    batches = {"base": profile.base, "progressive": profile.progressive, "extractor": profile.extractor}
    jobs = [Job(kind, kind, 1, config.train.batch_size) for kind, config in batches.items()]
    jobs += [Job(kind, kind, 1, profile.distill.train.batch_size) for kind in METHODS]
    jobs += [Job(SAMPLING, SAMPLING, 1, min(profile.evaluation.batch_size, profile.evaluation.samples))]
    jobs *= ROUNDS
    costs: dict[str, float] = {}
    for index, job in enumerate(jobs, 1):
        say(f"[{index}/{len(jobs)}] measuring an iteration of {job.name}, about {SECONDS:g} s")
        row = probed(job, profile.name, set_apart(profile), SECONDS, threads=1)
        if row.seconds is None:
            raise UserError(
                f"{job.name} could not be measured here ({row.note}): try rdd plan --profile {profile.name}"
            )
        costs[job.kind] = min(row.seconds, costs.get(job.kind, row.seconds))  # the least disturbed
    return {
        "seconds": costs,
        "threads": 1,
        "hardware": hardware(),
        "torch": torch.__version__,
        "git_commit": git_commit(),
    }


def plan_of(sweep: Sweep) -> list[dict]:
    """A row for each ablation: settings, runs, how many of them are done, and the iterations of each kind that remain.

    What several ablations share is counted with the first.
    """
    rows, counted, seen = [], set(), set()
    for ablation in sweep.ablations:
        points = [point for point in sweep.points if point.ablation.name == ablation.name]
        keys = {point.key for point in points}
        done = {point.key for point in points if sweep.done(point)}
        left = {key: sweep.runs[key] for key in sorted(keys - done - seen)}
        rows.append(
            {
                "ablation": ablation,
                "settings": len({point.setting.name for point in points}),
                "runs": len(keys),
                "done": len(done),
                "shared": len((keys - done) & seen),
                "left": len(left),
                "work": _work(sweep, left.values(), counted),
            }
        )
        seen |= keys
    return rows


def _work(sweep: Sweep, runs, counted: set) -> Counter:
    """{kind: iterations, at the profile's own batch sizes} of what these runs lack; `counted` paths were counted before."""
    work: Counter = Counter()
    for path, (run, stage) in sweep.missing(runs).items():
        if path not in counted:
            counted.add(path)
            config, own = (study.training(*stage) for study in (run.study, sweep.base))
            work[KINDS.get(stage[0]) or stage[1]] += config.iterations * config.batch_size / own.batch_size
    for run in runs:
        batches = -(-run.profile.evaluation.samples // run.profile.evaluation.batch_size)
        work[SAMPLING] += sum(run.steps) * batches
    return work


def format_plan(rows: list[dict], costs: Mapping[str, float], jobs: int) -> str:
    """The plan as a table in plain text, with the time that remains at `jobs` at a time."""
    heads = ("ablation", "paper", "settings", "runs", "done", "to do", "iterations", "time")
    seconds = [_seconds(row["work"], costs) / jobs for row in rows]
    body = [
        (
            row["ablation"].name,
            row["ablation"].source,
            str(row["settings"]),
            str(row["runs"]),
            str(row["done"]),
            str(row["left"]),
            f"{_iterations(row['work']):,}",
            human_time(time),
        )
        for row, time in zip(rows, seconds, strict=True)
    ]
    left, iterations = sum(row["left"] for row in rows), sum(_iterations(row["work"]) for row in rows)
    total = ("total", "", "", "", "", str(left), f"{iterations:,}", human_time(sum(seconds)))
    return aligned(heads, [*body, total], words=(0, 1))


def _iterations(work: Mapping[str, float]) -> int:
    return round(sum(number for kind, number in work.items() if kind != SAMPLING))


def _seconds(work: Mapping[str, float], costs: Mapping[str, float]) -> float:
    return sum(number * costs[kind] for kind, number in work.items())


def catalogue(seeds: int) -> str:
    """Every ablation with its source, what was claimed, and its costs at each profile."""
    blocks = [
        f"{ablation.name}: {ablation.title} ({ablation.source})\n  {ablation.claim}" for ablation in ABLATIONS.values()
    ]
    heads = ("ablation", *PROFILES)
    body = [
        (name, *(_cost_at(ablation, profile, seeds) for profile in PROFILES)) for name, ablation in ABLATIONS.items()
    ]
    return "\n".join(
        [
            *blocks,
            "",
            f"Costs with {seeds} seeds: runs, and the iterations that train them once teacher and extractor are there.",
            aligned(heads, body, words=(0,)),
        ]
    )


def _cost_at(ablation: Ablation, name: str, seeds: int) -> str:
    """What an ablation costs at a profile, counted without any data: "18 runs, 11k it"."""
    profile, runs, iterations = PROFILES[name](), set(), 0
    for setting in ablation.settings(profile):
        runs.add((setting.method, tuple(setting.changes.items())))
        if setting.method in METHODS:
            stages = changed(profile, dict(setting.changes)).distill.iterations
            iterations += sum(stages if ablation.whole else stages[:1])
    return f"{len(runs) * seeds}, {_thousands(iterations * seeds)}"


def _thousands(number: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
