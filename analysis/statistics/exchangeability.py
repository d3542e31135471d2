"""What may change places: single configurations, those of one method, or complete cells, methods and variants.

Permuting configurations freely, and leaving out one at a time, takes them as exchangeable. Where both the measure and
the target differ from method to method, configurations of one method are no independent evidence, and free permutation
finds too much: about 9 % false positives at nominal 5 with intraclass correlations of 0.2, 20 % with 0.5
(docs/statistics.md). With cells of equal hyper-parameters it is the same: a measure that tells four learning rates
apart has four values, however many models there are. Where only one of the two differs, the level is kept.

Inside cells it is the same with the variants of methods, each of which is in many cells: permuting every cell by itself
counts a variant anew in each, and its method anew in each setting.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.statistics.resampling import mid_ranks
from analysis.statistics.strata import Strata

ALIKE = 0.1  # intraclass correlation above which what is in one group is not taken as exchangeable with the rest
FREELY, INSIDE_METHODS, COMPLETE_CELLS = POOLED = ("freely", "inside methods", "complete cells")
INSIDE_CELLS, COMPLETE_VARIANTS, COMPLETE_METHODS = STRATIFIED = (
    "inside cells",
    "complete variants",
    "complete methods",
)


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


def moved_pooled(
    x: Float[np.ndarray, "m n"],
    y: Float[np.ndarray, "t n"],
    methods: Int[np.ndarray, " n"],
    cells: Int[np.ndarray, " n"],
) -> Int[np.ndarray, "m t"]:
    """What changes places for a coefficient over all pairs, as a place in `POOLED`.

    Complete cells where both differ between cells, what is inside methods where both differ between methods, else all.
    """
    by_cell, by_method = differ(x, y, cells), differ(x, y, methods)
    found: Int[np.ndarray, "m t"] = np.where(by_cell, 2, np.where(by_method, 1, 0))
    return found


def moved_stratified(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], strata: Strata, methods: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "m t"]:
    """What changes places for stratified tau_b, as a place in `STRATIFIED`.

    Complete methods, with their settings, where both differ between methods inside cells, and a method has several
    settings in a cell; complete variants where both differ between these; else what is inside a cell.
    """
    found = np.zeros((len(x), len(y)), dtype=np.int64)
    if not strata.groups:
        return found
    found[differ_in_cells(x, y, strata, strata.variants)] = 1
    if recurring(strata, methods):
        found[differ_in_cells(x, y, strata, methods)] = 2
    return found


def recurring(strata: Strata, methods: Int[np.ndarray, " n"]) -> bool:
    """Whether a method has several settings in a cell."""
    return any(len(np.unique(methods[rows])) < len(rows) for rows in strata.groups)


def differ(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], groups: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, "m t"]:
    """Where both the measure and the target have an intraclass correlation above 0.1 over groups."""
    alike_x, alike_y = (intraclass_correlation(a, groups) > ALIKE for a in (x, y))
    both: Bool[np.ndarray, "m t"] = alike_x[:, None] & alike_y[None]
    return both


def differ_in_cells(
    x: Float[np.ndarray, "m n"], y: Float[np.ndarray, "t n"], strata: Strata, groups: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, "m t"]:
    """Where both have an intraclass correlation above 0.1 over groups, of ranks inside cells, their means removed."""
    if not strata.groups:
        return np.zeros((len(x), len(y)), dtype=bool)
    labels, spent = groups[np.concatenate(strata.groups)], len(strata.groups) - 1
    scores = (np.concatenate([_centred_ranks(a[:, g]) for g in strata.groups], axis=1) for a in (x, y))
    alike_x, alike_y = (intraclass_correlation(score, labels, spent=spent) > ALIKE for score in scores)
    both: Bool[np.ndarray, "m t"] = alike_x[:, None] & alike_y[None]
    return both


def _centred_ranks(x: Float[np.ndarray, "m g"]) -> Float[np.ndarray, "m g"]:
    """Between -1/2 and 1/2, whatever the number."""
    centred: Float[np.ndarray, "m g"] = mid_ranks(x) / (x.shape[1] + 1) - 0.5
    return centred
