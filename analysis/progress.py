"""Progress of long work: a bar with the time left on a terminal, a few plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """Yield the items and show how many of `total` are done, and how long the rest may take."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            for item in items:
                bar.advance(task)
                yield item
        return
    start = time.monotonic()
    marks = {max(1, round(total * share)) for share in (0.25, 0.5, 0.75, 1)}
    for done, item in enumerate(items, start=1):
        if done in marks:
            spent = time.monotonic() - start
            left = spent / done * (total - done)
            print(
                f"{what}: {done} of {total} after {spent:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True
            )
        yield item


def quiet(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:  # noqa: ARG001 - same signature as `track`
    """Yield the items and show nothing."""
    yield from items
