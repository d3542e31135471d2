"""Compare the numbers of two finished studies: `python -m benchmarks.golden OLD NEW [--tolerance 1e-9]`.

Run ids, the weights of every checkpoint, the history of every run, the measures and every table of statistics are
compared cell by cell. Prints what differs, in how many cells and by how much, and exits 1 if anything differs by more
than the tolerance. Seconds are left out.

`python -m benchmarks.golden STUDY --store tests/golden` stores an excerpt of the smoke study as the golden tables that
`tests/test_golden.py` compares with. Do that only after a change that is meant to change numbers.
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from analysis.study import environment
from trainers import Run, list_runs

Tables = dict[str, pd.DataFrame]

# What names a row, in tables of any kind; together with the order among rows that share it, where some do.
KEYS = (
    "run_id", "step", "epoch", "tensor", "split", "measure", "options", "target", "coefficient", "axis", "weighting",
    "level", "control", "features", "model", "added", "forgetting", "sharpness", "pairs", "family",
)  # fmt: skip
TIMES = ("seconds",)  # what no two runs agree on
TEXT = ("sha256", "warnings")
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")
STORED_RUNS, STORED_MEASURES = 4, 8  # measures are stored of every fourth run, statistics of every eighth measure
STORED_TARGETS = ("test_error", "gap_loss")
# Lengths and rises of the loss that a radius fixes: runs differ by rounding alone, so correlations are those of noise.
FIXED = r"^eps_|^dCE\[.*iso-loss.*exposed"


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be from the golden one: |new - old| <= absolute + relative max(|old|, |new|)."""

    relative: float = 0.0
    absolute: float = 0.0


EXACT = Tolerance()
Tolerances = Callable[[str, str], Tolerance]  # of the name of a measure (or "") and a column


@dataclass(frozen=True)
class Difference:
    """Cells of one column that differ by more than they may.

    Attributes:
        where: The table and column, and the measure where there is one.
        cells: How many cells differ, of `of`.
        relative: The largest |new - old| / max(|old|, |new|); NaN where cells are no numbers.
        ulps: The same in units in the last place, of a float32 where both numbers are some.
        example: The key of the worst cell, with its old and its new value.
    """

    where: str
    cells: int
    of: int
    relative: float = float("nan")
    ulps: float = float("nan")
    example: str = ""

    def __str__(self) -> str:
        size = "" if np.isnan(self.relative) else f", by up to {self.relative:.2g} ({self.ulps:.3g} ulps)"
        return f"{self.where}: {self.cells} of {self.of} differ{size}; {self.example}"


# -- what a study's folder holds -------------------------------------------------------------------------------------


def read_study(folder: Path) -> Tables:
    """The tables of a finished study: "runs", "weights", "history", "measures" and "statistics/<name>".

    Raises:
        FileNotFoundError: If the folder has no table of measures.
    """
    if not (folder / "measures.parquet").is_file():
        raise FileNotFoundError(f"{folder} is no finished study (no measures.parquet): make it with `landscape study`.")
    runs = list_runs(folder)
    return {
        "runs": pd.DataFrame([{"run_id": run.run_id, "status": run.status()["status"]} for run in runs]),
        "weights": pd.DataFrame([row for run in runs for row in weights_of(run)]),
        "history": pd.concat([run.history().assign(run_id=run.run_id) for run in runs], ignore_index=True),
        "measures": pd.read_parquet(folder / "measures.parquet"),
        **{f"statistics/{p.stem}": pd.read_parquet(p) for p in sorted((folder / "statistics").glob("*.parquet"))},
    }


def weights_of(run: Run) -> Iterator[dict[str, object]]:
    """A row a tensor of each checkpoint: its checksum, and its Euclidean norm."""
    for step, folder in run.checkpoints().items():
        for name, tensor in sorted(load_file(folder / "params.safetensors").items()):
            yield {
                "run_id": run.run_id, "step": step, "tensor": name,
                "sha256": hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16],
                "norm": float(tensor.double().norm()),
            }  # fmt: skip


def store(tables: Tables, folder: Path) -> None:
    """Write tables as compressed CSV files, floats with all their digits."""
    for name, table in tables.items():
        path = folder / f"{name}.csv.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False, na_rep="nan")


def read_stored(folder: Path) -> Tables:
    """The tables that `store` wrote; numbers to the last bit."""
    result = {}
    for path in sorted(folder.rglob("*.csv.xz")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for column in table.columns.difference([*KEYS, *TEXT]):
            with suppress(ValueError):  # of a column of text
                table[column] = table[column].to_numpy(str).astype(float)
        result[path.relative_to(folder).as_posix().removesuffix(".csv.xz")] = table
    return result


def excerpt(tables: Tables) -> Tables:
    """What is stored of a study: all weights and histories, the measures of some runs, statistics of some measures."""
    chosen: Tables = {}
    for name, table in tables.items():
        if name == "measures":
            chosen[name] = table[table["run_id"].isin(sorted(table["run_id"].unique())[::STORED_RUNS])]
        elif {"measure", "target"} <= set(table.columns):
            measures = sorted(table["measure"].unique())[::STORED_MEASURES]
            rows = table["measure"].isin(measures) & ~table["measure"].str.contains(FIXED, regex=True)
            chosen[name] = table[rows & table["target"].isin(STORED_TARGETS)]
        else:
            chosen[name] = table
    return {name: table.drop(columns=[*TIMES], errors="ignore") for name, table in chosen.items()}


def machine() -> dict[str, str]:
    """What the last digits depend on: the processor and the versions of the libraries that compute."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    return {
        **{key: str(value) for key, value in environment().items() if key in LIBRARIES},
        **{key: facts.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping")},
        "flags": hashlib.sha256(facts.get("flags", platform.machine()).encode()).hexdigest()[:16],
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


# -- comparing -------------------------------------------------------------------------------------------------------


def differences(old: Tables, new: Tables, tolerances: Tolerances) -> list[Difference]:
    """What differs between two studies by more than it may, table by table and column by column."""
    result = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name in old and name in new:
            result += compare(name, old[name], new[name], tolerances)
        else:
            result.append(Difference(name, 1, 1, example=f"only the {'old' if name in old else 'new'} study has it"))
    return result


def compare(name: str, old: pd.DataFrame, new: pd.DataFrame, tolerances: Tolerances) -> list[Difference]:
    """What differs between two tables of one kind, rows matched by what names them."""
    keys = [key for key in KEYS if key in old.columns and key in new.columns]
    first, second = keyed(old, keys), keyed(new, keys)
    result = []
    for what, left, right in (("rows", first.index, second.index), ("columns", old.columns, new.columns)):
        lost, added = left.difference(right), right.difference(left)
        lost, added = (names[[n not in TIMES for n in names]] for names in (lost, added))
        for state, names in (("lost", lost), ("added", added)):
            if len(names):
                result.append(Difference(f"{name}, {what} {state}", len(names), len(left), example=f"{names[0]}"))
    common = first.index.intersection(second.index)
    if not result and list(common) != list(second.index):
        result.append(Difference(f"{name}, order of rows", len(common), len(common), example="the rows are the same"))
    first, second = first.loc[common], second.loc[common]
    columns = [c for c in old.columns if c in new.columns and c not in keys and c not in TIMES]
    groups = first.groupby(level="measure").indices if name == "measures" else {"": np.arange(len(common))}
    for measure, rows in groups.items():
        for column in columns:
            label = f"{name}, {column}{f' of {measure}' if measure else ''}"
            tolerance = tolerances(str(measure), column)
            result += compare_cells(label, first[column].iloc[rows], second[column].iloc[rows], tolerance)
    return result


def keyed(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The table indexed by what names its rows."""
    named = table[keys].astype(str).assign(again=table.groupby(keys).cumcount().astype(str))
    return table.drop(columns=keys).set_index(pd.MultiIndex.from_frame(named))


def compare_cells(label: str, old: pd.Series, new: pd.Series, tolerance: Tolerance) -> list[Difference]:
    """At most one difference: that between the cells of a column, in the same order."""
    if is_number(old) and is_number(new):
        a, b = old.to_numpy(float), new.to_numpy(float)
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
            size = np.nan_to_num(np.maximum(np.abs(a), np.abs(b)), nan=0.0, posinf=0.0)
            differ = ~(off <= tolerance.absolute + tolerance.relative * size)
            relative = off / np.where(size > 0, size, 1.0)
            short = (a.astype(np.float32) == a) & (b.astype(np.float32) == b)
            ulps = off / np.where(short, np.spacing(size.astype(np.float32)), np.spacing(size))
        worst = int(np.argmax(np.where(differ, np.nan_to_num(relative, nan=np.inf), -1.0)))
    else:
        differ = old.astype(str).to_numpy() != new.astype(str).to_numpy()
        relative = ulps = np.full(len(old), np.nan)
        worst = int(np.argmax(differ))
    if not differ.any():
        return []
    where = " ".join(str(part) for part in old.index[worst][:-1])
    example = f"at {where}: {old.iloc[worst]}, now {new.iloc[worst]}"
    return [Difference(label, int(differ.sum()), len(old), float(relative[worst]), float(ulps[worst]), example)]


def is_number(column: pd.Series) -> bool:
    """Whether a column holds numbers, or nothing; True and False are none."""
    kind = column.infer_objects().dtype
    return column.isna().all() or (pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.golden", description=__doc__)
    parser.add_argument("old", type=Path, help="folder of a finished study")
    parser.add_argument("new", type=Path, nargs="?", help="folder of the same study, made by other code")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="relative difference that is accepted (default: 0)"
    )
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="store an excerpt of OLD as golden tables")
    asked = parser.parse_args(arguments)
    if (asked.new is None) == (asked.store is None):
        parser.error("give either the folder NEW to compare with, or `--store FOLDER`.")
    try:
        old = read_study(asked.old)
        if asked.store is not None:
            store(excerpt(old), asked.store)
            (asked.store / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
            return 0
        new = read_study(asked.new)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    found = differences(old, new, lambda *_: Tolerance(asked.tolerance))
    for difference in found:
        print(difference)
    cells = sum(table.size for table in old.values())
    print(f"{len(found)} columns differ" if found else f"no difference in {cells} cells of {len(old)} tables")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
