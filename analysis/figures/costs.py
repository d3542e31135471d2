"""What each measure costs."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.figures.room import key
from analysis.style import FAMILIES


def measure_costs(ax: Axes, costs: pd.DataFrame, *, unit: str) -> Axes:
    """A bar a measure, the most expensive first, with its number; logarithmic where costs span a factor of 30.

    Args:
        ax: Where to draw.
        costs: One row a measure: `measure`, `family` (a key of `FAMILIES`) and `cost`; rows that cost nothing are left
            out.
        unit: What the cost is counted in, for the axis.

    Raises:
        ValueError: If no measure has a cost above 0.
    """
    rows = costs[costs["cost"] > 0].sort_values(["cost", "measure"], ascending=[False, True])
    if rows.empty:
        raise ValueError("`costs` has no measure with a cost above 0.")
    y = np.arange(len(rows))
    cost = rows["cost"].to_numpy(dtype=float)
    ax.barh(y, cost, height=0.64, color=[FAMILIES[f] for f in rows["family"]])
    if cost.max() > 30 * cost.min():
        ax.set_xscale("log")
        ax.set_xlim(cost.min() / 3, cost.max() * 3)
    else:
        ax.set_xlim(0, 1.12 * cost.max())
    for at, value in zip(y, cost, strict=True):
        ax.annotate(f"{value:.2g}" if value < 10 else f"{value:.0f}", (value, at), (4, 0), textcoords="offset points",
                    va="center", fontsize="small")  # fmt: skip
    ax.set_yticks(y, rows["measure"].str.replace("_", " ").tolist(), fontsize="small")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(unit)
    ax.grid(axis="x")
    handles = [Patch(color=FAMILIES[f], label=f) for f in FAMILIES if f in set(rows["family"])]
    key(ax, handles)
    return ax
