"""Moments of per-example gradients against a loop, the spec's numbers and the jackknife done by hand."""

import math

import numpy as np
import pytest
import torch
from problems import F64, case, o1, o2, small
from sharpness_problems import linear_losses, perceptron, risk_of
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import EmpiricalRisk, flatten
from landscape.operators.point import Point
from landscape.sharpness import gradient_moments, gradients, layers
from landscape.sharpness.layers import layer_moments


def rows_of(risk):
    """Per-example gradients, one at a time."""
    x, y = (torch.cat([b[i] for b in risk.batches]) for i in (0, 1))
    singles = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    return torch.stack([flatten(risk.on([one]).gradient(), risk.names) for one in singles]).numpy()


RISKS = {
    "softmax": o1,
    "tanh": o2,
    "batches": lambda: o2((3, 2)),
    "no bias": lambda: risk_of(perceptron(bias=False)),
    "conv": lambda: case("conv:eval").risk(),
    "attention": lambda: case("sdpa:causal").risk(),
    "linear losses": linear_losses,
    "tied": lambda: case("tied").risk(),
    "embedded": lambda: small(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))),
}


@pytest.mark.parametrize("name", RISKS)
def test_moments_are_those_of_a_loop(name):
    risk = RISKS[name]()
    G, w = rows_of(risk), flatten(risk.theta, risk.names).numpy()
    found = gradient_moments(risk, elementwise=True)
    close = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(found.squares, (G**2).sum(1), **close)
    np.testing.assert_allclose(found.radial, G @ w, **close)
    np.testing.assert_allclose(flatten(found.mean, risk.names), G.mean(0), **close)
    np.testing.assert_allclose(flatten(found.second, risk.names), (G**2).mean(0), **close)
    mean = flatten(risk.gradient(), risk.names).numpy()
    np.testing.assert_allclose(found.slopes, G @ mean, **close)
    assert found.n == len(G)


@pytest.mark.parametrize("name", ["softmax", "tanh", "no bias"])
def test_layers_and_vmap_agree(name, monkeypatch):
    risk = RISKS[name]()
    fast = gradient_moments(risk, elementwise=True)
    monkeypatch.setattr(gradients, "layer_moments", lambda *_: None)
    slow = gradient_moments(risk, elementwise=True)
    for column in ("squares", "slopes", "radial"):
        np.testing.assert_allclose(getattr(fast, column), getattr(slow, column), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("name", "takes"), [("tanh", True), ("conv", False), ("tied", False), ("embedded", False)])
def test_layers_are_used_where_they_hold(name, takes, monkeypatch):
    seen = []

    def watch(*args):
        seen.append(layer_moments(*args))
        return seen[-1]

    monkeypatch.setattr(gradients, "layer_moments", watch)
    risk = RISKS[name]()
    gradient_moments(risk)
    assert (seen[0] is not None) == takes


@pytest.mark.parametrize(("kinked", "takes"), [(1, True), (2, False)])
def test_one_example_at_a_kink_is_no_reason_against_layers(kinked, takes, monkeypatch):
    """Rounding may put a unit to the other side of its kink where an example is evaluated alone."""
    asked, alone = [], layers._is_alone

    def beside(point, batch, parts, i):
        asked.append(i)
        return len(asked) > kinked and alone(point, batch, parts, i)

    monkeypatch.setattr(layers, "_is_alone", beside)
    point = Point.of(RISKS["tanh"](), None, None)
    aims = [(t.detach(), t.detach()) for t in point.theta.values()]
    sums = [torch.zeros_like(t, dtype=torch.float64) for t in point.theta.values()]
    found = layer_moments(point, point.risk.batches[0], aims, sums, [])
    assert (found is not None) == takes
    assert len(asked) == 4


def test_sums_of_losses_are_refused():
    """One example's loss has another factor alone."""
    risk = small(nn.Linear(3, 2), loss=lambda out, y: cross_entropy(out, y, reduction="sum") / 6)
    with pytest.raises(ValueError, match="`gradient_moments`, which takes examples one by one, would cut batches"):
        gradient_moments(risk)


def test_numbers_of_softmax_regression():
    found = gradient_moments(o1())
    assert found.covariance_trace().value == pytest.approx(1.123323964885228, rel=1e-12)
    assert found.noise_scale(unbiased=False).value == pytest.approx(5.0506903723, abs=1e-9)
    unbiased = found.noise_scale()
    assert math.isnan(unbiased.value)
    assert math.isnan(unbiased.stderr)
    assert unbiased.parts["squared_gradient"].value == pytest.approx(-0.0584210072, abs=1e-9)
    assert unbiased.parts["covariance_trace"].value == pytest.approx(1.123323964885228, rel=1e-12)
    assert found.squares.mean() == pytest.approx(1.064902957663957, rel=1e-12)  # the trace of the empirical Fisher


def test_numbers_of_linear_losses():
    found = gradient_moments(linear_losses())
    assert found.covariance_trace().value == pytest.approx(8 / 3)
    assert found.quantiles((0.0, 0.5, 1.0)) == pytest.approx({0.0: 1.0, 0.5: 1.0, 1.0: 3.0})


def test_standard_errors_are_the_jackknifes():
    risk = risk_of(perceptron(), n=9)
    G = rows_of(risk)

    def numbers(rows):
        trace, square = np.trace(np.cov(rows.T)), (rows.mean(0) ** 2).sum()
        return trace, square, square - trace / len(rows), trace / square

    left = np.array([numbers(np.delete(G, i, 0)) for i in range(9)])
    expected = np.sqrt(8 / 9 * ((left - left.mean(0)) ** 2).sum(0))
    found = gradient_moments(risk)
    assert found.covariance_trace().value == pytest.approx(numbers(G)[0])
    assert found.covariance_trace().stderr == pytest.approx(expected[0])
    scale = found.noise_scale(unbiased=False)
    assert (scale.value, scale.stderr) == pytest.approx((numbers(G)[3], expected[3]))
    part = found.noise_scale().parts["squared_gradient"]
    assert (part.value, part.stderr) == pytest.approx((numbers(G)[2], expected[2]))


def test_signal_to_noise_by_hand():
    risk = risk_of(perceptron(nn.Tanh))
    G = rows_of(risk)
    found = gradient_moments(risk, elementwise=True).signal_to_noise()
    assert found == pytest.approx((G.mean(0) ** 2 / G.var(0, ddof=1)).mean(), rel=1e-9)
    with pytest.raises(ValueError, match=r"use gradient_moments\(risk, elementwise=True\)"):
        gradient_moments(risk).signal_to_noise()


def test_single_precision_and_few_examples():
    wide = gradient_moments(risk_of(perceptron()))
    narrow = gradient_moments(risk_of(perceptron(dtype=torch.float32), dtype=torch.float32))
    np.testing.assert_allclose(narrow.squares, wide.squares, rtol=1e-4)
    two = gradient_moments(risk_of(perceptron(), n=2)).covariance_trace()
    assert math.isfinite(two.value)
    assert math.isnan(two.stderr)
    with pytest.raises(ValueError, match="`risk` must have at least 2 examples for a covariance, got 1"):
        gradient_moments(risk_of(perceptron(), n=1)).covariance_trace()


def test_refused_risks():
    with pytest.raises(ValueError, match="`risk` has mode='batch', where an example's loss depends on its batch"):
        gradient_moments(case("conv:batch").risk())


def test_nothing_is_left_on_the_model():
    model = perceptron()
    risk = EmpiricalRisk.from_model(model, cross_entropy, (torch.randn(5, 4, dtype=F64), torch.zeros(5).long()))
    gradient_moments(risk)
    assert not any(m._forward_hooks for m in [*model.modules(), *risk.predict.module.modules()])
    assert all(p.grad is None for p in model.parameters())
