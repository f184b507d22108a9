"""`rdd study`: everything, in order; `rdd plan`: what it would cost."""

from pathlib import Path
from typing import Annotated

import typer

from rddlib.cli.options import (
    DownloadOption,
    ExtractorOption,
    OutOption,
    ProfileOption,
    SeedOption,
    SetOption,
    StudyProfileOption,
    TeacherOption,
    UpdateOption,
    parse_overrides,
    with_models,
)
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, joined, say

PROCESSES = (2, 4, 8)


def study(
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    only: Annotated[str, typer.Option(help="Only these notebooks, e.g. 03,04.")] = "",
    start: Annotated[str, typer.Option("--from", help="This notebook and those after it, e.g. 04.")] = "",
    jobs: Annotated[
        int | None,
        typer.Option(help="Notebooks that run at the same time, sharing the cores; default: 2 of them, or 1 core."),
    ] = None,
    notebooks: Annotated[
        bool, typer.Option(help="Without them the study is trained, scored and reported all the same.")
    ] = True,
    scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train everything, and take none of the models that come with rddlib."),
    ] = False,
    update: UpdateOption = False,
) -> None:
    """Run the whole study: models, scores, notebooks, report.

    It trains each method's last halving, and takes what comes before from rddlib where that has it. Notebooks 08 and 09
    run by --only.
    What is done is not done again: a second run takes seconds, a killed one goes on where it stopped.

    \b
    Examples:
      rdd study
      rdd study --profile smoke --out runs/try
      rdd study --only 03,04 --jobs 2
      rdd study --from 04
      rdd study --only 08
      rdd study --set loss.alpha=100 --out runs/alpha100
      rdd study --profile cifar10_small --no-notebooks
    """
    from rddlib.report.notebooks import run_study
    from rddlib.study.folder import as_recorded

    profile, folder, seed = as_recorded(profile, out, seed)
    page = run_study(
        profile,
        parse_overrides(settings) | ({"run.shipped": "none"} if scratch else {}),
        folder,
        seed,
        only=only,
        start=start,
        update=update,
        jobs=jobs,
        with_notebooks=notebooks,
    )
    print(f"Open {page} in {'a browser' if page.suffix == '.html' else 'JupyterLab'}.")


def plan(
    profile: ProfileOption = "digits",
    settings: SetOption = None,
    out: OutOption = None,
    seconds: Annotated[float, typer.Option(help="Of measuring, for each stage.")] = 30.0,
    teacher: TeacherOption = None,
    extractor: ExtractorOption = None,
    download: DownloadOption = False,
    bandwidth: Annotated[float, typer.Option(help="GB/s between processes, for what several would take.")] = 10.0,
    computed: Annotated[
        bool, typer.Option("--computed", help="Of --teacher: parameters, FLOPs, memory from its configuration alone.")
    ] = False,
) -> None:
    """What the study would take here: time, memory, disk.

    Of each stage, from a short measurement. It trains for a few iterations on random images, on the GPU if there is
    one; nothing is written and no data set is needed. --out: the folder whose free disk counts.

    \b
    Examples:
      rdd plan
      rdd plan --profile cifar10
      rdd plan --profile imagenet64 --set distill.train.batch_size=64 --seconds 60
      rdd plan --profile own --teacher ddpm-folder
      rdd plan --computed --teacher sd-folder --set distill.train.batch_size=8 --set distill.lora=16
    """
    from rddlib.study.costs import SAMPLING, make_plan
    from rddlib.study.folder import default_out
    from rddlib.utils.text import human_size

    if computed:
        _say_computed(profile, parse_overrides(settings), teacher)
        return
    if not bandwidth > 0:
        raise UserError(f"--bandwidth {bandwidth:g}: expected GB/s above 0")
    folder = out or default_out(profile)
    settings = with_models(settings, teacher, extractor, download)
    found = make_plan(profile, parse_overrides(settings), out=folder, seconds=seconds, say=say)
    print(found)
    print(
        "Time: one stage after another on this machine as it is; data, scores and notebooks come on top, and\n"
        "on a GPU torch.compile, which is left out here, may save some. Disk: the checkpoints that stay;\n"
        "while running: what a killed run goes on from, deleted in the end."
    )
    if any(row.cost.note.startswith("measured at") for row in found.rows):
        print(
            "Measured at: smaller batches than the study's, for want of time or memory; more --seconds reach larger ones."
        )
    memory = f", free memory {human_size(found.free_memory)}" if found.free_memory is not None else ""
    print(f"Free disk for {folder}: {human_size(found.free_disk)}{memory}")
    if found.largest_batch is not None:
        own = max(row.batch for row in found.rows if row.kind != SAMPLING)
        if found.largest_batch >= 10 * own:
            print(
                f"Memory is no limit: every batch of this profile ({own:,} images at most) could be ten times as large."
            )
        else:
            fields = "pretrained.convert.batch_size, distill.train.batch_size, .."
            print(f"Memory allows every stage a batch of {counted(found.largest_batch, 'image', ',')} ({fields})")
    over = [found.over(processes, bandwidth * 1e9) for processes in PROCESSES]
    faster, talking = (joined(f"{times:.2g}" for times, _ in over), joined(f"{share:.0%}" for _, share in over))
    print(
        f"Over {joined(PROCESSES)} processes at {bandwidth:g} GB/s: {faster} times as fast, {talking} of the time in\n"
        "collectives; computed from the bytes of gradients and feature maps with nothing overlapping, not measured."
    )
    for line in found.warnings():
        print(line)


def _say_computed(profile: str, overrides: dict[str, str], teacher: str | None) -> None:
    from rddlib.study.computed import computed
    from rddlib.study.profiles import load_profile

    if teacher is None:
        raise UserError("--computed is of a given model: name its folder with --teacher")
    config = load_profile(profile, overrides).distill
    asked = Path(teacher).expanduser(), "bf16" if config.train.precision == "bf16" else "float32"
    adapters = computed(*asked, config.lora) if config.lora else None
    print("\n".join(computed(*asked).lines(config.train.batch_size, adapters)))
