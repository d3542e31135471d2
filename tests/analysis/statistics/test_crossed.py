"""Orders of complete cells, methods and variants, against all permutations of a small table."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.crossed import Crossed
from analysis.statistics.orders import free_orders

# (cell, method, setting) of each configuration: two methods of two settings, one of one; the last cell lacks one.
TABLE = [(c, m, s) for c in range(3) for m, s in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)) if (c, m, s) != (2, 1, 1)]
CELLS, METHODS, VARIANTS = (np.array(v) for v in zip(*((c, m, 10 * m + s) for c, m, s in TABLE), strict=True))


def allowed(*, cells, blocks, counted=tuple(range(14))):
    """All orders that carry rows to rows and columns to columns onto configurations that are there, by hand."""
    names = {(CELLS[i], VARIANTS[i]): i for i in counted}
    rows, columns = sorted({c for c, _ in names}), sorted({v for _, v in names})
    found = set()
    for turned in itertools.permutations(rows) if cells else [rows]:
        for moved in itertools.permutations(columns):
            to_row, to_column = dict(zip(rows, turned, strict=True)), dict(zip(columns, moved, strict=True))
            # What stands in the same cells may change places, so the table of what is there must not change.
            if any(to_column[v] // 10 != to_column[w] // 10
                   for v, w in itertools.combinations(columns, 2) if blocks and v // 10 == w // 10):  # fmt: skip
                continue
            carried = {at: (to_row[at[0]], to_column[at[1]]) for at in names}
            if any(at not in names for at in carried.values()):
                continue
            order = list(range(len(TABLE)))
            for at, i in names.items():
                order[i] = names[carried[at]]
            found.add(tuple(order))
    return found


@pytest.mark.parametrize("cells", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
def test_all_orders_of_a_table_with_a_hole(cells, blocks):
    whole = Crossed.of(CELLS, VARIANTS, methods=METHODS if blocks else None, move_cells=cells)
    orders = whole.every()
    assert whole.number == len(orders) == len(set(map(tuple, orders)))
    assert set(map(tuple, orders.tolist())) == allowed(cells=cells, blocks=blocks)


@pytest.mark.parametrize("blocks", [False, True])
def test_what_does_not_count_stays(blocks):
    counted = CELLS < 2
    whole = Crossed.of(CELLS, VARIANTS, methods=METHODS if blocks else None, counted=counted, move_cells=True)
    assert set(map(tuple, whole.every().tolist())) == allowed(
        cells=True, blocks=blocks, counted=np.flatnonzero(counted)
    )
    assert whole.number == (2 * 2 * 4 if blocks else 2 * 120)


def test_random_orders_are_uniform_over_all():
    whole = Crossed.of(CELLS, VARIANTS, methods=METHODS, counted=CELLS < 2, move_cells=True)
    drawn = whole.drawn(free_orders(len(TABLE), count=8000, generator=np.random.default_rng(0)))
    seen, times = np.unique(drawn, axis=0, return_counts=True)
    assert set(map(tuple, seen.tolist())) == set(map(tuple, whole.every().tolist()))
    assert stats.chisquare(times).pvalue > 0.001


def test_nothing_moves_where_nothing_is_alike():
    assert Crossed.of(np.arange(4), np.arange(4)).number == 1
    assert Crossed.of(np.arange(4), np.zeros(4, dtype=int), move_cells=True).number == 24
    none = np.zeros(3, dtype=bool)
    assert Crossed.of(np.arange(3), np.arange(3), counted=none).every().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("seed", range(60))
def test_all_orders_of_any_table_are_a_group(seed):
    """Blocks of equal patterns need not have them in one order: permutations all, closed, none twice."""
    rng = np.random.default_rng(seed)
    cell, block, setting = (v.ravel() for v in np.indices(rng.integers(1, (4, 4, 3))))
    there = rng.random(len(cell)) < 0.6
    if seed == 0:  # the second method has its settings in cells (0, 1, 2) and (0, 1), the first the other way round
        cell, block = np.array([0, 1, 0, 1, 2, 0, 1, 2, 0, 1]), np.array([0] * 5 + [1] * 5)
        setting, there = np.array([0, 0, 1, 1, 1, 0, 0, 0, 1, 1]), np.ones(10, dtype=bool)
    cell, block, setting = cell[there], block[there], setting[there]
    whole = Crossed.of(cell, 10 * block + setting, methods=block, move_cells=bool(rng.integers(2)))
    orders = whole.every()
    assert (np.sort(orders, axis=1) == np.arange(len(cell))).all()
    known = set(map(tuple, orders.tolist()))
    assert len(known) == len(orders) == whole.number
    one = orders[rng.integers(len(orders))]
    assert set(map(tuple, orders[:, one].tolist())) == known
