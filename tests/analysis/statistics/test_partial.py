import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics import partial
from analysis.statistics.partial import partial_correlation, partial_table

X, Y, Z = np.arange(1, 7.0), np.array([2, 1, 4, 3, 6, 5.0]), np.array([[1, 0, 2, 2, 1, 4.0]])


@pytest.mark.parametrize(
    ("coefficient", "value"),
    [("pearson", 0.7455284089), ("spearman", 0.7512787229), ("kendall", 0.4657534247)],
)
def test_worked_data(coefficient, value):
    assert partial_correlation(X, Y, Z, coefficient=coefficient).value == pytest.approx(value, abs=1e-10)
    # A control said twice holds nothing more fixed.
    assert partial_correlation(X, Y, np.concatenate([Z, Z]), coefficient=coefficient).value == pytest.approx(
        value, abs=1e-10
    )


@pytest.mark.parametrize("coefficient", ["pearson", "spearman"])
def test_several_controls_are_the_correlation_of_residuals(coefficient):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, 40))
    x, y = z.sum(axis=0) + rng.normal(size=(2, 40)) * [[1], [2]]
    rows = np.stack([x, y, *z])
    if coefficient == "spearman":
        rows = stats.rankdata(rows, axis=1)
    design = np.column_stack([np.ones(40), rows[2:].T])
    rest = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in rows[:2]]
    found = partial_correlation(x, y, z, coefficient=coefficient)
    assert found.value == pytest.approx(stats.pearsonr(*rest).statistic, abs=1e-12)
    assert found.low < found.value < found.high


def test_permutation_p_is_students_where_that_holds():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1, 60))
    x, y = z[0] + rng.normal(size=60), z[0] + rng.normal(size=60)
    y += 0.2 * x
    found = partial_correlation(x, y, z, coefficient="pearson", permutations=4999, generator=rng)
    t = found.value * np.sqrt(57 / (1 - found.value**2))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 57), abs=0.02)


def test_a_common_cause_leaves_nothing():
    """x and y share z alone: the plain correlation is large, the partial one is not, and its p is spread out."""
    rng = np.random.default_rng(2)
    p, inside = [], 0
    for _ in range(40):
        z = rng.normal(size=50)
        x, y = z + 0.5 * rng.normal(size=(2, 50))
        assert stats.pearsonr(x, y).statistic > 0.5
        found = partial_correlation(x, y, z[None], coefficient="spearman", permutations=99, generator=rng)
        p.append(found.p)
        inside += found.low < 0.05 and found.high > -0.05
    assert inside >= 34
    assert 0.25 < np.mean(p) < 0.75


def test_the_permuted_measure_keeps_what_it_shares_with_the_control(monkeypatch):
    rng = np.random.default_rng(5)
    z = rng.normal(size=60)
    x, y = z + 0.2 * rng.normal(size=60), rng.normal(size=60)
    seen = []
    plain = partial._correlations
    monkeypatch.setattr(partial, "_correlations", lambda c, a, b: seen.append(a) or plain(c, a, b))
    partial_correlation(x, y, z[None], permutations=50, generator=rng)
    moved = next(a for a in seen if len(a) == 50)
    kept = [stats.kendalltau(row, z).statistic for row in moved]
    assert np.mean(kept) == pytest.approx(stats.kendalltau(x, z).statistic, abs=0.05)
    assert (moved[0] != moved[1]).any()


@pytest.mark.parametrize("coefficient", ["kendall", "spearman", "pearson"])
def test_the_table_is_the_single_statistic(coefficient):
    rng = np.random.default_rng(3)
    x, y, z = rng.normal(size=(3, 20)), rng.normal(size=(2, 20)), rng.integers(0, 4, 20).astype(float)
    value, low, high, p = partial_table(x, y, z, coefficient=coefficient, level=0.9)
    for i, j in np.ndindex(3, 2):
        one = partial_correlation(x[i], y[j], z[None], coefficient=coefficient, level=0.9)
        assert_allclose([value[i, j], low[i, j], high[i, j]], [one.value, one.low, one.high], atol=1e-12)
        assert 0 <= p[i, j] <= 1
    # The p-value and the interval of the same level agree on whether 0 is left out.
    assert_allclose((p < 0.1), (low > 0) | (high < 0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, y, z: (x * 0, y, z), "constant measure"),
        (lambda x, y, z: (x, y * 0 + 1, z), "constant target"),
        (lambda x, y, z: (x, y, z * 0), "constant control"),
        (lambda _, y, z: (z[0], y, z), "the controls determine the measure or the target"),
        (lambda x, y, z: (x[:3], y[:3], z[:, :3]), "3 units are too few for 1 controls"),
        (lambda x, y, z: (np.where(x > 3, np.nan, x), y, z), "3 units are too few for 1 controls"),
    ],
    ids=["measure", "target", "control", "copy", "few", "finite"],
)
def test_not_defined_is_a_reason(change, reason):
    found = partial_correlation(*change(X, Y, Z), permutations=9, generator=np.random.default_rng(0))
    assert np.isnan([found.value, found.low, found.high, found.p]).all()
    assert found.warnings == reason


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, np.nan, 1e300, -1e-300])] * 3), max_size=9))
def test_any_data_gives_a_number_or_a_reason(rows):
    x, y, z = np.array(rows, dtype=float).reshape(-1, 3).T
    for coefficient in ("kendall", "spearman", "pearson"):
        found = partial_correlation(
            x, y, z[None], coefficient=coefficient, permutations=5, generator=np.random.default_rng(0)
        )
        assert -1 <= found.value <= 1 or found.warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coefficient": "tau"}, "`coefficient` must be one of"),
        ({"level": 2}, "`level` must lie inside"),
        ({"controls": Z[0]}, "`controls` must be one row of values a control"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        partial_correlation(X, Y, **{"controls": Z, **options})
