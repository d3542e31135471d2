"""The noise ceiling: how well any measure could correlate with a target that is itself known only up to its seeds.

A target averaged over k seeds is the configuration's true value plus noise. Two numbers say how much the noise costs:
the correlation of one half of the seeds with the other half, and the correlation of an oracle that knows the target up
to the same noise. A measure that comes close to them has nothing left to explain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from analysis.statistics.kendall import BLOCK
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, mid_ranks, significant

COEFFICIENTS = ("kendall", "spearman", "pearson")


@dataclass(frozen=True)
class Ceiling:
    """How far noise lets a correlation with one target go.

    Attributes:
        split_half: Mean correlation, over configurations, of two disjoint halves of the seeds, over random splits.
        spearman_brown: The same stepped up to all seeds; 0 where the halves do not agree at all.
        oracle_with_noise: Mean correlation of the target with itself plus noise of its own standard error.
        n_configurations: Configurations with two or more finite seeds; the others cannot be used.
        warnings: What a reader must know; empty where there is nothing.
    """

    split_half: float
    spearman_brown: float
    oracle_with_noise: float
    n_configurations: int
    warnings: str = ""


def noise_ceiling(
    seeds: Float[np.ndarray, "c s"],
    *,
    coefficient: str = "kendall",
    splits: int = 100,
    generator: np.random.Generator | None = None,
) -> Ceiling:
    """Split-half reliability and oracle-with-noise of a target.

    With k seeds a half has h = ⌊k/2⌋ of them (an odd one sits out). The Spearman-Brown step from h to k seeds is
    f r/(1 + (f-1) r) with f = k/h (means over configurations where they differ), exact for Pearson's correlation under
    independent noise of equal variance and a convention for the rank coefficients. The oracle is the seed mean plus
    normal noise with variance s²/k, s² the variance over seeds pooled over configurations.

    Args:
        seeds: The target, a row a configuration, a column a seed; NaN where there is no finite run.
        coefficient: "kendall" (tau_b), "spearman" or "pearson".
        splits: Random splits of the seeds, and draws of the oracle's noise; at least 1.
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The ceilings; NaN with a reason in `warnings` where fewer than 3 configurations have two seeds, or the target
        is constant.

    Raises:
        ValueError: If the coefficient is unknown or `splits` is below 1.

    Source:
        Spearman (1910) and Brown (1910), Brit. J. Psychol. 3(3); the oracle: Jiang et al. (2020).
    """
    if coefficient not in COEFFICIENTS:
        raise ValueError(f"`coefficient` must be one of {COEFFICIENTS}, got {coefficient!r}.")
    if splits < 1:
        raise ValueError(f"`splits` must be at least 1, got {splits!r}.")
    generator = source_of(generator)
    finite = np.isfinite(seeds)
    usable = finite.sum(axis=1) >= 2
    values, finite = np.where(finite, seeds, np.nan)[usable], finite[usable]
    _, exponent = np.frexp(np.nanmax(np.abs(values), initial=0.0))
    values = np.ldexp(values, -exponent)  # a power of two: nothing is rounded, and squares cannot overflow
    n = len(values)
    if n < 3:
        reason = (
            "one seed a configuration: no noise ceiling" if n == 0 else "fewer than 3 configurations with two seeds"
        )
        return Ceiling(math.nan, math.nan, math.nan, n, reason)
    k = finite.sum(axis=1)
    h = k // 2

    keys = np.where(finite, generator.random((splits, *values.shape)), np.inf)
    shuffled = np.take_along_axis(np.broadcast_to(values, keys.shape), keys.argsort(axis=-1), axis=-1)
    place = np.arange(values.shape[1])
    one = np.where(place < h[:, None], shuffled, 0.0).sum(axis=-1) / h
    other = np.where((place >= h[:, None]) & (place < 2 * h[:, None]), shuffled, 0.0).sum(axis=-1) / h
    split_half = _mean(_rowwise(coefficient, significant(one), significant(other)))

    mean = significant(np.nanmean(values, axis=1))
    pooled = np.nansum((values - mean[:, None]) ** 2) / float((k - 1).sum())
    noisy = mean + generator.standard_normal((splits, n)) * np.sqrt(pooled / k)
    oracle = _mean(_rowwise(coefficient, noisy, np.broadcast_to(mean, noisy.shape)))

    warnings = [NO_CLAIM] if n < MINIMUM else []
    step = float(k.mean() / h.mean())
    brown = step * split_half / (1 + (step - 1) * split_half) if split_half > 0 else 0.0
    if math.isnan(split_half):
        brown = math.nan
        warnings.append("constant target")
    elif split_half <= 0:
        warnings.append("the halves of the seeds do not agree: the target is noise here")
    return Ceiling(split_half, brown, oracle, n, "; ".join(warnings))


def _mean(values: Float[np.ndarray, " b"]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _rowwise(coefficient: str, a: Float[np.ndarray, "b n"], b: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """The coefficient of each row of a with the same row of b."""
    rows: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "kendall": _kendall,
        "spearman": lambda u, v: _pearson(mid_ranks(u), mid_ranks(v)),
        "pearson": _pearson,
    }
    return rows[coefficient](a, b)


def _pearson(a: Float[np.ndarray, "b n"], b: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    a, b = a - a[:, :1], b - b[:, :1]  # a constant row becomes exactly zero
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return _ratio((a * b).sum(axis=1), (a * a).sum(axis=1), (b * b).sum(axis=1))


def _kendall(a: Float[np.ndarray, "b n"], b: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    first, second = np.triu_indices(a.shape[1], 1)
    sums = np.zeros((3, len(a)))
    step = max(1, BLOCK // len(a))
    for start in range(0, len(first), step):
        i, j = first[start : start + step], second[start : start + step]
        u, v = np.sign(a[:, i] - a[:, j]), np.sign(b[:, i] - b[:, j])
        sums += np.stack([(u * v).sum(axis=1), np.abs(u).sum(axis=1), np.abs(v).sum(axis=1)])
    return _ratio(*sums)


def _ratio(
    both: Float[np.ndarray, " b"], one: Float[np.ndarray, " b"], other: Float[np.ndarray, " b"]
) -> Float[np.ndarray, " b"]:
    scale = np.sqrt(one * other)
    ratio = np.full(both.shape, np.nan)
    np.divide(both, scale, out=ratio, where=scale > 0)
    return ratio
