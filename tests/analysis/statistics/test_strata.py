"""Kendall's coefficient over pairs inside cells."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.strata import Strata, stratified_kendall, stratified_leave_one_out

# Worked out apart from this code.
TWO_OF_FOUR = ([1, 2, 2, 4, 11, 13, 12, 15], [0.10, 0.12, 0.11, 0.15, 0.30, 0.31, 0.31, 0.36])
TWO_OF_THREE = ([5, 6, 7, 1, 2, 3], [0.10, 0.11, 0.12, 0.30, 0.31, 0.33])


def tau(x, y, cells, counts=None):
    x, y = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
    return stratified_kendall(x[None], y[None], Strata.of(np.array(cells)), counts)[0, 0]


def slow(x, y, cells):
    """The definition, pair by pair."""
    score = untied_x = untied_y = 0.0
    for i in range(len(x)):
        for j in range(i):
            if cells[i] == cells[j] and np.sum(cells == cells[i]) > 2:
                score += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
                untied_x += x[i] != x[j]
                untied_y += y[i] != y[j]
    return score / np.sqrt(untied_x * untied_y) if untied_x * untied_y else np.nan


@pytest.mark.parametrize(
    ("data", "expected", "pooled"), [(TWO_OF_FOUR, 0.9090909091, 0.9629629630), (TWO_OF_THREE, 1.0, -0.2)]
)
def test_the_worked_cells(data, expected, pooled):
    cells = np.repeat([0, 1], len(data[0]) // 2)
    assert tau(*data, cells)[0] == pytest.approx(expected, abs=1e-9)
    assert tau(*data, np.zeros(len(cells)))[0] == pytest.approx(pooled, abs=1e-9)
    assert stats.kendalltau(*data).statistic == pytest.approx(pooled, abs=1e-9)


def test_the_definition_with_ties_and_small_cells():
    rng = np.random.default_rng(0)
    for _ in range(20):
        cells = rng.integers(0, 5, size=15)
        x, y = rng.integers(0, 4, size=(2, 15)).astype(np.float64)
        assert_allclose(tau(x, y, cells)[0], slow(x, y, cells), atol=1e-13)
        strata = Strata.of(cells)
        found = stratified_leave_one_out(x[None], y[None], strata)[0, 0]
        for i in range(15):
            kept = np.ones(15, dtype=int)
            kept[i] = 0
            assert_allclose(found[i], stratified_kendall(x[None], y[None], strata, kept[None])[0, 0, 0], atol=1e-13)


def test_cells_with_fewer_than_three_do_not_count():
    cells = np.array([0, 0, 0, 1, 1, 2])
    strata = Strata.of(cells)
    assert ([g.tolist() for g in strata.groups], strata.dropped, strata.n) == ([[0, 1, 2]], 2, 3)
    assert tau([1, 2, 3, 9, 8, 0], [1, 2, 3, 1, 9, 5], cells)[0] == 1.0
    assert np.isnan(tau([1, 2, 3], [1, 2, 3], [0, 1, 2])[0])


def test_undefined_where_a_side_is_constant_inside_the_cells():
    cells = np.repeat([0, 1], 3)
    assert np.isnan(tau([1, 1, 1, 5, 5, 5], [1, 2, 3, 4, 5, 6], cells)[0])
    assert np.isnan(tau([1, 2, 3, 4, 5, 6], [1, 1, 1, 5, 5, 5], cells)[0])
    assert tau([1, 1, 1, 5, 6, 7], [1, 2, 3, 4, 5, 6], cells)[0] == pytest.approx(3 / np.sqrt(3 * 6))


def test_a_resample_is_the_coefficient_of_the_resampled_cells():
    rng = np.random.default_rng(1)
    cells = np.repeat([0, 1, 2], 5)
    x, y = rng.normal(size=(2, 15))
    counts = rng.integers(0, 3, size=(6, 15))
    for found, drawn in zip(tau(x, y, cells, counts), counts, strict=True):
        rows = np.repeat(np.arange(15), drawn)
        assert found == pytest.approx(slow(x[rows], y[rows], cells[rows] + 0), abs=1e-13)
