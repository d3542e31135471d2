"""`landscape measure`: measures of checkpoints, or of weights from elsewhere."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

from analysis import table as tables
from analysis.cli.options import ELSEWHERE, SPREAD, Elsewhere, Spread
from analysis.cli.output import show_table
from analysis.measures.budget import Budget, announcement, budget
from analysis.measures.checkpoints import WeightsFile, in_batches, measure_checkpoint, weight_files
from analysis.measures.collect import Call, tabulate, take, to_measure
from analysis.measures.plan import checked_examples, plan, settings_of
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
    examples: str | None = None,
    set_options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    batch_size: int | None = None,
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
        examples: Training examples that measures go through, a number or all; by default the study's own, or of more
            than 2048 a stratified draw of 2048, the same for all models. Errors and losses are of all examples always.
        set_options: Options of measures, such as hessian_eigenvalues.tol=0.05 m_sharpness.m=[16,64].
        batch_size: Examples a pass; no number depends on it beyond rounding. By default as many as suit the inputs.
        cost: Print what it would cost, and measure nothing.
        place: Where to measure.
        trust: Import a model or dataset that the runs name as module:function.
        weights: For files of weights from elsewhere.
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
    options: dict[str, Any] = {
        "examples": None if examples is None else checked_examples(examples, "`--examples`"),
        "settings": settings_of(set_options),
    }
    if (path / "study.json").exists():
        from analysis.study import Study

        work = Study.open(path, trust=trust, runtime=runtime)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return work.to_measure(measures, all_checkpoints=all_checkpoints, **options)

    elif path.is_file() or not has_runs(path):
        files = [path] if path.is_file() else weight_files(path)
        if weights.model is None:
            raise ValueError(f"`--model` is needed to measure the weights in {path}: a name or module:function.")
        chosen = plan(measures, **options)
        places = [
            WeightsFile(file.absolute(), weights.model, weights.model_options or {}, weights.data) for file in files
        ]

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return [(place, chosen, 0) for place in places], []

        target = target or (path.with_name(f"{places[0].run_id}.measures.parquet") if path.is_file() else None)
    else:
        chosen = plan(measures, **options)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return to_measure(list_runs(path), chosen, chosen if all_checkpoints else None, trust=trust)

    def sized() -> tuple[list[Call], list[pd.DataFrame]]:
        calls, marked = wanted()
        return [(in_batches(checkpoint, batch_size), chosen, seed) for checkpoint, chosen, seed in calls], marked

    if cost:
        show_budget(budget(sized()[0], runtime), runtime.processes)
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
    frame = tabulate(target, sized, measured)
    show_measures(frame)
    print(f"table: {target}")
    beside = [] if "baselines" in (measures or ()) else MEASURES["baselines"].rows  # they come of themselves
    return 0 if frame.loc[~frame["measure"].isin(beside), "value"].notna().any() else 1


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
    ordered = sorted(budget.seconds.items(), key=lambda item: -item[1])
    rows = [(key, f"{seconds:.1f}") for key, seconds in [*ordered, ("total", math.fsum(budget.seconds.values()))]]
    show_table(("measure", "seconds"), rows, right=("seconds",))
    print(announcement(budget, jobs))
