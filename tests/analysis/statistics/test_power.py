import math

import numpy as np
import pytest

from analysis.statistics.power import (
    design_effect,
    power,
    required_models,
    simulated_power,
    simulated_tau,
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
def test_simulated_power(tau, n, expected):
    found, error = simulated_power(tau, n, draws=2000, generator=np.random.default_rng(0))
    assert found == pytest.approx(expected, abs=4 * error + 0.025)  # two digits, from another simulation
    assert found == pytest.approx(power(tau, n), abs=0.06)


def test_the_simulation_has_the_tau_asked_for_and_the_level():
    rng = np.random.default_rng(0)
    tau = simulated_tau(0.4, 30, draws=2000, generator=rng)
    assert tau.mean() == pytest.approx(0.4, abs=4 * tau.std() / math.sqrt(2000))
    found, error = simulated_power(0.0, 50, draws=4000, generator=rng)
    assert found == pytest.approx(0.05, abs=4 * error)


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
        (lambda: simulated_power(0.2, 3, generator=np.random.default_rng(0)), "`n` must be at least 4"),
        (lambda: design_effect(0.2, 0), "`seeds` must be at least 1"),
    ],
    ids=range(10),
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
