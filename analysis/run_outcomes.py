"""What came of each run: one row a run, with its settings, its errors at the end and whatever was measured there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import table
from analysis.style import method_label
from trainers.runs.folder import Run, list_runs

LAST = ("train_error", "validation_error", "test_error", "train_loss", "test_loss")
STOPPED = ("validation_error_stopped", "test_error_stopped")
ERRORS = (*LAST, *STOPPED)


def outcomes(folder: str | Path, measures: Sequence[str] = ()) -> pd.DataFrame:
    """One row a run of a folder: its settings and its errors at the end of training.

    Args:
        folder: A study's folder, or a folder of runs.
        measures: Variants of measures (such as "ood_error_mean", "F_mi[obf, iso-loss, m=64, other_train]") to add from
            measures.parquet, at each run's last measured step.

    Returns:
        Columns run_id, status, method (with "+OBF" where that objective is ascended), configuration (a number shared
        by runs that differ in their seeds alone), every setting by its name, the errors of the last epoch and
        "..._stopped" those of the evaluated epoch with the lowest validation error (NaN for runs that did not finish),
        and the measures.

    Raises:
        FileNotFoundError: If there is no run, or measures are asked for and there is no table of them.
        ValueError: If a measure was not taken.
    """
    rows = []
    for run in list_runs(folder):
        settings, status = run.settings(), run.status()["status"]
        row = {**settings, "run_id": run.run_id, "status": status}
        row |= _errors(run) if status == "finished" else dict.fromkeys(ERRORS, np.nan)
        row["method"] = method_label(settings.get("method"), settings.get("ascent"))
        rows.append(row)
    frame = pd.DataFrame(rows)
    decides = [c for c in frame.columns if c not in (*table.SEEDS, "run_id", "status", *ERRORS)]
    frame["configuration"] = pd.factorize(frame[decides].map(str).agg("|".join, axis=1))[0]
    if measures:
        path = Path(folder) / "measures.parquet"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: make it with `landscape measure {folder}`.")
        rows_of = table.with_variant(table.last_step(table.read(path)))
        known = sorted(set(rows_of["variant"]))
        unknown = [m for m in measures if m not in known]
        if unknown:
            raise ValueError(f"`measures` has {unknown}, which were not taken; there are {known}.")
        chosen = rows_of[rows_of["variant"].isin(measures)]
        values = chosen.pivot_table(index="run_id", columns="variant", values="value", aggfunc="first", dropna=False)
        frame = frame.merge(values.reset_index(), on="run_id", how="left")
    return frame


def _errors(run: Run) -> dict[str, float]:
    history = run.history()
    last = history.iloc[-1]
    found = {name: float(last[name]) for name in LAST}
    evaluated = history[history["validation_error"].notna() & history["test_error"].notna()]
    if evaluated.empty:
        return {**found, **dict.fromkeys(STOPPED, np.nan)}
    best = evaluated.iloc[int(evaluated["validation_error"].to_numpy().argmin())]
    return {
        **found,
        "validation_error_stopped": float(best["validation_error"]),
        "test_error_stopped": float(best["test_error"]),
    }
