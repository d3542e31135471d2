"""How alike configurations of one method are."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from analysis.statistics.exchangeability import (
    differ,
    differ_in_cells,
    intraclass_correlation,
    moved_pooled,
    moved_stratified,
)
from analysis.statistics.strata import Strata


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
    assert not differ(x, x, groups).any()


def test_both_must_differ():
    groups = np.repeat([0, 1, 2], 4)
    rng = np.random.default_rng(2)
    apart, alike = groups + 0.1 * rng.normal(size=12), np.tile([0, 1, 2, 3.0], 3)
    assert differ(np.stack([apart, alike]), np.stack([apart, alike]), groups).tolist() == [
        [True, False],
        [False, False],
    ]


def test_variants_inside_cells_are_a_two_way_analysis_of_variance():
    """With each variant once in each cell: mean squares of variants and of what rows and columns leave."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 6)) + rng.normal(size=6)
    left = x - x.mean(axis=1, keepdims=True)  # cell means removed
    rest = left - left.mean(axis=0)
    between, within = 4 * left.mean(axis=0).var(ddof=1), (rest**2).sum() / (3 * 5)
    expected = (between - within) / (between + 3 * within)
    found = intraclass_correlation(left.reshape(1, -1), np.tile(np.arange(6), 4), spent=3)[0]
    assert found == pytest.approx(expected, abs=1e-12)


def test_variants_that_keep_their_place_in_every_cell():
    rng = np.random.default_rng(4)
    variants, cells = np.tile(np.arange(7), 4), np.repeat(np.arange(4), 7)
    level = 10.0 * cells
    alike = np.exp(variants + level / 4 + 0.5 * rng.normal(size=28))  # on another scale in each cell
    turned = np.concatenate([np.roll(np.arange(7), 2 * c) for c in range(4)]) + level
    strata = Strata.of(cells, variants)
    both = np.stack([alike, turned])
    assert differ_in_cells(both, both, strata, variants).tolist() == [[True, False], [False, False]]
    assert not differ_in_cells(both, both, strata, np.arange(28)).any()  # none is in two cells
    assert not differ_in_cells(both, both, Strata.of(np.arange(28)), variants).any()


def test_cells_come_before_methods_and_methods_with_several_settings_before_variants():
    rng = np.random.default_rng(5)
    cells, methods = np.repeat(np.arange(4), 6), np.tile(np.arange(6), 4)
    noise = 0.1 * rng.normal(size=(4, 24))
    by = {"cell": cells + noise[0], "method": methods + noise[1], "both": 3 * cells + methods + noise[2]}
    x = np.stack([*by.values(), noise[3]])
    pooled = moved_pooled(x, x, methods, cells)
    assert np.diag(pooled).tolist() == [2, 1, 2, 0]
    assert pooled[0, 1] == pooled[1, 0] == 0  # the one differs by cells, the other by methods
    strata = Strata.of(cells, methods)
    assert np.diag(moved_stratified(x, x, strata, methods)).tolist()[:3] == [0, 1, 1]
    assert np.diag(moved_stratified(x, x, strata, methods // 2)).tolist()[:3] == [0, 2, 2]
