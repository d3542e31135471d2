"""Orders in which complete cells, complete methods and complete variants of methods change places, in all cells alike.

Configurations make a table, cells of equal hyper-parameters by variants of methods. Where cells, methods or variants
have effects of their own, single configurations are not exchangeable, but rows and columns of that table are: a
permutation of the rows and one of the columns keep together what belongs together. Only what stands in the same cells
(or has the same variants) changes places, so that each configuration finds another one where it comes to.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Int

from analysis.statistics.orders import Orders, number_of_orders, orders_inside


@dataclass(frozen=True)
class Crossed:
    """A table of configurations, and which of its rows and columns may change places.

    Attributes:
        at: The configuration in each cell with each variant; -1 where there is none.
        row: The cell of each configuration; -1 for one that stays where it is.
        column: Its variant.
        rows: The class of each cell, inside which it may move.
        columns: Likewise of each variant.
        block: The block (the method) of each variant; the columns of a block stay together.
        blocks: The class of each block.
    """

    at: Int[np.ndarray, "c v"]
    row: Int[np.ndarray, " n"]
    column: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " c"]
    columns: Int[np.ndarray, " v"]
    block: Int[np.ndarray, " v"]
    blocks: Int[np.ndarray, " b"]

    @classmethod
    def of(
        cls,
        cells: Int[np.ndarray, " n"],
        variants: Int[np.ndarray, " n"],
        *,
        methods: Int[np.ndarray, " n"] | None = None,
        counted: Bool[np.ndarray, " n"] | None = None,
        move_cells: bool = False,
    ) -> "Crossed":
        """The table of n configurations.

        Args:
            cells: The cell of each.
            variants: The variant of each; a cell has each variant at most once.
            methods: The method of each, where methods change places with all their settings, and settings inside their
                method; None where all variants change places.
            counted: Which of them move at all; None for all.
            move_cells: Whether cells change places.
        """
        counted = np.ones(len(cells), dtype=bool) if counted is None else counted
        row, column = np.full(len(cells), -1), np.full(len(cells), -1)
        row[counted], column[counted] = _numbered(cells[counted]), _numbered(variants[counted])
        at = np.full((row.max(initial=-1) + 1, column.max(initial=-1) + 1), -1)
        at[row[counted], column[counted]] = np.flatnonzero(counted)
        block = np.zeros(at.shape[1], dtype=np.int64)
        if methods is not None:
            block[column[counted]] = _numbered(methods[counted])
        pattern = _classes(tuple(taken) for taken in (at >= 0).T)
        rows = _classes(tuple(taken) for taken in at >= 0) if move_cells else np.arange(len(at))
        blocks = _classes(tuple(sorted(pattern[block == b])) for b in range(block.max(initial=-1) + 1))
        columns = _numbered(block * len(pattern) + pattern)  # in one order of patterns in every block
        return cls(at, row, column, rows, columns, block, blocks)

    @property
    def number(self) -> float:
        """How many orders there are."""
        return number_of_orders(size for each in self._parts for size in np.bincount(each).tolist())

    @property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.rows, self.columns, self.blocks

    def drawn(self, orders: Orders) -> Int[np.ndarray, "b n"]:
        """One order for each of `orders`: cells, settings and methods are shuffled independently of each other."""
        return self._carried(*(orders.shuffled(each, turn) for turn, each in enumerate(self._parts)))

    def every(self) -> Int[np.ndarray, "b n"]:
        """All orders, the one as it is among them."""
        each = [orders_inside(part, count=math.factorial(20), generator=np.random.default_rng(0)).base
                for part in self._parts]  # fmt: skip
        places = np.array(list(product(*(range(len(part)) for part in each))))
        return self._carried(*(part[place] for part, place in zip(each, places.T, strict=True)))

    def _carried(
        self, rows: Int[np.ndarray, "b c"], columns: Int[np.ndarray, "b v"], blocks: Int[np.ndarray, "b k"]
    ) -> Int[np.ndarray, "b n"]:
        """Which configuration comes to each place, from which cell, setting and method comes there."""
        source = columns.copy()
        members = [np.flatnonzero(self.block == b) for b in range(len(self.blocks))]
        members = [each[np.argsort(self.columns[each], kind="stable")] for each in members]  # by the cells they are in
        for label in np.unique(self.blocks):
            alike = np.flatnonzero(self.blocks == label)
            if len(alike) < 2:
                continue
            stacked = np.stack([members[b] for b in alike])  # the columns of blocks that may change places
            come = stacked[np.searchsorted(alike, blocks[:, alike])]  # (orders, blocks, columns)
            lines = np.arange(len(columns))[:, None]
            for place, own in zip(stacked, come.transpose(1, 0, 2), strict=True):
                source[:, place] = columns[lines, own]
        moving = np.flatnonzero(self.row >= 0)
        dtype = np.min_scalar_type(max(len(self.row), 1))
        found = np.tile(np.arange(len(self.row), dtype=dtype), (len(rows), 1))
        found[:, moving] = self.at[rows[:, self.row[moving]], source[:, self.column[moving]]]
        return found

    @property
    def key(self) -> bytes:
        """What tells one table from another."""
        return b"".join(
            part.tobytes() for part in (self.at, self.row, self.rows, self.columns, self.block, self.blocks)
        )


def _numbered(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Labels as numbers from 0."""
    return np.unique(labels, return_inverse=True)[1]


def _classes(keys: Iterable[tuple[int, ...]]) -> Int[np.ndarray, " k"]:
    """The number of each key, equal ones alike."""
    known: dict[tuple[int, ...], int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
