"""The evaluator: the loss and named scores of a model on data at one point, from one pass."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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

AGREE = 1e-4  # relative; a mean of examples' losses further from the batch's loss is not that loss


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a pass over the data has shown.

    Attributes:
        loss: L(θ), summed over batches in float64; over all processes where the data are shared out.
        scores: The mean of each score over the examples, of all processes likewise, with its standard error.
        examples: What was asked for, of every example that counts, on the CPU: in float64, or true and false. Where the
            loss is not the mean of its examples' losses, or the risk has weights, "loss" has one entry, L(θ).
    """

    loss: float
    scores: Mapping[str, Estimate]
    examples: Mapping[str, Shaped[Tensor, " _"]] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The error rate; NaN where there is none."""
        return self.scores["error"].value if "error" in self.scores else math.nan


def evaluate(
    risk: EmpiricalRisk,
    theta: Params | None = None,
    scores: Scores | None = None,
    *,
    examples: bool = False,
    losses: bool = False,
) -> Evaluation:
    """Evaluate a model on data at one point, in one pass.

    The mean of a score x with weights w is v = Σ w_i x_i / Σ w_i, its standard error √(m / (m - 1) Σ w_i² (x_i - v)²) /
    Σ w_i with m the number of weights above 0, from sums over the batches; see `landscape.scores.mean_and_stderr`.

    Args:
        risk: Model, loss and data; in mode "recalibrate" the statistics are estimated at θ.
        theta: The point; None means the risk's own.
        scores: See `Scores`. None means "error", 1 where the largest output is not the label's, where there are labels.
        examples: Keep the scores of every example of this process.
        losses: Keep its loss.

    Raises:
        ValueError: If the loss is random, or no weighted mean over the batches, or a score has not one value an
            example.

    Source:
        Cochran (1977), "Sampling techniques", sec. 6.3, for the standard error of a ratio.
    """
    require_risk(risk)
    require_repeatable(risk, theta)
    reader = _Reader(risk, scores or _errors(risk.loss), examples, losses)
    shares = risk.shares
    visits = risk.over(reader, theta, shares, range(len(shares)))
    loss = math.fsum(visit.loss for visit in visits)
    loss = loss if risk.ranks is None else risk.ranks.total(loss, risk.device)
    return Evaluation(loss, _means(risk, visits), _joined(visits, loss))


def evaluate_with_gradient(risk: EmpiricalRisk, theta: Params | None = None) -> tuple[Evaluation, Params]:
    """The loss and the error at one point, and ∇L(θ), from one pass."""
    require_repeatable(risk, theta)
    reader, visits = _Reader(risk, _errors(risk.loss)), list[_Visit]()
    loss, gradient = risk.value_and_gradient(theta, see=lambda out, batch: visits.append(reader.scores(out, batch)))
    return Evaluation(loss, _means(risk, visits)), gradient


@dataclass(frozen=True, eq=False)
class _Visit:
    """What one batch has shown.

    Attributes:
        sums: Of each score, see `_sums`.
        loss: What the batch adds to L.
        kept: Numbers of its examples; None in place of losses that are not their own.
    """

    sums: Mapping[str, list[float]]
    kept: Mapping[str, Tensor | None]
    loss: float = math.nan


@dataclass(eq=False)
class _Reader:
    """Reads one batch after the other."""

    risk: EmpiricalRisk
    read: Scores
    examples: bool = False
    losses: bool = False
    each: Function | None = None

    def __call__(self, out: Any, batch: Batch, share: float, number: int) -> _Visit:
        visit = self.scores(out, batch)
        if not self.losses:
            return replace(visit, loss=self.risk.part(out, batch, share))
        if number == 0:
            self.each = example_losses(self.risk, out, batch) if self.risk.weight is None else None
        own = self.each(out, batch[1]) if self.each is not None else None
        whole = self.risk.part(out, batch, 1.0)
        return _Visit(visit.sums, {"loss": _agreeing(own, whole), **visit.kept}, whole * share if share else 0.0)

    def scores(self, out: Any, batch: Batch) -> _Visit:
        """The scores alone."""
        out = out.detach() if isinstance(out, Tensor) else out
        sums: dict[str, list[float]] = {}
        kept: dict[str, Tensor | None] = {}
        for name, score in self.read(out, batch[1]).items():
            values, weights = score if isinstance(score, tuple) else (score, None)
            if values.ndim != 1 or (weights is not None and weights.shape != values.shape):
                raise ValueError(
                    f"`scores` must give one value an example, of shape (n,), got {tuple(values.shape)} for {name!r}."
                )
            sums[name] = _sums(values, weights)
            if self.examples:
                some = values if weights is None else values[weights > 0]
                kept[name] = some if some.dtype == torch.bool else doubled(some)
        return _Visit(sums, kept)


def _errors(loss: Any) -> Scores:
    ignored = ignored_label(loss)
    return lambda out, y: {"error": errors(out, y, ignored=ignored)} if labelled(out, y) else {}


def _sums(values: Tensor, weights: Tensor | None) -> list[float]:
    """Σ w, Σ w x, Σ w², Σ w² x, Σ w² x², and the number of weights above 0."""
    x = doubled(values)
    if weights is None:
        n = float(len(x))
        total, squares = torch.stack((x.sum(), x.square().sum())).tolist()
        return [n, total, n, total, squares, n]
    w = doubled(weights)
    x = torch.where(w > 0, w * x, 0.0)
    numbers = torch.stack((w.sum(), x.sum(), w.square().sum(), (w * x).sum(), x.square().sum(), (w > 0).sum()))
    return [float(number) for number in numbers.tolist()]


def _means(risk: EmpiricalRisk, visits: list[_Visit]) -> dict[str, Estimate]:
    """Means and standard errors from the sums over all batches, of all processes."""
    found: dict[str, Estimate] = {}
    for name in dict.fromkeys(name for visit in visits for name in visit.sums):
        columns = zip(*(visit.sums[name] for visit in visits if name in visit.sums), strict=True)
        sums = [math.fsum(column) for column in columns]
        if risk.ranks is not None:
            sums = [risk.ranks.total(number, risk.device) for number in sums]
        weight, total, w2, w2x, w2x2, m = sums
        mean = total / weight if weight else math.nan
        spread = max(w2x2 - 2 * mean * w2x + mean**2 * w2, 0.0) if math.isfinite(mean) else math.nan
        stderr = math.sqrt(m / (m - 1) * spread) / weight if m > 1 else math.nan
        found[name] = Estimate(mean, stderr, int(m))
    return found


def _joined(visits: list[_Visit], loss: float) -> dict[str, Tensor]:
    """The examples of all batches; L(θ) in place of losses that are not their own, and no score that a batch lacks."""
    found: dict[str, Tensor] = {}
    for name in visits[0].kept:
        parts = [part for visit in visits if (part := visit.kept.get(name)) is not None]
        if len(parts) == len(visits):
            found[name] = torch.cat(parts).cpu()
        elif name == "loss":
            found[name] = torch.tensor([loss], dtype=torch.float64)
    return found


def _agreeing(losses: Any, whole: float) -> Tensor | None:
    """The examples' losses in float64, or None where their mean is not the loss of the batch."""
    if losses is None:
        return None
    found = doubled(losses)
    mean = float(found.mean())
    if math.isfinite(mean) and abs(mean - whole) > AGREE * max(abs(whole), abs(mean)) + AGREE**2:
        return None
    return found
