"""Progress of long work: a bar with the time left on a terminal and in a notebook, a few plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from analysis.pace import Pace, Work
from landscape.progress import Status

LINE_SECONDS = 10.0  # between plain lines
SILENCE = 60.0  # at most, where an item ends, between plain lines of items
BAR_SECONDS = 0.1  # between states of a bar in a notebook

console = Console(stderr=True)


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
    pace = Pace(work or Work(lambda _: 1.0, total))
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeLeft(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, pace=pace)
            for item in items:
                pace.add(item)
                bar.advance(task)
                yield item
        return
    say = _in_notebook(what, total) if console.is_jupyter else _in_lines(what, total)
    say(0, pace)
    for done, item in enumerate(items, start=1):
        pace.add(item)
        say(done, pace)
        yield item


def _in_lines(what: str, total: int) -> Callable[[int, Pace], None]:
    """Plain lines: at the beginning, at shares of the items, and where an item ends after a long silence."""
    marks = {0, *(max(1, round(total * share)) for share in (0.1, 0.25, 0.5, 0.75, 1))}
    said = 0.0

    def say(done: int, pace: Pace) -> None:
        nonlocal said
        if done in marks or pace.spent - said >= SILENCE:
            told = f" {pace}" if done else ""
            print(f"{what}: {done} of {total}{told}", file=sys.stderr, flush=True)
            said = pace.spent

    return say


def _in_notebook(what: str, total: int) -> Callable[[int, Pace], None]:
    """A bar of HTML; rich's would need ipywidgets, and nothing of it would be left in the stored notebook."""
    show, written = _place(), -math.inf

    def say(done: int, pace: Pace) -> None:
        nonlocal written
        if done == total or pace.spent - written >= BAR_SECONDS:
            line = escape(f"{what}: {done} of {total} {pace}")
            show(f'<progress value="{done}" max="{total}"></progress> {line}')
            written = pace.spent

    return say


def _place() -> Callable[[str], None]:
    """A place in a notebook's output, whose HTML each call replaces."""
    from IPython.display import HTML, display  # there wherever a notebook runs

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))


def quiet(items: Iterable[Any], what: str, total: int, work: Work | None = None) -> Iterator[Any]:  # noqa: ARG001
    """Yield the items and show nothing; the same arguments as `track`."""
    yield from items


def shown(what: str = "points") -> Callable[..., None]:
    """A function to give as `progress`: to the estimators of `landscape`, and to `scan`.

    It writes one line on stderr: again and again on a terminal (and in a notebook's output), elsewhere at the end, and
    at most every 10 s before.

    Args:
        what: What numbers that come without a `Status` count.
    """
    written = time.monotonic()
    show = _place() if console.is_jupyter else None

    def tell(now: Status | int, total: int | None = None) -> None:
        nonlocal written
        text = str(now) if total is None else f"{now}/{total} {what}"
        if show is not None:
            if now == total or time.monotonic() - written >= BAR_SECONDS:
                show(escape(text))
                written = time.monotonic()
        elif console.is_terminal:
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
