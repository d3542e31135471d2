"""Sources that remember: directions made from what earlier steps left behind."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from landscape.params import Params, wide_inner
from landscape.perturbation import TINY
from landscape.spread import held_here
from trainers.sharpness_aware.ascent import AscentSource, Means, combination, scaled
from trainers.sharpness_aware.moment import Moment


@dataclass
class Momentum(AscentSource):
    """MSAM: against the momentum buffer, d = -v, so that the weights go on in the direction they have been moving.

    v is `momentum_buffer` of SGD or `exp_avg` of Adam (the normalisation makes Adam's bias correction irrelevant).
    Without a buffer yet the weights stay where they are. The perturbation costs no pass, and no clean loss is seen.

    Source:
        Becker, Altrock, Risse (2024), "Momentum-SAM", Algorithm 1 and its code.
    """

    needs_gradient: bool = field(default=False, init=False)
    sign: float = field(default=-1.0, init=False)

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        return moment.kept("momentum_buffer") or moment.kept("exp_avg") or None


@dataclass
class PreviousGradient(AscentSource):
    """S2-SAM: the gradient that the previous step took, at its perturbed point; none at the first step.

    Our rule: only the idea (the gradient of the prior step, one gradient a step) could be confirmed for Ji et al.
    (2024). The same scheme is called OptSAM in the paper of SAMPa, where it is shown not to converge on a quadratic
    with a constant radius: expect a floor that grows with ρ.
    """

    keeps = ("stored",)
    needs_gradient: bool = field(default=False, init=False)
    keeps_final: bool = field(default=True, init=False)
    stored: Params = field(default_factory=dict, init=False)

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        return self.stored or None

    def observe(self, moment: Moment, means: Means) -> None:
        self.stored = means.final


@dataclass
class Ahead(PreviousGradient):
    """SAMPa: the gradient that the previous step took at its point ahead, y; none at the first step.

    Source:
        Xie, Pethick, Cevher (2024), "SAMPa", NeurIPS.
    """

    keeps_final: bool = field(default=False, init=False)
    inert_at_zero: bool = field(default=False, init=False)
    moves_besides: bool = field(default=True, init=False)

    def observe(self, moment: Moment, means: Means) -> None:
        assert means.ahead is not None
        self.stored = keep(self.stored, means.ahead)


@dataclass
class EmaResidual(AscentSource):
    """F-SAM: the gradient less σ times its running mean, so that what is left is mostly the noise of the batch.

    "code": d_t = g_t - σ m_{t-1}, with m_0 = g_0 and the first direction g_0. "paper": d_t = g_t - σ m_t, from
    m_{-1} = 0. Both update m_t = λ m_{t-1} + (1 - λ) g_t with the raw gradient, the mean over chunks and ranks. For
    σ = 1 the two give the same direction from the same m_{t-1}.

    Attributes:
        sigma: σ; 0 is SAM.
        decay: λ in [0, 1).
        form: Whose rule.

    Source:
        Li et al. (2024), "Friendly sharpness-aware minimization", CVPR, and its code; the mean over ranks is ours.
    """

    keeps = ("average",)
    sigma: float = 1.0
    decay: float = 0.9
    form: Literal["code", "paper"] = "code"
    average: Params = field(default_factory=dict, init=False)
    observes: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.sigma):
            raise ValueError(f"`sigma` must be finite, got {self.sigma!r}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {self.decay!r}.")

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        assert grad is not None
        if self.sigma == 0:
            return grad
        if self.form == "code":
            return combination(1.0, grad, -self.sigma, _beside(self.average, grad)) if self.average else grad
        old = _beside(self.average, grad)
        return combination(1 - self.sigma * (1 - self.decay), grad, -self.sigma * self.decay, old)

    def observe(self, moment: Moment, means: Means) -> None:
        assert means.ascent is not None
        if not self.average and self.form == "code":
            self.average = keep(self.average, means.ascent)
        else:
            self.average = _averaged(self.average, means.ascent, self.decay)


@dataclass
class Averaged(AscentSource):
    """VaSSO: a running mean of gradients, d_t = (1 - θ) d_{t-1} + θ g_t, from d_{-1} = g_0.

    Each chunk adds its own gradient to the mean of the steps before; the mean goes on with that of the whole batch.

    Attributes:
        theta: θ in (0, 1]; 1 is SAM.

    Source:
        Li and Giannakis (2023), "Enhancing sharpness-aware optimization through variance suppression"; rule from
        memory, the start and the treatment of chunks are ours.
    """

    keeps = ("average",)
    theta: float = 0.4
    average: Params = field(default_factory=dict, init=False)
    observes: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.theta <= 1:
            raise ValueError(f"`theta` must be in (0, 1], got {self.theta!r}.")

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        assert grad is not None
        if not self.average or self.theta == 1:
            return grad
        return combination(self.theta, grad, 1 - self.theta, _beside(self.average, grad))

    def observe(self, moment: Moment, means: Means) -> None:
        assert means.ascent is not None
        first = not self.average
        self.average = (
            keep(self.average, means.ascent) if first else _averaged(self.average, means.ascent, 1 - self.theta)
        )


@dataclass
class Components(AscentSource):
    """The batch gradient split along a reference gradient G: d = `along` · proj + `across` · noise.

    proj = (⟨g, G⟩ / ‖G‖²) G and noise = g - proj, G the gradient over the reference data, taken afresh every
    `refresh_every` steps. (1, 1) is SAM, (0, 1) perturbs by the noise alone, (1, 0) by the full-gradient part alone.

    Attributes:
        along: Multiple of the projection.
        across: Multiple of the noise.
        refresh_every: Steps between two reference gradients.

    Source:
        The analysis of Li et al. (2024), F-SAM, sec. 3; the amortised reference is ours.
    """

    keeps = ("full",)
    along: float = 0.0
    across: float = 1.0
    refresh_every: int = 100
    full: Params = field(default_factory=dict, init=False)
    reference: Literal["", "gradient"] = field(default="gradient", init=False)

    def __post_init__(self) -> None:
        if self.refresh_every < 1:
            raise ValueError(f"`refresh_every` must be at least 1, got {self.refresh_every}.")

    def direction(self, moment: Moment, grad: Params | None) -> Params | None:
        assert grad is not None
        projected, noise = split_along(grad, self.full)
        return combination(self.along, projected, self.across, noise)

    def wants_reference(self, t: int) -> bool:
        return t % self.refresh_every == 0 or not self.full

    def refresh(self, reference: Params) -> None:
        self.full = reference


def split_along(grad: Params, full: Params) -> tuple[Params, Params]:
    """The projection of a gradient on another, and what is left; both over all tensors jointly."""
    common = {name: full[name] for name in grad if name in full}
    share = wide_inner(common, grad) / (wide_inner(common, common) + TINY**2)
    along = scaled(common, share)
    projected = {n: along[n] if n in along else torch.zeros_like(g) for n, g in grad.items()}
    return projected, {n: g - projected[n] for n, g in grad.items()}


def _beside(kept: Params, grad: Params) -> Params:
    """What is kept of the parameters that have a gradient: the others are not displaced."""
    return {name: kept[name] for name in grad if name in kept}


def keep(old: Params, new: Params) -> Params:
    """A copy of `new`, in the memory of `old` where the shapes fit."""
    if old.keys() == new.keys() and old:
        torch._foreach_copy_([held_here(t) for t in old.values()], [held_here(new[name]) for name in old])
        return old
    return {name: t.detach().clone() for name, t in new.items()}


def _averaged(old: Params, new: Params, decay: float) -> Params:
    """Decay · old + (1 - decay) · new, in place; names that `old` lacks start from zero."""
    for name, t in new.items():
        if name not in old:
            old[name] = torch.zeros_like(t)
    torch._foreach_mul_(list(old.values()), decay)
    torch._foreach_add_([old[n] for n in new], list(new.values()), alpha=1 - decay)
    return old
