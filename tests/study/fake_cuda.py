"""Everything that training and drawing compute forward, on tensors that say they are on CUDA and hold no values.

A mix of devices is an error there in every operation, as on a GPU. `test_fake_cuda.py` runs it in a process of its own.
"""

import sys

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from rddlib.diffusion.denoiser import add_noise
from rddlib.diffusion.sampling import ddim_sample, stochastic_sample, stochastic_target, two_step_target
from rddlib.distillation.objectives import TERMS, Sum, Term
from rddlib.distillation.train import augment, takes_guidance
from rddlib.losses import is_p2p_loss, m_p2p_loss
from rddlib.study.graph import build_denoiser, conditional_profile, new_extractor
from rddlib.study.profiles import load_profile

ALL = [Term(name) for name in TERMS if name != "lpips"]  # which looks through a network of its own


def refused(call):
    """Whether a mix of devices is caught; without this nothing below would mean anything."""
    try:
        call()
    except RuntimeError as error:
        return "device" in str(error)
    return False


def mixes():
    here, there = torch.ones(1, 1, 4, 4, device="cuda"), torch.ones(1, 1, 4, 4)
    assert refused(lambda: here + there) and refused(lambda: here @ there) and refused(lambda: F.conv2d(here, there))
    assert not refused(lambda: F.conv2d(here, here))


def forward(profile):
    generator, shape = torch.Generator(), (4, profile.unet.image_channels, *[profile.unet.image_size] * 2)
    with torch.device("cuda"):
        denoiser, extractor = build_denoiser(profile).eval(), new_extractor(profile, 10)
        objective = Sum(ALL, denoiser.schedule, extractor, queue_size=8, draws=6)
    x = torch.zeros(shape, device="cuda")
    t = torch.full((4,), 0.5, device="cuda", dtype=torch.float64)
    y = torch.zeros(4, device="cuda", dtype=torch.long) if denoiser.num_classes else None
    z = add_noise(augment(x, generator, 1), t, denoiser.schedule, generator)
    made = [two_step_target(denoiser, z, t, 0.25, y), stochastic_target(denoiser, z, t, 0.25, y)]
    for _ in range(2):  # the queue is empty at first
        found = objective(denoiser(z, t, y), made[0], t, generator)
        objective.after_step(generator)
    assert found.terms.keys() == {term.loss for term in ALL}
    made += [found.total, ddim_sample(denoiser, z, 2, y=y), stochastic_sample(denoiser, z, 2, y=y)]
    if denoiser.unconditional:
        with torch.device("cuda"):
            guided = takes_guidance(denoiser, (0.0, 4.0))
        made += [denoiser(z, t, y, 2.0), guided(z, t, y, torch.ones_like(t))]
    assert {tensor.device.type for tensor in made} == {"cuda"}


def losses():
    """Each form with its gradient at the map, which the chunked one makes on the way forward."""
    with torch.enable_grad():
        for impl in ("reference", "chunked"):
            map_S, map_T = (torch.ones(3, 4, 2, 2, device="cuda").requires_grad_(grad) for grad in (True, False))
            one = is_p2p_loss(map_S, map_T, impl=impl, chunk=2)
            other = m_p2p_loss(map_S, map_T, torch.ones(5, 4, device="cuda"), impl=impl, chunk=2)
            assert {one.device.type, other.device.type} == {"cuda"}


with FakeTensorMode(), torch.no_grad():
    mixes()
    losses()
    forward(conditional_profile(load_profile("smoke", {}), 10))
    for name in sys.argv[1:]:
        forward(load_profile(name, {}))
        print(name)
