"""`rdd sample` draws images, `rdd evaluate` scores them: those of a study's model, of any checkpoint, or given ones."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rddlib.cli.options import OutOption, ProfileOption, SeedOption, SetOption, parse_overrides, study_of
from rddlib.errors import UserError

if TYPE_CHECKING:
    from rddlib.evaluation import Images, Network
    from rddlib.study import Study

MethodOption = Annotated[
    str, typer.Option(help="Who draws: pd, cfd, rcfd, rdd; or ddim, pndm, dpm-solver, samplers of the base model.")
]
StepsOption = Annotated[int, typer.Option(min=1, help="Sampling steps.")]
CheckpointOption = Annotated[Path | None, typer.Option(help="Draw with this file's model, whatever the profile.")]
SamplerOption = Annotated[str, typer.Option(help="How a --checkpoint draws: ddim, diffusers-ddim, pndm, dpm-solver.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Images at a time; results do not depend on it.")]


def _drawn_by(checkpoint: Path, sampler: str, steps: int, samples: int, noise: int) -> "Images":
    """Images of a checkpoint's model."""
    from rddlib.baselines import find_sampler
    from rddlib.evaluation import DrawnImages
    from rddlib.recipes import load_denoiser, provenance
    from rddlib.training import training_device

    denoiser, info = load_denoiser(checkpoint)
    made = provenance(denoiser, info)
    device = training_device()
    return DrawnImages(denoiser.to(device), samples, steps, seed=noise, device=device, made=made,
                       sampler=(sampler, find_sampler(sampler, steps)), name=f"{checkpoint.stem}, {steps} steps")  # fmt: skip


def sample(
    method: MethodOption = "rdd",
    steps: StepsOption = 1,
    count: Annotated[int, typer.Option(min=1, help="Images to draw.")] = 64,
    noise: Annotated[int, typer.Option(help="Seed of the noise; the same noise for every method.")] = 0,
    checkpoint: CheckpointOption = None,
    sampler: SamplerOption = "ddim",
    png: Annotated[bool, typer.Option("--png", help="Also write each image as a PNG file, for other tools.")] = False,
    batch: BatchOption = 500,
    profile: ProfileOption = "digits",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Draw images into OUT/samples: an .npz (arr_0 [N, H, W, C] uint8, arr_1 labels) and a picture of the first 64.

    Batches that are drawn stay drawn: the same command goes on where another was stopped.

    \b
    Examples:
      rdd sample --method rdd --steps 1
      rdd sample --method dpm-solver --steps 12 --count 10000
      rdd sample --checkpoint runs/digits/checkpoints/rdd-1-*.safetensors --steps 1 --out somewhere
    """
    from rddlib.evaluation import NpzImages, draw_to_file, write_pngs
    from rddlib.study import default_out

    if checkpoint is not None:
        images, folder = _drawn_by(checkpoint, sampler, steps, count, noise), out or default_out("samples")
        model = checkpoint.stem
    else:
        study = study_of(profile, out, settings, seed, check=lambda study: study.check_arm(method, steps))
        images, folder = study.drawn(method, steps, study.profile.seeds[0], count, noise), study.out
        model = method
    name = f"{model}-{images.provenance['checkpoint_sha256'][:8]}-{steps}steps-{count}-noise{noise}"
    path = folder / "samples" / f"{name}.npz"
    picture = draw_to_file(images, path, batch)
    print(f"{path}: {count} images; {picture}: the first of them")
    if png:
        write_pngs(NpzImages(path), path.with_suffix(""))
        print(f"{path.with_suffix('')}: {count} PNG files")


def evaluate(
    method: MethodOption = "rdd",
    steps: StepsOption = 1,
    checkpoint: CheckpointOption = None,
    sampler: SamplerOption = "ddim",
    images: Annotated[Path | None, typer.Option(help="Score these: a folder of images, or an .npz with arr_0.")] = None,
    reference: Annotated[
        str,
        typer.Option(help="Against these: a folder, an .npz (images, or mu and sigma); default the profile's data."),
    ] = "",
    metrics: Annotated[str, typer.Option(help="Of fid, is, kid, pr (precision, recall), pfd (raw pixels).")] = "fid,is",
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
    profile: ProfileOption = "digits",
    out: OutOption = None,
    settings: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Score images, with a receipt that says how: FID, inception score, KID, precision and recall.

    Results go to OUT/evaluations, one JSON file for each protocol and seed; a result that is there is shown, not measured
    again, and a stopped run goes on. Under torchrun the images are shared out among the processes.

    \b
    Examples:
      rdd evaluate --method rdd --steps 1 --metrics fid,is,pfd
      rdd evaluate --method dpm-solver --steps 12 --noise 0,1,2
      rdd evaluate --profile cifar10 --method rdd --steps 4 --protocol torch-fidelity,released
      rdd evaluate --images samples.npz --reference cifar10-32x32.npz
      rdd evaluate --images folder --reference other --metric-network runs/cifar10/checkpoints/extractor-*.safetensors
    """
    from rddlib.evaluation import Reference, find_protocol, open_images, recorded
    from rddlib.profiles import load_profile
    from rddlib.study import default_out
    from rddlib.training import training_device

    given = images is not None or checkpoint is not None
    if images is not None and checkpoint is not None:
        raise UserError("--images and --checkpoint name two sources: give one of them")
    protocols = [find_protocol(name).name for name in _listed(protocol)]
    scores, seeds = _listed(metrics), [_whole(number) for number in _listed(noise)]
    study = None
    if not given or not reference or metric_network == "extractor":
        check = (lambda study: None) if given else (lambda study: study.check_arm(method, steps))
        study = study_of(profile, out, settings, seed, check=check)
    config = load_profile(profile, parse_overrides(settings)).evaluation
    folder = (study.out if study and not given else out or default_out("scores")) / "evaluations"
    rows, network, device = [], None, training_device()
    with contextlib.closing(Reference(reference or study.dataset, batch, device)) as against:
        for number in [None] if images is not None else seeds or [config.seed]:
            if images is not None:
                scored, columns = open_images(images), {"method": images.stem, "steps": 0, "seed": 0}
            elif checkpoint is not None:
                scored = _drawn_by(checkpoint, sampler, steps, samples or config.samples, number)
                columns = {"method": checkpoint.stem, "steps": steps, "seed": number}
            else:
                scored = study.drawn(method, steps, study.profile.seeds[0], samples, number)
                columns = {"method": method, "steps": steps, "seed": number}
            network = network or _network(metric_network, study, scored.shape)
            rows += recorded(folder, _name(columns), columns, scored, against, network, metrics=scores, protocols=protocols,
                             batch_size=batch, kid_subset=kid_subset, device=device)  # fmt: skip
    _show(rows)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _whole(word: str) -> int:
    if not word.lstrip("-").isdigit():
        raise UserError(f"--noise {word}: expected whole numbers, e.g. --noise 0,1,2")
    return int(word)


def _name(columns: dict) -> str:
    steps = f"-{columns['steps']}-noise{columns['seed']}" if columns["steps"] else ""
    return f"{columns['method']}{steps}"


def _network(choice: str, study: "Study | None", shape: tuple[int, int, int]) -> "Network":
    from rddlib.evaluation import find_network, network_of_checkpoint

    if choice == "extractor":
        study.extractor()
        return network_of_checkpoint(study.path_of("extractor"))
    if not choice and study is not None:
        return study.metric_network
    return find_network(choice, shape)


def _show(rows: list[tuple[Path, dict]]) -> None:
    """Scores as a table for each protocol, with mean, spread and minimum where there are several seeds."""
    import pandas as pd

    from rddlib.distributed import rank
    from rddlib.evaluation import VALUES

    if rank() > 0:
        return
    for protocol in dict.fromkeys(record["receipt"]["protocol"] for _, record in rows):
        records = [(path, record) for path, record in rows if record["receipt"]["protocol"] == protocol]
        receipt = records[0][1]["receipt"]
        print(f"{receipt['metric']}, protocol {protocol}, against {receipt['reference']}")
        table = pd.DataFrame([record["row"] for _, record in records])
        print(table.to_string(index=False, float_format="{:.5g}".format))
        if len(records) > 1:
            scores = [name for name in table.columns if name in VALUES]
            summary = table[scores].agg(["mean", "std", "min"]).rename({"std": "spread"})
            print(summary.to_string(float_format="{:.5g}".format))
        for path, _ in records:
            print(f"receipt: {path}")
