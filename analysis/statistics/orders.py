"""Orders of configurations that all measures share: free, or inside groups such as cells or methods.

A test of many measures at once needs the same permutations for all of them. Measures that are missing for some
configurations take the order in which the others come (`Orders.of`), what is permuted inside groups takes the order of
each group's own, and complete cells, methods or variants (`crossed`) are shuffled by the same ones. So one set of
permutations serves all, and what a row sees depends on the seed and the number of configurations alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int

from analysis.statistics.kendall import EXACT_LIMIT
from analysis.statistics.resampling import permutation_orders

MANY, FEW = 100_000, 10_000  # permutations for up to `EXACT_LIMIT` configurations, and for more


def usual_permutations(n: int) -> int:
    """How many permutations are taken for n configurations where no number is given: a rule of n alone."""
    return MANY if n <= EXACT_LIMIT else FEW


class Drawn(Protocol):
    """What draws an order of its own from each permutation, as `crossed.Crossed` does."""

    @property
    def key(self) -> bytes:
        """What tells it from others."""

    def drawn(self, orders: "Orders") -> Int[np.ndarray, "b k"]:
        """One order for each permutation."""

    def every(self) -> Int[np.ndarray, "b k"]:
        """All orders there are."""


@dataclass(frozen=True)
class Orders:
    """Permutations of all configurations.

    Attributes:
        base: One a row.
        exact: Whether they are all there are, so that shares are exact.
    """

    base: Int[np.ndarray, "b n"]
    exact: bool
    _made: dict[tuple[bytes, bytes], np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.base)

    @property
    def floor(self) -> float:
        """The smallest p-value that they can give."""
        return 1 / (self.number if self.exact else self.number + 1)

    def share(self, count: float | np.ndarray) -> float | np.ndarray:
        """The p-value of a statistic that `count` of the permutations reach.

        #/b where all were enumerated, else (1 + #)/(1 + b): the observed order counts as one. NaN without any.

        Source:
            Phipson and Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9(1).
        """
        if not self.number:
            return count * math.nan
        return count / self.number if self.exact else (1 + count) / (1 + self.number)

    def of(self, used: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " k"] | None = None) -> Int[np.ndarray, "b k"]:
        """The order in which the configurations that are used come, as places among them; made once, and kept.

        Args:
            used: Which of all they are.
            groups: The label of the group of each one used, inside which alone it moves; None for free orders. Uniform
                orders of all are uniform orders of every subset, and inside groups independent of each other.
        """
        if groups is None and used.all():
            return self.base
        labels = np.zeros(int(used.sum()), dtype=np.int64) if groups is None else groups
        key = used.tobytes(), labels.tobytes()
        if key not in self._made:
            self._made[key] = self._moved(used, labels)
        return self._made[key]

    def kept(self, crossed: "Drawn", *, every: bool = False) -> Int[np.ndarray, "b k"]:
        """Random orders of a table of cells and variants, or all of them; made once, and kept."""
        key = crossed.key, b"every" * every
        if key not in self._made:
            self._made[key] = crossed.every() if every else crossed.drawn(self)
        return self._made[key]

    def shuffled(self, labels: Int[np.ndarray, " k"], turn: int) -> Int[np.ndarray, "b k"]:
        """Orders of k things, no more than there are configurations, that change places with those of their label.

        Args:
            labels: The label of each.
            turn: Orders of another turn are read from another permutation each, so that they are independent.
        """
        used = np.arange(self.base.shape[1]) < len(labels)
        return Orders(np.roll(self.base, turn, axis=0), self.exact).of(used, labels)

    def _moved(self, used: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " k"]) -> Int[np.ndarray, "b k"]:
        place = np.cumsum(used).astype(self.base.dtype) - 1  # wraps where unused, and is not read there
        found = np.empty((self.number, len(labels)), dtype=self.base.dtype)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            is_member = np.zeros(self.base.shape[1], dtype=bool)
            is_member[np.flatnonzero(used)[members]] = True
            found[:, members] = place[self.base[is_member[self.base]]].reshape(self.number, len(members))
        return found


def free_orders(n: int, *, count: int, generator: np.random.Generator) -> Orders:
    """`count` random orders of n configurations, or each one once where there are no more in all."""
    base, exact = permutation_orders(n, count=count, generator=generator)
    return Orders(base.astype(np.min_scalar_type(max(n, 1))), exact)


def orders_inside(groups: Int[np.ndarray, " n"], *, count: int, generator: np.random.Generator) -> Orders:
    """Likewise orders in which configurations change places inside their groups alone."""
    members = [np.flatnonzero(groups == label) for label in np.unique(groups)]
    if not members:
        return Orders(np.zeros((1, 0), dtype=np.uint8), exact=True)
    if number_of_orders(map(len, members)) <= count:
        base = np.tile(np.arange(len(groups)), (math.prod(math.factorial(len(m)) for m in members), 1))
        each = product(*(permutations(m.tolist()) for m in members))
        base[:, np.concatenate(members)] = [[place for part in parts for place in part] for parts in each]
        return Orders(base.astype(np.min_scalar_type(len(groups))), exact=True)
    free = free_orders(len(groups), count=count, generator=generator)
    return Orders(free.of(np.ones(len(groups), dtype=bool), groups), exact=False)


def number_of_orders(sizes: Iterable[int]) -> float:
    """In how many orders groups of these sizes come, each inside itself; infinite where it is beyond counting."""
    log = sum(math.lgamma(size + 1) for size in sizes)
    return round(math.exp(log)) if log < 30 else math.inf
