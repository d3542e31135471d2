"""One process at a time in a folder: of a run that is trained, of a surface that is computed."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

LOCK = "lock.json"
SILENCE = 600.0  # seconds without a sign of life after which the holder on another machine counts as dead

try:
    import fcntl
except ImportError:  # a system without it has the process id alone to go by
    fcntl = None  # type: ignore[assignment]


class BusyError(BlockingIOError):
    """Another process works in this folder."""


class Lock:
    """A held lock; `beat` gives a sign of life, which processes on other machines need to see."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle
        self._last = time.monotonic()

    def beat(self, seconds: float = 30.0) -> None:
        """Touch the file, at most every so many seconds."""
        if time.monotonic() - self._last > seconds:
            self._last = time.monotonic()
            os.utime(self.handle)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold the lock of a run folder, so that no second process trains the same run at the same time.

    The lock is a file `lock.json` with the holder's host and process id, held by `flock`: the system lets go of it when
    the process ends, however it ends. Where a file system has no such locks, or does not share them between machines,
    the content decides: a process on this machine that is gone is stale at once, one on another machine once it gave no
    sign of life for ten minutes.

    Raises:
        BusyError: If another process holds it, with who that is and the way out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    handle = _take(path)
    try:
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        with suppress(OSError):  # a full disk: the system's lock holds without the name of the holder
            os.ftruncate(handle, 0)
            os.pwrite(handle, (json.dumps(holder) + "\n").encode(), 0)
        yield Lock(path, handle)
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(handle)


def _take(path: Path) -> int:
    """An open handle of the lock file, with the system's lock where there is one."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _flock(handle)
            if locked is False or _alive(handle, locked=locked is True):
                raise BusyError(_refusal(path, _content(handle)))
            if locked is None or _same(path, handle):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it between our opening and our locking: it is no longer the lock


def _flock(handle: int) -> bool | None:
    """True if locked, False if another holds it, None where the system has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return None
    return True


def _same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _content(handle: int) -> dict[str, Any]:
    """What the holder wrote; empty where it was cut short or let go."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alive(handle: int, *, locked: bool) -> bool:
    """Whether the content names a holder that the system's lock, if we have it, did not speak for."""
    holder = _content(handle)
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return time.time() - os.fstat(handle).st_mtime < SILENCE
    pid = holder.get("pid")
    return not locked and isinstance(pid, int) and _started(pid) == holder.get("started")


def _started(pid: int) -> float | None:
    """When a process began, so that another one with the same number is not taken for it; None if it is gone."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _refusal(path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    return (
        f"{path.parent} is in use by {who}: wait for it or stop it; if it is dead for certain, delete {path} "
        f"and run the same command again."
    )
