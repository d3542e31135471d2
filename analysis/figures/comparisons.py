"""Paired comparisons of two measures: which is the stronger correlate."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures.lines import Lines
from analysis.style import FAMILIES, INK, MUTED, family, fixed, interval, measure_name


def comparison_plot(ax: Axes, comparisons: pd.DataFrame, *, top: int | None = 16) -> Axes:
    """Paired differences |τ(first)| - |τ(second)| with their intervals, in the order of the table.

    Filled where every interval excludes 0, hollow where one contains 0 or where there is none. Where the table has
    both, a line over all pairs of configurations stands above a broken one over those inside cells; a thin line is the
    interval that resamples draws of the data too, which is then the one in numbers.

    Args:
        ax: Where to draw.
        comparisons: Table with the columns of `analysis.results.COMPARISONS`, best of one target.
        top: How many pairs; None for all.
    """
    rows = comparisons[np.isfinite(comparisons["difference"].to_numpy(dtype=float))]
    if "pairs" not in rows.columns:
        rows = rows.assign(pairs="pooled")
    names = rows[["forgetting", "sharpness"]].drop_duplicates().head(top or len(rows))
    y = {pair: len(names) - 1 - i for i, pair in enumerate(names.itertuples(index=False, name=None))}
    lines = comparison_lines(list(y), marks=min(rows["pairs"].nunique(), 2), ax=ax)
    upper, lower = lines.places()[0], lines.places()[-1]
    lines.write(ax)
    ax.axvline(0, color=MUTED, lw=0.8, zorder=1)
    for row in rows.to_dict("records"):
        pair = (row["forgetting"], row["sharpness"])
        if pair not in y:
            continue
        inside = row["pairs"] == "stratified"
        at = y[pair] + (lower if inside else upper)
        colour = FAMILIES[family(pair[0] if row["difference"] > 0 else pair[1])]
        known = bool(np.isfinite(row["low"]) and np.isfinite(row["high"]))
        if known:
            style = {"lw": 0.9, "ls": (0, (3, 1.2))} if inside else {"lw": 1.9}
            ax.plot([row["low"], row["high"]], [at, at], color=colour, solid_capstyle="round", **style)
        if np.isfinite(row.get("low_draws", math.nan)):
            ax.plot([row["low_draws"], row["high_draws"]], [at, at], color=colour, lw=0.6)
        ends = [(row["low"], row["high"]), (row.get("low_draws", math.nan), row.get("high_draws", math.nan))]
        ends = [pair for pair in ends if np.isfinite(pair).all()]
        clear = bool(ends) and (min(low for low, _ in ends) > 0 or max(high for _, high in ends) < 0)
        ax.plot(row["difference"], at, "o", ms=4.5 if inside else 5.5, mec=colour, mew=1.2,
                mfc=colour if clear else "white")  # fmt: skip
        text = interval(row["difference"], *ends[-1]) if ends else fixed(row["difference"])
        ax.text(1.03, at, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small",
                color=MUTED if inside else INK)  # fmt: skip
    ends = rows[[c for c in ("difference", "low", "high", "low_draws", "high_draws") if c in rows]].to_numpy(
        dtype=float
    )
    reach = float(np.nanmax(np.abs(ends))) if np.isfinite(ends).any() else 1.0
    ax.set_xlim(-1.08 * max(reach, 0.1), 1.08 * max(reach, 0.1))
    ax.xaxis.set_major_locator(MaxNLocator(4 if lines.stacked else 7, symmetric=True))
    ax.grid(axis="x")
    ax.set_xlabel("|τ$_b$(first)| − |τ$_b$(second)|")
    for x, side, text in ((0, "left", "← second"), (1, "right", "first →")):
        ax.text(x, 1.02, text, transform=ax.transAxes, ha=side, va="bottom", fontsize="small", color=MUTED)
    return ax


def comparison_lines(pairs: Sequence[tuple[str, str]], *, marks: int, ax: Axes | None = None) -> Lines:
    """The lines of a plot of these pairs.

    Args:
        pairs: First and second measure.
        marks: How many marks each has.
        ax: Where it is drawn; None for a page of its own.
    """
    names = [f"{measure_name(first)}\nagainst {measure_name(second)}" for first, second in pairs]
    return Lines.of(names, marks, ax)
