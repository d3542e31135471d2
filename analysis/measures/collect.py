"""From checkpoints to the measures table: measured in parallel, kept as they come, marked where they fail."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analysis import table
from analysis.measures.catalogue.targets import SOMETIMES, TARGETS
from analysis.measures.checkpoints import Checkpoint, RunCheckpoint, failure, kept_rows, measure_checkpoint
from analysis.measures.plan import Choice, Plan, plan
from analysis.measures.taking import Begin, silent
from analysis.pace import Work
from analysis.table import Row
from landscape.progress import Progress
from landscape.ranks import Ranks
from trainers.config import TrainConfig
from trainers.data.shifted import Shifted
from trainers.files.lock import PATIENCE, locked
from trainers.runs.folder import Run
from trainers.runtime import HERE, Runtime
from trainers.sweep.parallel import in_parallel
from trainers.weights.places import AVERAGE

ALONE = Ranks()
Call = tuple[Checkpoint, Plan, int]
Weights = Literal["last", "best", "average"]


def measure_run(
    folder: str | Path,
    chosen: Plan,
    along: Plan | None = None,
    *,
    trust: bool = False,
    seed: int = 0,
    begin: Begin = silent,
    progress: Progress = False,
) -> pd.DataFrame:
    """Measure a run: `chosen` at its last checkpoint, `along` at those before it (not at the initial weights).

    What was measured before with the same weights, options, seed and version is read back from RUN/measures. What is
    measured is kept there as it comes, so that little is lost where this is interrupted.

    Args:
        folder: The run's.
        chosen: Measures of the last checkpoint, see `plan`.
        along: Measures of the others.
        trust: Import a model or dataset that the run names as module:function.
        seed: Of the measures' random choices.
        begin: Called with the name of each measure before it is taken.
        progress: Told of the products of long measures.

    Returns:
        Rows of the table. A run that diverged or failed gives rows of the targets that say so.
    """
    run = Run(Path(folder))
    marked = unfit(run)
    if marked is not None:
        return marked
    calls = calls_of(run, chosen, along, trust=trust, seed=seed)
    return pd.concat([measure_checkpoint(*call, begin=begin, progress=progress) for call in calls], ignore_index=True)


def unfit(run: Run, weights: Weights = "last") -> pd.DataFrame | None:
    """Rows that say why a run, or these weights of it, cannot be measured; None where they can."""
    status = run.status()
    if status["status"] in ("diverged", "failed"):
        reason, epoch = f"{status['status']}: {status['reason']}", int(status["epochs"])
    elif missing := run.missing():
        reason, epoch = missing, int(status["epochs"])
    elif not run.checkpoints() or status["status"] == "interrupted":
        reason, epoch = "no checkpoint: the run was interrupted; run the same command again to continue it", 0
    elif weights == "best" and run.best() is None:
        reason, epoch = "the run kept no best checkpoint: train with `keep_best`", int(status["epochs"])
    elif weights == "average" and run.config().average is None:
        reason, epoch = "the run has no average of weights: train with `average` ema or swa", int(status["epochs"])
    elif weights == "average" and not (run.checkpoint(max(run.checkpoints())) / AVERAGE).exists():
        begins = run.config().resolved().average_from
        reason, epoch = f"the run ended before weights were averaged (`average_from` {begins})", int(status["epochs"])
    else:
        return None
    rows = [
        Row(name, math.nan, math.nan, 0, split="test", converged=False, warnings=reason)
        for name in TARGETS
        if name not in SOMETIMES
    ]
    return table.to_frame(rows, run_id=run.run_id, step=0, epoch=epoch)


def calls_of(
    run: Run,
    chosen: Plan,
    along: Plan | None,
    *,
    trust: bool,
    seed: int,
    weights: Weights = "last",
    shifted: tuple[Shifted, ...] = (),
) -> list[Call]:
    """What is to be measured of a run: its last or best checkpoint, and those before it but the initial weights."""
    steps = list(run.checkpoints())
    chief = run.best() if weights == "best" else steps[-1]
    assert chief is not None  # as `unfit` has found
    plans = {step: chosen if step == chief else along if 0 < step < chief else None for step in steps}
    if weights == "average":  # which begins some time in training
        plans = {step: p for step, p in plans.items() if step == chief or (run.checkpoint(step) / AVERAGE).exists()}
    folder, average = run.folder.absolute(), weights == "average"
    return [(RunCheckpoint(folder, step, trust, shifted, average), p, seed) for step, p in plans.items() if p]


def collect(
    runs: Sequence[Run],
    *,
    measures: Choice | None = None,
    along: Choice = (),
    along_runs: Callable[[TrainConfig], bool] | None = None,
    weights: Weights = "last",
    trust: bool = False,
    seed: int = 0,
    shifted: tuple[Shifted, ...] = (),
    **place: Any,
) -> Iterator[pd.DataFrame]:
    """Measure many runs in parallel, checkpoint by checkpoint; yields rows as they come.

    Args:
        runs: What to measure.
        measures: For the last checkpoint of each run, see `plan`; None is the usual ones.
        along: For the checkpoints before it.
        along_runs: Which runs to measure along training; None is all.
        weights: Those of the last checkpoint, of the one with the best validation error (`keep_best`), or the average
            of weights (`average`).
        trust: Import a model or dataset that a run names as module:function.
        seed: Of the measures' random choices.
        shifted: Test sets from elsewhere, see `trainers.data.shifted.shifted_sets`.
        **place: A `Runtime` as `runtime`, or its fields: `jobs`, `device`, `executor`, `address`, `workers`.
    """
    runtime = Runtime.of(**place)
    calls, marked = to_measure(
        runs, plan(measures), plan(along) if along else None, along_runs=along_runs, weights=weights, trust=trust,
        seed=seed, shifted=shifted,
    )  # fmt: skip
    yield from marked
    yield from take(calls, runtime)


def to_measure(
    runs: Sequence[Run],
    chosen: Plan,
    along: Plan | None = None,
    *,
    along_runs: Callable[[TrainConfig], bool] | None = None,
    weights: Weights = "last",
    trust: bool = False,
    seed: int = 0,
    shifted: tuple[Shifted, ...] = (),
) -> tuple[list[Call], list[pd.DataFrame]]:
    """The checkpoints of runs that are to be measured, and rows for the runs that cannot be; arguments as `collect`."""
    calls: list[Call] = []
    marked = []
    for run in runs:
        rows = unfit(run, weights)
        if rows is None:
            follow = along if along and (along_runs is None or along_runs(run.config())) else None
            calls += calls_of(run, chosen, follow, trust=trust, seed=seed, weights=weights, shifted=shifted)
        else:
            marked.append(rows)
    return calls, marked


def take(calls: Sequence[Call], runtime: Runtime = HERE) -> Iterator[pd.DataFrame]:
    """Measure checkpoints in parallel; yields the rows of each as they come.

    One whose process dies gives rows that say so. What is kept already is only read.

    Args:
        calls: Checkpoints, each with its plan and seed.
        runtime: Where.

    Raises:
        ImportError: For "ray" where it is not installed.
    """
    todo = []
    for call in calls:
        rows = kept_rows(*call)
        if rows is not None:
            yield rows
        else:
            todo.append(call)
    measured = partial(measure_checkpoint, workers=runtime.workers, backend=runtime.backend)
    if runtime.executor == "ray" and todo:
        from trainers.sweep.cluster import on_ray  # an extra

        folder = todo[0][0].cache.index.parent
        folder.mkdir(parents=True, exist_ok=True)
        there = [(*call, runtime.device) for call in todo]
        yield from on_ray(measured, there, runtime, lost=_lost, folder=folder)
    else:
        yield from in_parallel(measured, todo, jobs=runtime.limit, devices=runtime.devices, lost=_lost)


def work_of(calls: Sequence[Call], runtime: Runtime = HERE) -> Work:
    """What `take` has to do, in measures: those of a checkpoint cost as much as there are, and nothing if kept."""
    costs = {
        (place.run_id, place.step): 0.0 if kept_rows(place, wanted, seed) is not None else float(len(wanted))
        for place, wanted, seed in calls
    }

    def of(rows: pd.DataFrame) -> float:
        return costs.get((rows["run_id"].iloc[0], rows["step"].iloc[0]), 0.0) if len(rows) else 0.0

    return Work(of, math.fsum(costs.values()), runtime.processes)


def tabulate(
    path: Path,
    wanted: Callable[[], tuple[list[Call], list[pd.DataFrame]]],
    measure: Callable[[list[Call]], Iterable[pd.DataFrame]],
    *,
    beside: bool = False,
    ranks: Ranks = ALONE,
) -> pd.DataFrame:
    """Measure what is wanted and write the table, of the runs as they are when it is written.

    Runs that ended meanwhile, trained by another process, are measured too before the table is written under a lock: of
    several commands at once the last leaves the whole table, whichever that is.

    Args:
        path: Of the table.
        wanted: Lists checkpoints to measure, and rows for runs that have none, as `to_measure`.
        measure: Gives the rows of checkpoints, as `take`.
        beside: Keep what the table holds of other measures of these runs.
        ranks: The processes that measure together, of which the leader lists and writes.

    Returns:
        The new rows.
    """
    calls, _ = ranks.led(wanted)
    while True:
        measured = list(measure(calls))
        again, rows = ranks.led(lambda: _written(path, wanted, calls, measured, beside=beside))  # noqa: B023
        if rows is not None:
            return rows
        calls = again


def _written(
    path: Path,
    wanted: Callable[[], tuple[list[Call], list[pd.DataFrame]]],
    calls: list[Call],
    measured: Sequence[pd.DataFrame],
    *,
    beside: bool,
) -> tuple[list[Call], pd.DataFrame | None]:
    """Write the table, unless more is wanted now; what is wanted, and the rows that were written."""
    with locked(path.parent, f"{path.name}.lock", wait=PATIENCE):
        again, marked = wanted()
        if again != calls:
            return again, None
        rows = sort_rows(pd.concat([*marked, *measured], ignore_index=True))
        table.write(_joined(path, rows) if beside and path.exists() else rows, path)
        return again, rows


def _joined(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table and new ones of the same runs, in place of what it held of the same measures there."""
    old, place = table.read(path), ["run_id", "step", "measure"]
    again = pd.MultiIndex.from_frame(old[place]).isin(pd.MultiIndex.from_frame(new[place]))
    return sort_rows(pd.concat([old[~again & old["run_id"].isin(new["run_id"])], new], ignore_index=True))


def _lost(call: tuple[Any, ...], reason: str) -> pd.DataFrame:
    """The rows of a checkpoint whose process died."""
    checkpoint, wanted = call[:2]
    why = f"its process died ({reason}); the same command tries again. Out of memory? Use fewer jobs."
    return pd.concat(failure(checkpoint, wanted, why).values(), ignore_index=True)


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in an order that does not depend on which process was first."""
    keys = ["run_id", "step", "measure", "split", "options"]
    return frame.sort_values(keys, kind="stable").reset_index(drop=True)
