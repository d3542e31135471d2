"""The best of many: choose a variant of a measure on one half of the configurations, report it on the other.

The largest of many |tau| is too large by the choice itself. Here the half that chooses is not the half that reports.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.randomness import source_of

MINIMUM = 10  # configurations, so that a half has five


@dataclass(frozen=True)
class Selection:
    """What is left of the best variant on configurations that did not choose it.

    Attributes:
        chosen: Index of the variant with the largest |tau_b| over all configurations; -1 where none has a value.
        naive: Its |tau_b|, which the choice has made too large.
        held_out: Mean over splits of tau_b on the other half, times the sign it had on the half that chose; below 0
            where the sign does not hold.
        low: 2.5 % point of that over splits: how much it depends on the split, no confidence interval.
        high: 97.5 % point.
        shares: How often each variant was chosen.
        n: Configurations in which all is finite.
        warnings: What a reader must know.
    """

    chosen: int
    naive: float
    held_out: float
    low: float
    high: float
    shares: Float[np.ndarray, " v"]
    n: int
    warnings: str = ""


def split_selection(
    x: Float[np.ndarray, "v n"],
    y: Float[np.ndarray, " n"],
    *,
    splits: int = 200,
    generator: np.random.Generator | None = None,
) -> Selection:
    """Choose among variants by |tau_b| on a random half of the configurations, report on the other half, many times.

    Args:
        x: Variants of one measure (its radii, say), a row each; configurations where any is not finite are left out.
        y: The target.
        splits: Random halves, at least 1.
        generator: Their source; None means a fresh one from seed 0.

    Raises:
        ValueError: If shapes do not agree, there is no variant, or `splits` is below 1.

    Source:
        Our definition.
    """
    if x.ndim != 2 or not len(x) or x.shape[1:] != y.shape:
        raise ValueError(f"`x` must hold a row of configurations for each variant, got {x.shape} for `y` {y.shape}.")
    if splits < 1:
        raise ValueError(f"`splits` must be at least 1, got {splits!r}.")
    generator = source_of(generator)
    used = np.isfinite(x).all(axis=0) & np.isfinite(y)
    x, y, n = x[:, used], y[used], int(used.sum())
    nan, shares = math.nan, np.zeros(len(x))
    lost = int((~used).sum())
    notes = [f"{lost} configurations that are not finite left out"] if lost else []
    if n < 2:
        return Selection(-1, nan, nan, nan, nan, shares, n, "; ".join([*notes, "fewer than 2 configurations"]))
    whole = np.abs(weighted_kendall(x, y[None], np.ones((1, n), dtype=np.int64))[:, 0, 0])
    if np.isnan(whole).all():
        return Selection(-1, nan, nan, nan, nan, shares, n, "; ".join([*notes, "constant measure or target"]))
    chosen = int(np.nanargmax(whole))
    if n < MINIMUM:
        notes.append(f"fewer than {MINIMUM} configurations: no halves")
        return Selection(chosen, float(whole[chosen]), nan, nan, nan, shares, n, "; ".join(notes))
    order = np.argsort(generator.random((splits, n)), axis=1)
    half = np.zeros((splits, n), dtype=np.int64)
    np.put_along_axis(half, order[:, : n // 2], 1, axis=1)
    tau = weighted_kendall(x, y[None], np.concatenate([half, 1 - half]))[:, 0]
    one, other = tau[:, :splits], tau[:, splits:]
    # Which half chooses must not matter: both do in turn.
    held = []
    for choose, tell in ((one, other), (other, one)):
        strength = np.where(np.isnan(choose), -1.0, np.abs(choose))
        best = strength.argmax(axis=0)
        at = np.arange(splits)
        held.append(np.where(strength[best, at] >= 0, tell[best, at] * np.sign(choose[best, at]), np.nan))
        shares += np.bincount(best, minlength=len(x)) / (2 * splits)
    told = np.concatenate(held)
    told = told[np.isfinite(told)]
    if not len(told):
        return Selection(chosen, float(whole[chosen]), nan, nan, nan, shares, n, "; ".join([*notes, "constant halves"]))
    low, high = np.percentile(told, [2.5, 97.5])
    return Selection(
        chosen, float(whole[chosen]), float(told.mean()), float(low), float(high), shares, n, "; ".join(notes)
    )
