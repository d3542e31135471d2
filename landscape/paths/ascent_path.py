"""The loss along the path that SAM ascends, and beyond, with its Taylor prediction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.evaluate import evaluate
from landscape.operators import Hessian
from landscape.params import Params, dot, flatten, length, unflatten
from landscape.paths.profile import PathProfile, checked_coordinates
from landscape.perturbation import Perturbation, displaced
from landscape.precision import in_own_precision
from landscape.risk import EmpiricalRisk

OWN = "own"


@dataclass(frozen=True, eq=False)
class AscentPath:
    """Loss and error along w + ε(a), with ε(0) = 0, ε(j) the displacement after j steps, and straight pieces between.

    Beyond the last step the last piece goes on straight.

    Attributes:
        profile: Values by subset: "own" is the data whose loss is ascended.
        steps: The displacements δ_1, ..., δ_k of the single steps.
        lengths: ‖δ_j‖₂.
        distance: ‖ε(a)‖₂ at every coordinate.
        first_order: L(w) + ⟨g, ε(a)⟩ on the own data.
        second_order: L(w) + ⟨g, ε(a)⟩ + ε(a)ᵀHε(a) / 2; None where it was not asked for.
        slope: ⟨g, δ_1⟩: the rise that one step promises to first order.
        curvature: δ_1ᵀHδ_1; None likewise.
        gradient_norm: ‖g‖₂ at w.
    """

    profile: PathProfile
    steps: tuple[Params, ...]
    lengths: Float[Tensor, " k"]
    distance: Float[Tensor, " n"]
    first_order: Float[Tensor, " n"]
    second_order: Float[Tensor, " n"] | None
    slope: float
    curvature: float | None
    gradient_norm: float

    @property
    def coordinates(self) -> Float[Tensor, " n"]:
        """a, in steps."""
        return self.profile.coordinates


@in_own_precision
def ascent_path(
    risk: EmpiricalRisk,
    perturbation: Perturbation,
    *,
    steps: int = 1,
    coordinates: Sequence[float] | Tensor | None = None,
    others: Mapping[str, Any] | None = None,
    theta: Params | None = None,
    second_order: bool = True,
) -> AscentPath:
    """Follow a perturbation's own path from w through w + ε, and beyond.

    Step j adds δ_j = perturbation(w + ε_{j-1}, ∇L(w + ε_{j-1})) with the whole radius of the perturbation; for k steps
    within a radius ρ give it ρ/k. The cost is a gradient and a Hessian product a step, and a forward pass a point.

    Args:
        risk: The loss that is ascended, on the batch whose perturbation it is; its mode holds for all subsets.
        perturbation: Such as `AscentStep(rho)`.
        steps: k, at least 1.
        coordinates: In steps, finite and at least 0; None means from 0 to k + 2 in tenths, 0 and whole steps exact.
        others: By name, further data on which to evaluate, such as the training set for the perturbation of one batch.
        theta: w; None means the risk's own point.
        second_order: Make the second-order prediction too.

    Returns:
        Values, predictions and lengths. Both predictions are for the own data, at w.

    Raises:
        ValueError: If `steps` or `coordinates` are out of range, a subset is named "own", or a displacement is zero.

    Source:
        Foret et al. (2021), ICLR, eq. 2, for the step; the path and its prediction are ours.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps!r}.")
    if coordinates is None:
        coordinates = [i / 10 for i in range(10 * (steps + 2) + 1)]
    where = checked_coordinates(coordinates)
    if bool((where < 0).any()):
        raise ValueError(f"`coordinates` must be at least 0, the model itself, got {float(where.min())}.")
    if others and OWN in others:
        raise ValueError(f"`others` must not use the name {OWN!r}: it is the data whose loss is ascended.")
    start = {name: t.detach() for name, t in (risk.theta if theta is None else theta).items()}
    deltas, corners, gradient, base = _climb(risk, perturbation, start, steps)
    subsets = {OWN: risk, **{name: risk.on(data) for name, data in (others or {}).items()}}
    parts = torch.stack([(where - j).clamp(min=0) if j == steps - 1 else (where - j).clamp(0, 1) for j in range(steps)])
    readings = []
    for i, a in enumerate(where.tolist()):
        j = min(math.floor(a), steps - 1)
        point = displaced(corners[j], deltas[j], float(parts[j, i])) if parts[j, i] else corners[j]
        readings.append({name: evaluate(part, point, losses=True).examples for name, part in subsets.items()})
    tables = {
        (name, risk.mode): {m: torch.stack([r[name][m] for r in readings]) for m in readings[0][name]}
        for name in subsets
    }
    gram = torch.tensor([[dot(a, b) for b in deltas] for a in deltas], dtype=torch.float64)
    slopes = torch.tensor([dot(delta, gradient) for delta in deltas], dtype=torch.float64)
    linear = base + slopes @ parts
    quadratic = _curvatures(risk, start, deltas) if second_order else None
    return AscentPath(
        profile=PathProfile(where, tables),
        steps=tuple(deltas),
        lengths=gram.diagonal().sqrt(),
        distance=_forms(gram, parts).clamp(min=0).sqrt(),
        first_order=linear,
        second_order=None if quadratic is None else linear + _forms(quadratic, parts) / 2,
        slope=float(slopes[0]),
        curvature=None if quadratic is None else float(quadratic[0, 0]),
        gradient_norm=length(gradient),
    )


def _climb(
    risk: EmpiricalRisk, perturbation: Perturbation, start: Params, steps: int
) -> tuple[list[Params], list[Params], Params, float]:
    """The displacement of each step, where it begins, and gradient and loss at the start."""
    deltas: list[Params] = []
    corners = [start]
    first: Params = {}
    base = math.nan
    for j in range(steps):
        value, gradient = risk.value_and_gradient(corners[j])
        if j == 0:
            first, base = gradient, value
        delta = {name: t.detach() for name, t in perturbation(corners[j], gradient).items()}
        size = length(delta)
        if not (math.isfinite(size) and size > 0):
            raise ValueError(
                f"`perturbation` makes a displacement of length {size} in step {j + 1} (gradient norm "
                f"{length(gradient):.1e}): there is no path. Its radius may be 0, the gradient may vanish or not be "
                "finite."
            )
        deltas.append(delta)
        corners.append(displaced(corners[j], delta))
    return deltas, corners, first, base


def _curvatures(risk: EmpiricalRisk, start: Params, deltas: list[Params]) -> Float[Tensor, "k k"]:
    """δ_iᵀHδ_j at the start, by one Hessian product a step."""
    like = {name: start[name] for name in risk.names}
    rows = torch.stack(
        [flatten({n: d.get(n, torch.zeros_like(t)) for n, t in like.items()}, risk.names) for d in deltas], dim=1
    )
    products = Hessian(risk, start) @ rows
    table = torch.tensor(
        [
            [dot(unflatten(rows[:, i], like), unflatten(products[:, j], like)) for j in range(len(deltas))]
            for i in range(len(deltas))
        ],
        dtype=torch.float64,
    )
    return (table + table.T) / 2


def _forms(table: Float[Tensor, "k k"], parts: Float[Tensor, "k n"]) -> Float[Tensor, " n"]:
    """partsᵀ table parts, column by column."""
    return torch.einsum("in,ij,jn->n", parts, table, parts)
