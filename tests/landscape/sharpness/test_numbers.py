"""Numbers worked out apart from this code that no other test has: block gradients, noise, and the root of a radius."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import F64, o1, o2, o5
from sharpness_problems import linear_losses, sign_classifier

from landscape import AbsWeight, AscentStep, displaced
from landscape.sharpness import (
    average_sharpness,
    first_order_sharpness,
    gradient_moments,
    noise_radius,
    surrogate_gap,
    worst_case_sharpness,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("m", "square"), [(1, 3.0), (2, 5 / 3), (3, 11 / 9), (4, 1.0)])
def test_squared_gradients_of_all_blocks_are_what_the_covariance_says(m, square):
    """E‖g_B‖² = ‖g‖² + tr Σ / m (1 - m/n) over all blocks drawn without replacement."""
    risk = linear_losses()
    x, y = risk.batches[0]
    rises = []
    for block in itertools.combinations(range(4), m):
        chosen = torch.tensor(block)
        part = risk.on((x[chosen], y[chosen]))
        rises.append(first_order_sharpness(part, 1.0).value)  # ‖g_B‖, which of one block of two is zero
    assert np.mean(np.square(rises)) == pytest.approx(square, rel=1e-12)
    moments = gradient_moments(risk)
    trace = moments.covariance_trace().value
    whole = sum(float(g.square().sum()) for g in moments.mean.values())
    assert whole + trace / m * (1 - m / 4) == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_worst_cases_of_blocks_grow_as_the_blocks_shrink(m):
    exact = {1: 0.5912105120, 2: 0.3524593562, 4: 0.2933424729}[m]
    found = worst_case_sharpness(o1(), 0.5, m, steps=40, restarts=2, generator=None).value
    assert 0.9999 * exact <= found <= exact + 1e-9


@pytest.mark.parametrize(
    ("noise", "metric", "value"),
    [
        ("gaussian", None, 0.025),
        ("uniform", None, 0.025 / 3),
        ("gaussian", AbsWeight(), 0.07),
        ("uniform", AbsWeight(), 0.07 / 3),
    ],
)
def test_average_over_a_quadratic_is_the_trace_of_the_draws(noise, metric, value):
    """A pair's rise is exactly δᵀHδ/2, so that its mean tends to ρ² tr(THT)/2 (over 3 for the box)."""
    risk, source = o5(), seeded(1)
    found = average_sharpness(risk, 0.1, draws=100, noise=noise, metric=metric, generator=source)
    assert abs(found.value - value) < 3.5 * found.stderr
    assert found.stderr < 0.15 * value
    assert found.draws == 100
    shapes = seeded(1)
    H, scale = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=F64), 1.0 if metric is None else risk.theta["w"].abs()
    total = 0.0
    for _ in range(100):
        if noise == "gaussian":
            u = torch.randn(2, generator=shapes, dtype=F64)
        else:
            u = torch.rand(2, generator=shapes, dtype=F64) * 2 - 1
        delta = 0.1 * scale * u
        total += float(delta @ H @ delta) / 2
    assert found.value == pytest.approx(total / 100, rel=1e-10)


@pytest.mark.parametrize(("rho", "value", "second"), [(0.05, 0.00157639, 0.00157724), (0.1, 0.0062823, 0.00630895)])
def test_average_over_softmax_regression(rho, value, second):
    """The draws are those of the quadratic form, so that subtracting it leaves only the fourth order."""
    risk, draws = o1(), 200
    found = average_sharpness(risk, rho, draws=draws, generator=seeded(2))
    p = torch.softmax(risk.outputs(), 1)
    x = risk.batches[0][0]
    source, forms = seeded(2), []
    for _ in range(draws):
        z = rho * torch.randn(3, 2, generator=source, dtype=F64) @ x.T  # change of the logits, (3, 4)
        forms.append(float((p.T * z**2).sum() / 4 - ((p.T * z).sum(0) ** 2).sum() / 4) / 2)
    rest = found.value - np.mean(forms)  # the noise of the quadratic part is gone
    assert second + rest == pytest.approx(value, abs={0.05: 2e-6, 0.1: 8e-6}[rho])
    assert second == pytest.approx(rho**2 * 1.2617902525891436 / 2, rel=1e-5)


@pytest.mark.parametrize("magnitude", [False, True])
def test_noise_has_the_standard_deviation_that_is_bisected(magnitude):
    """For K draws z of a scalar, the root is where the (K/10 + 1)-th most harmful one turns the sign.

    A published code takes the variance for a standard deviation: it would end at the root's square root, where
    √0.7803 = 0.8833 is expected.
    """
    draws, w = 60, 2.0 if magnitude else 1.0
    found = noise_radius(sign_classifier(w), magnitude=magnitude, draws=draws, tol=1e-7, generator=seeded(3))
    source = seeded(3)
    seeds = [int(torch.randint(2**62, (1,), generator=source)) for _ in range(draws)]
    z = sorted(float(torch.randn(1, generator=seeded(s), dtype=F64)) for s in seeds)
    turn = -w / z[draws // 10]  # the length of noise at which more than a tenth are wrong
    root = math.sqrt(turn**2 - 1e-6) / w if magnitude else turn
    assert found.value == pytest.approx(root, rel=1e-6)
    assert abs(found.value - math.sqrt(root)) > 0.01


def test_roots_of_the_scalar_classifier():
    q = 0.7803041461
    assert math.sqrt((2 * q) ** 2 - 1e-6) / 2 == pytest.approx(0.7803039859, abs=1e-10)
    quantile = torch.special.ndtri(torch.tensor(0.9, dtype=F64)).item()
    assert 1 / quantile == pytest.approx(q, abs=1e-10)
    drop = 1 - float(torch.special.ndtr(torch.tensor(1 / 0.75, dtype=F64)))
    assert drop == pytest.approx(0.0912, abs=5e-5)  # a stop within 0.01 of the target would end here


@pytest.mark.parametrize(("rho", "reading"), [(0.05, 42.5), (0.2, 10.96)])
def test_the_gap_of_a_steep_point_is_no_curvature(rho, reading):
    found = surrogate_gap(o2(), rho)
    assert found.curvature == pytest.approx(reading, rel=2e-3)  # λ_max is 0.757
    assert found.curvature > 10 * 0.7566917132
    assert found.directional == pytest.approx(0.488, abs=0.25)


def test_the_gradient_after_the_step_of_the_quadratic():
    risk = o5()
    delta = AscentStep(0.1)(risk.theta, risk.gradient())
    perturbed = risk.at(displaced(risk.theta, delta)).gradient()["w"]
    torch.testing.assert_close(perturbed, torch.tensor([0.6236067977, -0.2], dtype=F64), rtol=0, atol=1e-9)
