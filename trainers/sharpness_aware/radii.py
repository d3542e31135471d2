"""The radius as a function of the learning rate and the step."""

from dataclasses import dataclass
from typing import Protocol

from landscape.perturbation import check_radius


class Radius(Protocol):
    """Maps the current learning rate to the radius ρ of this step."""

    def __call__(self, lr: float) -> float: ...


@dataclass(frozen=True)
class ConstantRadius:
    """The same ρ at every step."""

    rho: float

    def __post_init__(self) -> None:
        check_radius(self.rho)

    def __call__(self, lr: float) -> float:
        return self.rho


@dataclass(frozen=True)
class ProportionalRadius:
    """ρ_t = ρ_min + (ρ - ρ_min) (lr_t - lr_min) / (lr_max - lr_min), never below 0; ρ where lr_max = lr_min.

    Source:
        Zhuang et al. (2022), GSAM; the clamp at 0 (during warm-up) as in the code of Vani et al. (2024).
    """

    rho: float
    rho_min: float
    lr_max: float
    lr_min: float

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_radius(self.rho_min, "rho_min")

    def __call__(self, lr: float) -> float:
        if self.lr_max == self.lr_min:
            return self.rho
        share = (lr - self.lr_min) / (self.lr_max - self.lr_min)
        return max(0.0, self.rho_min + (self.rho - self.rho_min) * share)
