"""Standard errors: of means, and by the delete-one jackknife of what groups without one of them give."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Array = np.ndarray


@dataclass(frozen=True)
class Leaveout:
    """A statistic of r groups, and its r values with one group left out each.

    Attributes:
        value: The statistic of all groups.
        without: Its values without each group in turn.
    """

    value: float
    without: Float[Array, " r"]

    @property
    def stderr(self) -> float:
        """Jackknife error sqrt((r - 1)/r Σ (t_i - mean t)²), for a mean of groups sd/√r (Tukey 1958); NaN for r < 2."""
        r = len(self.without)
        if r < 2:
            return float("nan")
        return float(np.sqrt((r - 1) / r * np.sum((self.without - self.without.mean()) ** 2)))

    def __sub__(self, other: "Leaveout") -> "Leaveout":
        return Leaveout(self.value - other.value, self.without - other.without)


def stderr_of_mean(x: Float[Array, " n"]) -> float:
    """s/√n; NaN for one number."""
    return float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.nan


def over_batches(each: Sequence[Float[Array, " n"]]) -> tuple[float, float]:
    """The mean over batches and examples, and its error: that over examples and that between batches add up."""
    mean = np.mean(each, axis=0)
    stderr = stderr_of_mean(mean)
    if len(each) > 1:
        stderr = math.hypot(stderr, stderr_of_mean(np.mean(each, axis=1)))
    return float(mean.mean()), stderr
