"""Progress of long work: a bar with the time left on a terminal and in a notebook, a few plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from landscape.progress import Status

LINE_SECONDS = 10.0  # between plain lines
BAR_SECONDS = 0.1  # between states of a bar in a notebook

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
    if console.is_jupyter:
        yield from _in_notebook(items, what, total)
        return
    start = time.monotonic()
    marks = {max(1, round(total * share)) for share in (0.25, 0.5, 0.75, 1)}
    for done, item in enumerate(items, start=1):
        if done in marks:
            spent = time.monotonic() - start
            print(_line(what, done, total, spent), file=sys.stderr, flush=True)
        yield item


def _line(what: str, done: int, total: int, spent: float) -> str:
    left = spent / done * (total - done)
    return f"{what}: {done} of {total} after {spent:.0f} s, about {left:.0f} s left"


def _in_notebook(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """A bar of HTML; rich's would need ipywidgets, and nothing of it would be left in the stored notebook."""
    show, start, written = _place(), time.monotonic(), 0.0
    for done, item in enumerate(items, start=1):
        now = time.monotonic()
        if done == total or now - written >= BAR_SECONDS:
            line = escape(_line(what, done, total, now - start))
            show(f'<progress value="{done}" max="{total}"></progress> {line}')
            written = now
        yield item


def _place() -> Callable[[str], None]:
    """A place in a notebook's output, whose HTML each call replaces."""
    from IPython.display import HTML, display  # there wherever a notebook runs

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))


def quiet(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:  # noqa: ARG001 - same signature as `track`
    """Yield the items and show nothing."""
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
