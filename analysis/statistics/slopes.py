"""Within and between groups: does the relation hold inside each method, or only from method to method?

Pooled, within and between slopes of one target on one measure (Simpson's paradox is where they differ in sign), and the
within slope with standard errors that allow runs of one group to be alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from analysis.statistics.orders import Orders, orders_inside
from analysis.statistics.randomness import source_of

FEW_CLUSTERS = 20
OUT_OF_RANGE = "out of the range of floating point in these units"


@dataclass(frozen=True)
class Slopes:
    """Least-squares slopes of y on x; pooled = share·within + (1 - share)·between.

    Attributes:
        pooled: Over all units, groups ignored.
        within: Group means taken off both: the fixed-effects slope.
        between: Of the group means, weighted by size; NaN where all groups have the same mean of x.
        share: Part of the variation of x that lies within groups.
        r_pooled: Pearson's correlation over all units.
        r_within: Pearson's correlation of what is left when group means are taken off.
        r_between: Of the group means, weighted by size.
        reversal: Whether within and pooled, or within and between, have opposite signs.
        groups: Groups with at least one unit.
        n: Units in which both are finite.
        warnings: What a reader must know.
    """

    pooled: float
    within: float
    between: float
    share: float
    r_pooled: float
    r_within: float
    r_between: float
    reversal: bool
    groups: int
    n: int
    warnings: str = ""


@dataclass(frozen=True)
class FixedEffects:
    """The within slope and how sure it is.

    Attributes:
        slope: As `Slopes.within`.
        se: Standard error if units are independent with one variance.
        se_cr0: Cluster-robust, clusters the groups.
        se_cr1: The same times √(G/(G-1) (N-1)/(N-k)), k = G + 1 coefficients.
        p_cr1: Two-sided, Student's t with G - 1 degrees of freedom. Too small with few groups.
        p_wild: Wild cluster bootstrap under no slope, all sign patterns where there are no more than the draws; NaN
            without draws. Its least value is 2^(1-G): with few groups it cannot be small.
        p_permutation: Of the within slope, y permuted inside the groups; NaN without draws.
        clusters: G, the groups in which x varies.
        warnings: Too few clusters, and the like.
    """

    slope: float
    se: float
    se_cr0: float
    se_cr1: float
    p_cr1: float
    p_wild: float
    p_permutation: float
    clusters: int
    warnings: str = ""


def simpson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], groups: Sequence[Any]) -> Slopes:
    """Pooled, within-group and between-group slopes of y on x.

    Args:
        x: The measure, a value a unit; units where x or y is not finite are left out.
        y: The target.
        groups: The method of each unit.

    Raises:
        ValueError: If the lengths differ.

    Source:
        Simpson (1951), JRSS B 13(2); the identity: Robinson (1950), Am. Sociol. Rev. 15(3).
    """
    x, y, label, lost = finite_units(x, y, groups)
    notes = [f"{lost} units that are not finite left out"] if lost else []
    nan = math.nan
    if len(x) < 2 or not _varies(x):
        reason = "fewer than 2 units" if len(x) < 2 else "constant measure"
        count = int(label.max(initial=-1)) + 1
        return Slopes(nan, nan, nan, nan, nan, nan, nan, False, count, len(x), "; ".join([*notes, reason]))
    (x, power_x), (y, power_y) = scaled(x), scaled(y)
    inner_x, mean_x = _demeaned(x, label)
    inner_y, mean_y = _demeaned(y, label)
    total_x, total_y = x - x.mean(), y - y.mean()
    outer_x, outer_y = mean_x[label] - x.mean(), mean_y[label] - y.mean()
    pooled, r_pooled = _slope(total_x, total_y, total_x, total_y)
    within, r_within = _slope(inner_x, inner_y, total_x, total_y)
    between, r_between = _slope(outer_x, outer_y, total_x, total_y)
    share = float(inner_x @ inner_x / (total_x @ total_x))
    if not _varies(y):
        notes.append("constant target")
    if len(mean_x) == 1:
        notes.append("one group: within it and pooled are the same")
    elif math.isnan(within):
        notes.append("the measure does not vary inside the groups")
    reversal = within * pooled < 0 or within * between < 0
    pooled, within, between = (_power(v, power_y - power_x) for v in (pooled, within, between))
    if math.isinf(pooled):
        notes.append(OUT_OF_RANGE)
    return Slopes(
        pooled, within, between, share, r_pooled, r_within, r_between, reversal, len(mean_x), len(x), "; ".join(notes)
    )


def fixed_effects(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    groups: Sequence[Any],
    *,
    draws: int = 0,
    generator: np.random.Generator | None = None,
    orders: Orders | None = None,
) -> FixedEffects:
    """The slope of y on x with an intercept a group, with homoscedastic and cluster-robust errors and two tests.

    Args:
        x: The measure, a value a unit; units where x or y is not finite are left out.
        y: The target.
        groups: The group of each unit; groups are the clusters.
        draws: Resamples of the wild bootstrap and the permutation test; 0 for none.
        generator: Their source; None means a fresh one from seed 0.
        orders: Orders of the units inside the groups (`orders_inside`), to be shared by many calls; None draws them.
            Only of use where every unit is finite.

    Raises:
        ValueError: If the lengths differ, or `orders` has another length.

    Source:
        Liang and Zeger (1986), Biometrika 73(1); wild: Cameron, Gelbach and Miller (2008), REStat 90(3).
    """
    generator = source_of(generator)
    x, y, label, lost = finite_units(x, y, groups)
    notes = [f"{lost} units that are not finite left out"] if lost else []
    nan = math.nan
    if orders is not None and orders.base.shape[1] != len(x):
        raise ValueError(f"`orders` must be orders of the {len(x)} finite units, got shape {orders.base.shape}.")
    varies = _varies(x) if len(x) else False
    (x, power_x), (y, power_y) = scaled(x), scaled(y)
    inner_x, means = _demeaned(x, label)
    inner_y, _ = _demeaned(y, label)
    weight = float(inner_x @ inner_x)
    n, k = len(x), len(means) + 1
    if not varies or weight <= 1e-24 * float(x @ x) or n <= k:
        reason = "the measure does not vary inside the groups" if n > k else "too few units for the groups"
        return FixedEffects(nan, nan, nan, nan, nan, nan, nan, 0, "; ".join([*notes, reason]))
    slope = float(inner_x @ inner_y) / weight
    rest = inner_y - slope * inner_x
    se = math.sqrt(float(rest @ rest) / (n - k) / weight)
    products, squares = inner_x * inner_y, inner_x**2
    by_group = np.bincount(label, inner_x * rest, len(means))
    own = np.bincount(label, squares, len(means)) > 1e-24 * weight
    clusters = int(own.sum())
    cr0 = math.sqrt(float(by_group @ by_group)) / weight
    cr1 = cr0 * math.sqrt(clusters / (clusters - 1) * (n - 1) / (n - k)) if clusters > 1 else nan
    p = 2 * float(student.sf(abs(slope) / cr1, clusters - 1)) if clusters > 1 and cr1 > 0 else nan
    if clusters < 2:
        notes.append("one cluster: no robust error")
    elif clusters < FEW_CLUSTERS:
        notes.append(f"{clusters} clusters: robust errors are too small, use the wild bootstrap or the permutation")
    wild = permuted = nan
    if draws:
        score, shape = (np.bincount(label, v, len(means))[own] for v in (products, squares))
        wild = _wild(score, shape, draws, generator) if clusters > 1 else nan
        orders = orders_inside(label, count=draws, generator=generator) if orders is None else orders
        null = inner_y[orders.base] @ inner_x / weight
        permuted = float(orders.share(int((np.abs(null) >= abs(slope) * (1 - 1e-9)).sum())))
    slope, se, cr0, cr1 = (_power(v, power_y - power_x) for v in (slope, se, cr0, cr1))
    if math.isinf(slope):
        notes.append(OUT_OF_RANGE)
    return FixedEffects(slope, se, cr0, cr1, p, wild, permuted, clusters, "; ".join(notes))


def _wild(score: np.ndarray, shape: np.ndarray, draws: int, generator: np.random.Generator) -> float:
    """The p-value of the robust t, the sign of each cluster's score drawn anew; without a slope y is its residual."""
    g = len(score)
    exact = g < 31 and 2**g <= draws
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**g)[:, None] >> np.arange(g)) & 1)
    else:
        signs = generator.choice([-1.0, 1.0], size=(draws, g))

    def squared_t(s: np.ndarray) -> np.ndarray:
        slope = s.sum(axis=-1) / shape.sum()
        left = s - slope[..., None] * shape
        spread = (left**2).sum(axis=-1)
        t: np.ndarray = np.divide(slope**2, spread, out=np.full(slope.shape, np.inf), where=spread > 0)
        return t

    observed = squared_t(score[None])[0]
    count = int((squared_t(signs * score) >= observed * (1 - 1e-9)).sum())
    return count / len(signs) if exact else (1 + count) / (1 + draws)


def finite_units(
    x: np.ndarray, y: np.ndarray, groups: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, Int[np.ndarray, " n"], int]:
    """The units in which both are finite, their groups, and how many there are beside."""
    if not (x.ndim == 1 and x.shape == y.shape and len(groups) == len(x)):
        raise ValueError(f"`x`, `y` and `groups` must hold one value a unit, got {x.shape}, {y.shape}, {len(groups)}.")
    used = np.isfinite(x) & np.isfinite(y)
    label = labels([g for g, u in zip(groups, used.tolist(), strict=True) if u])
    return x[used].astype(np.float64), y[used].astype(np.float64), label, int((~used).sum())


def labels(groups: Sequence[Any]) -> Int[np.ndarray, " n"]:
    """The number of each unit's group, groups in the order of their text."""
    return _numbered(tuple(map(repr, groups)))


@lru_cache(maxsize=64)
def _numbered(names: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Thousands of measures are on the same units, so that the same names come again and again."""
    found = np.zeros(0, dtype=np.int64)
    if names:
        found = np.unique(np.array(names, dtype=object), return_inverse=True)[1].astype(np.int64)
    found.flags.writeable = False
    return found


def scaled(x: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], int]:
    """Bring x below 1 by a power of two, so that no square overflows; also the exponent taken out."""
    exponent = int(np.frexp(np.abs(x).max(initial=0.0))[1])
    return np.ldexp(x, -exponent), exponent


def _power(value: float, exponent: int) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, exponent))


def _varies(x: np.ndarray) -> bool:
    return bool((x != x[0]).any())


def _demeaned(x: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    number = np.bincount(label)
    mean = np.bincount(label, x / number[label]) if len(x) else np.zeros(0)
    return (x - mean[label] if len(x) else x), mean


def _slope(x: np.ndarray, y: np.ndarray, all_x: np.ndarray, all_y: np.ndarray) -> tuple[float, float]:
    """Slope and correlation of centred values; NaN where x varies by rounding alone."""
    if float(x @ x) <= 1e-24 * float(all_x @ all_x):
        return math.nan, math.nan
    slope = float(x @ y) / float(x @ x)
    if float(y @ y) <= 1e-24 * max(float(all_y @ all_y), 1e-300):
        return slope, math.nan
    return slope, float(np.clip(x @ y / math.sqrt(float(x @ x)) / math.sqrt(float(y @ y)), -1, 1))
