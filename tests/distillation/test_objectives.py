"""The objectives are their equations, in float64; what they remember, leave out, balance and refuse."""

import pytest
import torch
from torch.nn.functional import normalize

from rddlib import losses
from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.extractor import build_extractor
from rddlib.distillation.objectives import CFD, PD, RCFD, RDD, RELEASED_SWITCHES, PDPerceptual, gradient_report

T = torch.tensor([0.25, 0.5, 1.0])


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return build_extractor("small_resnet", 1, 10).double().eval()


@pytest.fixture
def images():
    """(x_S, which wants a gradient, x_T)."""
    g = torch.Generator().manual_seed(3)
    student, teacher = torch.rand(2, 3, 1, 8, 8, generator=g, dtype=torch.float64) * 2 - 1
    return student.requires_grad_(), teacher


@pytest.fixture
def features(extractor, images):
    return [extractor(x) for x in images]


def rdd(extractor, **changes):
    numbers = dict(alpha=2.0, beta=0.5, tau_is=0.7, tau_m=0.2, queue_size=40, draws=16, per_image=4)
    return RDD(extractor, 0.9, **{**numbers, **changes}).double()


def twice(objective, images, generator):
    """The loss of a second iteration, with the memory of the first."""
    objective(*images, T, generator)
    objective.after_step(generator)
    return objective(*images, T, generator)


def gradient(term, x):
    return torch.autograd.grad(term, x, retain_graph=True)[0]


def test_pd_and_its_perceptual_companion(extractor, images, generator):
    pd = losses.pd_loss(*images, T, CosineSchedule())
    loss = PD(CosineSchedule())(*images, T, generator)
    assert loss.total == pd and list(loss.terms) == ["pd"]
    loss = PDPerceptual(CosineSchedule(), extractor, weight=2.0)(*images, T, generator)
    maps = [extractor.stages(x) for x in images]
    torch.testing.assert_close(loss.total, pd + 2 * losses.stage_perceptual_loss(*maps))
    assert list(loss.terms) == ["pd", "stages"]
    assert [m.shape[1:] for m in maps[0]] == [(48, 8, 8), (96, 4, 4)]


def test_cfd_compares_pooled_features_or_predictions(extractor, images, features, generator):
    f_S, f_T = features
    plain = CFD(extractor, 0.9)(*images, T, generator).total
    torch.testing.assert_close(plain, losses.cfd_loss(f_S.pooled, f_T.pooled, 0.9))
    dual = CFD(extractor, 0.7, dual=True, predictions=True)(*images, T, generator).total
    torch.testing.assert_close(dual, losses.cfd_loss(f_S.logits, f_T.logits, 0.7, dual=True))
    assert abs(CFD(extractor, 1.0)(images[1], images[1], T, generator).total) < 1e-12  # equal images cost nothing


def test_rcfd_is_equation_7(extractor, images, features, generator):
    f_S, f_T = features
    loss = RCFD(extractor, 0.95, beta=0.003, gamma=0.75)(*images, T, generator)
    regular = 0.75 * losses.entropy_loss(f_S.logits) + 0.25 * losses.diversity_loss(f_S.logits)
    torch.testing.assert_close(loss.total, losses.cfd_loss(f_S.pooled, f_T.pooled, 0.95) + 0.003 * regular)


@pytest.mark.parametrize("impl", ["auto", "reference", "chunked"])
def test_rdd_is_equation_10_with_the_memory_of_earlier_iterations(extractor, images, features, generator, impl):
    objective, (f_S, f_T) = rdd(extractor, impl=impl), features
    first = objective(*images, T, generator)
    assert set(first.terms) == {"cfd", "is_p2p"} and objective.status() == {"queue_rows": 0}  # nothing to remember yet
    objective.after_step(generator)
    assert objective.status() == {"queue_rows": 3 * 4}

    state = generator.get_state()
    second = objective.eval()(*images, T, generator)
    embeddings = objective.queue.sample(16, generator.set_state(state)).double()
    expected = losses.cfd_loss(f_S.pooled, f_T.pooled, 0.9) + 2.0 * losses.is_p2p_loss(f_S.map, f_T.map, 0.7)
    expected = expected + 0.5 * losses.m_p2p_loss(objective.head(f_S.map), f_T.map, embeddings, 0.2)
    torch.testing.assert_close(second.total, expected, rtol=1e-10, atol=1e-12)


def test_the_queue_is_filled_with_the_teachers_pixels(extractor, images, features, generator):
    objective = rdd(extractor, per_image=16)  # every pixel of the 4x4 map
    objective(*images, T, generator)
    objective.after_step(generator)
    pixels = normalize(features[1].map.flatten(2).mT.flatten(0, 1), dim=1)
    held = objective.queue.rows  # 40 rows of the 48: the newest
    distance = torch.cdist(held, pixels, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert len(objective.queue) == 40 and distance.max() < 1e-6


def test_gradients_reach_student_and_head_alone(extractor, images, generator):
    x_S, x_T = images[0], images[1].requires_grad_()
    objective = rdd(extractor)
    twice(objective, (x_S, x_T), generator).total.backward()
    assert x_S.grad.abs().sum() > 0 and x_T.grad is None
    assert all(p.grad is not None for p in objective.head.parameters())
    assert all(p.grad is None for p in extractor.parameters()) and objective.frozen() == (extractor,)
    assert {name.split(".")[0] for name in objective.state_dict()} == {"head", "queue"}


def test_what_it_looks_through_moves_along(images, generator):
    objective = CFD(build_extractor("small_resnet", 1, 10), 0.9).double()
    assert objective(*images, T, generator).total.dtype == torch.float64 and not objective.state_dict()


def test_the_head_is_two_pointwise_convolutions(extractor):
    head = rdd(extractor).head
    assert [type(layer).__name__ for layer in head] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    x = torch.randn(2, 96, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(head.eval()(x)[:, :, :1, 2:], head(x[:, :, :1, 2:]))  # each pixel for itself


def test_gradient_report_equals_gradients_taken_one_by_one(extractor, images, generator):
    terms = rdd(extractor)(*images, T, generator).terms
    report = gradient_report(terms, images[0])
    a, b = (gradient(terms[name], images[0]).flatten() for name in ("cfd", "is_p2p"))
    assert set(report) == {"gradient/cfd", "gradient/is_p2p", "cosine/cfd,is_p2p"}
    torch.testing.assert_close(report["gradient/is_p2p"], b.norm())
    torch.testing.assert_close(report["cosine/cfd,is_p2p"], a @ b / (a.norm() * b.norm()))


def test_balanced_terms_have_the_stated_share_of_cfds_gradient(extractor, images, generator):
    loss = twice(rdd(extractor, alpha=0.5, beta=0.25, weights="balanced"), images, generator)
    g = {name: gradient(term, images[0]) for name, term in loss.terms.items()}
    unit = {name: value / value.norm() for name, value in g.items()}
    expected = g["cfd"].norm() * (unit["cfd"] + 0.5 * unit["is_p2p"] + 0.25 * unit["m_p2p"])
    torch.testing.assert_close(gradient(loss.total, images[0]), expected)
    within = rdd(extractor, relation="ii_p2p", weights="balanced")
    assert within.balance.shares == {"ii_p2p": 2.0, "m_p2p": 0.5}
    assert within(images[0].detach(), images[1], T, generator).total.isfinite()  # nothing to balance without gradients


def test_relations_within_images_can_take_the_place_of_those_across(extractor, images, features, generator):
    f_S, f_T = features
    loss = rdd(extractor, beta=0.0, relation="ii_p2p")(*images, T, generator)
    expected = losses.ii_p2p_loss(f_S.map, f_T.map, 0.7)
    assert loss.terms["ii_p2p"] == expected and "is_p2p" not in loss.terms
    torch.testing.assert_close(loss.total, losses.cfd_loss(f_S.pooled, f_T.pooled, 0.9) + 2.0 * expected)


def test_a_term_of_weight_0_is_left_out_with_all_that_it_needs(extractor, images, features, generator):
    f_S, f_T = features
    cfd = losses.cfd_loss(f_S.pooled, f_T.pooled, 0.9)
    across = rdd(extractor, alpha=0.5, beta=0.0)
    assert across.head is None and across.queue is None and not list(across.parameters()) and across.status() == {}
    loss = twice(across, images, generator)
    torch.testing.assert_close(loss.total, cfd + 0.5 * losses.is_p2p_loss(f_S.map, f_T.map, 0.7))
    assert set(twice(rdd(extractor, alpha=0.0), images, generator).terms) == {"cfd", "m_p2p"}
    regular = RCFD(extractor, 0.95, beta=0.5, gamma=1.0, cfd=0.0)(*images, T, generator)
    assert set(regular.terms) == {"entropy"} and regular.total == 0.5 * losses.entropy_loss(f_S.logits)
    double = RCFD(extractor, 0.9, beta=0.0, gamma=1.0, cfd=2.0)(*images, T, generator)
    torch.testing.assert_close(double.total, 2 * cfd)


@pytest.mark.parametrize("switch", sorted(RELEASED_SWITCHES))
def test_every_released_switch_runs(extractor, images, generator, switch):
    objective = rdd(extractor, released=[switch])
    loss = twice(objective, images, generator)
    loss.total.backward()
    assert loss.total.isfinite() and "m_p2p" in loss.terms and images[0].grad.isfinite().all()


def test_released_push_comes_before_the_loss(extractor, images, generator):
    objective = rdd(extractor, released=["queue_push"])
    assert "m_p2p" in objective(*images, T, generator).terms  # the very first iteration compares with itself
    objective.after_step(generator)
    assert len(objective.queue) == 12  # and nothing is pushed twice


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda e: rdd(e, cfd=0.0, alpha=0.0), "cfd and alpha are 0.*while the queue is empty"),
        (lambda e: rdd(e, relation="across"), "relation is 'across'"),
        (lambda e: rdd(e, weights="learnt"), "weights is 'learnt'"),
        (lambda e: rdd(e, released=["queue"]), "released names queue, expected"),
        (lambda e: RCFD(e, 0.9, beta=0.0, gamma=0.5, cfd=0.0), "all weights are 0"),
    ],
)
def test_an_objective_that_could_not_learn_is_refused(extractor, make, words):
    with pytest.raises(ValueError, match=words):
        make(extractor)
