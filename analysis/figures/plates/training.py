"""Figures of the report on training and its outcome."""

import numpy as np
import pandas as pd

from analysis.figures.curves import accuracy_by_radius, training_curves
from analysis.figures.plates.plate import OWN, Drawn, NothingToDraw, Plate, Wanted
from analysis.results import StudyResults
from analysis.style import counted

POINTS = 3  # fewer show no curve
RADII = 3  # of a method; fewer points show no curve


def _training(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    chosen, rule = results.best_configurations()
    if chosen.empty:
        raise NothingToDraw("No run finished, so there is no curve to draw.")
    rows = results.history.merge(chosen[["run_id", "method"]], on="run_id", how="inner")
    columns, words = (results.score.on("test"), results.score.on("train")), results.score.words
    if not np.isfinite(rows[list(columns)].to_numpy(dtype=float)).any():
        raise NothingToDraw(f"No {words} was recorded during training.")
    if rows["epoch"].nunique() < POINTS:
        raise NothingToDraw(f"The {words} was recorded at fewer than {POINTS} epochs, which show no curve.")
    figure = wanted.page(2.7)
    training_curves(figure, rows, columns=columns, methods=results.methods)
    return figure, {"rule": rule, "runs": counted(len(chosen), "run"), "score": words[:1].upper() + words[1:]}


def _radius(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    if "hp.rho" not in results.runs.columns:
        raise NothingToDraw("The runs have no radius `rho`.")
    final, rule = results.best_configurations("hp.rho")
    target = results.score.on("test")
    final = final[np.isfinite(final[target].to_numpy(dtype=float))]
    rho = pd.to_numeric(final["hp.rho"], errors="coerce")
    if not (rho > 0).any():
        raise NothingToDraw("No finished run was trained with a radius above 0.")
    if rho[rho > 0].groupby(final["method"]).nunique().max() < RADII:
        raise NothingToDraw(f"No method was trained with {RADII} or more radii, and fewer show no curve.")
    figure, ax = wanted.panel(2.8)
    accuracy_by_radius(ax, final, target=target, methods=results.methods)
    return figure, {"rule": rule, "score": results.score.words}


PLATES: dict[str, Plate] = {
    "training_curves": Plate(
        title="Training",
        draw=_training,
        caption=(
            "{score} after each epoch, mean and one standard deviation over runs, {runs} in all. For each method: "
            "{rule}. That of training is on the labels as trained. The axes end just above the largest mean after the "
            "first tenth of training."
        ),
        alt="Test and training score over epochs, one line a method.",
    ),
    "radius": Plate(
        title="Error by radius",
        draw=_radius,
        caption=(
            "Test {score} at the end of training against the radius ρ of the perturbation; mean and one standard "
            "deviation over runs. For each method and radius: {rule}. Radii of adaptive methods are in other units "
            "than those of plain ones, so lines may be compared in height but not from left to right."
        ),
        alt="Final test score against the perturbation radius, one line a method.",
    ),
}
