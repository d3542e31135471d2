"""The Hessian of a risk, and the paths of its products."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from landscape.batches import Batch
from landscape.kernels import math_attention, second_derivatives
from landscape.operators.curvature import RiskOperator, RowMap
from landscape.operators.point import Point, by_direction, forward_mode, pull, row
from landscape.params import unflatten
from landscape.risk import scalar


@final
class Hessian(RiskOperator):
    """The Hessian H = ∇²L(θ) of a risk.

    Paths of a product H v, with costs in gradients as measured on convolutional networks and transformers:

    - "kept": the graph of ∇L is built once, and ⟨∇L, v⟩ differentiated for each product (1.8 to 2.1);
    - "afresh": the graph is built for each product, batch by batch (2.8 to 3.3);
    - "forward": the directional derivative of ∇L by forward over reverse mode (3.7 to 4.3);
    - "difference": (∇L(θ + h u) - ∇L(θ - h u)) ‖v‖ / 2h with u = v/‖v‖ and h = ε^(1/3) max(1, ‖θ‖), with whatever
      kernels the model uses (1.8 to 2.3). Its relative error is about 1e-10 in float64, 1e-5 to 1e-3 in float32; a
      network with kinks has curvature at them which the other paths do not see.

    "auto" takes the first of "kept" and "afresh" that fits the memory, and "difference", with a warning, for a model
    with a kernel that has no second derivative. Attention goes through kernels of our own, see `landscape.kernels`.

    Args, attributes and errors are those of `RiskOperator`.

    Source:
        Pearlmutter (1994), Neural Comput. 6(1), for the product.
    """

    paths: ClassVar[tuple[str, ...]] = ("kept", "afresh", "forward", "difference")

    of_gradient: ClassVar[bool] = True
    differenced: ClassVar[str] = "products are finite differences of the gradient"
    _slope: Tensor | None = None  # the gradient, where the graph of it is kept; this process's part

    def guess(self) -> Tensor:
        """∇L(θ), of shape (p,), where `top_eigenpairs` starts: without cost if the path is "kept"."""
        if self._slope is None:
            return super().guess()
        ranks = self.point.risk.ranks
        return self._slope if ranks is None else ranks.sum_(self._slope.clone())

    def _map(self, i: int, batch: Batch, path: str) -> RowMap:
        if path == "forward":
            return _forward(self.point, batch)
        if path == "difference":
            return self._differenced(i, batch)
        product, grads = double_backward(self.point, batch, keep=path == "kept")
        share = self.point.risk.shares[i]
        if path == "kept" and share:
            slope = row([g.detach() for g in grads]) * share
            self._slope = slope if self._slope is None else self._slope.add_(slope)
        return product

    def _differenced(self, i: int, batch: Batch, step: float | None = None) -> RowMap:  # noqa: ARG002
        return gradient_difference(self.point, batch, step)


def double_backward(point: Point, batch: Batch, *, keep: bool) -> tuple[RowMap, Sequence[Tensor]]:
    """The map of rows, and the gradient."""
    with torch.enable_grad(), second_derivatives():
        loss = point.loss(batch)
        scalar(loss)
        if not loss.requires_grad:  # a subset of parameters that the loss does not use
            return torch.zeros_like, [torch.zeros_like(t) for t in point.leaves]
        grads = torch.autograd.grad(loss, point.leaves, create_graph=True, materialize_grads=True)

    def product(rows: Tensor) -> Tensor:
        out, last = torch.empty_like(rows), len(rows) - 1
        with second_derivatives():
            for i, v in enumerate(rows):
                row(pull(grads, point.leaves, point.cut(v), keep=keep or i < last), out=out[i])
        return out

    return product, grads


def _forward(point: Point, batch: Batch) -> RowMap:
    fixed = point.fixed

    def loss(theta: dict[str, Tensor]) -> Tensor:
        return point.risk.loss(point.risk.predict({**fixed, **theta}, batch[0]), batch[1])

    theta = {name: t.detach() for name, t in point.theta.items()}

    def along(v: Tensor, gradient: Callable[..., dict[str, Tensor]]) -> Tensor:
        with math_attention(), forward_mode():
            return row(list(torch.func.jvp(gradient, (theta,), (unflatten(v, theta),))[1].values()))

    ways = [torch.func.grad(loss), torch.func.jacrev(loss)]  # by vmap, squared and Huber losses have a derivative too

    def product(rows: Tensor) -> Tensor:
        try:
            return torch.stack([along(v, ways[0]) for v in rows])
        except ValueError:
            if len(ways) == 1:
                raise
            del ways[0]
            return product(rows)

    return product


def gradient_difference(point: Point, batch: Batch, step: float | None = None) -> RowMap:
    """The map of rows by central differences of the gradient; a step of None is the usual one."""
    theta = {name: t.detach() for name, t in point.theta.items()}
    if step is None:
        size = math.sqrt(math.fsum(float(t.double().square().sum()) for t in theta.values()))
        step = torch.finfo(point.dtype).eps ** (1 / 3) * max(1.0, size)

    def gradient(shift: list[Tensor], h: float) -> Tensor:
        moved = {name: (t + h * u).requires_grad_() for (name, t), u in zip(theta.items(), shift, strict=True)}
        with torch.enable_grad():
            loss = point.risk.loss(point.risk.predict({**point.fixed, **moved}, batch[0]), batch[1])
        if not loss.requires_grad:
            return torch.zeros(point.p, dtype=point.dtype, device=point.device)
        return row(torch.autograd.grad(loss, list(moved.values()), materialize_grads=True))

    def along(unit: list[Tensor], length: float) -> Tensor:
        return (gradient(unit, step) - gradient(unit, -step)) * (length / (2 * step))

    return lambda rows: by_direction(point, rows, along)
