"""Kendall's rank correlation: many bootstrap resamples at once, and its permutation distribution.

Everything is a sum over pairs of units of the product of two signs, so many measures and many resamples become one
matrix product over the pairs. The counts stay integers below 2^24 and are exact in single precision.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, rankdata

# Above this many units the permutation distribution is replaced by its normal limit: at 100 units the limit is off by
# about 5 % of p at p = 0.001, where 9999 random permutations have a standard error of 32 % of p.
EXACT_LIMIT = 100

# Numbers held by one block of a blocked product; 2^22 single-precision numbers are 16 MiB.
BLOCK = 1 << 22


def weighted_kendall(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], counts: Int[np.ndarray, "d n"]
) -> Float[np.ndarray, "m t d"]:
    """tau_b of every row of x with every row of y in every resample.

    A resample is the vector w of how often each unit was drawn. With sign matrices S it is
    (w'(S_x∘S_y)w)/√((w'|S_x|w)(w'|S_y|w)): copies of one unit are ties and drop out, so this is tau_b of the resampled
    data, exactly.

    Args:
        x: m measures of n units, finite.
        y: t targets of the same units, finite.
        counts: d resamples; row sums are the sizes of the resamples.

    Returns:
        Shape (m, t, d); NaN where x or y is constant in the resample.
    """
    score, untied_x, untied_y = pair_sums(x, y, counts)
    scale = np.sqrt(untied_x[:, None, :] * untied_y[None, :, :])
    tau = np.full(score.shape, np.nan)
    np.divide(score, scale, out=tau, where=scale > 0)
    return tau


def pair_sums(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], counts: Int[np.ndarray, "d n"]
) -> tuple[Float[np.ndarray, "m t d"], Float[np.ndarray, "m d"], Float[np.ndarray, "t d"]]:
    """Weighted sums over pairs i < j: of sign products (C - D), and of the pairs untied in x and untied in y."""
    m, t, d = len(x), len(y), len(counts)
    size = int(counts.sum(axis=1).max(initial=0))
    dtype: type[np.floating[Any]] = (
        np.float32 if size**2 < 2**25 else np.float64
    )  # at most size²/2 weighted pairs: exact below 2^24
    rank_x, rank_y = dense_ranks(x).astype(dtype), dense_ranks(y).astype(dtype)
    weight = np.ascontiguousarray(counts.T, dtype=dtype)
    score = np.zeros((m * t, d), dtype=dtype)
    untied_x, untied_y = np.zeros((m, d), dtype=dtype), np.zeros((t, d), dtype=dtype)
    for i, j in _pair_blocks(x.shape[1], max(d, m * t)):
        pair = weight[i] * weight[j]
        sign_x, sign_y = np.sign(rank_x[:, i] - rank_x[:, j]), np.sign(rank_y[:, i] - rank_y[:, j])
        if d <= t:  # few resamples, as for the data as they are: cheaper one by one than all products of signs
            for k in range(d):
                score[:, k] += ((sign_x * pair[:, k]) @ sign_y.T).reshape(m * t)
        else:
            score += (sign_x[:, None] * sign_y[None]).reshape(m * t, len(i)) @ pair
        untied_x += np.abs(sign_x) @ pair
        untied_y += np.abs(sign_y) @ pair
    return score.reshape(m, t, d).astype(np.float64), untied_x.astype(np.float64), untied_y.astype(np.float64)


def kendall_pvalues(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], order: Int[np.ndarray, "b n"], *, exact: bool = False
) -> Float[np.ndarray, "m t"]:
    """Two-sided permutation p-values of tau for every row of x with every row of y.

    The distribution of C - D over permutations depends on the two patterns of ties alone, so it is found once for each
    pair of patterns, from sorted data: all measures without ties share one distribution, and a larger |tau| never has
    the larger p. Above 100 units the normal limit with the exact permutation variance takes its place (kept at or above
    1/(1+b)), unless all but fewer than 10 units are tied.

    Args:
        x: m measures of n units, finite.
        y: t targets of the same units, finite.
        order: b permutations of 0..n-1, for example from `analysis.statistics.resampling.permutation_orders`.
        exact: True if `order` holds every permutation once; then p is a plain fraction.

    Returns:
        Shape (m, t): (1 + #{|T*| >= |T|})/(1 + b), or #/b if exact; NaN for constant rows.

    Source:
        Permutation variance with ties: Kendall (1970), Rank Correlation Methods, 4th ed., ch. 4.
    """
    m, n = x.shape
    score, untied_x, untied_y = (a[..., 0] for a in pair_sums(x, y, np.ones((1, n), dtype=np.int64)))
    score = np.abs(score)
    p = np.full((m, len(y)), np.nan)
    by_x, by_y = _patterns(x), _patterns(y)
    for pattern_y, columns in by_y.items():
        hard: dict[tuple[int, ...], list[int]] = {}
        for pattern_x, rows in by_x.items():
            if untied_x[rows[0]] == 0 or untied_y[columns[0]] == 0:
                continue
            if n > EXACT_LIMIT and _loose(pattern_x) and _loose(pattern_y):
                z = np.maximum(score[np.ix_(rows, columns)] - 1, 0) / math.sqrt(_variance(pattern_x, pattern_y))
                p[np.ix_(rows, columns)] = np.clip(2 * norm.sf(z), 1 / (1 + len(order)), 1)
            else:
                hard[pattern_x] = rows
        if not hard:
            continue
        null = _null_scores(np.array(list(hard)), np.array(pattern_y), order)
        for rows, values in zip(hard.values(), null, strict=True):
            at_least = len(order) - np.searchsorted(np.sort(values), score[np.ix_(rows, columns)] - 0.5)
            p[np.ix_(rows, columns)] = at_least / len(order) if exact else (1 + at_least) / (1 + len(order))
    return p


def dense_ranks(x: Float[np.ndarray, "m n"]) -> Int[np.ndarray, "m n"]:
    """Ranks 1, 2, ... of each row, ties sharing one rank without gaps."""
    ranks: Int[np.ndarray, "m n"] = rankdata(x, method="dense", axis=1).astype(np.int64)
    return ranks


def _pair_blocks(n: int, width: int) -> Iterator[tuple[Any, Any]]:
    """All pairs i < j, in blocks whose (pairs, width) matrix stays within `BLOCK` numbers."""
    first, second = np.triu_indices(n, 1)
    step = max(64, BLOCK // max(width, 1))
    for start in range(0, len(first), step):
        yield first[start : start + step], second[start : start + step]


def _patterns(x: Float[np.ndarray, "m n"]) -> dict[tuple[int, ...], list[int]]:
    """Sorted dense ranks, read from the end that comes first in order, so that x and -x share one; with their rows."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, ranks in enumerate(np.sort(dense_ranks(x), axis=1)):
        up, down = tuple(ranks.tolist()), tuple((ranks[-1] + 1 - ranks[::-1]).tolist())
        found.setdefault(min(up, down), []).append(row)
    return found


def _null_scores(
    patterns: Int[np.ndarray, "u n"], y: Int[np.ndarray, " n"], order: Int[np.ndarray, "b n"]
) -> Float[np.ndarray, "u b"]:
    """|C - D| of each pattern with y in each given order."""
    first, second = np.triu_indices(len(y), 1)
    sign_x = np.sign(patterns[:, first] - patterns[:, second]).astype(np.float32)
    used = sign_x.any(axis=0)
    sign_x, first, second = sign_x[:, used], first[used], second[used]
    scores = np.empty((len(patterns), len(order)))
    step = max(16, BLOCK // len(first))
    for start in range(0, len(order), step):
        moved = np.ascontiguousarray(y.astype(np.float32)[order[start : start + step]].T)
        scores[:, start : start + step] = np.abs(sign_x @ np.sign(moved[first] - moved[second]))
    return scores


def _loose(pattern: tuple[int, ...]) -> bool:
    """Whether at least 10 units lie outside the largest tie, so that the normal limit can be trusted."""
    return len(pattern) - int(np.bincount(pattern).max()) >= 10


def _variance(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Variance of C - D over all permutations, with ties."""
    n = len(first)
    t, u = np.bincount(first).astype(np.float64), np.bincount(second).astype(np.float64)
    free = n * (n - 1) * (2 * n + 5)
    tied = sum(float((a * (a - 1) * (2 * a + 5)).sum()) for a in (t, u))
    triples = float((t * (t - 1) * (t - 2)).sum() * (u * (u - 1) * (u - 2)).sum()) / (9 * n * (n - 1) * (n - 2))
    doubles = float((t * (t - 1)).sum() * (u * (u - 1)).sum()) / (2 * n * (n - 1))
    return (free - tied) / 18 + triples + doubles
