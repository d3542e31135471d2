"""What commands print: tables for a reader, and plain lines for other programs."""

import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

BETWEEN, INDENT = 2, 2  # spaces
READABLE = 24  # columns that folded text needs


class Output(Console):
    """A console that raises the same error as `print` when the reader of its output is gone."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error, instead of ending the program with code 1."""
        raise BrokenPipeError


out = Output()


def say(text: str) -> None:
    """Print prose: filled for a terminal, one line elsewhere."""
    print(textwrap.fill(text, out.width, subsequent_indent=" " * INDENT) if out.is_terminal else text)


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    fold: Collection[str] = (),
    title: str | None = None,
) -> None:
    """Print a table; text in brackets in a cell is printed, not taken for a style.

    Names in the first column are never broken: where they leave too little room, each stands on a line above the rest
    of its row.

    Args:
        columns: Headings.
        rows: Cells, one per column.
        right: Columns to align right, such as numbers.
        fold: Columns whose words may be broken if the terminal is narrow.
        title: Title above the table.
    """
    cells = [tuple(map(str, row)) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    least = [min(width, READABLE) if name in fold else width for name, width in zip(columns, widths, strict=True)]
    least[0] = widths[0]
    if title is not None:
        out.print(escape(title), style="italic", highlight=False, soft_wrap=True)
    if sum(least) + BETWEEN * (len(columns) - 1) <= out.width:
        out.print(_grid(columns, cells, right, fold))
        return
    room = out.width - INDENT - BETWEEN * (len(columns) - 2)
    fixed = sum(width for name, width in zip(columns[1:], widths[1:], strict=True) if name not in fold)
    folded = sum(name in fold for name in columns[1:])
    share = max(1, (room - fixed) // max(1, folded))  # of the room, for each column of text
    wide = [min(width, share) if name in fold else width for name, width in zip(columns[1:], widths[1:], strict=True)]
    out.print(escape(columns[0]), style="bold", highlight=False)
    out.print(Padding(_grid(columns[1:], [], right, fold, wide), (0, 0, 0, INDENT)))
    for name, *rest in cells:
        out.print(escape(name), highlight=False, soft_wrap=True)
        row = _grid(columns[1:], [rest], right, fold, wide)
        row.show_header = False
        out.print(Padding(row, (0, 0, 0, INDENT)))


def show_entries(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print what there is: names with what is said of each; piped, a line an entry, its cells divided by tabs.

    Args:
        columns: Headings: of the name, of what it is, and of more.
        rows: Cells, one per column.
    """
    if not out.is_terminal:
        for row in rows:
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    told = []
    for name, text, *more in rows:
        noted = [f"{heading}: {cell}" for heading, cell in zip(columns[2:], more, strict=True) if cell not in ("", "-")]
        told.append((name, "; ".join([text.rstrip("."), *noted]) + "."))
    show_table(columns[:2], told, fold=columns[1:2])


def _grid(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str],
    fold: Collection[str],
    widths: Sequence[int] | None = None,
) -> Table:
    """A table; the same widths align several."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        grid.add_column(
            escape(name),
            justify="right" if name in right else "left",
            overflow="fold" if name in fold else "ellipsis",
            no_wrap=name not in fold,
            width=None if widths is None else widths[place],
        )
    for row in rows:
        grid.add_row(*map(escape, row))
    return grid
