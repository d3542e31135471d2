"""A grid of configurations: its axes, and the pairs of configurations that differ in one of them alone.

A cell of an axis is a set of configurations that agree in every other hyper-parameter. Grids may be incomplete: cells
with a single configuration give no pair, and how many do is counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.statistics.arguments import one_of

WEIGHTS = ("equal", "pairs")


@dataclass(frozen=True)
class AxisPairs:
    """The pairs of units that differ in one hyper-parameter alone.

    Attributes:
        name: The hyper-parameter.
        first: Index of one unit of each pair.
        second: Index of the other.
        cell: Number of the pair's cell.
        eligible: Cells with two or more units.
        total: All cells.
    """

    name: str
    first: Int[np.ndarray, " q"]
    second: Int[np.ndarray, " q"]
    cell: Int[np.ndarray, " q"]
    eligible: int
    total: int

    def weights(self, rule: str) -> Float[np.ndarray, " q"]:
        """One weight a pair, summing to 1: the same for each cell ("equal") or for each pair ("pairs").

        Raises:
            ValueError: If the rule is unknown.
        """
        one_of("weights", rule, WEIGHTS)
        if not len(self.cell):
            return np.zeros(0)
        if rule == "pairs":
            return np.full(len(self.cell), 1.0 / len(self.cell))
        share: Float[np.ndarray, " q"] = 1.0 / (np.bincount(self.cell)[self.cell] * self.eligible)
        return share


def levels(coordinates: Mapping[str, Sequence[Any]]) -> tuple[list[str], Int[np.ndarray, "k n"]]:
    """Names of the hyper-parameters and, for each, a number for each unit's level; a missing value is a level too.

    Raises:
        ValueError: If there is no hyper-parameter, or they differ in length.
    """
    lengths = {name: len(values) for name, values in coordinates.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"`coordinates` must hold one value a unit for each hyper-parameter, got lengths {lengths}.")
    codes = [
        pd.factorize(np.array([_plain(v) for v in values], dtype=object), sort=False)[0]
        for values in coordinates.values()
    ]
    return list(lengths), np.array(codes, dtype=np.int64)


def _plain(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else repr(value)


def joint(codes: Int[np.ndarray, "k n"]) -> Int[np.ndarray, " n"]:
    """One number for each distinct column."""
    if not len(codes):
        return np.zeros(codes.shape[1], dtype=np.int64)
    return np.unique(codes, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def axis_pairs(names: Sequence[str], codes: Int[np.ndarray, "k n"], *, fixed: Iterable[str] = ()) -> list[AxisPairs]:
    """The pairs of each axis; hyper-parameters in `fixed` (such as the seed) are coordinates but never axes."""
    found = []
    left_out = set(fixed)
    for k, name in enumerate(names):
        if name in left_out:
            continue
        cell = joint(np.delete(codes, k, axis=0))
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        first, second, label, eligible = [], [], [], 0
        for number, members in enumerate(np.split(order, starts[1:])):
            i, j = np.triu_indices(len(members), 1)
            i, j = members[i], members[j]
            apart = codes[k, i] != codes[k, j]  # repeats of one configuration are no pair
            if apart.any():
                eligible += 1
                first.append(i[apart])
                second.append(j[apart])
                label.append(np.full(int(apart.sum()), number))
        none = np.zeros(0, dtype=np.int64)
        one, other, cells = (np.concatenate(a) if a else none for a in (first, second, label))
        found.append(AxisPairs(name, one, other, cells, eligible, len(starts)))
    return found
