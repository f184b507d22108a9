"""A sweep from beginning to end: what its runs share, then the runs, then tables, receipts and figures."""

import time
from collections.abc import Sequence

from rddlib.report.ablation_figures import ablation_figure
from rddlib.report.figures import to_png
from rddlib.study.ablations import ABLATIONS
from rddlib.study.engines import Engine, Outcome, Task
from rddlib.study.sweep import Sweep, mark_version
from rddlib.utils.checkpoint import write_atomically
from rddlib.utils.errors import UserError
from rddlib.utils.text import human_time, say


def shard_of(tasks: Sequence[Task], text: str) -> list[Task]:
    """ "2/5": the second of five parts that together are all. Raises UserError where it reads otherwise."""
    words = text.split("/")
    if len(words) != 2 or not all(word.isdigit() for word in words) or not 1 <= int(words[0]) <= int(words[1]):
        raise UserError(f"--shard {text}: write it as 1/4, the first of four parts, to 4/4")
    part, parts = map(int, words)
    return list(tasks)[part - 1 :: parts]


def run_sweep(sweep: Sweep, engine: Engine, shard: str = "1/1") -> list[Outcome]:
    """Do what is missing of a sweep's runs, or of a part of them, with a line for each; the outcomes that failed.

    Tables and figures of all that has been measured by then are written at the end, also where it is told to stop.
    """
    waiting = sweep.waiting()
    runs = [run for key, run in shard_of(list(sweep.runs.items()), shard) if key in waiting]
    mark_version(sweep.base.out)
    try:
        failed = _perform(engine, sweep.ancestors(runs), "needed first")
        lacking = {run for outcome in failed for run in sweep.needing(outcome.task, runs)}
        failed += [Outcome(run, "what it needs could not be made", 0.0, failed=True) for run in runs if run in lacking]
        failed += _perform(engine, [run for run in runs if run not in lacking], "runs")
    finally:
        write_results(sweep)
    return failed


def _perform(engine: Engine, tasks: list[Task], what: str) -> list[Outcome]:
    failed: list[Outcome] = []
    ended, began = 0, time.monotonic()

    def report(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        left = (time.monotonic() - began) / ended * (len(tasks) - ended)
        time_left = f", about {human_time(left)} left" if left else ""
        word = "FAILED, " if outcome.failed else ""
        say(
            f"{what} {ended} of {len(tasks)}{time_left} | {outcome.task.label}: {word}{outcome.said} "
            f"({outcome.seconds:.0f} s)"
        )
        if outcome.failed:
            failed.append(outcome)

    if tasks:
        engine(tasks, report)
    return failed


def write_results(sweep: Sweep) -> None:
    """A table, its receipts and a figure for each ablation that has rows; one table of all where all were asked for."""
    for ablation in sweep.ablations:
        table = sweep.table(ablation.name)
        if len(table):
            figure = ablation_figure(ablation, table, sweep.base.profile, sweep.base.metric)
            write_atomically(sweep.write(ablation.name, ablation.name).with_suffix(".png"), to_png(figure))
    if {ablation.name for ablation in sweep.ablations} == set(ABLATIONS):
        sweep.write("all")
