"""How the gradients of a chunk become the one handed to the base optimizer.

Weighted sums of the gradients at w and w ± eps, projections, and what is stored for later steps. The penalties of the
universal class are in `penalties`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from landscape.params import Params, wide_inner, wide_norm
from landscape.perturbation import TINY
from trainers.sharpness_aware.ascent import combination, mix, scaled
from trainers.sharpness_aware.moment import Moment, Part


@dataclass
class Point:
    """A gradient of the training loss away from the clean weights.

    Attributes:
        gradient: The gradient.
        loss: The training loss there.
        sign: Multiple of the displacement.
        draw: Which of the plan's draws.
    """

    gradient: Params
    loss: Tensor
    sign: float = 1.0
    draw: int = 0


@dataclass
class Seen:
    """What one chunk has seen.

    Attributes:
        moment: The step.
        weight: The chunk's share of the batch.
        ascent: Gradient of the ascent objective; None for sources that use none.
        clean: Gradient of the training loss at the clean weights; None unless `needs_loss_gradient`, or the same as
            `ascent`.
        clean_loss: Training loss at the clean weights, where seen.
        points: Gradients at displaced weights, in order; inner steps first.
        unit: Makes the displacement divided by ρ.
        ahead: Gradient at the plan's point ahead.
    """

    moment: Moment
    weight: float
    ascent: Params | None
    clean: Params | None
    clean_loss: Tensor | None
    points: list[Point]
    unit: Callable[[], Params]
    ahead: Params | None = None

    @property
    def perturbed(self) -> Params:
        """The gradient at w + eps."""
        return self.points[-1].gradient


class Combiner(Part):
    """Maps what a chunk has seen to the gradient u of the base optimizer.

    Attributes:
        active: Whether the combiner is called at all; the perturbed gradient is used as it is otherwise.
        needs_loss_gradient: Whether it needs the training loss's gradient at w even if another objective is ascended.
        decoupled: Whether `extra` is added to the weights outside the base optimizer: w ← w - lr · extra.
        stores: Whether `reuse` and `commit` do anything.
        by_loss: Whether it computes with losses too, and not with gradients alone.
    """

    active: bool = True
    needs_loss_gradient: bool = False
    decoupled: bool = False
    stores: bool = False
    by_loss: bool = False

    def __call__(self, seen: Seen) -> Params:
        """The chunk's gradient u."""
        raise NotImplementedError

    def extra(self, seen: Seen) -> Params:
        """The chunk's decoupled direction."""
        raise NotImplementedError

    def reuse(self, moment: Moment, grad: Params) -> Params:
        """The gradient of a step that reuses an earlier perturbation, from the clean one."""
        return grad

    def commit(self) -> None:
        """Called at the end of a perturbed step: what its chunks stored takes effect."""


@dataclass
class TakePerturbed(Combiner):
    """u = g_p: SAM and all that only change the perturbation."""

    active: bool = field(default=False, init=False)

    def __call__(self, seen: Seen) -> Params:
        return seen.perturbed


@dataclass
class SurrogateGap(Combiner):
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

    def __post_init__(self) -> None:
        _check_finite(alpha=self.alpha)

    def __call__(self, seen: Seen) -> Params:
        a = seen.unit() if self.backup == "direction" else seen.ascent
        if a is None:
            raise ValueError("GSAM needs a gradient at the clean weights; use an ascent source that has one.")
        perturbed = seen.perturbed
        base, other, sign = (perturbed, a, -1.0) if self.minimize == "perturbed" else (a, perturbed, 1.0)
        share = wide_inner(other, base) / (wide_inner(base, base) + TINY**2)
        join = mix if base is perturbed else combination  # u = base + sign α (other - share base)
        return join(1 - sign * self.alpha * share, base, sign * self.alpha, other)


@dataclass
class Weighted(Combiner):
    """WSAM, coupled: u = (1 - c) g + c g_p; the gradient-norm penalty and G-RST are the same form.

    Attributes:
        c: Weight of the perturbed gradient; for WSAM γ/(1 - γ), 1 is SAM.

    Source:
        Yue et al. (2023), "Sharpness-aware minimization revisited: weighted sharpness as a regularization term", KDD,
        from two re-implementations. Zhao et al. (2022) for the gradient-norm penalty.
    """

    c: float
    needs_loss_gradient: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_finite(c=self.c)
        self.active = self.c != 1.0
        self.needs_loss_gradient = self.active

    def __call__(self, seen: Seen) -> Params:
        assert seen.clean is not None
        return mix(self.c, seen.perturbed, 1 - self.c, seen.clean)


@dataclass
class Decoupled(Weighted):
    """WSAM, decoupled: the base optimizer steps with g, and w ← w - lr c (g_p - g) past its momentum and scaling.

    lr is the step's learning rate, group by group.

    Source:
        As `Weighted`.
    """

    decoupled: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_finite(c=self.c)

    def __call__(self, seen: Seen) -> Params:
        assert seen.clean is not None
        return seen.clean

    def extra(self, seen: Seen) -> Params:
        assert seen.clean is not None
        return mix(self.c, seen.perturbed, -self.c, seen.clean)


@dataclass
class LookAgain(Combiner):
    """LookSAM: store g_v, the part of g_p orthogonal to g; on the steps between, u = g + α (‖g‖/‖g_v‖) g_v.

    With chunks, and over ranks, g_v is the weighted mean.

    Attributes:
        alpha: α.

    Source:
        Liu et al. (2022), "Towards efficient and scalable sharpness-aware minimization", CVPR; three re-implementations
        agree on the rule.
    """

    keeps = ("stored",)
    alpha: float = 0.7
    stored: Params = field(default_factory=dict, init=False)
    stores: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _check_finite(alpha=self.alpha)
        self._building: Params = {}
        self._size: Tensor | float = 0.0

    def __call__(self, seen: Seen) -> Params:
        assert seen.ascent is not None
        g, perturbed = seen.ascent, seen.perturbed
        share = wide_inner(perturbed, g) / (wide_inner(g, g) + TINY**2)
        part = combination(seen.weight, perturbed, -seen.weight * share, g)
        self._building = {**self._building, **mix(1.0, part, 1.0, self._building)}
        return perturbed

    def shared(self, moment: Moment) -> list[Params]:
        return [self._building]

    def forget(self, moment: Moment) -> None:
        self._building = {}

    def commit(self) -> None:
        if self._building:
            self.stored, self._building = self._building, {}
            self._size = wide_norm(self.stored)

    def reuse(self, moment: Moment, grad: Params) -> Params:
        if not self.stored:
            return grad
        stored = {name: self.stored[name] for name in grad if name in self.stored}
        size = self._size if len(stored) == len(self.stored) else wide_norm(stored)  # some are trained no more
        return mix(1.0, grad, self.alpha * wide_norm(grad) / (size + TINY), stored)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._size = wide_norm(self.stored)


@dataclass
class Curvature(Combiner):
    """CR-SAM: u = g_+ + γ (g_+ + g_- - 2g) + β (g_+ - g_-), with g_± at w ± eps.

    (g_+ + g_- - 2g)/ρ² is the gradient of v'Hv along the ascent direction, (g_+ - g_-)/(2ρ) that of ‖g‖. With
    `by_loss` the brackets are divided by L_+ + L_- - 2L and L_+ - L_-, which makes them gradients of logarithms; a
    bracket whose divisor is below 1e-8 is left out.

    Attributes:
        gamma: γ.
        beta: β.
        by_loss: Divide by the differences of the losses.

    Source:
        Wu, Luo, Wunsch (2024), CR-SAM, AAAI: the code. `by_loss` is the paper's form from memory.
    """

    gamma: float = 0.1
    beta: float = 0.01
    by_loss: bool = False

    def __post_init__(self) -> None:
        _check_finite(gamma=self.gamma, beta=self.beta)
        self.needs_loss_gradient = True

    def __call__(self, seen: Seen) -> Params:
        assert seen.clean is not None
        plus, minus = seen.points
        gamma, beta = self.gamma, self.beta
        if self.by_loss:
            assert seen.clean_loss is not None
            up, down, here = numbers(plus.loss, minus.loss, seen.clean_loss)
            gamma = gamma / (up + down - 2 * here) if up + down - 2 * here > 1e-8 else 0.0
            beta = beta / (up - down) if up - down > 1e-8 else 0.0
        ends = mix(1 + gamma + beta, plus.gradient, gamma - beta, minus.gradient)
        return mix(1.0, ends, -2 * gamma, seen.clean)


@dataclass
class Mix(Combiner):
    """SAMPa: u = (1 - λ) g_p + λ g_y, g_y the gradient at the point ahead.

    Attributes:
        lam: λ in [0, 1].

    Source:
        Xie, Pethick, Cevher (2024), NeurIPS.
    """

    lam: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ValueError(f"`lam` must be in [0, 1], got {self.lam!r}.")

    def __call__(self, seen: Seen) -> Params:
        assert seen.ahead is not None
        return mix(1 - self.lam, seen.perturbed, self.lam, seen.ahead)


@dataclass
class Total(Combiner):
    """Lookbehind-SAM: u = α Σ_i g(p_i), which for plain SGD is w ← w + α (φ_k - w) with φ_i = φ_{i-1} - lr g(p_i).

    For another base optimizer the same sum is handed to it (ours).

    Attributes:
        alpha: α.

    Source:
        Mordido et al. (2024), "Lookbehind-SAM: k steps back, 1 step forward", ICML, as collected by others.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        _check_finite(alpha=self.alpha)

    def __call__(self, seen: Seen) -> Params:
        total = scaled(seen.points[0].gradient, self.alpha)
        for point in seen.points[1:]:
            total = mix(1.0, total, self.alpha, point.gradient)
        return total


@dataclass
class Rescaled(Combiner):
    """One gradient's direction with the other's length.

    Attributes:
        direction: "perturbed" gives u = g_p ‖g‖/‖g_p‖, Stable SAM; "clean" gives u = g ‖g_p‖/‖g‖, which takes from SAM
            the step size alone (Andriushchenko and Flammarion 2022, code).
    """

    direction: Literal["perturbed", "clean"] = "perturbed"

    def __post_init__(self) -> None:
        self.needs_loss_gradient = True

    def __call__(self, seen: Seen) -> Params:
        assert seen.clean is not None
        along, other = (seen.perturbed, seen.clean) if self.direction == "perturbed" else (seen.clean, seen.perturbed)
        return scaled(along, wide_norm(other) / (wide_norm(along) + TINY))


def numbers(*losses: Tensor) -> list[float]:
    """Losses on the host, at one wait for all of them."""
    found: list[float] = torch.stack([loss.detach().reshape(()) for loss in losses]).tolist()
    return found


def _check_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be finite, got {value!r}.")
