"""What commands print: tables for a reader."""

from collections.abc import Collection, Iterable, Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Output(Console):
    """The console, for which a reader that has gone is the same error as for `print`."""

    def on_broken_pipe(self) -> NoReturn:
        """Pass it on, instead of ending the program with code 1."""
        raise BrokenPipeError


out = Output()


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    fold: Collection[str] = (),
    title: str | None = None,
) -> None:
    """Print a table; what stands in brackets in a cell is text, not a style.

    Args:
        columns: Headings.
        rows: Cells, one a column.
        right: Columns of numbers, set flush right.
        fold: Columns whose words may be broken where the terminal is narrow.
        title: Above it.
    """
    grid = Table(
        title=None if title is None else escape(title), box=None, pad_edge=False, header_style="bold",
        title_justify="left",
    )  # fmt: skip
    for name in columns:
        grid.add_column(
            escape(name),
            justify="right" if name in right else "left",
            overflow="fold" if name in fold else "ellipsis",
        )
    for row in rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    out.print(grid)
