"""The perturbation of the weights that SAM ascends, and that a sharpness or forgetting measure applies: one object.

A perturbation maps weights θ and a raw ascent direction (a gradient, or noise) to a displacement δ, *added* to θ.
It never calls a model, so the optimizer and the measures share it and cannot drift apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from landscape.params import Params, norm, times, wide, wide_norm
from landscape.randomness import source_of
from landscape.spread import held_here

TINY = 1e-12


@runtime_checkable
class Perturbation(Protocol):
    """Maps weights and a raw direction to the displacement δ; same keys and shapes as the direction."""

    def __call__(self, theta: Params, grad: Params) -> Params: ...


@runtime_checkable
class Metric(Protocol):
    """Maps weights θ to a positive diagonal T(θ), tensor by tensor; the ball is then ‖T⁻¹δ‖ ≤ ρ."""

    def __call__(self, theta: Params) -> Params: ...


def check_radius(rho: float, name: str = "rho") -> None:
    """Raise a ValueError unless `rho` is a finite radius ≥ 0 (NaN is refused too)."""
    if not isinstance(rho, Real | Tensor) or not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"`{name}` must be a finite radius >= 0, got {rho!r}.")


@dataclass(frozen=True)
class _OfWeights:
    """A metric made from the sizes of the weights: `_of` where the scope says so, 1 elsewhere."""

    eta: float = 0.0
    scope: Literal["all", "weights"] = "all"

    def __post_init__(self) -> None:
        check_radius(self.eta, "eta")

    def __call__(self, theta: Params) -> Params:
        chosen = {name for name in theta if self.scope == "all" or "weight" in name}
        return {name: self._of(t) if name in chosen else torch.ones_like(t) for name, t in theta.items()}

    def _of(self, t: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class AbsWeight(_OfWeights):
    """T = |θ| + η, elementwise: ASAM's metric (Kwon et al. 2021).

    Attributes:
        eta: η ≥ 0. With η = 0 a weight that is exactly zero is never perturbed.
        scope: "all" scales every parameter (as most public ports do); "weights" scales those whose name contains
            "weight" and leaves T = 1 elsewhere (as the official code does).
    """

    def _of(self, t: Tensor) -> Tensor:
        return t.abs() + self.eta if self.eta else t.abs()

    def scaling(self, theta: Params) -> Params:
        """T without the tensors that it leaves as they are."""
        scaled = [name for name in theta if self.scope == "all" or "weight" in name]
        sizes = list(torch._foreach_abs([theta[name] for name in scaled])) if scaled else []
        if self.eta and sizes:
            torch._foreach_add_(sizes, self.eta)
        return dict(zip(scaled, sizes, strict=True))


@dataclass(frozen=True)
class TensorNorm(_OfWeights):
    """T = ‖θ_l‖ + η for every entry of tensor l: layerwise ASAM. `scope` as for `AbsWeight`."""

    def _of(self, t: Tensor) -> Tensor:
        size: Tensor = torch.ones_like(t) * (torch.linalg.vector_norm(t) + self.eta)
        return size


@dataclass(frozen=True)
class FilterNorm(_OfWeights):
    """T = norm of the output-channel slice (filter, row), constant inside it; entrywise for 1-d tensors.

    `scope` as for `AbsWeight`.
    """

    def _of(self, t: Tensor) -> Tensor:
        if t.ndim <= 1:
            return t.abs() + self.eta
        size: Tensor = torch.linalg.vector_norm(t.flatten(1), dim=1).view(-1, *[1] * (t.ndim - 1))
        return (size + self.eta).expand_as(t)


@dataclass(frozen=True)
class Constant:
    """T is one number for each tensor.

    Attributes:
        values: The number by name, above 0; tensors that are not named get 1.
    """

    values: Mapping[str, float]

    def __post_init__(self) -> None:
        bad = {name: v for name, v in self.values.items() if not (math.isfinite(v) and v > 0)}
        if bad:
            raise ValueError(f"`values` must be finite and above 0, got {bad}.")

    def __call__(self, theta: Params) -> Params:
        return {name: torch.full_like(t, self.values.get(name, 1.0)) for name, t in theta.items()}


@dataclass(frozen=True)
class AscentStep:
    """One step of length ρ up a raw direction a: the maximiser of ⟨a, δ⟩ over the ball ‖T⁻¹δ‖_p ≤ ρ.

    With 1/p + 1/q = 1 and dual_p(x) = sign(x) |x|^(q-1) / ‖x‖_q^(q-1), the maximiser of ⟨x, u⟩ over ‖u‖_p ≤ 1:

        where = "both":    δ = ρ T dual_p(T a)          ASAM; for p = 2, δ = ρ T² a / ‖T a‖
        where = "before":  δ = ρ dual_p(T a)            ‖δ‖_p = ρ
        where = "after":   δ = ρ T dual_p(a)            GSAM's "adaptive" form
        normalise = False: δ = ρ T² a                   USAM (T = I); `where` counts as above

    All norms run over all tensors jointly, unless `over` is "tensor". A zero direction, or one with an entry that is
    not finite, gives δ = 0. For p = 1 the whole step goes to the first entry of largest magnitude.

    Attributes:
        rho: ρ ≥ 0, in units of θ for T = I, relative to T otherwise; in units of θ / gradient for `normalise=False`.
        p: Exponent of the norm, in [1, inf].
        metric: T, or None for T = I.
        where: On which side of the normalisation T is applied.
        normalise: False leaves out the division by the norm (unnormalised SAM).
        over: "all" normalises all tensors jointly, "tensor" each by itself (p = 2 only): ‖T⁻¹δ_l‖ ≤ ρ for every l.

    Source:
        Foret et al. (2021), eq. 2; Kwon et al. (2021), eq. 6. "before" and "after" are the options of the code of
        Vani et al. (2024); see `AbsWeight` for what differs between public versions of ASAM.
    """

    rho: float
    p: float = 2.0
    metric: Metric | None = None
    where: Literal["both", "before", "after"] = "both"
    normalise: bool = True
    over: Literal["all", "tensor"] = "all"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if self.over not in ("all", "tensor"):
            raise ValueError(f"`over` must be 'all' or 'tensor', got {self.over!r}.")
        if self.over == "tensor" and (self.p != 2 or not self.normalise):
            raise ValueError(f"`over` 'tensor' needs `p` 2 and a normalised step, got p {self.p!r}.")
        if not self.p >= 1:
            raise ValueError(f"`p` must be in [1, inf], got {self.p!r}.")
        if self.where not in ("both", "before", "after"):
            raise ValueError(f"`where` must be 'both', 'before' or 'after', got {self.where!r}.")

    def __call__(self, theta: Params, grad: Params) -> Params:
        return self.unit(theta, grad).as_params(self.rho)

    def direction(self, theta: Params, grad: Params) -> Params:
        """The displacement for ρ = 1; δ is ρ times this."""
        return self.unit(theta, grad).as_params()

    def unit(self, theta: Params, grad: Params) -> "Direction":
        """The displacement for ρ = 1 as tensors times one number, so that no pass over the weights is wasted."""
        if self.metric is None and self.p == 2 and self.over == "all":  # the usual case, without passes over names
            size = wide_norm(grad)
            return Direction(grad, _inverse(size) if self.normalise else torch.isfinite(size).to(size.dtype), size)
        names, parts = list(grad), list(grad.values())
        scale: Params = {}
        if self.metric is not None:
            here = {name: theta[name] for name in names}
            if isinstance(self.metric, AbsWeight):
                scale = self.metric.scaling(here)
            else:
                found = self.metric(here)
                scale = {name: found[name] for name in names}
        if self.where != "after":
            parts = _multiplied(names, parts, scale)
        held = dict(zip(names, parts, strict=True))
        size = wide_norm(held) if self.p == 2 or not parts else wide(norm(held, math.inf))
        euclidean = self.p == 2 and self.over == "all"
        known: Tensor | None = size if euclidean else None
        usable = torch.isfinite(size) & (size > 0) if self.normalise else torch.isfinite(size)
        factor = _inverse(size) if self.normalise and euclidean else usable.to(size.dtype)
        if self.over == "tensor":
            parts = [t / (torch.linalg.vector_norm(t) + TINY) for t in parts]
        elif self.normalise and self.p != 2:
            parts = _dual(parts, torch.where(usable, size, 1.0), self.p)
        if scale and self.where != "before":
            if self.where == "both" and self.p == 2:  # these were made above
                torch._foreach_mul_([t for n, t in zip(names, parts, strict=True) if n in scale], list(scale.values()))
            else:
                parts = _multiplied(names, parts, scale)
            known = None
        return Direction(dict(zip(names, parts, strict=True)), factor, known)


@dataclass(frozen=True)
class Direction:
    """A displacement for ρ = 1: `factor` times `parts`.

    Nothing is read back to make one: where there is no direction, because it is zero or not finite, the factor is 0.

    Attributes:
        parts: Tensors; they may be the gradient's own.
        factor: The number they are to be multiplied by, without dimensions on their device.
        known_size: The l2 norm of the parts where that came for free.
    """

    parts: Params
    factor: Tensor | float
    known_size: Tensor | None = None

    @property
    def size(self) -> Tensor:
        """The l2 norm of the parts, over all tensors jointly."""
        return wide_norm(self.parts) if self.known_size is None else self.known_size

    def as_params(self, rho: float = 1.0) -> Params:
        """The displacement itself for a radius, as new tensors; zero where there is no direction."""
        made = dict(zip(self.parts, times(list(self.parts.values()), rho * self.factor), strict=True))
        without_gaps(made)
        return made


def _inverse(size: Tensor) -> Tensor:
    """1 over a size; 0 for one that is not finite, and finite for one of zero, whose parts are zero."""
    return (size + TINY).reciprocal_().nan_to_num_(0.0, 0.0, 0.0)


def without_gaps(parts: Params) -> None:
    """Set entries that are not finite to zero, in place: a factor of 0 then gives zero."""
    for t in parts.values():
        torch.nan_to_num_(held_here(t), 0.0, 0.0, 0.0)


def _multiplied(names: Sequence[str], parts: list[Tensor], scale: Params) -> list[Tensor]:
    """The parts times T, as new tensors; those that T leaves as they are stay themselves."""
    if not scale:
        return parts
    chosen = [t for name, t in zip(names, parts, strict=True) if name in scale]
    made = dict(zip(scale, torch._foreach_mul(chosen, list(scale.values())), strict=True))
    return [made.get(name, t) for name, t in zip(names, parts, strict=True)]


def _dual(parts: list[Tensor], largest: Tensor, p: float) -> list[Tensor]:
    """The maximiser of ⟨x, u⟩ over ‖u‖_p ≤ 1 for p ≠ 2; `largest` is max|x| > 0."""
    if math.isinf(p):
        return [torch.sign(t) for t in parts]
    if p == 1:
        flat = torch.cat([t.reshape(-1) for t in parts])  # in logical order, whatever the memory format
        at = flat.abs().argmax().view(1)
        one = torch.zeros_like(flat).scatter(0, at, torch.sign(flat.gather(0, at)))
        pieces = one.split([t.numel() for t in parts])
        return [piece.view(t.shape) for piece, t in zip(pieces, parts, strict=True)]
    q = p / (p - 1)
    parts = [t / largest for t in parts]  # |x| / max|x|, so that |x|^q cannot overflow
    total = norm({str(i): t for i, t in enumerate(parts)}, q)
    return [torch.sign(t) * (t.abs() / total) ** (q - 1) for t in parts]


def random_direction(like: Params, generator: Generator | None = None) -> Params:
    """Draw n ~ N(0, I) with the shapes of `like`; drawn on the generator's device, then moved.

    A generator of None means a fresh one from seed 0: the same n in every such call.
    """
    generator = source_of(generator)
    return {
        name: torch.randn(t.shape, generator=generator, dtype=t.dtype, device=generator.device).to(t.device)
        for name, t in like.items()
    }


def displaced(theta: Params, delta: Params, scale: float = 1.0) -> Params:
    """θ + scale · δ as new tensors; names without a displacement keep their tensor."""
    return {name: t + scale * delta[name] if name in delta else t for name, t in theta.items()}
