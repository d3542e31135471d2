import itertools

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analysis.statistics.mixed import intraclass_correlation, random_intercept
from analysis.statistics.orders import Orders, orders_inside
from analysis.statistics.power import design_effect
from analysis.statistics.slopes import fixed_effects, labels, simpson

X = np.array([1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10.0])
Y = np.array([4, 3.5, 2.5, 2, 7, 6, 6, 4.5, 10, 9, 9, 8])
GROUPS = list("aaaabbbbcccc")


def many(groups=8, each=5, slope=0.3, seed=0):
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), each)
    u = rng.normal(size=groups)[g]
    x = rng.normal(size=len(g)) + u
    return x, slope * x + u + rng.normal(size=len(g)), g.tolist()


def test_the_worked_reversal():
    found = simpson(X, Y, GROUPS)
    assert found.pooled == pytest.approx(0.7097701149, abs=1e-10)
    assert found.within == pytest.approx(-0.6833333333, abs=1e-10)
    assert found.between == pytest.approx(1.0, abs=1e-12)
    assert found.share == pytest.approx(0.1724137931, abs=1e-10)
    assert found.r_pooled == pytest.approx(0.7414275563, abs=1e-10)
    assert found.r_within == pytest.approx(-0.9545214042, abs=1e-10)
    assert found.reversal
    assert found.warnings == ""


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_the_identity_holds_for_unequal_groups(scale):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30))
    groups = rng.integers(0, 4, 30).tolist()
    found = simpson(x * scale, y, groups)
    assert found.pooled == pytest.approx(found.share * found.within + (1 - found.share) * found.between, rel=1e-9)
    assert found.pooled * scale == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9)


def test_errors_of_the_worked_data():
    found = fixed_effects(X, Y, GROUPS)
    assert found.slope == pytest.approx(-0.6833333333, abs=1e-10)
    assert found.se == pytest.approx(0.0754615428, abs=1e-10)
    assert found.se_cr0 == pytest.approx(0.0360041150, abs=1e-10)
    assert found.se_cr1 == pytest.approx(0.0517069735, abs=1e-10)
    assert found.p_cr1 == pytest.approx(0.0056770, abs=1e-7)
    assert np.isnan([found.p_wild, found.p_permutation]).all()
    assert "3 clusters: robust errors are too small" in found.warnings


def test_errors_are_those_of_dummies_in_statsmodels():
    x, y, groups = many(25)
    design = np.column_stack([x, np.eye(25)[groups]])
    plain = sm.OLS(y, design).fit()
    robust = sm.OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": np.array(groups)}, use_t=True)
    found = fixed_effects(x, y, groups)
    assert_allclose([found.slope, found.se], [plain.params[0], plain.bse[0]], rtol=1e-10)
    assert found.se_cr1 == pytest.approx(robust.bse[0], rel=1e-9)
    assert found.p_cr1 == pytest.approx(robust.pvalues[0], abs=1e-9)
    assert found.warnings == ""


@pytest.mark.parametrize("seed", range(5))
def test_wild_bootstrap_by_hand(seed):
    """Every sign pattern, each regression made in full."""
    x, y, groups = many(5, seed=seed)
    found = fixed_effects(x, y, groups, draws=200, generator=np.random.default_rng(0))
    label = np.array(groups)
    design = np.column_stack([x, np.eye(5)[label]])
    restricted = y - np.eye(5)[label] @ np.array([y[label == g].mean() for g in range(5)])

    def t(values):
        fit = sm.OLS(values, design).fit(cov_type="cluster", cov_kwds={"groups": label})
        return abs(fit.tvalues[0])

    null = [t(restricted * np.array(s)[label]) for s in itertools.product([-1.0, 1.0], repeat=5)]
    assert found.p_wild == pytest.approx(np.mean(np.array(null) >= t(y) * (1 - 1e-9)), abs=1e-12)


def test_permutation_inside_groups():
    found = fixed_effects(X, Y, GROUPS, draws=4999, generator=np.random.default_rng(0))
    assert found.p_permutation < 0.003
    assert found.p_wild == pytest.approx(2 / 8)  # the least there is with three clusters
    orders = orders_inside(labels(GROUPS), count=50, generator=np.random.default_rng(0))
    shared = fixed_effects(X, Y, GROUPS, draws=50, orders=orders)
    assert shared.p_permutation == pytest.approx(1 / 51, abs=0.04)


@pytest.mark.parametrize(
    ("reml", "rest", "group", "slope", "se"),
    [
        (True, 0.0854598612, 25.33235, -0.6765519, 0.0753284),
        (False, 0.0760634709, 16.80311, -0.6742489, 0.0710178),
    ],
    ids=["reml", "ml"],
)
def test_random_intercept_of_the_worked_data(reml, rest, group, slope, se):
    found = random_intercept(X, Y, GROUPS, reml=reml)
    assert_allclose([found.sigma2_rest, found.sigma2_group], [rest, group], rtol=1e-5)
    assert_allclose([found.slope, found.se], [slope, se], atol=1e-6)
    assert found.converged


@pytest.mark.parametrize("reml", [True, False])
def test_random_intercept_is_statsmodels_and_units_do_not_matter(reml):
    x, y, groups = many(30, 4)
    ours = random_intercept(x, y, groups, reml=reml)
    peer = sm.MixedLM(y, sm.add_constant(x), groups=groups).fit(reml=reml)
    group, rest = float(peer.cov_re[0, 0]), float(peer.scale)
    assert_allclose(
        [ours.slope, ours.sigma2_group, ours.sigma2_rest, ours.icc],
        [peer.fe_params[1], group, rest, group / (group + rest)],
        rtol=5e-4,  # the peer stops at a gradient of its own size
    )
    other = random_intercept(1e-6 * x, 1e3 * y, groups, reml=reml)
    assert other.slope == pytest.approx(1e9 * ours.slope, rel=1e-6)
    assert other.sigma2_rest == pytest.approx(1e6 * ours.sigma2_rest, rel=1e-6)


def test_no_variance_between_groups_is_said():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40))
    y -= np.repeat(y.reshape(10, 4).mean(axis=1), 4)
    groups = np.repeat(np.arange(10), 4).tolist()
    found = random_intercept(x, y, groups)
    assert found.sigma2_group == pytest.approx(0, abs=1e-6)
    assert "no variance between groups" in found.warnings


def test_intraclass_correlation_of_the_worked_data():
    icc = intraclass_correlation(Y, GROUPS)
    assert icc == pytest.approx(0.9114470842, abs=1e-10)
    assert design_effect(icc, 4) == pytest.approx(3.734, abs=5e-4)
    assert np.isnan(intraclass_correlation(Y, list(range(12))))
    assert np.isnan(intraclass_correlation(np.ones(12), GROUPS))


NASTY = st.sampled_from([0.0, 1.0, 2.0, -3.5, np.nan, np.inf, 1e300, -1e300, 1e-300])


@given(st.lists(st.tuples(NASTY, NASTY, st.sampled_from("ab")), max_size=10))
def test_any_data_gives_numbers_or_a_reason(rows):
    x, y = (np.array([r[k] for r in rows], dtype=float) for k in (0, 1))
    groups = [r[2] for r in rows]
    slopes = simpson(x, y, groups)
    assert np.isfinite(slopes.within) or slopes.warnings
    fixed = fixed_effects(x, y, groups, draws=9, generator=np.random.default_rng(0))
    assert np.isfinite(fixed.slope) or fixed.warnings
    mixed = random_intercept(x, y, groups)
    assert mixed.converged or mixed.warnings
    intraclass_correlation(x, groups)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (simpson, {"groups": ["a"]}, "`x`, `y` and `groups` must hold one value a unit"),
        (
            fixed_effects,
            {"orders": Orders(np.zeros((2, 3), dtype=int), exact=False)},
            "`orders` must be orders of the 12 finite units",
        ),
        (random_intercept, {"groups": ["a"]}, "`x`, `y` and `groups` must hold one value a unit"),
    ],
)
def test_bad_arguments_are_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(X, Y, **{"groups": GROUPS, **options})
    with pytest.raises(ValueError, match="`groups` must hold one label a value"):
        intraclass_correlation(Y, ["a"])
