"""`landscape measure`: measures of checkpoints, or of weights from elsewhere."""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

from analysis import table as tables
from analysis.cli.options import ELSEWHERE, SPREAD, Elsewhere, Spread
from analysis.cli.output import show_table
from analysis.measures.budget import Budget, announcement, budget
from analysis.measures.checkpoints import (
    RunCheckpoint,
    check_shifted,
    foreign_place,
    in_batches,
    measure_checkpoint,
    weight_files,
)
from analysis.measures.collect import Call, Weights, tabulate, take, to_measure, work_of
from analysis.measures.plan import checked_examples, plan, settings_of
from analysis.measures.registry import MEASURES
from analysis.path import find_own_modules
from analysis.progress import steps, track
from trainers.data.shifted import shifted_sets
from trainers.runs.folder import has_runs, list_runs
from trainers.runtime import Runtime


def measure(
    path: tyro.conf.Positional[Path],
    *,
    measures: tuple[str, ...] | None = None,
    out_file: Annotated[Path | None, tyro.conf.arg(name="out")] = None,
    all_checkpoints: bool = False,
    ema: bool = False,
    best: bool = False,
    examples: str | None = None,
    set_options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = (),
    batch_size: int | None = None,
    cost: bool = False,
    shifted: tuple[str, ...] | None = None,
    place: Spread = SPREAD,
    trust: bool = False,
    weights: Elsewhere = ELSEWHERE,
) -> int:
    """Measure the checkpoints of runs, or files of weights from elsewhere; earlier measurements are reused.

    Under torchrun all processes measure each checkpoint together: measures of curvature on their parts of the training
    examples, and the others one each at a time.

    Args:
        path: A study's folder, a folder of runs, one run, weights from elsewhere (.safetensors, .pt, .ckpt, .pth.tar,
            a folder of Hugging Face as hf:FOLDER), or a folder of them.
        measures: Names (`landscape list measures`), all, or your own as module:function; by default the study's own, or
            the usual ones. What the table holds of other measures stays.
        out_file: Where to write the table (Parquet); by default measures.parquet in the folder, or with ema or best
            measures.ema.parquet or measures.best.parquet.
        all_checkpoints: Measure every checkpoint of a run but the initial weights, not only the last one.
        ema: Measure the average of weights (EMA, SWA) instead of the weights: of runs with average, or that in files.
        best: Measure the checkpoint with the best validation error (of runs with keep_best) instead of the last one.
        examples: Training examples that measures go through, a number or all; by default the study's own, or of more
            than 2048 a stratified draw of 2048, the same for all models. Errors and losses are of all examples always.
        set_options: Options of measures, such as hessian_eigenvalues.tol=0.05 m_sharpness.m=[16,64].
        batch_size: Examples a pass; no number depends on it beyond rounding. By default as many as suit the inputs.
        cost: Print what it would cost, and measure nothing.
        shifted: Shifted test sets from elsewhere, as name=folder or name=dataset, such as cifar10-c=PATH or
            mine=imagefolder:PATH; by default the study's own.
        place: Where to measure.
        trust: Import a model or dataset that the runs name as module:function.
        weights: For files of weights from elsewhere; of these, `--dataset` also says where data of runs have moved to.
    """
    named = None if shifted is None else parse_shifted(shifted)
    own = (weights.model, weights.dataset, weights.task, *(named or {}).values(), *(measures or ()))
    find_own_modules(*own, trust=trust)
    runtime = place.runtime(trains=False)
    target = out_file
    alone = foreign_place(path)
    if alone is None and not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: give a study's folder, a folder of runs, or a file of weights."
        )
    if measures is not None and not measures:
        raise ValueError("`--measures` is empty: name some of `landscape list measures`, or leave it out.")
    if ema and best:
        raise ValueError("`--ema` and `--best` are two choices of weights: give one of them.")
    if best and (alone is not None or not has_runs(path)):
        raise ValueError(f"`--best` is for runs with keep_best, and {path} holds weights from elsewhere: leave it out.")
    chosen_weights: Weights | None = "average" if ema else "best" if best else None
    options: dict[str, Any] = {
        "examples": None if examples is None else checked_examples(examples, "`--examples`"),
        "settings": settings_of(set_options),
    }
    if (path / "study.json").exists():
        from analysis.study import Study

        work = Study.open(path, trust=trust, runtime=runtime)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            calls, rows = work.to_measure(
                measures, all_checkpoints=all_checkpoints, weights=chosen_weights, shifted=named, **options
            )
            return moved(calls, weights.dataset), rows

    elif alone is not None or not has_runs(path):
        chosen = plan(measures, **options)
        sets = shifted_sets(named or {}, trust=True)
        files = [alone] if alone is not None else weight_files(path)
        places = [replace(weights.of(*file, ema=ema), shifted=sets) for file in files]

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            return [(place, chosen, 0) for place in places], []

        if alone is not None:
            target = target or places[0].path.with_name(f"{places[0].run_id}{'.ema' * ema}.measures.parquet")
    else:
        chosen = plan(measures, **options)
        sets = shifted_sets(named or {}, trust=True)

        def wanted() -> tuple[list[Call], list[pd.DataFrame]]:
            along = chosen if all_checkpoints else None
            those = chosen_weights or "last"
            calls, rows = to_measure(list_runs(path), chosen, along, weights=those, trust=trust, shifted=sets)
            return moved(calls, weights.dataset), rows

    def sized() -> tuple[list[Call], list[pd.DataFrame]]:
        calls, marked = wanted()
        return [(in_batches(checkpoint, batch_size), chosen, seed) for checkpoint, chosen, seed in calls], marked

    if cost:
        show_budget(budget(sized()[0], runtime), runtime.processes)
        return 0

    def measured(calls: list[Call], among: Runtime) -> Iterable[pd.DataFrame]:
        if among.ranks.count > 1:
            how = partial(measure_checkpoint, device=among.devices[0], workers=among.workers, ranks=among.ranks)
            each = (how(*call) for call in calls)
            return track(each, "measuring", len(calls)) if among.ranks.leads else each
        if len(calls) == 1 and among.executor == "processes":
            with steps("measuring", len(calls[0][1])) as (begin, tell):
                alike = alone is not None
                told = partial(
                    measure_checkpoint, begin=begin, progress=tell, strict=alike, workers=runtime.workers,
                    backend=runtime.backend,
                )  # fmt: skip
                return [told(*calls[0], runtime.devices[0])]
        left = budget(calls, runtime)
        if left.checkpoints:
            print(announcement(left, runtime.processes), file=sys.stderr)
        return track(take(calls, runtime), "measuring", len(calls), work_of(calls, runtime))

    first, unfit = sized()
    if chosen_weights and not first and unfit:
        raise ValueError(f"`--{'ema' if ema else 'best'}`: {unfit[0]['warnings'].iloc[0]}; nothing was measured.")
    for call in first[:1]:
        check_shifted(*call)
    target = target or path / f"measures{'.ema' * ema}{'.best' * best}.parquet"
    part = measures is not None or examples is not None or bool(set_options)
    of_runs = alone is None and has_runs(path)  # whose weights never change
    with runtime.joined() as among:
        if among.ranks.count > 1 and among.executor == "ray":
            raise ValueError("`--executor` ray starts processes of its own: leave it out under torchrun.")
        keep = part and of_runs and out_file is None
        frame = tabulate(target, sized, lambda calls: measured(calls, among), beside=keep, ranks=among.ranks)
    if among.ranks.leads:
        show_measures(frame)
        print(f"table: {target}")
    beside = [] if "baselines" in (measures or ()) else MEASURES["baselines"].rows  # they come of themselves
    return 0 if frame.loc[~frame["measure"].isin(beside), "value"].notna().any() else 1


def parse_shifted(given: Iterable[str]) -> dict[str, str]:
    """Shifted sets by name, from name=source.

    Raises:
        ValueError: For something else, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not name or not source:
            raise ValueError(f"`--shifted` takes name=source, such as cifar10-c=PATH, got {text!r}.")
        if name in found:
            raise ValueError(f"`--shifted` names {name!r} twice: give each set a name of its own.")
        found[name] = source
    return found


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
        told = [note.split("; ") for note in last["warnings"]]
        common = [remark for remark in told[0] if remark and len(told) > 1 and all(remark in note for note in told)]
        rows = [
            (name, f"{value:.6g}", "" if stderr == 0 else f"{stderr:.2g}", _without(common, note))
            for name, value, stderr, note in last[["variant", "value", "stderr", "warnings"]].itertuples(index=False)
        ]
        show_table(("measure", "value", "± stderr", "note"), rows)
        for remark in common:
            print(f"all rows: {remark}")
    if drawn := frame["options"].str.extract(r'"examples": (\d+)')[0].dropna().astype(int).tolist():
        sizes = " or ".join(map(str, sorted(set(drawn))))
        print(f"{len(drawn)} values are of a draw of {sizes} training examples; ± is not the error of drawing them")
    missing = frame[frame["value"].isna()]
    print(f"{len(frame)} values of {frame['run_id'].nunique()} runs, {len(missing)} missing")
    for reason, count in missing["warnings"].value_counts().head(5).items():
        print(f"  {count} x {reason}")


def _without(common: list[str], note: str) -> str:
    """The remarks of a row that not all rows have."""
    return "; ".join(remark for remark in note.split("; ") if remark not in common)


def show_budget(budget: Budget, jobs: int) -> None:
    """Print what measuring would cost, by measure."""
    ordered = sorted(budget.seconds.items(), key=lambda item: -item[1])
    rows = [(key, f"{seconds:.1f}") for key, seconds in [*ordered, ("total", math.fsum(budget.seconds.values()))]]
    show_table(("measure", "seconds"), rows, right=("seconds",))
    print(announcement(budget, jobs))
