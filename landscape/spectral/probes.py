"""What the stochastic estimators share: their terms, and when to stop."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from landscape.estimate import Estimate
from landscape.operators.protocol import SymmetricOperator
from landscape.progress import Progress, watching
from landscape.spectral.draws import BLOCK, require_vectors, sign_images
from landscape.spectral.regions import Array, Blocks, Regions

LOOKED = 3.0
DRAWS = 64  # default number of products
DRAWS_FOR_TOL = 2000  # default bound on them where a tolerance says when to stop
FEWEST = 10  # draws before a tolerance may stop Hutchinson's estimator


@dataclass(frozen=True)
class Goal:
    """When to stop: at a standard error of at most tol · |value| + atol, or when `draws` products are spent.

    Attributes:
        tol: Relative standard error; 0 for none.
        atol: Absolute standard error; 0 for none.
        draws: Largest number of products.
    """

    tol: float
    atol: float
    draws: int

    @property
    def open(self) -> bool:
        """Whether there is no tolerance, so that all draws are spent."""
        return self.tol == 0 and self.atol == 0

    def target(self, value: float) -> float:
        """The standard error asked for."""
        return self.tol * abs(value) + self.atol

    def batch(self, sample: "Sample") -> int:
        """How many terms to add: half of those that seem to be missing, or a block where there is no tolerance."""
        target, n = self.target(sample.value), sample.terms.shape[1]
        if self.open or target == 0:
            return BLOCK
        return max(1, min(BLOCK, int(1 + n * ((sample.stderr / target) ** 2 - 1) / 2)))

    @classmethod
    def of(cls, tol: float | None, atol: float, draws: int | None) -> "Goal":
        """Check the arguments of an estimator; None for `draws` means 64, or 2000 with a tolerance.

        Raises:
            ValueError: If `tol` or `atol` cannot be a standard error.
        """
        if tol is not None and not (math.isfinite(tol) and tol > 0):
            raise ValueError(f"`tol` must be a relative standard error > 0, or None, got {tol!r}.")
        if not (math.isfinite(atol) and atol >= 0):
            raise ValueError(f"`atol` must be an absolute standard error >= 0, got {atol!r}.")
        if draws is None:
            draws = DRAWS if tol is None and atol == 0 else DRAWS_FOR_TOL
        return cls(tol or 0.0, atol, draws)


@dataclass(frozen=True, eq=False)
class Sample:
    """What an estimator knows so far: terms whose mean is the estimate.

    Attributes:
        terms: Of shape (1 + blocks, n): row 0 for the whole, then one a block; or row 0 alone.
        products: Products spent.
        method: Name of the estimator.
        factor: By how much the plain standard error is enlarged, where the terms depend on each other.
        exact: Whether nothing was estimated.
        settled: Whether a tolerance may stop here.
        parts: Where `terms` is row 0 alone, the function that computes all rows.
    """

    terms: Array
    products: int
    method: str
    factor: float = 1.0
    exact: bool = False
    settled: bool = True
    parts: Callable[[], Array] | None = None

    @property
    def value(self) -> float:
        """The estimate of the whole."""
        return math.fsum(self.terms[0]) / float(self.terms.shape[1])

    @property
    def stderr(self) -> float:
        """Its standard error."""
        return self._stderr(self.terms[0])

    def _stderr(self, terms: Array) -> float:
        if self.exact:
            return 0.0
        return self.factor * float(np.std(terms, ddof=1)) / math.sqrt(len(terms)) if len(terms) > 1 else math.nan

    def estimate(self, blocks: Blocks, converged: bool) -> Estimate:
        """The result, with its parts."""
        n = self.products if self.exact else self.terms.shape[1]
        made = [
            Estimate(math.fsum(row) / len(row), self._stderr(row), n, self.products, converged, self.method)
            for row in (self.terms if self.parts is None or not blocks else self.parts())
        ]
        parts = dict(zip(blocks, made[1:], strict=True))
        w = made[0]
        return Estimate(w.value, w.stderr, w.draws, w.products, w.converged, w.method, parts=parts)


def finish(samples: Iterator[Sample], goal: Goal, blocks: Blocks, *, work: str, progress: Progress) -> Estimate:
    """Run an estimator until its tolerance is met, its budget is spent, or the user interrupts it."""
    known: Sample | None = None
    reached, interrupted = goal.open, False
    with watching(progress, work=work, most=goal.draws) as tell:
        try:
            with torch.no_grad():
                for sample in samples:
                    known, value = sample, sample.value
                    tell(sample.products, sample.stderr / abs(value) if value != 0 else math.nan)
                    reached = goal.open or (sample.settled and sample.stderr <= goal.target(value))
                    if not goal.open and reached:
                        break
        except KeyboardInterrupt:
            if known is None or (known.terms.shape[1] < 2 and not known.exact):
                raise
            interrupted = True
    assert known is not None
    if interrupted:
        reached = reached and not goal.open
        warnings.warn(
            f"{work} was interrupted after {known.products} products: the estimate is what they gave.",
            RuntimeWarning,
            stacklevel=4,
        )
    elif not reached:
        doubt = "" if known.settled else ", from terms that may miss a part"
        warnings.warn(
            f"{work} did not reach a standard error of {goal.target(known.value):.3g} with {known.products} products "
            f"(it is {known.stderr:.3g}{doubt}): raise `draws`, `tol` or `atol`.",
            RuntimeWarning,
            stacklevel=4,
        )
    return known.estimate(blocks, reached)


def probed(
    A: SymmetricOperator, goal: Goal, regions: Regions, term: Callable[[Tensor, Tensor], Tensor], generator: Generator
) -> Iterator[Sample]:
    """Sums of term(z, A z) over the entries of each region; with a tolerance, half of the missing draws at a time."""
    require_vectors(A, 0, 2, what="Hutchinson's estimator", instead="take fewer of the model's parameters")
    terms: Array = np.zeros((len(regions), 0))
    want = BLOCK if goal.open else FEWEST
    while (have := terms.shape[1]) < goal.draws:
        new = min(want, BLOCK, goal.draws - have)
        for z, image in sign_images(A, new, generator):
            terms = np.concatenate([terms, regions.sums(term, z, image)], axis=1)
            del z, image
        sample = Sample(terms, terms.shape[1], "hutchinson", 1.0 if goal.open else looked(terms.shape[1]))
        yield sample
        want = goal.batch(sample)


def looked(n: int) -> float:
    """By how much to enlarge the standard error of n terms that decided by themselves when to stop.

    The sample variance is likelier too small than too large where it ends the work: by about 3 / n, as we measured.
    """
    return math.sqrt(1 + LOOKED / n)


def check_draws(draws: int) -> None:
    """Refuse a number of draws that has no standard error."""
    if draws < 2:
        raise ValueError(f"`draws` must be at least 2, for a standard error, got {draws}.")
