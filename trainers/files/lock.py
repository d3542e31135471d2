"""One process at a time: in the folder of a run that is trained, at a surface, at a table that several may write."""

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from trainers.files.writing import SILENCE, aside_of

LOCK = "lock.json"
BEAT = 30.0  # seconds between signs of life
PATIENCE = 1.1 * SILENCE  # seconds that are waited for a holder of which nobody knows whether it lives
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
SETTLE = 0.2  # seconds after which one of two that take over a dead holder's lock at once sees that it was too early

try:
    import fcntl
except ImportError:  # a system without it has the process id alone to go by
    fcntl = None  # type: ignore[assignment]


class BusyError(BlockingIOError):
    """Another process works here."""


class Lock:
    """A held lock.

    Attributes:
        lost: Whether another process took it over, since this one gave no sign of life for too long.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle, self.lost = path, handle, False
        self._last = time.monotonic()
        self._content = _content(handle)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, daemon=True, name="heartbeat")
        self._heart.start()

    def beat(self, seconds: float = BEAT) -> None:
        """Give a sign of life, at most every so many seconds; processes on other machines need to see one."""
        if time.monotonic() - self._last > seconds:
            self._last = time.monotonic()
            if _content(self.handle) == self._content and _same(self.path, self.handle):
                os.utime(self.handle)
            else:
                self.lost = True

    def check(self) -> None:
        """Raise a BusyError if the lock was lost: what is written from now on would mix with another's."""
        if self.lost:
            raise BusyError(_refusal(self.path, _content_of(self.path)))

    def release(self) -> None:
        """Let go; others may take it from now on."""
        self._ended.set()
        self._heart.join()
        try:
            if _same(self.path, self.handle) and _content(self.handle) == self._content:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self.handle)

    def _keep_beating(self) -> None:
        """Also while the holder is at one long computation."""
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # a moment without the file system, or just let go
                self.beat(0.0)


@contextmanager
def locked(folder: Path, name: str = LOCK, *, wait: float = 0.0) -> Iterator[Lock]:
    """Hold a lock in a folder, so that no second process does there the same at the same time.

    The lock is a file with the holder's host and process id, held by `flock`: the system lets go of it when the process
    ends, however it ends. Where a file system has no such locks, or does not share them between machines, the content
    decides: a process on this machine that is gone is stale at once, one on another machine once it gave no sign of
    life for ten minutes.

    Args:
        folder: Where; it is made.
        name: Of the file.
        wait: Seconds to wait for another process to let go; one that is dead counts as having done so.

    Raises:
        BusyError: If another process holds it, with who that is and the way out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    end, pause = time.monotonic() + wait, 0.005
    while True:
        try:
            lock = Lock(path, _take(path))
            break
        except BusyError:
            if time.monotonic() >= end:
                raise
        time.sleep((0.5 + secrets.randbelow(1000) / 1000) * pause)  # those who wait do not come all at once
        pause = min(2 * pause, 0.25)
    try:
        yield lock
    finally:
        lock.release()


def _take(path: Path) -> int:
    """An open handle of the lock file, with the system's lock where there is one."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    content = json.dumps({**me, "token": secrets.token_hex(8)}) + "\n"
    while True:
        handle = _new(path, content)
        if handle is not None:
            return handle
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # its holder has just let go
            continue
        try:
            locked = _flock(handle)
            holder = _content(handle)
            if locked is False or _alive(handle, holder, locked=locked is True):
                raise BusyError(_refusal(path, holder))
            if locked is None or _same(path, handle):
                alone = locked is True and holder.get("host", me["host"]) == me["host"]
                _write(handle, content, must=not alone)
                if alone or _settled(path, content):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it between our opening and our locking: it is no longer the lock


def _new(path: Path, content: str) -> int | None:
    """Make the file, which names its holder from its first moment; None if there is one."""
    aside = aside_of(path)
    handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            locked = _flock(handle)
            _write(handle, content, must=locked is None)
            os.link(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, FileExistsError | FileNotFoundError):  # another has it, or swept our file aside
            return None
        if isinstance(error, OSError) and error.errno in NO_LINKS:
            return _new_without_links(path, content)
        raise
    return handle


def _new_without_links(path: Path, content: str) -> int | None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    _write(handle, content, must=_flock(handle) is None)
    return handle


def _write(handle: int, content: str, *, must: bool) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, content.encode(), 0)
    except OSError:  # a full disk: the system's lock holds without the name of the holder
        if must:
            raise


def _settled(path: Path, content: str) -> bool:
    """Whether a lock that no lock of the system protects is still ours after a moment."""
    time.sleep(SETTLE)
    return bool(_content_of(path) == json.loads(content))


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
        content = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _content_of(path: Path) -> dict[str, Any]:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return {}
    try:
        return _content(handle)
    finally:
        os.close(handle)


def _alive(handle: int, holder: dict[str, Any], *, locked: bool) -> bool:
    """Whether the content names a holder that the system's lock, if we have it, did not speak for."""
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
    what = path.parent if path.name == LOCK else path.with_suffix("")
    return (
        f"{what} is in use by {who}: wait for it or stop it; if it is dead for certain, delete {path} and run the same "
        f"command again."
    )
