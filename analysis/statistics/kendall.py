"""Kendall's rank correlation, of many bootstrap resamples at once.

Everything is a sum over pairs of units of the product of two signs, so many measures and many resamples become one
matrix product over the pairs. The counts stay integers below 2^24 and are exact in single precision.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Up to so many units all pairs are permuted; above it tau's linear part (`max_t`), and fewer permutations are taken.
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
    return tau_of_sums(*pair_sums(x, y, counts))


def tau_of_sums(
    score: Float[np.ndarray, "m t d"], untied_x: Float[np.ndarray, "m d"], untied_y: Float[np.ndarray, "t d"]
) -> Float[np.ndarray, "m t d"]:
    """tau_b = (C - D)/√(pairs untied in x · pairs untied in y); NaN where one of these is 0."""
    scale = np.sqrt(untied_x[:, None] * untied_y[None])
    tau: Float[np.ndarray, "m t d"] = np.divide(score, scale, out=np.full(score.shape, np.nan), where=scale > 0)
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


def row_sums(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"]
) -> tuple[Float[np.ndarray, "m t n"], Float[np.ndarray, "m n"], Float[np.ndarray, "t n"]]:
    """For each unit: concordant minus discordant pairs it is in, and those untied in x and in y."""
    m, t, n = len(x), len(y), x.shape[1]
    rank_x, rank_y = dense_ranks(x).astype(np.float32), dense_ranks(y).astype(np.float32)
    score, untied_x, untied_y = np.empty((m, t, n)), np.empty((m, n)), np.empty((t, n))
    step = max(1, BLOCK // ((m + t) * n))
    for s in range(0, n, step):
        part = slice(s, s + step)
        sign_x = np.sign(rank_x.T[part, :, None] - rank_x[None])  # (block, m, n)
        sign_y = np.sign(rank_y.T[part, :, None] - rank_y[None])
        score[:, :, part] = np.moveaxis(sign_x @ sign_y.transpose(0, 2, 1), 0, 2)
        untied_x[:, part] = np.abs(sign_x).sum(axis=2).T
        untied_y[:, part] = np.abs(sign_y).sum(axis=2).T
    return score, untied_x, untied_y


def without_each(
    score: Float[np.ndarray, "m t n"], untied_x: Float[np.ndarray, "m n"], untied_y: Float[np.ndarray, "t n"]
) -> Float[np.ndarray, "m t n"]:
    """tau_b without each unit in turn, from the sums over the pairs that each is in (all pairs stand there twice)."""
    return tau_of_sums(*(each.sum(axis=-1, keepdims=True) / 2 - each for each in (score, untied_x, untied_y)))


def dense_ranks(x: Float[np.ndarray, "m n"]) -> Int[np.ndarray, "m n"]:
    """Ranks 1, 2, ... of each row, ties sharing one rank without gaps."""
    order = np.argsort(x, axis=1)
    ordered = np.take_along_axis(x, order, axis=1)
    steps = np.ones(x.shape, dtype=np.int64)
    steps[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ranks = np.empty_like(steps)
    np.put_along_axis(ranks, order, steps.cumsum(axis=1), axis=1)
    return ranks


def _pair_blocks(n: int, width: int) -> Iterator[tuple[Any, Any]]:
    """All pairs i < j, in blocks whose (pairs, width) matrix stays within `BLOCK` numbers."""
    first, second = np.triu_indices(n, 1)
    step = max(64, BLOCK // max(width, 1))
    for start in range(0, len(first), step):
        yield first[start : start + step], second[start : start + step]
