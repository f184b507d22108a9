"""The entropies of Fig. 2, Sun et al. 2023, as numbers on file: a record beside the scores, with its receipt."""

import time
from pathlib import Path

import torch

from rddlib.evaluation import common_noise, read_record, write_record
from rddlib.evaluation.entropy import entropy_by_step
from rddlib.evaluation.receipt import made_here
from rddlib.study.stage import key_of
from rddlib.study.study import Arm, Study
from rddlib.utils.distributed import locked


def entropy_path(study: Study, arm: Arm) -> Path:
    """Where the entropies of an arm lie, once measured."""
    evaluation, stage = study.profile.evaluation, study.stage_of(arm)
    facts = {
        "model": f"{stage.key}{stage.mark}",
        "steps": arm.steps,
        "clip": evaluation.clip,
        "samples": evaluation.samples,
        "noise": evaluation.seed,
        "extractor": study.stages.extractor.path.name,
    }
    return study.out / "ablations/entropies" / f"{arm.name}-{key_of(facts)}.json"


def entropy_record(study: Study, arm: Arm) -> dict:
    """{"row", "receipt"}; row["entropy"]: of the x predicted at each step, in nats, from t = 1 on, as the study's extractor
    sees it; measured now or found."""
    path = entropy_path(study, arm)
    with locked(path):
        if not path.exists():
            write_record(path, _measured(study, arm))
    return read_record(path)


def _measured(study: Study, arm: Arm) -> dict:
    evaluation, stage, began = study.profile.evaluation, study.stage_of(arm), time.perf_counter()
    extractor, denoiser = study.extractor(), stage.get()
    noise = common_noise(study.image_shape, 0, evaluation.samples, evaluation.seed).to(study.device)
    classes = study.profile.unet.num_classes
    entropies = entropy_by_step(
        denoiser,
        lambda x: extractor(x).logits,
        noise,
        arm.steps,
        clip=evaluation.clip,
        batch_size=evaluation.batch_size,
        y=torch.arange(len(noise), device=study.device) % classes if classes else None,
    )
    receipt = {
        "metric": "entropy of the extractor's prediction, nats",
        "network": study.profile.extractor.name,
        "network_sha256": study.stages.extractor.recorded()["sha256"],
        "checkpoint_sha256": stage.recorded()["sha256"],
        "samples": evaluation.samples,
        "sampler": "ddim",
        "steps": arm.steps,
        "clip": evaluation.clip,
        "noise_seed": evaluation.seed,
        **made_here(study.device, time.perf_counter() - began),
    }
    row = {"method": arm.method, "steps": arm.steps, "seed": arm.seed, "samples": evaluation.samples}
    return {"row": {**row, "entropy": entropies.tolist()}, "receipt": receipt}
