"""The page's coefficients against ours and against SciPy, in a browser."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from analysis.statistics.correlation import correlate
from analysis.statistics.resampling import significant
from analysis.statistics.units import ROUNDING, without_rounding

pytestmark = pytest.mark.xdist_group("explorer")
COLUMNS = ["value", "stratified", "within", "n_configurations", "n_runs", "cells", "groups"]


def subsets(runs, number, rng):
    """All runs, and random ones: some configurations are left with one seed, some methods and cells with few."""
    yield np.ones(runs, dtype=bool)
    for share in rng.uniform(0.3, 0.9, number):
        yield rng.random(runs) < share


def test_chosen_runs_have_the_coefficients_that_python_gives_them(results, wide, data):
    rng, ids = np.random.default_rng(0), np.array(data["runs"]["id"])
    turned = undefined = 0
    for chosen in subsets(len(ids), 4, rng):
        table = results.measures[results.measures["run_id"].isin(ids[chosen])]
        for target in ("test_error", "gap_error"):
            ours = correlate(table, targets=[target], draws=0, permutations=0, tables=()).table
            ours = ours[ours["coefficient"] == "kendall"]
            given = [target, ours["measure"].tolist(), chosen.astype(int).tolist()]
            theirs = wide.page.evaluate("(given) => probes.related(...given)", given)
            wanted = ours[COLUMNS].to_numpy(dtype=float)
            np.testing.assert_allclose(np.array(theirs, dtype=float), wanted, rtol=1e-12, atol=1e-15)
            turned += int(ours["reversal"].sum())
            undefined += int(ours["stratified"].isna().sum())
    assert len(ours) > 20
    assert turned > 0
    assert undefined > 0
    errors = next(m["values"] for m in data["measures"] if m["id"] == "test_error")
    assert len(set(errors)) < len(errors)  # there are ties


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_pooled_is_the_tau_b_of_scipy(wide, levels):
    rng = np.random.default_rng(levels)
    for n in (2, 3, 7, 64, 301):
        x, y = (rng.integers(0, levels, n).astype(float) for _ in range(2))
        given = [x.tolist(), y.tolist(), list(range(n))]
        found = np.array(wide.page.evaluate("(given) => probes.alone(...given)", given), dtype=float)
        tau = kendalltau(x, y).statistic
        np.testing.assert_allclose(found[:3], [tau, tau if n > 2 else np.nan, tau], rtol=1e-12, atol=1e-15)


def test_numbers_are_rounded_as_in_python_bit_for_bit(wide):
    rng = np.random.default_rng(1)
    given = np.concatenate([rng.standard_normal(300) * 10.0 ** rng.integers(-300, 300, 300), [0.0, 0.1 + 0.2, 5e-324]])
    found = wide.page.evaluate("(x) => x.map(Explorer.statistics.significant)", given.tolist())
    np.testing.assert_array_equal(np.array(found, dtype=float), significant(given))
    near = rng.integers(1, 9, 200) * (1 + ROUNDING * rng.uniform(-2, 2, 200))
    for row in (near, -near, np.round(near)):
        call = "([x, r]) => [...Explorer.statistics.withoutRounding(Float64Array.from(x), r)]"
        found = wide.page.evaluate(call, [row.tolist(), ROUNDING])
        np.testing.assert_array_equal(np.array(found, dtype=float), without_rounding(row[None])[0])


def test_means_are_rounded_as_in_python(wide):
    """Equal rates stay equal whatever seeds they came from; the last digits of single precision are no order."""
    x = [0.1, 0.2, 0.3, 0.2, 0.3, 0.1, 0.3, 0.3, 0.3]
    configuration = [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def pooled(*of_configurations):
        y = np.repeat(of_configurations, 3).tolist()
        return wide.page.evaluate("(given) => probes.alone(...given)", [x, y, configuration])[0]

    assert pooled(1e-300, 1e-300 * (1 + 1e-7), 2e-300) == pytest.approx(1.0)  # the first two tie in both
    assert pooled(1e-300, 3e-300, 2e-300) == pytest.approx(kendalltau([0.2, 0.2, 0.3], [1, 3, 2]).statistic)
