"""What a scan in progress keeps: finished groups of points, appended as they come, so that a killed process loses none.

`<name>.parts/` lies beside the final file and holds plan.json (what is being computed), axes.safetensors, and one
journal for each process that computed: none appends to another's, so that one that lives on after its command was
killed spoils nothing. It goes when the file is whole; who holds the lock of the surface removes.
"""

import errno
import itertools
import json
import os
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from trainers.files.reading import read_json
from trainers.files.writing import FULL, write_json

PLAN = "plan.json"
_HEAD = struct.Struct("<IqqI")  # magic, group, bytes, checksum of the bytes
_MAGIC = 0x4C53_4A31

Group = np.ndarray  # (points, 2, metrics) in float64: values and standard errors


class Journal:
    """The folder of a scan in progress.

    Args:
        folder: `<name>.parts`.
        plan: What is being computed, in JSON; another plan's leavings are removed.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.plan = json.loads(json.dumps(plan, sort_keys=True))

    def open(self) -> bool:
        """Make the folder; whether there is work of the same plan in it to go on with."""
        path = self.folder / PLAN
        with suppress(FileNotFoundError, ValueError):  # a plan that cannot be read is another one
            if read_json(path) == self.plan:
                return True
        self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, self.plan)
        return False

    def done(self) -> dict[int, Group]:
        """All whole groups by number; a record that was cut short is left out."""
        found: dict[int, Group] = {}
        for path in sorted(self.folder.glob("*.journal")):
            found |= _records(path)
        return found

    def writer(self, name: str) -> "Writer":
        """A journal to append to; its name begins like this, and it is this process's own."""
        return Writer(self.folder, name)

    def remove(self) -> None:
        """Remove the folder; the final file is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Writer:
    """Appends groups to a new journal; use it as a context, once or more."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.path: Path | None = None

    def __enter__(self) -> "Writer":
        if self.path is not None:  # again
            self._handle = os.open(self.path, os.O_RDWR)
            os.lseek(self._handle, 0, os.SEEK_END)
            return self
        for n in itertools.count():
            self.path = self.folder / (f"{self.name}.{n}.journal" if n else f"{self.name}.journal")
            with suppress(FileExistsError):
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                break
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)

    def add(self, groups: Sequence[tuple[int, Group]]) -> None:
        """Append whole groups and hand them to the system.

        Raises:
            OSError: As the disk does; groups before it are kept, and no half of one counts.
        """
        for number, values in groups:
            body = struct.pack("<II", *values.shape[::2]) + np.ascontiguousarray(values, dtype="<f8").tobytes()
            record = _HEAD.pack(_MAGIC, number, len(body), zlib.crc32(body)) + body
            start = os.lseek(self._handle, 0, os.SEEK_CUR)
            try:
                sent = os.write(self._handle, record)
                if sent != len(record):
                    raise OSError(errno.ENOSPC, "the disk is full", str(self.path))
            except OSError as error:
                os.ftruncate(self._handle, start)
                os.lseek(self._handle, start, os.SEEK_SET)
                if error.errno in FULL:
                    hint = "the disk is full: make room, then run the same command; finished points are kept"
                    raise OSError(error.errno, hint, str(self.path)) from error
                raise


def _records(path: Path) -> dict[int, Group]:
    """The records of a journal, up to the first that is not whole."""
    data, found, at = path.read_bytes(), {}, 0
    while at + _HEAD.size <= len(data):
        magic, number, size, checksum = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        body = data[at : at + size]
        if magic != _MAGIC or size < 8 or len(body) < size or zlib.crc32(body) != checksum:
            break
        points, metrics = struct.unpack_from("<II", body)
        found[number] = np.frombuffer(body, dtype="<f8", offset=8).reshape(points, 2, metrics)
        at += size
    return found
