"""The rise of the loss under a perturbation: what it is returned as, and how it is read at a point."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checks.repeatability import require_repeatable
from landscape.estimate import Estimate
from landscape.params import Params
from landscape.precision import own_precision
from landscape.risk import EmpiricalRisk


@dataclass(frozen=True)
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


def evaluate(risk: EmpiricalRisk, theta: Params) -> tuple[float, float]:
    """Mean loss and error rate at θ; the error is NaN where the data are not labelled rows."""
    require_repeatable(risk, theta)
    risk = risk.settled(theta)
    losses, wrong = [], []
    with own_precision(), torch.no_grad():
        for (x, y), share in zip(risk.batches, risk.shares, strict=True):
            out = risk.predict(theta, x)
            losses.append(float(risk.loss(out, y)) * share if share else 0.0)
            wrong.append(float(mistakes(out, y)) if labelled(out, y) else math.nan)
    if risk.ranks is None:
        return math.fsum(losses), sum(wrong) / risk.n
    total = [risk.ranks.total(number, risk.device) for number in (math.fsum(losses), sum(wrong), float(risk.n))]
    return total[0], total[1] / total[2]


def evaluate_with_gradient(risk: EmpiricalRisk, theta: Params) -> tuple[float, Params, float]:
    """Mean loss, its gradient and the error rate at θ, from one pass."""
    require_repeatable(risk, theta)
    wrong: list[float] = []

    def see(out: Any, y: Any) -> None:
        wrong.append(float(mistakes(out.detach(), y)) if labelled(out, y) else math.nan)

    value, gradient = risk.value_and_gradient(theta, see=see)
    if risk.ranks is None:
        return value, gradient, sum(wrong) / risk.n
    total = [risk.ranks.total(number, risk.device) for number in (sum(wrong), float(risk.n))]
    return value, gradient, total[0] / total[1]


def labelled(out: Any, y: Any) -> bool:
    """Whether outputs are rows of scores for integer labels."""
    if not (isinstance(out, Tensor) and isinstance(y, Tensor)):
        return False
    whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    return whole and out.ndim == 2 and out.shape[1] > 1 and y.shape == out.shape[:1]


def mistakes(out: Tensor, y: Tensor) -> Tensor:
    """Number of rows whose largest score is not the label's."""
    return (out.argmax(-1) != y).sum(-1)
