import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from analysis.statistics.information import PGDL, Rule, conditional_information, shuffled

GRID = list(itertools.product([0, 1], repeat=3))
COORDINATES = {name: [g[k] for g in GRID] for k, name in enumerate("ABC")}
D1 = tuple(map(np.array, ([1, 2, 1.5, 3, 2.5, 2, 4, 3.5], [0.10, 0.14, 0.12, 0.20, 0.16, 0.13, 0.22, 0.20])))
D2 = tuple(map(np.array, ([1, 2, 3.5, 1.8, 2.5, 0.5, 4, 3], [0.10, 0.15, 0.13, 0.21, 0.16, 0.12, 0.22, 0.19])))
SUBSETS = ["", "A", "B", "C", "AB", "AC", "BC"]
DEFAULT_D2 = [
    0.13687943143336928, 0.27024473942200306, 0.12144145940913724, 0.2390743868261523,
    0.3955011491614378, 0.5288699649257175, 0.2836694793634989,
]  # fmt: skip
PGDL_D2 = [
    0.18329041477146166, 0.30336243872685165, 0.1661824365998153, 0.27893530881823814,
    0.4020697143096599, 0.5183811677133155, 0.3030389598435839,
]  # fmt: skip
PGDL_D1 = [
    0.7963518670661168, 0.8118717043682734, 0.8316589679688452, 0.8596145402425682,
    0.8255597801815062, 0.8568064291082339, 0.9193271070178521,
]  # fmt: skip


def slow(x, y, coordinates, names, rule):
    """Information over entropy from a dictionary of ordered pairs."""
    cells = {}
    for i, j in itertools.product(range(len(x)), repeat=2):
        if i == j and not rule.self_pairs:
            continue
        v, w = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        if rule.ties == "drop" and 0 in (v, w):
            continue
        if rule.ties == "minus":
            v, w = (1 if a > 0 else -1 for a in (v, w))
        u = tuple((coordinates[n][i], coordinates[n][j]) for n in names)
        cells.setdefault(u, []).append((v, w))
    total = sum(map(len, cells.values()))
    information = entropy = 0.0
    for pairs in cells.values():
        weight = len(pairs) / total if rule.cells == "counts" else 1 / len(cells)

        def h(values):
            p = np.unique(np.array(values), axis=0, return_counts=True)[1] / len(values)
            return -(p * np.log2(p)).sum()

        h_y = h([[w] for _, w in pairs])
        information += weight * (h([[v] for v, _ in pairs]) + h_y - h(pairs))
        entropy += weight * h_y
    return information / entropy if entropy > 1e-12 else np.nan


@pytest.mark.parametrize(
    ("data", "rule", "ratios", "k"),
    [
        (D2, Rule(), DEFAULT_D2, 0.12144145940913724),
        (D2, PGDL, PGDL_D2, 0.1661824365998153),
        (D1, Rule(), [1.0] * 7, 1.0),
        (D1, PGDL, PGDL_D1, 0.7963518670661168),
    ],
)
def test_worked_data(data, rule, ratios, k):
    found = conditional_information(*data, COORDINATES, rule=rule)
    assert_allclose([found.subsets[tuple(s)].ratio for s in SUBSETS], ratios, atol=1e-13)
    assert found.value == pytest.approx(k, abs=1e-13)


@pytest.mark.parametrize(("data", "score"), [(D2, 0.3030389598435839), (D1, 0.8255597801815062)])
def test_score_of_the_competition_is_over_pairs_of_hyper_parameters(data, score):
    found = conditional_information(*data, COORDINATES, rule=PGDL, sizes=(2,))
    assert found.value == pytest.approx(score, abs=1e-13)


def test_small_cells_are_counted_and_said():
    found = conditional_information(*D2, COORDINATES)
    assert found.subset == ("B",)
    assert [found.subsets[tuple(s)].fewest for s in SUBSETS] == [56, 12, 12, 12, 2, 2, 2]
    assert found.warnings == "a cell of 12 pairs: biased upwards, compare with the baseline"


@pytest.mark.parametrize("ties", ["drop", "minus", "three-valued"])
@pytest.mark.parametrize("self_pairs", [False, True])
@pytest.mark.parametrize("cells", ["counts", "uniform"])
def test_every_rule_against_the_definition(ties, self_pairs, cells):
    rng = np.random.default_rng(3)
    n = 70  # above the size at which a cell is taken in halves
    co = {"a": rng.integers(0, 2, n).tolist(), "b": rng.integers(0, 3, n).tolist()}
    x, y = rng.integers(0, 8, n).astype(float), rng.integers(0, 6, n).astype(float)
    rule = Rule(ties=ties, self_pairs=self_pairs, cells=cells)
    found = conditional_information(x, y, co, rule=rule)
    for names, one in found.subsets.items():
        assert one.ratio == pytest.approx(slow(x, y, co, names, rule), abs=1e-12)


def test_it_has_no_sign_and_knows_increasing_functions():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8))
    assert conditional_information(-x, y, COORDINATES).value == pytest.approx(
        conditional_information(x, y, COORDINATES).value, abs=1e-13
    )
    assert conditional_information(np.exp(y), y, COORDINATES).value == pytest.approx(1.0, abs=1e-13)


def test_a_measure_that_is_a_hyper_parameter_explains_nothing_more():
    found = conditional_information(np.array(COORDINATES["A"], float), D1[1], COORDINATES)
    assert found.subsets[()].information / np.log(2) == pytest.approx(0.2781, abs=5e-5)
    assert (found.value, found.subset) == (0.0, ("A",))


def test_baseline_shuffles_inside_cells_alone():
    rng = np.random.default_rng(0)
    cell = np.array([0, 1, 0, 1, 2])
    for row in shuffled(np.array([1.0, 2, 3, 4, 5]), cell, count=20, generator=rng):
        assert sorted(row[[0, 2]]) == [1, 3]
        assert sorted(row[[1, 3]]) == [2, 4]
        assert row[4] == 5
    noise = conditional_information(*rng.normal(size=(2, 8)), COORDINATES, shuffles=40, generator=rng)
    assert 0 < noise.baseline < 1
    assert noise.baseline_stderr > 0


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan, np.inf]), max_size=8), st.data())
def test_any_table_gives_a_number_or_a_reason(values, data):
    n = len(values)
    y = data.draw(st.lists(st.sampled_from([0.0, 1.0, -np.inf]), min_size=n, max_size=n))
    a = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    found = conditional_information(
        np.array(values, float), np.array(y, float), {"a": a}, shuffles=3, generator=np.random.default_rng(0)
    )
    assert (0 <= found.value <= 1) or found.warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (-1,)}, "`sizes` must be sizes of sets"),
        ({"coordinates": {"A": [1]}}, "`x`, `y` and `coordinates` must agree"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        conditional_information(*D1, **{"coordinates": COORDINATES, **options})
    with pytest.raises(ValueError, match="`ties` must be one of"):
        Rule(ties="keep")
    with pytest.raises(ValueError, match="`cells` must be one of"):
        Rule(cells="all")
