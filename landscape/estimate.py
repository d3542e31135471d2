"""What a stochastic quantity is returned as: never a bare float."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number from a sample, with its standard error.

    Attributes:
        value: The estimate.
        stderr: Its standard error; 0.0 for an exact value, NaN where it cannot be told.
        draws: Number of independent draws behind it.
        products: Operator products spent, where there are any.
        converged: False where a requested accuracy was not reached.
        method: What produced it.
    """

    value: float
    stderr: float = 0.0
    draws: int = 1
    products: int = 0
    converged: bool = True
    method: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = "±?" if math.isnan(self.stderr) else f"± {self.stderr:.2g}"
        return f"{self.value:.6g} {error} ({self.draws} draws)"
