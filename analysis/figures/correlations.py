"""Correlations of measures with targets: forest plot, heat map, and paired comparisons of two measures."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.candidates import MARKS, family_of, one_cell, strength_first
from analysis.measures.registry import marks
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE, completed
from analysis.statistics.resampling import MINIMUM
from analysis.style import ALERT, FAMILIES, FAMILY_MARKERS, INK, MUTED, family, fixed, ink, interval, measure_name

KNOWN = 8  # baselines of a matrix
VARIANTS = 3  # of one measure in a figure, as long as there are others
SYMBOLS = {"kendall": "Kendall τ$_b$", "spearman": "Spearman ρ", "pearson": "Pearson r"}


def strongest(
    correlations: pd.DataFrame, *, target: str, coefficient: str = "kendall", top: int | None = None
) -> pd.DataFrame:
    """The candidates of one target and coefficient with a finite value, strongest first, by absolute value.

    Those on fewer than 5 configurations come after all others. Baselines, which are no candidates, are left out.

    Args:
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        target: What is explained.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many; of one family at most two in five, and of one measure at most three variants, as long as there
            are others, so that none fills the page.

    Raises:
        ValueError: If `coefficient` is not known, or `top` is below 1.
    """
    if coefficient not in SYMBOLS:
        raise ValueError(f"`coefficient` must be one of {list(SYMBOLS)}, got {coefficient!r}.")
    if top is not None and top < 1:
        raise ValueError(f"`top` must be at least 1, got {top!r}; leave it out to keep every measure.")
    rows = of_target(correlations, target, coefficient)
    kept = strength_first(rows[rows["role"] != BASELINE])
    if top is None:
        return kept
    return kept.iloc[_chosen(kept["measure"], top)]


def of_target(correlations: pd.DataFrame, target: str, coefficient: str = "kendall") -> pd.DataFrame:
    """Every row of one target and coefficient, candidates and baselines, with all columns.

    Where one cell holds all models, the coefficient inside cells is the pooled one again, and is left out.
    """
    here = (correlations["target"] == target) & (correlations["coefficient"] == coefficient)
    rows = completed(correlations[here])
    if one_cell(correlations, target):
        twice = rows.filter(regex="^stratified").select_dtypes("number").columns
        rows = rows.assign(**dict.fromkeys(twice, math.nan), cell_reversal=False)
    return rows


def leading(results: StudyResults) -> tuple[str, pd.DataFrame]:
    """The target the report leads with and its correlations, strongest first; "" and no row where there is none."""
    found = ((t, rows) for t in results.targets if len(rows := strongest(results.correlations, target=t)))
    return next(found, ("", results.correlations.iloc[:0]))


def _chosen(measures: pd.Series, top: int) -> np.ndarray:
    """Places of the measures to show, of a series in order of strength: none of its kind fills the page."""
    variants = measures.groupby(measures.str.split("[").str[0]).cumcount().to_numpy()
    of_family = measures.map(family).to_numpy()
    late = variants >= VARIANTS
    for name in set(of_family):
        early = np.flatnonzero((of_family == name) & ~late)
        late[early[math.ceil(0.4 * top) :]] = True
    return np.sort(np.argsort(late, kind="stable")[:top])


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
    lift = 0.19 if stratified else 0.0  # of the pooled above the middle of a line, and of the stratified below
    y = np.arange(len(rows))[::-1]
    ax.axvline(0, color=MUTED, lw=0.8, zorder=1)
    band = _ceiling(ceilings, target, coefficient)
    if band is not None:
        for sign in (-1, 1):
            ax.axvspan(*sorted((sign * band[0], sign * band[1])), color="#f0d9a8", alpha=0.8, lw=0, zorder=0)
    records = rows.to_dict("records")
    for at, row in zip(y, records, strict=True):
        colour, marker = FAMILIES[family_of(row)], FAMILY_MARKERS[family_of(row)]
        beside = ax.get_yaxis_transform()
        if np.isfinite(row["low"]) and np.isfinite(row["high"]):
            ax.plot([row["low"], row["high"]], [at + lift] * 2, color=colour, lw=1.9, solid_capstyle="round", zorder=2)
        ax.plot(row["value"], at + lift, marker, color=colour, ms=5.5, zorder=4)
        text = interval(row["value"], row["low"], row["high"]) + "  ⇄" * bool(row["reversal"])
        text += "  ⚠" * bool(row["warned"] > 0)
        ax.text(1.03, at + lift, text, transform=beside, va="center", fontsize="small",
                color=ALERT if row["reversal"] else INK)  # fmt: skip
        hollow = "stratified" if stratified else "within"
        if not np.isfinite(row[hollow]):
            continue
        ax.plot(row[hollow], at - lift, marker, mfc="white", mec=colour, mew=1.1, ms=4.5, zorder=3)
        if stratified:
            low, high = row["stratified_low"], row["stratified_high"]
            ax.plot([low, high], [at - lift] * 2, color=colour, lw=0.9, ls=(0, (3, 1.2)), zorder=2)
            text = interval(row[hollow], low, high) + "  ⇄" * bool(row["cell_reversal"])
            ax.text(1.03, at - lift, text, transform=beside, va="center", fontsize="small",
                    color=ALERT if row["cell_reversal"] else MUTED)  # fmt: skip
    kinds = [family_of(row) for row in records]
    seen = ["".join(f" {MARKS[mark]}" for mark in marks(row["measure"], noisy=noisy)) for row in records]
    names = [measure_name(row["measure"]) + mark for row, mark in zip(records, seen, strict=True)]
    ax.set_yticks(y, names, fontsize="small")
    for label, kind in zip(ax.get_yticklabels(), kinds, strict=True):
        label.set_color(ink(FAMILIES[kind]))
    if measures is not None and 0 < (first := [*kinds, BASELINE].index(BASELINE)) < len(kinds):
        ax.axhline(len(kinds) - first - 0.5, color=MUTED, lw=0.6, ls=":")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.set_xlim(-1.04, 1.04)
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    ax.grid(axis="x")
    ax.set_xlabel(f"{SYMBOLS[coefficient]} with {measure_name(target)}")
    _forest_legend(ax, rows, kinds, stratified=stratified, with_band=band is not None, seen="".join(seen))
    return ax


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
        handles.append(Patch(color="#f0d9a8", label="noise ceiling"))
    if (rows["reversal"].astype(bool) | rows["cell_reversal"].astype(bool)).any():
        handles.append(Line2D([], [], ls="", marker="$⇄$", color=ALERT, ms=7, label="differs from pooled"))
    if (rows["warned"] > 0).any():
        handles.append(Line2D([], [], ls="", marker="$⚠$", color=INK, ms=7, label="warned values"))
    for mark, label in ((MARKS["held-out labels"], "sees held-out labels"), (MARKS["noisy labels"], "noisy labels")):
        if mark in seen:
            handles.append(Line2D([], [], ls="", marker=f"${mark}$", color=INK, ms=7, label=label))
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.legend(handles=handles, loc="outside upper left", ncols=4)


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


def matrix_rows(rows: pd.DataFrame, *, top: int) -> list[str]:
    """The candidates that a matrix of these rows (of one coefficient) shows: the strongest of all targets."""
    rows = completed(rows)
    rows = rows[rows["role"] != BASELINE]
    strength = rows["value"].abs() - 2.0 * (rows["n_configurations"] < MINIMUM)
    peak = rows.assign(peak=strength).groupby("measure")["peak"].max()
    peak = peak[np.isfinite(peak)].sort_values(ascending=False, kind="stable")
    return [str(m) for m in peak.index[_chosen(peak.index.to_series(), top)]]


def strongest_baselines(rows: pd.DataFrame, targets: Sequence[str]) -> list[str]:
    """The first `KNOWN` baselines by their absolute value with the first target that they have one with.

    Of each the strongest variant.
    """
    known = completed(rows)
    known = known[(known["role"] == BASELINE) & np.isfinite(known["value"].to_numpy(dtype=float))]
    place = known["target"].map({name: i for i, name in enumerate(targets)})
    base = known["measure"].str.split("[").str[0]
    order = known.assign(place=place, strength=-known["value"].abs(), base=base)
    order = order.sort_values(["place", "strength", "measure"]).drop_duplicates("base")
    return [str(name) for name in order["measure"].head(KNOWN)]


def correlation_matrix(
    ax: Axes,
    correlations: pd.DataFrame,
    *,
    coefficient: str = "kendall",
    top: int = 20,
    targets: list[str] | None = None,
) -> Axes:
    """Heat map, baselines and measures by targets; bold where the interval excludes 0, a dash where there is no value.

    Args:
        ax: Where to draw.
        correlations: Table with the columns of `analysis.results.CORRELATIONS`.
        coefficient: "kendall", "spearman" or "pearson".
        top: How many measures, by their largest absolute value over the targets; above them the `KNOWN` strongest
            baselines.
        targets: Columns, in order; all of the table's by default.
    """
    rows = completed(correlations[correlations["coefficient"] == coefficient])
    names = targets or list(dict.fromkeys(rows["target"]))
    rows = rows[rows["target"].isin(names)]
    value = rows.pivot_table(index="measure", columns="target", values="value", aggfunc="first").reindex(columns=names)
    clear = (rows["low"] > 0) | (rows["high"] < 0)
    sure = rows.assign(clear=clear.astype(float)).pivot_table(index="measure", columns="target", values="clear")
    baselines = strongest_baselines(rows, names)
    value = value.loc[[*baselines, *matrix_rows(rows, top=top)]]
    groups = {name: i for i, name in enumerate((BASELINE, *(k for k in FAMILIES if k != BASELINE)))}
    first = np.abs(np.nan_to_num(value.to_numpy(dtype=float)[:, :1].ravel()))
    strength = dict(zip(value.index, first, strict=True))
    order = sorted(value.index, key=lambda m: (groups[family(m)], -strength[m]))
    value, sure = value.loc[order], sure.reindex(index=order, columns=names)
    ax.imshow(value.to_numpy(dtype=float), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for i, measure in enumerate(order):
        for j, name in enumerate(names):
            x = value.loc[measure, name]
            ax.text(j, i, fixed(x).replace("0.", ".", 1), ha="center", va="center",
                    fontsize="small" if len(names) < 8 else "x-small",
                    color="white" if abs(x) > 0.62 else INK,
                    fontweight="bold" if sure.loc[measure, name] == 1 else "normal")  # fmt: skip
    shown = [measure_name(name) for name in names]
    ax.set_xticks(range(len(names)), shown, fontsize="small", rotation=50, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(order)), [measure_name(m) for m in order], fontsize="small")
    for label, name in zip(ax.get_yticklabels(), order, strict=True):
        label.set_color(ink(FAMILIES[family(name)]))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(order) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=3)
    ax.tick_params(which="minor", length=0)
    kinds = [family(m) for m in order]
    for i in range(1, len(kinds)):
        if kinds[i] != kinds[i - 1]:
            ax.axhline(i - 0.5, color="white", lw=5)
    handles = [Patch(color=FAMILIES[kind], label=kind) for kind in dict.fromkeys(kinds)]
    figure = ax.get_figure(root=True)
    if figure is not None and handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return ax


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
    lift = 0.19 if rows["pairs"].nunique() > 1 else 0.0
    ax.axvline(0, color=MUTED, lw=0.8)
    for row in rows.to_dict("records"):
        pair = (row["forgetting"], row["sharpness"])
        if pair not in y:
            continue
        inside = row["pairs"] == "stratified"
        at = y[pair] + (-lift if inside else lift)
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
    labels = [f"{measure_name(first)}\nagainst {measure_name(second)}" for first, second in y]
    ax.set_yticks(list(y.values()), labels, fontsize="small")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-0.7, len(y) - 0.3)
    ends = rows[[c for c in ("difference", "low", "high", "low_draws", "high_draws") if c in rows]].to_numpy(
        dtype=float
    )
    reach = float(np.nanmax(np.abs(ends))) if np.isfinite(ends).any() else 1.0
    ax.set_xlim(-1.08 * max(reach, 0.1), 1.08 * max(reach, 0.1))
    ax.grid(axis="x")
    ax.set_xlabel("|τ$_b$(first)| − |τ$_b$(second)|")
    for x, side, text in ((0, "left", "← second"), (1, "right", "first →")):
        ax.text(x, 1.02, text, transform=ax.transAxes, ha=side, va="bottom", fontsize="small", color=MUTED)
    return ax
