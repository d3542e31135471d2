"""The perturbation: each form is the maximiser that it says it is, and safe where there is none."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, o1, o5
from torch.testing import assert_close

from landscape import (
    AbsWeight,
    AscentStep,
    FilterNorm,
    Metric,
    Perturbation,
    TensorNorm,
    displaced,
    flatten,
    inner,
    norm,
    random_direction,
)

INF = math.inf


def random_pair(seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "scale": ()}
    draw = [{k: torch.randn(s, generator=g, dtype=F64) for k, s in shapes.items()} for _ in range(2)]
    return draw[0], draw[1], g


@pytest.mark.parametrize(
    ("step", "delta"),
    [
        (AscentStep(0.1), [0.1 * 0.4 / math.sqrt(0.2), -0.1 * 0.2 / math.sqrt(0.2)]),
        (AscentStep(0.1, p=INF), [0.1, -0.1]),
        (AscentStep(0.1, p=1.0), [0.1, 0.0]),
        (AscentStep(0.1, normalise=False), [0.04, -0.02]),
        (AscentStep(0.1, metric=AbsWeight()), [0.1 * 1.6 / math.sqrt(0.68), -0.1 * 0.2 / math.sqrt(0.68)]),
        (AscentStep(0.1, p=INF, metric=AbsWeight()), [0.2, -0.1]),
    ],
)
def test_steps_on_the_quadratic(step, delta):
    risk = o5()
    found = step(risk.theta, risk.gradient())
    assert_close(found["w"], torch.tensor(delta, dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("where", "length"), [("before", 0.5), ("after", 0.2127), ("both", 0.3235)])
def test_placements_of_the_metric_are_different_perturbations(where, length):
    risk = o1()
    delta = AscentStep(0.5, metric=AbsWeight(), where=where)(risk.theta, risk.gradient())
    assert float(norm(delta)) == pytest.approx(length, abs=5e-5)
    assert float(delta["weight"][1, 0]) == 0.0  # the weight that is exactly zero


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 10.0, INF])
@pytest.mark.parametrize("metric", [None, AbsWeight(0.1), FilterNorm(0.1), TensorNorm()])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31))
def test_the_step_maximises_the_linear_rise_over_its_ball(p, metric, seed):
    theta, a, g = random_pair(seed)
    delta = AscentStep(0.7, p=p, metric=metric)(theta, a)
    T = metric(theta) if metric else {k: torch.ones_like(t) for k, t in theta.items()}
    inside = {k: delta[k] / T[k] for k in delta}
    assert float(norm(inside, p)) == pytest.approx(0.7, rel=1e-9)
    q = INF if p == 1 else 1.0 if p == INF else p / (p - 1)
    dual = 0.7 * float(norm({k: T[k] * a[k] for k in a}, q))  # Hölder: no point of the ball rises more
    assert float(inner(a, delta)) == pytest.approx(dual, rel=1e-9)
    other = random_direction(theta, g)
    size = float(norm({k: other[k] / T[k] for k in other}, p))
    assert float(inner(a, other)) * 0.7 / size <= dual * (1 + 1e-9)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, INF])
@pytest.mark.parametrize("bad", [0.0, math.nan, INF])
@pytest.mark.parametrize("normalise", [True, False])
def test_no_direction_no_step(p, bad, normalise):
    theta = {"w": torch.ones(3, dtype=F64), "b": torch.ones(1, dtype=F64)}
    grad = {"w": torch.zeros(3, dtype=F64), "b": torch.full((1,), bad, dtype=F64)}
    delta = AscentStep(0.1, p=p, metric=AbsWeight(), normalise=normalise)(theta, grad)
    assert not any(bool(t.any()) for t in delta.values())


def test_a_radius_of_zero_moves_nothing():
    theta, a, _ = random_pair(0)
    assert not flatten(AscentStep(0.0, metric=AbsWeight())(theta, a)).any()


def test_large_powers_do_not_overflow():
    a = {"w": torch.tensor([1e30, -1e30], dtype=torch.float32)}
    delta = AscentStep(1.0, p=1.2)(a, a)  # the dual exponent is 6: 1e180 has no float32
    assert_close(norm(delta, 1.2), torch.tensor(1.0))


def test_metrics():
    theta = {
        "l.weight": torch.tensor([[3.0, -4.0], [0.0, 2.0]], dtype=F64),
        "l.bias": torch.tensor([-2.0, 0.0]).double(),
    }
    absolute = AbsWeight(0.5)(theta)
    assert_close(absolute["l.weight"], torch.tensor([[3.5, 4.5], [0.5, 2.5]], dtype=F64))
    assert_close(absolute["l.bias"], torch.tensor([2.5, 0.5], dtype=F64))
    official = AbsWeight(0.5, scope="weights")(theta)
    assert_close(official["l.weight"], absolute["l.weight"])
    assert_close(official["l.bias"], torch.ones(2, dtype=F64))
    rows = FilterNorm(0.5)(theta)
    assert_close(rows["l.weight"], torch.tensor([[5.5, 5.5], [2.5, 2.5]], dtype=F64))
    assert_close(rows["l.bias"], absolute["l.bias"])
    whole = TensorNorm(0.5)(theta)
    assert_close(whole["l.weight"], torch.full((2, 2), math.sqrt(29) + 0.5, dtype=F64))
    assert_close(whole["l.bias"], torch.full((2,), 2.5, dtype=F64))
    kernel = torch.ones(2, 3, 2, 2, dtype=F64)
    assert_close(FilterNorm()({"k": kernel})["k"], torch.full_like(kernel, math.sqrt(12)))


def test_protocols():
    assert isinstance(AscentStep(0.1), Perturbation)
    assert all(isinstance(T, Metric) for T in (AbsWeight(), FilterNorm(), TensorNorm()))


def test_arguments_are_not_changed():
    theta, a, _ = random_pair(1)
    copies = [{k: t.clone() for k, t in d.items()} for d in (theta, a)]
    for step in (AscentStep(0.1), AscentStep(0.1, metric=AbsWeight()), AscentStep(0.1, p=1.0, normalise=False)):
        step(theta, a)
    for now, before in zip((theta, a), copies, strict=True):
        for name in before:
            assert torch.equal(now[name], before[name])


def test_displacement():
    theta = {"a": torch.ones(2, dtype=F64), "b": torch.zeros(1, dtype=F64)}
    moved = displaced(theta, {"a": torch.full((2,), 2.0, dtype=F64)}, -0.5)
    assert_close(moved["a"], torch.zeros(2, dtype=F64))
    assert moved["b"] is theta["b"]
    assert_close(theta["a"], torch.ones(2, dtype=F64))


def test_random_directions_are_standard_normal_and_come_from_the_generator():
    like = {"a": torch.empty(200, 100), "b": torch.empty(5000, dtype=F64)}
    random = torch.random.get_rng_state()
    draws = [random_direction(like, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(draws[0]["a"], draws[1]["a"])
    assert not torch.equal(draws[0]["a"], draws[2]["a"])
    values = flatten({k: t.double() for k, t in draws[0].items()})
    n = len(values)
    assert abs(float(values.mean())) < 4 / math.sqrt(n)
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / n)
    assert draws[0]["b"].dtype == F64


@pytest.mark.parametrize("rho", [-0.1, math.nan, INF])
def test_refused_radii(rho):
    with pytest.raises(ValueError, match="`rho` must be a finite radius >= 0, got"):
        AscentStep(rho)
    for metric in (AbsWeight, FilterNorm, TensorNorm):
        with pytest.raises(ValueError, match="`eta` must be a finite radius >= 0, got"):
            metric(rho)


def test_refused_options():
    for p in (0.5, math.nan):
        with pytest.raises(ValueError, match=r"`p` must be in \[1, inf\], got"):
            AscentStep(0.1, p=p)
    step = AscentStep(0.1)
    object.__setattr__(step, "where", "beside")  # past the type checks of the tests
    with pytest.raises(ValueError, match="`where` must be 'both', 'before' or 'after', got 'beside'"):
        inspect.unwrap(AscentStep.__post_init__)(step)
