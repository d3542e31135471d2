import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.kendall import EXACT_LIMIT, kendall_pvalues, weighted_kendall
from analysis.statistics.resampling import permutation_orders

# Worked by hand over a 2 x 2 x 2 grid: D1 has 26 concordant pairs, no discordant one and a tie in each sample.
D1 = ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.1, 0.14, 0.12, 0.2, 0.16, 0.13, 0.22, 0.2])
D2 = ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.1, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])


def tau_b(x, y):
    return weighted_kendall(x[None], y[None], np.ones((1, len(x)), dtype=int))[0, 0, 0]


@pytest.mark.parametrize(("data", "expected"), [(D1, 26 / 27), (D2, 12 / 28)])
def test_tau_of_the_worked_data(data, expected):
    assert tau_b(np.array(data[0]), np.array(data[1])) == pytest.approx(expected, abs=1e-14)


samples = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12)


@given(samples)
def test_tau_is_scipys(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    if min(len(set(x)), len(set(y))) == 1:
        assert np.isnan(tau_b(x, y))
    else:
        assert tau_b(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-14)


@given(samples)
def test_tau_sees_order_only_and_turns_with_the_sign(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    tau = tau_b(x, y)
    assert_allclose(tau_b(np.exp(x), y**3 - 7), tau, atol=1e-15)
    assert_allclose(tau_b(-x, y), -tau, atol=1e-15)
    assert_allclose(tau_b(y, x), tau, atol=1e-15)


def test_weighted_is_tau_of_the_resample_also_in_many_blocks(monkeypatch):
    monkeypatch.setattr("analysis.statistics.kendall.BLOCK", 640)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 20)), rng.integers(0, 4, size=(2, 20)).astype(np.float64)
    counts = rng.integers(0, 4, size=(10, 20))
    found = weighted_kendall(x, y, counts)
    for m, t, d in np.ndindex(found.shape):
        rows = np.repeat(np.arange(20), counts[d])
        assert found[m, t, d] == pytest.approx(stats.kendalltau(x[m][rows], y[t][rows]).statistic, abs=1e-13)


def test_weighted_stays_exact_where_single_precision_would_not_do():
    # 2 x 10^9 pairs: a sum in single precision is off by hundreds.
    x, counts = np.array([[1.0, 2.0, 3.0]]), np.array([[40_001, 30_001, 20_003]])
    a, b, c = counts[0].tolist()
    expected = (a * b - a * c - b * c) / (a * b + a * c + b * c)
    assert weighted_kendall(x, np.array([[2.0, 3.0, 1.0]]), counts)[0, 0, 0] == pytest.approx(expected, abs=1e-15)


def test_exact_pvalue_of_the_worked_example():
    x, y = np.arange(5.0)[None], np.array([[1.0, 3, 2, 5, 4]])
    orders, exact = permutation_orders(5, count=120, generator=np.random.default_rng(0))
    assert exact
    assert kendall_pvalues(x, y, orders, exact=True)[0, 0] == pytest.approx(28 / 120, abs=1e-15)
    # The same 120 orders taken as a random sample: one more in each count.
    assert kendall_pvalues(x, y, orders)[0, 0] == pytest.approx(29 / 121, abs=1e-15)


def test_exact_pvalues_with_ties_by_enumeration():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, size=(5, 5)).astype(np.float64), rng.integers(0, 3, size=(2, 5)).astype(np.float64)
    orders = np.array(list(itertools.permutations(range(5))))
    found = kendall_pvalues(x, y, orders, exact=True)
    for m, t in np.ndindex(found.shape):
        sign = np.sign(np.subtract.outer(x[m], x[m]))
        null = [(sign * np.sign(np.subtract.outer(moved, moved))).sum() for moved in y[t][orders]]
        tau = null[0]  # the order as it is comes first
        assert found[m, t] == pytest.approx(np.mean(np.abs(null) >= abs(tau) - 1e-12), abs=1e-15)


def test_random_pvalues_agree_with_the_exact_distribution():
    rng = np.random.default_rng(2)
    y = rng.normal(size=(1, 12))
    x = y + rng.normal(size=(8, 12)) * 2
    orders, exact = permutation_orders(12, count=9999, generator=rng)
    assert not exact
    expected = [stats.kendalltau(row, y[0], method="exact").pvalue for row in x]
    error = np.sqrt(np.array(expected) / 9999) * 4 + 1e-4  # four standard errors
    assert np.all(np.abs(kendall_pvalues(x, y, orders)[:, 0] - expected) < error)


def test_pvalues_do_not_change_with_the_sign_or_with_increasing_functions():
    rng = np.random.default_rng(3)
    x, y = np.round(rng.normal(size=(4, 15)), 1), np.round(rng.normal(size=(2, 15)), 1)
    orders, _ = permutation_orders(15, count=500, generator=rng)
    p = kendall_pvalues(x, y, orders)
    assert_allclose(kendall_pvalues(-x, y, orders), p, rtol=0, atol=0)
    assert_allclose(kendall_pvalues(np.exp(x), -y, orders), p, rtol=0, atol=0)


def test_normal_limit_above_a_hundred_units_is_scipys_with_ties():
    n = EXACT_LIMIT + 40
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, size=(1, n)).astype(np.float64)
    x = np.stack([np.round(rng.normal(size=n) + 0.2 * y[0], digits) for digits in (0, 1, 9)])
    orders, _ = permutation_orders(n, count=999, generator=rng)
    expected = [stats.kendalltau(row, y[0], method="asymptotic").pvalue for row in x]
    assert min(expected) < 0.5
    # scipy makes no step of continuity; ours is 1 of a standard deviation of about 500.
    assert_allclose(kendall_pvalues(x, y, orders)[:, 0], expected, rtol=0.01, atol=1 / 1000)


def test_near_constant_measure_is_not_left_to_the_normal_limit():
    # One unit of 121 differs: C - D is 2k - 120 for the rank k of its target, uniform over k.
    n = 121
    y = np.arange(float(n))[None]
    x = (np.arange(n) == 117).astype(np.float64)[None]
    orders, _ = permutation_orders(n, count=9999, generator=np.random.default_rng(5))
    expected = 8 / 121  # |2k - 120| >= 114 for k = 0..3 and 117..120
    assert kendall_pvalues(x, y, orders)[0, 0] == pytest.approx(expected, abs=4 * (expected / 9999) ** 0.5)


def test_pvalue_never_falls_below_what_the_permutations_can_show():
    x = np.arange(150.0)[None]
    orders, _ = permutation_orders(150, count=999, generator=np.random.default_rng(6))
    assert kendall_pvalues(x, x, orders)[0, 0] == pytest.approx(1 / 1000, abs=1e-15)


def test_constant_row_has_no_pvalue():
    orders, _ = permutation_orders(7, count=50, generator=np.random.default_rng(7))
    p = kendall_pvalues(np.stack([np.ones(7), np.arange(7.0)]), np.stack([np.arange(7.0), np.zeros(7)]), orders)
    assert np.isnan(p).tolist() == [[True, True], [False, True]]
