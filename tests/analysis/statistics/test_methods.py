"""Comparison of training methods: chosen on validation data, paired over seeds."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.statistics.methods import _paired, compare_methods, sign_flip_pvalue


def runs(*rows):
    """(method, configuration, seed, validation, test) a run."""
    return pd.DataFrame(rows, columns=["method", "configuration", "seed", "validation_error", "test_error"])


TWO = runs(
    ("sgd", 0, 0, 0.20, 0.22), ("sgd", 0, 1, 0.24, 0.21), ("sgd", 0, 2, 0.20, 0.26),
    ("sam", 1, 0, 0.10, 0.15), ("sam", 1, 1, 0.12, 0.13), ("sam", 1, 2, 0.11, 0.17),
    ("sam", 2, 0, 0.30, 0.01), ("sam", 2, 1, 0.30, 0.01), ("sam", 2, 2, 0.30, 0.01),  # the test error never chooses
)  # fmt: skip


def test_the_difference_is_the_paired_t_test_of_the_chosen_configurations():
    table = compare_methods(TWO, baseline="sgd").set_index("group")
    row = table.loc["sam"]
    ours, theirs = np.array([0.15, 0.13, 0.17]), np.array([0.22, 0.21, 0.26])
    expected = stats.ttest_rel(ours, theirs)
    assert (row["configuration"], row["configurations"], row["seeds"], row["pairs"]) == (1, 2, 3, 3)
    assert row["mean"] == pytest.approx(0.15)
    assert row["deviation"] == pytest.approx(0.02)
    assert row["difference"] == pytest.approx(-0.08)
    assert row["p"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_flip"] == 0.25  # 2 of 8 sign patterns
    assert "3 seeds" in row["warnings"]
    assert math.isnan(table.loc["sgd", "p"])


def test_pairs_are_of_the_same_seed():
    shuffled = TWO.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(compare_methods(shuffled, baseline="sgd"), compare_methods(TWO, baseline="sgd"))


def test_a_configuration_with_a_diverged_seed_is_the_last_choice():
    broken = TWO.copy()
    broken.loc[3, ["validation_error", "test_error"]] = math.nan
    table = compare_methods(broken, baseline="sgd").set_index("group")
    assert table.loc["sam", "configuration"] == 2
    only = broken[broken["configuration"] != 2]
    row = compare_methods(only, baseline="sgd").set_index("group").loc["sam"]
    assert (row["configuration"], row["pairs"]) == (1, 2)
    assert row["difference"] == pytest.approx(-0.085)


def test_cells_are_compared_separately_and_corrected_together():
    noisy = TWO.assign(test_error=TWO["test_error"] + 0.1 * TWO["seed"] * (TWO["method"] == "sam"), noise=0.4)
    both = pd.concat([TWO.assign(noise=0.0), noisy])
    table = compare_methods(both, baseline="sgd", by=["noise"])
    assert list(table["noise"]) == [0.0, 0.0, 0.4, 0.4]
    p = table["p"].dropna().to_numpy()
    assert len(p) == 2
    low, high = sorted(p)
    assert sorted(table["p_holm"].dropna()) == pytest.approx([min(1, 2 * low), max(min(1, 2 * low), high)])


@pytest.mark.parametrize(("rows", "warning"), [
    ([("sgd", 0, 0, 0.1, 0.2), ("sam", 1, 0, 0.1, 0.1)], "one seed"),
    ([("sgd", 0, 0, 0.1, 0.2), ("sam", 1, 1, 0.1, 0.1)], "no seed in common"),
    ([("sgd", 0, 0, 0.1, 0.2), ("sgd", 0, 1, 0.1, 0.3), ("sam", 1, 0, 0.1, 0.1), ("sam", 1, 1, 0.1, 0.2)], "equal"),
])  # fmt: skip
def test_where_there_is_no_test_it_says_why(rows, warning):
    row = compare_methods(runs(*rows), baseline="sgd").set_index("group").loc["sam"]
    assert warning in row["warnings"]
    assert math.isnan(row["p"])


@pytest.mark.parametrize(("options", "message"), [
    ({"baseline": "sgdd"}, "`baseline` 'sgdd' is no method of these runs; there are"),
    ({"baseline": "sgd", "by": ["noise"]}, r"`runs` lacks the columns \['noise'\]"),
    ({"baseline": "sgd", "level": 95}, "`level` must be between 0 and 1, got 95"),
])  # fmt: skip
def test_foolish_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        compare_methods(TWO, **options)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_sign_flips_against_scipy(n):
    x = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert sign_flip_pvalue(x) == pytest.approx(expected, abs=0.0 if n <= 8 else 0.01)


def test_the_test_holds_its_level():
    draws = pd.DataFrame(np.random.default_rng(0).normal(0, 1, (1000, 6)))
    nothing = pd.Series(np.zeros(6))
    p = [_paired(row, nothing, 0.95, 0, itself=False)["p"] for _, row in draws.iterrows()]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.07
