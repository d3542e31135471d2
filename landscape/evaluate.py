"""The evaluator: the loss and named scores of a model on data at one point, from one pass."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from landscape.batches import Batch
from landscape.checks.arguments import require_risk
from landscape.checks.repeatability import require_repeatable
from landscape.estimate import Estimate
from landscape.labels import errors, ignored_label, labelled
from landscape.params import Params
from landscape.risk import EmpiricalRisk
from landscape.scores import Function, doubled, example_losses

Scores = Callable[[Any, Any], Mapping[str, Tensor | tuple[Tensor, Tensor]]]
"""Maps (outputs, targets) of n examples to scores by name: values of shape (n,), or a pair of values and weights."""

Weighted = tuple[Tensor, Tensor | None]

AGREE = 1e-4  # relative; a mean of examples' losses further from the batch's loss is not that loss


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a pass over the data has shown.

    Attributes:
        loss: L(θ), summed over batches in float64; over all processes where the data are shared out.
        scores: The mean of each score over the examples, of all processes likewise, with its standard error.
        examples: Each score of every example of this process that counts, on the CPU, in float64 or as true and false;
            and "loss" where asked for, which has one entry, L(θ), where the loss is not the mean of its examples'
            losses or the risk has weights.
    """

    loss: float
    scores: Mapping[str, Estimate]
    examples: Mapping[str, Shaped[Tensor, " _"]]

    @property
    def error(self) -> float:
        """The error rate; NaN where there is none."""
        return self.scores["error"].value if "error" in self.scores else math.nan


def evaluate(
    risk: EmpiricalRisk, theta: Params | None = None, scores: Scores | None = None, *, losses: bool = False
) -> Evaluation:
    """Evaluate a model on data at one point, in one pass.

    The mean of a score x with weights w is v = Σ w_i x_i / Σ w_i, its standard error √(m / (m - 1) Σ w_i² (x_i - v)²) /
    Σ w_i with m the number of weights above 0, see `landscape.scores.mean_and_stderr`.

    Args:
        risk: Model, loss and data; in mode "recalibrate" the statistics are estimated at θ.
        theta: The point; None means the risk's own.
        scores: See `Scores`. None means "error", 1 where the largest output is not the label's, where there are labels.
        losses: Take the loss of every example too.

    Raises:
        ValueError: If the loss is random, or no weighted mean over the batches; or if `scores` gives no mapping, other
            names for other batches, or anything but a real number and a finite weight >= 0 for each example.

    Source:
        Cochran (1977), "Sampling techniques", sec. 6.3, for the standard error of a ratio.
    """
    require_risk(risk)
    require_repeatable(risk, theta)
    read, shares = scores or _errors(risk.loss), risk.shares
    names: set[str] | None = None
    each: Function | None = None

    def visit(out: Any, batch: Batch, share: float, number: int) -> tuple[float, Tensor | None, dict[str, Weighted]]:
        nonlocal each, names
        scored = _scored(read, out, batch)
        names = set(scored) if number == 0 else names
        if scores is not None and set(scored) != names:
            raise ValueError(
                f"`scores` must give the same names for all batches, got {sorted(scored)} after {sorted(names or ())}: "
                "give examples without a score the weight 0."
            )
        if not losses:
            return risk.part(out, batch, share), None, scored
        if number == 0:
            each = example_losses(risk, out, batch) if risk.weight is None else None
        whole = risk.part(out, batch, 1.0)
        own = None if each is None else _agreeing(each(out, batch[1]), whole)
        return whole * share if share else 0.0, own, scored

    parts, own, found = zip(*risk.over(visit, theta, shares, range(len(shares))), strict=True)
    loss = _total(risk, math.fsum(parts))
    examples: dict[str, Tensor] = {}
    if losses:
        whole = any(part is None for part in own)
        examples["loss"] = torch.tensor([loss], dtype=torch.float64) if whole else torch.cat(own).cpu()
    return _together(risk, loss, found, examples)


def evaluate_with_gradient(risk: EmpiricalRisk, theta: Params | None = None) -> tuple[Evaluation, Params]:
    """The loss and the error at one point, and ∇L(θ), from one pass."""
    require_repeatable(risk, theta)
    read, found = _errors(risk.loss), list[dict[str, Weighted]]()
    loss, gradient = risk.value_and_gradient(theta, see=lambda out, batch: found.append(_scored(read, out, batch)))
    return _together(risk, loss, found, {}), gradient


def _errors(loss: Any) -> Scores:
    ignored = ignored_label(loss)
    return lambda out, y: {"error": errors(out, y, ignored=ignored)} if labelled(out, y) else {}


def _scored(read: Scores, out: Any, batch: Batch) -> dict[str, Weighted]:
    """The scores of one batch."""
    given = read(out.detach() if isinstance(out, Tensor) else out, batch[1])
    if not isinstance(given, Mapping):
        raise ValueError(
            f"`scores` must give scores by name, such as {{'error': errors}}, got a {type(given).__name__}."
        )
    found: dict[str, Weighted] = {}
    for name, score in given.items():
        values, weights = score if isinstance(score, tuple) and len(score) == 2 else (score, None)
        if not isinstance(values, Tensor) or values.ndim != 1 or values.is_complex():
            raise ValueError(
                f"`scores` must give one value an example, of shape (n,), got {_shown(values)} for {name!r}: a tensor "
                "of real numbers, or a pair of such values and weights."
            )
        if weights is not None:
            _require_weights(name, values, weights)
        found[name] = values, weights
    return found


def _require_weights(name: str, values: Tensor, weights: Any) -> None:
    if not isinstance(weights, Tensor) or weights.shape != values.shape or weights.is_complex():
        raise ValueError(
            f"`scores` must give one weight an example, of shape {tuple(values.shape)}, got {_shown(weights)} for "
            f"{name!r}."
        )
    wrong = weights[~((weights >= 0) & torch.isfinite(weights))]
    if len(wrong):
        raise ValueError(f"`scores` must give finite weights >= 0, got {float(wrong[0])} for {name!r}.")


def _shown(given: Any) -> str:
    if not isinstance(given, Tensor):
        return f"a {type(given).__name__}"
    return f"{tuple(given.shape)}{' of complex numbers' if given.is_complex() else ''}"


def _together(
    risk: EmpiricalRisk, loss: float, found: Sequence[dict[str, Weighted]], examples: dict[str, Tensor]
) -> Evaluation:
    """The means over all batches of the scores that all of them have."""
    scores = {}
    for name in [name for name in found[0] if all(name in batch for batch in found)]:
        values = torch.cat([batch[name][0] for batch in found]) if len(found) > 1 else found[0][name][0]
        weights = None
        if any(batch[name][1] is not None for batch in found):
            weights = torch.cat([doubled(torch.ones_like(x) if w is None else w) for x, w in (b[name] for b in found)])
        x = doubled(values)
        scores[name] = _mean(risk, x, weights)
        kept = values if values.dtype == torch.bool else x
        examples[name] = (kept if weights is None else kept[weights > 0]).cpu()
    return Evaluation(loss, scores, examples)


def _mean(risk: EmpiricalRisk, x: Tensor, w: Tensor | None) -> Estimate:
    """The mean and its standard error, from sums over all processes; deviations are taken from the mean itself."""
    if w is None:
        weight = m = _total(risk, len(x))
        total = _total(risk, float(x.sum()))
    else:
        parts = torch.stack((w.sum(), torch.where(w > 0, w * x, 0.0).sum(), (w > 0).sum())).tolist()
        weight, total, m = (_total(risk, part) for part in parts)
    mean = total / weight if weight else math.nan
    away = x - mean if w is None else torch.where(w > 0, w * (x - mean), 0.0)
    spread = _total(risk, float(away.dot(away)))
    spread = spread if math.isfinite(mean) else math.nan
    return Estimate(mean, math.sqrt(m / (m - 1) * spread) / weight if m > 1 else math.nan, int(m))


def _total(risk: EmpiricalRisk, part: float) -> float:
    """The sum of a number over all processes."""
    return part if risk.ranks is None else risk.ranks.total(part, risk.device)


def _agreeing(losses: Any, whole: float) -> Tensor | None:
    """The examples' losses in float64, or None where their mean is not the loss of the batch."""
    found = doubled(losses)
    mean = float(found.mean())
    if math.isfinite(mean) and abs(mean - whole) > AGREE * max(abs(whole), abs(mean)) + AGREE**2:
        return None
    return found
