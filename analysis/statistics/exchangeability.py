"""Whether configurations may change places: how alike those of one method are, or those of one variant in all cells.

Permuting configurations freely, and leaving out one at a time, takes them as exchangeable. Where both the measure and
the target differ from method to method, configurations of one method are no independent evidence, and free permutation
finds too much: about 9 % false alarms at nominal 5 with intraclass correlations of 0.2, 20 % with 0.5
(docs/statistics.md). Where only one of the two does, it keeps its level. Inside cells of equal hyper-parameters it is
the same with the variants of methods, each of which is in many cells: permuting every cell by itself counts a variant
anew in each, so that a second test has whole variants change places, in all cells alike.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.statistics.resampling import mid_ranks
from analysis.statistics.strata import Strata

ALIKE = 0.1  # intraclass correlation above which configurations of one method are not taken as exchangeable
FREELY, INSIDE_METHODS = "freely", "inside methods"


def intraclass_correlation(
    x: Float[np.ndarray, "m n"], groups: Int[np.ndarray, " n"], *, spent: int = 0
) -> Float[np.ndarray, " m"]:
    """The share of the variance of each row of x that lies between groups, by analysis of variance.

    ρ = (MSB - MSW)/(MSB + (k - 1) MSW), with the mean squares between and within G groups of n_g values, and
    k = (n - Σ n_g²/n)/(G - 1), the size of groups where all are equal. It may be negative.

    Args:
        x: m measures of n configurations, finite.
        groups: The number of the group of each configuration.
        spent: Degrees of freedom that were taken out of x before; those within groups are n - G - spent.

    Returns:
        One value a row; NaN where it is constant, with one group, or where nothing is left within groups.

    Source:
        Donner (1986), International Statistical Review 54(1), eq. 2.
    """
    n, labels = x.shape[1], np.unique(groups)
    number = len(labels)
    if not 1 < number < n - spent:
        return np.full(len(x), np.nan)
    belongs = (groups[:, None] == labels).astype(np.float64)
    sizes = belongs.sum(axis=0)
    _, exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True))
    x = np.ldexp(x, -exponent)  # a power of two: nothing is rounded, and squares cannot overflow
    centred = x - x.mean(axis=1, keepdims=True)
    means = centred @ belongs / sizes
    between = (means**2 @ sizes) / (number - 1)
    within = ((centred - means @ belongs.T) ** 2).sum(axis=1) / (n - number - spent)
    size = (n - (sizes**2).sum() / n) / (number - 1)
    total = between + (size - 1) * within
    varies = x.max(axis=1) > x.min(axis=1)
    share: Float[np.ndarray, " m"] = np.full(len(x), np.nan)
    np.divide(between - within, total, out=share, where=varies & (total > 0))
    return share


def differ_by_method(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], methods: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, "m t"]:
    """Where both the measure and the target have an intraclass correlation above 0.1 over methods."""
    alike_x, alike_y = (intraclass_correlation(a, methods) > ALIKE for a in (x, y))
    both: Bool[np.ndarray, "m t"] = alike_x[:, None] & alike_y[None]
    return both


def differ_by_variant(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], strata: Strata
) -> Bool[np.ndarray, "m t"]:
    """Where both have an intraclass correlation above 0.1 over variants, of ranks inside cells, their means removed."""
    if not strata.groups or strata.variants is None:
        return np.zeros((len(x), len(y)), dtype=bool)
    labels, spent = strata.variants[np.concatenate(strata.groups)], len(strata.groups) - 1
    scores = (np.concatenate([_centred_ranks(a[:, g]) for g in strata.groups], axis=1) for a in (x, y))
    alike_x, alike_y = (intraclass_correlation(score, labels, spent=spent) > ALIKE for score in scores)
    both: Bool[np.ndarray, "m t"] = alike_x[:, None] & alike_y[None]
    return both


def _centred_ranks(x: Float[np.ndarray, "m g"]) -> Float[np.ndarray, "m g"]:
    """Between -1/2 and 1/2, whatever the number."""
    centred: Float[np.ndarray, "m g"] = mid_ranks(x) / (x.shape[1] + 1) - 0.5
    return centred
