"""The rise of the loss under a perturbation: what it is returned as."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from landscape.estimate import Estimate
from landscape.params import Params


@dataclass(frozen=True, repr=False)
class Sharpness(Estimate):
    """A rise of the loss under a perturbation, with what describes that perturbation.

    For m-sharpness everything is a mean over the chunks, weighted by their size.

    Attributes:
        length: Mean ‖δ‖₂.
        gradient_norm: Mean ‖∇L‖₂ at the unperturbed weights; NaN for average sharpness.
        taylor: Mean of ⟨∇L, δ⟩, plus δᵀHδ/2 where that was asked for; NaN for average sharpness.
        error: Mean error rate at the perturbed weights; NaN unless outputs are rows of scores for integer labels.
        residual: For a search, how much more the loss could rise to first order from the point found, see
            `worst_case_sharpness`; NaN for others.
        base: Loss at the unperturbed weights; NaN where it was not needed.
        displacement: δ itself, for a search over all data at once; else None.
    """

    length: float = math.nan
    gradient_norm: float = math.nan
    taylor: float = math.nan
    error: float = math.nan
    residual: float = math.nan
    base: float = math.nan
    displacement: Params | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Rise:
    """One chunk's numbers."""

    rise: float
    length: float
    gradient_norm: float
    taylor: float
    error: float
    residual: float = math.nan
    base: float = math.nan


def mean_rise(rises: list[Rise], weights: Sequence[float], method: str) -> Sharpness:
    """The mean over chunks weighted by what they count for, with the standard error that their spread gives."""
    share = np.asarray(weights) / sum(weights)

    def average(each: Callable[[Rise], float]) -> float:
        return math.fsum(share * np.asarray([each(r) for r in rises]))

    value = average(lambda r: r.rise)
    values = np.asarray([r.rise for r in rises])
    c = len(rises)
    with np.errstate(invalid="ignore"):  # a diverged point gives NaN
        squares = math.fsum(share**2 * (values - value) ** 2)
    return Sharpness(
        value,
        math.sqrt(squares * c / (c - 1)) if c > 1 else 0.0,
        c,
        method=method,
        length=average(lambda r: r.length),
        gradient_norm=average(lambda r: r.gradient_norm),
        taylor=average(lambda r: r.taylor),
        error=average(lambda r: r.error),
        residual=average(lambda r: r.residual),
        base=average(lambda r: r.base),
    )
