"""Bootstrap over configurations, permutation tests, corrections for many tests.

A bootstrap resample is a vector of counts, how often each unit was drawn, so a coefficient over all resamples is array
arithmetic and the same resamples serve every measure. A unit is a configuration with all its seeds, never a single run:
runs of one configuration are alike, and resampling them one by one gives intervals that are too short.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

MINIMUM = 5  # configurations below which nothing is claimed
NO_CLAIM = f"fewer than {MINIMUM} configurations: no claim"

# Numbers in one (units, resamples) array of a blocked loop; 2^17 double-precision numbers are 1 MiB, a near cache.
BLOCK = 1 << 17


def bootstrap_counts(n: int, *, draws: int, generator: np.random.Generator) -> Int[np.ndarray, "draws n"]:
    """How often each of n units occurs in each of `draws` resamples of size n, drawn with replacement."""
    picked = generator.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(picked.ravel(), minlength=n * draws).reshape(draws, n)


def significant(x: Float[np.ndarray, "*shape"], *, digits: int = 12) -> Float[np.ndarray, "*shape"]:
    """Round to about `digits` significant digits, so that means that differ by rounding alone are ties."""
    fraction, exponent = np.frexp(x)
    rounded: Float[np.ndarray, "*shape"] = np.ldexp(np.round(fraction, digits), exponent)
    return rounded


def percentile_interval(
    values: Float[np.ndarray, "*shape d"], *, level: float = 0.95
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """The central `level` part of the finite numbers along the last axis; NaN where fewer than half are finite."""
    shape, d = values.shape[:-1], values.shape[-1]
    flat = np.sort(np.where(np.isfinite(values), values, np.nan).reshape(-1, d), axis=1)  # NaN goes last
    finite = np.isfinite(flat).sum(axis=1)
    enough = finite >= max(1, math.ceil(d / 2))
    low, high = (quantiles(flat, finite, q) for q in ((1 - level) / 2, (1 + level) / 2))
    return np.where(enough, low, np.nan).reshape(shape), np.where(enough, high, np.nan).reshape(shape)


def quantiles(
    ordered: Float[np.ndarray, "r d"], finite: Int[np.ndarray, " r"], q: float | Float[np.ndarray, " r"]
) -> Float[np.ndarray, " r"]:
    """A quantile of each row, linear between its finite numbers, which come first and in order."""
    place = q * np.maximum(finite - 1, 0)
    below = np.floor(np.nan_to_num(place)).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(finite - 1, 0))
    rows = np.arange(len(ordered))
    value: Float[np.ndarray, " r"] = ordered[rows, below] + (place - below) * (
        ordered[rows, above] - ordered[rows, below]
    )
    return value


def permutation_orders(n: int, *, count: int, generator: np.random.Generator) -> tuple[Int[np.ndarray, "b n"], bool]:
    """`count` random orders of n units, or, where there are no more than `count` in all, every order once.

    Returns:
        The orders, shape (b, n), and whether they are all n! of them.
    """
    if n <= 10 and math.factorial(n) <= count:
        return np.array(list(itertools.permutations(range(n)))), True
    return generator.permuted(np.tile(np.arange(n), (count, 1)), axis=1), False


def permutation_pvalue(
    observed: float | Float[np.ndarray, "*shape"], null: Float[np.ndarray, "*shape b"]
) -> Float[np.ndarray, "*shape"]:
    """Two-sided p-value (1 + #{|T*| >= |T|})/(1 + b).

    Equality is read with a slack of 1e-12, for sums that differ by rounding alone. NaN where `observed` is NaN.

    Source:
        Phipson and Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9(1).
    """
    value = np.abs(np.asarray(observed, dtype=np.float64))
    at_least = (np.abs(null) >= value[..., None] - 1e-12).sum(axis=-1)
    return np.where(np.isnan(value), np.nan, (1 + at_least) / (1 + null.shape[-1]))


def holm(p: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Holm's adjusted p-values: at level α the chance of any false claim is at most α. NaN is no test and stays NaN.

    Source:
        Holm (1979), Scand. J. Statist. 6(2).
    """
    return _adjust(p, lambda q: np.maximum.accumulate(q * np.arange(len(q), 0, -1)))


def benjamini_hochberg(p: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Benjamini and Hochberg's adjusted p-values: the expected share of false discoveries. NaN stays NaN.

    Source:
        Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57(1).
    """
    return _adjust(p, lambda q: np.minimum.accumulate((q * len(q) / np.arange(1, len(q) + 1))[::-1])[::-1])


def _adjust(p: Float[np.ndarray, " k"], rule: Callable[[np.ndarray], np.ndarray]) -> Float[np.ndarray, " k"]:
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(f"`p` must be a list of p-values in [0, 1] (NaN is passed through), got {p!r}.")
    adjusted = np.full(p.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    adjusted[order] = np.minimum(rule(p[order]), 1.0)
    return adjusted


def weighted_pearson(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], counts: Int[np.ndarray, "d n"]
) -> Float[np.ndarray, "m t d"]:
    """Pearson's correlation of every row of x with every row of y in every resample; NaN where one is constant."""
    return _inner(x, y, counts, values_in)


def weighted_spearman(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], counts: Int[np.ndarray, "d n"]
) -> Float[np.ndarray, "m t d"]:
    """Spearman's correlation likewise, ranked anew in each resample, with the mean rank for ties (copies included)."""
    return _inner(x, y, counts, ranks_in)


def unit_rows(x: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Each row centred and at length one, so that products are Pearson's correlations; NaN where it is constant."""
    every = np.ones((x.shape[1], 1))
    return np.stack([_unit(values_in(row)(every), every)[:, 0] for row in x])


def mid_ranks(x: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Ranks 1 to n of each row, ties sharing their mean rank."""
    ranks: Float[np.ndarray, "m n"] = rankdata(x, axis=1)
    return ranks


def values_in(row: Float[np.ndarray, " n"]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of counts (n, d) that gives one measure's values in each resample, from the first unit drawn there.

    So a measure constant in a resample is exactly zero there, and an outlier that was not drawn costs no digits.
    """
    _, exponent = np.frexp(np.abs(row).max(initial=0.0))
    scaled = np.ldexp(row, -exponent)  # a power of two: nothing is rounded, and squares cannot overflow

    def scores(counts: np.ndarray) -> np.ndarray:  # (n, d); shapes would be made anew with each of thousands of rows
        first = scaled[(counts > 0).argmax(axis=0)]
        return np.where(counts > 0, scaled[:, None] - first, 0.0)

    return scores


def ranks_in(row: Float[np.ndarray, " n"]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of counts (n, d) that gives one measure's mid-ranks, up to a constant, in each resample.

    Twice the mid-rank is the number drawn below, plus the number drawn below or tied, plus 1: integers, so exact.
    """
    order = np.argsort(row)
    below, upto = (np.searchsorted(row[order], row, side=side) for side in ("left", "right"))

    def scores(counts: np.ndarray) -> np.ndarray:
        drawn = np.zeros((len(row) + 1, counts.shape[1]))
        np.cumsum(counts[order], axis=0, out=drawn[1:])
        doubled: Float[np.ndarray, "n d"] = drawn[below] + drawn[upto]
        return doubled

    return scores


def _unit(scores: Float[np.ndarray, "n d"], counts: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scores centred in each resample, times √count, at length one; NaN where they are constant there."""
    centred: Float[np.ndarray, "n d"] = scores - np.einsum("nd,nd->d", scores, counts) / counts.sum(axis=0)
    centred *= np.sqrt(counts)
    length = np.sqrt(np.einsum("nd,nd->d", centred, centred))
    centred *= np.divide(1.0, length, out=np.full(length.shape, np.nan), where=length > 0)
    return centred


def _inner(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    counts: Int[np.ndarray, "d n"],
    scores: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]],
) -> Float[np.ndarray, "m t d"]:
    result = np.empty((len(x), len(y), len(counts)))
    of_x, of_y = [scores(row) for row in x], [scores(row) for row in y]
    step = max(16, BLOCK // max(x.shape[1], 1))
    for start in range(0, len(counts), step):
        part = np.ascontiguousarray(counts[start : start + step].T, dtype=np.float64)
        unit_y = [_unit(of(part), part) for of in of_y]
        for k, of in enumerate(of_x):
            unit_x = _unit(of(part), part)
            for j, other in enumerate(unit_y):
                np.einsum("nd,nd->d", unit_x, other, out=result[k, j, start : start + step])
    np.clip(result, -1.0, 1.0, out=result)
    return result
