"""Methods side by side: their paths on a surface of two weights, and what accuracy costs."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from analysis.style import INK, MUTED, looks

Surface = Callable[[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]], Float[np.ndarray, "n n"]]


def paths_on_surface(
    ax: Axes,
    surface: Surface,
    paths: pd.DataFrame,
    *,
    limits: tuple[float, float, float, float],
    levels: int = 18,
    points: int = 201,
) -> Axes:
    """Contours of a loss of two weights, and the path of each method from a filled start to a hollow end.

    Args:
        ax: Where to draw.
        surface: The loss at arrays of first and second weights.
        paths: Columns `method`, `step`, `x`, `y`: the weights after each step, one row each.
        limits: Smallest and largest x, smallest and largest y.
        levels: Number of contour lines.
        points: Grid points a side.

    Returns:
        The axes.

    Raises:
        ValueError: If a column is missing.
    """
    missing = {"method", "step", "x", "y"} - set(paths.columns)
    if missing:
        raise ValueError(f"`paths` lacks the columns {sorted(missing)}: it needs method, step, x and y.")
    x, y = np.meshgrid(np.linspace(*limits[:2], points), np.linspace(*limits[2:], points))
    ax.contour(x, y, surface(x, y), levels=levels, colors=MUTED, linestyles="solid", linewidths=0.5, alpha=0.6)
    names = list(dict.fromkeys(paths["method"]))
    shown = looks(names)
    for name in names:
        path = paths[paths["method"] == name].sort_values("step")
        label, colour, marker = shown[name]
        ax.plot(path["x"], path["y"], color=colour, lw=1.0, label=label)
        ax.plot(path["x"].iloc[-1], path["y"].iloc[-1], marker, color=colour, mfc="white", ms=5, mew=1.2)
    start = paths.sort_values("step").iloc[0]
    ax.plot(start["x"], start["y"], "o", color=INK, ms=4)
    ax.set(xlabel="first weight", ylabel="second weight", xlim=limits[:2], ylim=limits[2:])
    return ax


def cost_against_error(ax: Axes, table: pd.DataFrame) -> Axes:
    """Error against the cost of training, one point a method: the mean over seeds with its standard deviation.

    Points that nothing beats in both are joined. Points of the same cost are drawn beside each other.

    Args:
        ax: Where to draw.
        table: Columns `method`, `seed`, `cost` (in units of the base optimizer's training) and `error` (a fraction).

    Returns:
        The axes.

    Raises:
        ValueError: If a column is missing.
    """
    missing = {"method", "seed", "cost", "error"} - set(table.columns)
    if missing:
        raise ValueError(f"`table` lacks the columns {sorted(missing)}: it needs method, seed, cost and error.")
    means = table.groupby("method", sort=False).agg(
        cost=("cost", "mean"), error=("error", "mean"), spread=("error", "std")
    )
    shown = looks(list(means.index))
    width = 0.02 * max(1e-9, means["cost"].max() - means["cost"].min())
    place = means.groupby("cost").cumcount() - (means.groupby("cost")["cost"].transform("size") - 1) / 2
    for (name, row), shift in zip(means.iterrows(), place, strict=True):
        label, colour, marker = shown[str(name)]
        ax.errorbar(
            row["cost"] + width * shift, 100 * row["error"], yerr=100 * np.nan_to_num(row["spread"]),
            fmt=marker, color=colour, ms=5, lw=0.8, capsize=2, label=label,
        )  # fmt: skip
    front = means.sort_values(["cost", "error"])
    best = front[front["error"] < front["error"].cummin().shift(fill_value=np.inf)]
    ax.plot(best["cost"], 100 * best["error"], color=MUTED, lw=0.8, ls=":", zorder=0)
    ax.set(xlabel="cost of training (plain optimizer = 1)", ylabel="test error (%)")
    ax.grid(axis="y")
    return ax
