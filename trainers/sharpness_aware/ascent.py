"""Where the raw direction of a perturbation comes from, and how its steps add up to a displacement.

A source never calls the model and never normalises: the engine gives it gradients, `landscape.AscentStep` the length.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Generator

from landscape.params import Params, norm
from landscape.perturbation import random_direction


class AscentSource(Protocol):
    """Supplies the raw direction of each inner step."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the direction is made from the gradient of the ascent objective."""

    @property
    def steps(self) -> int:
        """Number of inner steps; each after the first evaluates the gradient at the displaced point."""

    def direction(self, theta: Params, grad: Params | None) -> Params:
        """The raw direction at the current inner step."""

    def advance(self, delta: Params | None, unit: Params, rho: float) -> Params:
        """The displacement after one more step along `unit`, the scaled direction for radius 1."""

    def state_dict(self) -> dict[str, Any]:
        """What must persist across steps."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of the ascent objective at the current weights: SAM (Foret et al. 2021)."""

    needs_gradient: bool = field(default=True, init=False)
    steps: int = field(default=1, init=False)

    def direction(self, theta: Params, grad: Params | None) -> Params:
        assert grad is not None
        return grad

    def advance(self, delta: Params | None, unit: Params, rho: float) -> Params:
        return _scaled(unit, rho)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class IteratedGradient(Gradient):
    """K steps of gradient ascent.

    "pgd": δ_k = Π(δ_{k-1} + multiple · ρ · unit_k), Π the projection on ‖δ‖₂ ≤ ρ; K = 1 is SAM.
    "split": δ_k = δ_{k-1} + (ρ / K) unit_k, without projection.

    Source:
        "pgd": the code of Andriushchenko and Flammarion (2022); "split": our definition, common in follow-ups.
    """

    steps: int = 2
    form: Literal["pgd", "split"] = "pgd"
    multiple: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")
        if not (math.isfinite(self.multiple) and self.multiple > 0):
            raise ValueError(f"`multiple` must be finite and above 0, got {self.multiple!r}.")

    def advance(self, delta: Params | None, unit: Params, rho: float) -> Params:
        step = _scaled(unit, rho / self.steps if self.form == "split" else rho * self.multiple)
        moved = step if delta is None else {k: delta[k] + step[k] if k in delta else step[k] for k in step}
        if self.form == "split":
            return moved
        length = float(norm(moved))
        return _scaled(moved, rho / length) if length > rho else moved


@dataclass
class Random:
    """A direction n ~ N(0, I), fresh for every chunk and step: RandSAM, the baseline of Vani et al. (2024)."""

    generator: Generator
    needs_gradient: bool = field(default=False, init=False)
    steps: int = field(default=1, init=False)

    def direction(self, theta: Params, grad: Params | None) -> Params:
        return random_direction(theta, self.generator)

    def advance(self, delta: Params | None, unit: Params, rho: float) -> Params:
        return _scaled(unit, rho)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())


def _scaled(direction: Params, rho: float) -> Params:
    return dict(zip(direction, torch._foreach_mul(list(direction.values()), rho), strict=True))
