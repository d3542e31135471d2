"""The radius as a function of the learning rate and the step, and of the parameter group."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from landscape.perturbation import check_radius


class Radius(Protocol):
    """Maps the current learning rate, and the number of steps taken, to the radius ρ of this step.

    One that has an attribute `rho`, the radius that its schedule varies, serves groups with a radius of their own.
    """

    def __call__(self, lr: float, t: int = 0) -> float: ...


@dataclass(frozen=True)
class _OfRho:
    """A schedule of a radius ρ, and of another where it has one."""

    rho: float

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_radius(getattr(self, "rho_min", 0.0), "rho_min")


@dataclass(frozen=True)
class ConstantRadius(_OfRho):
    """The same ρ at every step."""

    def __call__(self, lr: float, t: int = 0) -> float:
        return self.rho


@dataclass(frozen=True)
class ProportionalRadius(_OfRho):
    """ρ_t = ρ_min + (ρ - ρ_min) (lr_t - lr_min) / (lr_max - lr_min), never below 0; ρ where lr_max = lr_min.

    Source:
        Zhuang et al. (2022), GSAM; the clamp at 0 (during warm-up) as in the code of Vani et al. (2024).
    """

    rho_min: float
    lr_max: float
    lr_min: float

    def __call__(self, lr: float, t: int = 0) -> float:
        if self.lr_max == self.lr_min:
            return self.rho
        share = (lr - self.lr_min) / (self.lr_max - self.lr_min)
        return max(0.0, self.rho_min + (self.rho - self.rho_min) * share)


@dataclass(frozen=True)
class LrMultiple(_OfRho):
    """ρ_t = ρ lr_t: a radius that is a multiple of the learning rate.

    Source:
        `sam_lr_mult` in the code of Andriushchenko and Flammarion (2022).
    """

    def __call__(self, lr: float, t: int = 0) -> float:
        return self.rho * lr


@dataclass(frozen=True)
class LinearRamp(_OfRho):
    """ρ_t rises linearly from ρ_min to ρ over `steps` steps, then stays.

    Source:
        A schedule of the code of MSAM (Becker et al. 2024), there over 8 epochs.
    """

    rho_min: float
    steps: int

    def __call__(self, lr: float, t: int = 0) -> float:
        return self.rho if t >= self.steps else self.rho_min + (self.rho - self.rho_min) * t / self.steps


@dataclass(frozen=True)
class StartJump(_OfRho):
    """ρ_t = 0 for the first `steps` steps, ρ after them.

    Source:
        Becker et al. (2024), MSAM: no perturbation during the warm-up of a vision transformer.
    """

    steps: int

    def __call__(self, lr: float, t: int = 0) -> float:
        return self.rho if t >= self.steps else 0.0


@dataclass(frozen=True)
class CosineRadius(_OfRho):
    """ρ_t = ρ_min + (ρ - ρ_min) (1 + cos πt/T) / 2: from ρ down to ρ_min over the run.

    Source:
        A schedule of the code of MSAM (Becker et al. 2024); this form is ours.
    """

    rho_min: float
    total: int

    def __call__(self, lr: float, t: int = 0) -> float:
        s = min(1.0, t / self.total)
        return self.rho_min + (self.rho - self.rho_min) * (1 + math.cos(math.pi * s)) / 2


@dataclass(frozen=True)
class Times:
    """A constant times another radius."""

    radius: Radius
    factor: float

    @property
    def rho(self) -> float | None:
        """The other's."""
        return getattr(self.radius, "rho", None)

    def __call__(self, lr: float, t: int = 0) -> float:
        return self.factor * self.radius(lr, t)


def group_radii(radius: Radius, own: Mapping[str, float], lr: float, t: int) -> dict[str, float]:
    """The radii of parameters that have a `rho` of their own, under the schedule of the method's: rho_own ρ_t / ρ.

    Raises:
        ValueError: If the schedule cannot be carried over, because ρ is 0 or not known.
    """
    rho = getattr(radius, "rho", None)
    if rho:
        factor = radius(lr, t) / rho
    elif rho == 0 and isinstance(radius, ConstantRadius):
        factor = 1.0
    else:
        raise ValueError(
            f"`rho` in a parameter group follows the schedule of the method's own `rho`, which must then be above 0, "
            f"got {rho!r}."
        )
    return {name: value * factor for name, value in own.items()}
