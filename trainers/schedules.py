"""Learning rate and radius as functions of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from landscape.perturbation import check_radius


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The learning rate at step t of a run of `total` steps, warm-up included.

    Warm-up rises linearly and reaches `peak` at step `warmup`. After it, with s = (t - warmup) / (total - warmup):
    "constant" stays at `peak`; "cosine" is floor + (peak - floor) (1 + cos πs) / 2; "step" multiplies `peak` by
    `factor` at every milestone (a fraction s of the run) that has passed.

    Attributes:
        kind: Shape after the warm-up.
        peak: Largest learning rate.
        total: Number of steps of the run.
        warmup: Steps of linear warm-up.
        floor: Learning rate at the end of the cosine.
        milestones: Fractions of the run, in (0, 1), for "step".
        factor: Multiplier at each milestone.
    """

    kind: Literal["constant", "cosine", "step"]
    peak: float
    total: int
    warmup: int = 0
    floor: float = 0.0
    milestones: Sequence[float] = (0.5, 0.75)
    factor: float = 0.1

    def __call__(self, t: int) -> float:
        if t < self.warmup:
            return self.peak * (t + 1) / self.warmup
        s = (t - self.warmup) / max(1, self.total - self.warmup)
        if self.kind == "cosine":
            return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * min(s, 1.0))) / 2
        if self.kind == "step":
            return self.peak * self.factor ** sum(s >= at for at in self.milestones)
        return self.peak


class Radius(Protocol):
    """Maps the current learning rate to the radius ρ of this step."""

    def __call__(self, lr: float) -> float: ...


@dataclass(frozen=True)
class ConstantRadius:
    """The same ρ at every step."""

    rho: float

    def __post_init__(self) -> None:
        check_radius(self.rho)

    def __call__(self, lr: float) -> float:  # noqa: ARG002 - the protocol's argument
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
