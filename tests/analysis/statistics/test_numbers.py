"""Numbers of the statistics worked out apart from this code that no other test has."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.granulated import granulated_kendall
from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.max_t import Seen, step_down
from analysis.statistics.orders import free_orders
from analysis.statistics.sign_error import sign_probability


@pytest.mark.parametrize(
    ("n", "critical"), [(8, 0.566), (12, 0.433), (20, 0.318), (50, 0.191), (100, 0.133), (200, 0.093)]
)
def test_critical_tau_of_random_orders(n, critical):
    """The deviation of tau over random orders gives the critical value, and permutations give its probability."""
    deviation = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    assert stats.norm.ppf(0.975) * deviation == pytest.approx(critical, abs=5e-4)
    x = np.arange(float(n))
    k = round((1 + math.sqrt(1 + 2 * n * (n - 1) * (1 - critical))) / 2)  # so many reversed leave about that tau
    y = np.concatenate([x[:k][::-1], x[k:]])
    tau = stats.kendalltau(x, y).statistic
    assert tau == pytest.approx(critical, abs=4 / n)
    orders = free_orders(n, count=2999, generator=np.random.default_rng(n))
    tested = [Seen(np.arange(1), x[None], y, np.ones(n, dtype=bool))]
    found = step_down("kendall", tested, orders, candidates=np.ones(1, dtype=bool)).p[0]
    expected = 2 * stats.norm.sf(tau / deviation)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / 2999) + 0.4 / n)


def test_kendall_inside_the_groups_of_simpsons_example():
    x = np.array([[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10.0]])
    y = np.array([[4, 3.5, 2.5, 2], [7, 6, 6, 4.5], [10, 9, 9, 8]])
    once = np.ones((1, 4), dtype=int)
    inside = [weighted_kendall(a[None], b[None], once)[0, 0, 0] for a, b in zip(x, y, strict=True)]
    assert inside == pytest.approx([-1, -0.9128709, -0.9128709])
    pooled = weighted_kendall(x.reshape(1, -1), y.reshape(1, -1), np.ones((1, 12), dtype=int))
    assert pooled[0, 0, 0] == pytest.approx(0.46875, abs=1e-12)


@pytest.mark.parametrize(
    ("difference", "p"), [(0.01, 0), (0.015, 0.122987), (0.02, 0.531921), (0.03, 0.956058), (0.05, 0.999985)]
)
def test_probability_that_a_difference_has_its_sign(difference, p):
    assert float(sign_probability(np.array(difference), test_size=10000)) == pytest.approx(p, abs=1e-6)


def test_ties_in_a_cell_count_nothing_in_psi():
    """tau_b of a pair that is tied is not defined; tau_a counts it as zero."""
    axes = {"A": [0, 0, 1, 1], "B": [0, 1, 0, 1]}
    found = granulated_kendall(np.array([1.0, 1.0, 2.0, 2.0]), np.array([0.1, 0.2, 0.3, 0.4]), axes)
    assert found.psi == pytest.approx(0.5)
