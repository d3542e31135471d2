"""Which examples of a batch count, and how much: selection for the descent, weights for the ascent."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from landscape.params import wide


@dataclass(frozen=True)
class LargestIncrease:
    """ESAM: descend on the γ|B| examples whose loss the perturbation raises most, max(1, round(γ|B|)) of them.

    B are the examples that count in the loss that was given (those with an ignored target do not), the loss of an
    example is its share of that loss (with class weights w_i ℓ_i), and the descent is on the loss of those kept.

    Attributes:
        gamma: γ in (0, 1]; from 0.99 on all examples are kept, and no selection pass is made.

    Source:
        Du et al. (2022), ESAM. Its code keeps one example fewer (a strict threshold); we keep the number it means.
    """

    gamma: float

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"`gamma` must be in (0, 1], got {self.gamma!r}.")

    @property
    def active(self) -> bool:
        """Whether anything is left out."""
        return self.gamma < 0.99

    def __call__(self, clean: Tensor, perturbed: Tensor, weights: Tensor | None = None) -> Tensor:
        """Indices of the kept examples, in order; `weights` say what each counts for, None that all count the same."""
        counted = None if weights is None else weights.nonzero().squeeze(1)
        rise = perturbed - clean if counted is None else (perturbed - clean)[counted]
        count = min(len(rise), max(1, round(self.gamma * len(rise))))
        kept = torch.sort(torch.topk(rise, count).indices).values
        return kept if counted is None else counted[kept]


@dataclass
class InverseSlope:
    """delta-SAM: weights a_i proportional to s_i^τ, s_i an estimate of ‖∇ℓ_i‖, clamped below at 1e-3 of its median.

    "exact": the norms of the per-example gradients, one backward pass each. "difference": |ℓ_i(w + ξn) - ℓ_i(w)| / ξ,
    n ~ N(0, I), averaged over `draws`, whose mean is √(2/π) ‖∇ℓ_i‖ to first order.

    With examples that count differently in the loss, c_i as in `ExampleLosses`, a_i is proportional to c_i s_i^τ, and
    ℓ_i is without c_i: an example that counts twice is the same as two of them, one that does not count as none.

    Our rule: that the per-instance perturbation is approximated by a reweighted one is all that could be confirmed for
    Zhou et al. (2022). With a shared Hessian, per-instance SAM needs Σ H ∇ℓ_i/‖∇ℓ_i‖, hence τ = -1.

    Attributes:
        generator: Of n.
        tau: τ; 0 is SAM.
        estimator: How s is found.
        draws: Noise draws of "difference".
        xi: ξ.
        normalise: True gives weights that sum to one (the step is then of length ρ); False (1/n) s_i^τ.
    """

    generator: Generator
    tau: float = -1.0
    estimator: Literal["exact", "difference"] = "difference"
    draws: int = 1
    xi: float = 1e-2
    normalise: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.tau):
            raise ValueError(f"`tau` must be finite, got {self.tau!r}.")
        if self.draws < 1:
            raise ValueError(f"`draws` must be at least 1, got {self.draws}.")
        if not (math.isfinite(self.xi) and self.xi > 0):
            raise ValueError(f"`xi` must be finite and above 0, got {self.xi!r}.")

    def __call__(self, slopes: Tensor, weights: Tensor | None = None) -> Tensor:
        """What the values of `ExampleLosses`, c_i ℓ_i, are multiplied by, from their slopes and c."""
        if weights is not None:
            counted = weights.nonzero().squeeze(1)
            factors, c = torch.zeros_like(slopes), weights[counted].to(slopes.dtype)
            a = self._powers(slopes[counted] / c)
            return factors.index_put((counted,), a / (c * a).sum() if self.normalise else a / len(slopes))
        a = self._powers(slopes)
        return a / a.sum() if self.normalise else a / len(a)

    def _powers(self, slopes: Tensor) -> Tensor:
        """s^τ, with s clamped."""
        if not len(slopes):
            return slopes
        floor = (1e-3 * wide(slopes.median())).to(slopes.dtype)
        s = torch.where(floor > 0, slopes.clamp_min(floor), torch.where(slopes > 0, slopes, torch.ones_like(slopes)))
        return s**self.tau
