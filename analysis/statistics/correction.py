"""p-values of the rows of a target: one set of permutations for all measures, corrected for their number."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.evidence import Block, Evidence, Settings
from analysis.statistics.max_t import PValues, Seen, step_down
from analysis.statistics.orders import Orders, number_of_orders
from analysis.statistics.resampling import MINIMUM, holm
from analysis.statistics.strata import Strata

Found = dict[str, np.ndarray]  # a column each, of one row a measure


@dataclass
class Family:
    """All measures of one target.

    Attributes:
        measures: Their names, in order.
        candidates: Which of them are corrected for.
        everyone: The configurations in which the target is finite: those that are permuted.
        methods: The method of each configuration, as a number.
        cells: Its cell.
        orders: Orders made so far, shared by all targets, by the cells of the configurations.
        blocks: The blocks with the target: the block, the target's place in it, and for each coefficient which of its
            measures change places inside methods alone.
    """

    measures: list[str]
    candidates: Bool[np.ndarray, " m"]
    everyone: Bool[np.ndarray, " c"]
    methods: Int[np.ndarray, " c"]
    cells: Int[np.ndarray, " c"]
    orders: dict[bytes, Orders]
    blocks: list[tuple[Block, int, Bool[np.ndarray, "k m"]]] = field(default_factory=list)

    def p_values(self, settings: Settings) -> tuple[dict[str, Found], Found]:
        """Columns p, p_adjusted, p_floor: those of each pooled coefficient, and the stratified ones."""
        n = int(self.everyone.sum())
        if not settings.permutations or n < MINIMUM:
            return {name: self._none() for name in COEFFICIENTS}, self._none()
        free, cells = self._shared(np.zeros(n, dtype=np.int64), settings), self.cells[self.everyone]
        pooled = {name: self._found(name, self._pooled(k), free, settings) for k, name in enumerate(COEFFICIENTS)}
        tested = self._stratified()
        inside = self._shared(cells, settings) if tested else free
        return pooled, self._found("kendall", tested, inside, settings, cells)

    def _shared(self, cells: Int[np.ndarray, " n"], settings: Settings) -> Orders:
        """Permutations inside cells."""
        key = np.unique(cells, return_inverse=True)[1].tobytes()
        if key not in self.orders:
            self.orders[key] = settings.orders(cells)
        return self.orders[key]

    def _none(self) -> Found:
        return {name: np.full(len(self.measures), np.nan) for name in ("p", "p_adjusted", "p_floor")}

    def _tested(self, block: Block, j: int, rows: Bool[np.ndarray, " m"], labels: np.ndarray | None) -> list[Seen]:
        """Some measures of a block, if there are any; the target itself is none of them."""
        rows = rows & np.array([name != block.targets[j] for name in block.measures])
        if not rows.any():
            return []
        places = np.array([self.measures.index(name) for name, own in zip(block.measures, rows, strict=True) if own])
        groups = None if labels is None else labels[block.used]
        return [Seen(places, block.x[rows], block.y[j], block.used[self.everyone], groups)]

    def _pooled(self, k: int) -> list[Seen]:
        found = []
        for block, j, inside in self.blocks:
            if block.n >= MINIMUM:
                found += self._tested(block, j, ~inside[k], None)
                found += self._tested(block, j, inside[k], self.methods)
        return found

    def _stratified(self) -> list[Seen]:
        found = []
        for block, j, inside in self.blocks:
            if Strata.of(self.cells[block.used]).n >= MINIMUM:
                found += self._tested(block, j, np.ones(inside.shape[1], dtype=bool), self.cells)
        return found

    def _found(
        self, name: str, tested: Sequence[Seen], orders: Orders, settings: Settings,
        cells: Int[np.ndarray, " n"] | None = None,
    ) -> Found:  # fmt: skip
        found = self._none()
        if not tested:
            return found
        values: PValues = step_down(name, tested, orders, candidates=self.candidates, cells=cells)
        found["p"] = values.p
        found["p_adjusted"] = values.adjusted
        if settings.correction == "holm":
            found["p_adjusted"] = holm(np.where(self.candidates, values.p, np.nan))
        for each in tested:
            if cells is not None:
                sizes = [len(g) for g in Strata.of(cells[each.used]).groups]
            else:
                sizes = [len(each.y)] if each.groups is None else np.bincount(each.groups).tolist()
            found["p_floor"][each.places] = max(orders.floor, 1 / number_of_orders(sizes))
        found["p_floor"][np.isnan(found["p"])] = np.nan
        return found


def families(evidence: Evidence, measures: list[str]) -> dict[str, Family]:
    """An empty family for each target."""
    data = evidence.data
    candidates = np.array([name not in evidence.baselines for name in measures])
    methods = np.unique(np.array(data.methods), return_inverse=True)[1]
    found: dict[str, Family] = {}
    orders: dict[bytes, Orders] = {}
    for target in evidence.targets:
        runs = np.isfinite(data.values[target].to_numpy(dtype=np.float64))
        everyone = np.bincount(data.configuration[runs], minlength=len(data.methods)) > 0
        found[target] = Family(measures, candidates, everyone, methods, data.cells, orders)
    return found
