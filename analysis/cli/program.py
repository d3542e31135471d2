"""The program: its commands, and what becomes of errors."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
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
from trainers.parallel import Stopped

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; exits with 0, or 2 for a bad argument, 1 for a failure, 130 after Ctrl-C.

    With the environment variable LANDSCAPE_TRACEBACK set, errors keep their traceback.
    """
    sys.path.insert(0, str(Path.cwd()))  # so that module:function finds the user's own module
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="landscape",
            description="Loss landscapes, sharpness and perturbed forgetting.",
            args=arguments,
        )
    except (ValueError, FileNotFoundError, FileExistsError, PermissionError, ImportError) as error:
        if os.environ.get("LANDSCAPE_TRACEBACK"):
            raise
        code = _complain(str(error), 2)
    except Stopped as stop:  # a sweep, which says how far it came
        code = _complain(str(stop), stop.code)
    except KeyboardInterrupt:
        code = _complain("stopped; what was finished is kept, and the same command goes on from there.", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        code = 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = (
            f"the disk is full: make room for {error.filename or 'files'}, then run the same command; "
            "what was finished is kept."
            if full
            else str(error)
        )
        code = _complain(hint, 1)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(f"landscape: {message}", file=sys.stderr)
    return code
