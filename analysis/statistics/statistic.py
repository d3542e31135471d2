"""What a statistic of the family is: a table made of sorted runs, and how the report shows it.

Each is one file, with a `STATISTIC` at its end that `analysis.statistics.catalogue` names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics.evidence import Evidence, Rows
from analysis.style import count, fixed, p_value

SHOWN = 12  # measures on a page of the report
SIGNS = {1: "+", -1: "−", 0: "?"}


@dataclass(frozen=True)
class Cell:
    """How a reader sees one or more columns.

    Attributes:
        columns: Which.
        write: Their values in a row as text.
    """

    columns: tuple[str, ...]
    write: Callable[..., str]

    def texts(self, rows: pd.DataFrame) -> list[str]:
        """The text of each row."""
        return [self.write(*values) for values in zip(*(rows[c] for c in self.columns), strict=True)]


def number(column: str, digits: int = 2) -> Cell:
    """A number with so many digits."""
    return Cell((column,), lambda x: fixed(x, digits))


def whole(column: str) -> Cell:
    """A count."""
    return Cell((column,), count)


def chance(column: str) -> Cell:
    """A p-value."""
    return Cell((column,), p_value)


def words(column: str) -> Cell:
    """Text; nothing where it is missing."""
    return Cell((column,), lambda text: "" if pd.isna(text) else str(text))


def span(low: float, high: float) -> str:
    """`[low, high]`, or a dash where there is none."""
    return f"[{fixed(low)}, {fixed(high)}]" if np.isfinite(low) and np.isfinite(high) else "–"


def turned(value: float, reversal: bool) -> str:
    """A value within methods, marked where its sign differs from the pooled one."""
    return fixed(value) + (" ⇄" if reversal else "")


INTERVAL = {"{level} interval": Cell(("low", "high"), span)}
WITHIN = {"Within": Cell(("within", "reversal"), turned)}


def of_leading(rows: pd.DataFrame, leading: Sequence[str]) -> pd.DataFrame:
    """The rows of the measures that lead, strongest first."""
    rows = rows[rows["measure"].isin(leading)]
    place = rows["measure"].map({m: i for i, m in enumerate(leading)})
    return rows.iloc[np.argsort(place.to_numpy(), kind="stable")]


@dataclass(frozen=True)
class Statistic:
    """One table of `correlate`.

    Attributes:
        name: Of the table and its files.
        columns: Those of the table, in order, apart by spaces.
        table: Its rows.
        title: Heading in the report.
        note: How its numbers were made, with {target}.
        shown: Headings of the report's table with what stands below; measure and remarks come of themselves.
        words: Headings of what is no number.
        chosen: Of the leading target's rows those that the report shows, given the measures that lead.
        spread: More headings, which depend on the rows.
        reads: Columns that `chosen` looks at beside what is shown, apart by spaces.
        later: Columns that tables of earlier versions lack, with what is then read in their place.
    """

    name: str
    columns: str
    table: Callable[[Evidence], Rows]
    title: str
    note: str
    shown: Mapping[str, Cell]
    words: tuple[str, ...] = ()
    chosen: Callable[[pd.DataFrame, Sequence[str]], pd.DataFrame] = of_leading
    spread: Callable[[pd.DataFrame], Mapping[str, Cell]] = lambda _: {}
    reads: str = ""
    later: Mapping[str, Any] = field(default_factory=dict)

    def completed(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table with the columns that earlier versions did not write."""
        return frame.assign(**{c: value for c, value in self.later.items() if c not in frame.columns})

    @property
    def needed(self) -> list[str]:
        """The columns that the report reads, and every version has written."""
        own = {
            "measure",
            "target",
            "warnings",
            *self.reads.split(),
            *(c for cell in self.shown.values() for c in cell.columns),
        }
        return [c for c in self.columns.split() if c in own and c not in self.later]

    def made(self, evidence: Evidence) -> pd.DataFrame:
        """The table, rows in the order of targets and measures."""
        frame = pd.DataFrame(self.table(evidence), columns=self.columns.split())
        keys = [
            frame[c].map({v: k for k, v in enumerate(order)}).fillna(len(order))
            for c, order in (("target", evidence.targets), ("measure", evidence.measures))
            if c in frame.columns
        ]
        if not len(frame):
            return frame
        return frame.iloc[np.lexsort([k.to_numpy() for k in reversed(keys)])].reset_index(drop=True)
