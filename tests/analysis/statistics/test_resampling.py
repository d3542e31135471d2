import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.resampling import (
    benjamini_hochberg,
    bootstrap_counts,
    holm,
    percentile_interval,
    permutation_orders,
    permutation_pvalue,
    significant,
    weighted_pearson,
    weighted_spearman,
)

D1 = ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.1, 0.14, 0.12, 0.2, 0.16, 0.13, 0.22, 0.2])
D2 = ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.1, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])
P = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216]


@pytest.mark.parametrize(
    ("data", "pearson", "spearman"),
    [(D1, 0.9827800660558365, 0.9879518072289155), (D2, 0.5879949123682057, 0.5952380952380953)],
)
def test_coefficients_on_the_worked_data(data, pearson, spearman):
    x, y, once = np.array([data[0]]), np.array([data[1]]), np.ones((1, 8), dtype=int)
    assert weighted_pearson(x, y, once)[0, 0, 0] == pytest.approx(pearson, abs=1e-13)
    assert weighted_spearman(x, y, once)[0, 0, 0] == pytest.approx(spearman, abs=1e-13)


@pytest.mark.parametrize(
    ("weighted", "plain"),
    [
        (weighted_kendall, stats.kendalltau),
        (weighted_spearman, stats.spearmanr),
        (weighted_pearson, stats.pearsonr),
    ],
    ids=["kendall", "spearman", "pearson"],
)
@pytest.mark.parametrize("block", [1 << 20, 50], ids=["whole", "blocked"])
def test_weighted_coefficient_is_scipys_on_the_resample(weighted, plain, block, monkeypatch):
    monkeypatch.setattr("analysis.statistics.resampling.BLOCK", block)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(2, 9)), rng.integers(0, 4, size=(2, 9))])
    y = np.stack([rng.normal(size=9) * 1e-6 + 1e3, rng.integers(0, 4, size=9)])
    # Sizes of the resamples may differ, as they do when whole clusters are drawn.
    counts = np.concatenate([bootstrap_counts(9, draws=15, generator=rng), rng.integers(1, 5, size=(5, 9))])
    found = weighted(x, y, counts)
    assert found.shape == (4, 2, 20)
    for m, t, d in np.ndindex(found.shape):
        rows = np.repeat(np.arange(9), counts[d])
        # 1e3 + 1e-6 z keeps seven digits of z, so both sides have only those.
        assert found[m, t, d] == pytest.approx(plain(x[m][rows], y[t][rows])[0], abs=1e-12 if t else 1e-8)


@pytest.mark.parametrize("weighted", [weighted_kendall, weighted_spearman, weighted_pearson])
def test_resample_of_equal_values_has_no_coefficient(weighted):
    x = np.array([[0.1, 0.1, 0.1, 0.7], [0.3, 0.2, 0.1, 0.5]])
    counts = np.array([[2, 1, 1, 0], [1, 1, 1, 1], [0, 0, 4, 0]])
    nan = np.isnan(weighted(x, np.array([[1.0, 2.0, 3.0, 5.0]]), counts))[:, 0]
    assert nan.tolist() == [[True, False, True], [False, False, True]]


def test_outlier_that_was_not_drawn_costs_no_digits():
    x = np.array([[1.0, 2.0, 4.0, 3.0, 1e9]])
    counts, y = np.array([[1, 2, 1, 1, 0]]), np.arange(5.0)[None]
    rows = [0, 1, 1, 2, 3]
    expected = stats.pearsonr(x[0][rows], y[0][rows])[0]
    assert weighted_pearson(x, y, counts)[0, 0, 0] == pytest.approx(expected, abs=1e-7)


def test_counts_are_resamples_of_size_n():
    counts = bootstrap_counts(6, draws=4000, generator=np.random.default_rng(1))
    assert counts.shape == (4000, 6)
    assert (counts.sum(axis=1) == 6).all()
    # Each count is binomial(6, 1/6): mean 1, variance 5/6.
    assert_allclose(counts.mean(axis=0), 1.0, atol=4 * (5 / 6 / 4000) ** 0.5)
    assert_allclose(counts.var(axis=0), 5 / 6, rtol=0.12)


def test_same_generator_seed_same_counts():
    first, again, other = (bootstrap_counts(9, draws=20, generator=np.random.default_rng(s)) for s in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("d", [1, 2, 7, 40])
def test_percentile_interval_is_numpys_quantile(d):
    values = np.random.default_rng(2).normal(size=(2, 3, d))
    low, high = percentile_interval(values, level=0.9)
    assert_allclose(low, np.quantile(values, 0.05, axis=-1), atol=1e-14)
    assert_allclose(high, np.quantile(values, 0.95, axis=-1), atol=1e-14)


def test_percentile_interval_wants_half_of_the_draws():
    values = np.tile(np.arange(10.0), (2, 1))
    values[0, :5] = np.nan
    values[1, :6] = [np.inf, *[np.nan] * 5]
    low, high = percentile_interval(values, level=0.5)
    assert_allclose(low, [6.0, np.nan])
    assert_allclose(high, [8.0, np.nan])


def test_resampling_clusters_covers_and_resampling_runs_does_not():
    # Two independent variables, 12 configurations of 5 seeds, intra-class correlation 0.7: reference rates 94.7 % and
    # 74.7 % of 300 repeats. With 200 repeats their standard errors are 1.6 and 3.1 points.
    rng = np.random.default_rng(4)
    label = np.repeat(np.arange(12), 5)
    covered = {"clusters": 0, "runs": 0}
    for _ in range(200):
        x, y = (
            np.sqrt(0.7) * rng.normal(size=12)[label][None] + np.sqrt(0.3) * rng.normal(size=(1, 60)) for _ in range(2)
        )
        counts = {
            "clusters": bootstrap_counts(12, draws=400, generator=rng)[:, label],
            "runs": bootstrap_counts(60, draws=400, generator=rng),
        }
        for unit, drawn in counts.items():
            low, high = percentile_interval(weighted_pearson(x, y, drawn)[0, 0])
            covered[unit] += bool(low <= 0 <= high)
    assert covered["clusters"] / 200 > 0.89
    assert covered["runs"] / 200 < 0.84


def test_few_units_are_enumerated_and_many_are_drawn():
    orders, exact = permutation_orders(4, count=24, generator=np.random.default_rng(5))
    assert exact
    assert {tuple(o) for o in orders.tolist()} == set(itertools.permutations(range(4)))
    orders, exact = permutation_orders(4, count=23, generator=np.random.default_rng(5))
    assert not exact
    assert orders.shape == (23, 4)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    assert len(np.unique(orders, axis=0)) > 10


def test_pvalue_of_the_mean_within_groups_by_enumeration():
    # Three groups of four; every order inside each, 24 x 24 x 24 in all.
    x = np.array([[1.0, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10]])
    y = np.array([[4, 3.5, 2.5, 2], [7, 6, 6, 4.5], [10, 9, 9, 8]])
    orders = np.array(list(itertools.permutations(range(4))))
    once = np.ones((1, 4), dtype=int)
    tau = [weighted_kendall(a[None], b[orders], once)[0, :, 0] for a, b in zip(x, y, strict=True)]
    null = (tau[0][:, None, None] + tau[1][None, :, None] + tau[2][None, None, :]).ravel() / 3
    observed = float(null[0])  # the first order is the data's own
    assert observed == pytest.approx(-0.9419139528, abs=1e-9)
    assert float(permutation_pvalue(observed, null)) == pytest.approx(9 / 13825, abs=1e-15)


def test_pvalue_is_two_sided_takes_shapes_and_passes_nan():
    null = np.array([[-3.0, 0.1, 2.0, 1.0], [1, 1, 1, 1]])
    p = permutation_pvalue(np.array([-2.0 - 1e-15, np.nan]), null)
    assert_allclose(p, [3 / 5, np.nan])


def test_corrections_on_the_reference_list():
    order = np.random.default_rng(9).permutation(10)
    p = np.array(P)[order]
    expected_holm = np.array([0.01, 0.072, 0.312, 0.312, 0.312, 0.312, 0.312, 0.615, 0.615, 0.615])[order]
    expected_bh = np.array([0.01, 0.04, 0.084, 0.084, 0.084, 0.1, 0.1057142857142857, 0.216, 0.216, 0.216])[order]
    assert_allclose(holm(p), expected_holm, atol=1e-15)
    assert_allclose(benjamini_hochberg(p), expected_bh, atol=1e-15)


@pytest.mark.parametrize(("ours", "theirs"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")])
def test_corrections_are_statsmodels_and_pass_nan(ours, theirs):
    p = np.random.default_rng(10).uniform(size=40) ** 3
    assert_allclose(ours(p), multipletests(p, method=theirs)[1], atol=1e-14)
    with_nan = np.insert(p, [0, 7, 40], np.nan)
    assert_allclose(ours(with_nan), np.insert(ours(p), [0, 7, 40], np.nan), atol=0)
    assert np.isnan(ours(np.array([np.nan]))).all()
    assert ours(np.array([])).shape == (0,)


@pytest.mark.parametrize("p", [[0.1, 1.2], [-0.1], [[0.1]]])
def test_corrections_refuse_what_is_no_pvalue(p):
    with pytest.raises(ValueError, match="`p` must be a list of p-values"):
        holm(np.array(p))


def test_means_that_differ_by_rounding_become_ties():
    a, b = (0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3
    assert a != b
    rounded = significant(np.array([a, b, a * (1 + 1e-9), 1e-300, 0.0, -a, np.nan]))
    assert rounded[0] == rounded[1] == -rounded[5]
    assert rounded[2] > rounded[0]
    assert_allclose(rounded[[0, 3, 4]], [0.2, 1e-300, 0.0], rtol=1e-11)
