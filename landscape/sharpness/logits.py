"""The loss of normalised logits, which a network cannot lower by scaling its last layer."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.params import Params
from landscape.risk import EmpiricalRisk

SMALLEST = 1e-10  # length of a row of logits below which it counts as constant


def normalised_logits(z: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
    """(z - mean z) / max(‖z - mean z‖₂, 1e-10), row by row."""
    centred = z - z.mean(-1, keepdim=True)
    unit: Tensor = centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True).clamp_min(SMALLEST)
    return unit


def logit_normalised(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The same risk with the loss of normalised logits.

    The loss no longer changes when the last layer is scaled or shifted; its sharpness only where the perturbation is
    adaptive as well, because a fixed radius means more beside smaller weights. It has a floor above zero. See
    `constant_logits` for examples on which it means nothing.

    Args:
        risk: Its outputs are one tensor of logits, classes last.

    Source:
        Andriushchenko et al. (2023), ICML, section 3 and their code.
    """

    def loss(out: Any, y: Any) -> Tensor:
        return risk.loss(normalised_logits(out), y)

    return replace(risk, loss=loss)


def constant_logits(risk: EmpiricalRisk, theta: Params | None = None) -> int:
    """Number of rows of logits that are constant (to 1e-10), as of a model that is dead."""
    z = risk.outputs(theta)
    return int((torch.linalg.vector_norm(z - z.mean(-1, keepdim=True), dim=-1) < SMALLEST).sum())
