"""What a report leads with: its target, the measures named for their families, and the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.candidates import Standing, compared, family_of, lineup, one_cell
from analysis.figures.correlations import leading, of_target
from analysis.results import StudyResults
from analysis.statistics.correlation_rows import BASELINE
from analysis.statistics.resampling import MINIMUM
from analysis.style import interval

ALPHA = 0.05


@dataclass(frozen=True)
class Finding:
    """One finding: what it is about, and the sentences; names of measures stand in backticks."""

    topic: str
    text: str


@dataclass(frozen=True)
class Tally:
    """How many variants were tried, and how many survive the correction, by the sign that was expected of them.

    Attributes:
        tried: Those with a value.
        agree: Survive, with the sign that their theory expects of the gap.
        oppose: Survive, with the opposite sign.
        unknown: Survive, and theory expects no sign.
    """

    tried: int
    agree: int
    oppose: int
    unknown: int

    @property
    def survive(self) -> int:
        """All that survive."""
        return self.agree + self.oppose + self.unknown

    def signs(self) -> str:
        """`, 3 with the sign that theory expects for the gap and 2 against it`; empty where theory expects none."""
        if not (self.agree or self.oppose):
            return ""
        parts: list[str] = []
        for n, word in ((self.agree, "with"), (self.oppose, "against")):
            if n:
                many = "" if self.survive == 1 else "all " if n == self.survive else f"{n} "
                parts.append(f"{many}{word} {'it' if parts else 'the sign that theory expects for the gap'}")
        if self.unknown:
            parts.append(f"{self.unknown} without an expected sign")
        return f", {listed(parts)}"

    def opposed(self) -> str:
        """` (8 against)`, in brackets."""
        return f" ({'all' if self.oppose == self.survive else self.oppose or 'none'} against)"


@dataclass(frozen=True)
class Lead:
    """The rows that a report's sentences are about.

    Attributes:
        target: The leading target; "" where nothing was correlated.
        rows: All candidates of it, strongest first.
        named: The representatives of families.
        known: The baselines, strongest first.
        methods: The study's methods.
        one_cell: Whether all models share the hyper-parameters of training, so that there is nothing to hold fixed.
    """

    target: str
    rows: pd.DataFrame
    named: list[Standing]
    known: list[Standing]
    methods: list[str]
    one_cell: bool

    @classmethod
    def of(cls, results: StudyResults) -> "Lead":
        """Those of a study."""
        target, rows = leading(results)
        standings = lineup(results, of_target(results.correlations, target))
        named = [standing for standing in standings if standing.named]
        known = [s for s in standings if s.row["role"] == BASELINE]
        return cls(target, rows, named, known, results.methods, one_cell(results.correlations, target))

    @property
    def usable(self) -> list[Standing]:
        """Representatives that could carry a claim."""
        return [standing for standing in self.named if sufficient(standing.row)]

    def tally(self, family: str = "", of: str = "") -> Tally:
        """How many variants of a family, or of all, survive the correction.

        Args:
            family: Of the variants; "" for all.
            of: "" for the pooled coefficient, "stratified_" for that inside cells.
        """
        value = of.rstrip("_") or "value"
        rows = self.rows[np.isfinite(self.rows[value].to_numpy(dtype=float))].to_dict("records")
        rows = [row for row in rows if family in ("", family_of(row))]
        signs = [int(np.sign(row[value])) * int(row["expected_sign"]) for row in rows if survives(row, of)]
        return Tally(len(rows), *(signs.count(sign) for sign in (1, -1, 0)))


def by_strength(lead: Lead) -> list[Standing]:
    """The representatives that could carry a claim, strongest first."""
    return sorted(lead.usable, key=lambda standing: -abs(standing.row["value"]))


def pair(results: StudyResults, lead: Lead, first: str, second: str) -> tuple[dict[str, Mapping[Any, Any]], bool]:
    """The rows of a pair that was compared by where, and whether it was compared the other way round."""
    table = compared(results, lead.target)
    known = np.isfinite(table[["difference", "low", "high"]].to_numpy(dtype=float)).all(axis=1)
    table = table[known & (table["n_configurations"] >= MINIMUM)]
    for turned, (one, other) in enumerate(((first, second), (second, first))):
        here = table[(table["forgetting"] == one) & (table["sharpness"] == other)]
        if len(here):
            return {str(row["pairs"]): row for row in here.to_dict("records")}, bool(turned)
    return {}, False


def sufficient(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether a row could carry a claim: enough configurations, and an interval."""
    ends = (row[f"{of}low"], row[f"{of}high"])
    return bool(np.isfinite(ends).all()) and row["n_configurations"] >= MINIMUM


def excludes_zero(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether its interval does; within methods, where no p-value stands beside it, one of no width shows nothing."""
    if of == "within_" and row["within_low"] == row["within_high"]:
        return False
    return sufficient(row, of) and bool(row[f"{of}low"] > 0 or row[f"{of}high"] < 0)


def by_chance(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether by the corrected p-value, or for want of one, it may be chance among as many as were tried."""
    p = float(row[f"{of}p_adjusted"])
    return not p < ALPHA


def survives(row: Mapping[Any, Any], of: str = "") -> bool:
    """Whether its interval excludes 0, and the corrected p-value is below 0.05."""
    return excludes_zero(row, of) and not by_chance(row, of)


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
    plain, drawn = (row["low"], row["high"]), (row["low_draws"], row["high_draws"])
    low, high = drawn if np.isfinite(drawn[0]) else plain
    if not stronger(row) and not low <= 0 <= high:  # the other interval is why neither is called the stronger
        low, high = plain
    if sign < 0:
        low, high = -high, -low
    return interval(sign * row["difference"], low, high)


def stronger(row: Mapping[Any, Any]) -> int:
    """1 where the first of a pair is the stronger correlate, −1 where the second, 0 where an interval contains 0."""
    lows = [row[name] for name in ("low", "low_draws") if np.isfinite(row[name])]
    highs = [row[name] for name in ("high", "high_draws") if np.isfinite(row[name])]
    return int(bool(lows) and min(lows) > 0) - int(bool(highs) and max(highs) < 0)
