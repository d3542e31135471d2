"""How the pages decide, by p-values and intervals of paired seeds: a hypothesis holds, does not hold, or stays open.

A hypothesis is made of one or more contrasts that must all show what it says (an intersection-union test: its p-value
is the largest of theirs, without a correction among them). Holm's correction is over the hypotheses of a page; the
intervals that exclude a hypothesis have Bonferroni's level for as many.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from analysis.statistics.resampling import holm
from analysis.style import fixed, p_value

LEVEL = 0.05  # of a page's hypotheses together
Array = np.ndarray
Outcome = Literal["holds", "does not hold", "inconclusive"]
SAID: dict[Outcome, str] = {
    "holds": "**Holds**",
    "does not hold": "**Does not hold**",
    "inconclusive": "**Inconclusive**",
}


BY_SEEDS = (
    "**How it is decided.** *Holds*: all that the hypothesis says is shown, p < 0.05 in paired t tests over seeds, "
    "with Holm's correction over the hypotheses of the page. *Does not hold*: the interval, widened for as many "
    "hypotheses (Bonferroni), has no room for a difference of interest in the claimed direction. *Inconclusive*: "
    "neither, or the setting chosen for the side that loses lies on the edge of its grid, so that a wider one could "
    "overturn it. Such a grid was to be extended once, by what validation data say alone. Radius 0, which is SGD, is "
    "no edge."
)


@dataclass(frozen=True)
class Contrast:
    """A difference that should be negative, or at least smaller than the smallest difference of interest.

    Attributes:
        name: What is compared, for a reader.
        differences: One a seed; negative is what the hypothesis hopes for.
        interest: The smallest difference of interest, above 0.
        kind: "below": the mean is below 0. "not above": it is below `interest`: any loss is too small to matter.
        scale: Factor for printing, such as 100 for percentage points.
        unit: Its name.
        digits: Printed after the point.
        open_if_held: Why "holds" would not be safe, such as a comparator at the edge of its grid; empty if it is.
        open_if_excluded: The same for "does not hold".
    """

    name: str
    differences: Float[Array, " s"]
    interest: float
    kind: Literal["below", "not above"] = "below"
    scale: float = 100.0
    unit: str = "points"
    digits: int = 1
    open_if_held: str = ""
    open_if_excluded: str = ""

    def __post_init__(self) -> None:
        if not self.interest > 0:
            raise ValueError(
                f"`interest` must be above 0, got {self.interest!r}: name the smallest difference of interest."
            )

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without one."""
        return float(np.mean(self.differences)) if len(self.differences) else math.nan

    @property
    def stderr(self) -> float:
        """Standard error of the mean; NaN for fewer than two seeds."""
        n = len(self.differences)
        return float(np.std(self.differences, ddof=1)) / math.sqrt(n) if n > 1 else math.nan

    @property
    def p(self) -> float:
        """Two-sided paired t test of a mean of 0; for "not above" of a mean of `interest`, twice the one-sided value.

        1 where the mean lies on the wrong side: what speaks against a hypothesis is no evidence for it.
        """
        distance = self.mean - (self.interest if self.kind == "not above" else 0.0)
        if not (math.isfinite(distance) and distance < 0):
            return 1.0
        if not self.stderr > 0:
            return 1.0 if math.isnan(self.stderr) else 0.0
        return float(2 * stats.t.sf(-distance / self.stderr, len(self.differences) - 1))

    def interval(self, level: float) -> tuple[float, float]:
        """The t interval of the mean with this coverage."""
        n = len(self.differences)
        reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * self.stderr if n > 1 else math.nan
        return self.mean - reach, self.mean + reach

    def excluded(self, level: float) -> bool:
        """Whether the interval leaves no room for what the hypothesis says.

        "below": an advantage of `interest` or more is outside it. "not above": it lies above 0: there is a loss.
        """
        low, _ = self.interval(level)
        return low > (-self.interest if self.kind == "below" else 0.0)

    def text(self, level: float) -> str:
        """The mean with its interval."""
        low, mean, high = (
            fixed(self.scale * x, self.digits) for x in (self.interval(level)[0], self.mean, self.interval(level)[1])
        )
        return f"{self.name} {mean} {self.unit} [{low}, {high}]"


@dataclass(frozen=True)
class Hypothesis:
    """A claim about one subject, which all of its contrasts must show.

    Attributes:
        subject: What it is about, for a reader.
        contrasts: At least one.
    """

    subject: str
    contrasts: tuple[Contrast, ...]

    @property
    def p(self) -> float:
        """The largest of its contrasts'."""
        return max(c.p for c in self.contrasts)


@dataclass(frozen=True)
class Verdict:
    """What came of a hypothesis.

    Attributes:
        hypothesis: Which.
        outcome: Whether it holds.
        p: Corrected by Holm over the page.
        level: Coverage of each interval.
        why: What keeps it open, or limits it; may be empty.
    """

    hypothesis: Hypothesis
    outcome: Outcome
    p: float
    level: float
    why: str = ""

    @property
    def line(self) -> str:
        """A line of a list in Markdown."""
        numbers = "; ".join(c.text(self.level) for c in self.hypothesis.contrasts)
        remark = f" {self.why[0].upper()}{self.why[1:]}." if self.why else ""
        return f"- {SAID[self.outcome]}: {self.hypothesis.subject}: {numbers}; p (Holm) {p_value(self.p)}.{remark}"


def decide(hypotheses: Sequence[Hypothesis]) -> list[Verdict]:
    """The verdicts of a page's hypotheses.

    Holds: p < 0.05 after Holm. Does not hold: not so, and the interval of one of its contrasts, with coverage
    1 - 0.05/k for k hypotheses, excludes it. Inconclusive: neither, or a wider grid could overturn it.

    Raises:
        ValueError: If there is none.

    Source:
        Berger (1982) for intersection-union tests; Holm (1979); the three outcomes are our definition, after the
        confidence-interval form of equivalence tests (Schuirmann 1987).
    """
    if not hypotheses:
        raise ValueError("`hypotheses` is empty: a page decides at least one.")
    level = 1 - LEVEL / len(hypotheses)
    adjusted = holm(np.array([h.p for h in hypotheses]))
    return [_verdict(h, float(p), level) for h, p in zip(hypotheses, adjusted, strict=True)]


def _verdict(hypothesis: Hypothesis, p: float, level: float) -> Verdict:
    contrasts = hypothesis.contrasts
    if p < LEVEL:
        doubts = _said(c.open_if_held for c in contrasts)
        small = [c.name for c in contrasts if c.kind == "below" and c.excluded(level)]
        limit = f"the advantage is smaller than of interest: {', '.join(small)}" if small else ""
        return Verdict(hypothesis, "inconclusive" if doubts else "holds", p, level, doubts or limit)
    against = [c for c in contrasts if c.excluded(level)]
    if any(not c.open_if_excluded for c in against):
        return Verdict(hypothesis, "does not hold", p, level)
    doubts = _said(c.open_if_excluded for c in against)
    return Verdict(hypothesis, "inconclusive", p, level, doubts or "the intervals are too wide to tell")


def _said(reasons: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, reasons)))


def listed(verdicts: Sequence[Verdict]) -> str:
    """The outcomes in a sentence, with what each is about."""
    parts = [
        f"{outcome} for {', '.join(v.hypothesis.subject for v in verdicts if v.outcome == outcome)}"
        for outcome in SAID
        if any(v.outcome == outcome for v in verdicts)
    ]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def reach(verdicts: Sequence[Verdict]) -> str:
    """How small a difference the design could have seen: half the width of the intervals, by unit."""
    halves: dict[tuple[str, float, int], list[float]] = {}
    for verdict in verdicts:
        for c in verdict.hypothesis.contrasts:
            low, high = c.interval(verdict.level)
            halves.setdefault((c.unit, c.scale * c.interest, c.digits), []).append(c.scale * (high - low) / 2)
    texts = [
        f"±{fixed(float(np.median(found)), digits)} {unit} (median; at most ±{fixed(max(found), digits)}; of interest: "
        f"{interest:.3g})"
        for (unit, interest, digits), found in halves.items()
    ]
    level = 100 * verdicts[0].level
    return f"**What the design could see.** The intervals ({level:.4g} % each) reach {'; '.join(texts)}."
