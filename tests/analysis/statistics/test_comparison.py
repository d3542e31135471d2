import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.comparison import COLUMNS, paired_difference
from analysis.statistics.correlation import correlate
from analysis.statistics.resampling import bootstrap_counts
from analysis.table import Row
from tests.analysis.tables import table_of_runs


def compare(first, second, target, seed=0, **options):
    return paired_difference(
        np.asarray(first), np.asarray(second), np.asarray(target), generator=np.random.default_rng(seed), **options
    )


def sample(n=20, seed=1):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n)
    return -target + 0.3 * rng.normal(size=n), target + 3 * rng.normal(size=n), target


def test_difference_and_interval_on_explicit_resamples():
    first, second, target = sample()
    found = compare(first, second, target, draws=200, level=0.8)
    counts = bootstrap_counts(20, draws=200, generator=np.random.default_rng(0))
    drawn = []
    for row in counts:
        k = np.repeat(np.arange(20), row)
        a, b = (stats.kendalltau(m[k], target[k]).statistic for m in (first, second))
        drawn.append(abs(a) - abs(b))
    a, b = (stats.kendalltau(m, target).statistic for m in (first, second))
    assert_allclose([found.tau_first, found.tau_second, found.difference], [a, b, abs(a) - abs(b)], atol=1e-14)
    assert_allclose([found.low, found.high], np.quantile(drawn, [0.1, 0.9]), atol=1e-13)
    assert found.tau_first < 0 < found.low < found.difference < found.high


def test_swapping_turns_the_sign_and_a_measure_equals_its_own_negative():
    first, second, target = sample()
    forth, back = compare(first, second, target), compare(second, first, target)
    assert_allclose([forth.difference, forth.low, forth.high], [-back.difference, -back.high, -back.low], atol=1e-13)
    same = compare(first, -first, target)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)


def test_pairing_makes_the_interval_shorter():
    rng = np.random.default_rng(2)
    target = rng.normal(size=40)
    first = target + rng.normal(size=40)
    second = first + 0.05 * rng.normal(size=40)  # nearly the same measure
    together = compare(first, second, target)
    assert together.high - together.low < 0.1
    alone = compare(first, rng.permutation(40).astype(float), target)
    assert alone.high - alone.low > 0.2


def test_configurations_with_a_hole_in_any_of_the_three_are_left_out():
    first, second, target = sample(24)
    first[0], second[1], target[2] = np.nan, np.inf, -np.inf
    found = compare(first, second, target)
    assert found.n_configurations == 21
    assert found == compare(first[3:], second[3:], target[3:])


@pytest.mark.parametrize(("n", "value"), [(0, False), (1, False), (4, True)])
def test_below_five_configurations_nothing_is_claimed(n, value):
    found = compare(np.arange(float(n)), np.arange(float(n)) ** 2, np.arange(float(n)))
    assert np.isfinite(found.difference) == value
    assert np.isnan([found.low, found.high]).all()
    none = "no run in which all are finite; " * (n == 0)
    assert found.warnings == f"{none}fewer than 5 configurations: no claim"


def test_constant_measure_is_named():
    found = compare(np.arange(8.0), np.ones(8), np.arange(8.0))
    assert found.tau_first == 1.0
    assert np.isnan([found.tau_second, found.difference, found.low, found.high]).all()
    assert "constant second measure" in found.warnings


def test_no_draws_no_interval():
    first, second, target = sample()
    found = compare(first, second, target, draws=0)
    assert np.isfinite(found.difference)
    assert np.isnan(found.low)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (3, {}, "`first`, `second` and `target` must hold one value"),
        (4, {"draws": -3}, "`draws` must be a whole number of resamples"),
        (4, {"level": 0.0}, "`level` must lie inside"),
    ],
)
def test_bad_arguments_are_named(n, options, message):
    with pytest.raises(ValueError, match=message):
        compare(np.zeros(n), np.zeros(4), np.zeros(4), **options)


def test_given_a_third_measure_the_taus_are_partial():
    rng = np.random.default_rng(0)
    z = rng.normal(size=40)
    x, w, y = z + rng.normal(size=(3, 40)) * [[1.0], [0.1], [1.0]]
    found = paired_difference(x, w, y, given=z, generator=rng, draws=300)
    tau = {name: np.array(stats.kendalltau(a, b).statistic) for name, a, b in
           (("xy", x, y), ("wy", w, y), ("xz", x, z), ("wz", w, z), ("yz", y, z))}  # fmt: skip
    one, other = (
        (tau[f"{m}y"] - tau[f"{m}z"] * tau["yz"]) / np.sqrt((1 - tau[f"{m}z"] ** 2) * (1 - tau["yz"] ** 2))
        for m in "xw"
    )
    assert found.tau_first == pytest.approx(one, abs=1e-12)
    assert found.tau_second == pytest.approx(other, abs=1e-12)
    assert found.low < found.difference < found.high
    plain = paired_difference(x, w, y, generator=rng, draws=0)
    assert abs(plain.tau_second) > abs(found.tau_second) + 0.1  # w told no more than z
    same = paired_difference(z, w, y, given=z, generator=rng)
    assert np.isnan(same.tau_first)
    assert "ordered by what is held fixed" in same.warnings
    with pytest.raises(ValueError, match="`given` must hold one value a configuration"):
        paired_difference(x, w, y, given=z[:3], generator=rng)


def test_inside_cells_pairs_across_do_not_count():
    # The specification's second example: pooled -0.2, inside cells 1 (S1), and the same turned round.
    x, y = np.array([5.0, 6, 7, 1, 2, 3]), np.array([0.10, 0.11, 0.12, 0.30, 0.31, 0.33])
    cells = np.array([4, 4, 4, 9, 9, 9])
    pooled, inside = compare(x, -x, y, signs=(1, 1)), compare(x, -x, y, cells=cells, signs=(1, 1))
    assert (pooled.tau_first, pooled.signed) == pytest.approx((-0.2, -0.4))
    assert (inside.tau_first, inside.tau_second) == pytest.approx((1.0, -1.0))
    assert (inside.difference, inside.signed) == pytest.approx((0.0, 2.0))
    x = np.array([1.0, 2, 2, 4, 11, 13, 12, 15])
    y = np.array([0.10, 0.12, 0.11, 0.15, 0.30, 0.31, 0.31, 0.36])
    assert compare(x, x, y, cells=np.repeat([0, 1], 4)).tau_first == pytest.approx(0.9090909091, abs=1e-10)


def test_resamples_inside_cells_are_explicit_ones():
    rng = np.random.default_rng(3)
    first, second, target = rng.normal(size=(3, 13))
    cells = np.repeat([0, 1, 2], [6, 5, 2])
    found = compare(first, second, target, cells=cells, draws=100, level=0.8)
    assert found.n_configurations == 11
    assert "1 cells with fewer than 3 configurations left out" in found.warnings
    again = np.random.default_rng(0)
    counts = [bootstrap_counts(size, draws=100, generator=again) for size in (6, 5)]

    def tau(m, picks):
        score = sums = others = 0.0
        for k in picks:
            for a, b in itertools.combinations(k, 2):
                u, v = np.sign(m[a] - m[b]), np.sign(target[a] - target[b])
                score, sums, others = score + u * v, sums + abs(u), others + abs(v)
        return score / np.sqrt(sums * others)

    drawn = []
    for row, other in zip(*counts, strict=True):
        picks = [np.repeat(np.arange(6), row), np.repeat(np.arange(6, 11), other)]
        drawn.append(abs(tau(first, picks)) - abs(tau(second, picks)))
    assert_allclose([found.low, found.high], np.quantile(drawn, [0.1, 0.9]), atol=1e-12)


def test_configurations_and_draws_of_the_data_are_resampled_independently():
    rng = np.random.default_rng(4)
    base = rng.normal(size=(3, 9, 1))
    runs = base + 0.7 * rng.normal(size=(3, 9, 6))
    runs[:, 2, 1] = runs[:, 4, :3] = np.nan  # one configuration has runs on one draw alone: it is not always there
    draw_of = np.array([0, 1, 2, 3, 3, 7])  # two runs of a configuration on one draw; draw 7 has no run at all
    runs[:, :, 5] = np.nan
    found = compare(*runs, draw_of=draw_of, draws=60, level=0.8)
    assert found.draws == 4
    again = np.random.default_rng(0)
    of_configurations = bootstrap_counts(9, draws=60, generator=again)
    of_draws = bootstrap_counts(4, draws=60, generator=again)
    drawn, fixed, signed = [], [], []
    for c, d in zip(of_configurations, of_draws, strict=True):
        picked = np.concatenate([np.repeat(np.flatnonzero(draw_of == k), n) for k, n in enumerate(d)])
        known = np.isfinite(runs[0][:, picked]).sum(axis=1)
        a, b, y = np.where(known > 0, np.nansum(runs[:, :, picked], axis=2), np.nan) / np.maximum(known, 1)
        k = np.array([i for i in np.repeat(np.arange(9), c) if np.isfinite(y[i])])
        taus = [stats.kendalltau(m[k], y[k]).statistic for m in (a, b)]
        drawn.append(abs(taus[0]) - abs(taus[1]))
        signed.append(np.sign(found.tau_first) * taus[0] - np.sign(found.tau_second) * taus[1])
        a, b, y = np.nanmean(runs, axis=2)
        k = np.repeat(np.arange(9), c)
        fixed.append(abs(stats.kendalltau(a[k], y[k]).statistic) - abs(stats.kendalltau(b[k], y[k]).statistic))
    assert_allclose([found.low_draws, found.high_draws], np.quantile(drawn, [0.1, 0.9]), atol=1e-12)
    assert_allclose([found.signed_low, found.signed_high], np.quantile(signed, [0.1, 0.9]), atol=1e-12)
    assert_allclose([found.low, found.high], np.quantile(fixed, [0.1, 0.9]), atol=1e-12)


@pytest.mark.parametrize("kind", [None, np.repeat([0, 1], 10)], ids=["pooled", "cells"])
def test_given_a_third_measure_draws_are_resampled_too(kind):
    rng = np.random.default_rng(5)
    z = rng.normal(size=(20, 1))
    x, w, y = z + rng.normal(size=(3, 20, 4)) * np.array([1.0, 0.5, 1.0])[:, None, None]
    given = np.repeat(z, 4, axis=1)
    found = compare(x, w, y, given=given, cells=kind, draw_of=np.arange(4), draws=200)
    assert found.low_draws < found.difference < found.high_draws
    # with draws that are all alike there is nothing to resample but configurations
    same = [np.repeat(v.mean(axis=1, keepdims=True), 4, axis=1) for v in (x, w, y, given)]
    still = compare(*same[:3], given=same[3], cells=kind, draw_of=np.arange(4), draws=200)
    assert_allclose([still.low_draws, still.high_draws], [still.low, still.high], atol=1e-12)


def test_few_draws_of_the_data_are_not_resampled():
    runs = np.random.default_rng(6).normal(size=(3, 20, 3))
    found = compare(*runs, draw_of=np.arange(3))
    assert np.isfinite(found.low)
    assert np.isnan([found.low_draws, found.high_draws]).all()
    assert "3 draws of the data: too few to resample" in found.warnings
    assert "draws of the data" not in compare(*runs).warnings


def test_where_an_absolute_value_folds_it_is_said():
    rng = np.random.default_rng(7)
    target = rng.normal(size=40)
    first, second = target + 0.2 * rng.normal(size=40), rng.normal(size=40)
    found = compare(first, second, target, signs=(1, -1))
    assert (
        found.warnings
        == "the interval of the second tau contains 0, where |tau| is too large: read the signed difference"
    )
    assert found.signed == pytest.approx(found.tau_first + found.tau_second)
    both = compare(second, rng.normal(size=40), target)
    assert both.warnings.startswith("the intervals of both taus contain 0")
    unknown = compare(first, -first + 0.1 * second, target, signs=(0, 1))
    assert unknown.warnings == "no expected sign of the first: signed by what it has"
    assert unknown.signed == pytest.approx(unknown.tau_first - unknown.tau_second)
    assert unknown.signed > 1  # of two strong measures of opposite signs the second goes against what is expected
    with pytest.raises(ValueError, match="`cells` must hold one number a configuration and `draw_of` one a run"):
        compare(first, second, target, cells=np.zeros(3, dtype=int))


def table(runs):
    rows = {f"r{c}-{seed}": of_run for (c, seed), of_run in runs.items()}
    settings = ({"method": "abcdefg"[c % 7], "lr": c // 7, "seed": seed, "data_seed": seed} for c, seed in runs)
    return table_of_runs(rows, dict(zip(rows, settings, strict=True)))


def test_a_pair_that_was_not_measured_has_its_rows():
    rng = np.random.default_rng(8)
    runs = {}
    for c, seed in itertools.product(range(28), range(4)):
        a, b = rng.normal(size=2)
        runs[c, seed] = [
            Row("test_error", a + b + c // 7, 0.01, 100, "test"), Row("top_eigenvalue", a - 2 * (c // 7)),
            *(Row("ascent_sharpness", rng.normal(), options={"rho": r}) for r in (0.1, 0.2)),
        ]  # fmt: skip
    pairs = [("top_eigenvalue", "ascent_sharpness[rho=0.1]"), ("top_eigenvalue", "hessian_trace"),
             ("ascent_sharpness[rho=0.3]", "ascent_sharpness")]  # fmt: skip
    found = correlate(table(runs), compare=pairs, draws=200, permutations=0, tables=()).comparisons
    assert len(found) == 6
    assert tuple(found.columns) == COLUMNS
    first = found.iloc[:2].set_index("pairs")
    assert np.isfinite(first[["difference", "low", "low_draws", "signed_low"]]).all(axis=None)
    assert first["draws"].tolist() == [4, 4]
    assert first.loc["pooled", "tau_forgetting"] < 0 < first.loc["stratified", "tau_forgetting"]
    assert found.iloc[2:][["difference", "low", "tau_forgetting"]].isna().all(axis=None)
    assert set(found.iloc[2:4]["warnings"]) == {"hessian_trace was not measured"}
    said = found.iloc[4]["warnings"]
    assert "ascent_sharpness[rho=0.3] was not measured (Did you mean 'ascent_sharpness[rho=0.2]'?)" in said
    assert "ascent_sharpness stands for 2 variants, such as ascent_sharpness[rho=0.1]: name one of them" in said


def test_what_differs_by_rounding_alone_is_tied_as_in_the_table_of_correlations():
    rng = np.random.default_rng(3)
    level = np.array([0.05, 0.1, 0.2])
    runs = {
        (c, seed): [
            Row("a", level[c // 7] * (1 + 1e-8 * rng.normal()), 0.0, 1),
            Row("b", rng.normal(), 0.0, 1),
            Row("test_error", rng.normal(), 0.0, 1, "test"),
        ]
        for c in range(21)
        for seed in range(2)
    }
    found = correlate(table(runs), compare=[("a", "b")], draws=50, permutations=0, tables=())
    row = found.table.query("measure == 'a' and coefficient == 'kendall'").iloc[0]
    pooled, inside = (found.comparisons.query("pairs == @kind").iloc[0] for kind in ("pooled", "stratified"))
    assert pooled["tau_forgetting"] == pytest.approx(row["value"], abs=1e-12)
    assert np.isnan(row["stratified"])
    assert np.isnan(inside["tau_forgetting"])


def test_huge_values_are_averaged_without_overflow():
    rng = np.random.default_rng(3)
    first, second, target = rng.normal(size=(3, 12, 4))
    plain = paired_difference(first, second, target, draw_of=np.arange(4), draws=100)
    first *= 1.7e308 / np.abs(first).max()
    huge = paired_difference(first, second, target, draw_of=np.arange(4), draws=100)
    assert np.isfinite(huge.low_draws)
    assert huge == plain


def test_draws_of_the_data_that_no_two_configurations_share_are_not_resampled():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(3, 8, 4))
    alone = np.full((3, 8, 32), np.nan)  # a draw of its own for each run
    for c in range(8):
        alone[:, c, 4 * c : 4 * c + 4] = values[:, c]
    found = paired_difference(*alone, draw_of=np.arange(32), draws=100)
    shared = paired_difference(*values, draw_of=np.arange(4), draws=100)
    assert np.isfinite([shared.low_draws, shared.high_draws]).all()
    assert np.isnan([found.low_draws, found.high_draws]).all()
    assert "0 of 32 draws of the data are shared by configurations: too few to resample" in found.warnings
    assert (found.low, found.high) == (shared.low, shared.high)
