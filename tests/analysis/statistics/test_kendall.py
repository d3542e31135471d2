import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.kendall import dense_ranks, weighted_kendall

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


def test_dense_ranks_are_scipys_also_of_no_unit_and_of_one():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 7, 40):
        x = rng.integers(0, 9, size=(5, n)) / 7
        expected = [stats.rankdata(row, method="dense") for row in x]
        assert dense_ranks(x).tolist() == [row.tolist() for row in expected]
