"""Keskar's box, the surrogate gap and normalised logits against the spec's numbers."""

import math

import pytest
import torch
from problems import F64, o1, o2, o5
from sharpness_problems import perceptron, quadratic, risk_of

from landscape import AscentStep, norm
from landscape.sharpness import (
    ascent_sharpness,
    first_order_sharpness,
    keskar,
    keskar_sharpness,
    logit_normalised,
    normalised_logits,
    surrogate_gap,
)
from landscape.sharpness.logits import constant_logits


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("eps", "value"), [(1e-2, 1.0088235294), (5e-4, 0.0472279412)])
def test_the_box_of_the_quadratic(eps, value):
    found = keskar_sharpness(o5(), eps)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.stderr == 0


@pytest.mark.parametrize("kept", [0, 2**30])
def test_subspaces_by_hand(kept, monkeypatch):
    monkeypatch.setattr(keskar, "KEPT_BYTES", kept)
    p, k = 40, 20
    w = torch.linspace(-1, 2, p, dtype=F64)
    slope = torch.cos(torch.arange(p, dtype=F64))
    risk = quadratic(torch.zeros(p, p, dtype=F64), slope, w, base=1.0)
    found = keskar_sharpness(risk, 1e-2, dimension=k, generator=seeded())
    seed = int(torch.randint(2**62, (1,), generator=seeded()))
    source = seeded(seed)
    A = torch.cat([torch.randn(count, p, generator=source, dtype=F64) for count in (16, 4)]).T
    A = A / A.norm(dim=0)
    half = (torch.linalg.pinv(A) @ w).abs() + 1
    assert found.value == pytest.approx(100 * 1e-2 * float((A.T @ slope).abs() @ half) / 2, rel=1e-9)
    assert math.isnan(found.stderr)
    assert found.converged


def test_all_directions_and_several_subspaces():
    risk = risk_of(perceptron(torch.nn.Tanh))
    found = keskar_sharpness(risk, 1e-2, dimension=10, draws=3, generator=seeded())
    assert (found.draws, found.method) == (3, "keskar-subspace-10")
    assert found.stderr > 0
    assert found.value < keskar_sharpness(risk, 1e-2).value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "`eps` must be a finite radius >= 0, got -1.0"),
        ({"dimension": 99, "generator": seeded()}, "`dimension` must be between 1 and the number of parameters 6"),
        ({"dimension": 2, "draws": 0, "generator": seeded()}, "`draws` must be at least 1 subspace, got 0"),
    ],
)
def test_refused_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        keskar_sharpness(o1(), **options)


@pytest.mark.parametrize(("rho", "gap", "curvature"), [(0.05, 0.0530917717, 42.47341737), (0.2, 0.2191610957, 10.958)])
def test_the_surrogate_gap_and_its_readings(rho, gap, curvature):
    found = surrogate_gap(o2(), rho)
    assert found.gap.value == pytest.approx(gap, abs=1e-9)
    assert found.curvature == pytest.approx(curvature, rel=1e-4)
    assert surrogate_gap(o2(), 1e-3).directional == pytest.approx(0.48800538688768463, rel=1e-3)
    exact = surrogate_gap(o5(), rho)  # quadratic: gᵀHg / ‖g‖² at every radius
    assert exact.directional == pytest.approx((0.16 * 3 - 0.16 + 0.04 * 2) / 0.2, rel=1e-6)
    with pytest.raises(ValueError, match="`rho` must be above 0 to read a curvature from the gap, got"):
        surrogate_gap(o2(), 0.0)


def test_normalised_logits_of_softmax_regression():
    risk = logit_normalised(o1())
    assert risk.value() == pytest.approx(0.9441191963948986, rel=1e-12)
    assert risk.value({k: 7 * t for k, t in risk.theta.items()}) == pytest.approx(0.9441191963948986, rel=1e-12)
    gradient = risk.gradient()
    assert float(norm(gradient)) == pytest.approx(0.3284313243, abs=1e-9)
    assert abs(float((gradient["weight"] * risk.theta["weight"]).sum())) < 1e-15
    C = 10
    best = normalised_logits(100 * torch.eye(C, dtype=F64))
    c = C / math.sqrt(C * (C - 1))
    floor = math.log(1 + (C - 1) * math.exp(-c))
    assert float(torch.nn.functional.cross_entropy(best, torch.arange(C))) == pytest.approx(floor)
    dead = {k: torch.zeros_like(t) for k, t in risk.theta.items()}
    assert constant_logits(o1()) == 0
    assert constant_logits(o1(), dead) == 4


@pytest.mark.parametrize(("p", "dual"), [(2.0, 2), (math.inf, 1)])
@pytest.mark.parametrize("m", [1, 5, 24, None])
def test_first_order_sharpness_is_the_dual_norm(p, dual, m):
    risk = risk_of(perceptron())
    found = first_order_sharpness(risk, 0.3, m, p=p)
    chunks = [risk] if m is None else risk.chunks(m)
    sizes = [c.n for c in chunks]
    values = [0.3 * float(norm(c.gradient(), dual)) for c in chunks]
    mean = sum(v * k for v, k in zip(values, sizes, strict=True)) / sum(sizes)
    assert found.value == pytest.approx(mean, rel=1e-10)
    tiny = ascent_sharpness(risk, AscentStep(1e-7, p=p), m)
    assert first_order_sharpness(risk, 1e-7, m, p=p).value == pytest.approx(tiny.value, rel=1e-4)


def test_first_order_sharpness_refuses_other_norms():
    with pytest.raises(ValueError, match="`p` must be 2 or inf, got 3"):
        first_order_sharpness(o1(), 0.1, p=3.0)
    with pytest.raises(ValueError, match="`known` is the loss and gradient on all data"):
        ascent_sharpness(o1(), AscentStep(0.1), 2, known=(0.0, {}))


def test_known_gradients_are_used():
    risk = o1()
    known = risk.value_and_gradient()
    found = ascent_sharpness(risk, AscentStep(0.5), known=known)
    assert found.value == pytest.approx(0.2853376275098173, rel=1e-12)
    zero = ascent_sharpness(risk, AscentStep(0.5), known=(5.0, known[1]))
    assert zero.base == 5.0
