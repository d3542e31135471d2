"""Categorical predictions as a loss sees them: where their classes are, and how much each counts."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from landscape import labels
from landscape.labels import IGNORED, counted, ignored_label
from landscape.operators.point import pull

SUMS_TO_ZERO = 1e-3  # of the slopes' size: a cross-entropy's slopes along the classes, in float32
SAME = 1e-4
TINY = 1e-12  # of the largest: a prediction this certain has no curvature


def is_cross_entropy(loss: Any) -> bool:
    """Whether a loss is torch's cross-entropy, whatever its options."""
    if isinstance(loss, partial):
        return is_cross_entropy(loss.func)
    return isinstance(loss, nn.CrossEntropyLoss) or loss is torch.nn.functional.cross_entropy


def plain_cross_entropy(loss: Any) -> bool:
    """Whether a loss is torch's mean cross-entropy; label smoothing does not change its curvature."""
    if isinstance(loss, nn.CrossEntropyLoss):
        return loss.weight is None and loss.reduction == "mean" and loss.ignore_index == IGNORED
    return loss is torch.nn.functional.cross_entropy


def weighted(loss: Any, y: Any) -> bool:
    """Whether torch's cross-entropy is known not to weigh these labels alike."""
    if not is_cross_entropy(loss):
        return False
    options = loss.keywords if isinstance(loss, partial) else vars(loss) if isinstance(loss, nn.Module) else {}
    if options.get("weight") is not None or getattr(loss, "weight", None) is not None:
        return True
    whole = isinstance(y, Tensor) and not y.is_floating_point()
    return whole and bool(((y < 0) | (y == ignored_label(loss))).any())


def class_axis(function: Any, loss: Tensor, out: Tensor, y: Any) -> int:
    """The axis of the classes in outputs.

    Args:
        function: The loss function.
        loss: Its value, as a differentiable function of the outputs.
        out: The outputs.
        y: The targets.
    """
    if out.ndim < 3:
        return -1
    if labels.class_axis(function) == 1:
        return 1
    if isinstance(y, Tensor) and not y.is_floating_point():
        last, first = y.shape == out.shape[:-1], y.shape == out.shape[:1] + out.shape[2:]
        if last != first:
            return -1 if last else 1
    (slope,) = torch.autograd.grad(loss, [out], retain_graph=True)
    size = SUMS_TO_ZERO * float(slope.abs().max())
    sums = [float(slope.sum(axis).abs().max()) for axis in (-1, 1)]
    return 1 if sums[1] <= size < sums[0] else -1


def shares(function: Any, loss: Tensor, out: Tensor, y: Any, axis: int) -> tuple[Tensor, int]:
    """What each prediction counts for, as a column of one row a prediction, and a number to divide it by.

    The curvature of a weighted cross-entropy in the logits of prediction i is w_i (diag(p_i) - p_i p_iᵀ): w_i is read
    off one product with a random vector, where that fits; else predictions count alike whose labels are classes.

    Args:
        function: The loss function.
        loss: Its value, as a differentiable function of the outputs.
        out: The outputs.
        y: The targets.
        axis: Of the classes.
    """
    logits = (out.detach().reshape(1, -1) if out.ndim < 2 else out.detach()).movedim(axis, -1)
    rows = logits.reshape(-1, logits.shape[-1])
    whole = isinstance(y, Tensor) and not y.is_floating_point() and y.numel() == len(rows)
    known = whole and y.shape in (logits.shape[:-1], out.shape[:-1])
    if known and plain_cross_entropy(function):
        valid = (y.reshape(-1, 1) != IGNORED).to(rows)
        return valid, max(int(valid.sum()), 1)
    found = _weights(loss, out, rows, logits.shape, axis)
    if found is not None:
        valid = (found > 0).to(rows)
        n = max(int(valid.sum()), 1)
        alike = bool(((found * n - valid).abs() <= SAME).all())
        return (valid, n) if alike else (found, 1)
    if known:
        valid = counted(y.reshape(-1, 1), rows.shape[1], ignored_label(function)).to(rows)
    else:  # the loss knows: a prediction that it leaves out has slope zero
        (slope,) = torch.autograd.grad(loss, [out], retain_graph=True)
        slopes = slope.reshape(out.shape if out.ndim > 1 else (1, -1)).movedim(axis, -1).reshape(rows.shape)
        certain = rows.softmax(-1).amax(-1, keepdim=True) == 1  # counts, though its slope may be zero too
        valid = (slopes.any(-1, keepdim=True) | certain).to(rows)
    return valid, max(int(valid.sum()), 1)


def _weights(loss: Tensor, out: Tensor, rows: Tensor, shape: torch.Size, axis: int) -> Tensor | None:
    """w_i, or None where the loss is no weighted cross-entropy."""
    source = torch.Generator().manual_seed(0)
    u = torch.randn(rows.shape, generator=source, dtype=torch.float64).to(rows)
    try:
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss, [out], create_graph=True, retain_graph=True)
        tangent = u.reshape(shape).movedim(-1, axis).reshape(out.shape)
        image = pull(slopes, [out], [tangent])[0]
    except RuntimeError:  # a loss without second derivatives
        return None
    found = (image if image.ndim > 1 else image.reshape(1, -1)).movedim(axis, -1).reshape(rows.shape)
    p = rows.softmax(-1)
    model = p * u - p * (p * u).sum(-1, keepdim=True)
    square = model.square().sum(-1, keepdim=True)
    w = torch.where(square > TINY * square.max(), (found * model).sum(-1, keepdim=True) / square, 0.0)
    largest = float(found.abs().max())
    off = float((found - w * model).abs().max())
    if not largest > 0 or not off <= torch.finfo(rows.dtype).eps ** 0.5 * largest or bool((w < -SAME * w.max()).any()):
        return None
    return torch.where(w > SAME * SAME * w.max(), w, 0.0)
