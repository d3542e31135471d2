"""The loss to second order over a line, plane or volume, and what share of the curvature such a slice can show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.estimate import Estimate
from landscape.operators.curvature import RiskOperator
from landscape.operators.hessian import Hessian
from landscape.params import flatten
from landscape.precision import in_own_precision
from landscape.risk import EmpiricalRisk
from landscape.surfaces.axes import Axes
from landscape.surfaces.grid import Grid


@dataclass(frozen=True)
class CurvatureShown:
    """How the curvature within a slice compares with that of the whole loss; NaN where a number was not given.

    Attributes:
        largest: μ_1 / λ_max: the sharpest direction of the slice against the sharpest of all; at most 1.
        trace: Σ μ_i / tr(H): how much of the whole curvature lies in the slice.
        trace_stderr: Its standard error, from that of the trace.
        over_random: Mean of μ_i over tr(H)/p, which is what a random slice would have on average: 1 for it.
        over_random_stderr: Its standard error, from that of the trace.
    """

    largest: float = math.nan
    trace: float = math.nan
    trace_stderr: float = math.nan
    over_random: float = math.nan
    over_random_stderr: float = math.nan


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """L(θ + Σ a_i d_i) to second order in the coordinates: L_0 + sᵀa + aᵀKa / 2.

    Attributes:
        value: L_0 = L(θ).
        slope: s_i = ⟨∇L, d_i⟩, in units of the loss for coordinate 1.
        curvature: K_ij = d_iᵀ H d_j, symmetrised.
        gram: ⟨d_i, d_j⟩.
        asymmetry: max |K_ij - K_ji| / max |K_ij| before: a measure of the products' rounding; 0 for one axis.
        products: Hessian-vector products spent.
        path: How they were computed.
        note: What the numbers do not cover; empty if nothing.
    """

    value: float
    slope: Float[Tensor, " k"]
    curvature: Float[Tensor, "k k"]
    gram: Float[Tensor, "k k"]
    asymmetry: float = 0.0
    products: int = 0
    path: str = ""
    note: str = ""

    def predict(self, where: Grid | Tensor | Sequence[float]) -> Tensor:
        """The loss to second order at coordinates, in float64.

        Args:
            where: A grid; or coordinates, as a tensor whose last axis has length k, or k numbers.

        Returns:
            An array of the grid's shape, or of the coordinates' shape without the last axis.

        Raises:
            ValueError: If the number of coordinates is not that of the axes.
        """
        a = torch.stack(where.mesh(), -1) if isinstance(where, Grid) else torch.as_tensor(where, dtype=torch.float64)
        k = len(self.slope)
        if a.ndim == 0 or a.shape[-1] != k:
            raise ValueError(f"`where` must have {k} coordinates a point, one an axis, got shape {tuple(a.shape)}.")
        a = a.double()
        predicted: Tensor = self.value + a @ self.slope + ((a @ self.curvature) * a).sum(-1) / 2
        return predicted

    @property
    def directional(self) -> Float[Tensor, " k"]:
        """d_iᵀ H d_i / ‖d_i‖² along each axis: loss per squared l2 length of weights, comparable with eigenvalues."""
        return self.curvature.diagonal() / self.gram.diagonal()

    @cached_property
    def principal(self) -> Float[Tensor, " k"]:
        """Curvatures μ_1 >= ... >= μ_k of the slice, per squared l2 length: eigenvalues of QᵀHQ.

        Q is an orthonormal basis of the slice. They lie between the extreme eigenvalues of H, and do not depend on
        which axes span the slice.

        Raises:
            ValueError: If the axes are linearly dependent.
        """
        scale = torch.diag(self.gram.diagonal().rsqrt())
        factor, info = torch.linalg.cholesky_ex(scale @ self.gram @ scale)
        if int(info):
            raise ValueError("the axes are linearly dependent: they have no basis to take curvatures in.")
        inverse = torch.linalg.solve_triangular(factor, scale, upper=False)
        found: Tensor = torch.linalg.eigvalsh(inverse @ self.curvature @ inverse.T).flip(0)
        return found

    @property
    def axis_ratio(self) -> float:
        """√(μ_1/μ_2): long to short axis of the ellipses that contours are near a minimum, in weight space.

        NaN unless there are two axes and both curvatures are positive.
        """
        if len(self.slope) != 2 or not float(self.principal[1]) > 0:
            return math.nan
        return math.sqrt(float(self.principal[0] / self.principal[1]))

    def shown(
        self, *, lambda_max: float | None = None, trace: Estimate | float | None = None, p: int | None = None
    ) -> CurvatureShown:
        """What share of the whole curvature the slice shows.

        Args:
            lambda_max: Largest eigenvalue of H.
            trace: tr(H), best with its standard error.
            p: Number of parameters, for the comparison with a random slice.

        Raises:
            ValueError: If `lambda_max` is not positive, or `p` below 1.
        """
        if lambda_max is not None and not lambda_max > 0:
            raise ValueError(f"`lambda_max` must be above 0 to compare with, got {lambda_max!r}.")
        if p is not None and p < 1:
            raise ValueError(f"`p` must be a number of parameters of at least 1, got {p!r}.")
        inside = float(self.principal.sum())
        largest = math.nan if lambda_max is None else float(self.principal[0]) / lambda_max
        whole = math.nan if trace is None else float(trace)
        share = inside / whole if whole else math.nan
        error = trace.stderr if isinstance(trace, Estimate) else math.nan if trace is None else 0.0
        relative = error / abs(whole) if whole else math.nan
        against = share * p / len(self.slope) if p is not None else math.nan
        return CurvatureShown(largest, share, abs(share) * relative, against, abs(against) * relative)


@in_own_precision
def second_order(risk: EmpiricalRisk, axes: Axes, *, operator: RiskOperator | None = None) -> SecondOrder:
    """Expand the loss to second order around the origin of axes, by one gradient and k Hessian products.

    Exact for a quadratic. In mode "recalibrate", and for axes that move running statistics, these are held where they
    are at the origin, which `note` says.

    Args:
        risk: The risk L.
        axes: Origin and directions; they may move what the risk differentiates by, and nothing else.
        operator: An operator made before at the same origin, to save the making, or a `GaussNewton` for its expansion;
            None makes the Hessian.

    Returns:
        The expansion; sums over parameters are in float64.

    Raises:
        ValueError: If an axis moves a parameter that is not among the risk's, or the operator is of other parameters
            or another point.

    Source:
        Taylor's theorem; what is compared with it is our definition.
    """
    point = {name: axes.origin[name].detach() for name in risk.names if name in axes.origin}
    if missing := [name for name in risk.names if name not in point]:
        raise ValueError(f"`axes` has an origin without the parameters {missing[:5]} of `risk`.")
    for axis in axes.axes:
        if foreign := [name for name in axis.direction if name not in point]:
            raise ValueError(
                f"axis {axis.name!r} moves {foreign[:5]}, which `risk` does not differentiate by: make the risk with "
                "these parameters trainable, or named in `parameters`."
            )
    H: RiskOperator = Hessian(risk, point) if operator is None else operator
    if operator is not None:
        _check_point(operator, point)
    value, gradient = risk.value_and_gradient(point)
    columns = [
        flatten({n: axis.direction[n].to(t) if n in axis.direction else torch.zeros_like(t) for n, t in point.items()})
        for axis in axes.axes
    ]
    products = H @ torch.stack(columns, 1).to(H.dtype)
    flat = flatten(gradient, risk.names).double()
    wide = [c.double() for c in columns]
    slope = torch.stack([c @ flat for c in wide]).cpu()
    raw = torch.stack([torch.stack([c @ products[:, j].double() for j in range(len(wide))]) for c in wide]).cpu()
    largest = float(raw.abs().max())
    asymmetry = float((raw - raw.T).abs().max()) / largest if largest else 0.0
    held = risk.mode == "recalibrate" or any(axis.buffers for axis in axes.axes)
    note = "running statistics are held at those of the origin" if held else ""
    return SecondOrder(value, slope, (raw + raw.T) / 2, axes.gram.cpu(), asymmetry, len(columns), H.path, note)


def _check_point(operator: RiskOperator, point: dict[str, Tensor]) -> None:
    there = operator.point.theta
    if list(there) != list(point):
        raise ValueError(
            f"`operator` differentiates by {len(there)} parameters, `risk` by {len(point)}: make it of the same ones."
        )
    if moved := [n for n, t in point.items() if not torch.equal(there[n].detach(), t)]:
        raise ValueError(f"`operator` was made at another point than the origin of `axes`; {moved[:5]} differ.")
