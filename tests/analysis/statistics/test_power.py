import math

import numpy as np
import pytest

from analysis.statistics.power import (
    design_effect,
    power,
    required_models,
    smallest_effect,
)

TABLE = {
    0.1: (783, 830, 345),
    0.2: (194, 206, 88),
    0.3: (85, 90, 40),
    0.4: (47, 50, 24),
    0.5: (30, 31, 16),
    0.6: (20, 21, 12),
}


@pytest.mark.parametrize("effect", TABLE)
@pytest.mark.parametrize(("place", "coefficient"), list(enumerate(["pearson", "spearman", "kendall"])))
def test_required_models(effect, place, coefficient):
    n = required_models(effect, coefficient=coefficient)
    assert n == TABLE[effect][place] == required_models(-effect, coefficient=coefficient)
    # The least n: one fewer has not the power (the far tail, which the plan leaves out, is below 1e-6).
    assert power(effect, n, coefficient=coefficient) >= 0.8
    assert power(effect, n - 1, coefficient=coefficient) < 0.8
    assert smallest_effect(n, coefficient=coefficient) <= effect < smallest_effect(n - 1, coefficient=coefficient)


@pytest.mark.parametrize(
    ("tau", "n", "expected"), [(0.2, 90, 0.81), (0.3, 40, 0.80), (0.4, 24, 0.84), (0.5, 16, 0.81), (0.2, 50, 0.56)]
)
def test_power_is_that_of_simulated_studies(tau, n, expected):
    """Normal data with r = sin(pi tau/2), tested by the normal limit of the permutations without ties."""
    rng, draws = np.random.default_rng(0), 2000
    r = math.sin(math.pi * tau / 2)
    x = rng.standard_normal((draws, n))
    y = r * x + math.sqrt(1 - r * r) * rng.standard_normal((draws, n))
    drawn = sum(
        (np.sign(x[:, lag:] - x[:, :-lag]) * np.sign(y[:, lag:] - y[:, :-lag])).sum(axis=1) for lag in range(1, n)
    ) / (n * (n - 1) / 2)
    assert drawn.mean() == pytest.approx(tau, abs=4 * drawn.std() / math.sqrt(draws))
    found = (np.abs(drawn) > 1.959964 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))).mean()
    assert found == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws) + 0.025)  # two digits, another simulation
    assert power(tau, n) == pytest.approx(found, abs=0.06)


def test_design_effect_multiplies():
    assert design_effect(0.7, 3) == pytest.approx(2.4)
    assert design_effect(-0.2, 3) == 1.0
    assert required_models(0.2, design_effect=2.4) == math.ceil(2.4 * (0.437 * (2.8015852 / math.atanh(0.2)) ** 2 + 4))
    assert power(0.2, 2.4 * 88, design_effect=2.4) == pytest.approx(power(0.2, 88))
    assert math.isnan(power(0.2, 4))
    assert math.isnan(smallest_effect(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: required_models(0), "`effect` must not be 0"),
        (lambda: required_models(1.0), r"`effect` must lie inside \(-1, 1\)"),
        (lambda: required_models(0.2, coefficient="tau"), "`coefficient` must be one of"),
        (lambda: required_models(0.2, power=1), r"`power` must lie inside \(0, 1\)"),
        (lambda: required_models(0.2, alpha=0), r"`alpha` must lie inside \(0, 1\)"),
        (lambda: required_models(0.2, design_effect=0.5), "`design_effect` must be at least 1"),
        (lambda: power(0.2, 10, design_effect=0.5), "`design_effect` must be at least 1"),
        (lambda: smallest_effect(10, power=0), r"`power` must lie inside \(0, 1\)"),
        (lambda: design_effect(0.2, 0), "`seeds` must be at least 1"),
    ],
    ids=range(9),
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
