"""One measure against one target, a point a configuration."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.style import interval, looks, ordered


def scatter(
    ax: Axes,
    points: pd.DataFrame,
    *,
    measure: str,
    target: str,
    row: Mapping[Any, Any] | None = None,
    methods: list[str] | None = None,
) -> Axes:
    """Measure against target, coloured by method, with whiskers of one standard deviation over seeds.

    Args:
        ax: Where to draw.
        points: One row a configuration: method, x, x_sd, y, y_sd (`StudyResults.points`).
        measure: Name for the horizontal axis.
        target: Name for the vertical axis.
        row: The row of the correlations table whose value, interval and number of configurations go into the title;
            where it says `reversal`, a straight least-squares line through each method's points is drawn.
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
    for label in ordered(points["method"]):
        name, colour, marker = look[label]
        here = points[points["method"] == label]
        ax.errorbar(
            here["x"], here["y"], xerr=here["x_sd"], yerr=here["y_sd"], fmt="none", ecolor=colour, alpha=0.45, lw=0.8
        )
        ax.plot(here["x"], here["y"], marker, color=colour, mec="white", mew=0.5, ms=5.5, label=name)
        if reversal and here["x"].nunique() > 2:
            _line(ax, here, colour, logarithmic=logarithmic)
    if row is not None:
        value = interval(row["value"], row["low"], row["high"])
        ax.set_title(f"τ$_b$ = {value}, n = {row['n_configurations']}", fontweight="normal", fontsize="small")
    ax.set_xlabel(measure)
    ax.set_ylabel(target)
    ax.grid()
    return ax


def _line(ax: Axes, points: pd.DataFrame, colour: str, *, logarithmic: bool) -> None:
    x = points["x"].to_numpy(dtype=float)
    u = np.log(x) if logarithmic else x
    slope, intercept = np.polyfit(u - u.mean(), points["y"].to_numpy(dtype=float), 1)
    ends = np.array([u.min(), u.max()])
    ax.plot(np.exp(ends) if logarithmic else ends, intercept + slope * (ends - u.mean()), color=colour, lw=1.2)
