import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analysis.statistics.granulated import granulated_kendall
from analysis.statistics.grid import axis_pairs, levels

GRID = list(itertools.product([0, 1], repeat=3))
COORDINATES = {name: [g[k] for g in GRID] for k, name in enumerate("ABC")}
D1 = ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.10, 0.14, 0.12, 0.20, 0.16, 0.13, 0.22, 0.20])
D2 = ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.10, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])


def slow(x, y, coordinates, weights):
    """Psi as its definition says, cell by cell."""
    names, axes = list(coordinates), []
    for name in names:
        rest = [n for n in names if n != name]
        cells = {}
        for k in range(len(x)):
            cells.setdefault(tuple(coordinates[n][k] for n in rest), []).append(k)
        found = []
        for members in cells.values():
            pairs = [(a, b) for a, b in itertools.combinations(members, 2)]
            if pairs:
                score = sum(np.sign(x[a] - x[b]) * np.sign(y[a] - y[b]) for a, b in pairs)
                found.append((score / len(pairs), len(pairs)))
        if found:
            w = [1 if weights == "equal" else n for _, n in found]
            axes.append(np.average([v for v, _ in found], weights=w))
    return np.mean(axes)


@pytest.mark.parametrize(
    ("data", "axes", "psi"), [(D1, (0.5, 1, 1), 0.8333333333333334), (D2, (0.5, 0.5, 0.5), 0.5)], ids=["D1", "D2"]
)
def test_worked_data(data, axes, psi):
    found = granulated_kendall(*map(np.array, data), COORDINATES)
    assert_allclose([a.psi for a in found.axes.values()], axes, atol=1e-14)
    assert found.psi == pytest.approx(psi, abs=1e-14)
    assert [(a.eligible, a.total, a.pairs) for a in found.axes.values()] == [(4, 4, 4)] * 3
    assert found.warnings == ""


@pytest.mark.parametrize("weights", ["equal", "pairs"])
def test_incomplete_grid_with_ties_against_the_definition(weights):
    rng = np.random.default_rng(0)
    grid = [g for g in itertools.product(range(3), range(4), "ab") if rng.random() < 0.7]
    co = {name: [g[k] for g in grid] for k, name in enumerate("xyz")}
    x, y = rng.integers(0, 5, len(grid)).astype(float), rng.normal(size=len(grid))
    found = granulated_kendall(x, y, co, weights=weights)
    assert found.psi == pytest.approx(slow(x, y, co, weights), abs=1e-12)
    assert any(a.eligible < a.total for a in found.axes.values())
    # The sizes of cells differ, so the two rules do.
    other = granulated_kendall(x, y, co, weights="pairs" if weights == "equal" else "equal")
    assert found.psi != pytest.approx(other.psi, abs=1e-6)


def test_the_seed_may_be_a_coordinate_but_is_no_axis():
    x, y = np.array([1, 2, 9, 8.0]), np.array([3, 4, 2, 1.0])
    co = {"lr": [0, 1, 0, 1], "seed": [0, 0, 1, 1]}
    found = granulated_kendall(x, y, co, fixed=["seed"])
    assert list(found.axes) == ["lr"]
    assert found.psi == 1.0
    assert granulated_kendall(x, y, {"lr": co["lr"]}).psi == 0.0  # pairs across seeds disagree


def test_permutation_inside_a_cell_is_exact_in_the_limit():
    """One axis of 5: the p-value of tau 0.6 is 28/120."""
    found = granulated_kendall(
        np.arange(5.0), np.array([1.0, 3, 2, 5, 4]), {"lr": range(5)}, permutations=20000,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    tolerance = 4 * np.sqrt(0.2333 * 0.7667 / 20000)
    assert found.axes["lr"].p == pytest.approx(28 / 120, abs=tolerance)
    assert found.p == pytest.approx(28 / 120, abs=tolerance)


def test_within_groups_permutation_of_the_simpson_data():
    """All 24³ orders inside the groups: 8 of 13824 are as extreme, so random ones hardly ever are."""
    x, y = [1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10], [4, 3.5, 2.5, 2, 7, 6, 6, 4.5, 10, 9, 9, 8]
    co = {"method": list("aaaabbbbcccc"), "lr": [0, 1, 2, 3] * 3}
    found = granulated_kendall(
        np.array(x, float), np.array(y), co, permutations=4000, generator=np.random.default_rng(0)
    )
    assert found.axes["lr"].psi == pytest.approx((-1 - 5 / 6 - 5 / 6) / 3)
    assert found.axes["lr"].p < 0.003
    assert found.axes["method"].p < 0.01  # and the other way round from method to method


def test_a_measure_of_an_axis_alone_says_nothing_about_the_others():
    x = np.array(COORDINATES["A"], float)
    found = granulated_kendall(x, np.array(D1[1]), COORDINATES)
    assert [a.psi for a in found.axes.values()] == [0.25, 0.0, 0.0]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=0, max_size=12), st.data())
def test_any_table_gives_a_number_or_a_reason(values, data):
    n = len(values)
    other = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    lr = data.draw(st.lists(st.sampled_from([0, 1, None, float("nan")]), min_size=n, max_size=n))
    found = granulated_kendall(
        np.array(values, float), np.array(other, float), {"lr": lr, "wd": other}, permutations=5,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert np.isfinite(found.psi) or found.warnings
    assert not abs(found.psi) > 1 + 1e-12


def test_missing_values_are_one_level_and_repeats_are_no_pair():
    names, codes = levels({"rho": [None, float("nan"), 0.1, 0.1]})
    assert codes.tolist() == [[0, 0, 1, 1]]
    pairs = axis_pairs(names, codes)[0]
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 2), (1, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "none"}, "`weights` must be one of"),
        ({"coordinates": {}}, "`coordinates` must hold one value a unit"),
        ({"coordinates": {"a": [1], "b": [1, 2]}}, "`coordinates` must hold one value a unit"),
        ({"coordinates": {"a": [1, 2]}}, "`x`, `y` and `coordinates` must agree"),
    ],
)
def test_bad_arguments_are_named(options, message):
    x, y = np.array(D1[0]), np.array(D1[1])
    with pytest.raises(ValueError, match=message):
        granulated_kendall(x, y, **{"coordinates": COORDINATES, **options})


def test_an_axis_without_a_pair_has_no_part_in_the_p_value():
    a = [0, 0, 0, 0, 1, 1, 1, 1]
    x, y = np.array([1.0, 2, 3, 4, 2, 1, 3, 4]), np.array([0.1, 0.2, 0.4, 0.3, 0.2, 0.1, 0.3, 0.5])
    b = [0, 1, 2, 3] * 2
    drawn = {"permutations": 499}
    one = granulated_kendall(x, y, {"a": a, "b": b}, fixed=["a"], generator=np.random.default_rng(0), **drawn)
    # a and c change together, so neither has a pair: Psi is the mean over b alone, and so must be its null
    three = granulated_kendall(x, y, {"a": a, "b": b, "c": a}, generator=np.random.default_rng(0), **drawn)
    assert three.psi == one.psi > 0
    assert three.p == one.p > 1 / 500
