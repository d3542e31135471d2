"""The log of single steps: a table in parts while the run goes on, `steps.parquet` when it has ended."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from trainers.files.reading import read_table
from trainers.files.writing import remove_asides, write_atomically
from trainers.sharpness_aware.record import StepRecord, read

STEPS = (
    "step", "epoch", "lr", "rho", "mode", "clean_loss", "perturbed_loss", "gap", "length", "cosine", "grad_norm",
    "overflow", "seconds",
)  # fmt: skip


class StepLog:
    """Rows of steps: kept in memory between snapshots, in `steps/<first step>.parquet` after each.

    Every snapshot lists the parts that belong to it, so that what a killed process wrote after its last snapshot is
    taken back, and a continued log is that of an uninterrupted run.

    Args:
        folder: Of the run.
        every: Steps between rows; None adds none, and keeps those of earlier calls.
    """

    def __init__(self, folder: Path, every: int | None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"`log_steps` must be at least 1, got {every}; leave it out to log none.")
        self.place, self.every = folder / "steps", every
        self.whole = folder / "steps.parquet"
        self.parts: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def due(self, step: int) -> bool:
        """Whether a step is logged."""
        return self.every is not None and step % self.every == 0

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a row with the columns of `STEPS`; returns it."""
        self.rows.append(row)
        return row

    def flush(self) -> list[str]:
        """Write the rows since the last part; returns the names of all parts."""
        if self.rows:
            name = f"{self.rows[0]['step']}.parquet"
            _write(self.place / name, pd.DataFrame(self.rows, columns=list(STEPS)))
            self.parts.append(name)
            self.rows = []
        return list(self.parts)

    def take_over(self, parts: list[str]) -> None:
        """Go on after these parts; others are of steps that will be taken again."""
        self.parts, self.rows = list(parts), []
        remove_asides(self.place)
        for path in self.place.glob("*.parquet"):
            if path.name not in parts:
                path.unlink()

    def finish(self) -> None:
        """Join the parts into `steps.parquet`; they are removed once the run's status says that it ended."""
        if self.flush():
            _write(self.whole, read_parts(self.place, self.parts))


def read_parts(place: Path, names: list[str] | None = None) -> pd.DataFrame:
    """The parts as one table, in order of steps."""
    found = [place / n for n in names] if names is not None else list(place.glob("[0-9]*.parquet"))
    hint = "delete the run's folder and train it again"
    frames = [read_table(p, STEPS, hint=hint) for p in sorted(found, key=lambda p: int(p.stem))]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(STEPS))


def _write(path: Path, frame: pd.DataFrame) -> None:
    write_atomically(path, lambda aside: frame.to_parquet(aside, index=False))


class Tally:
    """Sums over the steps of one epoch that its row of the history needs; saved in the middle of the epoch too."""

    def __init__(self) -> None:
        self.steps = self.perturbed = self.reused = self.skipped = 0
        self.examples: float = 0
        self.gaps: float = 0
        self.squared_length = self.gap = self.lr = self.rho = 0.0
        self._unread: list[StepRecord] = []

    def add(self, last: StepRecord, *, examples: float, lr: float) -> None:
        """Count a step, and its examples as the task weighs them; losses are read later, not to wait for a GPU.

        Args:
            last: What the step did.
            examples: What this process's part of the batch counts for.
            lr: The learning rate.
        """
        self.steps += 1
        self.lr, self.rho = lr, last.rho
        if last.overflow:
            self.skipped += 1
            return
        self.examples += examples
        self.perturbed += last.mode == "perturbed"
        self.reused += last.mode == "reuse"
        if last.mode == "perturbed":
            self._unread.append(last)

    def row(self) -> dict[str, Any]:
        """The columns of the history that are about the steps; averages are over the steps that were not skipped."""
        self._read()
        taken = (self.steps - self.skipped) or math.nan
        return {
            "lr": self.lr,
            "rho": self.rho,
            "perturbation_norm": math.sqrt(self.squared_length / taken),
            "perturbed_share": self.perturbed / taken,
            "reused_share": self.reused / taken,
            "skipped": self.skipped,
            "mean_gap": self.gap / self.gaps if self.gaps else math.nan,
        }

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        self._read()
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update(state)

    def empty(self) -> None:
        """Forget what is summed over examples."""
        self.examples = self.gaps = 0
        self.squared_length = self.gap = 0.0

    def join(self, others: Iterable[dict[str, Any]]) -> None:
        """Add the sums over the parts of the same batches that other processes had."""
        self._read()
        for other in others:
            for key in ("examples", "squared_length", "gap", "gaps"):
                setattr(self, key, getattr(self, key) + other[key])

    def _read(self) -> None:
        read(self._unread)
        for last in self._unread:
            self.squared_length += last.length**2 * last.share
            if math.isfinite(last.gap):
                self.gap += last.gap * last.share
                self.gaps += last.share
        self._unread = []
