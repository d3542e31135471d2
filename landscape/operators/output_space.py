"""Matrices Σ_i J_iᵀ B_i J_i, with J_i the Jacobian of the outputs for example i: Gauss-Newton and Fisher matrices."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from landscape.batches import Batch, cut_off, tensors
from landscape.kernels import math_attention, second_derivatives
from landscape.operators.curvature import RiskOperator, RowMap
from landscape.operators.point import by_direction, forward_mode, pull, row
from landscape.risk import scalar

Outputs = list[Tensor]
OutputMap = Callable[[Outputs], Outputs]  # from tangents of the outputs to cotangents


class OutputSpaceOperator(RiskOperator):
    """An operator Jᵀ B J, with B block-diagonal over examples and symmetric.

    A product is a Jacobian product u = J v, then B u, then the transpose Jᵀ. Paths, with costs in gradients:

    - "kept": the graph of Jᵀ is kept, and J v differentiates it by its seed (1.4 to 1.7);
    - "afresh": the same graph built for each product (2.5 to 3);
    - "forward": J v by forward mode in the pass that also builds the graph of Jᵀ (about 2; one output tensor only);
    - "difference": J v = (f(θ + h u) - f(θ - h u)) ‖v‖ / 2h, for models whose kernels can do neither.
    """

    paths: ClassVar[tuple[str, ...]] = ("kept", "afresh", "forward", "difference")
    differenced: ClassVar[str] = "Jacobian products are finite differences of the outputs"

    @abstractmethod
    def _output_map(self, i: int, outputs: Outputs, loss: Tensor, batch: Batch) -> OutputMap:
        """B of one batch, divided by its number of examples.

        Args:
            i: The batch's number.
            outputs: Output tensors that the loss uses.
            loss: The batch's loss, as a differentiable function of them.
            batch: The batch.
        """

    def _map(self, i: int, batch: Batch, path: str) -> RowMap:
        if path == "forward":
            return self._forward_map(i, batch)
        if path == "difference":
            return self._differenced(i, batch)
        point, keep = self.point, path == "kept"
        with torch.enable_grad(), second_derivatives():
            _, outputs, curvature = self._prepared(i, batch)
            if not outputs:
                return torch.zeros_like
            seeds = [torch.zeros_like(t, requires_grad=True) for t in outputs]
            pulled = torch.autograd.grad(outputs, point.leaves, seeds, create_graph=True, materialize_grads=True)

        def product(rows: Tensor) -> Tensor:
            out = torch.empty_like(rows)
            with second_derivatives():
                for j, v in enumerate(rows):
                    more = keep or j < len(rows) - 1
                    pushed = pull(pulled, seeds, point.cut(v))  # J v: the pull-back is linear in its seed
                    row(pull(outputs, point.leaves, curvature(list(pushed)), keep=more), out=out[j])
            return out

        return product

    def _forward_map(self, i: int, batch: Batch) -> RowMap:
        point = self.point

        def one(v: Tensor) -> Tensor:
            with torch.enable_grad(), math_attention(), forward_mode(), forward_ad.dual_level():
                parts = zip(point.theta.items(), point.cut(v), strict=True)
                dual = {name: forward_ad.make_dual(t, part) for (name, t), part in parts}
                out = point.risk.predict({**point.fixed, **dual}, batch[0])
                if not isinstance(out, Tensor):
                    raise ValueError(
                        f"`path` = 'forward' needs a model whose output is one tensor, got {type(out).__name__}: "
                        "use path='kept' or 'afresh'."
                    )
                primal, tangent = forward_ad.unpack_dual(out)
            if tangent is None or not primal.requires_grad:
                return torch.zeros_like(v)
            with torch.enable_grad():
                _, leaves, loss = self._used(primal, batch)
                _require_outputs(leaves)
                curvature = self._output_map(i, leaves, loss, batch)
                return row(pull([primal], point.leaves, curvature([tangent.detach()]), keep=False))

        return lambda rows: torch.stack([one(v) for v in rows])

    def _differenced(self, i: int, batch: Batch, step: float | None = None) -> RowMap:
        point = self.point
        with torch.enable_grad():
            which, outputs, curvature = self._prepared(i, batch)
        theta = {name: t.detach() for name, t in point.theta.items()}
        if step is None:
            size = float(torch.linalg.vector_norm(row([t.double() for t in theta.values()])))
            step = torch.finfo(point.dtype).eps ** (1 / 3) * max(1.0, size)
        h = step

        def moved(unit: Sequence[Tensor], h: float) -> Outputs:
            parts = zip(theta.items(), unit, strict=True)
            at = {**point.fixed, **{k: t + h * u for (k, t), u in parts}}
            every = list(tensors(point.risk.findings.without_graph(lambda: point.risk.predict(at, batch[0]))))
            return [every[j].detach() for j in which]

        def along(unit: list[Tensor], length: float) -> Tensor:
            ahead, behind = moved(unit, h), moved(unit, -h)
            pushed = [(a - b) * (length / (2 * h)) for a, b in zip(ahead, behind, strict=True)]
            return row(pull(outputs, point.leaves, curvature(pushed)))

        return lambda rows: by_direction(point, rows, along) if outputs else torch.zeros_like(rows)

    def _prepared(self, i: int, batch: Batch) -> tuple[list[int], Outputs, OutputMap]:
        """Which output tensors the loss uses, these at θ, and B on them; none if the loss uses no parameter."""
        out = self.point.outputs(batch[0])
        which, leaves, loss = self._used(out, batch)
        if not loss.requires_grad:
            return [], [], list
        _require_outputs(leaves)
        every = list(tensors(out))
        return which, [every[j] for j in which], self._output_map(i, leaves, loss, batch)

    def _used(self, out: Any, batch: Batch) -> tuple[list[int], Outputs, Tensor]:
        """Which output tensors the loss uses itself, copies of them as leaves, and the loss as a function of these.

        Without the model's graph: an output that is made from another, as logits are from hidden states, would count
        the other one too.
        """
        leaves = cut_off(out)
        try:
            loss = self._loss(leaves, batch)
        except RuntimeError as error:
            if "not have been used in the graph" not in str(error):
                raise
            raise ValueError(
                "`loss` differentiates one output of the model by another, so it is no function of the outputs alone: "
                "use landscape.Hessian, or let the model return the derivative."
            ) from error
        if not loss.requires_grad:
            return [], [], loss
        every = list(tensors(leaves))
        live = [j for j, t in enumerate(every) if t.requires_grad and t.is_floating_point()]
        candidates = [every[j] for j in live]
        slopes = torch.autograd.grad(loss, candidates, allow_unused=True, retain_graph=True) if candidates else ()
        which = [j for j, slope in zip(live, slopes, strict=True) if slope is not None]
        return which, [every[j] for j in which], loss

    def _loss(self, out: Any, batch: Batch) -> Tensor:
        loss = self.point.risk.loss(out, batch[1])
        scalar(loss)
        return loss


def _require_outputs(used: Outputs) -> None:
    if all(t.ndim == 0 for t in used):
        raise ValueError(
            "`loss` uses no output of the model but a loss that the model has computed itself, so no output is left to "
            "differentiate in between: compute the loss from the logits in `loss`, and keep the labels out of the "
            "model's inputs."
        )
