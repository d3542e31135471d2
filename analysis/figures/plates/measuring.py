"""Figures of the report on the measures themselves: along training, by radius, what they cost, and calibration."""

import numpy as np
import pandas as pd

from analysis.figures.calibration import SCORES, calibration
from analysis.figures.costs import measure_costs
from analysis.figures.plates.plate import (
    OWN,
    Drawn,
    NothingToDraw,
    Plate,
    Wanted,
    last_of,
    runs_of_methods,
    with_options,
)
from analysis.figures.radii import sharpness_by_radius
from analysis.figures.reliability import reliability_diagram
from analysis.figures.trajectories import along_training
from analysis.results import StudyResults
from analysis.style import counted, family
from analysis.table import with_variant

BARS = 24
RADII = POINTS = 3  # fewer show no curve
LINES = 2  # panels of a family along training
FIRST = (  # of what was measured along training, these are shown first
    *("top_eigenvalue", "hessian_trace", "m_sharpness", "ascent_sharpness", "adaptive_ascent_sharpness"),
    *("F_mi", "cw", "F_cmi", "F_use"),
)


def _along(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    finished = results.configurations().query("status == 'finished'")
    rows = with_variant(results.measures).merge(finished, on="run_id", how="inner")
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float))]
    at = rows.groupby(["run_id", "variant"])["step"].transform("nunique")
    if (at > 1).any() and not (at >= POINTS).any():
        raise NothingToDraw(f"Measures were taken at fewer than {POINTS} checkpoints, which show no curve.")
    rows = rows[at >= POINTS]
    kinds = rows["measure"].map(family)
    columns = [names for kind in ("sharpness", "forgetting") if (names := _shown(rows[kinds == kind]))]
    if wanted.measures:
        asked = wanted.named(rows["variant"])
        columns = [asked[: -(-len(asked) // 2)], asked[-(-len(asked) // 2) :]] if len(asked) > 1 else [asked]
    elif not len(rows[kinds == "sharpness"]):
        raise NothingToDraw(
            "Sharpness was measured at the last checkpoint only; name its measures under `trajectory` in the study."
        )
    lines = max(map(len, columns))
    figure = wanted.page(0.6 + 1.75 * lines)
    along_training(figure, rows, columns=columns, methods=results.methods)
    shown = rows[rows["variant"].isin([name for names in columns for name in names])]
    what = "The measures asked for" if wanted.measures else "Measures of sharpness (left) and forgetting (right)"
    return figure, {
        "what": what,
        "each": runs_of_methods(shown),
        "all": rows["variant"].nunique(),
        "shown": sum(map(len, columns)),
    }


def _shown(rows: pd.DataFrame) -> list[str]:
    """The variants of a family to show: of different measures, those of `FIRST` and on held-out data first."""
    if rows.empty:
        return []
    counts = rows.groupby(["measure", "variant"])["run_id"].nunique().reset_index()
    place = {name: i for i, name in enumerate(FIRST)}
    apart = ~counts["variant"].str.contains("held_out")
    counts = counts.assign(place=counts["measure"].map(place).fillna(len(FIRST)), apart=apart)
    order = counts.sort_values(["place", "apart", "run_id", "variant"], ascending=[True, True, False, True])
    best = order.drop_duplicates("measure")
    return [str(v) for v in best["variant"].head(LINES)]


def _calibration(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    chosen, rule = results.best_configurations()
    rows = last_of(results, chosen, *SCORES, *(scaled for scaled, _ in SCORES.values()))
    if not rows["measure"].isin(["ece", "brier"]).any():
        raise NothingToDraw("Calibration was not measured on a finished run.")
    figure = wanted.page(1.1 + 0.28 * rows["method"].nunique())
    calibration(figure, rows, methods=results.methods)
    return figure, {"rule": rule, "runs": counted(rows["run_id"].nunique(), "run")}


def _costs(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    entries = results.entries()
    timed = bool(np.isfinite(entries["seconds"].to_numpy(dtype=float)).any())
    entries = entries.assign(cost=entries["seconds" if timed else "gradients"])
    rows = entries[entries["cost"] > 0].sort_values("cost", ascending=False)
    if rows.empty:
        raise NothingToDraw("Neither the seconds of the measures nor their expected costs are known.")
    shown = rows.head(BARS)
    free = sorted(entries.loc[entries["cost"] == 0, "measure"])
    figure, ax = wanted.panel(1.0 + 0.21 * len(shown))
    measure_costs(ax, shown, unit="seconds a checkpoint" if timed else "gradients a checkpoint")
    what = (
        "Seconds that each measure took at a checkpoint, mean over checkpoints; a measure that comes after others may "
        "use what they left, such as per-example gradients"
        if timed
        else "Expected cost of each measure at one checkpoint, in gradients over the training data, with its default "
        "options on networks like those of the default study"
    )
    left = (
        f"The {len(shown)} most expensive of the {len(entries)} measures of this study."
        if len(shown) + len(free) < len(entries)
        else f"All {len(entries)} measures of this study."
    )
    if free:
        left += f" Only read, at no cost to speak of: {', '.join(f'`{name}`' for name in free)}."
    return figure, {"what": what, "left": left}


def _reliability(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    chosen, rule = results.best_configurations()
    rows = last_of(results, chosen, "bin_accuracy")
    if rows.empty:
        raise NothingToDraw("The bins of confidence were not measured: name `reliability` among the study's measures.")
    bins = with_options(rows, "bin", "confidence", "bins").assign(accuracy=rows["value"], n=rows["draws"])
    figure = wanted.page(4.2)
    reliability_diagram(figure, bins, methods=results.methods)
    return figure, {"rule": rule, "runs": counted(rows["run_id"].nunique(), "run"), "bins": bins["bins"].iloc[0]}


def _by_radius(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    chosen, rule = results.best_configurations()
    rows = with_options(last_of(results, chosen, "ascent_sharpness"), "rho")
    rows = rows[rows["value"] > 0]
    if rows["rho"].nunique() < RADII:
        raise NothingToDraw(
            f"Sharpness was measured at fewer than {RADII} radii, which show no curve: give `ascent_sharpness` several "
            "`rho`."
        )
    slope = last_of(results, chosen, "gradient_norm").set_index("run_id")["value"]
    bend = with_options(last_of(results, chosen, "surrogate_gap_directional"), "rho").sort_values("rho")
    curvature = bend.drop_duplicates("run_id").set_index("run_id")["value"]  # at the smallest radius: least beside gᵀHg
    rises = rows.assign(slope=rows["run_id"].map(slope), curvature=rows["run_id"].map(curvature))
    figure, ax = wanted.panel(3.2)
    sharpness_by_radius(ax, rises, methods=results.methods)
    known = bool(np.isfinite(rises["curvature"].to_numpy(dtype=float)).any())
    return figure, {"rule": rule, "runs": counted(rises["run_id"].nunique(), "run"),
                    "line": "ρ‖g‖ + ρ²κ/2, κ the curvature along the gradient" if known else "ρ‖g‖"}  # fmt: skip


PLATES: dict[str, Plate] = {
    "reliability": Plate(
        title="Reliability",
        draw=_reliability,
        caption=(
            "How often predictions on the test set are right, by how sure they are, in {bins} bins of equal width; "
            "below the dotted line a model is too sure. Whiskers: Wilson's 95 % interval, predictions taken one by one "
            "though runs share the test set. Below, the share of the predictions in each bin. Predictions of {runs} "
            "pooled by method; for each method: {rule}."
        ),
        alt="Accuracy against confidence, one line a method, with the share of predictions in each bin.",
    ),
    "sharpness_by_radius": Plate(
        title="Sharpness by radius",
        draw=_by_radius,
        caption=(
            "Rise of the training loss after one step of ascent of length ρ (points), and what Taylor's series at the "
            "weights gives (broken lines, {line}): where points leave the line, the radius is past what it knows. "
            "Medians and quartiles over {runs}; for each method: {rule}."
        ),
        alt="Rise of the loss against the radius, one colour a method, with the Taylor line.",
    ),
    "along_training": Plate(
        title="Sharpness and forgetting along training",
        draw=_along,
        chooses=True,
        caption=(
            "{what} at each checkpoint, {shown} of the {all} that were measured along training; one line a method, "
            "{each}."
        ),
        alt="Measures of sharpness and of forgetting over epochs, one line a method.",
    ),
    "calibration": Plate(
        title="Calibration",
        draw=_calibration,
        caption=(
            "How far the confidence of predictions on the test set is from their accuracy (ECE), squared error of the "
            "probabilities (Brier) and loss: as trained, and with the logits divided by a temperature fitted on "
            "validation data. Smaller is better. Mean and one standard deviation over {runs}; for each method: {rule}."
        ),
        alt="Calibration error, Brier score and test loss by method, before and after temperature scaling.",
    ),
    "costs": Plate(
        title="What the measures cost",
        draw=_costs,
        caption="{what}. {left}",
        alt="Bars of the cost of each measure.",
    ),
}
