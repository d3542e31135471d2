"""Keskar's sharpness: the worst rise of the loss in a small box, in percent of one plus the loss."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.evaluate import evaluate_with_gradient
from landscape.params import Params, flatten, unflatten
from landscape.params import norm as norm_of
from landscape.perturbation import TINY, AbsWeight, check_radius
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.sharpness.ball import Ball
from landscape.sharpness.rise import Rise, Sharpness, mean_rise
from landscape.sharpness.search import Search, Visit
from landscape.sharpness.worst_case import Place, worst_case_sharpness

KEPT_BYTES = 256 * 2**20  # of a subspace's basis; a larger one is drawn again for each product
COLUMNS = 16  # of a basis that is drawn again, at a time
SEEDS = 2**62


@in_own_precision
def keskar_sharpness(
    risk: EmpiricalRisk,
    eps: float = 1e-3,
    *,
    dimension: int | None = None,
    draws: int = 1,
    steps: int = 20,
    tol: float = 0.05,
    theta: Params | None = None,
    generator: Generator | None = None,
) -> Sharpness:
    """φ = 100 (max_z L(θ + z) - L(θ)) / (1 + L(θ)) over the box |z_i| ≤ ε (|θ_i| + 1), by APGD in the scaled box.

    With a `dimension` k, z = A y stays in a random subspace, |y_j| ≤ ε (|(A⁺θ)_j| + 1), where the columns of A
    (p × k) are independent, even over the unit sphere. The box is then ‖z‖ of about ε √k long, against ε √p and more.
    The + 1 makes both depend on the scale of the weights.

    Args:
        risk: The risk L.
        eps: ε >= 0.
        dimension: k from 1 to p, such as 100; None means all directions.
        draws: Subspaces; each costs steps + 1 gradients.
        steps: Steps of APGD.
        tol: `converged` says whether `residual` is at most this part of the rise.
        theta: The point θ; None means the risk's own.
        generator: Draws the subspaces, or the start where the gradient vanishes; None means a fresh one from seed 0.

    Returns:
        φ, in percent, with its standard error over subspaces (NaN for one; 0 for the full box). The other fields are
        those of the maximiser, in units of the loss and of θ.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Keskar et al. (2017), ICLR, metric 2.1, with APGD in place of L-BFGS-B; that A has unit columns is ours.
    """
    check_arguments(risk=risk, dimension=dimension, draws=draws, steps=steps, tol=tol)
    generator = source_of(generator, risk.device)
    check_radius(eps, "eps")
    if dimension is None:
        found = worst_case_sharpness(
            risk, eps, norm="linf", metric=AbsWeight(1.0), steps=steps, tol=tol, theta=theta, generator=generator
        )
        percent = 100 / (1 + found.base)
        return replace(found, value=percent * found.value, method="keskar-box")
    p = sum(t.numel() for t in risk.theta.values())
    if not 1 <= dimension <= p:
        raise ValueError(f"`dimension` must be between 1 and the number of parameters {p}, got {dimension!r}.")
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1 subspace, got {draws!r}.")
    place = Place.of(risk, risk.theta if theta is None else theta, None)
    search, ball = Search("apgd", steps), Ball(eps, "linf")
    rises = []
    for _ in range(draws):
        basis = Basis.drawn(place.origin, dimension, generator)
        spare = ball.draw(1, place.origin[:dimension], generator)
        centre, best = search.best(_Subspace(risk, place, basis), ball, spare[0], spare[1:])
        rises.append(_rise(centre, best, ball, basis))
    mean = mean_rise(rises, [1] * draws, f"keskar-subspace-{dimension}")
    percent = 100 / (1 + mean.base)
    return replace(
        mean,
        value=percent * mean.value,
        stderr=percent * mean.stderr if draws > 1 else math.nan,
        converged=bool(mean.residual <= tol * mean.value + TINY),
    )


@dataclass(frozen=True, eq=False)
class Basis:
    """A p × k matrix A with unit columns, and the half-width |A⁺θ| + 1 of its box.

    Attributes:
        seed: What its columns are drawn from.
        like: A vector of length p of its dtype and device.
        k: Number of columns.
        kept: The columns, where they fit the memory.
        scale: |A⁺θ| + 1.
    """

    seed: int
    like: Tensor
    k: int
    kept: Tensor | None
    scale: Tensor

    @classmethod
    def drawn(cls, origin: Tensor, k: int, generator: Generator) -> "Basis":
        """A random one; the generator gives one number, from which the columns are drawn on the device."""
        seed = int(torch.randint(SEEDS, (1,), generator=generator, device=generator.device))
        blank = cls(seed, origin, k, None, torch.ones(k, dtype=origin.dtype, device=origin.device))
        if k * origin.numel() * origin.element_size() <= KEPT_BYTES:
            blank = replace(blank, kept=torch.cat(list(blank.columns()), dim=1))
        gram = torch.cat([torch.cat([a.T @ b for a in blank.columns()]) for b in blank.columns()], dim=1)
        coordinates = torch.linalg.lstsq(gram.double().cpu(), blank.back(origin).double().cpu().unsqueeze(1)).solution
        return replace(blank, scale=coordinates[:, 0].abs().add(1).to(origin))

    def columns(self) -> Iterator[Tensor]:
        """A, some columns at a time."""
        if self.kept is not None:
            yield self.kept
            return
        source = torch.Generator(self.like.device).manual_seed(self.seed)
        for start in range(0, self.k, COLUMNS):
            count = min(COLUMNS, self.k - start)
            rows = torch.randn(
                (count, len(self.like)), generator=source, dtype=self.like.dtype, device=self.like.device
            )
            yield (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)).T

    def __call__(self, y: Tensor) -> Tensor:
        """A y."""
        total, start = torch.zeros_like(self.like), 0
        for part in self.columns():
            total += part @ y[start : start + part.shape[1]]
            start += part.shape[1]
        return total

    def back(self, v: Tensor) -> Tensor:
        """Aᵀ v."""
        return torch.cat([part.T @ v for part in self.columns()])


@dataclass(frozen=True, eq=False)
class _Subspace:
    """The risk at θ + A (scale u)."""

    risk: EmpiricalRisk
    place: Place
    basis: Basis

    def __call__(self, u: Tensor) -> Visit:
        moved = self.place.origin + self.basis(self.basis.scale * u[0])
        found, gradient = evaluate_with_gradient(self.risk, unflatten(moved, self.place.theta))
        slope = self.basis.scale * self.basis.back(flatten(gradient, list(self.place.theta)))
        numbers = torch.tensor(
            [[found.loss], [found.error], [float(norm_of(gradient))]], dtype=torch.float64, device=u.device
        )
        return Visit(u, numbers[0], slope.unsqueeze(0), numbers[1], numbers[2])


def _rise(centre: Visit, best: Visit, ball: Ball, basis: Basis) -> Rise:
    delta = basis(basis.scale * best.at[0])
    return Rise(
        float(best.values - centre.values),
        float(torch.linalg.vector_norm(delta)),
        float(centre.norms),
        float((centre.slopes * best.at).sum()),
        float(best.errors),
        float(ball.gap(best.at, best.slopes)),
        float(centre.values),
    )
