"""Writing files so that one that exists is whole, whatever kills the process or fills the disk."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)


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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        aside = Path(name)
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


def remove_asides(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove the files aside that killed processes left in a folder: those of `names`, or all of them.

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
