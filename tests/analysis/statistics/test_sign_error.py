import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from analysis.statistics.grid import levels
from analysis.statistics.sign_error import (
    environment_errors,
    environments,
    quantile,
    robust_sign_error,
    sign_probability,
    sign_weight,
)

GRID = list(itertools.product([0, 1], repeat=3))
COORDINATES = {name: [g[k] for g in GRID] for k, name in enumerate("ABC")}
D1 = tuple(map(np.array, ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.10, 0.14, 0.12, 0.20, 0.16, 0.13, 0.22, 0.20])))
D2 = tuple(map(np.array, ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.10, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])))
G = np.array([0.10, 0.11, 0.12, 0.13, 0.12, 0.14])
MU = np.array([1, 2, 1.5, 1.8, 1.6, 2.5])
PLACES = environments(*levels({"lr": [0, 0, 0, 1, 1, 1]}))


def test_probability_of_an_order():
    d = np.array([0.01, 0.015, 0.02, 0.03, 0.04, 0.05])
    expected = [0, 0.122987, 0.531921, 0.956058, 0.998659, 0.999985]
    assert_allclose(sign_probability(d, test_size=10000), expected, atol=5e-7)
    assert_allclose(sign_probability(-d, test_size=10000), expected, atol=5e-7)


def test_three_seeds():
    weights = [0.4560577, 0.0319214, 0.4986586, 0.0319214, 0, 0.4560577, 0, 0, 0.0319214]
    assert_allclose(sign_weight(G[PLACES.first] - G[PLACES.second], test_size=10000), weights, atol=5e-8)
    error, ess = environment_errors(MU[None], G[None], PLACES, test_size=[10000])
    assert error[0, 0, 0] == pytest.approx(0.0211885919, abs=1e-10)
    assert ess[0, 0, 0] == pytest.approx(3.3992451344, abs=1e-10)
    found = robust_sign_error(MU, G, {"lr": [0, 0, 0, 1, 1, 1]}, test_size=10000)["all"]
    assert (found.kept, found.environments) == (0, 1)  # fewer than 12 effective pairs
    assert np.isnan(found.maximum)
    few = robust_sign_error(MU, G, {"lr": [0, 0, 0, 1, 1, 1]}, test_size=10000, minimum_ess=3)["all"]
    assert few.maximum == pytest.approx(0.0211885919, abs=1e-10)


@pytest.mark.parametrize(
    ("data", "axes", "mean", "maximum"),
    [(D2, [0.25, 0.25, 0.25], 0.25, 1.0), (D1, [0.25, 0, 0], 1 / 12, 0.5)],
    ids=["D2", "D1"],
)
def test_worked_data_without_weights(data, axes, mean, maximum):
    found = robust_sign_error(*data, COORDINATES)
    assert_allclose([found[a].mean for a in "ABC"], axes, atol=1e-14)
    assert found["all"].mean == pytest.approx(mean, abs=1e-14)
    assert found["all"].maximum == maximum
    assert found["all"].environments == 12


def test_against_a_loop_with_missing_runs():
    rng = np.random.default_rng(0)
    co = {"a": rng.integers(0, 3, 40).tolist(), "b": rng.integers(0, 2, 40).tolist()}
    x, y = rng.normal(size=(2, 40))
    x[3], y[7] = np.nan, np.inf
    y *= 0.03
    found = robust_sign_error(x, y, co, test_size=5000, minimum_ess=0)
    key = list(zip(co["a"], co["b"], strict=True))
    errors = []
    for u, v in itertools.combinations(sorted(set(key)), 2):
        if sum(a != b for a, b in zip(u, v, strict=True)) != 1:
            continue
        top = bottom = 0.0
        for i, j in itertools.product([k for k in range(40) if key[k] == u], [k for k in range(40) if key[k] == v]):
            if np.isfinite([x[i], x[j], y[i], y[j]]).all():
                p = max(0, 1 - 2 * np.exp(-2 * 5000 * ((y[i] - y[j]) / 2) ** 2)) ** 2
                w = max(0, p - 0.5)
                top += w * (1 - np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])) / 2
                bottom += w
        if bottom:
            errors.append(top / bottom)
    assert found["all"].kept == len(errors)
    assert found["all"].mean == pytest.approx(np.mean(errors), abs=1e-12)
    assert found["all"].p90 == pytest.approx(np.percentile(errors, 90), abs=1e-12)


def test_the_sign_of_the_measure_turns_the_error_round():
    one, other = robust_sign_error(*D2, COORDINATES)["all"], robust_sign_error(-D2[0], D2[1], COORDINATES)["all"]
    assert one.mean + other.mean == pytest.approx(1.0)


def test_nothing_to_compare_is_no_number():
    found = robust_sign_error(np.array([1.0]), np.array([2.0]), {"a": [0]})["all"]
    assert np.isnan([found.mean, found.median, found.p90, found.maximum]).all()
    assert found.environments == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`test_size` must be a number of examples > 0"):
        robust_sign_error(*D1, COORDINATES, test_size=0)
    with pytest.raises(ValueError, match="`x`, `y` and `coordinates` must agree"):
        robust_sign_error(D1[0][:3], D1[1], COORDINATES)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_quantiles_are_numpys_to_the_last_bit(q):
    rng = np.random.default_rng(0)
    for n in (*range(1, 40), *[12] * 200):
        ordered = np.sort(rng.random(n))
        assert quantile(ordered, q) == np.quantile(ordered, q)
