"""Figures of the report on perturbed forgetting."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures.events import forgetting_histogram
from analysis.figures.forgetting import forgetting_bars, forgetting_by_size, forgetting_curves, size_order
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
from analysis.results import StudyResults
from analysis.style import counted, from_to
from analysis.table import last_step

# What is drawn where predictions have classes, and where they have none, with what the caption says of it.
BARS = {
    ("cw", "F_mi", "F_cmi"): "the share of examples turned from right to wrong (cw), and information lost from the "
    "outputs, I(X;Ŷ) (F_mi) and I(X;Ŷ|Y) (F_cmi)",
    ("KL", "dloss"): "how far predictions moved (KL, from before to after), and how much the loss rose",
}
POINTS = 3  # fewer show no curve
LINES = (("F_mi", "cw"), ("KL", "dloss"))


def _drawn(rows: pd.DataFrame, choices: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The first of several groups of measures of which any was taken; the first where none was."""
    groups, there = list(choices), set(rows["measure"])
    return next((group for group in groups if there & set(group)), groups[0])


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
        at = rows.groupby(["run_id", "provider"])["step"].transform("nunique")
        if not (at > 1).any():
            raise NothingToDraw("Forgetting was measured at the last checkpoint only.")
        rows = rows[at >= POINTS]
        if rows.empty:
            raise NothingToDraw(f"Forgetting was measured at fewer than {POINTS} checkpoints, which show no curve.")
    sizes = rows["m"].dropna()
    if sizes.empty:
        return rows, "all"
    counts = sizes.value_counts()
    m = min(counts[counts == counts.max()].index, key=size_order)
    return rows[rows["m"] == m], m


def _bars(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    rows, m = _forgetting_rows(results)
    rows = last_step(rows)
    figure = wanted.page(5.2)
    shown = _drawn(rows, BARS)
    forgetting_bars(figure, rows, measures=shown)
    return figure, {"m": _whole(m), "shown": BARS[shown], "runs": counted(rows["run_id"].nunique(), "run")}


def _curves(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    rows, m = _forgetting_rows(results, radius="iso-loss", over_time=True)
    figure = wanted.page(3.9)
    forgetting_curves(figure, rows, measures=_drawn(rows, LINES), methods=results.methods)
    return figure, {
        "m": _whole(m), "runs": counted(rows["run_id"].nunique(), "run"), "radius": _radii(results, rows),
        "each": from_to(rows.groupby("method")["run_id"].nunique()),
    }  # fmt: skip


def _by_method(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    rows, m = _forgetting_rows(results, radius="iso-loss", over_time=True)
    rows = rows[(rows["split"] == "held_out") & rows["provider"].isin(["sam", "obf"])]
    if rows.empty:
        raise NothingToDraw("Neither SAM's nor OBF's perturbation was measured on held-out examples.")
    figure = wanted.page(3.9)
    forgetting_curves(figure, rows, by="method", measures=_drawn(rows, LINES), methods=results.methods)
    return figure, {"m": _whole(m), "each": runs_of_methods(rows), "radius": _radii(results, rows)}


def _by_size(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    rows = last_step(results.forgetting())
    rows = rows[np.isfinite(rows["value"].to_numpy(dtype=float)) & (rows["provider"] != "zero")]
    shown = _drawn(rows, LINES)
    rows = rows[rows["measure"].isin(shown)]
    if rows.empty:
        raise NothingToDraw("No perturbed forgetting was measured on a finished run.")
    if (rows["radius"] == "iso-loss").any():
        rows = rows[rows["radius"] == "iso-loss"]
    rows = rows[rows.groupby("provider")["m"].transform("nunique") >= POINTS]  # a panel of one point is an empty box
    if rows.empty:
        raise NothingToDraw(f"Forgetting was measured for fewer than {POINTS} sizes m of the perturbation batch.")
    figure = wanted.page(3.9)
    forgetting_by_size(figure, rows, measures=shown)
    return figure, {"runs": counted(rows["run_id"].nunique(), "run"), "radius": _radii(results, rows)}


def _radii(results: StudyResults, rows: pd.DataFrame) -> str:
    nats = results.facts()["nats"]
    if _drawn(rows, LINES) == LINES[1]:  # of a loss in units of its own
        nats = nats.replace(" nats", "")
    known = {"iso-loss": f"the distance at which the loss on the batch has risen by {nats} (iso-loss)"}
    return " and ".join(known.get(r, f"the radius `{r}`") for r in sorted(set(rows["radius"])))


def _whole(m: Any) -> str:
    return m if isinstance(m, str) else f"{float(m):g}"


def _events(results: StudyResults, wanted: Wanted = OWN) -> Drawn:
    chosen, rule = results.best_configurations()
    rows = with_options(last_of(results, chosen, "share_forgotten"), "protocol", "events")
    if rows.empty:
        raise NothingToDraw(
            "How often examples were forgotten was not counted: name `forgetting_counts` among the study's measures."
        )
    protocol = "presentation" if (rows["protocol"] == "presentation").any() else str(rows["protocol"].iloc[0])
    shown = rows[rows["protocol"] == protocol].rename(columns={"value": "share"})
    figure, ax = wanted.panel(2.8)
    forgetting_histogram(ax, shown, methods=results.methods)
    when = "each time an example came up in training" if protocol == "presentation" else "after each epoch"
    return figure, {"rule": rule, "runs": counted(shown["run_id"].nunique(), "run"), "when": when}


PLATES: dict[str, Plate] = {
    "forgetting_events": Plate(
        title="How often examples were forgotten",
        draw=_events,
        caption=(
            "Share of the training examples by the number of times that they went from right to wrong, looked at "
            "{when} (Toneva et al. 2019). Examples that were never right are apart, at the end: they were not "
            "forgotten either. Mean and one standard deviation over {runs}; for each method: {rule}."
        ),
        alt="Histogram of forgetting events by method, with the examples that were never learned apart.",
    ),
    "forgetting_bars": Plate(
        title="What a perturbation makes the model forget",
        draw=_bars,
        caption=(
            "At the last checkpoint of each run, for perturbations computed on batches of m = {m} examples: "
            "{shown}; positive means forgotten. Bars: mean over {runs}, whiskers one standard deviation "
            "over them. Each value is itself a mean over batches; its standard error is in the measures table."
        ),
        alt="Bars of forgetting by perturbation and by what it was exposed to.",
    ),
    "forgetting_curves": Plate(
        title="Forgetting over training",
        draw=_curves,
        caption=(
            "Forgetting at each checkpoint at {radius}, batches of m = {m}; mean and one standard deviation over "
            "{runs}, {each} of each method. Exposed examples are those the perturbation was computed on."
        ),
        alt="Forgetting over epochs by exposure, one panel a perturbation.",
    ),
    "forgetting_by_method": Plate(
        title="Forgetting by training method",
        draw=_by_method,
        caption=(
            "Forgetting of held-out examples under common perturbations, the same for all models: {radius}, batches "
            "of m = {m}. Lines: training methods, {each}."
        ),
        alt="Forgetting of held-out examples over epochs, one line a training method.",
    ),
    "forgetting_by_m": Plate(
        title="Forgetting by the size of the perturbation batch",
        draw=_by_size,
        caption=(
            "Forgetting at the last checkpoint against the number m of examples that a perturbation is computed on, "
            "at {radius}; mean and one standard deviation over {runs}. `all`: one batch of all training examples, "
            "where there are no other training examples."
        ),
        alt="Forgetting against the size of the perturbation batch by exposure, one panel a perturbation.",
    ),
}
