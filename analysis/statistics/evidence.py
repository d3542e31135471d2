"""What tables of statistics are made of: sorted runs, measures and targets in blocks, the settings of resampling."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analysis.statistics.grid import levels
from analysis.statistics.orders import Orders, orders_inside
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, bootstrap_counts
from analysis.statistics.units import MAXIMUM_LEVELS, Units

ALL, NO_GRID = "all", "no two configurations differ in one hyper-parameter alone"
SLOW_PERMUTATIONS = 999

Rows = list[tuple[Any, ...]]  # of a table: the values of its columns, in order


@dataclass(frozen=True)
class Settings:
    """What decides the resampling.

    Attributes:
        draws: Bootstrap resamples; 0 for no intervals.
        permutations: Random permutations; 0 for no p-values.
        level: Coverage of the intervals.
        seed: Of all randomness.
        interval: Kind of interval of the correlations.
        representatives: For a family of measures, the one that stands for it; the usual one where none is named.
        oriented: Which sign a measure is to have for sign errors: the "pooled" one, or the "expected" one.
        correction: Of p-values for the number of measures: "max-T" or "holm".
    """

    draws: int
    permutations: int
    level: float
    seed: int
    interval: str = "stabilised"
    representatives: Mapping[str, str] = field(default_factory=dict)
    oriented: str = "pooled"
    correction: str = "max-T"

    def generator(self, *stream: int) -> np.random.Generator:
        """Random numbers that depend on the seed and the stream alone."""
        return np.random.default_rng([self.seed, *stream])

    def counts(self, n: int, method: int = -1) -> Int[np.ndarray, "d n"]:
        """Resamples of n configurations, the same for all measures on as many."""
        return bootstrap_counts(n, draws=self.draws, generator=self.generator(1, n, method + 1))

    def counts_in_cell(self, n: int, cell: int) -> Int[np.ndarray, "d n"]:
        """Resamples of the n configurations of a cell."""
        return bootstrap_counts(n, draws=self.draws, generator=self.generator(4, n, cell))

    def orders(self, cells: Int[np.ndarray, " n"]) -> Orders:
        """Permutations of configurations inside their cells; with one cell, of all."""
        return orders_inside(cells, count=self.permutations, generator=self.generator(2, len(cells)))


@dataclass(frozen=True)
class Block:
    """Measures and targets that are finite in the same runs, averaged over the seeds.

    Attributes:
        measures: Their names, the rows of x.
        targets: Theirs, the rows of y.
        x: Averages.
        y: Averages.
        used: Which configurations those are.
        runs: Which runs they come from.
    """

    measures: list[str]
    targets: list[str]
    x: Float[np.ndarray, "m n"]
    y: Float[np.ndarray, "t n"]
    used: Bool[np.ndarray, " c"]
    runs: Bool[np.ndarray, " r"]

    @property
    def shape(self) -> tuple[int, int]:
        """Measures and targets."""
        return len(self.x), len(self.y)

    @property
    def n(self) -> int:
        """Configurations."""
        return int(self.x.shape[1])

    @property
    def still(self) -> Bool[np.ndarray, "m t"]:
        """Where the measure or the target is constant."""
        x, y = self._constant
        return np.asarray(x[:, None] | y[None])

    @cached_property
    def _constant(self) -> tuple[Bool[np.ndarray, " m"], Bool[np.ndarray, " t"]]:
        """Which measures and which targets are constant."""
        x, y = (np.array([constant(row) for row in rows], dtype=bool) for rows in (self.x, self.y))
        return x, y

    def pairs(self) -> Iterator[tuple[int, int, str, str]]:
        """Places and names of every measure and target; nothing is related to itself."""
        for i, measure in enumerate(self.measures):
            for j, target in enumerate(self.targets):
                if measure != target:
                    yield i, j, measure, target

    def remarks(self, i: int, j: int) -> list[str]:
        """What holds for a measure and a target whatever the statistic."""
        if self.n == 0:
            return [f"no run in which both are finite; {NO_CLAIM}"]
        x, y = self._constant
        still = ["constant measure"] * bool(x[i]) + ["constant target"] * bool(y[j])
        return still + [NO_CLAIM] * (self.n < MINIMUM)

    def rows(self, *values: Any, remarks: Sequence[Any]) -> Rows:
        """A row a pair: names, its entry of each array of values (or the value itself), and likewise of the remarks."""

        def entries(given: Sequence[Any], i: int, j: int) -> list[Any]:
            return [v[i, j] if isinstance(v, np.ndarray) else v for v in given]

        return [
            (measure, target, *entries(values, i, j), joined(*self.remarks(i, j), *entries(remarks, i, j)))
            for i, j, measure, target in self.pairs()
        ]


@dataclass(frozen=True)
class Evidence:
    """What tables are made of.

    Attributes:
        data: The sorted runs.
        measures: Variants that may explain.
        targets: Variants to be explained.
        settings: Of resampling.
        correlations: The table of correlations.
        strongest: For each target and family of measures, the strongest and its p-value, pooled and stratified.
        controls: Names of what is held fixed in partial correlations; None for the usual.
        baselines: Variants that the measures are judged against (errors, losses, ...), whether or not asked for.
    """

    data: Units
    measures: list[str]
    targets: list[str]
    settings: Settings
    correlations: pd.DataFrame = field(default_factory=pd.DataFrame)
    strongest: pd.DataFrame = field(default_factory=pd.DataFrame)
    controls: Sequence[str] | None = None
    baselines: Sequence[str] = ()

    def blocks(self, measures: Sequence[str] | None = None, targets: Sequence[str] | None = None) -> Iterator[Block]:
        """The measures and targets, or some of them, in blocks."""
        for xs, ys, runs in self.data.blocks(
            self.measures if measures is None else measures, self.targets if targets is None else targets
        ):
            yield self.block(xs, ys, runs)

    def block(
        self,
        measures: list[str],
        targets: list[str],
        runs: Bool[np.ndarray, " r"],
        also: Bool[np.ndarray, " c"] | None = None,
    ) -> Block:
        """The averages of measures and targets over some runs, of the configurations in which `also` holds too."""
        x, y = self.data.average(measures, runs), self.data.average(targets, runs)
        used = np.isfinite(x[0]) & np.isfinite(y[0])
        used = used if also is None else used & also
        return Block(measures, targets, x[:, used], y[:, used], used, runs)

    def grid(self) -> tuple[list[str], Int[np.ndarray, "k c"], str]:
        """The axes, their levels, and what was left out."""
        coordinates, many = self.data.coordinates()
        note = f"no axes, more than {MAXIMUM_LEVELS} levels: {', '.join(many)}" if many else ""
        if not coordinates:
            return [], np.zeros((0, len(self.data.methods)), dtype=np.int64), note
        return (*levels(coordinates), note)


def constant(x: Float[np.ndarray, " n"]) -> bool:
    """Whether all values are the same; of none, yes."""
    return not len(x) or bool((x == x[0]).all())


def joined(*notes: str) -> str:
    """Remarks in one text."""
    return "; ".join(n for n in notes if n)
