"""Errors over training, and errors by the radius of the perturbation."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.room import key
from analysis.score import is_share
from analysis.style import looks, ordered

ERRORS = ("test_error", "train_error")

SPLITS = {"test": "Test", "train": "Training", "validation": "Validation"}


def training_curves(
    figure: Figure | SubFigure,
    history: pd.DataFrame,
    *,
    columns: tuple[str, ...] = ERRORS,
    methods: list[str] | None = None,
) -> Figure | SubFigure:
    """One panel a column of the history, one line a method: mean over its rows of an epoch, band of one deviation.

    Args:
        figure: Where to draw; it gets one row of panels.
        history: Rows to average, with `epoch`, `method` and the columns (shares are drawn in percent).
        columns: Columns of the history.
        methods: All methods of the study, so that colours agree between figures.

    Returns:
        The figure. The vertical axis ends a little above the largest mean after the first tenth of training.
    """
    look = looks(methods or history["method"])
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    labels = ordered(history["method"])
    for ax, column in zip(panels, columns, strict=True):
        top, factor = 0.0, _factor(column)
        for label in labels:
            by_epoch = history[history["method"] == label].groupby("epoch")[column]
            mean = factor * by_epoch.mean().dropna()  # errors are not taken after every epoch
            sd = factor * by_epoch.std().reindex(mean.index).fillna(0.0)
            _, colour, _ = look[label]
            ax.plot(mean.index, mean, color=colour)
            ax.fill_between(mean.index, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
            late = mean[mean.index > mean.index.max() / 10]
            top = max(top, float(np.nanmax(late)) if np.isfinite(late).any() else 0.0)
        if top > 0:
            ax.set_ylim(0, 1.08 * top)
        ax.set_ylabel(_label(column))
        ax.set_xlabel("Epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(axis="y")
    legend(figure, labels, methods)
    return figure


def _factor(column: str) -> float:
    return 100.0 if is_share(column) else 1.0


def _label(column: str) -> str:
    """A column of the history on an axis, such as "Training error (%)"."""
    split, _, score = column.partition("_")
    words = f"{SPLITS.get(split, split)} {score.replace('_', ' ')}"
    return f"{words} (%)" if is_share(column) else words


def accuracy_by_radius(
    ax: Axes, final: pd.DataFrame, *, target: str = ERRORS[0], methods: list[str] | None = None
) -> Axes:
    """Final test error against the radius ρ, one line a method; methods without a radius are level lines.

    Args:
        ax: Where to draw.
        final: One row a run: method, hp.rho and the target (shares are drawn in percent). The mean over the rows of
            one method and radius is the marker, one standard deviation the whisker.
        target: Column of another score in place of the error.
        methods: All methods of the study, so that colours agree between figures.
    """
    look = looks(methods or final["method"])
    rho = pd.to_numeric(final["hp.rho"], errors="coerce").fillna(0.0)
    rows = final.assign(rho=rho)
    for label in ordered(rows["method"]):
        name, colour, marker = look[label]
        by_rho = rows[rows["method"] == label].groupby("rho")[target]
        mean, sd = _factor(target) * by_rho.mean(), _factor(target) * by_rho.std()
        ascent = mean[mean.index > 0]
        if len(ascent):
            ax.errorbar(ascent.index, ascent, yerr=sd[ascent.index], color=colour, marker=marker, ms=5.5, mec="white",
                        mew=0.5, lw=1.4, elinewidth=0.8, label=name)  # fmt: skip
        elif len(mean):
            ax.axhline(float(mean.iloc[0]), color=colour, ls="--", lw=1.2, label=f"{name} (no radius)")
    radii = sorted(rho[rho > 0].unique())
    if radii:
        ax.set_xscale("log")
        ax.set_xticks(_thin(radii), [f"{r:g}" for r in _thin(radii)])
        ax.minorticks_off()
    ax.set_xlabel("Radius ρ (in each method's own units)")
    ax.set_ylabel(_label(target))
    ax.grid()
    key(ax, *ax.get_legend_handles_labels())
    return ax


def _thin(radii: list[float]) -> list[float]:
    """Leave out the radii whose tick labels would run into the one before on a logarithmic axis."""
    kept = radii[:1]
    for r in radii[1:]:
        if r >= kept[-1] * 1.35:
            kept.append(r)
    return kept


def legend(
    figure: Figure | SubFigure, labels: list[str], methods: list[str] | None = None, *, markers: bool = False
) -> None:
    """One legend of methods above all panels."""
    look = looks(methods or labels)
    handles = [
        Line2D(
            [], [], color=look[n][1], label=look[n][0], marker=look[n][2] if markers else "", ls="" if markers else "-"
        )
        for n in labels
    ]
    key(figure, handles)
