import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.kendall import EXACT_LIMIT, kendall_pvalues, kendall_tau, weighted_kendall
from analysis.statistics.resampling import permutation_orders

# Worked by hand over a 2 x 2 x 2 grid: D1 has 26 concordant pairs, no discordant one and a tie in each sample.
D1 = ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.1, 0.14, 0.12, 0.2, 0.16, 0.13, 0.22, 0.2])
D2 = ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.1, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])


@pytest.mark.parametrize(
    ("data", "variant", "expected"),
    [
        (D1, "a", 26 / 28),
        (D1, "b", 26 / 27),
        (D1, "c", 0.9479166666666667),
        (D1, "gamma", 1.0),
        (D2, "a", 12 / 28),
        (D2, "b", 12 / 28),
        (D2, "c", 12 / 28),
        (D2, "gamma", 12 / 28),
    ],
)
def test_variants_on_the_worked_data(data, variant, expected):
    x, y = np.array(data[0]), np.array(data[1])
    assert kendall_tau(x, y, variant=variant) == pytest.approx(expected, abs=1e-14)


samples = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12)


@given(samples)
def test_b_and_c_are_scipys(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    for variant in ("b", "c"):
        if min(len(set(x)), len(set(y))) == 1:
            assert np.isnan(kendall_tau(x, y, variant=variant))
        else:
            expected = stats.kendalltau(x, y, variant=variant).statistic
            assert kendall_tau(x, y, variant=variant) == pytest.approx(expected, abs=1e-14)


@given(samples)
def test_tau_sees_order_only_and_turns_with_the_sign(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    for variant in ("a", "b", "c", "gamma"):
        tau = kendall_tau(x, y, variant=variant)
        assert_allclose(kendall_tau(np.exp(x), y**3 - 7, variant=variant), tau, atol=1e-15)
        assert_allclose(kendall_tau(-x, y, variant=variant), -tau, atol=1e-15)
        assert_allclose(kendall_tau(y, x, variant=variant), tau, atol=1e-15)


@pytest.mark.parametrize("variant", ["b", "c", "gamma"])
def test_constant_sample_has_no_tau(variant):
    assert np.isnan(kendall_tau(np.ones(5), np.arange(5.0), variant=variant))


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ([1, 2], [1, 2], {"variant": "d"}, "`variant` must be one of"),
        ([1, 2, 3], [1, 2], {}, "`x` and `y` must be two samples of one length"),
        ([1], [1], {}, "one length >= 2"),
        ([1, np.nan, 2], [1, 2, 3], {}, "`x` and `y` must be finite"),
        ([1, 0, 2], [1, 2, np.inf], {}, "drop the units"),
    ],
)
def test_bad_arguments_are_named(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        kendall_tau(np.array(x, dtype=np.float64), np.array(y, dtype=np.float64), **options)


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
        null = [kendall_tau(x[m], y[t][list(order)], variant="a") for order in orders]
        tau = kendall_tau(x[m], y[t], variant="a")
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
