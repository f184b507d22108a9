"""The fused form against the reference, wherever it runs: `test_fused.py` starts these in a process that may run it."""

import pytest
import torch
import torch.nn.functional as F
from test_losses import apart, random, unit_rows, value_and_gradient

from rddlib.losses import is_p2p_loss, m_p2p_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {  # N, C, H, W, channels of IS_P2P's teacher, V
    "several images a tile": (7, 70, 2, 3, 80, 9),
    "one image a tile": (3, 16, 7, 7, 5, 64),
    "tiles of one image": (2, 3, 9, 11, 3, 150),
    "one pixel": (1, 5, 1, 1, 5, 1),
    "one pixel an image": (70, 33, 1, 1, 33, 65),
}


def both(size, dtype, tau, impl, exact=False, noise=1.0):
    """Value and gradient of IS_P2P and of M_P2P; exact: in float64, of the same numbers."""
    N, C, H, W, wide, V = size
    map_S, map_T = random(N, C, H, W), random(N, C, H, W, seed=1)
    inputs = [map_T + noise * map_S, map_T, random(N, wide, H, W, seed=1), unit_rows(V, C)]
    map_S, map_T, wide_T, E = (x.to(DEVICE, dtype) for x in inputs)
    if exact:
        map_S, map_T, wide_T, E = (x.double() for x in (map_S, map_T, wide_T, E))
    teacher = map_T if noise < 1 else wide_T
    return (
        value_and_gradient(lambda x: is_p2p_loss(x, teacher, tau, impl=impl), map_S),
        value_and_gradient(lambda x: m_p2p_loss(x, map_T, E, tau, impl=impl), map_S),
    )


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.005])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_fused_equals_the_reference(size, dtype, tau):
    tight = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-6 / tau}
    for found, expected in zip(both(size, dtype, tau, "fused"), both(size, dtype, tau, "reference", True), strict=True):
        assert found[0].dtype == found[1].dtype == dtype
        torch.testing.assert_close(found, expected, check_dtype=False, **tight)


@pytest.mark.parametrize("noise", [0.5, 0.03])
def test_bf16_is_within_2_percent_of_float64(noise):
    size = (12, 96, 3, 3, 96, 40)
    exact = both(size, torch.bfloat16, 0.3, "reference", True, noise)
    for (value, gradient), (expected, wanted) in zip(
        both(size, torch.bfloat16, 0.3, "fused", noise=noise), exact, strict=True
    ):
        assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
        assert value.item() == pytest.approx(expected.item(), rel=0.02) and apart(gradient, wanted) < 0.02


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_float16_gradients_survive_the_loss_scale(scale):
    map_T = random(6, 8, 2, 2, seed=1, dtype=torch.float32).to(DEVICE)
    map_S = (map_T + 0.3 * random(6, 8, 2, 2, dtype=torch.float32).to(DEVICE)).half()
    _, found = value_and_gradient(lambda x: is_p2p_loss(x, map_T.half(), 0.5, impl="fused") * scale, map_S)
    exact, wanted = map_S.double(), map_T.half().double()
    _, expected = value_and_gradient(lambda x: is_p2p_loss(x, wanted, 0.5, impl="reference") * scale, exact)
    assert found.dtype == torch.float16 and found.isfinite().all()
    assert apart(found, expected) < (5e-3 if scale == 1.0 else 2e-3)


def test_layouts_autocast_and_dead_pixels_change_nothing():
    map_S, map_T, E = random(3, 4, 2, 3).to(DEVICE), random(3, 4, 2, 3, seed=1).to(DEVICE), unit_rows(5, 4).to(DEVICE)
    map_S[0, :, 0, 0] = 0

    def total(x):
        laid = x.contiguous(memory_format=torch.channels_last)
        return is_p2p_loss(laid, map_T, impl="fused") + m_p2p_loss(laid, map_T.mT.contiguous().mT, E, impl="fused")

    expected = value_and_gradient(lambda x: is_p2p_loss(x, map_T) + m_p2p_loss(x, map_T, E), map_S)
    found = value_and_gradient(total, map_S)
    torch.testing.assert_close(found, expected)
    assert (found[1][0, :, 0, 0] == 0).all()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(total(map_S), found[0])


def test_one_derivative_of_the_student_alone():
    map_S, map_T = (random(2, 3, 2, 2, seed=s).to(DEVICE).requires_grad_() for s in (0, 1))
    E = F.normalize(random(4, 3), dim=1).to(DEVICE).requires_grad_()
    loss = is_p2p_loss(map_S, map_T, impl="fused") + m_p2p_loss(map_S, map_T, E, impl="fused")
    once = torch.autograd.grad(loss, map_S, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(3 * loss, map_S)[0], 3 * once)
    assert map_T.grad is None and E.grad is None
    with torch.no_grad():
        assert not is_p2p_loss(map_S, map_T, impl="fused").requires_grad
