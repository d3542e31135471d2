"""The figures of the report: what each shows of a study, and a caption that says how its numbers were made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.correlations import comparison_plot, correlation_matrix, forest, strongest
from analysis.figures.curves import accuracy_by_radius, training_curves
from analysis.figures.forgetting import forgetting_bars, forgetting_curves
from analysis.figures.scatter import scatter
from analysis.results import StudyResults
from analysis.style import WIDTHS, family
from analysis.table import last_step

TOP = 20  # rows of a figure that a reader can still take in
PANELS = 4  # scatter plots
WIDTH = WIDTHS["screen"]
Facts = dict[str, Any]


class NothingToDraw(Exception):  # noqa: N818 -- not an error: the report prints the reason in place of the figure
    """There is nothing to draw; the message says why, in a sentence for the reader."""


@dataclass(frozen=True)
class Plate:
    """A figure of the report.

    Attributes:
        title: Heading.
        draw: Draws it, and returns the facts that the caption names; raises `NothingToDraw` with the reason.
        caption: Text with `{facts}` to be filled in.
        alt: What a reader who cannot see the figure is told.
    """

    title: str
    draw: Callable[[StudyResults], tuple[Figure, Facts]]
    caption: str
    alt: str

    def says(self, results: StudyResults, facts: Facts) -> str:
        """The caption, with the facts of the drawing and of the study's statistics filled in."""
        return self.caption.format(**results.facts(), **facts)


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _leading(results: StudyResults) -> tuple[str, pd.DataFrame]:
    """The target the report leads with and its correlations, strongest first."""
    for target in results.targets:
        rows = strongest(results.correlations, target=target)
        if len(rows):
            return target, rows
    raise NothingToDraw(
        "No correlation could be computed: there are too few finished configurations, or none was measured."
    )


def _forest(results: StudyResults) -> tuple[Figure, Facts]:
    target, rows = _leading(results)
    shown = min(len(rows), TOP)
    figure = _figure(1.3 + 0.21 * shown)
    forest(figure.add_subplot(), results.correlations, target=target, top=TOP, ceilings=results.ceilings)
    facts = {"target": target, "shown": shown, "all": len(rows), "n": _span(rows["n_configurations"].head(TOP))}
    return figure, facts


def _comparison(results: StudyResults) -> tuple[Figure, Facts]:
    rows = results.comparisons[np.isfinite(results.comparisons["difference"].to_numpy(dtype=float))]
    order = [t for t in results.targets if t in set(rows["target"])] or list(rows["target"].unique())
    if not order:
        raise NothingToDraw("No forgetting measure was compared with a sharpness measure.")
    here = rows[rows["target"] == order[0]]
    shown = min(len(here), 12)
    figure = _figure(0.9 + 0.36 * shown)
    comparison_plot(figure.add_subplot(), here, top=12)
    return figure, {"target": order[0], "shown": shown, "all": len(here), "n": _span(here["n_configurations"])}


def _scatter(results: StudyResults) -> tuple[Figure, Facts]:
    target, rows = _leading(results)
    # The strongest of each family first, so that one family does not fill the page; then the strongest of the rest.
    families = rows["measure"].map(family)
    first = rows[~families.duplicated() & (families != "other")]
    rest = rows[~rows["measure"].isin(first["measure"])]
    chosen = pd.concat([first, rest]).head(PANELS)
    drawn = [
        (row, points) for row in chosen.to_dict("records") if len(points := results.points(row["measure"], target))
    ]
    if not drawn:
        raise NothingToDraw(f"No configuration has both a measure and {target} at its last checkpoint.")
    columns = min(2, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = _figure(0.4 + 2.3 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    for ax in panels.flat[len(drawn) :]:
        ax.set_visible(False)
    for ax, (row, points) in zip(panels.flat, drawn, strict=False):
        scatter(ax, points, measure=row["measure"], target=target, row=row, methods=results.methods)
    for ax in panels[:, 1:].flat:
        ax.set_ylabel("")
    unique = {label: h for ax in panels.flat for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=min(7, len(unique)))
    return figure, {"target": target, "shown": len(drawn)}


def _matrix(results: StudyResults) -> tuple[Figure, Facts]:
    _leading(results)
    rows = results.correlations[results.correlations["coefficient"] == "kendall"]
    targets = [t for t in results.targets if np.isfinite(rows.loc[rows["target"] == t, "value"].to_numpy(float)).any()][
        :8
    ]
    measures = rows.loc[rows["target"].isin(targets), "measure"].nunique()
    figure = _figure(0.7 + 0.2 * min(measures, TOP))
    correlation_matrix(figure.add_subplot(), rows, top=TOP, targets=targets)
    return figure, {"shown": min(measures, TOP), "all": measures}


def _training(results: StudyResults) -> tuple[Figure, Facts]:
    chosen, rule = results.best_configurations()
    if chosen.empty:
        raise NothingToDraw("No run finished, so there is no curve to draw.")
    rows = results.history.merge(chosen[["run_id", "method"]], on="run_id", how="inner")
    if not np.isfinite(rows[["test_error", "train_error"]].to_numpy(dtype=float)).any():
        raise NothingToDraw("No error was recorded during training.")
    figure = _figure(2.7)
    training_curves(figure, rows, methods=results.methods)
    return figure, {"rule": rule, "runs": _counted(len(chosen), "run")}


def _radius(results: StudyResults) -> tuple[Figure, Facts]:
    if "hp.rho" not in results.runs.columns:
        raise NothingToDraw("The runs have no radius `rho`.")
    final, rule = results.best_configurations("hp.rho")
    final = final[np.isfinite(final["test_error"].to_numpy(dtype=float))]
    if not (pd.to_numeric(final["hp.rho"], errors="coerce") > 0).any():
        raise NothingToDraw("No finished run was trained with a radius above 0.")
    figure = _figure(2.8)
    accuracy_by_radius(figure.add_subplot(), final, methods=results.methods)
    return figure, {"rule": rule}


def _forgetting_rows(
    results: StudyResults, *, radius: str | None = None, over_time: bool = False
) -> tuple[pd.DataFrame, Any]:
    """Rows of forgetting of one batch size m: the most measured, and the smallest among equals.

    The control that perturbs nothing is left out. Over time, only runs and providers measured at several checkpoints
    count: others would enter the last point of a curve alone, and bend it.
    """
    rows = results.forgetting()
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float)) & (rows["provider"] != "zero")]
    if radius is not None and (rows["radius"] == radius).any():
        rows = rows[rows["radius"] == radius]
    if rows.empty:
        raise NothingToDraw("No perturbed forgetting was measured on a finished run.")
    if over_time:
        rows = rows[rows.groupby(["run_id", "provider"])["step"].transform("nunique") > 1]
        if rows.empty:
            raise NothingToDraw("Forgetting was measured at the last checkpoint only.")
    sizes = rows["m"].dropna()
    if sizes.empty:
        return rows, "all"
    counts = sizes.value_counts()
    m = min(counts[counts == counts.max()].index)
    return rows[rows["m"] == m], m


def _bars(results: StudyResults) -> tuple[Figure, Facts]:
    rows, m = _forgetting_rows(results)
    rows = last_step(rows)
    figure = _figure(5.2)
    forgetting_bars(figure, rows)
    return figure, {"m": _whole(m), "runs": _counted(rows["run_id"].nunique(), "run")}


def _curves(results: StudyResults) -> tuple[Figure, Facts]:
    rows, m = _forgetting_rows(results, radius="iso-loss", over_time=True)
    figure = _figure(3.9)
    forgetting_curves(figure, rows, methods=results.methods)
    return figure, {"m": _whole(m), "runs": _counted(rows["run_id"].nunique(), "run"), "radius": _radii(results, rows)}


def _by_method(results: StudyResults) -> tuple[Figure, Facts]:
    rows, m = _forgetting_rows(results, radius="iso-loss", over_time=True)
    rows = rows[(rows["split"] == "held_out") & rows["provider"].isin(["sam", "obf"])]
    if rows.empty:
        raise NothingToDraw("Neither SAM's nor OBF's perturbation was measured on held-out examples.")
    figure = _figure(3.9)
    forgetting_curves(figure, rows, by="method", methods=results.methods)
    return figure, {"m": _whole(m), "runs": _counted(rows["run_id"].nunique(), "run"), "radius": _radii(results, rows)}


def _radii(results: StudyResults, rows: pd.DataFrame) -> str:
    nats = results.facts()["nats"]
    known = {"iso-loss": f"the distance at which the loss on the batch has risen by {nats} (iso-loss)"}
    return " and ".join(known.get(r, f"the radius `{r}`") for r in sorted(set(rows["radius"])))


def _whole(m: Any) -> str:
    return m if isinstance(m, str) else f"{float(m):g}"


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


FIGURES: dict[str, Plate] = {
    "forest": Plate(
        title="Which measures go with generalisation",
        draw=_forest,
        caption=(
            "Kendall's τ_b of each measure with `{target}` over {n} configurations, each averaged over its seeds; "
            "the {shown} strongest of {all} by absolute value, at most two in "
            "five of one family. They were chosen for being strong, so read them with "
            "the Holm column of the table, which corrects for all that were tried. Lines: {intervals}. Hollow: mean "
            "of τ_b inside each method. ⇄: pooled and within-method signs differ. Band: noise ceiling, what a "
            "measure could reach at most given the noise between seeds. Measures are raw: a positive value means a "
            "larger measure goes with a larger target."
        ),
        alt="Forest plot of correlations with intervals, one line a measure.",
    ),
    "comparison": Plate(
        title="Forgetting against sharpness",
        draw=_comparison,
        caption=(
            "Paired difference |τ_b(forgetting)| − |τ_b(sharpness)| with `{target}`, both taken on the same {n} "
            "configurations; {shown} of {all} pairs, the largest differences. {intervals}; filled where the interval "
            "excludes 0, hollow where it contains 0 or where there is none. The pairs were named in the study."
        ),
        alt="Paired differences between forgetting and sharpness correlations, with intervals.",
    ),
    "scatter": Plate(
        title="Leading measures, configuration by configuration",
        draw=_scatter,
        caption=(
            "Each point is a configuration, averaged over its seeds at the last checkpoint; whiskers are one "
            "standard deviation over seeds. Shown: the strongest measure of each family by |τ_b| with `{target}`, "
            "then the next strongest, {shown} in all. Titles: τ_b with its {level} interval and the number n of "
            "configurations. Straight lines are least-squares fits inside each method, drawn only where pooled and "
            "within-method signs differ."
        ),
        alt="Scatter plots of measures against the target, coloured by training method.",
    ),
    "correlation_matrix": Plate(
        title="Measures by targets",
        draw=_matrix,
        caption=(
            "Kendall's τ_b of measures (rows, grouped by family) with targets (columns); the {shown} of {all} "
            "measures with the largest absolute value over the targets, at most two in five of one family. "
            "Bold: the {level} interval excludes 0, "
            "before any correction for the number of tests. Every target is larger-is-worse."
        ),
        alt="Heat map of rank correlations, measures by targets.",
    ),
    "training_curves": Plate(
        title="Training",
        draw=_training,
        caption=(
            "Error after each epoch, mean and one standard deviation over runs, {runs} in all. For each method: "
            "{rule}. Training error is on the labels as trained. The axes end just above the largest mean after the "
            "first tenth of training."
        ),
        alt="Test and training error over epochs, one line a method.",
    ),
    "radius": Plate(
        title="Error by radius",
        draw=_radius,
        caption=(
            "Test error at the end of training against the radius ρ of the perturbation; mean and one standard "
            "deviation over runs. For each method and radius: {rule}. Radii of adaptive methods are in other units "
            "than those of plain ones, so lines may be compared in height but not from left to right."
        ),
        alt="Final test error against the perturbation radius, one line a method.",
    ),
    "forgetting_bars": Plate(
        title="What a perturbation makes the model forget",
        draw=_bars,
        caption=(
            "At the last checkpoint of each run, for perturbations computed on batches of m = {m} examples: the "
            "share of examples turned from right to wrong (cw), and information lost from the outputs, I(X;Ŷ) (F_mi) "
            "and I(X;Ŷ|Y) (F_cmi); positive means forgotten. Bars: mean over {runs}, whiskers one standard deviation "
            "over them. Each value is itself a mean over batches; its standard error is in the measures table."
        ),
        alt="Bars of forgetting by perturbation and by what it was exposed to.",
    ),
    "forgetting_curves": Plate(
        title="Forgetting over training",
        draw=_curves,
        caption=(
            "Forgetting at each checkpoint at {radius}, batches of m = {m}; mean and one standard deviation over "
            "{runs} of all methods. Exposed examples are those the perturbation was computed on."
        ),
        alt="Forgetting over epochs by exposure, one panel a perturbation.",
    ),
    "forgetting_by_method": Plate(
        title="Forgetting by training method",
        draw=_by_method,
        caption=(
            "Forgetting of held-out examples under common perturbations, the same for all models: {radius}, batches "
            "of m = {m}. Lines: training methods, mean and one standard deviation over their runs, {runs} in all."
        ),
        alt="Forgetting of held-out examples over epochs, one line a training method.",
    ),
}
