"""Extreme eigenpairs by Lanczos iteration with full reorthogonalisation, thick restarts and residuals."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from landscape.operators.protocol import SymmetricOperator
from landscape.spectral.krylov import Krylov

Which = Literal["largest", "smallest", "magnitude", "both"]
Array = np.ndarray[Any, np.dtype[Any]]

BASIS_BYTES = 256 * 2**20  # what the default basis may occupy
BASIS_CAP = 300
ROUNDING = 20  # relative error of a product, in units of the machine epsilon


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric operator, with what was checked about them.

    Attributes:
        values: Signed eigenvalues, float64 on the CPU, of shape (k,), or (2k,) for "both"; ordered as `which` says.
        vectors: Unit eigenvectors as columns, of shape (p, k) or (p, 2k), in the operator's dtype; signs are arbitrary.
        residuals: ‖A v - λ v‖ of each pair, from one true product each. Some eigenvalue lies within it of λ.
        converged: Whether every residual met the tolerance.
        products: Operator products spent, checks included.
        which: Which end of the spectrum they are from.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "p k"]
    residuals: Float[Tensor, " k"]
    converged: bool
    products: int
    which: Which


def top_eigenpairs(
    A: SymmetricOperator,
    k: int = 1,
    *,
    which: Which = "largest",
    tol: float | None = None,
    max_products: int | None = None,
    basis: int | None = None,
    generator: Generator,
) -> Eigenpairs:
    """Find k extreme eigenpairs of a symmetric operator.

    Lanczos from a random vector, orthogonalised twice against the whole basis at each step, with Rayleigh-Ritz on the
    projected matrix in float64. It stops on residuals, β_m |s_mi| <= tol · max|θ|, never on the change of a value.
    When the basis is full it restarts from the best Ritz vectors. When the Krylov space closes (is invariant) the
    orthogonal complement of what was found is searched from a fresh random vector, until it holds nothing more
    extreme; so multiple eigenvalues are found there. Where it does not close, a multiple eigenvalue may be counted
    once, as in any Krylov method that starts from one vector.

    Args:
        A: Symmetric operator of shape (p, p).
        k: Number of pairs; for "both", at each end.
        which: "largest" (algebraic; descending), "smallest" (algebraic; ascending), "magnitude" (largest modulus
            first, signs kept) or "both" (one Krylov space; descending: the k largest, then the k smallest).
        tol: Residual allowed, relative to the largest modulus; None means 1e-8 in float64 and 1e-3 below.
        max_products: Bound on products before the k of the final check; None means 300 + 20 for each pair wanted.
        basis: Length of the basis before a restart; memory is basis × p. None means what fits in 256 MiB, from
            max(2k + 20, 30) to 300.
        generator: Source of the start vectors.

    Returns:
        The pairs. If they did not converge they are the best found, `converged` is False and there is a warning.

    Raises:
        ValueError: If an argument is out of range, or a product is not finite.

    Source:
        Wu and Simon (2000), SIAM J. Matrix Anal. Appl. 22(2), for thick restarts; the search of the complement is
        our definition.
    """
    p = A.shape[0]
    need = 2 * k if which == "both" else k
    if which not in ("largest", "smallest", "magnitude", "both"):
        raise ValueError(f"`which` must be 'largest', 'smallest', 'magnitude' or 'both', got {which!r}.")
    if k < 1 or need > p:
        most = p // 2 if which == "both" else p
        raise ValueError(f"`k` must be between 1 and {most} for p = {p} and which={which!r}, got {k}.")
    if tol is None:
        tol = 1e-8 if A.dtype == torch.float64 else 1e-3
    if not tol >= 0:
        raise ValueError(f"`tol` must be a relative residual >= 0, got {tol!r}.")
    if max_products is None:
        max_products = 300 + 20 * need
    if max_products < need:
        raise ValueError(f"`max_products` must be at least the {need} pairs wanted, got {max_products}.")
    if basis is None:
        basis = max(2 * need + 20, 30, min(BASIS_CAP, BASIS_BYTES // (p * A.dtype.itemsize)))
    if basis < min(p, need + 2):
        raise ValueError(f"`basis` must be at least {min(p, need + 2)} for {need} pairs, got {basis}.")
    space = Krylov(A, locked=need, capacity=min(basis, p), generator=generator)
    with torch.no_grad():
        _search(space, k, which, tol, max_products)
        return _checked(space, which, tol)


def _order(values: Array, k: int, which: Which) -> Array:
    """Indices of the k wanted values (k at each end for "both"), in the order in which they are returned."""
    if which == "magnitude":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    order = np.argsort(values, kind="stable")
    if which == "smallest":
        return order[:k]
    order = order[::-1]
    return np.concatenate([order[:k], order[max(k, len(order) - k) :]]) if which == "both" else order[:k]


def _search(space: Krylov, k: int, which: Which, tol: float, budget: int) -> None:
    """Lock the wanted pairs: one Krylov space, and more of them only where one closes."""
    p, need = space.rows.shape[1], 2 * k if which == "both" else k
    while True:
        again = space.held > 0
        space.begin()
        values, vectors, chosen = _grow(space, k, which, tol, budget)
        before = np.sort(space.held_values)
        union = np.concatenate([space.held_values, values])
        after = np.sort(union[chosen])
        if again and len(before) == need and bool(np.all(np.abs(after - before) <= tol * np.abs(union).max())):
            return  # the complement holds nothing more extreme
        old, new = chosen[chosen < space.held], chosen[chosen >= space.held] - space.held
        parts = torch.cat([space.rows[torch.from_numpy(old.copy())], space.combine(vectors[:, new])])
        exhausted = space.closed and space.held + space.size == p
        closed = space.closed
        space.lock(np.concatenate([space.held_values[old], values[new]]), parts)
        if exhausted or space.products >= budget or not (closed or again):
            return


def _grow(space: Krylov, k: int, which: Which, tol: float, budget: int) -> tuple[Array, Array, Array]:
    """Extend and restart one Krylov space until what is wanted has converged, it closes, or the budget is spent.

    Returns:
        Ritz values, coefficient vectors, and the indices wanted among the locked values followed by the Ritz values.
    """
    need = 2 * k if which == "both" else k
    capacity = space.capacity
    while True:
        space.extend()
        full, out = space.size == capacity, space.products >= budget
        if not (full or out or space.closed or space.size < 40 or space.size % (space.size // 20) == 0):
            continue  # the small eigenproblem is not free in a long basis
        values, vectors, residuals = space.ritz()
        union = np.concatenate([space.held_values, values])
        chosen = _order(union, k, which)
        allowed = tol * np.abs(union).max()
        good = np.concatenate([np.zeros(space.held), residuals]) <= allowed
        met = len(union) >= need and bool(good[chosen].all())
        if met and space.held:  # evidence that nothing was missed: the complement's own extremes are known
            met = bool((residuals[_order(values, 1, which)] <= allowed).all())
        if met or out or space.closed:
            return values, vectors, chosen
        if full:
            ends, spare = 2 if which == "both" else 1, capacity - need
            more = max(5, spare // 3) // ends  # neighbours of the wanted values speed up what comes next
            kept = _order(values, min(k + more, (capacity - 2) // ends), which)
            space.restart(values[kept], vectors[:, kept])


def _checked(space: Krylov, which: Which, tol: float) -> Eigenpairs:
    """Measure the locked vectors' Rayleigh quotients and residuals by true products."""
    rows = space.rows[: space.held]
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    images = torch.stack([space.A @ row for row in rows])
    # row by row, so that float64 copies stay at one vector
    values = torch.stack([v.double() @ w.double() for v, w in zip(rows, images, strict=True)])
    residuals = torch.stack(
        [torch.linalg.vector_norm(w.double() - x * v.double()) for v, w, x in zip(rows, images, values, strict=True)]
    )
    each = len(rows) // 2 if which == "both" else len(rows)
    order = torch.from_numpy(_order(values.cpu().numpy(), each, which).copy())
    values, residuals = values.cpu()[order], residuals.cpu()[order]
    largest = max(float(values.abs().max()), float(np.abs(space.held_values).max()))
    allowed = tol * largest + ROUNDING * space.epsilon * space.scale
    converged = bool((residuals <= allowed).all())
    products = space.products + len(rows)
    if not converged:
        warnings.warn(
            f"top_eigenpairs did not reach a residual of {allowed:.2g} (largest: {float(residuals.max()):.2g}) in "
            f"{products} products: raise `max_products` or `basis`, or allow a larger `tol`.",
            RuntimeWarning,
            stacklevel=3,
        )
    return Eigenpairs(values, rows[order.to(rows.device)].T.contiguous(), residuals, converged, products, which)
