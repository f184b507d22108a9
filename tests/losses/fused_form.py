"""The fused form against the reference, wherever it runs: `test_fused.py` starts these in a process that may run it."""

import pytest
import torch
from test_losses import FUSED, random, relational, unit_rows, value_and_gradient

from rddlib.losses import is_p2p_loss, m_p2p_loss

SIZES = {  # N, C, H, W, channels of IS_P2P's teacher, V
    "several images a tile": (7, 70, 2, 3, 80, 9),
    "one image a tile": (3, 16, 7, 7, 5, 64),
    "tiles of one image": (2, 3, 9, 11, 3, 150),
    "one pixel": (1, 5, 1, 1, 5, 1),
    "one pixel an image": (70, 33, 1, 1, 33, 65),
}


def both(size, dtype, tau, impl):
    """Value and gradient of IS_P2P and of M_P2P; of the reference in float64, of the same numbers."""
    N, C, H, W, wide, V = size
    near = random(N, C, H, W, seed=1)
    inputs = near + random(N, C, H, W), near, random(N, wide, H, W, seed=1), unit_rows(V, C)
    exact = torch.float64 if impl == "reference" else dtype
    map_S, map_T, wide_T, E = (x.to(dtype).to(exact) for x in inputs)
    return (
        value_and_gradient(lambda x: is_p2p_loss(x, wide_T, tau, impl=impl), map_S),
        value_and_gradient(lambda x: m_p2p_loss(x, map_T, E, tau, impl=impl), map_S),
    )


CASES = [("several images a tile", 1.0), ("several images a tile", 0.005), *((name, 0.1) for name in SIZES)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size, tau", [(SIZES[name], tau) for name, tau in CASES], ids=[f"{n}, {t}" for n, t in CASES])
def test_fused_equals_the_reference(size, dtype, tau):
    tight = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-6 / tau}
    for found, expected in zip(both(size, dtype, tau, "fused"), both(size, dtype, tau, "reference"), strict=True):
        assert found[0].dtype == found[1].dtype == dtype
        torch.testing.assert_close(found, expected, check_dtype=False, **tight)


def test_autocast_does_not_change_the_losses():
    map_S, map_T, E = random(3, 4, 2, 3), random(3, 4, 2, 3, seed=1), unit_rows(5, 4)
    expected = relational(map_S, map_T, E, impl="fused")
    with torch.autocast(FUSED, dtype=torch.bfloat16):
        assert torch.equal(relational(map_S, map_T, E, impl="fused"), expected)
