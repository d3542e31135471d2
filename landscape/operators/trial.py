"""A trial of a risk on a few examples: is the loss a loss, can it be differentiated twice, and what would that take."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.batches import Batch, batch_size, can_be_cut, slice_batch, take
from landscape.functional import PureModel
from landscape.kernels import lacks_second_derivative, second_derivatives, severed_by
from landscape.operators.point import Point, pull, row
from landscape.risk import scalar

EXAMPLES = 8  # in the trial
REPEATS = {torch.float64: 1e-12}  # relative difference of two evaluations that passes; of the others:
REPEAT = 1e-6
ORDERS = 100  # another order of the examples may differ by so many times as much: sums round differently


@dataclass(frozen=True, eq=False)
class Trial:
    """What was learnt from a few examples.

    Attributes:
        lacking: Operation of the model that has no second derivative; None if all have.
        bytes_each: Memory of a twice differentiable graph for one example.
        bytes_fixed: The part of it that does not grow with the examples.
        averages: Whether the loss of a batch is the weighted mean of the losses of its parts.
    """

    lacking: str | None
    bytes_each: float
    bytes_fixed: float
    averages: bool

    @classmethod
    def of(cls, point: Point, *, checks: bool) -> "Trial":
        """Try a risk at a point.

        Args:
            point: Where.
            checks: Whether to ask the loss twice, and in another order.

        Raises:
            ValueError: If the loss is not one number, changes when asked twice, or depends on the examples' order.
        """
        with second_derivatives():
            return cls._made(point, checks)

    @classmethod
    def _made(cls, point: Point, checks: bool) -> "Trial":
        batch = point.batch(point.risk.batches[0])
        few, fewer = _parts(point, batch)
        if checks:
            _require_repeatable(point, few)
            _require_no_order(point, few)
        try:
            more, first = _weighed(point, few)
            less = more if fewer is None else _weighed(point, fewer)[0]
            second = _weighed(point, few)[1] if checks else first
        except Exception as error:
            lacking = error.operation if isinstance(error, _SeveredError) else lacks_second_derivative(error)
            if lacking is None:
                raise
            return cls(lacking, 0.0, 0.0, True)
        _require_same_product(point, first, second)
        n, m = batch_size(few), 0 if fewer is None else batch_size(fewer)
        each = max(more - less, 0) / (n - m) if m else more / n
        fixed = max(more - n * each, 0.0) + 2 * point.row_bytes
        averages = not checks or fewer is None or _averages(point, few, n // 2)
        if not averages and len(set(point.risk.sizes)) > 1 and point.risk.mode in ("eval", "recalibrate"):
            raise ValueError(
                "`loss` of a batch is not the mean of the losses of its parts, weighted by their sizes, so batches of "
                "different sizes cannot be put together: use reduction='mean', or give `weight`, such as the number "
                "of tokens of a batch."
            )
        return cls(None, each, fixed, averages)

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
            value = point.risk.look.without_graph(lambda: point.loss(few))
        except Exception:
            return batch, None
        scalar(value)
    k = batch_size(few)
    if k < 2 or not can_be_cut(few):
        return few, None
    fewer = slice_batch(few, 0, k // 2)
    try:
        _value(point, fewer)
    except Exception:  # one example alone has no batch statistics
        return few, None
    return few, fewer


def _value(point: Point, batch: Batch) -> float:
    return point.risk.look.without_graph(lambda: scalar(point.loss(batch)))


def _differ(a: float, b: float, relative: float) -> bool:
    return abs(a - b) > relative * max(abs(a), abs(b))  # two NaN do not differ: they are reported by the product


def _require_repeatable(point: Point, batch: Batch) -> None:
    first, second = _value(point, batch), _value(point, batch)
    if not _differ(first, second, REPEATS.get(point.dtype, REPEAT)):
        return
    raise ValueError(
        f"`risk` is not a function of its parameters: the same examples gave {first:.9g} and then {second:.9g}; "
        f"{_cause(point)}."
    )


def _require_same_product(point: Point, first: Tensor, second: Tensor) -> None:
    length, apart = float(torch.linalg.vector_norm(first)), float(torch.linalg.vector_norm(first - second))
    if apart > 10 * REPEATS.get(point.dtype, REPEAT) * length:
        raise ValueError(
            f"`risk` has second derivatives that change: a product differed by {apart / length:.2g} of its length "
            f"when taken twice; {_cause(point)}."
        )


def _cause(point: Point) -> str:
    predict = point.risk.predict
    if isinstance(predict, PureModel) and predict.random_layers:
        return f"the dropout layers {predict.random_layers} are on, because mode={predict.mode!r}: use mode='eval'"
    return (
        "something in the model or the loss draws random numbers, or its kernels are not deterministic: see "
        "torch.use_deterministic_algorithms, or pass probe=False"
    )


def _require_no_order(point: Point, batch: Batch) -> None:
    n = batch_size(batch)
    if n < 2 or not can_be_cut(batch):
        return
    other = take(batch, torch.arange(n - 1, -1, -1))
    tolerance = max(ORDERS * REPEATS.get(point.dtype, REPEAT), 10 * torch.finfo(point.dtype).eps)
    first, second = _value(point, batch), _value(point, other)
    if _differ(first, second, tolerance) and max(abs(first), abs(second)) > tolerance:
        raise ValueError(
            f"`loss` depends on the order of the examples in a batch ({first:.9g}, and {second:.9g} in reverse): it "
            "must be the mean of one number for each example."
        )


def _averages(point: Point, batch: Batch, half: int) -> bool:
    """Whether the loss of a batch is the weighted mean of those of its two parts."""
    parts = [slice_batch(batch, 0, half), slice_batch(batch, half, batch_size(batch))]
    weight = point.risk.weight
    weights = [float(batch_size(b)) if weight is None else float(weight(*b)) for b in parts]
    whole, values = _value(point, batch), [_value(point, b) for b in parts]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if sum(weights) else whole
    return not _differ(whole, mean, 1e-3) or abs(whole - mean) < 1e-3 * max(map(abs, values))


class _SeveredError(RuntimeError):
    """A second derivative would silently lack a part."""

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} has no second derivative")
        self.operation = operation


def _weighed(point: Point, batch: Batch) -> tuple[int, Tensor]:
    """Bytes that a graph of the gradient holds, counted while one is built; and a product, from differentiating it."""
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

    hooks: Callable[..., Any] = torch.autograd.graph.saved_tensors_hooks
    try:
        with warnings.catch_warnings(), torch.enable_grad(), hooks(pack, store.__getitem__):
            warnings.simplefilter("ignore")
            loss = point.loss(batch)
            scalar(loss)
            if not loss.requires_grad:  # a subset of parameters that the loss does not use
                return 0, torch.zeros(1, dtype=point.dtype, device=point.device)
            grads = torch.autograd.grad(loss, point.leaves, create_graph=True, materialize_grads=True)
            cut = severed_by([loss, *grads])
            if cut is not None:
                raise _SeveredError(cut)
            product = row(pull(grads, point.leaves, [torch.ones_like(g) for g in grads], keep=False))
        return sum(seen.values()), product
    finally:
        store.clear()  # tensors that hold the graph that holds them
