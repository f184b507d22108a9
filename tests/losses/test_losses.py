"""The losses against the papers' equations written as loops, against mathematics, and against careless use."""

import math
import os
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import refused

from rddlib import losses
from rddlib.diffusion.schedule import CosineSchedule, DiscreteCosineSchedule
from rddlib.losses import (
    NonFiniteError,
    cfd_loss,
    diversity_loss,
    entropy_loss,
    finite_checks,
    ii_p2p_loss,
    is_p2p_loss,
    load_lpips,
    loss_weight,
    m_p2p_loss,
    pd_loss,
    perceptual_loss,
    stage_perceptual_loss,
    truncated_snr_weight,
)

FUSED = os.environ.get("RDD_FUSED")  # the device on which test_fused.py runs some of these for the fused form alone
FAST = "fused" if FUSED else "chunked"
FORMS = (FAST,) if FUSED else ("reference", FAST)
fast = settings(max_examples=12, deadline=None)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(FUSED)


def unit_rows(V, C, seed=9, dtype=torch.float64):
    return F.normalize(random(V, C, seed=seed, dtype=dtype), dim=1)


def value_and_gradient(loss, x):
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def apart(a, b):
    """Relative distance, in norm and float64."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def relational(map_S, map_T, E, tau=1.0, impl="auto", chunk=2):
    """IS_P2P, M_P2P and II_P2P."""
    forms = {"impl": impl, "chunk": chunk}
    terms = is_p2p_loss(map_S, map_T, tau, **forms), m_p2p_loss(map_S, map_T, E, tau, **forms)
    return torch.stack([*terms, ii_p2p_loss(map_S, map_T, tau)])


# The equations as loops over images, pixels and entries: nothing shared with the library but basic arithmetic.


def loop_kl(teacher, student):
    Z_T, Z_S = sum(torch.exp(v) for v in teacher), sum(torch.exp(v) for v in student)
    total = 0.0
    for v_T, v_S in zip(teacher, student, strict=True):
        q, p = torch.exp(v_T) / Z_T, torch.exp(v_S) / Z_S
        total = total + q * torch.log(q / p)
    return total


def loop_pixels(feature_map):
    N, _, H, W = feature_map.shape
    pixels = [[feature_map[n, :, h, w] for h in range(H) for w in range(W)] for n in range(N)]
    return [[f / torch.sqrt((f * f).sum()) for f in image] for image in pixels]


def loop_is_p2p(map_S, map_T, tau, only_within=False):
    S, T = loop_pixels(map_S), loop_pixels(map_T)
    N, A = len(S), len(S[0])
    pairs = [(i, j) for i in range(N) for j in range(N) if i == j or not only_within]
    total = 0.0
    for i, j in pairs:
        for a in range(A):
            student = [(S[i][a] * S[j][b]).sum() / tau for b in range(A)]
            teacher = [(T[i][a] * T[j][b]).sum() / tau for b in range(A)]
            total = total + loop_kl(teacher, student) / A
    return total / len(pairs)


def loop_m_p2p(map_S, map_T, E, tau):
    S, T = loop_pixels(map_S), loop_pixels(map_T)
    N, A = len(S), len(S[0])
    total = 0.0
    for n in range(N):
        for a in range(A):
            student = [(S[n][a] * e).sum() / tau for e in E]
            teacher = [(T[n][a] * e).sum() / tau for e in E]
            total = total + loop_kl(teacher, student) / A
    return total / N


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("tau", [1.0, 0.1])
@pytest.mark.parametrize("N, C, H, W, chunk", [(3, 5, 2, 3, 2), (5, 3, 1, 3, 2), (1, 4, 2, 2, 1), (3, 4, 1, 1, 2)])
def test_relations_equal_loops(impl, N, C, H, W, chunk, tau):
    map_S, map_T, wide_T = random(N, C, H, W), random(N, C, H, W, seed=1), random(N, C + 3, H, W, seed=1)
    E = unit_rows(7, C)
    pairs = [
        (lambda x: is_p2p_loss(x, wide_T, tau, impl=impl, chunk=chunk), lambda x: loop_is_p2p(x, wide_T, tau)),
        (lambda x: m_p2p_loss(x, map_T, E, tau, impl=impl, chunk=chunk), lambda x: loop_m_p2p(x, map_T, E, tau)),
        (lambda x: ii_p2p_loss(x, wide_T, tau), lambda x: loop_is_p2p(x, wide_T, tau, only_within=True)),
    ]
    for ours, loop in pairs:
        (value, gradient), (expected, expected_gradient) = (value_and_gradient(f, map_S) for f in (ours, loop))
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


def test_pointwise_equal_loops():
    S, T = random(5, 7), 2 * random(5, 7, seed=1)
    tau = 0.85
    cfd = sum(loop_kl(T[n] / tau, S[n]) for n in range(5)) / 5
    torch.testing.assert_close(cfd_loss(S, T, tau), cfd)
    dual = tau**2 * sum(loop_kl(T[n] / tau, S[n] / tau) for n in range(5)) / 5
    torch.testing.assert_close(cfd_loss(S, T, tau, dual=True), dual)
    p = torch.stack([torch.exp(row) / torch.exp(row).sum() for row in S])
    torch.testing.assert_close(entropy_loss(S), -sum(v * v.log() for v in p.flatten()) / 5)
    torch.testing.assert_close(diversity_loss(S), sum(q * q.log() for q in p.mean(0)))


WEIGHT_TIMES = [(CosineSchedule(), t) for t in (1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6, 1.0)]
WEIGHT_TIMES += [(DiscreteCosineSchedule(1024), k / 1024) for k in (0, 1, 512, 1024)]


@pytest.mark.parametrize("schedule, t", WEIGHT_TIMES)
def test_loss_weights_make_the_error_of_x_that_of_each_parametrisation(schedule, t):
    """Two images of one z_t, each with the noise that it leaves, and the v of both."""
    t = torch.full((4,), t, dtype=torch.float64)
    alpha, sigma = (v.reshape(4, 1, 1, 1) for v in (schedule.alpha(t), schedule.sigma(t)))
    z, images = random(4, 3, 2, 5, seed=2), (random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1))
    noises = [(z - alpha * x) / sigma for x in images]
    vs = [alpha * eps - sigma * x for x, eps in zip(images, noises, strict=True)]

    def apart(pair):
        return (pair[0] - pair[1]).square().sum((1, 2, 3))

    errors = {"x": apart(images), "eps": apart(noises), "v": apart(vs)}
    errors["truncated"] = torch.maximum(errors["x"], errors["eps"])
    # z - alpha x and alpha eps - sigma x lose the digits that z and alpha eps have before those that differ
    lost = 1e-14 / float(alpha.min()) if alpha.min() > 0 else 0
    for kind, error in errors.items():
        weight = loss_weight(kind, t, schedule)
        assert weight.dtype == torch.float64 and weight.shape == t.shape
        torch.testing.assert_close(weight * errors["x"], error, rtol=1e-12 + lost, atol=0)
    expected = (errors["truncated"] / images[0][0].numel()).mean()
    torch.testing.assert_close(pd_loss(*images, t, schedule), expected, rtol=1e-12 + lost, atol=0)


@pytest.mark.parametrize("kind", losses.LOSS_WEIGHTS)
def test_a_maximum_holds_every_loss_weight(kind):
    schedule, t = CosineSchedule(), torch.linspace(0, 1, 101, dtype=torch.float64)
    free, held = loss_weight(kind, t, schedule), loss_weight(kind, t, schedule, maximum=7.0)
    assert torch.equal(held, free.clamp(max=7.0)) and held.isfinite().all()
    assert (held.max() == 7 and free.max() == math.inf) if kind != "x" else (held == 1).all()
    if kind == "truncated":
        assert torch.equal(held, truncated_snr_weight(t, schedule, 7.0)) and free[0] == math.inf and free[-1] == 1
        assert pd_loss(torch.zeros(3, 1), torch.ones(3, 1), t[[0, 1, 100]], schedule, maximum=2.0) == pytest.approx(
            5 / 3
        )
    with pytest.raises(ValueError, match="maximum is 0.5"):
        loss_weight(kind, t, schedule, maximum=0.5)
    with pytest.raises(TypeError, match="t has shape"):
        loss_weight(kind, t.int(), schedule)


# Gradients


def every_loss():  # but the relations, whose gradients are compared with those of the loops
    map_T, pooled_T = random(3, 4, 2, 2, seed=1), random(3, 4, seed=3)
    t = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
    maps, pooled = random(3, 4, 2, 2), random(3, 4, seed=2)
    yield "pd", lambda x: pd_loss(x, map_T, t, CosineSchedule()), maps
    yield "cfd", lambda x: cfd_loss(x, pooled_T, 0.9), pooled
    yield "cfd dual", lambda x: cfd_loss(x, pooled_T, 2.0, dual=True), pooled
    yield "entropy", entropy_loss, pooled
    yield "diversity", diversity_loss, pooled
    yield "stages", lambda x: stage_perceptual_loss([x, 2 * x], [map_T, map_T]), maps


@pytest.mark.parametrize("name, loss, x", list(every_loss()), ids=lambda v: v if isinstance(v, str) else "")
def test_gradcheck(name, loss, x):
    assert torch.autograd.gradcheck(loss, x.requires_grad_())


@pytest.mark.parametrize("impl", FORMS)
def test_gradient_goes_to_the_student_alone(impl):
    map_S, map_T, E = (x.requires_grad_() for x in (random(2, 3, 2, 2), random(2, 3, 2, 2, seed=1), unit_rows(4, 3)))
    relational(map_S, map_T, E, impl=impl).sum().backward()
    pooled_S, pooled_T = random(2, 3).requires_grad_(), random(2, 3).requires_grad_()
    cfd_loss(pooled_S, pooled_T).backward()
    assert map_S.grad is not None and pooled_S.grad is not None
    assert map_T.grad is None and E.grad is None and pooled_T.grad is None
    with torch.no_grad():
        assert not is_p2p_loss(map_S, map_T, impl=impl).requires_grad


@pytest.mark.parametrize("impl", [FAST])
def test_a_fast_form_can_be_backed_through_twice_and_scaled(impl):
    map_S, map_T = random(3, 4, 2, 2).requires_grad_(), random(3, 4, 2, 2, seed=1)
    loss = is_p2p_loss(map_S, map_T, impl=impl) + m_p2p_loss(map_S, map_T, unit_rows(5, 4), impl=impl)
    once = torch.autograd.grad(loss, map_S, retain_graph=True)[0]
    again = torch.autograd.grad(3 * loss, map_S)[0]
    torch.testing.assert_close(again, 3 * once)


@pytest.mark.parametrize("impl", FORMS)
def test_a_dead_pixel_gets_no_gradient_and_spoils_nothing(impl):
    map_S, map_T = random(2, 3, 2, 2), random(2, 3, 2, 2, seed=1)
    map_S[0, :, 0, 0] = 0
    value, gradient = value_and_gradient(lambda x: relational(x, map_T, unit_rows(4, 3), impl=impl).sum(), map_S)
    assert value.isfinite() and gradient.isfinite().all() and gradient.abs().max() < 10
    assert (gradient[0, :, 0, 0] == 0).all()


# Both forms agree: sizes, dtypes, memory layouts, autocast, compile

shapes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))


@fast
@given(shapes, st.integers(1, 7), st.sampled_from([0.01, 0.1, 1.0, 10.0]), st.integers(0, 999))
def test_chunk_size_never_changes_the_result(shape, chunk, tau, seed):
    map_S, map_T, E = random(*shape, seed=seed), random(*shape, seed=seed + 1), unit_rows(5, shape[1])
    found = value_and_gradient(lambda x: relational(x, map_T, E, tau, "chunked", chunk).sum(), map_S)
    expected = value_and_gradient(lambda x: relational(x, map_T, E, tau, "reference").sum(), map_S)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


def test_bf16_maps_of_different_widths():
    map_S, map_T = random(4, 3, 2, 2).bfloat16(), random(4, 8, 2, 2, seed=1).bfloat16()
    expected = is_p2p_loss(map_S.double(), map_T.double(), impl="reference")
    assert is_p2p_loss(map_S, map_T, impl="chunked").item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: torch.stack([x, -x], dim=1)[:, 0],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["channels_last", "strided", "transposed"],
)
def test_memory_layout_does_not_matter(impl, layout):
    map_S, map_T, E = random(3, 4, 2, 3), random(3, 4, 2, 3, seed=1), unit_rows(5, 4)
    expected = value_and_gradient(lambda x: relational(x, map_T, E, impl=impl).sum(), map_S)
    found = value_and_gradient(lambda x: relational(layout(x), layout(map_T), E, impl=impl).sum(), map_S)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", [FAST])
@pytest.mark.parametrize("noise", [1.0, 0.1, 0.03])
@pytest.mark.parametrize("loss", ["is", "m"])
def test_bf16_gradient_is_within_2_percent_of_float64(noise, loss, impl):
    """Also where student and teacher are closer than bf16 can tell relations apart, and all pixels lie to one side."""
    common = random(1, 96, 1, 1, seed=3)
    map_T = (random(12, 96, 3, 3) + common).relu()
    map_S = (map_T + noise * random(12, 96, 3, 3, seed=1)).bfloat16()
    map_T = map_T.bfloat16()
    E = F.normalize((random(40, 96, seed=2) + common[..., 0, 0]).relu(), dim=1).bfloat16()

    def run(dtype, impl):
        which = ["is", "m"].index(loss)
        return value_and_gradient(
            lambda x: relational(x, map_T.to(dtype), E.to(dtype), [1.0, 0.1][which], impl, 5)[which], map_S.to(dtype)
        )

    value, gradient = run(torch.bfloat16, impl)
    expected, expected_gradient = run(torch.float64, "reference")
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    assert apart(gradient, expected_gradient) < 0.02
    assert value.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("impl", FORMS)
def test_autocast_does_not_change_the_losses(impl):
    map_S, map_T, E = random(4, 6, 2, 2).float(), random(4, 6, 2, 2, seed=1).float(), unit_rows(9, 6).float()
    total = lambda x: relational(x, map_T, E, impl=impl).sum() + cfd_loss(x.mean((2, 3)), map_T.mean((2, 3)))  # noqa: E731
    expected, expected_gradient = value_and_gradient(total, map_S)
    map_S.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = total(map_S)
    assert torch.equal(value, expected)
    assert torch.equal(torch.autograd.grad(value, map_S)[0], expected_gradient)


def test_compile_traces_the_losses_whole():
    map_S, map_T, E = random(4, 6, 2, 2), random(4, 6, 2, 2, seed=1), unit_rows(9, 6)
    total = lambda x: relational(x, map_T, E, 0.5, "chunked", 3).sum() + cfd_loss(x.mean((2, 3)), E[:4])  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled, map_S), value_and_gradient(total, map_S))


def test_auto_picks_by_size(monkeypatch):
    map_S, map_T = random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1)
    called = []
    monkeypatch.setattr(losses.relations.chunked, "is_p2p", lambda *a: called.append(a) or torch.tensor(0.0))
    is_p2p_loss(map_S, map_T)
    assert not called
    monkeypatch.setattr(losses.relations, "SMALL", 3)
    is_p2p_loss(map_S, map_T)
    assert called


# Properties


@fast
@given(shapes, st.sampled_from(FORMS), st.sampled_from([0.02, 0.3, 3.0]), st.integers(0, 999))
def test_properties_of_the_relational_losses(shape, impl, tau, seed):
    map_S, map_T, E = random(*shape, seed=seed), random(*shape, seed=seed + 1), unit_rows(5, shape[1])
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    scale = random(shape[0], 1, *shape[2:], seed=seed).exp()
    variants = {
        "as is": relational(map_S, map_T, E, tau, impl),
        "permuted batch": relational(map_S[order], map_T[order], E[[3, 1, 0, 4, 2]], tau, impl),
        "scaled pixels": relational(scale * map_S, 7 * map_T, E, tau, impl),
        "turned images": relational(map_S.flip(2, 3), map_T.flip(2, 3), E, tau, impl),
    }
    assert (variants["as is"] >= -1e-12).all()
    for value in variants.values():
        torch.testing.assert_close(value, variants["as is"], rtol=1e-9, atol=1e-12)
    assert relational(map_T, map_T, E, tau, impl).abs().max() < 1e-12


@fast
@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.05, 20), st.floats(-50, 50), st.integers(0, 999))
def test_properties_of_cfd_and_the_regularisers(N, C, tau, shift, seed):
    S, T = 3 * random(N, C, seed=seed), 3 * random(N, C, seed=seed + 1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    for dual in (False, True):
        value = cfd_loss(S, T, tau, dual)
        assert value >= -1e-12
        torch.testing.assert_close(cfd_loss(S[order], T[order], tau, dual), value)
        torch.testing.assert_close(cfd_loss(S + shift, T - shift, tau, dual), value, rtol=1e-7, atol=1e-9)
    assert cfd_loss(S, S * tau, tau).abs() < 1e-12 and cfd_loss(S, S, tau, dual=True).abs() < 1e-9
    assert -1e-12 <= entropy_loss(S) <= math.log(C) + 1e-12
    assert -math.log(C) - 1e-12 <= diversity_loss(S) <= 1e-12


def test_extremes_of_the_regularisers():
    sure = torch.eye(4) * 1000  # one class each, so that other classes' probability is exactly 0
    assert entropy_loss(sure) == 0
    assert diversity_loss(sure).item() == pytest.approx(-math.log(4))
    assert diversity_loss(sure[:1]) == 0 and diversity_loss(sure[[0, 0, 1]]).isfinite()
    x = sure[[0, 0, 1]].clone().requires_grad_()
    (entropy_loss(x) + diversity_loss(x)).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("impl", FORMS)
def test_temperature_limits(impl):
    """tau -> inf: both sides uniform, nothing to learn. tau -> 0: the greatest entry's regret, over tau."""
    map_S, map_T = random(3, 4, 2, 2).float(), random(3, 4, 2, 2, seed=1).float()
    assert is_p2p_loss(map_S, map_T, 1e4, impl=impl).abs() < 1e-6
    tau = 1e-4
    F_S, F_T = (F.normalize(x.double().flatten(2), dim=1) for x in (map_S, map_T))
    R_S, R_T = (torch.einsum("ica,jcb->iajb", f, f) for f in (F_S, F_T))
    best = R_T.argmax(-1, keepdim=True)
    regret = (R_S.amax(-1) - R_S.gather(-1, best)[..., 0]).mean()
    assert tau * is_p2p_loss(map_S, map_T, tau, impl=impl).item() == pytest.approx(regret.item(), rel=1e-3)
    value, gradient = value_and_gradient(lambda x: m_p2p_loss(x, map_T, unit_rows(5, 4).float(), tau, impl=impl), map_S)
    assert value.isfinite() and gradient.isfinite().all()


# Perceptual losses


def test_stage_perceptual_loss():
    a, b = random(2, 3, 4, 4), random(2, 5, 2, 2)
    assert stage_perceptual_loss([a, b], [a, b]) == 0
    torch.testing.assert_close(stage_perceptual_loss([a], [-3 * a]), torch.tensor(4.0, dtype=torch.float64))
    both = stage_perceptual_loss([a, b], [-a, b])
    torch.testing.assert_close(both, torch.tensor(2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 and stages_teacher 2"):
        stage_perceptual_loss([a], [a, b])
    with pytest.raises(ValueError, match=r"stages_student\[1\].*\[2, 5, 2, 2\]"):
        stage_perceptual_loss([a, b], [a, a])


def test_perceptual_loss_resizes_small_images():
    seen = []

    def network(x, y):
        seen.append(x.shape)
        return (x - y).square().mean((1, 2, 3), keepdim=True)

    x = random(2, 1, 8, 8).requires_grad_()
    perceptual_loss(x, random(2, 1, 8, 8, seed=1), network).backward()
    perceptual_loss(torch.zeros(1, 3, 256, 256), torch.ones(1, 3, 256, 256), network)
    assert seen == [(2, 3, 224, 224), (1, 3, 256, 256)] and x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"x_student has shape \[2, 4, 8, 8\]"):
        perceptual_loss(random(2, 4, 8, 8), random(2, 4, 8, 8), network)


def test_lpips_without_weights_says_so_at_once(monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert "vgg16-397923af.pth" in refused(load_lpips)
    monkeypatch.setattr(losses.perceptual, "VGG_ADDRESS", "http://127.0.0.1:9/vgg.pth")  # nobody listens
    assert "cannot download" in refused(load_lpips, download=True, timeout=2)
    assert not list(tmp_path.rglob("vgg*"))


# Careless use

MAP, OTHER = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
ROWS = torch.eye(3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: is_p2p_loss([1.0], OTHER), "map_student is a list"),
        (lambda: is_p2p_loss(MAP[0], OTHER), r"map_student has shape \[3, 4, 4\].*\[N, C, H, W\]"),
        (lambda: is_p2p_loss(MAP, OTHER[:1]), r"map_teacher has shape \[1, 3, 4, 4\]"),
        (lambda: is_p2p_loss(MAP, OTHER.int()), r"map_teacher has shape \[2, 3, 4, 4\] and dtype torch.int32"),
        (lambda: is_p2p_loss(MAP[:0], OTHER[:0]), r"map_student has shape \[0, 3, 4, 4\]"),
        (lambda: is_p2p_loss(MAP, OTHER.to("meta")), "map_teacher on meta"),
        (lambda: is_p2p_loss(MAP, OTHER, math.nan), "temperature is nan"),
        (lambda: is_p2p_loss(MAP, OTHER, impl="triton"), "impl is 'triton'"),
        (lambda: is_p2p_loss(MAP, OTHER, chunk=0), "chunk is 0"),
        (lambda: ii_p2p_loss(MAP, OTHER, -1), "temperature is -1"),
        (lambda: m_p2p_loss(MAP, OTHER[:, :2], ROWS), r"map_teacher has shape \[2, 2, 4, 4\]"),
        (lambda: m_p2p_loss(MAP, OTHER, ROWS[:0]), r"embeddings has shape \[0, 3\]"),
        (lambda: m_p2p_loss(MAP, OTHER, ROWS[:, :2]), r"embeddings has shape \[3, 2\]"),
        (lambda: cfd_loss(ROWS, ROWS[:2]), r"pooled_teacher has shape \[2, 3\]"),
        (lambda: cfd_loss(ROWS, ROWS, 0), "temperature is 0"),
        (lambda: entropy_loss(ROWS[0]), "logits has shape"),
        (lambda: diversity_loss(ROWS.int()), "logits has shape"),
        (lambda: pd_loss(MAP, OTHER, torch.ones(3), CosineSchedule()), r"t has shape \[3\]"),
        (lambda: pd_loss(MAP, OTHER[:, :1], torch.ones(2), CosineSchedule()), "x_teacher has shape"),
        (lambda: loss_weight("snr", torch.ones(2), CosineSchedule()), "'snr', expected one of truncated, x, eps, v"),
    ],
)
def test_errors_name_argument_and_shape(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_finite_checks():
    bad = MAP.clone()
    bad[0, 1, 2, 3] = math.nan
    is_p2p_loss(bad, OTHER)  # no look at the values unless asked
    with finite_checks():
        is_p2p_loss(MAP, OTHER)
        with pytest.raises(NonFiniteError, match="map_student .* 1 NaN or infinite of 96"):
            is_p2p_loss(bad, OTHER)
        with pytest.raises(NonFiniteError, match="map_teacher"):
            m_p2p_loss(MAP, bad, ROWS)
        with finite_checks(False):
            entropy_loss(ROWS / 0)
    entropy_loss(ROWS / 0)


@pytest.mark.parametrize("name", [n for n in losses.__all__ if n.endswith("_loss")])
def test_every_loss_cites_its_equation(name):
    assert re.search(r"Eq\. |arXiv", getattr(losses, name).__doc__)
    assert f"`{name}`" in losses.__doc__


@pytest.mark.parametrize("impl", [FAST])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_float16_gradients_survive_the_loss_scale(scale, impl):
    """What mixed precision in float16 does: the loss is multiplied by a large number that float16 cannot even hold."""
    map_T = random(6, 8, 2, 2, seed=1, dtype=torch.float32)
    map_S = (map_T + 0.3 * random(6, 8, 2, 2, dtype=torch.float32)).half()
    _, found = value_and_gradient(lambda x: is_p2p_loss(x, map_T.half(), 0.5, impl=impl, chunk=2) * scale, map_S)
    exact, wanted = map_S.double(), map_T.half().double()
    _, expected = value_and_gradient(lambda x: is_p2p_loss(x, wanted, 0.5, impl="reference") * scale, exact)
    assert found.dtype == torch.float16 and found.isfinite().all()
    # unscaled, the smallest values round to float16's coarse grid
    assert apart(found, expected) < (5e-3 if scale == 1.0 else 2e-3)
