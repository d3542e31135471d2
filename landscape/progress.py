"""Progress of long work: how many products, of how many at most, and how far from the tolerance."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

REFRESH_SECONDS = 0.2  # of the bar; drawing it takes about a millisecond
LINE_SECONDS = 10.0  # between lines where there is no terminal


@dataclass(frozen=True)
class Status:
    """Where long work stands.

    Attributes:
        work: What is being done, such as "top_eigenpairs".
        products: Operator products spent so far.
        most: Products it may take; it usually ends earlier.
        residual: What is still compared with the tolerance, in the tolerance's own units; NaN while nothing is known.
    """

    work: str
    products: int
    most: int
    residual: float

    def __str__(self) -> str:
        return f"{self.work}: {self.products} of at most {self.most} products, residual {_short(self.residual)}"


Progress = bool | Callable[[Status], None]
"""False for silence, True for a bar on stderr, or a function that is called with each `Status`."""

Tell = Callable[[int, float], None]
"""What the work calls now and then: tell(products, residual)."""


@contextmanager
def watching(progress: Progress, *, work: str, most: int) -> Iterator[Tell]:
    """Show, or hand on, the progress of the work inside the block.

    Silent unless asked. True shows one line with a bar, in a terminal and in a notebook, and plain lines at most every
    10 s where stderr is neither. No thread is started, so the clock stands still during a product. A call of `tell`
    costs microseconds, or a millisecond each 0.2 s where a bar is drawn.

    Args:
        progress: False, True, or a function of `Status`. What the function raises goes through to the caller.
        work: Name of the work.
        most: Products it may take.

    Yields:
        The function `tell(products, residual)`; residual NaN means unknown.

    Raises:
        ValueError: If `progress` is none of these.
    """
    if progress is False:
        yield _silent
    elif progress is True:
        console = Console(stderr=True)
        live = (console.is_terminal and not console.is_dumb_terminal) or (
            console.is_jupyter and find_spec("ipywidgets") is not None
        )
        with (_bar if live else _lines)(console, work, most) as tell:
            yield tell
    elif callable(progress):
        yield lambda products, residual: progress(Status(work, products, most, residual))
    else:
        raise ValueError(f"`progress` must be True, False or a function of a Status, got {progress!r}.")


def _silent(products: int, residual: float) -> None:
    """Say nothing."""


def _short(residual: float) -> str:
    return "unknown" if math.isnan(residual) else f"{residual:.1e}"


@contextmanager
def _bar(console: Console, work: str, most: int) -> Iterator[Tell]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("products"),
        TextColumn("residual {task.fields[residual]}"),
        TimeElapsedColumn(),
    )
    drawn = -math.inf
    with Bar(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task(work, total=most, residual=_short(math.nan))

        def tell(products: int, residual: float) -> None:
            nonlocal drawn
            now = time.monotonic()
            due = now - drawn >= REFRESH_SECONDS
            bar.update(task, completed=products, residual=_short(residual), refresh=due)
            if due:
                drawn = now

        try:
            yield tell
        finally:
            bar.refresh()


@contextmanager
def _lines(console: Console, work: str, most: int) -> Iterator[Tell]:
    last, written = Status(work, 0, most, math.nan), time.monotonic()
    shown: Status | None = None

    def tell(products: int, residual: float) -> None:
        nonlocal last, written, shown
        last = Status(work, products, most, residual)
        if time.monotonic() - written >= LINE_SECONDS:
            console.print(str(last), highlight=False, soft_wrap=True)
            written, shown = time.monotonic(), last

    try:
        yield tell
    finally:
        if last != shown:
            console.print(str(last), highlight=False, soft_wrap=True)
