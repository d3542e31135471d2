"""The granulated Kendall coefficient: does the measure order models that differ in one hyper-parameter alone?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis.statistics.grid import AxisPairs, axis_pairs, levels
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import permutation_pvalue

_BLOCK = 1 << 22  # signs held at once
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
        inside = _inside(axis, n, permutations, generator)
        each[k] = permutation_pvalue(observed[k], np.abs(_null(sign_x, y, axis, inside)) + _SLACK)
    defined = np.array([len(a.first) > 0 for a in axes], dtype=bool)
    if not defined.any():
        return each, np.full(total.shape[:2], math.nan)
    psi = observed[defined].mean(axis=0)
    return each, permutation_pvalue(psi, (np.abs(total) + _SLACK) / defined.sum())


def _inside(axis: AxisPairs, n: int, permutations: int, generator: np.random.Generator) -> np.ndarray:
    """Orders of the units that keep each one in its cell of the axis."""
    cell = np.arange(n) + 1 + axis.cell.max()
    cell[axis.first], cell[axis.second] = axis.cell, axis.cell
    place = np.argsort(cell, kind="stable")
    shuffled = np.argsort(cell[None] + generator.random((permutations, n)), axis=1)
    order = np.empty_like(shuffled)
    order[:, place] = shuffled
    return order


def _null(sign_x: np.ndarray, y: np.ndarray, axis: AxisPairs, order: np.ndarray) -> np.ndarray:
    """The weighted sum of sign products for every measure, target and order of the units."""
    out = np.empty((len(sign_x), len(y), len(order)))
    step = max(1, _BLOCK // max(len(axis.first), 1))
    for k, row in enumerate(y):
        for s in range(0, len(order), step):
            moved = row[order[s : s + step]]
            sign_y = np.sign(moved[:, axis.first] - moved[:, axis.second]).astype(np.float32)
            out[:, k, s : s + step] = sign_x @ sign_y.T
    return out
