"""Parts of the script, each in a process of its own: one that fails, hangs or takes the device with it stops no other.

A process in which CUDA has failed once cannot use it again, and one that waits for a device cannot be interrupted. So a
part computes in a child, which hands over each row when it has it; a child whose time is over is ended, and the rows
it gave stay. Children are forked from a server that has imported torch and the packages once, and no CUDA.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

Row = dict[str, Any]

PRELOADED = ["benchmarks.gpu.place"]
START = 120.0  # seconds that a process may take to begin


@dataclass(frozen=True)
class Part:
    """A part of the script.

    Attributes:
        name: As it is asked for.
        function: `module:function`, called with a `Place`, and `about` where it has one; yields rows.
        seconds: It may take; then it is ended.
        about: What else the function is told.
        cuda: Whether it needs CUDA, and is not run elsewhere.
    """

    name: str
    function: str
    seconds: float
    about: str = ""
    cuda: bool = False


@dataclass
class Outcome:
    """What came of a part.

    Attributes:
        part: Its name.
        rows: As far as it came.
        failure: Why it failed; "" if it did not.
        details: The traceback.
        seconds: It took, with the start of its process.
    """

    part: str
    rows: list[Row] = field(default_factory=list)
    failure: str = ""
    details: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


def not_run(what: str, why: str) -> Row:
    """A row for what this machine does not allow."""
    return {"what": what, "value": None, "unit": f"not run: {why}"}


def failed(what: str, error: BaseException) -> Row:
    """A row for what should have run, or been right; its part fails with it."""
    lines = str(error).strip().splitlines() or [""]
    return {
        "what": what,
        "value": None,
        "unit": "FAILED",
        "note": f"{type(error).__name__}: {lines[0]}",
        "failed": True,
    }


def outcomes(
    parts: Sequence[Part], device: str, *, quick: bool = False, seconds: float, preloaded: Sequence[str] = PRELOADED
) -> Iterator[Outcome | Row]:
    """Run parts one after the other: each row as it comes, and after those of a part its outcome.

    Args:
        parts: In order.
        device: As for `Place.of`.
        quick: Small sizes, which show only that it runs.
        seconds: For all of them together; parts for which nothing is left have failed.
        preloaded: Modules that the server of processes imports beforehand.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    end = time.monotonic() + seconds
    for part in parts:
        began = time.monotonic()
        outcome = Outcome(part.name)
        allowed = min(part.seconds, end - began)
        if allowed <= 0:
            outcome.failure = f"not begun: the {seconds:.0f} s of the whole script were over"
        else:
            yield from _carried_out(context, part, outcome, (device, quick), allowed)
        wrong = sum(bool(row.get("failed")) for row in outcome.rows)
        if wrong and not outcome.failure:
            outcome.failure = f"{wrong} of its rows failed"
        outcome.seconds = time.monotonic() - began
        yield outcome


def _carried_out(context: Any, part: Part, outcome: Outcome, place: tuple[str, bool], seconds: float) -> Iterator[Row]:
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_compute, args=(theirs, part, place))
    process.start()
    theirs.close()
    end, late = time.monotonic() + START, f"its process did not begin within {START:.0f} s"
    try:
        while mine.poll(max(0.0, end - time.monotonic())):
            kind, content = mine.recv()
            if kind == "begun":
                end, late = time.monotonic() + seconds, f"ended after {seconds:.0f} s, which was all its time"
            elif kind == "row":
                outcome.rows.append(content)
                yield content
            else:
                outcome.failure, outcome.details = content
                return
        outcome.failure = late
    except EOFError:
        process.join(30)  # on a busy machine its end takes a while
        outcome.failure = f"its process died with exit code {process.exitcode}"
    finally:
        process.join(0 if outcome.failure else 10)
        _end(process)
        mine.close()


def _end(process: Any) -> None:
    """End a process and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def _compute(pipe: Connection, part: Part, place: tuple[str, bool]) -> None:
    os.setsid()  # so that it can be ended with what it starts
    pipe.send(("begun", None))
    try:
        for row in _rows(part, *place):
            pipe.send(("row", row))
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        pipe.send(("end", (f"{type(error).__name__}: {first}", traceback.format_exc())))
        if not isinstance(error, Exception):
            raise
    else:
        pipe.send(("end", ("", "")))


def _rows(part: Part, device: str, quick: bool) -> Iterator[Row]:
    from benchmarks.gpu.place import Place

    place = Place.of(device, quick=quick)
    if part.cuda and not place.cuda:
        yield not_run(part.name, "no CUDA")
        return
    module, _, name = part.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    yield from function(place, part.about) if part.about else function(place)
