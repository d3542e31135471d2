import itertools

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from analysis.statistics.correlation import correlate
from analysis.statistics.grid import levels
from analysis.statistics.sign_error import (
    environment_errors,
    environments,
    quantile,
    resolved,
    robust_sign_error,
    sign_probability,
    sign_weight,
)
from analysis.table import Row, join_config, to_frame

GRID = list(itertools.product([0, 1], repeat=3))
COORDINATES = {name: [g[k] for g in GRID] for k, name in enumerate("ABC")}
D1 = tuple(map(np.array, ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.10, 0.14, 0.12, 0.20, 0.16, 0.13, 0.22, 0.20])))
D2 = tuple(map(np.array, ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.10, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])))
G = np.array([0.10, 0.11, 0.12, 0.13, 0.12, 0.14])
MU = np.array([1, 2, 1.5, 1.8, 1.6, 2.5])
PLACES = environments(*levels({"lr": [0, 0, 0, 1, 1, 1]}))


def test_probability_of_an_order():
    d = np.array([0.01, 0.015, 0.02, 0.03, 0.04, 0.05])
    expected = [0, 0.122987, 0.531921, 0.956058, 0.998659, 0.999985]
    assert_allclose(sign_probability(d, test_size=10000), expected, atol=5e-7)
    assert_allclose(sign_probability(-d, test_size=10000), expected, atol=5e-7)


def test_three_seeds():
    weights = [0.4560577, 0.0319214, 0.4986586, 0.0319214, 0, 0.4560577, 0, 0, 0.0319214]
    assert_allclose(sign_weight(G[PLACES.first] - G[PLACES.second], test_size=10000), weights, atol=5e-8)
    error, ess = environment_errors(MU[None], G[None], PLACES, test_size=[10000])
    assert error[0, 0, 0] == pytest.approx(0.0211885919, abs=1e-10)
    assert ess[0, 0, 0] == pytest.approx(3.3992451344, abs=1e-10)
    found = robust_sign_error(MU, G, {"lr": [0, 0, 0, 1, 1, 1]}, test_size=10000)["all"]
    assert (found.kept, found.environments) == (0, 1)  # fewer than 12 effective pairs
    assert np.isnan(found.maximum)
    few = robust_sign_error(MU, G, {"lr": [0, 0, 0, 1, 1, 1]}, test_size=10000, minimum_ess=3)["all"]
    assert few.maximum == pytest.approx(0.0211885919, abs=1e-10)


@pytest.mark.parametrize(
    ("data", "axes", "mean", "maximum"),
    [(D2, [0.25, 0.25, 0.25], 0.25, 1.0), (D1, [0.25, 0, 0], 1 / 12, 0.5)],
    ids=["D2", "D1"],
)
def test_worked_data_without_weights(data, axes, mean, maximum):
    found = robust_sign_error(*data, COORDINATES)
    assert_allclose([found[a].mean for a in "ABC"], axes, atol=1e-14)
    assert found["all"].mean == pytest.approx(mean, abs=1e-14)
    assert found["all"].maximum == maximum
    assert found["all"].environments == 12


def test_against_a_loop_with_missing_runs():
    rng = np.random.default_rng(0)
    co = {"a": rng.integers(0, 3, 40).tolist(), "b": rng.integers(0, 2, 40).tolist()}
    x, y = rng.normal(size=(2, 40))
    x[3], y[7] = np.nan, np.inf
    y *= 0.03
    found = robust_sign_error(x, y, co, test_size=5000, minimum_ess=0)
    key = list(zip(co["a"], co["b"], strict=True))
    errors = []
    for u, v in itertools.combinations(sorted(set(key)), 2):
        if sum(a != b for a, b in zip(u, v, strict=True)) != 1:
            continue
        top = bottom = 0.0
        for i, j in itertools.product([k for k in range(40) if key[k] == u], [k for k in range(40) if key[k] == v]):
            if np.isfinite([x[i], x[j], y[i], y[j]]).all():
                p = max(0, 1 - 2 * np.exp(-2 * 5000 * ((y[i] - y[j]) / 2) ** 2)) ** 2
                w = max(0, p - 0.5)
                top += w * (1 - np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])) / 2
                bottom += w
        if bottom:
            errors.append(top / bottom)
    assert found["all"].kept == len(errors)
    assert found["all"].mean == pytest.approx(np.mean(errors), abs=1e-12)
    assert found["all"].p90 == pytest.approx(np.percentile(errors, 90), abs=1e-12)


def test_a_measure_that_orders_backwards_throughout_is_as_good():
    one, other = robust_sign_error(*D2, COORDINATES)["all"], robust_sign_error(-D2[0], D2[1], COORDINATES)["all"]
    assert one == other
    assert one.mean == pytest.approx(0.25)


def test_against_a_sign_that_is_expected_the_error_turns_round():
    one, other = (robust_sign_error(*D2, COORDINATES, sign=sign)["all"] for sign in (1, -1))
    assert one.mean + other.mean == pytest.approx(1.0)
    assert other.mean == pytest.approx(0.75)
    assert other.maximum == 1.0
    assert (other.kept, other.environments) == (12, 12)


def test_errors_that_can_be_told_apart():
    # 697 examples, two seeds with test sets of their own, 8 % errors: two points (the specification's number).
    assert resolved(0.08, 697, 2) == pytest.approx(0.02055, abs=5e-6)
    # A difference of that size is two standard errors: it is beyond chance in about 97.5 % of studies, one-sided.
    rng = np.random.default_rng(0)
    first, second = rng.binomial(697 * 2, 0.08, size=(2, 20_000)) / (697 * 2)
    assert (np.abs(first - second) > resolved(0.08, 697, 2)).mean() == pytest.approx(0.0455, abs=0.006)
    # One test set for all seeds: models agree on half of the examples, on the rest each errs by itself.
    shared = rng.binomial(697, 0.08 / 2, size=(2, 20_000)) / 697  # what is common drops out of the difference
    told = resolved(0.08, 697, 2, agreement=0.5)
    assert told == pytest.approx(resolved(0.08, 697, 9, agreement=0.5))  # more seeds add nothing
    assert (np.abs(shared[0] - shared[1]) > told).mean() == pytest.approx(0.0455, abs=0.02)


def made(seeds, gap, draws=100.0):
    """A table of two methods at three learning rates whose errors differ by so much."""
    rng = np.random.default_rng(0)
    frames, configs = [], {}
    for m, lr, seed in itertools.product((0, 1), range(3), range(seeds)):
        run = f"r{m}{lr}{seed}"
        error = 0.1 + gap * m + 1e-4 * rng.random()
        rows = [Row("test_error", error, 0.01, int(draws), "test"), Row("flat", -error), Row("top_eigenvalue", -error)]
        frames.append(to_frame(rows, run_id=run, step=1, epoch=1))
        configs[run] = {"method": "ab"[m], "lr": lr, "seed": seed, "data_seed": seed}
    return join_config(pd.concat(frames, ignore_index=True), configs)


def test_the_table_says_how_it_is_oriented_and_what_the_weighted_form_needs():
    few = {"targets": ["test_error"], "draws": 0, "permutations": 0, "tables": ["sign_errors"]}
    pooled = correlate(made(3, 0.01), **few).sign_errors
    assert set(pooled["oriented"]) == {"pooled"}
    assert set(pooled["sign"]) == {-1}
    at = pooled.set_index(["measure", "axis", "weighting"])
    assert at.loc[("flat", "method", "equal"), "mean"] == 0.0
    said = at.loc[("flat", "all", "weighted"), "warnings"]
    p, n, s = 0.105, 100, 3
    told = 2 * (2 * p * (1 - p) / (n * s)) ** 0.5
    assert f"tell errors apart from {100 * told:.1f} points" in said
    assert "3 seeds with 100 test examples each" in said
    # expected: the top eigenvalue is to rise with the error, of the other nothing is known
    expected = correlate(made(3, 0.01), **few, oriented="expected").sign_errors.set_index(
        ["measure", "axis", "weighting"]
    )
    assert expected.loc[("top_eigenvalue", "method", "equal"), ["oriented", "sign", "mean"]].tolist() == [
        "expected",
        1,
        1,
    ]
    row = expected.loc[("flat", "method", "equal")]
    assert row[["oriented", "sign", "mean"]].tolist() == ["pooled", -1, 0]
    assert "no expected sign" in row["warnings"]
    enough = correlate(made(4, 0.5), **few).sign_errors.set_index(["measure", "axis", "weighting"])
    assert enough.loc[("flat", "method", "weighted"), "mean"] == 0.0
    with pytest.raises(ValueError, match=r"`oriented` must be one of .'pooled', 'expected'., got 'right'"):
        correlate(made(3, 0.01), oriented="right")


def test_nothing_to_compare_is_no_number():
    found = robust_sign_error(np.array([1.0]), np.array([2.0]), {"a": [0]})["all"]
    assert np.isnan([found.mean, found.median, found.p90, found.maximum]).all()
    assert found.environments == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`test_size` must be a number of examples > 0"):
        robust_sign_error(*D1, COORDINATES, test_size=0)
    with pytest.raises(ValueError, match="`x`, `y` and `coordinates` must agree"):
        robust_sign_error(D1[0][:3], D1[1], COORDINATES)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_quantiles_are_numpys_to_the_last_bit(q):
    rng = np.random.default_rng(0)
    for n in (*range(1, 40), *[12] * 200):
        ordered = np.sort(rng.random(n))
        assert quantile(ordered, q) == np.quantile(ordered, q)
