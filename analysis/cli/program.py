"""The program: its commands, and how errors are reported."""

import errno
import functools
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from analysis.cli.commands import COMMANDS
from analysis.cli.help import of_command, of_program
from analysis.version import version

SAFE_PATH = "PYTHONSAFEPATH"
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
        code = _command(sys.argv[1:] if arguments is None else list(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _say_no_more()
        return 0
    except KeyboardInterrupt as stop:  # a sweep says how far it came, and its exit code
        kept = "stopped; finished work is kept, and the same command continues from there."
        return _complain(str(stop) or kept, getattr(stop, "code", 130))
    except Exception as error:
        if os.environ.get("LANDSCAPE_TRACEBACK"):
            raise
        return _complain(*_message(error))
    return code


def _command(arguments: list[str]) -> int:
    """Call the command that the arguments name."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", ""):
        print(of_program())
        return 0 if name else 2
    if name == "--version":
        print(f"landscape {version()}")
        return 0
    if name not in COMMANDS:
        from landscape.naming import nearest

        raise ValueError(f"there is no command {name!r}; there are {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}")
    if {"-h", "--help"} & set(arguments[1:]):
        print(of_command(name))
        return 0
    if _several() and not COMMANDS[name].shared:
        others = ", ".join(f"`{n}`" for n, command in COMMANDS.items() if command.shared)
        way = "; `--executor ray` or `--shard` spread it over machines" if name == "study" else ""
        raise ValueError(
            f"`landscape {name}` works in one process, and torchrun started {os.environ['WORLD_SIZE']}: start it "
            f"without{way}. Those of torchrun share the work of {others}."
        )
    return _parsed(name, arguments[1:])()


def _parsed(name: str, arguments: list[str]) -> Callable[[], int]:
    """A command with its options.

    Raises:
        ValueError: For options that cannot be read, in a line instead of the parser's box.
    """
    import tyro  # not needed to show the commands

    function = COMMANDS[name].function()

    @functools.wraps(function)
    def command(*positional: Any, **options: Any) -> Callable[[], int]:
        return functools.partial(function, *positional, **options)

    box = io.StringIO()
    try:
        with redirect_stderr(box):
            call: Callable[[], int] = tyro.cli(command, prog=f"landscape {name}", args=arguments)
    except SystemExit:
        raise ValueError(f"{_in_a_line(box.getvalue())} `landscape {name} --help` shows the options.") from None
    return call


def _in_a_line(box: str) -> str:
    """What the parser's box of an error says, and the options that it thinks were meant."""
    _, *lines = (line.strip(" │╭╮╰╯") for line in box.strip().splitlines())  # the first is a title
    parts = re.split(r"(?:^|\n)[─-]{5,}\n", "\n".join(lines).removeprefix("\n"))
    said, *rest = [" ".join(part.split()) for part in parts if part.strip()]
    message = said.rstrip(".!")
    wrong = re.search(r"options: (--[^\s,]+)", message)
    known = re.findall(r"(?<!\S)--[a-z][a-z-]+", rest[0]) if wrong and rest else []
    close = get_close_matches(wrong[1], known, n=1) if wrong else []
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"{message[:1].lower()}{message[1:]}.{meant}"


def _message(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    from trainers.files.writing import FULL  # only now: importing torch takes longer than any command's help
    from trainers.sweep.parallel import WorkerDiedError

    if isinstance(error, RecursionError):
        return "a file or an argument is nested too deeply: is a bracket left open?", 2
    if not isinstance(
        error, ValueError | OSError | ImportError | MemoryError | WorkerDiedError
    ):  # nothing that was foreseen
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = (str(error).strip().splitlines() or [""])[0]
        return (
            f"{type(error).__name__}: {said} ({Path(place.filename).name}, line {place.lineno}); the same command with "
            f"LANDSCAPE_TRACEBACK=1 in front of it shows the traceback.",
            1,
        )
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


def _several() -> bool:
    """Whether `torchrun` has started this process with others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _complain(message: str, code: int) -> int:
    if _several():
        from trainers.runtime import first_to_say

        if not first_to_say(message):
            return code
        message = f"process {os.environ['RANK']}: {message}"
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
