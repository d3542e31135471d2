"""The search for extreme eigenpairs: what is wanted, when it is found, and the check by true products."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from landscape.progress import Tell
from landscape.spectral.krylov import Array, Krylov

Which = Literal["largest", "smallest", "magnitude", "both"]

ROUNDING = 20  # relative error of a long sum, in units of the machine epsilon
EVERY_STEP = 40  # up to this size the small eigenproblem is solved at each step; above, at every twentieth of the size
NOTHING = 0.1  # share of the tolerance of the largest value that suffices for any
STUCK = 0.3  # share of the allowed residual below which only rounding of the basis can be in the way


@dataclass(frozen=True)
class Goal:
    """Which pairs are wanted, how exactly, and for how many products.

    Attributes:
        k: Pairs, at each end for "both".
        which: Which end.
        tol: Residual allowed, relative to the operator's largest modulus seen.
        budget: Products allowed before the final check.
        own: Residual allowed, relative to each value's own modulus, where that is less; None for no such bound.
    """

    k: int
    which: Which
    tol: float
    budget: int
    own: float | None = None

    @property
    def count(self) -> int:
        """Pairs in all."""
        return 2 * self.k if self.which == "both" else self.k

    def order(self, values: Array, k: int | None = None) -> Array:
        """Indices of the wanted values in the order in which they are returned; k other than the goal's if given."""
        k = self.k if k is None else k
        if self.which == "magnitude":
            return np.argsort(-np.abs(values), kind="stable")[:k]
        order = np.argsort(values, kind="stable")
        if self.which == "smallest":
            return order[:k]
        order = order[::-1]
        return np.concatenate([order[:k], order[max(k, len(order) - k) :]]) if self.which == "both" else order[:k]

    def allowed(self, space: Krylov, values: Array) -> Array:
        """Largest residual of each of these values that counts as converged."""
        rounding = ROUNDING * torch.finfo(space.work).eps
        if space.A.dtype != space.work:  # vectors and images are rounded to fewer bits, once each
            rounding += space.epsilon
        most = np.full(values.shape, self.tol * space.largest)
        if self.own is not None:  # a value that is zero beside the largest cannot be known by its own size
            most = np.clip(self.own * np.abs(values), NOTHING * most, most)
        return most + rounding * space.scale


@dataclass(frozen=True, eq=False)
class Found:
    """Pairs, in the order of the goal, with what is known about them.

    Attributes:
        values: Eigenvalues, of shape (count,).
        residuals: Their residuals.
        vectors: Unit vectors as rows, of shape (count, p); None if not wanted.
        verified: Whether a true product is behind the residuals.
    """

    values: Array
    residuals: Array
    vectors: Tensor | None
    verified: bool


def find(space: Krylov, goal: Goal, tell: Tell, *, start: Tensor | None, vectors: bool) -> Found:
    """Search until the pairs are verified or the budget is spent: one Krylov space, more only where one closes."""
    best = np.inf
    space.begin(start)
    while True:
        values, mix, chosen = _grow(space, goal, tell)
        if space.held or (space.closed and space.size < space.p):
            return _search_complement(space, goal, tell, values, mix, chosen, vectors=vectors)
        found = _checked(space, values[chosen], mix[:, chosen], vectors=vectors)
        reached, room = float(found.residuals.max()), 3 * goal.count <= space.room
        spent = space.products + goal.count > goal.budget
        met = bool((found.residuals <= goal.allowed(space, found.values)).all())
        if met or spent or not room or not reached < best / 2:
            return found
        best = reached
        # the basis has lost its grip (rounding, or fewer bits): go on from the pairs, which are kept in full
        space.lock(found.values, found.residuals, space.combine(mix[:, chosen]))
        space.unlock()


def interrupted(space: Krylov, goal: Goal, *, vectors: bool) -> Found | None:
    """The best pairs so far from what is already computed, without a product; fewer than wanted if so few are known.

    Returns:
        The pairs, with the residuals that the recurrence implies; None if no product is complete.
    """
    if not space.size and not space.held:  # at the very beginning, or while the pairs are multiplied for the check
        count = len(space.held_values)
        rows = space.basis.get(0, count) if vectors else None
        return Found(space.held_values, space.held_residuals, rows, False) if count else None
    values, residuals = space.held_values[: space.held], space.held_residuals[: space.held]
    mix = np.zeros((0, 0))
    if space.size:
        more, mix, _ = space.ritz()
        values, residuals = np.concatenate([values, more]), np.concatenate([residuals, _estimates(space, mix)])
    chosen = goal.order(values)
    rows = _rows(space, mix, chosen) if vectors else None
    return Found(values[chosen], residuals[chosen], rows, False)


def _estimates(space: Krylov, mix: Array) -> Array:
    """Residuals of Ritz vectors that the recurrence implies, with what it leaves out."""
    estimates: Array = np.hypot(np.linalg.norm(space.coupling @ mix, axis=0), space.loose(mix))
    return estimates


def _rows(space: Krylov, mix: Array, chosen: Array) -> Tensor:
    """The vectors with these indices among the locked ones followed by the Ritz vectors, as rows."""
    new = chosen >= space.held
    rows = torch.empty(len(chosen), space.p, dtype=space.work, device=space.A.device)
    if new.any():
        rows[torch.from_numpy(new)] = space.combine(mix[:, chosen[new] - space.held])
    if not new.all():
        held = space.basis.get(0, space.held)
        rows[torch.from_numpy(~new)] = held[torch.from_numpy(chosen[~new])]
    return rows


def _grow(space: Krylov, goal: Goal, tell: Tell) -> tuple[Array, Array, Array]:
    """Extend and restart a Krylov space until what is wanted has converged, it closes, or the budget is spent.

    Returns:
        Ritz values, coefficient vectors, and the indices wanted among the locked values followed by the Ritz values.
    """
    residual, due = np.nan, 0
    while True:
        space.extend()
        enough = space.held + space.size >= goal.count
        out = enough and space.products + space.width > goal.budget
        if not (space.full or out or space.closed or space.size >= due):
            tell(space.products, residual)
            continue
        due = space.size + (1 if space.size < EVERY_STEP else space.size // 20)
        values, mix, coupled = space.ritz()
        chosen = goal.order(np.concatenate([space.held_values[: space.held], values]))
        new = chosen[chosen >= space.held] - space.held  # those among the Ritz pairs; the locked ones have converged
        loose, allowed = space.loose(mix), goal.allowed(space, values)
        estimates = np.hypot(coupled, loose)
        residual = float(estimates[new].max(initial=0)) / (space.largest or 1.0)
        tell(space.products, residual)
        met = enough and bool((estimates[new] <= allowed[new]).all())
        if met and space.held:  # evidence that nothing was missed: the complement's own extremes are known
            ends = goal.order(values, 1)
            met = bool((coupled[ends] <= allowed[ends]).all())
        if met or out or space.closed:
            return values, mix, chosen
        if space.basis.lossy and enough and not space.held:
            stuck = bool((coupled[new] <= STUCK * allowed[new]).all())
            if stuck or (space.full and bool((loose[new] > allowed[new]).any())):
                return values, mix, chosen
        if space.full:
            _restart(space, goal, values, mix)
            due = 0


def _restart(space: Krylov, goal: Goal, values: Array, mix: Array) -> None:
    """Keep the wanted Ritz vectors, and neighbours of theirs, which speed up what comes next."""
    ends = 2 if goal.which == "both" else 1
    most = space.room - 2 * space.width - 1
    more = max(5, (space.capacity - goal.count) // 3) // ends
    wanted = goal.order(values)
    wider = goal.order(values, max(goal.k, min(goal.k + more, most // ends)))
    kept = np.concatenate([wanted, wider[~np.isin(wider, wanted)]])
    space.restart(values[kept], mix[:, kept])


def _checked(space: Krylov, values: Array, mix: Array, *, vectors: bool) -> Found:
    """Measure the residuals, from the products taken if they are all kept; else check all pairs by one true product.

    It is that of a random-signed sum of their vectors, whose image the recurrence predicts. By how much the true image
    is off is a bound, up to chance, of what each residual is off by, and is added to it. A single pair has its
    residual measured.
    """
    count = mix.shape[1]
    known = space.images(mix)
    if known is not None:
        units = space.combine(mix)
        lengths = torch.linalg.vector_norm(units, dim=1, keepdim=True)
        units, known = units / lengths, known / lengths
        quotients = (units * known).sum(1, keepdim=True)
        measured = torch.linalg.vector_norm(known - quotients * units, dim=1).double().cpu().numpy()
        return Found(quotients[:, 0].double().cpu().numpy(), measured, units if vectors else None, True)
    if count == 1:
        unit = space.combine(mix)
        unit /= torch.linalg.vector_norm(unit)
        image = space.product(unit)
        value = (unit * image).sum()
        residual = torch.linalg.vector_norm(image - value * unit)
        return Found(np.array([float(value)]), np.array([float(residual)]), unit if vectors else None, True)
    draw = torch.randint(0, 2, (count,), generator=space.generator, device=space.generator.device)
    total = mix @ (2.0 * draw.cpu().numpy() - 1)
    image = space.product(space.combine(total[:, None]))
    predicted = np.concatenate([space.matrix[: space.size, : space.size] @ total, space.coupling @ total])
    off = float(torch.linalg.vector_norm(image - space.combine(predicted[:, None])))
    residuals = np.linalg.norm(space.coupling @ mix, axis=0) + off
    rows = space.combine(mix) if vectors else None
    if rows is not None:
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return Found(values, residuals, rows, True)


def _search_complement(
    space: Krylov, goal: Goal, tell: Tell, values: Array, mix: Array, chosen: Array, *, vectors: bool
) -> Found:
    """Search the complement of what was found in a space that closed, until it holds nothing more extreme.

    The pairs are then verified by a product each.
    """
    while True:
        before = np.sort(space.held_values[: space.held])
        union = np.concatenate([space.held_values[: space.held], values])
        after = np.sort(union[chosen])
        again = space.held > 0
        settled = again and len(before) == goal.count
        if settled and bool(np.all(np.abs(after - before) <= goal.tol * space.largest)):
            break
        residuals = np.concatenate([space.held_residuals[: space.held], _estimates(space, mix)])
        closed, exhausted = space.closed, space.closed and space.held + space.size == space.p
        space.lock(union[chosen], residuals[chosen], _rows(space, mix, chosen))
        spent = space.products + min(space.block, space.p - space.held) > goal.budget and space.held == goal.count
        if exhausted or spent or not (closed or again):
            break
        space.begin()
        values, mix, chosen = _grow(space, goal, tell)
    space.unlock()
    space.extend()
    values, mix, _ = space.ritz()
    chosen = goal.order(values)
    return Found(
        values[chosen], _estimates(space, mix)[chosen], space.combine(mix[:, chosen]) if vectors else None, True
    )
