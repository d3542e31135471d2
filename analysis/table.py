"""The measures table: its schema, how rows are named, how runs' configurations are joined.

Long form, one row a number: `run_id, step, epoch, split, measure, options, value, stderr, draws, converged, warnings`.
`options` is JSON with sorted keys. After `join_config` the configuration stands beside it as `hp.*` columns.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from landscape.naming import nearest
from trainers.files.reading import read_table
from trainers.files.writing import write_atomically
from trainers.weights.places import ENDINGS, ending

WEIGHTS = ENDINGS  # of files of weights from elsewhere

COLUMNS: dict[str, str] = {
    "run_id": "str",
    "step": "int64",
    "epoch": "int64",
    "split": "str",
    "measure": "str",
    "options": "str",
    "value": "float64",
    "stderr": "float64",
    "draws": "int64",
    "converged": "bool",
    "warnings": "str",
}

# The options that tell two rows of one measure apart; the rest is context, recorded but not part of the name.
SEEDS = ("seed", "data_seed")  # runs that differ in these alone are of one configuration
SEED_COLUMNS = tuple(f"hp.{name}" for name in SEEDS)
NAMING = ("provider", "radius", "corruption", "severity", "rho", "m", "alpha", "protocol", "bin", "events", "entry")
# Options that are named only where they are not the usual ones.
USUAL = {
    "examples": 2048,  # of a larger training set
    "z": "1/n",
    "C": None,
    "gamma": 1.0,
    "link": "softmax",
    "eta": 0.0,
    "iso_loss": 0.1,
    "correction": "first-order",
    "form": "adjusted",
    "unit": "element",
    "norm": "l2",
    "relative": 0.05,
    "scope": "all",
    "outputs": None,
    "bn": None,
    "noise": 0.1,
    "leave_one_out": False,
    "layer": "last linear",
}


@dataclass(frozen=True)
class Row:
    """One number about one checkpoint, before it is told which run it belongs to.

    Attributes:
        measure: Name in the registry, or of a target.
        value: The number; NaN where it could not be had, with the reason in `warnings`.
        stderr: Standard error; 0.0 for exact values, NaN where unknown.
        draws: Independent draws behind the value.
        split: Data it was taken on: "train", "test", "validation", "exposed", "other_train", "held_out", "ood".
        options: What decides the number: norm, rho, m, provider, ...
        converged: False where an iteration ended on its budget.
        warnings: Text, empty where there is nothing to say.
    """

    measure: str
    value: float
    stderr: float = 0.0
    draws: int = 1
    split: str = "train"
    options: Mapping[str, Any] = field(default_factory=dict)
    converged: bool = True
    warnings: str = ""


def to_frame(rows: Iterable[Row], *, run_id: str, step: int, epoch: int) -> pd.DataFrame:
    """Rows of one checkpoint as a table with the columns of the schema."""
    place = {"run_id": run_id, "step": step, "epoch": epoch}
    records = [{**vars(r), **place, "options": json.dumps(dict(r.options), sort_keys=True)} for r in rows]
    return check(pd.DataFrame.from_records(records, columns=list(COLUMNS)))


def check(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the schema's types, or say what is wrong with it.

    Raises:
        ValueError: If a column is missing.
    """
    missing = [c for c in COLUMNS if c not in table.columns]
    if missing:
        raise ValueError(f"the measures table lacks the columns {missing}; it needs {list(COLUMNS)}.")
    return table.astype(COLUMNS)


def write(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as Parquet, aside and then by rename, so that a file that exists is whole."""
    write_atomically(path, lambda aside: table.to_parquet(aside, index=False))
    return path


def read(path: Path) -> pd.DataFrame:
    """Read a measures table written by `write`.

    Raises:
        FileNotFoundError: If there is none, with the command that makes it.
        ValueError: If it is not a measures table.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: make it with `landscape measure {path.parent}`.")
    hint = f"delete it and make it again with `landscape measure {path.parent}`"
    found = read_table(path, COLUMNS, hint=hint)
    try:
        found = check(found)
        plain = all(isinstance(json.loads(text), dict) for text in found["options"].unique())
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is no table of measures ({error}): {hint}.") from None
    if not plain:
        raise ValueError(f"{path} is no table of measures (`options` must be JSON objects): {hint}.")
    return found


def own(table: pd.DataFrame, runs: Iterable[str], path: Path) -> pd.DataFrame:
    """The table, where it has rows of these runs only.

    Raises:
        ValueError: If it has rows of others, naming the file and the way out.
    """
    others = sorted(set(table["run_id"]) - set(runs))
    if others:
        raise ValueError(
            f"{path} has rows of {len(others)} runs without a configuration in {path.parent}, such as {others[0]}: it "
            f"was copied in, or runs were taken away; make it again with `landscape measure {path.parent}`."
        )
    return table


def variant(measure: str, options: str | Mapping[str, Any], split: str) -> str:
    """The name under which a row is compared across runs: `F_mi[obf, iso-loss, m=64, held_out]`."""
    given = json.loads(options) if isinstance(options, str) else dict(options)
    parts = []
    for key in NAMING:
        if key in given and given[key] is not None:
            value = given[key]
            parts.append(value if isinstance(value, str) and key != "rho" else f"{key}={_short(value)}")
    parts += [f"{key}={_short(given[key])}" for key, usual in USUAL.items() if given.get(key, usual) != usual]
    if split not in ("train", "test", "ood"):
        parts.append(split)
    return f"{measure}[{', '.join(parts)}]" if parts else measure


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def with_variant(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `variant`, made by `variant` from each row."""
    keys = table[["measure", "options", "split"]].drop_duplicates()
    keys = keys.assign(variant=[variant(m, o, s) for m, o, s in keys.itertuples(index=False)])
    return table.merge(keys, on=["measure", "options", "split"], how="left")


def join_config(table: pd.DataFrame, configs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Put each run's configuration beside its rows, as columns `hp.<key>`; dict values as JSON."""
    flat = {
        run: {f"hp.{k}": json.dumps(v, sort_keys=True) if isinstance(v, dict | list) else v for k, v in config.items()}
        for run, config in configs.items()
    }
    frame = pd.DataFrame.from_dict(flat, orient="index").rename_axis("run_id").reset_index()
    return table.merge(frame, on="run_id", how="left")


def read_settings(path: Path, *, key: str = "weights") -> dict[str, dict[str, Any]]:
    """Settings of weights from elsewhere, for `join_config`: one row a file of weights, one column a setting.

    A column `seed` tells runs of one configuration apart, `method` makes the groups that are compared; both may be
    absent. Empty cells are settings that a run does not have.

    Args:
        path: A CSV or Parquet file.
        key: The column with the files' names; with or without folder and ending.

    Returns:
        For each run (the name of its file, without folder, and without ending where that tells it apart) its settings
        by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table, lacks the column, has no other one, or names a file twice or not at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a CSV or Parquet file with the settings of each run.")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path} must end in .csv or .parquet, to say what it is.")
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else read_table(path, hint="give another file")
    except (ValueError, OSError) as error:  # what pandas raises are ValueErrors or OSErrors
        raise ValueError(f"{path} could not be read as {path.suffix[1:]}: {' '.join(str(error).split())}.") from error
    columns = [str(name).removeprefix("hp.") for name in frame.columns]
    if key not in columns:
        raise ValueError(
            f"{path} has no column {key!r} that names the weights; it has {columns}.{nearest(key, columns)}"
        )
    frame = frame.set_axis(columns, axis=1)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or len(columns) < 2:
        raise ValueError(f"{path} {f'has the columns {twice} twice' if twice else f'has no column beside {key!r}'}.")
    if frame[key].isna().any():
        raise ValueError(f"{path} names no weights in row {int(frame[key].isna().to_numpy().argmax()) + 1}.")
    files = [PurePath(str(name).replace("\\", "/")).name for name in frame[key]]
    stems = [_stem(name) for name in files]
    names = [stem if stems.count(stem) == 1 else file for stem, file in zip(stems, files, strict=True)]
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise ValueError(f"{path} names the weights {again[:5]} more than once; names count without their folder.")
    records = frame.drop(columns=key).to_dict("records")
    return {
        name: {str(k): v for k, v in record.items() if not pd.isna(v)}
        for name, record in zip(names, records, strict=True)
    }


def _stem(name: str) -> str:
    """A file's name without its folder and without the ending of a file of weights; dots may be part of the name."""
    file = PurePath(name.replace("\\", "/")).name
    return file.removesuffix(ending(file))


def join_settings(table: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """`join_config` for settings from elsewhere, which may not fit.

    Raises:
        ValueError: If a measured run has no settings, or no settings beside its seeds.
    """
    runs = sorted(table["run_id"].unique())
    stems = [_stem(run) for run in runs]
    alone = {run: stem for run, stem in zip(runs, stems, strict=True) if stems.count(stem) == 1}
    found = {run: settings.get(run) or settings.get(alone.get(run, run)) or {} for run in runs}
    bare = [run for run in runs if not set(found[run]) - set(SEEDS)]
    if bare:
        there = "" if any(found.values()) else f"; it has {sorted(settings)[:5]}"
        raise ValueError(f"the settings lack {len(bare)} of {len(runs)} measured runs, such as {bare[:5]}{there}.")
    return join_config(table, found)


def last_step(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each run's last checkpoint."""
    return table[table["step"] == table.groupby("run_id")["step"].transform("max")]


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """One row a run, one column a variant, at each run's last checkpoint."""
    rows = with_variant(last_step(table))
    return rows.pivot_table(index="run_id", columns="variant", values="value", aggfunc="first", dropna=False)
