"""Curvature: spectral densities, the ends of the spectrum along training, the edge of stability, traces by layer."""

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.style import ALERT, INK, MUTED, looks
from landscape import Eigenpairs, Estimate, SpectralDensity

FLOOR = 1e-7  # lowest density shown, relative to the highest
POINTS = 2000
MARGIN = 6.0  # bandwidths shown beyond the outermost node


def spectrum(
    ax: Axes,
    density: SpectralDensity,
    *,
    pairs: Eigenpairs | None = None,
    sigma: float | None = None,
    label: str = "",
    colour: str = "#0072b2",
) -> Axes:
    """A spectral density on a logarithmic axis, with a band of two standard errors, and outliers as ticks.

    The height of an isolated eigenvalue is noise and depends on the smoothing, so its place is taken from `pairs`.

    Args:
        ax: Where to draw; a second density may follow on the same axes.
        density: Of any operator.
        pairs: Extreme eigenvalues, drawn as ticks below the curve.
        sigma: Width of the smoothing; None is the density's own.
        label: For the legend.
        colour: Of the curve, the band and the ticks.

    Returns:
        The axes. Below 1e-7 of the largest density nothing is drawn; the floor is a dotted line.
    """
    width = density.bandwidth if sigma is None else sigma
    low, high = float(density.nodes[0]) - MARGIN * width, float(density.nodes[-1]) + MARGIN * width
    grid = torch.linspace(low, high, POINTS, dtype=torch.float64)
    height = density.density(grid, sigma=width).numpy()
    error = np.nan_to_num(density.stderr(grid, sigma=width).numpy())
    floor = FLOOR * height.max()
    x = grid.numpy()
    ax.fill_between(
        x, np.maximum(height - 2 * error, floor), np.maximum(height + 2 * error, floor), color=colour, alpha=0.25, lw=0
    )
    ax.plot(x, np.where(height > floor, height, np.nan), color=colour, lw=1.2, label=label or None)
    ax.set_yscale("log")
    ax.axhline(floor, color=MUTED, lw=0.7, ls=":", gid="floor")
    floors = [np.asarray(line.get_ydata(), dtype=float)[0] for line in ax.lines if line.get_gid() == "floor"]
    ax.set_ylim(bottom=min(floors) / 100)
    if pairs is not None:
        ticks = pairs.values.numpy()
        rank = sum(line.get_gid() == "ticks" for line in ax.lines)  # a second row lies below the first
        ax.plot(ticks, np.full(len(ticks), min(floors) / 4 / 6**rank), "|", color=colour, ms=5, mew=1.2, gid="ticks")
    ax.set_xlabel("eigenvalue λ")
    ax.set_ylabel("density φ(λ)")
    return ax


def eigenvalue_curves(
    figure: Figure | SubFigure, table: pd.DataFrame, *, labels: Mapping[str, str] | None = None
) -> Figure | SubFigure:
    """Both ends of the Hessian's spectrum along training, one panel each, one line a run.

    Args:
        figure: Where to draw.
        table: Measures table with the rows `top_eigenvalue` and `bottom_eigenvalue`.
        labels: Name of each run id in the legend; None is the run ids.

    Raises:
        ValueError: If the table lacks the rows.
    """
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1]})
    for ax, name, text in ((upper, "top_eigenvalue", "largest λ"), (lower, "bottom_eigenvalue", "smallest λ")):
        _curves(ax, table, name, labels)
        ax.axhline(0, color=MUTED, lw=0.7)
        ax.set_ylabel(text)
        ax.grid(axis="y")
    lower.set_xlabel("optimizer step")
    if table["run_id"].nunique() > 1:
        upper.legend()
    return figure


def edge_of_stability(ax: Axes, table: pd.DataFrame, *, labels: Mapping[str, str] | None = None) -> Axes:
    """The largest Hessian eigenvalue along training, against the curvature at which steps cease to be stable.

    Args:
        ax: Where to draw.
        table: Measures table with the rows `top_eigenvalue` and `stability_ratio`; the latter's options hold the
            threshold, 2/lr for gradient descent.
        labels: Name of each run id in the legend; None is the run ids.

    Raises:
        ValueError: If the table lacks the rows, as for runs that have no threshold.
    """
    _curves(ax, table, "top_eigenvalue", labels)
    bounds = _rows(table, "stability_ratio")
    colours = {line.get_gid(): line.get_color() for line in ax.lines}
    for run, rows in bounds.groupby("run_id", sort=False):
        threshold = rows["options"].map(lambda text: float(json.loads(text)["threshold"]))
        ax.step(rows["step"], threshold, color=colours[str(run)], ls="--", lw=1, where="pre")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("largest Hessian eigenvalue")
    ax.grid(axis="y")
    handles = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    ax.legend(handles=[*handles, Line2D([], [], color=INK, ls="--", lw=1, label="edge of stability")])
    return ax


def layer_traces(ax: Axes, whole: Estimate, *, level: float = 0.95) -> Axes:
    """The trace of each block with its confidence interval, in the order of the model.

    Args:
        ax: Where to draw.
        whole: A trace with `parts`, as `landscape.trace` gives with `blocks=`.
        level: Of the intervals.

    Raises:
        ValueError: If `whole` has no parts.
    """
    if not whole.parts:
        raise ValueError("`whole` has no parts: ask for them, as in trace(H, blocks=H.layers, ...).")
    names = list(whole.parts)
    values = np.array([part.value for part in whole.parts.values()])
    ends = np.array([part.interval(level) for part in whole.parts.values()])
    place = np.arange(len(names))
    ax.barh(place, values, height=0.62, color="#2995ff")
    ax.errorbar(values, place, xerr=abs(ends.T - values), fmt="none", ecolor=INK, elinewidth=1)
    ax.axvline(0, color=MUTED, lw=0.7)
    ax.set_yticks(place, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("trace of the block")
    ax.grid(axis="x")
    return ax


def _curves(ax: Axes, table: pd.DataFrame, measure: str, labels: Mapping[str, str] | None) -> None:
    """One line a run with whiskers of the residual; what did not converge is crossed out."""
    rows = _rows(table, measure)
    names = {str(run): (labels or {}).get(str(run), str(run)) for run in rows["run_id"].unique()}
    look = looks(names.values())
    for run, own in rows.groupby("run_id", sort=False):
        _, colour, _ = look[names[str(run)]]
        own = own.sort_values("step")
        ax.plot(own["step"], own["value"], "-o", color=colour, ms=2.5, lw=1.2, label=names[str(run)], gid=str(run))
        ax.errorbar(own["step"], own["value"], yerr=own["stderr"], fmt="none", ecolor=colour, elinewidth=0.8)
        open_end = own[~own["converged"]]
        ax.plot(open_end["step"], open_end["value"], "x", color=ALERT, ms=6, label="_not converged")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _rows(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    rows = table[table["measure"] == measure]
    if rows["value"].notna().sum() == 0:
        raise ValueError(
            f"`table` has no values of {measure!r}: measure hessian_eigenvalues, at runs of SGD for a threshold."
        )
    return rows
