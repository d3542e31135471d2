"""What a table of the report is, and how it is written as CSV and Markdown; `latex` writes it for a paper.

A table has two faces: `data`, raw numbers in full precision, which goes into the CSV file; and `shown`, text rounded
for a reader, which goes into the page and the LaTeX file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.reporting.markup import escape_markdown, plain_cells
from analysis.statistics.statistic import Cell
from analysis.style import measure_name

SHOWN_ROWS = 25  # on the page; the CSV file holds every row
NOTHING = ("", "–")  # cells that say nothing
OF_MEASURES = ("Measure", "First", "Second", "Target", "Strongest measure")
_MARKED = re.compile(r"(.*?)((?: [†‡⚠]+)?)")


@dataclass(frozen=True)
class Table:
    """One table of the report.

    Attributes:
        name: Stem of its files.
        title: Heading.
        note: How its numbers were made; what matters most comes first, as its first sentence is the caption.
        data: Raw values, every row.
        shown: Text for a reader, at most `SHOWN_ROWS` rows; columns named as they are printed.
        text: Columns of `shown` that hold words, set flush left; the others are numbers, flush right.
        empty: What to say where there are no rows.
        optional: Where there are no rows, nothing is said at all.
        below: Rows of the columns of `shown` that the page opens below one of its rows, by the place of that row.
    """

    name: str
    title: str
    note: str
    data: pd.DataFrame
    shown: pd.DataFrame
    text: tuple[str, ...] = ()
    empty: str = "Nothing to show."
    optional: bool = False
    below: Mapping[int, pd.DataFrame] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Columns of `shown` that hold ids of measures: a reader sees names, with the id beside where there is room."""
        return [str(name) for name in self.shown.columns if name in OF_MEASURES]


def measure_in(cell: str) -> tuple[str, str]:
    """The id of a measure in a cell, and the marks behind it."""
    match = _MARKED.fullmatch(cell)
    return (match[1], match[2]) if match else (cell, "")


_NEXT = re.compile(r"(?<=[.?])\s+(?=[A-ZΨ|`⇄⚠†‡≤]|[np]: )")  # where a sentence begins


def captioned(text: str) -> tuple[str, str]:
    """A caption of one or two sentences, and what is left of the text: notes.

    The caption is the first sentence; where that is a question, also the second, which answers it.
    """
    parts = _NEXT.split(text)
    of_caption = 2 if parts[0].endswith("?") else 1
    return " ".join(parts[:of_caption]), " ".join(parts[of_caption:])


def to_csv(table: Table) -> str:
    """The raw values as comma-separated text; empty where a value is missing.

    Text that a spreadsheet would compute (it begins with =, +, -, @ or a tab) has an apostrophe before it.
    """
    return str(plain_cells(table.data).to_csv(index=False, lineterminator="\n"))


def to_markdown(table: Table) -> str:
    """A pipe table; what Markdown takes for markup in its cells is escaped."""
    columns = list(table.shown.columns)

    ids = [name in table.ids for name in columns]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(map(escape_markdown, cells)) + " |"

    def told(cells: Sequence[Any]) -> str:
        parts = [_beside(str(c)) if of else escape_markdown(str(c)) for c, of in zip(cells, ids, strict=True)]
        return "| " + " | ".join(parts) + " |"

    rule = ["---" if c in table.text else "---:" for c in columns]
    rows = [told(row) for row in table.shown.itertuples(index=False)]
    return "\n".join([line([str(c) for c in columns]), "|" + "|".join(rule) + "|", *rows])


def _beside(cell: str) -> str:
    """`largest eigenvalue (top_eigenvalue) †`."""
    variant, marks = measure_in(cell)
    name = measure_name(variant)
    return escape_markdown(cell if name == variant else f"{name} ({variant}){marks}")


def written(rows: pd.DataFrame, cells: Mapping[str, Cell]) -> pd.DataFrame:
    """Rows as a reader sees them, a column a heading."""
    return pd.DataFrame({heading: cell.texts(rows) for heading, cell in cells.items()}, index=rows.index)


def told(shown: pd.DataFrame, text: Sequence[str]) -> pd.DataFrame:
    """A table without rows that have no number, and then without columns that say nothing.

    Args:
        shown: Text for a reader.
        text: Its columns that hold words, by which a row is named.
    """
    silent = shown.isin(NOTHING)
    numbers = [c for c in shown.columns if c not in (*text, "Remark", "n")]
    rows = shown[~silent[numbers].all(axis=1)] if numbers else shown
    if rows.empty:
        return rows
    kept: pd.DataFrame = rows.loc[:, [c for c in rows.columns if c in text or not rows[c].isin(NOTHING).all()]]
    return kept


def plain(value: Any) -> str:
    """A setting as it was written: 0.05 stays 0.05, and 3.0 from a column with gaps is 3."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def natural(text: str) -> tuple[bool, float, str]:
    """Sorts numbers by size and then words."""
    try:
        return False, float(text), ""
    except ValueError:
        return True, 0.0, text


def first_of(rows: pd.DataFrame, note: str, what: str = "rows", most: int = SHOWN_ROWS) -> tuple[pd.DataFrame, str]:
    """The rows that a page has room for, and a note that says so where there are more."""
    if len(rows) <= most:
        return rows, note
    return rows.head(most), f"{note} Shown: the first {most} of {len(rows)} {what}; the CSV file holds all."


def remarks(shown: pd.DataFrame, note: str) -> tuple[pd.DataFrame, str]:
    """Move the sentences of a column `Remark` below the table, with numbers in their place; drop it if it is empty.

    Args:
        shown: Text for a reader; remarks of one row are separated by semicolons.
        note: The note below, to which the remarks are added.
    """
    if "Remark" not in shown.columns:
        return shown, note
    parts = [[part for part in str(text).split("; ") if part] for text in shown["Remark"]]
    every = list(dict.fromkeys(part for row in parts for part in row))
    if not every:
        return shown.drop(columns="Remark"), note
    number = {part: str(i + 1) for i, part in enumerate(every)}
    said = "; ".join(f"({number[part]}) {part}" for part in every)
    marks = [", ".join(f"({number[part]})" for part in row) for row in parts]
    return shown.assign(Remark=marks), f"{note} Remarks: {said}."
