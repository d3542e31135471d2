"""`landscape measure`: measures of checkpoints, or of weights from elsewhere."""

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from analysis import table as tables
from analysis.cli.options import ELSEWHERE, SPREAD, Elsewhere, Spread
from analysis.cli.output import show_table
from analysis.measures.budget import Budget, announcement, budget
from analysis.measures.checkpoints import RunCheckpoint, WeightsFile, measure_checkpoint, weight_files
from analysis.measures.collect import Call, tabulate, take, to_measure
from analysis.measures.plan import plan
from analysis.measures.registry import MEASURES
from analysis.path import find_own_modules
from analysis.progress import steps, track
from trainers.runs.folder import has_runs, list_runs


def measure(
    path: tyro.conf.Positional[Path],
    *,
    measures: tuple[str, ...] | None = None,
    out_file: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    all_checkpoints: bool = False,
    cost: bool = False,
    place: Spread = SPREAD,
    trust: bool = False,
    weights: Elsewhere = ELSEWHERE,
) -> int:
    """Measure the checkpoints of runs, or files of weights from elsewhere; earlier measurements are reused.

    Args:
        path: A study's folder, a folder of runs, one run, a file of weights (.safetensors, .pt), or a folder of them.
        measures: Names (`landscape list measures`), or all; by default the study's own, or the usual ones.
        out_file: Where to write the table (Parquet); by default measures.parquet in the folder.
        all_checkpoints: Measure every checkpoint of a run but the initial weights, not only the last one.
        cost: Print what it would cost, and measure nothing.
        place: Where to measure.
        trust: Import a model or dataset that the runs name as module:function.
        weights: For files of weights from elsewhere; of these, `--dataset` also says where data of runs have moved to.
    """
    find_own_modules(weights.model, weights.dataset, trust=trust)
    runtime = place.runtime()
    target = out_file
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: give a study's folder, a folder of runs, or a file of weights."
        )
    if measures is not None and not measures:
        raise ValueError("`--measures` is empty: name some of `landscape list measures`, or leave it out.")
    if (path / "study.json").exists():
        from analysis.study import Study

        work = Study.open(path, trust=trust, runtime=runtime)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            calls, rows = work.to_measure(measures, all_checkpoints=all_checkpoints)
            return moved(calls, weights.dataset), rows

    elif path.is_file() or not has_runs(path):
        files = [path] if path.is_file() else weight_files(path)
        if weights.model is None:
            raise ValueError(f"`--model` is needed to measure the weights in {path}: a name or module:function.")
        chosen = plan(measures)
        places = [
            WeightsFile(file.absolute(), weights.model, weights.model_options or {}, weights.data) for file in files
        ]

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return [(place, chosen, 0) for place in places], []

        target = target or (path.with_name(f"{places[0].run_id}.measures.parquet") if path.is_file() else None)
    else:
        chosen = plan(measures)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            calls, rows = to_measure(list_runs(path), chosen, chosen if all_checkpoints else None, trust=trust)
            return moved(calls, weights.dataset), rows

    if cost:
        show_budget(budget(wanted()[0], runtime), runtime.processes)
        return 0

    def measured(calls: list[Call]) -> Iterable[pd.DataFrame]:
        if len(calls) == 1:
            with steps("measuring", len(calls[0][1])) as (begin, tell):
                whole = path.is_file()
                return [measure_checkpoint(*calls[0], runtime.devices[0], begin=begin, progress=tell, strict=whole)]
        left = budget(calls, runtime)
        if left.checkpoints:
            print(announcement(left, runtime.processes), file=sys.stderr)
        return track(take(calls, runtime), "measuring", len(calls))

    target = target or path / "measures.parquet"
    frame = tabulate(target, wanted, measured)
    show_measures(frame)
    print(f"table: {target}")
    beside = [] if "baselines" in (measures or ()) else MEASURES["baselines"].rows  # they come of themselves
    return 0 if frame.loc[~frame["measure"].isin(beside), "value"].notna().any() else 1


def moved(calls: list[Call], dataset: str | None) -> list[Call]:
    """The same checkpoints of runs, whose data lie elsewhere now where a place is given."""
    if dataset is None:
        return calls
    return [
        (replace(place, dataset=dataset) if isinstance(place, RunCheckpoint) else place, chosen, seed)
        for place, chosen, seed in calls
    ]


def show_measures(frame: pd.DataFrame) -> None:
    """Print one run's last values, or how much was measured and what failed."""
    if frame["run_id"].nunique() == 1:
        last = tables.with_variant(tables.last_step(frame))
        rows = [
            (name, f"{value:.6g}", "" if stderr == 0 else f"{stderr:.2g}", note)
            for name, value, stderr, note in last[["variant", "value", "stderr", "warnings"]].itertuples(index=False)
        ]
        show_table(("measure", "value", "± stderr", "note"), rows)
    missing = frame[frame["value"].isna()]
    print(f"{len(frame)} values of {frame['run_id'].nunique()} runs, {len(missing)} missing")
    for reason, count in missing["warnings"].value_counts().head(5).items():
        print(f"  {count} x {reason}")


def show_budget(budget: Budget, jobs: int) -> None:
    """Print what measuring would cost, by measure."""
    rows = [
        (key, f"{gradients:.0f}", f"{gradients * budget.seconds_a_gradient:.1f}")
        for key, gradients in sorted(budget.gradients.items(), key=lambda item: -item[1])
    ]
    show_table(("measure", "gradients", "seconds"), rows, right=("gradients", "seconds"))
    print(announcement(budget, jobs))
