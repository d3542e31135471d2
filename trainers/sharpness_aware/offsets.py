"""Sources that displace the weights before the ascent, or past the radius: R-SAM, Lookahead-SAM, bSAM."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from landscape.params import Params
from landscape.perturbation import random_direction
from trainers.sharpness_aware.ascent import AscentSource, Means, scaled
from trainers.sharpness_aware.memory import keep
from trainers.sharpness_aware.moment import Moment


@dataclass
class Smoothed(AscentSource):
    """R-SAM: the ascent gradient at noisy weights w + Δ, and the displacement keep · Δ + ρ g_Δ/‖g_Δ‖.

    Δ_l = σ ‖w_l‖ n_l/‖n_l‖ for each tensor (or filter) l, n ~ N(0, I); a tensor of norm zero gets no noise. Our rule:
    only the idea, noise first and then one step of ascent, could be confirmed for Liu et al. (2022). The pass at w + Δ
    is also the one that updates running statistics and gives the logged loss.

    Attributes:
        generator: Of n; ranks need different ones.
        sigma: σ ≥ 0; 0 is SAM.
        keep: Multiple of Δ that stays in the displacement.
        per: Whose norm scales the noise.
    """

    keeps = ("generator",)
    generator: Generator
    sigma: float = 0.1
    keep: float = 1.0
    per: Literal["tensor", "filter"] = "tensor"
    delta: Params = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"`sigma` must be finite and >= 0, got {self.sigma!r}.")
        self.inert_at_zero, self.moves_besides = self.sigma == 0, self.sigma != 0

    def start(self, moment: Moment) -> Params | None:
        if self.sigma == 0:
            return None
        noise = random_direction(moment.theta, self.generator)
        self.delta = {name: self._scaled_noise(w, noise[name]) for name, w in moment.theta.items()}
        return self.delta

    def _scaled_noise(self, w: Tensor, n: Tensor) -> Tensor:
        if self.per == "filter" and w.ndim > 1:
            dims = tuple(range(1, w.ndim))
            size, length = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (w, n))
        else:
            size, length = torch.linalg.vector_norm(w), torch.linalg.vector_norm(n)
        noise: Tensor = n * (self.sigma * size / length)
        return noise

    def offset(self, moment: Moment, grad: Params | None) -> Params | None:
        return scaled(self.delta, self.keep) if self.sigma and self.keep else None


@dataclass
class Extrapolated(AscentSource):
    """Lookahead-SAM: a step of descent beside the perturbation.

    "eg": w~ = w + ρ ĝ - η g, the extra-gradient form, SAM of radius ρ - η‖g‖. "og": w~ = w + ρ ĝ - η g~_{t-1}, the
    optimistic form, with g~ the gradient that the previous step took (zero at first). η is the learning rate of each
    parameter's group.

    Source:
        Yu, Zhang, Kwok (2024), "Improving sharpness-aware minimization by lookahead", as given in the public reviews
        of an earlier version; where OG takes its ascent gradient could not be confirmed: at w_t here.
    """

    keeps = ("previous",)
    form: Literal["eg", "og"] = "og"
    previous: Params = field(default_factory=dict, init=False)
    inert_at_zero: bool = field(default=False, init=False)
    moves_besides: bool = field(default=True, init=False)

    def offset(self, moment: Moment, grad: Params | None) -> Params | None:
        rates = moment.rates()
        back = {name: g for name, g in ((grad or {}) if self.form == "eg" else self.previous).items() if name in rates}
        if not back:
            return None
        return dict(zip(back, torch._foreach_mul(list(back.values()), [-rates[n] for n in back]), strict=True))

    def observe(self, moment: Moment, means: Means) -> None:
        if self.form == "og":
            self.previous = keep(self.previous, means.final)


@dataclass
class Posterior(AscentSource):
    """bSAM: the ascent gradient at a draw θ = ω + n/√(N s) from the posterior; the displacement itself starts from ω.

    Each chunk adds its share of h = √s |g| to what the base optimizer `BSAM` reads as `curvature`.

    Attributes:
        generator: Of n; ranks need different ones.

    Source:
        Möllenhoff and Khan (2023), ICLR, Algorithm 1 and its code.
    """

    keeps = ("generator",)
    generator: Generator
    inert_at_zero: bool = field(default=False, init=False)
    moves_besides: bool = field(default=True, init=False)

    def start(self, moment: Moment) -> Params | None:
        precision, examples = moment.kept("precision"), _examples(moment)
        noise = random_direction(moment.theta, self.generator)
        return {name: noise[name] / (examples * precision[name]).sqrt() for name in moment.theta}

    def chunk(self, moment: Moment, grad: Params | None, weight: float) -> None:
        assert grad is not None
        assert moment.base is not None
        precision = moment.kept("precision")
        for name, g in grad.items():
            state = moment.base.state[moment.parameters[name]]
            share = weight * precision[name].sqrt() * g.abs()
            state["curvature"] = share if state.get("curvature") is None else state["curvature"] + share

    def forget(self, moment: Moment) -> None:
        assert moment.base is not None
        for p in moment.parameters.values():
            moment.base.state[p].pop("curvature", None)

    def shared(self, moment: Moment) -> list[Params]:
        assert moment.base is not None
        for name, p in moment.parameters.items():
            if moment.base.state[p].get("curvature") is None:
                moment.base.state[p]["curvature"] = torch.zeros_like(moment.theta[name])
        return [moment.kept("curvature")]


def _examples(moment: Moment) -> float:
    assert moment.base is not None
    return float(moment.base.param_groups[0]["examples"])
