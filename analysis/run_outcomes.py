"""What came of each run: one row a run, with its settings, its errors at the end and whatever was measured there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import table
from analysis.score import Score
from analysis.style import method_label
from trainers.runs.folder import Run, list_runs

SPLITS = ("train_", "validation_", "test_")  # that begin the names of scores in a history
LAST = ("train_error", "validation_error", "test_error", "train_loss", "test_loss")
STOPPED = ("validation_error_stopped", "test_error_stopped")


def score_of(folder: str | Path) -> Score:
    """The score that the runs of a folder lead with.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If they learn different tasks, which no comparison is of.
    """
    found = {Score.of_history(run.history().columns) for run in list_runs(folder) if run.status()["epochs"]}
    if len(found) > 1:
        names = ", ".join(sorted(score.name for score in found))
        raise ValueError(f"{folder} holds runs of several tasks, with the scores {names}: give runs of one task.")
    return found.pop() if found else Score()


def outcomes(folder: str | Path, measures: Sequence[str] = ()) -> pd.DataFrame:
    """One row a run of a folder: its settings and its scores at the end of training.

    Args:
        folder: A study's folder, or a folder of runs.
        measures: Variants of measures (such as "ood_error_mean", "F_mi[obf, iso-loss, m=64, other_train]") to add from
            measures.parquet, at each run's last measured step; what the history holds needs no table.

    Returns:
        Columns run_id, status, method (with "+OBF" where that objective is ascended), configuration (a number shared
        by runs that differ in their seeds alone), every setting by its name, losses and scores of the last epoch, such
        as test_error or test_squared_error, and as "..._stopped" the leading score of the evaluated epoch where it is
        lowest on validation data (all NaN for runs that did not finish), and the measures.

    Raises:
        FileNotFoundError: If there is no run, or measures are asked for and there is no table of them.
        ValueError: If a measure was not taken.
    """
    rows: list[dict[str, Any]] = []
    scores = dict.fromkeys((*LAST, *STOPPED), np.nan)
    for run in list_runs(folder):
        settings, status = run.settings(), run.status()["status"]
        row = {**settings, "run_id": run.run_id, "status": status}
        if status == "finished":
            row |= (found := _scores(run))
            scores |= dict.fromkeys(found, np.nan)
        row["method"] = method_label(settings.get("method"), settings.get("ascent"))
        rows.append(row)
    frame = pd.DataFrame([scores | row for row in rows])
    decides = [c for c in frame.columns if c not in (*table.SEEDS, "run_id", "status", *scores)]
    frame["configuration"] = pd.factorize(frame[decides].map(str).agg("|".join, axis=1))[0]
    measures = [name for name in measures if name not in scores]
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


def _scores(run: Run) -> dict[str, float]:
    history = run.history()
    last, score = history.iloc[-1], Score.of_history(history.columns)
    found = {str(name): float(last[name]) for name in history.columns if str(name).startswith(SPLITS)}
    validation, test = score.on("validation"), score.on("test")
    evaluated = history[history[validation].notna() & history[test].notna()]
    best = evaluated.iloc[int(evaluated[validation].to_numpy().argmin())] if len(evaluated) else pd.Series(dtype=float)
    return found | {f"{name}_stopped": float(best.get(name, np.nan)) for name in (validation, test)}
