"""`rdd ablate`: the papers' ablations and one's own, as sweeps."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rddlib.cli.options import OutOption, ProfileOption, SeedOption, SetOption, UpdateOption, parse_overrides
from rddlib.errors import UserError
from rddlib.progress import say


def ablate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Ablations (--list), all, or custom.", show_default=False)
    ] = None,
    profile: ProfileOption = "digits",
    seeds: Annotated[int, typer.Option(help="Of the last halvings: 0 to N-1.")] = 3,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, a process each.")] = 1,
    axis: Annotated[
        list[str] | None, typer.Option(help="Values of an axis, e.g. --axis loss.tau_is=0.1,0.5; repeatable.")
    ] = None,
    method: Annotated[str, typer.Option(help="Whose fields custom varies: pd, cfd, rcfd or rdd.")] = "rdd",
    whole: Annotated[bool, typer.Option("--whole", help="Down to one step, not the first halving only.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Say what there is and what it costs, and stop.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is to do and about how long, and stop.")] = False,
    shard: Annotated[str, typer.Option(help="A part of the runs, e.g. 2/4 in the second of four batch jobs.")] = "1/1",
    scheduler: Annotated[str, typer.Option(help="Address of a dask scheduler whose workers do the runs.")] = "",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    update: UpdateOption = False,
) -> None:
    """Repeat an ablation of the papers, or one of your own, with several seeds.

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
      rdd ablate all --profile cifar10 --scheduler tcp://node1:8786
    """
    from rddlib.ablations.conduct import shard_of
    from rddlib.ablations.costs import catalogue
    from rddlib.ablations.engines import on_cluster, on_this_machine

    if listed:
        print(catalogue(seeds))
        return
    shard_of([], shard)  # wrong words first: all else takes longer
    engine = on_cluster(scheduler) if scheduler else on_this_machine(jobs)
    sweep = _sweep(names, profile, seeds, axis, method, whole, out, parse_overrides(settings), seed, update, dry_run)
    if dry_run:
        _say_plan(sweep, jobs)
    else:
        _run(sweep, engine, shard)


def _parsed_axes(texts: list[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or []:
        name, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"--axis {text}: write it as section.field=value,value")
        found[name.strip()] = values
    return found


def _chosen(names, profile, axes: dict[str, str], method: str, whole: bool) -> list:
    """The ablations that the arguments name, over the values given."""
    from dataclasses import replace

    from rddlib.ablations import ABLATIONS, custom, find_ablation

    if not names:
        raise UserError("which ablation? name one of rdd ablate --list, several, all, or custom")
    if "custom" in names:
        if len(names) > 1:
            raise UserError("custom stands alone: give it to a command of its own")
        return [custom(axes, profile, method, whole)]
    chosen = [find_ablation(name) for name in (ABLATIONS if "all" in names else dict.fromkeys(names))]
    if axes and len(chosen) > 1:
        raise UserError("--axis needs to know which ablation's: give it with one")
    chosen = [ablation.with_axes(axes, profile) for ablation in chosen] if axes else chosen
    return [replace(ablation, whole=whole or ablation.whole) for ablation in chosen]


def _sweep(names, profile, seeds, axis, method, whole, out: Path | None, overrides, seed, update, look_only):
    from rddlib.ablations import Sweep, check_version
    from rddlib.ablations.costs import measured_costs
    from rddlib.study import continue_study, default_out

    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give at least 1")
    folder, made = out or default_out(profile), []

    def check(study) -> None:
        check_version(folder)
        made[:] = _chosen(names, study.profile, _parsed_axes(axis), method, whole)
        _ = Sweep(study, made, range(seeds)).points  # each setting must fit, before anything is written
        study.check_scoring()

    study = continue_study(profile, overrides, folder, seed, update, check, look_only)
    needs = any(ablation.name == "budget" for ablation in made)
    costs = measured_costs(study.profile, folder, say) if needs else None
    return Sweep(study, made, range(seeds), costs)


def _say_plan(sweep, jobs: int) -> None:
    from rddlib.ablations.costs import format_plan, measured_costs, plan_of

    costs = measured_costs(sweep.base.profile, sweep.base.out, say)
    print(format_plan(plan_of(sweep), costs, jobs))
    print(f"Time: at {jobs} at a time on this machine as it is, one thread each, from a short measurement at the\n"
          "profile's own numbers; what several ablations share counts with the first.")  # fmt: skip


def _run(sweep, engine, shard: str) -> None:
    from rddlib.ablations import conduct

    failed = conduct(sweep, engine, shard)
    for outcome in failed:
        say(f"rdd: {outcome.task.label} failed: {outcome.said}")
    print(f"Tables and figures: {sweep.folder}")
    if failed:
        say(f"rdd: {len(failed)} failed, the others are done; the same command tries them again")
        sys.exit(1)
