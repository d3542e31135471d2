"""Permutation p-values of many measures at once, corrected for their number: step-down max-T.

Every statistic is the size of a product of two vectors, one of the measure and one of the target in a given order: the
signs of all pairs (tau_b), of the pairs inside cells (stratified tau_b), ranks (Spearman) or values (Pearson). So a
block of permutations of a whole family of measures is one matrix product.

Where there are more pairs than 100 configurations have, C - D of the data is compared with its linear part over
permutations, the sum of what each configuration's place alone tells of it (Hájek's projection), at the deviation that
C - D has without ties: with 100 it has a correlation of 0.998 with C - D, and with more a higher one. Where complete
cells or variants change places, the linear part of the data is compared with itself, so that the p-value keeps its
level.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.statistics.crossed import Crossed
from analysis.statistics.kendall import EXACT_LIMIT, dense_ranks, pair_sums
from analysis.statistics.orders import Orders, number_of_orders, orders_inside
from analysis.statistics.resampling import mid_ranks, unit_rows
from analysis.statistics.strata import Strata

BLOCK = 1 << 21  # numbers in one array of a block of permutations
EXACT = 1 << 24  # whole numbers below it are exact in single precision
ENUMERATED = 5_000  # orders up to which all are taken for the p-value by itself, whatever the permutations
PAIRS = EXACT_LIMIT * (EXACT_LIMIT - 1) // 2  # above so many the linear part of tau_b is permuted
SLACK = {"kendall": 2e-6, "spearman": 2e-6, "pearson": 1e-9}  # coefficients nearer than that differ by rounding alone


@dataclass(frozen=True)
class Seen:
    """Measures of a target that see the same configurations and the same orders.

    Attributes:
        places: Places of the measures in the family.
        x: The measures, of n configurations.
        y: The target, of the same ones.
        used: Which of all configurations those are.
        groups: Inside which configurations change places; None for freely.
        whole: The table of these configurations in which complete cells or variants change places instead.
    """

    places: Int[np.ndarray, " m"]
    x: Float[np.ndarray, "m n"]
    y: Float[np.ndarray, " n"]
    used: Bool[np.ndarray, " c"]
    groups: Int[np.ndarray, " n"] | None = None
    whole: Crossed | None = None

    @property
    def number(self) -> float:
        """In how many orders its configurations may come."""
        if self.whole is not None:
            return self.whole.number
        return number_of_orders([len(self.y)] if self.groups is None else np.bincount(self.groups).tolist())

    def orders(self, orders: Orders) -> Int[np.ndarray, "b n"]:
        """The orders in which its configurations come."""
        return orders.of(self.used, self.groups) if self.whole is None else orders.kept(self.whole)

    def every(self, orders: Orders) -> Int[np.ndarray, "b n"]:
        """All orders there are."""
        if self.whole is not None:
            return orders.kept(self.whole, every=True)
        groups = np.zeros(len(self.y), dtype=np.int64) if self.groups is None else self.groups
        return orders_inside(groups, count=math.ceil(self.number), generator=np.random.default_rng(0)).base


@dataclass(frozen=True)
class PValues:
    """p-values of a family.

    Attributes:
        p: One by one; NaN where there is no test.
        adjusted: Corrected for the number of candidates; NaN for what is no candidate.
        strongest: For each family the place of the measure with the largest |t|; -1 where none has a test.
        best: Its p, corrected for the choice among its family.
    """

    p: Float[np.ndarray, " k"]
    adjusted: Float[np.ndarray, " k"]
    strongest: Int[np.ndarray, " f"]
    best: Float[np.ndarray, " f"]


def step_down(
    coefficient: str,
    tested: Sequence[Seen],
    orders: Orders,
    *,
    candidates: Bool[np.ndarray, " k"],
    cells: Int[np.ndarray, " c"] | None = None,
    family: Int[np.ndarray, " k"] | None = None,
    families: int = 1,
) -> PValues:
    """Permutation p-values of a family of measures of one target, and the same corrected for their number.

    With |t_1| >= |t_2| >= ... and u_j = max over i >= j of |t_i| in one permutation, the corrected p_j is the share of
    permutations with u_j >= |t_j|, made monotone down the order. The chance of any false claim is at most α, and how
    the measures go together is taken as it is in the permutations.

    t is the coefficient over its standard deviation under permutation without ties. Where all measures see the same
    configurations that is the coefficient. Where not, few configurations, whose coefficients are large by chance, do
    not stand in the way of the others; each p by itself is exact, and the correction is approximate.

    Args:
        coefficient: "kendall", "spearman" or "pearson".
        tested: The measures, those with equal configurations together; a constant one has no test.
        orders: Permutations of all configurations; for `cells` inside these.
        candidates: Which measures are corrected for; the others have a p by itself alone.
        cells: The cell of each of all configurations, for stratified tau_b; None for pooled coefficients.
        family: The number of the family of each measure, for the best of each; None for one of all.
        families: How many there are.

    Source:
        Westfall and Young (1993), Resampling-Based Multiple Testing, algorithm 4.1 (with permutations).
    """
    parts = [_part(coefficient, each, cells) for each in tested]
    observed = np.full(len(candidates), np.nan)
    for part, each in zip(parts, tested, strict=True):
        observed[each.places] = part.observed(len(each.y))
    limits = (observed * (1 - SLACK[coefficient]) - 1e-12).tolist()
    rows = [(at, row, place) for at, each in enumerate(tested) for row, place in enumerate(each.places.tolist())]
    rows = [each for each in rows if np.isfinite(observed[each[2]])]
    rows.sort(key=lambda each: (observed[each[2]], -each[2]))  # the weakest first
    family = np.zeros(len(candidates), dtype=np.int64) if family is None else family
    strongest = np.full(families, -1)
    for _, _, place in rows:
        strongest[family[place]] = place
    reached, above, best = np.zeros(len(candidates)), np.zeros(len(candidates)), np.zeros(len(strongest))
    for null in _blocks(parts, tested, orders) if rows else ():
        running = np.zeros(null[0].shape[1], dtype=np.result_type(*null))
        largest = np.zeros((len(strongest), len(running)), dtype=running.dtype)
        for at, row, place in rows:
            values, of_family = null[at][row], largest[family[place]]
            reached[place] += np.count_nonzero(values >= limits[place])
            np.maximum(of_family, values, out=of_family)
            if candidates[place]:
                np.maximum(running, values, out=running)
                above[place] += np.count_nonzero(running >= limits[place])
        best += [np.count_nonzero(each >= limits[place]) for each, place in zip(largest, strongest, strict=True)]
    adjusted = np.full(len(candidates), np.nan)
    down = [place for _, _, place in reversed(rows) if candidates[place]]
    adjusted[down] = np.maximum.accumulate(orders.share(above[down]))
    p = np.where(np.isfinite(observed), orders.share(reached), np.nan)
    best = np.where(strongest >= 0, orders.share(best), np.nan)
    for part, each in zip(parts, tested, strict=True):
        p[each.places] = np.maximum(p[each.places], 1 / each.number)  # a sample of few orders may fall below
        if each.number <= min(orders.number, ENUMERATED) and (each.whole is not None or not orders.exact):
            p[each.places] = _exact(part, each.every(orders), observed[each.places], np.array(limits)[each.places])
    best = np.where(strongest >= 0, np.fmax(best, p[strongest]), np.nan)
    return PValues(p, np.where(np.isnan(adjusted), np.nan, np.fmax(adjusted, p)), strongest, best)


def _exact(
    part: "_Part", order: Int[np.ndarray, "b n"], observed: Float[np.ndarray, " m"], limits: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """p-values by all orders."""
    step = max(64, BLOCK // max(part.factor.shape))
    reached = np.zeros(len(limits))
    for start in range(0, len(order), step):
        reached += (part.values(order[start : start + step]) >= limits[:, None]).sum(axis=1)
    return np.where(np.isfinite(observed), reached / len(order), np.nan)


@dataclass(frozen=True)
class _Part:
    """What is multiplied: the measures' vectors, and those of the target as a function of its order.

    Attributes:
        factor: One row a measure.
        turned: From orders (b, n) to the target's vectors, one column an order.
        scale: What makes |t| of a product; NaN for a constant.
        shift: What is added to a product before.
        data: |t| of the data, where it is not that of the product in the order as it is.
    """

    factor: Float[np.ndarray, "m f"]
    turned: Callable[[Int[np.ndarray, "b n"]], Float[np.ndarray, "f b"]]
    scale: Float[np.ndarray, " m"]
    shift: Float[np.ndarray, " m"] | None = None
    data: Float[np.ndarray, " m"] | None = None

    def values(self, order: Int[np.ndarray, "b n"]) -> Float[np.ndarray, "m b"]:
        """|t| of every measure in every order."""
        product: Float[np.ndarray, "m b"] = self.factor @ self.turned(order)
        if self.shift is not None:
            product += self.shift[:, None]
        np.abs(product, out=product)
        product *= self.scale[:, None]
        return product

    def observed(self, n: int) -> Float[np.ndarray, " m"]:
        """|t| of every measure in the data of n configurations."""
        return self.values(np.arange(n)[None])[:, 0] if self.data is None else self.data


def _blocks(parts: Sequence[_Part], tested: Sequence[Seen], orders: Orders) -> Iterator[list[np.ndarray]]:
    """|t| of each part, one block of permutations after the other."""
    step = max(64, BLOCK // max(max(part.factor.shape) for part in parts))
    taken = [each.orders(orders) for each in tested]
    for start in range(0, orders.number, step):
        yield [part.values(order[start : start + step]) for part, order in zip(parts, taken, strict=True)]


def _part(coefficient: str, tested: Seen, cells: Int[np.ndarray, " c"] | None) -> _Part:
    """What is multiplied for a coefficient."""
    x, y, n = tested.x, tested.y, len(tested.y)
    if coefficient == "kendall":
        strata = Strata.whole(n) if cells is None else Strata.of(cells[tested.used])
        sizes = np.array([len(g) for g in strata.groups], dtype=np.float64)
        number = (sizes * (sizes - 1)).sum() / 2
        spread = math.sqrt((sizes * (sizes - 1) * (2 * sizes + 5)).sum() / 18) / max(number, 1)
        if number <= PAIRS:
            return _of_signs(x, y, strata, spread)
        moving = strata.groups if tested.groups is None or cells is not None else _members(tested.groups)
        part = _of_lines(x, y, strata.groups, moving, spread)
        return part if tested.whole is None else replace(part, data=None)
    if coefficient == "spearman":
        whole = np.float32 if n**3 / 3 < EXACT else np.float64  # the largest product of two centred rows of ranks
        factor, scores = ((2 * mid_ranks(a) - (n + 1)).astype(whole) for a in (x, y[None]))
    else:
        factor, scores = unit_rows(x), unit_rows(y[None])
    size = np.sqrt((factor.astype(np.float64) ** 2).sum(axis=1) * (scores.astype(np.float64) ** 2).sum())
    return _Part(factor, lambda order: scores[0][order].T, _scale(size, 1 / math.sqrt(n - 1), factor.dtype))


def _of_signs(x: Float[np.ndarray, "m n"], y: Float[np.ndarray, " n"], strata: Strata, spread: float) -> _Part:
    """The signs of all pairs inside cells."""
    first, second = strata.pairs()
    rank_x, rank_y = dense_ranks(x).astype(np.float32), dense_ranks(y[None])[0].astype(np.float32)

    def turned(order: Int[np.ndarray, "b n"]) -> Float[np.ndarray, "f b"]:
        moved = np.ascontiguousarray(rank_y[order].T)
        difference: Float[np.ndarray, "f b"] = moved[first]
        difference -= moved[second]
        np.clip(difference, -1, 1, out=difference)  # of whole numbers, the sign
        return difference

    signs = np.sign(rank_x[:, first] - rank_x[:, second])
    untied = np.abs(signs).sum(axis=1, dtype=np.float64) * float((rank_y[first] != rank_y[second]).sum())
    return _Part(signs, turned, _scale(np.sqrt(untied), spread, np.dtype(np.float32)))


def _of_lines(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, " n"], groups: list[np.ndarray], moving: list[np.ndarray],
    spread: float,
) -> _Part:  # fmt: skip
    """C - D over the pairs inside `groups`, and its linear part where configurations move inside `moving`.

    With a_ih = Σ_{j in h} sign(x_i - x_j), and b_ih likewise of the target, pairs inside a moving group g of k give
    Σ_{i in g} a_ig b_σ(i)g / k, and pairs between g and h (where they count) their mean given the order in g,
    Σ_{i in g} a_ih b_σ(i)h / |h|, and that given the order in h, less the mean over both orders. The part inside g has
    (2k + 2)/(2k + 5) of the variance that C - D has there without ties, and is made wider accordingly.
    """
    between = len(moving) > 1 and len(groups) == 1
    factor, vectors, shift = [], [], np.zeros(len(x))
    for g in moving:
        above_x, above_y = _above(x, g), _above(y[None], g)[0]
        own = np.zeros(len(y))
        own[g] = 1 / len(g)
        factor.append(above_x * own * math.sqrt((2 * len(g) + 5) / (2 * len(g) + 2)))
        vectors.append(above_y)
        if between:
            others = 1 - (own > 0)
            factor.append(above_x * others)
            vectors.append(above_y / len(g))
            for h in moving:
                if h is not g:  # each pair of groups comes twice, and its mean is taken off once
                    shift -= above_x[:, h].sum(axis=1) * above_y[h].mean() / len(g) / 2
    stacked = np.stack(vectors, axis=1)  # (n, vectors)

    def turned(order: Int[np.ndarray, "b n"]) -> Float[np.ndarray, "f b"]:
        return np.concatenate([column[order].T for column in stacked.T])

    sums = [pair_sums(x[:, g], y[None, g], np.ones((1, len(g)), dtype=np.int64)) for g in groups]
    score, untied_x, untied_y = (np.sum([each[k][..., 0] for each in sums], axis=0) for k in range(3))
    scale = _scale(np.sqrt(untied_x * untied_y), spread, np.dtype(np.float64))
    return _Part(np.concatenate(factor, axis=1), turned, scale, shift, np.abs(score[:, 0]) * scale)


def _above(x: Float[np.ndarray, "m n"], group: Int[np.ndarray, " g"]) -> Float[np.ndarray, "m n"]:
    """How many of a group each value is above, less how many it is below."""
    found = np.empty(x.shape)
    for row, values in enumerate(x):
        ordered = np.sort(values[group])
        below, upto = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        found[row] = below - (len(group) - upto)
    return found


def _members(groups: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " g"]]:
    return [np.flatnonzero(groups == label) for label in np.unique(groups)]


def _scale(size: Float[np.ndarray, " m"], spread: float, dtype: np.dtype[Any]) -> Float[np.ndarray, " m"]:
    """1/(size · spread): what makes t of a product, from the size of its vectors and t's deviation without ties."""
    scale: Float[np.ndarray, " m"] = np.full(size.shape, np.nan)
    np.divide(1, size * spread, out=scale, where=size > 0)
    return scale.astype(dtype)
