"""`rdd train`, `extractor`, `distill`: one stage each of what `rdd study` does from end to end, in its folder.

What a stage needs and the folder lacks is trained first. Each runs under torchrun or accelerate launch as it is.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.cli.options import OutOption, ProfileOption, SeedOption, SetOption, UpdateOption, study_of

if TYPE_CHECKING:
    from rddlib.study import Study


def _report(study: "Study", stage: str, *arguments) -> None:
    from rddlib.distributed import rank

    if rank() > 0:
        return
    facts = study.facts(stage, *arguments)
    accuracy = f", test accuracy {facts['test_accuracy']:.1%}" if "test_accuracy" in facts else ""
    print(f"{study.path_of(stage, *arguments)}: {facts['seconds']:.0f} s in {facts['precision']}{accuracy}")


def train(
    profile: ProfileOption = "digits",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    update: UpdateOption = False,
) -> None:
    """Train the base model. Interrupted, killed or powered off, the same command goes on.

    \b
    Examples:
      rdd train
      rdd train --profile cifar10 --set data.download=true
      rdd train --profile cifar10_small --set data.root=photos --set run.sample_every=1000
      torchrun --nproc_per_node 8 -m rddlib.cli train --profile imagenet64 --set data.root=batches
    """
    study = study_of(profile, out, settings, seed, update)
    study.base()
    _report(study, "base")


def extractor(
    profile: ProfileOption = "digits",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    update: UpdateOption = False,
) -> None:
    """Train the classifier whose features are distilled, and say how many test images it gets right.

    \b
    Examples:
      rdd extractor
      rdd extractor --profile cifar10 --set data.download=true
      rdd extractor --profile cifar10 --set extractor.name=resnet18
    """
    study = study_of(profile, out, settings, seed, update)
    study.extractor()
    _report(study, "extractor")


def distill(
    objective: Annotated[str, typer.Option(help="What the student minimises: pd, cfd, rcfd or rdd.")] = "rdd",
    start: Annotated[int, typer.Option("--from", help="Steps of the teacher; 0 for the profile's (8).")] = 0,
    to: Annotated[int, typer.Option(help="Steps of the last student.")] = 1,
    profile: ProfileOption = "digits",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
    update: UpdateOption = False,
) -> None:
    """Halve the number of sampling steps again and again, from a teacher to a student.

    The profile's teacher_steps divide the work: down to them everyone halves by pd, below them by the objective.

    \b
    Examples:
      rdd distill --from 8 --to 1 --objective rdd
      rdd distill --from 64 --to 8 --objective pd
      torchrun --nproc_per_node 4 -m rddlib.cli distill --profile cifar10 --objective rdd
    """

    def stages(study: "Study") -> list[tuple]:
        return study.halvings(objective, start or study.profile.halving.teacher_steps, to)

    study = study_of(profile, out, settings, seed, update, check=stages)
    for stage, *arguments in stages(study):
        study.teacher(*arguments) if stage == "teacher" else study.student(*arguments)
        _report(study, stage, *arguments)
