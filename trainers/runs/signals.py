"""Stopping well: signals that ask a run to stop, and a time limit that it keeps."""

import math
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # SIGUSR1: `sbatch --signal=USR1@120`


class StopSignals:
    """While active, the first of `STOPPING` is remembered instead of ending the process; the second ends it at once.

    Handlers are installed in the main thread only (elsewhere Python allows none), never where a signal is ignored (as
    under nohup), and the earlier ones are put back on exit.

    Attributes:
        received: Name of the signal that came; "" while none did.
    """

    def __init__(self, *, active: bool = True) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received = ""
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for name in STOPPING if self.active else ():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._earlier[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def leave(self, folder: Path) -> None:
        """End the program as the signal asks, now that everything is safe; nothing where none came.

        Args:
            folder: Where it is safe.

        Raises:
            KeyboardInterrupt: After SIGINT, so that callers see the Ctrl-C they know (exit code 130).
            SystemExit: After the others, with 128 + the signal's number (SIGTERM: 143), as shells and SLURM expect.
        """
        if self.received == "SIGINT":
            raise KeyboardInterrupt
        if self.received:
            raise Left(128 + int(getattr(signal, self.received)), folder)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            self._put_back()
            os.kill(os.getpid(), number)
        else:
            self.received = signal.Signals(number).name

    def _put_back(self) -> None:
        while self._earlier:
            signal.signal(*self._earlier.popitem())


class Left(SystemExit):
    """A run was ended by a signal.

    Attributes:
        folder: The run's.
    """

    def __init__(self, code: int, folder: Path) -> None:
        super().__init__(code)
        self.folder = folder


class Deadline:
    """A time limit.

    Args:
        limit: Seconds or "HH:MM:SS", see `seconds_of`; None for no limit.
        begun: `time.monotonic()` from which it counts.
    """

    def __init__(self, limit: float | str | None, *, begun: float) -> None:
        self.limit = math.inf if limit is None else seconds_of(limit)
        self.end = begun + self.limit

    def allows(self, seconds: float) -> bool:
        """Whether there is time for work that took so long at its slowest, and a fifth more."""
        return time.monotonic() + 1.2 * seconds < self.end


def seconds_of(limit: float | str) -> float:
    """A time limit in seconds: a number of seconds, or "HH:MM:SS" or "D-HH:MM:SS" as SLURM writes it.

    Raises:
        ValueError: If it is neither, or not above 0.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)", str(limit).strip())
    try:
        if found:
            days, hours, minutes, last = (int(part or 0) for part in found.groups())
            seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + last)
        else:
            seconds = float(limit)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"`time_limit` must be seconds above 0, HH:MM:SS or D-HH:MM:SS, got {limit!r}.")
    return seconds
