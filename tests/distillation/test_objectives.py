import pytest
import torch

from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import (
    CFD,
    PD,
    RCFD,
    RDD,
    RELEASED_SWITCHES,
    PDPerceptual,
    gradient_report,
    projection_head,
)
from rddlib.losses import (
    cfd_loss,
    diversity_loss,
    entropy_loss,
    ii_p2p_loss,
    is_p2p_loss,
    m_p2p_loss,
    pd_loss,
    stage_perceptual_loss,
)

T = torch.tensor([0.25, 0.5, 1.0])


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return build_extractor("small_resnet", 1, 10).double().eval()


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(3)
    return torch.rand(2, 3, 1, 8, 8, generator=g, dtype=torch.float64) * 2 - 1


def rdd(extractor, **changes):
    numbers = dict(alpha=2.0, beta=0.5, tau_is=0.7, tau_m=0.2, queue_size=40, draws=16, per_image=4)
    return RDD(extractor, 0.9, **{**numbers, **changes}).double()


def test_pd_is_its_loss(images):
    x_S, x_T = images
    loss = PD(CosineSchedule())(x_S, x_T, T, torch.Generator())
    assert loss.total == pd_loss(x_S, x_T, T, CosineSchedule()) and list(loss.terms) == ["pd"]


def test_cfd_compares_pooled_features(extractor, images):
    x_S, x_T = images
    loss = CFD(extractor, 0.9)(x_S, x_T, T, torch.Generator())
    torch.testing.assert_close(loss.total, cfd_loss(extractor(x_S).pooled, extractor(x_T).pooled, 0.9))


def test_rcfd_is_equation_7(extractor, images):
    x_S, x_T = images
    loss = RCFD(extractor, 0.95, beta=0.003, gamma=0.75)(x_S, x_T, T, torch.Generator())
    f_S, f_T = extractor(x_S), extractor(x_T)
    regular = 0.75 * entropy_loss(f_S.logits) + 0.25 * diversity_loss(f_S.logits)
    torch.testing.assert_close(loss.total, cfd_loss(f_S.pooled, f_T.pooled, 0.95) + 0.003 * regular)


def test_rdd_is_equation_10_with_the_memory_of_earlier_iterations(extractor, images):
    x_S, x_T = images
    objective, shared = rdd(extractor), torch.Generator().manual_seed(1)
    first = objective(x_S, x_T, T, shared)
    assert set(first.terms) == {"cfd", "is_p2p"} and len(objective.queue) == 0  # nothing to remember yet
    objective.after_step(shared)
    assert len(objective.queue) == 3 * 4

    state = shared.get_state()
    second = objective.eval()(x_S, x_T, T, shared)
    f_S, f_T = extractor(x_S), extractor(x_T)
    embeddings = objective.queue.sample(16, torch.Generator().set_state(state)).double()
    expected = (
        cfd_loss(f_S.pooled, f_T.pooled, 0.9)
        + 2.0 * is_p2p_loss(f_S.map, f_T.map, 0.7)
        + 0.5 * m_p2p_loss(objective.head(f_S.map), f_T.map, embeddings, 0.2)
    )
    torch.testing.assert_close(second.total, expected)


def test_the_queue_is_filled_after_use_with_the_teachers_pixels(extractor, images):
    x_S, x_T = images
    objective = rdd(extractor, per_image=16)  # every pixel of the 4x4 map
    objective(x_S, x_T, T, torch.Generator())
    assert len(objective.queue) == 0
    objective.after_step(torch.Generator())
    pixels = torch.nn.functional.normalize(extractor(x_T).map.flatten(2).mT.flatten(0, 1), dim=1)
    held = objective.queue.rows  # 40 rows of the 48: the newest
    distance = torch.cdist(held, pixels, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert len(objective.queue) == 40 and distance.max() < 1e-6


def test_gradients_reach_student_and_head_but_not_the_extractor(extractor, images):
    x_S, x_T = images[0].clone().requires_grad_(), images[1].clone().requires_grad_()
    objective = rdd(extractor)
    objective(x_S.detach(), x_T, T, torch.Generator())
    objective.after_step(torch.Generator())
    objective(x_S, x_T, T, torch.Generator()).total.backward()
    assert x_S.grad.abs().sum() > 0 and x_T.grad is None
    assert all(p.grad is not None for p in objective.head.parameters())
    assert all(p.grad is None for p in extractor.parameters())


def test_only_head_and_queue_are_state(extractor):
    assert {name.split(".")[0] for name in rdd(extractor).state_dict()} == {"head", "queue"}


def test_equal_images_cost_nothing(extractor, images):
    x = images[0]
    objective = CFD(extractor, 1.0)
    assert abs(objective(x, x, T, torch.Generator()).total) < 1e-12


def test_projection_head_is_two_pointwise_convolutions():
    layers = [type(m).__name__ for m in projection_head(6)]
    assert layers == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert projection_head(6)(torch.randn(2, 6, 3, 3)).shape == (2, 6, 3, 3)


def test_perceptual_terms_carry_their_own_names(extractor, images):
    x_S, x_T = images
    loss = PDPerceptual(CosineSchedule(), extractor, weight=2.0)(x_S, x_T, T, torch.Generator())
    stages = stage_perceptual_loss(extractor.stages(x_S), extractor.stages(x_T))
    torch.testing.assert_close(loss.total, pd_loss(x_S, x_T, T, CosineSchedule()) + 2 * stages)
    assert list(loss.terms) == ["pd", "stages"]
    assert [m.shape[1:] for m in extractor.stages(x_S)] == [(48, 8, 8), (96, 4, 4)]


def test_an_empty_queue_is_reported(extractor, images):
    objective = rdd(extractor)
    terms = objective(*images, T, torch.Generator()).terms
    assert "m_p2p" not in terms and objective.status() == {"queue_rows": 0}
    objective.after_step(torch.Generator())
    assert objective.status() == {"queue_rows": 12}


def test_options_of_cfd(extractor, images):
    x_S, x_T = images
    f_S, f_T = extractor(x_S), extractor(x_T)
    dual = CFD(extractor, 0.7, dual=True, predictions=True)(x_S, x_T, T, torch.Generator()).total
    torch.testing.assert_close(dual, cfd_loss(f_S.logits, f_T.logits, 0.7, dual=True))


def test_microscope_equals_gradients_taken_one_by_one(extractor, images):
    x_S, x_T = images[0].clone().requires_grad_(), images[1]
    terms = rdd(extractor)(x_S, x_T, T, torch.Generator()).terms
    report = gradient_report(terms, x_S)
    a, b = (torch.autograd.grad(terms[n], x_S, retain_graph=True)[0].flatten() for n in ("cfd", "is_p2p"))
    assert set(report) == {"gradient/cfd", "gradient/is_p2p", "cosine/cfd,is_p2p"}
    torch.testing.assert_close(report["gradient/is_p2p"], b.norm())
    torch.testing.assert_close(report["cosine/cfd,is_p2p"], a @ b / (a.norm() * b.norm()))


def test_balanced_terms_have_the_stated_share_of_cfds_gradient(extractor, images):
    x_S, x_T = images[0].clone().requires_grad_(), images[1]
    objective, shared = rdd(extractor, alpha=0.5, beta=0.25, weights="balanced"), torch.Generator().manual_seed(0)
    objective(x_S, x_T, T, shared)
    objective.after_step(shared)
    loss = objective(x_S, x_T, T, shared)
    (total,) = torch.autograd.grad(loss.total, x_S, retain_graph=True)
    g = {n: torch.autograd.grad(term, x_S, retain_graph=True)[0] for n, term in loss.terms.items()}
    expected = g["cfd"] + sum(
        share * g["cfd"].norm() * g[name] / g[name].norm() for name, share in (("is_p2p", 0.5), ("m_p2p", 0.25))
    )
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("switch", sorted(RELEASED_SWITCHES))
def test_every_released_switch_runs(extractor, images, switch):
    x_S, x_T = images[0].clone().requires_grad_(), images[1]
    objective, shared = rdd(extractor, released=[switch]), torch.Generator().manual_seed(0)
    for _ in range(3):
        loss = objective(x_S, x_T, T, shared)
        objective.after_step(shared)
    loss.total.backward()
    assert loss.total.isfinite() and "m_p2p" in loss.terms and x_S.grad.isfinite().all()


def test_released_push_comes_before_the_loss(extractor, images):
    objective = rdd(extractor, released=["queue_push"])
    assert "m_p2p" in objective(*images, T, torch.Generator()).terms  # the very first iteration compares with itself
    objective.after_step(torch.Generator())
    assert len(objective.queue) == 12  # and nothing is pushed twice


def test_unknown_switches_are_refused(extractor):
    with pytest.raises(ValueError, match="released names"):
        rdd(extractor, released=["queue"])


def test_a_term_of_weight_0_is_left_out_with_all_that_it_needs(extractor, images):
    x_S, x_T = images
    f_S, f_T = extractor(x_S), extractor(x_T)
    cfd = cfd_loss(f_S.pooled, f_T.pooled, 0.9)
    within = rdd(extractor, alpha=0.5, beta=0.0)
    assert within.head is None and within.queue is None and not list(within.parameters()) and within.status() == {}
    loss = within(x_S, x_T, T, torch.Generator())
    torch.testing.assert_close(loss.total, cfd + 0.5 * is_p2p_loss(f_S.map, f_T.map, 0.7))
    within.after_step(torch.Generator())

    remembering, shared = rdd(extractor, alpha=0.0), torch.Generator().manual_seed(1)
    assert set(remembering(x_S, x_T, T, shared).terms) == {"cfd"}
    remembering.after_step(shared)
    assert set(remembering(x_S, x_T, T, shared).terms) == {"cfd", "m_p2p"}

    regular = RCFD(extractor, 0.95, beta=0.5, gamma=1.0, cfd=0.0)(x_S, x_T, T, torch.Generator())
    assert set(regular.terms) == {"entropy"} and regular.total == 0.5 * entropy_loss(f_S.logits)
    double = RCFD(extractor, 0.9, beta=0.0, gamma=1.0, cfd=2.0)(x_S, x_T, T, torch.Generator())
    torch.testing.assert_close(double.total, 2 * cfd)


def test_relations_within_images_can_take_the_place_of_those_across(extractor, images):
    x_S, x_T = images
    objective = rdd(extractor, beta=0.0, relation="ii_p2p")
    loss, f_S, f_T = objective(x_S, x_T, T, torch.Generator()), extractor(x_S), extractor(x_T)
    expected = ii_p2p_loss(f_S.map, f_T.map, 0.7)
    assert loss.terms["ii_p2p"] == expected and "is_p2p" not in loss.terms
    torch.testing.assert_close(loss.total, cfd_loss(f_S.pooled, f_T.pooled, 0.9) + 2.0 * expected)
    assert rdd(extractor, relation="ii_p2p", weights="balanced").balance.shares == {"ii_p2p": 2.0, "m_p2p": 0.5}


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_both_forms_of_the_losses_give_one_total(extractor, images, impl):
    totals = []
    for form in ("auto", impl):
        torch.manual_seed(0)
        objective, shared = rdd(extractor, impl=form), torch.Generator().manual_seed(1)
        objective(*images, T, shared)
        objective.after_step(shared)
        totals.append(objective(*images, T, shared).total)
    torch.testing.assert_close(*totals, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "weights, words",
    [
        (dict(cfd=0.0, alpha=0.0, beta=0.0), "cfd and alpha are 0"),
        (dict(cfd=0.0, alpha=0.0), "while the queue is empty"),
        (dict(relation="across"), "relation is 'across'"),
    ],
)
def test_an_objective_that_could_not_learn_is_refused(extractor, weights, words):
    with pytest.raises(ValueError, match=words):
        rdd(extractor, **weights)
    with pytest.raises(ValueError, match="all weights are 0"):
        RCFD(extractor, 0.9, beta=0.0, gamma=0.5, cfd=0.0)
