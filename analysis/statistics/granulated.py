"""The granulated Kendall coefficient: does the measure rank models that differ in one hyper-parameter alone?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.statistics.evidence import ALL, NO_GRID, SLOW_PERMUTATIONS, Evidence, Rows
from analysis.statistics.grid import AxisPairs, axis_pairs, levels
from analysis.statistics.kendall import BLOCK
from analysis.statistics.orders import orders_inside
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, permutation_pvalue
from analysis.statistics.statistic import Cell, Statistic, chance, number, of_leading
from analysis.style import count, fixed

AXIS, PAIRS = "along ", "pairs along "  # what columns of axes begin with

_SLACK = 1e-5  # of sums in single precision: equality is read towards the larger p


@dataclass(frozen=True)
class AxisKendall:
    """One axis of the granulated coefficient.

    Attributes:
        psi: Mean of tau_a over the axis's cells; NaN without a cell of two.
        eligible: Cells with two or more models.
        total: All cells.
        pairs: Pairs of models in them.
        p: Permutation p-value, g permuted inside the cells of this axis; NaN if not asked for.
    """

    psi: float
    eligible: int
    total: int
    pairs: int
    p: float = math.nan


@dataclass(frozen=True)
class Granulated:
    """Psi, the mean of its axes.

    Attributes:
        psi: Mean of psi over the axes that have one; NaN without any.
        axes: Each axis.
        p: Permutation p-value, g permuted over all models; NaN if not asked for.
        warnings: What a reader must know.
    """

    psi: float
    axes: dict[str, AxisKendall]
    p: float = math.nan
    warnings: str = ""


def granulated_kendall(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    coordinates: Mapping[str, Sequence[Any]],
    *,
    fixed: Sequence[str] = (),
    weights: str = "equal",
    permutations: int = 0,
    generator: np.random.Generator | None = None,
) -> Granulated:
    """Psi = mean over hyper-parameters i of psi_i, the mean of tau_a over the models that differ in i alone.

    Args:
        x: The measure, a value a model; models where x or y is not finite are left out.
        y: The target.
        coordinates: For each hyper-parameter its value in each model.
        fixed: Hyper-parameters that are coordinates but no axes: the seed, where seeds were not averaged before.
        weights: Each cell of an axis weighs the same ("equal"), or as its number of pairs ("pairs").
        permutations: For p-values; 0 for none.
        generator: Source of the permutations; None means a fresh one from seed 0.

    Returns:
        Psi and its axes. Ties count 0, as tau_b of two tied models has no value. Cells of one model are skipped.

    Raises:
        ValueError: If shapes differ, or `weights` is unknown.

    Source:
        Jiang et al. (2020), ICLR, section 3.2.
    """
    names, codes = levels(coordinates)
    if not x.shape == y.shape == codes.shape[1:]:
        raise ValueError(f"`x`, `y` and `coordinates` must agree, got {x.shape}, {y.shape} and {codes.shape[1:]}.")
    generator = source_of(generator)
    used = np.isfinite(x) & np.isfinite(y)
    axes = axis_pairs(names, codes[:, used], fixed=fixed)
    psi = axis_kendall(x[None, used], y[None, used], axes, weights=weights)[:, 0, 0]
    p, overall_p = np.full(len(axes), math.nan), math.nan
    if permutations and used.any():
        each, overall = granulated_pvalues(
            x[None, used], y[None, used], axes, weights=weights, permutations=permutations, generator=generator
        )
        p, overall_p = each[:, 0, 0], float(overall[0, 0])
    found = {
        a.name: AxisKendall(float(v), a.eligible, a.total, len(a.first), float(q))
        for a, v, q in zip(axes, psi, p, strict=True)
    }
    defined = psi[np.isfinite(psi)]
    notes = [] if len(defined) else ["no two models differ in one hyper-parameter alone"]
    if 0 < len(defined) < len(axes):
        notes.append(f"{len(axes) - len(defined)} of {len(axes)} axes have no pair")
    if (lost := int((~used).sum())) > 0:
        notes.append(f"{lost} models that are not finite left out")
    return Granulated(float(defined.mean()) if len(defined) else math.nan, found, overall_p, "; ".join(notes))


def axis_kendall(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], axes: Sequence[AxisPairs], *, weights: str = "equal"
) -> Float[np.ndarray, "a m t"]:
    """Psi of each axis for every measure and target, finite; NaN for an axis without pairs."""
    out = np.full((len(axes), len(x), len(y)), math.nan)
    for k, axis in enumerate(axes):
        weight = axis.weights(weights)
        if len(weight):
            out[k] = (np.sign(x[:, axis.first] - x[:, axis.second]) * weight) @ np.sign(
                y[:, axis.first] - y[:, axis.second]
            ).T
    return out


def mean_of(psi: Float[np.ndarray, "a m t"], axes: Sequence[AxisPairs]) -> Float[np.ndarray, "m t"]:
    """The mean over the axes that have a pair; NaN without any."""
    defined = [k for k, a in enumerate(axes) if len(a.first)]
    mean: Float[np.ndarray, "m t"] = psi[defined].mean(axis=0) if defined else np.full(psi.shape[1:], math.nan)
    return mean


def granulated_pvalues(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    axes: Sequence[AxisPairs],
    *,
    weights: str = "equal",
    permutations: int,
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, "a m t"], Float[np.ndarray, "m t"]]:
    """Two-sided permutation p-values of every axis and of Psi.

    For an axis the target is permuted inside its cells, which leaves every effect of the other hyper-parameters in
    place. For Psi, whose axes share models, it is permuted over all models.
    """
    n = x.shape[1]
    every = np.broadcast_to(np.arange(n), (permutations, n))
    order = generator.permuted(every, axis=1)
    observed = axis_kendall(x, y, axes, weights=weights)
    each = np.full(observed.shape, math.nan)
    total = np.zeros((len(x), len(y), permutations))
    for k, axis in enumerate(axes):
        if not len(axis.first):
            continue
        sign_x = (np.sign(x[:, axis.first] - x[:, axis.second]) * axis.weights(weights)).astype(np.float32)
        total += _null(sign_x, y, axis, order)
        cell = np.arange(n) + 1 + axis.cell.max()
        cell[axis.first], cell[axis.second] = axis.cell, axis.cell
        inside = orders_inside(cell, count=permutations, generator=generator)
        null = np.abs(_null(sign_x, y, axis, inside.base))
        each[k] = inside.share((null >= np.abs(observed[k])[..., None] - _SLACK).sum(axis=-1))
    defined = np.array([len(a.first) > 0 for a in axes], dtype=bool)
    if not defined.any():
        return each, np.full(total.shape[:2], math.nan)
    psi = observed[defined].mean(axis=0)
    return each, permutation_pvalue(psi, (np.abs(total) + _SLACK) / defined.sum())


def _null(sign_x: np.ndarray, y: np.ndarray, axis: AxisPairs, order: np.ndarray) -> np.ndarray:
    """The weighted sum of sign products for every measure, target and order of the units."""
    out = np.empty((len(sign_x), len(y), len(order)))
    step = max(1, BLOCK // max(len(axis.first), 1))
    for k, row in enumerate(y):
        for s in range(0, len(order), step):
            moved = row[order[s : s + step]]
            sign_y = np.sign(moved[:, axis.first] - moved[:, axis.second]).astype(np.float32)
            out[:, k, s : s + step] = sign_x @ sign_y.T
    return out


def table(evidence: Evidence) -> Rows:
    """Psi ("all") and its axes, with permutation p-values."""
    names, codes, note = evidence.grid()
    rows: Rows = []
    permutations = min(evidence.settings.permutations, SLOW_PERMUTATIONS)
    for block in evidence.blocks():
        axes = axis_pairs(names, codes[:, block.used])
        psi = axis_kendall(block.x, block.y, axes)
        p, overall_p = np.full(psi.shape, math.nan), np.full(block.shape, math.nan)
        if permutations and axes and block.n >= MINIMUM:
            generator = evidence.settings.generator(4, block.n)
            p, overall_p = granulated_pvalues(block.x, block.y, axes, permutations=permutations, generator=generator)
        p[:, block.still] = overall_p[block.still] = math.nan
        counts = [(a.eligible, a.total, len(a.first)) for a in axes]
        empty = [a.name for a, (*_, pairs) in zip(axes, counts, strict=True) if not pairs]
        lacking = NO_GRID if len(empty) == len(axes) else f"no pair: {', '.join(empty)}" if empty else ""
        every = [sum(v) for v in zip(*counts, strict=True)] or [0, 0, 0]
        rows += block.rows(ALL, mean_of(psi, axes), overall_p, *every, remarks=(lacking, note))
        for k, axis in enumerate(axes):
            rows += block.rows(axis.name, psi[k], p[k], *counts[k], remarks=["no pair" * (not len(axis.first))])
    return rows


def _shown(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    """A row a measure, with its axes beside."""
    rows = of_leading(rows, leading)
    every = rows[rows["axis"] == ALL].reset_index(drop=True)
    for axis in rows["axis"].unique():
        own = rows[rows["axis"] == axis].drop_duplicates("measure").set_index("measure")
        every[AXIS + axis] = every["measure"].map(own["psi"])
        every[PAIRS + axis] = every["measure"].map(own["pairs"])
    return every


def _of_pairs(psi: float, pairs: float) -> str:
    return f"{fixed(psi)} ({count(pairs)})" if math.isfinite(psi) else "–"


STATISTIC = Statistic(
    name="granulated",
    columns="measure target axis psi p eligible_cells total_cells pairs warnings",
    table=table,
    title="Models that differ in one hyper-parameter",
    note=(
        "Does a measure rank models that differ in one hyper-parameter alone? Mean of τ over such groups for "
        "`{target}`: along each hyper-parameter, and Ψ, the mean over hyper-parameters (Jiang et al. 2020). A Ψ near 0 "
        "may be the mean of opposite signs: read the columns. In brackets: pairs of models. p: permutations."
    ),
    shown={"Ψ": number("psi"), "p": chance("p")},
    chosen=_shown,
    reads="axis pairs",
    spread=lambda rows: {
        axis: Cell((AXIS + axis, PAIRS + axis), _of_pairs)
        for axis in (name.removeprefix(AXIS) for name in rows.columns if name.startswith(AXIS))
        if axis != ALL
    },
)
