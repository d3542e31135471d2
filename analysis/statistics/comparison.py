"""Does one measure correlate more strongly with a target than another? The paired difference of |tau|, with interval.

Two p-values, or two intervals side by side, do not answer it: both measures see the same configurations, so their
errors go together. Here both are computed in the same resamples.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from analysis.statistics.kendall import weighted_kendall
from analysis.statistics.partial import partial_of
from analysis.statistics.randomness import source_of
from analysis.statistics.resampling import MINIMUM, NO_CLAIM, bootstrap_counts, check_resampling, percentile_interval


@dataclass(frozen=True)
class PairedDifference:
    """|tau_b(first, target)| - |tau_b(second, target)| over the same configurations.

    Attributes:
        tau_first: tau_b of the first measure (forgetting) with the target, with its sign.
        tau_second: tau_b of the second measure (sharpness) with the target, with its sign.
        difference: The difference of their absolute values; above 0 where the first explains more.
        low: Lower end of the interval; NaN below 5 configurations.
        high: Upper end, likewise.
        n_configurations: Configurations in which all three are finite.
        warnings: What a reader must know; empty where there is nothing.
    """

    tau_first: float
    tau_second: float
    difference: float
    low: float
    high: float
    n_configurations: int
    warnings: str = ""


def paired_difference(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    target: Float[np.ndarray, " n"],
    *,
    given: Float[np.ndarray, " n"] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    generator: np.random.Generator | None = None,
) -> PairedDifference:
    """Compare how strongly two measures correlate with one target, by a bootstrap over configurations.

    Args:
        first: One measure, a value a configuration; configurations with NaN or inf in any of the three are left out.
        second: The other measure.
        target: What both are to explain.
        given: A third measure to hold fixed: all taus are then partial taus given it. None for plain ones.
        draws: Resamples; 0 for no interval.
        level: Coverage aimed at, inside (0, 1).
        generator: Source of all randomness; None means a fresh one from seed 0.

    Returns:
        The difference with its percentile interval. Where both taus are near 0 the absolute value folds the
        distribution, and an interval that contains 0 is all that can be read from it.

    Raises:
        ValueError: If the shapes differ, or `draws` or `level` is out of range.

    Source:
        Our definition (the claim "forgetting correlates more strongly than flatness", as one number).
    """
    check_resampling(draws=draws, level=level)
    generator = source_of(generator)
    if given is not None and given.shape != first.shape:
        raise ValueError(f"`given` must hold one value a configuration, got shapes {given.shape} and {first.shape}.")
    if not first.shape == second.shape == target.shape:
        raise ValueError(
            f"`first`, `second` and `target` must hold one value a configuration each, got shapes {first.shape}, "
            f"{second.shape} and {target.shape}."
        )
    finite = np.isfinite(first) & np.isfinite(second) & np.isfinite(target)
    if given is not None:
        finite &= np.isfinite(given)
    x, n = np.stack([first, second])[:, finite], int(finite.sum())
    y = (target[None] if given is None else np.stack([target, given]))[:, finite]
    if n < 2:
        return PairedDifference(math.nan, math.nan, math.nan, math.nan, math.nan, n, NO_CLAIM)
    tau = _taus(x, y, np.ones((1, n), dtype=np.int64))[:, 0]
    constant = [name for name, t in zip(("first", "second"), tau, strict=True) if math.isnan(t)]
    reason = "or constant target" if given is None else "constant target, or ordered by what is held fixed"
    warnings = [f"constant {' and '.join(constant)} measure, {reason}"] if constant else []
    low = high = math.nan
    if n < MINIMUM:
        warnings.append(NO_CLAIM)
    elif draws and not constant:
        resampled = np.abs(_taus(x, y, bootstrap_counts(n, draws=draws, generator=generator)))
        low, high = (float(end) for end in percentile_interval(resampled[0] - resampled[1], level=level))
    difference = float(abs(tau[0]) - abs(tau[1]))
    return PairedDifference(float(tau[0]), float(tau[1]), difference, low, high, n, "; ".join(warnings))


def _taus(
    x: Float[np.ndarray, "2 n"], y: Float[np.ndarray, "t n"], counts: Int[np.ndarray, "d n"]
) -> Float[np.ndarray, "2 d"]:
    """Both measures' tau_b with the first row of y in each resample; partial given the second row, if there is one."""
    plain = weighted_kendall(x, y, counts)
    if len(y) == 1:
        return plain[:, 0]
    return partial_of(
        plain[:, 0], plain[:, 1], np.broadcast_to(weighted_kendall(y[:1], y[1:], counts)[0], (2, len(counts)))
    )
