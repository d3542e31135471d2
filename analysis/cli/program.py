"""The program: its commands, and how errors are reported."""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import tyro

from analysis.cli.compare import compare
from analysis.cli.correlate import correlate
from analysis.cli.listing import list_names
from analysis.cli.measure import measure
from analysis.cli.report import report
from analysis.cli.study import study
from analysis.cli.surface import surface
from analysis.cli.train import train
from trainers.files.lock import BusyError
from trainers.files.writing import FULL
from trainers.sweep.parallel import SAFE_PATH, Stopped, WorkerDiedError

COMMANDS: dict[str, Callable[..., int]] = {
    "study": study,
    "train": train,
    "measure": measure,
    "correlate": correlate,
    "compare": compare,
    "report": report,
    "surface": surface,
    "list": list_names,
}


STOPPED = 128  # exit codes of signals are this and their number
WAYS_OUT = {
    errno.ENOENT: "does not exist: check its name",
    errno.ENOTDIR: "is inside a file, not a folder: check its name",
    errno.EISDIR: "is a folder where a file is expected: check its name",
    errno.EEXIST: "exists already, as something else: move it away, or choose another place",
    errno.EACCES: "must not be read or written: change its permissions, or choose another place",
    errno.EPERM: "must not be read or written: change its permissions, or choose another place",
    errno.EROFS: "is on a read-only file system: choose another place",
    errno.ENAMETOOLONG: "has too long a name: choose a shorter one",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; exits with 0, or 2 for a bad argument or file, 1 for a failure, 130 after Ctrl-C.

    With the environment variable LANDSCAPE_TRACEBACK set, errors keep their traceback.
    """
    _replace_what_cannot_be_shown()
    with _safe_children():
        code = _run(arguments)
    if arguments is None and code >= STOPPED:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more Ctrl-C does not wait for the interpreter to tidy up
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code: int = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="landscape",
            description="Loss landscapes, sharpness and perturbed forgetting.",
            args=arguments,
        )
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _say_no_more()
        return 0
    except Stopped as stop:  # a sweep, which says how far it came
        return _complain(str(stop), stop.code)
    except KeyboardInterrupt:
        return _complain("stopped; finished work is kept, and the same command continues from there.", 130)
    except (ValueError, OSError, ImportError, RecursionError, BusyError, WorkerDiedError) as error:
        if os.environ.get("LANDSCAPE_TRACEBACK"):
            raise
        return _complain(*_message(error))
    except Exception as error:  # nothing that was foreseen: in one line all the same
        if os.environ.get("LANDSCAPE_TRACEBACK"):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).strip().splitlines() or [""])[0]
        return _complain(
            f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno}); the same command with "
            f"LANDSCAPE_TRACEBACK=1 in front of it shows the traceback.",
            1,
        )
    return code


def _message(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    if isinstance(error, RecursionError):
        return "a file or an argument is nested too deeply: is a bracket left open?", 2
    if not isinstance(error, OSError) or error.errno is None:
        bad = isinstance(error, ValueError | ImportError | FileNotFoundError | FileExistsError | PermissionError)
        return str(error), 2 if bad else 1
    name = error.filename if error.filename is not None else error.filename2
    if error.errno in FULL:
        return (
            f"the disk is full: make room for {name or 'files'}, then run the same command; finished work is kept.",
            1,
        )
    if error.errno not in WAYS_OUT:
        return str(error), 1
    return f"{name or 'a file'} {WAYS_OUT[error.errno]}.", 2


def _complain(message: str, code: int) -> int:
    with suppress(OSError):  # nobody may be there to read it
        print(f"landscape: {message}", file=sys.stderr, flush=True)
    return code


def _replace_what_cannot_be_shown() -> None:
    """Print a question mark for every character that the terminal or file cannot encode, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


@contextmanager
def _safe_children() -> Iterator[None]:
    """Keep child processes from looking for modules in the working folder first."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def _say_no_more() -> None:
    """Discard the rest of the output, whose reader is gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
