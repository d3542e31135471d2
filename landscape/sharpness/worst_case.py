"""Worst-case sharpness: the largest rise of the loss found in a ball around the weights, by many steps of ascent."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from landscape.checks.arguments import check_arguments
from landscape.checks.repeatability import require_repeatable
from landscape.evaluate import evaluate_with_gradient
from landscape.params import Params, flatten, unflatten
from landscape.params import norm as norm_of
from landscape.perturbation import TINY, Metric
from landscape.precision import in_own_precision
from landscape.randomness import source_of
from landscape.risk import EmpiricalRisk
from landscape.sharpness.ball import Ball, Norm
from landscape.sharpness.blocks import REFUSALS, equal_chunks, gradients_together, groups, stacked
from landscape.sharpness.rise import Rise, Sharpness, mean_rise
from landscape.sharpness.search import Method, Momentum, Objective, Search, Visit

SEARCH_BYTES = 8 * 2**20  # one vector of each chunk held at once; a search holds about ten


@in_own_precision
def worst_case_sharpness(
    risk: EmpiricalRisk,
    rho: float,
    m: int | None = None,
    *,
    norm: Norm = "l2",
    metric: Metric | None = None,
    method: Method = "apgd",
    steps: int = 20,
    restarts: int = 0,
    candidates: Sequence[Params] = (),
    momentum: Momentum = "textbook",
    tol: float = 0.05,
    theta: Params | None = None,
    generator: Generator | None = None,
) -> Sharpness:
    """The largest L(θ + δ) - L(θ) found over ‖T⁻¹δ‖ ≤ ρ: a lower bound of the maximum.

    The ascent runs in the coordinates u = δ / T, where the set is a plain ball, so that a weight with T = 0 stays where
    it is. It starts at θ and, after that, at `restarts` random points of the ball; the best point visited counts, the
    one-step point among them. Where ‖∇L‖ < 1e-12 it starts at a random point instead. More steps or a larger ρ do not
    always find more; to be sure of the second, offer the maximiser at the smaller ρ as a candidate.

    For a chunk size m it is m-sharpness: each chunk of m examples has a maximiser of its own, and the rises are
    averaged, weighted by size; with exact maxima it does not fall as m does. Equal chunks are computed together by
    vmap. It costs steps + 1 gradients for each start, and one for each candidate.

    Args:
        risk: The risk L.
        rho: ρ >= 0, in units of θ for T = I, else relative to T.
        m: Examples a chunk, from 1 to n; the last chunk may be smaller. None means one chunk with all the data.
        norm: "l2" (all parameters jointly) or "linf".
        metric: T: `AbsWeight` (elementwise adaptive), `FilterNorm`, `TensorNorm` (layerwise); None for T = I.
        method: "apgd" or "pgd", see `landscape.sharpness.search.Search`.
        steps: Steps of ascent from each start.
        restarts: Random starts beside θ, the same for all chunks.
        candidates: Displacements δ to look at too; what lies outside the ball is projected onto it.
        momentum: Of APGD: "textbook" or "released".
        tol: `converged` says whether `residual` is at most this part of the rise.
        theta: The point θ; None means the risk's own.
        generator: Draws the partition and the random starts. None keeps the order of the data and draws from seed 0.

    Returns:
        The rise, in units of the loss. `residual` is max ⟨∇L(θ + δ), δ' - δ⟩ over the ball: how much more is to be had
        to first order, zero at a stationary point (a local maximum, in general). `taylor` is ⟨∇L(θ), δ⟩, `error` the
        error rate at θ + δ. `stderr` is 0 for m=None; for chunks it is the spread over them, see `ascent_sharpness`.
        `displacement` is δ for m=None.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Andriushchenko et al. (2023), ICML, for APGD on weights and its settings; Foret et al. (2021), ICLR, for m.
    """
    check_arguments(risk=risk, m=m, steps=steps, restarts=restarts, tol=tol)
    ball = Ball(rho, norm)
    search = Search(method, steps, momentum)
    if restarts < 0:
        raise ValueError(f"`restarts` must be at least 0, got {restarts!r}.")
    if not tol >= 0:
        raise ValueError(f"`tol` must be at least 0, got {tol!r}.")
    point = {name: (risk.theta if theta is None else theta)[name].detach() for name in risk.names}
    source = source_of(generator, risk.device)
    require_repeatable(risk, point)
    chunks = [risk] if m is None else risk.chunks(m, generator=generator)
    place = Place.of(risk, point, metric)
    drawn = ball.draw(restarts + 1, place.origin, source)
    offered = [place.coordinates(delta) for delta in candidates]

    def solve(objective: Objective) -> tuple[Visit, Visit]:
        return search.best(objective, ball, drawn[0], drawn[1:], offered)

    rises: list[Rise] = []
    if m is not None and len(chunks) > 1 and risk.mode != "recalibrate":
        try:
            for group in groups(equal_chunks(chunks), point, SEARCH_BYTES):
                rises += _rises(*solve(_together(group, place)), ball, place)
        except REFUSALS:
            rises = []  # not every model can be vmapped; a real error comes back in the loop
    best = None
    for chunk in chunks[len(rises) :]:
        centre, best = solve(one_at_a_time(chunk, place))
        rises += _rises(centre, best, ball, place)
    flat = sum(r.gradient_norm < TINY for r in rises)
    if flat and rho > 0:
        warnings.warn(
            f"the gradient vanishes on {flat} of {len(chunks)} chunks: the search started at a random point there.",
            RuntimeWarning,
            stacklevel=3,
        )
    found = mean_rise(rises, [sum(chunk.weights) for chunk in chunks], f"{method}-{norm}")
    delta = unflatten(place.scaled(best.at[0]), place.theta) if m is None and best is not None else None
    return replace(found, displacement=delta, converged=bool(found.residual <= tol * found.value + TINY))


@dataclass(frozen=True)
class Place:
    """θ and T as vectors: where u = 0 is, and what a unit of it is worth.

    Attributes:
        theta: θ.
        origin: θ in a row.
        scale: T in a row, or None for T = I.
    """

    theta: Params
    origin: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, risk: EmpiricalRisk, theta: Params, metric: Metric | None) -> "Place":
        """θ and T(θ) in the order of the risk's names."""
        point = {name: theta[name].detach() for name in risk.names}
        return cls(point, flatten(point), None if metric is None else flatten(metric(point), risk.names))

    def scaled(self, u: Tensor) -> Tensor:
        """T u."""
        return u if self.scale is None else self.scale * u

    def coordinates(self, delta: Params) -> Tensor:
        """The coordinates u = δ / T, zero where T is; names that δ lacks do not move."""
        v = flatten({name: delta.get(name, torch.zeros_like(t)) for name, t in self.theta.items()})
        return v if self.scale is None else torch.where(self.scale > 0, v / self.scale, torch.zeros_like(v))


def one_at_a_time(risk: EmpiricalRisk, place: Place) -> Objective:
    """The risk at θ + T u for one u after the other."""

    def objective(u: Tensor) -> Visit:
        values, slopes, errors, norms = [], [], [], []
        for row in u:
            moved = unflatten(place.origin + place.scaled(row), place.theta)
            found, gradient = evaluate_with_gradient(risk, moved)
            values.append(found.loss)
            errors.append(found.error)
            norms.append(float(norm_of(gradient)))
            slopes.append(place.scaled(flatten(gradient, list(place.theta))))
        numbers = torch.tensor([values, errors, norms], dtype=torch.float64, device=u.device)
        return Visit(u, numbers[0], torch.stack(slopes), numbers[1], numbers[2])

    return objective


def _together(chunks: Sequence[EmpiricalRisk], place: Place) -> Objective:
    """The risks of equal chunks, each at a point of its own."""
    x, y = stacked(chunks)
    sizes = [t.numel() for t in place.theta.values()]

    def objective(u: Tensor) -> Visit:
        u = u.expand(len(chunks), -1)
        parts = (place.origin + place.scaled(u)).split(sizes, dim=1)
        theta = {k: part.reshape(-1, *t.shape) for (k, t), part in zip(place.theta.items(), parts, strict=True)}
        losses, gradients, errors = gradients_together(chunks[0], theta, x, y)
        slopes = torch.cat([gradients[k].flatten(1) for k in place.theta], dim=1)
        norms = torch.linalg.vector_norm(slopes, dim=1).double()
        return Visit(u, losses.detach().double(), place.scaled(slopes), errors.double(), norms)

    return objective


def _rises(centre: Visit, best: Visit, ball: Ball, place: Place) -> list[Rise]:
    """The numbers of each chunk."""
    columns = [
        best.values - centre.values,
        torch.linalg.vector_norm(place.scaled(best.at), dim=1),
        centre.norms,
        (centre.slopes * best.at).sum(1),
        best.errors,
        ball.gap(best.at, best.slopes),
        centre.values,
    ]
    return [Rise(*row) for row in torch.stack([c.double() for c in columns], 1).tolist()]
