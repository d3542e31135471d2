import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from analysis.statistics.comparison import paired_difference
from analysis.statistics.partial import partial_correlation
from analysis.statistics.resampling import bootstrap_counts


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
    assert found.warnings == "fewer than 5 configurations: no claim"


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
        (4, {"draws": -3}, "`draws` must be a number of resamples >= 0"),
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
    one, other = (partial_correlation(m, y, z[None]).value for m in (x, w))
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
