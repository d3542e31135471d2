"""Sharpness against the radius, with what the slope at the weights alone would give."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures.room import key
from analysis.style import INK, looks, ordered


def sharpness_by_radius(ax: Axes, rises: pd.DataFrame, *, methods: list[str] | None = None) -> Axes:
    """The rise of the loss by radius ρ, one line a method, beside its Taylor line.

    The line is ρ‖g‖, or ρ‖g‖ + ρ² gᵀHg / (2‖g‖²) where the curvature along the gradient is there too. Where the points
    leave it, the loss is no longer what slope and curvature at the weights say.

    Args:
        ax: Where to draw; both axes are logarithmic.
        rises: One row a run and radius: method, rho, value (the rise, in nats), slope (‖g‖), and curvature (gᵀHg/‖g‖²)
            or NaN. Medians over a method's runs are drawn, and quartiles as whiskers: rises differ by factors.
        methods: All methods of the study, so that colours agree between figures.

    Raises:
        ValueError: If no rise is above 0.
    """
    rows = rises[(rises["value"] > 0) & (rises["rho"] > 0)]
    if rows.empty:
        raise ValueError("`rises` holds no rise above 0.")
    look = looks(methods or rows["method"])
    labels = ordered(rows["method"])
    lines = False
    for label in labels:
        name, colour, marker = look[label]
        here = rows[rows["method"] == label]
        by_rho = here.groupby("rho")["value"]
        low, middle, high = (by_rho.quantile(q) for q in (0.25, 0.5, 0.75))
        ax.errorbar(middle.index, middle, yerr=[middle - low, high - middle], color=colour, marker=marker, ms=5,
                    mec="white", mew=0.5, lw=0, elinewidth=0.9, label=name)  # fmt: skip
        grid = np.geomspace(rows["rho"].min() / 1.3, rows["rho"].max() * 1.3, 40)
        slope, curvature = float(here["slope"].median()), float(here["curvature"].median())
        if np.isfinite(slope):
            taylor = grid * slope + (grid**2 * curvature / 2 if np.isfinite(curvature) else 0.0)
            ax.plot(grid[taylor > 0], taylor[taylor > 0], color=colour, lw=1.0, ls="--", zorder=1)
            lines = True
    ax.set_xscale("log")
    ax.set_yscale("log")
    radii = sorted(rows["rho"].unique())
    ax.set_xticks(radii, [f"{r:g}" for r in radii])
    ax.minorticks_off()
    ax.set_xlabel("Radius ρ")
    ax.set_ylabel("Rise of the loss (nats)")
    ax.grid()
    handles, names = ax.get_legend_handles_labels()
    if lines:
        second = bool(np.isfinite(rows["curvature"]).any())
        handles.append(Line2D([], [], color=INK, lw=1.0, ls="--"))
        names.append("second order" if second else "first order")
    key(ax, handles, names)
    return ax
