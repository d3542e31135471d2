"""Gradients of single examples, or of many chunks of data, at one point."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.batches import Batch, batch_size, by_example, map_tensors, slice_batch
from landscape.kernels import math_attention
from landscape.params import Params
from landscape.precision import own_precision
from landscape.risk import EmpiricalRisk

if TYPE_CHECKING:
    from landscape.operators.point import Point

CHUNK_BYTES = 64 * 2**20  # per-example gradients held at once, as rows
CACHE_BYTES = 16 * 2**20  # held at once where they are only read through: more leaves the cache


def chunk_gradients(
    risk: EmpiricalRisk, theta: Params, x: Any, y: Any, fixed: Params | None = None
) -> tuple[Params, Tensor]:
    """Gradients and losses of many equal chunks of data at one θ, by vmap.

    Args:
        risk: Gives the model and the loss.
        theta: Parameters to differentiate by.
        x: Inputs, every tensor of shape (chunks, examples, ...).
        y: Targets, likewise.
        fixed: Parameters to hold.

    Returns:
        Gradients, each of shape (chunks, *parameter's shape), and losses of shape (chunks,).
    """
    held = fixed or {}

    def loss(point: Params, x: Any, y: Any) -> Tensor:
        return risk.loss(risk.predict({**held, **point}, x), y)

    point = {name: t.detach() for name, t in theta.items()}
    with own_precision(), math_attention():
        grads, losses = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(None, 0, 0))(point, x, y)
    return grads, losses


def example_gradients(point: "Point", batch: Batch) -> Iterable[Tensor]:
    """Per-example gradients of a batch, as rows of shape (some, p), 64 MiB at a time."""
    for parts in example_gradient_parts(point, batch, limit=CHUNK_BYTES):
        yield torch.cat(parts, dim=1)


def example_gradient_parts(point: "Point", batch: Batch, *, limit: int | None = None) -> Iterator[list[Tensor]]:
    """Per-example gradients of a batch, for each parameter a matrix of shape (some, its entries), a few at a time.

    Unlike `example_gradients` it copies nothing, for those who read through them once.

    Args:
        point: Where, and by which parameters.
        batch: The examples.
        limit: Bytes of gradients held at once; None means 16 MiB.
    """
    step = max(1, (CACHE_BYTES if limit is None else limit) // point.row_bytes)
    size = batch_size(batch)
    for start in range(0, size, step):
        yield _parts(point, slice_batch(batch, start, min(start + step, size)))


def _parts(point: "Point", batch: Batch) -> list[Tensor]:
    try:
        if not by_example(batch):
            raise TypeError("examples that cannot be stacked")
        x, y = (map_tensors(lambda t: t.unsqueeze(1), part) for part in batch)
        grads, losses = chunk_gradients(point.risk, point.theta, x, y, point.fixed)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # not every model can be vmapped
        return _one_by_one(point, batch)
    _require_losses(losses, point, batch)
    return [g.flatten(1) for g in grads.values()]


def _one_by_one(point: "Point", batch: Batch) -> list[Tensor]:
    rows: list[tuple[Tensor, ...]] = []
    losses = []
    for i in range(batch_size(batch)):
        with own_precision(), torch.enable_grad():
            loss = point.loss(slice_batch(batch, i, i + 1))
            each = torch.autograd.grad(loss, point.leaves, materialize_grads=True)
        losses.append(loss.detach())
        rows.append(tuple(g.reshape(-1) for g in each))
    _require_losses(torch.stack(losses), point, batch)
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _require_losses(losses: Tensor, point: "Point", batch: Batch) -> None:
    """Check that every example has a loss of its own: the mean over no targets is none."""
    missing = losses.isnan()
    if not bool(missing.any()):
        return
    with torch.no_grad():
        whole = float(point.loss(batch))
    if whole == whole:
        raise ValueError(
            f"`risk` has {int(missing.sum())} examples without a loss of their own, because all their targets are "
            "ignored, so they have no gradient: leave them out of the data."
        )
