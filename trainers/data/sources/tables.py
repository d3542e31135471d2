"""A table in a text file, `csv:FILE`: one example a line, some columns of which are targets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from landscape.naming import nearest
from trainers.data.items import targets_as_stored
from trainers.data.sources.files import Files, single_file
from trainers.data.sources.source import Source, bounds

SEPARATORS = (",", ";", "\t")


def find(name: str, rest: str) -> Files:
    """The file, see `single_file`."""
    return single_file(name, rest, "a table of numbers as text")


def load(name: str, files: Files, columns: Sequence[str] = (), *, labels: bool = True) -> Source:
    """All its lines; test examples are a fifth, drawn by the seed.

    The first line names the columns, unless all its cells are numbers: then they are called 1, 2, and so on. Cells are
    apart by commas, semicolons or tabs. Inputs, and targets that are numbers, are standardised on the training part.

    Args:
        name: Of the data, for messages.
        files: The file.
        columns: Those that are targets; by default the last one.
        labels: Whether the target must be one whole-number label.

    Raises:
        ValueError: If a column is not there, a cell is empty or no number, or nothing is left to learn from.
    """
    path = files.path(files.names[0])
    table = _table(name, path)
    wanted = list(columns) or [table.columns[-1]]
    for column in wanted:
        if column not in table.columns:
            raise ValueError(
                f"`target_columns` names {column!r}, and {path} has the columns {', '.join(table.columns[:20])}."
                f"{nearest(column, list(table.columns))}"
            )
    if len(set(wanted)) < len(wanted) or len(wanted) >= len(table.columns):
        raise ValueError(
            f"`target_columns` must be different columns that leave some of the {len(table.columns)} as inputs, got "
            f"{wanted}."
        )
    if labels and len(wanted) > 1:
        raise ValueError(
            f"`target_columns` has {len(wanted)} columns, and `task` 'classification' learns one label: take `task` "
            f"'regression' or 'multilabel'."
        )
    numbers = np.column_stack([_numbers(name, path, table, column) for column in table.columns])
    is_target = np.array([column in wanted for column in table.columns])
    x = torch.from_numpy(numbers[:, ~is_target]).float()
    y = torch.from_numpy(numbers[:, [list(table.columns).index(column) for column in wanted]])
    if labels and bool((y != y.round()).any()):
        raise ValueError(
            f"`dataset` {name!r}: the column {wanted[0]!r} has numbers such as {float(y[y != y.round()][0]):g}, and "
            f"labels are whole numbers from 0: take `task` 'regression', or another of `target_columns`."
        )
    y = targets_as_stored(y[:, 0].long() if labels else y.float(), f"{name!r}", labels=labels)
    if len(y) < 2:
        raise ValueError(f"`dataset` {name!r}: {path} has {len(y)} lines of numbers: give at least 2.")
    return Source(
        x, y, int(y.max()) + 1 if labels else len(wanted), **bounds({"train": len(y)}), images=False,
        standardise=True, origin={"targets": wanted}, shared=False,
    )  # fmt: skip


def _table(name: str, path: Path) -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
        separator = max(SEPARATORS, key=first.count)
        headed = not all(_is_number(cell) for cell in first.strip().split(separator))
        table = pd.read_csv(
            path, sep=separator, header=0 if headed else None, dtype=str, keep_default_na=False, encoding="utf-8-sig",
            skipinitialspace=True,
        )  # fmt: skip
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"`dataset` {name!r}: {path} is no table ({said}): give as many cells in every line, in UTF-8."
        ) from None
    names = [str(c).strip() for c in table.columns]  # pandas tells equal ones apart
    table.columns = names if headed else [str(i + 1) for i in range(len(names))]
    return table


def _numbers(name: str, path: Path, table: pd.DataFrame, column: str) -> np.ndarray:
    """A column in float64."""
    cells = table[column]
    found = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(found.astype(np.float32)))  # as they are kept
    if len(bad):
        cell = str(cells.iloc[bad[0]]).strip()
        said = f"text such as {cell!r}" if cell and not _is_number(cell) else f"{cell!r}, no finite number,"
        said = said if cell else "empty cells,"
        raise ValueError(
            f"`dataset` {name!r}: the column {column!r} of {path} holds {said} in {len(bad)} of {len(table)} rows, the "
            f"first of them row {bad[0] + 1}: write numbers (one column of 0 and 1 for each word), or leave the column "
            f"or these rows out."
        )
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
