"""Progress of long work: how many products, of how many at most, and how far from the tolerance."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """Where long work stands.

    Attributes:
        work: What is being done, such as "top_eigenpairs".
        products: Operator products spent so far.
        most: Products it may take; it usually ends earlier.
        residual: What is still compared with the tolerance, in the tolerance's own units; NaN while nothing is known.
    """

    work: str
    products: int
    most: int
    residual: float

    def __str__(self) -> str:
        residual = "unknown" if math.isnan(self.residual) else f"{self.residual:.1e}"
        return f"{self.work}: {self.products} of at most {self.most} products, residual {residual}"


Progress = bool | Callable[[Status], None]
"""False for silence, or a function that is called with each `Status`, such as `analysis.shown` makes."""

Tell = Callable[[int, float], None]
"""What the work calls now and then: tell(products, residual)."""


@contextmanager
def watching(progress: Progress, *, work: str, most: int) -> Iterator[Tell]:
    """Hand on the progress of the work inside the block; a call of `tell` costs microseconds.

    Args:
        progress: False, or a function of `Status`. What the function raises goes through to the caller.
        work: Name of the work.
        most: Products it may take.

    Yields:
        The function `tell(products, residual)`; residual NaN means unknown.

    Raises:
        ValueError: If `progress` is neither.
    """
    if progress is False:
        yield lambda _products, _residual: None
    elif callable(progress):
        yield lambda products, residual: progress(Status(work, products, most, residual))
    else:
        raise ValueError(
            f"`progress` must be False or a function of a Status, got {progress!r}: use analysis.shown() to see it."
        )
