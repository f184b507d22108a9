"""`rdd ablate`: the papers' ablations and one's own, as sweeps."""

import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.cli.options import OutOption, SeedOption, SetOption, StudyProfileOption, UpdateOption, parse_overrides
from rddlib.utils.errors import UserError
from rddlib.utils.text import say

if TYPE_CHECKING:
    from rddlib.study.ablations import Ablation
    from rddlib.study.engines import Engine
    from rddlib.study.profiles import Profile
    from rddlib.study.study import Study
    from rddlib.study.sweep import Sweep


def ablate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Ablations (--list), all, or custom.", show_default=False)
    ] = None,
    profile: StudyProfileOption = None,
    seeds: Annotated[int, typer.Option(help="Of the last halvings, N of them.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of these seeds.")] = 0,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, a process each.")] = 1,
    axis: Annotated[
        list[str] | None, typer.Option(help="Values of an axis, e.g. --axis loss.tau_is=0.1,0.5; repeatable.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Whose fields custom varies: pd, cfd, rdd, cfd_is_pd, ..; default rdd.")
    ] = None,
    whole: Annotated[
        bool | None,
        typer.Option("--whole/--first", help="Down to one step, or the first halving only; default its own."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is and what it costs, and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is to do and about how long, and stop.")] = False,
    shard: Annotated[str, typer.Option(help="A part of the runs, e.g. 2/4 in the second of four batch jobs.")] = "1/1",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Repeat an ablation of the papers, or one of your own.

    Runs, tables with receipts and figures lie in the study's folder, in ablations/. What is done is not done again; the
    same command goes on where it was stopped.

    \b
    Examples:
      rdd ablate --list
      rdd ablate losses tau_is --jobs 2
      rdd ablate all --dry-run
      rdd ablate alpha --axis loss.alpha=1,10,100 --whole
      rdd ablate custom --axis loss.alpha=1,100 --axis loss.tau_is=0.1,1 --method rdd
      rdd ablate all --profile cifar10 --shard 3/8
    """
    from rddlib.report.ablations import shard_of
    from rddlib.study.costs import catalogue, format_plan, measured_costs, plan_of
    from rddlib.study.engines import on_this_machine
    from rddlib.study.folder import as_recorded, continue_study
    from rddlib.study.sweep import Sweep, check_version

    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give at least 1")
    if listed:
        print(catalogue(seeds))
        return
    shard_of([], shard)  # wrong words first: all else takes longer
    engine = on_this_machine(jobs)
    choose = partial(_chosen, names or [], axes=_parsed_axes(axis), method=method, whole=whole)
    numbers = range(first_seed, first_seed + seeds)

    def check(study: "Study") -> None:
        check_version(study.out)
        _ = Sweep(study, choose(study.profile), numbers).points  # each setting must fit
        study.check_scoring()

    profile, place, seed = as_recorded(profile, out, seed)
    study = continue_study(profile, parse_overrides(settings), place, seed, update, check, look_only=dry_run)
    if "run.shipped" not in parse_overrides(settings):
        study = _all_trained(study)
    ablations = choose(study.profile)
    needed = dry_run or any(ablation.timed for ablation in ablations)
    sweep = Sweep(study, ablations, numbers, measured_costs(study.profile, study.out, say) if needed else None)
    if not dry_run:
        return _run(sweep, engine, shard)
    print(format_plan(plan_of(sweep), sweep.costs, jobs))
    print(
        f"Time: at {jobs} at a time on this machine as it is, one thread each, from a short measurement at the\n"
        "profile's own numbers; what several ablations share counts with the first."
    )


def _all_trained(study: "Study") -> "Study":
    """The study, all of whose students are trained, as an ablation's settings are; those that ship are rounded."""
    profile = study.profile
    start = "none" if profile.run.shipped == "none" else "start"
    profile = replace(profile, run=replace(profile.run, shipped=start))
    return study.varied(profile, study.scores.relative_to(study.out).as_posix())


def _parsed_axes(texts: list[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or []:
        name, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"--axis {text}: write it as section.field=value,value")
        if name.strip() in found:
            raise UserError(f"--axis {name.strip()} is given twice: write its values in one, as 1,2")
        found[name.strip()] = values
    return found


def _chosen(
    names: list[str], profile: "Profile", axes: dict[str, str], method: str | None, whole: bool | None
) -> list["Ablation"]:
    """The ablations that the arguments name, over the values given."""
    from rddlib.study.ablations import ABLATIONS, custom, find_ablation

    if not names:
        raise UserError("which ablation? name one of rdd ablate --list, several, all, or custom")
    if "custom" in names:
        if len(names) > 1:
            raise UserError("custom stands alone: give it to a command of its own")
        return [custom(axes, profile, method or "rdd", bool(whole))]
    if method:
        raise UserError(f"--method {method} is for custom: other ablations name their own methods, leave it out")
    found = [find_ablation(name) for name in dict.fromkeys(names) if name != "all"]
    chosen = list(ABLATIONS.values()) if "all" in names else found
    if axes and len(chosen) > 1:
        raise UserError("--axis needs to know which ablation's: give it with one")
    chosen = [ablation.with_axes(axes, profile) for ablation in chosen] if axes else chosen
    return chosen if whole is None else [replace(ablation, whole=whole) for ablation in chosen]


def _run(sweep: "Sweep", engine: "Engine", shard: str) -> None:
    from rddlib.report.ablations import run_sweep

    failed = run_sweep(sweep, engine, shard)
    for outcome in failed:
        say(f"rdd: {outcome.task.label} failed: {outcome.said}")
    only = f"{sweep.ablations[0].files}.csv and .png in " if len(sweep.ablations) == 1 else ""
    print(f"Tables and figures: {only}{sweep.folder}")
    if failed:
        say(f"rdd: {len(failed)} failed, the others are done; the same command tries them again")
        sys.exit(1)
