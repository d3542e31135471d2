"""The numbers of one block: coefficients pooled, within methods and inside cells, with their intervals.

What is left out at a time, or resampled, is the configuration; where both a measure and a target differ from method to
method (`exchangeability`), the method with all its configurations. For stratified tau_b it is the configuration in its
cell and, where variants of methods differ alike in all cells, besides that the variant in all cells.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.ceiling import COEFFICIENTS
from analysis.statistics.evidence import Settings
from analysis.statistics.exchangeability import differ_by_method, differ_by_variant
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

FEWEST_UNITS = 3  # methods or variants: two that are left out in turn tell nothing of the error
_ROWS = 1 << 21  # (measures, targets, draws) numbers held at once
NUMBERS = (
    *("value", "low", "high", "within", "within_low", "within_high", "groups", "inside"),
    *("stratified", "stratified_low", "stratified_high", "stratified_mean", "together"),
    *("variants_low", "variants_high", "recurring"),
    *("cells", "cells_dropped", "cell_reversal"),
)

Ends = tuple[np.ndarray, np.ndarray]


def coefficients(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    methods: Int[np.ndarray, " n"],
    strata: Strata,
    settings: Settings,
) -> dict[str, Float[np.ndarray, "k m t"]]:
    """The numbers of `NUMBERS`, of shape (coefficients, m, t), of finite data.

    `groups` and `cells` count the methods and cells that were used, `inside` is 1 where methods are taken as units,
    `together` where variants of methods differ alike in all cells, so that stratified tau_b also has ends over variants
    (`variants_low`, `variants_high`), `recurring` where methods do, and `cell_reversal` where holding the
    hyper-parameters fixed turns the coefficient round.
    """
    n = x.shape[1]
    out = {name: np.full((len(COEFFICIENTS), len(x), len(y)), np.nan) for name in NUMBERS}
    for name in ("groups", "inside", "together", "recurring", "cells", "cells_dropped", "cell_reversal"):
        out[name][:] = 0
    if n < 2:
        return out
    labels, place = np.unique(methods, return_inverse=True)
    groups = [rows for g in range(len(labels)) if len(rows := np.flatnonzero(place == g)) >= CELL_MINIMUM]
    ranks = mid_ranks(x), mid_ranks(y)
    for k, name in enumerate(COEFFICIENTS):
        out["value"][k] = RESAMPLED[name](x, y, np.ones((1, n), dtype=np.int64))[:, :, 0]
        mean, number = mean_inside(name, x, y, groups)
        out["within"][k], out["groups"][k] = mean[:, :, 0], number[:, :, 0]
        out["inside"][k] = differ_by_method(*((x, y) if name == "pearson" else ranks), place)
    out["cells"][0], out["cells_dropped"][0] = len(strata.groups), strata.dropped
    if strata.groups:
        out["stratified"][0] = stratified_kendall(x, y, strata)[:, :, 0]
        out["stratified_mean"][0] = mean_inside("kendall", x, y, strata.groups)[0][:, :, 0]
        out["together"][0] = differ_by_variant(x, y, strata)
        out["recurring"][0] = differ_by_variant(x, y, replace(strata, variants=place))
        out["cell_reversal"][0] = out["value"][0] * out["stratified"][0] < -1e-24
    if n >= MINIMUM and settings.draws:
        _add_intervals(out, x, y, place, groups, strata, settings)
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
    single, by_method = _Units.configurations(n, settings), _Units.methods(methods, settings)
    step = max(1, _ROWS // (len(y) * max(settings.draws, n)))
    for k, name in enumerate(COEFFICIENTS):
        for rows in (slice(s, s + step) for s in range(0, len(x), step)):
            value, within, inside = out["value"][k, rows], out["within"][k, rows], out["inside"][k, rows] > 0
            ends, left_out = _interval(name, x[rows], y, value, single, settings)
            if inside.any() and len(by_method.kept) >= FEWEST_UNITS:
                other, _ = _interval(name, x[rows], y, value, by_method, settings)
                ends = np.where(inside, other[0], ends[0]), np.where(inside, other[1], ends[1])
            out["low"][k, rows], out["high"][k, rows] = ends
            if settings.interval == "stabilised":
                error, freedom = _error_inside(name, x[rows], y, groups)
                ends = stabilised_interval(within, error, level=level, freedom=freedom)
            else:
                ends = percentile_interval(mean_inside(name, x[rows], y, groups, drawn_inside)[0], level=level)
            out["within_low"][k, rows], out["within_high"][k, rows] = ends
            if name == "kendall" and in_cells is not None:
                ends = percentile_interval(stratified_kendall(x[rows], y, strata, in_cells), level=level)
                out["stratified_low"][k, rows], out["stratified_high"][k, rows] = ends
                if (together := out["together"][k, rows] > 0).any():
                    ends = variant_interval(out["stratified"][k, rows], x[rows], y, strata, level=level)
                    out["variants_low"][k, rows] = np.where(together, ends[0], np.nan)
                    out["variants_high"][k, rows] = np.where(together, ends[1], np.nan)
                left_out = leave_one_out(name, x[rows], y) if left_out is None else left_out
                change = out["stratified"][k, rows] - value
                error = jackknife_error(stratified_leave_one_out(x[rows], y, strata) - left_out)
                out["cell_reversal"][k, rows] = np.maximum(
                    out["cell_reversal"][k, rows], np.abs(change) > 2 * error + 1e-12
                )


@dataclass(frozen=True)
class _Units:
    """What is left out at a time, and drawn.

    Attributes:
        kept: One row for each unit: 0 for what is left out with it.
        counts: Resamples of the units, as counts of configurations.
        single: Whether a unit is one configuration.
    """

    kept: Int[np.ndarray, "u n"]
    counts: Callable[[], Int[np.ndarray, "d n"]]
    single: bool

    @classmethod
    def configurations(cls, n: int, settings: Settings) -> "_Units":
        """One by one."""
        return cls(1 - np.eye(n, dtype=np.int64), lambda: settings.counts(n), single=True)

    @classmethod
    def methods(cls, methods: Int[np.ndarray, " n"], settings: Settings) -> "_Units":
        """All configurations of a method together."""
        number = int(methods.max()) + 1
        kept = (methods[None] != np.arange(number)[:, None]).astype(np.int64)
        return cls(kept, lambda: settings.counts(number)[:, methods], single=False)


def _interval(
    name: str, x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], value: Float[np.ndarray, "m t"], by: _Units,
    settings: Settings,
) -> tuple[Ends, Float[np.ndarray, "m t u"] | None]:  # fmt: skip
    """The interval of the kind asked for, and the coefficients without each unit where they were needed."""
    left_out = None
    if settings.interval != "percentile":
        left_out = leave_one_out(name, x, y) if by.single else RESAMPLED[name](x, y, by.kept)
    if settings.interval == "stabilised":
        assert left_out is not None
        freedom = freedom_of(name, x.shape[1]) if by.single else max(len(by.kept) - 1, 1)
        return stabilised_interval(value, jackknife_error(left_out), level=settings.level, freedom=freedom), left_out
    drawn = RESAMPLED[name](x, y, by.counts())
    if left_out is None:
        return percentile_interval(drawn, level=settings.level), None
    return bca_interval(drawn, value, left_out, level=settings.level), left_out


def variant_interval(
    value: Float[np.ndarray, "m t"],
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    strata: Strata,
    *,
    level: float,
) -> Ends:
    """Ends for stratified tau_b, one variant of a method left out of all cells at a time: Student's t, variants - 1."""
    assert strata.variants is not None
    labels = np.unique(strata.variants[np.concatenate(strata.groups)])
    if len(labels) < FEWEST_UNITS:
        return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    kept = (strata.variants[None] != labels[:, None]).astype(np.int64)
    error = jackknife_error(stratified_kendall(x, y, strata, kept))
    return stabilised_interval(value, error, level=level, freedom=max(len(labels) - 1, 1))


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
