"""The numbers of one block: coefficients pooled, within methods and inside cells, with their intervals.

What is left out at a time, or resampled, is the configuration; where both a measure and a target differ from method to
method, the method with all its configurations, and where they differ from cell to cell, cells and methods
(`exchangeability`). For stratified tau_b it is the configuration in its cell, or the variant, or the method, in all
cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.evidence import Settings
from analysis.statistics.exchangeability import moved_pooled, moved_stratified
from analysis.statistics.intervals import (
    RESAMPLED,
    bca_interval,
    freedom_of,
    jackknife_error,
    leave_one_out,
    stabilised_interval,
)
from analysis.statistics.resampling import MINIMUM, mid_ranks, percentile_interval
from analysis.statistics.strata import CELL_MINIMUM, Strata, stratified_kendall, stratified_leave_one_out

FEWEST_UNITS = 3  # cells, methods or variants: two that are left out in turn tell nothing of the error
_ROWS = 1 << 21  # (measures, targets, draws) numbers held at once
NUMBERS = (
    *("value", "low", "high", "within", "within_low", "within_high", "groups", "moved", "units"),
    *("stratified", "stratified_low", "stratified_high", "stratified_mean", "stratified_moved", "stratified_units"),
    *("cells", "cells_dropped", "cell_reversal"),
)
COUNTED = (
    "groups",
    "moved",
    "units",
    "stratified_moved",
    "stratified_units",
    "cells",
    "cells_dropped",
    "cell_reversal",
)

Ends = tuple[np.ndarray, np.ndarray]


def coefficients(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    methods: Int[np.ndarray, " n"],
    cells: Int[np.ndarray, " n"],
    strata: Strata,
    settings: Settings,
) -> dict[str, Float[np.ndarray, "k m t"]]:
    """The numbers of `NUMBERS`, of shape (coefficients, m, t), of finite data.

    `groups` and `cells` count the methods and cells that were used, `moved` and `stratified_moved` are what changes
    places (`exchangeability`), `units` and `stratified_units` its number (the fewer of cells and methods),
    and `cell_reversal` is 1 where holding the hyper-parameters fixed turns the coefficient round.
    """
    n = x.shape[1]
    out = {name: np.full((len(COEFFICIENTS), len(x), len(y)), np.nan) for name in NUMBERS}
    for name in COUNTED:
        out[name][:] = 0
    if n < 2:
        return out
    labels, place = np.unique(methods, return_inverse=True)
    cell = np.unique(cells, return_inverse=True)[1]
    groups = [rows for g in range(len(labels)) if len(rows := np.flatnonzero(place == g)) >= CELL_MINIMUM]
    ranks = mid_ranks(x), mid_ranks(y)
    for k, name in enumerate(COEFFICIENTS):
        out["value"][k] = RESAMPLED[name](x, y, np.ones((1, n), dtype=np.int64))[:, :, 0]
        mean, number = mean_inside(name, x, y, groups)
        out["within"][k], out["groups"][k] = mean[:, :, 0], number[:, :, 0]
        out["moved"][k] = moved_pooled(*((x, y) if name == "pearson" else ranks), place, cell)
    out["cells"][0], out["cells_dropped"][0] = len(strata.groups), strata.dropped
    if strata.groups:
        out["stratified"][0] = stratified_kendall(x, y, strata)[:, :, 0]
        out["stratified_mean"][0] = mean_inside("kendall", x, y, strata.groups)[0][:, :, 0]
        out["stratified_moved"][0] = moved_stratified(x, y, strata, place)
        out["cell_reversal"][0] = out["value"][0] * out["stratified"][0] < -1e-24
    if n >= MINIMUM and settings.draws:
        _add_intervals(out, x, y, place, cell, groups, strata, settings)
    if len(labels) == 1:
        for end in ("", "_low", "_high"):
            out[f"within{end}"] = out[end[1:] or "value"].copy()
    for name in ("", "within", "stratified"):
        for end in ("low", "high"):
            out[f"{name}_{end}".lstrip("_")][np.isnan(out[name or "value"])] = np.nan
    return out


def _add_intervals(
    out: dict[str, np.ndarray],
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    methods: Int[np.ndarray, " n"],
    cells: Int[np.ndarray, " n"],
    groups: list[Int[np.ndarray, " g"]],
    strata: Strata,
    settings: Settings,
) -> None:
    """Ends of the intervals of `value`, `within` and `stratified`, block by block of measures."""
    n, level = x.shape[1], settings.level
    drawn_inside = (
        [settings.counts(len(g), k) for k, g in enumerate(groups)] if settings.interval != "stabilised" else []
    )
    in_cells = strata.resampled(n, settings.counts_in_cell) if strata.n >= MINIMUM else None
    single = LeftOut.configurations(n, settings)
    apart = {1: LeftOut.groups([methods], settings), 2: LeftOut.groups([cells, methods], settings)}
    together = {1: strata.variants, 2: methods}
    for move, by in apart.items():
        out["units"][out["moved"] == move] = by.number
    for move, labels in together.items():
        out["stratified_units"][out["stratified_moved"] == move] = len(_in_strata(labels, strata))
    step = max(1, _ROWS // (len(y) * max(settings.draws, n)))
    for k, name in enumerate(COEFFICIENTS):
        for rows in (slice(s, s + step) for s in range(0, len(x), step)):
            value, within, moved = out["value"][k, rows], out["within"][k, rows], out["moved"][k, rows]
            ends, left_out = interval_over(name, x[rows], y, value, single, settings)
            for move, by in apart.items():
                if (moved == move).any() and by.number >= FEWEST_UNITS:
                    other, _ = interval_over(name, x[rows], y, value, by, settings)
                    ends = _where(moved == move, other, ends)
            out["low"][k, rows], out["high"][k, rows] = ends
            if settings.interval == "stabilised":
                error, freedom = _error_inside(name, x[rows], y, groups)
                ends = stabilised_interval(within, error, level=level, freedom=freedom)
            else:
                ends = percentile_interval(mean_inside(name, x[rows], y, groups, drawn_inside)[0], level=level)
            out["within_low"][k, rows], out["within_high"][k, rows] = ends
            if name == "kendall" and in_cells is not None:
                ends = percentile_interval(stratified_kendall(x[rows], y, strata, in_cells), level=level)
                moved = out["stratified_moved"][k, rows]
                for move, labels in together.items():
                    if (moved == move).any() and len(_in_strata(labels, strata)) >= FEWEST_UNITS:
                        other = whole_interval(out["stratified"][k, rows], x[rows], y, strata, labels, level=level)
                        narrower = other[1] - other[0] < ends[1] - ends[0]  # few that agree leave no width
                        ends = _where((moved == move) & ~narrower, other, ends)
                out["stratified_low"][k, rows], out["stratified_high"][k, rows] = ends
                left_out = leave_one_out(name, x[rows], y) if left_out is None else left_out
                change = out["stratified"][k, rows] - value
                error = jackknife_error(stratified_leave_one_out(x[rows], y, strata) - left_out)
                out["cell_reversal"][k, rows] = np.maximum(
                    out["cell_reversal"][k, rows], np.abs(change) > 2 * error + 1e-12
                )


def _where(chosen: Bool[np.ndarray, "m t"], ends: Ends, others: Ends) -> Ends:
    """The first ends where they are chosen, else the others."""
    return np.where(chosen, ends[0], others[0]), np.where(chosen, ends[1], others[1])


@dataclass(frozen=True)
class LeftOut:
    """What is left out at a time, and drawn.

    Attributes:
        kept: For each way of grouping configurations one row for each unit: 0 for what is left out with it.
        counts: Resamples of the units, as counts of configurations.
        single: Whether a unit is one configuration.
    """

    kept: list[Int[np.ndarray, "u n"]]
    counts: Callable[[], Int[np.ndarray, "d n"]]
    single: bool

    @property
    def number(self) -> int:
        """Of the units; the fewest of several groupings."""
        return min(map(len, self.kept))

    @classmethod
    def configurations(cls, n: int, settings: Settings) -> "LeftOut":
        """One by one."""
        return cls([1 - np.eye(n, dtype=np.int64)], lambda: settings.counts(n), single=True)

    @classmethod
    def groups(cls, labels: list[Int[np.ndarray, " n"]], settings: Settings) -> "LeftOut":
        """All configurations of a group together; of two groupings, those of each, as they come from both.

        The first grouping decides: a further one with too few groups to tell anything of the error is left out.
        """
        first, *further = labels
        taken = [first, *(each for each in further if each.max() + 1 >= FEWEST_UNITS)]

        def counts() -> Int[np.ndarray, "d n"]:
            drawn = [settings.counts(int(each.max()) + 1, place - 1)[:, each] for place, each in enumerate(taken)]
            product: Int[np.ndarray, "d n"] = np.prod(drawn, axis=0)
            some = product.any(
                axis=1
            )  # in a table with holes cells and methods may be drawn that have nothing in common
            return product[some] if some.any() else drawn[0]

        kept = [(each[None] != np.arange(each.max() + 1)[:, None]).astype(np.int64) for each in taken]
        return cls(kept, counts, single=False)


def interval_over(
    name: str, x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], value: Float[np.ndarray, "m t"], by: LeftOut,
    settings: Settings,
) -> tuple[Ends, Float[np.ndarray, "m t u"] | None]:  # fmt: skip
    """The interval of the kind asked for, and the coefficients without each unit where they were needed.

    With two groupings, cells and methods, the squared errors over each are added, and that over single configurations,
    which is in both, is taken off once, but never so that less is left than over one of the groupings.

    Source:
        Cameron, Gelbach and Miller (2011), J. Bus. Econ. Stat. 29(2), for the two-way error.
    """
    left_out = None
    if settings.interval != "percentile":
        left_out = leave_one_out(name, x, y) if by.single else RESAMPLED[name](x, y, by.kept[0])
    if settings.interval == "stabilised":
        assert left_out is not None
        freedom = freedom_of(name, x.shape[1]) if by.single else max(by.number - 1, 1)
        error = jackknife_error(left_out)
        if len(by.kept) > 1:
            other = jackknife_error(RESAMPLED[name](x, y, by.kept[1]))
            own = jackknife_error(leave_one_out(name, x, y))
            error = np.sqrt(np.maximum(error**2 + other**2 - own**2, np.maximum(error, other) ** 2))
        return stabilised_interval(value, error, level=settings.level, freedom=freedom), left_out
    drawn = RESAMPLED[name](x, y, by.counts())
    if left_out is None:
        return percentile_interval(drawn, level=settings.level), None
    return bca_interval(drawn, value, left_out, level=settings.level), left_out


def _in_strata(labels: Int[np.ndarray, " n"], strata: Strata) -> Int[np.ndarray, " u"]:
    """The labels that occur in cells that count."""
    return np.unique(labels[np.concatenate(strata.groups)]) if strata.groups else labels[:0]


def whole_interval(
    value: Float[np.ndarray, "m t"],
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    strata: Strata,
    labels: Int[np.ndarray, " n"],
    *,
    level: float,
) -> Ends:
    """Ends for stratified tau_b, one variant or method left out of all cells at a time, by Student's t."""
    units = _in_strata(labels, strata)
    error = jackknife_error(stratified_kendall(x, y, strata, (labels[None] != units[:, None]).astype(np.int64)))
    return stabilised_interval(value, error, level=level, freedom=len(units) - 1)


def _error_inside(
    name: str, x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], groups: list[Int[np.ndarray, " g"]]
) -> tuple[Float[np.ndarray, "m t"], float]:
    """Standard error of the mean over groups, √Σs_g²/number, and its degrees of freedom."""
    squares, number = np.zeros((len(x), len(y))), np.zeros((len(x), len(y)))
    for rows in groups:
        defined = np.isfinite(RESAMPLED[name](x[:, rows], y[:, rows], np.ones((1, len(rows)), dtype=np.int64))[:, :, 0])
        error = jackknife_error(leave_one_out(name, x[:, rows], y[:, rows]))
        np.add(squares, error**2, out=squares, where=defined)
        number += defined
    error = np.divide(np.sqrt(squares), number, out=np.full(number.shape, np.nan), where=number > 0)
    free = sum(len(g) - 2 for g in groups)
    return error, freedom_of(name, free + 2)


def mean_inside(
    name: str,
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    groups: list[Int[np.ndarray, " g"]],
    counts: list[Int[np.ndarray, "d g"]] | None = None,
) -> tuple[Float[np.ndarray, "m t d"], Float[np.ndarray, "m t d"]]:
    """Mean of the coefficient over the groups in which it is defined, each with the same weight, and their number.

    In each of d resamples of every group; None for the data as they are.
    """
    counts = [np.ones((1, len(g)), dtype=np.int64) for g in groups] if counts is None else counts
    shape = (len(x), len(y), len(counts[0]) if counts else 1)
    total, number = np.zeros(shape), np.zeros(shape)
    for rows, drawn in zip(groups, counts, strict=True):
        part = RESAMPLED[name](x[:, rows], y[:, rows], drawn)
        defined = np.isfinite(part)
        np.add(total, part, out=total, where=defined)
        number += defined
    return np.divide(total, number, out=np.full(shape, np.nan), where=number > 0), number
