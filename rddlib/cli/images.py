"""`rdd sample` draws images, `rdd evaluate` scores them: those of a study's model, of any checkpoint, or given ones."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.cli.options import (
    OutOption,
    SeedOption,
    SetOption,
    StudyProfileOption,
    listed,
    parse_overrides,
    study_of,
    whole,
)
from rddlib.utils.errors import UserError
from rddlib.utils.text import counted, joined, say

if TYPE_CHECKING:
    from rddlib.data import ImageDataset
    from rddlib.evaluation import DrawnImages, Network
    from rddlib.study.stage import Stage
    from rddlib.study.study import Arm, Study

MethodOption = Annotated[
    str,
    typer.Option(
        help="Who draws: pd, cfd, rdd, cfd_is_pd, ..; or ddim, pndm, dpm-solver, samplers of the base model. "
        "With --guidance: a method, teacher, stage_one."
    ),
]
StepsOption = Annotated[
    int, typer.Option(min=0, help="Sampling steps; 0 for those that a --checkpoint was distilled for, else 1.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="Draw with this model, whatever the profile: a checkpoint, a published file, a diffusers folder."
    ),
]
SamplerOption = Annotated[
    str, typer.Option(help="How a --checkpoint or a model with --guidance draws: ddim, stochastic, pndm, ..")
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        help="Weight w of guidance towards the class, with the models of rdd guide; 0: conditional, -1: unconditional."
    ),
]
ClassesOption = Annotated[
    str, typer.Option(help="Draw these classes in turn, by name or number, e.g. cat,7; default all at random.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images at a time; results do not depend on it.")]


def _drawn_by(
    checkpoint: Path,
    sampler: str,
    steps: int,
    samples: int,
    noise: int,
    clip: bool,
    guidance: float | None,
    words: Sequence[str] = (),
    prompts: Sequence[str] = (),
    captions: Callable[[tuple[int, int, int]], Sequence[str]] | None = None,
) -> tuple["DrawnImages", list[str]]:
    """(images of a checkpoint's model, names of its classes where it records them).

    words, prompts: what to draw in turn; captions: of images (C, H, W), which a model that follows prompts draws at random.
    """
    from rddlib.data.dataset import class_number
    from rddlib.data.latents import prompted
    from rddlib.diffusion.model_file import provenance
    from rddlib.evaluation import DrawnImages
    from rddlib.interop import load_model
    from rddlib.training import training_device

    denoiser, info = load_model(checkpoint)
    steps = steps or denoiser.steps or 1
    space = denoiser.space
    if captions and space and space.takes_prompts:
        denoiser = denoiser.within(prompted(space, tuple(captions(space.image_shape))))
    elif bool(space and space.takes_prompts) != bool(prompts):
        raise UserError(
            f"{checkpoint} knows no prompts: leave --prompt out"
            if prompts
            else f"{checkpoint} draws what it is told: give rdd sample --prompt 'a red three on blue', once or more"
        )
    if prompts:
        denoiser, words = denoiser.within(space.with_prompts(prompts)), [str(k) for k in range(len(prompts))]
    device, known = training_device(), denoiser.num_classes
    names = list(prompts) or info.get("class_names", [])
    images = DrawnImages(
        denoiser.to(device),
        samples,
        steps,
        seed=noise,
        clip=clip,
        device=device,
        sampler=sampler,
        made=provenance(denoiser, info),
        name=f"{checkpoint.stem}, {counted(steps)}",
        guidance=guidance,
        classes=[class_number(word, names, known, checkpoint.name) for word in words] if known else [0] * len(words),
    )
    return images, names


def _model_of(
    study: "Study", method: str, steps: int, guidance: float | None, sampler: str, words: list[str]
) -> tuple["Study", "Arm"]:
    """(the study that has the model, its arm), checked: the guided study where guidance is asked for; words: classes."""
    from rddlib.study.study import Arm, guided_study

    known = study.dataset.num_classes
    classes = study.dataset.class_numbers(words) if known else (0,) * len(words)
    if guidance is None:
        study.check_arm(method, steps, classes=classes)
        return study, Arm(method, steps, study.profile.seeds[0])
    from rddlib.diffusion.denoiser import warn_beyond
    from rddlib.evaluation import check_weight

    check_weight(guidance)
    guided = guided_study(study)
    guided.check_arm(method, steps, sampler=sampler, classes=classes)
    if method != "teacher":
        warn_beyond(guided.profile.guidance.weights, guidance)
    return guided, Arm(method, steps, guided.seed, guidance, sampler)


def _say_seed(study: "Study", method: str) -> None:
    """Where a study has students of several seeds: say whose is taken."""
    from rddlib.utils.distributed import rank

    first, *others = study.profile.seeds
    if others and rank() == 0 and method in study.profile.objectives:
        say(f"the student of seed {first} is taken; for seed {joined(others)} name its file with --checkpoint")


def _say_new(study: "Study", stage: "Stage") -> None:
    """Where the study's folder is new, perhaps mistyped: say that a study begins there, and what is trained for this stage."""
    from rddlib.utils.distributed import rank

    if rank() > 0 or (study.out.exists() and any(study.out.iterdir())):
        return
    trained = [one.label for one in stage.missing() if one.config and not one.ships]
    first = f"{counted(len(trained), 'model')} trained first ({', '.join(trained)})" if trained else "nothing to train"
    say(f"{study.out} is new: a study of the profile {study.profile.name} begins there, with {first}")


def _loaded(profile: str, folder: Path, settings: list[str] | None):
    """The profile as the study in the folder has it, where it is one of this profile, and as it is set now."""
    from rddlib.study.folder import as_recorded, recorded_overrides
    from rddlib.study.profiles import load_profile

    before = recorded_overrides(folder) if as_recorded(None, folder)[0] == profile else {}
    return load_profile(profile, before | parse_overrides(settings))


def _check_sampler(checkpoint: Path | None, sampler: str, guidance: float | None) -> None:
    if checkpoint is None and guidance is None and sampler != "ddim":
        raise UserError(
            f"--sampler {sampler} is for a --checkpoint or --guidance: name a study's sampler with --method {sampler}"
        )


def sample(
    method: MethodOption = "rdd",
    steps: StepsOption = 0,
    count: Annotated[int, typer.Option(min=1, help="Images to draw.")] = 64,
    noise: Annotated[int, typer.Option(help="Seed of the noise; the same noise for every method.")] = 0,
    checkpoint: CheckpointOption = None,
    sampler: SamplerOption = "ddim",
    guidance: GuidanceOption = None,
    classes: ClassesOption = "",
    prompt: Annotated[
        list[str] | None, typer.Option(help="What a text-guided --checkpoint draws; repeatable, in turn.")
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Also write each image as a PNG file, for other tools.")] = False,
    batch: BatchOption = 500,
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
) -> None:
    """Draw images with a study's model, or any other.

    A model that the study's folder (--out) lacks is trained there first, a new folder begins a study.
    OUT/samples then has an .npz (arr_0 [N, H, W, C] uint8, arr_1 labels) and a picture of the first 64. Batches that
    are drawn stay drawn: the same command goes on where another was stopped.

    \b
    Examples:
      rdd sample --method rdd --steps 1
      rdd sample --method dpm-solver --steps 12 --count 10000
      rdd sample --checkpoint runs/digits/checkpoints/rdd-1-*.safetensors --steps 1 --out somewhere
      rdd sample --checkpoint sd-folder --prompt "a red three on blue" --guidance 2 --steps 16
      rdd sample --guidance 2 --classes 3,7 --method pd --steps 4 --sampler stochastic
    """
    from rddlib.evaluation import NpzImages, draw_to_file, write_pngs
    from rddlib.study.folder import as_recorded, default_out
    from rddlib.study.stage import key_of
    from rddlib.utils.distributed import rank

    _check_sampler(checkpoint, sampler, guidance)
    words = listed("--classes", classes) if classes else []
    if prompt and (checkpoint is None or words):
        raise UserError("--prompt is for a --checkpoint, and in the place of --classes: give one of them")
    if checkpoint is not None:
        profile, folder, _ = as_recorded(profile, out or default_out("samples"))
        clip = _loaded(profile, folder, settings).evaluation.clip
        images, names = _drawn_by(
            checkpoint, sampler, steps, count, noise, clip, guidance=guidance, words=words, prompts=prompt or ()
        )
        chosen, model, steps = images.classes, f"{checkpoint.stem}-{sampler}", images.steps
    else:
        steps = steps or 1
        asked = (method, steps, guidance, sampler, words)

        def check(study: "Study") -> None:
            owner, arm = _model_of(study, *asked)
            _say_new(study, owner.stage_of(arm))

        study = study_of(profile, out, settings, seed, check=check)
        owner, arm = _model_of(study, *asked)
        _say_seed(study, method)
        chosen, names = study.dataset.class_numbers(words), study.dataset.class_names
        images, folder = owner.drawn(arm, samples=count, noise=noise, classes=chosen), study.out
        model = method if guidance is None else f"guided-{method}-{sampler}"
    drawn = images.provenance
    told = ("prompts", key_of(prompt)) if prompt else chosen and ("class", *chosen)
    conditions = ("" if guidance is None else f"-w{guidance:g}") + "".join(f"-{word}" for word in told)
    clipped = "" if drawn["clip"] else "-unclipped"
    name = f"{model}-{drawn['weights_sha256'][:8]}-{steps}steps{conditions}-{count}-noise{noise}{clipped}"
    path = folder / "samples" / f"{name}.npz"
    columns = [names[k] if names else str(k) for k in chosen] if 1 < len(chosen) <= 16 else []
    picture = draw_to_file(images, path, batch, columns)
    if rank() > 0:
        return
    print(f"{path}: {counted(count, 'image')}; {picture}: the first of them")
    if png:
        write_pngs(NpzImages(path), path.with_suffix(""))
        print(f"{path.with_suffix('')}: {count} PNG files")


def evaluate(
    method: MethodOption = "rdd",
    steps: StepsOption = 0,
    checkpoint: CheckpointOption = None,
    sampler: SamplerOption = "ddim",
    guidance: GuidanceOption = None,
    images: Annotated[Path | None, typer.Option(help="Score these: a folder of images, or an .npz with arr_0.")] = None,
    reference: Annotated[
        str,
        typer.Option(help="Against these: a folder, an .npz (images, or mu and sigma); default the profile's data."),
    ] = "",
    metrics: Annotated[
        str, typer.Option(help="Of fid, is, kid, pr (precision, recall), pfd (raw pixels), agree.")
    ] = "fid,is",
    protocol: Annotated[
        str, typer.Option(help="torch-fidelity, released (as the RCFD/RDD code scores), or both.")
    ] = "torch-fidelity",
    metric_network: Annotated[
        str,
        typer.Option(help="digits, inception, extractor (the profile's own), or a checkpoint; default by the images."),
    ] = "",
    samples: Annotated[int, typer.Option(min=0, help="Images to draw; 0 for the profile's number.")] = 0,
    noise: Annotated[str, typer.Option(help="Seeds of the noise, e.g. 0,1,2; default the profile's.")] = "",
    kid_subset: Annotated[int, typer.Option(help="Images in each of kid's subsets.")] = 1000,
    batch: BatchOption = 500,
    profile: StudyProfileOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = None,
) -> None:
    """Score images, with a receipt that says how.

    A model that the study's folder (--out) lacks is trained there first, a new folder begins a study.
    Scores are FID, inception score, KID, precision and recall. Results go to OUT/evaluations, one JSON file for each
    protocol and seed; a result that is there is shown, not measured again, and a stopped run goes on. Under torchrun
    the images are shared out among the processes.

    \b
    Examples:
      rdd evaluate --method rdd --steps 1 --metrics fid,is,pfd
      rdd evaluate --method dpm-solver --steps 12 --noise 0,1,2
      rdd evaluate --profile cifar10 --method rdd --steps 4 --protocol torch-fidelity,released
      rdd evaluate --guidance 2 --method rdd --steps 1
      rdd evaluate --checkpoint sd-folder --profile text --set data.root=captioned --guidance 2 --steps 16
      rdd evaluate --images samples.npz --reference cifar10-32x32.npz
      rdd evaluate --images folder --reference other --metric-network runs/cifar10/checkpoints/extractor-*.safetensors
    """
    from rddlib.data import WrongShape, load_dataset
    from rddlib.evaluation import Reference, check_fit, find_protocol, open_images, recorded
    from rddlib.study.folder import as_recorded, default_out
    from rddlib.training import training_device

    _check_sampler(checkpoint, sampler, guidance)
    if images is not None and (checkpoint is not None or samples or noise or guidance is not None):
        raise UserError("--images are given as they are: leave out --checkpoint, --samples, --noise and --guidance")
    asked = {
        "metrics": listed("--metrics", metrics),
        "protocols": [find_protocol(name).name for name in listed("--protocol", protocol)],
        "batch_size": batch,
        "kid_subset": kid_subset,
        "device": training_device(),
    }
    seeds = [whole("--noise", number) for number in listed("--noise", noise)] if noise else []
    with contextlib.ExitStack() as stack:

        def profile_images(shape: tuple[int, int, int]) -> "ImageDataset":
            try:
                return load_dataset(_loaded(profile, folder, settings).data, "train", shape)
            except WrongShape as error:
                raise UserError(
                    f"{error.fault}: say with --reference or --set data.root=.. what to compare with"
                ) from error

        @functools.cache
        def scoring(study: "Study | None", shape: tuple[int, int, int]) -> tuple[Reference, "Network"]:
            """What images of (C, H, W) are scored against, and through which network."""
            network = _network(metric_network, study, shape)
            source = reference or (study.dataset if study else profile_images(shape))
            return stack.enter_context(contextlib.closing(Reference(source, batch, asked["device"]))), network

        def check(study: "Study") -> None:
            """What must hold before a study trains and draws what is to be scored."""
            owner, arm = _model_of(study, *model)
            if metric_network != "extractor":  # which is trained first
                shape, count = study.image_shape, samples or owner.profile.evaluation.samples
                what = f"{method}, {counted(steps)}"
                check_fit(what, shape, count, *scoring(study, shape), asked["metrics"], kid_subset)
            _say_new(study, owner.stage_of(arm))

        steps = steps if checkpoint else steps or 1
        model = (method, steps, guidance, sampler, [])
        if images is None and checkpoint is None:
            study = study_of(profile, out, settings, seed, check=check)
            _say_seed(study, method)
            config, folder = study.profile.evaluation, study.out
        else:
            classifier = lambda study: _say_new(study, study.stages.extractor)  # noqa: E731
            study = study_of(profile, out, settings, seed, check=classifier) if metric_network == "extractor" else None
            profile, folder, _ = as_recorded(profile, out or default_out("scores"))
            config = _loaded(profile, folder, settings).evaluation

        def captions(shape: tuple[int, int, int]) -> Sequence[str]:
            found = profile_images(shape)
            if not found.class_names:
                raise UserError(
                    f"{checkpoint} follows prompts, and {found.name} has none: set data.name=captions, data.root"
                )
            return found.class_names

        def source(number: int):
            if images is not None:
                return open_images(images), {"method": images.stem, "steps": 0, "seed": 0}
            columns = {"method": checkpoint.stem if checkpoint else method, "steps": steps, "seed": number}
            if guidance is not None:
                columns |= {"guidance": guidance, "sampler": sampler}
            if checkpoint is not None:
                count = samples or config.samples
                options = {"guidance": guidance, "captions": captions}
                drawn = _drawn_by(checkpoint, sampler, steps, count, number, config.clip, **options)[0]
                return drawn, columns | {"steps": drawn.steps}
            owner, arm = _model_of(study, *model)
            return owner.drawn(arm, samples=samples, noise=number), columns

        rows = []
        for number in seeds or [config.seed]:
            scored, columns = source(number)
            guided = "" if guidance is None else f"-w{guidance:g}-{sampler}"
            name = (
                f"{columns['method']}-{columns['steps']}{guided}-noise{number}"
                if columns["steps"]
                else columns["method"]
            )
            rows += recorded(folder / "evaluations", name, columns, scored, *scoring(study, scored.shape), **asked)
    _show(rows)


def _network(choice: str, study: "Study | None", shape: tuple[int, int, int]) -> "Network":
    from rddlib.evaluation import find_network, network_of_checkpoint

    if choice == "extractor":
        study.extractor()
        return network_of_checkpoint(study.stages.extractor.path)
    if not choice and study is not None:
        return study.metric_network
    return find_network(choice, shape)


def _show(rows: list[tuple[Path, dict]]) -> None:
    """Scores as a table for each protocol, with mean, spread and minimum where there are several seeds."""
    import pandas as pd

    from rddlib.evaluation import SCORES
    from rddlib.utils.distributed import rank

    if rank() > 0:
        return
    for protocol in dict.fromkeys(record["receipt"]["protocol"] for _, record in rows):
        records = [(path, record) for path, record in rows if record["receipt"]["protocol"] == protocol]
        receipt = records[0][1]["receipt"]
        print(f"{receipt['metric']}, protocol {protocol}, against {receipt['reference']}")
        table = pd.DataFrame([record["row"] for _, record in records])
        print(table.to_string(index=False, float_format="{:.5g}".format))
        if len(records) > 1:
            scores = [name for name in table.columns if name in SCORES]
            summary = table[scores].agg(["mean", "std", "min"]).rename({"std": "spread"})
            print(summary.to_string(float_format="{:.5g}".format))
        for path, _ in records:
            print(f"receipt: {path}")
