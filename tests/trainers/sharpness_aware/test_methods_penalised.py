"""Methods that add a penalty on sharpness: WSAM, gradient norms, G-RST, CR-SAM, the universal class, Frob-SAM."""

import math

import pytest
import torch
import torch.nn.functional as F
from quadratics import F64, LAYOUTS, NEAR, FixedDraw, TwoExamples, closure_of, on_q, q_walk, tensor, walk, with_part
from torch import nn
from torch.testing import assert_close

from trainers import AscentObjective, Objective, make_optimizer, obf_loss
from trainers.sharpness_aware.ascent import Random
from trainers.sharpness_aware.moment import Moment

every_layout = pytest.mark.parametrize("layout", LAYOUTS)

ON_Q = [
    ("wsam", {"rho": 0.5, "gamma": 0.5, "decouple": False}, (3.3, 5.6)),
    ("wsam", {"rho": 0.5, "gamma": 0.9, "decouple": False}, (5.7, 18.4)),
    ("wsam", {"rho": 0.5, "gamma": 0.9, "decouple": True}, (5.7, 18.4)),  # with plain SGD the two agree
    ("wsam", {"rho": 0.5, "gamma": 0.0, "decouple": True}, (3.0, 4.0)),
    ("gnp", {"rho": 0.5, "c": 0.8}, (3.24, 5.28)),
    ("gnp", {"rho": 0.5, "c": 1.0}, (3.3, 5.6)),
    ("grst", {"rho": 0.5, "p": 1.0, "c": 0.5}, (3.15, 4.8)),
    ("crsam", {"rho": 0.5, "gamma": 0.1, "beta": 0.01}, (3.306, 5.632)),
    ("crsam", {"rho": 0.5, "gamma": 0.0, "beta": 0.0}, (3.3, 5.6)),
    # by losses: L = 6.5, L+ = 9.365, L- = 4.365; the second difference of the gradients is zero on a quadratic
    ("crsam", {"rho": 0.5, "gamma": 0.1, "beta": 0.01, "by_loss": True}, (3.3 + 0.002 * 0.6, 5.6 + 0.002 * 3.2)),
]


@every_layout
@pytest.mark.parametrize(("method", "options", "u"), ON_Q, ids=[f"{m}-{o}" for m, o, _ in ON_Q])
def test_one_step_on_the_quadratic(method, options, u, layout):
    held = q_walk(method, layout, **options)
    assert_close(held.us[0], tensor(*u), **NEAR)
    assert float(held.losses[0]) == pytest.approx(6.5, rel=1e-12)


# -- WSAM ------------------------------------------------------------------------------------------------------------


def test_the_decoupled_term_goes_past_momentum_and_clipping():
    held = q_walk("wsam", count=2, rho=0.5, gamma=0.9, momentum=0.9, grad_clip=1.0)
    A, w, v = tensor(1.0, 4.0), tensor(3.0, 1.0), torch.zeros(2, dtype=F64)
    for t in range(2):
        g = A * w
        gp = A * (w + 0.5 * g / g.norm())
        v = 0.9 * v + g / g.norm()
        w = w - 0.1 * v - 0.1 * 9 * (gp - g)
        assert_close(held.ws[t], w, rtol=1e-6, atol=1e-6)  # clip_grad_norm_ adds 1e-6 to the norm


def test_the_decoupled_term_takes_the_learning_rate_of_each_group_and_of_this_step():
    held = on_q("wsam", "groups", rho=0.5, gamma=0.9)
    held.optimizer.param_groups[0]["lr"], held.optimizer.param_groups[1]["lr"] = 0.1, 0.01
    walk(held)
    assert_close(held.w, tensor(3.0 - 0.1 * 5.7, 1.0 - 0.01 * 18.4), **NEAR)


@pytest.mark.parametrize("how", ["step", "accumulate"])
def test_the_decoupled_terms_of_chunks_are_averaged(how):
    model = TwoExamples()
    optimizer = make_optimizer("wsam", model, lr=0.1, rho=0.5, gamma=0.75)
    pair, third = closure_of(model, lambda: model([0, 1])), closure_of(model, lambda: model([2]))
    if how == "step":
        optimizer.step([pair, third], sizes=[2, 1])
    else:
        optimizer.accumulate(pair, size=2)
        optimizer.accumulate(third, size=1)
        optimizer.step()
    a, b = tensor(1.5, 2.5), tensor(2.0, -1.0)
    g = (2 * a + b) / 3
    more = 0.5 * (2 * a / a.norm() + b / b.norm()) / 3  # Hessian I: g_p - g = eps
    assert_close(model.w.detach(), tensor(3.0, 1.0) - 0.1 * g - 0.1 * 3 * more, **NEAR)


# -- CR-SAM ----------------------------------------------------------------------------------------------------------


@every_layout
def test_crsam_visits_both_ends_and_records_the_upper_one(layout):
    held = on_q("crsam", layout, rho=0.5, diagnose=True)
    walk(held)
    assert_close(held.displacement(1), tensor(0.3, 0.4), **NEAR)
    assert_close(held.displacement(2), tensor(-0.3, -0.4), **NEAR)
    last = held.optimizer.last
    assert last.perturbed_loss == pytest.approx(9.365, rel=1e-9)  # not 4.365, that of w - eps
    assert last.gap == pytest.approx(2.865, rel=1e-9)
    assert last.cosine == pytest.approx(32.3 / (5 * 6.5), rel=1e-9)
    assert last.length == pytest.approx(0.5, rel=1e-9)


def test_crsam_by_loss_leaves_out_a_bracket_whose_divisor_is_not_positive():
    # a concave loss: L+ + L- - 2L < 0, so gamma's bracket goes; L+ - L- stays
    held = on_q("crsam", scale=-1.0, rho=0.5, gamma=0.1, beta=0.01, by_loss=True)
    walk(held)
    g = -tensor(1.0, 4.0) * tensor(3.0, 1.0)
    eps = 0.5 * g / g.norm()
    loss = [-0.5 * float((tensor(1.0, 4.0) * (tensor(3.0, 1.0) + s * eps) ** 2).sum()) for s in (1, -1)]
    plus, minus = (-tensor(1.0, 4.0) * (tensor(3.0, 1.0) + s * eps) for s in (1, -1))
    assert_close(held.us[0], plus + 0.01 / (loss[0] - loss[1]) * (plus - minus), **NEAR)


# -- the universal class ---------------------------------------------------------------------------------------------


def with_draws(method, layout, *vectors, at=None, **options):
    held = on_q(method, layout, **options)
    with_part(held.optimizer, source=FixedDraw(*vectors))
    if at is not None:
        with torch.no_grad():
            for p in held.model.parameters():
                p.fill_(at)
    return held


@every_layout
def test_trace_sam_with_one_point(layout):
    held = walk(with_draws("tracesam", layout, (1.0, 2.0), rho=0.05, antithetic=False))
    assert_close(held.us[0], tensor(3.05, 4.4), **NEAR)
    rise = held.optimizer.last.perturbed_loss - 6.5
    assert rise / 0.05**2 == pytest.approx(228.5, rel=1e-9)


@every_layout
def test_trace_sam_with_a_pair_adds_nothing_on_a_quadratic(layout):
    held = walk(with_draws("tracesam", layout, (1.0, 2.0), rho=0.05))
    assert_close(held.us[0], tensor(3.0, 4.0), rtol=1e-11, atol=0)
    assert len(held.visited) == 3


@every_layout
def test_det_sam_at_the_minimum(layout):
    for antithetic, u in ((False, (0.135914091, 0.271828183)), (True, (0.0, 0.0))):
        held = with_draws("detsam", layout, (1.0, 0.5), at=0.0, rho=0.05, antithetic=antithetic)
        walk(held)
        assert_close(held.us[0], tensor(*u), rtol=1e-7, atol=1e-9)


def test_det_sam_clamps_what_would_overflow():
    held = walk(with_draws("detsam", "one", (1e3, 0.0), rho=0.05, antithetic=False))
    assert torch.isfinite(held.us[0]).all()


@every_layout
def test_frob_sam_with_two_draws(layout):
    held = walk(with_draws("frobsam", layout, (1.0, 2.0), (-1.0, 1.0), rho=0.05, lam=0.005))
    assert_close(held.us[0], tensor(3.0515, 4.103), **NEAR)
    assert len(held.visited) == 3


def test_frob_sam_is_the_gradient_of_the_variance():
    # u - g = λ/(2ρ²) ∇ Var L(w + ρ v_i), the sample variance over the same draws, by autograd
    draws = [(1.0, 2.0), (-1.0, 1.0), (0.3, -0.7)]
    held = walk(with_draws("frobsam", "one", *draws, rho=0.05, lam=0.02, draws=3))
    w = tensor(3.0, 1.0).requires_grad_()
    losses = torch.stack([0.5 * (tensor(1.0, 4.0) * (w + 0.05 * tensor(*v)) ** 2).sum() for v in draws])
    (extra,) = torch.autograd.grad(0.02 / (2 * 0.05**2) * losses.var(), w)
    assert_close(held.us[0], tensor(3.0, 4.0) + extra, rtol=1e-9, atol=1e-12)


def test_several_draws_are_the_mean_of_the_draws():
    draws = [(1.0, 2.0), (-1.0, 1.0), (0.3, -0.7)]
    one_by_one = [walk(with_draws("tracesam", "one", v, rho=0.05, antithetic=False)).us[0] for v in draws]
    together = walk(with_draws("tracesam", "one", *draws, rho=0.05, draws=3, antithetic=False)).us[0]
    assert_close(together, torch.stack(one_by_one).mean(0), rtol=1e-9, atol=0)
    assert walk(with_draws("tracesam", "one", *draws, rho=0.05, draws=3)).optimizer.last.passes == 7


def test_the_sampler_of_the_sphere_is_on_the_sphere_over_all_tensors_jointly():
    theta = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
    moment = Moment(0, 0.1, 0.5, theta)
    source = Random(torch.Generator().manual_seed(1), "sphere")
    drawn = [source.direction(moment, None) for _ in range(50)]
    for v in drawn:
        assert math.hypot(*(float(t.norm()) for t in v.values())) == pytest.approx(1, rel=1e-5)
    shares = torch.tensor([float(v["b"].norm() ** 2) for v in drawn])
    assert float(shares.mean()) == pytest.approx(5 / 17, abs=4 * float(shares.std()) / 50**0.5)  # not 1/2
    cube = Random(torch.Generator().manual_seed(1), "cube", 0.01).direction(moment, None)
    entries = torch.cat([t.reshape(-1) for t in cube.values()])
    assert float(entries.abs().max()) <= 0.01
    assert float(entries.abs().max()) > 0.007
    assert float(entries.min()) < 0 < float(entries.max())


# -- another ascent objective ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize(
    ("method", "options", "combine"),
    [
        ("gnp", {"c": 0.6}, lambda g, plus, _: 0.4 * g + 0.6 * plus),
        ("wsam", {"gamma": 0.75, "decouple": False}, lambda g, plus, _: 3 * plus - 2 * g),
        ("wsam", {"gamma": 0.75}, lambda g, plus, _: 3 * plus - 2 * g),
        ("crsam", {"gamma": 0.2, "beta": 0.1}, lambda g, p, m: p + 0.2 * (p + m - 2 * g) + 0.1 * (p - m)),
        ("stablesam", {}, lambda g, plus, _: plus * g.norm() / plus.norm()),
        ("sam_step_size", {}, lambda g, plus, _: g * plus.norm() / g.norm()),
    ],
)
def test_the_ascent_and_the_losss_own_gradient_are_kept_apart(method, options, combine, rich):
    # eps along the OBF gradient a, everything else from the training loss; two chunks, by autograd
    gen = torch.Generator().manual_seed(3)
    x, y = torch.randn(5, 2, generator=gen, dtype=F64), torch.tensor([0, 2, 1, 1, 0])
    start = torch.randn(3, 2, generator=gen, dtype=F64)

    def grad(objective, w, rows):
        w = w.clone().requires_grad_()
        return torch.autograd.grad(objective(x[rows] @ w.T, y[rows]), w)[0]

    expected = torch.zeros_like(start)
    for rows, share in (([0, 1, 2], 0.6), ([3, 4], 0.4)):
        a = grad(obf_loss, start, rows)
        eps = 0.7 * a / a.norm()
        g, plus, minus = (grad(F.cross_entropy, start + s * eps, rows) for s in (0, 1, -1))
        expected += share * combine(g, plus, minus)

    model = nn.Linear(2, 3, bias=False, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(start)
    optimizer = make_optimizer(method, model, lr=1.0, rho=0.7, ascent="obf", **options)
    descents, ascents = [], []
    for rows in ([0, 1, 2], [3, 4]):
        given = {"model": model, "parameters": [model.weight], "loss": F.cross_entropy, "x": x[rows], "y": y[rows]}
        if rich:
            descents.append(Objective(**given))
            ascents.append(AscentObjective(**given, ascent=obf_loss))
        else:
            descents.append(closure_of(model, lambda r=rows: F.cross_entropy(model(x[r]), y[r])))
            ascents.append(closure_of(model, lambda r=rows: obf_loss(model(x[r]), y[r])))
    loss = optimizer.step(descents, sizes=[3, 2], ascent=ascents)
    assert_close(start - model.weight.detach(), expected, rtol=1e-9, atol=1e-12)
    assert float(loss) == pytest.approx(float(F.cross_entropy(x @ start.T, y)), rel=1e-12)
    assert optimizer.last.passes == (2 + (method == "crsam") + (not rich)) * 2
