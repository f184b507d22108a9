"""A profile's kinds of training on random images, for a few iterations: what `rdd bench step` and `rdd plan` time.

The loop is the real one, rddlib.training.Trainer through rddlib.distillation.train; no data set is touched.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from rddlib.data import ImageDataset
from rddlib.diffusion.denoiser import Denoiser
from rddlib.distillation.extractor import FeatureExtractor
from rddlib.distillation.objectives import Objective
from rddlib.distillation.train import (
    Clock,
    distill,
    distill_guidance,
    takes_guidance,
    train_base,
    train_classifier,
    untimed,
)
from rddlib.study.assembly import build_denoiser, build_extractor, build_objective, conditional_profile
from rddlib.study.profiles import METHODS, Profile
from rddlib.training import RunConfig, TrainConfig

KINDS = (
    "base",
    "extractor",
    "guide",
    "progressive",
    *METHODS,
)  # "guide": stage one of guidance; "progressive": PD down to
# teacher_steps; METHODS: from there to 1
IMAGES = 256


def classes_of(profile: Profile) -> int:
    """Classes of the profile's images, without reading them."""
    return profile.unet.num_classes or (1000 if profile.data.name == "imagenet64" else 10)


def random_images(profile: Profile, count: int = IMAGES) -> ImageDataset:
    """Noise in the shape of the profile's images, with labels."""
    u, generator = profile.unet, torch.Generator().manual_seed(0)
    shape, classes = (count, u.image_channels, u.image_size, u.image_size), classes_of(profile)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return ImageDataset("noise", images, torch.randint(classes, (count,), generator=generator), classes)


def config_of(profile: Profile, kind: str) -> TrainConfig:
    """How a training of this kind is done; iterations are those of one training."""
    if kind in METHODS:
        return replace(profile.distill.train, iterations=profile.distill.iterations[0])
    sections = {
        "base": profile.base,
        "extractor": profile.extractor,
        "guide": profile.guidance,
        "progressive": profile.progressive,
    }
    return sections[kind].train


class Stage:
    """kind: one of KINDS, untrained networks as the profile has them. `network` is what is trained, a Denoiser or the
    extractor; `objective` what a student minimises, None for the others."""

    def __init__(self, profile: Profile, kind: str):
        torch.manual_seed(0)
        self.profile, self.kind, self.objective = profile, kind, None
        self.images = random_images(profile)
        self.network: Denoiser | FeatureExtractor
        if kind == "extractor":
            self.network = build_extractor(profile, classes_of(profile))
            return
        if kind == "guide":
            profile = conditional_profile(profile, classes_of(profile))
        self.network = build_denoiser(profile)
        if kind not in ("base", "guide"):
            self.objective = self._objective("pd" if kind == "progressive" else kind)

    def _objective(self, method: str) -> Objective:
        extractor = None if method == "pd" else build_extractor(self.profile, classes_of(self.profile))
        return build_objective(self.profile, method, self.profile.student_steps[0], extractor)

    def fit(self, config: TrainConfig, run: RunConfig, clock: Clock = untimed) -> nn.Module:
        """Train as the profile does but with this config, writing no file; the trained copy. clock: none for "extractor"."""
        p, run = self.profile, replace(run, sample_every=0, tensorboard=False)
        if self.kind == "base":
            return train_base(
                self.network, self.images, config, 0, p.base.snr_max or None, run=run, clock=clock, weight=p.base.weight
            )
        if self.kind == "guide":
            student = takes_guidance(self.network, p.guidance.weights)
            return distill_guidance(
                self.network,
                student,
                self.images,
                config,
                0,
                p.base.snr_max or None,
                run=run,
                clock=clock,
                weight=p.base.weight,
            )
        if self.kind == "extractor":
            shift = p.extractor.shift
            return train_classifier(self.network, lambda out: out.logits, self.images, config, 0, shift, run=run)
        released = p.loss.released if self.kind in METHODS else ()
        return distill(
            self.network,
            self.images,
            p.student_steps[0],
            self.objective,
            config,
            0,
            run=run,
            released=released,
            clock=clock,
        )


@contextlib.contextmanager
def each_step(seen: Callable[[Optimizer], None]):
    """Inside, seen(optimizer) is called after every step of every optimiser."""
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen(optimizer))
    try:
        yield
    finally:
        handle.remove()
