"""How alike configurations of one method are."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from analysis.statistics.exchangeability import differ_by_method, intraclass_correlation


def by_hand(x, groups):
    """Sums of squares, one value at a time."""
    labels, n = sorted(set(groups)), len(x)
    inside = {g: [v for v, own in zip(x, groups, strict=True) if own == g] for g in labels}
    means = {g: sum(v) / len(v) for g, v in inside.items()}
    overall = sum(x) / n
    between = sum(len(v) * (means[g] - overall) ** 2 for g, v in inside.items()) / (len(labels) - 1)
    within = sum((a - means[g]) ** 2 for g, v in inside.items() for a in v) / (n - len(labels))
    size = (n - sum(len(v) ** 2 for v in inside.values()) / n) / (len(labels) - 1)
    return (between - within) / (between + (size - 1) * within)


def test_worked_by_hand_balanced_and_not():
    # Three pairs with means 1, 2, 3: MSB = 2 (1 + 0 + 1)/2 = 2, MSW = 6 · 0.25/3 = 0.5, k = 2.
    x = np.array([[0.5, 1.5, 1.5, 2.5, 2.5, 3.5]])
    assert intraclass_correlation(x, np.repeat([0, 1, 2], 2))[0] == pytest.approx((2 - 0.5) / (2 + 0.5))
    rng = np.random.default_rng(0)
    groups = np.array([0, 0, 0, 0, 1, 2, 2, 5, 5, 5])
    x = rng.normal(size=(3, 10))
    assert_allclose(
        intraclass_correlation(x, groups), [by_hand(row.tolist(), groups.tolist()) for row in x], atol=1e-12
    )


def test_mean_over_many_samples_is_the_truth():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(7), [4, 8, 4, 4, 4, 4, 4])
    level = np.sqrt(0.3) * rng.normal(size=(4000, 7))[:, groups]
    found = intraclass_correlation(level + np.sqrt(0.7) * rng.normal(size=(4000, 32)), groups)
    assert np.median(found) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    ("x", "groups"), [([1, 2, 3.0], [0, 0, 0]), ([1, 2, 3.0], [0, 1, 2]), ([1, 1, 1.0], [0, 0, 1])],
    ids=["one group", "each alone", "constant"],
)  # fmt: skip
def test_undefined_is_nan_and_counts_as_exchangeable(x, groups):
    x, groups = np.array([x]), np.array(groups)
    assert np.isnan(intraclass_correlation(x, groups)).all()
    assert not differ_by_method(x, x, groups).any()


def test_both_must_differ():
    groups = np.repeat([0, 1, 2], 4)
    rng = np.random.default_rng(2)
    apart, alike = groups + 0.1 * rng.normal(size=12), np.tile([0, 1, 2, 3.0], 3)
    assert differ_by_method(np.stack([apart, alike]), np.stack([apart, alike]), groups).tolist() == [
        [True, False],
        [False, False],
    ]
