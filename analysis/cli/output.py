"""What commands print: tables for a reader."""

from collections.abc import Collection, Iterable, Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Output(Console):
    """A console that raises the same error as `print` when the reader of its output is gone."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error, instead of ending the program with code 1."""
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
    """Print a table; text in brackets in a cell is printed, not taken for a style.

    Args:
        columns: Headings.
        rows: Cells, one per column.
        right: Columns to align right, such as numbers.
        fold: Columns whose words may be broken if the terminal is narrow.
        title: Title above the table.
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
