"""How the gradients of a chunk become the one handed to the base optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from landscape.params import Params, inner
from landscape.perturbation import TINY


class Combiner(Protocol):
    """Maps (clean gradient, unit direction, perturbed gradient) to the gradient u of the base optimizer.

    `clean` is the gradient of the ascent objective at the clean weights, None for sources that use none; `unit()` gives
    the displacement divided by ρ; `perturbed` is the gradient of the training loss at the displaced weights.
    """

    @property
    def active(self) -> bool:
        """Whether the combiner is called at all; the perturbed gradient is used as it is otherwise."""

    def __call__(self, clean: Params | None, unit: Callable[[], Params], perturbed: Params) -> Params: ...


@dataclass(frozen=True)
class TakePerturbed:
    """u = g_p: SAM and all that only change the perturbation."""

    active: bool = False

    def __call__(self, clean: Params | None, unit: Callable[[], Params], perturbed: Params) -> Params:
        return perturbed


@dataclass(frozen=True)
class SurrogateGap:
    """GSAM: u = g_p - α (a - ⟨a, ĝ_p⟩ ĝ_p), the perturbed gradient less the part of a that is orthogonal to it.

    With `minimize="clean"` the roles are exchanged: u = a + α (g_p - ⟨g_p, â⟩ â).

    Attributes:
        alpha: α, finite; relative to ‖a‖ for backup "gradient", an absolute gradient size for "direction".
        backup: "gradient" stores a itself; "direction" the normalised displacement (`backup_normalized` in the code
            of Vani et al. 2024).
        minimize: Which loss the first term descends.

    Source:
        Zhuang et al. (2022), ICLR, Algorithm 1; "clean" as the switch of its JAX code. With an ascent objective other
        than the training loss, a is that objective's gradient, as in Vani et al. (2024).
    """

    alpha: float = 0.4
    backup: Literal["gradient", "direction"] = "gradient"
    minimize: Literal["perturbed", "clean"] = "perturbed"
    active: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"`alpha` must be finite, got {self.alpha!r}.")

    def __call__(self, clean: Params | None, unit: Callable[[], Params], perturbed: Params) -> Params:
        a = unit() if self.backup == "direction" else clean
        if a is None:
            raise ValueError("GSAM needs a gradient at the clean weights; use an ascent source that has one.")
        base, other, sign = (perturbed, a, -1.0) if self.minimize == "perturbed" else (a, perturbed, 1.0)
        share = inner(other, base) / (inner(base, base) + TINY**2)
        return {k: base[k] + sign * self.alpha * (other[k] - share * base[k]) for k in base}
