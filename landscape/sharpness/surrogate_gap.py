"""The surrogate gap of GSAM, and the two readings of it as a curvature."""

from dataclasses import dataclass

from landscape.checks.arguments import check_arguments
from landscape.params import Params
from landscape.perturbation import AscentStep
from landscape.precision import in_own_precision
from landscape.risk import EmpiricalRisk
from landscape.sharpness.ascent import ascent_sharpness
from landscape.sharpness.rise import Sharpness


@dataclass(frozen=True)
class SurrogateGap:
    """h = L(θ + ρ g/‖g‖) - L(θ), and what it says of curvature.

    Attributes:
        gap: h, in units of the loss.
        curvature: 2h / ρ², which is about λ_max at a minimum, and only where ρ‖g‖ is small beside h.
        directional: 2 (h - ρ‖g‖) / ρ², about gᵀHg / ‖g‖² everywhere.
    """

    gap: Sharpness
    curvature: float
    directional: float


@in_own_precision
def surrogate_gap(risk: EmpiricalRisk, rho: float, *, theta: Params | None = None) -> SurrogateGap:
    """Measure the surrogate gap at a radius, at the cost of one gradient and one forward pass.

    Args:
        risk: The risk L.
        rho: ρ > 0.
        theta: The point θ; None means the risk's own.

    Raises:
        ValueError: If `rho` is not finite and above 0.

    Source:
        Zhuang et al. (2022), ICLR, for the gap and 2h/ρ²; the directional reading is ours.
    """
    check_arguments(risk=risk, rho=rho)
    if not rho > 0:
        raise ValueError(f"`rho` must be above 0 to read a curvature from the gap, got {rho!r}.")
    gap = ascent_sharpness(risk, AscentStep(rho), theta=theta)
    linear = rho * gap.gradient_norm
    return SurrogateGap(gap, 2 * gap.value / rho**2, 2 * (gap.value - linear) / rho**2)
