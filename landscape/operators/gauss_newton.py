"""The generalised Gauss-Newton matrix."""

from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from landscape.batches import Batch, map_tensors, tensors
from landscape.checks import plain_mean
from landscape.kernels import second_derivatives
from landscape.labels import IGNORED
from landscape.operators.derivatives import Disagreement, compared
from landscape.operators.hessian import double_backward, gradient_difference
from landscape.operators.output_space import OutputMap, Outputs, OutputSpaceOperator
from landscape.operators.point import Point, pull
from landscape.operators.predictions import plain_cross_entropy
from landscape.params import Params


@final
class GaussNewton(OutputSpaceOperator):
    """The generalised Gauss-Newton matrix G = (1/n) Σ_i J_iᵀ A_i J_i, with A_i = ∇²ℓ_i in the model's outputs.

    Positive semidefinite for a loss that is convex in the outputs; for softmax with cross-entropy it is also the true
    Fisher matrix. A_i is taken in closed form, diag(p_i) - p_i p_iᵀ, for cross-entropy on rows of logits and integer
    labels, also of logits (n, c, ...) with the classes on the second axis as torch has them, and by autograd
    otherwise. The outputs are all output tensors that the loss uses, so a model may return a
    dict, a tuple or an output object.

    Paths are those of `OutputSpaceOperator`; arguments, attributes and errors those of `RiskOperator`.

    Source:
        Schraudolph (2002), Neural Comput. 14(7).
    """

    def _compared(self, path: str) -> Disagreement:
        """The loss's own second derivatives, in the outputs, are compared too, where they are taken by autograd."""
        found = super()._compared(path)
        batch, risk = self._trial.few, self.point.risk
        if plain_mean(risk.loss, [batch]):
            return found
        with torch.enable_grad(), second_derivatives():
            out = self.point.outputs(batch[0])
            _, outputs, _ = self._used(out, batch)
            if not outputs:
                return found
            there = _at_outputs(self.point, out)
            inner = compared(there, batch, _product, _difference) if there.theta else Disagreement()
        if inner.relative or inner.gradient:
            raise ValueError(
                "`loss` has second derivatives in the model's outputs that are wrong (a part of it is detached, or has "
                "a backward pass of its own): use the Hessian, or pass probe=False to take them as they are."
            )
        return found

    def _output_map(self, i: int, outputs: Outputs, loss: Tensor, batch: Batch) -> OutputMap:  # noqa: ARG002
        out, y = outputs[0], batch[1]
        labels = isinstance(y, Tensor) and not y.is_floating_point() and out.ndim >= 2
        known = labels and y.shape == out.shape[:1] + out.shape[2:] and len(outputs) == 1
        if known and plain_cross_entropy(self.point.risk.loss):
            counts = y != IGNORED
            if bool(counts.all()):
                return partial(_softmax_curvature, out, None, y.numel())
            if bool(counts.any()):
                return partial(_softmax_curvature, out, counts[:, None], int(counts.sum()))
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss, outputs, create_graph=True, retain_graph=True, materialize_grads=True)
        return lambda u: list(pull(slopes, outputs, u))


def _softmax_curvature(out: Tensor, counts: Tensor | None, n: int, u: Outputs) -> Outputs:
    """(diag(p) - p pᵀ) u / n of each prediction that counts, with two tensors as large as the outputs and no more.

    The probabilities of a large vocabulary are made anew at each product, and not kept between products.
    """
    p = out.detach().softmax(1)
    image = p * u[0]
    image.sub_(p.mul_(image.sum(1, keepdim=True)))
    if counts is not None:
        image.mul_(counts)
    return [image.div_(n)]


def _at_outputs(point: Point, out: Any) -> Point:
    """The loss as a risk whose parameters are the model's outputs."""
    leaves = {str(i): t for i, t in enumerate(tensors(out)) if t.is_floating_point() and t.ndim}
    places = {id(t): name for name, t in leaves.items()}

    def predict(theta: Params, _: Any) -> Any:
        return map_tensors(lambda t: theta[places[id(t)]] if id(t) in places else t, out)

    theta = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    return Point(replace(point.risk, predict=predict, weight=None, ranks=None), theta, {}, channels_last=False)


def _product(point: Point, batch: Batch, v: Tensor) -> Tensor:
    return double_backward(point, batch, keep=False)[0](v[None])[0]


def _difference(point: Point, batch: Batch, v: Tensor, step: float) -> Tensor:
    return gradient_difference(point, batch, step)(v[None])[0]
