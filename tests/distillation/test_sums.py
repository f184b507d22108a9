"""Sums of terms: shares are what they say, measured seldom or always, resumed to the bit; sums of one's own as people write them."""

import re

import pytest
import torch
from tiny import refused
from torch import nn

from rddlib.diffusion.schedule import CosineSchedule
from rddlib.distillation.extractor import as_extractor, build_extractor
from rddlib.distillation.objectives import HEADS, TERMS, Sum, Term, parse_sum, projection_head
from rddlib.methods import LossConfig, build_objective, own_methods
from rddlib.study.profiles import load_profile

SCHEDULE = CosineSchedule()


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return build_extractor("small_resnet", 1, 10)


def batch(step, count=6):
    generator = torch.Generator().manual_seed(step)
    x_S, x_T = (torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1 for _ in range(2))
    return x_S.requires_grad_(), x_T, torch.full((count,), 0.75, dtype=torch.float64)


def balanced(extractor, every=1):
    terms = [Term("cfd", tau=0.9), Term("is_p2p", share=2.0, tau=0.1), Term("pd", share=0.3), Term("m_p2p", share=0.5)]
    torch.manual_seed(1)
    return Sum(terms, SCHEDULE, extractor, queue_size=64, draws=16, per_image=2, every=every)


def run(objective, steps, start=0):
    """The weights that each step's terms got, from the gradients at the student's image."""
    found = []
    for step in range(start, start + steps):
        x_S, x_T, t = batch(step)
        shared = torch.Generator().manual_seed(100 + step)
        loss = objective(x_S, x_T, t, shared)
        found.append((loss.total.item(), {name: float(value) for name, value in objective.balance.norms.items()}))
        objective.after_step(shared)
    return found


def test_seldom_measured_shares_hold_between_and_start_with_each_new_term(extractor):
    norms = [norms for _, norms in run(balanced(extractor, every=4), 6)]
    assert set(norms[0]) == {"cfd", "is_p2p", "pd"} and set(norms[1]) == {
        *norms[0],
        "m_p2p",
    }  # the queue was empty at first
    assert norms[1] == norms[2] == norms[3] and norms[4] != norms[3] and norms[5] == norms[4]


def test_a_resumed_sum_goes_on_with_the_same_bits(extractor):
    whole, first = balanced(extractor, every=4), balanced(extractor, every=4)
    expected = run(whole, 7)
    run(first, 3)
    second = balanced(extractor, every=4)
    second.load_state_dict(first.state_dict())
    assert run(second, 4, start=3) == expected[3:]


def test_without_shares_nothing_is_measured_and_nothing_is_state(extractor):
    objective = Sum([Term("cfd"), Term("is_p2p", 0.5)], SCHEDULE, extractor)
    assert objective.balance is None and not objective.state_dict()
    assert "balance._extra_state" in balanced(extractor).state_dict()


@pytest.mark.parametrize("name", sorted(set(TERMS) - {"lpips"}))
def test_every_term_is_finite_alone_and_reaches_the_student(extractor, name):
    terms = [Term(name)] if name != "m_p2p" else [Term("cfd", 1e-9), Term(name)]
    objective = Sum(terms, SCHEDULE, extractor, queue_size=64, draws=16)
    for step in range(2):
        x_S, x_T, t = batch(step)
        loss = objective(x_S, x_T, t, torch.Generator().manual_seed(0))
        objective.after_step(torch.Generator().manual_seed(0))
    loss.total.backward()
    assert name in loss.terms and torch.isfinite(loss.total) and torch.isfinite(x_S.grad).all() and x_S.grad.any()


def test_heads_start_as_they_say():
    maps = torch.randn(3, 4, 2, 2)
    torch.manual_seed(0)
    heads = {kind: projection_head(4, kind).train() for kind in HEADS}
    assert torch.equal(heads["none"](maps), maps) and torch.equal(heads["identity"](maps), maps)
    assert not torch.allclose(heads["paper"](maps), maps)
    assert len(list(heads["identity"].parameters())) == len(list(heads["paper"].parameters()))
    heads["identity"](maps).square().sum().backward()
    assert heads["identity"].branch[-1].weight.grad.abs().sum() > 0  # it can leave the identity


def test_a_bare_map_gives_relations_but_no_predictions():
    bare = as_extractor(nn.Conv2d(1, 4, 3, stride=2), (1, 8, 8))
    run(Sum([Term("cfd"), Term("is_p2p", share=1.0)], extractor=bare), 1)
    for terms in ([Term("entropy")], [Term("cfd", predictions=True)]):
        with pytest.raises(ValueError, match="no class predictions"):
            Sum(terms, extractor=bare)


def test_what_people_write():
    name, terms = parse_sum("ours = cfd + is_p2p(share=1 tau=0.1)+m_p2p(weight=0.1, head=identity) + pd(share=0.3)")
    assert name == "ours" and [term.loss for term in terms] == ["cfd", "is_p2p", "m_p2p", "pd"]
    assert terms[1] == Term("is_p2p", share=1.0, tau=0.1) and terms[0].tau is None
    assert (terms[2].weight, terms[2].head, terms[3].share) == (0.1, "identity", 0.3)
    assert parse_sum("x = cfd(dual=true predictions=true)")[1] == (Term("cfd", tau=None, dual=True, predictions=True),)
    assert parse_sum("x = cfd(dual=false)")[1] == parse_sum("x = cfd")[1]
    assert [term.weight for term in parse_sum("x = cfd(weight=1e+2)+pd(weight=5e-1)")[1]] == [100, 0.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cfd + pd", "is no sum: write it as"),
        ("x = cfd + is_p3p", "unknown term 'is_p3p' .did you mean 'is_p2p'"),
        ("x = cfd(weigth=1)", "no option 'weigth' .did you mean 'weight'"),
        ("x = cfd(tau=a)", "'a' is no number"),
        ("x = cfd(dual=0.5)", r"cfd\(dual=0.5\): '0.5' is neither true nor false"),
        ("x = cfd(tau=inf)", "all of them finite"),
        ("x = cfd(tau=0.5 tau=0.9)", "cfd has tau twice"),
        ("x = cfd + pd(share=1 tau=0.1)", "pd has no use for tau"),
        ("x = cfd + is_p2p(share=1 head=none)", "is_p2p has no use for head"),
        ("x = cfd + pd(weight=2 share=1)", "has a weight and a share.*give one of them"),
        ("x = is_p2p(share=1)", "shares need a term with a fixed weight"),
        ("x = cfd + cfd", "stands twice"),
        ("x = m_p2p", "M_P2P alone"),
        ("x = m_p2p + cfd + pd(share=1)", "shares would be of M_P2P"),
        ("x = cfd(weight=0)", "all weights are 0"),
        ("x = lpips + cfd", "use stages"),
        ("x = pd + lpips", "take the method pd_lpips, or the term stages"),
        ("x = m_p2p(head=papr) + cfd", "head is 'papr'"),
        ("pd = cfd", "taken"),
    ],
)
def test_a_sum_that_cannot_be_is_refused_in_the_profile(text, said):
    assert re.search(said, refused(load_profile, "smoke", {"sums": text}))


def test_a_sum_takes_the_profiles_temperatures_where_it_says_none(extractor):
    sums, loss = (
        ("ours = cfd + is_p2p(share=1) + m_p2p(tau=0.4 head=none)",),
        LossConfig(tau_is=0.3, draws=7, queue_size=20),
    )
    method = own_methods(sums)["ours"]
    numbers = method.arguments(loss, 0.85, 1)
    assert [term["tau"] for term in numbers["terms"]] == [0.85, 0.3, 0.4] and numbers["every"] == loss.every
    objective = build_objective(method, loss, 0.85, SCHEDULE, extractor)
    assert objective.queue.size == 20 and objective.draws == 7 and isinstance(objective.head, nn.Identity)
    assert "queue_size" not in own_methods(("a = cfd + pd",))["a"].arguments(loss, 1.0, 1)


def test_a_number_may_differ_from_halving_to_halving():
    method = own_methods(("ours = cfd + pd(share=0.1/0.2/1) + is_p2p(share=1/0 tau=0.1)",))["ours"]
    at = {n: [term["share"] for term in method.arguments(LossConfig(), 0.9, n)["terms"]] for n in (8, 4, 2, 1)}
    assert at == {8: [None, 0.1, 1.0], 4: [None, 0.1, 1.0], 2: [None, 0.2, 1.0], 1: [None, 1.0, 0.0]}
    with pytest.raises(ValueError, match="all weights are 0"):
        own_methods(("ours = cfd(weight=0/1)",))
    with pytest.raises(ValueError, match="no number"):
        own_methods(("ours = cfd + pd(share=0.1/)",))
