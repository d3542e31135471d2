"""Delete-one jackknife: a statistic of groups, and what it is without each of them."""

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
