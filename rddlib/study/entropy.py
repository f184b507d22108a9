"""The entropies of Fig. 2, Sun et al. 2023, as numbers on file: a record beside the scores, with its receipt."""

import time
from pathlib import Path

import torch

import rddlib
from rddlib.evaluation import common_noise, read_record, write_record
from rddlib.evaluation.entropy import entropy_by_step
from rddlib.study.study import Study, key_of
from rddlib.utils.distributed import locked
from rddlib.utils.installation import git_commit, hardware


def _arm(study: Study, method: str, steps: int, seed: int) -> tuple[str, int, int]:
    """Whose model draws: "teacher" draws with the teacher whatever the steps, the others with their own of that many."""
    return ("pd", study.profile.progressive.teacher_steps, seed) if method == "teacher" else (method, steps, seed)


def entropy_path(study: Study, method: str, steps: int, seed: int) -> Path:
    """Where the entropies of an arm lie, once measured."""
    evaluation = study.profile.evaluation
    facts = {
        "model": study.model_key(*_arm(study, method, steps, seed)),
        "steps": steps,
        "clip": evaluation.clip,
        "samples": evaluation.samples,
        "noise": evaluation.seed,
        "extractor": study.path_of("extractor").name,
    }
    return study.out / "ablations/entropies" / f"{method}-{steps}-{seed}-{key_of(facts)}.json"


def entropy_record(study: Study, method: str, steps: int, seed: int) -> dict:
    """{"row", "receipt"}; row["entropy"]: of the x predicted at each step, in nats, from t = 1 on, as the study's extractor
    sees it; measured now or found."""
    path = entropy_path(study, method, steps, seed)
    with locked(path):
        if not path.exists():
            write_record(path, _measured(study, method, steps, seed))
    return read_record(path)


def _measured(study: Study, method: str, steps: int, seed: int) -> dict:
    evaluation, arm, began = study.profile.evaluation, _arm(study, method, steps, seed), time.perf_counter()
    extractor, denoiser = study.extractor(), study.denoiser(*arm)
    noise = common_noise(study.image_shape, 0, evaluation.samples, evaluation.seed).to(study.device)
    classes = study.profile.unet.num_classes
    entropies = entropy_by_step(
        denoiser,
        lambda x: extractor(x).logits,
        noise,
        steps,
        clip=evaluation.clip,
        batch_size=evaluation.batch_size,
        y=torch.arange(len(noise), device=study.device) % classes if classes else None,
    )
    receipt = {
        "metric": "entropy of the extractor's prediction, nats",
        "network": study.profile.extractor.name,
        "network_sha256": study.facts("extractor")["sha256"],
        "checkpoint_sha256": study.facts(*study.model(*arm))["sha256"],
        "samples": evaluation.samples,
        "sampler": "ddim",
        "steps": steps,
        "clip": evaluation.clip,
        "noise_seed": evaluation.seed,
        "library": f"rddlib {rddlib.__version__}",
        "git_commit": git_commit(),
        "torch": torch.__version__,
        "hardware": hardware(study.device),
        "seconds": round(time.perf_counter() - began, 2),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    row = {"method": method, "steps": steps, "seed": seed, "entropy": entropies.tolist(), "samples": evaluation.samples}
    return {"row": row, "receipt": receipt}
