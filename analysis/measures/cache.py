"""Measured rows, kept beside the checkpoint and known by what decides them: its content, the measure, the options."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import table
from analysis.measures.registry import MEASURES
from trainers.files.kept import Kept
from trainers.files.reading import read_table
from trainers.files.writing import digest

VERSION = 4  # part of the key: raise it when what all measures share comes to mean another number


class Cache:
    """Rows of one checkpoint, by hash of what decides them: FOLDER/<name>.{parquet,json} (`trainers.files.kept`).

    Rows of weights that have changed since are forgotten. The content is hashed again only where the file's size or
    time of change differ from those noted.

    Args:
        folder: Where it is kept.
        name: Of the checkpoint.
        weights: Its file of weights, or several that make it up.
        owner: Run id and step that its rows must have; rows of another one were copied in, and do not count.
    """

    def __init__(
        self, folder: Path, name: str, weights: Path | tuple[Path, ...], owner: tuple[str, int] | None = None
    ) -> None:
        self.index, self.owner = folder / f"{name}.json", owner
        self.weights = weights if isinstance(weights, tuple) else (weights,)
        self._kept = Kept(self.index, ".parquet", way_out="delete it, and what is missing is measured again")

    def load(self) -> dict[str, pd.DataFrame]:
        """What is stored; nothing where a file is missing or damaged, or the weights are others now."""
        try:
            kept = self._kept.read(lambda path: table.check(read_table(path)))
            if kept is None:
                return {}
            index, rows = kept
            counts = index["rows"]
            if not self._same(index["weights"]) or len(rows) != sum(counts.values()):
                return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        if self.owner is not None and not ((rows["run_id"] == self.owner[0]) & (rows["step"] == self.owner[1])).all():
            return {}
        frames, start = {}, 0
        for key, count in counts.items():
            frames[key] = rows.iloc[start : start + count].reset_index(drop=True)
            start += count
        return frames

    def stamp(self) -> dict[str, Any]:
        """What the weights are known by; taken before they are read, rows never count for weights that came later."""
        return {**self._status(), "sha256": self._digest()}

    def store(self, new: Mapping[str, pd.DataFrame], stamp: Mapping[str, Any]) -> None:
        """Add rows to those that are there, of whichever process.

        Args:
            new: Rows by the hash of what decides them.
            stamp: Of the weights that they were taken from, by `stamp`.
        """
        with self._kept.locked():
            if not self._same(stamp):
                return  # other weights took their place meanwhile
            ordered = dict(sorted({**self.load(), **new}.items()))
            rows = pd.concat(ordered.values(), ignore_index=True)
            index = {"weights": dict(stamp), "rows": {key: len(frame) for key, frame in ordered.items()}}
            self._kept.write(index, lambda aside: rows.to_parquet(aside, index=False))

    def _same(self, noted: Mapping[str, Any]) -> bool:
        if {key: noted[key] for key in ("bytes", "mtime_ns")} == self._status():
            return True
        return bool(noted["sha256"] == self._digest())

    def _status(self) -> dict[str, int]:
        """Size and time of change; of several files their sums, in which no change of one is lost."""
        each = [path.stat() for path in self.weights]
        return {"bytes": sum(s.st_size for s in each), "mtime_ns": sum(s.st_mtime_ns for s in each)}

    def _digest(self) -> str:
        each = [digest(path) for path in self.weights]
        return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def option_hash(key: str, options: Mapping[str, Any], seed: int, context: Mapping[str, Any] | None = None) -> str:
    """What the cache knows a measurement by, beside the weights.

    Args:
        key: The measure.
        options: All of its options.
        seed: Of its random choices.
        context: What else decides it, such as the data's recipe.
    """
    entry = MEASURES[key]
    known = [VERSION, entry.version, key, options, seed, context, *([entry.source] if entry.source else [])]
    text = json.dumps(known, sort_keys=True, default=str)
    return f"{key}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
