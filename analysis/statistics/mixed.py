"""The mixed model: target on measure, with a random intercept for each configuration or method."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from analysis.statistics import exchangeability
from analysis.statistics.slopes import finite_units, labels, scaled

_RISE = np.arange(25.0)


@dataclass(frozen=True)
class RandomIntercept:
    """y = a + b x + u_group + e, u ~ N(0, σ_u²), e ~ N(0, σ_e²).

    Attributes:
        slope: b, in units of y for a unit of x.
        se: Its standard error, with the variances taken as known.
        low: Lower end of its 95 % interval (normal).
        high: Upper end.
        sigma2_group: σ_u².
        sigma2_rest: σ_e².
        icc: σ_u²/(σ_u² + σ_e²), what groups share of what the measure leaves unexplained.
        groups: Number of groups.
        n: Units in which all is finite.
        converged: Whether the likelihood was maximised.
        warnings: What the solver said, and what a reader must know.
    """

    slope: float
    se: float
    low: float
    high: float
    sigma2_group: float
    sigma2_rest: float
    icc: float
    groups: int
    n: int
    converged: bool
    warnings: str = ""


def random_intercept(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], groups: Sequence[Any], *, reml: bool = True
) -> RandomIntercept:
    """Fit a linear model with a random intercept a group.

    Args:
        x: The measure, a value a unit; units where x or y is not finite are left out.
        y: The target.
        groups: The group of each unit: its configuration, where units are runs; its method, where configurations.
        reml: Restricted likelihood; False is maximum likelihood.

    Returns:
        The maximum over the one variance ratio, all else in closed form; the error is of generalised least squares.

    Raises:
        ValueError: If lengths differ.

    Source:
        Laird and Ware (1982), Biometrics 38(4).
    """
    x, y, label, lost = finite_units(x, y, groups)
    count, notes = int(label.max(initial=-1)) + 1, [f"{lost} units that are not finite left out"] if lost else []
    reason = ""
    if len(x) < 4:
        reason = "fewer than 4 units"
    elif count < 2 or count == len(x):
        reason = "one group: no random intercept" if count < 2 else "one unit a group: no random intercept"
    elif (x == x[0]).all() or (y == y[0]).all():
        reason = "constant measure" if (x == x[0]).all() else "constant target"
    if reason:
        nan = math.nan
        return RandomIntercept(nan, nan, nan, nan, nan, nan, nan, count, len(x), False, "; ".join([*notes, reason]))
    (x, power_x), (y, power_y) = scaled(x), scaled(y)
    scale_x, scale_y = float(np.abs(x - x.mean()).max()), float(np.abs(y - y.mean()).max())
    unit_x, unit_y = (x - x.mean()) / scale_x, (y - y.mean()) / scale_y
    slope, se, group, rest, converged, said = _profile(unit_x, unit_y, label, reml)
    icc = group / (group + rest) if group + rest > 0 else math.nan
    with np.errstate(over="ignore", under="ignore"):
        slope, se = (float(np.ldexp(v * scale_y / scale_x, power_y - power_x)) for v in (slope, se))
        group, rest = (float(np.ldexp(v * scale_y**2, 2 * power_y)) for v in (group, rest))
    if not (math.isfinite(slope) and math.isfinite(group + rest)):
        said = [*said, "out of the range of floating point in these units"]
    notes += said
    if count < 5:
        notes.append(f"{count} groups: their variance is hardly known")
    q = float(ndtri(0.975))
    return RandomIntercept(
        slope, se, slope - q * se, slope + q * se, group, rest, icc, count, len(x), converged, "; ".join(notes)
    )


def _profile(
    x: np.ndarray, y: np.ndarray, label: np.ndarray, reml: bool
) -> tuple[float, float, float, float, bool, list[str]]:
    """Maximise the profiled likelihood over s = λ/(1+λ), λ = σ_u²/σ_e²; (I + λ11')⁻¹ = I - λ/(1+mλ) 11' a group.

    The other parameters have a closed form, so many s are tried at once: a coarse look, as there may be two maxima, one
    of them at no variance between groups, and then ever finer ones around the best.
    """
    n, size = len(x), np.bincount(label).astype(np.float64)
    columns = np.stack([np.ones(n), x, y])
    sums = np.stack([np.bincount(label, row) for row in columns])
    plain = columns @ columns.T
    products = (sums[:, None] * sums[None]).reshape(9, -1)
    free = n - 2 if reml else n

    def solve(rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """-2 log likelihood, slope, its variance in units of σ_e², and σ_e², at each 1 - s = 1/(1 + λ)."""
        ratio = (1 - rest) / rest
        shrink = ratio / (1 + size[:, None] * ratio)
        (a, b, c), (_, d, e), (_, _, f) = plain[:, :, None] - (products @ shrink).reshape(3, 3, -1)
        determinant = a * d - b * b
        slope = (a * e - b * c) / determinant
        level = (d * c - b * e) / determinant
        spread = np.maximum(f - level * c - slope * e, 1e-300) / free
        loss = free * np.log(spread) + np.log1p(size[:, None] * ratio).sum(axis=0)
        return loss + (np.log(determinant) if reml else 0.0), slope, a / determinant, spread

    least = 1e-8
    low, high = math.log(least), 0.0
    for _ in range(10):
        places = _RISE * ((high - low) / 24) + low  # `np.linspace(low, high, 25)`, which takes longer
        places[24] = high
        k = int(solve(np.exp(places))[0].argmin())
        low, high = float(places[max(k - 1, 0)]), float(places[min(k + 1, 24)])
    rest = math.exp(float(places[k]))
    _, slope, variance, spread = (float(v[0]) for v in solve(np.array([rest])))
    said = []
    bound = rest < 2 * least
    if rest > 1 - 1e-9:
        said.append("no variance between groups")
    if bound:
        said.append("nearly no variance within groups: the fit is at its bound")
    return slope, math.sqrt(spread * variance), spread * (1 - rest) / rest, spread, not bound, said


def intraclass_correlation(y: Float[np.ndarray, " n"], groups: Sequence[Any]) -> float:
    """One-way ICC(1) = (MSB - MSW)/(MSB + (k0 - 1) MSW), k0 the adjusted mean group size; may be below 0.

    NaN with fewer than 2 groups, without a group of two, or for constant y. Values that are not finite are left out.

    Source:
        Shrout and Fleiss (1979), Psychol. Bull. 86(2); unequal sizes: Donner (1986), Int. Stat. Rev. 54(1).
    """
    if len(groups) != len(y):
        raise ValueError(f"`groups` must hold one label a value, got {len(groups)} for {len(y)}.")
    used = np.isfinite(y)
    label = labels([g for g, u in zip(groups, used.tolist(), strict=True) if u])
    return float(exchangeability.intraclass_correlation(y[None, used], label)[0])
