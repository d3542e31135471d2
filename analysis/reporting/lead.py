"""What a report leads with: its target, the measures named for their families, and the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import Standing, lineup
from analysis.figures.correlations import leading, of_target
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE
from analysis.statistics.resampling import MINIMUM
from analysis.style import interval

ALPHA = 0.05


@dataclass(frozen=True)
class Lead:
    """The rows that a report's sentences are about.

    Attributes:
        target: The leading target; "" where nothing was correlated.
        rows: All candidates of it, strongest first.
        named: The representatives of families.
        known: The baselines, strongest first.
    """

    target: str
    rows: pd.DataFrame
    named: list[Standing]
    known: list[Standing]

    @classmethod
    def of(cls, results: StudyResults) -> "Lead":
        """Those of a study."""
        target, rows = leading(results)
        standings = lineup(results, of_target(results.correlations, target))
        named = [standing for standing in standings if standing.named]
        return cls(target, rows, named, [s for s in standings if s.row["role"] == BASELINE])

    @property
    def usable(self) -> list[Standing]:
        """Representatives that could carry a claim."""
        return [standing for standing in self.named if sufficient(standing.row)]


def sufficient(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether a row could carry a claim: enough configurations, and an interval."""
    ends = (row[f"{of}low"], row[f"{of}high"])
    return bool(np.isfinite(ends).all()) and row["n_configurations"] >= MINIMUM


def excludes_zero(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether its interval does."""
    return sufficient(row, of) and bool(row[f"{of}low"] > 0 or row[f"{of}high"] < 0)


def by_chance(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether among as many measures as were tried it may be chance, by the corrected p-value."""
    return bool(row[f"{of}p_adjusted"] >= ALPHA)


def value(row: Mapping[Any, Any], of: str = "") -> str:
    """A coefficient with its interval; ⚠ where values behind it carry a warning."""
    text = interval(row[of.rstrip("_") or "value"], row[f"{of}low"], row[f"{of}high"])
    return text + " ⚠" * bool(row["warned"] > 0)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def difference(row: Mapping[Any, Any], sign: int = 1) -> str:
    """A difference of two coefficients, with the interval over draws of the data too where there is one.

    Args:
        row: Of a table of comparisons.
        sign: −1 for that of the second less the first.
    """
    low, high = (row["low_draws"], row["high_draws"]) if np.isfinite(row["low_draws"]) else (row["low"], row["high"])
    if sign < 0:
        low, high = -high, -low
    return interval(sign * row["difference"], low, high)


def stronger(row: Mapping[Any, Any]) -> int:
    """1 where the first of a pair is the stronger correlate, −1 where the second, 0 where an interval contains 0."""
    lows = [row[name] for name in ("low", "low_draws") if np.isfinite(row[name])]
    highs = [row[name] for name in ("high", "high_draws") if np.isfinite(row[name])]
    return int(bool(lows) and min(lows) > 0) - int(bool(highs) and max(highs) < 0)
