"""The Fisher-Rao norm of the weights: their length in the metric that the model's outputs give."""

import math
from typing import Literal

import torch

from landscape.labels import counted, ignored_label, labelled
from landscape.operators import EmpiricalFisher, Fisher
from landscape.params import Params, flatten
from landscape.precision import in_own_precision
from landscape.risk import EmpiricalRisk


@in_own_precision
def fisher_rao_norm(
    risk: EmpiricalRisk, *, kind: Literal["empirical", "true"] = "empirical", theta: Params | None = None
) -> float:
    """√(θᵀ F θ), with the empirical Fisher matrix (labels of the data) or the true one (labels of the model).

    It does not change when a network of positively homogeneous layers is rescaled without changing its function.
    About two gradients; exact.

    Args:
        risk: The risk; "true" needs a loss that is a known likelihood, see `landscape.Fisher`.
        kind: Which matrix.
        theta: The point θ; None means the risk's own.

    Raises:
        ValueError: If `kind` is unknown, or the loss is no known likelihood.

    Source:
        Liang et al. (2019), AISTATS, definition 2.
    """
    if kind not in ("empirical", "true"):
        raise ValueError(f"`kind` must be 'empirical' or 'true', got {kind!r}.")
    F = EmpiricalFisher(risk, theta) if kind == "empirical" else Fisher(risk, theta)
    w = flatten(F.point.theta).detach()
    return math.sqrt(max(float(w.double() @ (F @ w).double()), 0.0))


def homogeneous_fisher_rao_norm(risk: EmpiricalRisk, depth: int, *, theta: Params | None = None) -> float:
    """The same, empirical, for a network that is homogeneous in its weights: D √(mean_i (⟨p_i, f_i⟩ - f_{i,y})²).

    It holds for D layers of weights without biases, ReLU or linear in between, under softmax cross-entropy, and costs
    one forward pass; for others use `fisher_rao_norm`.

    Args:
        risk: Its outputs are logits f of shape (n, classes), its targets labels.
        depth: D >= 1.
        theta: The point θ; None means the risk's own.

    Raises:
        ValueError: If `depth` is below 1, or outputs and targets are not rows and their labels.

    Source:
        Liang et al. (2019), AISTATS, theorem 3.1.
    """
    if depth < 1:
        raise ValueError(f"`depth` must be at least 1 layer of weights, got {depth!r}.")
    f, y = risk.outputs(theta).double(), risk.targets()
    if not labelled(f, y) or not bool(counted(y, f.shape[1], ignored_label(risk.loss)).all()):
        raise ValueError(
            "`risk` must have outputs of shape (n, classes) and a label for each example, none of them ignored, got "
            f"{tuple(f.shape)} and {tuple(y.shape)}."
        )
    chosen = f.gather(1, y.unsqueeze(1)).squeeze(1)
    slope = (f.softmax(1) * f).sum(1) - chosen
    return depth * math.sqrt(float(torch.mean(slope**2)))
