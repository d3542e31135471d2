"""Permutation p-values, one by one and corrected for the number of measures."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.crossed import Crossed
from analysis.statistics.kendall import EXACT_LIMIT
from analysis.statistics.max_t import Seen, step_down
from analysis.statistics.orders import Orders, free_orders, orders_inside
from analysis.statistics.resampling import holm

# All 120 orders were enumerated apart from this code.
Y5 = np.array([0.1, 0.2, 0.25, 0.3, 0.5])
X5 = np.array([[1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [3, 5, 1, 4, 2.0]])

CELLS, VARIANTS = np.repeat(np.arange(8), 9), np.tile(np.arange(9), 8)

PLAIN = {
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
}


def every(x, y, **options):
    """Measures that are all seen for all configurations."""
    return [Seen(np.arange(len(x)), x, y, np.ones(len(y), dtype=bool), **options)]


def found(coefficient, x, y, orders, *, cells=None, candidates=None, **moved):
    candidates = np.ones(len(x), dtype=bool) if candidates is None else candidates
    return step_down(coefficient, every(x, y, **moved), orders, candidates=candidates, cells=cells)


def random_orders(n, count, seed=0):
    return free_orders(n, count=count, generator=np.random.default_rng(seed))


def all_orders(n):
    return Orders(np.array(list(itertools.permutations(range(n)))), exact=True)


def test_the_worked_family():
    values = found("kendall", X5, Y5, all_orders(5))
    assert_allclose(values.p, [1 / 60, 7 / 30, 49 / 60], atol=1e-12)
    assert_allclose(values.adjusted, [0.05, 0.4333333333, 0.8166666667], atol=1e-9)
    assert_allclose(holm(values.p), [0.05, 0.4666666667, 0.8166666667], atol=1e-9)


def test_orders_taken_as_a_sample_count_one_more():
    values = found("kendall", X5, Y5, Orders(all_orders(5).base[:-1], exact=False))  # the last reaches all three
    assert_allclose(values.p, [2 / 120, 28 / 120, 98 / 120], atol=1e-12)


@pytest.mark.parametrize(
    ("cells", "x", "y", "p"),
    [
        ([0, 0, 0, 1, 1, 1], [5, 6, 7, 1, 2, 3], [0.10, 0.11, 0.12, 0.30, 0.31, 0.33], 2 / 36),
        (
            [0, 0, 0, 0, 1, 1, 1, 1],
            [1, 2, 2, 4, 11, 13, 12, 15],
            [0.1, 0.12, 0.11, 0.15, 0.3, 0.31, 0.31, 0.36],
            8 / 576,
        ),
    ],
)
def test_cells_are_permuted_inside_themselves_all_at_once(cells, x, y, p):
    cells = np.array(list(map(int, cells)))
    orders = orders_inside(cells, count=1000, generator=np.random.default_rng(0))
    assert orders.exact
    x, y = np.array([x], dtype=np.float64), np.array(y)
    assert found("kendall", x, y, orders, groups=cells, cells=cells).p[0] == pytest.approx(p, abs=1e-15)
    sampled = orders_inside(cells, count=30, generator=np.random.default_rng(0))
    assert (sampled.number, sampled.exact) == (30, False)
    for label in (0, 1):
        places = np.flatnonzero(cells == label)
        assert (np.sort(sampled.base[:, places], axis=1) == places).all()


@pytest.mark.parametrize("coefficient", list(PLAIN))
def test_by_enumeration_with_ties(coefficient):
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, size=(6, 5)).astype(np.float64), rng.integers(0, 3, size=5).astype(np.float64)
    orders = all_orders(5)
    values = found(coefficient, x, y, orders)
    null = np.array([[abs(PLAIN[coefficient](row, y[o])) for o in orders.base] for row in x])
    observed = null[:, 0]  # the order as it is comes first
    assert_allclose(values.p, (null >= observed[:, None] - 1e-9).mean(axis=1), atol=1e-12)
    rank, above, expected = np.argsort(-observed, kind="stable"), 0.0, np.empty(6)
    for j, k in enumerate(rank):
        largest = null[rank[j:]].max(axis=0)
        above = max(above, (largest >= observed[k] - 1e-9).mean())
        expected[k] = above
    assert_allclose(values.adjusted, expected, atol=1e-12)


def test_random_orders_agree_with_the_exact_distribution():
    rng = np.random.default_rng(2)
    y = rng.normal(size=12)
    x = y + rng.normal(size=(8, 12)) * 2
    expected = np.array([stats.kendalltau(row, y, method="exact").pvalue for row in x])
    error = np.sqrt(expected / 9999) * 4 + 1e-4  # four standard errors
    assert np.all(np.abs(found("kendall", x, y, random_orders(12, 9999)).p - expected) < error)


@pytest.mark.parametrize("coefficient", ["kendall", "spearman"])
def test_nothing_changes_with_the_sign_or_with_increasing_functions(coefficient):
    rng = np.random.default_rng(3)
    x, y = np.round(rng.normal(size=(4, 15)), 1), np.round(rng.normal(size=15), 1)
    orders = random_orders(15, 500)
    values = found(coefficient, x, y, orders)
    for other in (found(coefficient, -x, y, orders), found(coefficient, np.exp(x), -y, orders)):
        assert_allclose(other.p, values.p, rtol=0, atol=0)
        assert_allclose(other.adjusted, values.adjusted, rtol=0, atol=0)


def test_the_linear_part_above_a_hundred_units_is_scipys_tau_with_ties():
    n = EXACT_LIMIT + 40
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, size=n).astype(np.float64)
    x = np.stack([np.round(rng.normal(size=n) + 0.2 * y, digits) for digits in (0, 1, 9)])
    expected = np.array([stats.kendalltau(row, y, method="asymptotic").pvalue for row in x])
    p = found("kendall", x, y, random_orders(n, 9999)).p
    assert_allclose(p, expected, atol=4 * np.sqrt(expected.max() / 9999) + 0.003)


@pytest.mark.parametrize("inside", ["nothing", "cells", "methods"])
def test_the_linear_part_stands_for_all_pairs(inside, monkeypatch):
    """p-values by the linear part and by all pairs, of the same orders, with effects of groups and ties."""
    rng = np.random.default_rng(11)
    n = 120
    groups = rng.integers(0, 4, size=n)
    level = rng.normal(size=(2, 4))[:, groups]
    y = np.round(0.8 * level[0] + rng.normal(size=n), 1)
    x = 0.8 * level[1] + np.array([[0.0], [0.1], [0.25]]) * (y - level[0]) + rng.normal(size=(3, n))
    if inside == "nothing":
        options, orders = {}, random_orders(n, 2000)
    else:
        options = {"groups": groups} | ({"cells": groups} if inside == "cells" else {})
        orders = orders_inside(groups, count=2000, generator=np.random.default_rng(0))
    values = []
    for pairs in (10, 10**6):
        monkeypatch.setattr("analysis.statistics.max_t.PAIRS", pairs)
        values.append(found("kendall", x, y, orders, **options))
    assert_allclose(values[0].p, values[1].p, atol=0.012)
    assert_allclose(values[0].adjusted, values[1].adjusted, atol=0.012)
    assert (values[1].p > 0.01).any()


def test_near_constant_measure_of_many_units():
    # One unit of 121 differs: C - D is 2k - 120 for the rank k of its target, uniform over k.
    n = 121
    x = (np.arange(n) == 117).astype(np.float64)[None]
    expected = 8 / 121  # |2k - 120| >= 114 for k = 0..3 and 117..120
    p = found("kendall", x, np.arange(float(n)), random_orders(n, 9999)).p[0]
    assert p == pytest.approx(expected, abs=4 * (expected / 9999) ** 0.5)


def test_no_p_falls_below_what_the_permutations_can_show():
    for n in (30, 150):
        x = np.arange(float(n))
        values = found("kendall", x[None], x, random_orders(n, 999))
        assert values.p[0] == values.adjusted[0] == random_orders(n, 999).floor == 1 / 1000


def test_constants_have_no_test_and_do_not_count():
    y = np.arange(7.0)
    x = np.stack([np.ones(7), y, np.full(7, 0.1)])
    for coefficient in PLAIN:
        values = found(coefficient, x, y, random_orders(7, 50))
        assert np.isnan(values.p).tolist() == np.isnan(values.adjusted).tolist() == [True, False, True]
        assert values.adjusted[1] == values.p[1]
        assert np.isnan(found(coefficient, x, np.zeros(7), random_orders(7, 50)).p).all()


def test_what_is_no_candidate_has_a_p_and_is_not_corrected_for():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(4, 12)), rng.normal(size=12)
    orders = random_orders(12, 300)
    few = found("kendall", x[:2], y, orders)
    values = found("kendall", x, y, orders, candidates=np.array([True, True, False, False]))
    assert_allclose(values.adjusted, [*few.adjusted, np.nan, np.nan], atol=0)
    assert np.isfinite(values.p).all()


def test_families_without_any_effect_are_seldom_claimed():
    """The complete null: correlated measures, with the share of families that claim anything near 5 %."""
    rng = np.random.default_rng(6)
    orders = random_orders(16, 199)
    claims, alone = 0, 0
    for _ in range(300):
        x = rng.normal(size=(1, 16)) + rng.normal(size=(8, 16))
        values = found("kendall", x, rng.normal(size=16), orders)
        assert (values.adjusted >= values.p).all()
        claims += values.adjusted.min() <= 0.05
        alone += values.p.min() <= 0.05
    assert stats.binomtest(claims, 300, 0.05).pvalue > 0.001
    assert alone > 2 * claims


def test_the_dependence_of_measures_is_used():
    """Ten copies of one measure cost nothing; Holm's correction pays for ten."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=14), rng.normal(size=14)
    values = found("kendall", np.stack([x] * 10), y, random_orders(14, 500))
    assert_allclose(values.adjusted, values.p, atol=0)
    assert holm(values.p)[0] == pytest.approx(min(10 * values.p[0], 1.0))


def test_measures_of_fewer_configurations_take_the_order_of_theirs():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(1, 6)), rng.normal(size=6)
    used = np.ones(8, dtype=bool)
    used[[2, 5]] = False
    alone = found("kendall", x, y, all_orders(6)).p
    among = step_down("kendall", [Seen(np.arange(1), x, y, used)], all_orders(8), candidates=np.ones(1, dtype=bool)).p
    assert_allclose(among, alone, atol=1e-12)  # every order of the six comes 56 times
    groups = np.array([0, 0, 1, 1, 1, 0])
    inside = all_orders(8).of(used, groups)
    seen, times = np.unique(inside, axis=0, return_counts=True)
    assert len(seen) == 36
    assert set(times) == {40320 // 36}


def test_few_configurations_do_not_stand_in_the_way():
    """Five configurations often have |tau| = 1 by chance; that is no reason to doubt 0.6 of thirty."""
    rng = np.random.default_rng(9)
    y = rng.normal(size=30)
    x = y + rng.normal(size=30)
    used = np.zeros(30, dtype=bool)
    used[:5] = True
    small = [Seen(np.array([1 + k]), rng.normal(size=(1, 5)), y[:5], used) for k in range(4)]
    tested = [Seen(np.array([0]), x[None], y, np.ones(30, dtype=bool)), *small]
    values = step_down("kendall", tested, random_orders(30, 999), candidates=np.ones(5, dtype=bool))
    assert values.adjusted[0] < 0.01


def test_the_best_of_each_family():
    """The strongest of a family and its p are those of the family alone, whatever else is tested."""
    rng = np.random.default_rng(12)
    y = rng.normal(size=12)
    x = 0.5 * y + rng.normal(size=(7, 12))
    x[6] = 1.0
    orders, family = random_orders(12, 300), np.array([0, 1, 0, 1, 1, 0, 3])
    values = step_down("kendall", every(x, y), orders, candidates=np.arange(7) < 2, family=family, families=4)
    for label in (0, 1):
        members = np.flatnonzero(family == label)
        alone = found("kendall", x[members], y, orders)
        assert values.best[label] == alone.adjusted.min() == alone.best[0]
        taus = [abs(PLAIN["kendall"](row, y)) for row in x[members]]
        assert values.strongest[label] == members[np.argmax(taus)]
    assert values.strongest[2:].tolist() == [-1, -1]
    assert np.isnan(values.best[2:]).all()
    none = step_down("kendall", every(x, y), random_orders(12, 0), candidates=np.ones(7, dtype=bool))
    assert none.strongest[0] >= 0
    assert np.isnan([*none.p, *none.adjusted, *none.best]).all()


def in_cells(x, y, cells):
    """Stratified tau_b up to its scale: concordant less discordant pairs inside cells."""
    pairs = [(i, j) for i, j in itertools.combinations(range(len(x)), 2) if cells[i] == cells[j]]
    return sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs)


def test_whole_variants_change_places_in_all_cells_alike():
    """Four variants in three cells, in no order: the 24 permutations of the variants, one by one."""
    rng = np.random.default_rng(13)
    variants, cells = np.tile([3, 0, 7, 1], 3), np.repeat([2, 0, 1], 4)
    mixed = rng.permutation(12)
    variants, cells = variants[mixed], cells[mixed]
    y, x = rng.normal(size=12), rng.normal(size=(5, 12))
    whole = Crossed.of(cells, variants)
    assert whole.number == 24
    p = found("kendall", x, y, random_orders(12, 500), whole=whole, cells=cells).p
    place = {(c, v): k for k, (c, v) in enumerate(zip(cells, variants, strict=True))}
    for row, value in zip(x, p, strict=True):
        null = []
        for order in itertools.permutations([0, 1, 3, 7]):
            becomes = dict(zip([0, 1, 3, 7], order, strict=True))
            moved = [y[place[c, becomes[v]]] for c, v in zip(cells, variants, strict=True)]
            null.append(abs(in_cells(row, moved, cells)))
        assert value == pytest.approx(np.mean(np.array(null) >= abs(in_cells(row, y, cells))), abs=1e-12)


WAYS = {
    "cells": {"groups": CELLS}, "variants": {"whole": Crossed.of(CELLS, VARIANTS)},
    "methods": {"whole": Crossed.of(CELLS, VARIANTS, methods=VARIANTS // 3)},
}  # fmt: skip


@pytest.mark.parametrize(("of", "way", "fails"), [(1, "variants", "cells"), (3, "methods", "variants")])
def test_whole_variants_and_methods_hold_the_level_where_their_parts_do_not(of, way, fails):
    """Effects of variants, or of methods of three settings, in both, of which the one tells nothing of the other."""
    rng = np.random.default_rng(14)
    orders = random_orders(72, 99)
    positives = dict.fromkeys((way, fails), 0)
    for _ in range(150):
        x, y = 1.5 * rng.normal(size=(2, 9))[:, VARIANTS // of] + rng.normal(size=(2, 72))
        for kind in positives:
            p = found("kendall", x[None], y, orders, cells=CELLS, **WAYS[kind]).p[0]
            positives[kind] += p <= 0.05
    assert stats.binomtest(positives[way], 150, 0.05).pvalue > 0.01
    assert positives[fails] > 0.15 * 150


def test_whole_cells_hold_the_level_where_free_orders_do_not():
    rng = np.random.default_rng(16)
    orders = random_orders(72, 99)
    ways = {"freely": None, "cells": Crossed.of(CELLS, VARIANTS, move_cells=True)}
    for coefficient in PLAIN:
        positives = dict.fromkeys(ways, 0)
        for _ in range(100):
            x, y = 1.5 * rng.normal(size=(2, 8))[:, CELLS] + rng.normal(size=(2, 72))
            for kind, whole in ways.items():
                positives[kind] += found(coefficient, x[None], y, orders, whole=whole).p[0] <= 0.05
        assert stats.binomtest(positives["cells"], 100, 0.05).pvalue > 0.01
        assert positives["freely"] > 20


def test_small_cells_by_their_linear_part(monkeypatch):
    """Of cells of six the linear part has 14/17 of the variance; made as wide, it gives the p of all pairs."""
    rng = np.random.default_rng(15)
    cells = np.repeat(np.arange(20), 6)
    y, x = rng.normal(size=120), rng.normal(size=(30, 120))
    orders = orders_inside(cells, count=3000, generator=rng)
    exact = found("kendall", x, y, orders, groups=cells, cells=cells).p
    monkeypatch.setattr("analysis.statistics.max_t.PAIRS", 10)
    close = found("kendall", x, y, orders, groups=cells, cells=cells).p
    assert_allclose(close, exact, atol=0.06)
    assert abs((close - exact).mean()) < 0.01


def test_uniform_where_nothing_is_there():
    rng = np.random.default_rng(10)
    orders = random_orders(20, 499)
    for coefficient in PLAIN:
        p = found(coefficient, rng.normal(size=(300, 20)), rng.normal(size=20), orders).p
        assert stats.kstest(p, "uniform").pvalue > 0.001
