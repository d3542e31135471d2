"""Methods about the noise in the perturbation: smoothing it, removing its mean, reweighting the examples."""

from typing import Literal

from landscape.perturbation import AscentStep
from trainers.sharpness_aware.composition import Composition
from trainers.sharpness_aware.memory import Averaged, Components, EmaResidual
from trainers.sharpness_aware.methods.registry import Adaptive, Scope, Setting, method, scaler
from trainers.sharpness_aware.offsets import Smoothed
from trainers.sharpness_aware.selection import InverseSlope


@method("rsam", "SAM's ascent from randomly smoothed weights", "2F+2B", "Liu et al. (2022), idea", "ours")
def rsam(
    setting: Setting,
    *,
    sigma: float = 0.1,
    keep: float = 1.0,
    per: Literal["tensor", "filter"] = "tensor",
    adaptive: Adaptive = "none",
    eta: float = 0.0,
    scope: Scope = "all",
) -> Composition:
    """R-SAM, our rule: see `Smoothed`.

    Args:
        setting: The run.
        sigma: σ of the noise, relative to the norm of each tensor.
        keep: Multiple of the noise that stays in the displacement.
        per: Scale the noise by the norm of the "tensor" or of each "filter".
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    source = Smoothed(setting.generator, sigma, keep, per)
    return Composition(setting.radius, source=source, scaler=scaler(2.0, adaptive, eta, scope))


@method("fsam", "SAM along the gradient less its running mean", "2F+2B", "Li et al. (2024)", rho=0.2)
def fsam(
    setting: Setting,
    *,
    sigma: float = 1.0,
    decay: float = 0.9,
    form: Literal["code", "paper"] = "code",
    adaptive: Adaptive = "none",
    eta: float = 0.0,
    scope: Scope = "all",
) -> Composition:
    """F-SAM: see `EmaResidual`.

    Args:
        setting: The run.
        sigma: Multiple of the mean that is taken off; 0 is SAM.
        decay: λ of the running mean.
        form: Take off the mean before ("code") or after ("paper") this step's gradient entered it.
        adaptive: As for `sam`.
        eta: η of T = |w| + η.
        scope: Parameters that T scales.
    """
    return Composition(setting.radius, source=EmaResidual(sigma, decay, form), scaler=scaler(2.0, adaptive, eta, scope))


@method("vasso", "SAM along a running mean of gradients", "2F+2B", "Li and Giannakis (2023), from memory", "partial")
def vasso(setting: Setting, *, theta: float = 0.4) -> Composition:
    """VaSSO: see `Averaged`.

    Args:
        setting: The run.
        theta: Weight of the new gradient, in (0, 1]; 1 is SAM.
    """
    return Composition(setting.radius, source=Averaged(theta))


@method(
    "noisesam",
    "SAM along chosen parts of the gradient: its noise, or its share of the full gradient",
    "2F+2B, and a pass over the reference data now and then",
    "Li et al. (2024), sec. 3",
)
def noisesam(setting: Setting, *, along: float = 0.0, across: float = 1.0, refresh_every: int = 100) -> Composition:
    """The noise-component variants: see `Components`.

    Args:
        setting: The run.
        along: Multiple of the projection on the reference gradient: 1 with across 0 is "SAM-full".
        across: Multiple of the rest: 1 with along 0 is "SAM-noise".
        refresh_every: Steps between two reference gradients.
    """
    return Composition(setting.radius, source=Components(along, across, refresh_every))


@method(
    "deltasam",
    "one perturbation a batch, its examples reweighted to mimic one perturbation each",
    "2F+2B and 1F a draw",
    "Zhou et al. (2022), idea",
    "ours",
    other_ascent=False,
)
def deltasam(
    setting: Setting,
    *,
    tau: float = -1.0,
    estimator: Literal["exact", "difference"] = "difference",
    draws: int = 1,
    xi: float = 1e-2,
    normalise: bool = True,
) -> Composition:
    """delta-SAM, our rule: see `InverseSlope`.

    Args:
        setting: The run.
        tau: Exponent of the weights; 0 is SAM.
        estimator: How the examples' gradient norms are found.
        draws: Noise draws of "difference".
        xi: Length of its step, per entry.
        normalise: True makes the displacement ρ long; False is ρ times the mean of ∇ℓ_i/s_i.
    """
    weigh = InverseSlope(setting.generator, tau, estimator, draws, xi, normalise)
    return Composition(setting.radius, weigh=weigh, scaler=AscentStep(1.0, normalise=normalise))
