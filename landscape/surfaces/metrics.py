"""What is evaluated at a point of a surface: means over examples, with their standard errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.batches import Batch, batch_size
from landscape.labels import errors, ignored_label, labelled
from landscape.risk import EmpiricalRisk
from landscape.scores import Function, doubled, errors_by_class, example_losses

BUILT_IN = ("loss", "error", "error by class")


@dataclass(frozen=True, eq=False)
class Metric:
    """One or several numbers for each example, whose mean is drawn.

    Attributes:
        columns: Names of the means, one a column.
        function: See `Function`.
        sampled: Whether the examples' numbers are their own, so that a standard error can be told.
        risk: Whether it is the risk itself, so that examples count by the risk's weights.
    """

    columns: tuple[str, ...]
    function: Function
    sampled: bool = True
    risk: bool = False


def resolve(
    metrics: Iterable[str] | Mapping[str, str | Function] | None,
    risk: EmpiricalRisk,
    outputs: Any,
    batch: Batch,
    *,
    whole: Sequence[Batch] | None = None,
) -> list[Metric]:
    """The metrics that were asked for, each tried on one batch.

    Args:
        metrics: Names of built-in ones ("loss", "error", "error by class"), or a mapping from names to functions of
            (outputs, targets), or to names of built-in ones; None means the loss, and the error where there are labels.
        risk: Gives the loss.
        outputs: The model's outputs on `batch`.
        batch: Some examples.
        whole: The batches on whose targets the loss is tried; None means `batch`.

    Raises:
        ValueError: If there is none, one is unknown or does not fit the data, or returns other shapes.
    """
    rows = labelled(outputs, batch[1])
    if metrics is None:
        metrics = ["loss", "error"] if rows else ["loss"]
    if isinstance(metrics, str):
        metrics = [metrics]
    asked: Mapping[str, str | Function] = metrics if isinstance(metrics, Mapping) else {name: name for name in metrics}
    if not asked:
        raise ValueError(f"`metrics` must name at least one of {list(BUILT_IN)}, or give a function; got none.")
    made = [_metric(name, what, risk, outputs, batch, whole or [batch], rows=rows) for name, what in asked.items()]
    columns = [c for metric in made for c in metric.columns]
    if len(set(columns)) < len(columns):
        raise ValueError(f"`metrics` would give {columns}: choose names that differ.")
    return made


def columns_of(
    metrics: Sequence[Metric], outputs: Any, targets: Any, weights: Tensor | None
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"] | None]:
    """All metrics of n examples side by side, in float64, and their weights where these are not all equal.

    Args:
        metrics: What to evaluate.
        outputs: Of n examples.
        targets: Of the same.
        weights: Of shape (n,), how the risk weighs its examples; None means alike.
    """
    values: list[Tensor] = []
    shares: list[Tensor | None] = []
    for metric in metrics:
        got = metric.function(outputs, targets)
        x, w = got if isinstance(got, tuple) else (got, weights if metric.risk else None)
        values.append(doubled(x.unsqueeze(-1) if x.ndim == 1 else x))
        shares.append(w if w is None or w.ndim == 2 else w.unsqueeze(-1))
    table = torch.cat(values, -1) if len(values) > 1 else values[0]
    if all(w is None for w in shares):
        return table, None
    filled = [
        torch.ones_like(x) if w is None else doubled(w).to(x.device).expand(x.shape)
        for x, w in zip(values, shares, strict=True)
    ]
    return table, torch.cat(filled, -1)


def _metric(
    name: str,
    what: str | Function,
    risk: EmpiricalRisk,
    outputs: Any,
    batch: Batch,
    whole: Sequence[Batch],
    *,
    rows: bool,
) -> Metric:
    if what == "loss":
        risk.loss_on(outputs, batch[1])
        each = example_losses(risk, outputs, *whole)
        return Metric((name,), each or _spread_loss(risk), sampled=each is not None, risk=True)
    if what in ("error", "error by class"):
        if not rows:
            raise ValueError(
                f"`metrics` has {what!r}, which needs outputs of shape (n, classes) and integer labels: leave it out, "
                "or give a function of (outputs, targets)."
            )
        ignored = ignored_label(risk.loss)
        if what == "error":
            return Metric((name,), partial(errors, ignored=ignored))
        parts = partial(errors_by_class, ignored=ignored)
        first = "error of class" if name == what else f"{name} of class"
        return Metric(tuple(f"{first} {c}" for c in range(outputs.shape[-1])), parts)
    if not callable(what):
        raise ValueError(f"`metrics` has {what!r}; built in are {list(BUILT_IN)}, others are given as functions.")
    got = what(outputs, batch[1])
    n = batch_size(batch)
    shapes = [tuple(t.shape) if isinstance(t, Tensor) else None for t in (got if isinstance(got, tuple) else (got,))]
    shape = shapes[0]
    found = shapes if shape else type(got).__name__
    if shape is None or len(shape) not in (1, 2) or any(s is None or s[0] != n for s in shapes) or len(shapes) > 2:
        raise ValueError(
            f"`metrics` has {name!r}, whose function must return one number for each of the {n} examples, a tensor of "
            f"shape (n,) or (n, k), or a pair of such values and weights; got {found}."
        )
    return Metric((name,) if len(shape) == 1 else tuple(f"{name} {i}" for i in range(shape[1])), what)


def _spread_loss(risk: EmpiricalRisk) -> Function:
    """The batch's loss in place of each example's: the right mean, without a standard error."""

    def function(outputs: Any, targets: Any) -> Tensor:
        n = len(outputs) if isinstance(outputs, Tensor) and outputs.ndim else batch_size((targets, outputs))
        return risk.loss(outputs, targets).reshape(()).expand(n)

    return function
