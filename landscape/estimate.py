"""What a stochastic quantity is returned as: never a bare float."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scipy.special import stdtrit

from landscape.showing import html_table


@dataclass(frozen=True, repr=False)
class Estimate:
    """A number from a sample, with its standard error.

    Attributes:
        value: The estimate.
        stderr: Its standard error; 0.0 for an exact value, NaN where it cannot be told.
        draws: Number of random draws behind it.
        products: Operator products spent, where there are any.
        converged: False where a requested accuracy was not reached.
        method: What produced it.
        parts: Estimates of named parts of the same quantity from the same draws, such as a trace layer by layer.
    """

    value: float
    stderr: float = 0.0
    draws: int = 1
    products: int = 0
    converged: bool = True
    method: str = ""
    parts: Mapping[str, "Estimate"] = field(default_factory=dict, kw_only=True, hash=False, repr=False)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval value ± t · stderr, with t from Student's distribution with draws - 1 degrees.

        It supposes draws that are independent and about normal. Estimators whose terms depend on each other state a
        standard error that is enlarged for it.

        Args:
            level: Probability that the interval is to cover the truth, between 0 and 1.

        Returns:
            The lower and the upper end: equal for an exact value, NaN where the standard error is, or for one draw.

        Raises:
            ValueError: If `level` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"`level` must be a probability between 0 and 1, such as 0.95, got {level!r}.")
        if self.stderr == 0:
            return self.value, self.value
        if math.isnan(self.stderr) or self.draws < 2:
            return math.nan, math.nan
        half = float(stdtrit(self.draws - 1, (1 + level) / 2)) * self.stderr
        return self.value - half, self.value + half

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def _repr_html_(self) -> str:
        """A table with the 95 % interval and the parts, for a notebook."""
        rows = [(self.method or "value", self), *self.parts.items()]
        shown = [(name, str(e), "{:.4g} to {:.4g}".format(*e.interval())) for name, e in rows]
        return html_table(shown, head=("", "estimate", "95 % interval"))

    def __str__(self) -> str:
        open_end = "" if self.converged else ", not converged"
        if self.stderr == 0 and self.draws != 1:
            return f"{self.value:.6g} (exact{open_end})"
        error = "±?" if math.isnan(self.stderr) else f"± {self.stderr:.2g}"
        count = "1 draw" if self.draws == 1 else f"{self.draws} draws"
        return f"{self.value:.6g} {error} ({count}{open_end})"
