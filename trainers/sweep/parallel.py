"""One process a core, one thread each: for small models far faster than many threads in one process.

Every process is a pool of its own. One that dies (killed, out of memory, a crash in native code) takes only its own
call with it, and it is known which; a pool of several would break as a whole and not say whose call it was.
"""

import logging
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool

Lost = Callable[[tuple[Any, ...], str], Any]  # the call whose process died, and why: its result instead

GRACE = 25.0  # seconds that calls have to end by themselves once told to; SLURM kills 30 s after its SIGTERM
HEARD = 5.0  # seconds given to processes that were probably sent the same signal, before they are told
ORPHANED = 60.0  # seconds that a process may take to end its call after the one that started it is gone
IDLE = 300.0  # seconds after which a process without work ends
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS",
)  # fmt: skip
SAFE_PATH = "PYTHONSAFEPATH"  # processes look for modules where this one does, not first in the working folder

log = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """Work was ended from outside; what was finished is kept.

    Attributes:
        code: Exit code that says so: 128 + the signal's number (Ctrl-C: 130, SIGTERM: 143), 75 for a time limit.
    """

    def __init__(self, message: str, code: int = 128 + signal.SIGINT) -> None:
        super().__init__(message)
        self.code = code


class WorkerDiedError(RuntimeError):
    """The process of a call ended without an answer."""


def in_parallel(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    *,
    jobs: int | None,
    devices: Sequence[str] = (),
    lost: Lost | None = None,
    isolate: bool = False,
) -> Iterator[Any]:
    """Call a function on many argument tuples in processes of one thread each; yields results as they come.

    One job runs in this process, which is what tests and debuggers want. An exception in a call ends all of them.

    Args:
        function: Importable by name.
        calls: Argument tuples.
        jobs: Processes; None is one a core, at most one a call.
        devices: Each process has one of them, in turn, which its calls get as their last argument.
        lost: Makes the result of a call whose process died; None raises.
        isolate: Take a process even for one, unless `jobs` is 1.

    Raises:
        WorkerDiedError: If a process died and there is no `lost`.
        Stopped: After Ctrl-C, SIGTERM, SIGHUP or SIGUSR1. Processes at work are sent SIGTERM and have 25 s to end well.
    """
    count = max(1, min(cores() if jobs is None else jobs, len(calls)))
    if jobs == 1 or (count == 1 and not isolate):
        for arguments in calls:
            yield single_threaded(function, *arguments, *devices[:1])
        return
    waiting = deque(calls)
    hired = [_hire() for _ in range(count)] if calls else []
    device = {worker: tuple(devices[i % len(devices) :][:1]) if devices else () for i, worker in enumerate(hired)}
    idle = list(hired)
    running: dict[Future[Any], tuple[Worker, tuple[Any, ...]]] = {}
    with stopped_by_signals() as received:
        try:
            while waiting or running:
                while waiting and idle:
                    worker, arguments = idle.pop(), waiting.popleft()
                    running[worker.call(function, (*arguments, *device[worker]))] = (worker, arguments)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, arguments = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool as error:
                        idle.append(worker)  # its next call takes another process
                        if lost is None:
                            raise WorkerDiedError(f"a process died while it worked ({why(error)}).") from None
                        result = lost(arguments, why(error))
                    except BaseException:
                        idle.append(worker)
                        raise
                    else:
                        idle.append(worker)
                    if waiting:  # before the caller takes its time over the result
                        worker, arguments = idle.pop(), waiting.popleft()
                        running[worker.call(function, (*arguments, *device[worker]))] = (worker, arguments)
                    yield result
        finally:
            busy = {future: worker for future, (worker, _) in running.items()}
            _wind_down(busy, notified=received() not in (None, signal.SIGINT))
            for worker in hired:
                if worker in idle:
                    _free.append(worker)
                else:  # also one that a signal caught between two lines above
                    worker.end()


class Worker:
    """A process that answers one call at a time; started by its first call, and again after a long rest."""

    def __init__(self) -> None:
        self.place = _place()
        self.renew()

    def renew(self) -> None:
        """Take another process from the next call on."""
        self.pool = ProcessPoolExecutor(
            1, timeout=IDLE, initializer=_begin, initargs=(os.getpid(),), env=dict.fromkeys((*THREADS, SAFE_PATH), "1")
        )

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> "Future[Any]":
        """Begin a call."""
        try:
            future: Future[Any] = self.pool.submit(_answer, function, *arguments)
        except BrokenProcessPool:  # it died
            self.renew()
            future = self.pool.submit(_answer, function, *arguments)
        return future

    def tell(self) -> None:
        """Ask the process to end, with SIGTERM."""
        for pid in list(self.pool._processes):  # a name that loky shares with the standard library
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def end(self) -> None:
        """End the process at once; nothing if it has ended."""
        self.pool.shutdown(wait=True, kill_workers=True)


def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call, in its process."""
    try:
        return single_threaded(function, *arguments)
    finally:
        if os.getppid() != _starter:
            os._exit(1)  # nobody is there to hear the answer, and this might wait for another call for ever


_starter = 0  # in a process that answers calls: the one that started it
_free: list[Worker] = []  # processes from earlier calls: starting one and importing torch takes seconds


def _place() -> tuple[Any, ...]:
    """What a process takes over when it starts."""
    return (os.getpid(), str(os.getcwd()), *sys.path)  # noqa: PTH109 - the text is all that counts


def _hire() -> Worker:
    while _free:
        worker = _free.pop()
        if worker.place == _place():
            return worker
        if worker.place[0] == os.getpid():
            worker.end()
    return Worker()


def _begin(parent: int) -> None:
    """First thing in a process: leave Ctrl-C to the one that started it, and do not outlive it."""
    global _starter
    _starter = parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHANED)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="orphan watch").start()


def _wind_down(running: "dict[Future[Any], Worker]", *, notified: bool) -> None:
    """End processes at work: ask, wait, and kill those that do not answer; a second signal kills at once."""
    if not running:
        return
    log.warning("stopping: %d still at work, which write what they need to go on later", len(running))
    try:
        busy = wait(running, timeout=HEARD).not_done if notified else set(running)
        for future in busy:
            running[future].tell()
        wait(busy, timeout=GRACE)
    except KeyboardInterrupt:
        log.warning("stopping at once")
    finally:
        for worker in running.values():
            worker.end()  # all that work on, and those that answered: they may have been told a moment too late


@contextmanager
def stopped_by_signals() -> "Iterator[Callable[[], int | None]]":
    """Raise `Stopped` in the main thread on Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, unless ignored as under nohup.

    Yields:
        A function that tells the number of the signal that came; None while none did.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        received.append(number)
        raise Stopped(_by(number), 128 + number)

    earlier: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in STOPPING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                earlier[number] = signal.signal(number, stop)
    try:
        yield lambda: received[0] if received else None
    except KeyboardInterrupt as error:
        if received and not isinstance(error, Stopped):  # from a library that handles signals too, such as Ray
            raise Stopped(_by(received[0]), 128 + received[0]) from None
        raise
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _by(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"


def why(error: BaseException) -> str:
    """How a process died, in a few words, from loky's message."""
    match = re.search(r"exit codes of the workers are \{(.+?)\}", str(error))
    return match.group(1) if match else str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")


def single_threaded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with one torch thread; the setting is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(*arguments)
    finally:
        torch.set_num_threads(threads)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
