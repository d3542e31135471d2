"""Projected gradient ascent in a ball: PGD and APGD, for many independent problems at once."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape.perturbation import TINY
from landscape.sharpness.ball import Ball

Method = Literal["apgd", "pgd"]
Momentum = Literal["textbook", "released"]

SHRINK_BELOW = 0.75  # share of steps with a new best below which APGD halves its step
PGD_STEP = 2.5  # times ρ / steps


@dataclass(frozen=True)
class Visit:
    """k points, one a problem, with what was found there.

    Attributes:
        at: The points u, (k, p).
        values: The objective, (k,), in float64.
        slopes: Its gradient in u, (k, p).
        errors: Error rates, (k,); NaN where there are none.
        norms: ‖∇L‖₂ with respect to the weights themselves, (k,).
    """

    at: Float[Tensor, "k p"]
    values: Float[Tensor, " k"]
    slopes: Float[Tensor, "k p"]
    errors: Float[Tensor, " k"]
    norms: Float[Tensor, " k"]

    def where(self, mask: Bool[Tensor, " k"], other: "Visit") -> "Visit":
        """This visit where the mask holds, the other one elsewhere."""
        if bool(mask.all()):
            return self
        if not bool(mask.any()):
            return other
        column = mask.unsqueeze(1)
        return Visit(
            torch.where(column, self.at, other.at),
            torch.where(mask, self.values, other.values),
            torch.where(column, self.slopes, other.slopes),
            torch.where(mask, self.errors, other.errors),
            torch.where(mask, self.norms, other.norms),
        )


Objective = Callable[[Tensor], Visit]


def checkpoints(steps: int) -> list[int]:
    """After which steps APGD looks whether to halve its step: ⌈q_j T⌉ ≤ T, at intervals that shrink.

    q_0 = 0, q_1 = 0.22, q_{j+1} = q_j + max(q_j - q_{j-1} - 0.03, 0.06).

    Source:
        Croce and Hein (2020), ICML, section 3.2.
    """
    found, before, now = [], 0.0, 0.22
    while math.ceil(now * steps) <= steps:
        found.append(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Search:
    """How the maximum of an objective over a ball is sought.

    PGD takes steps of 2.5 ρ / T up the normalised gradient (its sign for "linf") and projects. APGD starts with steps
    of 2ρ, adds momentum, and halves the step of a problem, going back to its best point, where at a checkpoint fewer
    than 75 % of the steps since the last one brought a new best value, or neither the step nor the best value has
    changed. The best point visited counts, in each problem by itself. As there are eight checkpoints at most, a maximum
    inside the ball is met to about ρ / 64, and one on its surface much better.

    Attributes:
        method: "apgd" or "pgd".
        steps: T ≥ 1.
        momentum: For APGD with z the projected step from u_k: "textbook" u_k + 0.75 (z - u_k) + 0.25 (u_k - u_{k-1}),
            projected; "released" 0.75 z + 0.25 u_{k-1}, as in the code of Andriushchenko et al. (2023). Where that
            code returns to the best point with the weights alone, we return with the perturbation and its memory too.

    Source:
        Croce and Hein (2020), ICML, for APGD; Madry et al. (2018), ICLR, for PGD's step.
    """

    method: Method = "apgd"
    steps: int = 20
    momentum: Momentum = "textbook"

    def __post_init__(self) -> None:
        if self.method not in ("apgd", "pgd"):
            raise ValueError(f"`method` must be 'apgd' or 'pgd', got {self.method!r}.")
        if self.momentum not in ("textbook", "released"):
            raise ValueError(f"`momentum` must be 'textbook' or 'released', got {self.momentum!r}.")
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps!r}.")

    def best(
        self,
        objective: Objective,
        ball: Ball,
        spare: Float[Tensor, " p"],
        starts: Float[Tensor, "r p"],
        candidates: Iterable[Float[Tensor, " p"]] = (),
    ) -> tuple[Visit, Visit]:
        """The centre of the ball, and the best points found in k problems.

        Args:
            objective: Maps k points to their `Visit`.
            ball: Where to look.
            spare: First point where the gradient vanishes at the centre, which then leads nowhere.
            starts: Further first points, the same for all problems. The centre always is one.
            candidates: Points that are looked at and no more; the centre's own one-step point always is one.
        """
        centre = objective(torch.zeros_like(spare).unsqueeze(0))
        count = len(centre.values)
        centre = replace(centre, at=centre.at.expand(count, -1))
        flat = torch.linalg.vector_norm(centre.slopes, dim=1) < TINY
        first = centre
        if bool(flat.any()):
            first = objective(spare.expand(count, -1)).where(flat, centre)
        best = _better(self._run(objective, ball, first), centre)
        if self.method == "pgd" and self.steps > 1:
            best = _better(objective(ball.radius * ball.steepest(centre.slopes)), best)
        for start in starts:
            best = _better(self._run(objective, ball, objective(start.expand(count, -1))), best)
        for candidate in candidates:
            best = _better(objective(ball.project(candidate.unsqueeze(0)).expand(count, -1)), best)
        return centre, best

    def _run(self, objective: Objective, ball: Ball, first: Visit) -> Visit:
        return self._pgd(objective, ball, first) if self.method == "pgd" else self._apgd(objective, ball, first)

    def _pgd(self, objective: Objective, ball: Ball, first: Visit) -> Visit:
        here = best = first
        size = PGD_STEP * ball.radius / self.steps
        for _ in range(self.steps):
            here = objective(ball.project(here.at + size * ball.steepest(here.slopes)))
            best = _better(here, best)
        return best

    def _apgd(self, objective: Objective, ball: Ball, first: Visit) -> Visit:
        here = best = first
        before = first.at
        size = torch.full_like(first.values, 2 * ball.radius)
        gained = torch.zeros_like(first.values)
        stops, last = set(checkpoints(self.steps)), 0
        size_then, best_then = size, best.values
        for k in range(1, self.steps + 1):
            step = size.to(here.at.dtype).unsqueeze(1) * ball.steepest(here.slopes)
            there = ball.project(here.at + step)
            if k > 1 and self.momentum == "textbook":
                there = ball.project(here.at + 0.75 * (there - here.at) + 0.25 * (here.at - before))
            elif k > 1:
                there = 0.75 * there + 0.25 * before
            before, here = here.at, objective(there)
            gained += here.values > best.values
            best = _better(here, best)
            if k in stops:
                slow = gained < SHRINK_BELOW * (k - last)
                slow |= (size == size_then) & (best.values == best_then)
                size_then, best_then = size, best.values
                size = torch.where(slow, size / 2, size)
                here = best.where(slow, here)
                before = torch.where(slow.unsqueeze(1), best.at, before)
                gained, last = torch.zeros_like(gained), k
        return best


def _better(new: Visit, old: Visit) -> Visit:
    """The larger of two, problem by problem; what is not a number never wins."""
    return new.where(new.values > old.values, old)
