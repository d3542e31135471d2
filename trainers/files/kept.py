"""What is kept in parts and written again and again: a file of data, and an index that names it and makes it count.

    <name>.json               the index: what is known of the data, their file and its checksum, and its own checksum
    <name>[.<n>].<suffix>     the data

New data get a file of their own, the index is put in place by rename, and the data before are removed last: whatever
kills a writer, the index names whole data. Who reads while another writes sees the index change, and reads again.
Where several processes write, each holds `Kept.locked`, reads again what is there, merges, and writes once.
"""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from trainers.files.lock import PATIENCE, Lock, locked
from trainers.files.reading import parse_json
from trainers.files.writing import DAMAGED, check_digest, digest, write_atomically, write_json

T = TypeVar("T")


class OtherVersionError(ValueError):
    """What is kept is in a format of another version."""


class Kept:
    """What is kept under one name.

    Args:
        index: `<name>.json`.
        suffix: Of the data files, such as ".parquet".
        way_out: What to do where it is damaged, for messages.
        key: Under which the index names the data file.
        schema: Number of the format, which the index holds; None where nothing depends on it.
    """

    def __init__(self, index: Path, suffix: str, *, way_out: str, key: str = "data", schema: int | None = None) -> None:
        self.index, self.suffix, self.way_out, self.key, self.schema = index, suffix, way_out, key, schema

    def locked(self) -> AbstractContextManager[Lock]:
        """The right to write; waits for the process that has it."""
        return locked(self.index.parent, f"{self.index.stem}.lock", wait=PATIENCE)

    def write(self, content: dict[str, Any], write: Callable[[Path], Any], *, stem: str | None = None) -> Path:
        """Write data and index, and remove the data before; returns the place of the data.

        Args:
            content: What the index says beside, in JSON.
            write: Writes the data to the path it is given.
            stem: Beginning of the data file's name; the index's if left out.

        Raises:
            OSError: As the disk does; what was there before still counts.
        """
        folder, stem = self.index.parent, stem or self.index.stem
        place, n = folder / f"{stem}{self.suffix}", 0
        while place.exists():
            n += 1
            place = folder / f"{stem}.{n}{self.suffix}"
        checksum: list[str] = []

        def write_and_note(aside: Path) -> None:
            write(aside)
            checksum.append(digest(aside))

        write_atomically(place, write_and_note)
        number = {} if self.schema is None else {"schema": self.schema}
        write_json(self.index, sealed({**number, **content, self.key: place.name, "sha256": checksum[0]}), sort=False)
        ours = re.compile(rf"{re.escape(stem)}(\.\d+)?{re.escape(self.suffix)}")
        for old in folder.iterdir():
            if old != place and ours.fullmatch(old.name):
                old.unlink(missing_ok=True)
        return place

    def read(self, read: Callable[[Path], T]) -> tuple[dict[str, Any], T] | None:
        """The index, and what `read` makes of the data file; None where nothing is kept.

        What versions before wrote has no checksum, and its data are in `<name><suffix>`.

        Raises:
            FileNotFoundError: If the data are gone.
            OtherVersionError: If the format has another number.
            ValueError: If a file is damaged, with its name and the way out; also what `read` raises.
        """
        while True:
            try:
                text = self.index.read_bytes()
            except FileNotFoundError:
                return None
            try:
                index = self._parsed(text)
                place = self.index.parent / str(index.get(self.key, f"{self.index.stem}{self.suffix}"))
                check_digest(place, index.get("sha256"), self.way_out)
                kept = index, read(place)
            except (OSError, ValueError):
                if self._unchanged(text):
                    raise
            else:
                if self._unchanged(text):
                    return kept

    def _parsed(self, text: bytes) -> dict[str, Any]:
        index = parse_json(text, self.index, self.way_out)
        if not isinstance(index, dict):
            raise ValueError(f"{self.index} holds a {type(index).__name__}, not an object: {self.way_out}.")
        if self.schema is not None and index.get("schema") != self.schema:
            raise OtherVersionError(f"{self.index} is of another version of landscape: {self.way_out}.")
        noted = index.pop("checksum", None)
        if "sha256" in index and sealed(index)["checksum"] != noted:
            raise ValueError(f"{self.index} cannot be read ({DAMAGED}): {self.way_out}.")
        return index

    def _unchanged(self, text: bytes) -> bool:
        try:
            return self.index.read_bytes() == text
        except FileNotFoundError:
            return False


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """The same with a checksum over all of it."""
    text = json.dumps(values, allow_nan=False)
    return {**values, "checksum": hashlib.sha256(text.encode()).hexdigest()}
