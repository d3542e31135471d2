"""The generalised Gauss-Newton matrix."""

from typing import final

import torch
from torch import Tensor

from landscape.batches import Batch
from landscape.labels import IGNORED
from landscape.operators.output_space import OutputMap, Outputs, OutputSpaceOperator
from landscape.operators.point import pull
from landscape.operators.predictions import plain_cross_entropy


@final
class GaussNewton(OutputSpaceOperator):
    """The generalised Gauss-Newton matrix G = (1/n) Σ_i J_iᵀ A_i J_i, with A_i = ∇²ℓ_i in the model's outputs.

    Positive semidefinite for a loss that is convex in the outputs; for softmax with cross-entropy it is also the true
    Fisher matrix. A_i is taken in closed form, diag(p_i) - p_i p_iᵀ, for cross-entropy on rows of logits and integer
    labels, and by autograd otherwise. The outputs are all output tensors that the loss uses, so a model may return a
    dict, a tuple or an output object.

    Paths are those of `OutputSpaceOperator`; arguments, attributes and errors those of `RiskOperator`.

    Source:
        Schraudolph (2002), Neural Comput. 14(7).
    """

    def _output_map(self, i: int, outputs: Outputs, loss: Tensor, batch: Batch) -> OutputMap:  # noqa: ARG002
        out, y = outputs[0], batch[1]
        labels = isinstance(y, Tensor) and not y.is_floating_point() and out.ndim == 2 and y.shape == out.shape[:1]
        known = labels and len(outputs) == 1 and plain_cross_entropy(self.point.risk.loss)
        if known and not bool((y == IGNORED).any()):
            p, n = out.detach().softmax(-1), len(out)
            return lambda u: [(p * u[0] - p * (p * u[0]).sum(-1, keepdim=True)) / n]
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss, outputs, create_graph=True, retain_graph=True, materialize_grads=True)
        return lambda u: list(pull(slopes, outputs, u))
