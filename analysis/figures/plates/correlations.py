"""Figures of the report on measures and generalisation."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from analysis.candidates import compared, lineup, noisy_labels
from analysis.figures.comparisons import comparison_lines, comparison_plot
from analysis.figures.correlations import matrix_rows, of_target, strongest_baselines
from analysis.figures.forest import forest, forest_lines
from analysis.figures.matrix import CELL, correlation_matrix
from analysis.figures.plates.plate import OWN, Drawn, NothingToDraw, Plate, Wanted, leading
from analysis.figures.room import key, letters
from analysis.figures.scatter import line_handles, scatter, turns
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE, completed
from analysis.statistics.exchangeability import COMPLETE_CELLS, INSIDE_METHODS
from analysis.style import FAMILIES, counted, family, from_to, looks, measure_name

TOP = 20  # rows of a figure that a reader can still take in
PANELS = 4  # scatter plots, where there are fewer families
TARGETS = 9  # columns of the matrix


def _forest(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    target, _ = leading(results)
    rows = of_target(results.correlations, target)
    standings, noisy = lineup(results, rows), noisy_labels(results)
    records = [standing.row for standing in standings if standing.stands_for]
    which = "one measure of each family, named in the study's file or the usual one,"
    if wanted.measures:
        of_name = {row["measure"]: row for row in rows.to_dict("records")}
        names = wanted.named([*(standing.row["measure"] for standing in standings), *of_name])
        records, which = [of_name[name] for name in names], "the measures asked for,"
    stratified = any(np.isfinite(row["stratified"]) for row in records)
    figure = forest_page(pd.DataFrame(records), results.ceilings, target, noisy=noisy, wanted=wanted)
    hollow = "mean of τ_b inside each method"
    if stratified:
        cells, dropped = (max(int(row[name]) for row in records) for name in ("cells", "cells_dropped"))
        hollow = (
            f"τ_b over pairs inside one cell of equal hyper-parameters of training ({counted(cells, 'cell')}, "
            f"{dropped} left out for having fewer than 3 configurations)"
        )
    baselines = sum(row["role"] == BASELINE for row in records)
    known = (
        f"below the dotted line {counted(baselines, 'baseline')}: what is known without any measure"
        if baselines
        else "no baseline was correlated with this target"
    )
    tried = int(((rows["role"] != BASELINE) & np.isfinite(rows["value"].to_numpy(dtype=float))).sum())
    return figure, {
        "target": target, "which": which, "all": tried,
        "n": from_to(pd.Series([row["n_configurations"] for row in records])),
        "by_method": _by_method(records), "hollow": hollow, "known": known,
        "broken": "; broken ones resample inside cells" if stratified else "",
        "noisy": "‡: sorts examples by the noisy labels that were given. " if noisy else "",
    }  # fmt: skip


def _by_method(records: list[dict[Any, Any]]) -> str:
    """For how many lines the unit that is left out is a method, or a cell."""
    counts = {
        "a method with all its configurations": sum(row["permuted"] == INSIDE_METHODS for row in records),
        "a cell of equal hyper-parameters, and a method": sum(row["permuted"] == COMPLETE_CELLS for row in records),
    }
    return "".join(f"; for {number} of them {what}" for what, number in counts.items() if number)


def forest_page(
    rows: pd.DataFrame, ceilings: pd.DataFrame, target: str, *, noisy: bool, wanted: Wanted = OWN
) -> Figure | SubFigure:
    """The forest plot of these rows of correlations, in their order, on a page of its own or where it is wanted."""
    lines, _ = forest_lines(rows.to_dict("records"), noisy=noisy)
    figure, ax = wanted.panel(1.3 + lines.height * len(rows))
    forest(ax, rows, target=target, measures=rows["measure"].tolist(), ceilings=ceilings, noisy=noisy)
    return figure


def _comparison(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    rows = results.comparisons[np.isfinite(results.comparisons["difference"].to_numpy(dtype=float))]
    order = [t for t in results.targets if t in set(rows["target"])] or list(rows["target"].unique())
    if not order:
        raise NothingToDraw("No two measures were compared: the study names no pair of which both were measured.")
    here = rows[rows.index.isin(compared(results, order[0]).index)]
    pairs = list(here[["forgetting", "sharpness"]].drop_duplicates().itertuples(index=False, name=None))
    lines = comparison_lines(pairs[:12], marks=min(here["pairs"].nunique(), 2))
    inside = "pairs" in here.columns and (here["pairs"] == "stratified").any()
    drawn = "low_draws" in here.columns and np.isfinite(here["low_draws"].to_numpy(dtype=float)).any()
    figure, ax = wanted.panel(0.9 + lines.height * len(lines.names))
    comparison_plot(ax, here, top=12)
    return figure, {
        "target": order[0], "shown": len(lines.names), "all": len(pairs), "n": from_to(here["n_configurations"]),
        "inside": "Below, on a broken line: over pairs inside cells of equal hyper-parameters of training. " if inside
        else "",
        "drawn": f" Thin, and in numbers: resampling draws of the data too.{results.facts()['overlap']}" if drawn
        else "",
    }  # fmt: skip


def _scatter(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    target, rows = leading(results)
    of_measure = {row["measure"]: row for row in of_target(results.correlations, target).to_dict("records")}
    shown = wanted.named([*rows["measure"], *of_measure]) if wanted.measures else _panels(results, target, rows)
    points = {m: results.points(m, target) for m in shown}
    drawn = [of_measure[name] for name, places in points.items() if name in of_measure and len(places)]
    if not drawn:
        raise NothingToDraw(f"No configuration has both a measure and {target} at its last checkpoint.")
    psi = _granulated(results, target)
    columns = min(2, len(drawn))
    lines = -(-len(drawn) // columns)
    turned = any(row["reversal"] for row in drawn)
    figure = wanted.page(0.5 + 2.35 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for ax in panels.flat[len(drawn) :]:
        ax.set_visible(False)
    for ax, row in zip(panels.flat, drawn, strict=False):
        name = row["measure"]
        scatter(ax, points[name], measure=name, target=target, row=row, psi=psi.get(name), methods=results.methods)
    for ax in panels[:, 1:].flat:
        ax.set_ylabel("")
    found = {label: h for ax in panels.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    names = [look[0] for look in looks(results.methods).values()]
    handles = [*(found[name] for name in names if name in found), *(line_handles() if turned else [])]
    key(figure, handles)
    every = int(rows["reversal"].astype(bool).sum())
    said = (
        "In none of them do the pooled and the within-method sign differ"
        if not every and not any(map(turns, drawn))
        else f"⇄: the pooled sign and that within methods or inside cells differ (Simpson), within methods for {every} "
        f"of the {len(rows)} variants by sign alone; there straight least-squares lines are drawn, full in each "
        "method of three or more configurations, broken through all"
    )
    named = (
        "Ψ: the granulated rank correlation, the mean of τ over groups of models that differ in one hyper-parameter "
        "alone (Jiang et al. 2020). "
        if psi
        else ""
    )
    families = {family(row["measure"]) for row in drawn}
    what = "one measure of each family, which the study's file names or else the usual one"
    if wanted.measures:
        what = "the measures asked for"
    elif len(drawn) > len(families):
        what += f", and others, {len(drawn)} in all"
    each = "hp.data_seed" in results.runs and results.runs["hp.data_seed"].nunique() > 1
    less = ", without what a draw of the data adds to all configurations alike" if each else ""
    return figure, {"target": target, "shown": what, "reversals": said, "psi": named, "drawn": less}


def _panels(results: StudyResults, target: str, rows: pd.DataFrame) -> list[str]:
    """The representatives of families, then the strongest of the rest; a reversal is always there."""
    standings = lineup(results, of_target(results.correlations, target))
    named = [str(standing.row["measure"]) for standing in standings if standing.named]
    rest = [str(m) for m in rows["measure"] if m not in named]
    chosen = [*named, *rest][: max(PANELS, len(named))]
    turned = rows[rows["reversal"].astype(bool)]
    if len(turned) and not {row["measure"] for row in rows.to_dict("records") if turns(row)} & set(chosen):
        clear = turned[["value", "within"]].abs().min(axis=1)  # both signs are then more than noise
        chosen = [*chosen[: max(PANELS - 1, len(named))], str(turned["measure"].iloc[int(clear.to_numpy().argmax())])]
    return chosen


def _granulated(results: StudyResults, target: str) -> dict[str, float]:
    rows = results.further.get("granulated", pd.DataFrame(columns=["measure", "target", "axis", "psi"]))
    rows = rows[(rows["target"] == target) & (rows["axis"] == "all") & np.isfinite(rows["psi"].to_numpy(dtype=float))]
    return dict(zip(rows["measure"], rows["psi"].astype(float), strict=True))


def _left_out(every: pd.Series, shown: pd.Series) -> str:
    """How many of each family are not shown, in words."""
    rest = every[~every.isin(set(shown))].map(family).value_counts()
    parts = [f"{rest[name]} of {name}" for name in FAMILIES if name in rest.index]
    return f"Left out: {', '.join(parts)}" if parts else "None is left out"


def _matrix(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    leading(results)
    rows = completed(results.correlations[results.correlations["coefficient"] == "kendall"])
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    every = pd.Series(rows.loc[rows["role"] != BASELINE, "measure"].unique())
    if wanted.measures:
        rows = rows[rows["measure"].isin(wanted.named(rows["measure"]))]
    known_targets = [t for t in results.targets if t in set(rows["target"])]
    longest = max(len(measure_name(name)) for name in matrix_rows(rows, top=TOP))
    targets = known_targets[: max(1, min(TARGETS, (letters() - longest) // CELL))]
    rows = rows[rows["target"].isin(targets)]
    known = len(strongest_baselines(rows, targets))
    kept = pd.Series(matrix_rows(rows, top=TOP))
    figure, ax = wanted.panel(1.6 + 0.2 * (len(kept) + known))
    correlation_matrix(ax, rows, top=TOP, targets=targets)
    left = _left_out(every, kept)
    if rest := known_targets[len(targets) :]:
        left += f". Of the targets {', '.join(f'`{name}`' for name in rest)} have no column"
    return figure, {"shown": len(kept), "all": len(every), "known": known, "left": left}


PLATES: dict[str, Plate] = {
    "forest": Plate(
        title="Which measures go with generalisation",
        draw=_forest,
        chooses=True,
        caption=(
            "Kendall's τ_b with `{target}` over {n} configurations, each averaged over its seeds: {which} of the {all} "
            "that were tried; {known}. Filled: over all pairs of configurations. Hollow: {hollow}. Lines: "
            "{intervals}{by_method}{broken}. ⇄: a sign that differs from the pooled one, within methods (upper line) "
            "or inside cells (lower line), or a difference beyond chance. ⚠: some values carry a warning. †: sees "
            "held-out labels, so judge it against the validation error. {noisy}Band: noise ceiling, of the target "
            "against itself. Measures are raw: a positive value means that a larger measure goes with a larger "
            "target. The table has all variants, with p-values corrected for all that were tried."
        ),
        alt="Forest plot of correlations with intervals, one line a measure.",
    ),
    "comparison": Plate(
        title="One measure against another",
        draw=_comparison,
        caption=(
            "Paired difference of |τ_b| with `{target}` between the first and the second measure of each pair, "
            "both taken on the same {n} configurations. Shown: {shown} of {all} pairs that the study named, in its "
            "order. {inside}{resampled}.{drawn} Filled where every interval excludes 0, hollow where one contains "
            "0 or where there is none. Where a |τ_b| is near 0 its absolute value is too large on average, and the "
            "difference is not to be trusted."
        ),
        alt="Paired differences between the correlations of two measures, with intervals.",
    ),
    "scatter": Plate(
        title="Configuration by configuration",
        draw=_scatter,
        chooses=True,
        caption=(
            "Each point is a configuration, averaged over its seeds at the last checkpoint; whiskers are one "
            "standard deviation over seeds{drawn}. Shown against `{target}`: {shown}, "
            "with a reversal among them if there is one. Titles: τ_b with its {level} interval and the number n of "
            "configurations. {psi}{reversals}."
        ),
        alt="Scatter plots of measures against the target, coloured by training method.",
    ),
    "correlation_matrix": Plate(
        title="Measures by targets",
        draw=_matrix,
        chooses=True,
        caption=(
            "Kendall's τ_b of measures (rows, grouped by family) with targets (columns): first the {known} "
            "strongest baselines, then the {shown} of {all} measures with the largest absolute value over the "
            "targets, at most two in five of one family and three variants of one measure. {left}. Bold: the "
            "{level} interval excludes 0, before any correction for the number of tests. Every target is "
            "larger-is-worse."
        ),
        alt="Heat map of rank correlations, measures by targets.",
    ),
}
