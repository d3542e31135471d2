"""One measure against one target, a point a configuration."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.room import folded, letters
from analysis.style import ALERT, INK, MUTED, fixed, interval, looks, measure_name, ordered

SHORTEST, LONGEST = 1e-3, 1e4  # largest value of a linear axis that is written without a power of ten
ROOM = 40  # letters across a panel, for five ticks


def scatter(
    ax: Axes,
    points: pd.DataFrame,
    *,
    measure: str,
    target: str,
    row: Mapping[Any, Any] | None = None,
    psi: float | None = None,
    methods: list[str] | None = None,
) -> Axes:
    """Measure against target, coloured by method, with whiskers of one standard deviation over seeds.

    Args:
        ax: Where to draw.
        points: One row a configuration: method, x, x_sd, y, y_sd (`StudyResults.points`).
        measure: Name for the horizontal axis.
        target: Name for the vertical axis.
        row: The row of the correlations table whose value, interval and number of configurations go into the title;
            where it says `reversal`, or a coefficient inside cells has the other sign, the title says so. For a
            `reversal` straight least-squares lines are drawn: one through each method's points, and a broken one
            through all of them.
        psi: The granulated coefficient, for the title; None or NaN leaves it out.
        methods: All methods of the study, so that colours agree between figures.

    Returns:
        The axes; the horizontal one is logarithmic where all values are positive and span more than a factor of 30.
    """
    look = looks(methods or points["method"])
    x = points["x"].to_numpy(dtype=float)
    logarithmic = len(x) > 0 and bool((x > 0).all()) and float(x.max() / x.min()) > 30
    if logarithmic:
        ax.set_xscale("log")
    reversal = row is not None and bool(row["reversal"])
    if reversal:
        _line(ax, points, MUTED, logarithmic=logarithmic, style="--")
    for label in ordered(points["method"]):
        name, colour, marker = look[label]
        here = points[points["method"] == label]
        faint = 0.25 if reversal else 0.45  # so that the lines stand out
        ax.errorbar(
            here["x"], here["y"], xerr=here["x_sd"], yerr=here["y_sd"], fmt="none", ecolor=colour, alpha=faint, lw=0.8
        )
        ax.plot(here["x"], here["y"], marker, color=colour, mec="white", mew=0.5, ms=5.5, label=name)
        if reversal:
            _line(ax, here, colour, logarithmic=logarithmic)
    if row is not None:
        value = interval(row["value"], row["low"], row["high"])
        granulated = "" if psi is None or not np.isfinite(psi) else f"Ψ = {fixed(psi)}, "
        turned = [f"inside methods {fixed(row['within'])}"] * reversal
        turned += [f"inside cells {fixed(row['stratified'])}"] * _opposite(row)
        more = f"\n⇄ {', '.join(turned)}" if turned else ""
        said = [f"τ$_b$ = {value}", f"{granulated}n = {row['n_configurations']}"]
        gap = ", " if sum(map(len, said)) + 2 < letters(ax) - 2 else "\n"  # the letters of $_b$ are room for the axis
        ax.set_title(gap.join(said) + more, fontweight="normal", fontsize="small", color=ALERT if turned else INK)
    powers = not logarithmic and bool(len(x)) and not SHORTEST <= np.abs(x).max() < LONGEST
    room = letters(ax, size="medium") - (14 if powers else 8)  # beside the power of ten at the axis's right end
    ax.set_xlabel(folded(measure_name(measure), room), loc="left" if powers else "center")
    ax.set_ylabel(measure_name(target))
    if not logarithmic:
        ax.xaxis.set_major_locator(MaxNLocator(5 if letters(ax) > ROOM else 3))
        ax.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    ax.grid()
    return ax


def turns(row: Mapping[Any, Any]) -> bool:
    """Whether the sign of a row of correlations is another one inside methods, or inside cells."""
    return bool(row["reversal"]) or _opposite(row)


def _opposite(row: Mapping[Any, Any]) -> bool:
    """Whether the coefficient inside cells is marked, and of the other sign."""
    return bool(row.get("cell_reversal", False)) and bool(row["value"] * row["stratified"] < 0)


def line_handles() -> list[Line2D]:
    """What the lines of a reversal mean, for a legend."""
    return [
        Line2D([], [], color=INK, lw=1.4, label="fit inside a method"),
        Line2D([], [], color=MUTED, lw=1.4, ls="--", label="fit to all"),
    ]


def _line(ax: Axes, points: pd.DataFrame, colour: str, *, logarithmic: bool, style: str = "-") -> None:
    x = points["x"].to_numpy(dtype=float)
    u = np.log(x) if logarithmic else x
    if len(np.unique(u)) < 3 or not np.ptp(u) > 1e-12 * np.abs(u).max():  # two points say nothing of a slope
        return
    slope, intercept = np.polyfit((u - u.mean()) / u.std(), points["y"].to_numpy(dtype=float), 1)
    ends = np.array([u.min(), u.max()])
    heights = intercept + slope * (ends - u.mean()) / u.std()
    ax.plot(np.exp(ends) if logarithmic else ends, heights, color=colour, lw=1.6, ls=style, zorder=3)
