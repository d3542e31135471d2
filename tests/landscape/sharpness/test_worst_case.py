"""The worst case against exact maxima, trust-region equations, one-step values and a loop over chunks."""

import math

import numpy as np
import pytest
import torch
from problems import F64, case, o1, o2, o5
from scipy.optimize import brentq
from sharpness_problems import linear_losses, perceptron, quadratic, risk_of
from torch.testing import assert_close

from landscape import AbsWeight, AscentStep, FilterNorm, TensorNorm, ascent_sharpness, flatten, norm, unflatten
from landscape.sharpness import worst_case, worst_case_sharpness
from landscape.sharpness.ball import Ball
from landscape.sharpness.search import Search, Visit, checkpoints

ADAPTIVE = AbsWeight()
METHODS = ["apgd", "pgd"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_checkpoints_are_those_of_the_schedule():
    assert checkpoints(20) == [5, 9, 12, 15, 16, 18, 19, 20]
    assert checkpoints(100) == [22, 41, 58, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


EXACT = [  # risk, rho, options, maximum
    (o5, 0.1, {}, 0.0560343858497702),
    (o5, 0.1, {"metric": ADAPTIVE}, 0.14),
    (o5, 0.1, {"norm": "linf"}, 0.075),
    (o5, 0.1, {"norm": "linf", "metric": ADAPTIVE}, 0.15),
    (o1, 0.05, {}, 0.0240791557),
    (o1, 0.5, {}, 0.2933424729),
    (o1, 0.05, {"metric": ADAPTIVE}, 0.0102415872),
    (o1, 0.5, {"metric": ADAPTIVE}, 0.1236018131),
    (o1, 0.05, {"norm": "linf"}, 0.0539420836),
    (o1, 0.5, {"norm": "linf"}, 0.8026982686),
    (o1, 0.05, {"norm": "linf", "metric": ADAPTIVE}, 0.0182565348),
    (o1, 0.5, {"norm": "linf", "metric": ADAPTIVE}, 0.2358698032),
    (o2, 0.05, {}, 0.0530966356),
    (o2, 0.2, {}, 0.2194454263),
]


@pytest.mark.parametrize(("problem", "rho", "options", "value"), EXACT)
def test_known_maxima(problem, rho, options, value):
    found = worst_case_sharpness(problem(), rho, steps=60, **options)
    assert found.value == pytest.approx(value, abs=2e-9, rel=1e-7)
    assert found.converged
    for method in METHODS:  # 20 steps reach 99.8 % everywhere, APGD 99.999 %
        least = 0.99999 if method == "apgd" else 0.998
        assert least * value <= worst_case_sharpness(problem(), rho, method=method, **options).value <= value + 2e-9


def test_the_maximiser_of_the_quadratic():
    plain = worst_case_sharpness(o5(), 0.1, steps=60)
    assert_close(plain.displacement["w"], torch.tensor([0.0977782735, -0.0209620904], dtype=F64), rtol=0, atol=1e-6)
    assert plain.length == pytest.approx(0.1, rel=1e-12)
    adaptive = worst_case_sharpness(o5(), 0.1, metric=ADAPTIVE, steps=60)
    assert_close(adaptive.displacement["w"], torch.tensor([0.2, 0.0], dtype=F64), rtol=0, atol=1e-6)
    assert plain.taylor == pytest.approx(0.4 * 0.0977782735 + 0.2 * 0.0209620904, abs=1e-6)
    assert plain.base == pytest.approx(0.7)
    assert plain.gradient_norm == pytest.approx(math.sqrt(0.2))


def trust_region_maximum(H, g, rho):
    """max gᵀe + eᵀHe/2 on ‖e‖ ≤ ρ: e(μ) = (μI - H)⁻¹ g with ‖e‖ = ρ, μ ≥ max(λ_max, 0); inside if H is negative."""
    values, vectors = np.linalg.eigh(H.numpy())
    c = vectors.T @ g.numpy()

    def length(mu):
        return np.linalg.norm(c / (mu - values))

    low = max(values[-1], 0.0)
    if values[-1] < 0 and length(0.0) <= rho:
        mu = 0.0
    else:
        mu = brentq(lambda m: length(m) - rho, low + 1e-13, low + np.linalg.norm(c) / rho + 1)
    e = c / (mu - values)
    return float(c @ e + (values * e) @ e / 2)


@pytest.mark.parametrize(("seed", "shift", "tolerance"), [(0, -4.0, 0.02), (1, 0.0, 1e-5), (2, 4.0, 1e-5)])
def test_quadratics_meet_the_trust_region_equation(seed, shift, tolerance):
    """Inside the ball, where H is negative, the last of the halved steps limits what can be reached."""
    g = seeded(seed)
    A = torch.randn(6, 6, generator=g, dtype=F64)
    H = (A + A.T) / 2 + shift * torch.eye(6, dtype=F64)
    slope, w = torch.randn(6, generator=g, dtype=F64), torch.randn(6, generator=g, dtype=F64)
    for rho in (0.1, 2.0):
        best = trust_region_maximum(H, slope, rho)
        found = worst_case_sharpness(quadratic(H, slope, w), rho, steps=60)
        assert found.value == pytest.approx(best, rel=tolerance)
        assert found.value <= best * (1 + 1e-9)
        if shift < 0:
            continue
        T = w.abs()
        scaled = trust_region_maximum(T[:, None] * H * T, T * slope, rho)
        adaptive = worst_case_sharpness(quadratic(H, slope, w), rho, metric=ADAPTIVE, steps=60)
        assert adaptive.value == pytest.approx(scaled, rel=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("metric", "value"), [(None, 0.0180901699), (ADAPTIVE, 0.0619258240)])
def test_a_stationary_point_is_left_at_random(method, metric, value):
    risk = quadratic(
        torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=F64),
        torch.zeros(2, dtype=F64),
        torch.tensor([2.0, -1.0], dtype=F64),
    )
    with pytest.warns(RuntimeWarning, match="the gradient vanishes on 1 of 1 chunks"):
        found = worst_case_sharpness(risk, 0.1, metric=metric, method=method, steps=60)
    assert found.value == pytest.approx(value, rel=1e-6 if method == "apgd" else 0.03)


@pytest.mark.parametrize(("m", "values"), [(1, (0.5912105120, 0.5905647073)), (2, (0.3524593562, 0.3438686286)),
                                           (4, (0.2933424729, 0.2853376275))])  # fmt: skip
def test_m_sharpness_of_softmax_regression(m, values):
    found = worst_case_sharpness(o1(), 0.5, m, steps=60)
    assert found.value == pytest.approx(values[0], abs=2e-9)
    assert ascent_sharpness(o1(), AscentStep(0.5), m).value == pytest.approx(values[1], abs=1e-9)
    assert worst_case_sharpness(o1(), 0.5, m, steps=1).value == pytest.approx(values[1], abs=1e-9)
    assert found.draws == 4 // m
    assert (found.displacement is None) or m == 4


def test_finer_partitions_are_sharper():
    risk = risk_of(perceptron(torch.nn.Tanh))
    values = [worst_case_sharpness(risk, 0.3, m, steps=30).value for m in (1, 4, 12, 24)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("options", [{}, {"norm": "linf"}, {"metric": ADAPTIVE}, {"metric": FilterNorm()},
                                     {"metric": TensorNorm(0.1)}, {"method": "pgd"}, {"momentum": "released"},
                                     {"restarts": 2}], ids=str)  # fmt: skip
@pytest.mark.parametrize("m", [7])
def test_chunks_together_are_chunks_alone(options, m, monkeypatch):
    monkeypatch.setattr(worst_case, "SEARCH_BYTES", 2 * 83 * 8)  # two chunks at a time
    risk = risk_of(perceptron(torch.nn.Tanh))
    rho = 0.02 if options.get("norm") == "linf" else 0.3
    options = {**options, "steps": 8}
    together = worst_case_sharpness(risk, rho, m, **options)

    def refuses(*args):
        raise RuntimeError("no vmap")

    monkeypatch.setattr(worst_case, "gradients_together", refuses)
    alone = worst_case_sharpness(risk, rho, m, **options)
    for name in ("value", "stderr", "length", "gradient_norm", "taylor", "error", "base"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=1e-8, abs=1e-12)
    whole = [worst_case_sharpness(c, rho, **options) for c in risk.chunks(m)]
    mean = np.average([w.value for w in whole], weights=[c.n for c in risk.chunks(m)])
    assert together.value == pytest.approx(mean, rel=1e-8)


@pytest.mark.parametrize("options", [{}, {"norm": "linf"}, {"metric": ADAPTIVE}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_never_below_one_step_and_never_outside(options, method):
    p = math.inf if options.get("norm") == "linf" else 2.0
    for seed in range(2):
        risk = risk_of(perceptron(seed=seed))
        for rho in (0.03, 1.0):
            one = ascent_sharpness(risk, AscentStep(rho, p=p, metric=options.get("metric"))).value
            for steps in (1, 6):
                found = worst_case_sharpness(risk, rho, method=method, steps=steps, **options)
                assert found.value >= one - 1e-12
                delta = found.displacement
                if "metric" in options:
                    delta = {k: v / risk.theta[k].abs() for k, v in delta.items()}
                assert float(norm(delta, p)) <= rho * (1 + 1e-9)
                moved = {k: t + found.displacement[k] for k, t in risk.theta.items()}
                assert found.value == pytest.approx(risk.value(moved) - risk.value(), rel=1e-9)


def test_candidates_make_it_monotone_in_the_radius():
    risk = risk_of(perceptron())
    last, offered = 0.0, []
    for rho in (0.1, 0.2, 0.4, 0.8, 1.6):
        found = worst_case_sharpness(risk, rho, steps=2, candidates=offered)
        assert found.value >= last
        last, offered = found.value, [found.displacement]
    bait = {k: 10 * t for k, t in offered[0].items()}  # far outside: projected
    found = worst_case_sharpness(risk, 0.1, steps=1, candidates=[bait])
    assert float(norm(found.displacement)) <= 0.1 * (1 + 1e-9)


def test_a_candidate_may_win():
    H = torch.diag(torch.tensor([0.0, 50.0], dtype=F64))
    risk = quadratic(H, torch.tensor([1.0, 0.0], dtype=F64), torch.ones(2, dtype=F64))
    stuck = worst_case_sharpness(risk, 0.5)  # the gradient's path never leaves the first axis
    assert stuck.value == pytest.approx(0.5)
    offered = {"w": torch.tensor([0.0, 0.5], dtype=F64)}
    assert worst_case_sharpness(risk, 0.5, candidates=[offered]).value == pytest.approx(6.25)
    assert worst_case_sharpness(risk, 0.5, restarts=1).value == pytest.approx(6.26, abs=0.001)


def test_zero_weights_stay_where_they_are():
    found = worst_case_sharpness(o1(), 0.5, metric=ADAPTIVE)
    assert float(found.displacement["weight"][1, 0]) == 0.0
    assert math.isfinite(found.value)
    dead = quadratic(torch.eye(2, dtype=F64), torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64))
    assert worst_case_sharpness(dead, 0.5, metric=ADAPTIVE).value == 0.0


def test_linear_losses_rise_by_the_dual_norm():
    for m, value in ((1, 1.5), (2, 1.1441228056), (4, 1.0)):
        assert worst_case_sharpness(linear_losses(), 0.1, m).value == pytest.approx(0.1 * value, abs=1e-10)
    assert worst_case_sharpness(linear_losses(), 0.1, norm="linf").value == pytest.approx(0.1)


def test_released_momentum_is_another_path():
    risk = risk_of(perceptron())
    ours, theirs = (worst_case_sharpness(risk, 1.0, momentum=m, steps=4).value for m in ("textbook", "released"))
    assert ours != pytest.approx(theirs, rel=1e-6)


def test_the_search_goes_back_to_its_best_point():
    """A one-dimensional objective with its peak close to the start: long steps must be halved to find it."""
    peak = 0.013

    def objective(u):
        values = -((u[:, 0] - peak) ** 2)
        nan = torch.full_like(values, math.nan)
        return Visit(u, values, -2 * (u - peak), nan, nan)

    zero = torch.zeros(1, dtype=F64)
    _, best = Search("apgd", 100).best(objective, Ball(1.0), zero, torch.empty(0, 1, dtype=F64))
    assert float(best.at) == pytest.approx(peak, abs=2e-3)
    _, few = Search("apgd", 10).best(objective, Ball(1.0), zero, torch.empty(0, 1, dtype=F64))
    assert float(best.values) > float(few.values)


def plain_apgd(risk, rho, steps):
    """APGD in a ball in plain words, one vector at a time."""

    def look(e):
        theta = unflatten(flatten(risk.theta) + e, risk.theta)
        value, gradient = risk.value_and_gradient(theta)
        return value, flatten(gradient)

    def inside(e):
        return e * min(1.0, rho / max(float(e.norm()), 1e-30))

    e = before = best = torch.zeros_like(flatten(risk.theta))
    base, g = look(e)
    top, top_g, size = base, g, 2 * rho
    gained, last, size_then, top_then = 0, 0, size, base
    for k in range(1, steps + 1):
        z = inside(e + size * g / g.norm())
        new = z if k == 1 else inside(e + 0.75 * (z - e) + 0.25 * (e - before))
        before, e = e, new
        value, g = look(e)
        if value > top:
            top, top_g, best, gained = value, g, e, gained + 1
        if k in checkpoints(steps):
            slow = gained < 0.75 * (k - last) or (size == size_then and top == top_then)
            size_then, top_then = size, top
            if slow:
                size, e, before, g = size / 2, best, best, top_g
            gained, last = 0, k
    return top - base


@pytest.mark.parametrize("rho", [0.5, 4.0])
def test_the_search_goes_the_way_of_a_plain_one(rho):
    for seed in (0, 1):
        risk = risk_of(perceptron(torch.nn.Tanh, seed=seed))
        assert worst_case_sharpness(risk, rho).value == pytest.approx(plain_apgd(risk, rho, 20), rel=1e-9)


def test_residual_is_the_first_order_gap():
    risk = risk_of(perceptron(torch.nn.Tanh))
    found = worst_case_sharpness(risk, 0.5, steps=2)
    moved = {k: t + found.displacement[k] for k, t in risk.theta.items()}
    g = risk.gradient(moved)
    gap = 0.5 * float(norm(g)) - sum(float((g[k] * found.displacement[k]).sum()) for k in g)
    assert found.residual == pytest.approx(gap, rel=1e-9)
    assert worst_case_sharpness(risk, 0.5, steps=100).residual < 0.1 * gap
    assert not worst_case_sharpness(risk, 0.5, steps=2, tol=0.0).converged


def test_batches_modes_and_models_make_no_difference():
    whole, split = o2(), o2((3, 2))
    assert worst_case_sharpness(split, 0.2).value == pytest.approx(worst_case_sharpness(whole, 0.2).value, rel=1e-10)
    for name in ("conv:recalibrate", "sdpa:plain", "language"):
        risk = case(name).risk()
        found = worst_case_sharpness(risk, 0.1, steps=3)
        assert found.value >= ascent_sharpness(risk, AscentStep(0.1)).value - 1e-12


def test_diverged_weights_give_nan_and_do_not_crash():
    risk = risk_of(perceptron())
    theta = {k: t * math.nan for k, t in risk.theta.items()}
    for m in (None, 4):
        found = worst_case_sharpness(risk, 0.1, m, theta=theta)
        assert math.isnan(found.value)
        assert not found.converged


def test_nothing_changes_behind_the_callers_back():
    risk = risk_of(perceptron())
    before, state = {k: t.clone() for k, t in risk.theta.items()}, torch.random.get_rng_state()
    worst_case_sharpness(risk, 0.1, 4, restarts=1, generator=seeded())
    for k, t in risk.theta.items():
        assert torch.equal(t, before[k])
        assert not t.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["l2", "linf"])
def test_the_ball_projects_and_draws(kind):
    ball = Ball(0.5, kind)
    points = ball.draw(2000, torch.zeros(3, dtype=F64), seeded())
    order = 2 if kind == "l2" else math.inf
    sizes = torch.linalg.vector_norm(points, order, dim=1)
    assert float(sizes.max()) <= 0.5
    share = float((sizes < 0.25).double().mean())  # of a volume that goes with the third power
    assert share == pytest.approx(1 / 8, abs=4 * math.sqrt(1 / 8 * 7 / 8 / 2000))
    inside = ball.project(points)
    assert torch.equal(inside, points)
    outside = ball.project(4 * points / sizes[:, None])
    assert_close(torch.linalg.vector_norm(outside, order, dim=1), torch.full((2000,), 0.5, dtype=F64))
    g = torch.randn(2000, 3, generator=seeded(1), dtype=F64)
    assert bool((ball.gap(points, g) >= ((outside - points) * g).sum(1) - 1e-12).all())
    top = 0.5 * ball.steepest(g)
    assert float(ball.gap(top, g).max()) < 1e-11
    broken = ball.steepest(torch.tensor([[math.nan, 1, 1], [math.inf, 1, 1], [0, 0, 0]], dtype=F64))
    assert torch.equal(broken, torch.zeros(3, 3, dtype=F64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "must be a finite radius >= 0, got -1.0"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"restarts": -1}, "`restarts` must be at least 0, got -1"),
        ({"tol": math.nan}, "`tol` must be at least 0, got nan"),
        ({"m": 99}, "`m` must be between 1 and the number of examples 24, got 99"),
    ],
)
def test_refused_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        worst_case_sharpness(risk_of(perceptron()), **{"rho": 0.1, **options})


@pytest.mark.parametrize(
    ("made", "name", "value", "message"),
    [
        (Ball(1.0), "norm", "l3", "`norm` must be 'l2' or 'linf', got 'l3'"),
        (Search(), "method", "newton", "`method` must be 'apgd' or 'pgd', got 'newton'"),
        (Search(), "momentum", "heavy", "`momentum` must be 'textbook' or 'released', got 'heavy'"),
    ],
)
def test_unknown_words_are_refused(made, name, value, message):
    object.__setattr__(made, name, value)  # past the type checker of the tests
    with pytest.raises(ValueError, match=message):
        made.__post_init__()
