"""A trial of a risk on a few examples: is the loss a loss, can it be differentiated twice, and what would that take."""

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from landscape.batches import Batch, batch_size, can_be_cut, slice_batch, take
from landscape.checks.repeatability import EXAMPLES, REPEAT, REPEATS, cause, require_same, undrawn
from landscape.kernels import lacks_second_derivative, second_derivatives, severed_by
from landscape.operators.derivatives import lowest_precision
from landscape.operators.point import Point, pull
from landscape.risk import scalar

ROUNDINGS = 100  # of the least precise type in the model or the loss
ORDERS = 100  # another order of the examples may differ by so many times as much: sums round differently


@dataclass(frozen=True, eq=False)
class Trial:
    """What was learnt from a few examples.

    Attributes:
        lacking: Operation of the model that has no second derivative; None if all have.
        bytes_each: Memory of a twice differentiable graph for one example.
        bytes_fixed: The part of it that does not grow with the examples.
        few: Some of the examples.
    """

    lacking: str | None
    bytes_each: float
    bytes_fixed: float
    few: Batch

    @classmethod
    def of(cls, point: Point, *, checks: bool) -> "Trial":
        """Try a risk at a point.

        Args:
            point: Where.
            checks: Whether to ask the loss twice, and in another order.

        Raises:
            ValueError: If the loss is not one number, changes when asked twice, or depends on the examples' order.
        """
        with second_derivatives(), undrawn():
            return cls._made(point, checks)

    @classmethod
    def _made(cls, point: Point, checks: bool) -> "Trial":
        risk = point.risk
        batch = point.batch(next(compress(risk.batches, risk.shares), None) or risk.batches[0])
        few, fewer = _parts(point, batch)
        if checks:
            require_same(lambda: _value(point, few), point.dtype, cause(point.risk, probe=True))
            _require_no_order(point, few)
        try:
            more = _weighed(point, few)
            less = more if fewer is None else _weighed(point, fewer)
        except Exception as error:
            lacking = error.operation if isinstance(error, _SeveredError) else lacks_second_derivative(error)
            if lacking is None:
                raise
            return cls(lacking, 0.0, 0.0, few if fewer is None else fewer)
        n, m = batch_size(few), 0 if fewer is None else batch_size(fewer)
        each = max(more - less, 0) / (n - m) if m else more / n
        fixed = max(more - n * each, 0.0) + 2 * point.row_bytes
        return cls(None, each, fixed, few if fewer is None else fewer)

    def graph_bytes(self, sizes: Sequence[int]) -> int:
        """Estimated memory of the graphs of batches of these sizes."""
        return int(sum(self.bytes_fixed + self.bytes_each * n for n in sizes))

    def examples_within(self, allowed: float) -> int:
        """Examples whose graph is estimated to fit in so many bytes; at least 1."""
        return max(1, int((allowed - self.bytes_fixed) / max(self.bytes_each, 1.0)))


def _parts(point: Point, batch: Batch) -> tuple[Batch, Batch | None]:
    """A few examples of a batch, and half of them; the whole batch if the model takes no other."""
    n = batch_size(batch)
    few = slice_batch(batch, 0, EXAMPLES) if n > EXAMPLES and can_be_cut(batch) else batch
    if few is not batch:
        try:
            value = point.risk.findings.without_graph(lambda: point.loss(few))
        except Exception:
            return batch, None
        if not math.isfinite(scalar(value)):  # all of their targets are ignored, say
            few = batch
    k = batch_size(few)
    if k < 2 or not can_be_cut(few):
        return few, None
    fewer = slice_batch(few, 0, k // 2)
    try:
        finite = math.isfinite(_value(point, fewer))
    except Exception:  # one example alone has no batch statistics
        return few, None
    return few, fewer if finite else None


def _value(point: Point, batch: Batch) -> float:
    return point.risk.findings.without_graph(lambda: scalar(point.loss(batch)))


def _require_no_order(point: Point, batch: Batch) -> None:
    n = batch_size(batch)
    if n < 2 or not can_be_cut(batch):
        return
    other = take(batch, torch.arange(n - 1, -1, -1))
    tolerance = max(ORDERS * REPEATS.get(point.dtype, REPEAT), 10 * torch.finfo(point.dtype).eps)
    first, second = _value(point, batch), _value(point, other)
    largest = max(abs(first), abs(second))
    if abs(first - second) > tolerance * largest:  # two NaN are reported by the product
        tolerance = max(tolerance, ROUNDINGS * torch.finfo(lowest_precision(point, batch)).eps)
    if abs(first - second) > tolerance * largest and largest > tolerance:
        raise ValueError(
            f"`loss` depends on the order of the examples in a batch ({first:.9g}, and {second:.9g} in reverse): it "
            "must be the mean of one number for each example; or pass probe=False."
        )


class _SeveredError(RuntimeError):
    """A second derivative would silently lack a part."""

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} has no second derivative")
        self.operation = operation


def _weighed(point: Point, batch: Batch, *, counted: bool = True) -> int:
    """Bytes that a graph of the gradient holds, counted while one is built and differentiated; 0 if not counted."""
    own = {t.untyped_storage().data_ptr() for t in [*point.leaves, *point.fixed.values()]}
    seen: dict[int, int] = {}
    store: list[Tensor] = []

    def pack(t: Tensor) -> int:
        if t.layout == torch.strided:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
        store.append(t)
        return len(store) - 1

    hooks: Any = torch.autograd.graph.saved_tensors_hooks(pack, store.__getitem__) if counted else nullcontext()
    try:
        with warnings.catch_warnings(), torch.enable_grad(), hooks:
            warnings.simplefilter("ignore")
            loss = point.loss(batch)
            scalar(loss)
            if not loss.requires_grad:  # a subset of parameters that the loss does not use
                return 0
            grads = torch.autograd.grad(loss, point.leaves, create_graph=True, materialize_grads=True)
            cut = severed_by([loss, *grads])
            if cut is not None:
                raise _SeveredError(cut)
            pull(grads, point.leaves, [torch.ones_like(g) for g in grads], keep=False)
        return sum(seen.values())
    except RuntimeError as error:  # of models that differentiate by torch.func
        if not counted or "saved tensor hooks" not in str(error):
            raise
        return _weighed(point, batch, counted=False)
    finally:
        store.clear()  # tensors that hold the graph that holds them
