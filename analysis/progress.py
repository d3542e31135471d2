"""Progress of long work: a bar with the time left on a terminal, a few plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from landscape.progress import Status

LINE_SECONDS = 10.0  # between plain lines
SILENCE = 60.0  # at most, where an item ends, between plain lines of items

console = Console(stderr=True)


@dataclass(frozen=True)
class Work:
    """What items cost beside each other, in any unit, and how many are worked on at once.

    Attributes:
        of: The cost of an item that was done; 0 for one that was done before.
        total: The cost of all.
        at_once: Processes.
    """

    of: Callable[[Any], float]
    total: float
    at_once: int = 1


class Pace:
    """How far work has come, and how long the rest may take.

    What has been done is what items that ended cost, and half of what is worked on now.

    Args:
        total: The cost of all items.
        at_once: How many are worked on at once.
        clock: Seconds.
    """

    def __init__(self, total: float, at_once: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.at_once, self.clock = total, at_once, clock
        self.begun, self.done, self.items = clock(), 0.0, 0

    def add(self, cost: float) -> None:
        """Count an item that has ended; one that cost nothing was there before."""
        self.done += cost
        self.items += cost > 0

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.begun

    @property
    def left(self) -> float:
        """Seconds that the rest may take; NaN until an item has ended."""
        if not self.items:
            return math.nan
        rest = max(0.0, self.total - self.done)
        begun = min((self.at_once - 1) * self.done / self.items, rest) / 2
        return self.spent * (rest - begun) / (self.done + begun)


class TimeLeft(ProgressColumn):
    """The time left of a task that has a pace."""

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds; dashes while nothing is known."""
        left = task.fields["pace"].left
        return Text("-:--:--" if math.isnan(left) else str(timedelta(seconds=round(left))))


def track(items: Iterable[Any], what: str, total: int, work: Work | None = None) -> Iterator[Any]:
    """Yield the items and show how many of `total` are done, and how long the rest may take.

    Args:
        items: What is worked on; each is yielded when it is done.
        what: The work, such as "training".
        total: Number of items.
        work: What they cost; by default all the same, one at a time.
    """
    work = work or Work(lambda _: 1.0, total)
    pace = Pace(work.total, work.at_once)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeLeft(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, pace=pace)
            for item in items:
                pace.add(work.of(item))
                bar.advance(task)
                yield item
        return
    marks = {max(1, round(total * share)) for share in (0.1, 0.25, 0.5, 0.75, 1)}
    said = pace.clock()
    print(f"{what}: 0 of {total}", file=sys.stderr, flush=True)
    for done, item in enumerate(items, start=1):
        pace.add(work.of(item))
        if done in marks or pace.clock() - said >= SILENCE:
            left = "" if math.isnan(pace.left) else f", about {pace.left:.0f} s left"
            print(f"{what}: {done} of {total} after {pace.spent:.0f} s{left}", file=sys.stderr, flush=True)
            said = pace.clock()
        yield item


def quiet(items: Iterable[Any], what: str, total: int, work: Work | None = None) -> Iterator[Any]:  # noqa: ARG001
    """Yield the items and show nothing; the same arguments as `track`."""
    yield from items


def shown(what: str = "points") -> Callable[..., None]:
    """A function to give as `progress`: to the estimators of `landscape`, and to `scan`.

    It writes one line on stderr: again and again on a terminal, elsewhere at the end, and at most every 10 s before.

    Args:
        what: What numbers that come without a `Status` count.
    """
    written = time.monotonic()

    def tell(now: Status | int, total: int | None = None) -> None:
        nonlocal written
        text = str(now) if total is None else f"{now}/{total} {what}"
        if console.is_terminal:
            console.print(text, end="\n" if now == total else "\r", highlight=False, overflow="crop", no_wrap=True)
        elif now == total or time.monotonic() - written >= LINE_SECONDS:
            print(text, file=sys.stderr, flush=True)
            written = time.monotonic()

    return tell


@contextmanager
def steps(what: str, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[Status], None]]]:
    """Show the progress of a few long steps, each with operator products of its own.

    On a terminal it is one bar; elsewhere plain lines, at most every 10 s, so that short work says nothing.

    Args:
        what: The work, such as "measuring".
        total: Number of steps.

    Yields:
        A function to call with the name of each step as it begins, and one for the `Status` of its products.
    """
    if not console.is_terminal:
        yield _lines(what, total)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total, detail="")
        begun = 0

        def begin(name: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, detail=name)
            begun += 1

        def tell(status: Status) -> None:
            bar.update(task, detail=str(status))

        yield begin, tell
        bar.update(task, completed=total, detail="")


def _lines(what: str, total: int) -> tuple[Callable[[str], None], Callable[[Status], None]]:
    written, begun = time.monotonic(), 0

    def say(text: str) -> None:
        nonlocal written
        if time.monotonic() - written >= LINE_SECONDS:
            print(f"{what} {begun} of {total}: {text}", file=sys.stderr, flush=True)
            written = time.monotonic()

    def begin(name: str) -> None:
        nonlocal begun
        begun += 1
        say(name)

    return begin, lambda status: say(str(status))
