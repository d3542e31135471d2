"""Penalties on a sharpness made from losses at random points: the universal class, and Frob-SAM."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from landscape.params import Params
from trainers.sharpness_aware.ascent import mix, scaled
from trainers.sharpness_aware.combiners import Combiner, Seen, _check_finite, numbers

Function = Callable[[float], float]


@dataclass
class Universal(Combiner):
    """u = g + λ φ'(c) (1/n) Σ_i ψ'(D_i) (g_i - g), with c = (1/n) Σ_i ψ(D_i) and D_i = (L(w + ρ v_i) - L(w)) / ρ².

    It is the gradient of L + λ ρ² φ(c), a zeroth-order estimate of φ(E ψ(v'Hv/2)). With antithetic points D_i and its
    gradient are means over the pair w ± ρ v_i, in which the first-order term g'v_i/ρ cancels; without them that term
    dominates away from a minimum.

    Attributes:
        lam: λ.
        psi: ψ.
        psi_slope: ψ'.
        phi_slope: φ'.
        bound: D_i is clamped to [-bound, bound].

    Source:
        Tahmasebi et al. (2024), "A universal class of sharpness-aware minimization algorithms", ICML, and its code; the
        means over pairs and the clamp are ours.
    """

    lam: float = 1.0
    psi: Function = float
    psi_slope: Function = lambda _: 1.0
    phi_slope: Function = lambda _: 1.0
    bound: float = math.inf

    def __post_init__(self) -> None:
        _check_finite(lam=self.lam)
        self.by_loss = True
        self.needs_loss_gradient = True

    def __call__(self, seen: Seen) -> Params:
        assert seen.clean is not None
        assert seen.clean_loss is not None
        here, *there = numbers(seen.clean_loss, *(point.loss for point in seen.points))
        draws: dict[int, list[int]] = {}
        for i, point in enumerate(seen.points):
            draws.setdefault(point.draw, []).append(i)
        values = []
        for indices in draws.values():
            rise = sum(there[i] - here for i in indices) / len(indices)
            values.append(max(-self.bound, min(self.bound, rise / seen.moment.rho**2)))
        n = len(values)
        outer = self.lam * self.phi_slope(sum(map(self.psi, values)) / n) / n
        total, all_weights = scaled(seen.clean, 1.0), 0.0
        for value, indices in zip(values, draws.values(), strict=True):
            weight = outer * self.psi_slope(value)
            all_weights += weight
            for i in indices:
                total = mix(1.0, total, weight / len(indices), seen.points[i].gradient)
        return mix(1.0, total, -all_weights, seen.clean)


def trace_penalty(lam: float) -> Universal:
    """φ(t) = ψ(t) = t: with v uniform on the unit sphere, the mean of v'Hv/2, tr(H)/(2p)."""
    return Universal(lam)


def determinant_penalty(lam: float) -> Universal:
    """φ(t) = t⁻², ψ(t) = exp(-t/2), v uniform on a cube; D is clamped to [-40, 40], where ψ would overflow."""
    return Universal(
        lam,
        psi=lambda d: math.exp(-d / 2),
        psi_slope=lambda d: -math.exp(-d / 2) / 2,
        phi_slope=lambda c: -2 / c**3,
        bound=40.0,
    )


@dataclass
class Covariance(Combiner):
    """Frob-SAM: u = g + (λ/ρ²) Cov(L_i, g_i), the sample covariance over n ≥ 2 draws v_i ~ N(0, I) at w + ρ v_i.

    It is the gradient of L + λ/(2ρ²) Var L(w + ρv); on a quadratic Var = ρ²‖g‖² + ρ⁴‖H‖_F²/2, so away from a minimum
    the penalty is mostly one of the gradient's norm.

    Attributes:
        lam: λ.

    Source:
        As `Universal`; the variance on a quadratic is our derivation.
    """

    lam: float = 0.005

    def __post_init__(self) -> None:
        _check_finite(lam=self.lam)
        self.by_loss = True
        self.needs_loss_gradient = True

    def __call__(self, seen: Seen) -> Params:
        assert seen.clean is not None
        losses = numbers(*(point.loss for point in seen.points))
        n = len(losses)
        mean = sum(losses) / n
        total = scaled(seen.clean, 1.0)
        for loss, point in zip(losses, seen.points, strict=True):
            weight = self.lam / seen.moment.rho**2 * (loss - mean) / (n - 1)
            total = mix(1.0, total, weight, point.gradient)
        return total
