"""Intervals of correlation coefficients that cover what they promise, over configurations.

Three kinds: "stabilised" (the default: delete-one jackknife on Fisher's z scale, no resampling noise), "bca"
(bias-corrected and accelerated bootstrap) and "percentile". Which of them covers, and where, is a table in
docs/statistics.md, made by `python -m benchmarks.statistics --coverage`.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from analysis.statistics.kendall import row_sums, weighted_kendall, without_each
from analysis.statistics.resampling import quantiles, weighted_pearson, weighted_spearman

INTERVALS = ("stabilised", "bca", "percentile")
PERFECT = "perfect order: the interval has no width"

RESAMPLED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "kendall": weighted_kendall,
    "spearman": weighted_spearman,
    "pearson": weighted_pearson,
}


def leave_one_out(
    coefficient: str, x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"]
) -> Float[np.ndarray, "m t n"]:
    """The coefficient of every row of x with every row of y without each unit in turn; NaN where one is constant.

    Args:
        coefficient: "kendall" (tau_b), "spearman" or "pearson".
        x: m measures of n units, finite.
        y: t targets of the same units, finite.
    """
    n = x.shape[1]
    if coefficient != "kendall":
        return RESAMPLED[coefficient](x, y, np.ones((n, n), dtype=np.int64) - np.eye(n, dtype=np.int64))
    return without_each(*row_sums(x, y))


def jackknife_error(left_out: Float[np.ndarray, "*shape n"]) -> Float[np.ndarray, "*shape"]:
    """Delete-one standard error √((n-1)/n Σ (θ_i - mean θ)²); NaN where a unit cannot be left out.

    Source:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, eq. 11.5.
    """
    n = left_out.shape[-1]
    centred = left_out - left_out.mean(axis=-1, keepdims=True)
    error: Float[np.ndarray, "*shape"] = np.sqrt((n - 1) / max(n, 1) * (centred**2).sum(axis=-1))
    return error


def stabilised_interval(
    value: Float[np.ndarray, "*shape"],
    error: Float[np.ndarray, "*shape"],
    *,
    level: float = 0.95,
    freedom: float = math.inf,
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """tanh(atanh(r) ± q s/(1 - r²)) of a coefficient r in [-1, 1] with standard error s.

    On Fisher's z scale the error hardly depends on the value and the ends stay inside [-1, 1]. At |r| = 1 the interval
    is the point itself, which is no claim of certainty: the caller warns (`PERFECT`).

    Args:
        value: The coefficients.
        error: Their standard errors, on the scale of the coefficient.
        level: Coverage aimed at, inside (0, 1).
        freedom: Degrees of freedom of Student's t for q; infinite for the normal distribution.
    """
    q = float(student.ppf((1 + level) / 2, freedom)) if math.isfinite(freedom) else float(ndtri((1 + level) / 2))
    room = 1 - value**2
    inside = room > 1e-14
    half = q * np.divide(error, room, out=np.zeros(np.shape(value)), where=inside)
    centre = np.arctanh(np.where(inside, value, 0.0))
    low, high = np.tanh(centre - half), np.tanh(centre + half)
    low, high = np.where(inside, low, value), np.where(inside, high, value)
    unknown = np.isnan(error) | np.isnan(value)
    return np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)


def freedom_of(coefficient: str, n: int) -> float:
    """Degrees of freedom of the stabilised interval: n - 2 for Pearson's r; rank coefficients need no such widening.

    Our choice, by coverage at n = 24, 48 and 100.
    """
    return max(n - 2, 1) if coefficient == "pearson" else math.inf


def bca_interval(
    draws: Float[np.ndarray, "*shape d"],
    value: Float[np.ndarray, "*shape"],
    left_out: Float[np.ndarray, "*shape n"],
    *,
    level: float = 0.95,
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Bias-corrected and accelerated bootstrap interval.

    Args:
        draws: The statistic in each resample; those not finite are left out, as are statistics with less than half.
        value: The statistic of the data as they are.
        left_out: The statistic without each unit in turn.
        level: Coverage aimed at, inside (0, 1).

    Returns:
        Lower and upper ends; NaN where fewer than half of the resamples, or one of `left_out`, is not finite.

    Source:
        Efron (1987), JASA 82(397); resamples equal to the value count half, as they must where there are ties.
    """
    shape, d = draws.shape[:-1], draws.shape[-1]
    flat = np.sort(np.where(np.isfinite(draws), draws, np.nan).reshape(-1, d), axis=1)
    at, deleted = np.reshape(value, -1), left_out.reshape(len(flat), -1)
    finite = np.isfinite(flat).sum(axis=1)
    share = ((flat < at[:, None] - 1e-12).sum(axis=1) + (flat <= at[:, None] + 1e-12).sum(axis=1)) / 2
    share = np.clip(share / np.maximum(finite, 1), 0.5 / max(d, 1), 1 - 0.5 / max(d, 1))
    bias = ndtri(share)
    pull = deleted.mean(axis=1, keepdims=True) - deleted
    spread = (pull**2).sum(axis=1)
    acceleration = np.divide((pull**3).sum(axis=1), 6 * spread**1.5, out=np.zeros(len(flat)), where=spread > 0)
    enough = (finite >= max(1, math.ceil(d / 2))) & np.isfinite(spread) & np.isfinite(at)
    ends = []
    for q in (ndtri((1 - level) / 2), ndtri((1 + level) / 2)):
        part = ndtr(bias + (bias + q) / np.maximum(1 - acceleration * (bias + q), 1e-6))
        end = quantiles(flat, finite, part)
        ends.append(np.where(enough, end, np.nan).reshape(shape))
    return ends[0], ends[1]
