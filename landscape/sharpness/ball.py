"""The set in which a worst case is sought: a plain ball in the coordinates u = δ / T, for many problems at once."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.perturbation import TINY, check_radius

Norm = Literal["l2", "linf"]


@dataclass(frozen=True)
class Ball:
    """‖u‖ ≤ ρ for every row u. With δ = T u it is the ellipsoid or box ‖T⁻¹δ‖ ≤ ρ, without a division by T.

    A weight whose T is zero does not move: its gradient T g is zero too.

    Attributes:
        radius: ρ ≥ 0.
        norm: "l2" or "linf".
    """

    radius: float
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        check_radius(self.radius, "rho")
        if self.norm not in ("l2", "linf"):
            raise ValueError(f"`norm` must be 'l2' or 'linf', got {self.norm!r}.")

    def steepest(self, g: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The maximiser of ⟨g, u⟩ over ‖u‖ ≤ 1, row by row; zero where a row is zero or not finite."""
        if self.norm == "l2":
            size = torch.linalg.vector_norm(g, dim=1, keepdim=True)
            out = g / (size + TINY)
        else:
            size = g.sum(1, keepdim=True)
            out = torch.sign(g)
        return out if bool(torch.isfinite(size).all()) else torch.where(torch.isfinite(size), out, torch.zeros_like(g))

    def project(self, u: Float[Tensor, "k p"]) -> Float[Tensor, "k p"]:
        """The nearest point of the ball, row by row."""
        if self.norm == "linf":
            return u.clamp(-self.radius, self.radius)
        size = torch.linalg.vector_norm(u, dim=1, keepdim=True)
        return u * torch.where(size > self.radius, self.radius / size, torch.ones_like(size))

    def gap(self, u: Float[Tensor, "k p"], g: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
        """The maximum over v in the ball of ⟨g, v - u⟩ ≥ 0: zero exactly at the points where no direction leads up."""
        order = 2 if self.norm == "l2" else 1
        found: Tensor = self.radius * torch.linalg.vector_norm(g, order, dim=1) - (g * u).sum(1)
        return found.clamp_min(0)

    def draw(self, count: int, like: Float[Tensor, " p"], generator: Generator) -> Float[Tensor, "count p"]:
        """Points drawn evenly from the ball; drawn on the generator's device, then moved."""
        p, dtype, device = len(like), like.dtype, generator.device
        if self.norm == "linf":
            box = torch.rand((count, p), generator=generator, dtype=dtype, device=device)
            return (box * (2 * self.radius) - self.radius).to(like.device)
        n = torch.randn((count, p), generator=generator, dtype=dtype, device=device)
        r = self.radius * torch.rand((count, 1), generator=generator, dtype=dtype, device=device) ** (1 / p)
        size = torch.linalg.vector_norm(n, dim=1, keepdim=True).clamp_min(math.sqrt(torch.finfo(dtype).tiny))
        points: Tensor = n * (r / size)
        return points.to(like.device)
