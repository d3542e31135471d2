"""Perturbed forgetting along training: a curve over a run's checkpoints, and its mean over the second half."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import table
from trainers.runs.folder import Run

ENOUGH = 5  # checkpoints for a curve


def forgetting_curve(
    run: Run | str | Path,
    *,
    measure: str = "perturbed_forgetting",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    trust: bool = False,
) -> pd.DataFrame:
    """Measure every checkpoint of a run after its initial weights; all see the same batches and noise.

    Args:
        run: The run, or its folder.
        measure: A measure of the registry.
        options: Its options; None means the usual ones.
        seed: Of the measure's random choices.
        trust: Import a model or dataset that the run names as module:function.

    Returns:
        Rows of the measures table, in the order of steps. Results are kept in the run's folder, and read back.

    Raises:
        ValueError: If the measure or an option is unknown.
    """
    from analysis.measures.collect import measure_run  # imports the registry, which imports what is beside this file
    from analysis.measures.plan import plan

    folder = run.folder if isinstance(run, Run) else Path(run)
    chosen = plan({measure: options})
    return measure_run(folder, chosen, chosen, trust=trust, seed=seed)


def second_half(curve: pd.DataFrame) -> pd.DataFrame:
    """The mean of every row over the checkpoints in the second half of training, those with step >= last step / 2.

    Args:
        curve: Rows of the measures table at several steps, of one run or many, such as `forgetting_curve` returns.

    Returns:
        One row a run and variant, at the run's last step. `stderr` is the mean of the standard errors, an upper bound:
        checkpoints share their batches and their past. `draws` is the smallest. `warnings` counts the checkpoints where
        they are fewer than 5 in all, or some of the second half have no value.

    Raises:
        ValueError: If a column of the table is missing.
    """
    curve = table.check(curve)
    rows = []
    for (run, split, measure, options), points in curve.groupby(["run_id", "split", "measure", "options"], sort=False):
        last = points["step"].max()
        half = points[points["step"] >= last / 2]
        known = half["value"].notna()
        notes = []
        if len(points) < ENOUGH:
            notes.append(f"only {len(points)} checkpoints")
        if not known.all():
            notes.append(f"no value at {int((~known).sum())} of {len(half)} checkpoints")
        notes += [text for text in dict.fromkeys(half["warnings"]) if text]
        rows.append(
            {
                "run_id": run,
                "step": last,
                "epoch": points["epoch"].max(),
                "split": split,
                "measure": measure,
                "options": options,
                "value": half["value"].mean(),
                "stderr": half.loc[known, "stderr"].mean(skipna=False),
                "draws": half["draws"].min(),
                "converged": bool(half["converged"].all()),
                "warnings": "; ".join(notes),
            }
        )
    return table.check(pd.DataFrame.from_records(rows, columns=list(table.COLUMNS)))
