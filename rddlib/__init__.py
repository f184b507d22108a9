"""rddlib: Relational Diffusion Distillation (Feng et al., ACM MM 2024), a library that reads like the paper.

The names that people type come from here, `from rddlib import RDD, distill`; each module loads when its name is first used.
"""

import importlib

from rddlib.utils.instructions import pin_instructions

__version__ = "0.1.0"
pin_instructions()

_HOMES = {
    "diffusion.schedule": ["CosineSchedule", "DiscreteCosineSchedule"],
    "diffusion.unet": ["UNet", "UNetConfig"],
    "diffusion.denoiser": ["Denoiser", "add_noise", "as_denoiser"],
    "diffusion.sampling": [
        "ddim_sample",
        "ddim_step",
        "noise_step",
        "stochastic_sample",
        "stochastic_target",
        "two_step_target",
    ],
    "diffusion.gaussian_mixture": ["GaussianMixture"],
    "losses": ["cfd_loss", "diversity_loss", "entropy_loss", "ii_p2p_loss", "is_p2p_loss", "m_p2p_loss", "pd_loss"],
    "distillation.objectives": ["CFD", "PD", "PDPerceptual", "RCFD", "RDD"],
    "distillation.extractor": ["FeatureExtractor", "as_extractor"],
    "distillation.pixel_queue": ["PixelQueue"],
    "distillation.train": ["distill", "train_base", "train_classifier"],
    "training": ["RunConfig", "TrainConfig", "Trainer"],
    "data": ["DataConfig", "load_dataset"],
    "evaluation": ["evaluate"],
    "interop": ["from_diffusers", "load_released_classifier", "load_released_unet", "to_diffusers"],
    "study.folder": ["open_study"],
    "study.study": ["Study"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'rddlib' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"rddlib.{_HOME_OF[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
