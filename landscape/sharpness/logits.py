"""The loss of normalised logits, which a network cannot lower by scaling its last layer."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.labels import class_axis
from landscape.params import Params
from landscape.risk import EmpiricalRisk

SMALLEST = 1e-10  # length of a row of logits below which it counts as constant


def normalised_logits(z: Float[Tensor, "*n"], axis: int = -1) -> Float[Tensor, "*n"]:
    """(z - mean z) / max(‖z - mean z‖₂, 1e-10), prediction by prediction, along the axis of the classes."""
    centred = z - z.mean(axis, keepdim=True)
    unit: Tensor = centred / torch.linalg.vector_norm(centred, dim=axis, keepdim=True).clamp_min(SMALLEST)
    return unit


def logit_normalised(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The same risk with the loss of normalised logits.

    The loss no longer changes when the last layer is scaled or shifted; its sharpness only where the perturbation is
    adaptive as well, because a fixed radius means more beside smaller weights. It has a floor above zero. See
    `constant_logits` for examples on which it means nothing.

    Args:
        risk: Its outputs are one tensor of logits, classes on axis 1 for torch's cross-entropy, else last.

    Raises:
        ValueError: When it is evaluated, if the outputs are not one tensor.

    Source:
        Andriushchenko et al. (2023), ICML, section 3 and their code.
    """
    axis = class_axis(risk.loss)

    def loss(out: Any, y: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise ValueError(f"`risk` must have one tensor of logits as its outputs, got {type(out).__name__}.")
        return risk.loss(normalised_logits(out, min(axis, out.ndim - 1)), y)

    return replace(risk, loss=loss)


def constant_logits(risk: EmpiricalRisk, theta: Params | None = None) -> int:
    """Number of predictions whose logits are constant (to 1e-10), as of a model that is dead."""
    z = risk.outputs(theta)
    axis = min(class_axis(risk.loss), z.ndim - 1)
    return int((torch.linalg.vector_norm(z - z.mean(axis, keepdim=True), dim=axis) < SMALLEST).sum())
