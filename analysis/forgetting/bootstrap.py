"""Intervals by resampling: examples within their classes, the same before and after, and the perturbation batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from analysis.table import Row

Array = np.ndarray
BLOCK = 2**22  # numbers of one intermediate array, in resamples x classes x examples


@dataclass(frozen=True)
class IntervalRow(Row):
    """A row with the ends of its interval; in the measures table the standard error stands for it.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Nominal coverage.
    """

    low: float = float("nan")
    high: float = float("nan")
    level: float = 0.95


@dataclass(frozen=True)
class Interval:
    """A bootstrap standard error and interval."""

    stderr: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """S resamples of examples and of batches.

    Attributes:
        examples: How often each example counts in each resample: drawn with replacement within its class and its part
            of the data, so that class frequencies stay.
        batches: How often each batch counts.
        level: Nominal coverage of intervals.
    """

    examples: Int[Array, "s n"]
    batches: Int[Array, "s r"]
    level: float

    @classmethod
    def draw(
        cls,
        labels: Int[Array, " n"],
        n_train: int,
        batches: int,
        *,
        resamples: int,
        level: float,
        generator: np.random.Generator,
    ) -> "Resamples":
        """Draw resamples of n examples, of which the first `n_train` are training data, and of the batches.

        Raises:
            ValueError: If `resamples` is below 2 or `level` not between 0 and 1.
        """
        if resamples < 2:
            raise ValueError(
                f"`resamples` must be 0 for none, or at least 2 (1000 for an interval), got {resamples!r}."
            )
        if not 0 < level < 1:
            raise ValueError(f"`level` must be between 0 and 1, got {level!r}.")
        examples = np.zeros((resamples, len(labels)), dtype=np.int64)
        part = np.arange(len(labels)) >= n_train
        for held_out in (False, True):
            for y in np.unique(labels[part == held_out]):
                here = np.flatnonzero((labels == y) & (part == held_out))
                examples[:, here] = generator.multinomial(len(here), np.full(len(here), 1 / len(here)), size=resamples)
        drawn = generator.multinomial(batches, np.full(batches, 1 / batches), size=resamples)
        return cls(examples, drawn, level)

    @property
    def count(self) -> int:
        """Number of resamples."""
        return len(self.examples)

    def interval(self, value: float, resampled: Float[Array, " s"]) -> Interval:
        """Standard deviation of the resamples, and their percentiles moved so that their mean is the value.

        Moved, because resampling repeats the bias that the estimator has, after correction the smaller one.
        """
        given = resampled[np.isfinite(resampled)]
        if len(given) < 2 or not np.isfinite(value):
            return Interval(float("nan"), float("nan"), float("nan"))
        tail = (1 - self.level) / 2
        low, high = np.quantile(given, [tail, 1 - tail]) - given.mean() + value
        return Interval(float(given.std(ddof=1)), float(low), float(high))


def in_blocks(
    members: Int[Array, "s n"], classes: int, f: Callable[[Int[Array, "k n"]], Mapping[str, Array]]
) -> dict[str, Float[Array, " s"]]:
    """Apply f to a few resamples at a time, so that memory stays bounded, and join what it returns."""
    size = max(1, BLOCK // max(1, classes * members.shape[1]))
    parts = [f(members[start : start + size]) for start in range(0, len(members), size)]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
