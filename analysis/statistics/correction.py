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
from analysis.style import FAMILIES, family

KINDS = tuple(FAMILIES)
Found = dict[str, np.ndarray]  # a column each, of one row a measure, or a family


@dataclass(frozen=True)
class Part:
    """A block with the target in it.

    Attributes:
        block: Measures and targets.
        j: The target's place among them.
        inside: For each coefficient, which of the measures change places inside methods alone.
        whole: Which of them are tested over variants of methods besides.
    """

    block: Block
    j: int
    inside: Bool[np.ndarray, "k m"]
    whole: Bool[np.ndarray, " m"]


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

    def p_values(self, settings: Settings) -> tuple[dict[str, Found], Found, Found, Found]:
        """Columns p, p_adjusted, p_floor pooled (of each coefficient), stratified and over variants, and the best.

        Those of families are `strongest`, `best_of_k_p` and the same stratified: of tau_b, for each of `FAMILIES`.
        """
        n = int(self.everyone.sum())
        free, cells = self._shared(np.zeros(n, dtype=np.int64), settings), self.cells[self.everyone]
        pooled = [self._found(name, self._pooled(k), free, settings) for k, name in enumerate(COEFFICIENTS)]
        stratified, best = self._found("kendall", self._stratified(), self._shared(cells, settings), settings, cells)
        variants, _ = self._found("kendall", self._over_variants(), free, settings, cells)
        best = pooled[0][1] | {f"{name}_stratified": values for name, values in best.items()}
        return {name: found for name, (found, _) in zip(COEFFICIENTS, pooled, strict=True)}, stratified, variants, best

    def _shared(self, cells: Int[np.ndarray, " n"], settings: Settings) -> Orders:
        """Permutations inside cells."""
        key = np.unique(cells, return_inverse=True)[1].tobytes()
        if key not in self.orders:
            self.orders[key] = settings.orders(cells)
        return self.orders[key]

    def _tested(
        self, part: Part, rows: Bool[np.ndarray, " m"], labels: np.ndarray | None, variants: np.ndarray | None = None
    ) -> list[Seen]:
        """Some measures of a block, if there are any; the target itself is none of them."""
        block = part.block
        rows = rows & np.array([name != block.targets[part.j] for name in block.measures])
        if not rows.any():
            return []
        places = np.array([self.measures.index(name) for name, own in zip(block.measures, rows, strict=True) if own])
        groups = None if labels is None else labels[block.used]
        variants = None if variants is None else variants[self.everyone]
        return [Seen(places, block.x[rows], block.y[part.j], block.used[self.everyone], groups, variants)]

    def _pooled(self, k: int) -> list[Seen]:
        found = []
        for part in self.parts:
            if part.block.n >= MINIMUM:
                found += self._tested(part, ~part.inside[k], None)
                found += self._tested(part, part.inside[k], self.methods)
        return found

    def _stratified(self) -> list[Seen]:
        found = []
        for part in self._in_cells():
            found += self._tested(part, np.ones_like(part.whole), self.cells)
        return found

    def _over_variants(self) -> list[Seen]:
        found = []
        for part in self._in_cells():
            found += self._tested(part, part.whole, None, self.variants)
        return found

    def _in_cells(self) -> list[Part]:
        return [part for part in self.parts if Strata.of(self.cells[part.block.used]).n >= MINIMUM]

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
            found["p_floor"][each.places] = max(orders.floor, 1 / number_of_orders(_sizes(each, cells)))
        found["p_floor"][np.isnan(found["p"])] = np.nan
        strongest = np.array([self.measures[place] if place >= 0 else "" for place in values.strongest], dtype=object)
        return found, {"strongest": strongest, "best_of_k_p": values.best}


def _sizes(tested: Seen, cells: Int[np.ndarray, " n"] | None) -> list[int]:
    """How many of what change places with one another."""
    if cells is None:
        return [len(tested.y)] if tested.groups is None else np.bincount(tested.groups).tolist()
    groups = Strata.of(cells[tested.used]).groups
    if tested.variants is None:
        return [len(g) for g in groups]
    return [len(np.unique(tested.variants[tested.used][np.concatenate(groups)]))]


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
