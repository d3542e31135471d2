"""From runs to the measures table: measure checkpoints in parallel, keep what is done, mark what fails."""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import table
from analysis.measures.registry import MEASURES, entry_of, failed_rows, names
from analysis.measures.subject import Subject
from analysis.measures.targets import TARGETS
from analysis.table import Row
from landscape.progress import Progress
from trainers.config import TrainConfig
from trainers.data import DataBundle
from trainers.files import read_json, write_json
from trainers.naming import nearest
from trainers.options import checked
from trainers.parallel import in_parallel
from trainers.runs import Run, load_data

VERSION = 2  # part of the cache key: raise it when a measure comes to mean another number

STORE_SECONDS = 5.0  # of measuring that a killed process may lose, beside the measure it was at

Plan = dict[str, dict[str, Any]]  # measure -> options, all filled in
INTERRUPTED = "was interrupted after"  # what the estimators of `landscape` warn when Ctrl-C ended them early
Begin = Callable[[str], None]  # told of each measure before it is taken


def silent(name: str) -> None:
    """The `Begin` that says nothing."""


def plan(measures: Mapping[str, Mapping[str, Any] | None] | Sequence[str] | None = None) -> Plan:
    """Check a choice of measures and fill in their options.

    Args:
        measures: Names, or names with options; None takes the usual ones with their defaults, "all" stands for all
            there are. The name of a row, such as top_eigenvalue, stands for the measure that makes it.

    Raises:
        ValueError: For an unknown measure or option, with the nearest name.
    """
    given = [key for key, entry in MEASURES.items() if entry.usual] if measures is None else measures
    if not isinstance(given, Mapping):
        given = dict.fromkeys(given)
    if given.get("all", 0) is None:
        given = {**dict.fromkeys(MEASURES), **{name: options for name, options in given.items() if name != "all"}}
    chosen: Plan = {}
    for name, options in given.items():
        key = entry_of(name)
        if key is None:
            raise ValueError(f"measure {name!r} is unknown; there are {sorted(MEASURES)}.{nearest(name, names())}")
        chosen[key] = checked(MEASURES[key].function, options or {}, owner=f"measure {key!r}")
    return chosen


def measure_subject(subject: Subject, chosen: Plan, *, begin: Begin = silent) -> dict[str, list[Row]]:
    """Take measures of one checkpoint; one that fails becomes rows with the reason.

    Args:
        subject: The checkpoint.
        chosen: The measures, see `plan`.
        begin: Called with the name of each measure before it is taken.
    """
    return dict(measures_of(subject, chosen, begin=begin))


def measures_of(subject: Subject, chosen: Plan, *, begin: Begin = silent) -> Iterator[tuple[str, list[Row]]]:
    """What `measure_subject` gives, one measure after the other.

    Raises:
        KeyboardInterrupt: Also if an estimator was interrupted and returned what it knew: that is no measurement.
    """
    for key, options in chosen.items():
        begin(key)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                rows = MEASURES[key].function(subject, **options)
            except Exception as error:  # one bad measure is marked rows, the others go on
                rows = failed_rows(key, f"{type(error).__name__}: {error}")
        notes = list(
            dict.fromkeys(str(w.message) for w in said if issubclass(w.category, UserWarning | RuntimeWarning))
        )
        if any(INTERRUPTED in note for note in notes):
            raise KeyboardInterrupt
        if notes:
            rows = [replace(r, warnings="; ".join([*filter(None, [r.warnings]), *notes])) for r in rows]
        yield key, rows


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

    What was measured before with the same options, seed and version is read back from RUN/measures. What is measured
    is kept there as it comes, so that little is lost where this is interrupted.

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
    status = run.status()
    if status["status"] in ("diverged", "failed"):
        reason = f"{status['status']}: {status['reason']}"
        rows = [Row(name, math.nan, math.nan, 0, split="test", converged=False, warnings=reason) for name in TARGETS]
        return table.to_frame(rows, run_id=run.run_id, step=0, epoch=int(status["epochs"]))
    steps = list(run.checkpoints())
    if not steps or status["status"] == "interrupted":
        reason = "no checkpoint: the run was interrupted; run the same command again to continue it"
        rows = [Row(name, math.nan, math.nan, 0, split="test", converged=False, warnings=reason) for name in TARGETS]
        return table.to_frame(rows, run_id=run.run_id, step=0, epoch=0)
    config = run.config()
    frames = []
    for step in steps:
        wanted = chosen if step == steps[-1] else along if step > 0 else None
        if wanted:
            load = partial(_subject, run, step, config, trust=trust, seed=seed, progress=progress)
            frames.append(_measure_checkpoint(run, step, wanted, load, seed=seed, begin=begin))
    return pd.concat(frames, ignore_index=True)


def _subject(run: Run, step: int, config: TrainConfig, *, trust: bool, seed: int, progress: Progress) -> Subject:
    found = Subject.of_checkpoint(run, step, data_of(config, trust=trust), trust=trust, seed=seed)
    return replace(found, progress=progress)


def _measure_checkpoint(
    run: Run, step: int, wanted: Plan, load: Callable[[], Subject], *, seed: int, begin: Begin
) -> pd.DataFrame:
    cache = Cache(run.folder / "measures", step)
    kept = cache.load()
    keys = {key: option_hash(key, options, seed) for key, options in wanted.items()}
    todo = {key: wanted[key] for key in wanted if keys[key] not in kept}
    if todo:
        try:
            subject = load()
        except (OSError, ValueError) as error:  # not stored: it may be mended
            reason = f"{type(error).__name__}: {error}"
            failed = {key: failed_rows(key, reason) for key in todo}
            kept |= {keys[key]: table.to_frame(r, run_id=run.run_id, step=step, epoch=-1) for key, r in failed.items()}
        else:
            _measure_into(kept, cache, subject, todo, keys, begin)
    return pd.concat([kept[keys[key]] for key in wanted], ignore_index=True)


def _measure_into(
    kept: dict[str, pd.DataFrame], cache: "Cache", subject: Subject, todo: Plan, keys: Mapping[str, str], begin: Begin
) -> None:
    """Measure, and store what is there every few seconds, at the end and where Ctrl-C ends it."""
    stored = time.monotonic()
    try:
        for key, rows in measures_of(subject, todo, begin=begin):
            kept[keys[key]] = table.to_frame(rows, run_id=subject.run_id, step=subject.step, epoch=subject.epoch)
            if time.monotonic() - stored > STORE_SECONDS:
                cache.store(kept)
                stored = time.monotonic()
    finally:
        if kept:
            cache.store(kept)


class Cache:
    """Measured rows of one checkpoint, by hash of measure and options: RUN/measures/<step>.{parquet,json}."""

    def __init__(self, folder: Path, step: int) -> None:
        self.rows, self.index = folder / f"{step}.parquet", folder / f"{step}.json"

    def load(self) -> dict[str, pd.DataFrame]:
        """What is stored; nothing where a file is missing or broken."""
        try:
            index = read_json(self.index)
            rows = table.check(pd.read_parquet(self.rows))
            if len(rows) != sum(index.values()):
                return {}
        except (OSError, ValueError):
            return {}
        found, start = {}, 0
        for key, count in index.items():
            found[key] = rows.iloc[start : start + count].reset_index(drop=True)
            start += count
        return found

    def store(self, kept: Mapping[str, pd.DataFrame]) -> None:
        """Write all rows, and the index last."""
        ordered = dict(sorted(kept.items()))
        self.index.unlink(missing_ok=True)
        table.write(pd.concat(ordered.values(), ignore_index=True), self.rows)
        write_json(self.index, {key: len(frame) for key, frame in ordered.items()})


def option_hash(key: str, options: Mapping[str, Any], seed: int) -> str:
    """What the cache knows a measurement by."""
    text = json.dumps([VERSION, key, options, seed], sort_keys=True)
    return f"{key}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


_last_data: tuple[str, DataBundle] | None = None  # one process measures many runs on the same data


def data_of(config: TrainConfig, *, trust: bool = False) -> DataBundle:
    """The data of a configuration; the last one is kept in memory."""
    global _last_data
    keys = ("dataset", "train_size", "validation_size", "test_size", "label_noise", "spurious", "data_seed")
    name = json.dumps([getattr(config, key) for key in keys])
    if _last_data is None or _last_data[0] != name:
        _last_data = (name, load_data(config, trust=trust))
    return _last_data[1]


def collect(
    runs: Sequence[Run],
    *,
    measures: Mapping[str, Mapping[str, Any] | None] | Sequence[str] | None = None,
    along: Mapping[str, Mapping[str, Any] | None] | Sequence[str] = (),
    along_runs: Callable[[TrainConfig], bool] | None = None,
    jobs: int | None = None,
    trust: bool = False,
    seed: int = 0,
) -> Iterator[pd.DataFrame]:
    """Measure many runs in parallel; yields each run's rows as they come.

    Args:
        runs: What to measure.
        measures: For the last checkpoint of each run, see `plan`; None is the usual ones.
        along: For the checkpoints before it.
        along_runs: Which runs to measure along training; None is all.
        jobs: Processes; None is one a core.
        trust: Import a model or dataset that a run names as module:function.
        seed: Of the measures' random choices.
    """
    chosen, path = plan(measures), plan(along) if along else {}
    calls = []
    for run in runs:
        follow = path if path and (along_runs is None or along_runs(run.config())) else None
        call = (str(run.folder), chosen, follow, trust, seed)
        if _is_measured(run, chosen, follow, seed):
            yield _measure_call(*call)  # only to be read: not worth a process
        else:
            calls.append(call)
    yield from in_parallel(_measure_call, calls, jobs=jobs)


def _is_measured(run: Run, chosen: Plan, along: Plan | None, seed: int) -> bool:
    """Whether all that is asked for is in the run's cache."""
    steps = list(run.checkpoints())
    for step in steps:
        wanted = chosen if step == steps[-1] else along if step > 0 else None
        kept = Cache(run.folder / "measures", step).load() if wanted else {}
        if any(option_hash(key, options, seed) not in kept for key, options in (wanted or {}).items()):
            return False
    return run.finished


def _measure_call(folder: str, chosen: Plan, along: Plan | None, trust: bool, seed: int) -> pd.DataFrame:
    return measure_run(folder, chosen, along, trust=trust, seed=seed)


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in an order that does not depend on which process was first."""
    keys = ["run_id", "step", "measure", "split", "options"]
    return frame.sort_values(keys, kind="stable").reset_index(drop=True)
