import itertools

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.intervals import jackknife_error
from analysis.statistics.partial import (
    RESIDUALS,
    STRATA,
    Given,
    _error,
    given,
    partial_correlation,
    partial_of,
    partials,
)

X, Y, Z = np.arange(1, 7.0), np.array([2, 1, 4, 3, 6, 5.0]), np.array([[1, 0, 2, 2, 1, 4.0]])
THREE = (
    np.array([1, 3, 2, 5, 4, 6.0]),
    np.array([0.10, 0.12, 0.15, 0.14, 0.20, 0.18]),
    np.array([2, 1, 3, 5, 4, 6.0]),
    np.array([0, 0, 0, 1, 1, 1.0]),
)


def residuals_of_ranks(x, y, z, cells):
    """Pearson's correlation of residuals by least squares, with a column for each cell."""
    design = np.column_stack([np.equal.outer(cells, np.unique(cells)), *map(stats.rankdata, z)]).astype(float)
    rest = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in map(stats.rankdata, (x, y))]
    return stats.pearsonr(*rest).statistic


def pairs_in_cells(x, y, cells):
    """Stratified tau_b, pair by pair."""
    pairs = [(i, j) for i, j in itertools.combinations(range(len(x)), 2) if cells[i] == cells[j]]
    a, b = (np.array([np.sign(v[i] - v[j]) for i, j in pairs]) for v in (x, y))
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def test_numbers_worked_out_apart():
    x, y, z, cells = THREE
    assert partial_correlation(x, y, z[None]).value == pytest.approx(0.1315341979, abs=1e-10)
    assert partial_correlation(x, y, cells[None]).value == pytest.approx(0, abs=1e-12)
    both = partial_correlation(x, y, np.stack([cells, z]))
    assert both.value == pytest.approx(-0.0428352937, abs=1e-10)
    assert (both.coefficient, partial_correlation(x, y, cells[None]).coefficient) == (RESIDUALS, STRATA)
    assert partial_correlation(X, Y, Z).value == pytest.approx(0.7512787229, abs=1e-10)
    # A control said twice holds nothing more fixed.
    assert partial_correlation(X, Y, np.concatenate([Z, Z])).value == pytest.approx(0.7512787229, abs=1e-10)


@pytest.mark.parametrize(
    ("x", "y", "value", "p"),
    [
        ([1, 2, 2, 4, 11, 13, 12, 15], [0.10, 0.12, 0.11, 0.15, 0.30, 0.31, 0.31, 0.36], 0.9090909091, 8 / 576),
        ([5, 6, 7, 1, 2, 3], [0.10, 0.11, 0.12, 0.30, 0.31, 0.33], 1.0, 2 / 36),
    ],
)
def test_cells_alone_are_the_stratified_tau(x, y, value, p):
    cells = np.repeat([0.0, 1.0], len(x) // 2)[None]
    found = partial_correlation(np.array(x, dtype=float), np.array(y), cells, permutations=999)
    assert found.value == pytest.approx(value, abs=1e-10)
    assert found.p == pytest.approx(p, abs=1e-12)  # all orders inside the cells


def test_models_like_the_default_studys_ordered_inside_cells_alone():
    """Two learning rates by two batch sizes that shift measure and target apart: a line through two levels fails."""
    rng = np.random.default_rng(0)
    lr, batch = np.repeat([0.05, 0.05, 0.15, 0.15], 7), np.repeat([20.0, 50, 20, 50], 7)
    inside = np.array([0, 1, 2, 3, 4, 5, 6.0])
    swapped = np.array([0, 2, 1, 4, 3, 6, 5.0])
    x = np.concatenate([inside * a + b for a, b in ((1.0, 0.0), (0.2, 5.0), (1.0, 14.0), (0.2, 3.0))])
    y = np.concatenate([swapped * a + b for a, b in ((1.0, 12.0), (0.2, 2.0), (1.0, 5.0), (0.2, 7.0))])
    found = partial_correlation(x, y, np.stack([lr, batch]), permutations=999, generator=rng)
    assert found.value == pytest.approx(15 / 21, abs=1e-12)  # three of 21 pairs are turned in each cell
    assert found.p == 1 / 1000
    tau = {k: np.array(stats.kendalltau(*v).statistic) for k, v in {"xy": (x, y), "xz": (x, lr), "yz": (y, lr)}.items()}
    assert partial_of(**tau) < 0.35


@pytest.mark.parametrize("controls", [1, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_cells_and_ranked_controls_are_residuals_with_indicators(controls, ties):
    rng = np.random.default_rng(controls)
    z = rng.normal(size=(controls, 40))
    cells = rng.integers(0, 3, 40).astype(float)
    x, y = z.sum(axis=0) + cells + rng.normal(size=(2, 40)) * [[1], [2]]
    if ties:
        x, y, z = np.round(x), np.round(y), np.round(2 * z)
    found = partial_correlation(x, y, np.concatenate([cells[None], z]))
    assert found.value == pytest.approx(residuals_of_ranks(x, y, z, cells), abs=1e-12)
    assert found.low < found.value < found.high
    alone = partial_correlation(x, y, z)
    assert alone.value == pytest.approx(residuals_of_ranks(x, y, z, 0 * cells), abs=1e-12)
    strata = partial_correlation(x, y, cells[None])
    assert strata.value == pytest.approx(pairs_in_cells(x, y, cells), abs=1e-12)


def test_names_make_cells_whatever_their_number():
    rng = np.random.default_rng(1)
    names = np.repeat(np.arange(5.0), 6)
    x, y = rng.normal(size=(2, 30)) + names
    found = partial_correlation(x, y, np.empty((0, 30)), named=names[None])
    assert found.coefficient == STRATA
    assert found.value == pytest.approx(pairs_in_cells(x, y, names), abs=1e-12)
    assert partial_correlation(x, y, names[None]).coefficient == RESIDUALS


def test_small_cells_are_left_out_and_said():
    rng = np.random.default_rng(2)
    cells = np.array([0.0] * 6 + [1.0] * 5 + [2.0] * 2)
    x, y = rng.normal(size=(2, 13))
    found = partial_correlation(x, y, cells[None])
    assert found.n == 11
    assert found.value == pytest.approx(pairs_in_cells(x[:11], y[:11], cells[:11]), abs=1e-12)
    assert found.warnings == "1 of 3 cells have fewer than 3 configurations: left out"


def test_the_jackknife_leaves_units_out():
    """With nothing held fixed the weights are the usual ones; the coefficients left out are those of fewer units."""
    rng = np.random.default_rng(3)
    left_out = rng.normal(size=(2, 3, 12))
    free = Given(np.zeros(12, dtype=np.int64), np.empty((0, 12)), np.ones(12, dtype=bool), "")
    assert_allclose(_error(left_out, free), jackknife_error(left_out), rtol=1e-12)
    z = rng.normal(size=12)
    x, y = rng.normal(size=(2, 12)) + z
    for controls in (z[None], np.stack([z, np.repeat([0.0, 1.0], 6)]), np.repeat([[0.0, 1.0]], 6, axis=1)):
        held = given(controls, np.empty((0, 12)), np.ones(12, dtype=bool))
        every = [
            partial_correlation(*(np.delete(v, i) for v in (x, y)), np.delete(controls, i, axis=1)).value
            for i in range(12)
        ]
        value, low, high, *_ = partials(x[None], y[None], held, 0.95, 0, rng)
        design = np.concatenate(
            [np.equal.outer(np.unique(held.cells), held.cells), stats.rankdata(held.ranked, axis=1)]
        )
        design = design.astype(float)
        leverage = np.diag(np.linalg.pinv(design) @ design)
        error = np.sqrt(((1 - leverage) * (every - np.mean(every)) ** 2).sum())
        half = stats.t.ppf(0.975, 12 - np.linalg.matrix_rank(design) - 1) * error / (1 - value[0, 0] ** 2)
        ends = np.tanh(np.arctanh(value[0, 0]) + np.array([-half, half]))
        assert_allclose([low[0, 0], high[0, 0]], ends, atol=1e-10)


def test_permutation_p_is_students_where_that_holds():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1, 60))
    x, y = z[0] + rng.normal(size=60), z[0] + rng.normal(size=60)
    y += 0.2 * x
    found = partial_correlation(x, y, z, permutations=4999, generator=rng)
    t = found.value * np.sqrt(57 / (1 - found.value**2))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 57), abs=0.02)


@pytest.mark.parametrize("cells", [1, 4])
def test_a_common_cause_leaves_nothing(cells):
    """x and y share z and the cells alone: the plain correlation is large, the other is not."""
    rng = np.random.default_rng(2)
    p, inside = [], 0
    cell = np.repeat(np.arange(float(cells)), 48 // cells)
    for _ in range(40):
        z = rng.normal(size=48)
        x, y = z + 2 * cell + 0.5 * rng.normal(size=(2, 48))
        assert stats.pearsonr(x, y).statistic > 0.5
        found = partial_correlation(x, y, z[None], named=cell[None], permutations=99, generator=rng)
        p.append(found.p)
        inside += found.low < 0.05 and found.high > -0.05
    assert inside >= 34
    assert 0.25 < np.mean(p) < 0.75


def test_many_at_once_are_each_alone():
    rng = np.random.default_rng(3)
    x, y, z = rng.normal(size=(3, 20)), rng.normal(size=(2, 20)), rng.normal(size=(1, 20))
    for controls in (z, np.repeat([[0.0, 1.0]], 10, axis=1)):
        held = given(controls, np.empty((0, 20)), np.ones(20, dtype=bool))
        found = partials(x, y, held, 0.9, 199, np.random.default_rng(0))
        for i, j in np.ndindex(3, 2):
            one = partial_correlation(x[i], y[j], controls, level=0.9, permutations=199)
            assert_allclose([v[i, j] for v in found[:4]], [one.value, one.low, one.high, one.p], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y, z: (x * 0, y, z), "the controls determine the measure or the target"),
        (lambda x, y, z: (x, y * 0 + 1, z), "the controls determine the measure or the target"),
        (lambda x, y, z: (x, y, z * 0), "constant control"),
        (lambda x, y, _: (x, y, np.repeat([[0.0, 1.0]], 3, axis=1)), ""),
        (lambda _x, y, _z: (np.repeat([0.0, 1.0], 3), y, np.repeat([[0.0, 1.0]], 3, axis=1)), "constant in every cell"),
        (lambda _, y, z: (z[0], y, z), "the controls determine the measure or the target"),
        (lambda x, y, z: (x[:3], y[:3], z[:, :3]), "3 of 3 cells have fewer than 3 configurations: left out"),
        (lambda x, y, _: (x, y, np.stack([X[::-1], Y, X, X**2 % 5])), "too few configurations for so many controls"),
    ],
    ids=["measure", "target", "control", "defined", "still", "copy", "few", "many"],
)
def test_not_defined_is_a_reason(change, reason):
    found = partial_correlation(*change(X, Y, Z), permutations=9, generator=np.random.default_rng(0))
    assert np.isnan([found.value, found.low, found.high, found.p]).all() == bool(reason)
    assert reason in found.warnings


@drawn(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0, np.nan, 1e300, -1e-300])] * 4), max_size=12))
def test_any_data_gives_a_number_or_a_reason(rows):
    x, y, z, names = np.array(rows, dtype=float).reshape(-1, 4).T
    for named in (None, names[None]):
        found = partial_correlation(x, y, z[None], named=named, permutations=5, generator=np.random.default_rng(0))
        assert -1 <= found.value <= 1 or found.warnings


def test_kendalls_partial_tau_of_one_control():
    t = {k: np.array(stats.kendalltau(a, b).statistic) for k, a, b in (("xy", X, Y), ("xz", X, Z[0]), ("yz", Y, Z[0]))}
    assert float(partial_of(**t)) == pytest.approx(0.4657534247, abs=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 2}, "`level` must lie inside"),
        ({"controls": Z[0]}, "`controls` and `named` must be one row of values a control"),
        ({"named": Z[:, :3]}, "`controls` and `named` must be one row of values a control"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        partial_correlation(X, Y, **{"controls": Z, **options})
