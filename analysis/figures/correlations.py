"""Correlations of measures with targets: forest plot, heat map, and paired comparisons of two measures."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.style import ALERT, FAMILIES, INK, MUTED, family, fixed, interval

SYMBOLS = {"kendall": "Kendall τ$_b$", "spearman": "Spearman ρ", "pearson": "Pearson r"}


def strongest(
    correlations: pd.DataFrame, *, target: str, coefficient: str = "kendall", top: int | None = None
) -> pd.DataFrame:
    """The rows of one target and coefficient with a finite value, strongest first, by absolute value.

    Args:
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        target: What is explained.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many; of one family at most two in five, as long as others have any, so that none fills the page.

    Raises:
        ValueError: If `coefficient` is not known, or `top` is below 1.
    """
    if coefficient not in SYMBOLS:
        raise ValueError(f"`coefficient` must be one of {list(SYMBOLS)}, got {coefficient!r}.")
    if top is not None and top < 1:
        raise ValueError(f"`top` must be at least 1, got {top!r}; leave it out to keep every measure.")
    rows = correlations[(correlations["target"] == target) & (correlations["coefficient"] == coefficient)]
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    order: pd.DataFrame = rows.assign(strength=rows["value"].abs()).sort_values(
        ["strength", "measure"], ascending=[False, True]
    )
    kept: pd.DataFrame = order.drop(columns="strength")
    if top is None:
        return kept
    place = kept.groupby(kept["measure"].map(family)).cumcount().to_numpy()
    first = np.argsort(place >= math.ceil(0.4 * top), kind="stable")[:top]
    return kept.iloc[np.sort(first)]


def forest(
    ax: Axes,
    correlations: pd.DataFrame,
    *,
    target: str,
    coefficient: str = "kendall",
    top: int | None = 20,
    ceilings: pd.DataFrame | None = None,
) -> Axes:
    """One line a measure: pooled coefficient and interval, within-method value, and where the noise ceiling lies.

    Args:
        ax: Where to draw.
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        target: The target all rows are about.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many of the strongest (by absolute value) to show; None for all.
        ceilings: Table of noise ceilings; the band spans its estimates for this target and coefficient.

    Returns:
        The axes: colour is the measure's family, a hollow marker the mean within methods, and a row whose two values
        differ in sign is marked as a reversal.
    """
    rows = strongest(correlations, target=target, coefficient=coefficient, top=top)
    y = np.arange(len(rows))[::-1]
    ax.axvline(0, color=MUTED, lw=0.8, zorder=1)
    band = _ceiling(ceilings, target, coefficient)
    if band is not None:
        for sign in (-1, 1):
            ax.axvspan(*sorted((sign * band[0], sign * band[1])), color="#f0d9a8", alpha=0.8, lw=0, zorder=0)
    for at, row in zip(y, rows.to_dict("records"), strict=True):
        colour = FAMILIES[family(row["measure"])]
        if np.isfinite(row["low"]) and np.isfinite(row["high"]):
            ax.plot([row["low"], row["high"]], [at, at], color=colour, lw=1.6, solid_capstyle="round", zorder=2)
        ax.plot(row["value"], at, "o", color=colour, ms=5.5, zorder=4)
        if np.isfinite(row["within"]):
            ax.plot(row["within"], at, "o", mfc="white", mec=colour, mew=1.1, ms=4.5, zorder=3)
        text = interval(row["value"], row["low"], row["high"]) + ("  ⇄" if row["reversal"] else "")
        ax.text(1.03, at, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small",
                color=ALERT if row["reversal"] else INK)  # fmt: skip
    ax.set_yticks(y, rows["measure"].tolist(), fontsize="small")
    for label, name in zip(ax.get_yticklabels(), rows["measure"], strict=True):
        label.set_color(FAMILIES[family(name)])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.set_xlim(-1.04, 1.04)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    ax.grid(axis="x")
    ax.set_xlabel(f"{SYMBOLS[coefficient]} with {target}")
    _forest_legend(ax, rows, with_band=band is not None)
    return ax


def _forest_legend(ax: Axes, rows: pd.DataFrame, *, with_band: bool) -> None:
    shown = {family(m) for m in rows["measure"]}
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=colour, marker="o", ms=5, label=name) for name, colour in FAMILIES.items() if name in shown
    ]
    if np.isfinite(rows["within"].to_numpy(dtype=float)).any():
        handles.append(Line2D([], [], ls="", marker="o", mfc="white", mec=INK, ms=4.5, label="within methods"))
    if with_band:
        handles.append(Patch(color="#f0d9a8", label="noise ceiling"))
    if rows["reversal"].astype(bool).any():
        handles.append(Line2D([], [], ls="", marker="$⇄$", color=ALERT, ms=7, label="signs differ"))
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4))


def _ceiling(ceilings: pd.DataFrame | None, target: str, coefficient: str) -> tuple[float, float] | None:
    """Smallest and largest estimate of the ceiling, widened to a visible line where they agree; None without any."""
    if ceilings is None:
        return None
    rows = ceilings[(ceilings["target"] == target) & (ceilings["coefficient"] == coefficient)]
    values = rows[["spearman_brown", "oracle_with_noise"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    return float(values.min()) - 0.006, float(values.max()) + 0.006


def correlation_matrix(
    ax: Axes,
    correlations: pd.DataFrame,
    *,
    coefficient: str = "kendall",
    top: int = 20,
    targets: list[str] | None = None,
) -> Axes:
    """Heat map, measures by targets; bold where the interval excludes 0, a dash where there is no value.

    Args:
        ax: Where to draw.
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many measures, by their largest absolute value over the targets.
        targets: Columns, in order; all of the table's by default.
    """
    rows = correlations[correlations["coefficient"] == coefficient]
    names = targets or list(dict.fromkeys(rows["target"]))
    rows = rows[rows["target"].isin(names)]
    value = rows.pivot_table(index="measure", columns="target", values="value", aggfunc="first").reindex(columns=names)
    clear = (rows["low"] > 0) | (rows["high"] < 0)
    sure = rows.assign(clear=clear.astype(float)).pivot_table(index="measure", columns="target", values="clear")
    peak = value.abs().max(axis=1).sort_values(ascending=False, kind="stable")
    place = peak.groupby(peak.index.map(family)).cumcount().to_numpy()
    value = value.loc[peak.index[np.sort(np.argsort(place >= math.ceil(0.4 * top), kind="stable")[:top])]]
    groups = {name: i for i, name in enumerate(FAMILIES)}
    order = sorted(value.index, key=lambda m: (groups[family(m)], -np.nan_to_num(abs(value.loc[m].iloc[0]))))
    value, sure = value.loc[order], sure.reindex(index=order, columns=names)
    ax.imshow(value.to_numpy(dtype=float), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for i, measure in enumerate(order):
        for j, name in enumerate(names):
            x = value.loc[measure, name]
            ax.text(j, i, fixed(x), ha="center", va="center", fontsize="small",
                    color="white" if abs(x) > 0.62 else INK,
                    fontweight="bold" if sure.loc[measure, name] == 1 else "normal")  # fmt: skip
    ax.set_xticks(range(len(names)), names, fontsize="small", rotation=35, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(order)), order, fontsize="small")
    for label, name in zip(ax.get_yticklabels(), order, strict=True):
        label.set_color(FAMILIES[family(name)])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(order) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="minor", length=0)
    return ax


def comparison_plot(ax: Axes, comparisons: pd.DataFrame, *, top: int | None = 16) -> Axes:
    """Paired differences |τ(forgetting)| - |τ(sharpness)| with their intervals, the largest in absolute value first.

    Filled where the interval excludes 0, hollow where it contains 0 or where there is none.

    Args:
        ax: Where to draw.
        comparisons: Table with the columns of `analysis.results.COMPARISONS`, best of one target.
        top: How many rows; None for all.
    """
    rows = comparisons[np.isfinite(comparisons["difference"].to_numpy(dtype=float))]
    rows = rows.reindex(rows["difference"].abs().sort_values(ascending=False, kind="stable").index)
    rows = rows.head(top or len(rows))
    y = np.arange(len(rows))[::-1]
    ax.axvline(0, color=MUTED, lw=0.8)
    for at, row in zip(y, rows.to_dict("records"), strict=True):
        colour = FAMILIES["forgetting" if row["difference"] > 0 else "sharpness"]
        known = bool(np.isfinite(row["low"]) and np.isfinite(row["high"]))
        if known:
            ax.plot([row["low"], row["high"]], [at, at], color=colour, lw=1.6, solid_capstyle="round")
        clear = known and (row["low"] > 0 or row["high"] < 0)
        ax.plot(row["difference"], at, "o", ms=5.5, mec=colour, mew=1.2, mfc=colour if clear else "white")
        ax.text(1.03, at, interval(row["difference"], row["low"], row["high"]),
                transform=ax.get_yaxis_transform(), va="center", fontsize="small")  # fmt: skip
    labels = [f"{f}\nagainst {s}" for f, s in zip(rows["forgetting"], rows["sharpness"], strict=True)]
    ax.set_yticks(y, labels, fontsize="small")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ends = rows[["difference", "low", "high"]].to_numpy(dtype=float)
    reach = float(np.nanmax(np.abs(ends))) if np.isfinite(ends).any() else 1.0
    ax.set_xlim(-1.08 * max(reach, 0.1), 1.08 * max(reach, 0.1))
    ax.grid(axis="x")
    ax.set_xlabel("|τ$_b$(forgetting)| − |τ$_b$(sharpness)|")
    for x, side, text in ((0, "left", "← sharpness"), (1, "right", "forgetting →")):
        ax.text(x, 1.02, text, transform=ax.transAxes, ha=side, va="bottom", fontsize="small", color=MUTED)
    return ax
