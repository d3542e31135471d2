"""Numbers of single examples: their losses, where a loss is a mean of them; their errors; means and standard errors."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from landscape.batches import Batch, batch_size, map_tensors, slice_batch, tensors
from landscape.checks.additivity import plain_mean
from landscape.labels import IGNORED, wrong
from landscape.risk import EmpiricalRisk, scalar

Function = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]
"""Maps (outputs, targets) of n examples to values of shape (n,) or (n, k), or to a pair (values, weights)."""

AGREEMENT = 1e-4  # relative, between a batch's loss and the mean of its examples' losses, in float32


def mean_and_stderr(
    values: Float[Tensor, "*k n c"], weights: Tensor | None = None
) -> tuple[Float[Tensor, "*k c"], Float[Tensor, "*k c"]]:
    """The weighted mean over n examples and its standard error, in float64.

    v = Σ w_i x_i / Σ w_i, and s = √(m / (m - 1) Σ w_i² (x_i - v)²) / Σ w_i with m the number of weights above 0: for
    equal weights the usual standard deviation over √n, for 0 and 1 that of the chosen examples, otherwise that of a
    ratio estimate by linearisation. It takes the examples as an independent sample of what they stand for.

    Args:
        values: x; an example of weight 0 may have any value.
        weights: w >= 0, of the same shape; None means equal ones.

    Returns:
        v and s; s is NaN for fewer than two examples, and where a value is not finite.

    Source:
        Cochran (1977), "Sampling techniques", sec. 6.3, for the ratio estimate; with m for n it is our choice.
    """
    x = values.double()
    n = x.shape[-2]
    if weights is None:
        mean = x.mean(-2)
        if n < 2:
            return mean, torch.full_like(mean, math.nan)
        return mean, x.std(-2) / math.sqrt(n)
    w = weights.double()
    total, count = w.sum(-2), (w > 0).double().sum(-2)
    mean = torch.where(w > 0, w * x, 0.0).sum(-2) / total
    squares = torch.where(w > 0, (w * (x - mean.unsqueeze(-2))).square(), 0.0).sum(-2)
    stderr = (squares * count / (count - 1)).sqrt() / total
    return mean, torch.where(count > 1, stderr, math.nan)


def errors_by_class(outputs: Tensor, targets: Tensor, *, ignored: int = IGNORED) -> tuple[Tensor, Tensor]:
    """`wrong` for each class, with weight 1 for the class's own examples and 0 for others."""
    classes = torch.arange(outputs.shape[-1], device=targets.device)
    own = (targets.unsqueeze(-1) == classes).double() * (targets != ignored).unsqueeze(-1)
    return wrong(outputs, targets).unsqueeze(-1).expand(own.shape), own


def example_losses(risk: EmpiricalRisk, outputs: Any, *batches: Batch) -> Function | None:
    """The loss of each example, as a function of (outputs, targets), where the loss is a mean over examples.

    torch's own losses are asked for without reduction; any other is given the examples one at a time by vmap. Either is
    tried on the batches' targets, where the mean must be the batch's loss.

    Args:
        risk: Gives the loss, and the weights of batches.
        outputs: The model's on some examples; they stand in for those of others.
        batches: Batches, whose targets are used; of one of torch's own means the first is enough.

    Returns:
        The function, or None if the loss cannot be had by example.
    """
    if not any(t.ndim for t in tensors(outputs)):
        return None
    if risk.weight is None and plain_mean(risk.loss, batches):
        batches = batches[:1]

    def one(out: Any, y: Any) -> Tensor:
        return risk.loss(*(map_tensors(lambda t: t.unsqueeze(0), part) for part in (out, y)))

    def each(out: Any, y: Any) -> Tensor:
        return torch.func.vmap(one)(out, y).reshape(-1)

    own = _without_reduction(risk.loss)
    for function in (each,) if own is None else (own, each):
        if _averages(risk, function, outputs, batches[0]) is True and not any(
            _averages(risk, function, outputs, batch) is False for batch in batches[1:]
        ):
            return function
    return None


def _averages(risk: EmpiricalRisk, function: Function, outputs: Any, batch: Batch) -> bool | None:
    """Whether a batch's loss is the mean of a function's values, at outputs like these; None: not told."""
    n = batch_size(batch)
    weights = example_weights(risk, batch)
    if weights is None:
        return False
    some = next(len(t) for t in tensors(outputs) if t.ndim)
    rows = torch.arange(n) % some
    like = map_tensors(lambda t: t[rows.to(t.device)] if t.ndim and len(t) == some else t, outputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as that vmap falls back to a loop
            found = function(like, batch[1])
            whole = scalar(risk.loss(like, batch[1]))
    except Exception:  # a loss may need whatever vmap has not: a batch's statistics, a branch, its own output type
        return None
    if not (isinstance(found, Tensor) and found.shape == (n,)):
        return False
    mean = float(mean_and_stderr(found[:, None], doubled(weights[:, None]).to(found.device))[0])
    near = AGREEMENT if found.dtype != torch.float64 else 1e-9
    return abs(mean - whole) <= near * max(abs(whole), 1.0) or not math.isfinite(whole)


def example_weights(risk: EmpiricalRisk, batch: Batch) -> Float[Tensor, " n"] | None:
    """Each example's share of the batch's weight; None where they do not add up to it."""
    n = batch_size(batch)
    if risk.weight is None:
        return torch.ones(n, dtype=torch.float64)
    whole = float(risk.weight(*batch))
    parts = [float(risk.weight(*slice_batch(batch, i, i + 1))) for i in range(n)]
    return torch.tensor(parts, dtype=torch.float64) if math.isclose(math.fsum(parts), whole, rel_tol=1e-9) else None


def doubled(x: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def _without_reduction(loss: Any) -> Function | None:
    """One of torch's own mean losses as a function that gives each example its loss."""
    bare: Any
    known = callable(loss) and getattr(F, getattr(loss, "__name__", ""), None) is loss
    if isinstance(loss, nn.modules.loss._Loss) and loss.reduction == "mean":
        bare = copy.copy(loss)
        bare.reduction = "none"
    elif known and "reduction" in inspect.signature(loss).parameters:
        bare = partial(loss, reduction="none")
    else:
        return None

    def each(out: Any, y: Any) -> Tensor:
        found: Tensor = bare(out, y)
        return found if found.ndim == 1 else found.flatten(1).mean(1)

    return each
