"""Measured rows, kept beside the checkpoint and known by what decides them: its content, the measure, the options."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import table
from analysis.measures.registry import MEASURES
from trainers.files import write_json
from trainers.reading import read_json, read_table

VERSION = 4  # part of the key: raise it when what all measures share comes to mean another number


class Cache:
    """Measured rows of one checkpoint, by hash of what decides them: FOLDER/<name>.{parquet,json}.

    Rows of weights that have changed since are forgotten. The content is hashed again only where the file's size or
    time of change differ from those noted.

    Args:
        folder: Where it is kept.
        name: Of the checkpoint.
        weights: Its file of weights.
    """

    def __init__(self, folder: Path, name: str, weights: Path) -> None:
        self.rows, self.index, self.weights = folder / f"{name}.parquet", folder / f"{name}.json", weights

    def load(self) -> dict[str, pd.DataFrame]:
        """What is stored; nothing where a file is missing or broken, or the weights are others now."""
        try:
            index = read_json(self.index)
            counts = index["rows"]
            if not self._same(index["weights"]):
                return {}
            rows = table.check(read_table(self.rows))
            if len(rows) != sum(counts.values()):
                return {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        found, start = {}, 0
        for key, count in counts.items():
            found[key] = rows.iloc[start : start + count].reset_index(drop=True)
            start += count
        return found

    def store(self, kept: Mapping[str, pd.DataFrame]) -> None:
        """Write all rows, and the index last."""
        ordered = dict(sorted(kept.items()))
        self.index.unlink(missing_ok=True)
        table.write(pd.concat(ordered.values(), ignore_index=True), self.rows)
        counts = {key: len(frame) for key, frame in ordered.items()}
        write_json(self.index, {"weights": {**self._stamp(), "sha256": digest(self.weights)}, "rows": counts})

    def _same(self, noted: Mapping[str, Any]) -> bool:
        now = self._stamp()
        return all(noted[key] == value for key, value in now.items()) or digest(self.weights) == noted["sha256"]

    def _stamp(self) -> dict[str, int]:
        found = self.weights.stat()
        return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def option_hash(key: str, options: Mapping[str, Any], seed: int, context: Mapping[str, Any] | None = None) -> str:
    """What the cache knows a measurement by, beside the weights.

    Args:
        key: The measure.
        options: All of its options.
        seed: Of its random choices.
        context: What else decides it, such as the data's recipe.
    """
    text = json.dumps([VERSION, MEASURES[key].version, key, options, seed, context], sort_keys=True, default=str)
    return f"{key}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
