"""p-values of the rows of a target: one set of permutations for all measures, corrected for their number."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.crossed import Crossed
from analysis.statistics.evidence import Block, Evidence, Settings
from analysis.statistics.exchangeability import (
    COMPLETE_CELLS,
    COMPLETE_METHODS,
    COMPLETE_VARIANTS,
    FREELY,
    INSIDE_CELLS,
    INSIDE_METHODS,
    POOLED,
    STRATIFIED,
    recurring,
)
from analysis.statistics.max_t import PValues, Seen, step_down
from analysis.statistics.orders import Orders
from analysis.statistics.resampling import MINIMUM, holm
from analysis.statistics.strata import Strata
from analysis.style import FAMILIES, family

KINDS = tuple(FAMILIES)
Found = dict[str, np.ndarray]  # a column each, of one row a measure, or a family


@dataclass(frozen=True)
class Part:
    """A block with the target in it.

    Attributes:
        block: Measures and targets.
        j: The target's place among them.
        moved: For each coefficient and measure what changes places, as a place in `exchangeability.POOLED`.
        stratified: Likewise for stratified tau_b, as a place in `exchangeability.STRATIFIED`.
    """

    block: Block
    j: int
    moved: Int[np.ndarray, "k m"]
    stratified: Int[np.ndarray, " m"]


@dataclass
class Family:
    """All measures of one target.

    Attributes:
        measures: Their names, in order.
        candidates: Which of them are corrected for.
        kinds: The place in `FAMILIES` of the family of each.
        everyone: The configurations in which the target is finite: those that are permuted.
        methods: The method of each configuration, as a number.
        cells: Its cell.
        variants: Its variant of a method.
        orders: Orders made so far, shared by all targets, by the cells of the configurations.
        parts: The measures in blocks.
    """

    measures: list[str]
    candidates: Bool[np.ndarray, " m"]
    kinds: Int[np.ndarray, " m"]
    everyone: Bool[np.ndarray, " c"]
    methods: Int[np.ndarray, " c"]
    cells: Int[np.ndarray, " c"]
    variants: Int[np.ndarray, " c"]
    orders: dict[bytes, Orders]
    parts: list[Part] = field(default_factory=list)

    def p_values(self, settings: Settings) -> tuple[dict[str, Found], Found, Found]:
        """Columns p, p_adjusted, p_floor pooled (of each coefficient) and stratified, and the best of each family.

        Those of families are `strongest`, `best_of_k_p` and the same stratified: of tau_b, for each of `FAMILIES`.
        """
        n = int(self.everyone.sum())
        free, cells = self._shared(np.zeros(n, dtype=np.int64), settings), self.cells[self.everyone]
        pooled = [self._found(name, self._pooled(k), free, settings) for k, name in enumerate(COEFFICIENTS)]
        tested = self._stratified()
        whole = any(each.whole is not None for each in tested)
        orders = free if whole else self._shared(cells, settings)
        stratified, best = self._found("kendall", tested, orders, settings, cells)
        best = pooled[0][1] | {f"{name}_stratified": values for name, values in best.items()}
        return {name: found for name, (found, _) in zip(COEFFICIENTS, pooled, strict=True)}, stratified, best

    def _shared(self, cells: Int[np.ndarray, " n"], settings: Settings) -> Orders:
        """Permutations inside cells."""
        key = np.unique(cells, return_inverse=True)[1].tobytes()
        if key not in self.orders:
            self.orders[key] = settings.orders(cells)
        return self.orders[key]

    def _tested(
        self, part: Part, rows: Bool[np.ndarray, " m"], labels: np.ndarray | None, whole: Crossed | None = None
    ) -> list[Seen]:
        """Some measures of a block, if there are any; the target itself is none, and nothing where nothing can move."""
        block = part.block
        rows = rows & np.array([name != block.targets[part.j] for name in block.measures])
        if not rows.any():
            return []
        places = np.array([self.measures.index(name) for name, own in zip(block.measures, rows, strict=True) if own])
        groups = None if labels is None else np.unique(labels, return_inverse=True)[1]
        seen = Seen(places, block.x[rows], block.y[part.j], block.used[self.everyone], groups, whole)
        return [seen] if seen.number > 1 else []

    def _pooled(self, k: int) -> list[Seen]:
        found = []
        for part in self.parts:
            if part.block.n < MINIMUM:
                continue
            used, moved = part.block.used, part.moved[k]
            found += self._tested(part, moved == POOLED.index(FREELY), None)
            found += self._tested(part, moved == POOLED.index(INSIDE_METHODS), self.methods[used])
            if (moved == POOLED.index(COMPLETE_CELLS)).any():
                blocks = self.methods[used] if recurring(self._strata(part), self.methods[used]) else None
                whole = Crossed.of(self.cells[used], self.variants[used], methods=blocks, move_cells=True)
                found += self._tested(part, moved == POOLED.index(COMPLETE_CELLS), None, whole)
        return found

    def _stratified(self) -> list[Seen]:
        found = []
        for part in self.parts:
            strata, used = self._strata(part), part.block.used
            if strata.n < MINIMUM:
                continue
            counted = np.isin(np.arange(part.block.n), np.concatenate(strata.groups))
            alone = np.where(counted, self.cells[used], self.cells.max() + 1 + np.arange(part.block.n))
            found += self._tested(part, part.stratified == STRATIFIED.index(INSIDE_CELLS), alone)
            for way, methods in ((COMPLETE_VARIANTS, None), (COMPLETE_METHODS, self.methods[used])):
                if (rows := part.stratified == STRATIFIED.index(way)).any():
                    whole = Crossed.of(self.cells[used], self.variants[used], methods=methods, counted=counted)
                    found += self._tested(part, rows, None, whole)
        return found

    def _strata(self, part: Part) -> Strata:
        return Strata.of(self.cells[part.block.used], self.variants[part.block.used])

    def _found(
        self, name: str, tested: Sequence[Seen], orders: Orders, settings: Settings,
        cells: Int[np.ndarray, " n"] | None = None,
    ) -> tuple[Found, Found]:  # fmt: skip
        found = {column: np.full(len(self.measures), np.nan) for column in ("p", "p_adjusted", "p_floor")}
        values: PValues = step_down(
            name, tested, orders, candidates=self.candidates, cells=cells, family=self.kinds, families=len(KINDS)
        )
        found["p"], found["p_adjusted"] = values.p, values.adjusted
        if settings.correction == "holm":
            found["p_adjusted"] = holm(np.where(self.candidates, values.p, np.nan))
        for each in tested:
            found["p_floor"][each.places] = max(orders.floor, 1 / each.number)
        found["p_floor"][np.isnan(found["p"])] = np.nan
        strongest = np.array([self.measures[place] if place >= 0 else "" for place in values.strongest], dtype=object)
        return found, {"strongest": strongest, "best_of_k_p": values.best}


def families(evidence: Evidence, measures: list[str]) -> dict[str, Family]:
    """An empty family for each target."""
    data = evidence.data
    candidates = np.array([name not in evidence.baselines for name in measures])
    kinds = np.array([KINDS.index(family(name)) for name in measures])
    methods = np.unique(np.array(data.methods), return_inverse=True)[1]
    found: dict[str, Family] = {}
    orders: dict[bytes, Orders] = {}
    for target in evidence.targets:
        runs = np.isfinite(data.values[target].to_numpy(dtype=np.float64))
        everyone = np.bincount(data.configuration[runs], minlength=len(data.methods)) > 0
        found[target] = Family(measures, candidates, kinds, everyone, methods, data.cells, data.variants, orders)
    return found
