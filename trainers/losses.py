"""Training losses: mean over the batch, hard labels in, optional smoothing."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Loss = Callable[[Any, Any], Tensor]
Convention = Literal["uniform", "others"]


def smoothed_targets(
    targets: Int[Tensor, " n"], classes: int, smoothing: float, *, convention: Convention = "uniform"
) -> Float[Tensor, "n k"]:
    """Soft targets.

    "uniform": (1 - s) e_y + s / K, as in torch's own cross-entropy. "others": 1 - s on the label, s / (K - 1) on each
    other class; with s this equals "uniform" with s K / (K - 1).
    """
    onehot = F.one_hot(targets, classes).to(torch.get_default_dtype())
    if convention == "uniform":
        return (1 - smoothing) * onehot + smoothing / classes
    return (1 - smoothing) * onehot + smoothing / (classes - 1) * (1 - onehot)


def cross_entropy(
    logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"],
    *,
    smoothing: float = 0.0,
    convention: Convention = "uniform",
) -> Float[Tensor, ""]:
    """Softmax cross-entropy, mean over the batch, in nats."""
    if smoothing and convention == "others":
        smoothing = smoothing * logits.shape[-1] / (logits.shape[-1] - 1)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def bce(
    logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"],
    *,
    smoothing: float = 0.0,
    convention: Convention = "uniform",
) -> Float[Tensor, ""]:
    """Binary cross-entropy with logits: sum over classes, mean over the batch."""
    soft = smoothed_targets(targets, logits.shape[-1], smoothing, convention=convention).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(-1).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "bce": bce}


def make_loss(name: str, *, smoothing: float = 0.0, convention: Convention = "uniform") -> Loss:
    """The training loss by name; plain cross-entropy is torch's own function."""
    if name == "cross_entropy" and smoothing == 0:
        return F.cross_entropy
    return partial(LOSSES[name], smoothing=smoothing, convention=convention)


def each(loss: Loss) -> Loss:
    """The loss of every example, shape (n,), from a loss that is a mean over examples.

    torch's cross-entropy and the losses here have forms of their own; any other is called on each example by itself,
    at once by `torch.vmap` where that goes.
    """
    if loss is F.cross_entropy:
        return partial(F.cross_entropy, reduction="none")
    if isinstance(loss, partial) and loss.func is cross_entropy:
        return partial(_each_cross_entropy, **loss.keywords)
    return partial(_each_by_itself, loss)


def _each_cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float, convention: Convention) -> Tensor:
    if smoothing and convention == "others":
        smoothing = smoothing * logits.shape[-1] / (logits.shape[-1] - 1)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")


def _each_by_itself(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    try:
        values: Tensor = torch.vmap(lambda o, t: loss(o[None], t[None]))(outputs, targets)
    except (RuntimeError, TypeError, ValueError):
        values = torch.stack([loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])
    return values
