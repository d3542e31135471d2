"""A coarse search of the radius on a short budget, before the long runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from trainers.config import TrainConfig, train_config
from trainers.files.writing import write_atomically
from trainers.runs.folder import ERROR, Run, leading_score
from trainers.sharpness_aware.methods import METHODS
from trainers.sweep.running import train_all

FACTORS = (0.0, 1 / 9, 1 / 3, 1.0, 3.0, 9.0)
COLUMNS = ("rho", "validation_error", "deviation", "train_error", "seeds", "status", "run_ids")


@dataclass(frozen=True)
class RadiusSearch:
    """What a search found.

    Attributes:
        table: One row a radius: rho, validation_error (mean over seeds; NaN where a run diverged or failed), deviation
            (standard deviation over seeds; NaN for one), train_error, seeds, status (of the runs that are not
            "finished", with the reason of the first; "" if all are) and run_ids.
        best: The radius with the smallest mean validation error, the smaller one of equals; None if no run finished.
        notes: What a reader should know before trusting it.
        folder: Where the runs are, with `table.parquet`.
        score: What the columns hold the error of: "error", or the leading score of another task in its place.
    """

    table: pd.DataFrame
    best: float | None
    notes: tuple[str, ...]
    folder: Path
    score: str = ERROR


def search_radius(
    config: TrainConfig | Mapping[str, Any],
    *,
    out: str | Path = "runs",
    radii: Sequence[float] | None = None,
    share: float = 0.2,
    seeds: int = 1,
    trust: bool = False,
    progress: Callable[[Run], None] | None = None,
    **place: Any,
) -> RadiusSearch:
    """Train short runs with several radii and compare their validation errors.

    The runs are ordinary ones, in `out`/rho-search/<id of the configuration>; repeating the call continues them. A
    short run favours what learns fast, so the answer is a place to start from, not a tuned radius.

    Args:
        config: The run that the radius is for; its radius, or the method's default, is the middle of the grid.
        out: Folder of runs.
        radii: The grid; None tries 0 and factors of three, from a ninth to nine times the middle.
        share: Fraction of the epochs that each run gets, at least one; a warm-up shrinks with it.
        seeds: Runs for each radius: the configuration's seed and those that follow.
        trust: As for `fit`.
        progress: Called with each run as it ends.
        **place: As for `train_all`: `jobs`, `device`, or a `Runtime`.

    Returns:
        The table, the suggestion and its caveats.

    Raises:
        ValueError: If the method has no radius, there is no validation data, or an argument is out of range.
    """
    config = (config if isinstance(config, TrainConfig) else train_config(config)).resolved()
    grid = _grid(config, radii)
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1], got {share!r}.")
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {seeds!r}.")
    if config.validation_size == 0:
        raise ValueError("`validation_size` must be above 0 to search a radius: it compares validation errors, got 0.")
    folder = Path(out) / "rho-search" / config.run_id
    trials = {rho: [_trial(config, rho, share, config.seed + k) for k in range(seeds)] for rho in grid}
    runs: dict[str, Run] = {}
    every = {trial.run_id: trial for group in trials.values() for trial in group}
    for run in train_all(list(every.values()), out=folder, trust=trust, **place):
        runs[run.folder.name] = run
        if progress is not None:
            progress(run)
    table = pd.DataFrame(
        [_row(rho, [runs[t.run_id] for t in group]) for rho, group in trials.items()], columns=list(COLUMNS)
    )
    write_atomically(folder / "table.parquet", lambda aside: table.to_parquet(aside, index=False))
    whole = table.dropna(subset="validation_error").sort_values(["validation_error", "rho"])
    best = float(whole["rho"].iloc[0]) if len(whole) else None
    scores = [leading_score(run.history().columns) for run in runs.values() if run.status()["status"] == "finished"]
    return RadiusSearch(table, best, tuple(_notes(table, best, seeds)), folder, next(iter(scores), ERROR))


def _grid(config: TrainConfig, radii: Sequence[float] | None) -> list[float]:
    if METHODS[config.method].rho is None:
        raise ValueError(f"`method` {config.method!r} has no radius to search.")
    if radii is not None:
        bad = [r for r in radii if not (math.isfinite(r) and r >= 0)]
        if bad or len(set(radii)) < 2:
            raise ValueError(f"`radii` must be at least two different finite numbers >= 0, got {list(radii)}.")
        return sorted(set(radii))
    middle = config.rho or METHODS[config.method].rho
    assert middle is not None
    return [float(f"{middle * factor:.3g}") for factor in FACTORS]


def _trial(config: TrainConfig, rho: float, share: float, seed: int) -> TrainConfig:
    epochs = max(1, round(share * config.epochs))
    shrunk = {key: getattr(config, key) * epochs / config.epochs for key in ("warmup_epochs", "rho_warmup_epochs")}
    changes = {**shrunk, "rho": rho, "seed": seed, "epochs": epochs, "checkpoints": (), "evaluate_every": epochs}
    return train_config({**config.as_dict(), **changes}).resolved()


def _row(rho: float, runs: Sequence[Run]) -> tuple[Any, ...]:
    states = [run.status() for run in runs]
    bad = [s for s in states if s["status"] != "finished"]
    last = [run.history().iloc[-1] for run, s in zip(runs, states, strict=True) if s["status"] == "finished"]
    errors, of_training = (
        pd.Series([row[f"{split}_{leading_score(row.index)}"] for row in last], dtype=float)
        for split in ("validation", "train")
    )
    complete = not bad and bool(errors.notna().all())
    return (
        rho,
        float(errors.mean()) if complete else math.nan,
        float(errors.std()) if complete else math.nan,
        float(of_training.mean()) if complete else math.nan,
        len(runs),
        f"{len(bad)} {bad[0]['status']}: {bad[0]['reason']}" if bad else "",
        [run.folder.name for run in runs],
    )


def _notes(table: pd.DataFrame, best: float | None, seeds: int) -> list[str]:
    if best is None:
        return ["no radius finished: look at the column `status`, and at the learning rate."]
    notes = []
    finished = table.dropna(subset="validation_error")
    row = table[table["rho"] == best].iloc[0]
    if best == table["rho"].max():
        notes.append(f"the best radius {best:g} is the largest of the grid: try larger ones too.")
    elif best == finished["rho"].max():
        notes.append(f"every radius above the best, {best:g}, diverged or failed: try some in between.")
    positive = table.loc[table["rho"] > 0, "rho"]
    if best == 0:
        notes.append("no radius did better than none: on this budget the base optimizer is as good.")
    elif best == positive.min():
        notes.append(f"the best radius {best:g} is the smallest of the grid above 0: try smaller ones too.")
    if seeds == 1:
        notes.append("one seed each: small differences may be chance; --search-seeds 3 shows how much.")
    else:
        others = finished[finished["rho"] != best]
        spread = ((row["deviation"] ** 2 + others["deviation"] ** 2) / seeds) ** 0.5
        close = others.loc[others["validation_error"] - row["validation_error"] <= 2 * spread, "rho"]
        if len(close):
            listed = ", ".join(f"{r:g}" for r in close)
            notes.append(f"not told apart from it by {seeds} seeds (two standard errors): {listed}.")
    return notes
