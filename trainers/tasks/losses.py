"""Training losses: mean over the batch, labels or soft targets in, optional smoothing and weights of classes."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trainers.sharpness_aware.example_losses import CrossEntropy, ExampleLosses
from trainers.sharpness_aware.example_losses import Loss as Loss

Convention = Literal["uniform", "others"]
Reduction = Literal["mean", "none"]
Targets = Int[Tensor, " n"] | Float[Tensor, "n k"]  # labels, or a share of each class where examples are mixed


def smoothed_targets(
    targets: Targets, classes: int, smoothing: float, *, convention: Convention = "uniform"
) -> Float[Tensor, "n k"]:
    """Soft targets, of labels or of targets that are soft already, with e_y for what these are.

    "uniform": (1 - s) e_y + s / K, as in torch's own cross-entropy. "others": 1 - s on the label, s / (K - 1) on each
    other class; with s this equals "uniform" with s K / (K - 1).
    """
    soft = targets.is_floating_point()
    onehot = targets if soft else F.one_hot(targets, classes).to(torch.get_default_dtype())
    if convention == "uniform":
        return (1 - smoothing) * onehot + smoothing / classes
    return (1 - smoothing) * onehot + smoothing / (classes - 1) * (1 - onehot)


def cross_entropy(
    logits: Float[Tensor, "n k"],
    targets: Targets,
    *,
    smoothing: float = 0.0,
    convention: Convention = "uniform",
    weight: Float[Tensor, " k"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    """Softmax cross-entropy in nats, mean over the batch, or of each example.

    `weight` is torch's: each class's term of an example's soft target is multiplied by the class's weight, and the mean
    is over the sum of the labels' weights. The loss of an example alone, which has no such mean, is w_y times its own.
    """
    given = _torch_smoothing(logits, smoothing, convention)
    weight = None if weight is None else weight_on(logits, weight)
    return F.cross_entropy(logits, targets, weight=weight, label_smoothing=given, reduction=reduction)


def bce(
    logits: Float[Tensor, "n k"],
    targets: Targets,
    *,
    smoothing: float = 0.0,
    convention: Convention = "uniform",
    weight: Float[Tensor, " k"] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*n"]:
    """Binary cross-entropy with logits: sum over classes, mean over the batch, or of each example.

    With `weight` an example counts as its label's class does: Σ w_y ℓ / Σ w_y, or w_y ℓ of each.
    """
    soft = smoothed_targets(targets, logits.shape[-1], smoothing, convention=convention).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(-1)
    if weight is None:
        return each.mean() if reduction == "mean" else each
    counts = weight_on(logits, weight)[targets]
    return (counts * each).sum() / counts.sum() if reduction == "mean" else counts * each


def weight_on(logits: Tensor, weight: Tensor) -> Tensor:
    """Weights of classes on the device of logits and in their precision, float32 at least."""
    return weight.to(logits.device, logits.dtype if logits.dtype == torch.float64 else torch.float32)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "bce": bce}


def make_loss(
    name: str, *, smoothing: float = 0.0, convention: Convention = "uniform", weight: Tensor | None = None
) -> Loss:
    """The training loss by name; plain cross-entropy is torch's own function."""
    if weight is not None:
        return partial(LOSSES[name], smoothing=smoothing, convention=convention, weight=weight)
    if name == "cross_entropy" and smoothing == 0:
        return F.cross_entropy
    return partial(LOSSES[name], smoothing=smoothing, convention=convention)


def each(loss: Loss) -> ExampleLosses:
    """The loss of every example, shape (n,), with the loss as their mean."""
    known = isinstance(loss, partial) and not loss.args
    function: Any = loss.func if isinstance(loss, partial) and known else loss
    given = loss.keywords if isinstance(loss, partial) and known else {}
    settings: CrossEntropy | None = None
    if type(loss) is nn.CrossEntropyLoss:
        names = ("weight", "ignore_index", "label_smoothing", "reduction")
        settings = lambda _: {name: getattr(loss, name) for name in names}  # noqa: E731
    elif function is F.cross_entropy and not given.keys() & {"size_average", "reduce"}:
        settings = lambda _: given  # noqa: E731
    elif function is cross_entropy:
        settings = partial(_torch_settings, **given)
    return ExampleLosses(loss, cross_entropy=settings, plain=function is bce and given.get("weight") is None)


def _torch_settings(logits: Tensor, *, weight: Tensor | None = None, **smoothing: Any) -> dict[str, Any]:
    """The arguments of torch's cross-entropy that `cross_entropy` stands for."""
    settings: dict[str, Any] = {"label_smoothing": _torch_smoothing(logits, **smoothing)}
    return settings if weight is None else settings | {"weight": weight_on(logits, weight)}


def _torch_smoothing(logits: Tensor, smoothing: float = 0.0, convention: Convention = "uniform") -> float:
    """The smoothing, in torch's convention."""
    others = smoothing and convention == "others"
    return smoothing * logits.shape[-1] / (logits.shape[-1] - 1) if others else smoothing
