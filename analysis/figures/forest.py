"""Forest plot: the correlations of measures with a target, one line a measure, with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.candidates import MARKS, family_of
from analysis.figures.correlations import SYMBOLS, of_target, strongest
from analysis.figures.lines import Lines
from analysis.figures.room import key
from analysis.measures.registry import marks
from analysis.statistics.correlation_rows import BASELINE
from analysis.style import ALERT, FAMILIES, FAMILY_MARKERS, INK, MUTED, ink, interval, measure_name

CEILING = "#f0d9a8"


def forest(
    ax: Axes,
    correlations: pd.DataFrame,
    *,
    target: str,
    coefficient: str = "kendall",
    top: int | None = 20,
    measures: Sequence[str] | None = None,
    ceilings: pd.DataFrame | None = None,
    noisy: bool = False,
) -> Axes:
    """One line a measure: its coefficient over all configurations and, below it, the one inside cells.

    Args:
        ax: Where to draw.
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        target: The target all rows are about.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many of the strongest (by absolute value) to show; None for all.
        measures: Variants to show instead, candidates or baselines, from the top down.
        ceilings: Table of noise ceilings; the band spans its estimates for this target and coefficient.
        noisy: Whether training labels are noisy, so that measures which take them as given are marked.

    Returns:
        The axes: colour and marker are the measure's family. Filled: pooled. Hollow, on a thin line: stratified, with
        the hyper-parameters of training held fixed, or, where no row has it, the mean within methods. Marked: a sign
        that differs from the pooled one (⇄), warned values (⚠), measures that see held-out labels (†) or take noisy
        labels as given (‡).
    """
    if measures is None:
        rows = strongest(correlations, target=target, coefficient=coefficient, top=top)
    else:
        rows = of_target(correlations, target, coefficient).set_index("measure", drop=False).reindex(list(measures))
        rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    stratified = bool(np.isfinite(rows["stratified"].to_numpy(dtype=float)).any())
    records = rows.to_dict("records")
    kinds = [family_of(row) for row in records]
    lines, seen = forest_lines(records, ax=ax, noisy=noisy)
    upper, lower = lines.places()[0], lines.places()[-1]  # of the pooled, and of the stratified
    y = lines.write(ax, [ink(FAMILIES[kind]) for kind in kinds])
    ax.axvline(0, color=MUTED, lw=0.8, zorder=1)
    band = _ceiling(ceilings, target, coefficient)
    if band is not None:
        for sign in (-1, 1):
            ax.axvspan(*sorted((sign * band[0], sign * band[1])), color=CEILING, alpha=0.8, lw=0, zorder=0)
    for at, row in zip(y, records, strict=True):
        colour, marker = FAMILIES[family_of(row)], FAMILY_MARKERS[family_of(row)]
        beside = ax.get_yaxis_transform()
        if np.isfinite(row["low"]) and np.isfinite(row["high"]):
            ax.plot([row["low"], row["high"]], [at + upper] * 2, color=colour, lw=1.9, solid_capstyle="round", zorder=2)
        ax.plot(row["value"], at + upper, marker, color=colour, ms=5.5, zorder=4)
        text = interval(row["value"], row["low"], row["high"]) + "  ⇄" * bool(row["reversal"])
        text += "  ⚠" * bool(row["warned"] > 0)
        ax.text(1.03, at + upper, text, transform=beside, va="center", fontsize="small",
                color=ALERT if row["reversal"] else INK)  # fmt: skip
        hollow = "stratified" if stratified else "within"
        if not np.isfinite(row[hollow]):
            continue
        ax.plot(row[hollow], at + lower, marker, mfc="white", mec=colour, mew=1.1, ms=4.5, zorder=3)
        if stratified:
            low, high = row["stratified_low"], row["stratified_high"]
            ax.plot([low, high], [at + lower] * 2, color=colour, lw=0.9, ls=(0, (3, 1.2)), zorder=2)
            text = interval(row[hollow], low, high) + "  ⇄" * bool(row["cell_reversal"])
            ax.text(1.03, at + lower, text, transform=beside, va="center", fontsize="small",
                    color=ALERT if row["cell_reversal"] else MUTED)  # fmt: skip
    if measures is not None and 0 < (first := [*kinds, BASELINE].index(BASELINE)) < len(kinds):
        ax.axhline(len(kinds) - first - 0.5, color=MUTED, lw=0.6, ls=":")
    ax.set_xlim(-1.04, 1.04)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    ax.grid(axis="x")
    ax.set_xlabel(f"{SYMBOLS[coefficient]} with {measure_name(target)}")
    _forest_legend(ax, rows, kinds, stratified=stratified, with_band=band is not None, seen=seen)
    return ax


def forest_lines(
    records: Sequence[Mapping[Any, Any]], *, ax: Axes | None = None, noisy: bool = False
) -> tuple[Lines, str]:
    """The lines of a forest plot of these rows of correlations, and the marks behind their names.

    Args:
        records: Rows of the table of correlations.
        ax: Where it is drawn; None for a page of its own.
        noisy: As for `forest`.
    """
    seen = ["".join(f" {MARKS[mark]}" for mark in marks(row["measure"], noisy=noisy)) for row in records]
    names = [measure_name(row["measure"]) + mark for row, mark in zip(records, seen, strict=True)]
    stratified = any(np.isfinite(float(row["stratified"])) for row in records)
    return Lines.of(names, 2 if stratified else 1, ax), "".join(seen)


def _forest_legend(
    ax: Axes, rows: pd.DataFrame, kinds: Sequence[str], *, stratified: bool, with_band: bool, seen: str
) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=FAMILIES[kind], marker=FAMILY_MARKERS[kind], ms=5, label=kind)
        for kind in dict.fromkeys(kinds)
    ]
    hollow = {"ls": (0, (3, 1.2)), "lw": 0.9, "color": INK} if stratified else {"ls": ""}
    if stratified:
        handles.append(Line2D([], [], color=INK, marker="o", ms=5, lw=1.9, label="pooled"))
    if stratified or np.isfinite(rows["within"].to_numpy(dtype=float)).any():
        label = "inside cells" if stratified else "within methods"
        handles.append(Line2D([], [], marker="o", mfc="white", mec=INK, ms=4.5, label=label, **hollow))
    if with_band:
        handles.append(Patch(color=CEILING, label="noise ceiling"))
    if (rows["reversal"].astype(bool) | rows["cell_reversal"].astype(bool)).any():
        handles.append(Line2D([], [], ls="", marker="$⇄$", color=ALERT, ms=7, label="differs from pooled"))
    if (rows["warned"] > 0).any():
        handles.append(Line2D([], [], ls="", marker="$⚠$", color=INK, ms=7, label="warned values"))
    for mark, label in ((MARKS["held-out labels"], "sees held-out labels"), (MARKS["noisy labels"], "noisy labels")):
        if mark in seen:
            handles.append(Line2D([], [], ls="", marker=f"${mark}$", color=INK, ms=7, label=label))
    key(ax, handles)


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
