"""`rdd train`, `extractor`, `guide`, `distill`: one stage each of what `rdd study` does from end to end, in its folder.

What a stage needs and the folder lacks is trained first. Each runs under torchrun or accelerate launch as it is.
"""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.cli.options import (
    DownloadOption,
    ExtractorOption,
    OutOption,
    SeedOption,
    SetOption,
    StudyProfileOption,
    TeacherOption,
    UpdateOption,
    study_of,
    with_models,
)
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted

if TYPE_CHECKING:
    from rddlib.study.stage import Stage
    from rddlib.study.study import Study


def _make(*stages: "Stage") -> None:
    """Make each; say where its network lies, how long it took, how good it is."""
    from rddlib.training.hardware import say_if_busy
    from rddlib.utils.distributed import rank

    say_if_busy()
    for stage in stages:
        stage.get()
        if rank() == 0:
            facts = stage.recorded()
            accuracy = f", test accuracy {facts['test_accuracy']:.1%}" if "test_accuracy" in facts else ""
            print(f"{stage.path}: {facts['seconds']:.0f} s in {facts['precision']}{accuracy}")


def train(
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
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
    _make(study.stages.base)


def extractor(
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Train the classifier whose features are distilled.

    Its last line says how many test images it gets right.

    \b
    Examples:
      rdd extractor
      rdd extractor --profile cifar10 --set data.download=true
      rdd extractor --profile cifar10 --set extractor.name=resnet18
    """
    study = study_of(profile, out, settings, seed, update, check=lambda study: study.check_extractor())
    _make(study.stages.extractor)


def guide(
    results: Annotated[
        bool,
        typer.Option("--results", help="Also halve it by guidance.objectives and score all against w: OUT/guided.csv."),
    ] = False,
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    teacher: TeacherOption = None,
    extractor: ExtractorOption = None,
    download: DownloadOption = False,
) -> None:
    """Distil guidance into one network that takes its weight.

    Classifier-free guidance of weight w then costs one evaluation a step instead of two. Its teacher, a class-
    conditional base model trained with label dropout, is trained first; or it is given, such as a text-guided latent
    pipeline with captioned images. rdd distill --guided halves the result, rdd sample --guidance 2 draws with it.

    \b
    Examples:
      rdd guide
      rdd guide --set "guidance.weights=[0,8]" --out runs/wide
      rdd guide --results --set "seeds=[0,1,2]"
      rdd guide --profile text --teacher stable-diffusion-folder --set data.root=captioned-images
    """
    from rddlib.study.guidance import GUIDED_FILE, guided_results
    from rddlib.study.study import guided_study

    def check(study: "Study") -> None:
        """Raise UserError where guidance could not be distilled, or not be scored in the end."""
        guided = guided_study(study)
        if results:
            guided.check_scoring()
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise UserError(
                    "--results is one process: run it without torchrun (profile field jobs sets its workers)"
                )

    settings = with_models(settings, teacher, extractor, download)
    study = study_of(profile, out, settings, seed, update, check)
    guided = guided_study(study)
    _make(guided.stages.conditional, guided.stages.base)
    if results:
        print(f"{study.out / GUIDED_FILE}: {counted(len(guided_results(study)), 'row')}")


def distill(
    objective: Annotated[
        str, typer.Option(help="What the student minimises: pd, cfd, rcfd, rdd, cfd_is_pd, ..")
    ] = "rdd",
    start: Annotated[
        int, typer.Option("--from", help="Steps of the first teacher; 0: the profile's teacher_steps.")
    ] = 0,
    to: Annotated[int, typer.Option(help="Steps of the last student.")] = 1,
    guided: Annotated[
        bool, typer.Option("--guided", help="Start from the model that rdd guide makes; students take its weights too.")
    ] = False,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="With --guided: also train a student for the stochastic sampler.")
    ] = False,
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    teacher: TeacherOption = None,
    extractor: ExtractorOption = None,
    download: DownloadOption = False,
) -> None:
    """Halve the sampling steps, from a teacher to a student.

    Each student takes half as many steps as its teacher, and is the teacher of the next, until one takes --to steps.
    Students of the profile's progressive.teacher_steps (8) or more are trained by pd, those of fewer by --objective.

    A --teacher brings its network, its schedule and, if it was distilled, its steps. One that predicts epsilon first
    learns to predict v, for pretrained.convert.iterations.

    \b
    Examples:
      rdd distill --from 8 --to 1 --objective rdd
      rdd distill --from 64 --to 8 --objective pd
      rdd distill --guided --objective rdd --to 2 --stochastic
      rdd distill --teacher ddpm-folder --profile cifar10_small --out runs/mine
      rdd distill --teacher ddpm-folder --profile own --set data.root=photos
      rdd distill --teacher google/ddpm-cifar10-32 --download --profile cifar10 --out runs/hub
      rdd distill --teacher ckpt.pt --extractor dense.pt --profile cifar10 --out runs/theirs
      torchrun --nproc_per_node 4 -m rddlib.cli distill --profile cifar10 --objective rdd
    """
    if stochastic and not guided:
        raise UserError("--stochastic is for guided models: add --guided, or leave it out")
    settings = with_models(settings, teacher, extractor, download)

    def stages(study: "Study") -> list["Stage"]:
        from rddlib.study.study import guided_study

        study.check_method(objective, option="--objective")
        if study.profile.method(objective).looks:
            study.check_extractor()
        graph = (guided_study(study) if guided else study).stages
        found = graph.halvings(objective, start or study.profile.progressive.teacher_steps, to)
        return found + ([graph.stochastic(objective, to, graph.profile.seeds[0])] if stochastic else [])

    _make(*stages(study_of(profile, out, settings, seed, update, check=stages)))
