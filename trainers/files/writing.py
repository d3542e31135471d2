"""Writing files so that one that exists is whole, whatever kills the process or fills the disk."""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import psutil

FULL = (errno.ENOSPC, errno.EDQUOT)
SILENCE = 600.0  # seconds without a sign of life after which a process on another machine counts as dead
DAMAGED = "it is damaged or truncated, as its checksum is not the one that was noted when it was written"
ASIDE = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")  # .<name>.<machine>-<process>-<random>


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a file aside, see it safe on the disk, and put it in place by rename.

    Args:
        path: Final place; its folder is made.
        write: Writes the whole content to the path it is given.

    Raises:
        OSError: As the disk does; nothing is then left behind, and an old file stays as it was. A full disk is told by
            `errno` and by a message with the file's name, whichever library met it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        aside = aside_of(path)
        try:
            write(aside)
            aside.chmod(0o644)
            _sync(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except Exception as error:
        code = _full(error)
        if code is None:
            raise
        hint = "the disk is full: make room, then run the same command; what was there before is kept"
        raise OSError(code, hint, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda aside: aside.write_bytes(content))


def write_json(path: Path, values: Any, *, sort: bool = True) -> None:
    """Write JSON atomically, with sorted keys unless their order means something; NaN and infinities are refused."""
    text = json.dumps(values, indent=1, sort_keys=sort, allow_nan=False) + "\n"
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, noted: str | None, way_out: str) -> None:
    """Compare a file with the checksum that was noted when it was written; None, as versions before left it, passes.

    Raises:
        FileNotFoundError: If the file is gone.
        ValueError: If its content changed since.
    """
    if noted is None:
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {way_out}.")
    if digest(path) != noted:
        raise ValueError(f"{path} cannot be read ({DAMAGED}): {way_out}.")


def aside_of(path: Path) -> Path:
    """A name beside a file for what will replace it; it tells which process writes it."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}")


def sweep(folder: Path) -> None:
    """Remove what processes that are gone left aside in a folder that several may write to."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".")]
    for name in names:
        writer = ASIDE.fullmatch(name)
        if writer and not _writes(folder / name, *writer.groups()):
            (folder / name).unlink(missing_ok=True)


def _writes(aside: Path, machine: str, pid: str) -> bool:
    """Whether the process that an aside names is there; on another machine, whether it was lately."""
    if machine == _machine():
        return bool(psutil.pid_exists(int(pid)))
    with suppress(FileNotFoundError):
        return time.time() - aside.stat().st_mtime < SILENCE
    return False


def _machine() -> str:
    """Eight letters for this machine, or for this container where processes have numbers of their own."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path but a name
    except OSError:
        numbers = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {numbers}'.encode()):08x}"


def remove_asides(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove the files aside in a folder that only the caller writes to: those of `names`, or all of them.

    All of them are also those that safetensors makes beside the file it is told to write, `.tmp` and six characters.
    """
    for path in folder.glob(".*") if folder.is_dir() else ():
        target, dot, _ = path.name[1:].rpartition(".")
        ours = bool(dot) and (names is None or target in names)
        theirs = names is None and fnmatchcase(path.name, ".tmp??????")
        if path.is_file() and (ours or theirs):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the content is on the disk: a rename may otherwise outlive it when the machine stops."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _full(error: Exception) -> int | None:
    """The error number of a full disk or quota, if that is what this is; safetensors only says so in its text."""
    if isinstance(error, OSError) and error.errno in FULL:
        return error.errno
    return next((code for code in FULL if f"(os error {code})" in str(error)), None)
